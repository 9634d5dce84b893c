"""The flusher against a ledger in memory that can be down or choosy."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import orjson
import pytest

from gateway.domain.errors import StoreUnavailable
from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from gateway.ledger.store import RowsRefused, Store
from tests.unit.ledger.records import STARTED_US, opened, request


class MemoryLedger:
    """Takes rows as `Store.append` promises: all of a batch or nothing, each id once."""

    def __init__(self) -> None:
        self.rows: dict[str, dict] = {}
        self.down = False
        self.batches: list[int] = []
        self.compacted = 0

    async def append(self, lines: list[bytes]) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("The database does not answer.", detail="down")
        try:
            rows = [orjson.loads(line) for line in lines]
        except orjson.JSONDecodeError as error:
            raise RowsRefused("not a row") from error
        if any(row["alias"] == "poison" for row in rows):
            raise RowsRefused("violates check constraint")
        self.batches.append(len(rows))
        for row in rows:
            self.rows.setdefault(row["id"], row)

    async def compact(self) -> int:
        self.compacted += 1
        if self.compacted == 1:
            raise StoreUnavailable("The database does not answer.", detail="down")
        return 1


class Clock:
    def __init__(self) -> None:
        self.now = STARTED_US / 1e6 + 0.9 + 42.0  # 42 s after the records' end

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path, "0")


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_rows_go_over_and_files_go_away(journal, tmp_path):
    ledger = MemoryLedger()
    flusher = Flusher(journal, ledger, interval_s=0.01)
    flusher.start()
    for n in range(5000):
        journal.close(request(f"req_{n}"))
    await until(lambda: len(ledger.rows) == 5000)
    assert max(ledger.batches) <= 2000
    assert await flusher.drain(5)
    assert flusher.sent_rows == 5000
    journal.stop()
    assert list(tmp_path.iterdir()) == []


async def test_drain_sends_what_is_there_without_start(journal):
    ledger = MemoryLedger()
    journal.close(request("req_1"))
    assert await Flusher(journal, ledger).drain(5)
    assert list(ledger.rows) == ["req_1"]


async def test_a_database_that_is_down_costs_waiting_only(journal):
    ledger = MemoryLedger()
    ledger.down = True
    flusher = Flusher(journal, ledger, clock=Clock(), interval_s=0.01)
    flusher.start()
    journal.close(request("req_1"))
    await until(lambda: flusher.failing)
    assert flusher.failing == "down"
    assert flusher.oldest_unsent_s == pytest.approx(42.0)
    assert flusher.unsent_rows == 1
    ledger.down = False
    await until(lambda: ledger.rows)
    await until(lambda: flusher.failing is None)
    assert flusher.oldest_unsent_s == 0.0
    assert await flusher.drain(5)


async def test_drain_gives_up_in_time_and_keeps_the_rows(journal, tmp_path):
    ledger = MemoryLedger()
    ledger.down = True
    flusher = Flusher(journal, ledger)
    flusher.start()
    journal.close(request("req_1"))
    assert not await flusher.drain(0.05)
    journal.stop()
    ledger.down = False
    heir = Journal(tmp_path, "1")
    flusher = Flusher(heir, ledger, interval_s=0.01)
    flusher.start()
    await until(lambda: ledger.rows)
    assert await flusher.drain(5)
    assert list(ledger.rows) == ["req_1"]
    heir.stop()


async def test_a_row_refused_for_good_holds_up_nobody_and_does_not_vanish(journal, tmp_path):
    ledger = MemoryLedger()
    for n in range(100):
        journal.close(request(f"req_{n}", alias="poison" if n in {0, 63, 99} else "fast"))
    flusher = Flusher(journal, ledger)
    assert await flusher.drain(5)
    assert len(ledger.rows) == 97
    assert flusher.refused_rows == 3
    aside = (tmp_path / "refused.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["id"] for line in aside] == ["req_0", "req_63", "req_99"]


@pytest.mark.parametrize("line", [b'{"id":"torn","started_at_us":17', b'{"id":"torn"}'])
async def test_a_damaged_line_at_the_head_holds_up_nobody(tmp_path, line):
    (tmp_path / "journal").mkdir()
    journal = Journal(tmp_path / "journal", "0")
    journal.close(request("torn"))
    journal.close(request("whole"))
    (path,) = (tmp_path / "journal").glob("*.jsonl")
    torn, whole = path.read_bytes().splitlines()
    path.write_bytes(line.ljust(len(torn)) + b"\n" + whole + b"\n")
    store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    flusher = Flusher(journal, store)
    assert await flusher.drain(30)
    assert [row.id for row in await store.requests()] == ["whole"]
    assert flusher.refused_rows == 1
    await store.close()


class Leaving(MemoryLedger):
    """Goes away for a moment, at its nth batch."""

    calls = 0

    async def append(self, lines: list[bytes]) -> None:
        self.calls += 1
        if self.calls == 4:
            raise StoreUnavailable("The database does not answer.", detail="down")
        await super().append(lines)


async def test_a_refused_row_is_set_aside_once(journal, tmp_path):
    ledger = Leaving()
    for n in range(4):
        journal.close(request(f"req_{n}", alias="fast" if n else "poison"))
    flusher = Flusher(journal, ledger)
    assert await flusher.drain(30)
    assert (len(ledger.rows), flusher.refused_rows) == (3, 1)
    assert len((tmp_path / "refused.jsonl").read_bytes().splitlines()) == 1


FULL = """
import asyncio, resource, signal, sys
from pathlib import Path
from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from tests.unit.ledger.records import request
from tests.unit.ledger.test_flusher import MemoryLedger
journal = Journal(Path(sys.argv[1]), "0")
journal.close(request("req_1", alias="poison"))
path = Path(sys.argv[1]) / "refused.jsonl"
path.write_bytes(b"before" * 9999 + b"\\n")
size = path.stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))  # as a disk nearly full
flusher = Flusher(journal, MemoryLedger())
assert not asyncio.run(flusher.drain(0.2))
assert (path.stat().st_size, flusher.refused_rows, journal.unsent_rows) == (size, 0, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert asyncio.run(Flusher(journal, MemoryLedger()).drain(30))
assert path.read_bytes()[size:].count(b"\\n") == 1
"""


def test_a_full_disk_takes_no_part_of_a_refused_row(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


async def test_the_dead_are_sent_by_the_living(tmp_path):
    dead = Journal(tmp_path, "0")
    dead.open(opened("cut"))
    for n in range(10):
        dead.close(request(f"req_{n}"))
    dead.stop()
    ledger = MemoryLedger()
    journal = Journal(tmp_path, "1")
    flusher = Flusher(journal, ledger, interval_s=0.01)
    ledger.down = True
    flusher.start()
    await until(lambda: flusher.failing)
    ledger.down = False
    await until(lambda: flusher.interrupted_rows == 1)
    assert ledger.rows["cut"]["outcome"] == "interrupted"
    assert len(ledger.rows) == 11
    assert await flusher.drain(5)
    journal.stop()
    assert list(tmp_path.iterdir()) == []


async def test_a_bug_in_the_store_does_not_end_the_flusher(journal):
    class Buggy(MemoryLedger):
        async def append(self, lines):
            if not self.batches:
                self.batches.append(0)
                raise ZeroDivisionError
            await super().append(lines)

    ledger = Buggy()
    flusher = Flusher(journal, ledger, interval_s=0.01)
    flusher.start()
    journal.close(request("req_1"))
    await until(lambda: ledger.rows)
    assert await flusher.drain(5)


async def test_sums_are_merged_now_and_then_whatever_happens(journal):
    ledger = MemoryLedger()
    flusher = Flusher(journal, ledger, compact_every_s=0.01)
    flusher.start()
    await until(lambda: ledger.compacted >= 3)
    assert await flusher.drain(5)


async def test_what_a_dead_worker_had_ended_is_told_as_it_was_written(tmp_path):
    """It may have died before it settled: its limits are told again, of nothing that never ran."""
    dead = Journal(tmp_path, "0")
    dead.open(opened("cut"))
    dead.close(request("r1", cost_nano_usd=7))
    dead.close(request("refused", attempts=[]))
    dead.stop()
    flusher = Flusher(Journal(tmp_path, "1"), MemoryLedger(), interval_s=0.01)
    ended, cut = [], []
    flusher.on_ended, flusher.on_cut_off = ended.append, cut.append
    flusher.start()
    await until(lambda: cut)
    await flusher.drain(5)
    assert cut == ["cut"]
    assert ended == [request("r1", cost_nano_usd=7)]
