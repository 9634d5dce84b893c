"""Exports made from the ledger's own records, then doctored: each class is found, and alone."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections import Counter
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from gateway.domain.money import Meter
from gateway.ledger.store import Store, corrections
from gateway.reports import definition as d
from gateway.reports.kept import Kept
from gateway.reports.reconciliation.comparison import CLASSES, Wanted, match_models, reconcile
from gateway.reports.reconciliation.provider_export import Malformed, read
from tests.unit.ledger.records import request as record_of
from tests.unit.reports.month import DAY_US, NOVEMBER_US
from tests.unit.reports.priced import BOOK, attempt, fill

pytestmark = pytest.mark.xdist_group("reports")

BOTH = pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
HOUR_US = DAY_US // 24
DAYS = 6
# our meter -> their columns in the usage export, their words in the cost export
CLAUDE = {
    Meter.INPUT: ("usage_input_tokens_no_cache", "input_no_cache"),
    Meter.CACHE_READ: ("usage_input_tokens_cache_read", "input_cache_read"),
    Meter.CACHE_WRITE_5M: ("usage_input_tokens_cache_write_5m", "input_cache_write_5m"),
    Meter.OUTPUT: ("usage_output_tokens", "output"),
}
PRICE = {
    Meter.INPUT: 3,
    Meter.CACHE_READ: "0.3",
    Meter.CACHE_WRITE_5M: "3.75",
    Meter.OUTPUT: "15.0007",
}


def records():
    """Every hour of some days one attempt at Claude and one at OpenAI, no two alike."""
    made = []
    for hour in range(DAYS * 24):
        at = NOVEMBER_US + hour * HOUR_US + 7 * 60_000_000
        claude = attempt(
            "claude", "sonnet-x", at, uncached=1000 + hour, cached=50 + hour, output=200 + 3 * hour,
            reasoning=20, others={Meter.CACHE_WRITE_5M: 10 + hour},
        )  # fmt: skip
        openai = attempt(
            "openai", "gpt-x-mini", at, number=2, uncached=700 + hour, cached=30, output=90 + hour
        )
        made.append(record_of(f"req-{hour:03}", started_at_us=at, attempts=[claude, openai]))
    return made


def used(of, zone="UTC"):
    """(local day, meter) -> tokens at Claude."""
    found = Counter()
    for record in of:
        one = record.attempts[0]
        at = dt.datetime.fromtimestamp(record.started_at_us / 1e6, ZoneInfo(zone))
        day = at.date().isoformat()
        found[day, Meter.INPUT] += one.uncached_tokens
        found[day, Meter.CACHE_READ] += one.cached_tokens
        found[day, Meter.OUTPUT] += one.output_tokens
        found[day, Meter.CACHE_WRITE_5M] += one.other_meters["cache_write_5m"]
    return found


def usage_lines(counts, model="sonnet-x"):
    days = sorted({day for day, _ in counts})
    return [
        {
            "usage_date_utc": day,
            "model_version": model,
            "workspace": "Default",
            "web_search_count": 0,
        }
        | {columns[0]: counts[day, meter] for meter, columns in CLAUDE.items()}
        for day in days
    ]


def cost_lines(counts, *, digits=9, model="Sonnet X"):
    return [
        {
            "usage_date_utc": day,
            "model": model,
            "token_type": CLAUDE[meter][1],
            "cost_usd": f"{Decimal(PRICE[meter]) * n / 1_000_000:.{digits}f}",
        }
        for (day, meter), n in sorted(counts.items())
    ]


def text(lines) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


@pytest.fixture
async def store(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if getattr(request, "param", "sqlite") == "postgres":
        url = request.getfixturevalue("postgres_url")
    made = await Store.connect(url)
    yield made
    await made.close()


@pytest.fixture
async def filled(store, tmp_path):
    await fill(store, tmp_path / "journal", records())
    return store


async def compared(store, lines, *, backend="claude", zone="UTC", columns=None, **wanted):
    export = read(
        lines if isinstance(lines, str) else text(lines), "x.csv", zone=zone, columns=columns
    )
    return await reconcile(store, Wanted(backend=backend, zone=zone, **wanted), export, Kept(store))


def classes(result) -> dict[str, int]:
    return {what: len(found) for what, found in result.by_class().items()}


@BOTH
async def test_an_honest_usage_export_agrees(filled):
    result = await compared(filled, usage_lines(used(records())))
    assert classes(result) == {}
    assert result.agrees()
    assert result.compared == DAYS * len(CLAUDE)
    booked = sum(r.attempts[0].cost_nano_usd for r in records())
    assert abs(result.ours_nano - booked) <= DAYS * 24
    assert result.theirs_nano is None


async def test_an_honest_cost_export_agrees_to_its_digits_and_by_its_display_name(filled):
    exact = await compared(filled, cost_lines(used(records()), digits=12))
    assert classes(exact) == {}
    assert exact.models == {"Sonnet X": "sonnet-x"}
    assert exact.theirs_nano == exact.ours_nano
    rounded = await compared(filled, cost_lines(used(records()), digits=2))
    assert set(classes(rounded)) == {"rounding"}
    assert rounded.agrees()


async def test_another_wire_counts_cached_tokens_inside_the_input(filled):
    def line(record):
        one = record.attempts[1]
        return {
            "start_time": record.started_at_us // HOUR_US * 3600,
            "model": "gpt-x-mini-2026-01-01",
            "num_model_requests": 1,
            "input_tokens": one.uncached_tokens + one.cached_tokens,
            "input_cached_tokens": one.cached_tokens,
            "output_tokens": one.output_tokens,
        }

    result = await compared(filled, [line(record) for record in records()], backend="openai")
    assert classes(result) == {}
    assert result.compared == DAYS * 24 * 3
    assert result.models == {"gpt-x-mini-2026-01-01": "gpt-x-mini"}


async def test_what_they_bill_and_we_never_saw(filled):
    lines = usage_lines(used(records()))
    lines.append(lines[-1] | {"model_version": "opus-x"})
    result = await compared(filled, lines)
    assert classes(result) == {"missing here": len(CLAUDE)}
    assert {one.model for one in result.differences} == {"opus-x"}
    assert result.open_nano is None  # nobody here knows what that costs
    assert not result.agrees(Decimal(10**15))


async def test_a_cost_export_in_the_words_of_the_api_agrees_meter_by_meter(filled):
    words = {
        CLAUDE[Meter.CACHE_READ][1]: "cache_read_input_tokens",
        CLAUDE[Meter.CACHE_WRITE_5M][1]: "cache_creation.ephemeral_5m_input_tokens",
        CLAUDE[Meter.INPUT][1]: "uncached_input_tokens",
        CLAUDE[Meter.OUTPUT][1]: "output_tokens",
    }
    lines = cost_lines(used(records()), digits=12)
    said = [line | {"token_type": words[line["token_type"]]} for line in lines]
    assert classes(await compared(filled, said)) == {}


async def test_a_meter_that_nobody_here_knows_is_told_as_such(filled):
    lines = cost_lines(used(records()), digits=12)
    lines.append(lines[-1] | {"token_type": "thinking_credits"})
    result = await compared(filled, lines)
    assert classes(result) == {"unknown meter": 1}
    assert result.differences[0].meter == "thinking_credits"
    assert not result.agrees()


async def test_what_we_have_and_they_do_not_bill(filled):
    lines = usage_lines(used(records()))
    del lines[2]
    result = await compared(filled, lines)
    assert classes(result) == {"missing there": len(CLAUDE)}
    third = [r for r in records() if r.started_at_us // DAY_US == NOVEMBER_US // DAY_US + 2]
    assert abs(result.open_nano - sum(r.attempts[0].cost_nano_usd for r in third)) <= 24
    assert not result.agrees()
    assert result.agrees(result.open_nano)


async def test_tokens_that_differ_are_worth_what_they_cost_here(filled):
    lines = usage_lines(used(records()))
    lines[1]["usage_output_tokens"] += 1_000
    result = await compared(filled, lines)
    assert classes(result) == {"tokens differ": 1}
    (one,) = result.differences
    assert (one.model, one.meter, one.quantity) == ("sonnet-x", Meter.OUTPUT, 1_000)
    assert one.worth_nano == Decimal("15.0007") * 1_000_000
    assert result.agrees(Decimal(15000700))
    assert not result.agrees(Decimal(15000699))


async def test_the_same_tokens_at_another_price(filled):
    lines = cost_lines(used(records()), digits=9)
    lines[4]["cost_usd"] = f"{Decimal(lines[4]['cost_usd']) * Decimal('1.1'):.9f}"
    result = await compared(filled, lines)
    found = {what: n for what, n in classes(result).items() if what != "rounding"}
    assert found == {"price differs": 1}


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Tokyo"])
async def test_days_of_another_zone_are_the_edge_of_periods_and_say_which(filled, zone):
    counts = used(records(), zone)
    inner = sorted({day for day, _ in counts})[
        2:-1
    ]  # the first and the last are cut, one has 25 hours
    lines = usage_lines({key: n for key, n in counts.items() if key[0] in inner})
    result = await compared(filled, lines)
    assert set(classes(result)) == {"period edge"}
    assert result.agrees()
    offset = dt.datetime(2026, 11, 3, tzinfo=ZoneInfo(zone)).utcoffset()
    assert result.shift_us == -offset // dt.timedelta(microseconds=1)
    assert classes(await compared(filled, lines, zone=zone)) == {}


async def test_a_request_on_the_other_side_of_midnight_is_the_edge_of_a_period(filled):
    lines = usage_lines(used(records()))
    for line, by in ((lines[2], -1_234), (lines[3], 1_234)):
        line["usage_input_tokens_no_cache"] += by
    result = await compared(filled, lines)
    assert classes(result) == {"period edge": 2}
    assert result.agrees()


@BOTH
async def test_days_that_begin_within_an_hour_are_compared_row_by_row(filled):
    counts = used(records(), "Asia/Kolkata")
    inner = sorted({day for day, _ in counts})[1:-1]
    lines = usage_lines({key: n for key, n in counts.items() if key[0] in inner})
    assert classes(await compared(filled, lines, zone="Asia/Kolkata")) == {}


async def test_what_had_no_price_and_what_is_an_estimate(store, tmp_path):
    made = records()
    one = made[30].attempts[0]
    one.rates_id = one.cost_nano_usd = None
    made[30].priced = False
    made[30].cost_nano_usd = made[30].attempts[1].cost_nano_usd
    made[80].attempts[0].usage_source = "estimated"
    await fill(store, tmp_path / "journal", made)
    costs = await compared(store, cost_lines(used(made), digits=12))
    assert classes(costs) == {"unpriced here": len(CLAUDE)}
    assert abs(costs.open_nano - records()[30].attempts[0].cost_nano_usd) <= 1
    lines = usage_lines(used(made))
    lines[3]["usage_output_tokens"] += 9
    assert classes(await compared(store, lines)) == {"estimated here": 1}


@BOTH
async def test_rated_again_it_agrees(store, tmp_path):
    """What had no price was given one, and what had a wrong one the right one."""
    made = records()
    rates = made[0].attempts[0].rates_id
    for place, cost in ((30, None), (40, 7)):
        one = made[place].attempts[0]
        one.cost_nano_usd = cost
        one.rates_id = None if cost is None else "claude/sonnet-x@2020-01-01#00000000"
        made[place].priced = cost is not None
        made[place].cost_nano_usd = (cost or 0) + made[place].attempts[1].cost_nano_usd
    await fill(store, tmp_path / "journal", made)
    lines = cost_lines(used(made), digits=12)
    assert classes(await compared(store, lines)) == {"unpriced here": len(CLAUDE)}
    async with store._begin() as connection:
        for run, place, wrong in ((1, 30, 5), (2, 30, 0), (1, 40, 0)):
            due = records()[place].attempts[0].cost_nano_usd + wrong
            await connection.execute(
                sa.insert(corrections).values(
                    run=run,
                    request_id=made[place].id,
                    attempt=1,
                    request_started_at_us=made[place].started_at_us,
                    rates_id=rates,
                    cost_nano_usd=due,
                    delta_nano_usd=due - (made[place].attempts[0].cost_nano_usd or 0),
                )
            )
    again = await compared(store, lines)
    assert classes(again) == {}
    assert again.theirs_nano == again.ours_nano


async def test_money_of_a_model_as_a_whole_through_columns_that_are_named(filled):
    by_day = Counter()
    for record in records():
        day = dt.datetime.fromtimestamp(record.started_at_us / 1e6, dt.UTC).date()
        by_day[day] += record.attempts[0].cost_nano_usd
    lines = [
        {
            "Day": day.isoformat(),
            "Deployment": "S",
            "Euro?": "USD",
            "Net": f"{Decimal(n) / 10**9:.9f}",
        }
        for day, n in by_day.items()
    ]
    columns = {"time": "Day", "model": "Deployment", "currency": "Euro?", "cost": "Net"}
    result = await compared(filled, lines, columns=columns, models={"S": "sonnet-x"})
    assert classes(result) == {}
    assert result.theirs_nano == sum(by_day.values())
    lines[0]["Net"] = "99.00"
    again = await compared(filled, lines, columns=columns, models={"S": "sonnet-x"})
    assert classes(again) == {"price differs": 1}


async def test_our_own_focus_export_read_back_agrees(filled):
    from gateway.reports.focus.export import Summary, export
    from gateway.reports.focus.export import Wanted as Focus

    period = d.Period(since_us=NOVEMBER_US, until_us=NOVEMBER_US + DAYS * DAY_US)
    parts = export(filled, Focus(period=period), Kept(filled), Summary())
    rows = list(csv.DictReader(io.StringIO("".join([lines async for _, lines in parts]))))
    own = [r for r in rows if r["x_Backend"] == "claude" and r["x_RowKind"] == "metered"]
    result = await compared(filled, own)
    assert classes(result) == {}
    assert result.theirs_nano == result.ours_nano


async def test_a_cloud_report_in_thousands_with_other_services_in_it(filled):
    words = {
        Meter.INPUT: "input-tokens",
        Meter.CACHE_READ: "cache-read-input-token-count",
        Meter.CACHE_WRITE_5M: "cache-write-input-token-count",
        Meter.OUTPUT: "output-tokens-cross-region-global",
    }
    lines = [
        {
            "lineItem/ProductCode": "AmazonBedrock",
            "lineItem/UsageStartDate": f"{day}T00:00:00Z",
            "lineItem/UsageType": f"USE1-SonnetX-{words[meter]}",
            "lineItem/UsageAmount": f"{Decimal(n) / 1000}",
            "lineItem/UnblendedCost": f"{Decimal(PRICE[meter]) * n / 1_000_000:.10f}",
            "lineItem/CurrencyCode": "USD",
        }
        for (day, meter), n in used(records()).items()
    ]
    lines.append(lines[0] | {"lineItem/ProductCode": "AmazonEC2", "lineItem/UsageType": "BoxUsage"})
    result = await compared(filled, lines, models={"SonnetX": "sonnet-x"})
    assert set(classes(result)) <= {"rounding"}
    assert result.compared == DAYS * len(CLAUDE)


async def test_only_the_period_asked_for(filled):
    period = d.Period(since_us=NOVEMBER_US + DAY_US, until_us=NOVEMBER_US + 3 * DAY_US)
    lines = usage_lines(used(records()))
    result = await compared(filled, lines, period=period)
    assert (classes(result), result.compared) == ({}, 2 * len(CLAUDE))
    assert result.outside == (DAYS - 2) * 5  # a line is a count per column
    longer = d.Period(since_us=NOVEMBER_US, until_us=NOVEMBER_US + DAYS * DAY_US)
    assert classes(await compared(filled, lines[:2], period=longer)) == {
        "missing there": (DAYS - 2) * len(CLAUDE)
    }


async def test_meters_without_a_column_there_are_told_and_not_dropped(filled):
    lines = [
        {k: v for k, v in line.items() if "write" not in k} for line in usage_lines(used(records()))
    ]
    columns = {"time": "usage_date_utc", "model": "model_version", "output": "usage_output_tokens"}
    result = await compared(filled, lines, columns=columns)
    assert classes(result) == {}
    assert set(result.unstated) == {Meter.INPUT, Meter.CACHE_READ, Meter.CACHE_WRITE_5M}


def test_names_of_models():
    ours = {"claude-sonnet-4-5", "gpt-4o", "m"}
    theirs = {"Claude Sonnet 4.5", "gpt-4o-2024-08-06", "gpt-4o", "unheard", "X"}
    assert match_models(theirs, ours, {"X": "m"}) == {
        "Claude Sonnet 4.5": "claude-sonnet-4-5",
        "gpt-4o-2024-08-06": "gpt-4o",
        "gpt-4o": "gpt-4o",
        "unheard": "unheard",
        "X": "m",
    }


HEAD = "usage_date_utc,model,token_type,cost_usd,currency\n"
GOOD = "2026-11-01,Sonnet X,output,1.00,USD\n"
CUR = (
    "identity/LineItemId,lineItem/UsageStartDate,lineItem/UsageType,lineItem/UsageAmount,"
    "lineItem/UnblendedCost,lineItem/CurrencyCode,lineItem/ProductCode\n"
)
CUR_LINE = "abc,2026-11-01T00:00:00Z,USE1-Claude4.6Opus-input-tokens,1,0.5,USD,AmazonBedrock\n"


def test_lines_that_are_equal_and_have_no_number_all_count():
    export = read(HEAD + GOOD * 3 + GOOD.replace("output", "input"), "x.csv")
    assert (export.lines, export.equal) == (4, 2)
    (output,) = (said for (_, _, meter), said in export.said.items() if meter is Meter.OUTPUT)
    assert (output.nano, output.lines) == (3 * 10**9, [2, 3, 4])
    other = CUR_LINE.replace("abc", "abd")
    numbered = read(CUR + CUR_LINE + other, "x.csv")
    assert (numbered.lines, numbered.equal) == (2, 0)
    unnumbered = read((CUR + CUR_LINE * 2).replace("identity/LineItemId", "other"), "x.csv")
    assert (unnumbered.lines, unnumbered.equal) == (2, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", r"x\.csv:1: the file is empty"),
        (HEAD, r"x\.csv:2: there are no lines"),
        ("a,b\n1,2\n", r"x\.csv:1: the header is of no export known here. Nearest is"),
        ("usage_date_utc,model,token_type\n", r"Nearest is anthropic-cost .*which also has cost_usd"),
        ("usage_date_utc;model;token_type;cost_usd\n", r"x\.csv:1: separated by ;, expected commas"),
        ("time\tmodel\tcost\n1\t2\t3\n", r"x\.csv:1: separated by tabs, expected commas"),
        ("time,time\n1,2\n", r"x\.csv:1:time: this column is there twice"),
        (CUR + CUR_LINE + CUR_LINE, r"x\.csv:3:identity_line_item_id: the same as line 2"),
        (HEAD + "2026-11-01,Sonnet X,output\n", r"x\.csv:2: 3 cells; the header has 5"),
        (HEAD + "2026-11-01,Sonnet X,output,\"1,00\",USD\n", r"x\.csv:2:cost_usd: '1,00' is not a number"),
        (HEAD + "2026-11-01,Sonnet X,output,$1,USD\n", r"x\.csv:2:cost_usd: '\$1' is not a number"),
        (HEAD + "2026-11-01,Sonnet X,output,NaN,USD\n", r"not a number"),
        (HEAD + "01.11.2026,Sonnet X,output,1,USD\n", r"x\.csv:2:usage_date_utc: '01\.11\.2026' is no time"),
        (HEAD + "Total,Sonnet X,output,1,USD\n", r"is no time"),
        (HEAD + "2026-11-01,,output,1,USD\n", r"x\.csv:2:model: '' is no model; export it by model"),
        (HEAD + "2026-11-01,All models,output,1,USD\n", r"'All models' is no model"),
        (HEAD + "2026-11-01T00:10:00Z,m,output,1,USD\n2026-11-01T01:10:30Z,m,output,1,USD\n", r"within an hour"),
        (HEAD + '2026-11-01,"Sonnet X,output,1,USD\n', r"no CSV|cells"),
    ],
)  # fmt: skip
def test_a_file_in_the_wrong_shape_is_told_with_its_place(given, said):
    with pytest.raises(Malformed, match=said):
        read(given, "x.csv")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"time": "usage_date_utc", "model": "model", "cost": "cost", "meter": "token_type"}, "did you mean cost_usd"),
        ({"tiem": "usage_date_utc"}, "did you mean time"),
        ({"time": "usage_date_utc", "cost": "cost_usd"}, "model must be said"),
        ({"time": "usage_date_utc", "model": "model"}, "nothing to compare"),
        ({"time": "usage_date_utc", "model": "model", "quantity": "cost_usd"}, "of which meter"),
        ({"time": "usage_date_utc", "model": "model", "input": "cost_usd", "meter": "token_type"}, "not both"),
    ],
)  # fmt: skip
def test_columns_that_make_no_sense(columns, said):
    with pytest.raises(d.Unusable, match=said):
        read(HEAD + GOOD, "x.csv", columns=columns)


def test_other_currencies_and_counts_that_are_none():
    columns = {"time": "usage_date_utc", "model": "model", "meter": "token_type", "cost": "cost_usd",
               "currency": "currency"}  # fmt: skip
    with pytest.raises(Malformed, match=r"x\.csv:2:currency: 'EUR': the ledger is in USD"):
        read(HEAD + GOOD.replace("USD", "EUR"), "x.csv", columns=columns)
    usage = "start_time,model,num_model_requests,input_tokens,input_cached_tokens,output_tokens\n"
    for line, said in (
        ("1793491200,m,1,10,11,1", r"x\.csv:2:input_cached_tokens: 11 is more than the 10"),
        ("1793491200,m,1,10.5,1,1", "is no count"),
        ("1793491200,m,1,-10,1,1", "is no count"),
    ):
        with pytest.raises(Malformed, match=said):
            read(usage + line + "\n", "x.csv")


def test_every_class_says_what_it_means_and_prices_here_are_the_books():
    assert all(text.endswith((".", "?")) for text in CLASSES.values())
    from gateway.domain.catalog import Target

    rates = BOOK.rates(Target("claude", "sonnet-x"), NOVEMBER_US)
    assert {meter: Decimal(text) for meter, text in PRICE.items()} == {
        m: rates.price(m) for m in PRICE
    }
