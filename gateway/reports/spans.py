"""Which hours of a period the roll-ups can say, and which parts only the rows can. Pure.

A roll-up knows its hour (UTC) and nothing inside it. Whatever cuts an hour in two, an end of the
period or a midnight of a zone that is half an hour off, makes that hour one to be read from rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from gateway.ledger.hours import HOUR_US
from gateway.reports.definition import Period

PARTS_MAX = 400  # beyond it one look at everything is less work than so many small ones
_DAY_US = 24 * HOUR_US

Span = tuple[int, int]  # since <= at < until, microseconds


class Spans(NamedTuple):
    """Both ascend; together they are the period, each moment of it once."""

    whole: tuple[Span, ...]
    parts: tuple[Span, ...]


def spans(period: Period, times: Sequence[str] = ()) -> Spans:
    """`times`: whether it is told apart by `day` or `hour` of its zone."""
    since, until = period.since_us, period.until_us
    cut = {at // HOUR_US for at in _cuts(period, times) if at % HOUR_US and since <= at <= until}
    parts: list[Span] = []
    for hour in sorted(cut):
        start, end = max(hour * HOUR_US, since), min((hour + 1) * HOUR_US, until)
        if parts and parts[-1][1] >= start:
            parts[-1] = (parts[-1][0], end)
        elif start < end:
            parts.append((start, end))
    if len(parts) > PARTS_MAX:
        return Spans((), ((since, until),))
    ends = [since, *(at for part in parts for at in part), until]
    whole = tuple(span for span in list(pairwise(ends))[::2] if span[0] < span[1])
    return Spans(whole, tuple(parts))


def _cuts(period: Period, times: Iterable[str]) -> Iterator[int]:
    yield period.since_us
    yield period.until_us
    times = set(times)
    if not times:
        return
    segments = period.offsets()
    ends = [start for start, _ in segments[1:]] + [period.until_us]
    for (start, offset), end in zip(segments, ends, strict=True):
        yield start
        if offset % HOUR_US:
            step = HOUR_US if "hour" in times else _DAY_US
            first = (start + offset) // step * step - offset
            yield from range(first, end + 1, step)
