"""The class of a request: the strictest of what anyone says of it, and never above a ceiling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.caller import Caller
from gateway.domain.catalog import Catalog
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.policy.detect import NOTHING, Finding
from gateway.policy.privacy import HEADER, classify

CLASSES = ("public", "internal", "confidential", "restricted")
CATALOG = Catalog(privacy_classes=CLASSES, backends={}, aliases={}, digest="")


def rank(
    *,
    key: str | None = None,
    ceiling: str | None = None,
    alias: int = 0,
    asked: str | None = None,
    found: Finding = NOTHING,
) -> int:
    caller = Caller(key_id="k", name="n", privacy_floor=key, privacy_ceiling=ceiling)
    return classify(CATALOG, caller, floor=alias, asked=asked, found=found)


RANKS = st.integers(0, 3)
NAMES = st.none() | st.sampled_from(CLASSES)


@given(key=NAMES, alias=RANKS, asked=NAMES, found=RANKS)
def test_the_class_is_the_strictest_of_the_four(
    key: str | None, alias: int, asked: str | None, found: int
) -> None:
    said = [alias, found, *(CLASSES.index(name) for name in (key, asked) if name is not None)]
    assert rank(key=key, alias=alias, asked=asked, found=Finding(found, ("x",))) == max(said)


@given(key=NAMES, alias=RANKS, asked=NAMES, found=RANKS, ceiling=st.sampled_from(CLASSES))
def test_above_the_ceiling_it_is_refused_whatever_raised_it(
    key: str | None, alias: int, asked: str | None, found: int, ceiling: str
) -> None:
    finding = Finding(found, ("x",))
    without = rank(key=key, alias=alias, asked=asked, found=finding)
    if without > CLASSES.index(ceiling):
        with pytest.raises(Forbidden):
            rank(key=key, alias=alias, asked=asked, found=finding, ceiling=ceiling)
    else:
        same = rank(key=key, alias=alias, asked=asked, found=finding, ceiling=ceiling)
        assert same == without


def test_a_refusal_says_what_was_found_by_name_only() -> None:
    with pytest.raises(Forbidden) as caught:
        rank(ceiling="internal", found=Finding(3, ("card_number", "iban")))
    assert caught.value.message == (
        "This key may not send restricted data (found: card_number, iban)."
    )
    assert caught.value.param == HEADER
    with pytest.raises(Forbidden) as caught:
        rank(ceiling="internal", asked="restricted", found=Finding(1, ("email",)))
    assert caught.value.message == "This key may not send restricted data."


def test_names_that_the_catalog_lost_count_against_whom_they_protect() -> None:
    assert rank(key="gone") == 3
    assert rank(ceiling="gone") == 0
    with pytest.raises(Forbidden):
        rank(ceiling="gone", alias=1)
    with pytest.raises(InvalidRequest, match="known are public, internal"):
        rank(asked="gone")
