"""Circuit breaker of one backend: opens on a run of failures or on a bad share of them.

After linkerd2-proxy's unified breaker: five failures in a row, or fewer than 80 % successes over
the last 30 s with at least 20 samples. While open nothing is sent; then one probe at a time
decides, and each failed probe doubles the wait. Only a probe speaks while it is open: what was sent
before and fails late would, in a burst, double the wait to its bound at once. A 429 counts in the
share, fails a probe, but does not count as part of a run: busy is not broken. A Retry-After holds
it: the same, without a failure, so that after it one request asks and not all that waited.

Each worker judges by what it saw itself: one node whose own network is broken must not take a
backend from all others. That another worker's circuit opened by a run is only suspicion: then our
next failure, unless a success comes first, opens ours, for one call instead of five.

What opened only for its share is `shaky` while it serves a fifth of what it is sent. Where no other
backend may take a request that is better than a refusal, so such a one is never ejected as the
last (`Fleet.last_resort`). What failed five times in a row is: it would only make everyone wait.

Time is an argument everywhere (monotonic seconds).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

RUN_MAX = 5
SUCCESS_SHARE_MIN = 0.8
SAMPLES_MIN = 20
SERVES_SHARE_MIN = 0.2
BUCKETS = 10
BUCKET_S = 3.0
OPEN_S_MIN = 1.0
OPEN_S_MAX = 60.0


@dataclass(slots=True)
class _Bucket:
    epoch: int = -1
    good: int = 0
    bad: int = 0


class Breaker:
    """States: `closed`, `open` (until a time), `half_open` (a probe may go)."""

    __slots__ = (
        "_buckets",
        "_held",
        "_open_s",
        "_open_until",
        "_probing_until",
        "_run",
        "_shaky",
        "_suspect",
    )

    def __init__(self) -> None:
        self._buckets = [_Bucket() for _ in range(BUCKETS)]
        self._run = 0
        self._suspect = self._held = self._shaky = False
        self._open_s = OPEN_S_MIN
        self._open_until: float | None = None
        self._probing_until = 0.0

    def state(self, now: float) -> str:
        if self._open_until is None:
            return "closed"
        if now < self._open_until or now < self._probing_until:
            return "open"
        return "half_open"

    @property
    def held(self) -> bool:
        """Whether it is open only because the backend asked for it."""
        return self._held

    @property
    def shaky(self) -> bool:
        """Whether it is open only for its share of failures, and still serves some."""
        return self._shaky

    def retry_after_s(self, now: float) -> float | None:
        """Seconds until the next probe may go, or the one under way should be back; None while
        closed."""
        if self._open_until is None:
            return None
        probing_s = min(self._probing_until - now, OPEN_S_MIN)
        return max(self._open_until - now, probing_s, 0.0)

    def changes_at(self, now: float) -> float:
        """When the state changes by time alone; infinity where it does not."""
        times = (self._open_until or 0.0, self._probing_until)
        return min((at for at in times if at > now), default=inf)

    def sending(self, now: float, patience_s: float) -> None:
        """An attempt starts. If it is the probe, nobody else goes until it ends or gets lost."""
        if self._open_until is not None and now >= self._open_until:
            self._probing_until = now + patience_s

    def answered(self) -> None:
        """The first content is here: that is a probe's verdict. The end of a stream is far."""
        if self._probing_until:
            self._reset()

    def success(self, now: float) -> None:
        self._count(now, good=True)
        self._run = 0
        self._suspect = False
        if self._probing_until:  # the probe came back
            self._reset()

    def failure(self, now: float, *, busy: bool = False, wait_s: float | None = None) -> bool:
        """`wait_s` is what the backend asked for, if it did.

        Returns whether this was the last of a run of our own that opened it.
        """
        self._count(now, good=False)
        own = False
        self._run += not busy
        if self._open_until is not None:
            self._shaky = self._shaky and self._run < RUN_MAX and self._serves(now)
            if self._probing_until:
                # Its own word goes before our guess, unless it is no time at all.
                if wait_s is None or wait_s < OPEN_S_MIN:
                    self._open_s = min(self._open_s * 2, OPEN_S_MAX)
                    self._open(now)
                self._probing_until = 0.0
        else:
            own = self._run >= RUN_MAX
            down = own or (self._suspect and not busy)
            share, samples = self._good_share(now)
            if down or (samples >= SAMPLES_MIN and share < SUCCESS_SHARE_MIN):
                self._open(now)
                self._shaky = not down and self._serves(now)
        if wait_s is not None:
            self.hold(now + wait_s)
        return own

    def abandoned(self) -> None:
        """An attempt ended without a verdict (the client left): let another probe go."""
        self._probing_until = 0.0

    def hold(self, until: float) -> None:
        """The backend asked to be left alone until then: after it, one probe."""
        if self._open_until is None or until >= self._open_until:
            self._open_until, self._probing_until = until, 0.0
            self._held, self._shaky = True, False

    def suspect(self) -> None:
        """Another worker's circuit opened by a run of failures."""
        self._suspect = self._open_until is None

    def hasten(self) -> None:
        """Its health came back: no need to wait any longer for a probe."""
        if self._open_until is not None and not self._held:
            self._open_until = 0.0

    def _open(self, now: float) -> None:
        self._open_until = now + self._open_s
        self._probing_until = 0.0
        self._held = self._suspect = False

    def _reset(self) -> None:
        self._open_until, self._open_s, self._probing_until, self._run = None, OPEN_S_MIN, 0.0, 0
        self._held = self._suspect = self._shaky = False
        for bucket in self._buckets:
            bucket.epoch = -1

    def _count(self, now: float, *, good: bool) -> None:
        epoch = int(now / BUCKET_S)
        bucket = self._buckets[epoch % BUCKETS]
        if bucket.epoch != epoch:
            bucket.epoch, bucket.good, bucket.bad = epoch, 0, 0
        if good:
            bucket.good += 1
        else:
            bucket.bad += 1

    def _serves(self, now: float) -> bool:
        """Whether enough of what is sent comes back: else trying it helps nobody."""
        return self._good_share(now)[0] >= SERVES_SHARE_MIN

    def _good_share(self, now: float) -> tuple[float, int]:
        """The share of successes over the window, and of how many."""
        oldest = int(now / BUCKET_S) - BUCKETS
        live = [b for b in self._buckets if b.epoch > oldest]
        good, bad = sum(b.good for b in live), sum(b.bad for b in live)
        return (good / (good + bad) if good + bad else 1.0), good + bad
