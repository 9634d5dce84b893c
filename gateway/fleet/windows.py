"""Figures of recent samples: quantiles that forget, a slope that outliers do not bend, a share.

Knows numbers only. Time is an argument (monotonic seconds).

A sample's weight halves every `HALF_LIFE_S`, so that a change shows after one half-life however
few requests come; it goes after `AGE_S_MAX`, or when `SAMPLES_MAX` newer ones came. Quantiles of
samples, not a moving average: of one slow answer an average tells for minutes, and a burst of fast
ones hides an outage in it. All weights shrink alike with time, so no quantile moves unless a sample
comes or goes: there is nothing to recompute for a backend that was not used.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from math import exp2, sqrt
from statistics import median
from typing import NamedTuple

from gateway.domain.decision import Tails

SAMPLES_MAX = 256  # of which the slowest hundredth is two or three
AGE_S_MAX = 300.0
HALF_LIFE_S = 60.0
TAIL_SAMPLES_MIN = 20  # of fewer the "slowest tenth" is one bad start
RESCALE_S = 50 * HALF_LIFE_S  # weights grow as 2^50 until then

LINE_SAMPLES_MIN = 24
LINE_TOKENS_MIN = 256  # between short and long prompts; closer ones would multiply the noise

SHARE_HALF_LIFE_S = 300.0


class Window:
    """Samples in milliseconds, each with the prompt tokens it was for. Adding costs O(log n)."""

    __slots__ = ("_epoch", "_samples", "_values", "_weights")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, int]] = deque()
        self._values: list[float] = []  # ascending
        self._weights: list[float] = []  # of them
        self._epoch = 0.0

    def add(self, now: float, value: float, prompt_tokens: int = 0) -> None:
        if len(self._samples) == SAMPLES_MAX:
            self._drop_oldest()
        if now - self._epoch > RESCALE_S:
            shrink = exp2((self._epoch - now) / HALF_LIFE_S) if self._samples else 0.0
            self._weights = [weight * shrink for weight in self._weights]
            self._epoch = now
        self._samples.append((now, value, prompt_tokens))
        at = bisect_right(self._values, value)
        self._values.insert(at, value)
        self._weights.insert(at, exp2((now - self._epoch) / HALF_LIFE_S))

    def forget(self, now: float) -> None:
        """Drop what is too old."""
        while self._samples and self._samples[0][0] < now - AGE_S_MAX:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, value, _ = self._samples.popleft()
        at = bisect_left(self._values, value)  # the oldest of equals stands first
        del self._values[at], self._weights[at]

    @property
    def oldest(self) -> float | None:
        """When the sample that goes next was taken."""
        return self._samples[0][0] if self._samples else None

    def quantiles(self) -> tuple[float | None, Tails | None]:
        """The median, and the slow end once there are samples enough to speak of one."""
        if not self._values:
            return None, None
        sums = list(accumulate(self._weights))
        values, total = self._values, sums[-1]
        middle = round(values[bisect_left(sums, total * 0.5)], 3)
        if len(values) < TAIL_SAMPLES_MIN:
            return middle, None
        slow = (round(values[bisect_left(sums, total * q)], 3) for q in (0.9, 0.95, 0.99))
        return middle, Tails(*slow)

    def line(self) -> Line:
        """How the values grow with the prompt."""
        return line([(tokens, value) for _, value, tokens in self._samples if tokens])


class Line(NamedTuple):
    """`ms_per_1k` more per thousand prompt tokens, around prompts of `tokens` (their median)."""

    ms_per_1k: float
    tokens: int


def line(pairs: Sequence[tuple[int, float]]) -> Line:
    """The robust line through `(prompt tokens, milliseconds)`: Tukey's, through thirds.

    The medians of the third with the shortest and of the third with the longest prompts give the
    slope; less one standard error of it, so that noise promises nothing; never below 0. 0 where
    there are too few samples, or prompts too much alike. (J. Tukey, Exploratory Data Analysis,
    1977, "resistant line"; standard error of a median from the quartiles of the residuals.)
    """
    if not pairs:
        return Line(0.0, 0)
    ordered = sorted(pairs)
    count, third = len(ordered), len(ordered) // 3
    tokens = ordered[count // 2][0]
    if count < LINE_SAMPLES_MIN:
        return Line(0.0, tokens)
    low, high = ordered[:third], ordered[-third:]
    run = high[third // 2][0] - low[third // 2][0]
    if run < LINE_TOKENS_MIN:
        return Line(0.0, tokens)
    rise = median([y for _, y in high]) - median([y for _, y in low])
    rest = sorted([y - x * rise / run for x, y in ordered])
    error = 0.93 * (rest[3 * count // 4] - rest[count // 4]) * sqrt(2 / third)
    return Line(round(max(0.0, rise - error) / run * 1000, 3), tokens)


class Share:
    """What part of a whole, newer samples counting for more; None before the first."""

    __slots__ = ("_at", "_part", "_whole")

    def __init__(self) -> None:
        self._at = self._part = self._whole = 0.0

    def add(self, now: float, part: float, whole: float) -> None:
        keep = exp2((self._at - now) / SHARE_HALF_LIFE_S) if self._whole else 0.0
        self._part = self._part * keep + part
        self._whole = self._whole * keep + whole
        self._at = now

    @property
    def value(self) -> float | None:
        return round(min(self._part / self._whole, 1.0), 3) if self._whole else None
