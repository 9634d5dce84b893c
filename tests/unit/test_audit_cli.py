"""`weighbridge audit` as it is typed: what it prints and exits with."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger.journal import Journal
from gateway.ledger.store import Store
from gateway.redis_link import RedisLink
from tests.unit.ledger.audited import START_US, put_bundle, records, write
from tests.unit.ledger.thawed import THAW

ALL = ("--since", "2026-11-01")
COUNT = 31


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An instance whose ledger is in order."""

    async def make() -> None:
        store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
        await put_bundle(store)
        await write(store, tmp_path / "journal", records(COUNT))
        await store.close()

    asyncio.run(make())
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.delenv("WEIGHBRIDGE_DATABASE_URL", raising=False)
    monkeypatch.delenv("WEIGHBRIDGE_REDIS_URL", raising=False)
    return tmp_path


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["audit", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def change(home, statement: str) -> None:
    with sqlite3.connect(home / "ledger.db") as connection:
        connection.executescript(f"{THAW};{statement}")
    connection.close()


def test_clean_is_said_in_the_last_line_and_by_the_status(home):
    code, output = run(*ALL, "--strict")
    assert code == 0
    assert output.splitlines()[0].startswith("requests from 2026-11-01 00:00 to 20")
    assert output.splitlines()[-1] == "clean: no violation in 34 requests"
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert "cost_sum A request costs what its attempts cost. 34 0 ok" in lines
    (holds,) = (line for line in lines if line.startswith("holds"))
    assert holds.endswith(" 0 - nothing to check")


def test_a_violation_names_its_requests_and_what_to_do(home):
    change(home, "UPDATE requests SET cost_nano_usd = 7 WHERE id = 'hedged-00002'")
    code, output = run(*ALL)
    assert code == 1
    assert "\ncost_sum: 1 found\n  hedged-00002: cost 7, the attempts cost " in output
    assert "  What to do: Somebody changed the row: restore it" in output
    assert output.splitlines()[-1] == "1 violation of 1 law"


def test_json_has_every_check_and_figure(home):
    change(home, "UPDATE requests SET cost_nano_usd = 7 WHERE id = 'hedged-00002'")
    code, output = run(*ALL, "--until", "2026-11-11", "--json")
    found = json.loads(output)
    assert (code, found["ok"], found["violations"], found["warnings"]) == (1, False, 1, 0)
    assert (found["from"], found["until"]) == ("2026-11-01T00:00:00Z", "2026-11-11T00:00:00Z")
    assert found["figures"]["requests"] == 34
    (check,) = (check for check in found["checks"] if check["found"])
    assert check["name"] == "cost_sum"
    assert check["first"][0]["id"] == "hedged-00002"
    assert set(check) == {"name", "law", "state", "looked_at", "found", "first", "what_to_do"}
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert (states["cost_sum"], states["privacy"], states["holds"]) == (
        "violation",
        "ok",
        "nothing",
    )


def test_a_warning_counts_where_it_is_asked_to(home):
    journal = Journal(home / "journal", "dead")
    journal.close(next(records(1)))
    journal.stop()
    code, output = run(*ALL)
    assert code == 0
    assert "journal_adopted: 1 found\n  dead-1.jsonl: no rows are missing" in output
    assert output.splitlines()[-1] == "clean: no violation in 34 requests, 1 warning"
    assert run(*ALL, "--strict")[0] == 1


def test_a_period_without_rows_is_clean_and_says_so(home):
    code, output = run("--since", "2026-01-01", "--until", "2026-02-01")
    assert code == 0
    assert output.splitlines()[-1] == "clean: no violation in 0 requests"


@pytest.mark.parametrize(
    "wrong",
    [("--since", "yesterday"), ("--since", "2999-01-01"), ("--until", "2020-01-01"), ("--what",)],
)
def test_wrong_usage(home, wrong):
    assert run(*wrong)[0] == 2


def test_open_holds_are_asked_of_redis(home, redis_url, monkeypatch):
    async def hold() -> None:
        link = RedisLink(redis_url, timeout_s=5.0)
        await link.connect()
        ends_ms = str(START_US // 1000)
        for request_id in ("ok-00000", "crashed-00012", "of-nobody"):
            await link.command("ZADD", "wb:{limits}:leases", ends_ms, request_id)
        await link.aclose()

    asyncio.run(hold())
    monkeypatch.setenv("WEIGHBRIDGE_REDIS_URL", redis_url)
    code, output = run(*ALL)
    assert code == 1
    assert "\nholds: 1 found\n  ok-00000: ended " in output


def test_without_redis_the_rest_is_audited(home, monkeypatch):
    monkeypatch.setenv("WEIGHBRIDGE_REDIS_URL", "redis://127.0.0.1:1/0")
    code, output = run(*ALL)
    assert code == 0
    assert "open holds were not checked: Redis: 127.0.0.1:1" in output


def test_the_document_names_every_check_and_its_weight(home):
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    listed = re.findall(r"^\| `(\w+)`( \(warning\))? \|", text, re.MULTILINE)
    checks = json.loads(run(*ALL, "--json")[1])["checks"]
    assert {name for name, _ in listed} == {check["name"] for check in checks}
    assert {name for name, warning in listed if warning} == {
        "bundle_readable", "journal_adopted", "journal_sent"
    }  # fmt: skip
