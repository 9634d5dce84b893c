"""`policy plan` and `policy backtest` as they are typed: what they print, draw and exit with."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import orjson
import pytest
from typer.testing import CliRunner

from gateway.cli.policy import app
from gateway.cli.policy.figures import summary
from gateway.domain.catalog import Target
from gateway.domain.decision import recalled, record
from gateway.domain.outcome import RequestRecord
from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Origin, Versions
from gateway.policy.comparison import Comparison, Money, Period, Spread
from gateway.policy.replay import Side
from tests.bench.recording import OWN_PRICES, bundle, lines

ROWS = 400
WEEK = ("--since", "2026-11-16", "--until", "2026-11-23")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A database with a week of traffic, decided by the shipped `balanced`, in force."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    files = bundle("balanced")

    async def write() -> None:
        store = await Store.connect(f"sqlite:///{path}")
        change = Change(
            digest=files.digest,
            policy="balanced",
            origin=Origin.APPLY,
            author="test",
            files=files.files,
        )
        await Versions(store).put(change, expected=0)
        await store.append(list(lines(ROWS)))
        await store.close()

    asyncio.run(write())
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """The files of `balanced` and its neighbours on disk."""
    made = Path(shutil.copytree(Path(__file__).parents[3] / "policies", tmp_path / "policies"))
    (made / "prices" / "own.yaml").write_text(OWN_PRICES)
    return made


@pytest.fixture
def run(recorded, folder, tmp_path, monkeypatch):
    def run(*args: object, database: Path | None = recorded) -> tuple[int, str]:
        for name in ("OPENAI_API_KEY", "BASETEN_API_KEY", "FIREWORKS_API_KEY"):
            monkeypatch.delenv(name, raising=False)  # plans are made where no key is
        monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("WEIGHBRIDGE_POLICIES", str(folder))
        monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", f"sqlite:///{database}" if database else "")
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def routing(folder: Path, name: str) -> Path:
    return folder / "routing" / f"{name}.yaml"


# --- plan -------------------------------------------------------------------------------------


def test_a_plan_says_what_changes_what_moves_and_what_it_costs(run, folder):
    code, output = run("plan", routing(folder, "cheapest"), *WEEK)
    assert code == 0
    assert "against version 1 (balanced@" in output.splitlines()[0]
    assert "  ~ route default: prefer: none, was self_hosted > managed > closed_api" in output
    assert "  nothing gets looser" in output
    assert f"{ROWS} of {ROWS} decided again exactly as recorded" in output
    assert "from ↓ to →" in output
    last = output.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"\d+\.\d % of {ROWS} requests move \(.* → .* \d+\.\d %.*\); cost -\$[\d.]+ ± [\d.]+ a month"
        r" \(95 %\); TTFT p50 .*; 0 privacy changes",
        last,
    ), last


def test_what_is_in_force_against_itself_is_nothing(run, folder):
    code, output = run("plan", routing(folder, "balanced"), *WEEK, "--dir", folder, "--json")
    found = json.loads(output)
    assert (code, found["difference"]) == (0, [])
    replay = found["replay"]
    assert (replay["moved"], replay["newly_refused"], replay["admitted"]) == (0, 0, 0)
    assert replay["cost"]["month"]["difference_usd"] == 0
    assert found["summary"].startswith(f"0.0 % of {ROWS} requests move; cost $0")


@pytest.mark.parametrize(
    ("known", "told"),
    [(100, "TTFT p50 no change;"), (23, "TTFT p50 no change for the 23.0 % where it is known;")],
)
def test_the_summary_does_not_take_a_few_known_times_for_all(known, told):
    """What moves to where nothing was measured must not read as "no change"."""
    same = Spread(before_p50=60, after_p50=60, before_p95=90, after_p95=90, known=known)
    money = Money(
        before=0, after=9, low=9, high=9, by_refusal=0, unpriced=0, unmeasured=0, guess_nano_usd=0
    )
    own, closed = Target("own", "m"), Target("closed", "m")
    moves = {(own, own): 23, (own, closed): 77}
    compared = Comparison(
        sample=100,
        stayed=23,
        moved=77,
        refused=0,
        admitted=0,
        unanswered=0,
        moves=moves,
        money=money,
        ttft_ms=same,
        tps=same,
        bounded=0,
        misses_before=0,
        misses_after=0,
        times_unknown=100 - known,
    )
    assert told in summary(compared, Period(from_us=0, until_us=10**6, decided=100, sample=100), 0)


def test_json_has_every_figure(run, folder):
    code, output = run("plan", routing(folder, "fastest"), *WEEK, "--json")
    found = json.loads(output)
    assert (code, found["ok"]) == (0, True)
    assert found["period"]["decided_again"] == {"same": ROWS, "other": 0, "gone": 0}
    replay = found["replay"]
    whole = ("stayed", "moved", "newly_refused", "admitted", "unanswered")
    assert sum(replay[name] for name in whole) == replay["requests"] == ROWS
    assert sum(cell["requests"] for cell in replay["matrix"]) == ROWS
    month = replay["cost"]["month"]
    assert month["low_usd"] <= month["difference_usd"] <= month["high_usd"]
    assert month["difference_usd"] == pytest.approx(month["after_usd"] - month["before_usd"])
    assert month["after_usd"] > replay["cost"]["period"]["after_usd"] > 0
    assert replay["ttft_ms"]["known"] > 0
    assert {"what", "section", "name", "words"} == set(found["difference"][0])


def test_the_same_seed_makes_the_same_plan(run, folder):
    plans = [
        run("plan", routing(folder, "fastest"), *WEEK, "--json", "--seed", seed)[1]
        for seed in (1, 1, 2)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_of_more_requests_than_asked_for_a_sample_is_replayed(run, folder):
    new = routing(folder, "cheapest")
    code, output = run("plan", new, *WEEK, "--requests-max", 100)
    assert code == 0
    assert "Replay of 100 requests" in output
    assert "a sample: one of every 4.0 requests in a row, seed 1" in output
    sampled = json.loads(run("plan", new, *WEEK, "--requests-max", 100, "--json")[1])
    whole = json.loads(run("plan", new, *WEEK, "--json")[1])
    assert sampled["period"]["requests"] == whole["period"]["requests"] == ROWS
    before = [found["replay"]["cost"]["month"]["before_usd"] for found in (sampled, whole)]
    assert before[0] == pytest.approx(before[1], rel=0.5), "scaled to the whole"


def test_privacy_that_gets_looser_needs_a_word(run, folder):
    new = folder / "routing" / "open.yaml"
    text = routing(folder, "balanced").read_text()
    new.write_text(
        text.replace("name: balanced", "name: open").replace("only: true", "only: false")
    )
    catalog = folder / "catalog.yaml"
    before, openai, after = catalog.read_text().partition("\n  openai:\n")
    after = after.replace("cleared_for: internal", "cleared_for: confidential", 1)
    catalog.write_text(
        before + openai + after.replace("retention_days: 30", "retention_days: 0", 1)
    )
    code, output = run("plan", new, *WEEK, "--dir", folder)
    assert code == 1
    assert "! backend openai: cleared for confidential data now, it was for internal" in output
    assert "say --allow-loosen-privacy" in output
    assert run("plan", new, *WEEK, "--dir", folder, "--allow-loosen-privacy")[0] == 0
    found = json.loads(run("plan", new, *WEEK, "--dir", folder, "--json")[1])
    assert found["ok"] is False
    assert found["privacy"]["changes"]
    seen = found["privacy"]["seen"]
    assert seen
    assert all(one["privacy_class"] == "confidential" and one["open"] > 0 for one in seen)
    assert all(one["target"].startswith("openai/") for one in seen)


def test_the_folder_is_in_force_where_no_version_is(run, folder, tmp_path):
    empty = tmp_path / "empty.db"
    code, output = run("plan", routing(folder, "fastest"), database=empty)
    assert code == 0
    assert f"against balanced of {folder}" in output
    assert "  ~ route default: by: fastest, was cheapest" in output
    assert "no recorded request to replay from" in output


def test_catalog_and_prices_of_a_folder_count_too(run, folder):
    prices = folder / "prices" / "own.yaml"
    prices.write_text(prices.read_text().replace('"0.08"', '"8.00"'))
    found = json.loads(
        run("plan", routing(folder, "balanced"), *WEEK, "--dir", folder, "--json")[1]
    )
    (change,) = found["difference"]
    assert change["words"] == (
        "from 2026-11-01: $8 in, $8 cached, $0.35 out per million tokens (declared),"
        " was $0.08 in, $0.08 cached, $0.35 out per million tokens (declared)"
    )
    assert found["replay"]["moved"] == 0
    assert found["replay"]["cost"]["month"]["difference_usd"] > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("none.yaml",), "no such file: none.yaml"),
        (("FILE", "--since", "2999-01-01"), "nothing is recorded of the future"),
        (("FILE", "--since", "yesterday"), "neither a time ago"),
        (("FILE", "--since", "1d", "--until", "2d"), "is not before"),
        (("FILE", "--requests-max", "0"), "requests-max"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "backtest"])
def test_wrong_usage_exits_2(run, folder, command, args, says):
    file = routing(folder, "fastest")
    code, output = run(command, *(file if arg == "FILE" else arg for arg in args))
    assert code == 2
    assert says in output


@pytest.mark.parametrize("command", ["plan", "backtest"])
def test_a_file_that_does_not_load_says_where_and_exits_1(run, folder, command):
    bad = folder / "routing" / "bad.yaml"
    bad.write_text("version: 1\nname: bad\ndefault: {by: chepest}\n")
    code, output = run(command, bad, *WEEK)
    assert code == 1
    assert "bad.yaml:3:15: default.by: unknown value 'chepest'; did you mean 'cheapest'?" in output


# --- backtest ---------------------------------------------------------------------------------


def test_a_backtest_shows_policies_side_by_side(run, folder, tmp_path):
    chart = tmp_path / "out.svg"
    names = ("cheapest", "fastest", "private-first")
    files = [routing(folder, name) for name in (*names, "fastest.tests")]  # as a shell's * would
    code, output = run("backtest", *files, *WEEK, "--chart", chart)
    assert code == 0
    head = next(line for line in output.splitlines() if "in force" in line)
    assert head.split() == ["in", "force", *names]
    for row in ("requests that move", "cost a month", "TTFT p50, ms", "SLO misses"):
        assert any(line.startswith(row) for line in output.splitlines())
    assert "Cost against in force, US dollars a month" in output
    assert "█" in output
    assert f"drawn: {chart}" in output
    _is_a_good_picture(chart.read_text(), ["in force", *names])


def _is_a_good_picture(text: str, names: list[str]) -> None:
    """Well-formed, alone, for dark and light, with units; and nothing lies outside."""
    root = ET.fromstring(text)
    assert not list(root.iter(f"{SVG}script"))
    assert "href" not in text
    assert "prefers-color-scheme:dark" in text
    words = [node.text for node in root.iter(f"{SVG}text")]
    assert set(names) <= set(words)
    assert {"% of requests", "US dollars a month", "ms", "tokens per second"} <= set(words)
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    for node in root.iter():
        for name, most in (("x", width), ("x1", width), ("x2", width), ("y", height)):
            assert 0 <= float(node.attrib.get(name, 0)) <= most
        wide = node.attrib.get("width", "0")
        if not wide.endswith("%") and node is not root:
            assert float(node.attrib.get("x", 0)) + float(wide) <= width


def test_a_backtest_against_another_policy(run, folder):
    code, output = run(
        "backtest", routing(folder, "fastest"), *WEEK, "--against", "fastest", "--json"
    )
    assert code == 0
    first, second = json.loads(output)["policies"]
    assert first["name"] == second["name"] == "fastest"
    assert second["moved"] == 0
    assert first["cost"] == second["cost"]
    code, output = run("backtest", routing(folder, "fastest"), *WEEK, "--against", "nope")
    assert code == 2
    assert "no such policy" in output
    assert "balanced, " in output


def test_json_of_a_backtest_agrees_with_the_plan(run, folder):
    found = json.loads(
        run("backtest", routing(folder, "cheapest"), routing(folder, "fastest"), *WEEK, "--json")[1]
    )
    alone = json.loads(run("plan", routing(folder, "cheapest"), *WEEK, "--json")[1])["replay"]
    beside = next(one for one in found["policies"] if one["name"] == "cheapest")
    assert {name: beside[name] for name in alone} == alone


def test_nothing_recorded_exits_1(run, folder):
    code, output = run(
        "backtest", routing(folder, "fastest"), "--since", "2026-01-01", "--until", "2026-02-01"
    )
    assert code == 1
    assert "nothing was recorded from 2026-01-01 00:00 to 2026-02-01 00:00 UTC" in output


def test_a_chart_for_nowhere_is_told_before_the_work(run, folder, tmp_path):
    code, output = run(
        "backtest", routing(folder, "fastest"), "--chart", tmp_path / "none" / "o.svg"
    )
    assert code == 2
    assert "no such folder" in output


def test_two_files_of_one_name_are_told_apart(run, folder, tmp_path):
    other = tmp_path / "fastest.yaml"
    shutil.copy(routing(folder, "fastest"), other)
    found = json.loads(run("backtest", routing(folder, "fastest"), other, *WEEK, "--json")[1])
    names = [one["name"] for one in found["policies"]]
    assert len(set(names)) == 3
    assert names[2] == str(other.with_suffix(""))


# --- what has gone by -------------------------------------------------------------------------


def test_rows_of_files_nobody_has_and_of_older_versions_are_counted(run, folder, tmp_path):
    path = tmp_path / "strange.db"
    rows = [orjson.loads(line) for line in lines(60)]
    for row in rows[:10]:
        row["policy_digest"] = "gone"
    for row in rows[10:15]:
        row["decision"].pop("facts")

    async def write() -> None:
        store = await Store.connect(f"sqlite:///{path}")
        await store.append([orjson.dumps(row) for row in rows])
        await store.close()

    asyncio.run(write())
    file = routing(folder, "fastest")
    code, output = run("plan", file, *WEEK, database=path)
    assert code == 0
    assert "55 of 55 decided again exactly as recorded; of 10 the files of then are gone" in output
    assert "not replayed: 5 that were recorded without facts, by an older version" in output
    found = json.loads(run("plan", file, *WEEK, "--json", database=path)[1])
    assert found["period"]["decided_again"] == {"same": 55, "other": 0, "gone": 10}


def test_a_short_period_is_told_as_it_is_and_not_for_a_month(run, folder):
    short = ("--since", "2026-11-20T10:00", "--until", "2026-11-20T20:00")
    code, output = run("plan", routing(folder, "cheapest"), *short)
    assert code == 0
    assert "cost in the period" in output
    assert "a month" not in output


def test_the_traffic_the_tests_replay_is_as_the_gateway_records_it():
    """Settled records of the ledger's own shape, whose decisions can be made again, in order."""
    rows = [RequestRecord(**orjson.loads(line)) for line in lines(50)]
    assert all(a.started_at_us <= b.started_at_us for a, b in pairwise(rows))
    made = bundle("balanced")
    side = Side("", "", made.policy, made.catalog, made.prices)
    for row in rows:
        facts, snapshot = recalled(row.decision)
        again = side.on(row.started_at_us).router.decide(facts, snapshot)
        assert orjson.loads(orjson.dumps(record(again, facts, snapshot))) == row.decision
