"""`weighbridge report reconcile` as it is typed."""

from __future__ import annotations

import asyncio
import csv
import io
import json

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger.store import Store
from tests.unit.reports.priced import fill
from tests.unit.reports.test_reconcile import DAYS, records, text, usage_lines, used


@pytest.fixture
def home(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", url)

    async def filled() -> None:
        store = await Store.connect(url)
        await fill(store, tmp_path / "journal", records())
        await store.close()

    asyncio.run(filled())
    return tmp_path


@pytest.fixture
def honest(home):
    file = home / "usage.csv"
    file.write_text(text(usage_lines(used(records()))), encoding="utf-8")
    return file


@pytest.fixture
def doctored(home):
    lines = usage_lines(used(records()))
    lines[1]["usage_output_tokens"] += 1_000
    lines.append(lines[-1] | {"model_version": "opus-x"})
    file = home / "doctored.csv"
    file.write_text(text(lines), encoding="utf-8-sig")  # as spreadsheets save it
    return file


def run(*words: object):
    return CliRunner().invoke(app, ["report", "reconcile", *map(str, words)])


def test_what_agrees_is_said_and_the_status_is_0(honest):
    done = run(honest, "--backend", "claude")
    assert done.exit_code == 0, done.output
    assert f"They agree: {DAYS * 4} figures, no difference." in done.stdout
    assert "anthropic-usage" in done.stdout


def test_what_differs_is_told_by_class_and_the_status_is_1(doctored):
    done = run(doctored, "--backend", "claude")
    assert done.exit_code == 1
    for said in ("tokens differ", "missing here", "opus-x", "past the gateway", "1,000"):
        assert said in done.stdout


def test_json_and_csv_have_the_same_differences(doctored, tmp_path):
    said = json.loads(run(doctored, "--backend", "claude", "--json").stdout)
    assert (said["foot"]["agrees"], said["foot"]["open_usd"]) == (False, None)
    assert [one["class"] for one in said["by_class"]] == ["missing here", "tokens differ"]
    out = tmp_path / "differences.csv"
    run(doctored, "--backend", "claude", "--format", "csv", "-o", out)
    lines = list(csv.DictReader(io.StringIO(out.read_text("utf-8"))))
    assert len(lines) == len(said["lines"]) == 5
    (tokens,) = (line for line in lines if line["class"] == "tokens differ")
    assert (tokens["quantity"], tokens["worth_usd"], tokens["lines"]) == ("1000", "0.0150007", "3")


def test_a_tolerance_makes_it_pass(home):
    lines = usage_lines(used(records()))
    lines[1]["usage_output_tokens"] += 1_000
    file = home / "x.csv"
    file.write_text(text(lines))
    assert run(file, "--backend", "claude").exit_code == 1
    assert run(file, "--backend", "claude", "--tolerance", "0.015").exit_code == 1
    done = run(file, "--backend", "claude", "--tolerance", "0.0151")
    assert done.exit_code == 0
    assert "They agree within the tolerance" in done.stdout


def test_a_part_of_the_file_and_names_of_our_own(honest):
    words = ("--backend", "claude", "--since", "2026-11-02", "--until", "2026-11-04", "--json")
    columns = "time=usage_date_utc,model=model_version,output=usage_output_tokens"
    said = json.loads(run(honest, *words, "--columns", columns).stdout)
    assert said["foot"]["compared"] == 2
    assert said["foot"]["lines_outside"] == DAYS - 2
    assert set(said["foot"]["unstated"]) == {"input", "cache_read", "cache_write_5m"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "claud"], "did you mean claude?"),
        (["--backend", "claude", "--zone", "Mars"], "no such time zone"),
        (["--backend", "claude", "--tolerance", "much"], "an amount of dollars"),
        (["--backend", "claude", "--tolerance", "-1"], "an amount of dollars"),
        (["--backend", "claude", "--columns", "cost"], "must look like cost=Net"),
        (["--backend", "claude", "--model", "x"], "must look like"),
        (["--backend", "claude", "--format", "xlsx"], "must be one of"),
        (["--backend", "claude", "--month", "2999-01"], "future"),
        (["--backend", "claude", "-o", "x.csv"], "say --format csv"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_says_why(honest, words, said):
    done = run(honest, *words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr


def test_files_that_are_none(home):
    assert "no such file" in run(home / "none.csv", "--backend", "claude").stderr
    assert "is a directory" in run(home, "--backend", "claude").stderr
    sheet = home / "sheet.xlsx"
    sheet.write_bytes(b"PK\x03\x04\n\xff\xfe")
    done = run(sheet, "--backend", "claude")
    assert (done.exit_code, "sheet.xlsx:2: not UTF-8 text" in done.stderr) == (2, True)
