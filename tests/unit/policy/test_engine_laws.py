"""What no policy, no catalog and no moment changes about a decision, over random worlds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from math import isclose, log

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.catalog import Kind, StandIn, Target
from gateway.domain.decision import BackendView, Rule, recalled, record
from gateway.domain.money import Meter, Rates, Unpriced, cost, rate
from gateway.policy.engine import Router, decide
from gateway.policy.language import Behaviour, By, Canary, OwnCost, Route
from tests.unit.policy.worlds import NAMES, World, rates, worlds

MANY = settings(max_examples=500)
SOME_RATES = rates("1.5", "4")
some_rates = st.builds(
    lambda inp, out: rates(str(inp), str(out)), st.integers(0, 2000), st.integers(0, 2000)
)


def eligible(decision) -> set[Target]:
    return {c.target for c in decision.order} | set(decision.cut)


def routed(world: World, **changes) -> World:
    """The same world, every route changed."""
    routes = tuple(replace(route, **changes) for route in world.policy.routes)
    return replace(world, policy=replace(world.policy, routes=routes))


def unmoved(world: World) -> World:
    """Without what puts another before the first of the order."""
    plain = replace(world, facts=replace(world.facts, pinned=None, incumbent=None))
    return routed(plain, explore=0.0)


def own_view(world: World, target: Target) -> BackendView:
    return world.snapshot.get(target.backend, BackendView())


# --- nobody gets what he may not have ---------------------------------------------------------


def fits(route: Route, world: World) -> bool:
    """May raise, as an expression may."""
    match, facts = route.match, world.facts
    hour = facts.at_us // 3_600_000_000 % 24
    return (
        (match.privacy_at_least is None or facts.privacy >= match.privacy_at_least)
        and (match.stream is None or facts.stream == match.stream)
        and all(facts.tags.get(tag) in values for tag, values in match.tags.items())
        and (not match.spent or bool(match.spent & facts.spent))
        and (match.window is None or 1 <= hour < 3)
        and (match.expression is None or match.expression.matches(facts))
    )


def allowed(world: World, route: Route, target: Target) -> bool:
    """The issue's hard constraints: privacy, terms, licence, capability, length, price, budget."""
    facts, backend, terms = world.facts, world.catalog.backends[target.backend], route.require
    model, data, rates = backend.models[target.model], backend.data, world.rates.get(target)
    own, listed = backend.kind is Kind.SELF_HOSTED, set(data.subprocessors)
    days, price_max = terms.retention_days_max, route.price_max_nano_usd
    cached = min(facts.cached_tokens, facts.prompt_tokens) if facts.pinned == target else 0
    asked, wanted = facts.output_tokens_max, facts.output_tokens
    whole = facts.prompt_tokens + (wanted if asked is None else asked)
    uncached = facts.prompt_tokens - cached
    used = {Meter.INPUT: uncached, Meter.CACHE_READ: cached, Meter.OUTPUT: facts.output_tokens}
    try:
        price = rates and rate(rates, used, service_tier=facts.service_tier).nano
    except Unpriced:
        price = None
    if facts.priced_only and price is None:
        return False  # a hard budget cannot hold what has no price
    price = 0 if own and route.own_cost is OwnCost.MARGINAL else price
    return (
        facts.privacy <= backend.clearance
        and (terms.regions is None or data.region in terms.regions)
        and (days is None or (data.retention_days is not None and data.retention_days <= days))
        and (not terms.no_training or data.trains_on_data is False)
        and terms.certifications <= set(data.certifications)
        and (
            terms.subprocessors_allowed is None
            or ((own or listed) and listed <= terms.subprocessors_allowed)
        )
        and (terms.licences is None or model.licence in terms.licences)
        and facts.endpoint in model.endpoints
        and facts.needs <= model.capabilities
        and whole <= (model.context_tokens or whole)
        and (price_max is None or (price is not None and price <= price_max))
        and (not route.only or any({backend.name, backend.kind} & tier for tier in route.prefer))
    )


@settings(max_examples=10_000)
@given(worlds)
def test_no_restricted_request_gets_an_uncleared_target_and_nothing_hard_is_relaxed(world):
    decision = world.decide()
    for target in eligible(decision):
        assert world.facts.privacy <= world.backend(target).clearance
        route = next(route for route in world.policy.routes if fits(route, world))
        assert decision.route == route.name
        assert allowed(world, route, target)


@MANY
@given(worlds)
def test_where_only_a_group_may_stand_in_all_share_one_with_the_first(world):
    world = world.with_alias(replace(world.alias, stand_in=StandIn.GROUP))
    decision = world.decide()
    if decision.order:
        first = decision.order[0].target
        groups = [e.targets for e in world.catalog.equivalences if first in e.targets]
        assert eligible(decision) - {first} <= set().union(*groups)


@MANY
@given(worlds)
def test_who_cannot_serve_now_is_not_asked(world):
    for target in eligible(world.decide()):
        backend, view = world.backend(target), own_view(world, target)
        assert backend.configured
        assert view.healthy
        assert not view.cooling
        assert view.circuit != "open"
        assert view.in_flight < backend.limits.concurrency_max


@MANY
@given(worlds)
def test_what_ranks_never_excludes(world):
    """Levels, spill, canary, affinity, exploration and objective: the same are eligible."""
    world = world.with_alias(replace(world.alias, stand_in=StandIn.ALIAS))
    # A pin changes the price, and that may be limited.
    world = replace(world, facts=replace(world.facts, cached_tokens=0))
    flat = routed(
        unmoved(world), by=By.ORDER, slos=(), canary=None, behaviour=Behaviour(attempts_max=9)
    )
    assert eligible(world.decide()) == eligible(flat.decide())


# --- the whole is accounted for, and again the same -------------------------------------------


@MANY
@given(worlds)
def test_every_target_is_accounted_for_once(world):
    decision = world.decide()
    ordered = [c.target for c in decision.order]
    excluded = [e.target for e in decision.excluded]
    assert Counter([*ordered, *decision.cut, *excluded]) == Counter(world.alias.targets)
    assert bool(ordered) or not decision.cut, "something eligible is always tried"
    if decision.route:
        limits = world.routes[decision.route].behaviour
        assert len(ordered) <= limits.attempts_max
        assert len({t.backend for t in ordered}) <= limits.backends_max
    else:
        assert {e.rule for e in decision.excluded} <= {Rule.EXPRESSION}


@MANY
@given(worlds)
def test_the_same_facts_give_the_same_decision(world):
    router = Router.build(world.policy, world.catalog, world.rates)
    first = router.decide(world.facts, world.snapshot)
    assert first == router.decide(replace(world.facts), dict(world.snapshot)) == world.decide()


@MANY
@given(worlds)
def test_a_decision_is_made_again_from_its_record(world):
    decision = world.decide()
    written = orjson.loads(orjson.dumps(record(decision, world.facts, world.snapshot)))
    facts, snapshot = recalled(written)
    behind = {target.backend for target in world.alias.targets}
    assert (facts, snapshot) == (
        world.facts,
        {name: view for name, view in world.snapshot.items() if name in behind},
    )
    assert decide(world.policy, world.catalog, world.rates, facts, snapshot) == decision


# --- who wins ---------------------------------------------------------------------------------


@MANY
@given(worlds, st.randoms(use_true_random=False))
def test_removing_a_loser_never_changes_the_winner(world, random):
    """Any losers at once. The one bound: an explored target, and a pin held by `cost_ratio_max`,
    were put before the first of the order in view of that one, so it has to stay."""
    before = world.decide()
    if not before.order:
        return
    winner, affinity = before.order[0], world.routes[before.route].behaviour.affinity
    kept = {winner.target}
    by_ratio = affinity is not None and affinity.cost_ratio_max is not None
    if winner.why == "explore" or (winner.why == "affinity" and by_ratio):
        kept.add(unmoved(world).decide().order[0].target)
    gone = {t for t in world.alias.targets if t not in kept and random.random() < 0.5}
    assert world.without(gone).decide().order[0].target == winner.target


@MANY
@given(worlds, some_rates)
def test_a_cheaper_equal_never_loses(world, dear):
    """A twin that costs less is before its equal under every objective; `order` compares none."""
    target, twin = world.alias.targets[0], Target("twin", "m")
    name, world = target.backend, unmoved(world)
    world = replace(world, facts=replace(world.facts, service_tier=None))
    routes = tuple(
        replace(
            route,
            by=By.MIX if route.by is By.ORDER else route.by,
            prefer=tuple(tier | {"twin"} if name in tier else tier for tier in route.prefer),
            canary=route.canary
            and replace(
                route.canary,
                backends=route.canary.backends | ({"twin"} if name in route.canary.backends else set()),
            ),
        )
        for route in world.policy.routes
    )  # fmt: skip
    cheap = Rates(
        id="r", input=dear.input / 2, output=dear.output / 2, cached_input=dear.cached_input
    )
    catalog = world.catalog
    both = replace(
        world,
        policy=replace(world.policy, routes=routes),
        rates={**world.rates, target: dear, twin: cheap},
        snapshot={**world.snapshot, "twin": own_view(world, target)},
        catalog=replace(
            catalog,
            backends={**catalog.backends, "twin": replace(catalog.backends[name], name="twin")},
            aliases={"chat": replace(world.alias, targets=(*world.alias.targets, twin))},
            equivalences=tuple(
                replace(e, targets=e.targets | {twin}) if target in e.targets else e
                for e in catalog.equivalences
            ),
        ),
    )  # fmt: skip
    tokens = {
        "uncached": world.facts.prompt_tokens,
        "cached": 0,
        "output": world.facts.output_tokens,
    }
    if cost(cheap, **tokens) == cost(dear, **tokens):
        return  # both round to the same
    decision = both.decide()
    placed = [*[c.target for c in decision.order], *decision.cut]
    if target in placed:
        assert twin in placed
        if placed.index(target) < len(decision.order):
            assert placed.index(twin) < placed.index(target)


@MANY
@given(worlds)
def test_who_meets_the_levels_is_before_who_misses_one(world):
    world = unmoved(routed(world, canary=None, behaviour=Behaviour(attempts_max=9, backends_max=9)))
    order = world.decide().order
    assert [(c.tier, bool(c.misses)) for c in order] == sorted(
        (c.tier, bool(c.misses)) for c in order
    )


def over(world: World, route: Route, target: Target) -> bool:
    backend, view, spill = world.backend(target), own_view(world, target), route.behaviour.spill
    if spill is None or backend.kind is not Kind.SELF_HOSTED:
        return False
    share, queue, kv = spill.in_flight_share_max, spill.queue_max, spill.kv_used_max
    return (
        (share is not None and view.in_flight >= share * backend.limits.concurrency_max)
        or (queue is not None and (view.queue or 0) > queue)
        or (kv is not None and (view.kv_used or 0) > kv)
    )


@MANY
@given(worlds)
def test_a_full_machine_of_ours_is_taken_only_where_there_is_no_other(world):
    world = routed(world, canary=None)
    decision = world.decide()
    if decision.order:
        route = world.routes[decision.route]
        if over(world, route, decision.order[0].target):
            assert all(over(world, route, target) for target in eligible(decision))


@MANY
@given(worlds)
def test_a_canary_has_its_share_and_no_more(world):
    canary = Canary(backends=frozenset(NAMES[:3]), share=0.5)
    world = routed(world, canary=canary)
    decision = world.decide()
    if not decision.order:
        return
    route, first = world.routes[decision.route], decision.order[0]
    canaries = {t for t in eligible(decision) if t.backend in canary.backends}
    asked = world.facts.bucket < 5000
    if asked and decision.route not in world.facts.reverted:
        willing = {t for t in canaries if not over(world, route, t)}
        assert not willing or first.target in willing
    elif first.target in canaries:
        assert canaries == eligible(decision)


@MANY
@given(worlds)
def test_a_mix_is_the_weighted_ratio_to_the_best(world):
    """cost / best cost to the weight, times latency / best latency to the rest; each at least at
    its floor. The incumbent stays while it is within the hysteresis of the best, and only then."""
    known = replace(
        world,
        facts=replace(world.facts, pinned=None, service_tier=None),
        rates={t: world.rates.get(t, SOME_RATES) for t in world.alias.targets},
        snapshot={
            name: view if view.ttft_ms else replace(view, ttft_ms=77.0)
            for name in NAMES
            for view in [world.snapshot.get(name, BackendView())]
        },
    )
    world = routed(
        known.with_alias(replace(world.alias, stand_in=StandIn.ALIAS)),
        by=By.MIX, prefer=(), slos=(), explore=0.0, canary=None, only=False,
        own_cost=OwnCost.ALLOCATED, behaviour=Behaviour(attempts_max=9, backends_max=9),
    )  # fmt: skip
    decision = world.decide()
    order = decision.order
    if not order:
        return
    route = world.routes[decision.route]
    weight = route.cost_weight
    costs = {c.target: max(c.cost_nano_usd, 1000) for c in order}
    times = {c.target: max(c.latency_ms, 1.0) for c in order}
    scores = {
        target: weight * log(costs[target] / min(costs.values()))
        + (1 - weight) * log(times[target] / min(times.values()))
        for target in costs
    }
    best, incumbent = min(scores.values()), world.facts.incumbent
    slack = log(1 + route.hysteresis)
    stays = incumbent in scores and scores[incumbent] <= best + slack + 1e-9
    first = order[0].target
    assert first == incumbent if stays else isclose(scores[first], best, abs_tol=1e-9)
    rest = [scores[c.target] for c in order[1:]]
    assert all(one <= other + 1e-9 for one, other in pairwise(rest))
