"""Decisions: tables for each rule and each order, and properties over random worlds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalog import Alias, Backend, Catalog, Kind, Limits, Model, Target
from gateway.domain.decision import BackendView, Decision, Facts, Rule
from gateway.domain.money import Rates, cost
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import Router, decide
from gateway.policy.language import Affinity, Behaviour, By, Match, Policy, Route

CLASSES = ("public", "internal", "confidential")
ALL = Behaviour(attempts_max=10, backends_max=10)


def backend(name: str, kind: Kind = Kind.MANAGED, **changes) -> Backend:
    model = Model(name="m", context_tokens=1000, prompt_tokens_max=800, output_tokens_max=500)
    given = {"clearance": 2, "limits": Limits(concurrency_max=5), "models": {"m": model}, **changes}
    return Backend(name=name, kind=kind, wire="openai_http", base_url="https://x", **given)


def world(*backends: Backend, alias: str = "chat") -> Catalog:
    targets = tuple(Target(b.name, m) for b in backends for m in b.models)
    return Catalog(
        privacy_classes=CLASSES,
        backends={b.name: b for b in backends},
        aliases={alias: Alias(name=alias, targets=targets)},
        digest="d",
    )


def policy(*routes: Route, behaviour: Behaviour = ALL, **default) -> Policy:
    last = Route(name="default", **default)
    return Policy(name="p", description="", behaviour=behaviour, routes=(*routes, last), digest="d")


def facts(**changes) -> Facts:
    given = {
        "alias": "chat",
        "endpoint": Endpoint.CHAT,
        "privacy": 0,
        "needs": frozenset(),
        "prompt_tokens": 100,
        "output_tokens": 50,
        "stream": False,
        **changes,
    }
    return Facts(**given)


def rates(inp: str, out: str = "1") -> Rates:
    return Rates(id="r", input=Decimal(inp), output=Decimal(out))


def names(decision: Decision) -> list[str]:
    return [c.target.backend for c in decision.order]


def rules(decision: Decision) -> dict[str, Rule]:
    return {e.target.backend: e.rule for e in decision.excluded}


# --- the filter -------------------------------------------------------------------------------

A = backend("a")
PRICED = {Target("a", "m"): rates("1000000")}  # 100 dollars for 100 tokens, 50 nano for the rest


@pytest.mark.parametrize(
    ("backends", "asked", "view", "default", "prices", "rule", "detail"),
    [
        (replace(A, configured=False, why_unconfigured="env:K is not set"), {}, {}, {}, {}, Rule.NOT_CONFIGURED, "env:K is not set"),
        (replace(A, clearance=0), {"privacy": 2}, {}, {}, {}, Rule.PRIVACY, "the request is confidential, the backend is cleared for public"),
        (A, {"privacy": 3}, {}, {}, {}, Rule.PRIVACY, "the request is class 3, the backend is cleared for confidential"),
        (A, {"endpoint": Endpoint.EMBEDDINGS}, {}, {}, {}, Rule.ENDPOINT, "does not serve embeddings"),
        (A, {"needs": frozenset({Capability.TOOLS, Capability.IMAGES})}, {}, {}, {}, Rule.CAPABILITY, "lacks images, tools"),
        (A, {"prompt_tokens": 700, "output_tokens": 301}, {}, {}, {}, Rule.CONTEXT, "1001 tokens, 1000 fit"),
        (A, {"prompt_tokens": 801}, {}, {}, {}, Rule.CONTEXT, "prompt of 801 tokens over 800"),
        (A, {"output_tokens": 501}, {}, {}, {}, Rule.CONTEXT, "output of 501 tokens over 500"),
        (A, {}, {}, {"prefer": (frozenset({"b"}),), "only": True}, {}, Rule.POLICY, "in no tier, and the route takes no other"),
        (A, {}, {}, {"price_max_nano_usd": 1}, {}, Rule.PRICE_UNKNOWN, "the route has a price limit and this price is not known"),
        (A, {}, {}, {"price_max_nano_usd": 1}, PRICED, Rule.PRICE_MAX, "would cost 100000050000 nano-USD, the limit is 1"),
        (A, {}, {"circuit": "open", "retry_after_s": 2.5}, {}, {}, Rule.CIRCUIT_OPEN, "failing, next try in 2.5 s"),
        (A, {}, {"cooling": True}, {}, {}, Rule.COOLING, "asked us to wait"),
        (A, {}, {"healthy": False}, {}, {}, Rule.UNHEALTHY, "its health check fails"),
        (A, {}, {"in_flight": 5}, {}, {}, Rule.CAPACITY, "5 requests in flight, 5 allowed"),
    ],
)  # fmt: skip
def test_each_rule_excludes_and_says_why(backends, asked, view, default, prices, rule, detail):
    decision = decide(
        policy(**default), world(backends), prices, facts(**asked), {"a": BackendView(**view)}
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
        {"a": BackendView(in_flight=4)},
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


# --- routes -----------------------------------------------------------------------------------

SECRET = Route(
    name="secret", match=Match(privacy_at_least=1), prefer=(frozenset({"own"}),), only=True
)


@pytest.mark.parametrize(
    ("match", "asked", "fits"),
    [
        (Match(aliases=frozenset({"chat"})), {}, True),
        (Match(aliases=frozenset({"other"})), {}, False),
        (Match(endpoint=Endpoint.CHAT), {}, True),
        (Match(endpoint=Endpoint.EMBEDDINGS), {}, False),
        (Match(privacy_at_least=1), {"privacy": 1}, True),
        (Match(privacy_at_least=1), {"privacy": 0}, False),
        (Match(privacy_at_most=1), {"privacy": 1}, True),
        (Match(privacy_at_most=1), {"privacy": 2}, False),
        (Match(stream=True), {"stream": True}, True),
        (Match(stream=True), {"stream": False}, False),
        (Match(stream=False), {"stream": True}, False),
        (Match(needs=frozenset({Capability.TOOLS})), {"needs": frozenset(Capability)}, True),
        (Match(needs=frozenset({Capability.TOOLS})), {}, False),
        (Match(prompt_tokens_min=100), {"prompt_tokens": 100}, True),
        (Match(prompt_tokens_min=101), {"prompt_tokens": 100}, False),
        (Match(prompt_tokens_max=100), {"prompt_tokens": 100}, True),
        (Match(prompt_tokens_max=99), {"prompt_tokens": 100}, False),
        (Match(prompt_tokens_min=1, stream=True), {"stream": False}, False),
    ],
)
def test_a_route_matches(match, asked, fits):
    decision = decide(policy(Route(name="r", match=match)), FOUR, {}, facts(**asked), {})
    assert decision.route == ("r" if fits else "default")


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


# --- properties -------------------------------------------------------------------------------

NAMES = [f"b{n}" for n in range(6)]
some_rates = st.builds(
    lambda i, o: Rates(id="r", input=Decimal(i) / 1000, output=Decimal(o) / 1000),
    st.integers(0, 5000),
    st.integers(0, 5000),
)
some_needs = st.frozensets(st.sampled_from([Capability.TOOLS, Capability.IMAGES]), max_size=2)
some_models = st.builds(
    Model,
    name=st.just("m"),
    context_tokens=st.sampled_from([None, 100, 10_000]),
    endpoints=st.frozensets(st.sampled_from(list(Endpoint)), min_size=1),
    capabilities=some_needs,
)
some_views = st.builds(
    BackendView,
    healthy=st.sampled_from([True, True, False]),
    circuit=st.sampled_from(["closed", "closed", "half_open", "open"]),
    cooling=st.sampled_from([False, False, True]),
    in_flight=st.integers(0, 4),
    ttft_ms=st.none() | st.integers(1, 500).map(float),
    tpot_ms=st.none() | st.integers(1, 50).map(float),
)
some_prefer = st.lists(
    st.frozensets(st.sampled_from([*Kind, *NAMES]), min_size=1, max_size=3), max_size=3
).map(tuple)
some_routes = st.builds(
    Route,
    name=st.just("r"),
    match=st.builds(
        Match,
        privacy_at_least=st.none() | st.integers(0, 2),
        stream=st.none() | st.booleans(),
    ),
    prefer=some_prefer,
    by=st.sampled_from(By),
    only=st.booleans(),
    price_max_nano_usd=st.none() | st.integers(0, 2_000_000),
)
some_policies = st.builds(
    Policy,
    name=st.just("p"),
    description=st.just(""),
    digest=st.just("d"),
    behaviour=st.builds(
        Behaviour,
        attempts_max=st.integers(1, 6),
        backends_max=st.integers(1, 6),
        affinity=st.none()
        | st.builds(
            Affinity, idle_s=st.just(1), cost_ratio_max=st.none() | st.floats(1, 3, width=16)
        ),
    ),
    routes=st.lists(some_routes, max_size=2).map(lambda r: (*r, Route(name="default"))),
)
some_facts = st.builds(
    Facts,
    alias=st.just("chat"),
    endpoint=st.sampled_from(list(Endpoint)),
    privacy=st.integers(0, 2),
    needs=some_needs,
    prompt_tokens=st.integers(0, 200),
    output_tokens=st.integers(0, 200),
    stream=st.booleans(),
    pinned=st.none() | st.sampled_from([Target(n, "m") for n in NAMES]),
    tie_break=st.integers(0, 2**64 - 1),
)


@st.composite
def catalogs(draw) -> Catalog:
    chosen = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return world(
        *(
            Backend(
                name=name,
                kind=draw(st.sampled_from(Kind)),
                wire="openai_http",
                base_url="https://x",
                models={"m": draw(some_models)},
                clearance=draw(st.integers(0, 2)),
                configured=draw(st.sampled_from([True, True, False])),
                limits=Limits(concurrency_max=draw(st.integers(1, 5))),
            )
            for name in chosen
        )
    )


some_prices = st.dictionaries(st.sampled_from([Target(n, "m") for n in NAMES]), some_rates)
some_snapshots = st.dictionaries(st.sampled_from(NAMES), some_views)
WORLDS = (some_policies, catalogs(), some_prices, some_facts, some_snapshots)


@given(*WORLDS)
def test_never_an_uncleared_target(chosen, catalog, prices, asked, seen):
    for candidate in decide(chosen, catalog, prices, asked, seen).order:
        it, view = catalog.backends[candidate.target.backend], seen.get(candidate.target.backend)
        model = it.models[candidate.target.model]
        assert asked.privacy <= it.clearance
        assert it.configured
        assert asked.endpoint in model.endpoints
        assert asked.needs <= model.capabilities
        assert asked.prompt_tokens + asked.output_tokens <= (model.context_tokens or 10**9)
        assert view is None or (view.healthy and not view.cooling and view.circuit != "open")
        assert view is None or view.in_flight < it.limits.concurrency_max


@given(*WORLDS)
def test_every_target_is_accounted_for_once(chosen, catalog, prices, asked, seen):
    decision = decide(chosen, catalog, prices, asked, seen)
    ordered = [c.target for c in decision.order]
    excluded = [e.target for e in decision.excluded]
    assert Counter([*ordered, *decision.cut, *excluded]) == Counter(catalog.aliases["chat"].targets)
    assert len(ordered) <= chosen.behaviour.attempts_max
    assert len({t.backend for t in ordered}) <= chosen.behaviour.backends_max
    assert bool(ordered) or not decision.cut, "something eligible is always tried"


@given(*WORLDS)
def test_the_same_facts_give_the_same_decision(chosen, catalog, prices, asked, seen):
    router = Router.build(chosen, catalog, prices)
    again = decide(chosen, catalog, dict(prices), replace(asked), dict(seen))
    assert router.decide(asked, seen) == router.decide(asked, seen) == again


@given(*WORLDS, st.randoms(use_true_random=False))
def test_removing_a_loser_never_changes_the_winner(chosen, catalog, prices, asked, seen, random):
    before = decide(chosen, catalog, prices, asked, seen)
    if not before.order:
        return
    winner = before.order[0].target
    alias = catalog.aliases["chat"]
    losers = [t for t in alias.targets if t != winner]
    gone = {t for t in losers if random.random() < 0.5}
    smaller = replace(alias, targets=tuple(t for t in alias.targets if t not in gone))
    after = decide(chosen, replace(catalog, aliases={"chat": smaller}), prices, asked, seen)
    assert after.order[0].target == winner


@given(*WORLDS)
def test_a_cheaper_equal_never_loses(chosen, catalog, prices, asked, seen):
    cheapest = replace(
        chosen,
        behaviour=replace(ALL, affinity=None),
        routes=tuple(replace(route, by=By.CHEAPEST) for route in chosen.routes),
    )
    order = decide(cheapest, catalog, prices, asked, seen).order
    for one, other in pairwise(order):
        views = [seen.get(c.target.backend, BackendView()).circuit for c in (one, other)]
        if one.tier == other.tier and views[0] == views[1] and other.cost_nano_usd is not None:
            assert one.cost_nano_usd is not None
            assert one.cost_nano_usd <= other.cost_nano_usd


@given(some_rates, some_facts)
def test_the_predicted_cost_is_the_one_that_would_be_booked(price, asked):
    served = Model(name="m", endpoints=frozenset(Endpoint), capabilities=frozenset(Capability))
    catalog = world(backend("a", models={"m": served}))
    decision = decide(policy(), catalog, {Target("a", "m"): price}, asked, {})
    booked = cost(price, uncached=asked.prompt_tokens, cached=0, output=asked.output_tokens)
    assert [c.cost_nano_usd for c in decision.order] == [booked]


@pytest.mark.parametrize(("tokens", "nano"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_half_a_nano_rounds_to_even(tokens, nano):
    price = {Target("a", "m"): rates("0.0005", "0")}
    asked = facts(prompt_tokens=tokens, output_tokens=0)
    assert decide(policy(), world(A), price, asked, {}).order[0].cost_nano_usd == nano


@given(
    st.decimals("0", "999999", places=9, allow_nan=False),
    st.decimals("0", "999999", places=9, allow_nan=False),
    st.integers(0, 10**7),
    st.integers(0, 10**6),
)
def test_costs_are_exact_at_any_price(inp, out, prompt, output):
    price = Rates(id="r", input=inp, output=out)
    catalog = world(backend("a", models={"m": Model(name="m")}))
    asked = facts(prompt_tokens=prompt, output_tokens=output)
    decision = decide(policy(), catalog, {Target("a", "m"): price}, asked, {})
    assert decision.order[0].cost_nano_usd == cost(price, uncached=prompt, cached=0, output=output)
