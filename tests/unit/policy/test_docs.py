"""The examples of `docs/policies.md` are what they say they are."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest

from gateway.bundle import load, read_folder
from gateway.cli.policy.check import look
from gateway.policy.cases import load_cases, run
from gateway.policy.source import keys

ROOT = Path(__file__).parents[3]
POLICIES = ROOT / "policies"
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "policies.md").read_text(), re.DOTALL)
FILES = [block for block in BLOCKS if "version" in keys(block)]


@pytest.mark.parametrize("text", [block for block in FILES if "default" in keys(block)])
def test_an_example_policy_has_no_mistake(text, tmp_path):
    file = tmp_path / "example.yaml"
    file.write_text(text)
    found = look([file], POLICIES, dt.date(2026, 11, 23)).problems
    assert [str(problem) for problem in found if problem.severity == "error"] == []


@pytest.mark.parametrize("text", [block for block in FILES if "tests" in keys(block)])
def test_example_tests_pass(text):
    shipped = load(read_folder(POLICIES, "balanced"), secret_present=lambda _: True)
    suite = load_cases(text, source="t", catalog=shipped.catalog, policy=shipped.policy)
    for verdict in run(suite, shipped.policy, shipped.catalog, shipped.prices.in_force):
        assert verdict.problems == ()


def test_there_are_both():
    assert len(FILES) >= 2
