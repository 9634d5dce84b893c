"""What the roll-ups by hour say of rows: each sum, its column, and how it is worked out. Pure.

The one definition: the writer makes deltas with it, rebuilding and comparing make the same of rows
read back, and the reports mean the same by the same names (`reports/sums.py`).

INVARIANTS
- Every sum is of integers, so it depends neither on order nor on how rows are grouped on the way.
- An attempt belongs to the hour in which its request arrived.
- `fp0`..`fp3` add up the four 32-bit words that SHA-256 begins with, over each row's line: two sets
  of rows with equal sums have, by all that is known, the same rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from struct import Struct
from typing import Any, Final

HOUR_US: Final = 3_600_000_000

# Time to the first token: bucket n holds what is under TTFT_BOUNDS_US[n] and not in the one before
# it; the last holds the rest. From 8 ms by 28.4 % each, so a percentile is found to within that.
TTFT_BOUNDS_US: Final = tuple(round(8_000 * 1.284**n) for n in range(39))

FIRST_SUMS: Final = (
    *("rows", "cost_nano_usd", "costed", "unpriced", "weighed", "estimated"),
    *("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
    *("costed_tokens", "speed_tokens", "speed_us"),
    *("fp0", "fp1", "fp2", "fp3"),
)
BUCKETS: Final = tuple(f"ttft_{n:02}" for n in range(len(TTFT_BOUNDS_US) + 1))
SUMS: Final = (*FIRST_SUMS, *BUCKETS)  # NULL in a bucket is none

REQUEST_KEY: Final = ("hour_us", "dimension")
ATTEMPT_KEY: Final = ("hour_us", "request_dimension", "attempt_dimension")
METER_KEY: Final = (*ATTEMPT_KEY, "meter")

_FIRST: Final = len(FIRST_SUMS)
_WORDS: Final = Struct(">4I")
_SPEED_US_MAX: Final = 2**53  # of one row: a speed next to nothing must not fill the sum

Key = tuple[Any, ...]


class Hours:
    """Sums under way: of each hour and dimension, of requests and of attempts."""

    def __init__(self) -> None:
        self.requests: dict[Key, list[int]] = {}
        self.attempts: dict[Key, list[int]] = {}
        self.meters: dict[Key, int] = {}  # of attempts: all but the counts that have a column

    def add(self, row: Mapping[str, Any], dimension: int) -> None:
        """A request. `row` has the names of `RequestRecord`."""
        started = row["started_at_us"]
        at = started // HOUR_US * HOUR_US, dimension
        sums = self.requests.get(at)
        if sums is None:
            sums = self.requests[at] = [0] * len(SUMS)
        output, tps = row["output_tokens"], row["tps"]
        speed = None
        if tps is not None and tps > 0 and output is not None:
            speed = round(min(output * 1e6 / tps, _SPEED_US_MAX))
        _add(sums, row, f"{started} {row['id']} 0 ", known=row["priced"], speed_us=speed)

    def add_attempt(
        self, request: Mapping[str, Any], row: Mapping[str, Any], dimensions: tuple[int, int]
    ) -> None:
        """An attempt of that request; of both the dimensions."""
        started = request["started_at_us"]
        at = started // HOUR_US * HOUR_US, *dimensions
        sums = self.attempts.get(at)
        if sums is None:
            sums = self.attempts[at] = [0] * len(SUMS)
        took, output = row["duration_us"], row["output_tokens"]
        timed = row["outcome"] == "ok" and took is not None and took > 0 and output
        line = f"{started} {request['id']} {row['number']} "
        known = row["cost_nano_usd"] is not None
        _add(sums, row, line, known=known, speed_us=took if timed and output > 0 else None)
        others = row["other_meters"]
        if others:
            for meter, quantity in others.items():
                key = *at, meter
                self.meters[key] = self.meters.get(key, 0) + quantity

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], Iterator[tuple[Any, ...]]]]:
        """(table, columns, rows): what is to be written of it, made as it is asked for."""
        for name, key, found in (
            ("request_hours", REQUEST_KEY, self.requests),
            ("attempt_hours", ATTEMPT_KEY, self.attempts),
        ):
            if found:
                yield name, (*key, *SUMS), _rows(found.items())
        if self.meters:
            meters = ((*key, quantity) for key, quantity in self.meters.items())
            yield "other_meter_hours", (*METER_KEY, "quantity"), meters


def _rows(found: Iterable[tuple[Key, list[int]]]) -> Iterator[tuple[Any, ...]]:
    for key, sums in found:
        yield (*key, *sums[:_FIRST], *(count or None for count in sums[_FIRST:]))


def _add(
    sums: list[int], row: Mapping[str, Any], line: str, *, known: bool, speed_us: int | None
) -> None:
    cost, source, ttft = row["cost_nano_usd"], row["usage_source"], row["ttft_us"]
    uncached, cached = row["uncached_tokens"] or 0, row["cached_tokens"] or 0
    output = row["output_tokens"] or 0
    sums[0] += 1
    if cost is not None:
        sums[1] += cost
        sums[2] += 1
        sums[10] += uncached + cached + output
    if source != "none":
        sums[4] += 1
        if not known:
            sums[3] += 1
        if source == "estimated":
            sums[5] += 1
    sums[6] += uncached
    sums[7] += cached
    sums[8] += output
    sums[9] += row["reasoning_tokens"] or 0
    if speed_us is not None:
        sums[11] += output
        sums[12] += speed_us
    text = line + ("-" if cost is None else str(cost))
    one, two, three, four = _WORDS.unpack_from(sha256(text.encode()).digest())
    sums[13] += one
    sums[14] += two
    sums[15] += three
    sums[16] += four
    if ttft is not None:
        sums[_FIRST + bisect_right(TTFT_BOUNDS_US, ttft)] += 1
