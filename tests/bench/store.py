"""What the store takes and what it costs: `python -m tests.bench.store --rows 200000`.

Records of a generated month (`traffic`) go the way of the gateway's: into a journal, and from there
by the flusher into a Postgres of its own, with fsync as a real one. Then: bytes by table, merging,
a look-up by id, a month's sums. `--processes 2` writes from two; `--check` compares all sums with
all rows; `--old ROWS` writes that many rows the way of schema 0003 too, in the same run; `--keep`
leaves the database running until a key is pressed. Prints a section for RESULTS.md. Exit code 1
where a gate is not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import asyncpg
import orjson
import psutil
import sqlalchemy as sa

from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from gateway.ledger.store import (
    Store,
    attempt_dimensions,
    attempt_hours,
    request_dimensions,
    request_hours,
    requests,
)
from tests.bench.traffic import MONTH_US, OCTOBER_US, month
from tests.servers import Postgres
from tests.unit.ledger import schema_0003

ROWS_A_SECOND_MIN = 5_000
LOOK_UP_MS_MAX = 20.0
MONTH_S_MAX = 2.0
CHUNK = 20_000  # requests generated, then sent: only the sending is timed
LOOK_UPS = 200
A_MONTH = 10_000_000
# As one would set them for a machine of this size; the rest is Postgres' own.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "lz4",
}


@dataclass(slots=True)
class Written:
    """Of one writer: requests, seconds and CPU seconds of sending them, bytes of their lines."""

    rows: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    line_bytes: int = 0
    stall_ms: float = 0.0  # the longest that nothing else ran in the loop, 99th of a hundred


# --- writing --------------------------------------------------------------------------------------


async def write(url: str, rows: int, *, seed: int, since_us: int, long_us: int) -> Written:
    """Journal and flusher of one worker, in turns with the making of records."""
    store = await Store.connect(url)
    made = month(rows, seed=seed, since_us=since_us, long_us=long_us)
    done = Written()
    stalls: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), str(seed), bytes_max=2**40)
        flusher = Flusher(journal, store, sync=True)
        watch = asyncio.create_task(_watch(stalls))
        while chunk := list(islice(made, CHUNK)):
            for record in chunk:
                journal.close(record)
            done.rows += len(chunk)
            done.line_bytes += journal.unsent_bytes
            await asyncio.sleep(0.01)
            stalls.append(-1.0)
            wall, cpu = time.perf_counter(), time.process_time()
            await flusher._flush()
            done.wall_s += time.perf_counter() - wall
            done.cpu_s += time.process_time() - cpu
            stalls.append(-2.0)
            if flusher.failing:
                raise RuntimeError(flusher.failing)
        watch.cancel()
        assert await flusher.drain(60)
        assert flusher.refused_rows == 0
        journal.stop()
    await store.close()
    done.stall_ms = _percentile(_during(stalls), 99) * 1e3
    return done


async def _watch(stalls: list[float]) -> None:
    """How late a task of a request would have been."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        stalls.append(time.perf_counter() - before - 0.001)


def _during(stalls: Sequence[float]) -> list[float]:
    sending, found = False, []
    for value in stalls:
        if value < 0:
            sending = value == -1.0
        elif sending:
            found.append(value)
    return found


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100] if values else 0.0


def _process(url: str, rows: int, number: int, processes: int) -> Written:
    """Its part of the month; fewer rows than A_MONTH fill the beginning of it as densely."""
    part = MONTH_US // processes
    long_us = min(part, part * rows * processes // A_MONTH)
    return asyncio.run(
        write(url, rows, seed=number + 1, since_us=OCTOBER_US + number * part, long_us=long_us)
    )


async def write_old(url: str, rows: int) -> Written:
    """The same lines by the statement of schema 0003, as many at a time as the flusher sends."""
    engine = await schema_0003.create(url)
    lines = [orjson.dumps(record) for record in month(rows)]
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, rows, 2_000):
        await schema_0003.append(engine, lines[start : start + 2_000])
    done = Written(rows, time.perf_counter() - wall, time.process_time() - cpu)
    await engine.dispose()
    return done


# --- the server -----------------------------------------------------------------------------------


class Server:
    """A Postgres of our own, and what it has used."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self.url = postgres.url

    def database(self, name: str) -> str:
        """A new one; its URL."""
        asyncio.run(self._run(f"CREATE DATABASE {name}"))
        return f"{self.url.rpartition('/')[0]}/{name}"

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(statement)
        await connection.close()

    def cpu_s(self) -> float:
        """CPU seconds of all its processes, the ended ones too."""
        process = psutil.Process(self._postgres._process.pid)
        used = process.cpu_times()
        whole = used.user + used.system + used.children_user + used.children_system
        for child in process.children(recursive=True):
            try:
                times = child.cpu_times()
            except psutil.NoSuchProcess:
                continue
            whole += times.user + times.system + times.children_user + times.children_system
        return float(whole)


@contextmanager
def started() -> Iterator[Server]:
    postgres = Postgres.start(durable=True)
    with postgres:
        postgres.stop()
        postgres.settings = SETTINGS
        postgres.restart()
        yield Server(postgres)


# --- what there is then ---------------------------------------------------------------------------


async def sizes(url: str) -> dict[str, tuple[int, int]]:
    """Table (all its partitions) -> bytes of rows, bytes of indexes; `decisions` out of the rows."""
    connection = await asyncpg.connect(url)
    found = await connection.fetch(
        """
        SELECT coalesce(p.relname, c.relname) AS name, sum(pg_table_size(c.oid)) AS rows,
               sum(pg_indexes_size(c.oid)) AS indexes
        FROM pg_class c
        LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        LEFT JOIN pg_class p ON p.oid = i.inhparent
        WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
        GROUP BY 1 ORDER BY 1
        """
    )
    decisions = await connection.fetchval(
        "SELECT avg(coalesce(pg_column_size(decision), 0)) * (SELECT count(*) FROM request_facts)"
        " FROM request_facts TABLESAMPLE SYSTEM (2) REPEATABLE (1)"
    )
    await connection.close()
    made = {row["name"]: (int(row["rows"]), int(row["indexes"])) for row in found}
    return made | {"decisions": (int(decisions or 0), 0)}


async def vacuum(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM (ANALYZE)")
    await connection.close()


async def look_ups(store: Store, count: int) -> list[float]:
    """Milliseconds of looking up requests of any time by their id, with their attempts."""
    chance, took = random.Random(2), []
    ids = []
    last = sa.select(sa.func.max(requests.c.started_at_us).label("at"))
    (newest,) = await store.select(last)
    for _ in range(count):
        at_us = OCTOBER_US + int(chance.random() * (newest["at"] - OCTOBER_US))
        near = sa.select(requests.c.id).where(requests.c.started_at_us >= at_us)
        ids += [
            r["id"] for r in await store.select(near.order_by(requests.c.started_at_us).limit(1))
        ]
    for request_id in ids:
        before = time.perf_counter()
        assert await store.request(request_id) is not None
        took.append((time.perf_counter() - before) * 1e3)
    return took


def _month_queries() -> dict[str, sa.Select[tuple[object, ...]]]:
    """What the month's report adds up."""

    def sums(table: sa.Table) -> list[sa.ColumnElement[object]]:
        names = [c.name for c in table.columns if c.name not in {"hour_us", "merged"}]
        return [sa.func.sum(table.c[n]).label(n) for n in names if "dimension" not in n]

    h, d = request_hours, request_dimensions.c
    a, ad = attempt_hours, attempt_dimensions.c
    team = d.tags["team"].as_string()
    day = h.c.hour_us // 86_400_000_000
    inside = sa.and_(h.c.hour_us >= OCTOBER_US, h.c.hour_us < OCTOBER_US + MONTH_US)
    of_attempts = sa.and_(a.c.hour_us >= OCTOBER_US, a.c.hour_us < OCTOBER_US + MONTH_US)
    of_requests = sa.join(h, request_dimensions, d.id == h.c.dimension)
    both = sa.join(a, attempt_dimensions, ad.id == a.c.attempt_dimension).join(
        request_dimensions, d.id == a.c.request_dimension
    )
    return {
        "by team, key and alias": sa.select(team, d.key_id, d.alias, *sums(h))
        .select_from(of_requests).where(inside).group_by(team, d.key_id, d.alias),
        "by day and outcome": sa.select(day, d.outcome, *sums(h))
        .select_from(of_requests).where(inside).group_by(day, d.outcome),
        "attempts by backend, model, outcome": sa.select(ad.backend, ad.model, ad.outcome, *sums(a))
        .select_from(both).where(of_attempts).group_by(ad.backend, ad.model, ad.outcome),
        "attempts by team and backend": sa.select(team, ad.backend, *sums(a))
        .select_from(both).where(of_attempts).group_by(team, ad.backend),
    }  # fmt: skip


async def timed(work: Callable[[], Awaitable[object]]) -> tuple[float, object]:
    before = time.perf_counter()
    found = await work()
    return time.perf_counter() - before, found


# --- the whole ------------------------------------------------------------------------------------


def _share(rows: int, number: int, processes: int) -> int:
    return rows // processes + (number < rows % processes)


def fill(server: Server, url: str, rows: int, processes: int) -> tuple[list[Written], float, float]:
    """What each writer did, the CPU seconds of Postgres, the seconds by the clock."""
    asyncio.run(_connect(url))
    before, wall = server.cpu_s(), time.perf_counter()
    if processes == 1:
        done = [_process(url, rows, 0, 1)]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            work = [(url, _share(rows, n, processes), n, processes) for n in range(processes)]
            done = pool.starmap(_process, work)
    return done, server.cpu_s() - before, time.perf_counter() - wall


async def _connect(url: str) -> None:
    await (await Store.connect(url)).close()


async def after(url: str, rows: int, *, check: bool) -> tuple[list[str], list[bool]]:
    """Lines and gates of all that is measured once the rows are there."""
    out: list[str] = []
    store = await Store.connect(url)
    appended = await _count(store, request_hours), await _count(store, attempt_hours)
    took, hours = await timed(store.compact)
    merged = await _count(store, request_hours), await _count(store, attempt_hours)
    out.append(
        f"| roll-ups | {appended[0]:,} + {appended[1]:,} rows as appended, {merged[0]:,} +"
        f" {merged[1]:,} merged ({hours} hours in {took:.1f} s) |"
    )
    await vacuum(url)
    found = await sizes(url)
    decisions = found["decisions"][0]
    facts = found["request_facts"][0] - decisions, found["attempt_facts"][0]
    indexes = found["request_facts"][1] + found["attempt_facts"][1]
    dimensions = sum(sum(found[t]) for t in ("request_dimensions", "attempt_dimensions", "workers"))
    rollups = sum(sum(found[t]) for t in ("request_hours", "attempt_hours", "other_meter_hours"))
    parts = {
        "request facts": facts[0], "decisions": decisions, "attempt facts": facts[1],
        "indexes": indexes, "dimensions": dimensions, "roll-ups": rollups,
    }  # fmt: skip
    each = ", ".join(f"{name} {size / rows:,.0f}" for name, size in parts.items())
    out.append(f"| bytes a request | **{sum(parts.values()) / rows:,.0f}**: {each} |")
    gates = []
    cold = await look_ups(store, min(LOOK_UPS, rows))
    middle, worst = statistics.median(cold), max(cold)
    gates.append(_percentile(cold, 99) < LOOK_UP_MS_MAX)
    out.append(
        f"| look-up by id | {middle:.1f} ms (median), {_percentile(cold, 99):.1f} (99 of 100),"
        f" {worst:.1f} (slowest of {len(cold)}) |"
    )
    for name, query in _month_queries().items():
        first, answer = await timed(lambda query=query: store.select(query))
        again, _ = await timed(lambda query=query: store.select(query))
        gates.append(first < MONTH_S_MAX)
        out.append(f"| month, {name} | {first:.2f} s, again {again:.2f} s, {len(answer)} groups |")
    if check:
        took, agreed = await timed(store.rollups_agree)
        gates.append(not agreed.differences)
        out.append(
            f"| sums against all rows | {agreed.hours} hours, {len(agreed.differences)} differences,"
            f" {took:.0f} s |"
        )
    await store.close()
    return out, gates


async def _count(store: Store, table: sa.Table) -> int:
    (row,) = await store.select(sa.select(sa.func.count().label("n")).select_from(table))
    return int(row["n"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--old", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args(arguments)
    with started() as server:
        url = server.database("ledger")
        done, server_cpu_s, wall_s = fill(server, url, options.rows, options.processes)
        rows = sum(one.rows for one in done)
        speed = sum(one.rows / one.wall_s for one in done)
        gates = [speed >= ROWS_A_SECOND_MIN]
        print(f"\n{rows:,} requests with their attempts, {options.processes} writer(s)\n")
        print("| What | Measured |\n|---|---|")
        print(
            f"| written | **{speed:,.0f} requests a second**"
            f" ({wall_s:,.0f} s with the making of the traffic) |"
        )
        ours = sum(one.cpu_s for one in done) / rows * 1e6
        print(
            f"| CPU a request | ours {ours:.0f} us, Postgres {server_cpu_s / rows * 1e6:.0f} us |"
        )
        print(f"| journal line | {sum(one.line_bytes for one in done) / rows:,.0f} bytes |")
        print(
            f"| the event loop is late by | {done[0].stall_ms:.1f} ms (99 of 100) while sending |"
        )
        if options.old:
            before = server.cpu_s()
            old = asyncio.run(write_old(server.database("old"), options.old))
            its = (server.cpu_s() - before) / old.rows * 1e6
            print(
                f"| by schema 0003's statement | {old.rows / old.wall_s:,.0f} requests a second,"
                f" ours {old.cpu_s / old.rows * 1e6:.0f} us, Postgres {its:.0f} us |"
            )
        sys.stdout.flush()
        lines, more = asyncio.run(after(url, rows, check=options.check))
        print("\n".join(lines))
        if options.keep:
            print(url, flush=True)
            while not Path(os.environ.get("STOP_FILE", "/nonexistent")).exists():
                time.sleep(1)
    return 0 if all([*gates, *more]) else 1


if __name__ == "__main__":
    sys.exit(main())
