"""What a request holds of its limits, and what becomes of it however the request ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from decimal import Decimal
from typing import Any

import pytest

from gateway.dispatch import Dispatch
from gateway.domain.errors import BudgetSpent, RateLimited, StoreUnavailable, UpstreamBroken
from gateway.domain.limit import AtLimit, Limit, Period, Unit
from gateway.domain.request import Usage
from gateway.limits import Admission, Ask, LocalGate, Standing
from gateway.limits.answers import refusal_told
from gateway.limits.gate import Ready
from gateway.policy.language import Behaviour, Canary, Hedge
from tests.unit.spine import CALLER, FINE, ROLE, Script, begin, build, finish, request, said

BROKEN = Script(before=UpstreamBroken("no", status=500))


def limit(unit: Unit, amount: int, **fields: Any) -> Limit:
    period = None if unit is Unit.CONCURRENT else Period.DAY
    return Limit(
        **{"name": "l", "per": "team", "unit": unit, "amount": amount, "period": period, **fields}
    )


async def left(dispatch: Dispatch) -> int:
    """What the limit has left: a probe that is given back."""
    asks = dispatch.rules.limits.asks_for(CALLER, request(output_tokens_max=1, prompt_tokens=1))
    admission = await dispatch.gate.begin("probe", asks)
    dispatch.gate.release(admission)
    return admission.standings[0].remaining + sum(ask.amount for ask in asks if admission.hold)


async def test_the_hold_becomes_what_was_used() -> None:
    dispatch, _, kept = build({"a": FINE}, limits=(limit(Unit.USD, 1_000_000),))
    trip, answer = await begin(dispatch)
    assert trip.admission.standings[0].remaining == 1_000_000 - (12 * 1000 + 20 * 2000)
    await finish(answer)
    assert await left(dispatch) == 1_000_000 - kept.closed[0].cost_nano_usd


async def test_tokens_are_settled_as_reported() -> None:
    dispatch, _, _ = build({"a": FINE}, limits=(limit(Unit.TOKENS, 1000),))
    _, answer = await begin(dispatch)
    await finish(answer)
    assert await left(dispatch) == 1000 - 17


async def test_what_does_not_fit_is_refused_and_nothing_is_sent() -> None:
    dispatch, wire, kept = build({"a": FINE}, limits=(limit(Unit.USD, 50_000),))
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(BudgetSpent, match="The budget 'l' for team 'x'") as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 429)
    assert not wire.calls
    assert kept.closed[0].outcome == "refused"
    assert await left(dispatch) == 50_000


async def test_a_permit_is_free_again_after_every_ending() -> None:
    dispatch, wire, _ = build({"a": FINE}, limits=(limit(Unit.CONCURRENT, 1),))
    for end in ("read", "leave", "fail", "refuse"):
        wire.scripts["a"] = BROKEN if end == "fail" else FINE
        trip = dispatch.arrive("chat/completions")
        if end in {"fail", "refuse"}:
            asked = "restricted" if end == "refuse" else None
            with pytest.raises(Exception, match="No backend|no") as caught:
                await dispatch.answer(trip, CALLER, request(), privacy=asked, session=None)
            dispatch.refuse(trip, caught.value, 503)
        else:
            answer = await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
            with pytest.raises(RateLimited):
                await begin(dispatch)
            if end == "read":
                await finish(answer)
            else:
                answer.abandon()
        assert await left(dispatch) == 1, end


async def test_who_leaves_before_an_answer_leaves_no_hold() -> None:
    silent = Script(pieces=[ROLE, said("late")], gate=asyncio.Event(), gate_at=1)
    dispatch, wire, kept = build({"a": silent}, limits=(limit(Unit.USD, 1_000_000),))
    trip = dispatch.arrive("chat/completions")
    running = asyncio.ensure_future(
        dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    )
    while not wire.replies:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    dispatch.leave(trip)
    assert kept.closed[0].cost_nano_usd == 12_000  # the prompt was sent
    assert await left(dispatch) == 1_000_000 - 12_000


async def test_what_failed_before_it_said_anything_costs_nothing() -> None:
    dispatch, _, _ = build({"a": BROKEN}, limits=(limit(Unit.USD, 1_000_000),))
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(UpstreamBroken) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 502)
    assert await left(dispatch) == 1_000_000


async def test_the_loser_of_a_hedge_counts_against_the_budget() -> None:
    silent = Script(pieces=[ROLE, said("late")], gate=asyncio.Event(), gate_at=1)
    dispatch, _, kept = build(
        {"a": silent, "b": FINE},
        behaviour=Behaviour(hedge=Hedge(after_ms=1, share_max=1.0)),
        limits=(limit(Unit.USD, 1_000_000),),
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    assert kept.closed[0].attempt_count == 2
    assert await left(dispatch) == 1_000_000 - kept.closed[0].cost_nano_usd


async def test_the_tokens_of_a_hedges_loser_count_too() -> None:
    silent = Script(pieces=[ROLE, said("late")], gate=asyncio.Event(), gate_at=1)
    dispatch, _, kept = build(
        {"a": silent, "b": FINE},
        behaviour=Behaviour(hedge=Hedge(after_ms=1, share_max=1.0)),
        limits=(limit(Unit.TOKENS, 1000),),
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    lost, won = sorted(kept.closed[0].attempts, key=lambda a: a.outcome)
    assert (lost.outcome, lost.tokens, won.tokens) == ("hedge_lost", 12, 17)
    assert await left(dispatch) == 1000 - 29


async def test_a_refusal_is_kept_with_the_limit_that_refused() -> None:
    dispatch, _, kept = build({"a": FINE}, limits=(limit(Unit.USD, 50_000),))
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(BudgetSpent) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 429)
    assert kept.closed[0].decision == {
        "limit": "l",
        "per": "team",
        "holder": "x",
        "unit": "usd",
        "every": "day",
        "amount": 50_000,
        "left": 50_000,
        "asked": 52_000,
        "unchecked": False,
    }
    assert refusal_told(kept.closed[0].decision) == (
        "refused by the limit 'l' for team 'x', $0.00005 per day: $0.00005 left, the request may "
        "take $0.000052"
    )


class Away(LocalGate):
    """A gate whose store cannot be asked."""

    def begin(self, request_id: str, asks: tuple[Ask, ...]) -> Awaitable[Admission]:
        (ask,) = asks
        standing = Standing(ask.limit, ask.holder, 0, None)
        return Ready(Admission(asks=asks, refused=standing, store_down=True))


async def test_a_limit_that_cannot_be_checked_is_no_fault_of_ours() -> None:
    dispatch, _, kept = build({"a": FINE}, limits=(limit(Unit.USD, 50_000),))
    dispatch.gate = Away(dispatch.clock)
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(StoreUnavailable) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 503)
    row = kept.closed[0]
    assert (row.outcome, row.error_code) == ("no_route", "store_unavailable")
    assert refusal_told(row.decision) == (
        "refused by the limit 'l' for team 'x': its store could not be asked"
    )


async def test_an_unpriced_backend_is_no_candidate_under_a_hard_budget() -> None:
    dispatch, wire, _ = build(
        {"a": FINE, "b": FINE}, prices={"b": Decimal(1)}, limits=(limit(Unit.USD, 1_000_000),)
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    assert [call.backend.name for call in wire.calls] == ["b"]


@pytest.mark.parametrize(("used", "counted"), [(5, 12_000 + 20 * 2000), (500, 12_000 + 500 * 2000)])
async def test_what_is_unpriced_in_part_counts_at_its_hold_or_at_what_is_known(
    used: int, counted: int
) -> None:
    """The loser of a hedge has no price; the winner may have cost more than was held."""
    silent = Script(pieces=[ROLE, said("late")], gate=asyncio.Event(), gate_at=1)
    wins = Script(pieces=[ROLE, said("x", finished=True, usage=Usage(12, 0, used))])
    dispatch, _, kept = build(
        {"a": silent, "b": wins},
        prices={"b": Decimal(1)},
        behaviour=Behaviour(hedge=Hedge(after_ms=1, share_max=1.0)),
        limits=(limit(Unit.USD, 2_000_000, at_limit=AtLimit.ROUTE),),
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    assert (kept.closed[0].attempt_count, kept.closed[0].priced) == (2, False)
    assert await left(dispatch) == 2_000_000 - counted


async def test_a_spent_limit_that_asks_for_another_route_lets_the_request_in() -> None:
    dispatch, _, kept = build({"a": FINE}, limits=(limit(Unit.USD, 10, at_limit=AtLimit.ROUTE),))
    trip, answer = await begin(dispatch)
    await finish(answer)
    assert trip.admission.spent == {"l"}
    assert kept.closed[0].decision["facts"]["spent"] == ["l"]


async def test_a_canary_that_fails_is_taken_back() -> None:
    canary = Canary(backends=frozenset({"b"}), share=1.0, samples_min=5)
    dispatch, wire, _ = build({"a": FINE, "b": BROKEN}, route={"canary": canary})
    dispatch.canaries.adopt(dispatch.rules.digest, {"default": canary})
    for _ in range(8):
        _, answer = await begin(dispatch)
        await finish(answer)
    assert dispatch.canaries.reverted() == {"default"}
    wire.calls.clear()
    _, answer = await begin(dispatch)
    await finish(answer)
    assert [call.backend.name for call in wire.calls] == ["a"]
