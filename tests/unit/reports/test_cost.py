"""The cost report on both databases, against sums worked out from the same records in Python."""

from __future__ import annotations

import datetime as dt
import hashlib
import shlex
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import orjson
import pytest
import sqlalchemy as sa

from gateway.domain.outcome import Outcome, RequestRecord
from gateway.reports import definition as d
from gateway.reports import sums
from gateway.reports.cost import cost
from gateway.reports.foot import digest
from gateway.reports.quality import quality
from gateway.reports.rows import page, pages
from tests.unit.ledger.records import attempt, request
from tests.unit.reports.month import MONTH_US, NOVEMBER_US, month, stated, written

pytestmark = pytest.mark.xdist_group("reports")

NOW = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)
ZONE = "Europe/Berlin"
KINDS = {"openai": "closed_api", "fireworks": "managed", "own-cluster": "self_hosted"}
ALL = d.Definition(
    report="cost",
    period=d.Period(since_us=NOVEMBER_US, until_us=NOVEMBER_US + MONTH_US, zone=ZONE),
    kinds=KINDS,
    compare=False,
)


@pytest.fixture
def records() -> list[RequestRecord]:
    return list(month(600))


@pytest.fixture
async def filled(store, records, tmp_path):
    await stated(store)
    await written(store, tmp_path / "journal", iter(records))
    return store


def _sum(costs) -> int | None:
    return sum(one for one in costs if one is not None)


async def test_by_team_every_figure_is_what_the_records_add_up_to(filled, records):
    report = await cost(filled, replace(ALL, by=("team",)), now=NOW)
    for line in report.table.rows:
        if line["team"] == "(shadow)":
            mine = [r for r in records if r.shadow_of]
        else:
            team = None if line["team"] == "(no team)" else line["team"]
            mine = [r for r in records if not r.shadow_of and r.tags.get("team") == team]
        assert line["requests"] == len(mine)
        assert line["cost"] == _sum(r.cost_nano_usd for r in mine)
        assert line["output"] == sum(r.output_tokens or 0 for r in mine)
        assert line["unpriced"] == sum(r.usage_source != "none" and not r.priced for r in mine)
        lost = [
            a.cost_nano_usd or 0
            for r in mine
            for a in r.attempts
            if a.outcome == Outcome.HEDGE_LOST
        ]
        assert line["waste_hedges"] == sum(lost)
        times = sorted(r.ttft_us for r in mine if r.ttft_us is not None)
        at = Fraction(95 * (len(times) - 1), 100)
        low = int(at)
        exact = times[low] + (at - low) * (times[min(low + 1, len(times) - 1)] - times[low])
        assert line["ttft_p95"] == pytest.approx(float(exact) / 1000, abs=1e-6)
    assert report.table.total["cost"] == _sum(r.cost_nano_usd for r in records)
    assert sum(line["requests"] for line in report.table.rows) == len(records)
    assert [r for r in report.remarks if "contradicts" in r] == []


@pytest.mark.parametrize(
    "by",
    [("backend",), ("kind", "model"), ("team", "backend"), ("key",), ("day",), ("hour", "alias")],
)
async def test_every_way_of_grouping_comes_to_the_same_total(filled, records, by):
    report = await cost(filled, replace(ALL, by=by), now=NOW)
    assert report.table.total["cost"] == _sum(r.cost_nano_usd for r in records)
    assert _sum(line["cost"] for line in report.table.rows) == report.table.total["cost"]
    if "backend" in by or "kind" in by:
        assert report.table.total["requests"] == sum(len(r.attempts) for r in records)


async def test_what_has_no_price_is_never_0(filled):
    report = await cost(filled, replace(ALL, by=("backend",)), now=NOW)
    lines = {line["backend"]: line for line in report.table.rows}
    assert lines["newcomer"]["cost"] is None
    assert lines["newcomer"]["per_request"] is lines["newcomer"]["share"] is None
    assert lines["newcomer"]["unpriced"] > 0
    assert "without a known price" in report.remarks[0]


async def test_every_line_drills_down_to_rows_that_add_up_to_it(filled):
    for by in (("team",), ("backend", "outcome"), ("day", "team"), ("hour",)):
        report = await cost(filled, replace(ALL, by=by), now=NOW)
        for line in report.table.rows[:12] + report.table.rows[-1:]:
            definition = _parsed(line["drill_down"])
            found = [row async for some in pages(filled, definition) for row in some.rows]
            assert len(found) == line["requests"]
            assert sum(row["cost"] or 0 for row in found) == (line["cost"] or 0)


def _parsed(command: str) -> d.Definition:
    words = [word for word in shlex.split(command)[3:] if word != "--attempts"]
    options = {name: [] for name in ("--where", "--since", "--until", "--zone", "--run")}
    for name, value in zip(words[::2], words[1::2], strict=True):
        options[name].append(value)
    (since,), (until,), (zone,) = (options[n] for n in ("--since", "--until", "--zone"))
    period = d.period(now=NOW, zone=zone, since=since, until=until)
    return d.Definition(
        report="rows",
        period=period,
        where=d.filters(options["--where"]),
        kinds=KINDS,
        attempts="--attempts" in command,
        run=int(options["--run"][0]) if options["--run"] else None,
    )


async def test_days_are_those_of_the_zone_where_the_clock_changes(store):
    at = dt.datetime(2026, 10, 24, 21, 30, tzinfo=dt.UTC)  # 23:30 in Berlin, then every half hour
    starts = [int(at.timestamp()) * 10**6 + n * 1_800_000_000 for n in range(54)]
    await store.append(
        [
            _line(request(f"r{n:02d}", started_at_us=us, cost_nano_usd=1))
            for n, us in enumerate(starts)
        ]
    )
    period = d.period(now=NOW, zone=ZONE, since="2026-10-24", until="2026-10-27")
    one = replace(ALL, period=period, by=("day",))
    days = {row["day"]: row["requests"] for row in (await cost(store, one, now=NOW)).table.rows}
    assert days == {"2026-10-24": 1, "2026-10-25": 50, "2026-10-26": 3}
    hours = (await cost(store, replace(one, by=("hour",)), now=NOW)).table.rows
    assert Counter(row["requests"] for row in hours) == {2: 26, 1: 2}
    twice = [row["hour"] for row in hours if "2026-10-25 02:00" in row["hour"]]
    assert twice == ["2026-10-25 02:00 +02:00", "2026-10-25 02:00 +01:00"]


def _line(record: RequestRecord) -> bytes:
    return orjson.dumps(record)


async def test_the_period_is_half_open_and_an_attempt_belongs_to_its_requests(store):
    begin, end = NOVEMBER_US, NOVEMBER_US + MONTH_US
    late = attempt(started_at_us=end + 5)
    await store.append(
        [
            _line(request("before", started_at_us=begin - 1)),
            _line(request("first", started_at_us=begin)),
            _line(request("last", started_at_us=end - 1, attempts=[late])),
            _line(request("after", started_at_us=end)),
        ]
    )
    for by in (("team",), ("backend",)):
        report = await cost(store, replace(ALL, by=by), now=NOW)
        assert report.table.total["requests"] == 2
        assert report.table.total["cost"] == 240_000


async def test_compared_with_the_period_before_groups_that_are_gone_included(store):
    one = request("now", started_at_us=NOVEMBER_US, tags={"team": "a"}, cost_nano_usd=150_000)
    one.attempts[0].cost_nano_usd = 150_000
    gone = request("then", started_at_us=NOVEMBER_US - 5, tags={"team": "b"})
    await store.append([_line(one), _line(gone), _line(replace(gone, id="a", tags={"team": "a"}))])
    report = await cost(store, replace(ALL, by=("team",), compare=True), now=NOW)
    lines = {line["team"]: line for line in report.table.rows}
    assert (lines["a"]["previous"], float(lines["a"]["change"])) == (120_000, 0.25)
    assert (lines["b"]["requests"], lines["b"]["cost"], float(lines["b"]["change"])) == (0, 0, -1.0)


async def test_a_ledger_that_contradicts_itself_is_said_so(store):
    await store.append([_line(request("r", started_at_us=NOVEMBER_US, cost_nano_usd=7))])
    report = await cost(store, replace(ALL, by=("team",)), now=NOW)
    assert "contradicts itself" in report.remarks[-1]


async def test_the_digest_is_of_the_rows_wherever_they_are_read(filled, records):
    """From the roll-ups, with ends inside of hours, with days that cut hours: always the rows."""
    end = NOVEMBER_US + MONTH_US
    for since, until, zone in (
        (NOVEMBER_US, end, ZONE),
        (NOVEMBER_US + 1_800_000_001, end - 7, "Asia/Kolkata"),
        (NOVEMBER_US + 5, NOVEMBER_US + 900_000_000, "UTC"),
    ):
        period = d.Period(since_us=since, until_us=until, zone=zone)
        for by in ((), ("day",), ("backend", "day")):
            one = replace(ALL, period=period, by=by)
            of = [r for r in records if since <= r.started_at_us < until]
            lines = [f"{r.started_at_us} {r.id} 0 {_dash(r.cost_nano_usd)}" for r in of]
            if by and by[0] == "backend":
                lines = [
                    f"{r.started_at_us} {r.id} {a.number} {_dash(a.cost_nano_usd)}"
                    for r in of
                    for a in r.attempts
                ]
            words = [0, 0, 0, 0]
            for line in lines:
                found = hashlib.sha256(line.encode()).digest()
                for n in range(4):
                    words[n] += int.from_bytes(found[4 * n : 4 * n + 4], "big")
            alone = replace(one, by=(), attempts=one.of_attempts)
            whole = (await sums.added(filled, alone, period, ())).total()
            shown = [whole.cost, whole.costed, whole.unpriced]
            shown += [whole.uncached, whole.cached, whole.output]
            text = " ".join(map(str, [*words, len(lines), *shown]))
            wanted = one.digest(hashlib.sha256(text.encode()).hexdigest())
            assert await digest(filled, one) == (wanted, len(lines))
            report = await cost(filled, one, now=NOW)
            assert report.json_foot["digest"] == wanted


def _dash(cost: int | None) -> str:
    return "-" if cost is None else str(cost)


async def test_a_sum_that_somebody_changed_is_another_digest(filled):
    """In both roll-ups alike, so that requests and attempts still agree with one another."""
    before = await digest(filled, ALL)
    async with filled._begin() as connection:
        for table in ("request_hours", "attempt_hours"):
            await connection.execute(
                sa.text(f"UPDATE {table} SET cost_nano_usd = cost_nano_usd + 5")
            )
    assert (await digest(filled, ALL))[0] != before[0]


async def test_a_report_from_before_the_first_rating_run_can_be_made_again(filled):
    report = await cost(filled, ALL, now=NOW)
    assert "--run 0" in report.json_foot["run_again"]


async def test_one_more_row_is_another_digest(filled):
    before = await digest(filled, ALL)
    await filled.append([_line(request("one-more", started_at_us=NOVEMBER_US + 1))])
    assert (await digest(filled, ALL))[0] != before[0]


async def test_an_empty_period_is_an_empty_report_that_says_so(store):
    for report in (await cost(store, ALL, now=NOW), await quality(store, ALL, now=NOW)):
        assert report.table.rows == []
        assert "Nothing was recorded" in report.remarks[0]
        assert report.json_foot["rows"] == 0


async def test_a_tag_with_an_odd_name_and_an_odd_value(store):
    tags = {"cost center": 'it\'s "x"', "team": "a"}
    await store.append([_line(request("r", started_at_us=NOVEMBER_US, tags=tags))])
    one = replace(ALL, by=d.names(["cost center"], tags))
    (line,) = (await cost(store, one, now=NOW)).table.rows
    assert line["tag:cost center"] == 'it\'s "x"'


async def test_quality_counts_each_class_by_the_backend_that_answered(filled, records):
    report = await quality(filled, replace(ALL, report="quality"), now=NOW)
    mine = {line["backend"]: line for line in report.table.rows}
    for name in ("openai", "own-cluster"):
        of = [r for r in records if r.backend == name]
        assert mine[name]["requests"] == len(of)
        assert mine[name]["estimated"] == sum(r.usage_source == "estimated" for r in of)
        assert mine[name]["interrupted"] == sum(r.outcome == Outcome.INTERRUPTED for r in of)
    assert mine["(sent nowhere)"]["undecided"] == sum(r.decision is None for r in records)
    with pytest.raises(d.Unusable, match="answered_by"):
        await quality(filled, replace(ALL, where=(("backend", "openai"),)), now=NOW)


async def test_rows_come_page_by_page_each_once(filled, records):
    definition = replace(ALL, where=(("backend", "openai"),))
    seen, after = [], ""
    while True:
        one = await page(filled, definition, after=after, limit=50)
        seen += [(row["request"], row["attempt"]) for row in one.table.rows]
        after = one.after
        if not after:
            break
    wanted = [(r.id, str(a.number)) for r in records for a in r.attempts if a.backend == "openai"]
    assert seen == wanted
    with pytest.raises(d.Unusable, match="not a place"):
        await page(filled, definition, after="nowhere")
