"""Rating again: what rows would cost by the price book as it is known now, or was known then.

Rows of the ledger are never changed. A run appends corrections, one per attempt that comes out
otherwise: `delta_nano_usd` is against what stood before the run, so

    what an attempt costs as corrected = booked (0 where it had no price) + the sum of its deltas
                                       = `cost_nano_usd` of its newest correction

and what a request costs as corrected is booked plus the deltas of all its attempts. `deltas` is
that sum for whoever reports: join it on (request_id, attempt), or sum it by request_id; every row
carries `request_started_at_us`, so that a period reads its own part only.

INVARIANTS
- Rated anew is what was metered, at the moment its request arrived (UTC), in the region its
  backend was in by the catalog of that time.
- A price is never taken away: an attempt that has one and would lose it is told, not corrected.
- A correction to 0 of something with tokens needs rates that are declared free.
- Rating the same period by the same book again corrects nothing.
- A run and its corrections appear together, one run at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.errors import NotFound
from gateway.domain.money import Unpriced
from gateway.domain.rating import charge, metered
from gateway.ledger.prices import PriceBook
from gateway.ledger.store import Store, attempts, corrections, now_us, rating_runs, requests
from gateway.ledger.versions import Versions

PAGE_ROWS: Final = 1_000
BUNDLES_MAX: Final = 64
LOST_SHOWN_MAX: Final = 5

_KEY: Final = (
    attempts.c.request_started_at_us,
    attempts.c.request_id,
    attempts.c.number,
)
_USED: Final = (
    *("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
    *("other_meters", "service_tier"),
)

Row = Mapping[str, Any]
# Where a bundle says its backends are: its texts -> {backend: region}. Raises ValueError.
Regions = Callable[[Mapping[str, str]], Mapping[str, str | None]]


class By(NamedTuple):
    """By what is rated: a book, as it was known at `at_us` (recorded time)."""

    book: PriceBook
    at_us: int
    regions: Regions


# --- for reports ----------------------------------------------------------------------------------


def deltas(
    since_us: int | None = None, until_us: int | None = None, *, run: int | None = None
) -> sa.Subquery:
    """Per corrected attempt of requests that arrived in the period (its end is not part of it):

    `request_id`, `attempt`, `request_started_at_us`, `delta_nano_usd` (the sum over all runs, or
    over those up to `run`) and `runs`, how many corrected it. An attempt nobody corrected has no
    row here. A report that is to come out the same again states `newest_run` and asks up to it.
    """
    c = corrections.c
    query = sa.select(
        c.request_id,
        c.attempt,
        c.request_started_at_us,
        _whole(sa.func.sum(c.delta_nano_usd)).label("delta_nano_usd"),
        sa.func.count().label("runs"),
    ).group_by(c.request_id, c.attempt, c.request_started_at_us)
    if since_us is not None:
        query = query.where(c.request_started_at_us >= since_us)
    if until_us is not None:
        query = query.where(c.request_started_at_us < until_us)
    if run is not None:
        query = query.where(c.run <= run)
    return query.subquery("deltas")


async def newest_run(store: Store) -> int:
    """The number of the newest rating run, 0 where there was none. Raises StoreUnavailable."""
    (row,) = await store.select(sa.select(sa.func.max(rating_runs.c.number).label("number")))
    return int(row["number"] or 0)


async def runs(store: Store, *, limit: int = 100) -> list[dict[str, Any]]:
    """The rows of `rating_runs`, the newest first. Raises StoreUnavailable."""
    query = sa.select(rating_runs).order_by(rating_runs.c.number.desc()).limit(limit)
    return await store.select(query)


async def corrections_of(store: Store, request_id: str) -> list[dict[str, Any]]:
    """All corrections of one request, in the order they were made. Raises StoreUnavailable."""
    found = await store.select(
        sa.select(requests.c.started_at_us).where(requests.c.id == request_id)
    )
    if not found:
        return []
    c = corrections.c
    query = sa.select(corrections).where(
        # The index is on the time.
        c.request_started_at_us == found[0]["started_at_us"],
        c.request_id == request_id,
    )
    return await store.select(query.order_by(c.run, c.attempt))


# --- rating again -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which attempts: of requests with `since_us` <= arrival < `until_us`, and by what filters."""

    since_us: int
    until_us: int
    backend: str | None = None
    model: str | None = None
    key_id: str | None = None
    only_unpriced: bool = False

    @property
    def filters(self) -> dict[str, Any]:
        """As a run keeps them: those that were set."""
        named = {"backend": self.backend, "model": self.model, "key_id": self.key_id}
        asked: dict[str, Any] = {name: text for name, text in named.items() if text is not None}
        return asked | ({"only_unpriced": True} if self.only_unpriced else {})

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """On `requests` joined to `attempts`. What has no usage has nothing to rate."""
        asked = [
            requests.c.started_at_us >= self.since_us,
            requests.c.started_at_us < self.until_us,
            attempts.c.request_started_at_us >= self.since_us,
            attempts.c.request_started_at_us < self.until_us,
            attempts.c.usage_source != "none",
        ]
        if self.backend is not None:
            asked.append(attempts.c.backend == self.backend)
        if self.model is not None:
            asked.append(attempts.c.model == self.model)
        if self.key_id is not None:
            asked.append(requests.c.key_id == self.key_id)
        return asked


@dataclass(slots=True, kw_only=True)
class Sums:
    """Of one target. Costs in nano-USD: `stood` before, `would_be` by the book."""

    attempts: int = 0
    corrected: int = 0
    stood: int = 0
    would_be: int = 0
    priced: int = 0  # had no price, and get one
    unpriced: int = 0  # have none, and get none
    lost: int = 0  # have one, and the book knows none: left as they are

    @property
    def delta(self) -> int:
        return self.would_be - self.stood


class Lost(NamedTuple):
    """An attempt that the book cannot price although it has a cost; `why` in words."""

    request_id: str
    attempt: int
    why: str


@dataclass(slots=True, kw_only=True)
class Rerating:
    """What came of it. `run` is None where nothing was written."""

    book_at_us: int
    by: dict[Target, Sums] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)  # the first few
    run: int | None = None

    def total(self) -> Sums:
        whole = Sums()
        for sums in self.by.values():
            for name in Sums.__slots__:
                setattr(whole, name, getattr(whole, name) + getattr(sums, name))
        return whole


async def count(store: Store, wanted: Wanted) -> int:
    """How many attempts there are to rate, at most. Raises StoreUnavailable."""
    query = sa.select(sa.func.count().label("n")).select_from(_joined())
    (row,) = await store.select(query.where(*wanted.conditions()))
    return int(row["n"])


async def rerate(
    store: Store,
    wanted: Wanted,
    by: By,
    *,
    progress: Callable[[int], None] | None = None,
    rows: int = PAGE_ROWS,
) -> Rerating:
    """What would change, of the rows as they are now. Writes nothing. Raises StoreUnavailable."""
    made = Rerating(book_at_us=by.at_us)
    where = _Where(Versions(store), by.regions)
    async with store.snapshot() as snapshot:
        work = _Work(snapshot.select, where, by.book, wanted, made)
        async for _, looked_at in work.pages(rows):
            if progress is not None:
                progress(looked_at)
    return made


async def apply(
    store: Store,
    wanted: Wanted,
    by: By,
    *,
    author: str,
    note: str = "",
    progress: Callable[[int], None] | None = None,
    rows: int = PAGE_ROWS,
) -> Rerating:
    """The same, and append the run with its corrections; no run where there are none.

    All of it is one transaction, and one run at a time. On SQLite nobody else writes meanwhile:
    rows of traffic wait in the journal. Raises StoreUnavailable, with nothing written.
    """
    made = Rerating(book_at_us=by.at_us)
    async with store.turn("ratings") as connection:
        newest = await connection.scalar(sa.select(sa.func.max(rating_runs.c.number)))
        number = (newest or 0) + 1

        async def select(query: sa.Select[Any]) -> Sequence[Row]:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

        work = _Work(select, _Where(Versions(store), by.regions), by.book, wanted, made)
        async for page, looked_at in work.pages(rows):
            if page:
                await connection.execute(
                    sa.insert(corrections), [{"run": number, **one} for one in page]
                )
            if progress is not None:
                progress(looked_at)
        total = made.total()
        if total.corrected:
            made.run = number
            await connection.execute(
                sa.insert(rating_runs).values(
                    number=number,
                    made_at_us=now_us(connection),
                    author=author,
                    note=note,
                    since_us=wanted.since_us,
                    until_us=wanted.until_us,
                    filters=wanted.filters,
                    book_at_us=by.at_us,
                    attempts_rated=total.attempts,
                    attempts_corrected=total.corrected,
                    delta_nano_usd=total.delta,
                )
            )
    return made


class _Work:
    """One rating under way: pages of attempts, in the order requests arrived."""

    def __init__(
        self,
        select: Callable[[sa.Select[Any]], Awaitable[Sequence[Row]]],
        where: _Where,
        book: PriceBook,
        wanted: Wanted,
        made: Rerating,
    ) -> None:
        self._select = select
        self._where = where
        self._book = book
        self._wanted = wanted
        self._made = made

    async def pages(self, rows: int) -> AsyncIterator[tuple[list[dict[str, Any]], int]]:
        """The corrections of each page, and how many attempts it had."""
        after: tuple[Any, ...] | None = None
        while True:
            page = await self._page(after, rows)
            stood = await self._corrected(page)
            made = [one for row in page if (one := await self._rated(row, stood)) is not None]
            yield made, len(page)
            if len(page) < rows:
                return
            after = tuple(page[-1][column.name] for column in _KEY)

    async def _page(self, after: tuple[Any, ...] | None, rows: int) -> Sequence[Row]:
        used = [attempts.c[name] for name in _USED]
        query = (
            sa.select(
                *_KEY,
                *(attempts.c.backend, attempts.c.model, *used),
                *(attempts.c.cost_nano_usd, attempts.c.rates_id, requests.c.policy_digest),
            )
            .select_from(_joined())
            .where(*self._wanted.conditions())
            .order_by(*_KEY)
            .limit(rows)
        )
        if after is not None:
            # The first condition says nothing new; it lets the index on the time find the place.
            query = query.where(attempts.c.request_started_at_us >= after[0])
            query = query.where(sa.tuple_(*_KEY) > sa.tuple_(*map(sa.literal, after)))
        return await self._select(query)

    async def _corrected(self, page: Sequence[Row]) -> dict[tuple[str, int], int]:
        """What the attempts of a page cost by their newest correction."""
        if not page:
            return {}
        c = corrections.c
        first, last = page[0]["request_started_at_us"], page[-1]["request_started_at_us"]
        query = (
            sa.select(c.request_id, c.attempt, c.cost_nano_usd)
            .where(c.request_started_at_us >= first, c.request_started_at_us <= last)
            .order_by(c.run)
        )
        found = await self._select(query)
        return {(row["request_id"], row["attempt"]): row["cost_nano_usd"] for row in found}

    async def _rated(self, row: Row, stood: Mapping[tuple[str, int], int]) -> dict[str, Any] | None:
        """The correction that one attempt needs, None where it needs none."""
        before: int | None = stood.get((row["request_id"], row["number"]), row["cost_nano_usd"])
        if self._wanted.only_unpriced and before is not None:
            return None
        target = Target(row["backend"], row["model"])
        sums = self._made.by.setdefault(target, Sums())
        sums.attempts += 1
        sums.stood += before or 0
        sums.would_be += before or 0
        try:
            rates_id, cost = await self._charge(target, row)
        except Unpriced as error:
            if before is None:
                sums.unpriced += 1
                return None
            sums.lost += 1
            if len(self._made.lost) < LOST_SHOWN_MAX:
                self._made.lost.append(Lost(row["request_id"], row["number"], str(error)))
            return None
        if cost == before:
            return None
        sums.corrected += 1
        sums.priced += before is None
        sums.would_be += cost - (before or 0)
        return {
            "request_id": row["request_id"],
            "attempt": row["number"],
            "request_started_at_us": row["request_started_at_us"],
            "rates_id": rates_id,
            "cost_nano_usd": cost,
            "delta_nano_usd": cost - (before or 0),
        }

    async def _charge(self, target: Target, row: Row) -> tuple[str, int]:
        """Raises Unpriced."""
        at_us = row["request_started_at_us"]
        dated = self._book.row(target, at_us)
        if dated is None:
            raise Unpriced(f"the book has no price of {target} at that time")
        region = await self._where.region(row["policy_digest"], target.backend)
        try:
            usage = metered(row)
        except ValueError as error:  # a newer version, in the same database, knows more meters
            raise Unpriced(f"it metered what this version does not know: {error}") from None
        return charge(dated.at(at_us, region), usage)


class _Where:
    """Where backends were, by the catalogs of the bundles that rows name."""

    def __init__(self, versions: Versions, regions: Regions) -> None:
        self._versions = versions
        self._regions = regions
        self._kept: OrderedDict[str | None, Mapping[str, str | None]] = OrderedDict()

    async def region(self, digest: str | None, backend: str) -> str | None:
        """None where the bundle does not say, or is not kept, or cannot be read."""
        if digest not in self._kept:
            self._kept[digest] = await self._read(digest)
            if len(self._kept) > BUNDLES_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(digest)
        return self._kept[digest].get(backend)

    async def _read(self, digest: str | None) -> Mapping[str, str | None]:
        try:
            return self._regions(await self._versions.files(digest or ""))
        except (NotFound, ValueError):
            return {}


def _joined() -> sa.FromClause:
    return attempts.join(
        requests,
        sa.and_(
            requests.c.id == attempts.c.request_id,
            requests.c.started_at_us == attempts.c.request_started_at_us,
        ),
    )


def _whole(amount: Any) -> Any:
    return sa.cast(sa.func.coalesce(amount, 0), sa.BigInteger)
