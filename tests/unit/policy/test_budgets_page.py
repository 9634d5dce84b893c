"""`docs/budgets.md` and the examples of `policies/limits.yaml` are what they say they are."""

from __future__ import annotations

import base64
import datetime as dt
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.bundle import Bundle, load, read_folder
from gateway.cli.policy.check import look
from gateway.domain.limit import AtLimit, Period, Unit
from gateway.policy.cases import load_cases, run
from gateway.webhooks import signature

ROOT = Path(__file__).parents[3]
POLICIES = ROOT / "policies"
PAGE = (ROOT / "docs" / "budgets.md").read_text()
FILES = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
NAME = "after-budget"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = Path(shutil.copytree(POLICIES, tmp_path / "policies"))
    for name, text in FILES.items():
        (made / name).write_text(text)
    return made


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return load(read_folder(folder, NAME), secret_present=lambda _: True)


def test_the_three_policies_at_100_percent_do_what_their_tests_say(bundle: Bundle) -> None:
    names = frozenset(limit.name for limit in bundle.limits)
    suite = load_cases(
        FILES[f"routing/{NAME}.tests.yaml"],
        source="t",
        catalog=bundle.catalog,
        policy=bundle.policy,
        limits=names,
    )
    verdicts = list(run(suite, bundle.policy, bundle.catalog, bundle.prices.in_force))
    assert [(v.case.name, v.problems) for v in verdicts if v.problems] == []
    assert len(verdicts) == 6


def test_the_check_finds_nothing_wrong_with_them(folder: Path) -> None:
    found = look([folder / "routing" / f"{NAME}.yaml"], folder, dt.date(2026, 11, 24)).problems
    told = [str(problem) for problem in found if problem.severity == "error"]
    assert told == []
    assert not [str(p) for p in found if "at_limit" in p.path]


def test_the_examples_of_the_shipped_file_load_once_they_are_uncommented() -> None:
    text = (POLICIES / "limits.yaml").read_text()
    head, _, examples = text.partition("limits: []\n")
    body = "\n".join(
        line[1:] for line in examples.splitlines() if line.startswith("#") and line[1:4] != "  #"
    )
    files = read_folder(POLICIES, "balanced")
    uncommented = {**files, "limits.yaml": f"{head}limits:\n{body}\n"}
    limits = load(uncommented, secret_present=lambda _: True).limits
    money = [limit for limit in limits if limit.unit is Unit.USD]
    assert [limit.name for limit in limits] == [
        *("key-rate", "key-at-once", "search-month", "ads-month", "risk-week", "app-day")
    ]
    assert [(x.period, x.at_limit) for x in money] == [
        (Period.MONTH, AtLimit.REFUSE),
        (Period.MONTH, AtLimit.ROUTE),
        (Period.WEEK, AtLimit.ROUTE),
    ]
    assert load(files, secret_present=lambda _: True).limits == ()


def test_a_receiver_that_follows_the_page_takes_what_we_sign() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    key, body = b"k" * 32, b'{"event":"test"}'
    secret = "whsec_" + base64.b64encode(key).decode()
    at = int(scope["time"].time())

    def head(**more: str) -> dict[str, str]:
        signed = signature(key, "evt_1", at, body)
        made = {"webhook-id": "evt_1", "webhook-timestamp": str(at), "webhook-signature": signed}
        return {**made, **{name.replace("_", "-"): value for name, value in more.items()}}

    assert scope["verified"](head(), body, secret)
    assert not scope["verified"](head(), body + b" ", secret)
    assert not scope["verified"](head(webhook_id="evt_2"), body, secret)
    assert not scope["verified"](head(webhook_timestamp=str(at - 301)), body, secret)
