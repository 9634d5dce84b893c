"""What a gate is: holds are taken before a call and settled after it, exact under concurrency.

Owns the words that both gates speak (`local`, over the process; `shared`, over Redis) and how the
state of the counters becomes an Admission. Knows no store and no clock.

INVARIANTS
- With the store up, what was committed never exceeds a limit, whatever the concurrency (I-4),
  except by what a request used beyond its hold (I-5), which is counted.
- All limits of a request are held or none is.
- A hold that nobody settles ends by itself: a dead worker leaks nothing. Once its journal is read,
  what had ended is counted at what it used, what was under way at its hold (`cut_off`).
- Settled once, however often it is told; also after the hold has ended; to the period of the hold.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gateway.domain.limit import AtLimit, Limit, Unit
from gateway.limits.news import Alert, Heard

LEASE_S = 900.0  # longer than a request may take in all


class Ask(NamedTuple):
    """What one request wants of one limit: `holder` is the value of `limit.per` (a key id, a team).

    `amount` in the limit's unit: 1 for requests and permits, tokens, or nano-USD.
    """

    limit: Limit
    holder: str
    amount: int


class Standing(NamedTuple):
    """How one limit stands after a request was let in or refused: for headers and messages.

    `remaining` is below 0 by what was used beyond holds. `reset_s`: until the counter is as new;
    of a limit that a request did not fit, until it would fit; None for permits, and where waiting
    does not help because the request alone is larger than the limit.
    """

    limit: Limit
    holder: str
    remaining: int
    reset_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the limits say of a request. `hold` names what was held, None where nothing was.

    `asks` are those held, or all that were asked where one refused. `refused` is the limit that
    did not let it in (nothing is held then); `spent` are limits that are used up but ask for
    another route: they hold and count nothing of this request. `store_down`: decided without the
    store. `receipt` is what its gate settles by.
    """

    hold: str | None = None
    asks: tuple[Ask, ...] = ()
    refused: Standing | None = None
    spent: frozenset[str] = frozenset()
    standings: tuple[Standing, ...] = ()
    store_down: bool = False
    receipt: object = None

    @property
    def priced_only(self) -> bool:
        """A hard budget counts this request: it may only go where the price is known."""
        return any(
            ask.limit.unit is Unit.USD and ask.limit.at_limit is AtLimit.REFUSE for ask in self.asks
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a request really used.

    `nano_usd` of None: the price of all of it is not known. Then the hold stays, or what is known
    of it, `nano_known`, where that is more.
    """

    tokens: int
    nano_usd: int | None
    nano_known: int = 0

    def of(self, unit: Unit, held: int) -> int:
        """In the unit of a limit; a permit is free again."""
        if unit is Unit.TOKENS:
            return self.tokens
        if unit is Unit.USD:
            return max(held, self.nano_known) if self.nano_usd is None else self.nano_usd
        return 0 if unit is Unit.CONCURRENT else held


NOTHING = Admission()


class Gate(Protocol):
    """Both stores keep this contract (`tests/contract/test_limits.py`)."""

    heard: Heard
    overrun: dict[str, int]  # limit -> units used beyond holds so far, by this worker

    def begin(self, request_id: str, asks: tuple[Ask, ...]) -> Awaitable[Admission]:
        """Hold all of `asks` or none. The command has left when this returns."""
        ...

    def settle(self, admission: Admission, used: Used) -> None:
        """Replace the hold by what was used, free permits; does not wait."""
        ...

    def release(self, admission: Admission) -> None:
        """Nothing was sent upstream: give all of it back; does not wait."""
        ...

    def abandon(self, request_id: str) -> None:
        """The answer of `begin` will not be heard: give back what is or will be held for it."""
        ...

    def cut_off(self, request_id: str, used: Used | None = None) -> None:
        """Its worker died. If it had not told what was used, this was; of None, what was held."""
        ...

    async def resets(self, limits: Sequence[Limit]) -> list[Alert]:
        """Those of `limits` that were exhausted and have started anew since: told once, by one."""
        ...


class State(NamedTuple):
    """One counter after `begin`, as a store tells it.

    `wait_ms`: 0 where the request fits, else until it would, below 0 where waiting does not tell.
    `fresh_s`: until the counter is as new, None for permits.
    """

    taken: int
    wait_ms: int
    fresh_s: float | None


def conclude(
    request_id: str,
    asks: tuple[Ask, ...],
    states: Sequence[State],
    receipt: object = None,
    *,
    store_down: bool = False,
) -> Admission:
    """The Admission that the states of all counters amount to."""
    standings: list[Standing] = []
    held, spent = asks, frozenset[str]()
    refused: Standing | None = None
    for ask, (taken, wait_ms, fresh_s) in zip(asks, states, strict=True):
        limit = ask.limit
        wait_s = wait_ms / 1000 if wait_ms > 0 else None
        reset_s = wait_s if wait_ms else fresh_s
        standing = Standing(limit, ask.holder, limit.amount - taken, reset_s)
        standings.append(standing)
        if not wait_ms:
            continue
        if limit.at_limit is AtLimit.ROUTE:
            spent |= {limit.name}
            held = tuple(a for a in held if a is not ask)
        elif refused is None or _longer(standing, refused):
            refused = standing
    return Admission(
        hold=request_id if held and refused is None else None,
        asks=held if refused is None else asks,
        refused=refused,
        spent=spent,
        standings=tuple(standings),
        store_down=store_down,
        receipt=receipt if held and refused is None else None,
    )


def _longer(one: Standing, other: Standing) -> bool:
    """The caller is told of the limit that will keep it out longest."""
    return other.reset_s is not None and (one.reset_s is None or one.reset_s > other.reset_s)


class Ready:
    """An awaitable whose answer is there already."""

    __slots__ = ("_value",)

    def __init__(self, value: Admission) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, Admission]:
        yield from ()
        return self._value


class Unlimited:
    """No limits at all: what a gateway without a limits file uses."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.overrun: dict[str, int] = {}

    def begin(self, request_id: str, asks: tuple[Ask, ...]) -> Awaitable[Admission]:  # noqa: ARG002
        return READY

    def settle(self, admission: Admission, used: Used) -> None: ...

    def release(self, admission: Admission) -> None: ...

    def abandon(self, request_id: str) -> None: ...

    def cut_off(self, request_id: str, used: Used | None = None) -> None: ...

    async def resets(self, limits: Sequence[Limit]) -> list[Alert]:  # noqa: ARG002
        return []


READY = Ready(NOTHING)
