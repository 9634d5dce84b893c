"""Old rows go by policy, whole months at a time; sums stay, and nothing that stays is missed."""

from __future__ import annotations

import asyncio
import json

import orjson
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger import retention, rollups, upkeep
from gateway.ledger.partitions import begin_us, following, month_of
from gateway.ledger.store import Store, attempts, prunings, request_facts, request_hours, requests
from gateway.ledger.writer import replace_hour
from tests.unit.ledger.records import attempt, request

pytest_plugins = ("tests.servers",)

NOW_US = begin_us(202611) + 23 * 86_400_000_000
MONTHS = (202607, 202608, 202609, 202610, 202611)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url):
    """Eleven requests in each month, two attempts each: at its first moment, its last, between."""
    store = await Store.connect(url)
    for month in MONTHS:
        since, until = begin_us(month), min(begin_us(following(month)), NOW_US)
        for n in range(11):
            at = since if n == 0 else until - 1 if n == 1 else since + n * 86_400_000_000
            tries = [attempt(1, started_at_us=at + 1), attempt(2, started_at_us=at + 2)]
            made = request(f"{month}-{n:02}", started_at_us=at, attempts=tries)
            await store.append([orjson.dumps(made)])
    await store.append([orjson.dumps(request("no clock", started_at_us=9))])
    yield store
    await store.close()


async def months(store: Store, query: sa.Select) -> dict[int, int]:
    found: dict[int, int] = {}
    for row in await store.select(query):
        month = month_of(row["at"])
        found[month] = found.get(month, 0) + 1
    return found


STARTS = sa.select(requests.c.started_at_us.label("at"))
TRIES = sa.select(attempts.c.request_started_at_us.label("at"))


async def test_whole_months_go_and_sums_stay(store):
    before = await store.select(sa.select(sa.func.sum(request_hours.c.rows).label("n")))
    due = await store.due(now_us=NOW_US, rows_months=2, decisions_days=None)
    assert due.months == {202607: 11, 202608: 11}
    assert (due.requests, due.decisions) == (22, 0)
    assert len(await store.select(STARTS)) == 56  # looking changes nothing
    await upkeep.prune(store._engine, due, now_us=NOW_US, page_rows=4)
    left = {202609: 11, 202610: 11, 202611: 11}
    assert await months(store, STARTS) == left | {197001: 1}
    assert await months(store, TRIES) == {m: 2 * n for m, n in left.items()} | {197001: 1}
    assert await store.select(sa.select(sa.func.sum(request_hours.c.rows).label("n"))) == before
    agreed = await store.rollups_agree()
    assert (agreed.differences, agreed.hours > 20) == ([], True)
    await store.rebuild_rollups()
    assert await store.select(sa.select(sa.func.sum(request_hours.c.rows).label("n"))) == before
    again = await store.due(now_us=NOW_US, rows_months=2, decisions_days=None)
    assert again.months == {}
    late = request("late", started_at_us=begin_us(202608) + 7)  # from a journal found in a drawer
    await store.append([orjson.dumps(late)])
    assert await store.request("late") == late
    assert (await store.rollups_agree()).differences == []


@pytest.mark.parametrize("keep", [1, 4, 5, 400])
async def test_the_present_month_and_those_to_keep_are_never_touched(store, keep):
    due = await store.due(now_us=NOW_US, rows_months=keep, decisions_days=None)
    first = following(202611, -keep)
    assert due.months == {month: 11 for month in MONTHS if month < first}
    await upkeep.prune(store._engine, due, now_us=NOW_US, page_rows=4)
    found = await months(store, STARTS)
    assert found == {m: 11 for m in MONTHS if m >= first} | {197001: 1}


async def test_to_keep_no_complete_month_is_refused(store):
    with pytest.raises(ValueError, match="at least one"):
        await store.due(now_us=NOW_US, rows_months=0, decisions_days=None)


async def test_decisions_go_by_age_in_pages(store):
    due = await store.due(now_us=NOW_US, rows_months=None, decisions_days=30)
    before = NOW_US - 30 * 86_400_000_000
    decided = sa.select(requests.c.started_at_us).where(requests.c.decision.is_not(None))
    old = [r for r in await store.select(decided) if 10 < r["started_at_us"] < before]
    assert due.decisions == len(old) > 20
    await upkeep.prune(store._engine, due, now_us=NOW_US, page_rows=4)
    left = [r["started_at_us"] for r in await store.select(decided)]
    assert min(at for at in left if at > 10) >= before
    assert len(left) == 56 - len(old)
    assert len(await store.select(STARTS)) == 56
    assert (await store.rollups_agree()).differences == []
    again = await store.due(now_us=NOW_US, rows_months=None, decisions_days=30)
    assert again.decisions == 0


async def test_stopped_in_between_it_goes_on_the_next_time(store):
    due = await store.due(now_us=NOW_US, rows_months=1, decisions_days=10)
    async with store._begin() as connection:  # the first steps, and no more
        await connection.run_sync(retention.note_rows, due, now_us=NOW_US)
        await connection.run_sync(retention.drop_month, 202607)
    assert (await store.rollups_agree()).differences == []
    rest = await store.due(now_us=NOW_US, rows_months=1, decisions_days=10)
    await store.prune(rest, now_us=NOW_US)
    assert set(await months(store, STARTS)) == {197001, 202610, 202611}
    noted = await store.select(sa.select(prunings).order_by(prunings.c.made_at_us))
    assert [(row["requests"], row["decisions"] > 0) for row in noted] == [
        (33, False), (22, False), (0, False), (0, True)
    ]  # fmt: skip


SUM = sa.select(sa.func.sum(request_hours.c.rows).label("n"))


async def replace(store: Store, hour_us: int) -> None:
    async with store._begin() as connection:
        await upkeep.as_of_now(connection)
        await connection.run_sync(replace_hour, hour_us)


async def test_a_rebuild_that_meets_a_prune_leaves_its_hours(store):
    before = await store.select(SUM)
    async with store._begin() as connection:  # a rebuild looks which hours there are ...
        hours = await connection.run_sync(rollups.hours, None, None)
    due = await store.due(now_us=NOW_US, rows_months=1, decisions_days=None)
    await store.prune(due, now_us=NOW_US)
    for hour_us in hours:  # ... and comes to them later
        await replace(store, hour_us)
    assert await store.select(SUM) == before
    async with store._begin() as connection:
        for hour_us in hours:
            assert await connection.run_sync(rollups.compare, hour_us) == []


async def test_a_rebuild_waits_for_the_note_of_what_goes(postgres_url):
    store = await Store.connect(postgres_url)
    await store.append([orjson.dumps(request("old", started_at_us=begin_us(202607)))])
    due = await store.due(now_us=NOW_US, rows_months=1, decisions_days=None)
    async with store._begin() as connection:
        await connection.execute(sa.delete(request_hours))  # a rebuild would bring it back
        await connection.run_sync(retention.note_rows, due, now_us=NOW_US)
        rebuilt = asyncio.create_task(replace(store, begin_us(202607)))
        waiting = sa.text("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")
        async with asyncio.timeout(30):
            while not rebuilt.done() and not (await store.select(waiting))[0]["n"]:
                await asyncio.sleep(0.01)
    await rebuilt
    assert await store.select(SUM) == [{"n": None}]
    await store.close()


async def test_no_statement_counts_more_than_a_day(store):
    """A month of rows may take longer to count than a statement may take."""
    spans = []

    def look(_connection, _cursor, statement, parameters, *_):
        if "count(" in statement:
            since, until, *_ = parameters
            spans.append(until - since)

    sa.event.listen(store._engine.sync_engine, "before_cursor_execute", look)
    due = await store.due(now_us=NOW_US, rows_months=1, decisions_days=10)
    assert (due.requests, due.decisions) == (33, 21)
    assert len(spans) > 33
    assert max(spans) <= retention.DAY_US


async def test_decisions_are_noted_before_they_go(store):
    due = await store.due(now_us=NOW_US, rows_months=None, decisions_days=30)
    async with store._begin() as connection:  # the first steps, and no more
        await connection.run_sync(retention.announce_decisions, due, now_us=NOW_US)
        since = await connection.run_sync(retention.emptied_us)
        before = due.decisions_before_us
        assert await connection.run_sync(retention.empty_decisions, since, before, 4)
    noted = await store.select(sa.select(prunings.c.decisions_before_us))
    assert noted == [{"decisions_before_us": due.decisions_before_us}]
    rest = await store.due(now_us=NOW_US, rows_months=None, decisions_days=30)
    assert rest.decisions == due.decisions - 4
    await store.prune(rest, now_us=NOW_US)
    again = await store.due(now_us=NOW_US, rows_months=None, decisions_days=30)
    assert again.decisions == 0


async def test_the_command_says_what_goes(store, url, monkeypatch, tmp_path):
    for name, value in (("HOME", str(tmp_path)), ("DATABASE_URL", url)):
        monkeypatch.setenv(f"WEIGHBRIDGE_{name}", value)

    async def run(*args: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, ["db", *args])
        assert result.exit_code == 0, result.output
        return result.output

    assert (await run("prune")).splitlines() == [
        "rows: all stay; WEIGHBRIDGE_KEEP_ROWS_MONTHS is not set",
        "decisions: all stay; WEIGHBRIDGE_KEEP_DECISIONS_DAYS is not set",
    ]
    monkeypatch.setenv("WEIGHBRIDGE_KEEP_ROWS_MONTHS", "1")
    said = (await run("prune", "--dry-run")).splitlines()
    assert said[0].endswith("would go; 1 complete month and the present one stay")
    assert said[1].split() == ["2026-07", "11"]
    assert len(await store.select(STARTS)) == 56
    found = json.loads(await run("prune", "--json"))
    assert found["deleted"]
    assert len(await store.select(STARTS)) == 56 - found["requests"]
    assert "merged" in await run("compact")
    assert "made again" in await run("rebuild-rollups")
    assert "are what their rows make" in await run("rebuild-rollups", "--check")
    async with store._begin() as connection:
        await connection.execute(sa.update(request_facts).values(output_tokens=1))
    result = await asyncio.to_thread(CliRunner().invoke, app, ["db", "rebuild-rollups", "--check"])
    assert result.exit_code == 1
    assert "not as the rows make them" in result.output
