"""Appending to price files: what is there stays byte for byte; all files change or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.ledger.price_file import PriceRow
from gateway.ledger.prices import load_prices
from gateway.policy.source import ConfigErrors
from gateway.price_sources import shelf
from gateway.price_sources.offers import checked

ROW = """\
  - backend: b
    model: m
    from: 2026-11-01
    input_usd_per_mtok: "1.00"
    output_usd_per_mtok: "2.00"
    source: s
    read_on: 2026-11-01
"""


def row(**changed: object) -> PriceRow:
    return checked(
        {
            "backend": "b",
            "model": "new",
            "from": "2026-12-01",
            "input_usd_per_mtok": "3.00",
            "output_usd_per_mtok": "4.00",
            "source": "s",
            "read_on": "2026-11-24",
            **changed,
        }
    )


NEW = "".join(f"  {line}\n" for line in shelf.written(row()))
SHAPES = {
    "at the end": (f"version: 1\nprices:\n{ROW}", f"version: 1\nprices:\n{ROW}{NEW}"),
    "comments": (
        f"# head\nversion: 1\nprices: # these\n{ROW}  # after\n",
        f"# head\nversion: 1\nprices: # these\n{ROW}  # after\n{NEW}",
    ),
    "no end of line": (
        f"version: 1\nprices:\n{ROW}".rstrip("\n"),
        f"version: 1\nprices:\n{ROW}{NEW}",
    ),
    "something follows": (
        f"version: 1\nprices:\n{ROW} # x\n\ncurrencies: []\n",
        f"version: 1\nprices:\n{ROW}{NEW} # x\n\ncurrencies: []\n",
    ),
    "empty list": ("version: 1\nprices: [] # none\n", f"version: 1\nprices: # none\n{NEW}"),
    "empty, something follows": (
        "version: 1\nprices: []\ngpu_hours: []\n",
        f"version: 1\nprices:\n{NEW}gpu_hours: []\n",
    ),
    "no list": ("version: 1\ngpu_hours: []\n", f"version: 1\ngpu_hours: []\nprices:\n{NEW}"),
    "nothing": ("version: 1\nprices:\n", f"version: 1\nprices:\n{NEW}"),
    "not indented": (
        "version: 1\nprices:\n" + ROW.replace("\n    ", "\n  ").replace("  - ", "- "),
        "version: 1\nprices:\n" + (ROW + NEW).replace("\n    ", "\n  ").replace("  - ", "- "),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_rows_come_after_what_is_there(name, tmp_path):
    before, after = SHAPES[name]
    file = tmp_path / "p.yaml"
    file.write_text(before)
    edit = shelf.appended(file, [row()])
    assert edit.after.decode() == after
    assert edit.before == before.encode()
    book = load_prices([("p", after)])
    assert len(book.rows) == 1 + ("model: m" in before)


def test_windows_line_ends_stay(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_bytes(f"version: 1\nprices:\n{ROW}".replace("\n", "\r\n").encode())
    edit = shelf.appended(file, [row()])
    assert edit.after == f"version: 1\nprices:\n{ROW}{NEW}".replace("\n", "\r\n").encode()


def test_a_list_within_brackets_is_not_rewritten(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nprices: [{backend: b}]\n")
    with pytest.raises(
        ConfigErrors, match=r"p\.yaml:2:9: prices: written within brackets; write it"
    ):
        shelf.appended(file, [row()])


def test_a_file_that_is_not_there_begins_with_the_schema(tmp_path):
    edit = shelf.appended(tmp_path / "new.yaml", [row()])
    assert edit.before is None
    assert edit.after.decode() == shelf.HEADER + NEW
    assert edit.after.startswith(b"# yaml-language-server: $schema=../schema/prices.schema.json\n")


def test_everything_a_row_can_say_is_written_and_read_again():
    said = row(
        model="yes",
        until="2027-01-01T12:00:00+00:00",
        backend="010: #1",
        free=True,
        basis="declared",
        note='it\'s "so"',
        source="https://a.example/b?c=d (x: y)",
        usd_per_1k_requests="0",
        long_prompts_mode="marginal",
        long_prompts=[
            {
                "above_prompt_tokens": 5,
                "input_usd_per_mtok": "1",
                "output_usd_per_mtok": "2",
                "usd_per_1k_requests": "0",
            }
        ],
        when=[
            {
                "service_tier": "batch",
                "region": "eu",
                "hours_utc": ["16:30-00:30"],
                "input_usd_per_mtok": "1",
                "output_usd_per_mtok": "2",
                "usd_per_1k_requests": "0",
            }
        ],
    )
    text = "version: 1\nprices:\n" + "".join(f"  {line}\n" for line in shelf.written(said))
    book = load_prices([("p", text)])
    ((dated,),) = book.rows.values()
    assert PriceRow.model_validate(dict(dated.terms) | {"read_on": said.read_on}) == said


@pytest.fixture
def edits(tmp_path) -> list[shelf.Edit]:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(f"version: 1\nprices:\n{ROW}")
    (tmp_path / "a.yaml").chmod(0o640)
    return [shelf.appended(tmp_path / name, [row()]) for name in ("a.yaml", "b.yaml", "c.yaml")]


def test_all_are_written_with_the_rights_they_had(edits, tmp_path):
    shelf.replace_all(edits)
    assert [edit.path.read_bytes() for edit in edits] == [edit.after for edit in edits]
    assert (tmp_path / "a.yaml").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "b.yaml", "c.yaml"]


def unchanged(edits: list[shelf.Edit], folder: Path) -> bool:
    there = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return there == {e.path.name: e.before for e in edits if e.before is not None}


def test_a_file_that_changed_meanwhile_stops_all(edits, tmp_path):
    (tmp_path / "b.yaml").write_text("version: 1\nprices: []\n")
    with pytest.raises(shelf.ChangedMeanwhile, match=r"b\.yaml"):
        shelf.replace_all(edits)
    assert (tmp_path / "a.yaml").read_bytes() == edits[0].before
    assert not (tmp_path / "c.yaml").exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_one_that_cannot_be_written_leaves_the_others_as_they_were(edits, tmp_path):
    nowhere = shelf.Edit(tmp_path / "no folder" / "d.yaml", None, b"x")
    with pytest.raises(OSError):
        shelf.replace_all([*edits, nowhere])
    assert unchanged(edits, tmp_path)
