"""`weighbridge report focus` as it is typed."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import re
from decimal import Decimal

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger.store import Store, attempt_hours
from gateway.reports.focus.export import header
from tests.unit.reports.priced import fill, month

# The present is after it however late this runs.
PERIOD = ("--since", "2026-11-01", "--until", "2026-11-20")


@pytest.fixture
def home(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", url)

    async def filled() -> None:
        store = await Store.connect(url)
        records = list(month(150, long_us=19 * 86_400_000_000))
        await fill(store, tmp_path / "journal", records)
        await store.close()

    asyncio.run(filled())
    return tmp_path


def run(*words: str):
    return CliRunner().invoke(app, ["report", "focus", *words])


def test_a_file_its_digest_and_what_it_adds_up_to(home):
    out = home / "focus.csv"
    done = run(*PERIOD, "-o", str(out))
    assert done.exit_code == 0, done.output
    digest = re.search(r"^sha256 (\w{64})$", done.stderr, re.MULTILINE)[1]
    assert hashlib.sha256(out.read_bytes()).hexdigest() == digest
    rows = list(csv.DictReader(io.StringIO(out.read_text("utf-8"))))
    total = sum(Decimal(row["EffectiveCost"]) for row in rows)
    assert f"effective ${total.normalize():f}" in done.stderr
    cost = json.loads(CliRunner().invoke(app, ["report", "cost", *PERIOD, "--json"]).stdout)
    assert Decimal(cost["total"]["cost_usd"]) == total
    for said in ("newcomer/model-x", "unpriced", "estimates", f"written: {out}"):
        assert said in done.stderr
    assert not list(home.glob("*.partial"))


def test_printed_it_is_the_same_text_and_nothing_else(home):
    out = home / "focus.csv"
    run(*PERIOD, "-o", str(out))
    assert run(*PERIOD).stdout == out.read_text("utf-8")


def test_json_has_every_column_and_null_for_what_is_empty(home):
    said = json.loads(run(*PERIOD, "--json", "--focus-version", "1.3").stdout)
    assert said["summary"]["agrees"] is True
    assert len(said["rows"]) == said["summary"]["rows"] > 100
    assert list(said["rows"][0]) == header("1.3").strip().split(",")
    assert said["rows"][0]["CommitmentDiscountStatus"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--month", "2999-10"], "future"),
        (["--since", "2999-01-01", "--until", "2999-02-01"], "future"),
        (["--month", "2020-02"], "nothing was recorded"),
    ],
)
def test_a_period_without_rows_is_a_word_and_a_file_that_is_valid(home, words, said):
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert done.stdout == header("1.2")
    assert said in done.stderr
    assert json.loads(run(*words, "--json").stdout)["rows"] == []


def test_a_sum_that_no_price_makes_is_not_split_and_not_lost(home):
    async def doctored() -> None:
        store = await Store.connect(f"sqlite:///{home / 'ledger.db'}")
        async with store._begin() as connection:  # a quantity nobody paid for
            h = attempt_hours.c
            first = sa.select(sa.func.min(h.hour_us)).where(h.cost_nano_usd > 0).scalar_subquery()
            await connection.execute(
                sa.update(attempt_hours)
                .where(h.hour_us == first)
                .values(uncached_tokens=h.uncached_tokens + 10**9)
            )
        await store.close()

    before = run(*PERIOD, "--json")
    asyncio.run(doctored())
    after = json.loads(run(*PERIOD, "--json").stdout)["summary"]
    assert json.loads(before.stdout)["summary"]["attempts_unsplit"] == {}
    assert sum(after["attempts_unsplit"].values()) >= 1  # no price makes that sum of it
    assert after["agrees"] is True  # and still nothing is lost


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--focus-version", "1.4"], "1.2 or 1.3"),
        (["--granularity", "week"], "hour or day"),
        (["--since", "2026-11-01T00:30", "--until", "2026-11-02"], "full hour"),
        (["--month", "november"], "must look like 2026-11"),
        (["--since", "2999-01-01"], "future"),
        (["-o", "/nonesuch/x.csv"], "no such folder"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_says_why(home, words, said):
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr


def test_nothing_is_left_half_written(home, monkeypatch):
    out = home / "focus.csv"
    out.write_text("of before")
    (home / "ledger.db").write_bytes(b"no database")
    done = run(*PERIOD, "-o", str(out))
    assert done.exit_code != 0
    assert out.read_text() == "of before"
    assert [p.name for p in home.iterdir() if "partial" in p.name] == []
