"""How long reports take over a month of 10 million requests, with the month before beside it.

    python -m tests.bench.reports [--requests 10000000] [--only sqlite|postgres]

One hour of varied traffic goes through the real writer; its roll-ups are then copied to every hour
of two months by SQL. So the reports read what a month of that size leaves them, and there are no
millions of rows to wait for. The command runs as a process of its own, from start to its JSON.
Prints a section for RESULTS.md. Exit code 1 where a report of Postgres takes two seconds or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson
import psutil
import sqlalchemy as sa

from gateway.ledger.hours import HOUR_US
from gateway.ledger.store import Store, attempt_hours, other_meter_hours, request_hours
from tests.bench.backtest import database
from tests.unit.reports.month import NOVEMBER_US, month, stated

SECONDS_MAX = 2.0
HOURS = {"September": 30 * 24, "October": 31 * 24}
OCTOBER_US = NOVEMBER_US - HOURS["October"] * HOUR_US
SEPTEMBER_US = OCTOBER_US - HOURS["September"] * HOUR_US
BATCH, ROUNDS = 1_000, 3
REPORTS = (
    ("cost", "--by", "team"),
    ("cost", "--by", "team", "--by", "backend"),
    ("cost", "--by", "day", "--by", "team", "--no-compare"),
    ("cost", "--by", "day", "--by", "team", "--by", "model"),
    ("cost", "--by", "backend", "--by", "meter"),
    ("cost", "--by", "team", "--where", "backend=openai"),
    ("quality",),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One command; the median of its times."""

    database: str
    words: tuple[str, ...]
    wall_s: float
    cpu_s: float
    server_s: float
    lines: int
    rows: int


async def fill(url: str, requests: int) -> dict[str, int]:
    """Two months of roll-ups; how many rows each table has of them."""
    store = await Store.connect(url)
    await stated(store)
    each = requests // HOURS["October"]
    made = month(each, since_us=OCTOBER_US, long_us=HOUR_US)
    while batch := list(islice(made, BATCH)):
        await store.append([orjson.dumps(one) for one in batch])
    hours = sum(HOURS.values())
    async with store.turn() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        for table in (request_hours, attempt_hours, other_meter_hours):
            await connection.execute(sa.text(_copies(table, hours)))
    found = {}
    for table in (request_hours, attempt_hours, other_meter_hours):
        (row,) = await store.select(sa.select(sa.func.count().label("n")).select_from(table))
        found[table.name] = row["n"]
    await store.close()
    return found


def _copies(table: sa.Table, hours: int) -> str:
    """What October's first hour has, merged as the store merges an hour, in every other."""
    keys = [c.name for c in table.columns if c.name.endswith("dimension") or c.name == "meter"]
    sums = [c.name for c in table.columns if c.name not in {*keys, "hour_us", "merged"}]
    added = ", ".join(f"CAST(sum({name}) AS bigint)" for name in sums)
    names = ", ".join([*keys, *sums])
    each = f"SELECT {', '.join(keys)}, {added} FROM {table.name} GROUP BY {', '.join(keys)}"
    return (
        f"WITH RECURSIVE h(at) AS (SELECT {SEPTEMBER_US} UNION ALL SELECT at + {HOUR_US}"
        f" FROM h WHERE at < {SEPTEMBER_US + (hours - 1) * HOUR_US}), e({names}) AS ({each})"
        f" INSERT INTO {table.name} (hour_us, merged, {names}) SELECT at, true, {names} FROM h, e"
        f" WHERE at <> {OCTOBER_US}"
    )


async def _vacuumed(url: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


async def _server(url: str) -> Callable[[], float]:
    """What the server has used of CPU so far, in seconds; of all its processes."""
    import asyncpg

    connection = await asyncpg.connect(url)
    mine = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    postmaster = mine.parent()
    await connection.close()

    def used() -> float:
        times = postmaster.cpu_times()
        spent = times.children_user + times.children_system
        for child in postmaster.children():
            with suppress(psutil.NoSuchProcess):
                spent += sum(child.cpu_times()[:2])
        return spent

    return used


def run(
    name: str, url: str, words: tuple[str, ...], home: Path, server: Callable[[], float]
) -> Run:
    """The command as people call it."""
    environment = {key: v for key, v in os.environ.items() if "WEIGHBRIDGE" not in key}
    environment |= {"WEIGHBRIDGE_HOME": str(home), "WEIGHBRIDGE_DATABASE_URL": url}
    period = ["--month", "2026-10", "--json"]
    command = [sys.executable, "-m", "gateway.cli", "report", *words, *period]
    times = []
    for _ in range(ROUNDS):
        started, used, served = time.perf_counter(), os.times(), server()
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        wall, after = time.perf_counter() - started, os.times()
        if done.returncode:
            raise SystemExit(done.stderr.decode())
        cpu = after.children_user - used.children_user
        cpu += after.children_system - used.children_system
        times.append((wall, cpu, server() - served))
    report = json.loads(done.stdout)
    wall, cpu, served = sorted(times)[len(times) // 2]
    return Run(name, words, wall, cpu, served, len(report["lines"]), report["foot"]["rows"])


def section(requests: int, runs: list[Run], sizes: dict[str, dict[str, int]]) -> str:
    """Of RESULTS.md."""
    shape = next(iter(sizes.values()))
    hours = sum(HOURS.values())
    tables = ", ".join(f"{n // hours:,} of `{name}`" for name, n in shape.items())
    table = [
        f"| {r.database} | `{' '.join(r.words)}` | {r.lines:,} | {r.rows:,} | {r.wall_s:.2f} |"
        f" {r.cpu_s:.2f} | {r.server_s:.2f} |"
        for r in runs
    ]
    return "\n".join(
        [
            "# Reports",
            "",
            (
                f"`python -m tests.bench.reports`: a month of {requests:,} requests, and the month"
                f" before; gate: {SECONDS_MAX:.0f} s by the clock on Postgres."
            ),
            "",
            "| database | report | lines | rows it is of | wall, s | CPU, s | Postgres' CPU, s |",
            "|---|---|--:|--:|--:|--:|--:|",
            *table,
            "",
            f"- Roll-ups of {hours:,} hours, in each hour {tables}.",
            "- The command as a process, from start to its JSON. Percentiles are from the histogram.",
            "  Medians.",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    options = parser.parse_args(arguments)
    runs: list[Run] = []
    sizes: dict[str, dict[str, int]] = {}
    for name in (options.only,) if options.only else ("sqlite", "postgres"):
        with tempfile.TemporaryDirectory() as folder, database(name, Path(folder)) as url:
            sizes[name] = asyncio.run(fill(url, options.requests))
            if name == "postgres":
                asyncio.run(_vacuumed(url))
            server = asyncio.run(_server(url)) if name == "postgres" else lambda: 0.0
            for words in REPORTS:
                runs.append(run(name, url, words, Path(folder), server))
                print(runs[-1], file=sys.stderr)
    print(section(options.requests, runs, sizes))
    slow = [r for r in runs if r.database == "postgres" and r.wall_s >= SECONDS_MAX]
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
