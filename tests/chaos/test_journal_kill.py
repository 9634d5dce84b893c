"""Workers killed with -9 under load, a database killed under them: nothing lost, nothing twice.

A worker notes `+id` once a request may go upstream and `-id` once its row was written, which is
when its client would have had the last byte. What it noted is compared with the ledger:

    I-1   every `-id` has exactly one row, as it ended; every other `+id` one row, `interrupted`
    I-2   every attempt has a row, and the attempts' costs add up to the requests'
    I-3   rows wait while the database is down and catch up afterwards
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.ledger import store as module
from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from gateway.ledger.store import Store
from tests.promises import promise
from tests.servers import Postgres
from tests.unit.ledger.records import attempt, opened, request

pytest_plugins = ("tests.servers",)

IN_FLIGHT = 50
ROUNDS = 6
WORKERS = 2


class Worker:
    """Serves until it is killed, with up to IN_FLIGHT requests at a time."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.journal = Journal(folder / "journal", name, segment_bytes=64 * 1024)
        self.prefix = f"{name}_{os.getpid()}_"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self.notes = os.open(folder / f"{self.prefix}notes", flags)
        self.running: list[str] = []
        self.count = 0

    async def serve(self, url: str) -> None:
        store = await Store.connect(url, wait_s=20)
        Flusher(self.journal, store, interval_s=0.01).start()
        while True:
            for _ in range(20):
                self.arrive()
                while len(self.running) > self.chance.randrange(IN_FLIGHT):
                    self.end(self.running.pop(self.chance.randrange(len(self.running))))
            await asyncio.sleep(0.002)

    def arrive(self) -> None:
        self.count += 1
        request_id = f"{self.prefix}{self.count}"
        if self.chance.random() < 0.1:  # refused before any attempt
            self.journal.close(request(request_id, attempts=[], cost_nano_usd=None, priced=False))
            self.note("-", request_id)
            return
        self.journal.open(opened(request_id))
        self.note("+", request_id)
        self.running.append(request_id)

    def end(self, request_id: str) -> None:
        tries = [attempt(1)]
        if self.chance.random() < 0.2:
            tries = [attempt(1, outcome="failed", cost_nano_usd=None), attempt(2)]
        self.journal.close(request(request_id, attempts=tries))
        self.note("-", request_id)

    def note(self, sign: str, request_id: str) -> None:
        os.write(self.notes, f"{sign}{request_id}\n".encode())


def start(folder: Path, name: str, seed: int, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", __name__, str(folder), name, str(seed), url]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def noted(folder: Path) -> tuple[set[str], set[str]]:
    """(ended, sent upstream) as all workers noted."""
    lines = [line for path in folder.glob("*_notes") for line in path.read_text().splitlines()]
    return {s[1:] for s in lines if s[0] == "-"}, {s[1:] for s in lines if s[0] == "+"}


def until_at_work(folder: Path, workers: list[subprocess.Popen[bytes]]) -> None:
    """Each of them has noted something."""
    deadline = time.monotonic() + 60
    for worker in workers:
        while not any(p.stat().st_size for p in folder.glob(f"*_{worker.pid}_notes")):
            assert worker.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)


async def settle(folder: Path, url: str) -> None:
    """The next start: adopt, send everything, end in order."""
    store = await Store.connect(url, wait_s=20)
    journal = Journal(folder / "journal", "last")
    flusher = Flusher(journal, store, interval_s=0.01)
    flusher.start()
    async with asyncio.timeout(60):
        while any(p for p in (folder / "journal").glob("*.jsonl") if journal.owner not in p.name):
            await asyncio.sleep(0.02)
    assert await flusher.drain(10)
    assert flusher.refused_rows == 0
    journal.stop()
    await store.close()
    assert list((folder / "journal").iterdir()) == []


async def audit(folder: Path, url: str, kills: int) -> dict[str, int]:
    """Compare the ledger with what the workers noted."""
    ended, upstream = noted(folder)
    store = await Store.connect(url)
    rows = await store.requests(limit=10**7)
    tries = await store.select(sa.select(module.attempts))
    await store.close()
    ids = [row.id for row in rows]
    interrupted = {row.id for row in rows if row.outcome == "interrupted"}
    written = {row.id for row in rows if row.outcome == "ok"}
    figures = {
        "kills": kills,
        "ended": len(ended),
        "missing": len((ended - written) | (upstream - set(ids))),
        "duplicate": len(ids) - len(set(ids)),
        "interrupted": len(interrupted),
    }
    assert figures["missing"] == figures["duplicate"] == 0, figures
    assert interrupted & ended == set()
    # Between writing a line and noting it there is room for one request of each that was killed.
    assert len(set(ids) - ended - upstream) <= kills
    assert len(interrupted) <= kills * (IN_FLIGHT + 1)
    assert sum(row.attempt_count for row in rows) == len(tries)
    costs: dict[str, int] = {}
    for one in tries:
        costs[one["request_id"]] = costs.get(one["request_id"], 0) + (one["cost_nano_usd"] or 0)
    assert all((row.cost_nano_usd or 0) == costs.get(row.id, 0) for row in rows)
    return figures


@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_killed_workers_lose_and_repeat_nothing(dialect, tmp_path, record_property):
    seed = int(os.environ.get("WEIGHBRIDGE_TEST_SEED", "20261123"))
    chance = random.Random(seed)
    print(f"seed={seed}")
    postgres = Postgres.start(durable=True) if dialect == "postgres" else None
    url = postgres.url if postgres else f"sqlite:///{tmp_path / 'ledger.db'}"
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for turn in range(ROUNDS):
            workers = [
                start(tmp_path, f"w{n}", chance.getrandbits(32), url) for n in range(WORKERS)
            ]
            until_at_work(tmp_path, workers)
            for worker in workers:
                time.sleep(chance.uniform(0.0, 0.3))
                if postgres and turn in {2, 4} and worker is workers[0]:
                    postgres.kill()
                    time.sleep(0.3)
                    postgres.restart()
                worker.kill()
                worker.wait()
        asyncio.run(settle(tmp_path, url))
        figures = asyncio.run(audit(tmp_path, url, ROUNDS * WORKERS))
        assert figures["ended"] > ROUNDS * WORKERS * 100
        print(f"I-1 {dialect}: {figures}")
        record_property("I-1", figures)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        if postgres:
            postgres.__exit__()


async def test_a_database_that_dies_under_load_catches_up(tmp_path, record_property):
    """I-3: kill -9 the database, go on writing, start it again."""
    with Postgres.start(durable=True) as postgres:
        store = await Store.connect(postgres.url)
        journal = Journal(tmp_path, "0", segment_bytes=1024 * 1024)
        flusher = Flusher(journal, store)
        flusher.start()
        sent = 0

        async def serve(rows: int) -> None:
            nonlocal sent
            for _ in range(rows):
                sent += 1
                journal.open(opened(f"req_{sent}"))
                journal.close(request(f"req_{sent}"))
                if sent % 100 == 0:
                    await asyncio.sleep(0.002)

        async def caught_up() -> None:
            async with asyncio.timeout(60):
                while journal.unsent_rows:
                    await asyncio.sleep(0.01)

        await serve(500)
        await caught_up()
        postgres.kill()
        await serve(10_000)
        async with asyncio.timeout(30):
            while flusher.failing is None:
                await asyncio.sleep(0.02)
        assert journal.unsent_rows >= 9_000
        assert not journal.full

        async def behind() -> tuple[int, float]:
            """How many rows were left once the first had gone, and how long those took."""
            waiting = journal.unsent_rows
            while (rest := journal.unsent_rows) == waiting:
                await asyncio.sleep(0.001)
            began = time.monotonic()
            while journal.unsent_rows:
                await asyncio.sleep(0.001)
            return rest, time.monotonic() - began

        catching_up = asyncio.ensure_future(behind())
        await asyncio.to_thread(postgres.restart)
        async with asyncio.timeout(30):
            while flusher.failing is not None:
                await asyncio.sleep(0.005)
        await caught_up()
        rest, took_s = await catching_up
        assert flusher.oldest_unsent_s == 0.0
        assert await flusher.drain(5)
        (total,) = await store.totals()
        assert total.rows == sent == 10_500
        assert total.cost_nano_usd == sent * 120_000
        promise("I-3b", f"{rest / took_s:,.0f} rows/s ({rest:,} rows that waited)")
        journal.stop()
        await store.close()


if __name__ == "__main__":
    asyncio.run(Worker(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).serve(sys.argv[4]))
