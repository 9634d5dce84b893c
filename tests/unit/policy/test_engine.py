"""Decisions: tables for each rule, each order and each thing that may change who is first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from gateway.domain.catalog import Kind, Limits, StandIn, Target
from gateway.domain.decision import BackendView, Rule, Tails
from gateway.domain.money import Tier
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import Router, decide
from gateway.policy.expressions import compile_expression
from gateway.policy.language import (
    Affinity,
    Behaviour,
    By,
    Canary,
    Match,
    Metric,
    OwnCost,
    Priority,
    Route,
    Slo,
    Spill,
    Terms,
)
from tests.unit.policy.worlds import (
    ALL,
    backend,
    facts,
    names,
    policy,
    prices,
    rates,
    rules,
    world,
)

# --- the filter -------------------------------------------------------------------------------

A = backend("a")
PRICED = {Target("a", "m"): rates("1000000")}  # 100 dollars for 100 tokens, 50 nano for the rest


@pytest.mark.parametrize(
    ("backends", "asked", "view", "default", "priced", "rule", "detail"),
    [
        (replace(A, configured=False, why_unconfigured="env:K is not set"), {}, {}, {}, {}, Rule.NOT_CONFIGURED, "env:K is not set"),
        (replace(A, clearance=0), {"privacy": 2}, {}, {}, {}, Rule.PRIVACY, "the request is confidential, the backend is cleared for public"),
        (A, {"privacy": 3}, {}, {}, {}, Rule.PRIVACY, "the request is class 3, the backend is cleared for confidential"),
        (A, {"endpoint": Endpoint.EMBEDDINGS}, {}, {}, {}, Rule.ENDPOINT, "does not serve embeddings"),
        (A, {"needs": frozenset({Capability.TOOLS, Capability.IMAGES})}, {}, {}, {}, Rule.CAPABILITY, "lacks images, tools"),
        (A, {"prompt_tokens": 700, "output_tokens": 301}, {}, {}, {}, Rule.CONTEXT, "1001 tokens, 1000 fit"),
        (A, {"prompt_tokens": 801}, {}, {}, {}, Rule.CONTEXT, "prompt of 801 tokens over 800"),
        (A, {"output_tokens": 501}, {}, {}, {}, Rule.CONTEXT, "output of 501 tokens over 500"),
        (A, {}, {}, {"require": Terms(regions=frozenset({"eu"}))}, {}, Rule.TERMS, "the region is not stated, asked for is eu"),
        (A, {}, {}, {"prefer": (frozenset({"b"}),), "only": True}, {}, Rule.POLICY, "in no tier, and the route takes no other"),
        (A, {}, {}, {"price_max_nano_usd": 1}, {}, Rule.PRICE_UNKNOWN, "the route has a price limit and this price is not known"),
        (A, {}, {}, {"price_max_nano_usd": 1}, PRICED, Rule.PRICE_MAX, "would cost $100.00005, the limit is $0.000000001"),
        (A, {}, {"circuit": "open", "retry_after_s": 2.5}, {}, {}, Rule.CIRCUIT_OPEN, "failing, next try in 2.5 s"),
        (A, {}, {"cooling": True}, {}, {}, Rule.COOLING, "asked us to wait"),
        (A, {}, {"healthy": False}, {}, {}, Rule.UNHEALTHY, "its health check fails"),
        (A, {}, {"in_flight": 5}, {"priority": Priority.CRITICAL}, {}, Rule.CAPACITY, "5 requests in flight, 5 allowed"),
        (A, {}, {"in_flight": 4}, {}, {}, Rule.CAPACITY, "4 requests in flight, 4 of 5 for interactive requests"),
    ],
)  # fmt: skip
def test_each_rule_excludes_and_says_why(backends, asked, view, default, priced, rule, detail):
    decision = decide(
        policy(**default), world(backends), priced, facts(**asked), {"a": BackendView(**view)}
    )
    assert decision.order == ()
    assert [(e.target, e.rule, e.detail) for e in decision.excluded] == [
        (Target("a", "m"), rule, detail)
    ]


def test_every_bound_is_inclusive():
    at_the_bounds = facts(prompt_tokens=700, output_tokens=300, privacy=2)
    decision = decide(
        policy(price_max_nano_usd=700_000 + 300_000),
        world(A),
        {Target("a", "m"): rates("1", "1")},
        at_the_bounds,
        {"a": BackendView(in_flight=3)},
    )
    assert [c.cost_nano_usd for c in decision.order] == [1_000_000]


def test_the_first_rule_broken_is_the_one_told():
    broken = replace(A, configured=False, clearance=0)
    down = {"a": BackendView(healthy=False, circuit="open", in_flight=9)}
    asked = facts(privacy=2, endpoint=Endpoint.EMBEDDINGS)
    assert rules(decide(policy(), world(broken), {}, asked, down)) == {"a": Rule.NOT_CONFIGURED}
    uncleared = replace(A, clearance=0)
    assert rules(decide(policy(), world(uncleared), {}, asked, down)) == {"a": Rule.PRIVACY}


def test_what_was_never_observed_is_taken_for_healthy():
    assert names(decide(policy(), world(A), {}, facts(), {})) == ["a"]


def test_an_alias_that_does_not_exist_has_no_candidates():
    decision = decide(policy(), world(A), {}, facts(alias="nope"), {})
    assert (decision.order, decision.excluded, decision.route) == ((), (), "")


# --- the order --------------------------------------------------------------------------------

OWN = backend("own", Kind.SELF_HOSTED)
HOST = backend("host", Kind.MANAGED)
HOST2 = backend("host2", Kind.MANAGED)
API = backend("api", Kind.CLOSED_API)
FOUR = world(API, HOST, HOST2, OWN)
TIERS = (frozenset({"self_hosted"}), frozenset({"managed"}))


def test_order_is_that_of_the_alias():
    decision = decide(policy(), FOUR, {}, facts(tie_break=7), {})
    assert names(decision) == ["api", "host", "host2", "own"]
    assert [c.why for c in decision.order] == ["preferred", "fallback", "fallback", "fallback"]


def test_tiers_go_first_and_what_is_in_none_goes_last():
    decision = decide(policy(prefer=TIERS), FOUR, {}, facts(), {})
    assert names(decision) == ["own", "host", "host2", "api"]
    assert [c.tier for c in decision.order] == [0, 1, 1, 2]
    assert [c.why for c in decision.order] == ["preferred", "fallback", "fallback", "fallback"]


def test_a_lower_tier_is_a_fallback_even_when_it_is_first():
    down = {"own": BackendView(healthy=False)}
    decision = decide(policy(prefer=TIERS), FOUR, {}, facts(), down)
    assert names(decision) == ["host", "host2", "api"]
    assert decision.order[0].why == "fallback"


def test_a_tier_may_name_backends():
    decision = decide(policy(prefer=(frozenset({"host2", "api"}),)), FOUR, {}, facts(), {})
    assert names(decision) == ["api", "host2", "host", "own"]


def test_a_target_of_two_tiers_is_in_the_first():
    twice = policy(prefer=(frozenset({"self_hosted"}), frozenset({"api"}), frozenset({"own"})))
    assert [c.tier for c in decide(twice, FOUR, {}, facts(), {}).order] == [0, 1, 3, 3]


def test_only_keeps_what_is_in_no_tier_out():
    decision = decide(policy(prefer=TIERS, only=True), FOUR, {}, facts(), {})
    assert names(decision) == ["own", "host", "host2"]
    assert rules(decision) == {"api": Rule.POLICY}


def test_cheapest_is_by_the_cost_of_this_request_and_unpriced_is_last():
    prices = {
        Target("api", "m"): rates("1", "9"),  # dear for long answers
        Target("host", "m"): rates("5", "5"),
        Target("own", "m"): rates("2", "6"),
    }
    short = decide(policy(by=By.CHEAPEST), FOUR, prices, facts(output_tokens=1), {})
    assert names(short) == ["api", "own", "host", "host2"]
    long = decide(
        policy(by=By.CHEAPEST), FOUR, prices, facts(prompt_tokens=50, output_tokens=300), {}
    )
    assert names(long) == ["host", "own", "api", "host2"]
    assert [c.cost_nano_usd for c in long.order] == [1_750_000, 1_900_000, 2_750_000, None]
    assert [c.why for c in long.order] == ["cheapest", "fallback", "fallback", "fallback"]


FLEX = {
    Target("api", "m"): replace(rates("1"), service_tiers={"flex": rates("0.5")}),
    Target("host", "m"): replace(rates("4"), service_tiers={"flex": rates("0.25")}),
    Target("own", "m"): rates("0.1"),
}


def test_a_service_tier_that_is_asked_for_has_its_own_prices_and_without_one_is_unpriced():
    router = Router.build(policy(by=By.CHEAPEST), FOUR, FLEX)
    standard, flex = (router.decide(facts(service_tier=tier), {}) for tier in (None, "flex"))
    assert names(standard) == ["own", "api", "host", "host2"]
    assert names(flex)[:2] == ["host", "api"]
    assert [c.cost_nano_usd for c in flex.order] == [75_000, 100_000, None, None]


@pytest.mark.parametrize("tier", ["flex", "never heard of"])
def test_what_the_tier_costs_is_asked_where_a_price_counts(tier):
    for asked, default, said in (
        ({"priced_only": True}, {}, "a hard budget counts it, its price"),
        ({}, {"price_max_nano_usd": 10**9}, "the route has a price limit and this price"),
    ):
        made = policy(**default)
        decision = decide(made, FOUR, FLEX, facts(service_tier=tier, **asked), {})
        assert set(names(decision)) == ({"api", "host"} if tier == "flex" else set())
        assert {e.detail for e in decision.excluded} == {
            f"{said} of service tier {tier} is not known"
        }


def test_tiers_nobody_has_share_one_table():
    router = Router.build(policy(), FOUR, FLEX)
    for number in range(100):
        router.decide(facts(service_tier=f"x{number}"), {})
    ((plan,),) = router._plans.values()
    assert set(plan.special) == {""}


def test_a_long_prompt_goes_by_the_prices_of_long_prompts():
    longer = {Target("host", "m"): replace(rates("1"), tiers=(Tier(100, rates("9")),))}
    router = Router.build(policy(by=By.CHEAPEST), FOUR, prices(api=3, own=2) | longer)
    first = {n: names(router.decide(facts(prompt_tokens=n), {}))[0] for n in (100, 101)}
    assert first == {100: "host", 101: "own"}


def test_fastest_is_by_the_time_to_the_last_token():
    seen = {
        "api": BackendView(ttft_ms=100, tpot_ms=20),
        "host": BackendView(ttft_ms=500, tpot_ms=5),
        "host2": BackendView(ttft_ms=90, in_flight=1),  # no TPOT: nothing was generated yet
        "own": BackendView(ttft_ms=800, tpot_ms=1),
    }
    short = decide(policy(by=By.FASTEST), FOUR, {}, facts(output_tokens=1), seen)
    assert names(short) == ["host2", "api", "host", "own"]
    long = decide(policy(by=By.FASTEST), FOUR, {}, facts(output_tokens=200), seen)
    assert names(long) == ["host2", "own", "host", "api"]
    assert [c.latency_ms for c in long.order] == [90, 1000, 1500, 4100]
    assert long.order[0].why == "fastest"


def test_one_request_at_a_time_explores_what_was_never_measured():
    seen = {"api": BackendView(ttft_ms=1, tpot_ms=1), "own": BackendView(in_flight=1)}
    catalog = world(API, HOST, OWN)
    assert names(decide(policy(by=By.FASTEST), catalog, {}, facts(), seen)) == [
        "host",
        "api",
        "own",
    ]


def test_a_half_open_circuit_keeps_its_place():
    """Else, with a healthy one beside it, nothing would ever close it."""
    seen = {"host": BackendView(circuit="half_open"), "own": BackendView(circuit="half_open")}
    decision = decide(policy(prefer=TIERS), FOUR, {}, facts(), seen)
    assert names(decision) == ["own", "host", "host2", "api"]


def test_equals_share_the_load_by_the_tie_break():
    prices = {Target(b, "m"): rates("1") for b in ("api", "host", "host2", "own")}
    router = Router.build(policy(by=By.CHEAPEST), FOUR, prices)
    first = Counter(names(router.decide(facts(tie_break=n), {}))[0] for n in range(4000))
    assert set(first) == {"api", "host", "host2", "own"}
    assert min(first.values()) > 700


def test_equals_keep_their_order_when_others_come_or_go():
    costs = prices(api=1, host=1, host2=1, own=1)
    cheapest = policy(by=By.CHEAPEST)
    for n in range(200):
        whole = names(decide(cheapest, FOUR, costs, facts(tie_break=n), {}))
        some = names(decide(cheapest, world(OWN, API, HOST2), costs, facts(tie_break=n), {}))
        assert some == [name for name in whole if name != "host"]


# --- routes -----------------------------------------------------------------------------------

SECRET = Route(
    name="secret", match=Match(privacy_at_least=1), prefer=(frozenset({"own"}),), only=True
)


def test_the_first_route_that_matches_decides():
    two = policy(SECRET, Route(name="later", match=Match(privacy_at_least=1)))
    assert decide(two, FOUR, {}, facts(privacy=2), {}).route == "secret"
    assert names(decide(two, FOUR, {}, facts(privacy=2), {})) == ["own"]


# --- affinity ---------------------------------------------------------------------------------

COSTS = {
    Target("own", "m"): rates("1", "1"),
    Target("host", "m"): rates("1.4", "1.4"),
    Target("host2", "m"): rates("2", "2"),
}


@pytest.mark.parametrize(
    ("affinity", "pinned", "view", "first", "why"),
    [
        (None, "host2", {}, "own", "preferred"),
        (Affinity(idle_s=1), "own", {}, "own", "affinity"),
        (Affinity(idle_s=1), "host", {}, "own", "preferred"),  # not in the best tier
        (Affinity(idle_s=1), "host2", {"own": BackendView(healthy=False)}, "host2", "affinity"),
        (Affinity(idle_s=1), "host", {"host": BackendView(circuit="open")}, "own", "preferred"),
        (Affinity(idle_s=1), "gone", {}, "own", "preferred"),
        (Affinity(idle_s=1, cost_ratio_max=1.5), "host", {}, "host", "affinity"),
        (Affinity(idle_s=1, cost_ratio_max=1.4), "host", {}, "host", "affinity"),
        (Affinity(idle_s=1, cost_ratio_max=1.5), "host2", {}, "own", "preferred"),
        (Affinity(idle_s=1, cost_ratio_max=1.5), "api", {}, "own", "preferred"),  # unpriced
        (Affinity(idle_s=1, cost_ratio_max=1.3), "host2", {"own": BackendView(healthy=False)}, "host", "fallback"),
    ],
)  # fmt: skip
def test_affinity_prefers_among_the_eligible(affinity, pinned, view, first, why):
    sticky = policy(prefer=TIERS, behaviour=replace(ALL, affinity=affinity))
    decision = decide(sticky, FOUR, COSTS, facts(pinned=Target(pinned, "m")), view)
    assert (names(decision)[0], decision.order[0].why) == (first, why)
    assert all(c.why == "fallback" for c in decision.order[1:])


# --- limits -----------------------------------------------------------------------------------


def test_attempts_and_backends_are_limited_and_the_rest_is_cut():
    two_models = replace(HOST, models={m: replace(HOST.models["m"], name=m) for m in ("m", "n")})
    catalog = world(API, two_models, OWN)
    tight = policy(behaviour=Behaviour(attempts_max=3, backends_max=2))
    decision = decide(tight, catalog, {}, facts(), {})
    assert [str(c.target) for c in decision.order] == ["api/m", "host/m", "host/n"]
    assert decision.cut == (Target("own", "m"),)
    one = policy(behaviour=Behaviour(attempts_max=1, backends_max=2))
    assert names(decide(one, catalog, {}, facts(), {})) == ["api"]
    single = policy(behaviour=Behaviour(attempts_max=3, backends_max=1))
    decision = decide(single, world(two_models, API), {}, facts(), {})
    assert [str(c.target) for c in decision.order] == ["host/m", "host/n"]


# --- what a failed expression leaves ----------------------------------------------------------


def test_an_expression_that_fails_leaves_no_route_and_no_candidate():
    asks = Match(expression=compile_expression('tags["team"] == "search"'))
    two = policy(Route(name="search", match=asks))
    assert decide(two, FOUR, {}, facts(tags={"team": "search"}), {}).route == "search"
    assert decide(two, FOUR, {}, facts(tags={"team": "ads"}), {}).route == "default"
    decision = decide(two, FOUR, {}, facts(), {})
    assert (decision.route, decision.order, decision.cut) == ("", (), ())
    assert rules(decision) == dict.fromkeys(("api", "host", "host2", "own"), Rule.EXPRESSION)
    assert decision.excluded[0].detail.startswith("the expression of route search failed: ")


def test_an_earlier_route_decides_before_an_expression_can_fail():
    asks = Match(expression=compile_expression('tags["team"] == "search"'))
    two = policy(Route(name="first", match=Match(stream=False)), Route(name="search", match=asks))
    assert decide(two, FOUR, {}, facts(), {}).route == "first"


def test_a_route_is_found_by_its_name():
    two = policy(SECRET)
    router = Router.build(two, FOUR, {})
    assert [router.route(route.name) for route in two.routes] == list(two.routes)
    with pytest.raises(KeyError):
        router.route("")


# --- who may stand in -------------------------------------------------------------------------


def test_only_the_group_of_the_first_choice_stands_in():
    grouped = world(API, HOST, HOST2, OWN, groups=[("host", "own")], stand_in=StandIn.GROUP)
    decision = decide(policy(prefer=TIERS), grouped, {}, facts(), {})
    assert names(decision) == ["own", "host"]
    assert rules(decision) == {"api": Rule.EQUIVALENCE, "host2": Rule.EQUIVALENCE}
    assert decision.excluded[0].detail == "in no declared group with own/m"
    alone = decide(policy(), grouped, {}, facts(), {})
    assert names(alone) == ["api"]


def test_groups_do_not_add_up_and_one_shared_group_is_enough():
    chain = [("own", "host"), ("host", "api")]
    catalog = world(API, HOST, OWN, groups=chain, stand_in=StandIn.GROUP)
    assert names(decide(policy(prefer=TIERS), catalog, {}, facts(), {})) == ["own", "host"]
    first = policy(prefer=(frozenset({"host"}),))
    assert names(decide(first, catalog, {}, facts(), {})) == ["host", "api", "own"]


def test_a_pin_is_the_first_choice_and_then_its_group_counts():
    catalog = world(API, HOST, HOST2, groups=[("host2", "host")], stand_in=StandIn.GROUP)
    sticky = policy(behaviour=replace(ALL, affinity=Affinity(idle_s=1)))
    decision = decide(sticky, catalog, {}, facts(pinned=Target("host2", "m")), {})
    assert names(decision) == ["host2", "host"]
    assert rules(decision) == {"api": Rule.EQUIVALENCE}


# --- our own machines -------------------------------------------------------------------------


def test_what_is_paid_for_counts_as_nothing_and_is_booked_all_the_same():
    costs = prices(api=1, host=2, own=50)
    marginal = {"by": By.CHEAPEST, "own_cost": OwnCost.MARGINAL}
    decision = decide(policy(**marginal), FOUR, costs, facts(), {})
    assert names(decision) == ["own", "api", "host", "host2"]
    assert decision.order[0].cost_nano_usd == 5_000_000
    assert decision.order[0].score == 0
    assert names(decide(policy(by=By.CHEAPEST), FOUR, costs, facts(), {}))[2] == "own"


def test_a_price_limit_is_about_the_cost_that_counts():
    tight = {"price_max_nano_usd": 150_000}
    costs = prices(api=1, host=2)
    decision = decide(policy(**tight, own_cost=OwnCost.MARGINAL), FOUR, costs, facts(), {})
    assert names(decision) == ["api", "own"]
    assert decision.order[1].cost_nano_usd is None
    assert rules(decide(policy(**tight), FOUR, costs, facts(), {}))["own"] is Rule.PRICE_UNKNOWN


@pytest.mark.parametrize(
    ("spill", "view", "spilled"),
    [
        (Spill(in_flight_share_max=0.4), {"in_flight": 1}, False),  # with this one: two of five
        (Spill(in_flight_share_max=0.4), {"in_flight": 2}, True),
        (Spill(queue_max=2), {"queue": 2}, False),
        (Spill(queue_max=2), {"queue": 3}, True),
        (Spill(queue_max=0), {"queue": 1}, True),
        (Spill(queue_max=2), {"queue": None}, False),
        (Spill(kv_used_max=0.9), {"kv_used": 0.9}, False),
        (Spill(kv_used_max=0.9), {"kv_used": 0.91}, True),
        (Spill(queue_max=9, kv_used_max=0.9), {"queue": 1, "kv_used": 0.95}, True),
        (Spill(), {"queue": 99, "kv_used": 1.0, "in_flight": 3}, False),
        (None, {"queue": 99, "kv_used": 1.0, "in_flight": 3}, False),
    ],
)
def test_over_a_threshold_our_own_machine_is_tried_last(spill, view, spilled):
    spilling = policy(prefer=TIERS, behaviour=replace(ALL, spill=spill))
    decision = decide(spilling, FOUR, {}, facts(), {"own": BackendView(**view)})
    if spilled:
        assert names(decision) == ["host", "host2", "api", "own"]
        assert [c.why for c in decision.order] == ["spill", "fallback", "fallback", "fallback"]
        assert decision.order[-1].tier == 0
    else:
        assert names(decision)[0] == "own"
        assert decision.order[0].why == "preferred"


def test_spill_is_the_reason_only_where_it_changed_something():
    full = {name: BackendView(queue=9) for name in ("own", "host")}
    spilling = replace(ALL, spill=Spill(queue_max=1))
    decision = decide(policy(behaviour=spilling), FOUR, {}, facts(), full)
    assert names(decision) == ["api", "host", "host2", "own"], "others' machines do not spill"
    assert decision.order[0].why == "preferred"
    alone = decide(policy(behaviour=spilling), world(OWN), {}, facts(), full)
    assert [c.why for c in alone.order] == ["fallback"]


def test_a_pin_does_not_hold_on_to_a_full_machine():
    sticky = replace(ALL, spill=Spill(queue_max=1), affinity=Affinity(idle_s=1, cost_ratio_max=9))
    decision = decide(
        policy(prefer=TIERS, behaviour=sticky),
        FOUR,
        COSTS,
        facts(pinned=Target("own", "m")),
        {"own": BackendView(queue=5)},
    )
    assert (names(decision)[0], decision.order[0].why) == ("host", "spill")


@pytest.mark.parametrize(
    ("priority", "slots", "room"),
    [
        (Priority.CRITICAL, 10, 10),
        (Priority.INTERACTIVE, 10, 9),
        (Priority.INTERACTIVE, 100, 95),
        (Priority.BATCH, 10, 7),
        (Priority.BATCH, 70, 49),
        (Priority.BATCH, 1, 1),
        (Priority.INTERACTIVE, 1, 1),
    ],
)
def test_a_priority_has_its_share_of_a_backend(priority, slots, room):
    catalog = world(replace(A, limits=Limits(concurrency_max=slots)))
    ranked = policy(priority=priority)
    for in_flight, order in ((room - 1, ["a"]), (room, [])):
        view = {"a": BackendView(in_flight=in_flight)}
        assert names(decide(ranked, catalog, {}, facts(), view)) == order


# --- service levels ---------------------------------------------------------------------------

FAST = Slo(metric=Metric.TTFT, percentile=95, ms_max=500)


def test_who_misses_a_level_comes_last_in_its_tier_and_says_which():
    slow = BackendView(ttft_ms=100, tpot_ms=1, ttft_tails=Tails(200, 501, 900))
    quick = BackendView(ttft_ms=400, tpot_ms=1, ttft_tails=Tails(500, 500, 900))
    seen = {"host": slow, "host2": quick, "own": slow}
    decision = decide(policy(prefer=TIERS, slos=(FAST,)), FOUR, {}, facts(), seen)
    assert names(decision) == ["own", "host2", "host", "api"]
    missed = {c.target.backend: c.misses for c in decision.order}
    assert missed == {"own": ("ttft_ms@95",), "host2": (), "host": ("ttft_ms@95",), "api": ()}
    assert names(decide(policy(prefer=TIERS), FOUR, {}, facts(), seen))[:2] == ["own", "host"]


def test_a_pin_does_not_hold_where_it_misses_a_level_that_the_best_meets():
    sticky = policy(slos=(FAST,), behaviour=replace(ALL, affinity=Affinity(idle_s=1)))
    slow = BackendView(ttft_ms=100, ttft_tails=Tails(200, 501, 900))
    asked = facts(pinned=Target("host", "m"))
    assert names(decide(sticky, FOUR, {}, asked, {}))[0] == "host"
    assert names(decide(sticky, FOUR, {}, asked, {"host": slow}))[0] == "api"
    everyone = dict.fromkeys(("api", "host", "host2", "own"), slow)
    assert names(decide(sticky, FOUR, {}, asked, everyone))[0] == "host"


# --- canaries ---------------------------------------------------------------------------------

TENTH = Canary(backends=frozenset({"host2"}), share=0.1)


@pytest.mark.parametrize(
    ("asked", "order", "why"),
    [
        ({"bucket": 0}, ["host2", "own", "host", "api"], "canary"),
        ({"bucket": 999}, ["host2", "own", "host", "api"], "canary"),
        ({"bucket": 1000}, ["own", "host", "api", "host2"], "preferred"),
        ({"bucket": 0, "reverted": frozenset({"default"})}, ["own", "host", "api", "host2"], "preferred"),
        ({"bucket": 0, "reverted": frozenset({"other"})}, ["host2", "own", "host", "api"], "canary"),
    ],
)  # fmt: skip
def test_a_canary_is_first_for_its_share_and_last_for_the_others(asked, order, why):
    decision = decide(policy(prefer=TIERS, canary=TENTH), FOUR, {}, facts(**asked), {})
    assert names(decision) == order
    assert decision.order[0].why == why


def test_a_canary_passes_no_hard_rule():
    bars = [
        (policy(prefer=TIERS, only=True, canary=replace(TENTH, backends=frozenset({"api"}))), "api", Rule.POLICY, {}),
        (policy(canary=TENTH), "host2", Rule.PRIVACY, {"privacy": 2}),
    ]  # fmt: skip
    for chosen, name, rule, asked in bars:
        catalog = world(API, HOST, replace(HOST2, clearance=1), OWN)
        decision = decide(chosen, catalog, {}, facts(bucket=0, **asked), {})
        assert rules(decision)[name] is rule


def test_a_session_leaves_a_canary_that_was_taken_back():
    sticky = policy(canary=TENTH, behaviour=replace(ALL, affinity=Affinity(idle_s=1)))
    asked = facts(bucket=0, pinned=Target("host2", "m"))
    assert names(decide(sticky, FOUR, {}, asked, {}))[0] == "host2"
    taken_back = replace(asked, reverted=frozenset({"default"}))
    assert names(decide(sticky, FOUR, {}, taken_back, {}))[0] == "api"


def test_a_full_canary_of_ours_gets_no_share():
    own = Canary(backends=frozenset({"own"}), share=1.0)
    spilling = policy(canary=own, behaviour=replace(ALL, spill=Spill(queue_max=1)))
    decision = decide(spilling, FOUR, {}, facts(bucket=0), {"own": BackendView(queue=5)})
    assert names(decision)[-1] == "own"


# --- exploration and the incumbent ------------------------------------------------------------


def test_a_share_explores_the_others_of_the_best_tier_evenly():
    router = Router.build(policy(prefer=(frozenset({"managed", "api"}),), explore=0.3), FOUR, {})
    drawn = [router.decide(facts(tie_break=n), {}).order[0] for n in range(10_000)]
    first = Counter(c.target.backend for c in drawn if c.why == "explore")
    assert set(first) == {"host", "host2"}
    assert 2700 < sum(first.values()) < 3300
    assert min(first.values()) > 1300
    assert {c.target.backend for c in drawn if c.why != "explore"} == {"api"}


def test_there_is_nothing_to_explore_in_a_tier_of_one():
    alone = policy(prefer=TIERS, explore=1.0)
    assert decide(alone, FOUR, {}, facts(), {}).order[0].why == "preferred"


def test_a_pin_and_a_canary_come_before_exploring():
    sticky = policy(explore=1.0, behaviour=replace(ALL, affinity=Affinity(idle_s=1)))
    decision = decide(sticky, FOUR, {}, facts(pinned=Target("host", "m")), {})
    assert decision.order[0].why == "affinity"
    decision = decide(policy(explore=1.0, canary=TENTH), FOUR, {}, facts(bucket=0), {})
    assert decision.order[0].why == "canary"


MIXED = {
    "api": BackendView(ttft_ms=100, tpot_ms=0),
    "host": BackendView(ttft_ms=400, tpot_ms=0),
    "host2": BackendView(ttft_ms=104, tpot_ms=0),
}


@pytest.mark.parametrize(
    ("weight", "first"), [(0.0, "api"), (0.3, "api"), (0.49, "api"), (0.51, "host"), (1.0, "host")]
)
def test_a_mix_weighs_cost_against_latency(weight, first):
    """Four times as dear against four times as slow: even at a half."""
    costs = prices(api=4, host=1)
    mixed = policy(by=By.MIX, cost_weight=weight)
    decision = decide(mixed, world(API, HOST), costs, facts(), MIXED)
    assert (names(decision)[0], decision.order[0].why) == (first, "balanced")


@pytest.mark.parametrize(
    ("hysteresis", "incumbent", "first"),
    [
        (0.0, "host2", "api"),
        (0.03, "host2", "api"),
        (0.05, "host2", "host2"),
        (0.05, "host", "api"),
        (3.01, "host", "host"),
        (9.0, "own", "api"),  # never measured: there is nothing to compare
        (9.0, "gone", "api"),
    ],
)
def test_the_incumbent_stays_while_it_is_hardly_worse(hysteresis, incumbent, first):
    mixed = policy(by=By.MIX, cost_weight=0.0, hysteresis=hysteresis)
    seen = {**MIXED, "own": BackendView(in_flight=1)}
    asked = facts(incumbent=Target(incumbent, "m"))
    assert names(decide(mixed, FOUR, {}, asked, seen))[0] == first


def test_the_incumbent_stays_in_a_mix_only_and_not_over_a_tier():
    asked = facts(incumbent=Target("host2", "m"))
    for chosen in (
        policy(by=By.FASTEST, hysteresis=9),
        policy(by=By.MIX, cost_weight=0.0, hysteresis=9, prefer=(frozenset({"api"}),)),
    ):
        assert names(decide(chosen, FOUR, {}, asked, MIXED | {"own": BackendView(ttft_ms=999)}))[0] == "api"  # fmt: skip


def test_equals_in_time_are_ordered_by_cost():
    even = dict.fromkeys(("api", "host"), BackendView(ttft_ms=100))
    for by in (By.FASTEST, By.MIX):
        for costs, first in ((prices(api=1, host=2), "api"), (prices(api=2, host=1), "host")):
            chosen = policy(by=by, cost_weight=0.0)
            assert names(decide(chosen, world(API, HOST), costs, facts(), even))[0] == first


# --- the expected cache -----------------------------------------------------------------------


def test_cached_tokens_count_where_the_session_was_and_nowhere_else():
    costs = {Target(name, "m"): rates("10", "0", cached="1") for name in ("api", "host")}
    asked = facts(prompt_tokens=100, cached_tokens=80, pinned=Target("host", "m"))
    order = decide(policy(by=By.CHEAPEST), world(API, HOST), costs, asked, {}).order
    assert [(c.target.backend, c.cost_nano_usd) for c in order] == [
        ("host", 280_000),
        ("api", 1_000_000),
    ]
