"""`weighbridge report` as it is typed."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import shlex
from decimal import Decimal

import orjson
import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger.store import Store
from tests.unit.ledger.records import request
from tests.unit.reports.month import NOVEMBER_US, month

# The present is after it however late this runs.
PERIOD = ["--since", "2026-11-01", "--until", "2026-11-20"]


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", url)

    async def fill(rows):
        store = await Store.connect(url)
        await store.append([orjson.dumps(row) for row in rows])
        await store.close()

    asyncio.run(fill(month(200)))
    return lambda *rows: asyncio.run(fill(rows))


def run(*words: str):
    return CliRunner().invoke(app, ["report", *words])


def test_table_and_foot(ledger):
    done = run("cost", "--by", "kind", *PERIOD, "--zone", "Europe/Berlin")
    assert done.exit_code == 0, done.output
    for word in ("closed_api", "managed", "Digest", "Europe/Berlin", "unpriced"):
        assert word in done.output


def test_verify_says_same_and_different(ledger):
    digest = orjson.loads(run("cost", *PERIOD, "--json").stdout)["foot"]["digest"]
    same = run("cost", *PERIOD, "--verify", digest[:12])
    assert (same.exit_code, same.output.split(":")[0]) == (0, "same")
    ledger(request("late", started_at_us=NOVEMBER_US + 5))
    other = run("cost", *PERIOD, "--verify", digest)
    assert (other.exit_code, other.output.split(":")[0]) == (1, "different")


def test_another_currency_stands_beside_dollars_and_the_foot_says_its_rate(ledger):
    report = orjson.loads(run("cost", *PERIOD, "--currency", "eur", "--json").stdout)
    table = run("cost", *PERIOD, "--currency", "EUR").output
    assert "cost, EUR" in table
    rate = re.search(r"EUR at ([0-9.]+) for a dollar \(price book, rate from 2026-", table)
    for line in [*report["lines"], report["total"]]:
        if line["cost_usd"] is not None:
            wanted = Decimal(line["cost_usd"]) * Decimal(rate[1])
            assert Decimal(line["cost_eur"]) == pytest.approx(wanted, abs=Decimal("1e-12"))
    digest = report["foot"]["digest"]
    assert run("cost", *PERIOD, "--verify", digest).exit_code == 0


def test_rows_of_a_total_by_backend_are_attempts(ledger):
    report = orjson.loads(run("cost", "--by", "backend", *PERIOD, "--json").stdout)
    words = shlex.split(report["total"]["drill_down"])
    assert "--attempts" in words
    rows = run(*words[2:], "--format", "csv", "--all")
    found = list(csv.DictReader(io.StringIO(rows.stdout)))
    assert len(found) == report["total"]["requests"]
    total = sum(Decimal(row["cost_usd"] or 0) for row in found)
    assert total == Decimal(report["total"]["cost_usd"])


@pytest.mark.parametrize("chosen", ["csv", "json", "html", "xlsx", "pdf"])
@pytest.mark.parametrize("report", [["cost", "--by", "day"], ["quality"]])
def test_every_format_to_a_file(ledger, tmp_path, chosen, report):
    out = tmp_path / f"report.{chosen}"
    done = run(*report, *PERIOD, "--format", chosen, "--output", str(out))
    assert done.exit_code == 0, done.output
    start = {"xlsx": b"PK", "pdf": b"%PDF", "html": b"<!doctype", "json": b"{"}
    assert out.read_bytes().startswith(
        start.get(chosen, b"backend" if "quality" in report else b"day")
    )


def test_rows_all_of_them_and_by_page(ledger):
    whole = run("rows", *PERIOD, "--format", "csv", "--all", "--where", "team=search")
    lines = list(csv.DictReader(io.StringIO(whole.stdout)))
    first = orjson.loads(
        run("rows", *PERIOD, "--where", "team=search", "--limit", "5", "--json").stdout
    )
    assert [row["request"] for row in first["rows"]] == [row["request"] for row in lines[:5]]
    after = ["--after", first["after"]]
    more = run("rows", *PERIOD, "--where", "team=search", "--limit", "5", "--json", *after)
    assert orjson.loads(more.stdout)["rows"][0]["request"] == lines[5]["request"]


def test_an_empty_period_is_no_error(ledger):
    done = run("cost", "--since", "2020-01-01", "--until", "2020-02-01")
    assert done.exit_code == 0
    assert "Nothing was recorded" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cost", "--by", "taem"], "did you mean team?"),
        (["cost", "--where", "cost_center=1"], "neither a column nor a tag"),
        (["cost", "--since", "2999-01-01"], "future"),
        (["cost", "--since", "2026-11-02", "--until", "2026-11-01"], "not before"),
        (["cost", "--format", "docx"], "must be one of"),
        (["cost", "--format", "csv", "--output", "/nonesuch/x.csv"], "no such folder"),
        (["cost", "--verify", "xyz"], "at least 12 digits"),
        (["quality", "--where", "backend=openai"], "answered_by"),
        (["cost", "--by", "meter", "--where", "meter=inptu"], "did you mean input?"),
        (["cost", "--where", "meter=input"], "only with --by meter"),
        (["cost", "--currency", "EURO"], "did you mean EUR?"),
        (["cost", "--currency", "XAU"], "no rate of it"),
        (["rows", "--all"], "only with --format csv"),
        (["rows", "--after", "x"], "not a place"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_says_why(ledger, words, said):
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert said in done.output
