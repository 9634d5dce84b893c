"""The gate of all workers of all nodes, over Redis: one script call holds all limits of a request.

The keys are `counters`'.

Time is Redis's: leases, windows, and whether a calendar period is the present one. A worker whose
clock is wrong asks for the wrong day, is told the time, and asks again.

INVARIANTS
- No request waits for a settlement. What could not be sent, or may not have arrived, is kept,
  `UNSENT_MAX` of it, and sent when Redis is back; however often it arrives, it counts once.
- While Redis is away, a `refuse` limit lets nothing in. An `allowance` limit lets each worker take
  a quarter of its share of what was left when it last looked, of a window or of permits a quarter
  of its share of the whole; what that came to is counted when Redis is back. So the overshoot is
  at most a quarter of what was left, plus what a dead worker had not told.
- A store that lost its memory goes on with a day's or month's counter from what the first worker to
  ask last saw, open holds included; what others had added since is lost with it, and so are
  windows (an hour at most) and permits.
- Figures stay below 2^53: the script counts in doubles. What a vendor that lies says it used is cut
  to that, for the script would stop in the middle of a settlement.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Awaitable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.domain.limit import AtLimit, Limit, Outage, Unit
from gateway.limits.counters import LEASES, PREFIX, key_of, named
from gateway.limits.gate import (
    LEASE_S,
    READY,
    Admission,
    Ask,
    Ready,
    Standing,
    State,
    Used,
    conclude,
)
from gateway.limits.local import LocalGate
from gateway.limits.news import Alert, Heard, of_overrun, of_reset, of_share
from gateway.limits.periods import SLICES, WINDOW_S, Calendars
from gateway.redis_link import RedisDown, RedisLink, RedisReplyError
from gateway.runtime import Clock

TIME = "redis.call('TIME')"
UNSENT_MAX = 10_000
FIGURE_MAX = 2**53 - 1
SHARE_OF = 1_000_000  # shares are told to the script in so many parts of the whole
CATCHING_UP_MAX = 64  # settlements under way at once while catching up: requests come between
COUNTERS_MAX = 10_000
_OK, _REFUSED, _CLOCK = range(3)


class _Counter:
    """One limit of one holder in one period as this worker knows it, and what it last saw taken."""

    __slots__ = (
        "allowed",
        "end",
        "fixed",
        "holder",
        "key",
        "limit",
        "mode",
        "seen",
        "span",
        "start",
        "thresholds",
    )

    def __init__(self, limit: Limit, holder: str, period: tuple[int, int] = (0, 0)) -> None:
        self.limit = limit
        self.holder = holder
        self.start, self.end = period  # seconds since the epoch, of a calendar period
        self.seen = 0
        self.allowed: Limit | None = None  # what this worker may take during an outage
        if limit.period is None:
            self.mode, self.span = "p", 0
        elif limit.period in WINDOW_S:
            self.mode, self.span = "w", WINDOW_S[limit.period] * 1000 // SLICES
        else:
            self.mode, self.span = "c", self.end * 1000
        self.key = key_of(limit, self.start, holder)
        due = (f"{round(share * SHARE_OF)}:{least}" for share, least in limit.thresholds)
        self.thresholds = ",".join(due).encode()
        fixed = (
            self.mode,
            limit.amount,
            int(limit.at_limit is AtLimit.ROUTE),
            self.span,
            self.start * 1000,
        )
        self.fixed = (*(str(part).encode() for part in fixed), self.thresholds)

    @property
    def period(self) -> tuple[int, int]:
        return self.start, self.end


class _Receipt:
    """How an admission is settled: the counters of its holds in order, each with its slice."""

    __slots__ = ("local", "open", "places")

    def __init__(self, places: list[tuple[_Counter, int]], local: Admission | None = None) -> None:
        self.places = places
        self.local = local  # let in on the worker's own allowance
        self.open = True


class _Telling:
    """A settlement on its way: heard, or kept to be told again, for it counts once.

    `how`: of a hold in the store (`held`), of what we let in on our `own`, or of a request whose
    worker died (`cut`). `counters` in the order of the arguments, for what the reply says of them.
    """

    __slots__ = ("args", "counters", "gate", "how", "request_id")

    def __init__(
        self,
        gate: RedisGate,
        request_id: str,
        how: str,
        counters: Sequence[_Counter] = (),
        args: Sequence[str | bytes | int] = (),
    ) -> None:
        self.gate = gate
        self.request_id = request_id
        self.how = how
        self.counters = counters
        self.args = args

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any, /) -> None:
        self.gate.settled(self.counters, reply)

    def set_exception(self, error: Any, /) -> None:
        if isinstance(error, RedisReplyError) and str(error).startswith("NOSCRIPT"):
            self.gate.tell(self, whole=True)
        else:
            self.gate.keep(self)


class _Waiting:
    """The answer of `begin`, once awaited. Nothing is lost if it never is, see `abandon`."""

    __slots__ = ("_begun",)

    def __init__(self, *begun: Any) -> None:
        self._begun = begun

    def __await__(self) -> Generator[Any, None, Admission]:
        gate, *begun = self._begun
        answer: Generator[Any, None, Admission] = gate.admission(*begun).__await__()
        return answer


class RedisGate:
    """See the module. `workers` counts those of all nodes; `time_lua` is for tests of time."""

    def __init__(
        self,
        link: RedisLink,
        clock: Clock,
        *,
        workers: int = 1,
        lease_s: float = LEASE_S,
        time_lua: str = TIME,
    ) -> None:
        self._link = link
        self._clock = clock
        self._workers = workers
        self._lease_ms = int(lease_s * 1000)
        self._script = SCRIPT.replace(TIME, time_lua)
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._counters: dict[tuple[str, str], _Counter] = {}
        self._calendars = Calendars()
        self._own = LocalGate(clock, lease_s=lease_s)
        self._unsent: deque[_Telling] = deque()
        self.clock_offset_s = 0.0  # Redis's clock less ours
        self.heard = Heard()
        self.overrun: dict[str, int] = {}
        self.lost = 0  # settlements that found no room to wait in
        self.failures = 0  # requests decided without Redis
        link.on_ready.append(self._ready)
        if link.ready:
            self._ready()

    @property
    def unsent(self) -> int:
        """Settlements that wait for Redis."""
        return len(self._unsent)

    # --- the gate ---------------------------------------------------------------------------

    def begin(self, request_id: str, asks: tuple[Ask, ...]) -> Awaitable[Admission]:
        """Hold all of `asks` or none. The command has left when this returns."""
        if not asks:
            return READY
        counters = self._found(asks)
        if not self._link.ready:
            return Ready(self._without_store(request_id, asks, counters))
        parts = self._begin_parts(request_id, asks, counters)
        answer = self._link.command("EVALSHA", self._sha, *parts)
        return _Waiting(self, request_id, asks, counters, answer)

    async def admission(
        self,
        request_id: str,
        asks: tuple[Ask, ...],
        counters: list[_Counter],
        answer: Awaitable[Any],
    ) -> Admission:
        """What the script said, asked again where it was unknown there or our clock is off."""
        try:
            for _ in range(3):
                try:
                    reply = await answer
                except RedisReplyError as error:
                    if not str(error).startswith("NOSCRIPT"):
                        break
                    parts = self._begin_parts(request_id, asks, counters)
                    answer = self._link.command("EVAL", self._script, *parts)
                    continue
                self.answered(reply[0])
                if reply[1] != _CLOCK:
                    return self._concluded(request_id, asks, counters, reply)
                counters = self._found(asks)
                parts = self._begin_parts(request_id, asks, counters)
                answer = self._link.command("EVALSHA", self._sha, *parts)
        except RedisDown:
            self.abandon(request_id)  # it may have arrived
        except BaseException:
            self.abandon(request_id)
            raise
        return self._without_store(request_id, asks, counters)

    def settle(self, admission: Admission, used: Used) -> None:
        """Replace the hold by what was used, once. Does not wait."""
        receipt = admission.receipt
        if not isinstance(receipt, _Receipt) or not receipt.open:
            return
        receipt.open = False
        if receipt.local is not None:
            self._own.settle(receipt.local, used)
        args: list[str | bytes | int] = []
        for (counter, slice_), (limit, _, held) in zip(receipt.places, admission.asks, strict=True):
            amount = min(used.of(limit.unit, held), FIGURE_MAX)
            args += (counter.mode, counter.span, slice_, amount, counter.thresholds)
            if amount > held:
                self.overrun[limit.name] = self.overrun.get(limit.name, 0) + amount - held
                self.heard.overrun(limit, amount - held)
        counters = [counter for counter, _ in receipt.places]
        how = "held" if receipt.local is None else "own"
        self.tell(_Telling(self, admission.hold or "", how, counters, args))

    def release(self, admission: Admission) -> None:
        """Nothing was sent upstream: give all of it back. Does not wait."""
        receipt = admission.receipt
        if not isinstance(receipt, _Receipt) or not receipt.open:
            return
        receipt.open = False
        if receipt.local is not None:
            self._own.release(receipt.local)
        else:
            self.abandon(admission.hold or "")

    def abandon(self, request_id: str) -> None:
        """Give back what is or will be held for this request. Commands keep their order."""
        self.tell(_Telling(self, request_id, "held"))

    def cut_off(self, request_id: str, used: Used | None = None) -> None:
        """Its worker died, perhaps before it settled; with None, before it knew what was used."""
        args: list[str | bytes | int] = []
        if used is not None:
            nano = "" if used.nano_usd is None else min(used.nano_usd, FIGURE_MAX)
            args = [min(used.tokens, FIGURE_MAX), nano, min(used.nano_known, FIGURE_MAX)]
        self.tell(_Telling(self, request_id, "cut", args=args))

    async def resets(self, limits: Sequence[Limit]) -> list[Alert]:
        """Those of `limits` that were exhausted and have started anew since: told once, by one."""
        by_name = {limit.name: limit for limit in limits if limit.thresholds}
        if not by_name:
            return []
        try:
            parts = (1, LEASES, "resets")
            try:
                now_ms, due = await self._link.command("EVALSHA", self._sha, *parts)
            except RedisReplyError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                now_ms, due = await self._link.command("EVAL", self._script, *parts)
        except (RedisDown, RedisReplyError):
            return []  # they wait
        found = []
        for key in due:
            name = named(key)
            limit = by_name.get(name.limit)
            if limit is not None and limit.period is not None and limit.period == name.period:
                span = self._calendars.span(limit.period, limit.zone, now_ms / 1000)
                found.append(of_reset(limit, name.holder, span))
        return found

    # --- with the store -----------------------------------------------------------------------

    def _found(self, asks: tuple[Ask, ...]) -> list[_Counter]:
        now = self._clock.wall() + self.clock_offset_s
        out = []
        for limit, holder, _ in asks:
            counter = self._counters.get((limit.name, holder))
            if (
                counter is None
                or counter.limit is not limit
                or (counter.mode == "c" and not counter.start <= now < counter.end)
            ):
                counter = self._know(limit, holder, counter, now)
            out.append(counter)
        return out

    def _know(self, limit: Limit, holder: str, before: _Counter | None, now: float) -> _Counter:
        """A counter seen for the first time, in a new period, or in a new wording of its limit."""
        if len(self._counters) >= COUNTERS_MAX:
            self._counters.clear()
        period = (0, 0)
        if limit.period is not None and limit.period not in WINDOW_S:
            period = self._calendars.span(limit.period, limit.zone, now)
        counter = self._counters[limit.name, holder] = _Counter(limit, holder, period)
        if before is not None and before.key == counter.key:
            counter.seen = before.seen
        return counter

    def _begin_parts(
        self, request_id: str, asks: tuple[Ask, ...], counters: list[_Counter]
    ) -> list[str | bytes | int]:
        """The script's keys and arguments."""
        parts: list[str | bytes | int] = [2 + len(asks), LEASES, f"{PREFIX}h:{request_id}"]
        parts += [counter.key for counter in counters]
        parts += ("begin", request_id, self._lease_ms)
        for counter, ask in zip(counters, asks, strict=True):
            parts += counter.fixed
            parts.append(ask.amount)
            parts.append(counter.seen)
        return parts

    def _concluded(
        self, request_id: str, asks: tuple[Ask, ...], counters: list[_Counter], reply: list[int]
    ) -> Admission:
        now_ms = reply[0]
        states: list[State] = []
        places: list[tuple[_Counter, int]] = []
        for counter, at in zip(counters, range(2, len(reply), 5), strict=True):
            taken, wait_ms, told, used, slice_ = reply[at : at + 5]
            counter.seen, counter.allowed = taken if counter.mode == "c" else 0, None
            reset_s = None
            if counter.mode == "w":
                reset_s = counter.span * SLICES / 1000
            elif counter.mode == "c":
                reset_s = (counter.span - now_ms) / 1000
            states.append(State(taken, wait_ms, reset_s))
            if not wait_ms:
                places.append((counter, slice_))
            if told:
                self._alert(counter, told, used)
        return conclude(request_id, asks, states, _Receipt(places))

    def _alert(self, counter: _Counter, told: int, used: int) -> None:
        share = told / SHARE_OF
        self.heard.alert(of_share(counter.limit, counter.holder, share, used, counter.period))

    def settled(self, counters: Sequence[_Counter], reply: list[int]) -> None:
        """The script has counted a settlement, and says what is worth telling of it."""
        self.answered(reply[0])
        for counter, at in zip(counters, range(1, len(reply), 3), strict=False):
            used, told, beyond = reply[at : at + 3]
            if told:
                self._alert(counter, told, used)
            if beyond:
                of = of_overrun(counter.limit, counter.holder, beyond, used, counter.period)
                self.heard.alert(of)

    def answered(self, now_ms: int) -> None:
        """Redis has answered, and told its time."""
        self.clock_offset_s = now_ms / 1000 - self._clock.wall()
        if self._unsent:
            self.tell(self._unsent.popleft())

    def tell(self, telling: _Telling, *, whole: bool = False) -> None:
        """Send a settlement, or keep it; `whole` with the script's text."""
        keys = [counter.key for counter in telling.counters]
        sent = self._link.send(
            "EVAL" if whole else "EVALSHA",
            self._script if whole else self._sha,
            2 + len(keys),
            LEASES,
            f"{PREFIX}h:{telling.request_id}",
            *keys,
            "settle",
            telling.request_id,
            telling.how,
            *telling.args,
            waiter=telling,
        )
        if not sent:
            self.keep(telling)

    def keep(self, telling: _Telling) -> None:
        """For later; the oldest give way, but to nobody's of a dead worker: most had been told."""
        if len(self._unsent) >= UNSENT_MAX:
            self.lost += 1
            if telling.how == "cut":
                return
            self._unsent.popleft()
        self._unsent.append(telling)

    def _ready(self) -> None:
        """A new connection: what it must know, and what it has missed."""
        self._link.send("SCRIPT", "LOAD", self._script)
        for _ in range(min(len(self._unsent), CATCHING_UP_MAX)):
            self.tell(self._unsent.popleft())

    # --- without it ---------------------------------------------------------------------------

    def _without_store(
        self, request_id: str, asks: tuple[Ask, ...], counters: list[_Counter]
    ) -> Admission:
        self.failures += 1
        spent = set()
        own: list[Ask] = []
        kept: list[tuple[Ask, _Counter]] = []
        for ask, counter in zip(asks, counters, strict=True):
            limit = ask.limit
            if limit.outage is Outage.ALLOWANCE:
                own.append(Ask(self._allowance(counter), ask.holder, ask.amount))
                kept.append((ask, counter))
            elif limit.at_limit is AtLimit.ROUTE:
                spent.add(limit.name)
            else:
                refused = Standing(limit, ask.holder, 0, None)
                return Admission(asks=asks, refused=refused, store_down=True)
        local = self._own.take(request_id, tuple(own))
        spent |= local.spent
        held = [(ask, counter) for ask, counter in kept if ask.limit.name not in spent]
        now_ms = (self._clock.wall() + self.clock_offset_s) * 1000
        places = [(c, int(now_ms // c.span) if c.mode == "w" else 0) for _, c in held]
        return replace(
            local,
            asks=tuple(ask for ask, _ in held) if local.refused is None else local.asks,
            spent=frozenset(spent),
            store_down=True,
            receipt=_Receipt(places, local) if local.hold is not None else None,
        )

    def _allowance(self, counter: _Counter) -> Limit:
        """What this worker may take of `counter` until Redis has told how it stands."""
        if counter.allowed is None:
            limit = counter.limit
            share = 4 * self._workers
            if counter.mode == "c":
                taken = self._own.taken(limit, counter.holder)
                amount = taken + max(0, limit.amount - counter.seen) // share
            else:
                least = 1 if limit.unit in (Unit.REQUESTS, Unit.CONCURRENT) else 0
                amount = max(least, limit.amount // share)
            counter.allowed = replace(limit, amount=amount)
        return counter.allowed


SCRIPT = Path(__file__).with_name("script.lua").read_text(encoding="utf-8")
