"""Races that end badly: nothing stays open, nothing is sent unseen, and hedging harms nobody."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from gateway.backends.base import Call
from gateway.dispatch import Dispatch
from gateway.domain.errors import (
    AllAttemptsFailed,
    StoreUnavailable,
    UpstreamBroken,
    UpstreamRejected,
)
from gateway.domain.limit import AtLimit, Limit, Period, Unit
from gateway.domain.outcome import RequestRecord
from gateway.policy.language import Behaviour, Hedge, RetryBudget, Shadow, Timeouts
from tests.unit.spine import (
    CALLER,
    FINE,
    Kept,
    Script,
    ScriptedReply,
    ScriptedWire,
    begin,
    build,
    finish,
    request,
)

HEDGED = Behaviour(attempts_max=3, backends_max=3, hedge=Hedge(after_ms=1, share_max=1.0))


def rejects() -> Script:
    return Script(before=UpstreamRejected("bad", status=400))


def waiting(after: Script) -> Script:
    """What `after` does, once its gate is open."""
    return Script(after.before, after.pieces, after.after, gate=asyncio.Event())


class Turns(ScriptedWire):
    """A wire whose `open` waits for the script's gate, and then does what the script says."""

    async def open(self, call: Call) -> ScriptedReply:
        script = self.scripts[call.backend.name]
        if script.gate is not None:
            self.calls.append(call)
            await script.gate.wait()
            if script.before is not None:
                raise script.before
            self.replies.append(ScriptedReply(Script(pieces=script.pieces), self.clock))
            return self.replies[-1]
        return await super().open(call)


async def together(first: Script, second: Script, **options: Any) -> tuple[Dispatch, Turns, Any]:
    """Both are asked, and both have said what they say before the race looks."""
    scripts = {"a": waiting(first), "b": waiting(second)}
    dispatch, wire, kept = build(scripts, behaviour=HEDGED, **options)
    turns = Turns(wire.scripts, wire.clock)
    dispatch.wires = {"scripted": turns}
    trip = dispatch.arrive("chat/completions")
    running = asyncio.ensure_future(
        dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    )
    while len(turns.calls) < 2:
        await asyncio.sleep(0.001)
    for script in scripts.values():
        assert script.gate is not None
        script.gate.set()
    return dispatch, turns, (trip, running, kept)


@pytest.mark.parametrize("turned", [False, True])
async def test_one_answers_and_one_rejects_in_the_same_turn(turned: bool) -> None:
    pair = (FINE, rejects())
    for _ in range(8):  # whose task comes first out of a set is chance
        dispatch, turns, (_, running, kept) = await together(*(pair[::-1] if turned else pair))
        answer = await running
        await finish(answer)
        assert sorted(a.outcome for a in kept.closed[0].attempts) == ["ok", "rejected"]
        assert dispatch.fleet.in_flight() == {"a": 0, "b": 0}
        assert all(reply.closed for reply in turns.replies)


async def test_both_answer_in_the_same_turn_and_one_is_closed() -> None:
    dispatch, turns, (_, running, kept) = await together(FINE, FINE)
    await finish(await running)
    assert sorted(a.outcome for a in kept.closed[0].attempts) == ["hedge_lost", "ok"]
    assert [reply.closed for reply in turns.replies] == [True, True]
    assert dispatch.fleet.in_flight() == {"a": 0, "b": 0}


async def test_both_fail_in_the_same_turn_and_nothing_is_left_unheard() -> None:
    loop, heard = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: heard.append(context["message"]))
    dispatch, _, (trip, running, kept) = await together(rejects(), rejects())
    with pytest.raises(UpstreamRejected) as caught:
        await running
    dispatch.refuse(trip, caught.value, 400)
    del running, caught, _
    await asyncio.sleep(0)
    gc.collect()
    assert heard == []
    assert [a.outcome for a in kept.closed[0].attempts] == ["rejected", "rejected"]


class FullDisk(Kept):
    """A journal whose disk is full from attempt number `last` + 1 on."""

    last = 1
    refused = False

    def open(self, record: RequestRecord) -> None:
        if len(record.attempts) > self.last:
            self.refused = True
            raise StoreUnavailable("The request cannot be recorded.")
        super().open(record)


async def test_a_hedge_that_cannot_be_recorded_is_not_sent_and_harms_nobody() -> None:
    first = waiting(FINE)
    dispatch, wire, _ = build({"a": first, "b": FINE}, behaviour=HEDGED)
    dispatch.book = kept = FullDisk()
    running = asyncio.ensure_future(begin(dispatch))
    while not kept.refused:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert first.gate is not None
    first.gate.set()
    _, answer = await running
    await finish(answer)
    assert [call.backend.name for call in wire.calls] == ["a"]
    assert [(a.backend, a.outcome) for a in kept.closed[0].attempts] == [("a", "ok")]
    assert kept.closed[0].attempt_count == 1


async def test_an_attempt_that_cannot_be_recorded_was_never_made() -> None:
    dispatch, wire, _ = build({"a": FINE}, limits=(BUDGET,))
    dispatch.book = kept = FullDisk()
    kept.last = 0
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(StoreUnavailable) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 503)
    (record,) = kept.closed
    assert (record.attempts, record.attempt_count, record.backend) == ([], 0, None)
    assert not wire.calls
    assert await remaining(dispatch) == BUDGET.amount


async def test_a_hedge_is_not_sent_where_the_circuit_has_opened() -> None:
    first = waiting(FINE)
    dispatch, wire, kept = build({"a": first, "b": FINE, "c": FINE}, behaviour=HEDGED)
    running = asyncio.ensure_future(begin(dispatch))
    while not wire.calls:
        await asyncio.sleep(0)
    for _ in range(5):
        dispatch.fleet.failed("b", dispatch.now())
    _, answer = await running
    await finish(answer)
    assert [call.backend.name for call in wire.calls] == ["a", "c"]
    assert kept.closed[0].backend == "c"


class Deaf(ScriptedWire):
    """A wire whose `open` does not hear that nobody waits for it any more."""

    async def open(self, call: Call) -> ScriptedReply:
        script = self.scripts[call.backend.name]
        if script.gate is None:
            return await super().open(call)
        self.calls.append(call)
        while not script.gate.is_set():
            try:
                await script.gate.wait()
            except asyncio.CancelledError:
                continue
        self.replies.append(ScriptedReply(Script(pieces=script.pieces), self.clock))
        return self.replies[-1]


async def test_what_a_loser_opens_after_it_lost_is_closed_unread() -> None:
    first = waiting(FINE)
    dispatch, wire, kept = build({"a": first, "b": FINE}, behaviour=HEDGED)
    deaf = Deaf(wire.scripts, wire.clock)
    dispatch.wires = {"scripted": deaf}
    _, answer = await begin(dispatch)
    await finish(answer)
    assert first.gate is not None
    first.gate.set()
    while len(deaf.replies) < 2:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert [(reply.closed, reply.at) for reply in deaf.replies] == [(True, 3), (True, 0)]
    assert [a.outcome for a in kept.closed[0].attempts] == ["hedge_lost", "ok"]
    assert dispatch.fleet.in_flight() == {"a": 0, "b": 0}


class Faulty(ScriptedReply):
    """A reply with a mistake in it, met after the first content; closing it is another."""

    async def next(self) -> Any:
        if self.at == 2:
            raise KeyError("no such field")
        return await super().next()

    def close(self) -> None:
        super().close()
        raise RuntimeError("closed twice")


class FaultyWire(ScriptedWire):
    async def open(self, call: Call) -> ScriptedReply:
        if call.backend.name == "a":
            return await super().open(call)
        self.calls.append(call)
        self.replies.append(Faulty(self.scripts["b"], self.clock))
        return self.replies[-1]


async def test_a_copy_that_meets_a_mistake_of_ours_is_settled() -> None:
    dispatch, wire, kept = build(
        {"a": FINE, "b": FINE}, route={"shadow": Shadow(backend="b", share=1.0)}
    )
    dispatch.wires = {"scripted": FaultyWire(wire.scripts, wire.clock)}
    for rows in range(2, 100, 2):  # more than there may be at once
        _, answer = await begin(dispatch)
        await finish(answer)
        for _ in range(1000):
            if len(kept.closed) == rows:
                break
            await asyncio.sleep(0.001)
    assert [r.outcome for r in kept.closed if r.shadow_of] == ["internal_error"] * 49
    assert dispatch.fleet.in_flight() == {"a": 0, "b": 0}


BUDGET = Limit(name="l", per="team", unit=Unit.USD, amount=1_000_000, period=Period.DAY)


async def remaining(dispatch: Dispatch) -> int:
    """What the budget has left."""
    asks = dispatch.rules.limits.asks_for(CALLER, request(output_tokens_max=1, prompt_tokens=1))
    admission = await dispatch.gate.begin("probe", asks)
    dispatch.gate.release(admission)
    return admission.standings[0].remaining + asks[0].amount


async def test_where_one_of_two_has_no_price_the_hold_stays() -> None:
    soft = Limit(
        name="l",
        per="team",
        unit=Unit.USD,
        amount=1_000_000,
        period=Period.DAY,
        at_limit=AtLimit.ROUTE,
    )
    dispatch, _, kept = build(
        {"a": waiting(FINE), "b": FINE},
        behaviour=HEDGED,
        prices={"a": Decimal(1)},
        limits=(soft,),
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    assert (kept.closed[0].priced, kept.closed[0].cost_nano_usd) == (False, 12_000)
    assert await remaining(dispatch) == 1_000_000 - (12 * 1000 + 20 * 2000)


class NoPins:
    """A session store that fails in a way nobody thought of."""

    async def recall(self, key: str, idle_s: int) -> Any:
        await asyncio.sleep(0)
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a pin of somebody else's")

    def remember(self, key: str, target: Any, idle_s: int) -> None: ...


async def test_no_hold_is_left_when_recalling_the_session_fails() -> None:
    dispatch, _, _ = build({"a": FINE, "b": FINE}, limits=(BUDGET,))
    dispatch.sessions = NoPins()
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(UnicodeDecodeError):
        await dispatch.answer(trip, CALLER, request(), privacy=None, session="s")
    assert await remaining(dispatch) == BUDGET.amount


async def test_the_open_line_says_whose_request_it_is() -> None:
    dispatch, _, _ = build({"a": FINE})
    seen = []

    class Looks(Kept):
        def open(self, record: RequestRecord) -> None:
            seen.append((record.key_id, dict(record.tags), record.route))

    dispatch.book = Looks()
    _, answer = await begin(dispatch)
    await finish(answer)
    assert seen == [("k", {"team": "x"}, "default")]


async def test_who_is_passed_over_costs_no_retry() -> None:
    broken = Script(before=UpstreamBroken("no", status=500))
    one = Behaviour(
        attempts_max=3, backends_max=3, retries=RetryBudget(share=0.01, per_s=0.0)
    )  # 100 * 0.01: one retry
    dispatch, wire, _ = build({"a": broken, "b": FINE, "c": FINE}, behaviour=one)

    class Opens(ScriptedWire):
        async def open(self, call: Call) -> ScriptedReply:
            for _ in range(5):
                dispatch.fleet.failed("b", dispatch.now())
            return await super().open(call)

    dispatch.wires = {"scripted": Opens(wire.scripts, wire.clock)}
    _, answer = await begin(dispatch)
    assert answer.backend.name == "c"
    await finish(answer)


async def test_the_total_bounds_the_wait_for_the_first_token_too() -> None:
    dispatch, wire, _ = build({"a": FINE}, behaviour=Behaviour(timeouts=Timeouts(total_ms=1500)))
    _, answer = await begin(dispatch)
    await finish(answer)
    call = wire.calls[0]
    assert (call.connect_s_max, call.first_chunk_s_max, call.idle_s_max) == (1.5, 1.5, 1.5)


async def test_what_a_rejection_quotes_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    quoting = UpstreamRejected(
        "Invalid value: 'canary-4711'",
        status=400,
        detail="a: HTTP 400: Invalid value: 'canary-4711'",
        upstream_code="invalid_value",
    )
    dispatch, _, kept = build({"a": Script(before=quoting)})
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(UpstreamRejected) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 400)
    assert "canary-4711" not in caplog.text
    assert "canary-4711" not in repr(kept.closed)
    assert "a rejected a request (invalid_value)" in caplog.text


async def test_the_budgets_of_the_policy_in_force_outlast_requests_of_the_one_before() -> None:
    broken = Script(before=UpstreamBroken("no", status=500))
    one = Behaviour(retries=RetryBudget(share=0.01, per_s=0.0))
    dispatch, _, _ = build({"a": broken, "b": FINE}, behaviour=one)
    late = dispatch.arrive("chat/completions")
    dispatch.rules = replace(dispatch.rules, digest="e" * 64)
    await finish((await begin(dispatch))[1])  # takes the one retry there is
    await finish(
        await dispatch.answer(late, CALLER, request(), privacy=None, session=None)
    )  # one of its own
    with pytest.raises(AllAttemptsFailed):
        await begin(dispatch)
