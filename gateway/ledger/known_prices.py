"""What was known of prices, and since when: the price book with its two times.

Valid time says from when on a price holds; recorded time says since when we know. A statement is
one row of a price file, as it was written, with the database's time when it came into force and
the bundle that brought it. What is known at a time is, of each target and first moment, the last
statement recorded up to then; one without terms takes back what was stated before.

Owns the table `price_statements`: who appends to it, and the book read back from it.

INVARIANTS
- Appended, never edited. `record` writes what is new, changed or gone, numbered without a gap, at
  times that ascend whatever the clock does; who comes second finds nothing left to write.
- The book as known is, at every moment, the price book of the version in force then. The audit
  holds both to it (`ledger.audit`): each statement to the texts of its bundle, and the whole to
  the version in force. A trigger would stop only who may not drop triggers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.domain.catalog import Target
from gateway.ledger.prices import Dated, PriceBook
from gateway.ledger.store import Store, now_us, price_statements, versions

_c = price_statements.c
_SUBJECT = (_c.backend, _c.model, _c.valid_from_us)


class Subject(NamedTuple):
    """What statements are about: a target from one moment on."""

    backend: str
    model: str
    valid_from_us: int

    @property
    def target(self) -> Target:
        return Target(self.backend, self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One row of the table. Times in microseconds since the epoch.

    `valid_until_us` is what the row itself says; without it a price ends where the next begins.
    `terms` is the row as written, None where it is taken back. `digest` is that of the bundle.
    """

    number: int
    recorded_at_us: int
    backend: str
    model: str
    valid_from_us: int
    valid_until_us: int | None
    rates_id: str
    terms: Mapping[str, Any] | None
    author: str
    digest: str

    @property
    def subject(self) -> Subject:
        return Subject(self.backend, self.model, self.valid_from_us)


def subjects(book: PriceBook) -> dict[Subject, Dated]:
    """The rows of a book by what they are about."""
    return {
        Subject(target.backend, target.model, row.from_us): row
        for target, rows in book.rows.items()
        for row in rows
    }


# --- writing --------------------------------------------------------------------------------------


def recorder(
    book: PriceBook, *, author: str, digest: str
) -> Callable[[AsyncConnection], Awaitable[None]]:
    """States a book in the transaction that puts its bundle in force, under its turn."""

    async def record(connection: AsyncConnection) -> None:
        known = {one.subject: one for one in await _latest(connection)}
        rows = list(_news(known, subjects(book)))
        if not rows:
            return
        last = await connection.execute(sa.select(sa.func.max(_c.number)))
        number = last.scalar() or 0
        newest = sa.select(sa.func.coalesce(sa.func.max(_c.recorded_at_us), 0))
        before_us = (await connection.execute(newest)).scalar_one()
        at_us = (await connection.execute(sa.select(now_us(connection)))).scalar_one()
        stamp = {"recorded_at_us": max(at_us, before_us), "author": author, "digest": digest}
        values = [{"number": n, **row, **stamp} for n, row in enumerate(rows, number + 1)]
        await connection.execute(sa.insert(price_statements), values)

    return record


async def make_sure(store: Store, book: PriceBook, *, author: str, digest: str) -> None:
    """State the book of the version in force where that was not done when it came: by a program
    that kept no statements. Nothing where another version is in force by now.

    Raises StoreUnavailable.
    """
    if not await unlike(store, book):  # asked without a turn, as every start does
        return
    async with store.turn() as connection:
        newest = sa.select(versions.c.digest).order_by(versions.c.number.desc()).limit(1)
        if (await connection.execute(newest)).scalar() == digest:
            await recorder(book, author=author, digest=digest)(connection)


async def unlike(store: Store, book: PriceBook) -> list[tuple[Subject, str]]:
    """Where the book differs from what is known, and how. Raises StoreUnavailable."""
    known = {one.subject: one for one in map(_statement, await store.select(_known(None)))}
    return [
        (
            Subject(news["backend"], news["model"], news["valid_from_us"]),
            f"{news['rates_id']} is known, but not in force"
            if news["terms"] is None
            else f"{news['rates_id']} is in force, but not known so",
        )
        for news in _news(known, subjects(book))
    ]


def _news(
    known: Mapping[Subject, Statement], rows: Mapping[Subject, Dated]
) -> Iterator[dict[str, Any]]:
    """What is new or changed, and then what is gone."""
    for subject, row in sorted(rows.items(), key=lambda one: one[0]):
        before = known.get(subject)
        if before is None or before.terms != row.terms:
            yield {
                **subject._asdict(),
                "valid_until_us": row.until_us if "until" in row.terms else None,
                "rates_id": row.base.id,
                "terms": row.terms,
            }
    for subject, gone in sorted(known.items(), key=lambda one: one[0]):
        if subject not in rows and gone.terms is not None:
            yield {
                **subject._asdict(),
                "valid_until_us": gone.valid_until_us,
                "rates_id": gone.rates_id,
                "terms": None,
            }


# --- reading --------------------------------------------------------------------------------------


async def as_known(
    store: Store,
    at_us: int | None = None,
    *,
    regions: Mapping[str, str | None] | None = None,
) -> PriceBook:
    """The book as it was known at that recorded time; without one, as it is known now.

    Raises StoreUnavailable, ValueError where a row cannot be read by this version.
    """
    known = map(_statement, await store.select(_known(at_us)))
    return PriceBook.of((one.terms for one in known if one.terms is not None), regions)


async def statements(
    store: Store,
    *,
    model: str | None = None,
    backend: str | None = None,
    at_us: int | None = None,
) -> list[Statement]:
    """All that was stated (of a model, a backend) up to a recorded time, in that order.

    Raises StoreUnavailable.
    """
    query = sa.select(price_statements).order_by(_c.number)
    for column, wanted in ((_c.model, model), (_c.backend, backend)):
        if wanted is not None:
            query = query.where(column == wanted)
    if at_us is not None:
        query = query.where(_c.recorded_at_us <= at_us)
    return [_statement(row) for row in await store.select(query)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One statement as a rectangle of two times, ends not part of it, None where there is none.

    It was known from `statement.recorded_at_us` to `known_until_us`; the price held from
    `statement.valid_from_us` to `valid_until_us` as that was known last. `row` is what it says.
    """

    statement: Statement
    known_until_us: int | None
    valid_until_us: int | None
    row: Dated

    def at(self, known_us: int) -> bool:
        """Whether this is what was known then."""
        ended = self.known_until_us is not None and self.known_until_us <= known_us
        return self.statement.recorded_at_us <= known_us and not ended


def known(said: Sequence[Statement]) -> list[Known]:
    """What was known when of the targets spoken of, by target, valid time and recorded time.

    `said` are all statements about them, by number. One that was followed at once is left out.
    """
    ends: dict[int, int] = {}
    latest: dict[Subject, Statement] = {}
    for one in said:
        if (before := latest.get(one.subject)) is not None:
            ends[before.number] = one.recorded_at_us
        latest[one.subject] = one
    live = [one for one in said if one.terms is not None]
    live = [one for one in live if ends.get(one.number) != one.recorded_at_us]
    found = [_rectangle(one, ends, live) for one in live]
    return sorted(found, key=lambda one: (one.statement.subject, one.statement.number))


def _rectangle(one: Statement, ends: Mapping[int, int], live: Sequence[Statement]) -> Known:
    """The next row's start is where this one ends: the next of those known to the same end."""
    end = ends.get(one.number)
    beside = [
        other.valid_from_us
        for other in live
        if other.subject.target == one.subject.target
        and other.valid_from_us > one.valid_from_us
        and (end is None or other.recorded_at_us < end)
        and (other.number not in ends or (end is not None and ends[other.number] >= end))
    ]
    assert one.terms is not None
    (rows,) = PriceBook.of([one.terms]).rows.values()
    return Known(
        statement=one,
        known_until_us=end,
        valid_until_us=min(beside, default=one.valid_until_us),
        row=rows[0],
    )


async def targets(store: Store) -> list[Target]:
    """All that anything was ever stated of. Raises StoreUnavailable."""
    query = sa.select(_c.backend, _c.model).distinct().order_by(_c.backend, _c.model)
    return [Target(row["backend"], row["model"]) for row in await store.select(query)]


async def _latest(connection: AsyncConnection) -> Sequence[Statement]:
    found = await connection.execute(_known(None))
    return [_statement(row) for row in found.mappings()]


def _known(at_us: int | None) -> sa.Select[Any]:
    """The last statement of each subject."""
    last = sa.select(sa.func.max(_c.number)).group_by(*_SUBJECT)
    if at_us is not None:
        last = last.where(_c.recorded_at_us <= at_us)
    return sa.select(price_statements).where(_c.number.in_(last)).order_by(_c.number)


def _statement(row: Mapping[Any, Any]) -> Statement:
    return Statement(**row)
