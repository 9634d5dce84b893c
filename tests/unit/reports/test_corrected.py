"""Rating runs in reports, costs by meter, unit costs, and the rows behind each of them."""

from __future__ import annotations

import datetime as dt
import shlex
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.money import OUTPUT_METERS, PROMPT_METERS, Unpriced, book, rate
from gateway.domain.outcome import AttemptRecord, RequestRecord
from gateway.domain.rating import metered, quantities
from gateway.ledger import known_prices, ratings
from gateway.ledger.journal import _encode
from gateway.ledger.prices import PriceBook
from gateway.ledger.store import Store, attempts
from gateway.reports import definition as d
from gateway.reports.cost import cost
from gateway.reports.document import money
from gateway.reports.focus.export import Summary, Wanted, export
from gateway.reports.foot import digest
from gateway.reports.kept import Kept
from gateway.reports.quality import quality
from gateway.reports.rows import pages
from tests.unit.ledger.records import request
from tests.unit.reports.month import (
    BOOK,
    BOOK_ROWS,
    LATER,
    LATER_ROWS,
    MONTH_US,
    NOVEMBER_US,
    month,
    stated,
    written,
)
from tests.unit.reports.test_cost import ALL, KINDS, NOW

pytestmark = pytest.mark.xdist_group("reports")

GROUPS = [("team",), ("backend", "model"), ("service_tier",), ("day", "kind"), ("policy",)]


@pytest.fixture
def records() -> list[RequestRecord]:
    return list(month(500, seed=9))


@pytest.fixture
async def filled(store, records, tmp_path):
    await stated(store)
    await written(store, tmp_path / "journal", iter(records))
    return store


@pytest.fixture
async def corrected(filled):
    """Prices that came late, and one that was wrong: rated again by what is known now."""
    await _rerate(filled, LATER)
    return filled


async def _rerate(store: Store, prices: PriceBook) -> None:
    await stated(store, prices)
    known = await known_prices.as_known(store)
    wanted = ratings.Wanted(since_us=NOVEMBER_US, until_us=NOVEMBER_US + MONTH_US)
    by = ratings.By(known, 2 * 10**15, lambda _: {})
    made = await ratings.apply(store, wanted, by, author="finance", note="prices came late")
    assert made.total().corrected > 20


def _stands(one: AttemptRecord, record: RequestRecord, prices: PriceBook) -> dict:
    """What an attempt costs by the book, by meter; as booked where that does not know it."""
    usage = metered({name: getattr(one, name) for name in one.__slots__})
    rates = prices.rates(Target(one.backend, one.model), record.started_at_us)
    try:
        return {line.meter: line.nano for line in rate(rates, quantities(usage), service_tier=one.service_tier).lines}  # fmt: skip
    except (Unpriced, AttributeError):
        return {}


def _nano(one: AttemptRecord, record: RequestRecord, prices: PriceBook) -> int:
    return book(sum(_stands(one, record, prices).values(), Decimal(0)))


async def _rows(store: Store, command: str) -> list[dict]:
    words = [word for word in shlex.split(command)[3:] if word != "--attempts"]
    options: dict[str, list[str]] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        options.setdefault(name, []).append(value)
    period = d.period(
        now=NOW,
        zone=options["--zone"][0],
        since=options["--since"][0],
        until=options["--until"][0],
    )
    definition = d.Definition(
        report="rows",
        period=period,
        where=d.filters(options.get("--where", [])),
        kinds=KINDS,
        attempts="--attempts" in command,
        run=int(options["--run"][0]) if "--run" in options else None,
    )
    async with store.snapshot() as view:
        return [row async for table in pages(view, definition) for row in table.rows]


async def test_corrected_is_what_the_book_says_now_and_booked_stays(corrected, records):
    for by in GROUPS:
        report = await cost(corrected, replace(ALL, by=by), now=NOW)
        total = report.table.total
        assert total["cost"] == sum(r.cost_nano_usd or 0 for r in records)
        every = [(a, r) for r in records for a in r.attempts if a.usage_source != "none"]
        assert total["corrected"] == sum(_nano(a, r, LATER) for a, r in every)
        assert total["correction"] == total["corrected"] - total["cost"] != 0
        for name in ("cost", "correction", "corrected"):
            assert sum(line[name] or 0 for line in report.table.rows) == total[name]
    assert ("Rating runs", "1") in [(name, text[0]) for name, text in report.foot]
    assert report.json_foot["rating_runs"][0]["note"] == "prices came late"


async def test_what_a_run_priced_is_unpriced_no_more(corrected, records):
    for by in (("team",), ("backend",)):
        report = await cost(corrected, replace(ALL, by=by), now=NOW)
        of = [a for r in records for a in r.attempts if a.usage_source != "none"]
        still = [a for a in of if a.service_tier == "priority"]
        if by == ("team",):
            still = [
                r for r in records
                if r.usage_source != "none"
                and any(a.service_tier == "priority" for a in r.attempts)
            ]  # fmt: skip
        assert report.table.total["unpriced"] == len(still)
    lines = {line["backend"]: line for line in report.table.rows}
    assert lines["newcomer"]["cost"] is None
    assert lines["newcomer"]["corrected"] > 0
    assert lines["newcomer"]["per_request"] > 0


async def test_unit_costs_are_those_of_the_meters(filled, records):
    for prices, rerated in ((BOOK, False), (LATER, True)):
        if rerated:
            await _rerate(filled, LATER)
        report = await cost(filled, replace(ALL, by=("backend",)), now=NOW)
        for line in report.table.rows:
            if line["backend"] == "(shadow)":
                continue
            mine = [
                (a, r)
                for r in records
                for a in r.attempts
                if a.backend == line["backend"] and not r.shadow_of
            ]
            for name, meters in (("input", PROMPT_METERS), ("output", OUTPUT_METERS)):
                nano, tokens = Decimal(0), 0
                for a, r in mine:
                    lines = _stands(a, r, prices)
                    nano += sum(n for meter, n in lines.items() if meter in meters)
                    usage = metered({n: getattr(a, n) for n in a.__slots__})
                    tokens += sum(n for m, n in quantities(usage).items() if m in meters and lines)
                assert line[f"{name}_billed"] == tokens
                assert line[f"{name}_cost"] == book(nano)
                if tokens:
                    assert line[f"per_m{name}"] == Decimal(book(nano)) / tokens / 1000


@pytest.mark.parametrize("by", [("meter",), ("team", "meter"), ("day", "meter"), ("meter", "app")])
async def test_meters_add_up_to_the_total_to_the_nano(filled, by, records):
    for rerated in (False, True):
        if rerated:
            await _rerate(filled, LATER)
        report = await cost(filled, replace(ALL, by=by), now=NOW)
        prices = LATER if rerated else BOOK
        whole = sum(
            _nano(a, r, prices) for r in records for a in r.attempts if a.usage_source != "none"
        )
        assert sum(line["cost"] for line in report.table.rows) == whole
        assert report.table.total["cost"] == whole
        used = Counter()
        for line in report.table.rows:
            if line["quantity"]:
                used[line["meter"].split()[0]] += line["quantity"]
        every = Counter()
        for r in records:
            for a in r.attempts:
                if _stands(a, r, prices):
                    usage = metered({n: getattr(a, n) for n in a.__slots__})
                    every.update({m.value: n for m, n in quantities(usage).items()})
        assert used == every


async def test_every_line_of_a_meter_drills_down_to_its_rows(filled):
    for rerated in (False, True):
        if rerated:
            await _rerate(filled, LATER)
        report = await cost(filled, replace(ALL, by=("backend", "meter")), now=NOW)
        for line in report.table.rows:
            if line["quantity"] is None:
                continue
            found = await _rows(filled, line["drill_down"])
            priced = [row for row in found if row["meter_usd"]]
            assert sum(row["quantity"] for row in priced) == line["quantity"]
            exact = sum(Decimal(row["meter_usd"]) for row in priced)
            assert book(exact.scaleb(9)) == line["cost"]


async def test_corrections_drill_down_to_their_rows(corrected):
    for by in (("team",), ("backend", "outcome"), ("service_tier",)):
        report = await cost(corrected, replace(ALL, by=by), now=NOW)
        for line in [*report.table.rows, report.table.total]:
            found = await _rows(corrected, line["drill_down"])
            assert len(found) == line["requests"]
            assert sum(row["correction"] for row in found) == line["correction"]
            assert sum(row["corrected"] or 0 for row in found) == (line["corrected"] or 0)
            assert sum(row["cache_write"] or 0 for row in found) >= line["cache_write"]


async def test_a_report_can_be_asked_for_as_it_was_before_a_later_run(filled):
    before = await digest_of(filled, ALL)
    await _rerate(filled, LATER)
    first = await cost(filled, replace(ALL, by=("team",)), now=NOW)
    assert await digest_of(filled, replace(ALL, by=("team",))) == first.json_foot["digest"]
    again = dict(first.foot)["Run again"]
    assert "--run 1" in again
    dearer = [
        {**row, "input_usd_per_mtok": "9"} if row["model"] == "gpt-4.1" else row
        for row in (*BOOK_ROWS, *LATER_ROWS)
    ]
    await _rerate(filled, PriceBook.of(dearer))
    second = await cost(filled, replace(ALL, by=("team",)), now=NOW)
    assert second.table.total["corrected"] > first.table.total["corrected"]
    assert second.json_foot["digest"] != first.json_foot["digest"]
    upto = replace(ALL, by=("team",), run=1)
    assert await digest_of(filled, upto) == first.json_foot["digest"]
    as_it_was = await cost(filled, upto, now=NOW)
    assert as_it_was.table.total == first.table.total | {
        "drill_down": as_it_was.table.total["drill_down"]
    }
    assert before != first.json_foot["digest"]


async def digest_of(store: Store, definition: d.Definition) -> str:
    async with store.snapshot() as view:
        return (await digest(view, definition))[0]


async def test_quality_says_which_prices_are_missing(filled, records):
    known = await known_prices.as_known(filled)
    report = await quality(filled, replace(ALL, report="quality"), now=NOW, book=known)
    (missing,) = report.more
    lines = {(row["model"], row["tier"]): row for row in missing.rows}
    assert set(lines) == {("gpt-4.1-mini", "priority"), ("model-x", "standard")}
    assert "service tier 'priority'" in lines["gpt-4.1-mini", "priority"]["lacks"]
    assert "no row" in lines["model-x", "standard"]["lacks"]
    for (model, tier), row in lines.items():
        of = [
            a
            for r in records
            for a in r.attempts
            if (a.model, a.service_tier or "standard") == (model, tier) and a.usage_source != "none"
        ]
        assert row["attempts"] == len(of)
        assert f"--model {model} --only-unpriced" in row["rate_again"]
    assert "search_call" in lines["gpt-4.1-mini", "priority"]["meters"]
    later = await quality(filled, replace(ALL, report="quality"), now=NOW, book=LATER)
    told = {row["model"]: row["lacks"] for row in later.more[0].rows}
    assert "rate them again" in told["model-x"]


LATE = dt.datetime(2027, 6, 2, tzinfo=dt.UTC)
UTC = replace(ALL, period=replace(ALL.period, zone="UTC"))  # no hour is cut: sums are enough


async def _pruned(store: Store) -> None:
    now_us = int(LATE.timestamp()) * 1_000_000
    due = await store.due(now_us=now_us, rows_months=2, decisions_days=None)
    await store.prune(due, now_us=now_us)
    assert not await store.select(sa.select(attempts.c.number).limit(1))


@pytest.mark.parametrize("by", [(), ("team",), ("backend", "day"), ("team", "meter")])
async def test_what_rating_runs_corrected_stays_when_rows_go(corrected, by):
    definition = replace(UTC, by=by)
    before = await cost(corrected, definition, now=LATE)
    await _pruned(corrected)
    after = await cost(corrected, definition, now=LATE)
    names = ("cost", "correction", "corrected") if "meter" not in by else ("cost",)
    for name in names:
        assert after.table.total[name] == before.table.total[name]
        assert sum(line[name] or 0 for line in after.table.rows) == after.table.total[name]
    assert after.json_foot["digest"] == before.json_foot["digest"]
    assert await digest_of(corrected, definition) == before.json_foot["digest"]
    assert after.json_foot["rating_runs"] == before.json_foot["rating_runs"] != []
    assert any("corrects rows that are gone" in remark for remark in after.remarks)
    own = [line for line in after.table.rows if "(rows pruned)" in line.values()]
    assert bool(own) == bool(by)
    assert not any(line["drill_down"] for line in own)
    summary = Summary()
    wanted = Wanted(period=definition.period)
    assert [text async for _, text in export(corrected, wanted, Kept(corrected), summary)]
    total = after.table.total.get("corrected", after.table.total["cost"])
    assert summary.effective.scaleb(9) == total == summary.ledger_nano


async def test_corrections_that_no_filter_can_tell_are_told_beside_the_sums(corrected):
    whole = (await cost(corrected, UTC, now=LATE)).table.total["correction"]
    await _pruned(corrected)
    mine = replace(UTC, where=(("team", "search"),))
    report = await cost(corrected, mine, now=LATE)
    assert report.table.total["correction"] == 0
    assert [money(whole) in remark for remark in report.remarks if "no filter" in remark] == [True]
    counted = await quality(corrected, replace(UTC, report="quality"), now=LATE)
    assert any(f"by {money(whole)}" in remark for remark in counted.remarks)
    assert any("corrects rows that are gone" in remark for remark in counted.remarks)


async def test_a_tag_value_is_never_taken_for_rows_that_are_gone(filled):
    named = request("odd", started_at_us=NOVEMBER_US + 7, tags={"team": "(rows pruned)"})
    await filled.append([_encode(named)[:-1]])
    await _rerate(filled, LATER)
    await _pruned(filled)
    report = await cost(filled, replace(UTC, by=("team",)), now=LATE)
    assert [line["team"] for line in report.table.rows].count("(rows pruned)") == 2
