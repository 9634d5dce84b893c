"""Chance that can be had again: numbers that look random and follow from a seed. Pure.

SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). For draws
and samples, not for secrets.
"""

from __future__ import annotations

from collections.abc import Iterator

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def mixed(value: int) -> int:
    """A number as good as random, 64 bits, that belongs to `value` for ever."""
    value = (value + _STEP) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def numbers(seed: int) -> Iterator[int]:
    """64-bit numbers without end."""
    state = mixed(seed)
    while True:
        yield mixed(state)
        state = (state + _STEP) & _MASK


def below(count: int, number: int) -> int:
    """A number in 0..count-1 from one of 64 bits."""
    return (number * count) >> 64


def one_of_each(total: int, wanted: int, seed: int) -> Iterator[int]:
    """Cut 0..total-1 into `wanted` runs of equal length and draw one number of each, ascending."""
    for run in range(wanted):
        first, end = run * total // wanted, (run + 1) * total // wanted
        yield first + below(end - first, mixed(mixed(seed) ^ run))
