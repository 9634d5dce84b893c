"""The FOCUS export on both databases, against the same records added up in Python."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import json
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import pytest
import sqlalchemy as sa

from gateway.domain.money import TOKEN_METERS
from gateway.ledger.journal import _encode
from gateway.ledger.store import attempt_facts, corrections, request_facts
from gateway.reports import definition as d
from gateway.reports.focus.columns import SKU_METERS, columns
from gateway.reports.focus.export import Summary, Wanted, export
from gateway.reports.kept import Kept
from tests.unit.ledger.records import request
from tests.unit.reports.month import MONTH_US, NOVEMBER_US
from tests.unit.reports.priced import attempt, fill, month

pytestmark = pytest.mark.xdist_group("reports")

PERIOD = d.Period(since_us=NOVEMBER_US, until_us=NOVEMBER_US + MONTH_US, zone="UTC")
MONTH = Wanted(period=PERIOD, organization="Acme")
NOW = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)
NANO = Decimal(10) ** 9


@pytest.fixture
def records():
    return list(month(500))


@pytest.fixture
async def filled(store, records, tmp_path):
    await fill(store, tmp_path / "journal", records)
    return store


async def exported(store, wanted=MONTH):
    """The rows as a reader of the CSV sees them."""
    summary, text = Summary(), ""
    async for _, lines in export(store, wanted, Kept(store), summary):
        text += lines
    assert hashlib.sha256(text.encode()).hexdigest() == summary.digest
    return list(csv.DictReader(io.StringIO(text))), summary


def booked(records) -> int:
    return sum(a.cost_nano_usd or 0 for r in records for a in r.attempts)


def money(rows, name="EffectiveCost") -> Decimal:
    return sum((Decimal(row[name]) for row in rows), Decimal(0))


async def test_it_adds_up_to_the_ledger_and_to_the_cost_report_to_the_nano(filled, records):
    rows, summary = await exported(filled)
    assert money(rows) * NANO == booked(records) == summary.ledger_nano
    assert summary.agrees
    from gateway.reports.cost import cost

    document = await cost(
        filled, d.Definition(report="cost", period=PERIOD, by=("backend",), compare=False), now=NOW
    )
    assert document.table.total["cost"] == money(rows) * NANO
    by_backend = Counter()
    for row in rows:
        by_backend[row["x_Backend"]] += Decimal(row["EffectiveCost"]) * NANO
    for line in document.table.rows:
        if line["backend"] != "(shadow)":
            shadows = sum(
                a.cost_nano_usd or 0
                for r in records
                if r.shadow_of
                for a in r.attempts
                if a.backend == line["backend"]
            )
            assert by_backend[line["backend"]] == (line["cost"] or 0) + shadows


async def test_every_meter_is_there_in_full(filled, records):
    rows, _ = await exported(filled)
    due, found = Counter(), Counter()
    for one in (a for r in records for a in r.attempts if a.usage_source != "none"):
        at = f"{one.backend}/{one.model}"
        due[at, "Input Tokens"] += one.uncached_tokens
        due[at, "Cached Input Tokens"] += one.cached_tokens
        due[at, "Output Tokens"] += one.output_tokens - one.reasoning_tokens
        due[at, "Reasoning Tokens"] += one.reasoning_tokens
        for name, n in (one.other_meters or {}).items():
            due[at, {m.value: shown for m, shown in SKU_METERS.items()}[name]] += n
        if one.backend == "scale":
            due[at, "Requests"] += 1
    for row in rows:
        if row["x_RowKind"] == "metered":
            found[row["ResourceId"], row["SkuMeter"]] += int(Decimal(row["ConsumedQuantity"]))
        for name, n in json.loads(row["x_MeteredQuantities"] or "{}").items():
            found[row["ResourceId"], name] += n
    assert found == +due
    assert any(row["x_RowKind"] == "unpriced" for row in rows)


async def test_price_times_quantity_is_the_cost_exactly_and_prices_are_the_books(filled):
    rows, _ = await exported(filled)
    usage = [row for row in rows if row["x_RowKind"] == "metered"]
    for row in usage:
        product = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
        assert product == Decimal(row["ListCost"]) == Decimal(row["ContractedCost"])
        assert Decimal(row["ContractedUnitPrice"]) == Decimal(row["ListUnitPrice"])
    prices = {
        row["ListUnitPrice"]
        for row in usage
        if (row["ResourceId"], row["SkuMeter"]) == ("openai/gpt-x", "Input Tokens")
    }
    assert prices == {"2.003", "4.0", "1.0"}  # standard, beyond the cliff, flex
    marginal = {
        (row["ListUnitPrice"], row["SkuPriceId"].partition(";beyond=")[2])
        for row in usage
        if (row["ResourceId"], row["SkuMeter"]) == ("scale/m", "Input Tokens")
    }
    assert marginal == {("0.9", ""), ("0.4501", "1000")}


async def test_what_is_declared_is_effective_and_not_billed(filled, records):
    rows, summary = await exported(filled)
    own = [row for row in rows if row["x_Backend"] == "own"]
    assert money(own, "BilledCost") == 0
    due = sum(
        a.cost_nano_usd
        for r in records
        for a in r.attempts
        if a.backend == "own" and a.cost_nano_usd
    )
    assert money(own) * NANO == due > 0
    assert {row["ProviderName"] for row in own} == {"Acme"}
    assert summary.billed == summary.effective - money(own)


async def test_one_adjustment_per_account_and_month_and_it_is_what_rounding_was(filled, records):
    rows, _ = await exported(filled)
    rounding = [row for row in rows if row["x_RowKind"] == "rounding"]
    assert len({row["BillingAccountId"] for row in rounding}) == len(rounding) >= 3
    for row in rounding:
        account = [r for r in rows if r["BillingAccountId"] == row["BillingAccountId"]]
        due = sum(
            a.cost_nano_usd or 0
            for r in records
            for a in r.attempts
            if a.backend == row["BillingAccountId"]
        )
        assert money(account) * NANO == due
        assert abs(Decimal(row["EffectiveCost"])) * NANO < len(records)


async def test_sub_accounts_are_teams_keys_and_the_platform(filled, records):
    rows, _ = await exported(filled)
    by = Counter()
    for row in rows:
        if row["x_RowKind"] != "rounding":
            by[row["SubAccountId"]] += Decimal(row["EffectiveCost"]) * NANO
    for name, mine in {
        "team:search": [r for r in records if r.tags.get("team") == "search"],
        "key:cccccccccccc": [r for r in records if not r.tags and r.key_id],
        "platform": [r for r in records if r.shadow_of],
    }.items():
        attempts = sum(len(r.attempts) for r in mine)
        assert abs(by.pop(name) - booked(mine)) <= attempts, name  # to within their rounding
    assert set(by) == {"team:support"}
    tagged = next(row for row in rows if row["SubAccountId"] == "team:search")
    assert json.loads(tagged["Tags"]) == {"team": "search", "größe": 'X"L,'}
    assert tagged["x_KeyId"] == "a" * 12


async def test_by_the_hour_it_is_the_same_money_in_the_hour_of_the_request(filled, records):
    daily, _ = await exported(filled)
    hourly, _ = await exported(filled, replace(MONTH, granularity="hour"))
    assert money(hourly) == money(daily)
    starts = {row["ChargePeriodStart"] for row in hourly if row["x_RowKind"] == "metered"}
    wanted = {
        dt.datetime.fromtimestamp(r.started_at_us // 10**6, dt.UTC).strftime("%Y-%m-%dT%H:00:00Z")
        for r in records
        if any(a.usage_source != "none" and a.cost_nano_usd is not None for a in r.attempts)
    }
    assert starts == wanted
    assert all(row["BillingPeriodStart"] == "2026-11-01T00:00:00Z" for row in hourly)


async def test_a_part_of_a_day_is_its_own_period(filled, records):
    since = NOVEMBER_US + 5 * 3_600_000_000
    wanted = replace(MONTH, period=replace(PERIOD, since_us=since, until_us=since + 86_400_000_000))
    rows, summary = await exported(filled, wanted)
    mine = [r for r in records if since <= r.started_at_us < since + 86_400_000_000]
    assert money(rows) * NANO == booked(mine) > 0
    ends = {(row["ChargePeriodStart"], row["ChargePeriodEnd"]) for row in rows}
    assert ends <= {
        ("2026-11-01T05:00:00Z", "2026-11-02T00:00:00Z"),
        ("2026-11-02T00:00:00Z", "2026-11-02T05:00:00Z"),
        ("2026-11-01T05:00:00Z", "2026-11-02T05:00:00Z"),  # the rounding of both
    }
    assert summary.agrees


async def test_rates_that_nothing_kept_names_vanish_neither_in_sum_nor_in_sight(store, tmp_path):
    lost = attempt("openai", "gpt-x", NOVEMBER_US, uncached=100, output=7)
    lost.rates_id = "openai/gpt-x@2020-01-01#00000000"
    await fill(
        store, tmp_path / "journal", [request("lost", started_at_us=NOVEMBER_US, attempts=[lost])]
    )
    rows, summary = await exported(store)
    (row,) = rows
    assert (row["x_RowKind"], row["ChargeCategory"]) == ("unsplit", "Adjustment")
    assert json.loads(row["x_MeteredQuantities"]) == {"Input Tokens": 100, "Output Tokens": 7}
    assert Decimal(row["BilledCost"]) * NANO == lost.cost_nano_usd
    assert sum(summary.unsplit.values()) == 1
    assert summary.agrees


async def test_corrections_of_a_rating_run_are_rows_of_their_own(filled, records):
    before, _ = await exported(filled)
    one = next(r for r in records if r.attempts[0].backend == "openai" and r.attempts[0].rates_id)
    other = next(r for r in records if r.attempts[0].backend == "newcomer" and not r.shadow_of)
    async with filled._begin() as connection:
        for record, delta in ((one, -123_457), (other, 777_001)):
            await connection.execute(
                sa.insert(corrections).values(
                    run=1,
                    request_id=record.id,
                    attempt=1,
                    request_started_at_us=record.started_at_us,
                    rates_id=one.attempts[0].rates_id,
                    cost_nano_usd=(record.attempts[0].cost_nano_usd or 0) + delta,
                    delta_nano_usd=delta,
                )
            )
    after, summary = await exported(filled)
    found = {r["x_Backend"]: r for r in after if r["ChargeClass"] == "Correction"}
    assert [Decimal(found[b]["BilledCost"]) * NANO for b in ("newcomer", "openai")] == [
        777_001,
        -123_457,
    ]
    assert found["openai"]["x_RatingRun"] == "1"
    assert money(after) - money(before) == Decimal(777_001 - 123_457) / NANO == summary.corrected
    assert summary.agrees
    as_booked, summary = await exported(filled, replace(MONTH, run=0))
    assert (as_booked, summary.agrees, summary.corrected) == (before, True, 0)


async def test_no_name_is_a_formula_to_a_spreadsheet(store):
    odd = request("r", started_at_us=MONTH.period.since_us + 1, alias="@x", tags={"team": "=1+1"})
    odd.route = "-1+cmd|' /C calc'!A0"
    odd.attempts[0].service_tier = "+tier"
    await store.append([_encode(odd)[:-1]])
    rows, summary = await exported(store)
    assert summary.agrees
    assert rows
    for row in rows:
        assert row["x_Alias"] == "'@x"
        assert row["x_Route"] == "'" + odd.route
        assert row["x_ServiceTier"] == "'+tier"
        assert row["SubAccountName"] == "'=1+1"
        assert json.loads(row["Tags"]) == {"team": "=1+1"}
        assert not any(row[c].startswith(("=", "+", "@", "\t", "\r")) for c in row)


async def test_when_rows_are_gone_and_only_sums_are_kept_no_dollar_is(filled, records):
    one = next(r for r in records if r.attempts[0].backend == "openai" and r.attempts[0].rates_id)
    async with filled._begin() as connection:
        await connection.execute(
            sa.insert(corrections).values(
                run=1,
                request_id=one.id,
                attempt=1,
                request_started_at_us=one.started_at_us,
                rates_id=one.attempts[0].rates_id,
                cost_nano_usd=1,
                delta_nano_usd=-7,
            )
        )
        for table in (attempt_facts, request_facts):
            await connection.execute(sa.delete(table))
    rows, summary = await exported(filled)
    assert summary.agrees
    assert money(rows) * NANO == booked(records) - 7
    assert {r["x_Backend"] for r in rows if r["x_RowKind"] == "unsplit"} == {"scale"}
    (correction,) = (r for r in rows if r["ChargeClass"])
    assert (correction["x_Backend"], correction["SubAccountName"]) == ("openai", "Unattributed")


async def test_an_empty_period_is_a_header_and_nothing_else(store):
    rows, summary = await exported(store)
    assert rows == []
    assert (summary.rows, summary.ledger_nano, summary.agrees) == (0, 0, True)


async def test_the_same_ledger_gives_the_same_digest(filled):
    assert (await exported(filled))[1].digest == (await exported(filled))[1].digest
    other = await exported(filled, replace(MONTH, version="1.3"))
    assert other[1].digest != (await exported(filled))[1].digest


async def test_13_says_how_a_pool_was_allocated(filled):
    rows, _ = await exported(filled, replace(MONTH, version="1.3"))
    assert set(rows[0]) == {column.name for column in columns("1.3")}
    assert "AllocatedMethodId" not in {column.name for column in columns("1.2")}
    pools = Counter()
    for row in rows:
        if row["AllocatedMethodId"]:
            assert row["x_Backend"] == "own"
            (element,) = json.loads(row["AllocatedMethodDetails"], parse_float=Decimal)["Elements"]
            pools[row["ChargePeriodStart"]] += element["AllocatedRatio"]
            assert row["AllocatedResourceId"] == row["SubAccountId"]
    assert len(pools) > 5
    assert set(pools.values()) == {1}


def test_what_makes_no_sense():
    for changed, said in (
        ({"version": "1.4"}, "1.2 or 1.3"),
        ({"granularity": "week"}, "hour or day"),
        ({"period": replace(PERIOD, since_us=NOVEMBER_US + 1)}, "full hour"),
    ):
        with pytest.raises(d.Unusable, match=said):
            replace(MONTH, **changed)


def test_every_meter_has_its_words():
    from gateway.domain.money import Meter
    from gateway.reports.focus.columns import consumed_unit, pricing_quantity, pricing_unit

    for meter in Meter:
        assert SKU_METERS[meter]
        assert consumed_unit(meter) in pricing_unit(meter)
    assert {consumed_unit(meter) for meter in TOKEN_METERS} == {"Tokens"}
    assert pricing_quantity(Meter.INPUT, 1) == Decimal("0.000001")
    assert pricing_quantity(Meter.SEARCH_CALL, 1) == Decimal("0.001")
    assert pricing_quantity(Meter.IMAGE, 3) == 3
