"""Months: on Postgres each has its own partition of both facts, made before its first row comes.

Owns which months there are, how one is made, and how one is dropped. Synchronous over an open
transaction; on SQLite there is nothing to make.

A start that no clock should have said (before 2020, or months ahead of the database's own present)
goes to the default partition; should such a month come after all, its rows move over. So nothing
is refused for its time, and a broken clock makes no tables. Where a month cannot be made (somebody
holds the table, the role may not), its rows go there too, and it is tried again later. A month of
which more lies there than moves in a moment stays there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

Month = int  # 202611
PARTITIONED: Final = {
    "request_facts": "started_at_us",
    "attempt_facts": "request_started_at_us",
}
FIRST: Final[Month] = 202001
AHEAD: Final = 1  # months made before they begin
LOCK_S_MAX: Final = 1  # a report that holds the table must not stop all writers
MOVED_MAX: Final = 50_000  # rows, of either table: about a second

_LOCK: Final = 0x77656970  # of whoever makes partitions
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def month_of(at_us: int) -> Month:
    """The month (UTC) of an instant; 0 where the calendar has none."""
    try:
        day = _EPOCH + dt.timedelta(microseconds=at_us)
    except OverflowError:
        return 0
    return day.year * 100 + day.month


def following(month: Month, by: int = 1) -> Month:
    """The month `by` months later, or earlier where that is negative."""
    years, rest = divmod(month % 100 - 1 + by, 12)
    return (month // 100 + years) * 100 + rest + 1


def begin_us(month: Month) -> int:
    """When a month begins."""
    return (
        int((dt.datetime(month // 100, month % 100, 1, tzinfo=dt.UTC) - _EPOCH).total_seconds())
        * 1_000_000
    )


def present(connection: Connection) -> set[Month]:
    """The months that have a partition."""
    found = connection.execute(
        sa.text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = CAST('request_facts' AS regclass)"
        )
    )
    names = (str(name).rpartition("_")[2] for (name,) in found)
    return {int(name) for name in names if name.isdigit()}


def ensure(connection: Connection, wanted: Iterable[Month]) -> tuple[set[Month], dict[Month, str]]:
    """Make what is missing of `wanted` and of the near future.

    The months there are then, and those that could not be made, with why. Raises what a connection
    that is lost raises, and where others are at it for longer than LOCK_S_MAX.
    """
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_S_MAX}s'"))
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    now = month_of(_now_us(connection))
    there = present(connection)
    due = {month for month in wanted if FIRST <= month <= following(now, AHEAD)}
    due |= {following(now, by) for by in range(AHEAD + 1)}
    failed: dict[Month, str] = {}
    for month in sorted(due - there):
        try:
            with connection.begin_nested():
                for table, column in PARTITIONED.items():
                    _make(connection, table, column, month)
        except _Full:
            failed[month] = "too many of its rows are in the default partition: it stays there"
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            failed[month] = str(error.orig)
    return (there | due) - failed.keys(), failed


class _Full(Exception):
    """To move these rows would hold up everybody."""


def _make(connection: Connection, table: str, column: str, month: Month) -> None:
    """Beside the table, then attached: readers of other months go on meanwhile."""
    name, since, until = f"{table}_{month}", begin_us(month), begin_us(following(month))
    within = f"{column} >= {since} AND {column} < {until}"
    many = f"SELECT 1 FROM {table}_default WHERE {within} OFFSET {MOVED_MAX} LIMIT 1"  # noqa: S608
    if connection.execute(sa.text(many)).first() is not None:
        raise _Full
    statements = (
        f"LOCK TABLE {table}_default IN ACCESS EXCLUSIVE MODE",
        f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)",
        f"INSERT INTO {name} SELECT * FROM {table}_default WHERE {within}",  # noqa: S608
        f"DELETE FROM {table}_default WHERE {within}",  # noqa: S608
        f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({since}) TO ({until})",
    )
    for statement in statements:
        connection.execute(sa.text(statement))


def _now_us(connection: Connection) -> int:
    text = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
    return int(connection.execute(sa.text(text)).scalar_one())
