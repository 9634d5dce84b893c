"""A spine with scripted wires instead of HTTP, everything else the real thing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from gateway.backends.base import Call, Piece
from gateway.classify import Classifier, Pool
from gateway.dispatch import Answer, Dispatch, Rules, Trip
from gateway.domain.caller import Caller
from gateway.domain.catalog import Alias, Backend, Catalog, Engine, Kind, Model, Target
from gateway.domain.errors import GatewayError, UpstreamBroken, UpstreamError
from gateway.domain.limit import Limit
from gateway.domain.money import Rates
from gateway.domain.outcome import RequestRecord
from gateway.domain.request import Capability, Endpoint, ModelRequest, Usage
from gateway.fleet.observed import Fleet
from gateway.ledger.prices import PriceBook
from gateway.limits import LimitIndex, LocalGate, Unlimited
from gateway.policy.engine import Router
from gateway.policy.language import Affinity, Behaviour, Policy, Route
from gateway.runtime import ManualClock
from gateway.sessions import LocalSessions
from gateway.telemetry import Telemetry

CLASSES = ("public", "internal", "confidential", "restricted")
NAMES = ("a", "b", "c")


@dataclass
class Script:
    """What one backend does: fail at once, or say pieces and perhaps fail after them.

    It waits for `gate` before the piece number `gate_at`, and breaks when it is closed meanwhile.
    """

    before: GatewayError | None = None
    pieces: list[Piece] = field(default_factory=list)
    after: UpstreamError | None = None
    streamed: bool = True
    gate: asyncio.Event | None = None
    gate_at: int = 0


@dataclass
class ScriptedReply:
    script: Script
    clock: ManualClock
    at: int = 0
    closed: bool = False

    @property
    def streamed(self) -> bool:
        return self.script.streamed

    async def next(self) -> Piece | None:
        if self.script.gate is not None and self.at == self.script.gate_at:
            await self.script.gate.wait()
            if self.closed:
                raise UpstreamBroken("closed by us")
        self.clock.advance(0.1)
        if self.at < len(self.script.pieces):
            self.at += 1
            return self.script.pieces[self.at - 1]
        if self.script.after is not None:
            raise self.script.after
        return None

    def close(self) -> None:
        self.closed = True
        if self.script.gate is not None:
            self.script.gate.set()


@dataclass
class ScriptedWire:
    scripts: dict[str, Script]
    clock: ManualClock
    calls: list[Call] = field(default_factory=list)
    replies: list[ScriptedReply] = field(default_factory=list)

    async def open(self, call: Call) -> ScriptedReply:
        self.calls.append(call)
        script = self.scripts[call.backend.seen_as]
        if script.before is not None:
            raise script.before
        self.replies.append(ScriptedReply(script, self.clock))
        return self.replies[-1]

    async def probe(self, backend: Backend) -> None: ...

    async def warm(self) -> None: ...

    async def aclose(self) -> None: ...


@dataclass
class Kept:
    """A journal in memory."""

    full: bool = False
    opened: list[str] = field(default_factory=list)
    closed: list[RequestRecord] = field(default_factory=list)

    def open(self, record: RequestRecord) -> None:
        self.opened.append(record.attempts[-1].backend)

    def close(self, record: RequestRecord) -> None:
        self.closed.append(record)


def said(text: str, **fields: Any) -> Piece:
    return Piece(text.encode(), content=True, content_chunks=1, content_chars=len(text), **fields)


ROLE = Piece(b"role")
FINE = Script(pieces=[ROLE, said("hello"), said("world", finished=True, usage=Usage(10, 2, 5))])


def build(
    scripts: Mapping[str, Script],
    *,
    behaviour: Behaviour | None = None,
    route: Mapping[str, Any] | None = None,
    prices: Mapping[str, Decimal] | None = None,
    limits: tuple[Limit, ...] = (),
    clock: ManualClock | None = None,
    engine: Engine | None = None,
    **fields: Any,
) -> tuple[Dispatch, ScriptedWire, Kept]:
    """Backends `a`, `b`, ... behind the alias `chat`; `fields` are the model's.

    `prices`: input price of a backend, where it is not 1; those left out have none. A script for
    `own#x` is a replica's: `own` is a backend of ours with those replicas and that `engine`.
    """
    clock = clock or ManualClock()
    model = Model(name="m", capabilities=frozenset({Capability.TOOLS}), **fields)
    backends: dict[str, Backend] = {}
    for seen_as in scripts:
        name, _, replica = seen_as.partition("#")
        plain = Backend(
            name=name,
            kind=Kind.SELF_HOSTED if replica else Kind.CLOSED_API,
            wire="scripted",
            base_url=f"http://127.0.0.1/{replica}",
            models={"m": model},
            clearance=1,
            engine=engine if replica else None,
        )
        before = backends.get(name, plain)
        one = (replace(plain, replica=replica),) if replica else ()
        backends[name] = replace(before, replicas=before.replicas + one)
    targets = tuple(Target(name, "m") for name in backends)
    catalog = Catalog(
        privacy_classes=CLASSES,
        backends=backends,
        aliases={"chat": Alias(name="chat", targets=targets)},
        digest="c",
    )
    behaviour = behaviour or Behaviour(
        attempts_max=3, backends_max=3, affinity=Affinity(idle_s=600)
    )
    policy = Policy(
        name="p",
        description="",
        behaviour=behaviour,
        routes=(Route(name="default", behaviour=behaviour, **(route or {})),),
        digest="d" * 64,
    )
    inputs = dict.fromkeys(backends, Decimal(1)) if prices is None else prices
    rates = {
        Target(name, "m"): Rates(id="r", input=price, output=Decimal(2))
        for name, price in inputs.items()
    }
    wire, kept = ScriptedWire(dict(scripts), clock), Kept()
    ids = (f"req_{n:04}" for n in range(10_000))
    dispatch = Dispatch(
        rules=Rules(
            catalog=catalog,
            router=Router.build(policy, catalog, rates),
            prices=PriceBook.always(rates),
            limits=LimitIndex(limits, catalog, rates),
            classifier=Classifier.build(catalog, Pool()),
            policy=policy,
            digest=policy.digest,
            label="p@d",
        ),
        wires={"scripted": wire},
        fleet=Fleet(),
        sessions=LocalSessions(clock),
        book=kept,
        telemetry=Telemetry(),
        clock=clock,
        new_id=lambda: next(ids),
        worker="0",
        in_flight_max=100,
        gate=LocalGate(clock) if limits else Unlimited(),
    )
    dispatch.entrance.adopt(backends.values())
    return dispatch, wire, kept


CALLER = Caller(key_id="k", name="n", tags={"team": "x"})


def request(**fields: Any) -> ModelRequest:
    base: dict[str, Any] = {
        "endpoint": Endpoint.CHAT,
        "alias": "chat",
        "document": {},
        "stream": True,
        "usage_wanted": False,
        "prompt_tokens": 12,
        "output_tokens_max": 20,
        "needs": frozenset(),
    }
    return ModelRequest(**{**base, **fields})


async def begin(dispatch: Dispatch, **fields: Any) -> tuple[Trip, Answer]:
    trip = dispatch.arrive("chat/completions")
    session = fields.pop("session", None)
    answer = await dispatch.answer(trip, CALLER, request(**fields), privacy=None, session=session)
    return trip, answer


async def finish(answer: Answer) -> bytes:
    out = answer.first
    while (data := await answer.next()) is not None:
        out += data
    return out
