"""What attempts metered and cost, group by group: for reports that price each meter by itself.

Reads the roll-ups by hour, whose sums are exact. Rows are read one by one only where a sum cannot
say it: rates on a marginal scale, and days that begin within an hour.

INVARIANTS
- An attempt belongs to the hour in which its request arrived, as everywhere in the ledger.
- Sums of attempts and of their further meters are of the same attempts: one snapshot has both.
- What metered nothing and cost nothing is in no group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.money import Meter
from gateway.domain.rating import metered, quantities
from gateway.ledger.hours import HOUR_US
from gateway.ledger.prices import FREE
from gateway.ledger.store import (
    Store,
    attempt_dimensions,
    attempt_facts,
    attempt_hours,
    corrections,
    other_meter_hours,
    request_dimensions,
    request_facts,
)
from gateway.reports.meter_lines import Metered

PAGE_ROWS: Final = 5_000
_IDS_MAX: Final = 5_000  # of one question

_SUMS: Final = (
    *("rows", "cost_nano_usd", "costed", "unpriced", "weighed"),
    *("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
)


class Kind(NamedTuple):
    """What the attempts of a group have in common: who asked, where it went, at which rates.

    `tags` are sorted pairs. `shadow`: copies sent for comparison, which are nobody's.
    """

    key_id: str | None
    tags: tuple[tuple[str, str], ...]
    shadow: bool
    alias: str | None
    route: str | None
    backend: str
    model: str
    rates_id: str | None
    service_tier: str | None
    usage_source: str

    @property
    def target(self) -> Target:
        return Target(self.backend, self.model)


@dataclass(slots=True)
class Sum:
    """Of one group: attempts that used something, those without a known price, what was booked."""

    attempts: int = 0
    unpriced: int = 0
    booked_nano: int = 0
    quantities: dict[Meter, int] = field(default_factory=dict)

    def add(self, used: Mapping[Meter, int]) -> None:
        for meter, quantity in used.items():
            self.quantities[meter] = self.quantities.get(meter, 0) + quantity

    @property
    def metered(self) -> Metered:
        return Metered(self.attempts, self.quantities, self.booked_nano)


Groups = dict[tuple[int, Kind], Sum]


class Corrected(NamedTuple):
    """What rating runs found to be otherwise, of one group: by run and the rates it went by."""

    start_us: int
    kind: Kind
    run: int
    rates_id: str
    attempts: int
    delta_nano: int


class Meters:
    """Reads groups. Dimensions are asked for once: keep one of these for a whole report."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._requests: dict[int, Mapping[str, Any]] = {}
        self._attempts: dict[int, Mapping[str, Any]] = {}

    async def groups(
        self, since_us: int, until_us: int, *, step_us: int, backend: str | None = None
    ) -> Groups:
        """By step (an hour or whole days of UTC) and kind; both ends at a full hour.

        Raises StoreUnavailable.
        """
        span = since_us, until_us, step_us
        async with self._store.snapshot() as view:
            attempts = await view.select(_summed(attempt_hours, _SUMS, *span))
            others = await view.select(_summed(other_meter_hours, ("quantity",), *span, "meter"))
        await self._learn([*attempts, *others])
        found: Groups = {}
        for row in attempts:
            kind = self._kind(row)
            if not row["weighed"] or (backend is not None and kind.backend != backend):
                continue
            sums = found.setdefault((int(row["at"]), kind), Sum())
            sums.attempts += int(row["weighed"])
            sums.unpriced += int(row["unpriced"])
            sums.booked_nano += int(row["cost_nano_usd"])
            counts = {name: int(row[name]) for name in _SUMS[5:]}
            sums.add(quantities(metered(counts)))
        for row in others:
            group = found.get((int(row["at"]), self._kind(row)))
            if group is not None:
                group.add({Meter(row["meter"]): int(row["quantity"])})
        return found

    async def rows(
        self,
        since_us: int,
        until_us: int,
        *,
        step_us: int,
        backend: str | None = None,
        rates: Iterable[tuple[Target, str]] | None = None,
    ) -> AsyncIterator[tuple[int, Kind, Sum]]:
        """The same, attempt by attempt, oldest first; of `rates` only where those are given."""
        d = attempt_dimensions.c
        wanted = _months(since_us, until_us)
        if backend is not None:
            wanted.append(d.backend == backend)
        if rates is not None:
            wanted.append(
                sa.or_(
                    *(
                        sa.and_(d.backend == t.backend, d.model == t.model, d.rates_id == name)
                        for t, name in rates
                    )
                )
            )
        async for row in self._pages(_facts().where(*wanted)):
            kind = self._kind(row)
            if kind.usage_source != "none":
                yield int(row["request_started_at_us"]) // step_us * step_us, kind, _single(row)

    async def rated_again(
        self, since_us: int, until_us: int, *, step_us: int, backend: str
    ) -> AsyncIterator[tuple[int, Kind, Sum, str, int]]:
        """Attempts that rating runs corrected: each as booked, and by its newest correction the
        rates and the cost."""
        c, f, d = corrections.c, attempt_facts.c, attempt_dimensions.c
        within = c.request_started_at_us >= since_us, c.request_started_at_us < until_us
        newest = (
            sa.select(c.request_id, c.attempt, sa.func.max(c.run).label("run"))
            .where(*within)
            .group_by(c.request_id, c.attempt)
            .subquery("newest")
        )
        query = _facts(c.rates_id.label("rates_again"), c.cost_nano_usd.label("cost_again"))
        query = (
            query.join(
                corrections,
                sa.and_(
                    c.request_started_at_us == f.request_started_at_us,
                    c.request_id == f.request_id,
                    c.attempt == f.number,
                ),
            )
            .join(
                newest,
                sa.and_(
                    newest.c.request_id == c.request_id,
                    newest.c.attempt == c.attempt,
                    newest.c.run == c.run,
                ),
            )
            .where(*within, *_months(since_us, until_us), d.backend == backend)
        )
        async for row in self._pages(query):
            at = int(row["request_started_at_us"]) // step_us * step_us
            yield at, self._kind(row), _single(row), row["rates_again"], int(row["cost_again"])

    async def _pages(self, query: sa.Select[Any]) -> AsyncIterator[Mapping[str, Any]]:
        """Rows of attempts in order, page by page."""
        page, after = query, None
        while True:
            if after is not None:
                page = query.where(
                    _PLACE[0] >= after[0], sa.tuple_(*_PLACE) > sa.tuple_(*map(sa.literal, after))
                )
            found = await self._store.select(page)
            await self._learn(found)
            for row in found:
                yield row
            if len(found) < PAGE_ROWS:
                return
            after = tuple(found[-1][column.name] for column in _PLACE)

    async def corrected(
        self, since_us: int, until_us: int, *, step_us: int, run: int | None = None
    ) -> list[Corrected]:
        """What rating runs (up to `run`) corrected of requests of that time.

        Of an attempt whose row is gone (retention) only the rates say where it went.
        """
        c, f, r = corrections.c, attempt_facts.c, request_facts.c
        at = _step(c.request_started_at_us, step_us)
        of_attempt = sa.and_(
            f.request_started_at_us == c.request_started_at_us,
            f.request_id == c.request_id,
            f.number == c.attempt,
        )
        of_request = sa.and_(r.started_at_us == c.request_started_at_us, r.id == c.request_id)
        group = (at, c.run, c.rates_id, r.dimension, f.dimension)
        found = await self._store.select(
            sa.select(
                at.label("at"),
                c.run,
                c.rates_id,
                r.dimension.label("request_dimension"),
                f.dimension.label("attempt_dimension"),
                sa.func.count().label("rows"),
                sa.func.sum(c.delta_nano_usd).label("delta"),
            )
            .select_from(corrections)
            .outerjoin(attempt_facts, of_attempt)
            .outerjoin(request_facts, of_request)
            .where(c.request_started_at_us >= since_us, c.request_started_at_us < until_us)
            .where(sa.true() if run is None else c.run <= run)
            .group_by(*group)
        )
        await self._learn([row for row in found if row["attempt_dimension"] is not None])
        sums: dict[tuple[int, Kind, int, str], list[int]] = {}
        for row in found:
            gone = row["attempt_dimension"] is None
            kind = _by_rates(row["rates_id"]) if gone else self._kind(row)
            key = int(row["at"]), kind, int(row["run"]), row["rates_id"]
            one = sums.setdefault(key, [0, 0])
            one[0] += int(row["rows"])
            one[1] += int(row["delta"])
        return [Corrected(*key, *one) for key, one in sums.items()]

    async def _learn(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Ask for the dimensions that were not seen yet."""
        r, a = request_dimensions.c, attempt_dimensions.c
        of_request = (r.key_id, r.tags, r.shadow, r.alias, r.route)
        of_attempt = (a.backend, a.model, a.rates_id, a.service_tier, a.usage_source)
        for name, table, columns, known in (
            ("request_dimension", request_dimensions, of_request, self._requests),
            ("attempt_dimension", attempt_dimensions, of_attempt, self._attempts),
        ):
            new = sorted({row[name] for row in rows} - known.keys())
            for start in range(0, len(new), _IDS_MAX):
                ids = new[start : start + _IDS_MAX]
                query = sa.select(table.c.id, *columns).where(table.c.id.in_(ids))
                known |= {row["id"]: row for row in await self._store.select(query)}

    def _kind(self, row: Mapping[str, Any]) -> Kind:
        of = self._requests[row["request_dimension"]]
        at = self._attempts[row["attempt_dimension"]]
        return Kind(
            key_id=of["key_id"],
            tags=tuple(sorted(of["tags"].items())),
            shadow=bool(of["shadow"]),
            alias=of["alias"],
            route=of["route"],
            backend=at["backend"],
            model=at["model"],
            rates_id=at["rates_id"],
            service_tier=at["service_tier"],
            usage_source=at["usage_source"],
        )


_PLACE: Final = (
    attempt_facts.c.request_started_at_us,
    attempt_facts.c.request_id,
    attempt_facts.c.number,
)


def _summed(
    table: sa.Table,
    sums: Sequence[str],
    since_us: int,
    until_us: int,
    step_us: int,
    *also: str,
) -> sa.Select[Any]:
    """Of a roll-up by step and dimensions."""
    c = table.c
    at = _step(c.hour_us, step_us)
    more = [c[name] for name in ("request_dimension", "attempt_dimension", *also)]
    return (
        sa.select(at.label("at"), *more, *(sa.func.sum(c[name]).label(name) for name in sums))
        .where(*_between(c.hour_us, since_us, until_us))
        .group_by(at, *more)
    )


def _facts(*also: Any) -> sa.Select[Any]:
    """Attempts with the identifiers of their dimensions, in order, a page."""
    f, r = attempt_facts.c, request_facts.c
    return (
        sa.select(
            *_PLACE,
            r.dimension.label("request_dimension"),
            f.dimension.label("attempt_dimension"),
            *(f[name] for name in ("cost_nano_usd", *_SUMS[5:], "other_meters")),
            *also,
        )
        .select_from(attempt_facts)
        .join(
            request_facts,
            sa.and_(r.id == f.request_id, r.started_at_us == f.request_started_at_us),
        )
        .join(attempt_dimensions, attempt_dimensions.c.id == f.dimension)
        .order_by(*_PLACE)
        .limit(PAGE_ROWS)
    )


def _single(row: Mapping[str, Any]) -> Sum:
    cost = row["cost_nano_usd"]
    return Sum(1, int(cost is None), int(cost or 0), quantities(metered(row)))


def _months(since_us: int, until_us: int) -> list[sa.ColumnElement[bool]]:
    """On both facts, so that the database looks into their own months only."""
    columns = attempt_facts.c.request_started_at_us, request_facts.c.started_at_us
    return [end for c in columns for end in (c >= since_us, c < until_us)]


def _by_rates(rates_id: str) -> Kind:
    """As much as the id of rates says: `backend/model@2026-01-01#digest`."""
    target, _, _ = rates_id.removeprefix(FREE).rpartition("@")
    backend, _, model = target.partition("/")
    return Kind(None, (), False, None, None, backend, model, rates_id, None, "none")


def _between(column: Any, since_us: int, until_us: int) -> tuple[Any, Any]:
    return column >= since_us // HOUR_US * HOUR_US, column < until_us


def _step(column: Any, step_us: int) -> Any:
    step = sa.literal(step_us, sa.BigInteger)
    return column // step * step
