"""Into an engine goes what it has room for; the rest waits in order, or is told to come back."""

from __future__ import annotations

import asyncio

import pytest

from gateway.domain.catalog import Backend, Engine, Kind
from gateway.domain.engine import Need
from gateway.domain.errors import NoRoom
from gateway.fleet.entrance import Entrance
from gateway.fleet.observed import Fleet
from gateway.runtime import ManualClock

NEED = Need(prompt_tokens=300, output_tokens=100)


def backend(*replicas: str, kv_tokens: int = 1000) -> Backend:
    engine = Engine(kv_tokens=kv_tokens)
    common = {"name": "own", "kind": Kind.SELF_HOSTED, "wire": "openai_http", "models": {}}
    made = [
        Backend(**common, clearance=0, engine=engine, replica=name, base_url=f"http://{name}")
        for name in replicas
    ]
    return Backend(
        **common, clearance=0, engine=engine, base_url="http://own", replicas=tuple(made)
    )


def entrance(of: Backend) -> Entrance:
    made = Entrance(Fleet(), ManualClock())
    made.adopt([of])
    return made


async def test_two_fit_and_the_third_waits_until_one_leaves():
    own = backend()
    way = entrance(own)
    first = await way.enter(own, NEED, {}, patience_s=0)
    await way.enter(own, NEED, {}, patience_s=0)
    third = asyncio.ensure_future(way.enter(own, NEED, {}, patience_s=60))
    await asyncio.sleep(0)
    assert not third.done()
    first.leave()
    first.leave()  # told twice, left once
    assert (await third).place is own
    with pytest.raises(NoRoom):
        await way.enter(own, NEED, {}, patience_s=0)


async def test_who_gives_up_holds_nothing_and_lets_the_next_one_in():
    own = backend()
    way = entrance(own)
    tickets = [await way.enter(own, NEED, {}, patience_s=0) for _ in range(2)]
    waiting = [asyncio.ensure_future(way.enter(own, NEED, {}, patience_s=60)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    tickets[0].leave()
    await waiting[1]
    assert [room.in_flight for room in way.rooms.of("own", 0.0)] == [2]


async def test_let_in_just_as_it_is_cancelled_it_leaves_again():
    own = backend()
    way = entrance(own)
    tickets = [await way.enter(own, NEED, {}, patience_s=0) for _ in range(2)]
    waiting = asyncio.ensure_future(way.enter(own, NEED, {}, patience_s=60))
    await asyncio.sleep(0)
    tickets[0].leave()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert [room.in_flight for room in way.rooms.of("own", 0.0)] == [1]


async def test_replicas_share_the_work_and_a_cached_prefix_attracts():
    own = backend("a", "b")
    way = entrance(own)
    taken = [(await way.enter(own, NEED, {}, patience_s=0)).place.replica for _ in range(4)]
    assert sorted(taken) == ["a", "a", "b", "b"]
    fresh = entrance(own)
    ticket = await fresh.enter(own, NEED, {"own#b": 200}, patience_s=0)
    assert (ticket.place.replica, ticket.hit_tokens) == ("b", 200)
    other = await fresh.enter(own, NEED, {}, patience_s=0, avoid=frozenset({"own#a"}))
    assert other.place.replica == "b"
