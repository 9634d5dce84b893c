"""The audit: a ledger of the real writer is clean, and every corruption is found by its own check."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import asyncpg
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cli.audit import read
from gateway.domain.catalog import Target
from gateway.ledger.audit import Report, audit, count
from gateway.ledger.journal import Journal
from gateway.ledger.laws import LAWS, Case
from gateway.ledger.laws import broken as laws_broken
from gateway.ledger.price_audit import LAWS as PRICE_LAWS
from gateway.ledger.store import Store
from tests.unit.ledger.audited import FILES, START_US, book_of, correct, put_bundle, records, write
from tests.unit.ledger.thawed import THAW

COUNT = 120
ALL = len(list(records(COUNT)))  # copies too


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A SQLite ledger that nobody has touched."""
    folder = tmp_path_factory.mktemp("clean")

    async def make() -> None:
        store = await Store.connect(f"sqlite:///{folder / 'ledger.db'}")
        await put_bundle(store)
        await write(store, folder / "journal", records(COUNT))
        await correct(store)
        await store.close()

    asyncio.run(make())
    return folder / "ledger.db"


def audited(database: Path, **options) -> Report:
    async def run() -> Report:
        store = await Store.connect(f"sqlite:///{database}")
        try:
            return await audit(store, read=read, **{"since_us": 0, "rows": 50, **options})
        finally:
            await store.close()

    return asyncio.run(run())


def broken(report: Report) -> dict[str, list[str]]:
    return {
        name: [found.id for found in check.first]
        for name, check in report.checks.items()
        if check.broken
    }


# --- what is in order -------------------------------------------------------------------------

COUNTED = ("unpriced", "estimated", "interrupted")


def test_a_ledger_of_the_real_writer_is_clean(clean):
    report = audited(clean)
    assert broken(report) == {}
    assert report.figures["requests"] == report.checks["unique"].looked == ALL
    assert report.figures["attempts"] == report.checks["orphans"].looked > COUNT
    idle = {name for name, check in report.checks.items() if not check.looked}
    assert idle == {"refused_rows", "journal_adopted", "journal_sent", "holds"}
    assert report.figures["copies"] == ALL - COUNT
    assert min(report.figures[f"{what}_requests"] for what in COUNTED) >= 8
    assert report.figures["bundles"] == 3, "that of the rows, and those that were rated again by"


async def test_postgres_says_the_same_as_sqlite(clean, postgres_url, tmp_path):
    store = await Store.connect(postgres_url)
    await put_bundle(store)
    await write(store, tmp_path, records(COUNT))
    await correct(store)
    found = await audit(store, read=read, since_us=0, rows=50, journal=tmp_path)
    assert broken(found) == {}
    same = await asyncio.to_thread(audited, clean)
    assert found.figures == same.figures
    assert [c.looked for c in found.checks.values()] == [c.looked for c in same.checks.values()]
    done = ("a copy with a key", "an attempt is gone", "a request is gone", "another decision",
            "texts that are none", "tomorrow")  # fmt: skip
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(THAW)
    for what in done:
        await connection.execute(CORRUPTIONS[what][0])
    await connection.close()
    after = await audit(store, read=read, since_us=0, rows=50)
    await store.close()
    assert set(broken(after)) == set[str]().union(*(CORRUPTIONS[what][1] for what in done))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 70), of=st.integers(1, 60))
def test_whatever_happened_is_clean_in_pages_of_any_size(tmp_path_factory, seed, rows, of):
    folder = tmp_path_factory.mktemp("any")

    async def run() -> Report:
        store = await Store.connect(f"sqlite:///{folder / 'ledger.db'}")
        await put_bundle(store)
        made = list(records(of, seed=seed))
        await write(store, folder / "journal", made)
        report = await audit(store, read=read, since_us=0, rows=rows)
        assert report.figures["requests"] == await count(store, 0, None) == len(made)
        await store.close()
        return report

    assert broken(asyncio.run(run())) == {}


def test_a_period_is_half_open(clean):
    whole = audited(clean).figures["requests"]
    middle = START_US + 60 * 7_000_001
    parts = [audited(clean, until_us=middle), audited(clean, since_us=middle)]
    assert [broken(part) for part in parts] == [{}, {}]
    assert sum(part.figures["requests"] for part in parts) == whole
    assert parts[0].checks["future"].looked == parts[0].figures["requests"]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_what_was_deleted_by_policy_is_not_missed(database, request, tmp_path):
    """Rows of October, and what was decided of all: copies, corrections and sums stay behind."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if database == "postgres":
        url = request.getfixturevalue("postgres_url")
    store = await Store.connect(url)
    await put_bundle(store)
    november_us = START_US - 9 * 86_400_000_000
    made = list(records(COUNT, start_us=november_us - 14 * 7_000_001 - 20_000))
    assert made[15].id.startswith("ok")
    assert made[15].started_at_us < november_us < made[16].started_at_us, "its copy outlives it"
    await write(store, tmp_path / "journal", made)
    await correct(store)
    now_us = november_us + 45 * 86_400_000_000
    due = await store.due(now_us=now_us, rows_months=1, decisions_days=20)
    await store.prune(due, now_us=now_us)
    report = await audit(store, read=read, since_us=0, rows=50)
    await store.close()
    assert broken(report) == {}
    assert COUNT > report.figures["requests"] > COUNT / 2
    assert report.checks["decision"].looked == 0
    assert report.checks["corrections"].looked > 0


def test_an_empty_ledger_is_clean(tmp_path):
    report = audited(tmp_path / "ledger.db")
    assert broken(report) == {}
    assert not any(report.figures.values())


# --- what is not ------------------------------------------------------------------------------

REQUEST = "UPDATE requests SET {} WHERE id = '{}'"
ATTEMPT = "UPDATE attempts SET {} WHERE request_id = '{}' AND number = {}"


def request(what: str, name: str = "ok-00000") -> str:
    return REQUEST.format(what, name)


def attempt(what: str, name: str = "ok-00000", number: int = 1) -> str:
    return ATTEMPT.format(what, name, number)


def correction(what: str) -> str:
    """Of what was booked without a price, and has one since the first run."""
    return f"UPDATE corrections SET {what} WHERE run = 1 AND request_id = 'unpriced-00004'"


# Its sums stay right: what the run before said, and what all corrections come to.
SHIFTED = (
    "UPDATE corrections SET delta_nano_usd = delta_nano_usd {1} 2000, "
    "cost_nano_usd = cost_nano_usd {1} 2000 "
    "WHERE run = {0} AND request_id = (SELECT request_id FROM corrections WHERE run = {0} "
    "AND cost_nano_usd > 9000 ORDER BY request_id LIMIT 1 OFFSET {2})"
)
MADE = list(records(COUNT))
BOOK = book_of(FILES)
OLD = BOOK.rows[Target("a", "m")][0].base.id
# Answered by b at its standard tier, after a failure at a.
STANDARD = next(
    r.id for r in MADE if r.id.startswith("retried") and r.attempts[1].service_tier is None
)


def meters(text: str) -> str:
    """Other meters of the answer."""
    return ";".join(
        (
            request(f"other_meters = '{text}'", STANDARD),
            attempt(f"other_meters = '{text}'", STANDARD, 2),
        )
    )


# What somebody did to the rows -> the statement, and exactly the checks that must find it.
CORRUPTIONS: dict[str, tuple[str, set[str]]] = {
    "one nano-USD more": (request("cost_nano_usd = cost_nano_usd + 1"), {"cost_sum"}),
    "an attempt that costs more": (
        attempt("cost_nano_usd = cost_nano_usd + 1"),
        {"cost_sum", "cost_rated"},
    ),
    "tokens of nobody": (request("output_tokens = output_tokens + 1, tpot_us = 1"), {"answer"}),
    "another backend": (request("backend = 'b'"), {"answer"}),
    "another source": (request("usage_source = 'estimated'"), {"answer"}),
    "an attempt too many counted": (request("attempt_count = 2"), {"attempts_numbered"}),
    "a gap in the numbers": (attempt("number = 3", "failed-00005", 2), {"attempts_numbered"}),
    "negative tokens": (
        ("UPDATE requests SET cached_tokens = -1 WHERE id = 'unpriced-00004';"
        "UPDATE attempts SET cached_tokens = -1 WHERE request_id = 'unpriced-00004'"),
        {"usage"},
    ),
    "more reasoning than output": (
        ("UPDATE requests SET reasoning_tokens = 99999 WHERE id = 'ok-00000';"
        "UPDATE attempts SET reasoning_tokens = 99999 WHERE request_id = 'ok-00000'"),
        {"usage"},
    ),
    "a source that is none": (attempt("usage_source = 'guess'", "hedged-00002"), {"usage"}),
    "priced that is not": (request("priced = false", "hedged-00002"), {"priced"}),
    "unpriced that is": (
        "PRAGMA ignore_check_constraints = ON; " + request("priced = true", "unpriced-00004"),
        {"priced"},
    ),
    "a cost without rates": (attempt("rates_id = NULL"), {"priced"}),
    "rates of nobody": (attempt("rates_id = 'a/m@2020-01-01'"), {"rates_known"}),
    "rates without a cost": (attempt(f"rates_id = '{OLD}'", "retried-00001"), {"priced"}),
    "rates of another day": (
        attempt(f"rates_id = '{OLD}'", "ok-00014"),
        {"rates_in_force", "cost_rated"},
    ),
    "rates of the microsecond before": (
        attempt(f"rates_id = '{OLD}'"),
        {"rates_in_force", "cost_rated"},
    ),
    "rates of another service tier": (
        attempt("service_tier = 'flex', rates_id = substr(rates_id, 1, 23)", STANDARD, 2),
        {"rates_in_force"},
    ),
    "a service tier of nobody": (
        attempt("service_tier = 'priority'", STANDARD, 2),
        {"rates_in_force"},
    ),
    "a service tier without usage": (attempt("service_tier = 'flex'", "crashed-00012"), {"other_meters"}),
    "meters of nobody": (meters('{"cache_write_5m": 7, "coffee": 1}'), {"other_meters"}),
    "meters of nothing": (meters('{"cache_write_5m": 7, "search_call": 0}'), {"other_meters"}),
    "no meters, at length": (
        request("other_meters = '{}'") + ";" + attempt("other_meters = '{}'"),
        {"other_meters"},
    ),
    "a meter that has a column": (meters('{"cache_write_5m": 7, "output": 1}'), {"other_meters"}),
    "meters without usage": (
        attempt("other_meters = '{\"search_call\": 1}'", "crashed-00012"),
        {"other_meters"},
    ),
    "meters of another attempt": (
        request("other_meters = '{\"search_call\": 9}'", STANDARD), {"answer"}
    ),
    "one search more": (meters('{"cache_write_5m": 7, "search_call": 1}'), {"cost_rated", "correction_rated"}),
    "searches for nothing": (
        ("PRAGMA ignore_check_constraints = ON;"
        "UPDATE requests SET cost_nano_usd = 0, uncached_tokens = 0, cached_tokens = 0, "
        "output_tokens = 0, reasoning_tokens = 0, tps = NULL, tpot_us = NULL "
        f"WHERE id = '{STANDARD}';"
        "UPDATE attempts SET cost_nano_usd = 0, uncached_tokens = 0, cached_tokens = 0, "
        f"output_tokens = 0, reasoning_tokens = 0 WHERE request_id = '{STANDARD}' AND number = 2;"
        f"UPDATE attempts SET cost_nano_usd = NULL, rates_id = NULL, uncached_tokens = NULL, "
        "cached_tokens = NULL, output_tokens = NULL, reasoning_tokens = NULL, "
        f"usage_source = 'none' WHERE request_id = '{STANDARD}' AND number = 1"),
        {"never_zero", "cost_rated", "corrections_sum", "correction_rated"},
    ),
    "for nothing": (
        ("PRAGMA ignore_check_constraints = ON;"
        "UPDATE requests SET cost_nano_usd = 0 WHERE id = 'ok-00000';"
        "UPDATE attempts SET cost_nano_usd = 0 WHERE request_id = 'ok-00000'"),
        {"never_zero", "cost_rated"},
    ),
    "declared free by nobody": (request("declared_free = true"), {"never_zero"}),
    "never rated": (
        ("UPDATE requests SET priced = false, cost_nano_usd = NULL WHERE id = 'ok-00000';"
        "UPDATE attempts SET rates_id = NULL, cost_nano_usd = NULL WHERE request_id = 'ok-00000'"),
        {"cost_rated"},
    ),
    "a negative time": (request("overhead_us = -1"), {"times"}),
    "a first token after the last": (attempt("ttft_us = duration_us + 1"), {"times"}),
    "too fast": (request("tps = tps * 2"), {"times"}),
    "too slow": (request("tpot_us = tpot_us * 2"), {"times"}),
    "no duration": (request("duration_us = NULL, ttft_us = NULL", "early-00011"), {"times"}),
    "before there were clocks": (
        request("started_at_us = 5", "refused-00007"),
        {"times"},
    ),
    "an attempt before its request": (
        attempt("started_at_us = started_at_us - 1000000"),
        {"attempt_span"},
    ),
    "an attempt after its request": (
        attempt("started_at_us = started_at_us + 60000000"),
        {"attempt_span"},
    ),
    "tomorrow": (
        request(f"started_at_us = {int(time.time() * 1e6) + 86_400_000_000}", "refused-00007"),
        {"future"},
    ),
    "ok with status 500": (request("http_status = 500", "refused-00007"), {"outcome"}),
    "refused without a reason": (request("error_code = NULL", "refused-00007"), {"outcome"}),
    "an unknown outcome": (request("outcome = 'fine'", "refused-00007"), {"outcome"}),
    "ok with an error": (attempt("error_code = 'x'"), {"outcome"}),
    "two answers": (
        attempt("outcome = 'ok', http_status = 200", "hedged-00002"),
        {"one_answer", "answer", "times"},
    ),
    "a hedge nobody won": (attempt("outcome = 'hedge_lost'", "early-00011"), {"one_answer"}),
    "a class too strict": (
        "UPDATE requests SET privacy_class = 'restricted' WHERE id = 'retried-00001'",
        {"privacy"},
    ),
    "a class of nobody": (request("privacy_class = 'secret'", "failed-00005"), {"privacy"}),
    "a backend of nobody": (
        "UPDATE attempts SET backend = 'x' WHERE request_id = 'crashed-00012'",
        {"privacy"},
    ),
    "a digest of nobody": (
        request("policy_digest = 'abc'", "refused-00007"),
        {"policy_known", "bundle_readable"},
    ),
    "texts that were changed": (
        "UPDATE policy_bundles SET files = json_set(files, '$.x', 'y')",
        {"bundle_unchanged"},
    ),
    "texts that are none": (
        "UPDATE policy_bundles SET files = '{}'",
        {"bundle_readable"},
    ),
    "no decision": (request("decision = NULL"), {"decision"}),
    "another decision": (
        request("""decision = '{"route": "default", "order": [["b/m", "preferred"]]}'"""),
        {"decision"},
    ),
    "another reason": (attempt("why = 'cheapest'"), {"decision"}),
    "another order": (
        request("""decision = '{"route": "default", "order": [["a/m", "preferred"]]}'""",
                "retried-00001"),
        {"decision"},
    ),
    "half a decision": (request("""decision = '{"route": "default"}'"""), {"decision"}),
    "another route": (request("route = 'x'"), {"decision"}),
    "nobody's request": (request("key_id = NULL", "left-00010"), {"key"}),
    "nobody's, cut off by a crash": (request("key_id = NULL", "crashed-00012"), {"key"}),
    "an attempt that never ended": (
        attempt("outcome = 'interrupted'", "internal-00013"),
        {"outcome"},
    ),
    "a copy with a key": (request("key_id = 'k'", "copy-00000"), {"copies"}),
    "a copy of nothing": (request("shadow_of = 'x'", "copy-00000"), {"copies"}),
    "a copy of a copy": (request("shadow_of = 'copy-00014'", "copy-00000"), {"copies"}),
    "a request is gone": (
        "DELETE FROM requests WHERE id = 'retried-00001'",
        {"orphans"},
    ),
    "an attempt is gone": (
        "DELETE FROM attempts WHERE request_id = 'left-00010'",
        {"attempts_numbered", "cost_sum", "answer", "priced"},
    ),
    "a correction of no attempt": (correction("attempt = 9"), {"corrections"}),
    "a correction of another hour": (
        correction("request_started_at_us = request_started_at_us + 1"), {"corrections"}
    ),
    "a correction of nothing metered": (
        correction("request_id = 'crashed-00012', request_started_at_us = "
                   "(SELECT started_at_us FROM requests WHERE id = 'crashed-00012')"),
        {"corrections"},
    ),
    "a run is gone": ("DELETE FROM rating_runs WHERE number = 2", {"corrections"}),
    "a run that says more": (
        "UPDATE rating_runs SET delta_nano_usd = delta_nano_usd + 1 WHERE number = 1",
        {"run_totals"},
    ),
    "a correction is gone": (
        "DELETE FROM corrections WHERE run = 1 AND request_id = 'unpriced-00004'", {"run_totals"}
    ),
    "another delta": (
        correction("delta_nano_usd = delta_nano_usd + 1"), {"corrections_sum", "run_totals"}
    ),
    "corrected to another cost": (correction("cost_nano_usd = 1"), {"corrections_sum", "correction_rated"}),
    "corrected to nothing": (
        correction("cost_nano_usd = 0, delta_nano_usd = 0"),
        {"corrections_sum", "correction_rated", "run_totals"},
    ),
    "one correction more, another less": (
        SHIFTED.format(2, "+", "2") + ";" + SHIFTED.format(2, "-", "11"), {"correction_rated"}
    ),
    "corrected at rates of another model": (
        correction(f"rates_id = '{OLD}'"), {"correction_rated"}
    ),
    "a price known otherwise": (
        "UPDATE price_statements SET terms = json_set(terms, '$.note', 'x') WHERE number = 1",
        {"price_statements", "prices_known"},
    ),
    "other rates known": (
        "UPDATE price_statements SET rates_id = 'x' WHERE number = 1", {"price_statements"}
    ),
    "known before it was": (
        "UPDATE price_statements SET recorded_at_us = 5 WHERE number = 2", {"price_statements"}
    ),
    "a statement is gone": (
        "DELETE FROM price_statements WHERE number = 2", {"price_statements", "prices_known"}
    ),
    "the last statement is gone": (
        "DELETE FROM price_statements WHERE number = 5", {"prices_known", "correction_rated"}
    ),
    "a statement nobody made": (
        ("INSERT INTO price_statements SELECT 6, recorded_at_us, backend, 'n', valid_from_us, NULL, "
        "rates_id, terms, author, digest FROM price_statements WHERE number = 3"),
        {"price_statements", "prices_known"},
    ),
    "an hour that sums up more": (
        "UPDATE attempt_hours SET cost_nano_usd = cost_nano_usd + 1 WHERE rowid = 1", {"rollups"}
    ),
    "an hour that is gone": ("DELETE FROM request_hours WHERE rowid = 1", {"rollups"}),
    "twice the same": (
        ("CREATE TABLE two AS SELECT * FROM requests; DROP TABLE requests;"
        "ALTER TABLE two RENAME TO requests;"
        "INSERT INTO requests SELECT * FROM requests WHERE id = 'ok-00000'"),
        {"unique"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_a_corruption_is_found_by_its_own_check(clean, tmp_path, what):
    statements, expected = CORRUPTIONS[what]
    database = Path(shutil.copy(clean, tmp_path / "ledger.db"))
    with sqlite3.connect(database) as connection:
        connection.executescript(f"{THAW};{statements}")
    connection.close()
    found = broken(audited(database))
    assert set(found) == expected, found


def test_every_law_has_a_corruption_that_breaks_it():
    assert {law.name for law in LAWS} | {*PRICE_LAWS} <= set[str]().union(
        *(c[1] for c in CORRUPTIONS.values())
    )


def test_an_hour_whose_sums_differ_is_one_finding_of_each_kind(clean, tmp_path):
    database = Path(shutil.copy(clean, tmp_path / "ledger.db"))
    with sqlite3.connect(database) as connection:
        connection.executescript(THAW)
        connection.execute(
            "UPDATE attempt_hours SET cost_nano_usd = cost_nano_usd + 1, output_tokens = output_tokens + 2"
        )
    connection.close()
    check = audited(database).checks["rollups"]
    assert check.broken == 1
    assert check.first[0].id == "attempt_hours 2026-11-10 00:00 UTC"
    assert re.fullmatch(
        r"\d+ sums differ, the first: \w+ \d+, the rows make it \d+", check.first[0].what
    )


def test_of_many_the_count_is_whole_and_the_first_are_named(clean, tmp_path):
    database = Path(shutil.copy(clean, tmp_path / "ledger.db"))
    with sqlite3.connect(database) as connection:
        connection.executescript(THAW)
        connection.execute("UPDATE requests SET route = 'x' WHERE route IS NOT NULL")
    connection.close()
    check = audited(database).checks["decision"]
    assert check.broken == check.looked > 50
    assert [found.id for found in check.first] == [
        "ok-00000", "retried-00001", "hedged-00002", "kept-00003", "unpriced-00004"
    ]  # fmt: skip
    assert check.first[0].what == "route x, decided was default"


# --- prices of another book -------------------------------------------------------------------


def test_a_price_that_was_known_must_have_been_used(clean, tmp_path):
    """Rows without a cost where their own bundle has the price: the same rows, another book."""
    database = Path(shutil.copy(clean, tmp_path / "ledger.db"))
    priced = FILES["prices/own.yaml"] + FILES["prices/own.yaml"].splitlines()[-1].replace(
        "backend: b", "backend: c"
    )
    files = FILES | {"prices/own.yaml": priced + "\n"}
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE policy_bundles SET files = ?", (json.dumps(files),))
    connection.close()
    report = audited(database)
    told = {"cost_rated", "bundle_unchanged", "prices_known", "price_statements"}
    assert set(broken(report)) <= told
    assert {"cost_rated", "bundle_unchanged", "prices_known"} <= set(broken(report))
    assert report.checks["cost_rated"].broken == report.figures["unpriced_requests"]


def test_free_is_what_its_rates_say_is_free():
    zero = FILES["prices/own.yaml"].replace('"0.139"', '"0"').replace('"1.931"', '"0"')
    zero = zero.replace('"0.017", output', '"0", free: true, output')
    made = next(records(1))
    made.cost_nano_usd = made.attempts[0].cost_nano_usd = 0
    row = asdict(made)
    case = Case(row=row, attempts=row["attempts"], book=read(FILES)[1])
    assert {law.name for law, _ in laws_broken(case)} == {"never_zero", "cost_rated"}
    book = read(FILES | {"prices/own.yaml": zero})[1]
    rates = book.prices.rates(Target("a", "m"), made.started_at_us)
    assert rates is not None
    assert rates.id.startswith("free:a/m@2026-11-10")
    made.attempts[0].rates_id = rates.id
    row = asdict(made)
    free = replace(case, row=row, attempts=row["attempts"], book=book)
    assert laws_broken(free) == []


# --- what is not in the database --------------------------------------------------------------


def waiting(database: Path, folder: Path, **options) -> Report:
    return audited(database, journal=folder, **options)


def test_rows_in_the_journal_of_a_living_worker_are_counted(clean, tmp_path):
    made = list(records(30))  # all of them are in the database
    new = [replace(record, id=f"new-{at}") for at, record in enumerate(made[:3])]
    journal = Journal(tmp_path, "w")
    for record in (*made, *new):
        journal.close(record)
    starting = replace(made[0], id="running", attempts=made[0].attempts[:1])
    journal.open(starting)
    report = waiting(clean, tmp_path, rows=7)
    assert (report.figures["rows_waiting"], report.figures["requests_in_flight"]) == (3, 1)
    # They ended long ago.
    assert {name: len(found) for name, found in broken(report).items()} == {"journal_sent": 1}
    assert "3 rows are not in the database" in report.checks["journal_sent"].first[0].what
    assert report.count("violation") == 0
    journal.stop()


def test_rows_that_have_just_ended_may_wait(clean, tmp_path):
    journal = Journal(tmp_path, "w")
    journal.close(replace(next(records(1)), id="new", started_at_us=int(time.time() * 1e6)))
    report = waiting(clean, tmp_path)
    assert (broken(report), report.figures["rows_waiting"]) == ({}, 1)
    journal.stop()


def test_what_a_dead_worker_left_is_told(clean, tmp_path):
    journal = Journal(tmp_path, "w")
    record = next(records(1))
    journal.close(replace(record, id="new"))
    journal.open(replace(record, id="cut"))
    journal.stop()
    (tmp_path / "w-1.jsonl").open("ab").write(b'{"id":"torn')
    report = waiting(clean, tmp_path)
    (found,) = report.checks["journal_adopted"].first
    assert found.id == "w-1.jsonl"
    assert found.what.startswith("1 rows are not in the database")
    assert found.what.endswith("1 requests were cut off")
    assert (report.count("violation"), report.count("warning")) == (0, 1)


def test_a_row_the_database_refused_is_missing_until_it_is_there(clean, tmp_path):
    lines = [orjson.dumps(r) for r in (next(records(1)), replace(next(records(1)), id="bad"))]
    (tmp_path / "refused.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    report = waiting(clean, tmp_path)
    assert broken(report) == {"refused_rows": ["bad"]}
    assert report.checks["refused_rows"].looked == 2


def test_a_hold_of_a_request_that_ended_was_leaked(clean):
    async def holds() -> AsyncIterator[list[str]]:
        yield ["ok-00000", "crashed-00012"]
        yield ["of-nobody-yet"]

    report = audited(clean, holds=holds())
    assert broken(report) == {"holds": ["ok-00000"]}
    assert report.checks["holds"].looked == 3
