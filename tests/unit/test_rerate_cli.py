"""`weighbridge prices rerate` and `history` as they are typed."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger import known_prices, ratings
from gateway.ledger.store import Store
from tests.unit.ledger.audited import FILES, PRICES, put_bundle, records, write

SINCE = ("--since", "2026-11-01")
C_ROW = (
    '  - {backend: c, model: m, from: 2026-11-01, input_usd_per_mtok: "1.111", '
    'output_usd_per_mtok: "3.007", source: made up, read_on: 2026-11-01}\n'
)
COUNT = 45


def put(home, prices: str) -> None:
    async def run() -> None:
        store = await Store.connect(f"sqlite:///{home / 'ledger.db'}")
        await put_bundle(store, FILES | {"prices/own.yaml": prices})
        await store.close()

    asyncio.run(run())


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An instance whose ledger has rows without a price."""

    async def make() -> None:
        store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
        await put_bundle(store)
        await write(store, tmp_path / "journal", records(COUNT))
        await store.close()

    asyncio.run(make())
    (tmp_path / "policies" / "prices").mkdir(parents=True)
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.delenv("WEIGHBRIDGE_DATABASE_URL", raising=False)
    monkeypatch.delenv("WEIGHBRIDGE_REDIS_URL", raising=False)
    return tmp_path


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["prices", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def lines(output: str) -> list[str]:
    return [" ".join(line.split()) for line in output.splitlines()]


def asked(home, query: str) -> list:
    connection = sqlite3.connect(home / "ledger.db")
    found = connection.execute(query).fetchall()
    connection.close()
    return found


def test_by_the_same_prices_there_is_nothing_to_correct(home):
    code, output = run("rerate", *SINCE)
    assert code == 0
    first, *_, last = lines(output)
    assert first.startswith("requests from 2026-11-01 00:00 to ")
    assert first.endswith(" UTC")
    assert last.startswith("0 corrections: nothing to correct in ")


def test_it_shows_first_then_applies_then_has_nothing_left(home):
    before = asked(home, "SELECT sum(cost_nano_usd) FROM attempts")
    put(home, PRICES + C_ROW)
    code, output = run("rerate", *SINCE)
    assert code == 0
    (target,) = (line for line in lines(output) if line.startswith("c/m"))
    assert " $0 $" in target
    assert target.endswith(" corrected, 3 of them get a price")
    assert lines(output)[-1] == "3 corrections would be made; --apply makes them"
    assert asked(home, "SELECT count(*) FROM corrections") == [(0,)]
    code, output = run("rerate", *SINCE, "--apply", "--note", "c was forgotten")
    assert (code, lines(output)[-1]) == (0, "run 1: 3 corrections appended; rows are as they were")
    assert asked(home, "SELECT note FROM rating_runs") == [("c was forgotten",)]
    code, output = run("rerate", *SINCE, "--apply")
    assert code == 0
    assert lines(output)[-1].startswith("0 corrections: nothing to correct in ")
    assert asked(home, "SELECT count(*), sum(delta_nano_usd) > 0 FROM corrections") == [(3, 1)]
    assert asked(home, "SELECT sum(cost_nano_usd) FROM attempts") == before


def test_json_has_the_same_figures(home):
    put(home, PRICES + C_ROW)
    code, output = run("rerate", *SINCE, "--only-unpriced", "--backend", "c", "--apply", "--json")
    found = json.loads(output)
    assert (code, found["ok"], found["applied"], found["run"]) == (0, True, True, 1)
    assert found["filters"] == {"backend": "c", "only_unpriced": True}
    (target,) = found["targets"]
    assert target == {"backend": "c", "model": "m", **found["total"]}
    assert (target["attempts"], target["corrected"], target["get_a_price"]) == (3, 3, 3)
    assert target["before_usd"] == "0"
    assert target["would_be_usd"] == target["difference_usd"]
    assert found["lost"] == []


def test_a_price_that_would_be_lost_is_an_error_to_look_at(home):
    put(home, "".join(line for line in PRICES.splitlines(True) if "backend: b" not in line))
    code, output = run("rerate", *SINCE, "--apply")
    assert code == 1
    assert "attempt 2: the book has no price of b/m at that time" in output
    assert "attempts have a price that this book does not know; they keep it" in output
    assert asked(home, "SELECT count(*) FROM corrections") == [(0,)]


def test_by_what_was_known_then(home):
    put(home, PRICES + C_ROW)

    async def first_recorded() -> int:
        store = await Store.connect(f"sqlite:///{home / 'ledger.db'}")
        said = await known_prices.statements(store)
        await store.close()
        return said[-1].recorded_at_us

    connection = sqlite3.connect(home / "ledger.db")
    with connection:
        connection.execute("UPDATE price_statements SET recorded_at_us = 1760000000000000")
        connection.execute(
            "UPDATE price_statements SET recorded_at_us = 1790000000000000 WHERE backend = 'c'"
        )
    connection.close()
    assert asyncio.run(first_recorded()) == 1790000000000000
    _, then = run("rerate", *SINCE, "--known-at", "2026-01-01", "--json")
    _, now = run("rerate", *SINCE, "--json")
    assert (json.loads(then)["total"]["corrected"], json.loads(now)["total"]["corrected"]) == (0, 3)
    code, output = run("rerate", *SINCE, "--known-at", "2025-01-01")
    assert code == 2
    assert (
        "no price was known at 2025-01-01 00:00:00 UTC: the first was recorded 2025-10-09" in output
    )


@pytest.mark.parametrize(
    "wrong", [("--since", "soon"), ("--since", "2999-01-01"), (*SINCE, "--known-at", "x"), ()]
)
def test_wrong_usage(home, wrong):
    assert run("rerate", *wrong)[0] == 2


def test_a_file_that_is_not_in_force_is_told(home):
    file = home / "policies" / "prices" / "own.yaml"
    file.write_text(PRICES)
    assert "differs" not in run("rerate", *SINCE)[1]
    file.write_text(PRICES + C_ROW)
    code, output = run("rerate", *SINCE)
    assert code == 0
    assert (
        "prices/own.yaml differs from what is in force (version 1): `weighbridge policy apply` "
        "or start the gateway first" in output
    )


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--model", "mm"), "no model 'mm' in prices or requests; did you mean 'm'?"),
        (("--backend", "nosuch"), "no backend 'nosuch' in prices or requests; one of: a, b"),
    ],
)
def test_a_name_that_nobody_has_is_not_an_empty_answer(home, args, told):
    code, output = run("rerate", *SINCE, *args)
    assert code == 2
    assert told in output


def test_what_was_requested_without_a_price_can_be_asked_for(home):
    assert run("rerate", *SINCE, "--backend", "c")[0] == 0


def test_history_where_nothing_was_ever_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    code, output = run("history", "m")
    assert code == 1
    assert "no price was ever recorded" in output


def test_corrections_leave_the_audit_clean(home):
    put(home, PRICES.replace('"2.503"', '"2.6"') + C_ROW)
    assert run("rerate", *SINCE, "--apply")[0] == 0
    result = CliRunner().invoke(app, ["audit", *SINCE, "--strict"])
    assert result.exit_code == 0, result.output

    async def newest() -> int:
        store = await Store.connect(f"sqlite:///{home / 'ledger.db'}")
        number = await ratings.newest_run(store)
        await store.close()
        return number

    assert asyncio.run(newest()) == 1


# --- history --------------------------------------------------------------------------------------


def test_history_shows_both_times(home):
    put(home, PRICES.replace('"2.503"', '"2.6"'))
    put(home, PRICES)
    code, output = run("history", "m", "--backend", "b")
    assert code == 0
    head, *rows, foot = lines(output)
    rows = [row for row in rows if row.startswith("b ")]  # what is too wide goes on below
    assert head == "backend valid from until known from until in cached out more by"
    assert [("$2.503" in row, "$2.6" in row) for row in rows] == [
        (True, False), (False, True), (True, False)
    ]  # fmt: skip
    assert foot.startswith("Times in UTC")


def test_history_in_json_ends_where_the_next_begins(home):
    code, output = run("history", "m", "--backend", "a", "--json")
    found = json.loads(output)
    assert code == 0
    assert [(one["valid_from"], one["valid_until"]) for one in found] == [
        ("2026-01-01", "2026-11-10"), ("2026-11-10", None)
    ]  # fmt: skip
    assert {one["known_until"] for one in found} == {None}
    assert found[0]["terms"]["input_usd_per_mtok"] == "0.137"


def test_history_knows_what_was_not_known_yet(home):
    code, output = run("history", "m", "--known-at", "2020-01-01")
    assert (code, output) == (0, "nothing was known of m at 2020-01-01\n")


def test_history_of_a_model_nobody_priced(home):
    code, output = run("history", "mm")
    assert code == 2
    assert "nothing was ever stated of mm; did you mean 'm'?" in output
