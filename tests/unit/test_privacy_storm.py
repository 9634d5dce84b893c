"""I-7 on the whole spine: random policies, backends, faults, hedges, copies and reloads at once.

The oracle below is written from the promise, not from the code: the class of a request is the
strictest of what its key, its alias, its header and its content say, and nothing of it may reach a
backend that is cleared for less. Whatever the wires are handed is held against it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from gateway.backends.base import Call, Piece
from gateway.classify import Classifier, Pool
from gateway.dispatch import Answer, Dispatch, Rules
from gateway.domain.caller import Caller
from gateway.domain.errors import (
    GatewayError,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamTimeout,
)
from gateway.domain.request import Endpoint, ModelRequest, Usage
from gateway.fleet.observed import Fleet
from gateway.ledger.prices import PriceBook
from gateway.limits import LimitIndex
from gateway.policy.engine import Router
from gateway.policy.language import Hedge, Shadow
from gateway.runtime import ManualClock
from gateway.sessions import LocalSessions
from gateway.telemetry import Telemetry
from tests.promises import promise
from tests.unit.policy.worlds import CLASSES, NAMES, Dice, World
from tests.unit.spine import Kept

CARD = "4111 1111 1111 1111"
STORMS, REQUESTS = 500, 20
FAULTS = (None, None, None, "before", "midway", "busy", "slow")
total = {"requests": 0, "attempts": 0, "copies": 0, "hedges": 0, "restricted": 0}


def oracle(world: World, caller: Caller, asked: str | None, card: bool) -> int:
    """The class of a request, as a rank."""
    said = [world.alias.privacy_floor]
    if caller.privacy_floor is not None:
        said.append(CLASSES.index(caller.privacy_floor))
    if asked is not None:
        said.append(CLASSES.index(asked))
    if card:
        said.append(world.catalog.detectors.get("card_number", 0))
    return max(said)


@dataclass
class Reply:
    fault: str | None
    streamed: bool
    at: int = 0
    closed: bool = False

    async def next(self) -> Piece | None:
        await asyncio.sleep(0)
        if self.closed:
            raise UpstreamBroken("closed")
        self.at += 1
        if self.fault == "slow" and self.at == 1:
            await asyncio.sleep(0.002)
        if self.at == 1:
            return Piece(b"head")
        if self.at == 2:
            return Piece(b"said", content=True, content_chunks=1, content_chars=4)
        if self.fault == "midway":
            raise UpstreamBroken("gone")
        if self.at == 3:
            return Piece(b"", finished=True, usage=Usage(10, 0, 1))
        return None

    def close(self) -> None:
        self.closed = True


@dataclass
class WatchedWire:
    """Hands out answers and faults, and keeps what it was handed."""

    random: Random
    calls: list[Call] = field(default_factory=list)

    async def open(self, call: Call) -> Reply:
        self.calls.append(call)
        await asyncio.sleep(0)
        fault = self.random.choice(FAULTS)
        if fault == "before":
            raise UpstreamTimeout("no")
        if fault == "busy":
            raise UpstreamBusy("busy", status=429, retry_after_s=1.0)
        return Reply(fault, call.request.stream)

    async def probe(self, backend: Any) -> None: ...

    async def warm(self) -> None: ...

    async def aclose(self) -> None: ...


def stormy(world: World, random: Random) -> World:
    """With hedges and copies put into its routes and a detector into its catalog."""

    def some(value: Any) -> Any:
        return value if random.random() < 0.5 else None

    routes = tuple(
        replace(
            route,
            shadow=some(Shadow(backend=random.choice(NAMES), share=0.5)),
            behaviour=replace(route.behaviour, hedge=some(Hedge(after_ms=1, share_max=1.0))),
        )
        for route in world.policy.routes
    )
    policy = replace(world.policy, routes=routes, digest=f"{random.getrandbits(64):x}")
    found = {"card_number": random.randrange(len(CLASSES))}
    return replace(world, policy=policy, catalog=replace(world.catalog, detectors=found))


def rules_of(world: World) -> Rules:
    return Rules(
        catalog=world.catalog,
        router=Router.build(world.policy, world.catalog, world.rates),
        prices=PriceBook.always(world.rates),
        limits=LimitIndex((), world.catalog, world.rates),
        classifier=Classifier.build(world.catalog, Pool()),
        policy=world.policy,
        digest=world.policy.digest,
        label="p@d",
    )


async def storm(seed: int) -> None:
    random = Random(seed)
    world, after = (stormy(Dice(random).world(), random) for _ in range(2))
    wire, clock = WatchedWire(random), ManualClock()
    ids = (f"req_{n:06}" for n in range(10**6))
    dispatch = Dispatch(
        rules=rules_of(world),
        wires={"openai_http": wire},
        fleet=Fleet(),
        sessions=LocalSessions(clock),
        book=Kept(),
        telemetry=Telemetry(),
        clock=clock,
        new_id=lambda: next(ids),
        worker="0",
        in_flight_max=10_000,
    )
    classes: dict[int, int] = {}

    async def one(number: int) -> None:
        card = random.random() < 0.3
        asked = random.choice([None, None, *CLASSES])
        caller = Caller(
            key_id="k",
            name="n",
            tags=random.choice([{}, {"team": "search"}]),
            privacy_floor=random.choice([None, None, *CLASSES]),
        )
        classes[number] = oracle(world, caller, asked, card)
        said = f"my card is {CARD}" if card else "hello"
        request = ModelRequest(
            endpoint=Endpoint.CHAT,
            alias="chat",
            document={"n": number, "messages": [{"role": "user", "content": said}]},
            stream=random.random() < 0.7,
            usage_wanted=False,
            prompt_tokens=random.randint(1, 200),
            output_tokens_max=random.choice([None, 20]),
            needs=frozenset(),
        )
        trip = dispatch.arrive("chat/completions")
        answer: Answer | None = None
        try:
            session = random.choice([None, "s", "t"])
            answer = await dispatch.answer(trip, caller, request, privacy=asked, session=session)
            while not trip.settled:
                if random.random() < 0.1:
                    answer.abandon()
                elif await answer.next() is None:
                    break
        except GatewayError as error:
            dispatch.refuse(trip, error, 503)

    running = []
    for number in range(REQUESTS):
        running.append(asyncio.ensure_future(one(number)))
        if number == REQUESTS // 2:  # the others are under way
            await asyncio.sleep(0)
            world, dispatch.rules = after, rules_of(after)
        if random.random() < 0.5:
            await asyncio.sleep(0)
        clock.advance(0.5)
    await asyncio.gather(*running)
    await dispatch._tasks.drain(5)

    for call in wire.calls:
        assert call.backend.clearance >= classes[call.request.document["n"]]
        assert call.privacy == classes[call.request.document["n"]], "the second check knows it too"
    rows = dispatch.book.closed
    total["requests"] += REQUESTS
    total["restricted"] += sum(rank > 0 for rank in classes.values())
    total["attempts"] += len(wire.calls)
    total["copies"] += sum(row.shadow_of is not None for row in rows)
    total["hedges"] += sum(a.why == "hedge" for row in rows for a in row.attempts)
    assert dispatch.in_flight == 0
    assert sum(row.shadow_of is None for row in rows) == REQUESTS


async def test_nothing_reaches_a_backend_that_is_not_cleared_for_it() -> None:
    for seed in range(STORMS):
        try:
            await storm(seed)
        except BaseException as error:
            error.add_note(f"storm {seed}")
            raise
    assert min(total.values()) > 100, f"it proves nothing unless all of it happened: {total}"
    promise(
        "I-7p",
        f"0 of {total['attempts']} attempts ({total['requests']} requests, {total['restricted']} "
        f"not public, {total['hedges']} hedges, {total['copies']} copies, a reload in each storm)",
    )
