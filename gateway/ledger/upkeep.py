"""Upkeep of the database while it is in use: sums merged, made again and compared, rows pruned.

Each works through hours or months in transactions of their own, so nothing is locked for long and a
stop in between loses nothing. What is done in each stands in `rollups` and `retention`.
All raise StoreUnavailable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.domain.errors import StoreUnavailable
from gateway.ledger import retention, rollups
from gateway.ledger.connect import RowsRefused, sqlstate, transaction
from gateway.ledger.retention import Due
from gateway.ledger.writer import replace_hour

log = logging.getLogger("weighbridge.upkeep")

Progress = Callable[[int, int], None]  # hears how many of how many are done


@dataclass(slots=True)
class Agreement:
    """Whether sums and rows say the same: hours looked at, and what was found."""

    hours: int = 0
    differences: list[rollups.Disagreement] = field(default_factory=list)


async def compact(engine: AsyncEngine) -> int:
    """Merge what batches appended to the hours.

    An hour that cannot be merged keeps no other from it; its parts are right as they are.
    How many hours were merged; one worker at a time, this one stops where it meets another.
    """
    done = 0
    async with transaction(engine) as connection:
        due = await connection.run_sync(rollups.unmerged)
    for hour_us in due:
        try:
            async with transaction(engine) as connection:
                done += await connection.run_sync(rollups.merge, hour_us)
        except (RowsRefused, StoreUnavailable) as error:  # a sum beyond 64 bits, or no time
            if sqlstate(error) == rollups.LOCKED:
                break
            why = getattr(error, "detail", error)
            log.warning("the sums of the hour %d cannot be merged: %s", hour_us, why)
            async with transaction(engine) as connection:  # is it the hour, or the database?
                await connection.execute(sa.select(1))
    return done


async def rebuild(
    engine: AsyncEngine, since_us: int | None, until_us: int | None, progress: Progress | None
) -> int:
    """Make the sums of a period's hours again from its rows; how many hours.

    Hours whose rows were pruned keep their sums. Rows may be written meanwhile.
    """
    async with transaction(engine) as connection:
        due = await connection.run_sync(rollups.hours, since_us, until_us)
    for done, hour_us in enumerate(due, 1):
        async with transaction(engine) as connection:
            await as_of_now(connection)
            await connection.run_sync(replace_hour, hour_us)
        if progress is not None:
            progress(done, len(due))
    return len(due)


async def agree(
    engine: AsyncEngine, since_us: int | None, until_us: int | None, progress: Progress | None
) -> Agreement:
    """Compare the sums of a period's hours with its rows, exactly."""
    found = Agreement()
    async with transaction(engine) as connection:
        due = await connection.run_sync(rollups.hours, since_us, until_us)
    for done, hour_us in enumerate(due, 1):
        async with transaction(engine) as connection:
            await as_of_now(connection)
            found.differences += await connection.run_sync(rollups.compare, hour_us)
        found.hours += 1
        if progress is not None:
            progress(done, len(due))
    return found


async def due(
    engine: AsyncEngine, *, now_us: int, rows_months: int | None, decisions_days: int | None
) -> Due:
    """What the policy says is to go now."""
    async with transaction(engine) as connection:
        return await connection.run_sync(
            lambda sync: retention.due(
                sync, now_us=now_us, rows_months=rows_months, decisions_days=decisions_days
            )
        )


async def prune(
    engine: AsyncEngine, wanted: Due, *, now_us: int, page_rows: int = retention.PAGE_ROWS
) -> None:
    """Delete that. Stopped in between, it goes on the next time."""
    if wanted.months:
        async with transaction(engine) as connection:
            await connection.run_sync(retention.note_rows, wanted, now_us=now_us)
    for month in sorted(wanted.months):
        more = True
        while more:
            async with transaction(engine) as connection:
                more = await connection.run_sync(retention.drop_month, month, page_rows)
    before_us = wanted.decisions_before_us
    if before_us is None:
        return
    async with transaction(engine) as connection:
        at_us: int | None = await connection.run_sync(retention.emptied_us)
    async with transaction(engine) as connection:
        await connection.run_sync(retention.announce_decisions, wanted, now_us=now_us)
    while at_us is not None:
        async with transaction(engine) as connection:
            at_us = await connection.run_sync(
                retention.empty_decisions, at_us, before_us, page_rows
            )
    async with transaction(engine) as connection:
        await connection.run_sync(retention.note_decisions, wanted, now_us=now_us)


async def as_of_now(connection: AsyncConnection, *, read_only: bool = False) -> None:
    """From the next statement on, this transaction sees one state. SQLite does so anyway."""
    if connection.dialect.name == "postgresql":
        access = ", READ ONLY" if read_only else ""
        await connection.execute(
            sa.text(f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ{access}")
        )
        if read_only:  # reports group by many sums: 4 MB of them would be sorted on disk instead
            await connection.execute(sa.text("SET LOCAL work_mem = '64MB'"))
