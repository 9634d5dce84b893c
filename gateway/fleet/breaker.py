"""Circuit breaker of one backend: opens on a run of failures or on a bad share of them.

After linkerd2-proxy's unified breaker: five failures in a row, or fewer than 80 % successes over
the last 30 s with at least 20 samples. While open nothing is sent; then one probe at a time
decides, and each failed probe doubles the wait (full jitter is not needed: one process, one
probe). Only a probe speaks while it is open: what was sent before and fails late would, in a burst,
double the wait to its bound at once. A 429 counts in the share, fails a probe, but does not count
as part of a run: busy is not broken. Time is an argument everywhere (monotonic seconds).
"""

from __future__ import annotations

from dataclasses import dataclass

RUN_MAX = 5
SUCCESS_SHARE_MIN = 0.8
SAMPLES_MIN = 20
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
    """States: `closed`, `open` (until a time), `half_open` (a probe may go or is under way)."""

    __slots__ = ("_buckets", "_open_s", "_open_until", "_probing_until", "_run")

    def __init__(self) -> None:
        self._buckets = [_Bucket() for _ in range(BUCKETS)]
        self._run = 0
        self._open_s = OPEN_S_MIN
        self._open_until: float | None = None
        self._probing_until = 0.0

    def state(self, now: float) -> str:
        if self._open_until is None:
            return "closed"
        if now < self._open_until or now < self._probing_until:
            return "open"
        return "half_open"

    def retry_after_s(self, now: float) -> float | None:
        """Seconds until the next probe may go; None while closed."""
        if self._open_until is None:
            return None
        return max(self._open_until - now, self._probing_until - now, 0.0)

    def sending(self, now: float, patience_s: float) -> None:
        """An attempt starts. If it is the probe, nobody else goes until it ends or gets lost."""
        if self._open_until is not None:
            self._probing_until = now + patience_s

    def success(self, now: float) -> None:
        self._count(now, good=True)
        self._run = 0
        if self._probing_until:  # the probe came back
            self._reset()

    def failure(self, now: float, *, busy: bool = False) -> None:
        self._count(now, good=False)
        if self._open_until is not None:
            if self._probing_until:
                self._open_s = min(self._open_s * 2, OPEN_S_MAX)
                self._open(now)
            return
        if not busy:
            self._run += 1
        if self._run >= RUN_MAX or self._share_is_bad(now):
            self._open(now)

    def abandoned(self) -> None:
        """An attempt ended without a verdict (the client left): let another probe go."""
        self._probing_until = 0.0

    def _open(self, now: float) -> None:
        self._open_until = now + self._open_s
        self._probing_until = 0.0

    def _reset(self) -> None:
        self._open_until, self._open_s, self._probing_until, self._run = None, OPEN_S_MIN, 0.0, 0
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

    def _share_is_bad(self, now: float) -> bool:
        oldest = int(now / BUCKET_S) - BUCKETS
        live = [b for b in self._buckets if b.epoch > oldest]
        good, bad = sum(b.good for b in live), sum(b.bad for b in live)
        return good + bad >= SAMPLES_MIN and good < SUCCESS_SHARE_MIN * (good + bad)
