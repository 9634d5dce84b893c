"""`weighbridge policy`: what it prints and how it exits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.policy import app

POLICIES = Path(__file__).parents[3] / "policies"


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.output


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(POLICIES, tmp_path / "policies"))


def test_the_shipped_files_are_ok(folder):
    code, output = run("check", "--dir", folder)
    assert code == 0
    assert output.splitlines()[-1] == "ok"
    assert "note: no price for vllm/openai/gpt-oss-120b: unpriced, not free" in output


def test_the_problems_of_all_files_are_printed(folder):
    catalog, routing = folder / "catalog.yaml", folder / "routing" / "balanced.yaml"
    before, _, after = catalog.read_text().partition("kind: managed")
    catalog.write_text(f"{before}kind: manged{after}")
    line = before.count("\n") + 1
    prices = folder / "prices" / "managed.yaml"
    prices.write_text(prices.read_text().replace("version: 1", "version: 3"))
    code, output = run("check", "--dir", folder)
    assert code == 1
    assert f"{catalog}:{line}:11: backends.fireworks.kind: unknown value 'manged'" in output
    assert f"{prices}:5:10: version: unknown value the number 3; one of: 1" in output
    assert f"note: {routing} not checked: its catalog {catalog} does not load" in output
    assert output.splitlines()[-1] == "2 problems in 2 of 9 files"


def test_a_single_policy_is_checked_against_the_catalog_of_the_folder(folder, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nname: mine\ndefault: {prefer: [[vlm]]}\n")
    code, output = run("check", mine, "--dir", folder)
    assert code == 1
    assert output.splitlines() == [
        f"{mine}:3:21: default.prefer[0][0]: no kind or backend 'vlm'; did you mean 'vllm'?",
        "1 problems in 1 of 1 files",
    ]


def test_json_output(folder, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nname: mine\ndefault: {by: cheap}\n")
    code, output = run("check", mine, "--dir", folder, "--json")
    assert code == 1
    assert json.loads(output) == {
        "ok": False,
        "files": [str(mine)],
        "problems": [
            {
                "source": str(mine),
                "line": 3,
                "column": 15,
                "path": "default.by",
                "message": "unknown value 'cheap'",
                "hint": "did you mean 'cheapest'?",
            }
        ],
        "notes": [],
    }


def test_a_price_of_something_that_is_not_served_is_worth_a_note(folder):
    prices = folder / "prices" / "managed.yaml"
    text = prices.read_text()
    prices.write_text(text.replace("model: zai-org/GLM-5.3\n", "model: zai-org/GLM-5\n", 1))
    code, output = run("check", "--dir", folder)
    assert code == 0
    assert "note: a price for baseten/zai-org/GLM-5, which is not in the catalog" in output
    assert "note: no price for baseten/zai-org/GLM-5.3: unpriced, not free" in output


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path):
    assert run("check", tmp_path / "none.yaml", "--dir", POLICIES)[0] == 2
    assert run("check", "--dir", tmp_path)[0] == 2


def test_a_file_that_is_not_text_is_a_problem(folder):
    (folder / "catalog.yaml").write_bytes(b"version: 1\n\xff\n")
    code, output = run("check", "--dir", folder)
    assert code == 1
    assert f"{folder / 'catalog.yaml'}:2:1: not text: surrogates not allowed" in output


def test_schemas_are_written_and_checked(folder):
    assert run("schema", "--check", "--dir", folder) == (0, "ok\n")
    stale = folder / "schema" / "prices.schema.json"
    stale.write_text("{}")
    code, output = run("schema", "--check", "--dir", folder)
    assert (code, output.splitlines()[0]) == (1, f"out of date: {stale}")
    assert run("schema", "--write", "--dir", folder) == (0, f"wrote {stale}\n")
    assert run("schema", "--check", "--dir", folder)[0] == 0
    assert json.loads(run("schema", "routing")[1])["title"] == "Weighbridge routing policy"


@pytest.mark.parametrize("args", [["schema"], ["schema", "nope"], ["schema", "--write", "--check"]])
def test_wrong_usage_exits_2(args):
    assert run(*args)[0] == 2


@pytest.mark.parametrize("command", ["check", "schema"])
def test_help_has_an_example(command):
    assert "Example: weighbridge policy" in run(command, "--help")[1]
