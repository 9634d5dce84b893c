"""From the journal's lines to rows: facts, the dimensions they point at, and what they add to sums.

Owns how a line is taken apart and how a batch is written, on both databases. Synchronous over an
open transaction, so that a migration writes rows exactly as the flusher does.

INVARIANTS
- A request, its attempts, their dimensions and what they add to the roll-ups are one transaction.
- A request that is there already is left as it is, with its attempts, and is added to no sum.
- Dimensions come before what points at them, each table's in the order of its identifiers: two
  writers of the same news wait for one another, never both.
- Only what was committed is remembered as written (`committed`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Final, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from gateway.ledger import rollups
from gateway.ledger.connect import RowsRefused
from gateway.ledger.hours import HOUR_US, Hours
from gateway.ledger.packed import pack
from gateway.ledger.partitions import Month, ensure, month_of
from gateway.ledger.tables import (
    attempt_dimensions,
    attempt_facts,
    attempts,
    recorded,
    request_dimensions,
    request_facts,
    requests,
    workers,
)

SLICE_ROWS = (
    32  # taken apart, or sent, at a time: one or two milliseconds in which nothing else runs
)
REMEMBERED_MAX = 200_000  # dimensions known to be there: a few hundred bytes each
FREE = "free:"  # how the identifier of rates that are declared free begins

Line = dict[str, Any]


def _parsed(lines: Sequence[bytes]) -> Iterator[tuple[Line, bytes | None]]:
    """Each line and the JSON of its decision, which is half of it and need not become objects.

    It is cut out by the keys before and behind it. Where the first stands more than once (a tag, or
    within the decision), the line is parsed whole; where the other stands within, what is left is
    no JSON, or has a decision still: then too.
    """
    cut: list[bytes] = []
    kept: list[bytes | None] = []
    for line in lines:
        start = line.find(_DECISION) + len(_DECISION)
        end = line.find(_BEHIND, start) if start >= len(_DECISION) else -1
        if end < 0 or line.startswith(b"null", start) or line.find(_DECISION, start) >= 0:
            cut.append(line)
            kept.append(None)
        else:
            cut.append(b"%b%b%b" % (line[:start], b"null", line[end:]))
            kept.append(line[start:end])
    try:
        parsed = orjson.loads(b"[" + b",".join(cut) + b"]")
    except orjson.JSONDecodeError:
        parsed = orjson.loads(b"[" + b",".join(lines) + b"]")
        kept = [None] * len(lines)
    for line, found, decision in zip(lines, parsed, kept, strict=True):
        if found.get("decision") is None:
            yield found, decision
            continue
        whole = found if decision is None else orjson.loads(line)
        yield whole, orjson.dumps(whole["decision"])


_DECISION: Final = b',"decision":'
_BEHIND: Final = b',"outcome":'


def _text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _columns(table: sa.Table) -> tuple[str, ...]:
    return tuple(str(column.name) for column in table.columns)


_DIMENSIONS: Final = (request_dimensions, attempt_dimensions, workers)
_CONTENT: Final[Mapping[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]]] = {
    "request_dimensions": itemgetter(*_columns(request_dimensions)[1:]),
    "attempt_dimensions": itemgetter(*_columns(attempt_dimensions)[1:]),
    "workers": lambda line: (line["name"],),
}
_REQUEST_COLUMNS: Final = _columns(request_facts)
_ATTEMPT_COLUMNS: Final = _columns(attempt_facts)
_REQUEST_FACT: Final = itemgetter(*_REQUEST_COLUMNS)
_ATTEMPT_FACT: Final = itemgetter(*_ATTEMPT_COLUMNS)
_NO_REQUEST: Final[Line] = {str(column.name): None for column in recorded(requests)}
_NO_ATTEMPT: Final[Line] = {str(column.name): None for column in recorded(attempts)}
_LINE_FIELDS: Final = len(_NO_REQUEST) + 1  # and `attempts`
_ATTEMPT_FIELDS: Final = len(_NO_ATTEMPT)


class AlreadyThere(Exception):
    """Some of the rows are in the database, none was written: write it `checked`."""


class Row(NamedTuple):
    """A request as it will be written. Lines are the journal's, for the sums."""

    dimension: int
    fact: tuple[Any, ...]
    line: Line
    attempts: list[tuple[int, tuple[Any, ...], Line]]  # dimension, fact, line


@dataclass(slots=True)
class Batch:
    """Rows by identifier and start, the dimensions they point at, and what they add to sums."""

    rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    dimensions: dict[str, dict[int, tuple[Any, ...]]] = field(
        default_factory=lambda: {table.name: {} for table in _DIMENSIONS}
    )
    hours: Hours = field(default_factory=Hours)

    def put(self, key: tuple[str, int], row: Row) -> None:
        self.rows[key] = row
        self.hours.add(row.line, row.dimension)
        for dimension, _, line in row.attempts:
            self.hours.add_attempt(row.line, line, (row.dimension, dimension))

    def without(self, keys: Iterable[tuple[str, int]]) -> Batch:
        """The others of its rows."""
        gone = set(keys)
        left = Batch(dimensions=self.dimensions)
        for key, row in self.rows.items():
            if key not in gone:
                left.put(key, row)
        return left

    def months(self) -> set[Month]:
        return {month_of(hour) for hour in {at // HOUR_US * HOUR_US for _, at in self.rows}}


# --- taking lines apart ---------------------------------------------------------------------------


class Writer:
    """Writes batches, and remembers which dimensions and months are there. One per process."""

    def __init__(self) -> None:
        self._ids: dict[str, dict[tuple[Any, ...], int]] = {t.name: {} for t in _DIMENSIONS}
        self._there: dict[str, set[int]] = {t.name: set() for t in _DIMENSIONS}
        self._months: set[Month] = set()

    def take(self, batch: Batch, lines: Sequence[bytes]) -> None:
        """Put lines into a batch; of the same request the first. Raises RowsRefused."""
        try:
            for line, decision in _parsed(lines):
                self._take(batch, line, decision)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RowsRefused(f"not a row: {type(error).__name__}: {error}") from error

    def _take(self, batch: Batch, line: Line, decision: bytes | None) -> None:
        key = line["id"], line["started_at_us"]
        if key in batch.rows:
            return
        if len(line) < _LINE_FIELDS:  # written by a version before some column
            line = _NO_REQUEST | line
        tried = [self._attempt(batch, key, attempt) for attempt in line["attempts"]]
        line["shadow"] = line["shadow_of"] is not None
        line["tags"] = _text(line["tags"])
        line["dimension"] = dimension = self._dimension(batch, request_dimensions, line)
        line["worker"] = self._dimension(batch, workers, {"name": line["worker"]})
        line["declared_free"] = any(attempt["declared_free"] for _, _, attempt in tried)
        line["decision"] = None if decision is None else pack(decision)
        if line["other_meters"] is not None:
            line["other_meters"] = _text(line["other_meters"])
        batch.put(key, Row(dimension, _REQUEST_FACT(line), line, tried))

    def _attempt(
        self, batch: Batch, of: tuple[str, int], line: Line
    ) -> tuple[int, tuple[Any, ...], Line]:
        if len(line) < _ATTEMPT_FIELDS:
            line = _NO_ATTEMPT | line
        line["request_id"], line["request_started_at_us"] = of
        line["declared_free"] = (line["rates_id"] or "").startswith(FREE)
        line["dimension"] = dimension = self._dimension(batch, attempt_dimensions, line)
        others = line["other_meters"]
        if others is None:
            return dimension, _ATTEMPT_FACT(line), line
        fact = _ATTEMPT_FACT(line | {"other_meters": _text(others)})
        return dimension, fact, line

    def _dimension(self, batch: Batch, table: sa.Table, line: Mapping[str, Any]) -> int:
        """The identifier of what a line has in common with others: of its content, so the same
        everywhere, without asking."""
        content = _CONTENT[table.name](line)
        ids = self._ids[table.name]
        found = ids.get(content)
        if found is None:
            digest = blake2b(orjson.dumps(content), digest_size=8).digest()
            found = ids[content] = int.from_bytes(digest, signed=True)
            if len(ids) > REMEMBERED_MAX:
                ids.clear()
        if found not in self._there[table.name]:
            batch.dimensions[table.name][found] = content
        return found

    # --- writing --------------------------------------------------------------------------------

    def missing(self, batch: Batch) -> set[Month]:
        """Months of a batch that are not known to have a partition."""
        return batch.months() - self._months

    def ensure(self, connection: Connection, months: Iterable[Month]) -> dict[Month, str]:
        """Make partitions, in a transaction of their own; those that cannot be made, with why."""
        if connection.dialect.name == "postgresql":
            self._months, failed = ensure(connection, months)
            return failed
        self._months.update(months)
        return {}

    def write(self, connection: Connection, batch: Batch, *, checked: bool = False) -> int:
        """Write the rows that are not there yet; how many.

        Postgres looks first only where `checked`, and says AlreadyThere otherwise; the transaction
        is then to be rolled back. What else the database says comes as its own errors.
        """
        dialect = _DIALECTS[connection.dialect.name]
        dialect.begin(connection)
        for table in _DIMENSIONS:
            new = sorted(batch.dimensions[table.name].items())
            if new:
                dialect.put(connection, table, [(found, *content) for found, content in new])
        if checked or dialect.always_checked:
            there = dialect.there(connection, [*batch.rows])
            if there:
                batch = batch.without(there)
        rows = batch.rows.values()
        if not rows:
            return 0
        dialect.insert(connection, "request_facts", _REQUEST_COLUMNS, (row.fact for row in rows))
        tried = [fact for row in rows for _, fact, _ in row.attempts]
        if tried:
            dialect.insert(connection, "attempt_facts", _ATTEMPT_COLUMNS, tried)
        for name, columns, sums in batch.hours.tables():
            dialect.insert(connection, name, columns, sums)
        return len(rows)

    def committed(self, batch: Batch) -> None:
        """The transaction that wrote this batch is over, and well."""
        for name, written in batch.dimensions.items():
            there = self._there[name]
            if len(there) > REMEMBERED_MAX:
                there.clear()
            there.update(written)


def replace_hour(connection: Connection, hour_us: int) -> None:
    """Make the sums of an hour again, of its rows as this transaction sees them. Those of an hour
    whose rows were pruned stay."""
    rollups.alone(connection)
    dialect = _DIALECTS[connection.dialect.name]
    dialect.begin(connection)
    made = rollups.replace(connection, hour_us)
    if made is None:
        return
    for name, columns, sums in made.tables():
        dialect.insert(connection, name, (*columns, "merged"), ((*row, True) for row in sums))


# --- the two databases ----------------------------------------------------------------------------

Rows = Sequence[tuple[Any, ...]]


class _Postgres:
    """Binary COPY, straight into the facts: no row is parsed or planned by the server."""

    always_checked = False

    @staticmethod
    def begin(connection: Connection) -> None:
        """COPY goes past SQLAlchemy, which begins its transaction with its own first statement."""
        connection.execute(_NOTHING)

    @staticmethod
    def put(connection: Connection, table: sa.Table, rows: Rows) -> None:
        columns = _columns(table)
        if "tags" in columns:
            at = columns.index("tags")
            rows = [(*row[:at], orjson.Fragment(row[at]), *row[at + 1 :]) for row in rows]
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        connection.execute(_PUT[table.name], {"rows": orjson.dumps(named).decode()})

    @staticmethod
    def there(connection: Connection, keys: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        starts = [at for _, at in keys]
        bounds = {"low": min(starts), "high": max(starts)}
        found = connection.execute(_THERE, {"ids": [one for one, _ in keys], **bounds})
        return [(one, at) for one, at in found]

    @staticmethod
    def insert(
        connection: Connection,
        table: str,
        columns: tuple[str, ...],
        rows: Iterable[tuple[Any, ...]],
    ) -> None:
        from asyncpg import UniqueViolationError

        driver: Any = connection.connection.dbapi_connection
        try:
            driver.run_async(
                lambda raw: raw.copy_records_to_table(table, records=_slices(rows), columns=columns)
            )
        except UniqueViolationError as error:
            raise AlreadyThere from error
        except (TypeError, OverflowError, UnicodeError) as error:
            raise RowsRefused(f"{table}: {error}") from error


async def _slices(rows: Iterable[tuple[Any, ...]]) -> AsyncIterator[tuple[Any, ...]]:
    for count, row in enumerate(rows):
        if count % SLICE_ROWS == 0:
            await asyncio.sleep(0)  # requests go on
        yield row


class _SQLite:
    """In our process: look what is there, then insert the others."""

    always_checked = True

    @staticmethod
    def begin(connection: Connection) -> None:
        """Take the write lock before the first look."""
        connection.exec_driver_sql("DELETE FROM workers WHERE 0")

    @staticmethod
    def put(connection: Connection, table: sa.Table, rows: Rows) -> None:
        statement = _sqlite_insert(table.name, _columns(table)) + " ON CONFLICT DO NOTHING"
        connection.exec_driver_sql(statement, list(rows))

    @staticmethod
    def there(connection: Connection, keys: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        found = connection.exec_driver_sql(
            "SELECT id, started_at_us FROM request_facts"
            " WHERE id IN (SELECT value FROM json_each(?))",
            (orjson.dumps([one for one, _ in keys]).decode(),),
        )
        return [(one, at) for one, at in found]

    @staticmethod
    def insert(
        connection: Connection,
        table: str,
        columns: tuple[str, ...],
        rows: Iterable[tuple[Any, ...]],
    ) -> None:
        connection.exec_driver_sql(_sqlite_insert(table, columns), list(rows))


# Made of our own names and nothing else (S608).
def _sqlite_insert(table: str, columns: tuple[str, ...]) -> str:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608


def _postgres_put(table: sa.Table) -> sa.TextClause:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    typed = ", ".join(f'"{c.name}" {c.type.compile(dialect)}' for c in table.columns)
    return sa.text(
        f"INSERT INTO {table.name} ({names}) SELECT {names}"  # noqa: S608
        f" FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({typed})"
        " ORDER BY id ON CONFLICT (id) DO NOTHING"
    )


_PUT: Final = {table.name: _postgres_put(table) for table in _DIMENSIONS}
_NOTHING: Final = sa.text("SELECT 1")
_THERE: Final = sa.text(
    "SELECT id, started_at_us FROM request_facts"
    " WHERE id = ANY(CAST(:ids AS text[])) AND started_at_us BETWEEN :low AND :high"
)
_DIALECTS: Final[Mapping[str, Any]] = {"postgresql": _Postgres, "sqlite": _SQLite}
