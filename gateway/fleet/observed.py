"""What this worker has seen of each backend, and the Snapshot that decisions are made from.

Owns in-flight counts (exact, instant), the breaker, Retry-After cool-downs, the last health probe,
the engine's own readings and the windows of TTFT and TPOT. Knows nothing of policy, nor how
workers talk: what others should know goes to `on_cooled` and `on_opened`, what others saw comes by
`cooled` and `suspect` (`fleet.shared`). Observations come from dispatch.

INVARIANT: a view is made again only when something was observed or a time has come (`stale_at`);
figures that take work (quantiles, slopes) move at most every `REFRESH_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf

from gateway.domain.decision import BackendView, Snapshot, Tails
from gateway.fleet.breaker import Breaker
from gateway.fleet.windows import AGE_S_MAX, Line, Share, Window

REFRESH_S = 0.25
LINE_REFRESH_S = 5.0  # sorts the window, and moves slowest
COOL_S_MAX = 60.0
READING_S_MAX = 5.0
# Who heard from the vendor itself asks it first; the answer reaches the others before their turn.
HEARSAY_S = 0.3
# A notice of our own comes back, a few milliseconds off.
ECHO_S = 0.1


class _Observed:
    """One backend."""

    __slots__ = (
        "_fresh",
        "_line",
        "_line_at",
        "_refreshed_at",
        "_tpot",
        "_ttft",
        "breaker",
        "cached",
        "cooling_until",
        "healthy",
        "in_flight",
        "kv_used",
        "queue",
        "read_until",
        "stale_at",
        "tpot",
        "ttft",
        "view",
    )

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.cooling_until = 0.0
        self.healthy = True
        self.in_flight = 0
        self.queue: int | None = None
        self.kv_used: float | None = None
        self.read_until = -inf
        self.ttft = Window()
        self.tpot = Window()
        self.cached = Share()
        self._fresh = False
        self._refreshed_at = self._line_at = -inf
        self.stale_at = inf
        self._ttft: tuple[float | None, Tails | None] = (None, None)
        self._tpot: tuple[float | None, Tails | None] = (None, None)
        self._line = Line(0.0, 0)
        self.view = BackendView()

    def sampled(self) -> None:
        """A window has a new sample: worth a look, though not at once."""
        self._fresh = True
        self.stale_at = min(self.stale_at, self._refreshed_at + REFRESH_S)

    def changed(self) -> None:
        """What the view shows at once is another."""
        self.stale_at = -inf

    def look(self, now: float) -> BackendView:
        """Make the view again."""
        if now >= self._refreshed_at + REFRESH_S:
            self._refresh(now)
        breaker, reading = self.breaker, self.read_until > now
        circuit, wait = breaker.state(now), breaker.retry_after_s(now)
        cooling = self.cooling_until > now
        if cooling:
            wait = max(wait or 0.0, self.cooling_until - now)
        if breaker.held and circuit == "open":  # it is well, and asked us to wait
            circuit, cooling = "closed", True
        self.view = BackendView(
            healthy=self.healthy,
            circuit=circuit,
            cooling=cooling,
            retry_after_s=None if wait is None else round(wait, 3),
            in_flight=self.in_flight,
            queue=self.queue if reading else None,
            kv_used=self.kv_used if reading else None,
            ttft_ms=self._ttft[0],
            tpot_ms=self._tpot[0],
            ttft_tails=self._ttft[1],
            tpot_tails=self._tpot[1],
            ttft_per_1k_ms=self._line.ms_per_1k,
            ttft_prompt_tokens=self._line.tokens,
            cached_share=self.cached.value,
        )
        self.stale_at = self._next_look(now, waiting=bool(wait), reading=reading)
        return self.view

    def _refresh(self, now: float) -> None:
        """Look at the windows again, if a sample came or went."""
        oldest = min(self.ttft.oldest or inf, self.tpot.oldest or inf)
        if not self._fresh and oldest + AGE_S_MAX >= now:
            return
        self.ttft.forget(now)
        self.tpot.forget(now)
        self._ttft, self._tpot = self.ttft.quantiles(), self.tpot.quantiles()
        if now >= self._line_at + LINE_REFRESH_S:
            self._line, self._line_at = self.ttft.line(), now
        self._refreshed_at, self._fresh = now, False

    def _next_look(self, now: float, *, waiting: bool, reading: bool) -> float:
        """When the view may differ though nothing is observed meanwhile."""
        oldest = min(self.ttft.oldest or inf, self.tpot.oldest or inf)
        times = [max(oldest + AGE_S_MAX, self._refreshed_at + REFRESH_S)]
        if self._fresh:
            times.append(self._refreshed_at + REFRESH_S)
        if waiting:  # the wait gets shorter
            times.append(min(now + REFRESH_S, self.breaker.changes_at(now)))
        if self.cooling_until > now:
            times.append(self.cooling_until)
        if reading:
            times.append(self.read_until)
        return min(times)


class _Group(_Observed):
    """A backend with several replicas: windows and counts of all, up while one of them is."""

    __slots__ = ("members",)

    def __init__(self, members: tuple[_Observed, ...]) -> None:
        super().__init__()
        self.members = members

    def look(self, now: float) -> BackendView:
        whole = super().look(now)
        views = [m.view if now < m.stale_at else m.look(now) for m in self.members]
        up = [v for v in views if v.healthy and not v.cooling and v.circuit != "open"]
        waits = [v.retry_after_s for v in views if v.retry_after_s is not None]
        self.view = replace(
            whole,
            healthy=any(v.healthy for v in views),
            circuit=min((v.circuit for v in up or views), key=_CIRCUITS.index),
            cooling=not up and any(v.cooling for v in views),
            retry_after_s=min(waits) if waits and not up else None,
        )
        self.stale_at = min(self.stale_at, *(m.stale_at for m in self.members))
        return self.view


_CIRCUITS = ("closed", "half_open", "open")


def _nobody(*_: object) -> None:
    """Until workers share what they see."""


class Fleet:
    """All backends, by name. Names need not be announced; a backend is known once it is named.

    `on_cooled(name, seconds)` and `on_opened(name)` are called when other workers should know.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._seen: dict[str, _Observed] = {name: _Observed() for name in names}
        self._groups: dict[str, _Group] = {}  # by the name of a member
        self.on_cooled: Callable[[str, float], None] = _nobody
        self.on_opened: Callable[[str], None] = _nobody

    def _of(self, name: str) -> _Observed:
        found = self._seen.get(name)
        if found is None:
            found = self._seen[name] = _Observed()
        return found

    def group(self, name: str, members: Sequence[str]) -> None:
        """`name` is a backend whose replicas are observed as `members`; none: it is one place."""
        self._groups = {m: g for m, g in self._groups.items() if g is not self._seen.get(name)}
        seen = tuple(map(self._of, members))
        if not seen:
            if isinstance(self._seen.get(name), _Group):
                del self._seen[name]
            return
        group = self._seen.get(name)
        if not isinstance(group, _Group) or group.members != seen:
            group = self._seen[name] = _Group(seen)
        self._groups.update(dict.fromkeys(members, group))

    def _all(self, name: str) -> tuple[_Observed, ...]:
        """What is observed of `name` is observed of: itself, and the backend it is a replica of."""
        group = self._groups.get(name)
        return (self._of(name),) if group is None else (self._of(name), group)

    def snapshot(self, names: Iterable[str], now: float) -> Snapshot:
        """The views of `names` as of `now` (monotonic seconds), immutable."""
        found: dict[str, BackendView] = {}
        for name in names:
            seen = self._seen.get(name) or self._of(name)
            found[name] = seen.view if now < seen.stale_at else seen.look(now)
        return found

    def last_resort(self, snapshot: Snapshot) -> Snapshot | None:
        """For a request that `snapshot` leaves without any backend: the same with the circuits that
        opened only for their share of failures let through. None if there is no such."""
        shaky = {
            name: replace(view, circuit="half_open")
            for name, view in snapshot.items()
            if view.circuit == "open" and any(b.shaky for b in self._breakers(name))
        }
        return {**snapshot, **shaky} if shaky else None

    def may_send(self, name: str, now: float) -> bool:
        """Whether it may be tried now: since the decision its circuit may have opened, or someone
        else's request may have become the probe."""
        return any(b.shaky or b.state(now) != "open" for b in self._breakers(name))

    def _breakers(self, name: str) -> list[Breaker]:
        seen = self._of(name)
        return [m.breaker for m in seen.members] if isinstance(seen, _Group) else [seen.breaker]

    # --- observations, from dispatch ---------------------------------------------------------

    def sending(self, name: str, now: float, patience_s: float) -> None:
        for seen in self._all(name):
            seen.in_flight += 1
            seen.changed()
        self._of(name).breaker.sending(now, patience_s)

    def answering(self, name: str) -> None:
        """The first content of an attempt is here."""
        self._of(name).breaker.answered()
        self._changed(name)

    def ended(self, name: str) -> None:
        for seen in self._all(name):
            seen.in_flight -= 1
            seen.changed()

    def _changed(self, name: str) -> None:
        for seen in self._all(name):
            seen.changed()

    def succeeded(
        self,
        name: str,
        now: float,
        *,
        ttft_ms: float | None,
        tpot_ms: float | None,
        prompt_tokens: int = 0,
        cached_tokens: int | None = None,
        pinned: bool = False,
    ) -> None:
        """An attempt ended well. `cached_tokens` as the backend reported it, None where it did not;
        it tells of the backend's cache where the session was `pinned` there."""
        self._of(name).breaker.success(now)
        for seen in self._all(name):
            if ttft_ms is not None:
                seen.ttft.add(now, ttft_ms, prompt_tokens)
            if tpot_ms is not None:
                seen.tpot.add(now, tpot_ms)
            if pinned and cached_tokens is not None and prompt_tokens:
                seen.cached.add(now, cached_tokens, prompt_tokens)
            seen.sampled()
            if seen.view.circuit != "closed":
                seen.changed()

    def failed(
        self, name: str, now: float, *, busy: bool = False, retry_after_s: float | None = None
    ) -> None:
        """An attempt failed; `retry_after_s` is for how long the backend asked to be left alone."""
        seen = self._of(name)
        wait_s = None if retry_after_s is None else min(retry_after_s, COOL_S_MAX)
        opened = seen.breaker.failure(now, busy=busy, wait_s=wait_s)
        self._changed(name)
        if wait_s is not None:
            seen.cooling_until = max(seen.cooling_until, now + wait_s)
            self.on_cooled(name, wait_s)
        if opened:
            self.on_opened(name)

    def abandoned(self, name: str) -> None:
        self._of(name).breaker.abandoned()
        self._changed(name)

    def in_flight(self) -> dict[str, int]:
        return {name: seen.in_flight for name, seen in self._seen.items()}

    # --- observations, from elsewhere ----------------------------------------------------------

    def probed(self, name: str, *, healthy: bool) -> None:
        seen = self._of(name)
        if healthy and not seen.healthy:
            seen.breaker.hasten()
        if healthy is not seen.healthy:
            self._changed(name)
        seen.healthy = healthy

    def reported(
        self, name: str, now: float, *, queue: int | None = None, kv_used: float | None = None
    ) -> None:
        """What the engine says of itself: requests waiting, share of its KV cache in use (0..1).
        Forgotten after `READING_S_MAX`."""
        seen = self._of(name)
        seen.queue, seen.read_until = queue, now + READING_S_MAX
        seen.kv_used = None if kv_used is None else round(kv_used, 3)
        self._changed(name)

    def cooled(self, name: str, now: float, seconds: float) -> None:
        """Another worker was asked by the backend to leave it alone for `seconds` from now.

        Hearing it again, or our own word back, changes nothing; a success does not end it.
        """
        seen = self._of(name)
        until = now + min(seconds, COOL_S_MAX)
        if until > seen.cooling_until + ECHO_S:
            until = min(until + HEARSAY_S, now + COOL_S_MAX)
            seen.cooling_until = until
            seen.breaker.hold(until)
            self._changed(name)

    def suspect(self, name: str) -> None:
        """Another worker's circuit opened by a run of failures."""
        self._of(name).breaker.suspect()
