"""The privacy class of a request: the strictest of what anyone says of it."""

from __future__ import annotations

import pytest

from gateway.domain.caller import Caller
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.policy.detect import Finding
from gateway.policy.privacy import classify
from tests.unit.spine import CALLER, FINE, build


def test_the_class_is_the_strictest_of_key_alias_and_request() -> None:
    catalog = build({"a": FINE})[0].rules.catalog
    key = Caller(key_id="k", name="n", privacy_floor="internal", privacy_ceiling="confidential")
    assert classify(catalog, CALLER, floor=0, asked=None) == 0
    assert classify(catalog, CALLER, floor=2, asked="internal") == 2
    assert classify(catalog, key, floor=0, asked=None) == 1
    assert classify(catalog, key, floor=0, asked="public") == 1
    with pytest.raises(Forbidden):
        classify(catalog, key, floor=0, asked="restricted")
    with pytest.raises(InvalidRequest):
        classify(catalog, CALLER, floor=0, asked="secret")
    forgotten = Caller(key_id="k", name="n", privacy_floor="gone")
    assert classify(catalog, forgotten, floor=0, asked=None) == 3  # unknown is the strictest


def test_what_was_found_raises_and_never_passes_a_ceiling() -> None:
    dispatch, _, _ = build({"a": FINE})
    catalog = dispatch.rules.catalog
    found = Finding(2, ("card_number",))
    assert classify(catalog, CALLER, floor=0, asked="internal", found=found) == 2
    assert classify(catalog, CALLER, floor=3, asked=None, found=found) == 3
    bounded = Caller(key_id="k", name="n", privacy_ceiling="internal")
    with pytest.raises(Forbidden, match=r"confidential data \(found: card_number\)"):
        classify(catalog, bounded, floor=0, asked=None, found=found)
