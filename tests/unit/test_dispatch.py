"""The spine by itself: scripted wires instead of HTTP, everything else the real thing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.errors import error_headers, status_of
from gateway.backends.base import Call
from gateway.dispatch import Budget
from gateway.domain.catalog import Target
from gateway.domain.errors import (
    AllAttemptsFailed,
    GatewayError,
    NoEligibleBackend,
    UnsupportedParameter,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRejected,
)
from gateway.domain.money import Meter
from gateway.domain.request import Capability, Usage
from tests.unit.spine import (
    CALLER,
    FINE,
    NAMES,
    ROLE,
    Script,
    ScriptedReply,
    begin,
    build,
    finish,
    request,
    said,
)


async def test_a_good_answer_is_weighed_and_settled_once() -> None:
    dispatch, _, kept = build({"a": FINE})
    _, answer = await begin(dispatch)
    assert await finish(answer) == b"rolehelloworld"
    answer.abandon()  # too late to matter
    (record,) = kept.closed
    assert (record.outcome, record.backend, record.attempt_count) == ("ok", "a", 1)
    assert (record.uncached_tokens, record.cached_tokens, record.output_tokens) == (10, 2, 5)
    assert record.cost_nano_usd == (12 * 1 + 5 * 2) * 1000
    assert (record.key_id, record.tags, record.privacy_class) == ("k", {"team": "x"}, "public")
    assert record.ttft_us == 200_000
    assert record.tpot_us == 25_000
    assert dispatch.in_flight == 0
    assert dispatch.fleet.in_flight() == {"a": 0}


async def test_before_content_the_next_backend_is_tried() -> None:
    dispatch, _, kept = build(
        {
            "a": Script(before=UpstreamBroken("no", status=500)),
            "b": Script(pieces=[ROLE], after=UpstreamBroken("gone")),
            "c": FINE,
        }
    )
    _, answer = await begin(dispatch)
    await finish(answer)
    (record,) = kept.closed
    assert kept.opened == ["a", "b", "c"]
    assert [a.outcome for a in record.attempts] == ["failed", "failed", "ok"]
    assert [a.http_status for a in record.attempts] == [500, 0, 200]


async def test_after_content_there_is_no_second_attempt() -> None:
    dispatch, wire, kept = build(
        {"a": Script(pieces=[said("hel")], after=UpstreamBroken("gone")), "b": FINE}
    )
    _, answer = await begin(dispatch)
    with pytest.raises(UpstreamBroken):
        await finish(answer)
    assert len(wire.calls) == 1
    (record,) = kept.closed
    assert (record.outcome, record.error_code) == ("failed_midstream", "upstream_broken")
    assert (record.usage_source, record.output_tokens) == ("estimated", 1)
    assert record.cost_nano_usd == 12_000 + 2_000


async def test_a_rejection_is_nobody_elses_business() -> None:
    dispatch, wire, kept = build(
        {"a": Script(before=UpstreamRejected("bad field", status=400)), "b": FINE}
    )
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(UpstreamRejected) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    dispatch.refuse(trip, caught.value, 400)
    assert len(wire.calls) == 1
    assert kept.closed[0].outcome == "rejected"
    assert dispatch.fleet.snapshot(["a"], dispatch.now())["a"].circuit == "closed"


async def test_all_failed_carries_each_failure() -> None:
    busy = UpstreamBusy("busy", status=429, retry_after_s=3.0)
    dispatch, _, _ = build({name: Script(before=busy) for name in NAMES})
    with pytest.raises(AllAttemptsFailed) as caught:
        await begin(dispatch)
    assert caught.value.failures == (busy, busy, busy)
    # All are cooling now: the next request is told when to come back, and nobody is asked.
    with pytest.raises(NoEligibleBackend) as refused:
        await begin(dispatch)
    assert refused.value.retry_after_s == 3.0


async def test_a_client_that_leaves_is_settled_as_such() -> None:
    dispatch, wire, kept = build({"a": FINE})
    _, answer = await begin(dispatch)
    answer.abandon()
    assert wire.replies[0].closed
    (record,) = kept.closed
    assert (record.outcome, record.usage_source, record.output_tokens) == (
        "client_cancelled",
        "estimated",
        1,
    )


@pytest.mark.parametrize(("words", "output"), [([], 1), (["x", "y"], 2)])
async def test_what_was_reported_before_the_cut_counts_and_the_rest_is_counted(
    words: list[str], output: int
) -> None:
    """Anthropic tells the prompt when a stream begins, and the output when it ends."""
    writes = {Meter.CACHE_WRITE_5M: 40}
    early = Usage(100, 7, 1, reported=False, others=writes, service_tier="priority")
    began = replace(ROLE, usage=early)
    pieces = [began, *map(said, words)]
    cut = Script(pieces=pieces, after=UpstreamBroken("gone"))
    dispatch, _, kept = build({"a": cut, "b": FINE})
    _, answer = await begin(dispatch)
    with suppress(UpstreamBroken):  # where it had said something, else b answers
        await finish(answer)
    row = kept.closed[0].attempts[0]
    assert (row.usage_source, row.output_tokens) == ("estimated", output)
    assert (row.uncached_tokens, row.cached_tokens) == (100, 7)
    assert (row.other_meters, row.service_tier) == ({"cache_write_5m": 40}, "priority")


async def test_who_failed_without_a_figure_bills_nothing() -> None:
    tier = replace(ROLE, usage=Usage(12, 0, 0, reported=False, service_tier="flex"))
    dispatch, _, kept = build({"a": Script(pieces=[tier], after=UpstreamBroken("gone")), "b": FINE})
    await finish((await begin(dispatch))[1])
    assert [a.usage_source for a in kept.closed[0].attempts] == ["none", "reported"]


async def test_usage_that_does_not_add_up_is_counted_once_by_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = Usage(10, 2, 5, contradiction="prompt 12 and output 5 do not make the total 20")
    pieces = [said("hello", usage=odd), said("world", finished=True, usage=odd)]
    dispatch, _, kept = build({"a": Script(pieces=pieces)})
    await finish((await begin(dispatch))[1])
    assert kept.closed[0].usage_source == "reported"
    page = dispatch.telemetry.render().decode().splitlines()
    assert 'weighbridge_usage_contradictions_total{backend="a"} 1.0' in page
    (line,) = [r.getMessage() for r in caplog.records if "add up" in r.getMessage()]
    assert line == "a: usage does not add up: prompt 12 and output 5 do not make the total 20"


async def test_cancelled_before_content_the_prompt_is_estimated() -> None:
    dispatch, wire, kept = build({"a": FINE})

    async def hang(call: Call) -> ScriptedReply:
        await asyncio.sleep(60)
        raise AssertionError

    wire.open = hang  # type: ignore[method-assign]
    trip = dispatch.arrive("chat/completions")
    task = asyncio.ensure_future(
        dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    dispatch.leave(trip)
    (record,) = kept.closed
    assert (record.outcome, record.uncached_tokens, record.output_tokens) == (
        "client_cancelled",
        12,
        0,
    )
    assert dispatch.fleet.in_flight() == {"a": 0}


async def test_a_session_stays_with_its_backend() -> None:
    dispatch, wire, _ = build({"a": Script(before=UpstreamBroken("no")), "b": FINE})
    trip = dispatch.arrive("chat/completions")
    answer = await dispatch.answer(trip, CALLER, request(), privacy=None, session="s")
    await finish(answer)
    wire.scripts["a"] = FINE
    trip = dispatch.arrive("chat/completions")
    answer = await dispatch.answer(trip, CALLER, request(), privacy=None, session="s")
    assert answer.candidate.target == Target("b", "m")
    await finish(answer)


async def test_what_no_model_can_do_is_the_callers_to_change() -> None:
    dispatch, wire, _ = build({"a": FINE})
    with pytest.raises(UnsupportedParameter, match="images"):
        await begin(dispatch, needs=frozenset({Capability.IMAGES}))
    assert wire.calls == []


async def test_privacy_leaves_nobody_and_says_so() -> None:
    dispatch, wire, _ = build({"a": FINE})
    trip = dispatch.arrive("chat/completions")
    with pytest.raises(NoEligibleBackend) as caught:
        await dispatch.answer(trip, CALLER, request(), privacy="restricted", session=None)
    assert caught.value.exclusions[0][:2] == ("a/m", "privacy")
    assert caught.value.retry_after_s is None
    assert wire.calls == []


async def test_when_the_retry_budget_is_spent_the_sdk_is_told_not_to_retry_either() -> None:
    dispatch, wire, _ = build({"a": Script(before=UpstreamBroken("no", status=500)), "b": FINE})
    route = dispatch.rules.router.route("default")
    budget = dispatch._budgets_of(dispatch.rules, route).retries
    while budget.spend(dispatch.now()):
        pass
    with pytest.raises(AllAttemptsFailed) as caught:
        await begin(dispatch)
    assert len(wire.calls) == 1
    assert status_of(caught.value) == 502
    assert (b"x-should-retry", b"false") in error_headers(caught.value)


def test_the_retry_budget_is_a_tenth_and_one_a_second() -> None:
    budget, spent = Budget(), 0
    for _ in range(1000):
        budget.arrived()
        spent += budget.spend(5.0)
    assert 100 <= spent <= 111
    assert budget.spend(7.0)


PIECES = st.lists(st.sampled_from([ROLE, said("x"), said("yy", usage=Usage(3, 0, 2))]), max_size=4)
FAULT = st.sampled_from(
    [None, UpstreamBroken("b"), UpstreamBusy("c", status=429), UpstreamRejected("d", status=400)]
)
SCRIPTS = st.fixed_dictionaries(
    {n: st.builds(Script, FAULT, PIECES, FAULT, st.booleans()) for n in NAMES}
)


@settings(max_examples=300, deadline=None)
@given(SCRIPTS, st.lists(st.sampled_from(["read", "leave"]), min_size=1, max_size=6))
def test_whatever_happens_a_trip_is_settled_once(
    scripts: dict[str, Script], ends: list[str]
) -> None:
    """One final record per arrival; nothing in flight; costs add up; no switch after content."""

    async def play() -> None:
        dispatch, wire, kept = build(scripts)
        for end in ends:
            trip = dispatch.arrive("chat/completions")
            try:
                answer = await dispatch.answer(trip, CALLER, request(), privacy=None, session=None)
            except GatewayError as error:
                dispatch.refuse(trip, error, 500)
                continue
            try:
                if end == "read":
                    if answer.streamed:
                        await finish(answer)
                else:
                    answer.abandon()
            except UpstreamError:
                pass
        assert len(kept.closed) == len(ends)
        assert dispatch.in_flight == 0
        assert set(dispatch.fleet.in_flight().values()) <= {0}
        assert len(kept.opened) == len(wire.calls)
        for record in kept.closed:
            costs = [a.cost_nano_usd for a in record.attempts if a.cost_nano_usd is not None]
            assert (record.cost_nano_usd or 0) == sum(costs)
            answered = [a for a in record.attempts if a.output_tokens is not None]
            assert answered in ([], record.attempts[-1:])

    asyncio.run(play())
