"""What is deleted, when the policy says so: whole months of rows, and decisions by age.

Owns the working out of what is due and the deleting, synchronous over an open transaction. How long
is a setting; the sums by hour stay for ever. What is to be deleted is noted in `prunings` before,
so that sums whose rows are gone are never held against them, nor made again of nothing.

INVARIANTS
- Only months that are over: of the present one and of the `rows_months` before it nothing goes.
- A request goes with its attempts, in one transaction.
- What no clock should have said (before 2020) is left to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gateway.ledger import partitions, rollups
from gateway.ledger.partitions import FIRST, PARTITIONED, Month, begin_us, following, month_of
from gateway.ledger.tables import attempt_facts, prunings, request_facts

PAGE_ROWS = 5_000
DAY_US: Final = 86_400_000_000

_started: Final = request_facts.c.started_at_us
_decided: Final = request_facts.c.decision.is_not(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What is to go: requests by month, and how many decisions of requests that stay."""

    rows_before_us: int | None
    decisions_before_us: int | None
    months: dict[Month, int]
    decisions: int

    @property
    def requests(self) -> int:
        """All the rows of requests that are to go."""
        return sum(self.months.values())


def due(
    connection: Connection, *, now_us: int, rows_months: int | None, decisions_days: int | None
) -> Due:
    """Look what is due. `rows_months` complete months are kept beside the present one."""
    rows_before = decisions_before = None
    months: dict[Month, int] = {}
    if rows_months is not None:
        if rows_months < 1:
            raise ValueError("at least one complete month is kept")
        rows_before = begin_us(following(month_of(now_us), -rows_months))
        months = _months(connection, rows_before)
    decisions = 0
    if decisions_days is not None:
        decisions_before = now_us // DAY_US * DAY_US - decisions_days * DAY_US
        since = max(emptied_us(connection), rows_before or 0)
        decisions = sum(n for _, n in _days(connection, since, decisions_before, _decided))
    return Due(
        rows_before_us=rows_before,
        decisions_before_us=decisions_before,
        months=months,
        decisions=decisions,
    )


def _months(connection: Connection, before_us: int) -> dict[Month, int]:
    """The months with rows, before an instant that begins one."""
    found: dict[Month, int] = {}
    for day_us, rows in _days(connection, begin_us(FIRST), before_us):
        month = month_of(day_us)
        found[month] = found.get(month, 0) + rows
    return found


def _days(
    connection: Connection, since_us: int, until_us: int, *which: sa.ColumnElement[bool]
) -> Iterator[tuple[int, int]]:
    """The days with rows and how many of these are such. A statement for each: a month in one
    could take longer than a statement may, and the driver's patience is not ours to stretch."""
    after = since_us
    while True:
        within = sa.and_(_started >= after, _started < until_us)
        first = connection.execute(sa.select(sa.func.min(_started)).where(within)).scalar()
        if first is None:
            return
        day_us = first // DAY_US * DAY_US
        after = min(day_us + DAY_US, until_us)
        of_day = sa.select(sa.func.count()).where(_started >= first, _started < after, *which)
        count = of_day.select_from(request_facts)
        yield day_us, int(connection.execute(count).scalar_one())


def emptied_us(connection: Connection) -> int:
    """From where on there may be decisions: what came late is looked for a day further back."""
    finished = sa.select(sa.func.max(prunings.c.decisions_before_us)).where(
        prunings.c.decisions > 0
    )
    last = connection.execute(finished).scalar()
    return begin_us(FIRST) if last is None else last - DAY_US


def note_rows(connection: Connection, due: Due, *, now_us: int) -> None:
    """Before rows go: what then remains half done is held against no sum.

    A rebuild is at one hour: it is waited for, and the next hour sees this.
    """
    _note(connection, now_us, rows_before_us=due.rows_before_us, requests=due.requests, decisions=0)


def announce_decisions(connection: Connection, due: Due, *, now_us: int) -> None:
    """Before decisions go: what then remains half done is held against no row."""
    before = due.decisions_before_us
    _note(connection, now_us, decisions_before_us=before, requests=0, decisions=0)


def note_decisions(connection: Connection, due: Due, *, now_us: int) -> None:
    """Once decisions are gone: where it was not finished, the next time begins before."""
    before = due.decisions_before_us
    _note(connection, now_us, decisions_before_us=before, requests=0, decisions=due.decisions)


def _note(connection: Connection, now_us: int, **values: int | None) -> None:
    rollups.alone(connection)
    last = connection.execute(sa.select(sa.func.max(prunings.c.made_at_us))).scalar() or 0
    connection.execute(sa.insert(prunings).values(made_at_us=max(now_us, last + 1), **values))


def drop_month(connection: Connection, month: Month, page_rows: int = PAGE_ROWS) -> bool:
    """Delete a month or a part of it; whether there may be more of it."""
    since, until = begin_us(month), begin_us(following(month))
    rollups.alone(connection)
    if connection.dialect.name == "postgresql" and month in partitions.present(connection):
        connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        for table in PARTITIONED:
            connection.execute(sa.text(f"DROP TABLE {table}_{month}"))
    f, a = request_facts.c, attempt_facts.c
    page = sa.select(f.id).where(f.started_at_us >= since, f.started_at_us < until)
    ids = list(connection.execute(page.limit(page_rows)).scalars())
    inside = (a.request_started_at_us >= since, a.request_started_at_us < until)
    connection.execute(sa.delete(attempt_facts).where(a.request_id.in_(ids), *inside))
    gone = sa.delete(request_facts).where(f.id.in_(ids), f.started_at_us >= since)
    connection.execute(gone.where(f.started_at_us < until))
    return len(ids) == page_rows


def empty_decisions(
    connection: Connection, after_us: int, before_us: int, page_rows: int = PAGE_ROWS
) -> int | None:
    """Forget what was decided of a page of requests; where to go on, None at the end."""
    within = sa.and_(_started >= after_us, _started < before_us, _decided)
    page = sa.select(request_facts.c.id, _started).where(within)
    found = connection.execute(page.order_by(_started).limit(page_rows)).all()
    if not found:
        return None
    last = int(found[-1].started_at_us)
    ids = [row.id for row in found]
    inside = (_started >= after_us, _started <= last, request_facts.c.id.in_(ids))
    connection.execute(sa.update(request_facts).where(*inside).values(decision=None))
    return last if len(found) == page_rows else None
