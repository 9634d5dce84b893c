"""`weighbridge policy apply|history|rollback`: what they print, refuse and leave in the database."""

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
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def answer(*args: object) -> dict[str, object]:
    code, output = run(*args, "--json")
    found = json.loads(output)
    assert found["ok"] == (code == 0)
    return found


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(POLICIES, home / "policies")
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(home))
    monkeypatch.setenv("WEIGHBRIDGE_POLICY", "private-first")
    return home


@pytest.fixture
def routing(home):
    return home / "policies" / "routing"


def numbers() -> list[tuple[int, str, str]]:
    code, output = run("history", "--json")
    assert code == 0
    return [(v["number"], v["policy"], v["origin"]) for v in json.loads(output)]


def test_apply_puts_the_files_in_force_and_says_from_what_to_what():
    code, output = run("apply", "--author", "ada")
    assert code == 0
    assert output.startswith("nothing -> version 1 (private-first@")
    assert "ada" in output
    assert numbers() == [(1, "private-first", "apply")]
    code, output = run("apply")
    assert (code, output.split(" (")[0]) == (0, "version 1")
    assert output.endswith("is in force already\n")
    assert len(numbers()) == 1


def test_another_policy_by_its_name_and_from_a_file_elsewhere(routing, tmp_path):
    run("apply")
    made = answer("apply", "balanced", "--note", "why not", "--allow-loosen-privacy")
    assert made["applied"]
    assert (made["from"]["policy"], made["version"]["policy"]) == ("private-first", "balanced")
    assert made["version"]["note"] == "why not"
    mine = tmp_path / "mine.yaml"
    mine.write_text((routing / "private-first.yaml").read_text().replace("private-first", "mine"))
    shutil.copy(routing / "private-first.tests.yaml", tmp_path / "mine.tests.yaml")
    assert answer("apply", mine)["version"]["policy"] == "mine"
    assert numbers()[0] == (3, "mine", "apply")


def test_without_a_file_it_is_the_policy_in_force(routing):
    answer("apply", "cheapest")
    (routing / "cheapest.yaml").write_text((routing / "cheapest.yaml").read_text() + "# more\n")
    assert answer("apply")["version"]["policy"] == "cheapest"


def test_a_bad_file_changes_nothing(routing):
    run("apply")
    file = routing / "private-first.yaml"
    file.write_text(file.read_text().replace("only: true", "olny: true"))
    code, output = run("apply")
    assert code == 1
    assert "unknown key 'olny'; did you mean 'only'?" in output
    found = answer("apply")
    assert str(file) in found["problems"][0]
    assert len(numbers()) == 1


@pytest.mark.parametrize("name", ["nonesuch", "elsewhere/nonesuch.yaml"])
def test_a_file_that_is_not_there_is_usage(name):
    code, output = run("apply", name)
    assert code == 2
    assert "nonesuch" in output


def test_who_expected_another_version_is_refused(routing):
    run("apply", "--author", "ada")
    found = answer("apply", "cheapest", "--expect", 0, "--allow-loosen-privacy")
    assert not found["applied"]
    assert "no version was expected in force, but version 1" in found["error"]
    assert found["in_force"]["author"] == "ada"
    code, output = run("apply", "cheapest", "--expect", 7)
    assert code == 1
    assert "version 7 was expected" in output
    assert answer("apply", "cheapest", "--expect", 1, "--allow-loosen-privacy")["applied"]


def test_looser_privacy_needs_a_flag():
    run("apply")
    code, output = run("apply", "fastest")
    assert code == 1
    assert "privacy gets looser:" in output
    assert "--allow-loosen-privacy" in output
    found = answer("apply", "fastest")
    assert any("internal data may reach" in line for line in found["loosened"])
    assert len(numbers()) == 1
    assert answer("apply", "fastest", "--allow-loosen-privacy")["loosened"] == found["loosened"]
    assert answer("apply", "private-first")["loosened"] == []


def test_a_floor_that_is_lowered_needs_it_too(home):
    run("apply", "fastest")
    file = home / "policies" / "catalog.yaml"
    text = file.read_text()
    file.write_text(text.replace("privacy_floor: restricted", "privacy_floor: internal"))
    assert answer("apply")["loosened"] == [
        "alias private-chat: internal: its floor is no longer restricted"
    ]


def test_rollback_is_a_new_version_with_the_texts_as_they_were(home):
    first = answer("apply")["version"]
    prices = home / "policies" / "prices" / "managed.yaml"
    prices.write_text(prices.read_text() + "# more\n")
    answer("apply")
    shutil.rmtree(home / "policies")
    back = answer("rollback", "--note", "it was better")
    assert back["version"]["digest"] == first["digest"]
    assert back["version"]["note"] == "to version 1: it was better"
    assert [origin for _, _, origin in numbers()] == ["rollback", "apply", "apply"]
    assert answer("rollback", 2)["version"]["digest"] != first["digest"]
    code, output = run("rollback", 2)
    assert (code, "is in force already" in output) == (0, True)


def test_rollback_asks_before_it_loosens_and_knows_who_was_faster():
    answer("apply", "fastest")
    answer("apply", "private-first")
    assert answer("rollback")["loosened"]
    assert answer("rollback", "--expect", 1)["in_force"]["number"] == 2
    assert answer("rollback", "--allow-loosen-privacy")["version"]["policy"] == "fastest"


def test_there_must_be_something_to_roll_back_to():
    code, output = run("rollback")
    assert (code, "no version" in output) == (1, True)
    run("apply")
    code, output = run("rollback")
    assert (code, "no other version" in output) == (1, True)
    code, output = run("rollback", 9)
    assert (code, "no policy version 9" in output) == (1, True)


def test_history_is_a_table_with_what_is_in_force_marked():
    assert run("history") == (
        0,
        "no version yet: a gateway's first start or `policy apply` makes one\n",
    )
    answer("apply", "fastest", "--author", "ada@host", "--note", "for the demo")
    answer("apply", "private-first")
    code, output = run("history")
    top, newest, oldest = output.splitlines()
    assert code == 0
    assert top.split() == ["number", "policy", "digest", "origin", "author", "time", "note"]
    assert newest.split()[:4] == ["2", "in", "force", "private-first"]
    assert "in force" not in oldest
    assert ("ada@host" in oldest, oldest.rstrip().endswith("for the demo")) == (True, True)
    code, output = run("history", "--limit", 1)
    assert len(output.splitlines()) == 2
