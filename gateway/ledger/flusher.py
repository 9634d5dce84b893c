"""The flusher: carries the journal's rows to the store, again and again until they are there.

One per worker. Owns the pace (batches, patience, backing off, when sums are merged) and what to do
with a row the database will never take; knows neither files nor SQL.

INVARIANTS: a row leaves the journal only after the store has it, or, if the store refuses it for
good, after it was put into `refused.jsonl` beside the journal and reported as an error: one bad
row must not hold up the others, and no row may vanish. A store that is down costs waiting only.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import orjson

from gateway.domain.errors import StoreUnavailable
from gateway.domain.outcome import RequestRecord
from gateway.ledger.journal import Journal, Orphan, ended
from gateway.ledger.store import RowsRefused
from gateway.runtime import Clock, SystemClock, TaskOwner

log = logging.getLogger("weighbridge.flusher")

ROWS_MAX = 2000
INTERVAL_S = 0.5  # a batch costs 5 ms whatever is in it: half as often is half of that
SYNC_EVERY_S = 0.2  # what power loss can take
ADOPT_EVERY_S = 10.0
COMPACT_EVERY_S = 60.0
BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 5.0


class Ledger(Protocol):
    """`store.Store`, as far as it is needed here."""

    async def append(self, lines: list[bytes]) -> None: ...

    async def compact(self) -> int: ...


def _nobody(_: object) -> None:
    """Until somebody wants to know."""


class Flusher:
    """Sends what one journal holds, and what dead workers left beside it.

    `on_cut_off` hears the id of each request that a dead worker had under way, `on_ended` the
    record of each that had ended and that its journal still has: perhaps it was never settled.
    """

    def __init__(
        self,
        journal: Journal,
        store: Ledger,
        *,
        clock: Clock | None = None,
        interval_s: float = INTERVAL_S,
        compact_every_s: float = COMPACT_EVERY_S,
        sync: bool = True,
    ) -> None:
        self._journal = journal
        self._store = store
        self._clock = clock or SystemClock()
        self._interval_s = interval_s
        self._compact_every_s = compact_every_s
        self._sync = sync
        self._tasks = TaskOwner("flusher")
        self._turn = asyncio.Lock()  # between the loop and `drain`
        self._orphans: list[tuple[Orphan, Iterator[list[bytes]]]] = []
        self._left: list[bytes] | None = None  # of an orphan, read but not sent
        self._aside: set[bytes] = set()  # of the batch under way, for when it is sent again
        self._backoff_s = 0.0
        self.sent_rows = 0
        self.refused_rows = 0
        self.interrupted_rows = 0
        self.oldest_unsent_s = 0.0
        self.failing: str | None = None
        self.on_cut_off: Callable[[str], None] = _nobody
        self.on_ended: Callable[[RequestRecord], None] = _nobody

    @property
    def unsent_rows(self) -> int:
        """How far the ledger is behind this worker."""
        return self._journal.unsent_rows

    def start(self) -> None:
        """Run until `drain`."""
        self._tasks.start(self._send_forever(), "send")
        if self._sync:
            self._tasks.start(self._sync_forever(), "sync")
        self._tasks.start(self._compact_forever(), "compact")

    async def drain(self, timeout_s: float) -> bool:
        """Send what is there, within `timeout_s`, and stop. True if nothing is left.

        What is left stays in the journal for the next start.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if await self._flush():
                        break
                    await asyncio.sleep(self._backoff_s)
        except TimeoutError:
            log.warning("%d rows stay in the journal for the next start", self.unsent_rows)
        await self._tasks.drain(0.0)
        for orphan, _ in self._orphans:
            orphan.release()
        self._orphans.clear()
        return self.unsent_rows == 0

    # --- the loops ------------------------------------------------------------------------

    async def _send_forever(self) -> None:
        adopt_at = self._clock.monotonic()
        while True:
            due = self._clock.monotonic() >= adopt_at
            if due:
                adopt_at = self._clock.monotonic() + ADOPT_EVERY_S
            await self._flush(adopt=due)
            await asyncio.sleep(max(self._interval_s, self._backoff_s))

    async def _sync_forever(self) -> None:
        """What power loss can take is bounded by the interval, not by each request's patience."""
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            job = self._journal.sync_job()
            if job is not None:
                await asyncio.to_thread(job)

    async def _compact_forever(self) -> None:
        """What batches appended to the sums by hour is merged; one worker of all is at it."""
        while True:
            await asyncio.sleep(self._compact_every_s)
            try:
                await self._store.compact()
            except StoreUnavailable as error:
                log.debug("the sums wait: %s", error.detail)
            except Exception:  # they are right as they are, and this loop must live
                log.exception("the sums by hour could not be merged")

    # --- sending --------------------------------------------------------------------------------

    async def _flush(self, *, adopt: bool = False) -> bool:
        """Send all there is; False if that did not work now."""
        async with self._turn:
            try:
                if adopt:
                    self._adopt()
                await self._send_orphans()
                while (batch := self._journal.read(ROWS_MAX)) is not None:
                    self._note_age(batch.lines[0])
                    await self._send(batch.lines)
                    self._journal.sent(batch)
                    self._aside.clear()
            except StoreUnavailable as error:
                self._failed(error.detail)
                return False
            except Exception as error:  # the rows are safe in the journal, and this loop must live
                log.exception("the flusher stumbled")
                self._failed(repr(error))
                return False
            if self.failing is not None:
                log.warning("the database takes rows again")
            self._backoff_s = 0.0
            self.failing = None
            self.oldest_unsent_s = 0.0
            return True

    def _failed(self, why: str) -> None:
        if self.failing is None:
            log.warning("rows wait in the journal: %s", why)
        self.failing = why
        self._backoff_s = min(max(BACKOFF_S_MIN, self._backoff_s * 2), BACKOFF_S_MAX)

    async def _send(self, lines: list[bytes]) -> None:
        """One batch; where the store refuses it, halves, until the bad row stands alone."""
        try:
            await self._store.append(lines)
        except RowsRefused as error:
            if len(lines) > 1:
                middle = len(lines) // 2
                await self._send(lines[:middle])
                await self._send(lines[middle:])
                return
            self._set_aside(lines[0], error)
        else:
            self.sent_rows += len(lines)

    def _set_aside(self, line: bytes, error: RowsRefused) -> None:
        if line in self._aside:  # the store went away before the rest of its batch was sent
            return
        path = self._journal.directory / "refused.jsonl"
        _append_line(path, line)
        self._aside.add(line)
        self.refused_rows += 1
        log.error("the database refuses a row for good, it is in %s: %s", path, error)

    def _note_age(self, line: bytes) -> None:
        try:
            row = orjson.loads(line)
            ended_us = row["started_at_us"] + (row["duration_us"] or 0)
            self.oldest_unsent_s = max(0.0, self._clock.wall() - ended_us / 1e6)
        except (ValueError, TypeError, KeyError, OverflowError):
            pass  # damaged: the store says so, and it is set aside

    # --- what dead workers left -------------------------------------------------------------------

    def _adopt(self) -> None:
        for orphan in self._journal.adopt():
            self._orphans.append((orphan, orphan.batches(ROWS_MAX)))

    async def _send_orphans(self) -> None:
        while self._orphans:
            orphan, batches = self._orphans[0]
            while True:
                if self._left is None:  # parsing takes a while: not on the loop
                    self._left = await asyncio.to_thread(next, batches, None)
                if self._left is None:
                    break
                await self._send(self._left)
                for record in await asyncio.to_thread(ended, self._left):
                    self.on_ended(record)
                self._left = None
                self._aside.clear()
            del self._orphans[0]
            self._journal.bury(orphan)
            self.interrupted_rows += len(orphan.cut_off)
            for request_id in orphan.cut_off:
                self.on_cut_off(request_id)
            if orphan.size:
                log.warning(
                    "journal of dead worker %s: %d rows, %d interrupted requests, %d bad lines",
                    orphan.owner,
                    orphan.finals,
                    len(orphan.cut_off),
                    orphan.damaged,
                )


def _append_line(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        written = os.write(fd, line + b"\n")
        if written != len(line) + 1:  # the disk took a part: take it back
            os.ftruncate(fd, size)
            raise OSError(f"{path}: {written} of {len(line) + 1} bytes written")
        os.fdatasync(fd)
    finally:
        os.close(fd)
