"""Prices that change while requests are under way: each is rated by its arrival, nothing is free."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest

from gateway.dispatch import Dispatch
from gateway.domain.catalog import Target
from gateway.domain.limit import Limit, Period, Unit
from gateway.domain.money import Rates
from gateway.domain.request import Usage
from gateway.housekeeping import PRICES_AHEAD_US
from gateway.ledger.prices import Dated, PriceBook, load_prices
from gateway.limits import LimitIndex
from gateway.policy.engine import Router
from tests.unit.spine import CALLER, FINE, ROLE, Script, begin, build, finish, request, said

A = Target("a", "m")
HOUR_US = 3_600_000_000
CHEAP, DEAR = (Rates(id=str(usd), input=Decimal(usd), output=Decimal(usd)) for usd in (1, 3))
TOKENS = 17  # of FINE

NIGHTS = """\
version: 1
prices:
  - backend: a
    model: m
    from: 1970-01-01
    input_usd_per_mtok: "3"
    output_usd_per_mtok: "3"
    when: [{hours_utc: ["01:00-02:00"], input_usd_per_mtok: "1", output_usd_per_mtok: "1"}]
    source: list
    read_on: 2026-11-24
"""


def put_in_force(dispatch: Dispatch, book: PriceBook) -> None:
    """As a worker does when prices have changed."""
    rules = dispatch.rules
    rates = book.in_force(round(dispatch.clock.wall() * 1e6))
    dispatch.rules = replace(
        rules,
        prices=book,
        router=Router.build(rules.policy, rules.catalog, rates),
        limits=LimitIndex(rules.limits.limits, rules.catalog, rates),
    )


def unpriced(dispatch: Dispatch) -> float:
    page = dispatch.telemetry.render().decode()
    name = 'weighbridge_unpriced_requests_total{backend="a",model="m"} '
    return sum(float(line.removeprefix(name)) for line in page.splitlines() if name in line)


async def test_a_request_keeps_the_price_of_its_arrival_however_late_the_worker_is() -> None:
    dispatch, wire, kept = build({"a": FINE})
    now_us = round(dispatch.clock.wall() * 1e6)
    book = PriceBook(
        {
            A: (
                Dated(from_us=0, until_us=now_us + 50_000, base=CHEAP),
                Dated(from_us=now_us + 50_000, until_us=None, base=DEAR),
            )
        }
    )
    put_in_force(dispatch, book)
    _, early = await begin(dispatch)
    wire.clock.advance(1.0)
    _, late = await begin(dispatch)  # decided by rules that are a second old
    put_in_force(dispatch, book)
    _, later = await begin(dispatch)
    for answer in (early, late, later):
        await finish(answer)
    assert [row.cost_nano_usd for row in kept.closed] == [
        TOKENS * 1000,
        TOKENS * 3000,
        TOKENS * 3000,
    ]
    assert [row.attempts[0].rates_id for row in kept.closed] == ["1", "3", "3"]


async def test_an_hour_with_its_own_price_begins_and_ends_in_traffic() -> None:
    dispatch, wire, kept = build({"a": FINE}, limits=(DAY,))
    book = load_prices([("p.yaml", NIGHTS)])
    at = round(dispatch.clock.wall() * 1e6)
    held, costs = [], []
    for _ in range(4):
        due = book.changes_after(at)
        assert due is not None
        wire.clock.advance((due - round(dispatch.clock.wall() * 1e6)) / 1e6)
        put_in_force(dispatch, book)
        trip, answer = await begin(dispatch)
        held.append(trip.admission.asks[0].amount)
        at = round(dispatch.clock.wall() * 1e6)
        await finish(answer)
        costs.append(kept.closed[-1].cost_nano_usd)
    assert sorted(costs[:2]) == [TOKENS * 1000, TOKENS * 3000]
    assert costs == costs[:2] * 2
    assert [cost // TOKENS for cost in costs] == [amount // 32 for amount in held]


@pytest.mark.parametrize(
    ("since", "now", "turn"),
    [
        (-9, -6, False),
        (-6, -5, True),  # holds are to know it
        (-5, -1, False),
        (-1, 0, True),
        (0, 1, False),
        (-99, 99, True),
    ],
)
def test_prices_are_looked_at_again_before_a_change_and_at_it(
    since: int, now: int, turn: bool
) -> None:
    change = 24 * HOUR_US
    rows = (
        Dated(from_us=0, until_us=change, base=CHEAP),
        Dated(from_us=change, until_us=None, base=DEAR),
    )
    book = PriceBook({A: rows})
    moments = change + since * 1_000_000, change + now * 1_000_000
    assert book.turned(*moments, ahead_us=PRICES_AHEAD_US) is turn


async def test_near_a_change_the_dearer_prices_are_held() -> None:
    dispatch, _, _ = build({"a": FINE}, limits=(DAY,))
    rules = dispatch.rules
    for now, soon, price in ((CHEAP, DEAR, 3), (DEAR, CHEAP, 3), (CHEAP, CHEAP, 1)):
        index = LimitIndex(rules.limits.limits, rules.catalog, {A: now}, {A: soon})
        (ask,) = index.asks_for(CALLER, request())
        assert ask.amount == 32 * price * 1000


DAY = Limit(name="l", per="team", unit=Unit.USD, amount=10**12, period=Period.DAY)


async def test_a_price_that_goes_while_requests_are_under_way_makes_none_of_them_free() -> None:
    """I-13: what arrived before is rated; what arrives after is unpriced, told and never 0."""
    gate = asyncio.Event()
    slow = Script(
        pieces=[ROLE, said("hello"), said("world", finished=True, usage=Usage(10, 2, 5))],
        gate=gate,
        gate_at=2,
    )
    dispatch, _, kept = build({"a": slow})
    before = [await begin(dispatch) for _ in range(20)]
    put_in_force(dispatch, PriceBook({}))
    after = [await begin(dispatch) for _ in range(20)]
    gate.set()
    await asyncio.gather(*(finish(answer) for _, answer in (*before, *after)))
    rated = {trip.record.id for trip, _ in before}
    assert len(kept.closed) == 40
    for row in kept.closed:
        cost = 12 * 1000 + 5 * 2000 if row.id in rated else None
        assert (row.cost_nano_usd, row.priced) == (cost, cost is not None)
        assert (row.attempts[0].rates_id is None) == (cost is None)
    assert unpriced(dispatch) == 20


@pytest.mark.parametrize("tier", ["priority", None])
async def test_a_service_tier_without_a_price_is_unpriced_though_the_standard_one_is_known(
    tier: str | None,
) -> None:
    served = Usage(10, 2, 5, service_tier=tier)
    script = Script(pieces=[ROLE, said("x", finished=True, usage=served)])
    dispatch, _, kept = build({"a": script})
    await finish((await begin(dispatch))[1])
    assert (kept.closed[0].cost_nano_usd is None) == (tier == "priority")
    assert unpriced(dispatch) == (tier == "priority")


async def test_what_is_asked_for_is_decided_by_and_kept() -> None:
    dispatch, _, kept = build({"a": FINE})
    await finish((await begin(dispatch, service_tier="flex"))[1])
    assert kept.closed[0].decision["facts"]["service_tier"] == "flex"
    assert kept.closed[0].decision["order"][0][3] is None, "no price of it"
