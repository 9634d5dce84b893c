"""`weighbridge budgets` as it is typed, over what a process without Redis has kept."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.alerts import event_id
from gateway.cli import app
from gateway.domain.limit import Limit, Period, Unit
from gateway.limits import Alert, Event
from gateway.limits.counters import span_of

POLICIES = Path(__file__).parents[3] / "policies"
MONTH = Limit(name="m", per="key", unit=Unit.USD, amount=11 * 10**8, period=Period.MONTH)
LIMITS = """version: 1
limits:
  - {name: m, per: key, match: {alias: [chat-small]}, usd: "1.1", every: month%s}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    shutil.copytree(POLICIES, tmp_path / "policies")
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHBRIDGE_POLICIES", str(tmp_path / "policies"))
    monkeypatch.setenv("WEIGHBRIDGE_DATABASE_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def keep(home: Path, told: float, *, claimed_s: float = 0.0, more: str = "") -> tuple[int, int]:
    """$0.90 of $1.10 is used, and so much was told of it. The period."""
    (home / "policies" / "limits.yaml").write_text(LIMITS % more)
    start, end = span_of(MONTH, time.time())
    row = ["m", "usd", "month", start, "k", end, 9 * 10**8, 9 * 10**8, told, False, told >= 1]
    (home / "limits").mkdir()
    (home / "limits" / "0.json").write_text(json.dumps([row]))
    if claimed_s:
        (home / "alerts").mkdir()
        claim = (
            home
            / "alerts"
            / event_id(Alert(Event.EXHAUSTED, MONTH, "k", 1.0, 9 * 10**8, start, end))
        )
        claim.touch()
        os.utime(claim, (claimed_s, claimed_s))
    return start, end


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["budgets", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_budget_that_refuses_says_so_though_something_is_left(home):
    start, _ = keep(home, 1.0, claimed_s=(since := span_of(MONTH, time.time())[0] + 60))
    (found,) = json.loads(run("--json"))["budgets"]
    moment = dt.datetime.fromtimestamp(since, dt.UTC)
    assert (found["state"], found["since"]) == ("refusing", moment.isoformat())
    assert found["spent_at"] == found["since"]
    assert (found["left"], found["forecast"]) == ("0.2", None)
    assert start < since
    assert f"refusing since {moment:%b %d}" in run()


def test_since_when_is_not_made_up(home):
    keep(home, 1.0)
    (found,) = json.loads(run("--json"))["budgets"]
    assert (found["state"], found["since"]) == ("refusing", None)
    assert found["spent_at"] is not None
    assert "refusing" in run()
    assert "refusing since" not in run()


def test_a_budget_that_asks_for_another_route_says_that(home):
    keep(home, 1.0, more=", at_limit: route")
    assert json.loads(run("--json"))["budgets"][0]["state"] == "rerouting"
    assert "rerouting" in run()


def test_a_budget_with_room_is_open(home):
    keep(home, 0.5)
    (found,) = json.loads(run("--json"))["budgets"]
    assert (found["state"], found["since"]) == ("open", None)
    assert "refusing" not in run()
