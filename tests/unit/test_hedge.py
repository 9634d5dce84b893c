"""Two attempts for one request, and copies for comparison: who wins, and that all is weighed."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from gateway.domain.errors import (
    AllAttemptsFailed,
    ClearanceViolated,
    Overloaded,
    UpstreamBroken,
    UpstreamRejected,
)
from gateway.policy.language import (
    Behaviour,
    Hedge,
    Priority,
    RetryBudget,
    Shadow,
    Timeouts,
)
from tests.unit.spine import CALLER, FINE, ROLE, Script, begin, build, finish, request, said

HEDGED = Behaviour(attempts_max=3, backends_max=3, hedge=Hedge(after_ms=1, share_max=1.0))


def silent() -> Script:
    """Sends its head, then nothing until it is closed."""
    return Script(pieces=[ROLE, said("late")], gate=asyncio.Event(), gate_at=1)


async def test_who_answers_first_wins_and_the_loser_is_booked() -> None:
    dispatch, wire, kept = build({"a": silent(), "b": FINE}, behaviour=HEDGED)
    _, answer = await begin(dispatch)
    assert answer.backend.name == "b"
    await finish(answer)
    (record,) = kept.closed
    assert [(a.backend, a.why, a.outcome) for a in record.attempts] == [
        ("a", "preferred", "hedge_lost"),
        ("b", "hedge", "ok"),
    ]
    loser, winner = record.attempts
    assert (loser.usage_source, loser.uncached_tokens, loser.output_tokens) == ("estimated", 12, 0)
    assert loser.cost_nano_usd == 12_000
    assert record.cost_nano_usd == 12_000 + winner.cost_nano_usd
    assert (record.output_tokens, record.usage_source) == (5, "reported")
    assert record.backend == "b"
    assert wire.replies[0].closed
    assert dispatch.fleet.in_flight() == {"a": 0, "b": 0}
    assert dispatch.in_flight == 0


async def test_the_first_may_still_win() -> None:
    first = silent()
    dispatch, wire, kept = build({"a": first, "b": silent()}, behaviour=HEDGED)
    running = asyncio.ensure_future(begin(dispatch))
    while len(wire.replies) < 2:
        await asyncio.sleep(0.001)
    assert first.gate is not None
    first.gate.set()
    _, answer = await running
    assert answer.backend.name == "a"
    await finish(answer)
    assert [a.outcome for a in kept.closed[0].attempts] == ["ok", "hedge_lost"]
    assert kept.closed[0].backend == "a"


async def test_who_answers_in_time_is_not_hedged() -> None:
    patient = Behaviour(attempts_max=3, backends_max=3, hedge=Hedge(after_ms=60_000, share_max=1.0))
    dispatch, wire, kept = build({"a": FINE, "b": FINE}, behaviour=patient)
    _, answer = await begin(dispatch)
    await finish(answer)
    assert len(wire.calls) == kept.closed[0].attempt_count == 1


async def test_hedges_are_a_share_of_the_requests() -> None:
    rare = Behaviour(attempts_max=3, backends_max=3, hedge=Hedge(after_ms=1, share_max=0.1))
    dispatch, _, kept = build({"a": FINE, "b": FINE}, behaviour=rare)
    for _ in range(40):
        gate = asyncio.Event()
        dispatch.wires["scripted"].scripts["a"] = Script(
            pieces=[ROLE, said("x", finished=True)], gate=gate, gate_at=1
        )
        running = asyncio.ensure_future(begin(dispatch))
        while not kept.opened or len(kept.opened) <= len(kept.closed):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        gate.set()
        _, answer = await running
        await finish(answer)
    hedged = sum(r.attempt_count - 1 for r in kept.closed)
    assert 1 <= hedged <= 1 + 40 * 0.1


async def test_when_both_fail_the_third_is_asked() -> None:
    broken = Script(before=UpstreamBroken("no", status=500))
    dispatch, _, kept = build({"a": broken, "b": broken, "c": FINE}, behaviour=HEDGED)
    _, answer = await begin(dispatch)
    await finish(answer)
    assert [a.outcome for a in kept.closed[0].attempts] == ["failed", "failed", "ok"]
    assert kept.closed[0].cost_nano_usd == kept.closed[0].attempts[2].cost_nano_usd


async def test_when_all_fail_each_failure_is_carried() -> None:
    broken = Script(before=UpstreamBroken("no", status=500))
    dispatch, _, _ = build(dict.fromkeys("abc", broken), behaviour=HEDGED)
    with pytest.raises(AllAttemptsFailed) as caught:
        await begin(dispatch)
    assert len(caught.value.failures) == 3


async def test_a_hedge_that_is_rejected_leaves_the_first_its_chance() -> None:
    first = silent()
    dispatch, wire, kept = build(
        {"a": first, "b": Script(before=UpstreamRejected("bad", status=400)), "c": FINE},
        behaviour=HEDGED,
    )
    running = asyncio.ensure_future(begin(dispatch))
    while len(wire.calls) < 2:
        await asyncio.sleep(0.001)
    assert first.gate is not None
    first.gate.set()
    _, answer = await running
    answer.abandon()
    assert [(a.backend, a.outcome) for a in kept.closed[0].attempts] == [
        ("a", "client_cancelled"),
        ("b", "rejected"),
    ]


async def test_where_one_rejects_and_the_other_fails_nobody_else_is_asked() -> None:
    first = silent()
    dispatch, wire, kept = build(
        {"a": first, "b": Script(before=UpstreamRejected("bad", status=400)), "c": FINE},
        behaviour=HEDGED,
    )
    trip = dispatch.arrive("chat/completions")
    running = asyncio.ensure_future(
        dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    )
    while len(wire.calls) < 2:
        await asyncio.sleep(0.001)
    assert first.gate is not None
    wire.replies[0].closed = True  # it breaks
    first.gate.set()
    with pytest.raises(UpstreamRejected) as caught:
        await running
    dispatch.refuse(trip, caught.value, 400)
    assert [a.outcome for a in kept.closed[0].attempts] == ["failed", "rejected"]


async def test_a_client_that_leaves_in_a_race_ends_both() -> None:
    dispatch, wire, kept = build({"a": silent(), "b": silent()}, behaviour=HEDGED)
    trip = dispatch.arrive("chat/completions")
    running = asyncio.ensure_future(
        dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    )
    while len(wire.replies) < 2:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    dispatch.leave(trip)
    (record,) = kept.closed
    assert [a.outcome for a in record.attempts] == ["client_cancelled"] * 2
    assert record.cost_nano_usd == 2 * 12_000
    assert all(reply.closed for reply in wire.replies)
    assert dispatch.fleet.in_flight() == {"a": 0, "b": 0}


async def test_a_whole_answer_is_settled_once_though_two_were_asked() -> None:
    whole = Script(pieces=[said("{}", finished=True)], streamed=False)
    dispatch, _, kept = build({"a": silent(), "b": whole}, behaviour=HEDGED)
    _, answer = await begin(dispatch, stream=False)
    assert (answer.first, len(kept.closed)) == (b"{}", 1)
    assert dispatch.in_flight == 0


async def test_an_unpriced_loser_leaves_the_request_unpriced() -> None:
    dispatch, _, kept = build(
        {"a": silent(), "b": FINE}, behaviour=HEDGED, prices={"b": Decimal(1)}
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    record = kept.closed[0]
    assert (record.priced, record.attempts[0].cost_nano_usd) == (False, None)
    assert record.cost_nano_usd == record.attempts[1].cost_nano_usd


# --- copies -----------------------------------------------------------------------------------------


async def test_a_copy_has_a_row_of_its_own_and_no_key() -> None:
    dispatch, wire, kept = build(
        {"a": FINE, "b": FINE}, route={"shadow": Shadow(backend="b", share=1.0)}
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    while len(kept.closed) < 2:
        await asyncio.sleep(0.001)
    by_shadow = {record.shadow_of: record for record in kept.closed}
    real = by_shadow[None]
    copy = by_shadow[real.id]
    assert [call.backend.name for call in wire.calls] == ["a", "b"]
    assert (copy.key_id, copy.tags, copy.backend, copy.outcome) == (None, {}, "b", "ok")
    assert copy.attempts[0].why == "shadow"
    assert copy.privacy_class == real.privacy_class
    assert real.attempt_count == 1
    assert wire.calls[1].privacy == wire.calls[0].privacy
    assert dispatch.in_flight == 0


async def test_a_copy_that_fails_harms_nobody() -> None:
    dispatch, _, kept = build(
        {"a": FINE, "b": Script(before=UpstreamBroken("no", status=500))},
        route={"shadow": Shadow(backend="b", share=1.0)},
    )
    _, answer = await begin(dispatch)
    assert await finish(answer) == b"rolehelloworld"
    while len(kept.closed) < 2:
        await asyncio.sleep(0.001)
    assert {r.outcome for r in kept.closed} == {"ok", "failed"}


async def test_no_copy_goes_where_the_request_may_not() -> None:
    dispatch, wire, kept = build(
        {"a": FINE, "b": FINE}, route={"shadow": Shadow(backend="b", share=1.0)}
    )
    backends = dispatch.rules.catalog.backends
    assert backends["b"].clearance == 1
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(Exception, match="No backend is eligible"):
        await dispatch.answer(trip, CALLER, request(), privacy="restricted", session=None)
    assert not wire.calls
    assert not kept.closed


async def test_what_a_wire_refuses_to_send_costs_nothing() -> None:
    dispatch, _, kept = build({"a": Script(before=ClearanceViolated("no"))})
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(ClearanceViolated) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 500)
    (record,) = kept.closed
    assert (record.outcome, record.cost_nano_usd) == ("internal_error", None)
    assert record.attempts[0].usage_source == "none"


# --- the route's own bounds -------------------------------------------------------------------------


async def test_the_tighter_bound_counts() -> None:
    bounds = Timeouts(
        connect_ms=100,
        first_token_ms=1000,
        first_token_ms_per_1k_prompt_tokens=500,
        idle_ms=10_000_000,
    )
    dispatch, wire, _ = build({"a": FINE}, behaviour=Behaviour(timeouts=bounds))
    _, answer = await begin(dispatch, prompt_tokens=4000)
    await finish(answer)
    call = wire.calls[0]
    assert (call.connect_s_max, call.first_chunk_s_max, call.idle_s_max) == (0.1, 3.0, 20.0)


async def test_batch_waits_when_the_worker_fills_up() -> None:
    dispatch, _, _ = build({"a": FINE}, route={"priority": Priority.BATCH})
    dispatch.in_flight = 71
    with pytest.raises(Overloaded, match="batch"):
        await begin(dispatch)


async def test_a_route_that_repeats_nothing() -> None:
    never = Behaviour(retries=RetryBudget(share=0.0, per_s=0.0))
    dispatch, wire, _ = build(
        {"a": Script(before=UpstreamBroken("no", status=500)), "b": FINE}, behaviour=never
    )
    with pytest.raises(AllAttemptsFailed):
        await begin(dispatch)
    assert len(wire.calls) == 1
