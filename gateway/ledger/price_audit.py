"""The audit of what rows are rated by and what was corrected: statements, runs, corrections.

Part of `ledger.audit`, which hands out the checks and the bundles. Reads only.

A statement that was changed differs from the texts of the bundle that brought it, and those have a
digest; one that was taken out leaves a gap in the numbers, or a price that is in force and not
known. So nobody edits what was known of prices without being told of here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.money import Rates, Unpriced
from gateway.ledger import known_prices
from gateway.ledger.case import TOKENS
from gateway.ledger.known_prices import Statement, Subject
from gateway.ledger.laws_of_money import made_of, weighable
from gateway.ledger.prices import FREE, Dated, PriceBook
from gateway.ledger.store import Store, attempts, corrections, rating_runs
from gateway.ledger.versions import Versions

# Name -> the law in a sentence, and what to do where it is broken.
LAWS: Final[Mapping[str, tuple[str, str]]] = {
    "corrections": (
        "A correction names an attempt that was metered, and a rating run.",
        "Rows were deleted: restore them from a backup.",
    ),
    "corrections_sum": (
        "Booked plus all deltas is what the newest correction says, and 0 only if declared free.",
        "Somebody changed the row: restore it from a backup, then look at who may write there.",
    ),
    "correction_rated": (
        "What was metered makes the cost of a correction, at the rates that it names.",
        "Somebody changed the row: restore it from a backup, then look at who may write there.",
    ),
    "run_totals": (
        "A rating run counts and adds up its corrections.",
        "Somebody changed the run or its corrections: restore them from a backup.",
    ),
    "price_statements": (
        "Price statements have no gap, their times ascend, each says what its bundle says.",
        "Somebody changed what was known: restore it from a backup, or from the bundle's texts.",
    ),
    "prices_known": (
        "What is known of prices is what the version in force says.",
        "Start a gateway: it states what is missing. If that was not it, restore the statements.",
    ),
}

Add = Callable[[str, str, str], None]  # a law's name, what it is about, what was found
Looked = Callable[[str, int], None]
BookOf = Callable[[str], Awaitable[PriceBook | None]]  # of a bundle, by its digest

_c = corrections.c
_KEY: Final = (_c.request_started_at_us, _c.request_id, _c.attempt, _c.run)
_USED: Final = tuple(
    attempts.c[name]
    for name in (
        *("backend", "model", "usage_source", "other_meters", "service_tier"),
        *(*TOKENS, "reasoning_tokens"),
    )
)


class PriceAudit:
    """One audit under way; `add` and `looked` are told what it finds and how much it saw."""

    def __init__(self, store: Store, book_of: BookOf, add: Add, looked: Looked) -> None:
        self._store = store
        self._book_of = book_of
        self._add = add
        self._looked = looked

    # --- corrections ------------------------------------------------------------------------

    async def corrections(self, since_us: int, until_us: int, rows: int) -> None:
        """Those of requests that arrived in the period: each chain of deltas, from its start."""
        after: tuple[Any, ...] | None = None
        chain: tuple[str, int] | None = None  # the attempt whose corrections are being read
        stood: int | None = None
        stated: dict[Target, dict[str, Rates]] | None = None
        while page := await self._page(since_us, until_us, after, rows):
            self._looked("corrections", len(page))
            self._looked("corrections_sum", len(page))
            if stated is None:
                stated = await self._stated()
            for row in page:
                if chain != (row["request_id"], row["attempt"]):
                    chain, stood = (row["request_id"], row["attempt"]), row["booked"]
                self._named(row)
                self._chained(row, stood)
                self._rated(row, stated)
                stood = row["cost_nano_usd"]
            after = tuple(page[-1][column.name] for column in _KEY)

    def _named(self, row: Mapping[str, Any]) -> None:
        where = f"run {row['run']}, attempt {row['attempt']}"
        if row["there"] is None:
            self._add("corrections", row["request_id"], f"{where}: there is no such attempt")
        elif row["usage_source"] == "none":
            self._add("corrections", row["request_id"], f"{where}: nothing was metered")
        elif row["known_run"] is None:
            self._add("corrections", row["request_id"], f"{where}: there is no such run")

    def _chained(self, row: Mapping[str, Any], stood: int | None) -> None:
        if row["there"] is None:
            return
        where, cost = f"run {row['run']}, attempt {row['attempt']}", row["cost_nano_usd"]
        if cost != (stood or 0) + row["delta_nano_usd"]:
            found = f"{cost} nano-USD, but {stood} and {row['delta_nano_usd']} make it otherwise"
            self._add("corrections_sum", row["request_id"], f"{where}: {found}")
        elif cost < 0 or (cost == 0 and not row["rates_id"].startswith(FREE)):
            self._add("corrections_sum", row["request_id"], f"{where}: costs {cost} nano-USD")

    def _rated(self, row: Mapping[str, Any], stated: Mapping[Target, Mapping[str, Rates]]) -> None:
        if row["there"] is None or not weighable(row):
            return
        self._looked("correction_rated", 1)
        where, cost = f"run {row['run']}, attempt {row['attempt']}", row["cost_nano_usd"]
        target = Target(row["backend"], row["model"])
        rates = stated.get(target, {}).get(row["rates_id"])
        try:
            due = None if rates is None else made_of(row, rates)
        except Unpriced as error:
            found = f"{cost} nano-USD, but {error}"
        else:
            if due == cost:
                return
            found = f"{cost} nano-USD, {row['rates_id']} makes it {due}"
            if rates is None:
                found = f"no rates {row['rates_id']!r} of {target} were ever stated"
        self._add("correction_rated", row["request_id"], f"{where}: {found}")

    async def _stated(self) -> dict[Target, dict[str, Rates]]:
        """All rates that were ever known, by their ids; also those taken back since."""
        found: dict[Target, dict[str, Rates]] = {}
        for one in await known_prices.statements(self._store):
            try:
                rows = PriceBook.of([] if one.terms is None else [one.terms]).rows
            except ValueError:  # not a row: for the law on statements
                continue
            for target, dated in rows.items():
                ids = found.setdefault(target, {})
                ids.update((rates.id, rates) for row in dated for rates in row.every())
        return found

    async def _page(
        self, since_us: int, until_us: int, after: tuple[Any, ...] | None, rows: int
    ) -> Sequence[Mapping[str, Any]]:
        same = sa.and_(
            attempts.c.request_id == _c.request_id,
            attempts.c.number == _c.attempt,
            attempts.c.request_started_at_us == _c.request_started_at_us,
        )
        query = (
            sa.select(
                corrections,
                attempts.c.request_id.label("there"),
                attempts.c.cost_nano_usd.label("booked"),
                *_USED,
                rating_runs.c.number.label("known_run"),
            )
            .select_from(
                corrections.outerjoin(attempts, same).outerjoin(
                    rating_runs, rating_runs.c.number == _c.run
                )
            )
            .where(_c.request_started_at_us >= since_us, _c.request_started_at_us < until_us)
            .order_by(*_KEY)
            .limit(rows)
        )
        if after is not None:
            query = query.where(_c.request_started_at_us >= after[0])
            query = query.where(sa.tuple_(*_KEY) > sa.tuple_(*map(sa.literal, after)))
        return await self._store.select(query)

    async def runs(self) -> None:
        """All there are: their corrections may lie anywhere."""
        sums = (
            sa.select(
                _c.run,
                sa.func.count().label("rows"),
                sa.cast(sa.func.sum(_c.delta_nano_usd), sa.BigInteger).label("delta"),
            )
            .group_by(_c.run)
            .subquery()
        )
        query = sa.select(rating_runs, sums.c.rows, sums.c.delta)
        query = query.outerjoin(sums, sums.c.run == rating_runs.c.number)
        before = 0
        for row in await self._store.select(query.order_by(rating_runs.c.number)):
            self._looked("run_totals", 1)
            said = row["attempts_corrected"], row["delta_nano_usd"]
            due = row["rows"] or 0, row["delta"] or 0
            name = f"run {row['number']}"
            if row["number"] != before + 1:
                self._add("run_totals", name, f"comes after run {before}")
            elif said != due:
                found = f"{due[0]} corrections of {due[1]} nano-USD, it says {said[0]} of {said[1]}"
                self._add("run_totals", name, found)
            before = row["number"]

    # --- statements -------------------------------------------------------------------------

    async def statements(self, since_us: int) -> None:
        """Numbers and times of all, and what those say that were recorded in the period."""
        said = await known_prices.statements(self._store)
        self._looked("price_statements", len(said))
        number, at_us = 0, 0
        books: dict[str, Mapping[Subject, Dated] | None] = {}
        for one in said:
            what = f"{one.backend}/{one.model}"
            if one.number != number + 1:
                self._add("price_statements", what, f"number {one.number} comes after {number}")
            elif one.recorded_at_us < at_us:
                early = (at_us - one.recorded_at_us) / 1e6
                self._add(
                    "price_statements", what, f"number {one.number} is {early:,.0f} s too early"
                )
            elif one.recorded_at_us >= since_us:
                if one.digest not in books:
                    book = await self._book_of(one.digest)
                    books[one.digest] = None if book is None else known_prices.subjects(book)
                if (found := _unlike(one, books[one.digest])) is not None:
                    self._add("price_statements", what, f"number {one.number}: {found}")
            number, at_us = one.number, max(at_us, one.recorded_at_us)

    async def known(self) -> None:
        """Whether the book as known is that of the version in force."""
        newest = await Versions(self._store).newest()
        book = None if newest is None else await self._book_of(newest.digest)
        if book is None:
            return
        self._looked("prices_known", sum(len(rows) for rows in book.rows.values()))
        for subject, what in await known_prices.unlike(self._store, book):
            self._add("prices_known", str(subject.target), what)


def _unlike(one: Statement, rows: Mapping[Subject, Dated] | None) -> str | None:
    """How a statement differs from what its bundle says; None where that cannot be read."""
    if rows is None:
        return None
    row = rows.get(one.subject)
    if one.terms is None:
        return None if row is None else "takes back what its bundle says"
    if row is None:
        return "its bundle has no such row"
    until_us = row.until_us if "until" in row.terms else None
    if (one.terms, one.rates_id, one.valid_until_us) != (row.terms, row.base.id, until_us):
        return "its bundle says otherwise"
    return None
