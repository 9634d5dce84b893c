"""Time windows: against an oracle that spells out each day, and by hand where the clock jumps."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.language import Window
from gateway.policy.windows import contains, zones

EVERY_DAY = frozenset(range(7))
MON, TUE, WED, THU, FRI, SAT, SUN = range(7)


def window(start: str, end: str, days=EVERY_DAY, zone="Europe/Berlin") -> Window:
    def minute(text: str) -> int:
        return int(text[:2]) * 60 + int(text[3:])

    return Window(
        zone=zone, days=frozenset(days), start_minute=minute(start), end_minute=minute(end)
    )


def us(moment: str) -> int:
    """Microseconds since the epoch of an ISO moment with an offset."""
    return (datetime.fromisoformat(moment) - datetime.fromtimestamp(0, UTC)) // timedelta(
        microseconds=1
    )


def oracle(window: Window, at_us: int) -> bool:
    """Every day is a stretch of wall clock from its start to its end; is the wall's time in one?"""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at_us)
    wall = moment.astimezone(ZoneInfo(window.zone)).replace(tzinfo=None)
    for back in range(3):
        day = datetime.combine(wall.date() - timedelta(days=back), time())
        start = day + timedelta(minutes=window.start_minute)
        end = day + timedelta(minutes=window.end_minute)
        if end <= start:
            end += timedelta(days=1)
        if day.weekday() in window.days and start <= wall < end:
            return True
    return False


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-11-23T07:59:59.999999+01:00", False),
        ("2026-11-23T08:00:00+01:00", True),  # the start is part of it
        ("2026-11-23T17:59:59.999999+01:00", True),
        ("2026-11-23T18:00:00+01:00", False),  # the end is not
        ("2026-11-23T07:30:00+00:00", True),  # half past eight in Berlin
        ("2026-11-28T12:00:00+01:00", False),  # a Saturday
    ],
)
def test_office_hours(moment, inside):
    assert contains(window("08:00", "18:00", range(5)), us(moment)) is inside


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-11-27T21:59:00+01:00", False),
        ("2026-11-27T22:00:00+01:00", True),  # Friday evening
        ("2026-11-28T05:59:00+01:00", True),  # and on into Saturday
        ("2026-11-28T06:00:00+01:00", False),
        ("2026-11-28T22:30:00+01:00", False),  # no night begins on Saturday
        ("2026-11-30T05:00:00+01:00", False),  # nor ended Sunday's
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_starts(moment, inside):
    assert contains(window("22:00", "06:00", range(5)), us(moment)) is inside


def test_a_day_may_end_at_midnight_and_may_last_24_hours():
    monday = us("2026-11-23T23:59:00+01:00"), us("2026-11-24T00:00:00+01:00")
    assert [contains(window("08:00", "24:00", [MON]), at) for at in monday] == [True, False]
    around = us("2026-11-24T07:59:00+01:00"), us("2026-11-24T08:00:00+01:00")
    assert [contains(window("08:00", "08:00", [MON]), at) for at in around] == [True, False]


def test_the_hour_that_is_skipped_never_was():
    """In the night of 29 March 2026 Berlin's clocks go from 02:00 to 03:00."""
    skipped = window("02:00", "03:00")
    night = range(us("2026-03-29T00:00+01:00"), us("2026-03-29T06:00+02:00"), 60_000_000)
    assert not any(contains(skipped, at) for at in night)
    # A window around it loses that hour.
    assert sum(contains(window("01:00", "04:00"), at) for at in night) == 2 * 60


def test_the_hour_that_comes_twice_counts_twice():
    """In the night of 25 October 2026 Berlin's clocks go from 03:00 back to 02:00."""
    night = range(us("2026-10-25T00:00+02:00"), us("2026-10-25T06:00+01:00"), 60_000_000)
    assert sum(contains(window("02:00", "03:00"), at) for at in night) == 2 * 60
    half = [at for at in night if contains(window("02:30", "03:00"), at)]
    assert [at for at in half if at - 60_000_000 not in half] == [
        us("2026-10-25T02:30+02:00"),
        us("2026-10-25T02:30+01:00"),
    ]


def test_a_day_that_was_left_out_of_the_calendar():
    """Samoa had no 30 December 2011, a Friday."""
    friday = window("00:00", "24:00", [FRI], "Pacific/Apia")
    hours = range(us("2011-12-29T12:00-10:00"), us("2011-12-31T12:00+14:00"), 3600_000_000)
    assert not any(contains(friday, at) for at in hours)


ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Pacific/Apia",
    "Africa/Casablanca",
]
# Changes of the clock, for moments around them.
JUMPS = [us(text) for text in ("2026-03-29T01:00Z", "2026-10-25T01:00Z", "2026-11-01T06:00Z")]
moments = st.one_of(
    st.integers(us("2000-01-01T00:00Z"), us("2040-01-01T00:00Z")),
    st.builds(
        lambda jump, off: jump + off,
        st.sampled_from(JUMPS),
        st.integers(-7_200_000_000, 7_200_000_000),
    ),
)


@given(
    at_us=moments,
    zone=st.sampled_from(ZONES),
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=st.integers(0, 1439),
    end=st.integers(0, 1440),
)
def test_it_agrees_with_the_oracle(at_us, zone, days, start, end):
    made = Window(zone=zone, days=days, start_minute=start, end_minute=end)
    assert contains(made, at_us) is oracle(made, at_us)


@given(
    zone=st.sampled_from(ZONES),
    day=st.dates(datetime(2026, 1, 1).date(), datetime(2027, 1, 1).date()),
    start=st.integers(0, 1439),
    end=st.integers(0, 1440),
)
def test_it_agrees_with_the_oracle_at_its_edges(zone, day, start, end):
    made = Window(zone=zone, days=frozenset({day.weekday()}), start_minute=start, end_minute=end)
    for minute in (start, end):
        wall = datetime.combine(day, time(), ZoneInfo(zone)) + timedelta(minutes=minute)
        edge = (wall.astimezone(UTC) - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
        for at_us in (edge - 1, edge, edge + 1):
            assert contains(made, at_us) is oracle(made, at_us)


def test_every_zone_that_is_listed_can_be_used():
    assert set(ZONES) <= zones()
    for zone in zones():
        contains(window("08:00", "18:00", zone=zone), us("2026-11-23T12:00Z"))
