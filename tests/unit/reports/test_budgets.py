"""How budgets stand: the figures themselves, and what the ledger says on both databases."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.limit import Limit, Period, Unit
from gateway.domain.outcome import Outcome
from gateway.ledger.journal import Journal
from gateway.ledger.store import Store
from gateway.limits.counters import Count
from gateway.reports.budgets import Booked, Budget, status
from tests.unit.ledger.records import attempt, request

pytest_plugins = ("tests.servers",)

BERLIN, KOLKATA = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kolkata")
NOW = dt.datetime(2026, 11, 11, tzinfo=BERLIN).timestamp()  # a third of the month is over
MONTH = Limit(
    name="team-month",
    per="team",
    unit=Unit.USD,
    amount=300 * 10**9,
    period=Period.MONTH,
    zone="Europe/Berlin",
)


def budget(**more) -> Budget:
    start, end = (int(dt.datetime(2026, m, 1, tzinfo=BERLIN).timestamp()) for m in (11, 12))
    return Budget(
        **{"limit": MONTH, "holder": "x", "start_s": start, "end_s": end, "now_s": NOW, **more}
    )


def test_what_is_used_held_and_left_and_where_it_leads() -> None:
    found = budget(taken=130 * 10**9, used=120 * 10**9)
    assert (found.held, found.left, found.share) == (10 * 10**9, 170 * 10**9, Decimal("0.4"))
    assert found.forecast == 360 * 10**9
    assert found.spent_at_s is not None
    assert dt.datetime.fromtimestamp(found.spent_at_s, BERLIN).date() == dt.date(2026, 11, 26)


@pytest.mark.parametrize(
    ("more", "left", "forecast"),
    [
        ({}, None, None),  # nothing could be asked
        ({"booked": Booked(nano_usd=60 * 10**9, unsent_nano=30 * 10**9)}, 210, 270),
        ({"taken": 90 * 10**9}, 210, 270),  # a window knows no holds
        ({"taken": 400 * 10**9, "used": 400 * 10**9}, -100, 1200),
        ({"taken": 0, "used": 0}, 300, 0),
        ({"taken": 0, "used": 0, "now_s": NOW - 9.9 * 86_400}, 300, None),  # too early to tell
        ({"taken": 90 * 10**9, "start_s": 0, "end_s": 0}, 210, None),  # what slides has no end
    ],
)
def test_a_figure_that_is_not_there_is_not_made_up(more, left, forecast) -> None:
    found = budget(**more)
    assert found.left == (None if left is None else left * 10**9)
    assert found.forecast == (None if forecast is None else forecast * 10**9)


@given(st.integers(0, 10**15), st.floats(0.03, 1.0))
def test_a_forecast_is_the_pace_to_the_end(used: int, gone: float) -> None:
    whole = budget()
    now = whole.start_s + gone * (whole.end_s - whole.start_s)
    found = budget(taken=used, used=used, now_s=now)
    assert found.forecast is not None
    assert found.forecast >= used - 1
    if found.spent_at_s is not None:
        assert now - 1 <= found.spent_at_s <= found.end_s
    assert (found.spent_at_s is None) == (found.forecast <= MONTH.amount)


@pytest.mark.parametrize(
    ("used", "booked", "words"),
    [
        (100, Booked(nano_usd=100), []),
        (100, Booked(nano_usd=90, unsent=2, unsent_nano=10), ["2 rows are in the journal"]),
        (100, Booked(nano_usd=90, cut_off=3), ["3 requests were cut off"]),
        (100, Booked(nano_usd=90, unpriced=3), ["3 requests have no known price"]),
        (100, Booked(nano_usd=101), ["the ledger has more"]),
        (100, Booked(nano_usd=90), ["rows of other nodes"]),
        (100, Booked(nano_usd=100, cut_off=1), []),
        (None, Booked(nano_usd=100), []),
    ],
)
def test_a_difference_is_explained(used: int | None, booked: Booked, words: list[str]) -> None:
    said = budget(taken=used, used=used, booked=booked).differences()
    assert [line[: len(word)] for line, word in zip(said, words, strict=True)] == words


# --- the ledger -----------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    made = await Store.connect(url)
    yield made
    await made.close()


def row(name: str, at: dt.datetime, team: str | None = "search", cost: int | None = 1000, **more):
    at_us = int(at.timestamp() * 1e6)
    tags = {} if team is None else {"team": team, "app": "chat"}
    one = attempt(started_at_us=at_us, cost_nano_usd=cost, rates_id=None if cost is None else "r")
    fields = {"attempts": [one], "tags": tags, "cost_nano_usd": cost, "priced": cost is not None}
    return request(name, started_at_us=at_us, **{**fields, **more})


CUT = {
    "outcome": Outcome.INTERRUPTED.value,
    "usage_source": "none",
    "uncached_tokens": None,
    "cached_tokens": None,
    "output_tokens": None,
    "reasoning_tokens": None,
    "http_status": 0,
}


@pytest.mark.parametrize("zone", [BERLIN, KOLKATA])  # whole hours of UTC, and half ones: rows
async def test_the_ledger_of_the_same_period_and_holder(store, tmp_path: Path, zone) -> None:
    start = dt.datetime(2026, 11, 1, tzinfo=zone)
    moment = dt.timedelta(microseconds=1)
    rows = [
        row("before", start - moment),
        row("first", start),
        row("now", start + dt.timedelta(days=9), cost=234),
        row("ads", start, team="ads", cost=7),
        row("other", start, team="other"),
        row("no-team", start, team=None),
        row("copy", start, shadow_of="first", key_id=None),
        row("unpriced", start, cost=None),
        row("cut", start, cost=None, **CUT),
        row("elsewhere", start, alias="large"),
    ]
    await store.append([orjson.dumps(one) for one in rows])
    limit = Limit(
        name="l",
        per="team",
        unit=Unit.USD,
        amount=10**9,
        period=Period.MONTH,
        zone=str(zone),
        match={
            "team": frozenset({"search", "ads", "idle"}),
            "alias": frozenset({"fast"}),
        },
    )
    counts = {("l", "search"): Count(1500, 1400), ("another", "search"): Count(9, 9)}
    found = await status(
        (limit, Limit(name="r", per="key", unit=Unit.REQUESTS, amount=1, period=Period.DAY)),
        now_s=NOW,
        counts=counts,
        store=store,
        journal=tmp_path / "none",
    )
    assert found.missing == ()
    by_holder = {one.holder: one for one in found.budgets}
    assert list(by_holder) == ["ads", "idle", "search"]
    assert by_holder["search"].booked == Booked(rows=4, nano_usd=1234, cut_off=1, unpriced=1)
    assert (by_holder["search"].used, by_holder["search"].held) == (1400, 100)
    assert by_holder["ads"].booked == Booked(rows=1, nano_usd=7)
    assert (by_holder["ads"].used, by_holder["idle"].booked) == (0, Booked())


async def test_rows_of_the_journal_that_are_not_booked_yet_stand_beside(
    store, tmp_path: Path
) -> None:
    start = dt.datetime(2026, 11, 2, tzinfo=BERLIN)
    journal = Journal(tmp_path / "journal", "0")
    sent, waiting = row("sent", start), row("waiting", start, cost=50)
    for one in (sent, waiting, row("old", start - dt.timedelta(days=40)), row("ads", start, "ads")):
        journal.close(one)
    await store.append([orjson.dumps(sent)])
    found = await status((MONTH,), now_s=NOW, counts={}, store=store, journal=tmp_path / "journal")
    by_holder = {one.holder: one.booked for one in found.budgets}
    assert by_holder == {
        "search": Booked(rows=1, nano_usd=1000, unsent=1, unsent_nano=50),
        "ads": Booked(unsent=1, unsent_nano=1000),
    }
    journal.stop()


async def test_per_key_and_per_alias_and_what_slides(store, tmp_path: Path) -> None:
    at = dt.datetime.fromtimestamp(NOW, dt.UTC)
    rows = [row("a", at - dt.timedelta(minutes=59)), row("b", at - dt.timedelta(minutes=61))]
    await store.append([orjson.dumps(one) for one in rows])
    hour = Limit(name="hour", per="key", unit=Unit.USD, amount=10**9, period=Period.HOUR)
    day = Limit(name="day", per="alias", unit=Unit.USD, amount=10**9, period=Period.DAY)
    found = await status((hour, day), now_s=NOW, counts={}, store=store, journal=tmp_path / "none")
    key, alias = found.budgets
    assert (key.holder, key.booked, key.used, key.known) == (
        "0123456789ab",
        Booked(rows=1, nano_usd=1000),
        None,  # counts in memory only: the ledger's figure stands for it
        1000,
    )
    assert (alias.holder, alias.used) == ("fast", 0)


async def test_without_a_database_the_counters_stand_alone(tmp_path: Path) -> None:
    counts = {("team-month", "search"): Count(1500, 1400)}
    found = await status(
        (MONTH,), now_s=NOW, counts=counts, store=None, journal=tmp_path, missing=["gone"]
    )
    (one,) = found.budgets
    assert (one.used, one.booked, one.differences()) == (1400, None, [])
    assert found.missing == ("gone",)
