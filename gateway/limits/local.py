"""The gate of one process: exact for this worker.

Without Redis nobody counts for all workers together. So that the whole never exceeds a limit,
each of `workers` enforces its part: the amount divided by their number, rounded down, at least 1
(a limit of fewer requests than workers therefore lets one through per worker).

What is counted in a calendar period can be kept over a restart (`rows`, `restore`); what was held
at that moment counts as used then, since nobody is left who could say less.

INVARIANT: `begin` does not wait, so nothing comes between looking and taking.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gateway.domain.limit import AtLimit, Limit, Period, Unit
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
from gateway.limits.news import WHOLE, Alert, Heard, of_overrun, of_reset, of_share
from gateway.limits.periods import SLICES, WINDOW_S, Calendars
from gateway.runtime import Clock

SWEEP_MAX = 32
LATE_S = 86_400  # a counter outlives its period by so long: for what is settled late


class Row(NamedTuple):
    """One counter of a calendar period as it is kept. `taken` is with what is held."""

    limit: str
    unit: Unit
    period: Period
    start_s: int
    holder: str
    ends_s: int
    taken: int
    used: int
    told: float
    overran: bool
    anew: bool


class _Counter:
    """What one holder has taken of one limit in one period. `ends_s`: wall time, 0 for permits.

    `used` is what was settled of it. `told` is the highest share told, `overran` whether an overrun
    was, `anew` whether it has to be told when the period ends.
    """

    __slots__ = ("anew", "ends_s", "overran", "span_s", "start_s", "taken", "told", "used")

    def __init__(self, start_s: int = 0, ends_s: int = 0) -> None:
        self.taken = self.used = 0
        self.told = 0.0
        self.overran = self.anew = False
        self.start_s, self.ends_s = start_s, ends_s
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
        self.heard = Heard()
        self.overrun: dict[str, int] = {}
        self.changes = 0  # of what `rows` gives

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
                self.changes += 1
        states = []
        for ask, counter, wait in zip(asks, counters, waits, strict=True):
            states.append(State(counter.taken, wait, _reset_s(counter, wall)))
            if wait and ask.amount <= ask.limit.amount:  # it does not fit any more: that is all
                self._tell_share(counter, ask.limit, ask.holder, whole=True)
        return conclude(request_id, asks, states, hold)

    def settle(self, admission: Admission, used: Used) -> None:
        """Replace the hold by what was used, once; of an ended lease, count what was used."""
        hold = admission.receipt
        if not isinstance(hold, _Hold) or hold.settled:
            return
        amounts = [used.of(ask.limit.unit, ask.amount) for ask in admission.asks]
        live, wall = hold.live, self._clock.wall()
        self._end(admission.hold, hold, amounts)
        for (limit, holder, held), amount, (counter, *_) in zip(
            admission.asks, amounts, hold.items, strict=True
        ):
            late = counter.ends_s + LATE_S <= wall
            if amount and not late:
                counter.used += amount
                self._tell_share(counter, limit, holder)
            if amount > held:
                self.overrun[limit.name] = self.overrun.get(limit.name, 0) + amount - held
                self.heard.overrun(limit, amount - held)
                if live and not late:
                    self._tell_overrun(counter, limit, holder, amount - held)

    def _tell_share(
        self, counter: _Counter, limit: Limit, holder: str, *, whole: bool = False
    ) -> None:
        share = 0.0
        for threshold, least in limit.thresholds:
            if whole or counter.used >= least:
                share = threshold
        if share > counter.told:
            counter.told, counter.anew = share, share >= WHOLE
            self.changes += 1
            span = counter.start_s, counter.ends_s
            self.heard.alert(of_share(limit, holder, share, counter.used, span))

    def _tell_overrun(self, counter: _Counter, limit: Limit, holder: str, beyond: int) -> None:
        if limit.thresholds and not counter.overran:
            counter.overran = True
            span = counter.start_s, counter.ends_s
            self.heard.alert(of_overrun(limit, holder, beyond, counter.used, span))

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

    def cut_off(self, request_id: str, used: Used | None = None) -> None:
        """Of a worker that died: what it held is in what was kept, or is lost with it."""

    async def resets(self, limits: Sequence[Limit]) -> list[Alert]:
        """Those of `limits` that were exhausted and have started anew since: told once."""
        wall, found = self._clock.wall(), []
        by_name = {limit.name: limit for limit in limits}
        for (name, _, period, _, holder), counter in self._counters.items():
            if not counter.anew or counter.ends_s > wall:
                continue
            counter.anew = False
            self.changes += 1
            limit = by_name.get(name)
            if limit is not None and limit.period is not None and limit.period == period:
                span = self._calendars.span(limit.period, limit.zone, wall)
                part = self._part(limit) if self._workers > 1 else limit
                found.append(of_reset(part, holder, span))
        return found

    # --- what outlives the process --------------------------------------------------------------

    def rows(self) -> list[Row]:
        """All counters of calendar periods."""
        return [
            Row(
                limit=name,
                unit=Unit(unit),
                period=Period(period),
                start_s=c.start_s,
                holder=holder,
                ends_s=c.ends_s,
                taken=c.taken,
                used=c.used,
                told=c.told,
                overran=c.overran,
                anew=c.anew,
            )
            for (name, unit, period, _, holder), c in self._counters.items()
            if c.ends_s
        ]

    def restore(self, rows: Iterable[Row]) -> None:
        """What was kept of calendar periods: for a gate that has counted nothing yet."""
        oldest = self._clock.wall() - LATE_S
        for row in rows:
            if row.ends_s < oldest:
                continue
            counter = _Counter(row.start_s, row.ends_s)
            counter.taken = counter.used = row.taken
            self.changes += 1
            counter.told, counter.overran, counter.anew = row.told, row.overran, row.anew
            key = (row.limit, row.unit, row.period, str(row.start_s), row.holder)
            self._counters[key] = counter

    # --- inside -----------------------------------------------------------------------------------

    def taken(self, limit: Limit, holder: str) -> int:
        """What `holder` has taken of `limit` just now."""
        now = self._clock.monotonic()
        return self._counter(limit, holder, now, self._clock.wall()).taken

    def _end(self, request_id: str | None, hold: _Hold, amounts: list[int]) -> None:
        for (counter, slice_, held), amount in zip(hold.items, amounts, strict=True):
            counter.add(slice_, amount - (held if hold.live else 0))
        hold.live, hold.settled = False, True
        self.changes += 1
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
        window_s, span, start = WINDOW_S.get(limit.period), (0, 0), ""  # type: ignore[arg-type]
        if limit.period is not None and window_s is None:
            span = self._calendars.span(limit.period, limit.zone, wall)
            start = str(span[0])
        key = (limit.name, limit.unit, limit.period or "", start, holder)
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= self._crowd:
                self._prune(now, wall)
            counter = _Counter(*span) if window_s is None else _Window(window_s)
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
