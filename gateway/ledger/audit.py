"""The audit: everything that must hold of the ledger, looked up again from its rows.

Owns the reading (pages of requests with their attempts, the bundles they were decided by, the
journals of this machine) and the report. What must hold of one request is `laws`. Reads only, on
Postgres and SQLite alike; of keys, holds and policy files it knows what it is told.

INVARIANTS
- Memory is bounded: a page of rows, a few bundles, the first few ids of each check.
- Pages follow (started_at_us, id). The end is fixed at the start, so an audit of a gateway under
  load ends; what arrives behind the place already read is for the next audit.
- A request and its attempts are written together, so a gateway at work breaks no law. What is
  still on its way (a row in a journal, the original of a copy) is counted, not blamed.
"""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from gateway.domain.errors import NotFound
from gateway.ledger.audit_report import FIGURES, OTHERS, SHOWN_MAX, Check, Found, Report
from gateway.ledger.laws import LAWS, Book, Case, Row, check
from gateway.ledger.price_audit import PriceAudit
from gateway.ledger.prices import PriceBook
from gateway.ledger.store import Store, attempts, prunings, requests
from gateway.ledger.unsent import REFUSED, pages, segments
from gateway.ledger.versions import Versions

__all__ = ["Check", "Found", "Read", "Report", "Unreadable", "audit", "count", "database_us"]

PAGE_ROWS = 1_000
BOOKS_MAX = 16
SKEW_US = 10_000_000  # what the clocks of gateways and database may differ
WAIT_US = 60_000_000  # in which a row reaches the database, unless that is away
COPY_WAIT_US = 3_600_000_000  # in which the original of a copy has ended

_KEY = (requests.c.started_at_us, requests.c.id)
_ATTEMPT_KEY = (attempts.c.started_at_us, attempts.c.request_id, attempts.c.number)


class Unreadable(Exception):
    """The texts of a bundle are not what this version can read. Says why."""


class Read(Protocol):
    """Makes a Book of a bundle's texts, and names the texts by their digest."""

    def __call__(self, files: Mapping[str, str]) -> tuple[str, Book]:
        """Raises Unreadable."""
        ...


async def audit(
    store: Store,
    *,
    read: Read,
    since_us: int,
    until_us: int | None = None,
    journal: Path | None = None,
    holds: AsyncIterator[Sequence[str]] | None = None,
    progress: Callable[[int], None] | None = None,
    rows: int = PAGE_ROWS,
) -> Report:
    """Check every request with `since_us` <= arrival < `until_us`, and what lies in `journal`.

    Without `until_us` up to the database's present. `holds` are pages of the ids for which a
    budget is held now. `progress` is told how many more requests are done. Raises
    StoreUnavailable.
    """
    now_us = await database_us(store)
    end_us = min(now_us + SKEW_US, until_us or now_us + SKEW_US)
    run = _Run(store, _Bundles(store, read), since_us, end_us, now_us)
    await run.prunings()
    after: tuple[int, str] = (since_us, "")
    while page := await run.page(after, rows):
        await run.judge(page)
        if progress is not None:
            progress(len(page))
        after = page[-1]["started_at_us"], page[-1]["id"]
    await run.orphans(5 * rows)
    await run.future(until_us)
    await run.prices(rows)
    await run.rollups()
    if journal is not None:
        await run.journals(journal, rows)
    if holds is not None:
        await run.open_holds(holds)
    run.bundles.tell(run.report)
    return run.report


async def count(store: Store, since_us: int, until_us: int | None) -> int:
    """How many requests an audit of the period will look at."""
    where = [requests.c.started_at_us >= since_us]
    if until_us is not None:
        where.append(requests.c.started_at_us < until_us)
    (row,) = await store.select(sa.select(sa.func.count().label("rows")).where(*where))
    return int(row["rows"])


async def database_us(store: Store) -> int:
    """The database's clock, in microseconds since the Unix epoch; SQLite's in whole seconds."""
    (row,) = await store.select(sa.select(sa.extract("epoch", sa.func.now()).label("now")))
    return int(row["now"] * 1_000_000)


class _Bundle(NamedTuple):
    book: Book | None
    in_versions: bool


class _Bundles:
    """The bundles that rows name, read when they are first met; the last few are kept."""

    def __init__(self, store: Store, read: Read) -> None:
        self._versions = Versions(store)
        self._read = read
        self._kept: OrderedDict[str, _Bundle] = OrderedDict()
        self._seen: set[str] = set()
        self._changed: list[Found] = []
        self._unreadable: list[Found] = []

    async def get(self, digest: str) -> _Bundle:
        found = self._kept.get(digest)
        if found is None:
            in_versions = await self._versions.since(digest, after=0) is not None
            found = self._kept[digest] = _Bundle(await self._book(digest), in_versions)
            self._seen.add(digest)
            if len(self._kept) > BOOKS_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(digest)
        return found

    async def _book(self, digest: str) -> Book | None:
        again = digest in self._seen
        try:
            named, book = self._read(await self._versions.files(digest))
        except (Unreadable, NotFound) as error:
            if not again:
                why = error.message if isinstance(error, NotFound) else str(error)
                self._unreadable.append(Found(digest[:12], why))
            return None
        if named != digest and not again:
            self._changed.append(Found(digest[:12], f"the texts have the digest {named[:12]}"))
        return book

    def tell(self, report: Report) -> None:
        report.figures["bundles"] = len(self._seen)
        whole, readable = report.checks["bundle_unchanged"], report.checks["bundle_readable"]
        whole.looked = readable.looked = len(self._seen)
        for found in self._changed:
            whole.add(found)
        for found in self._unreadable:
            readable.add(found)


class _Run:
    """One audit under way."""

    def __init__(
        self, store: Store, bundles: _Bundles, since_us: int, until_us: int, now_us: int
    ) -> None:
        self._store = store
        self.bundles = bundles
        self._now_us = now_us
        self._since_us, self._until_us = since_us, until_us
        self._rows_pruned_us = self._decisions_pruned_us = 0
        laws = [Check(name=law.name, says=law.says, fix=law.fix) for law in LAWS]
        others = [Check(name=c.name, says=c.says, fix=c.fix, weight=c.weight) for c in OTHERS]
        checks = {made.name: made for made in (*laws, *others)}
        self._laws = [(law, checks[law.name]) for law in LAWS]
        self.report = Report(
            since_us=since_us,
            until_us=min(until_us, now_us),
            checks=checks,
            figures=dict.fromkeys(FIGURES, 0),
        )

    # --- requests ---------------------------------------------------------------------------

    async def page(self, after: tuple[int, str], rows: int) -> list[dict[str, Any]]:
        """The next requests behind `after`."""
        query = (
            sa.select(requests)
            # The first condition says nothing new; it lets the index on the time find the place.
            .where(requests.c.started_at_us >= after[0])
            .where(requests.c.started_at_us < self._until_us)
            .where(sa.tuple_(*_KEY) > sa.tuple_(*map(sa.literal, after)))
            .order_by(*_KEY)
            .limit(rows)
        )
        return await self._store.select(query)

    async def judge(self, page: Sequence[Row]) -> None:
        """All laws over the requests of a page."""
        ids = [row["id"] for row in page]
        of: dict[str, list[Row]] = {request_id: [] for request_id in ids}
        query = sa.select(attempts).where(attempts.c.request_id.in_(ids))
        for tried in await self._store.select(query.order_by(*_ATTEMPT_KEY[1:])):
            of[tried["request_id"]].append(tried)
        await self._unique(ids)
        originals = await self._originals(page)
        old_us = self._now_us - COPY_WAIT_US
        for row in page:
            bundle = await self.bundles.get(row["policy_digest"] or "")
            case = Case(
                row=row,
                attempts=of[row["id"]],
                book=bundle.book,
                in_versions=bundle.in_versions,
                original=originals.get(row["shadow_of"]),
                waiting=row["started_at_us"] > old_us
                or row["started_at_us"] < self._rows_pruned_us + COPY_WAIT_US,
                pruned=row["started_at_us"] < self._decisions_pruned_us,
            )
            for law, tally in self._laws:
                if law.applies(case):
                    tally.looked += 1
                    if (what := check(law, case)) is not None:
                        tally.add(Found(row["id"], what))
            self._figure(case)

    async def prunings(self) -> None:
        """What was deleted by policy is not missing."""
        deleted, emptied = prunings.c.rows_before_us, prunings.c.decisions_before_us
        query = sa.select(
            sa.func.max(deleted).label("rows"), sa.func.max(emptied).label("decisions")
        )
        (row,) = await self._store.select(query)
        self._rows_pruned_us, self._decisions_pruned_us = row["rows"] or 0, row["decisions"] or 0

    async def prices(self, rows: int) -> None:
        """What was stated of prices, and corrections."""
        checks = self.report.checks

        async def book_of(digest: str) -> PriceBook | None:
            book = (await self.bundles.get(digest)).book
            return None if book is None else book.prices

        def add(law: str, about: str, what: str) -> None:
            checks[law].add(Found(about, what))

        def looked(law: str, count: int) -> None:
            checks[law].looked += count

        work = PriceAudit(self._store, book_of, add, looked)
        since_us = max(self._since_us, self._rows_pruned_us)
        await work.corrections(since_us, self._until_us, rows)
        await work.runs()
        await work.statements(self._since_us)
        await work.known()

    async def rollups(self) -> None:
        """Sums by hour, of the hours that the period touches."""
        found = await self._store.rollups_agree(self._since_us, self._until_us)
        tally = self.report.checks["rollups"]
        tally.looked = found.hours
        by_hour: dict[tuple[str, int], list[str]] = {}
        for one in found.differences:
            said = f"{one.column} {one.booked or 0}, the rows make it {one.counted or 0}"
            by_hour.setdefault((one.table, one.key[0]), []).append(said)
        for (table, hour_us), each in by_hour.items():
            hour = dt.datetime.fromtimestamp(hour_us // 1_000_000, dt.UTC)
            what = each[0] if len(each) == 1 else f"{len(each)} sums differ, the first: {each[0]}"
            tally.add(Found(f"{table} {hour:%Y-%m-%d %H:%M} UTC", what))

    async def _unique(self, ids: Sequence[str]) -> None:
        tally = self.report.checks["unique"]
        tally.looked += len(ids)
        query = sa.select(requests.c.id, sa.func.count().label("times"))
        query = query.where(requests.c.id.in_(ids)).group_by(requests.c.id)
        for row in await self._store.select(query.having(sa.func.count() > 1)):
            tally.add(Found(row["id"], f"there {row['times']} times"))

    async def _originals(self, page: Sequence[Row]) -> dict[str, Row]:
        wanted = {row["shadow_of"] for row in page} - {None}
        if not wanted:
            return {}
        columns = requests.c.id, requests.c.shadow_of, requests.c.privacy_class
        query = sa.select(*columns).where(requests.c.id.in_(wanted))
        return {row["id"]: row for row in await self._store.select(query)}

    def _figure(self, case: Case) -> None:
        row, figures = case.row, self.report.figures
        figures["requests"] += 1
        figures["attempts"] += len(case.attempts)
        figures["cost_nano_usd"] += row["cost_nano_usd"] or 0
        weighed = [a for a in case.attempts if a["usage_source"] != "none"]
        unpriced = sum(a["cost_nano_usd"] is None for a in weighed)
        figures["unpriced_attempts"] += unpriced
        figures["unpriced_requests"] += unpriced > 0
        figures["estimated_requests"] += any(a["usage_source"] == "estimated" for a in weighed)
        figures["interrupted_requests"] += case.interrupted
        if row["shadow_of"] is not None:
            figures["copies"] += 1
            figures["copies_waiting"] += case.original is None and case.waiting

    async def orphans(self, rows: int) -> None:
        """Attempts whose request is not there."""
        tally = self.report.checks["orphans"]
        after: tuple[int, str, int] = (self._since_us, "", 0)
        while True:
            query = (
                sa.select(*_ATTEMPT_KEY)
                .where(attempts.c.started_at_us >= after[0])
                .where(attempts.c.started_at_us < self._until_us)
                .where(sa.tuple_(*_ATTEMPT_KEY) > sa.tuple_(*map(sa.literal, after)))
                .order_by(*_ATTEMPT_KEY)
                .limit(rows)
            )
            page = await self._store.select(query)
            tally.looked += len(page)
            absent = await self._absent(list({row["request_id"] for row in page}))
            for row in page:
                if row["request_id"] in absent:
                    tally.add(Found(row["request_id"], f"attempt {row['number']} has no request"))
            if len(page) < rows:
                return
            after = tuple(page[-1][column.name] for column in _ATTEMPT_KEY)

    async def future(self, until_us: int | None) -> None:
        """Requests from after now; a period that ends before cannot hold any."""
        tally = self.report.checks["future"]
        tally.looked = self.report.figures["requests"]
        latest_us = self._now_us + SKEW_US
        if until_us is not None and until_us <= latest_us:
            return
        later = requests.c.started_at_us >= latest_us
        (row,) = await self._store.select(sa.select(sa.func.count().label("n")).where(later))
        query = sa.select(*_KEY).where(later).order_by(*_KEY).limit(SHOWN_MAX)
        for found in await self._store.select(query):
            ahead = (found["started_at_us"] - self._now_us) / 1e6
            tally.first.append(Found(found["id"], f"started {ahead:,.0f} s ahead"))
        tally.broken = row["n"]
        tally.looked += row["n"]

    # --- what is not in the database -----------------------------------------------------------

    async def _absent(self, ids: Sequence[str]) -> set[str]:
        query = sa.select(requests.c.id).where(requests.c.id.in_(ids))
        return set(ids) - {row["id"] for row in await self._store.select(query)}

    async def journals(self, folder: Path, rows: int) -> None:
        """The segments of living and dead workers in this folder, and what was refused."""
        figures, checks = self.report.figures, self.report.checks
        await self._refused(folder / REFUSED, rows)
        for path, alive in segments(folder):
            left = await self._left(path, rows)
            if not path.exists():  # sent and deleted meanwhile
                continue
            figures["rows_waiting"] += left.rows
            tally = checks["journal_sent" if alive else "journal_adopted"]
            tally.looked += 1
            age_s = (self._now_us - left.oldest_us) / 1e6
            what = f"{left.rows} rows are not in the database, the oldest ended {age_s:,.0f} s ago"
            if alive:
                figures["requests_in_flight"] += left.opened
                if left.rows and left.oldest_us < self._now_us - WAIT_US:
                    tally.add(Found(path.name, what))
            else:
                what = what if left.rows else "no rows are missing"
                tally.add(Found(path.name, f"{what}; {left.opened} requests were cut off"))

    async def _left(self, path: Path, rows: int) -> _Left:
        """Which final lines of a segment are not in the database."""
        count, oldest_us, opened = 0, self._now_us, set[str]()
        for page in pages(path, rows):
            ended: dict[str, int] = {}
            for line in page:
                if "open" in line:
                    opened.add(line["id"])
                else:
                    opened.discard(line["id"])
                    ended[line["id"]] = line["started_at_us"] + (line.get("duration_us") or 0)
            for request_id in await self._absent(list(ended)):
                count += 1
                oldest_us = min(oldest_us, ended[request_id])
        return _Left(count, oldest_us, len(opened))

    async def _refused(self, path: Path, rows: int) -> None:
        tally = self.report.checks["refused_rows"]
        for page in pages(path, rows):
            tally.looked += len(page)
            for request_id in sorted(await self._absent([line["id"] for line in page])):
                tally.add(Found(request_id, f"in {path.name}, not in the database"))

    async def open_holds(self, holds: AsyncIterator[Sequence[str]]) -> None:
        """Holds of requests that ended a while ago. Those cut off are settled by the journal."""
        tally = self.report.checks["holds"]
        old_us = self._now_us - WAIT_US
        async for ids in holds:
            tally.looked += len(ids)
            ended = requests.c.started_at_us + sa.func.coalesce(requests.c.duration_us, 0)
            query = sa.select(requests.c.id, ended.label("ended_us")).where(
                requests.c.id.in_(ids), requests.c.outcome != "interrupted", ended < old_us
            )
            for row in await self._store.select(query):
                ago_s = (self._now_us - row["ended_us"]) / 1e6
                tally.add(Found(row["id"], f"ended {ago_s:,.0f} s ago"))


class _Left(NamedTuple):
    """Of one segment: rows not in the database, when the oldest ended, requests still open."""

    rows: int
    oldest_us: int
    opened: int
