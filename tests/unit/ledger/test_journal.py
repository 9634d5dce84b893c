"""The journal's laws: nothing lost, nothing twice, nobody else's, whatever the file looks like."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.errors import StoreUnavailable
from gateway.domain.outcome import RequestRecord
from gateway.ledger.journal import Journal
from tests.unit.ledger.records import attempt, opened, request


def drained(journal: Journal, rows_max: int = 100) -> list[dict]:
    """Read and acknowledge everything."""
    rows = []
    while (batch := journal.read(rows_max)) is not None:
        rows += [orjson.loads(line) for line in batch.lines]
        journal.sent(batch)
    return rows


def recovered(directory: Path) -> list[dict]:
    """What a new start would send for the dead in this directory."""
    journal = Journal(directory, "later")
    rows = adopted(journal)
    journal.stop()
    return rows


def adopted(journal: Journal, *, damaged: int | None = None) -> list[dict]:
    rows = []
    for orphan in journal.adopt():
        rows += [orjson.loads(line) for batch in orphan.batches(3) for line in batch]
        assert damaged is None or orphan.damaged == damaged
        journal.bury(orphan)
    return rows


def abandon(journal: Journal) -> None:
    """What a crash leaves: the files, and no lock."""
    for segment in journal._segments:
        segment.running += 1  # pins them all
    journal.stop()


def test_the_final_line_is_the_row(tmp_path):
    journal = Journal(tmp_path, "0")
    record = request("req_1")
    journal.open(opened("req_1"))
    journal.close(record)
    assert drained(journal) == [dataclasses.asdict(record)]
    assert (journal.unsent_rows, journal.unsent_bytes) == (0, 0)


def test_rows_come_in_order_and_again_until_they_are_sent(tmp_path):
    journal = Journal(tmp_path, "0")
    for n in range(5):
        journal.close(request(f"req_{n}"))
    first = journal.read(2)
    again = journal.read(2)
    assert first is not None
    assert again is not None
    assert first.lines == again.lines
    assert [row["id"] for row in drained(journal, 2)] == [f"req_{n}" for n in range(5)]


def test_a_request_cut_off_becomes_a_row_with_its_attempts(tmp_path):
    journal = Journal(tmp_path, "0")
    record = opened("req_1", key_id="k", tags={"team": "a"}, privacy_class="secret", stream=True)
    journal.open(record)
    record.attempts[0] = attempt(1, outcome="failed", http_status=503, cost_nano_usd=None)
    record.attempts.append(attempt(2, backend="other"))
    journal.open(record)
    abandon(journal)
    (row,) = recovered(tmp_path)
    assert row["outcome"] == "interrupted"
    assert row["duration_us"] is None
    assert row["cost_nano_usd"] is None
    assert row["priced"] is False
    assert (row["key_id"], row["privacy_class"], row["tags"]) == ("k", "secret", {"team": "a"})
    assert row["attempt_count"] == 2
    assert [(a["backend"], a["outcome"], a["http_status"]) for a in row["attempts"]] == [
        ("openai", "failed", 503),
        ("other", "interrupted", 0),
    ]
    assert row.keys() == {f.name for f in dataclasses.fields(RequestRecord)}


def test_recovery_happens_once_and_leaves_no_files(tmp_path):
    journal = Journal(tmp_path, "0")
    journal.close(request("req_1"))
    abandon(journal)
    assert [row["id"] for row in recovered(tmp_path)] == ["req_1"]
    assert recovered(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_living_are_not_touched(tmp_path):
    living = Journal(tmp_path, "0")
    living.open(opened("req_1"))
    assert recovered(tmp_path) == []
    living.close(request("req_1"))
    assert [row["id"] for row in drained(living)] == ["req_1"]


def test_an_orphan_has_one_heir(tmp_path):
    dead = Journal(tmp_path, "0")
    dead.close(request("req_1"))
    abandon(dead)
    one, two = Journal(tmp_path, "a"), Journal(tmp_path, "b")
    (orphan,) = one.adopt()
    assert two.adopt() == []
    orphan.release()
    assert [o.owner for o in two.adopt()] == [orphan.owner]


def test_one_name_twice_is_two_owners(tmp_path):
    one, two = Journal(tmp_path, "0"), Journal(tmp_path, "0")
    one.close(request("req_1"))
    two.close(request("req_2"))
    assert one.owner != two.owner
    assert [row["id"] for row in drained(one)] == ["req_1"]
    abandon(one)
    three = Journal(tmp_path, "0")
    assert three.owner not in {one.owner, two.owner}


def test_a_copy_that_was_cut_off_is_still_a_copy(tmp_path):
    journal = Journal(tmp_path, "0")
    record = opened("req_1")
    record.shadow_of, record.route, record.attempts[-1].why = "req_0", "eu", "shadow"
    journal.open(record)
    abandon(journal)
    (row,) = recovered(tmp_path)
    assert (row["shadow_of"], row["route"], row["attempts"][0]["why"]) == ("req_0", "eu", "shadow")


def test_segments_without_a_lock_are_adopted(tmp_path):
    journal = Journal(tmp_path, "0")
    journal.close(request("req_1"))
    abandon(journal)
    (tmp_path / "0.lock").unlink()
    same_name = Journal(tmp_path, "0")
    assert same_name.owner != "0"
    same_name.stop()
    assert [row["id"] for row in recovered(tmp_path)] == ["req_1"]


def test_segments_are_deleted_when_nobody_needs_them(tmp_path):
    journal = Journal(tmp_path, "0", segment_bytes=4096)
    journal.open(opened("long"))
    for n in range(20):
        journal.open(opened(f"req_{n}"))
        journal.close(request(f"req_{n}"))
    assert len(list(tmp_path.glob("*.jsonl"))) > 5
    assert len(drained(journal)) == 20
    left = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert len(left) == 2, "the one with the request that still runs, and the present one"
    assert left[0] == "0-1.jsonl"
    journal.close(request("long"))
    assert len(drained(journal)) == 1
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    journal.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_further_attempt_moves_what_is_pinned(tmp_path):
    journal = Journal(tmp_path, "0", segment_bytes=2048)
    record = opened("long")
    journal.open(record)
    for n in range(5):
        journal.close(request(f"req_{n}"))
    record.attempts.append(attempt(2))
    journal.open(record)
    drained(journal)
    abandon(journal)
    (row,) = [row for row in recovered(tmp_path) if row["id"] == "long"]
    assert row["attempt_count"] == 2


def test_full_until_sent(tmp_path):
    journal = Journal(tmp_path, "0", bytes_max=5000)
    while not journal.full:
        journal.close(request("req"))
    assert 5000 <= journal.unsent_bytes < 7000
    drained(journal)
    assert not journal.full


def test_what_the_dead_left_counts_as_unsent(tmp_path):
    dead = Journal(tmp_path, "0")
    for n in range(5):
        dead.close(request(f"req_{n}"))
    abandon(dead)
    journal = Journal(tmp_path, "1", bytes_max=4000)
    assert not journal.full
    (orphan,) = journal.adopt()
    assert journal.full
    journal.bury(orphan)
    assert not journal.full


@pytest.mark.parametrize("room", [0, 1, 700])
def test_a_full_disk_refuses_new_requests_and_keeps_the_rows_of_old_ones(tmp_path, room):
    """The limit on file size stands in for the disk: it, too, takes a part of the last write."""
    journal = Journal(tmp_path, "0")
    journal.open(opened("req_1"))
    journal.close(request("req_0"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal._current.size + room, hard))
    try:
        journal.close(request("req_1"))
        assert journal.full
        with pytest.raises(StoreUnavailable):
            journal.open(opened("req_2"))
        before = journal.read(10)
        assert before is not None
        assert [orjson.loads(line)["id"] for line in before.lines] == ["req_0"]
        assert journal.full
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [row["id"] for row in drained(journal)] == ["req_0", "req_1"]
    assert not journal.full
    assert journal.unsent_rows == 0


def test_a_crash_while_the_disk_is_full_still_leaves_a_row(tmp_path):
    journal = Journal(tmp_path, "0")
    journal.open(opened("req_1"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal._current.size, hard))
    try:
        journal.close(request("req_1"))
        journal.read(10)
        journal.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(r["id"], r["outcome"]) for r in recovered(tmp_path)] == [("req_1", "interrupted")]


@pytest.mark.parametrize(
    "bad",
    [
        {"alias": "a\0b"},
        {"alias": "\ud800"},
        {"tags": {"k\0": "\udfff", "n": 3}},
        {"decision": {"n": 2**70, "x": {1: (1, 2)}, "f": float("nan")}},
        {"session": '\\u0000 " \n { \u2028'},
    ],
)
def test_no_text_of_a_caller_breaks_a_line(tmp_path, bad):
    journal = Journal(tmp_path, "0")
    journal.open(opened("req_1", **{k: v for k, v in bad.items() if k != "decision"}))
    journal.close(request("req_1", **bad))
    (row,) = drained(journal)
    assert row["id"] == "req_1"
    if bad == {"alias": "a\0b"}:
        assert row["alias"] == "a\ufffdb"
    assert row["attempts"][0]["cost_nano_usd"] == 120_000
    if "session" in bad:
        assert row["session"] == bad["session"], "a backslash-u in text is not a NUL"


def test_sync_covers_what_was_written_even_if_the_segment_is_gone(tmp_path):
    journal = Journal(tmp_path, "0", segment_bytes=1024)
    for n in range(4):
        journal.close(request(f"req_{n}"))
    job = journal.sync_job()
    assert job is not None
    drained(journal)
    job()
    assert journal.sync_job() is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".lock", "x" * 65, "a\nb"])
def test_a_worker_name_is_a_file_name(tmp_path, name):
    with pytest.raises(ValueError, match="name a file"):
        Journal(tmp_path, name)


# --- properties --------------------------------------------------------------------------------

# For each step: open a new request, add an attempt to a running one, close a running one, or a
# refusal that was never open.
STEPS = st.lists(st.sampled_from(["open", "attempt", "close", "refuse"]), min_size=1, max_size=25)


def play(journal: Journal, steps: list[str]) -> list[tuple[int, str, str]]:
    """Do the steps; what each line says and where it ends: (end, "open"|"final", id)."""
    running: list[RequestRecord] = []
    lines = []
    for n, step in enumerate(steps):
        if step in {"attempt", "close"} and not running:
            continue
        if step == "open":
            running.append(opened(f"req_{n}"))
            record = running[-1]
            journal.open(record)
        elif step == "attempt":
            record = running[n % len(running)]
            record.attempts.append(attempt(len(record.attempts) + 1))
            journal.open(record)
        else:
            ends = step == "close"
            record = request(running.pop(n % len(running)).id if ends else f"req_{n}")
            journal.close(record)
        kind = "final" if step in {"close", "refuse"} else "open"
        lines.append((journal._current.size, kind, record.id))
    return lines


def check_cut(content: bytes, cut: int, lines: list[tuple[int, str, str]], heir: Journal) -> None:
    (heir.directory / "0-1.jsonl").write_bytes(content[:cut])
    rows = adopted(heir, damaged=0)  # a torn line is no damage
    finals = [i for end, kind, i in lines if kind == "final" and end <= cut]
    started = {i for end, kind, i in lines if kind == "open" and end <= cut}
    assert [r["id"] for r in rows if r["outcome"] == "ok"] == finals
    cut_off = [r["id"] for r in rows if r["outcome"] == "interrupted"]
    assert sorted(cut_off) == sorted(started - set(finals))


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, data=st.data())
def test_cut_anywhere(steps, data):
    """A crash can end the file anywhere. Every final line before the cut survives, once."""
    folder = Path(tempfile.mkdtemp())
    try:
        journal = Journal(folder / "whole", "0")
        heir = Journal(folder / "cut", "heir")
        lines = play(journal, steps)
        content = (folder / "whole" / "0-1.jsonl").read_bytes()
        ends = {0, *(end for end, _, _ in lines)}
        within = data.draw(st.lists(st.integers(0, len(content)), min_size=20, max_size=20))
        for cut in {*ends, *(end - 1 for end in ends if end), *within}:
            check_cut(content, cut, lines, heir)
        journal.stop()
        heir.stop()
    finally:
        shutil.rmtree(folder)


def test_cut_at_every_byte(tmp_path):
    journal = Journal(tmp_path / "whole", "0")
    heir = Journal(tmp_path / "cut", "heir")
    lines = play(journal, ["open", "attempt", "open", "close"])
    content = (tmp_path / "whole" / "0-1.jsonl").read_bytes()
    for cut in range(len(content) + 1):
        check_cut(content, cut, lines, heir)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, data=st.data())
def test_damage_costs_only_the_lines_it_hits(steps, data):
    """Power loss can leave anything in the file. Never an exception, never a row twice."""
    folder = Path(tempfile.mkdtemp())
    try:
        journal = Journal(folder / "whole", "0")
        lines = play(journal, steps)
        content = bytearray((folder / "whole" / "0-1.jsonl").read_bytes())
        start = data.draw(st.integers(0, max(0, len(content) - 1)))
        junk = data.draw(st.binary(min_size=1, max_size=200))
        content[start : start + len(junk)] = junk
        (folder / "bad").mkdir()
        (folder / "bad" / "0-1.jsonl").write_bytes(content)
        ids = [row["id"] for row in recovered(folder / "bad")]
        starts = dict(
            zip([end for end, _, _ in lines], [0] + [e for e, _, _ in lines], strict=False)
        )
        unhurt = {
            i
            for end, kind, i in lines
            if kind == "final" and (end <= start or starts[end] > start + len(junk))
        }
        assert unhurt <= set(ids)
        known = [i for i in ids if i in {i for _, _, i in lines}]
        assert len(known) == len(set(known))
        journal.stop()
    finally:
        shutil.rmtree(folder)
