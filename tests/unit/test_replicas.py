"""A backend with several engines, along the spine: who is asked, who is next, who is remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.domain.catalog import Admission, Engine
from gateway.domain.errors import NoRoom, UpstreamUnreachable
from tests.unit.spine import FINE, Script, begin, build, finish

DEAD = Script(before=UpstreamUnreachable("nobody there"))
LONG = {"messages": [{"role": "system", "content": "You are a clerk of few words. " * 60}]}


async def test_one_replica_fails_and_another_is_asked_before_any_other_backend():
    dispatch, wire, kept = build({"own#a": DEAD, "own#b": FINE, "api": FINE})
    _, answer = await begin(dispatch)
    assert b"world" in await finish(answer)
    asked = [call.backend.seen_as for call in wire.calls]
    assert asked[-1] == "own#b"
    assert "api" not in asked
    (record,) = kept.closed
    assert [sent[1] for sent in record.decision["sent"]] == [name[-1] for name in asked]


async def test_with_all_replicas_gone_the_next_backend_is_asked():
    dispatch, wire, _ = build({"own#a": DEAD, "own#b": DEAD, "api": FINE})
    _, answer = await begin(dispatch)
    await finish(answer)
    assert {call.backend.seen_as for call in wire.calls} == {"own#a", "own#b", "api"}
    assert len(wire.calls) == 3


async def test_attempts_are_bounded_whoever_is_asked():
    dispatch, wire, _ = build({f"own#{n}": DEAD for n in range(9)})
    with pytest.raises(Exception, match="nobody there"):
        await begin(dispatch)
    assert len(wire.calls) == 3


async def test_the_backend_is_up_while_one_of_its_replicas_is():
    dispatch, _, _ = build({"own#a": FINE, "own#b": FINE})
    for _ in range(5):
        dispatch.fleet.failed("own#a", dispatch.now())
    view = dispatch.fleet.snapshot(["own"], dispatch.now())["own"]
    assert (view.circuit, view.healthy, view.in_flight) == ("closed", True, 0)
    for _ in range(2):
        _, answer = await begin(dispatch)
        assert answer.backend.seen_as == "own#b"
        await finish(answer)
    for _ in range(5):
        dispatch.fleet.failed("own#b", dispatch.now())
    assert dispatch.fleet.snapshot(["own"], dispatch.now())["own"].circuit == "open"


async def test_a_conversation_stays_at_its_replica_also_for_another_worker():
    dispatch, wire, _ = build({"own#a": FINE, "own#b": FINE})
    _, first = await begin(dispatch, session="s", document=LONG)
    await finish(first)
    other, _, _ = build({"own#a": FINE, "own#b": FINE})
    other.sessions = dispatch.sessions
    for _ in range(3):
        _, again = await begin(other, session="s", document=LONG)
        assert again.backend.seen_as == first.backend.seen_as
        await finish(again)
    assert len(wire.calls) == 1


async def test_the_same_beginning_goes_to_the_same_replica_without_any_session():
    dispatch, _, kept = build({"own#a": FINE, "own#b": FINE})
    places = set()
    for turn in range(6):
        message = {"role": "user", "content": f"question {turn}"}
        document = {"messages": [*LONG["messages"], message]}
        _, answer = await begin(dispatch, document=document, prompt_tokens=400)
        places.add(answer.backend.seen_as)
        await finish(answer)
    assert len(places) == 1
    hits = [record.decision["sent"][0][3] for record in kept.closed]
    assert hits[0] == 0
    assert min(hits[1:]) > 300


async def test_an_engine_that_is_full_sends_the_request_elsewhere_or_says_when():
    engine = Engine(kv_tokens=40, admission=Admission(queue_ms_max=0, wait_ms_max=0))
    dispatch, wire, kept = build({"own#a": FINE, "api": FINE}, engine=engine)
    _, first = await begin(dispatch)
    _, second = await begin(dispatch)
    assert [call.backend.seen_as for call in wire.calls] == ["own#a", "api"]
    await finish(first)
    await finish(second)
    _, third = await begin(dispatch)
    assert third.backend.seen_as == "own#a"
    await finish(third)

    alone, wire, kept = build({"own#a": FINE}, engine=engine)
    _, running = await begin(alone)
    trip = alone.arrive("chat/completions")
    with pytest.raises(NoRoom) as refused:
        await begin(alone)
    assert refused.value.retry_after_s
    assert len(wire.calls) == 1
    alone.refuse(trip, refused.value, 503)
    assert kept.closed[-1].outcome == "no_route"
    await finish(running)


async def test_a_backend_of_one_engine_needs_no_replicas():
    dispatch, wire, _ = build({"a": FINE})
    backend = dispatch.rules.catalog.backends["a"]
    assert backend.places == (backend,)
    assert replace(backend, replica="x").seen_as == "a#x"
    _, answer = await begin(dispatch)
    await finish(answer)
    assert wire.calls[0].backend is backend
