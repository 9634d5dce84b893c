"""What is asked for: periods over changes of the clock, names, and clear words for what is wrong."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest

from gateway.reports.definition import Definition, Period, Unusable, filters, iso, names, period

NOW = dt.datetime(2026, 11, 23, 12, 30, 15, 7, tzinfo=dt.UTC)
BERLIN = "Europe/Berlin"
HOUR = 3_600_000_000


def asked(**options: str) -> Period:
    return period(**({"now": NOW, "zone": BERLIN} | options))


def ends(one: Period) -> tuple[str, str]:
    return iso(one.since_us, one.zone), iso(one.until_us, one.zone)


@pytest.mark.parametrize(
    ("options", "since", "until"),
    [
        ({}, "2026-11-01T00:00:00+01:00", "2026-11-23T13:30:15+01:00"),
        ({"month": "2026-10"}, "2026-10-01T00:00:00+02:00", "2026-11-01T00:00:00+01:00"),
        ({"last": "7d"}, "2026-11-16T13:30:15+01:00", "2026-11-23T13:30:15+01:00"),
        (
            {"since": "2026-03-29", "until": "2026-03-30"},
            "2026-03-29T00:00:00+01:00",
            "2026-03-30T00:00:00+02:00",
        ),
        (
            {"since": "2026-11-01T00:00:00Z", "until": "2026-11-02T00:00+01:00"},
            "2026-11-01T01:00:00+01:00",
            "2026-11-02T00:00:00+01:00",
        ),
    ],
)
def test_periods(options, since, until):
    assert ends(asked(**options)) == (since, until)


def test_what_reaches_into_the_future_ends_now_and_says_so():
    whole = asked(month="2026-11")
    assert whole.unfinished
    assert ends(whole)[1] == "2026-11-23T13:30:15+01:00"
    assert not asked(month="2026-10").unfinished


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"since": "2026-12-01"}, "lies in the future"),
        ({"month": "2027-01"}, "--month 2027-01 lies in the future"),
        ({"since": "2026-11-20", "until": "2026-11-19"}, "not before --until 2026-11-19"),
        ({"since": "2026-11-20", "until": "2026-11-20"}, "nothing lies between"),
        ({"since": "yesterday"}, "--since yesterday: not a date"),
        ({"month": "11-2026"}, "must look like 2026-11"),
        ({"month": "9999-12"}, "not a year"),
        ({"last": "7 days"}, "must look like 24h"),
        ({"last": "0d"}, "must look like"),
        ({"zone": "Europe/Berlim"}, "did you mean Europe/Berlin"),
        ({"last": "7d", "month": "2026-11"}, "one of them says the period"),
        ({"last": "7d", "until": "2026-11-01"}, "--until does not go with --last"),
    ],
)
def test_what_is_no_period(options, words):
    with pytest.raises(Unusable, match=words):
        asked(**options)


@pytest.mark.parametrize(
    ("options", "since", "until"),
    [
        ({"month": "2026-10"}, "2026-09-01T00:00:00+02:00", "2026-10-01T00:00:00+02:00"),
        ({"month": "2026-11"}, "2026-10-01T00:00:00+02:00", "2026-10-23T13:30:15+02:00"),
        (  # a day of 25 hours is compared with the calendar day before
            {"since": "2026-10-25", "until": "2026-10-26"},
            "2026-10-24T00:00:00+02:00",
            "2026-10-25T00:00:00+02:00",
        ),
    ],
)
def test_the_previous_period_is_the_calendars(options, since, until):
    assert ends(asked(**options).previous()) == (since, until)


def test_days_and_hours_where_the_clock_changes():
    day = asked(since="2026-10-25", until="2026-10-26")
    assert day.until_us - day.since_us == 25 * HOUR
    assert [offset // HOUR for _, offset in day.offsets()] == [2, 1]
    number = (dt.date(2026, 10, 25) - dt.date(1970, 1, 1)).days
    assert day.of_day(number) == (day.since_us, day.until_us)
    assert asked(since="2026-10-25T12:00", until="2026-10-27").of_day(number) == (
        day.since_us + 13 * HOUR,
        day.until_us,
    )
    half = period(now=NOW, zone="Australia/Lord_Howe", since="2026-04-05", until="2026-04-06")
    assert half.until_us - half.since_us == 24 * HOUR + HOUR // 2


def test_names_are_checked_against_columns_and_tags():
    assert names(["team", "model", "team"]) == ("team", "model")
    assert names(["cost_center"], ["cost_center"]) == ("tag:cost_center",)
    assert names(["tag:model"], ["model"]) == ("tag:model",)
    with pytest.raises(Unusable, match="did you mean model"):
        names(["modell"])
    with pytest.raises(Unusable, match="at most 3"):
        names(["team", "app", "key", "day"])
    assert filters(["team=a=b", "key="]) == (("key", ""), ("team", "a=b"))
    for wrong, words in (
        ("team", "team=search"),
        ("day=2026-11-01", "--since"),
        ("shadow=1", "yes or no"),
    ):
        with pytest.raises(Unusable, match=words):
            filters([wrong])


def test_the_command_asks_for_the_same_again():
    definition = Definition(
        report="cost",
        period=asked(month="2026-10"),
        by=("team",),
        where=(("app", "it's"),),
        compare=False,
    )
    assert definition.command() == (
        "weighbridge report cost --by team --where 'app=it'\"'\"'s' --since 2026-10-01T00:00:00+02:00"
        " --until 2026-11-01T00:00:00+01:00 --zone Europe/Berlin --no-compare"
    )


def test_the_digest_covers_the_definition_and_the_rows():
    one = Definition(report="cost", period=asked(month="2026-10"), by=("team",))
    others = [
        replace(one, by=("app",)),
        replace(one, where=(("team", "a"),)),
        replace(one, compare=False),
        replace(one, period=asked(month="2026-09")),
        replace(one, by=("kind",), kinds={"a": "managed"}),
    ]
    digests = {d.digest("rows") for d in [one, *others]}
    assert len(digests) == 6
    assert one.digest("rows") == replace(one, kinds={"b": "unused"}).digest("rows")
    assert one.digest("rows") != one.digest("other rows")
