"""Which requests a route is for, key by key."""

from __future__ import annotations

from dataclasses import fields

import pytest

from gateway.domain.request import Capability, Endpoint
from gateway.policy.expressions import ExpressionFailed, compile_expression
from gateway.policy.language import Match, Window
from gateway.policy.matching import CONDITIONS, conditions
from tests.unit.policy.worlds import facts

TEAM = {"team": frozenset({"search", "ads"})}
NIGHT = Window(zone="UTC", days=frozenset({3}), start_minute=60, end_minute=120)  # 1970 began so
HOUR_US = 3_600_000_000


@pytest.mark.parametrize(
    ("match", "asked", "fits"),
    [
        (Match(), {}, True),
        (Match(endpoint=Endpoint.CHAT), {}, True),
        (Match(endpoint=Endpoint.EMBEDDINGS), {}, False),
        (Match(privacy_at_least=1), {"privacy": 1}, True),
        (Match(privacy_at_least=1), {"privacy": 0}, False),
        (Match(privacy_at_most=1), {"privacy": 1}, True),
        (Match(privacy_at_most=1), {"privacy": 2}, False),
        (Match(privacy_at_most=0), {"privacy": 1}, False),
        (Match(stream=True), {"stream": True}, True),
        (Match(stream=True), {"stream": False}, False),
        (Match(stream=False), {"stream": True}, False),
        (Match(needs=frozenset({Capability.TOOLS})), {"needs": frozenset(Capability)}, True),
        (Match(needs=frozenset({Capability.TOOLS})), {}, False),
        (Match(prompt_tokens_min=100), {"prompt_tokens": 100}, True),
        (Match(prompt_tokens_min=101), {"prompt_tokens": 100}, False),
        (Match(prompt_tokens_max=100), {"prompt_tokens": 100}, True),
        (Match(prompt_tokens_max=99), {"prompt_tokens": 100}, False),
        (Match(prompt_tokens_max=0), {"prompt_tokens": 1}, False),
        (Match(prompt_tokens_min=1, stream=True), {"stream": False}, False),
        (Match(keys=frozenset({"k1", "k2"})), {"key_id": "k2"}, True),
        (Match(keys=frozenset({"k1"})), {"key_id": "k2"}, False),
        (Match(keys=frozenset({"k1"})), {}, False),
        (Match(tags=TEAM), {"tags": {"team": "ads", "app": "x"}}, True),
        (Match(tags=TEAM), {"tags": {"team": "legal"}}, False),
        (Match(tags=TEAM), {}, False),
        (Match(tags={**TEAM, "app": frozenset({"x"})}), {"tags": {"team": "ads"}}, False),
        (Match(spent=frozenset({"day", "month"})), {"spent": frozenset({"month"})}, True),
        (Match(spent=frozenset({"day"})), {"spent": frozenset({"month"})}, False),
        (Match(spent=frozenset({"day"})), {}, False),
        (Match(window=NIGHT), {"at_us": HOUR_US}, True),
        (Match(window=NIGHT), {"at_us": 2 * HOUR_US}, False),
        (Match(window=NIGHT), {"at_us": 25 * HOUR_US}, False),
        (Match(expression=compile_expression("prompt_tokens == 100")), {}, True),
        (Match(expression=compile_expression("prompt_tokens != 100")), {}, False),
    ],
)
def test_a_match_fits(match, asked, fits):
    assert all(fits(facts(**asked)) for fits in conditions(match)) is fits


def test_an_expression_that_has_no_value_is_neither_yes_nor_no():
    (fits,) = conditions(Match(expression=compile_expression('tags["team"] == "ads"')))
    with pytest.raises(ExpressionFailed):
        fits(facts())


def test_what_cannot_fail_and_costs_little_comes_first():
    asked = Match(
        expression=compile_expression("stream"), window=NIGHT, keys=frozenset("k"), stream=True
    )
    kinds = [key for key in CONDITIONS if getattr(asked, key) != getattr(Match(), key)]
    assert kinds == ["stream", "keys", "window", "expression"]
    assert len(conditions(asked)) == 4


def test_every_key_has_its_condition():
    assert {f.name for f in fields(Match)} == {*CONDITIONS, "aliases"}
