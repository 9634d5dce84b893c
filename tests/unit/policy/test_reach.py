"""Which requests get to a route: by hand on every key, and against the engine on random policies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from gateway.domain.catalog import Alias, Target
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import Router
from gateway.policy.expressions import compile_expression
from gateway.policy.language import Match, Policy, Route, Window
from gateway.policy.reach import WEEK_MINUTES, minutes, reach
from tests.unit.policy.worlds import backend, policy, world, worlds

A, B = frozenset({"a"}), frozenset({"b"})
TOOLS, IMAGES = Capability.TOOLS, Capability.IMAGES
DAILY = Window(zone="UTC", days=frozenset(range(7)), start_minute=480, end_minute=1080)
NIGHTLY = Window(zone="UTC", days=frozenset(range(7)), start_minute=1080, end_minute=480)
CATALOG = replace(
    world(backend("x")),
    aliases={
        "a": Alias(name="a", targets=(Target("x", "m"),)),
        "b": Alias(name="b", targets=(Target("x", "m"),), privacy_floor=1),
    },
)


def reached(*matches: Match) -> list[str]:
    routes = [Route(name=f"r{n}", match=match) for n, match in enumerate(matches)]
    return [found.route.name for found in reach(policy(*routes), CATALOG) if found.boxes]


def limited(low: int | None = None, high: int | None = None) -> Match:
    return Match(prompt_tokens_min=low, prompt_tokens_max=high)


COVERED = [
    ("the same", [Match(stream=True), Match(stream=True)]),
    ("a wider one", [Match(stream=True), Match(stream=True, endpoint=Endpoint.CHAT)]),
    ("fewer needs", [Match(needs=frozenset({TOOLS})), Match(needs=frozenset({TOOLS, IMAGES}))]),
    ("more aliases", [Match(aliases=A | B), Match(aliases=A)]),
    ("all aliases", [Match(aliases=A), Match(aliases=B), Match(stream=True)]),
    ("both ways", [Match(stream=True), Match(stream=False), Match(endpoint=Endpoint.CHAT)]),
    ("all classes", [Match(privacy_at_most=0), Match(privacy_at_least=1), Match(stream=True)]),
    ("what is above its floor", [Match(privacy_at_least=1), Match(aliases=B)]),
    ("every length", [limited(high=100), limited(101, 900), limited(901), Match(stream=True)]),
    ("a longer stretch", [limited(10, 20), limited(12, 18)]),
    ("two stretches", [limited(10, 20), limited(21, 30), limited(12, 28)]),
    ("more teams", [Match(tags={"team": A | B}), Match(tags={"team": A, "app": B})]),
    ("more keys", [Match(keys=A | B), Match(keys=B, stream=True)]),
    ("day and night", [Match(window=DAILY), Match(window=NIGHTLY), Match(stream=True)]),
    ("more limits", [Match(spent=A | B), Match(spent=A)]),
    ("each limit", [Match(spent=A), Match(spent=B), Match(spent=A | B)]),
]  # fmt: skip


@pytest.mark.parametrize(("why", "matches"), COVERED, ids=[why for why, _ in COVERED])
def test_a_route_is_not_reached_when_those_before_it_take_everything(why, matches):
    assert f"r{len(matches) - 1}" not in reached(*matches)


OPEN = [
    ("another endpoint", [Match(endpoint=Endpoint.CHAT), Match(stream=True)]),
    ("more needs", [Match(needs=frozenset({TOOLS, IMAGES})), Match(needs=frozenset({TOOLS}))]),
    ("a gap", [limited(high=100), limited(102), Match(stream=True)]),
    ("no tag at all", [Match(tags={"team": A}), Match(stream=True)]),
    ("another team", [Match(tags={"team": A}), Match(tags={"team": A | B})]),
    ("below the floor", [Match(privacy_at_least=1), Match(aliases=A)]),
    ("another zone", [Match(window=replace(DAILY, zone="Asia/Tokyo")), Match(window=DAILY)]),
    ("the weekend", [Match(window=replace(DAILY, days=frozenset(range(5)))), Match(window=DAILY)]),
    ("one limit of two", [Match(spent=A), Match(spent=A | B)]),
]  # fmt: skip


@pytest.mark.parametrize(("why", "matches"), OPEN, ids=[why for why, _ in OPEN])
def test_a_route_is_reached_when_those_before_it_leave_something(why, matches):
    assert f"r{len(matches) - 1}" in reached(*matches)


def test_an_expression_is_like_itself_only():
    one = Match(expression=compile_expression("prompt_tokens > 10"))
    other = Match(expression=compile_expression("prompt_tokens > 11"))
    assert "r1" not in reached(one, one)
    assert "r1" not in reached(one, replace(one, stream=True))
    assert "r1" in reached(one, other)
    assert "r1" in reached(one, Match(stream=True))


def test_who_took_it_is_told():
    routes = [
        Route(name="chat", match=Match(endpoint=Endpoint.CHAT)),
        Route(name="embed", match=Match(endpoint=Endpoint.EMBEDDINGS)),
        Route(name="streams", match=Match(endpoint=Endpoint.CHAT, stream=True)),
    ]
    assert reach(policy(*routes), CATALOG)[2].before == ("chat",)


def test_what_is_left_over_is_told_by_alias_and_class():
    found = reach(policy(Route(name="r", match=Match(aliases=A, privacy_at_most=1))), CATALOG)
    assert found[0].combinations() == {"a": frozenset({0, 1})}
    assert found[1].combinations() == {"a": frozenset({2}), "b": frozenset({1, 2})}


def test_a_window_that_wraps_belongs_to_the_day_it_starts_on():
    friday = Window(zone="UTC", days=frozenset({4}), start_minute=22 * 60, end_minute=6 * 60)
    assert len(minutes(friday)) == 8 * 60
    assert 5 * 1440 + 60 in minutes(friday)
    assert 4 * 1440 + 60 not in minutes(friday)
    sunday = replace(friday, days=frozenset({6}))
    assert 0 in minutes(sunday)
    assert minutes(DAILY) | minutes(NIGHTLY) == frozenset(range(WEEK_MINUTES))


def test_a_thousand_routes_are_looked_through():
    aliases = {f"a{n}": Alias(name=f"a{n}", targets=(Target("x", "m"),)) for n in range(200)}
    catalog = replace(CATALOG, aliases=aliases)
    routes = [
        Route(name=f"r{n}", match=Match(aliases=frozenset({f"a{n % 200}"}), stream=n % 2 == 0))
        for n in range(1000)
    ]
    found = reach(policy(*routes), catalog)
    assert [bool(each.boxes) for each in found] == [n < 200 for n in range(1000)] + [True]


@given(worlds)
def test_what_the_engine_takes_gets_there(drawn):
    """Never called unreachable, nor out of reach for this class, what a request does reach."""
    facts = drawn.facts
    name = Router.build(drawn.policy, drawn.catalog, drawn.rates).decide(facts, {}).route
    if name:
        found = next(f for f in reach(drawn.policy, drawn.catalog) if f.route.name == name)
        assert facts.privacy in found.combinations()["chat"]


@given(worlds)
def test_what_is_called_unreachable_changes_nothing(drawn):
    dead = [f.route.name for f in reach(drawn.policy, drawn.catalog) if not f.boxes]
    left = tuple(route for route in drawn.policy.routes if route.name not in dead)
    smaller: Policy = replace(drawn.policy, routes=left)
    if left and left[-1].match == Match():
        whole = Router.build(drawn.policy, drawn.catalog, drawn.rates)
        less = Router.build(smaller, drawn.catalog, drawn.rates)
        assert whole.decide(drawn.facts, drawn.snapshot) == less.decide(drawn.facts, drawn.snapshot)
