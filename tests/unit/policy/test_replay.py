"""Replay and comparison: what is decided again, what it costs and how long it takes, and the sums."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from math import inf, isnan, sqrt
from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.domain.decision import BackendView, record
from gateway.domain.money import Meter, cost
from gateway.domain.request import Usage
from gateway.ledger.prices import Dated, PriceBook
from gateway.ledger.recorded import from_row
from gateway.policy.chance import below, mixed, one_of_each
from gateway.policy.columns import NOBODY, UNMEASURED, UNPRICED
from gateway.policy.comparison import NO_ANSWER, Period, compare, interval, percentile
from gateway.policy.engine import decide
from gateway.policy.language import Affinity, Behaviour, By, Metric, Slo
from gateway.policy.replay import (
    Exposure,
    Recorded,
    Replay,
    Side,
)
from tests.bench.recording import bundle, lines
from tests.unit.policy.worlds import CLASSES, backend, facts, policy, prices, world, worlds

DAY_US = 86_400_000_000
A, B, C = (Target(name, "m") for name in "abc")
CATALOG = world(backend("a"), backend("b"), backend("c"))
PRICES = prices(a=3, b=2, c=1)  # thousands of nano-USD for a token of the prompt


def side(name: str = "x", *routes, catalog=CATALOG, rates=PRICES, **default) -> Side:
    made = policy(*routes, **default)
    return Side(
        name,
        name,
        made,
        catalog,
        rates if isinstance(rates, PriceBook) else PriceBook.always(rates),
    )


IN_ORDER = side("in order", by=By.ORDER)  # a, b, c
CHEAPEST = side("cheapest", by=By.CHEAPEST)  # c, b, a


def past(by: Side = IN_ORDER, *, served: Target | None = A, snapshot=None, **fields) -> Recorded:
    """A request as `by` would have decided it, through JSON."""
    asked = facts(**fields.pop("facts", {}))
    at_us = fields.get("at_us", 0)
    rates = by.on(at_us).rates
    decision = decide(by.policy, by.catalog, rates, asked, snapshot or {})
    values = {
        "at_us": at_us,
        "decision": orjson.loads(orjson.dumps(record(decision, asked, snapshot or {}))),
        "digest": by.digest,
        "privacy_class": CLASSES[asked.privacy],
        "session": None,
        "served": served,
        "usage": Usage(100, 0, 50),
        "cost_nano_usd": 300_000,
        "ttft_ms": 100.0,
        "tpot_ms": 10.0,
        "tps": 50.0,
        "whole_ms": 590.0,
    }
    return Recorded(**(values | fields))


def replayed(sides, *requests: Recorded) -> Replay:
    replay = Replay(sides)
    by = {one.digest: one for one in sides}
    for request in requests:
        replay.add(request, by.get(request.digest))
    return replay


def chosen(replay: Replay, number: int) -> list[str | None]:
    targets = replay.columns.targets
    return [None if c == NOBODY else targets[c].backend for c in replay.columns.choice[number]]


# --- one request ------------------------------------------------------------------------------


def test_what_stays_keeps_what_was_measured_and_what_moves_costs_its_tokens_there():
    replay = replayed([IN_ORDER, CHEAPEST], past(cost_nano_usd=123_456))
    assert (chosen(replay, 0), chosen(replay, 1)) == (["a"], ["c"])
    assert list(replay.columns.cost[0]) == [123_456]
    assert list(replay.columns.cost[1]) == [cost(PRICES[C], uncached=100, cached=0, output=50)]


def test_what_nobody_had_measured_is_tried_out_once_and_no_flood_follows():
    fastest = side("fastest", by=By.FASTEST)
    seen = BackendView(ttft_ms=100.0, tpot_ms=1.0)
    unmeasured = {"a": seen, "b": BackendView(), "c": BackendView()}
    replay = replayed([IN_ORDER, fastest], *[past(snapshot=unmeasured)] * 10)
    assert sorted(chosen(replay, 1)) == ["a"] * 8 + ["b", "c"]
    quick = replace(seen, ttft_ms=10.0)
    measured = [past(snapshot=unmeasured), past(snapshot={**unmeasured, "b": quick})]
    replay = replayed([IN_ORDER, fastest], *measured, *[past(snapshot=unmeasured)] * 10)
    assert chosen(replay, 1)[3:] == ["b"] * 9, "known by then, and faster"


def test_prices_are_those_of_the_day_of_the_request():
    later = prices(a=3, b=2, c=4)  # from the second day on c is the dearest
    book = PriceBook(
        {
            target: (
                Dated(from_us=0, until_us=DAY_US, base=PRICES[target]),
                Dated(from_us=DAY_US, until_us=None, base=later[target]),
            )
            for target in PRICES
        }
    )
    dated = side("dated", by=By.CHEAPEST, rates=book)
    replay = replayed([IN_ORDER, dated], past(), past(at_us=DAY_US), past(at_us=2 * DAY_US))
    assert chosen(replay, 1) == ["c", "b", "b"]
    assert list(replay.columns.cost[1]) == [
        cost(rates[target], uncached=100, cached=0, output=50)
        for rates, target in ((PRICES, C), (later, B), (later, B))
    ]
    assert dated.on(DAY_US).router is dated.on(2 * DAY_US).router, "same prices, same tables"


def test_a_side_with_other_prices_is_priced_anew_even_where_nothing_moves():
    dearer = side("dearer", by=By.ORDER, rates=prices(a=30, b=2, c=1))
    replay = replayed([IN_ORDER, dearer], past(cost_nano_usd=123_456))
    assert list(replay.columns.cost[0]) == [123_456]
    assert list(replay.columns.cost[1]) == [3_000_000]


def test_all_that_was_metered_is_priced_where_it_moves_and_in_the_tier_that_was_asked_for():
    used = Usage(60, 0, 50, 20, others={Meter.CACHE_WRITE_5M: 40, Meter.SEARCH_CALL: 2})
    searches = {Meter.SEARCH_CALL: Decimal(10), Meter.REASONING: Decimal(3)}
    flex = replace(PRICES[C], others={**searches, Meter.CACHE_WRITE_5M: Decimal(2)})
    listed = {C: replace(PRICES[C], others=searches, service_tiers={"flex": flex})}
    cheapest = side("cheapest", by=By.CHEAPEST, rates=listed)
    asked = {"service_tier": "flex"}
    replay = replayed([IN_ORDER, cheapest], past(usage=used), past(usage=used, facts=asked))
    assert chosen(replay, 1) == ["c", "c"]
    reasoning, found = 20 * 3_000, 2 * 10_000_000
    assert list(replay.columns.cost[1]) == [
        60 * 1000 + 40 * 1000 + reasoning + found,
        60 * 1000 + 40 * 2000 + reasoning + found,
    ]


def test_a_meter_without_a_price_there_is_counted_as_unpriced():
    used = Usage(60, 0, 50, others={Meter.SEARCH_CALL: 2})
    replay = replayed([IN_ORDER, CHEAPEST], past(usage=used))
    assert list(replay.columns.cost[1]) == [UNPRICED]
    assert compare(replay, seed=1)[1].money.unpriced == 1


def test_what_has_no_price_or_no_tokens_is_counted_and_never_nothing():
    unpriced = side("unpriced", by=By.ORDER, prefer=(frozenset({"c"}),), rates=prices(a=3, b=2))
    replay = replayed(
        [IN_ORDER, unpriced], past(), past(usage=None, cost_nano_usd=None), past(served=A)
    )
    assert list(replay.columns.cost[1]) == [UNPRICED, UNMEASURED, UNPRICED]
    money = compare(replay, seed=1)[1].money
    assert (money.unpriced, money.unmeasured, money.before, money.after) == (2, 1, 0, 0)


def test_a_request_without_tokens_has_its_predicted_cost_told_apart():
    nothing = {"usage": None, "cost_nano_usd": None}
    replay = replayed([IN_ORDER, CHEAPEST], past(**nothing), past())
    assert compare(replay, seed=1)[1].money.guess_nano_usd == (1 - 3) * 100 * 1000


def test_what_failed_for_a_request_fails_for_it_again():
    alone = side("a alone", prefer=(frozenset({"a"}),), only=True)
    again = side("in order still", by=By.ORDER)
    replay = replayed([IN_ORDER, again, alone, CHEAPEST], past(served=B))
    assert [chosen(replay, n) for n in range(4)] == [["b"], ["b"], [None], ["c"]]
    assert replay.tallies[2].refusals == {"all that it would try had failed": 1}
    assert list(replay.columns.cost[2]) == [0]


def test_refusals_are_counted_by_the_rules_behind_them():
    nowhere = side("nowhere", prefer=(frozenset({"managed"}),), only=True, price_max_nano_usd=1)
    gone = side("gone", catalog=world(backend("a"), alias="other"))
    replay = replayed([IN_ORDER, nowhere, gone], past())
    assert replay.tallies[1].refusals == {"price_max": 1}
    assert replay.tallies[2].refusals == {"no such alias": 1}


def test_a_conversation_stays_where_the_side_has_sent_it():
    sticky = Behaviour(attempts_max=3, backends_max=3, affinity=Affinity(idle_s=600))
    first = side("first", by=By.ORDER, behaviour=sticky)
    other = side("other", by=By.FASTEST, behaviour=sticky)
    pinned = {"facts": {"pinned": A}}
    slow_c = {name: view(ttft) for name, ttft in (("a", 300.0), ("b", 200.0), ("c", 400.0))}
    fast_c = {name: view(ttft) for name, ttft in (("a", 300.0), ("b", 200.0), ("c", 100.0))}
    requests = [
        past(first, session="s", snapshot=slow_c),
        past(first, session="s", snapshot=fast_c, **pinned),  # c is faster now, but it is with b
        past(first, session="t", snapshot=fast_c),
        past(first, snapshot=fast_c),
    ]
    replay = replayed([first, other], *requests)
    assert chosen(replay, 0) == ["a"] * 4
    assert chosen(replay, 1) == ["b", "b", "c", "c"]
    assert replay.again["same"] == 4


def test_a_side_that_came_into_force_half_way_keeps_its_own_conversations_too():
    sticky = Behaviour(attempts_max=3, backends_max=3, affinity=Affinity(idle_s=600))
    first = side("first", by=By.ORDER, behaviour=sticky)
    other = side("other", by=By.CHEAPEST, behaviour=sticky)
    before = past(first, session="s")
    after = past(other, session="s", facts={"pinned": A})  # stayed with a, for it was there
    replay = replayed([first, other], before, after)
    assert chosen(replay, 1) == ["c", "c"], "it would have been with c from the start"
    assert replay.again["same"] == 2


def view(ttft_ms: float):
    from gateway.domain.decision import BackendView

    return BackendView(ttft_ms=ttft_ms, tpot_ms=1.0)


def test_a_decision_that_comes_out_otherwise_than_recorded_is_counted():
    changed = past()
    changed.decision["order"][0][3] += 1  # one nano-dollar
    strange = replace(past(), digest="who knows")
    replay = replayed([IN_ORDER, CHEAPEST], past(), changed, strange)
    assert dict(replay.again) == {"same": 2, "other": 1, "gone": 1}


# --- privacy ----------------------------------------------------------------------------------


def test_what_a_side_may_send_where_the_first_may_not_is_counted_one_by_one():
    home = side("home", prefer=(frozenset({"a"}),), only=True)
    replay = replayed(
        [home, CHEAPEST],
        past(home, facts={"privacy": 1}),
        past(home, facts={"privacy": 1}),
        past(home, facts={"privacy": 0}),  # the lowest class is for everybody
    )
    opened, exposed = replay.tallies[1].opened, replay.tallies[1].exposed
    assert opened == {Exposure("chat", "internal", t): 2 for t in (B, C)}
    assert +exposed == {Exposure("chat", "internal", C): 2}


def test_another_model_at_a_backend_that_had_it_before_exposes_nothing():
    two = backend("a", models={name: backend("a").models["m"] for name in ("m", "n")})
    catalog = world(two)
    small = replace(
        catalog, aliases={"chat": replace(catalog.aliases["chat"], targets=(Target("a", "m"),))}
    )
    sides = [side("one", catalog=small), side("both", catalog=catalog)]
    replay = replayed(sides, past(sides[0], facts={"privacy": 2}))
    assert not replay.tallies[1].opened


@pytest.mark.parametrize(
    ("classes", "floor", "expected"),
    [
        (("public", "internal", "confidential"), 0, 1),
        (("public", "partner", "internal", "confidential"), 0, 2),  # by its name
        (("public", "confidential"), 0, 1),  # unknown: the strictest
        (("public", "internal", "confidential"), 2, 2),  # a raised floor
    ],
)
def test_the_class_is_the_one_of_that_name_and_floors_raise_it(classes, floor, expected):
    catalog = replace(world(backend("a"), privacy_floor=floor), privacy_classes=classes)
    assert side("x", catalog=catalog).rank(facts(privacy=1), "internal") == expected


def test_a_class_that_outranks_a_backend_here_is_refused_here():
    strict = replace(CATALOG, backends={n: backend(n, clearance=0) for n in "abc"})
    sides = [IN_ORDER, side("strict", catalog=strict)]
    replay = replayed(sides, past(facts={"privacy": 1}))
    assert chosen(replay, 1) == [None]
    assert replay.tallies[1].refusals == {"privacy": 1}


# --- times ------------------------------------------------------------------------------------


def test_a_moved_request_takes_as_long_as_one_its_target_served():
    times = {"ttft_ms": 40.0, "tpot_ms": 4.0, "tps": 200.0}
    streamed = {"stream": True}
    replay = replayed(
        [IN_ORDER, CHEAPEST],
        past(facts=streamed),
        past(facts=streamed, served=C, **times),
        past(facts=streamed, usage=Usage(5000, 0, 50)),  # nobody had so long a prompt there
        past(),  # nor one that was not streamed
    )
    (_, moved) = compare(replay, seed=1)
    # c had failed for the second on no side: it stays at c on both, as recorded.
    assert moved.times_unknown == 2
    assert (moved.ttft_ms.before_p95, moved.ttft_ms.after_p95) == (100.0, 40.0)
    assert moved.ttft_ms.known == 2
    assert (moved.tps.after_p50, moved.tps.after_p95) == (200.0, 200.0)


def test_nothing_seen_is_unknown_not_nothing():
    (_, moved) = compare(replayed([IN_ORDER, CHEAPEST], past()), seed=1)
    assert moved.times_unknown == 1
    assert isnan(moved.ttft_ms.after_p50)
    assert moved.ttft_ms.known == 0


def test_service_levels_are_the_strictest_of_all_sides():
    def slo(ms: float) -> dict:
        return {"slos": (Slo(metric=Metric.TTFT, percentile=95, ms_max=ms),)}

    tight, loose = side("tight", **slo(90.0)), side("loose", **slo(150.0))
    slow = past(tight, facts={"stream": True})
    quick = past(tight, facts={"stream": True}, ttft_ms=80.0)
    for sides in ([tight, loose], [loose, tight], [IN_ORDER, tight]):
        replay = replayed(sides, slow, quick)
        found = compare(replay, seed=1)[1]
        assert (found.bounded, found.misses_before, found.misses_after) == (2, 1, 1)
    assert list(replayed([IN_ORDER, CHEAPEST], slow).columns.ttft_ms_max) == [inf]


# --- the whole --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traffic() -> list[Recorded]:
    return [from_row(orjson.loads(line)) for line in lines(1500, seed=7)]


def shipped(name: str) -> Side:
    made = bundle(name)
    return Side(name, made.digest, made.policy, made.catalog, made.prices)


@pytest.fixture(scope="module")
def replay(traffic) -> Replay:
    names = ("balanced", "cheapest", "fastest", "private-first", "closed-only-fallback")
    return replayed([shipped(name) for name in names], *traffic)


def test_every_recorded_decision_is_made_again(replay, traffic):
    assert replay.again == {"same": len(traffic), "gone": 0}


def test_a_policy_against_itself_moves_nothing_and_costs_nothing_more(traffic):
    same = compare(replayed([shipped("balanced"), shipped("balanced")], *traffic), seed=3)[1]
    assert (same.moved, same.refused, same.admitted, same.times_unknown) == (0, 0, 0, 0)
    assert (same.money.more, same.money.low, same.money.high) == (0, 0, 0)
    assert same.money.before > 0
    assert same.ttft_ms.before_p50 == same.ttft_ms.after_p50


def test_totals_add_up(replay, traffic):
    for found in compare(replay, seed=1):
        parts = (found.stayed, found.moved, found.refused, found.admitted, found.unanswered)
        assert sum(parts) == len(traffic) == found.sample
        assert sum(found.moves.values()) == sum(found.matrix.values()) == found.sample
        refused = sum(n for (a, b), n in found.matrix.items() if a != NO_ANSWER == b)
        assert refused == found.refused
        assert found.money.low <= found.money.more <= found.money.high
        assert found.money.unpriced == found.money.unmeasured == 0


def test_there_and_back_are_opposite(replay):
    for number in range(1, len(replay.sides)):
        there = compare(replay, seed=5)[number]
        back = compare(replay, seed=5, before=number)[0]
        assert {(b, a): n for (a, b), n in there.moves.items()} == dict(back.moves)
        assert (there.refused, there.admitted) == (back.admitted, back.refused)
        assert there.moved == back.moved > 0 or there.refused > 0
        assert (there.money.more, there.money.by_refusal) == (
            -back.money.more,
            -back.money.by_refusal,
        )
        assert (there.money.low, there.money.high) == (-back.money.high, -back.money.low)
        assert there.ttft_ms.known == back.ttft_ms.known


def test_the_seed_decides_and_nothing_else(replay):
    assert compare(replay, seed=1) == compare(replay, seed=1)
    one, two = compare(replay, seed=1)[2], compare(replay, seed=2)[2]
    assert one.money.more == two.money.more
    assert one.money.low != two.money.low


@given(seeds=st.lists(worlds, min_size=2, max_size=2))
def test_any_two_worlds_can_be_compared(seeds):
    """Whatever the files say, a replay ends in figures that add up."""
    sides = [
        Side(str(n), str(n), one.policy, one.catalog, PriceBook.always(one.rates))
        for n, one in enumerate(seeds)
    ]
    requests = []
    for one, by in zip(seeds, sides, strict=True):
        made = record(one.decide(), one.facts, one.snapshot)
        order = made["order"]
        served = Target(*order[0][0].split("/")) if order else None
        at_us = one.facts.at_us
        requests.append(
            replace(past(), at_us=at_us, decision=orjson.loads(orjson.dumps(made)), served=served)
        )
        requests[-1] = replace(requests[-1], digest=by.digest, privacy_class=None)
    replay = replayed(sides, *requests)
    assert replay.again["same"] == 2
    for found in compare(replay, seed=1):
        assert sum(found.matrix.values()) == 2
        assert found.money.low <= found.money.more <= found.money.high


# --- statistics -------------------------------------------------------------------------------


@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=50), st.integers(0, 2**64))
def test_the_interval_contains_the_sum(blocks, seed):
    low, high = interval(blocks, seed, draws=200)
    assert low <= sum(blocks) <= high


def test_the_interval_is_as_wide_as_theory_says():
    """Of many independent draws the sum is normal: 1.96 standard errors on each side."""
    chance = Random(1)
    blocks = [round(chance.gauss(1000, 300)) for _ in range(200)]
    mean = sum(blocks) / 200
    error = sqrt(sum((b - mean) ** 2 for b in blocks) / 199 * 200)
    low, high = interval(blocks, 1)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_neighbours_that_are_alike_widen_the_interval():
    """A thousand requests in ten conversations are not a thousand independent ones."""
    chance = Random(2)
    values = [chance.gauss(0, 1000) for _ in range(10) for _ in range(100)]
    levels = [chance.gauss(0, 1000) for _ in range(10)]
    alike = [level + value / 10 for level in levels for value in values[:100]]

    def width(series: list[float]) -> float:
        runs = [round(sum(series[i : i + 20])) for i in range(0, 1000, 20)]
        low, high = interval(runs, 1)
        return (high - low) / sqrt(sum((v - sum(series) / 1000) ** 2 for v in series) / 1000)

    assert width(alike) > 3 * width(values)


def test_percentiles_are_values_that_occurred():
    assert [percentile([1.0, 2.0, 3.0, 4.0], p) for p in (1, 50, 75, 95)] == [1.0, 2.0, 3.0, 4.0]
    assert isnan(percentile([], 50))


def test_a_sample_stands_for_its_period_and_for_a_month():
    day = Period(from_us=0, until_us=DAY_US, decided=1000, sample=100)
    assert day.whole == 10
    assert day.month == pytest.approx(10 * 30.4375)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**64))
def test_a_stratified_sample_takes_one_of_each_run(total, wanted, seed):
    wanted = min(total, wanted)
    picks = list(one_of_each(total, wanted, seed))
    assert len(picks) == wanted
    assert all(a < b for a, b in pairwise(picks))
    for run, pick in enumerate(picks):
        assert run * total // wanted <= pick < (run + 1) * total // wanted
    assert picks == list(one_of_each(total, wanted, seed))


def test_chance_is_even_enough():
    counts = [0] * 10
    for value in range(10_000):
        counts[below(10, mixed(value))] += 1
    assert all(900 < count < 1100 for count in counts)
