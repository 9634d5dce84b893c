"""`weighbridge policy`: what it prints and how it exits."""

from __future__ import annotations

import json
import re
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
    code, output = run("check", "--dir", folder, "--day", "2026-11-23")
    assert code == 0
    assert output.splitlines()[-1] == "ok"
    assert "note: backends.vllm.models.openai/gpt-oss-120b: no price for vllm/" in output
    assert re.search(r"^(\d+) of \1 tests of 7 policies passed$", output, re.MULTILINE)


def test_a_warning_fails_when_asked_to(folder):
    file = folder / "routing" / "cheapest.yaml"
    day = ("--day", "2026-11-23")
    code, output = run("check", file, "--dir", folder, *day)
    assert (code, output.splitlines()[-1]) == (0, "ok")
    assert f"{file}:14:7: warning: default.by: has no price for llamacpp/gemma3-270m" in output
    code, output = run("check", file, "--dir", folder, *day, "--strict")
    assert (code, output.splitlines()[-1]) == (1, "1 warning in 1 file")


def test_a_change_of_the_catalog_is_checked_with_every_policy(folder):
    catalog = folder / "catalog.yaml"
    text = catalog.read_text()
    at = text.index("  vllm:\n")
    catalog.write_text(
        text[:at] + text[at:].replace("cleared_for: restricted", "cleared_for: public", 1)
    )
    code, output = run("check", catalog, "--dir", folder)
    assert code == 1
    tests = folder / "routing" / "private-first.tests.yaml"
    assert (
        f"{tests}:18:21: tests[2].expect.order: test 'while there is room at home, home" in output
    )


def test_a_failing_test_shows_what_was_decided(folder):
    tests = folder / "routing" / "cheapest.tests.yaml"
    tests.write_text(
        tests.read_text().replace("[baseten, together, vllm]", "[together, baseten, vllm]")
    )
    code, output = run("check", folder / "routing" / "cheapest.yaml", "--dir", folder)
    assert code == 1
    lines = output.splitlines()
    name = "the lowest price wins, an unknown one comes last"
    assert (
        f"{tests}:7:21: tests[0].expect.order: test '{name}' expected together, baseten, vllm, got "
        "baseten/openai/gpt-oss-120b, together/openai/gpt-oss-120b, vllm/openai/gpt-oss-120b"
    ) in lines
    at = lines.index(f"decided in test '{name}', route default:")
    assert lines[at + 2].split()[:4] == ["1", "baseten/openai/gpt-oss-120b", "cheapest", "1"]
    assert "5 of 6 tests of 1 policy passed" in lines
    assert lines[-1] == "1 error and 1 warning in 2 files"


def test_on_a_terminal_problems_stand_below_their_file(folder, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    file = folder / "routing" / "cheapest.yaml"
    _, output = run("check", file, "--dir", folder, "--day", "2026-11-23")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    at = lines.index(str(file))
    assert lines[at + 1].split()[:3] == ["14:7", "warning", "default.by:"]
    assert lines[at + 2].strip().startswith("add a row to prices/")


def test_tests_are_not_taken_for_policies(folder, tmp_path):
    asked = tmp_path / "facts.yaml"
    asked.write_text("alias: chat-small\n")
    done = CliRunner().invoke(
        app, ["explain", str(asked), "--dir", str(folder), "--policy", "none"]
    )
    assert "there is no policy 'none'; one of: balanced, cheapest, closed-only-" in str(
        done.exception
    )
    assert "tests" not in str(done.exception).partition("; ")[2]


def test_a_test_file_alone_is_checked_with_its_policy(folder):
    tests = folder / "routing" / "fastest.tests.yaml"
    code, output = run("check", tests, "--dir", folder)
    assert (code, output.splitlines()[-1]) == (0, "ok")
    assert "tests of 1 policy passed" in output
    tests.rename(folder / "routing" / "slowest.tests.yaml")
    assert run("check", folder / "routing" / "slowest.tests.yaml", "--dir", folder)[0] == 2


def test_tests_that_do_not_load_are_told_and_the_policy_is_still_linted(folder):
    tests = folder / "routing" / "cheapest.tests.yaml"
    tests.write_text("version: 1\nat: tomorrow\ntests: []\n")
    file = folder / "routing" / "cheapest.yaml"
    code, output = run("check", file, "--dir", folder, "--day", "2026-11-23")
    assert code == 1
    assert f"{tests}:2:5: at: 'tomorrow' is not a moment in a zone" in output
    assert f"{tests}:3:8: tests: must not be empty" in output
    assert f"{file}:14:7: warning: default.by" in output


def test_the_problems_of_all_files_are_printed_once(folder):
    catalog = folder / "catalog.yaml"
    before, _, after = catalog.read_text().partition("kind: managed")
    catalog.write_text(f"{before}kind: manged{after}")
    line = before.count("\n") + 1
    prices = folder / "prices" / "managed.yaml"
    prices.write_text(prices.read_text().replace("version: 1", "version: 3"))
    code, output = run("check", "--dir", folder)
    assert code == 1
    assert (
        output.count(f"{catalog}:{line}:11: backends.fireworks.kind: unknown value 'manged'") == 1
    )
    assert output.count(f"{prices}:5:10: version: unknown value the number 3; one of: 1") == 1
    assert output.splitlines()[-1] == "2 errors in 2 files"


def test_a_single_policy_is_checked_against_the_catalog_of_the_folder(folder, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nname: mine\ndefault: {prefer: [[vlm]]}\n")
    code, output = run("check", mine, "--dir", folder)
    assert code == 1
    assert output.splitlines() == [
        f"{mine}:3:21: default.prefer[0][0]: no kind or backend 'vlm'; did you mean 'vllm'?",
        "1 error in 1 file",
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
                "severity": "error",
                "source": str(mine),
                "line": 3,
                "column": 15,
                "path": "default.by",
                "message": "unknown value 'cheap'",
                "hint": "did you mean 'cheapest'?",
            }
        ],
        "tests": [],
    }


def test_a_price_of_something_that_is_not_served_is_worth_a_note(folder):
    prices = folder / "prices" / "managed.yaml"
    text = prices.read_text()
    prices.write_text(text.replace("model: zai-org/GLM-5.3\n", "model: zai-org/GLM-5\n", 1))
    code, output = run("check", prices, "--dir", folder)
    assert code == 0
    assert "a price for baseten/zai-org/GLM-5, which is not in the catalog" in output
    assert "no price for baseten/zai-org/GLM-5.3: unpriced, not free" in output
    assert "no price for openai" not in output, "those are in the files beside it"


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


@pytest.mark.parametrize("command", ["check", "explain", "schema"])
def test_help_has_an_example(command):
    assert "Example: weighbridge policy" in run(command, "--help")[1]
