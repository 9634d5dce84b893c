"""What this worker has seen of each backend, and the Snapshot that decisions are made from.

Owns in-flight counts (exact, instant), the breaker, Retry-After cool-downs, the last health probe
and a window of TTFT and TPOT per target's backend. Knows nothing of policy. Observations come
from dispatch; `snapshot` is cheap: a view is rebuilt only when what it shows has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

from gateway.domain.decision import BackendView, Snapshot
from gateway.fleet.breaker import Breaker

WINDOW_SAMPLES = 64
WINDOW_S_MAX = 300.0
REFRESH_S = 0.25  # medians move slowly; recomputing them per request would be work done twice


class _Window:
    """The median of the last samples that are not too old."""

    __slots__ = ("_computed_at", "_samples", "_value")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW_SAMPLES)
        self._value: float | None = None
        self._computed_at = -1.0

    def add(self, now: float, value: float) -> None:
        self._samples.append((now, value))

    def median(self, now: float) -> float | None:
        if now - self._computed_at < REFRESH_S and self._value is not None:
            return self._value
        samples = self._samples
        while samples and samples[0][0] < now - WINDOW_S_MAX:
            samples.popleft()
        self._value = round(median([v for _, v in samples]), 3) if samples else None
        self._computed_at = now
        return self._value


class _Observed:
    """One backend."""

    __slots__ = ("breaker", "cooling_until", "healthy", "in_flight", "tpot", "ttft", "view")

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.cooling_until = 0.0
        self.healthy = True
        self.in_flight = 0
        self.ttft = _Window()
        self.tpot = _Window()
        self.view = BackendView()


class Fleet:
    """All backends, by name. Names need not be announced; a backend is known once it is named."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._seen: dict[str, _Observed] = {name: _Observed() for name in names}

    def _of(self, name: str) -> _Observed:
        found = self._seen.get(name)
        if found is None:
            found = self._seen[name] = _Observed()
        return found

    def snapshot(self, names: Iterable[str], now: float) -> Snapshot:
        """The views of `names` as of `now` (monotonic seconds), immutable."""
        return {name: self._view(self._of(name), now) for name in names}

    @staticmethod
    def _view(seen: _Observed, now: float) -> BackendView:
        circuit = seen.breaker.state(now)
        cooling = seen.cooling_until > now
        ttft, tpot = seen.ttft.median(now), seen.tpot.median(now)
        old = seen.view
        if (
            circuit == "closed"
            and not cooling
            and old.circuit == circuit
            and not old.cooling
            and old.in_flight == seen.in_flight
            and old.healthy == seen.healthy
            and old.ttft_ms == ttft
            and old.tpot_ms == tpot
        ):
            return old
        waits = [w for w in (seen.breaker.retry_after_s(now),) if w is not None]
        if cooling:
            waits.append(seen.cooling_until - now)
        seen.view = BackendView(
            healthy=seen.healthy,
            circuit=circuit,
            cooling=cooling,
            retry_after_s=round(max(waits), 3) if waits else None,
            in_flight=seen.in_flight,
            ttft_ms=ttft,
            tpot_ms=tpot,
        )
        return seen.view

    # --- observations, from dispatch ---------------------------------------------------------

    def sending(self, name: str, now: float, patience_s: float) -> None:
        seen = self._of(name)
        seen.in_flight += 1
        seen.breaker.sending(now, patience_s)

    def ended(self, name: str) -> None:
        self._of(name).in_flight -= 1

    def succeeded(
        self, name: str, now: float, *, ttft_ms: float | None, tpot_ms: float | None
    ) -> None:
        seen = self._of(name)
        seen.breaker.success(now)
        if ttft_ms is not None:
            seen.ttft.add(now, ttft_ms)
        if tpot_ms is not None:
            seen.tpot.add(now, tpot_ms)

    def failed(
        self, name: str, now: float, *, busy: bool = False, retry_after_s: float | None = None
    ) -> None:
        seen = self._of(name)
        seen.breaker.failure(now, busy=busy)
        if retry_after_s is not None:
            seen.cooling_until = max(seen.cooling_until, now + retry_after_s)

    def abandoned(self, name: str) -> None:
        self._of(name).breaker.abandoned()

    def probed(self, name: str, *, healthy: bool) -> None:
        self._of(name).healthy = healthy

    def in_flight(self) -> dict[str, int]:
        return {name: seen.in_flight for name, seen in self._seen.items()}
