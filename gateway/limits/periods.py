"""When counters start anew. Pure: the time is an argument.

A minute and an hour slide: at no moment do the last 60 s (3,600 s) hold more than the limit, so
there is no border at which twice of it fits. The window is cut into `SLICES`; what is older than
all of them is forgotten slice by slice. A slice counts until its youngest part is too old, so a
steady caller gets 60/61 of the rate. (Rejected: a token bucket and two weighted halves, which both
let nearly twice the limit into a window after a pause.)

A day, a week (from Monday) and a month are calendar periods in the limit's time zone.
"""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from gateway.domain.limit import Period

SLICES = 60
WINDOW_S = {Period.MINUTE: 60, Period.HOUR: 3600}


def calendar(period: Period, zone: str, at_s: float) -> tuple[int, int]:
    """`(start, end)` of the day, week or month that holds `at_s`, in seconds since the epoch.

    The end is the start of the next one. Where the clocks change, a day has 23 or 25 hours.
    """
    where = ZoneInfo(zone)
    day = dt.datetime.fromtimestamp(at_s, where).date()
    if period is Period.MONTH:
        first = day.replace(day=1)
        following = (first + dt.timedelta(days=32)).replace(day=1)
    elif period is Period.WEEK:
        first = day - dt.timedelta(days=day.weekday())
        following = first + dt.timedelta(days=7)
    else:
        first, following = day, day + dt.timedelta(days=1)
    return _midnight(first, where), _midnight(following, where)


class Calendars:
    """`calendar`, worked out once per period and zone."""

    def __init__(self) -> None:
        self._spans: dict[tuple[Period, str], tuple[int, int]] = {}

    def span(self, period: Period, zone: str, at_s: float) -> tuple[int, int]:
        """`(start, end)`, as `calendar` says."""
        found = self._spans.get((period, zone))
        if found is None or not found[0] <= at_s < found[1]:
            found = self._spans[period, zone] = calendar(period, zone, at_s)
        return found


def _midnight(day: dt.date, where: ZoneInfo) -> int:
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=where).timestamp())
