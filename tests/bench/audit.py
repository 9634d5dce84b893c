"""What an audit costs: `python -m tests.bench.audit 100000`, over SQLite.

Rows go through the real writer. CPU is the figure to compare, the wall clock depends on who else
is there; memory is what the audit adds to the peak of this process.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from gateway.cli.audit import read
from gateway.ledger.audit import audit
from gateway.ledger.store import Store
from tests.unit.ledger.audited import put_bundle, records, write

CHUNK = 5_000  # requests generated at a time, so that the writer's peak does not hide the audit's


async def measure(count: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        store = await Store.connect(f"sqlite:///{folder}/ledger.db")
        await put_bundle(store)
        made = records(count)
        while chunk := list(islice(made, CHUNK)):
            await write(store, Path(folder) / "journal", chunk)
        peak, wall, cpu = _peak_mb(), time.perf_counter(), time.process_time()
        report = await audit(store, read=read, since_us=0)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        await store.close()
    rows = report.figures["requests"]
    return (
        f"{rows:,} requests, {report.figures['attempts']:,} attempts, "
        f"{report.count('violation')} violations: {wall:.1f} s, {cpu:.1f} s of CPU "
        f"({cpu * 1e6 / rows:.0f} us a request), {_peak_mb() - peak:.0f} MB"
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)))
