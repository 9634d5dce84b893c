"""Budgets, rates and permits: held before the call, settled after it, exact under concurrency.

`begin` sends at once and returns what can be waited for, so that the session's look-up and the
holds share one round trip to Redis.

INVARIANTS
- With the store up, what was committed never exceeds a limit, whatever the concurrency (I-4),
  except by what a request used beyond its hold (I-5), which is counted.
- All limits of a request are held or none is.
- A hold that nobody settles ends by itself: a dead worker leaks nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.domain.limit import Limit, Unit


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request wants of one limit: `holder` is the value of `limit.per` (a key id, a team).

    `amount` in the limit's unit: 1 for requests and permits, tokens, or nano-USD.
    """

    limit: Limit
    holder: str
    amount: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How one limit stands after a request was let in or refused: for headers and messages."""

    limit: Limit
    holder: str
    remaining: int
    reset_s: float | None  # None for permits


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the limits say of a request. `hold` names what was held, None where nothing was.

    `refused` is the limit that did not let it in (nothing is held then); `spent` are limits that
    are used up but ask for another route. `store_down`: decided without the store.
    """

    hold: str | None = None
    asks: tuple[Ask, ...] = ()
    refused: Standing | None = None
    spent: frozenset[str] = frozenset()
    standings: tuple[Standing, ...] = ()
    store_down: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a request really used. `nano_usd` of None: the price is not known, the hold stays."""

    tokens: int
    nano_usd: int | None

    def of(self, unit: Unit, held: int) -> int:
        """In the unit of a limit."""
        if unit is Unit.TOKENS:
            return self.tokens
        if unit is Unit.USD:
            return held if self.nano_usd is None else self.nano_usd
        return held


NOTHING = Admission()


class Gate(Protocol):
    """Both stores keep this contract (`tests/contract/test_limits.py`)."""

    def begin(self, request_id: str, asks: tuple[Ask, ...]) -> Awaitable[Admission]:
        """Hold all of `asks` or none. The command has left when this returns."""
        ...

    def settle(self, admission: Admission, used: Used) -> None:
        """Replace the hold by what was used, free permits; does not wait."""
        ...

    def release(self, admission: Admission) -> None:
        """Nothing was sent upstream: give all of it back; does not wait."""
        ...


@dataclass(slots=True)
class Unlimited:
    """No limits at all: what a gateway without a limits file uses."""

    settled: int = field(default=0)

    async def begin(self, request_id: str, asks: tuple[Ask, ...]) -> Admission:  # noqa: ARG002
        return NOTHING

    def settle(self, admission: Admission, used: Used) -> None: ...

    def release(self, admission: Admission) -> None: ...
