"""The gate of one process: exact for this worker, forgotten when it ends.

Without Redis nobody counts for all workers together. So that the whole never exceeds a limit,
each of `workers` enforces its part: the amount divided by their number, rounded down, at least 1
(a limit of fewer requests than workers therefore lets one through per worker).

INVARIANT: `begin` does not wait, so nothing comes between looking and taking.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass, replace

from gateway.domain.limit import AtLimit, Limit
from gateway.limits.gate import (
    LEASE_S,
    READY,
    Admission,
    Ask,
    Ready,
    State,
    Used,
    conclude,
)
from gateway.limits.periods import SLICES, WINDOW_S, Calendars
from gateway.runtime import Clock

SWEEP_MAX = 32
LATE_S = 86_400  # a counter outlives its period by so long: for what is settled late


class _Counter:
    """What one holder has taken of one limit in one period. `ends_s`: wall time, 0 for permits."""

    __slots__ = ("ends_s", "span_s", "taken", "told")

    def __init__(self, ends_s: int = 0) -> None:
        self.taken = 0
        self.told = 0
        self.ends_s = ends_s
        self.span_s = 0.0

    def slice(self, now: float) -> int:  # noqa: ARG002
        return 0

    def add(self, slice_: int, amount: int) -> None:  # noqa: ARG002
        self.taken += amount

    def forget(self, slice_: int) -> None: ...

    def wait_s(self, need: int, now: float, wall: float) -> float | None:  # noqa: ARG002
        """Seconds until `need` more than now is free; None where that is not known."""
        return self.ends_s - wall if self.ends_s else None

    def idle(self, now: float, wall: float) -> bool:  # noqa: ARG002
        return self.ends_s + LATE_S < wall if self.ends_s else self.taken <= 0


class _Window(_Counter):
    """The same over a sliding window: a running total, and its slices."""

    __slots__ = ("_oldest", "_slices")

    def __init__(self, window_s: int) -> None:
        super().__init__()
        self.span_s = window_s / SLICES
        self._slices: dict[int, int] = {}
        self._oldest = 0

    def slice(self, now: float) -> int:
        return int(now // self.span_s)

    def add(self, slice_: int, amount: int) -> None:
        if slice_ >= self._oldest:  # else it has left the window
            self._slices[slice_] = self._slices.get(slice_, 0) + amount
            self.taken += amount

    def forget(self, slice_: int) -> None:
        """Take out what is too old at `slice_`."""
        first = slice_ - SLICES
        if first <= self._oldest:
            return
        self._oldest = first
        for old in [s for s in self._slices if s < first]:
            self.taken -= self._slices.pop(old)

    def wait_s(self, need: int, now: float, wall: float) -> float | None:  # noqa: ARG002
        for slice_ in sorted(self._slices):
            need -= self._slices[slice_]
            if need <= 0:
                return (slice_ + SLICES + 1) * self.span_s - now
        return None

    def idle(self, now: float, wall: float) -> bool:  # noqa: ARG002
        self.forget(self.slice(now))
        return not self._slices


@dataclass(slots=True)
class _Hold:
    """What one request holds; `live` until it is settled or its lease has ended."""

    until: float
    items: tuple[tuple[_Counter, int, int], ...]  # counter, slice, amount
    live: bool = True
    settled: bool = False


class LocalGate:
    """See the module. Leases end by themselves after `lease_s`."""

    def __init__(self, clock: Clock, *, workers: int = 1, lease_s: float = LEASE_S) -> None:
        self._clock = clock
        self._workers = workers
        self._lease_s = lease_s
        self._calendars = Calendars()
        self._counters: dict[tuple[str, ...], _Counter] = {}
        self._parts: dict[int, tuple[Limit, Limit]] = {}
        self._holds: OrderedDict[str, _Hold] = OrderedDict()  # as they end
        self._crowd = 1024
        self.overrun: dict[str, int] = {}

    def begin(self, request_id: str, asks: tuple[Ask, ...]) -> Awaitable[Admission]:
        """Hold all of `asks` or none; done when this returns."""
        if not asks:
            return READY
        if self._workers > 1:
            asks = tuple(Ask(self._part(limit), holder, n) for limit, holder, n in asks)
        return Ready(self.take(request_id, asks))

    def take(self, request_id: str, asks: tuple[Ask, ...]) -> Admission:
        """`begin` without waiting, for amounts as they stand."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        self._sweep(now)
        counters = [self._counter(limit, holder, now, wall) for limit, holder, _ in asks]
        waits = [
            _wait_ms(ask, counter, now, wall) for ask, counter in zip(asks, counters, strict=True)
        ]
        hold = None
        if not any(
            wait and ask.limit.at_limit is AtLimit.REFUSE
            for ask, wait in zip(asks, waits, strict=True)
        ):
            items = tuple(
                (counter, counter.slice(now), ask.amount)
                for ask, counter, wait in zip(asks, counters, waits, strict=True)
                if not wait
            )
            for counter, slice_, amount in items:
                counter.add(slice_, amount)
            hold = _Hold(now + self._lease_s, items)
            if items:
                self._holds[request_id] = hold
        states = [
            State(counter.taken, wait, _told(counter, ask, wait), _reset_s(counter, wall))
            for ask, counter, wait in zip(asks, counters, waits, strict=True)
        ]
        return conclude(request_id, asks, states, hold)

    def settle(self, admission: Admission, used: Used) -> None:
        """Replace the hold by what was used, once; of an ended lease, count what was used."""
        hold = admission.receipt
        if not isinstance(hold, _Hold) or hold.settled:
            return
        amounts = [used.of(ask.limit.unit, ask.amount) for ask in admission.asks]
        for (limit, _, held), amount in zip(admission.asks, amounts, strict=True):
            if amount > held:
                self.overrun[limit.name] = self.overrun.get(limit.name, 0) + amount - held
        self._end(admission.hold, hold, amounts)

    def release(self, admission: Admission) -> None:
        """Give all of it back."""
        hold = admission.receipt
        if isinstance(hold, _Hold) and not hold.settled:
            self._end(admission.hold, hold, [0] * len(hold.items))

    def abandon(self, request_id: str) -> None:
        """Give back what this request holds, if it does."""
        hold = self._holds.get(request_id)
        if hold is not None:
            self._end(request_id, hold, [0] * len(hold.items))

    def taken(self, limit: Limit, holder: str) -> int:
        """What `holder` has taken of `limit` just now."""
        now = self._clock.monotonic()
        return self._counter(limit, holder, now, self._clock.wall()).taken

    def _end(self, request_id: str | None, hold: _Hold, amounts: list[int]) -> None:
        for (counter, slice_, held), amount in zip(hold.items, amounts, strict=True):
            counter.add(slice_, amount - (held if hold.live else 0))
        hold.live, hold.settled = False, True
        if request_id is not None:
            self._holds.pop(request_id, None)

    def _sweep(self, now: float) -> None:
        """End the leases that are over; a few at a time, more than come."""
        for _ in range(SWEEP_MAX):
            request_id, hold = next(iter(self._holds.items()), ("", None))
            if hold is None or hold.until > now:
                return
            for counter, slice_, amount in hold.items:
                counter.add(slice_, -amount)
            hold.live = False
            del self._holds[request_id]

    def _counter(self, limit: Limit, holder: str, now: float, wall: float) -> _Counter:
        window_s, ends_s, start = WINDOW_S.get(limit.period), 0, ""  # type: ignore[arg-type]
        if limit.period is not None and window_s is None:
            first, ends_s = self._calendars.span(limit.period, limit.zone, wall)
            start = str(first)
        key = (limit.name, limit.unit, limit.period or "", start, holder)
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= self._crowd:
                self._prune(now, wall)
            counter = _Counter(ends_s) if window_s is None else _Window(window_s)
            self._counters[key] = counter
        counter.forget(counter.slice(now) if window_s else 0)
        return counter

    def _prune(self, now: float, wall: float) -> None:
        for key in [k for k, counter in self._counters.items() if counter.idle(now, wall)]:
            del self._counters[key]
        self._crowd = max(1024, 2 * len(self._counters))

    def _part(self, limit: Limit) -> Limit:
        """This worker's part of `limit`."""
        found = self._parts.get(id(limit))
        if found is None or found[0] is not limit:
            if len(self._parts) > 1000:  # of bundles long gone
                self._parts.clear()
            part = replace(limit, amount=max(1, limit.amount // self._workers))
            found = self._parts[id(limit)] = (limit, part)
        return found[1]


def _reset_s(counter: _Counter, wall: float) -> float | None:
    if counter.span_s:
        return counter.span_s * SLICES
    return counter.ends_s - wall if counter.ends_s else None


def _wait_ms(ask: Ask, counter: _Counter, now: float, wall: float) -> int:
    """0 where it fits, else until it would; -1 where waiting does not tell."""
    over = counter.taken + ask.amount - ask.limit.amount
    if over <= 0:
        return 0
    wait = counter.wait_s(over, now, wall) if ask.amount <= ask.limit.amount else None
    return -1 if wait is None else max(1, int(wait * 1000))


def _told(counter: _Counter, ask: Ask, wait_ms: int) -> int:
    """How many alert shares are reached, if that is news. A request that does not fit is 100 %."""
    limit = ask.limit
    reached = len(limit.alert_shares)
    if not wait_ms:
        reached = sum(counter.taken >= t for t in thresholds(limit))
    elif ask.amount > limit.amount:
        return 0
    if reached <= counter.told:
        return 0
    counter.told = reached
    return reached


def thresholds(limit: Limit) -> tuple[int, ...]:
    """The amounts at which alerts are due, ascending."""
    return tuple(round(share * limit.amount) for share in sorted(limit.alert_shares))
