"""What happened in the fleet and is worth telling people: who says it, and who hears.

An event is seldom (a rank that straggles, an engine that died), so each goes three ways at once:
a line in the log, a count among the metrics, a row in the database. Owns the event and the queue
before the database; what is an event is decided by who tells it, how rows are stored by who writes.

INVARIANTS
- `tell` never waits and never fails: who watches the fleet does not depend on who listens.
- Everything is bounded: what is remembered, what waits for a database that is away, and an event
  itself. What finds no room is dropped, the oldest first, and counted.
- No content of requests is in an event, and nothing of a caller.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.domain.errors import StoreUnavailable

log = logging.getLogger("weighbridge")

RECENT_MAX = 200
WAITING_MAX = 1_000
FIGURES_MAX = 40
TEXT_MAX = 500
PAUSE_S_FIRST, PAUSE_S_MAX = 1.0, 60.0

Figure = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """Something happened to `subject`, a backend or `backend#replica`.

    `kind` is a word of the program's own (`straggler`, `crash`), never of a request: it becomes a
    label. `at_us` is when it began, microseconds since the epoch, UTC. `figures` have their unit
    last in their name. `grave`: somebody should look, so it is a warning in the log.
    """

    kind: str
    subject: str
    at_us: int
    figures: Mapping[str, Figure] = field(default_factory=dict)
    grave: bool = True

    def __post_init__(self) -> None:
        figures = list(self.figures.items())[:FIGURES_MAX]
        object.__setattr__(self, "figures", {name: _storable(value) for name, value in figures})

    @property
    def backend(self) -> str:
        return self.subject.partition("#")[0]

    def __str__(self) -> str:
        """For the log: `straggler vllm#a: late_ms=1.04 onset=...`."""
        said = " ".join(f"{name}={_shown(value)}" for name, value in self.figures.items())
        return f"{self.kind} {self.subject}" + (f": {said}" if said else "")


def _storable(value: Figure) -> Figure:
    """What every database takes: no infinities, no NUL, no novels."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.replace("\0", "")[:TEXT_MAX]
    return value


def _shown(value: Figure) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Events:
    """Where events are told. `told` are called in the order they were added."""

    def __init__(self, *told: Callable[[FleetEvent], None]) -> None:
        self._told = list(told)
        self.recent: deque[FleetEvent] = deque(maxlen=RECENT_MAX)

    def also(self, hear: Callable[[FleetEvent], None]) -> None:
        """From now on `hear` is told too."""
        self._told.append(hear)

    def tell(self, event: FleetEvent) -> None:
        """Log it, remember it, pass it on. Raises nothing, waits for nothing."""
        log.log(logging.WARNING if event.grave else logging.INFO, "fleet: %s", event)
        self.recent.append(event)
        for hear in self._told:
            try:
                hear(event)
            except Exception:
                log.exception("fleet: an event was not taken by %r", hear)


class Kept:
    """Events on their way into the database.

    `write` appends rows and may be given one twice, by its `id`; it raises StoreUnavailable where
    that may pass. `source` is this worker, among those of all nodes: `host/0`.
    """

    def __init__(
        self, write: Callable[[Sequence[Mapping[str, Any]]], Awaitable[None]], *, source: str
    ) -> None:
        self._write = write
        self._source = source
        self._waiting: deque[dict[str, Any]] = deque(maxlen=WAITING_MAX)
        self._news = asyncio.Event()
        self._number = 0
        self.dropped = 0

    def heard(self, event: FleetEvent) -> None:
        """Queue it."""
        if len(self._waiting) == WAITING_MAX:
            self.dropped += 1
        self._number += 1
        row: dict[str, Any] = {
            "at_us": event.at_us,
            "kind": event.kind,
            "subject": event.subject,
            "source": self._source,
            "figures": dict(event.figures),
        }
        # The same at every try, another for every event.
        named = f"{self._source} {self._number} {event.at_us} {event.kind} {event.subject}"
        row["id"] = "fev_" + hashlib.sha256(named.encode()).hexdigest()[:24]
        self._waiting.append(row)
        self._news.set()

    async def run(self) -> None:
        """Write what comes, for ever; with a database that is away, when it is back."""
        pause_s = PAUSE_S_FIRST
        while True:
            await self._news.wait()
            if await self.flush():
                pause_s = PAUSE_S_FIRST
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def flush(self) -> bool:
        """Write what waits; whether that went well. Also called once at the end."""
        self._news.clear()
        rows = list(self._waiting)
        if not rows:
            return True
        try:
            await self._write(rows)
        except StoreUnavailable as error:
            log.info("fleet: %d events wait for the database: %s", len(rows), error)
            self._news.set()
            return False
        except Exception:
            log.exception("fleet: %d events are not stored", len(rows))
        written = {row["id"] for row in rows}
        while self._waiting and self._waiting[0]["id"] in written:
            self._waiting.popleft()
        return True
