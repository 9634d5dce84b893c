"""What a report is asked for: period, zone, groups, filters. Pure; the present is an argument.

Owns the names one may group and filter by, and calendar arithmetic in a time zone. A period is
half-open, in microseconds since the Unix epoch. Days and hours are those of the zone: a day has 23,
24 or 25 hours, and the hour that is repeated in autumn is two hours, told apart by their offset.
"""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.domain.money import Meter

BY_MAX = 3
OF_ATTEMPTS = ("backend", "kind", "model", "service_tier", "meter")  # what only an attempt knows
OF_TIME = ("day", "hour")
OF_REQUESTS = ("alias", "key", "route", "policy", "outcome", "answered_by", "shadow")
METER = "meter"  # not a property of a row: an attempt is in the lines of all that it metered
TAGS = ("team", "app")  # tags that need no proof: everybody has them in mind
NAMES = (*TAGS, *OF_REQUESTS, *OF_ATTEMPTS, *OF_TIME)

_DAY_US, _HOUR_US = 86_400_000_000, 3_600_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_AGO = re.compile(r"(\d{1,5})([mhdw])", re.ASCII)
_UNIT = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Unusable(Exception):
    """What was asked for makes no sense. The message names the option and what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """`since_us` <= start of a request < `until_us`. `unfinished`: it was cut at the present."""

    since_us: int
    until_us: int
    zone: str = "UTC"
    unfinished: bool = False

    def previous(self) -> Period:
        """The period before it that is as long: a whole month before a whole month, else as many
        days and hours of the calendar; before an unfinished month as much of the month before."""
        since, until = (_wall(at, self.zone) for at in (self.since_us, self.until_us))
        if since == _month(since) and until <= _next_month(since):
            start = _month(since - dt.timedelta(days=1))
            whole = until == _next_month(since)
            end = since if whole else min(since, start + (until - since))
        else:
            start, end = since - (until - since), since
        return Period(
            since_us=_from_wall(start, self.zone),
            until_us=_from_wall(end, self.zone),
            zone=self.zone,
        )

    def offsets(self) -> list[tuple[int, int]]:
        """`(from, offset to UTC)` in microseconds, in order; the first is from the start."""
        zone, at = ZoneInfo(self.zone), self.since_us
        found = [(at, _offset(at, zone))]
        while at < self.until_us:
            ahead = min(at + _DAY_US, self.until_us)
            if _offset(ahead, zone) != found[-1][1]:
                low, high = at, ahead
                while high - low > 1:
                    middle = (low + high) // 2
                    same = _offset(middle, zone) == found[-1][1]
                    low, high = (middle, high) if same else (low, middle)
                ahead = high
                found.append((ahead, _offset(ahead, zone)))
            at = ahead
        return found

    def of_day(self, number: int) -> tuple[int, int]:
        """The part of the period in this local day, counted from 1970-01-01."""
        day = dt.datetime(1970, 1, 1) + dt.timedelta(days=number)  # noqa: DTZ001 (a wall clock)
        ends = (_from_wall(at, self.zone) for at in (day, day + dt.timedelta(days=1)))
        return self._clipped(*ends)

    def of_hour(self, start_us: int) -> tuple[int, int]:
        """The part of the period in the local hour that starts then."""
        since, until = self._clipped(start_us, start_us + _HOUR_US)
        for at, _ in self.offsets()[1:]:  # an hour can be cut by a change of half an hour
            if since < at < until:
                until = at
        return since, until

    def _clipped(self, since_us: int, until_us: int) -> tuple[int, int]:
        return max(since_us, self.since_us), min(until_us, self.until_us)

    def __str__(self) -> str:
        return f"{moment(self.since_us, self.zone)} to {moment(self.until_us, self.zone)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One report, whole: with the rows it defines the figures.

    `where` are pairs of a name and its value, "" for none; all must hold, of one name any. `kinds`
    says of what kind a backend is. Rating runs count up to number `run`, all of them without one.
    `currency` is shown beside dollars; `attempts` are listed even where nothing else says so.
    """

    report: str
    period: Period
    by: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    compare: bool = True
    kinds: Mapping[str, str] = field(default_factory=dict)
    run: int | None = None
    currency: str = ""
    attempts: bool = False

    @property
    def of_attempts(self) -> bool:
        """Attempts are added up, not requests: asked for, or named by a group or a filter."""
        return self.attempts or any(name in OF_ATTEMPTS for name in (*self.by, *self._filtered))

    @property
    def _filtered(self) -> list[str]:
        return [name for name, _ in self.where]

    @property
    def only_shadow(self) -> bool:
        """Copies are what is asked for: then they are grouped like anything else."""
        return ("shadow", "yes") in self.where

    @property
    def canonical(self) -> bytes:
        """What the digest covers besides the rows and their corrections: all that the figures
        depend on."""
        said: dict[str, Any] = {
            "version": 2,
            "report": self.report,
            "since_us": self.period.since_us,
            "until_us": self.period.until_us,
            "zone": self.period.zone,
            "by": self.by,
            "where": sorted(set(self.where)),
            "compare": self.compare,
        }
        if "kind" in (*self.by, *self._filtered):
            said["kinds"] = dict(sorted(self.kinds.items()))
        return json.dumps(said, sort_keys=True, ensure_ascii=False).encode()

    def command(self, report: str | None = None, **changed: Any) -> str:
        """The command line that asks for it again; `changed` are options instead of ours."""
        options: dict[str, Any] = {
            "by": self.by,
            "where": [f"{name}={value}" for name, value in self.where],
            "since": iso(self.period.since_us, self.period.zone),
            "until": iso(self.period.until_us, self.period.zone),
            "zone": self.period.zone,
            "run": [] if self.run is None else str(self.run),
            "currency": self.currency if report is None and self.currency else [],
        } | changed
        words = ["weighbridge", "report", report or self.report]
        for option, value in options.items():
            for one in [value] if isinstance(value, str) else value:
                words += [f"--{option}", one]
        if report is None and self.report == "cost" and not self.compare:
            words.append("--no-compare")
        named = {one.partition("=")[0] for one in options["where"]}
        if (report or self.report) == "rows" and self.of_attempts and not named & {*OF_ATTEMPTS}:
            words.append("--attempts")
        return shlex.join(words)

    def digest(self, rows_digest: str) -> str:
        """Of the definition and its rows."""
        return hashlib.sha256(self.canonical + b"\n" + rows_digest.encode()).hexdigest()


# --- reading what was asked -----------------------------------------------------------------------


def period(
    *,
    now: dt.datetime,
    zone: str = "UTC",
    since: str = "",
    until: str = "",
    month: str = "",
    last: str = "",
) -> Period:
    """The period asked for; without anything this month so far. Raises Unusable.

    A time without an offset is one of the zone. What reaches into the future ends now.
    """
    tz = _zone(zone)
    asked = [
        name for name, text in (("--since", since), ("--month", month), ("--last", last)) if text
    ]
    if len(asked) > 1:
        raise Unusable(f"{' and '.join(asked)}: one of them says the period")
    if until and (month or last):
        raise Unusable(f"--until does not go with {asked[0]}; use --since and --until")
    here, now_us = now.astimezone(tz).replace(tzinfo=None), _us(now.replace(microsecond=0))
    if last:
        start, end = max(0, now_us - _ago(last) // dt.timedelta(microseconds=1)), now_us
    else:
        first = _named_month(month) if month else _month(here)
        start = _moment(since, "--since", zone) if since else _from_wall(first, zone)
        end = _moment(until, "--until", zone) if until else now_us
        if month:
            end = _from_wall(_next_month(first), zone)
    said = f"--month {month}" if month else f"--since {since}" if since else "this month"
    if until and end <= start:
        raise Unusable(f"{said} is not before --until {until}; nothing lies between")
    if start >= now_us:
        raise Unusable(f"{said} lies in the future; nothing is recorded of it yet")
    return Period(since_us=start, until_us=min(end, now_us), zone=zone, unfinished=end > now_us)


def names(asked: Sequence[str], tags: Iterable[str] = ()) -> tuple[str, ...]:
    """What to group by, checked. `tags` are known besides team and app. Raises Unusable."""
    found = tuple(dict.fromkeys(name(one, tags, "--by") for one in asked))
    if len(found) > BY_MAX:
        raise Unusable(f"--by: at most {BY_MAX}, not {len(found)}")
    return found


def filters(asked: Sequence[str], tags: Iterable[str] = ()) -> tuple[tuple[str, str], ...]:
    """`name=value` each, checked. Raises Unusable."""
    found = []
    for one in asked:
        key, sign, value = one.partition("=")
        if not sign:
            raise Unusable(f"--where {one}: must look like team=search (team= where there is none)")
        key = name(key, tags, "--where")
        if key in OF_TIME:
            raise Unusable(f"--where {one}: say it by --since and --until")
        if key == METER and value not in set(Meter):
            near = difflib.get_close_matches(value, [*Meter], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(Meter)}"
            raise Unusable(f"--where {one}: no such meter; {hint}")
        if key == "shadow" and value not in {"yes", "no"}:
            raise Unusable(f"--where {one}: shadow is yes or no")
        found.append((key, value))
    return tuple(sorted(set(found)))


def name(asked: str, tags: Iterable[str], option: str) -> str:
    """One name as it is kept: `tag:cost_center` is the tag of that name. Raises Unusable."""
    bare = asked.removeprefix("tag:")
    if asked in NAMES:
        return asked
    if bare in set(tags):
        return f"tag:{bare}"
    known = (*NAMES, *tags)
    near = difflib.get_close_matches(bare, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(dict.fromkeys(known))}"
    raise Unusable(f"{option} {asked}: neither a column nor a tag of any key; {hint}")


def tag(named: str) -> str | None:
    """The tag behind a name, None where it is a column."""
    if named.startswith("tag:"):
        return named.removeprefix("tag:")
    return named if named in TAGS else None


# --- times ----------------------------------------------------------------------------------------


def moment(us: int, zone: str) -> str:
    """For people: to the minute where that says it, with the offset."""
    at = (_EPOCH + dt.timedelta(microseconds=us)).astimezone(ZoneInfo(zone))
    seconds = at.strftime(":%S") if at.second else ""
    return f"{at:%Y-%m-%d %H:%M}{seconds} {_shown_offset(at)}"


def iso(us: int, zone: str) -> str:
    """Exact, for a machine."""
    at = (_EPOCH + dt.timedelta(microseconds=us)).astimezone(ZoneInfo(zone))
    return at.isoformat()


def day(number: int) -> str:
    """A local day counted from 1970-01-01."""
    return (dt.date(1970, 1, 1) + dt.timedelta(days=number)).isoformat()


def end_day(period: Period) -> dt.date:
    """The last day that has a part in the period."""
    return _wall(period.until_us - 1, period.zone).date()


def _shown_offset(at: dt.datetime) -> str:
    text = at.strftime("%z")
    return f"{text[:3]}:{text[3:5]}"


def _zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        from zoneinfo import available_timezones

        near = difflib.get_close_matches(text, sorted(available_timezones()), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; write it like Europe/Berlin"
        raise Unusable(f"--zone {text}: no such time zone{hint}") from None


def _ago(text: str) -> dt.timedelta:
    found = _AGO.fullmatch(text)
    if found is None or not int(found[1]):
        raise Unusable(f"--last {text}: must look like 24h, 7d or 4w")
    return dt.timedelta(**{_UNIT[found[2]]: int(found[1])})


def _moment(text: str, option: str, zone: str) -> int:
    try:
        given = dt.datetime.fromisoformat(text)
    except ValueError:
        raise Unusable(
            f"{option} {text}: not a date (2026-11-23) or time (2026-11-23T08:00)"
        ) from None
    _sane(given, f"{option} {text}")
    return _from_wall(given, zone) if given.tzinfo is None else _us(given)


def _sane(given: dt.datetime, said: str) -> dt.datetime:
    if not 1970 < given.year < 9999:
        raise Unusable(f"{said}: not a year that anything is recorded of")
    return given


def _named_month(text: str) -> dt.datetime:
    try:
        first = dt.datetime.strptime(text, "%Y-%m")  # noqa: DTZ007 (a wall clock)
    except ValueError:
        raise Unusable(f"--month {text}: must look like 2026-11") from None
    return _sane(first, f"--month {text}")


def _month(at: dt.datetime) -> dt.datetime:
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _next_month(at: dt.datetime) -> dt.datetime:
    return _month(_month(at) + dt.timedelta(days=32))


def _wall(us: int, zone: str) -> dt.datetime:
    at = (_EPOCH + dt.timedelta(microseconds=us)).astimezone(ZoneInfo(zone))
    return at.replace(tzinfo=None)


def _from_wall(at: dt.datetime, zone: str) -> int:
    return _us(at.replace(tzinfo=ZoneInfo(zone)))


def _us(at: dt.datetime) -> int:
    return (at - _EPOCH) // dt.timedelta(microseconds=1)


def _offset(us: int, zone: ZoneInfo) -> int:
    at = (_EPOCH + dt.timedelta(microseconds=us)).astimezone(zone)
    offset = at.utcoffset()
    assert offset is not None
    return offset // dt.timedelta(microseconds=1)
