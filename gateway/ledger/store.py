"""The store: requests, attempts, keys and policy versions in SQL. What the program asks of it.

`tables` says what is stored and what is read, `writer` how rows come in, `connect` how the database
is reached and what its errors are called; the rest of the program imports from here.

INVARIANTS

- A row is written once and never changed. Writing it again is ignored, so a sender may repeat.
- A request, its attempts and what they add to the roll-ups are written in one transaction: one is
  never there without the others.
- A cost of 0 with tokens is impossible unless the rate was declared free (`rates_id` starting with
  `free:`): the database refuses the row.
- Nothing outside this package sees an SQLAlchemy or driver error: `StoreUnreachable` at start,
  `StoreUnavailable` later, `RowsRefused` for rows the database will never take.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.domain.errors import StoreUnavailable
from gateway.domain.outcome import AttemptRecord, RequestRecord
from gateway.ledger import upkeep
from gateway.ledger.connect import (
    SCHEMA,
    RowsRefused,
    SchemaMismatch,
    StoreUnreachable,
    connected,
    current,
    in_our_words,
    normalise,
    take_turn,
    transaction,
    upgrade,
    which,
)
from gateway.ledger.retention import Due
from gateway.ledger.tables import (
    NO_TOKENS,
    attempt_dimensions,
    attempt_facts,
    attempt_hours,
    attempts,
    bundles,
    corrections,
    fleet_events,
    keys,
    metadata,
    other_meter_hours,
    price_statements,
    prunings,
    rating_runs,
    recorded,
    request_dimensions,
    request_facts,
    request_hours,
    requests,
    versions,
    workers,
)
from gateway.ledger.upkeep import Agreement, as_of_now
from gateway.ledger.writer import SLICE_ROWS, AlreadyThere, Batch, Writer

log = logging.getLogger("weighbridge.store")

__all__ = [
    "SCHEMA",
    "Agreement",
    "RowsRefused",
    "SchemaMismatch",
    "Snapshot",
    "Store",
    "StoreUnreachable",
    "Total",
    "attempt_dimensions",
    "attempt_facts",
    "attempt_hours",
    "attempts",
    "bundles",
    "corrections",
    "current",
    "fleet_events",
    "keys",
    "metadata",
    "normalise",
    "now_us",
    "other_meter_hours",
    "price_statements",
    "prunings",
    "rating_runs",
    "request_dimensions",
    "request_facts",
    "request_hours",
    "requests",
    "upgrade",
    "versions",
    "which",
    "workers",
]

ENSURE_EVERY_S = 30.0  # how often partitions that could not be made are tried again
_ROUNDS_MAX = 5  # in which others may write what we are writing

_INSERT: Final[Mapping[str, Callable[[sa.Table], Any]]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}
_NOW_US: Final = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000 AS integer)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sums of one group. `unpriced` counts rows with tokens whose cost is not known."""

    name: str | None
    rows: int
    unpriced: int
    cost_nano_usd: int
    uncached_tokens: int
    cached_tokens: int
    output_tokens: int


class Snapshot:
    """One state of the database, whatever is written meanwhile: see `Store.snapshot`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def select(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """The rows of a query of this package. Raises StoreUnavailable."""
        with in_our_words():
            return await _rows(self._connection, query)


class Store:
    """A connected database of the right schema. `connect` is the only way to get one."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writer = Writer()
        self._ensure_at_s = 0.0
        self._unmade: set[int] = set()  # months whose partition could not be made: said once

    @classmethod
    async def connect(cls, url: str, *, auto_migrate: bool = False, wait_s: float = 0.0) -> Store:
        """Connect, bring the schema up where that is ours to do, and check it.

        Waits up to `wait_s` seconds for a database that is still starting.
        Raises StoreUnreachable (SchemaMismatch for the schema).
        """
        return cls(await connected(url, auto_migrate=auto_migrate, wait_s=wait_s))

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction whose failures are in our words."""
        async with transaction(self._engine) as connection:
            yield connection

    @asynccontextmanager
    async def turn(self, queue: str = "") -> AsyncIterator[AsyncConnection]:
        """A transaction that waits for those of the same queue, among all workers: to append what
        is numbered. On SQLite, where one writes at a time, all queues are one."""
        async with self._begin() as connection:
            await take_turn(connection, queue)
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """The database as it is now, for as long as the context lasts. Reads only.

        Raises StoreUnavailable.
        """
        async with AsyncExitStack() as stack:
            with in_our_words():
                connection = await stack.enter_async_context(self._engine.connect())
                await as_of_now(connection, read_only=True)
                await connection.execute(sa.select(workers.c.id).limit(1))  # from here on
            yield Snapshot(connection)

    async def select(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """The rows of a query of this package. Raises StoreUnavailable."""
        async with self._begin() as connection:
            return await _rows(connection, query)

    # --- the ledger -------------------------------------------------------------------------

    async def append(self, lines: Sequence[bytes]) -> None:
        """Write journal lines as rows; those already there are left as they are.

        Raises RowsRefused (none of them is written then) or StoreUnavailable.
        """
        batch = Batch()
        for start in range(0, len(lines), SLICE_ROWS):
            self._writer.take(batch, lines[start : start + SLICE_ROWS])
            await asyncio.sleep(0)  # requests go on
        if months := self._writer.missing(batch):
            now_s = asyncio.get_running_loop().time()
            if now_s >= self._ensure_at_s:
                await self._ensure(months)
                if self._writer.missing(batch):  # a clock that is wrong, or not now
                    self._ensure_at_s = now_s + ENSURE_EVERY_S
        for turn in range(_ROUNDS_MAX):
            try:
                async with self._begin() as connection:
                    await connection.run_sync(self._writer.write, batch, checked=turn > 0)
            except AlreadyThere:
                continue
            self._writer.committed(batch)
            return
        raise RowsRefused("an attempt is there twice")

    async def _ensure(self, months: set[int]) -> None:
        """Make partitions. Where that fails no row waits: the default partition takes them."""
        try:
            async with self._begin() as connection:
                failed = await connection.run_sync(self._writer.ensure, months)
        except (RowsRefused, StoreUnavailable) as error:
            log.info("partitions are not made now: %s", getattr(error, "detail", error))
            return
        for month, why in failed.items():
            if month not in self._unmade:
                log.warning(
                    "the partition of %d is not made; its rows go to default: %s", month, why
                )
        self._unmade |= failed.keys()

    async def request(self, request_id: str) -> RequestRecord | None:
        """One request with its attempts."""
        of_request = sa.select(*recorded(requests)).where(requests.c.id == request_id)
        async with self._begin() as connection:
            rows = await _rows(connection, of_request)
            tried = await _rows(connection, _attempts_of(request_id)) if rows else []
        if not rows:
            return None
        return RequestRecord(**rows[0], attempts=[AttemptRecord(**row) for row in tried])

    async def requests(
        self,
        *,
        since_us: int | None = None,
        until_us: int | None = None,
        limit: int = 100,
        alias: str | None = None,
        backend: str | None = None,
        key_id: str | None = None,
        outcome: str | None = None,
    ) -> list[RequestRecord]:
        """The newest first, without their attempts. `since_us` <= started < `until_us`."""
        wanted = {"alias": alias, "backend": backend, "key_id": key_id, "outcome": outcome}
        query = (
            sa.select(*recorded(requests))
            .where(*_between(requests, since_us, until_us))
            .where(*(requests.c[name] == text for name, text in wanted.items() if text is not None))
            .order_by(requests.c.started_at_us.desc(), requests.c.id.desc())
            .limit(limit)
        )
        return [RequestRecord(**row) for row in await self.select(query)]

    async def attempts(self, request_id: str) -> list[AttemptRecord]:
        """The attempts of one request in order."""
        return [AttemptRecord(**row) for row in await self.select(_attempts_of(request_id))]

    async def totals(
        self,
        by: Literal["backend", "alias", "key_id", "outcome"] | None = None,
        *,
        since_us: int | None = None,
        until_us: int | None = None,
    ) -> list[Total]:
        """Sums, the dearest first; one group if `by` is None.

        `backend` sums attempts (a request may have cost at several), the others requests.
        """
        table = attempts if by == "backend" else requests
        group = [table.c[by]] if by else []
        unpriced = sa.and_(table.c.cost_nano_usd.is_(None), sa.text(f"NOT ({NO_TOKENS})"))
        sums = [
            sa.cast(sa.func.coalesce(sa.func.sum(table.c[column]), 0), sa.BigInteger).label(column)
            for column in ("cost_nano_usd", "uncached_tokens", "cached_tokens", "output_tokens")
        ]
        query = (
            sa.select(
                (group[0] if group else sa.null()).label("name"),
                sa.func.count().label("rows"),
                sa.func.count().filter(unpriced).label("unpriced"),
                *sums,
            )
            .where(*_between(table, since_us, until_us))
            .group_by(*group)
            .order_by(sums[0].desc(), *group)
        )
        return [Total(**row) for row in await self.select(query)]

    # --- sums by hour ----------------------------------------------------------------------------

    async def compact(self) -> int:
        """Merge what batches appended to the hours: see `upkeep`."""
        if self._engine.dialect.name == "postgresql":
            await self._ensure(set())
        return await upkeep.compact(self._engine)

    async def rebuild_rollups(
        self,
        since_us: int | None = None,
        until_us: int | None = None,
        *,
        progress: upkeep.Progress | None = None,
    ) -> int:
        """Make the sums of a period's hours again from its rows; how many hours."""
        return await upkeep.rebuild(self._engine, since_us, until_us, progress)

    async def rollups_agree(
        self,
        since_us: int | None = None,
        until_us: int | None = None,
        *,
        progress: upkeep.Progress | None = None,
    ) -> Agreement:
        """Compare the sums of a period's hours with its rows, exactly. Raises StoreUnavailable."""
        return await upkeep.agree(self._engine, since_us, until_us, progress)

    async def due(self, *, now_us: int, rows_months: int | None, decisions_days: int | None) -> Due:
        """What is to go where that many complete months of rows, and days of decisions, stay."""
        return await upkeep.due(
            self._engine, now_us=now_us, rows_months=rows_months, decisions_days=decisions_days
        )

    async def prune(self, due: Due, *, now_us: int) -> None:
        """Delete what is due. Raises StoreUnavailable."""
        await upkeep.prune(self._engine, due, now_us=now_us)

    # --- the fleet -------------------------------------------------------------------------------

    async def add_fleet_events(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append; those already there are left. Raises RowsRefused, StoreUnavailable."""
        async with self._begin() as connection:
            insert = _INSERT[connection.dialect.name](fleet_events).on_conflict_do_nothing()
            await connection.execute(insert, [dict(row) for row in rows])

    # --- keys ---------------------------------------------------------------------------------

    async def key(self, key_id: str) -> dict[str, Any] | None:
        """The row of one key."""
        rows = await self.select(sa.select(keys).where(keys.c.id == key_id))
        return rows[0] if rows else None

    async def keys(self) -> list[dict[str, Any]]:
        """All keys, the newest first."""
        return await self.select(sa.select(keys).order_by(keys.c.created_at_us.desc(), keys.c.id))

    async def add_key(self, row: Mapping[str, Any], *, only_the_first: bool = False) -> bool:
        """Insert a key; with `only_the_first`, only where there is none, also between workers."""
        async with self.turn() as connection:
            if only_the_first and (await connection.execute(sa.select(keys.c.id).limit(1))).first():
                return False
            await connection.execute(sa.insert(keys).values(**row))
            return True

    async def change_key(self, key_id: str, **values: object) -> bool:
        """Change a key's end or its digest; False where there is no such key."""
        async with self._begin() as connection:
            result = await connection.execute(
                sa.update(keys).where(keys.c.id == key_id).values(**values)
            )
            return bool(result.rowcount)

    # --- policy versions ------------------------------------------------------------------------

    async def newest_version(self) -> dict[str, Any] | None:
        """The version in force, None where there never was one. One look at an index."""
        rows = await self.versions(limit=1)
        return rows[0] if rows else None

    async def versions(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """The newest first."""
        return await self.select(
            sa.select(versions).order_by(versions.c.number.desc()).limit(limit)
        )

    async def version(self, number: int) -> dict[str, Any] | None:
        """One version."""
        rows = await self.select(sa.select(versions).where(versions.c.number == number))
        return rows[0] if rows else None

    async def version_of(self, digest: str, *, after: int) -> dict[str, Any] | None:
        """The newest version with this bundle among those numbered above `after`."""
        query = sa.select(versions).where(versions.c.digest == digest, versions.c.number > after)
        rows = await self.select(query.order_by(versions.c.number.desc()).limit(1))
        return rows[0] if rows else None

    async def bundle(self, digest: str) -> dict[str, str] | None:
        """The texts of a bundle by their paths."""
        rows = await self.select(sa.select(bundles.c.files).where(bundles.c.digest == digest))
        return dict(sorted(rows[0]["files"].items())) if rows else None

    async def add_version(
        self,
        row: Mapping[str, Any],
        files: Mapping[str, str] | None = None,
        also: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> dict[str, Any] | None:
        """Insert a version, with its bundle's texts where it may be new, at the database's time.

        What `also` writes is there with the version or not at all. Returns the row as written, None
        where there is a version of this number.
        """
        try:
            async with self.turn() as connection:
                dialect = connection.dialect.name
                if files is not None:
                    insert = _INSERT[dialect](bundles).on_conflict_do_nothing()
                    values = {"digest": row["digest"], "policy": row["policy"], "files": files}
                    await connection.execute(insert.values(**values))
                made = await connection.execute(
                    sa.insert(versions)
                    .values(**row, applied_at_us=now_us(connection))
                    .returning(versions)
                )
                version = dict(made.mappings().one())
                if also is not None:
                    await also(connection)
                return version
        except RowsRefused:
            if await self.version(row["number"]) is None:
                raise
            return None


def now_us(connection: AsyncConnection) -> sa.TextClause:
    """The database's clock, in microseconds since the Unix epoch, as an expression."""
    return sa.text(_NOW_US[connection.dialect.name])


def _attempts_of(request_id: str) -> sa.Select[Any]:
    query = sa.select(*recorded(attempts)).where(attempts.c.request_id == request_id)
    return query.order_by(attempts.c.number)


async def _rows(connection: AsyncConnection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    found = await connection.execute(query)
    return [{str(name): value for name, value in row.items()} for row in found.mappings()]


def _between(table: sa.Table, since_us: int | None, until_us: int | None) -> list[Any]:
    started = table.c.started_at_us
    conditions: list[Any] = []
    if since_us is not None:
        conditions.append(started >= since_us)
    if until_us is not None:
        conditions.append(started < until_us)
    return conditions
