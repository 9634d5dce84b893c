"""What must hold of the ledger after any storm, told from the rows and the clients' history alone.

Pure: rows as `GatewayProcess.rows` gives them, answers as `load` recorded them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.chaos.load import Answer

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
    """I-2 and what else is true of each row by itself."""
    for row in rows:
        where = (row["id"], row["outcome"])
        attempts = row["attempts"]
        assert [a["number"] for a in attempts] == list(range(1, len(attempts) + 1)), where
        assert row["attempt_count"] == len(attempts), where
        assert sum(a["cost_nano_usd"] or 0 for a in attempts) == (row["cost_nano_usd"] or 0), where
        assert row["priced"] == (row["cost_nano_usd"] is not None), where
        if row["outcome"] == "ok":
            assert row["usage_source"] in {"reported", "estimated"}, where
            assert row["priced"], where
            assert attempts[-1]["outcome"] == "ok", where
        if row["outcome"] in {"refused", "no_route"}:
            assert not attempts, where
        if row["outcome"] == "interrupted":
            assert attempts, where
            assert row["http_status"] == 0, where


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
