"""What a process without Redis has counted, in its home: over a restart, and for whoever looks.

One file per worker, written whole about once a second where something changed. What was counted
since is lost with a killed worker; what it held is counted as used (`local`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orjson

from gateway.domain.limit import Period, Unit
from gateway.limits.local import LocalGate, Row

log = logging.getLogger("weighbridge")

FOLDER = "limits"  # below the home


class Kept:
    """The file of one worker's gate, which goes on from it; to be saved now and then."""

    def __init__(self, gate: LocalGate, home: Path, worker: str) -> None:
        self._gate = gate
        self._path = home / FOLDER / f"{worker}.json"
        self._saved = gate.changes
        gate.restore(_rows(self._path))

    def save(self) -> None:
        """Write what changed. A disk that fails is told and tried again."""
        changes = self._gate.changes
        if changes == self._saved:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(".draft")
            draft.write_bytes(orjson.dumps([list(row) for row in self._gate.rows()]))
            draft.replace(self._path)
        except OSError as error:
            log.warning("what limits have counted is not kept: %s", error)
            return
        self._saved = changes


def read(home: Path) -> list[Row]:
    """The counters of all workers of a home as they left them; one holder may be in several."""
    return [row for path in sorted((home / FOLDER).glob("*.json")) for row in _rows(path)]


def _rows(path: Path) -> list[Row]:
    """Nothing of a file that makes no sense."""
    try:
        found: Any = orjson.loads(path.read_bytes())
        return [Row(row[0], Unit(row[1]), Period(row[2]), *row[3:]) for row in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, IndexError) as error:
        log.warning("%s cannot be read, its limits start anew: %s", path, error)
        return []
