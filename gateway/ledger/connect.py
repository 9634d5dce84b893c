"""Connecting to the database: its address, its engine, its schema, and its errors in our words.

Postgres (asyncpg) and SQLite (aiosqlite) run the same tables; how each is tuned stands here.

WHICH SCHEMA: an empty database gets the present one at start. SQLite is ours alone and is always
upgraded at start. A Postgres with an older schema is not touched unless `auto_migrate`: an
operator runs `weighbridge db upgrade`. A newer schema than ours is refused. Starts take turns.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_exponential

from gateway.domain.errors import StoreUnavailable
from gateway.ledger.tables import keys
from gateway.settings import bundled

SCHEMA = "0005"  # the migration this code was written for

_ADVISORY_LOCK = 0x77656967  # "weig": any number, the same in every worker
_CONNECT_S_MAX = 5.0
_STATEMENT_S_MAX = 30

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


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of a driver's error, wrapped or not, "" where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        state = getattr(seen, "sqlstate", None) or getattr(seen, "pgcode", None)
        if state:
            return str(state)
        seen = getattr(seen, "orig", None) or seen.__cause__
    return ""


def _unavailable(error: BaseException) -> StoreUnavailable:
    return StoreUnavailable(
        "The database does not answer.", detail=f"{type(error).__name__}: {error}"
    )


@contextmanager
def in_our_words() -> Iterator[None]:
    """What the database says in here comes out as RowsRefused or StoreUnavailable."""
    try:
        yield
    except DBAPIError as error:
        hopeless = isinstance(error, sa.exc.IntegrityError | sa.exc.DataError)
        raise _failed(error, error.orig or error, hopeless=hopeless) from error
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise _unavailable(error) from error
    except Exception as error:  # the driver's own, where it was spoken to directly
        if not type(error).__module__.startswith("asyncpg."):
            raise
        raise _failed(error, error, hopeless=isinstance(error, ValueError)) from error


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction whose failures are in our words."""
    with in_our_words():
        async with engine.begin() as connection:
            yield connection


def _failed(error: Exception, cause: BaseException, *, hopeless: bool) -> Exception:
    state = sqlstate(error)
    if state.startswith(_HOPELESS) or (not state and hopeless):
        return RowsRefused(str(cause))
    return _unavailable(cause)


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
                    # One plan for any values cannot know how little of a period a page is, and
                    # reads all of it for each page from the sixth on.
                    "plan_cache_mode": "force_custom_plan",
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


async def take_turn(connection: AsyncConnection, queue: str = "") -> None:
    """One transaction of a queue at a time past this point, among all workers; until its end."""
    if connection.dialect.name == "postgresql":
        lock = _ADVISORY_LOCK + zlib.crc32(queue.encode())  # of "" it is 0
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
    else:
        await connection.execute(sa.delete(keys).where(sa.false()))  # takes the write lock


@asynccontextmanager
async def _start_turn(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Like `take_turn`, before there are tables: one start at a time looks at the schema."""
    path = engine.url.database
    if engine.dialect.name == "postgresql":
        async with engine.begin() as connection:
            await take_turn(connection)
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


async def connected(url: str, *, auto_migrate: bool = False, wait_s: float = 0.0) -> AsyncEngine:
    """An engine over a database of the right schema, brought there where that is ours to do.

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
    return engine


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
    state = sqlstate(error)
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
