"""The store: requests, attempts and keys in SQL. The one place that speaks it.

Postgres (asyncpg) and SQLite (aiosqlite) run the same tables and the same statements; where they
must differ (how a JSON array becomes rows, how starts take turns) the difference is one entry
here and is generated from the same columns.

INVARIANTS

- A row is written once and never changed. Writing it again is ignored, so a sender may repeat.
- A request and its attempts are written in one transaction: one is never there without the other.
- A cost of 0 with tokens is impossible unless the rate was declared free (`rates_id` starting with
  `free:`): the database refuses the row.
- Rows come as the journal's lines; no object of ours is built from one on its way in.
- Nothing outside this module sees an SQLAlchemy or driver error: `StoreUnreachable` at start,
  `StoreUnavailable` later, `RowsRefused` for rows the database will never take.

WHICH SCHEMA: an empty database gets the present one at start. SQLite is ours alone and is always
upgraded at start. A Postgres with an older schema is not touched unless `auto_migrate`: an
operator runs `weighbridge db upgrade`. A newer schema than ours is refused. Starts take turns.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Literal

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_exponential

from gateway.domain.errors import StoreUnavailable
from gateway.domain.outcome import AttemptRecord, RequestRecord
from gateway.settings import bundled

SCHEMA = "0003"  # the migration this code was written for

_ADVISORY_LOCK = 0x77656967  # "weig": any number, the same in every worker
_CONNECT_S_MAX = 5.0
_STATEMENT_S_MAX = 30

# --- tables ---------------------------------------------------------------------------------

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
_Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_NO_TOKENS = (
    "coalesce(uncached_tokens, 0) + coalesce(cached_tokens, 0) + coalesce(output_tokens, 0) = 0"
)

# The columns are the fields of RequestRecord, by the same names; a test holds them together.
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("started_at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("alias", sa.Text),
    sa.Column("key_id", sa.Text),
    sa.Column("tags", _Json, nullable=False),
    sa.Column("privacy_class", sa.Text),
    sa.Column("session", sa.Text),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("backend", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("policy", sa.Text),
    sa.Column("policy_digest", sa.Text),
    sa.Column("route", sa.Text),
    sa.Column("shadow_of", sa.Text),
    sa.Column("decision", _Json),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("http_status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("uncached_tokens", sa.BigInteger),
    sa.Column("cached_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.Column("other_meters", _Json),
    sa.Column("usage_source", sa.Text, nullable=False),
    sa.Column("cost_nano_usd", sa.BigInteger),
    sa.Column("priced", sa.Boolean, nullable=False),
    sa.Column("ttft_us", sa.BigInteger),
    sa.Column("tpot_us", sa.Double),
    sa.Column("tps", sa.Double),
    sa.Column("duration_us", sa.BigInteger),
    sa.Column("overhead_us", sa.BigInteger),
    sa.Column("attempt_count", sa.Integer, nullable=False),
    sa.Column("worker", sa.Text),
    # Not of the record but drawn from its attempts: one of them ran at rates declared free.
    sa.Column("declared_free", sa.Boolean, nullable=False),
    sa.CheckConstraint("NOT priced OR cost_nano_usd IS NOT NULL", name="priced_has_cost"),
    sa.CheckConstraint("cost_nano_usd >= 0", name="cost_not_negative"),
    sa.CheckConstraint(
        f"declared_free OR cost_nano_usd IS NULL OR cost_nano_usd > 0 OR {_NO_TOKENS}",
        name="never_cost_zero",
    ),
    sa.Index(None, "key_id", "started_at_us"),
)

# No foreign key: one statement writes both tables, and the check would cost a look-up per row.
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("started_at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("why", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("http_status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("uncached_tokens", sa.BigInteger),
    sa.Column("cached_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.Column("other_meters", _Json),
    sa.Column("service_tier", sa.Text),
    sa.Column("usage_source", sa.Text, nullable=False),
    sa.Column("cost_nano_usd", sa.BigInteger),
    sa.Column("rates_id", sa.Text),
    sa.Column("ttft_us", sa.BigInteger),
    sa.Column("duration_us", sa.BigInteger),
    sa.CheckConstraint("cost_nano_usd >= 0", name="cost_not_negative"),
    sa.CheckConstraint(
        f"cost_nano_usd IS NULL OR cost_nano_usd > 0 OR {_NO_TOKENS}"
        " OR (rates_id IS NOT NULL AND substr(rates_id, 1, 5) = 'free:')",
        name="never_cost_zero",
    ),
)

# No secret: `digest` is an HMAC under a pepper that is not in this database (`pepper` names it).
keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("pepper", sa.Text, nullable=False),
    sa.Column("aliases", _Json),
    sa.Column("endpoints", _Json),
    sa.Column("privacy_floor", sa.Text),
    sa.Column("privacy_ceiling", sa.Text),
    sa.Column("tags", _Json, nullable=False),
    sa.Column("admin", sa.Boolean, nullable=False),
    sa.Column("debug", sa.Boolean, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Column("expires_at_us", sa.BigInteger),
    sa.Column("revoked_at_us", sa.BigInteger),
    sa.Column("replaced_by", sa.Text),
)

# Every set of policy files that was ever in force: the texts as they were, keyed by their digest.
bundles = sa.Table(
    "policy_bundles",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("files", _Json, nullable=False),  # path below the policy folder -> text
)

# Which was in force from when. Appended only: the highest number is in force. The number is the
# compare-and-swap: whoever inserts the one after what it has seen wins.
versions = sa.Table(
    "policy_versions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),  # start | file | apply | rollback
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("applied_at_us", sa.BigInteger, nullable=False),
)

# What was known of prices, and since when: valid time and recorded time. Appended only. What is
# known at a time is the last statement of each target and first instant made up to then; one
# without `terms` takes back what was stated before.
price_statements = sa.Table(
    "price_statements",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("recorded_at_us", sa.BigInteger, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("valid_from_us", sa.BigInteger, nullable=False),
    sa.Column("valid_until_us", sa.BigInteger),
    sa.Column("rates_id", sa.Text, nullable=False),
    sa.Column("terms", _Json),  # the row of the price file as read
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),  # of the bundle that brought it
)

# Rating again is a run of its own; rows of the ledger are never changed.
rating_runs = sa.Table(
    "rating_runs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at_us", sa.BigInteger, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Column("filters", _Json, nullable=False),
    sa.Column("book_at_us", sa.BigInteger, nullable=False),  # prices as recorded up to then
    sa.Column("attempts_rated", sa.BigInteger, nullable=False),
    sa.Column("attempts_corrected", sa.BigInteger, nullable=False),
    sa.Column("delta_nano_usd", sa.BigInteger, nullable=False),
)

# What a run found to be otherwise. `delta` is against what stood before this run: the cost of an
# attempt as corrected is its booked cost (0 where none) plus all its deltas.
corrections = sa.Table(
    "corrections",
    metadata,
    sa.Column("run", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request_started_at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("rates_id", sa.Text, nullable=False),
    sa.Column("cost_nano_usd", sa.BigInteger, nullable=False),
    sa.Column("delta_nano_usd", sa.BigInteger, nullable=False),
)


# --- rows out of one JSON array ----------------------------------------------------------------


def _copied(table: sa.Table) -> list[sa.Column[Any]]:
    """The columns that are fields of a line; the others are worked out below."""
    return [
        column for column in table.columns if column.name not in {"request_id", "declared_free"}
    ]


def _names(columns: Sequence[sa.Column[Any]], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{column.name}"' for column in columns)


# Both are made of our own column names and nothing else (S608).


def _postgres_statements() -> tuple[str, ...]:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

    def typed(table: sa.Table) -> str:
        return ", ".join(f'"{c.name}" {c.type.compile(dialect)}' for c in _copied(table))

    request, attempt = _copied(requests), _copied(attempts)
    return (
        f"""
        WITH "new" AS (
            INSERT INTO requests ({_names(request)}, declared_free)
            SELECT {_names(request, "r.")},
                   jsonb_path_exists(r.attempts, '$[*].rates_id ? (@ starts with "free:")')
            FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({typed(requests)}, attempts jsonb)
            ON CONFLICT (id) DO NOTHING
        )
        INSERT INTO attempts (request_id, {_names(attempt)})
        SELECT r.id, {_names(attempt, "a.")}
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, attempts jsonb),
             jsonb_to_recordset(r.attempts) AS a({typed(attempts)})
        ON CONFLICT (request_id, number) DO NOTHING
        """,  # noqa: S608
    )


def _sqlite_statement(table: sa.Table, extra: str, key: str) -> str:
    columns = _copied(table)
    return f"""
        INSERT INTO {table.name} ({_names(columns)}, {extra})
        VALUES ({", ".join("?" * (len(columns) + 1))}) ON CONFLICT ({key}) DO NOTHING
        """  # noqa: S608


async def _append_postgres(connection: AsyncConnection, lines: Sequence[bytes]) -> None:
    """The database unpacks the lines: 2-7 microseconds of ours per row."""
    rows = (b"[" + b",".join(lines) + b"]").decode()
    for statement in _POSTGRES:
        await connection.execute(statement, {"rows": rows})


async def _append_sqlite(connection: AsyncConnection, lines: Sequence[bytes]) -> None:
    """SQLite runs in our process, and its `json_extract` costs 70 microseconds a row; this 35."""
    rows: list[tuple[Any, ...]] = []
    of_attempts: list[tuple[Any, ...]] = []
    for line in orjson.loads(b"[" + b",".join(lines) + b"]"):
        tried = line["attempts"]
        free = any((attempt.get("rates_id") or "").startswith("free:") for attempt in tried)
        rows.append((*_values(_REQUEST_VALUES, line, _JSON_COLUMNS), free))
        of_attempts.extend((*_values(_ATTEMPT_VALUES, a, _ATTEMPT_JSON), line["id"]) for a in tried)
    await connection.exec_driver_sql(_SQLITE_REQUESTS, rows)
    if of_attempts:
        await connection.exec_driver_sql(_SQLITE_ATTEMPTS, of_attempts)


def _values(
    take: Callable[[Mapping[str, Any]], tuple[Any, ...]],
    line: dict[str, Any],
    as_json: Sequence[str],
) -> tuple[Any, ...]:
    for name in as_json:
        if line.get(name) is not None:
            line[name] = orjson.dumps(line[name]).decode()
    try:
        return take(line)
    except KeyError:  # written by a version before the column
        return take(defaultdict(lambda: None, line))


_POSTGRES: Final = tuple(sa.text(s) for s in _postgres_statements())
_SQLITE_REQUESTS: Final = _sqlite_statement(requests, "declared_free", "id")
_SQLITE_ATTEMPTS: Final = _sqlite_statement(attempts, "request_id", "request_id, number")
_REQUEST_VALUES: Final = itemgetter(*(c.name for c in _copied(requests)))
_ATTEMPT_VALUES: Final = itemgetter(*(c.name for c in _copied(attempts)))
_JSON_COLUMNS: Final = tuple(c.name for c in _copied(requests) if isinstance(c.type, sa.JSON))
_ATTEMPT_JSON: Final = tuple(c.name for c in _copied(attempts) if isinstance(c.type, sa.JSON))
_APPEND: Final = {"postgresql": _append_postgres, "sqlite": _append_sqlite}
_INSERT: Final[Mapping[str, Callable[[sa.Table], Any]]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}
_NOW_US: Final = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000 AS integer)",
}

# --- errors -------------------------------------------------------------------------------------


class StoreUnreachable(Exception):
    """The database cannot be used at start. Says which one and what to do; never the password."""

    def __init__(self, which: str, why: str, how_to_fix: str) -> None:
        super().__init__(f"{which}: {why}. {how_to_fix}")
        self.which = which
        self.why = why
        self.how_to_fix = how_to_fix


class SchemaMismatch(StoreUnreachable):
    """The database answers, but its schema is not the one this program was written for."""


class RowsRefused(Exception):
    """The database will never take these rows: a constraint, or a value out of range."""


# SQLSTATE classes: 22 a value, 23 a constraint. Everything else may pass and is tried again.
_HOPELESS = ("22", "23")

# What Postgres says when it answers but does not let us in.
_REFUSALS = {
    "28P01": "The password is wrong: check WEIGHBRIDGE_DATABASE_URL.",
    "28000": "This user may not connect: check WEIGHBRIDGE_DATABASE_URL and pg_hba.conf.",
    "3D000": "The database does not exist: create it (createdb NAME).",
    "42501": "The user may not create tables: grant it the database's schema.",
}


def _sqlstate(error: BaseException) -> str:
    """The SQLSTATE of a driver's error, wrapped or not, "" where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        state = getattr(seen, "sqlstate", None) or getattr(seen, "pgcode", None)
        if state:
            return str(state)
        seen = getattr(seen, "orig", None) or seen.__cause__
    return ""


# --- the store ------------------------------------------------------------------------------------


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


class Store:
    """A connected database of the right schema. `connect` is the only way to get one."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._append = _APPEND[engine.dialect.name]

    @classmethod
    async def connect(cls, url: str, *, auto_migrate: bool = False, wait_s: float = 0.0) -> Store:
        """Connect, bring the schema up where that is ours to do, and check it.

        Waits up to `wait_s` seconds for a database that is still starting.
        Raises StoreUnreachable (SchemaMismatch for the schema).
        """
        engine = _engine(url)
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_delay(wait_s),
                wait=wait_exponential(multiplier=0.2, max=2.0),
                retry=retry_if_exception_type(_NotYet),
                reraise=True,
            ):
                with attempt:
                    await _prepare(engine, auto_migrate=auto_migrate)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction whose failures are in our words."""
        try:
            async with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            state = _sqlstate(error)
            hopeless = isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)
            if state.startswith(_HOPELESS) or (not state and hopeless):
                raise RowsRefused(str(error.orig)) from error
            raise _unavailable(error.orig or error) from error
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise _unavailable(error) from error

    async def select(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """The rows of a query of this package. Raises StoreUnavailable."""
        async with self._begin() as connection:
            found = await connection.execute(query)
            return [{str(name): value for name, value in row.items()} for row in found.mappings()]

    # --- the ledger -------------------------------------------------------------------------

    async def append(self, lines: Sequence[bytes]) -> None:
        """Write journal lines as rows; those already there are left as they are.

        Raises RowsRefused (none of them is written then) or StoreUnavailable.
        """
        async with self._begin() as connection:
            await self._append(connection, lines)

    async def request(self, request_id: str) -> RequestRecord | None:
        """One request with its attempts."""
        query = sa.select(*_copied(requests)).where(requests.c.id == request_id)
        rows = await self.select(query)
        if not rows:
            return None
        return RequestRecord(**rows[0], attempts=await self.attempts(request_id))

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
            sa.select(*_copied(requests))
            .where(*_between(requests, since_us, until_us))
            .where(*(requests.c[name] == text for name, text in wanted.items() if text is not None))
            .order_by(requests.c.started_at_us.desc(), requests.c.id.desc())
            .limit(limit)
        )
        return [RequestRecord(**row) for row in await self.select(query)]

    async def attempts(self, request_id: str) -> list[AttemptRecord]:
        """The attempts of one request in order."""
        query = (
            sa.select(*_copied(attempts))
            .where(attempts.c.request_id == request_id)
            .order_by(attempts.c.number)
        )
        return [AttemptRecord(**row) for row in await self.select(query)]

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
        unpriced = sa.and_(table.c.cost_nano_usd.is_(None), sa.text(f"NOT ({_NO_TOKENS})"))
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
        async with self._begin() as connection:
            await _take_turn(connection)
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
        self, row: Mapping[str, Any], files: Mapping[str, str] | None = None
    ) -> dict[str, Any] | None:
        """Insert a version, with its bundle's texts where it may be new, at the database's time.

        Returns the row as written, None where there is a version of this number.
        """
        try:
            async with self._begin() as connection:
                dialect = connection.dialect.name
                if files is not None:
                    insert = _INSERT[dialect](bundles).on_conflict_do_nothing()
                    values = {"digest": row["digest"], "policy": row["policy"], "files": files}
                    await connection.execute(insert.values(**values))
                made = await connection.execute(
                    sa.insert(versions)
                    .values(**row, applied_at_us=sa.text(_NOW_US[dialect]))
                    .returning(versions)
                )
                return dict(made.mappings().one())
        except RowsRefused:
            if await self.version(row["number"]) is None:
                raise
            return None


def _between(table: sa.Table, since_us: int | None, until_us: int | None) -> list[Any]:
    started = table.c.started_at_us
    conditions: list[Any] = []
    if since_us is not None:
        conditions.append(started >= since_us)
    if until_us is not None:
        conditions.append(started < until_us)
    return conditions


def _unavailable(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(
        "The database does not answer.", detail=f"{type(error).__name__}: {error}"
    )


# --- connecting and the schema --------------------------------------------------------------------


class _NotYet(StoreUnreachable):
    """It may still be starting: worth waiting for."""


def normalise(url: str) -> URL:
    """`postgres://`, `postgresql://` and `sqlite:///` with the drivers we ship.

    Raises StoreUnreachable for anything else.
    """
    fix = "Use postgresql://user:password@host/name or sqlite:///path in WEIGHBRIDGE_DATABASE_URL."
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreUnreachable("database", "the URL is malformed", fix) from None
    scheme = parsed.drivername.partition("+")[0]
    if scheme == "sqlite":
        return parsed.set(drivername="sqlite+aiosqlite")
    if scheme not in {"postgres", "postgresql"}:
        raise StoreUnreachable(f"{scheme}://", "neither Postgres nor SQLite", fix)
    query = dict(parsed.query)
    if "sslmode" in query:  # libpq's word for what asyncpg calls ssl
        query["ssl"] = query.pop("sslmode")
    return parsed.set(drivername="postgresql+asyncpg", query=query)


def _engine(text: str) -> AsyncEngine:
    url = normalise(text)
    json: dict[str, Any] = {
        "json_serializer": lambda value: orjson.dumps(value).decode(),
        "json_deserializer": orjson.loads,
    }
    if url.drivername.startswith("postgresql"):
        return create_async_engine(
            url,
            pool_size=4,
            max_overflow=2,
            pool_timeout=_CONNECT_S_MAX,
            pool_pre_ping=True,
            pool_recycle=1800,
            connect_args={
                "timeout": _CONNECT_S_MAX,
                "command_timeout": _STATEMENT_S_MAX + 5,  # the server gives up first, and says so
                "server_settings": {
                    "application_name": "weighbridge",
                    "statement_timeout": str(_STATEMENT_S_MAX * 1000),
                    "jit": "off",
                },
            },
            **json,
        )
    engine = create_async_engine(url, connect_args={"timeout": _CONNECT_S_MAX}, **json)
    sa.event.listen(engine.sync_engine, "connect", _tune_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _tune_sqlite(connection: DBAPIConnection, _: object) -> None:
    """WAL: readers do not wait for the writer. NORMAL: the journal is the promise, not this."""
    connection.isolation_level = (
        None  # the driver begins nothing: `_begin_sqlite` does, for DDL too
    )
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


async def _take_turn(connection: AsyncConnection) -> None:
    """One transaction at a time past this point, among all workers; until its end."""
    if connection.dialect.name == "postgresql":
        await connection.execute(
            sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK}
        )
    else:
        await connection.execute(sa.delete(keys).where(sa.false()))  # takes the write lock


@asynccontextmanager
async def _start_turn(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Like `_take_turn`, before there are tables: one start at a time looks at the schema."""
    path = engine.url.database
    if engine.dialect.name == "postgresql":
        async with engine.begin() as connection:
            await _take_turn(connection)
            yield connection
        return
    if not path or path == ":memory:":
        async with engine.begin() as connection:
            yield connection
        return
    lock = await asyncio.to_thread(_lock_beside, Path(path))
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        os.close(lock)


def _lock_beside(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # not for others to read
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


async def _prepare(engine: AsyncEngine, *, auto_migrate: bool) -> None:
    """Connect and make sure of the schema, in our words."""
    name = engine.url.render_as_string(hide_password=True)
    try:
        async with _start_turn(engine) as connection:
            found = await connection.run_sync(_revision)
            if found == SCHEMA:
                return
            ours = found is None or auto_migrate or engine.dialect.name == "sqlite"
            if not ours:
                raise SchemaMismatch(
                    name,
                    f"its schema is {found}, this program needs {SCHEMA}",
                    "Run `weighbridge db upgrade`, or set WEIGHBRIDGE_AUTO_MIGRATE=1.",
                )
            await connection.run_sync(_upgrade, name, found)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise _explained(name, error) from error


def _explained(name: str, error: Exception) -> StoreUnreachable:
    cause = getattr(error, "orig", None) or error
    state = _sqlstate(error)
    why = f"{cause}".strip().splitlines()[0] if f"{cause}".strip() else type(cause).__name__
    if state in _REFUSALS:
        return StoreUnreachable(name, why, _REFUSALS[state])
    if name.startswith("sqlite"):
        fix = "Make its folder writable for this user, or set WEIGHBRIDGE_DATABASE_URL."
        return StoreUnreachable(name, why, fix)
    if state and not state.startswith(("08", "53", "57")):
        return StoreUnreachable(name, why, "Look into the database's log.")
    return _NotYet(name, why, "Start the database, or correct WEIGHBRIDGE_DATABASE_URL.")


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("weighbridge_schema"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM weighbridge_schema")).scalar()


def _upgrade(connection: Connection, name: str, found: str | None) -> None:
    """Run the migrations from `found` on. Alembic is imported only where there is one to run."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(bundled("migrations")).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaMismatch(
            name,
            f"its schema is {found}, which this program does not know",
            "A newer weighbridge has upgraded it: install that version.",
        )
    command.upgrade(config, SCHEMA)


def which(url: str) -> str:
    """The database's address without its password."""
    return normalise(url).render_as_string(hide_password=True)


async def upgrade(url: str) -> None:
    """Bring the schema up, whoever's turn it is. Raises StoreUnreachable."""
    engine = _engine(url)
    try:
        await _prepare(engine, auto_migrate=True)
    finally:
        await engine.dispose()


async def current(url: str) -> str | None:
    """The schema of the database, None if it has none yet. Raises StoreUnreachable."""
    engine = _engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_revision)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise _explained(which(url), error) from error
    finally:
        await engine.dispose()
