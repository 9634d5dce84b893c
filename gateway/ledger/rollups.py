"""Keeping the roll-ups: merging what batches appended, making them again, comparing them with rows.

Synchronous over an open transaction, one hour at a time; what a sum means is `hours`. Rows written
meanwhile do no harm: a batch's rows and what it appended are visible together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gateway.ledger.hours import ATTEMPT_KEY, HOUR_US, METER_KEY, REQUEST_KEY, SUMS, Hours
from gateway.ledger.tables import (
    attempt_dimensions,
    attempt_facts,
    attempt_hours,
    other_meter_hours,
    prunings,
    request_dimensions,
    request_facts,
    request_hours,
)

PAGE_ROWS = 5_000
LOCKED: Final = "55P03"  # the SQLSTATE of a lock that is not waited for
_TABLES: Final = {
    request_hours: (REQUEST_KEY, SUMS),
    attempt_hours: (ATTEMPT_KEY, SUMS),
    other_meter_hours: (METER_KEY, ("quantity",)),
}


class Disagreement(NamedTuple):
    """An hour and a dimension (of an attempt both, and the meter) whose sums are not its rows'."""

    table: str
    key: tuple[Any, ...]
    column: str
    booked: int | None  # what the roll-up says
    counted: int | None  # what the rows make


def alone(connection: Connection, *, wait: bool = True) -> None:
    """Until the end of this transaction nobody else changes hours that are there, or notes a prune.

    To be its first statement: on Postgres a lock on a table is held before anything is seen, an
    advisory one only after. Where that is not to `wait`, LOCKED says that somebody else is at it.
    """
    if connection.dialect.name == "postgresql":
        nowait = "" if wait else " NOWAIT"
        connection.execute(sa.text(f"LOCK TABLE prunings IN SHARE ROW EXCLUSIVE MODE{nowait}"))
    else:
        connection.exec_driver_sql("DELETE FROM workers WHERE 0")  # takes the write lock


def pruned_us(connection: Connection) -> int | None:
    """Before when rows went, or are going; None where none ever did."""
    before = connection.execute(sa.select(sa.func.max(prunings.c.rows_before_us))).scalar()
    return None if before is None else int(before)


# --- merging --------------------------------------------------------------------------------------


def unmerged(connection: Connection) -> list[int]:
    """The hours to which something was appended since they were merged."""
    found: set[int] = set()
    for table in _TABLES:
        query = sa.select(table.c.hour_us).distinct().where(sa.text("NOT merged"))
        found.update(connection.execute(query).scalars())
    return sorted(found)


def merge(connection: Connection, hour_us: int) -> bool:
    """One row for each dimension of an hour; what is appended meanwhile stays beside it.

    Whether there was anything to merge: another may have been here since somebody looked.
    """
    alone(connection, wait=False)
    done = False
    for table, (key, sums) in _TABLES.items():
        new = sa.select(table.c.hour_us).where(table.c.hour_us == hour_us, sa.text("NOT merged"))
        if connection.execute(new.limit(1)).first() is None:
            continue
        done = True
        for statement in _MERGE[connection.dialect.name](table.name, key, sums):
            connection.execute(sa.text(statement), {"hour": hour_us})
    return done


# Both are made of our own column names and nothing else (S608).


def _merge_postgres(table: str, key: tuple[str, ...], sums: tuple[str, ...]) -> list[str]:
    added = ", ".join(f"CAST(sum({name}) AS bigint)" for name in sums)
    return [
        (
            f"WITH gone AS (DELETE FROM {table} WHERE hour_us = :hour RETURNING *)"  # noqa: S608
            f" INSERT INTO {table} ({', '.join((*key, *sums))}, merged)"
            f" SELECT {', '.join(key)}, {added}, true FROM gone GROUP BY {', '.join(key)}"
        )
    ]


def _merge_sqlite(table: str, key: tuple[str, ...], sums: tuple[str, ...]) -> list[str]:
    """Under the write lock nothing comes in between."""
    added = ", ".join(f"sum({name})" for name in sums)
    names = ", ".join((*key, *sums))
    temporary = f"merged_{table}"
    grouped = f"WHERE hour_us = :hour GROUP BY {', '.join(key)}"
    return [
        f"CREATE TEMP TABLE {temporary} AS SELECT {', '.join(key)}, {added} FROM {table} {grouped}",  # noqa: S608
        f"DELETE FROM {table} WHERE hour_us = :hour",  # noqa: S608
        f"INSERT INTO {table} ({names}, merged) SELECT *, true FROM {temporary}",  # noqa: S608
        f"DROP TABLE {temporary}",
    ]


_MERGE: Final = {"postgresql": _merge_postgres, "sqlite": _merge_sqlite}


# --- from rows ------------------------------------------------------------------------------------


def hours(connection: Connection, since_us: int | None, until_us: int | None) -> list[int]:
    """The hours of the period that have rows or sums, but for those whose rows were pruned."""
    low = max(at for at in (since_us, pruned_us(connection), -(2**62)) if at is not None)
    high = 2**62 if until_us is None else until_us
    low = low // HOUR_US * HOUR_US
    found: set[int] = set()
    for table in _TABLES:
        inside = sa.and_(table.c.hour_us >= low, table.c.hour_us < high)
        found.update(
            connection.execute(sa.select(table.c.hour_us).distinct().where(inside)).scalars()
        )
    started = request_facts.c.started_at_us
    after = low
    while True:  # from one hour with rows to the next: an index has each
        first = connection.execute(sa.select(sa.func.min(started)).where(started >= after)).scalar()
        if first is None or first >= high:
            return sorted(found)
        found.add(first // HOUR_US * HOUR_US)
        after = (first // HOUR_US + 1) * HOUR_US


def counted(connection: Connection, hour_us: int) -> Hours:
    """The sums of an hour, of its rows."""
    made = Hours()
    f, d = request_facts.c, request_dimensions.c
    inside = sa.and_(f.started_at_us >= hour_us, f.started_at_us < hour_us + HOUR_US)
    names = ("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    costs = ("cost_nano_usd", "ttft_us")
    of_requests = (
        sa.select(*(f[n] for n in ("id", "started_at_us", "dimension", "priced", "tps")))
        .add_columns(*(f[n] for n in (*names, *costs)), d.usage_source)
        .join_from(request_facts, request_dimensions, d.id == f.dimension)
        .where(inside)
    )
    for row in _paged(connection, of_requests):
        made.add(row, row["dimension"])
    a, ad = attempt_facts.c, attempt_dimensions.c
    of_attempts = (
        sa.select(f.id, f.started_at_us, f.dimension.label("of"), a.dimension, a.number)
        .add_columns(*(a[n] for n in (*names, *costs, "duration_us", "other_meters")))
        .add_columns(ad.usage_source, ad.outcome)
        .join_from(
            request_facts,
            attempt_facts,
            sa.and_(a.request_id == f.id, a.request_started_at_us == f.started_at_us),
        )
        .join(attempt_dimensions, ad.id == a.dimension)
        .where(inside)
    )
    for row in _paged(connection, of_attempts):
        made.add_attempt(row, row, (row["of"], row["dimension"]))
    return made


def _is_pruned(connection: Connection, hour_us: int) -> bool:
    before_us = pruned_us(connection)
    return before_us is not None and hour_us < before_us


def _paged(connection: Connection, query: sa.Select[Any]) -> Any:
    found = connection.execute(query, execution_options={"yield_per": PAGE_ROWS})
    yield from found.mappings()


def booked(
    connection: Connection, hour_us: int
) -> dict[str, dict[tuple[Any, ...], Mapping[str, Any]]]:
    """The sums of an hour, as the roll-ups have them: table -> key -> sums."""
    made: dict[str, dict[tuple[Any, ...], Mapping[str, Any]]] = {}
    for table, (key, sums) in _TABLES.items():
        keys = [table.c[name] for name in key]
        added = [sa.cast(sa.func.sum(table.c[n]), sa.BigInteger).label(n) for n in sums]
        query = sa.select(*keys, *added).where(table.c.hour_us == hour_us).group_by(*keys)
        rows = [dict(row) for row in connection.execute(query).mappings()]
        made[table.name] = {tuple(row.pop(name) for name in key): row for row in rows}
    return made


def compare(connection: Connection, hour_us: int) -> list[Disagreement]:
    """Where the roll-ups of an hour are not what its rows make. Both as one snapshot sees them."""
    found: list[Disagreement] = []
    if _is_pruned(connection, hour_us):
        return found
    said = booked(connection, hour_us)
    made = {name: list(rows) for name, _, rows in counted(connection, hour_us).tables()}
    for table, (key, sums) in _TABLES.items():
        rows = made.get(table.name, [])
        due = {row[: len(key)]: dict(zip(sums, row[len(key) :], strict=True)) for row in rows}
        for at in sorted(said[table.name].keys() | due.keys(), key=repr):
            for name in sums:
                pair = said[table.name].get(at, {}).get(name), due.get(at, {}).get(name)
                if (pair[0] or 0) != (pair[1] or 0):
                    found.append(Disagreement(table.name, at, name, *pair))
    return found


def replace(connection: Connection, hour_us: int) -> Hours | None:
    """Throw the sums of an hour away; what its rows make is to be written instead.

    None, and nothing is thrown away, where its rows were pruned since somebody looked.
    """
    if _is_pruned(connection, hour_us):
        return None
    made = counted(connection, hour_us)
    for table in _TABLES:
        connection.execute(sa.delete(table).where(table.c.hour_us == hour_us))
    return made
