"""The counters of limits as they lie in Redis: their names, and how one reads who holds nothing.

Keys, all under one hash tag:

    wb:{limits}:leases                                   sorted set, hold -> when its lease ends
    wb:{limits}:h:<request>                              what a request holds
    wb:{limits}:n:<limit>:<unit>:<period>:<start>:<holder>   a counter
    wb:{limits}:exhausted                                sorted set, counter -> when it starts anew

One tag is one slot, so a Redis Cluster keeps all of it on one node: that is the price of holding a
team's and a key's limit together or not at all. One node does tens of thousands of the gate's calls
per second; beyond, the tag can carry the holder of the widest limit (a tenant), for limits of two
tenants are never held by one request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.domain.limit import CALENDAR, Limit
from gateway.limits.kept import read
from gateway.limits.news import WHOLE
from gateway.limits.periods import SLICES, WINDOW_S, calendar
from gateway.redis_link import RedisLink

PREFIX = "wb:{limits}:"
LEASES = (PREFIX + "leases").encode()
COUNTERS = PREFIX + "n:"
PAGE = 1_000
_WHOLE = 1_000_000  # what the script writes for a share of all of it


class Named(NamedTuple):
    """What the key of a counter says. `start_s` is 0 but for calendar periods."""

    limit: str
    unit: str
    period: str
    start_s: int
    holder: str


def key_of(limit: Limit, start_s: int, holder: str) -> bytes:
    """The counter of one holder in one period."""
    period = limit.period or ""
    return f"{COUNTERS}{limit.name}:{limit.unit}:{period}:{start_s}:{holder}".encode()


def named(key: bytes) -> Named:
    """The parts of a counter's key. A holder may have colons, nothing before it has."""
    name = key.decode("utf-8", "replace").removeprefix(COUNTERS)
    limit, unit, period, start, holder = name.split(":", 4)
    return Named(limit, unit, period, int(start), holder)


class Count(NamedTuple):
    """What one holder has taken of one limit in its present period, in the limit's unit.

    `used` is what was settled of it, the rest is held; None where the two are not told apart.
    `exhausted`: that was told of it: all is used, or a request did not fit any more.
    """

    taken: int
    used: int | None
    exhausted: bool = False


Counts = dict[tuple[str, str], Count]  # (limit, holder)


def span_of(limit: Limit, now_s: float) -> tuple[int, int]:
    """The present period; `(0, 0)` for what has no calendar."""
    if limit.period is None or limit.period not in CALENDAR:
        return 0, 0
    return calendar(limit.period, limit.zone, now_s)


async def in_redis(link: RedisLink, limits: Sequence[Limit]) -> tuple[float, Counts]:
    """Redis's time, and its counters of `limits`. Raises RedisDown."""
    seconds, micros = await link.command("TIME")
    now_s = int(seconds) + int(micros) / 1e6
    wanted = {
        (limit.name, limit.unit.value, limit.period or "", span_of(limit, now_s)[0]): limit
        for limit in limits
    }
    found: Counts = {}
    cursor: bytes | int = 0
    while True:
        cursor, keys = await link.command("SCAN", cursor, "MATCH", COUNTERS + "*", "COUNT", PAGE)
        ours = [(key, name) for key in keys if (name := named(key))[:4] in wanted]
        for (_, name), count in zip(
            ours,
            await asyncio.gather(
                *(counted(link, key, wanted[name[:4]], now_s) for key, name in ours)
            ),
            strict=True,
        ):
            found[name.limit, name.holder] = count
        if int(cursor) == 0:
            return now_s, found


async def counted(link: RedisLink, key: bytes, limit: Limit, now_s: float) -> Count:
    """One counter, as of `now_s`. Raises RedisDown."""
    window_s = WINDOW_S.get(limit.period) if limit.period is not None else None
    if window_s is None:
        taken, used, told = await link.command("HMGET", key, "t", "u", "a")
        exhausted = int(told or 0) >= _WHOLE
        return Count(int(taken or 0), int(used) if used is not None else None, exhausted)
    fields = await link.command("HGETALL", key)
    first = int(now_s * SLICES / window_s) - SLICES
    slices = {bytes(name): int(n) for name, n in zip(fields[::2], fields[1::2], strict=True)}
    return Count(
        sum(n for name, n in slices.items() if name.isdigit() and int(name) >= first), None
    )


def in_home(home: Path, limits: Sequence[Limit], now_s: float) -> Counts:
    """The counters of a process without Redis, its workers together, as they were last kept.

    What slides is in the processes' memory only, and is not here.
    """
    spans = {limit.name: (limit, span_of(limit, now_s)[0]) for limit in limits}
    found: Counts = {}
    for row in read(home):
        limit, start_s = spans.get(row.limit, (None, 0))
        if limit is None or (row.unit, row.period, row.start_s) != (
            limit.unit,
            limit.period,
            start_s,
        ):
            continue
        before = found.get((row.limit, row.holder), Count(0, 0))
        used = row.used + (before.used or 0)
        exhausted = before.exhausted or row.told >= WHOLE
        found[row.limit, row.holder] = Count(row.taken + before.taken, used, exhausted)
    return found
