"""What must hold of the ledger after any storm: the product's own audit, and the clients' history.

Rows are as `GatewayProcess.rows` gives them, answers as `load` recorded them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.ledger.laws import Case, broken
from tests.chaos.load import Answer
from tests.gateway_process import CLI, GatewayProcess

Row = Mapping[str, Any]


def prices(*backends: str, model: str = "m") -> dict[str, Any]:
    """A price book with odd figures, so that a sum that is right is right by no accident."""
    day = (datetime.now(UTC) - timedelta(days=1)).date()
    return {
        "version": 1,
        "prices": [
            {
                "backend": backend,
                "model": model,
                "from": day,
                "input_usd_per_mtok": f"0.{137 + 11 * at}",
                "output_usd_per_mtok": f"1.{913 + 7 * at}",
                "source": "made up for a test",
                "read_on": day,
            }
            for at, backend in enumerate(backends)
        ],
    }


def check_rows(rows: Iterable[Row]) -> None:
    """I-2 and the other laws of the product's audit, over rows alone; and what is true of these
    tests besides: every price is known. `audited` looks at all the rest."""
    by_id = {row["id"]: row for row in rows}
    for row in by_id.values():
        case = Case(row=row, attempts=row["attempts"], original=by_id.get(row["shadow_of"]))
        assert [(law.name, what) for law, what in broken(case)] == [], (row["id"], row["outcome"])
        if row["outcome"] == "ok":
            assert row["priced"], row["id"]


async def audited(running: GatewayProcess) -> None:
    """`weighbridge audit` on this gateway, as an operator would: it must be clean."""
    done = await asyncio.to_thread(
        subprocess.run,
        [*CLI, "audit", "--since", "1d", "--json"],
        env=running.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == 0, [check for check in found["checks"] if check["found"]]
    assert done.returncode == 0, done.stderr
    assert found["figures"]["requests"] > 0


def missing(rows: Iterable[Row], history: Iterable[Answer]) -> list[Answer]:
    """Who was told how it ended and has no row that says so."""
    outcomes = {row["id"]: row["outcome"] for row in rows}
    return [
        answer
        for answer in history
        if answer.told and outcomes.get(answer.id, "interrupted") == "interrupted"
    ]


def duplicates(rows: Iterable[Row]) -> int:
    """Rows beyond the first of one call; each call of these tests has a session of its own."""
    sessions = Counter(row["session"] for row in rows if row["session"] is not None)
    return sum(count - 1 for count in sessions.values())


def outcomes(rows: Iterable[Row]) -> dict[str, int]:
    return dict(Counter(row["outcome"] for row in rows))
