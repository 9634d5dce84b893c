"""Time windows: whether a moment lies in one, by the clock on the wall of the window's zone. Pure.

A window is open where that clock shows a time in it. So where the clock is put back, an hour that
comes twice counts twice; where it is put forward, what it skips never was. `days` name the day on
which a window starts: Friday 22:00 to 06:00 reaches into Saturday. The end is not part of it.

Owns this rule, and which zones there are: the names of the IANA data that is installed with us, so
that a file means the same on every machine. (Zone rules are read once, on first use: they are data
that ships with the code. The system's own copy is taken first, where it has one.)
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo

from gateway.policy.language import Window


def contains(window: Window, at_us: int) -> bool:
    """Whether `at_us` (microseconds since the Unix epoch, UTC) lies in the window."""
    wall = datetime.fromtimestamp(at_us // 1_000_000, ZoneInfo(window.zone))
    minute, today = wall.hour * 60 + wall.minute, wall.weekday()
    start, end = window.start_minute, window.end_minute
    if start < end:
        return start <= minute < end and today in window.days
    if minute >= start:
        return today in window.days
    return minute < end and (today - 1) % 7 in window.days


@cache
def zones() -> frozenset[str]:
    """The names of all time zones there are, such as `Europe/Berlin` and `UTC`."""
    return frozenset((resources.files("tzdata") / "zones").read_text("utf-8").split())
