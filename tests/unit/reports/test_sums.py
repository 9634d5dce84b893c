"""Sums against what the same records add up to in Python: any groups, filters, period and zone."""

from __future__ import annotations

import datetime as dt
import random
from bisect import bisect_right
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from zoneinfo import ZoneInfo

import orjson
import pytest
import sqlalchemy as sa

from gateway.domain.money import TOKEN_METERS
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.ledger.hours import HOUR_US, TTFT_BOUNDS_US
from gateway.ledger.store import Store, attempt_facts, prunings, request_facts
from gateway.reports import definition as d
from gateway.reports import percentiles, sums
from gateway.reports.cost import cost
from gateway.reports.rows import page
from gateway.reports.spans import PARTS_MAX, spans
from tests.unit.reports.month import DAY_US, MONTH_US, NOVEMBER_US, month, stated, written
from tests.unit.reports.test_cost import ALL, KINDS, NOW

pytestmark = pytest.mark.xdist_group("reports")

ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe")
GROUPS = ("team", "app", "key", "alias", "policy", "outcome", "answered_by", "day", "hour",
          "backend", "kind", "model", "service_tier")  # fmt: skip
FILTERS = (("team", "search"), ("team", ""), ("alias", "fast"), ("backend", "openai"),
           ("kind", "managed"), ("service_tier", ""), ("shadow", "yes"), ("outcome", "ok"),
           ("app", "web"), ("answered_by", "fireworks"))  # fmt: skip


@pytest.fixture
def records() -> list[RequestRecord]:
    return list(month(700, seed=3))


@pytest.fixture
async def filled(store, records, tmp_path):
    await stated(store)
    await written(store, tmp_path / "journal", iter(records))
    return store


def definitions(count: int) -> list[d.Definition]:
    rng = random.Random(11)
    made = []
    for _ in range(count):
        since = NOVEMBER_US + rng.choice((0, DAY_US, HOUR_US * 7, rng.randrange(DAY_US)))
        long = rng.choice((MONTH_US, DAY_US * 5, HOUR_US * 30, rng.randrange(1, MONTH_US)))
        period = d.Period(since_us=since, until_us=since + long, zone=rng.choice(ZONES))
        by = tuple(rng.sample(GROUPS, rng.randrange(4)))
        where = tuple(sorted(set(rng.choices(FILTERS, k=rng.choice((0, 0, 1, 2))))))
        made.append(replace(ALL, period=period, by=by, where=where))
    return made


async def test_every_sum_is_what_the_records_add_up_to(filled, records):
    seen = Counter()
    for definition in definitions(40):
        async with filled.snapshot() as view:
            found = await sums.added(view, definition, definition.period, definition.by, times=True)
        wanted = expected(records, definition)
        assert found.groups.keys() == wanted.keys(), definition
        for group, one in found.groups.items():
            mine = {name: getattr(one, name) for name in wanted[group]}
            assert mine == wanted[group], (definition, group)
            seen[len(found.groups) > 1] += 1
    assert min(seen.values()) > 3


def expected(records: list[RequestRecord], definition: d.Definition) -> dict:
    found: dict = {}
    for record in records:
        if not definition.period.since_us <= record.started_at_us < definition.period.until_us:
            continue
        tried = [a for a in record.attempts if _wanted(record, a, definition)]
        if definition.of_attempts:
            for one in tried:
                group = _group(record, one, definition)
                _put(found, group, record, one, known=one.cost_nano_usd is not None)
                _put_attempts(found, group, record, [one])
        elif _wanted(record, None, definition):
            group = _group(record, None, definition)
            _put(found, group, record, None, known=record.priced)
            _put_attempts(found, group, record, record.attempts)
    return found


def _value(name: str, record: RequestRecord, one: AttemptRecord | None, definition: d.Definition):
    of = one if definition.of_attempts and one is not None else record
    zone = ZoneInfo(definition.period.zone)
    at = dt.datetime.fromtimestamp(record.started_at_us // 10**6, dt.UTC).astimezone(zone)
    match name:
        case "team" | "app":
            return record.tags.get(name)
        case "key":
            return record.key_id
        case "kind":
            return KINDS.get(one.backend)
        case "shadow":
            return "yes" if record.shadow_of else "no"
        case "answered_by":
            return record.backend
        case "alias" | "policy":
            return getattr(record, name)
        case "day":
            return (at.date() - dt.date(1970, 1, 1)).days
        case "hour":
            begins = at.replace(minute=0, second=0, microsecond=0)
            return int(begins.timestamp()) * 10**6
    return getattr(of, name)


def _wanted(record, one, definition: d.Definition) -> bool:
    wanted: dict[str, set] = {}
    for name, value in definition.where:
        wanted.setdefault(name, set()).add(value or None)
    return all(_value(n, record, one, definition) in some for n, some in wanted.items())


def _group(record, one, definition: d.Definition):
    if record.shadow_of and not definition.only_shadow:
        return (True, *(None for _ in definition.by))
    return (False, *(_value(name, record, one, definition) for name in definition.by))


def _put(found, group, record, one, *, known: bool) -> None:
    of = record if one is None else one
    into = found.setdefault(group, Counter(dict.fromkeys(_NAMES, 0)) | {"waste": Counter(), "others": Counter(), "buckets": [0] * 40})  # fmt: skip
    tokens = (of.uncached_tokens or 0) + (of.cached_tokens or 0) + (of.output_tokens or 0)
    weighed = of.usage_source != "none"
    into["rows"] += 1
    into["cost"] += of.cost_nano_usd or 0
    into["costed"] += of.cost_nano_usd is not None
    into["unpriced"] += weighed and not known
    into["weighed"] += weighed
    into["estimated"] += of.usage_source == "estimated"
    into["uncached"] += of.uncached_tokens or 0
    into["cached"] += of.cached_tokens or 0
    into["output"] += of.output_tokens or 0
    into["costed_tokens"] += tokens if of.cost_nano_usd is not None else 0
    if of.ttft_us is not None:
        into["buckets"][bisect_right(TTFT_BOUNDS_US, of.ttft_us)] += 1
    if one is None and record.tps:
        into["speed_tokens"] += record.output_tokens
        into["speed_us"] += round(record.output_tokens * 1e6 / record.tps)
    elif one is not None and one.outcome == Outcome.OK and one.duration_us and one.output_tokens:
        into["speed_tokens"] += one.output_tokens
        into["speed_us"] += one.duration_us


def _put_attempts(found, group, record, tried) -> None:
    into = found[group]
    of = {outcome: why for why, outcomes in sums.WASTE.items() for outcome in outcomes}
    for one in tried:
        into["attempt_cost"] += one.cost_nano_usd or 0
        if one.outcome in of and one.cost_nano_usd:
            into["waste"][of[one.outcome]] += one.cost_nano_usd
        answered = (one.outcome, one.backend, one.model) == (
            record.outcome, record.backend, record.model)  # fmt: skip
        if one.other_meters and ((len(tried) == 1 and tried[0] is one) or answered):
            if len(record.attempts) > 1 and not answered and tried is record.attempts:
                continue
            into["others"].update(one.other_meters)
            if one.rates_id is not None:
                tokens = (n for m, n in one.other_meters.items() if m in TOKEN_METERS)
                into["costed_tokens"] += sum(tokens)


_NAMES = ("rows", "cost", "costed", "unpriced", "weighed", "estimated", "uncached", "cached",
          "output", "costed_tokens", "speed_tokens", "speed_us", "attempt_cost")  # fmt: skip


# --- spans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("times", [(), ("day",), ("hour",), ("day", "hour")])
def test_spans_are_the_period_each_moment_once(zone, times):
    rng = random.Random(5)
    for _ in range(12):
        since = NOVEMBER_US - rng.randrange(60 * DAY_US)
        until = since + rng.randrange(1, 50 * DAY_US)
        period = d.Period(since_us=since, until_us=until, zone=zone)
        made = spans(period, times)
        every = sorted((*made.whole, *made.parts))
        assert every[0][0] == since
        assert every[-1][1] == until
        assert all(one[1] == other[0] for one, other in pairwise(every))
        offsets = period.offsets()
        for start, end in made.whole:
            assert start % HOUR_US == end % HOUR_US == 0
            for at in range(start, end, HOUR_US):  # no day or hour begins inside of it
                for name in times:
                    size = DAY_US if name == "day" else HOUR_US
                    local = [x + _offset(offsets, x) for x in (at, at + HOUR_US - 1)]
                    assert local[0] // size == local[1] // size


def _offset(offsets: list[tuple[int, int]], at: int) -> int:
    return max((start, by) for start, by in offsets if start <= at)[1]


def test_days_of_a_zone_that_is_half_an_hour_off_are_cut_out_and_nothing_more():
    period = d.Period(since_us=NOVEMBER_US - HOUR_US // 2, until_us=NOVEMBER_US + MONTH_US,
                      zone="Asia/Kolkata")  # fmt: skip
    assert len(spans(period, ["day"]).parts) == 31
    assert spans(replace(period, since_us=NOVEMBER_US)).parts == ()
    long = replace(period, until_us=NOVEMBER_US + (PARTS_MAX + 2) * DAY_US)
    assert spans(long, ["day"]).parts == ((long.since_us, long.until_us),)


# --- percentiles ----------------------------------------------------------------------------------


def test_the_histogram_is_off_by_no_more_than_it_says():
    rng = random.Random(2)
    for _ in range(50):
        count = rng.randrange(1, 3_000)
        times = sorted(int(rng.lognormvariate(12.5, 1)) + 8_000 for _ in range(count))
        counts = [0] * 40
        for one in times:
            counts[bisect_right(TTFT_BOUNDS_US, one)] += 1
        points = percentiles.of_counts(counts)
        for percent, found in zip((50, 95), points, strict=True):
            true = times[int((count - 1) * percent / 100)] / 1000
            assert abs(found - true) <= true * percentiles.ERROR_MAX
    assert percentiles.of_counts([0] * 40) is None


# --- rows that are gone ---------------------------------------------------------------------------


async def _drop_rows(store: Store, before_us: int) -> None:
    async with store.turn() as connection:
        for table, at in (
            (request_facts, request_facts.c.started_at_us),
            (attempt_facts, attempt_facts.c.request_started_at_us),
        ):
            await connection.execute(sa.delete(table).where(at < before_us))
        went = {"rows_before_us": before_us, "requests": 1, "decisions": 0}
        await connection.execute(sa.insert(prunings).values(made_at_us=before_us, **went))


async def test_when_rows_are_gone_reports_go_on_and_say_so(filled):
    whole = replace(ALL, by=("backend",), period=replace(ALL.period, zone="UTC"))
    before = await cost(filled, whole, now=NOW)
    await _drop_rows(filled, NOVEMBER_US + 10 * DAY_US)
    after = await cost(filled, whole, now=NOW)
    same = ("requests", "cost", "uncached", "output", "tps", "per_minput", "waste", "unpriced")
    for one, other in zip(before.table.rows, after.table.rows, strict=True):
        assert [one[name] for name in same] == [other[name] for name in same]
        assert (one["ttft_p95"] is None) == (other["ttft_p95"] is None)
    assert after.json_foot["digest"] == before.json_foot["digest"]
    assert after.json_foot["rows_kept_since"].startswith("2026-11-11")
    assert any("histogram (rows are gone)" in remark for remark in after.remarks)
    kept = replace(whole, period=replace(whole.period, since_us=NOVEMBER_US + 11 * DAY_US))
    assert (await cost(filled, kept, now=NOW)).json_foot["rows_kept_since"] is None
    async with filled.snapshot() as view:
        assert (await page(view, whole)).kept_since_us is not None
    for cut in (
        replace(whole, period=replace(whole.period, since_us=NOVEMBER_US + 90_000_000)),
        replace(whole, by=("day",), period=replace(whole.period, zone="Asia/Kolkata")),
    ):
        with pytest.raises(d.Unusable, match="are gone"):
            await cost(filled, cut, now=NOW)


async def test_when_all_rows_are_gone(filled):
    whole = replace(ALL, by=("team",), period=replace(ALL.period, zone="UTC"))
    before = await cost(filled, whole, now=NOW)
    await _drop_rows(filled, NOVEMBER_US + MONTH_US)
    after = await cost(filled, whole, now=NOW)
    assert after.table.total["cost"] == before.table.total["cost"]
    assert after.json_foot["digest"] == before.json_foot["digest"]
    assert orjson.dumps(after.json_foot["policies"]) == orjson.dumps(before.json_foot["policies"])
