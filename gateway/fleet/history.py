"""How long an answer will be, from how long answers were: what a prediction of cost needs.

The mean, not the median: cost grows with output tokens, so means add up to the bill, while of a
skewed distribution (answers are) half the requests lie below the median and most of the money above
it. Means forget by count, not by time: the answers of a quiet night say as much as those of a busy
minute, and the same history gives the same expectation.

What a key has shown weighs against what its alias has shown, as if that were `PRIOR` requests, and
the alias against the default alike: no jump from one source to the other. Bounded: the keys used
least recently are forgotten first. O(1), no clock, no randomness.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

DEFAULT_OUTPUT_TOKENS: Final = 256.0  # before anything is known
PRIOR: Final = 8
MEMORY: Final = 64  # a mean is of about so many answers, newer ones counting for more
KEYS_MAX: Final = 10_000


class _Mean:
    """Plain until `MEMORY` samples, then exponentially weighted."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, sample: float) -> None:
        if self.count < MEMORY:
            self.count += 1
        self.value += (sample - self.value) / self.count

    def against(self, prior: float) -> float:
        return (self.value * self.count + prior * PRIOR) / (self.count + PRIOR)


class OutputHistory:
    """Expected output tokens for an alias and the key that asks."""

    __slots__ = ("_keys_max", "_means")

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._means: OrderedDict[tuple[str, str], _Mean] = OrderedDict()

    def expect(self, alias: str, key_id: str, cap: int | None) -> int:
        """Tokens, at most the request's own `cap` where it has one."""
        expected = DEFAULT_OUTPUT_TOKENS
        for known in _sources(alias, key_id):
            mean = self._means.get(known)
            if mean is not None:
                expected = mean.against(expected)
        tokens = round(expected)
        return tokens if cap is None else min(tokens, cap)

    def learn(self, alias: str, key_id: str, output_tokens: int) -> None:
        """An answer of that many tokens has ended."""
        means = self._means
        for known in _sources(alias, key_id):
            mean = means.get(known)
            if mean is None:
                mean = means[known] = _Mean()
            mean.add(output_tokens)
            means.move_to_end(known)
        while len(means) > self._keys_max:
            means.popitem(last=False)


def _sources(alias: str, key_id: str) -> tuple[tuple[str, str], ...]:
    """What a request's length is known from, the vaguest first."""
    return ((alias, ""), (alias, key_id)) if key_id else ((alias, ""),)
