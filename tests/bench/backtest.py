"""How long `weighbridge policy backtest` takes over 100,000 recorded requests.

    python -m tests.bench.backtest [--rows 100000] [--only sqlite|postgres]

Rows are written by the real writer, then the real command runs as a process of its own, over SQLite
and over Postgres, with one candidate and with four. Prints a section for RESULTS.md. Exit code 1
where a run takes a minute or more of CPU: what it takes by the clock depends on who else is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil

from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Origin, Versions
from tests.bench.recording import POLICIES, bundle, lines
from tests.servers import Postgres

CANDIDATES = ("cheapest", "fastest", "private-first", "closed-only-fallback")
WEEK = ("--since", "2026-11-16", "--until", "2026-11-23")
BATCH = 1000
SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command."""

    database: str
    candidates: int
    wall_s: float
    cpu_s: float
    memory_mb: float
    same: int
    sample: int


async def write(url: str, rows: int) -> float:
    """Fill an empty database; seconds."""
    store = await Store.connect(url)
    files = bundle("balanced")
    change = Change(
        digest=files.digest,
        policy="balanced",
        origin=Origin.APPLY,
        author="bench",
        files=files.files,
    )
    await Versions(store).put(change, expected=0)
    made = iter(lines(rows))
    started = time.perf_counter()
    while batch := list(islice(made, BATCH)):
        await store.append(batch)
    await store.close()
    return time.perf_counter() - started


def run(database: str, url: str, candidates: int, home: Path) -> Run:
    """The command as people call it."""
    files = [str(POLICIES / "routing" / f"{name}.yaml") for name in CANDIDATES[:candidates]]
    command = [sys.executable, "-m", "gateway.cli", "policy", "backtest", *files, *WEEK, "--json"]
    command += ["--requests-max", "5000000", "--chart", str(home / "chart.svg")]
    environment = {name: v for name, v in os.environ.items() if "WEIGHBRIDGE" not in name}
    environment |= {"WEIGHBRIDGE_HOME": str(home), "WEIGHBRIDGE_DATABASE_URL": url}
    printed, memory = home / "printed.json", 0
    started = time.perf_counter()
    with printed.open("wb") as out:
        process = psutil.Popen(command, env=environment, stdout=out)
        # Not from its resource usage: that begins with the memory of the process that forked it.
        while process.status() != psutil.STATUS_ZOMBIE:
            memory = max(memory, process.memory_info().rss)
            time.sleep(0.05)
    wall = time.perf_counter() - started
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"the command failed: {process.returncode}")
    period = json.loads(printed.read_bytes())["period"]
    return Run(
        database,
        candidates,
        wall,
        used.ru_utime + used.ru_stime,
        memory / 1e6,
        period["decided_again"]["same"],
        period["sample"],
    )


@contextmanager
def database(name: str, home: Path) -> Iterator[str]:
    """An empty one."""
    if name == "sqlite":
        yield f"sqlite:///{home / 'ledger.db'}"
        return
    server = Postgres.start()
    try:
        yield server.url
    finally:
        server.stop()


def section(rows: int, runs: list[Run]) -> str:
    """Of RESULTS.md."""
    table = [
        f"| {r.database} | {r.candidates} | {r.wall_s:.1f} | {r.cpu_s:.1f} |"
        f" {r.cpu_s / rows * 1e6:.0f} | {r.memory_mb:.0f} |"
        for r in runs
    ]
    again = min(r.same / r.sample for r in runs)
    what = f"{rows:,} recorded requests of a week; gate: {SECONDS_MAX:.0f} s of CPU"
    return "\n".join(
        [
            "# Policy backtest",
            "",
            f"`python -m tests.bench.backtest`: {what}.",
            "",
            "| database | candidates | wall, s | CPU, s | CPU per request, µs | memory, MB |",
            "|---|--:|--:|--:|--:|--:|",
            *table,
            "",
            "- The command as a process, from start to its JSON and its chart; the CPU is its own,",
            "  Postgres is not in it. Rows went through the real writer.",
            f"- {again:.1%} of the requests were decided again exactly as recorded.",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", choices=("sqlite", "postgres"))
    options = parser.parse_args()
    runs: list[Run] = []
    for name in (options.only,) if options.only else ("sqlite", "postgres"):
        with tempfile.TemporaryDirectory() as folder, database(name, Path(folder)) as url:
            took = asyncio.run(write(url, options.rows))
            print(f"{name}: wrote {options.rows:,} rows in {took:.1f} s", file=sys.stderr)
            for candidates in (1, len(CANDIDATES)):
                runs.append(run(name, url, candidates, Path(folder)))
                print(runs[-1], file=sys.stderr)
    print(section(options.rows, runs))
    return 1 if any(r.cpu_s >= SECONDS_MAX for r in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
