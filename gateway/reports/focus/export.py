"""The FOCUS export: what was spent as rows of the FinOps Foundation's format, for finance's tools.

Goes through the period day by day, so that a year takes no more memory than its busiest day. How a
group becomes rows is said in `focus_rows`, the columns in `focus_columns`.

INVARIANTS
- EffectiveCost adds up to what the ledger booked plus what rating runs corrected, to the
  nano-dollar; the sum is taken from the rows as written and held against the ledger's own.
- The digest is SHA-256 of the CSV: `sha256sum` of the file says the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Final, Literal

import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.money import NANO_PER_USD, Rates, Unpriced
from gateway.ledger.hours import HOUR_US
from gateway.ledger.store import Store, attempt_hours, corrections
from gateway.reports.definition import Period, Unusable
from gateway.reports.focus import rows as focus_rows
from gateway.reports.focus.columns import VERSIONS, Column, columns
from gateway.reports.focus.rows import Maker, Row
from gateway.reports.formats.as_text import defused
from gateway.reports.kept import Kept
from gateway.reports.meter_lines import Lines, Metered, meter_lines, one_by_one
from gateway.reports.metered import Groups, Kind, Meters, Sum
from gateway.reports.providers import Provider, provider
from gateway.reports.sums import key_names

DAY_US: Final = 24 * HOUR_US
ORGANIZATION: Final = "Own organization"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One export. Charges are by the hour or the day of UTC; the period begins and ends at one.

    `organization` is who runs what is self-hosted. `run` is the last rating run whose corrections
    are in it, None for all. Raises Unusable where it makes no sense.
    """

    period: Period
    version: str = VERSIONS[0]
    granularity: Literal["hour", "day"] = "day"
    organization: str = ORGANIZATION
    run: int | None = None

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise Unusable(f"--focus-version {self.version}: must be {' or '.join(VERSIONS)}")
        if self.granularity not in {"hour", "day"}:
            raise Unusable(f"--granularity {self.granularity}: must be hour or day")
        for option, at_us in (("since", self.period.since_us), ("until", self.period.until_us)):
            if at_us % HOUR_US:
                raise Unusable(f"--{option}: charges are by the hour; give a full hour of UTC")

    @property
    def step_us(self) -> int:
        return HOUR_US if self.granularity == "hour" else DAY_US

    def days(self) -> int:
        """How many stretches `rows` goes through."""
        return -(-self.period.until_us // DAY_US) - self.period.since_us // DAY_US


@dataclass(slots=True, kw_only=True)
class Summary:
    """What came of an export; whole once `rows` has ended. Costs in USD, from rows as written.

    `unpriced` and `unsplit` count attempts by target. `ledger_nano` is what the ledger itself adds
    up to, with its corrections.
    """

    rows: int = 0
    attempts: int = 0
    billed: Decimal = Decimal(0)
    effective: Decimal = Decimal(0)
    estimated: int = 0
    corrected: Decimal = Decimal(0)
    ledger_nano: int = 0
    unpriced: Counter[Target] = field(default_factory=Counter)
    unsplit: Counter[Target] = field(default_factory=Counter)
    digest: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the rows add up to the ledger."""
        return self.effective * NANO_PER_USD == self.ledger_nano


def header(version: str) -> str:
    """The first line of the CSV."""
    return _lines([[column.name for column in columns(version)]])


async def export(
    store: Store,
    wanted: Wanted,
    kept: Kept,
    summary: Summary,
    *,
    progress: Callable[[], None] = lambda: None,
) -> AsyncIterator[tuple[list[Row], str]]:
    """The rows of each day, and the same as lines of CSV, the header first; fills `summary`.

    Raises StoreUnavailable.
    """
    shown = columns(wanted.version)
    digest = hashlib.sha256()
    text = header(wanted.version)
    digest.update(text.encode())
    yield [], text
    async for made in _Work(store, wanted, kept, summary).rows():
        made.sort(key=lambda row: [row.get(name, "") for name in _ORDER])
        if wanted.version != VERSIONS[0]:
            focus_rows.allocate(made)
        _count(summary, made)
        text = _lines([[_cell(row, column) for column in shown] for row in made])
        digest.update(text.encode())
        yield made, text
        progress()
    summary.ledger_nano = await _booked(store, wanted)
    summary.digest = digest.hexdigest()


_ORDER: Final = (
    *("ChargePeriodStart", "ProviderName", "BillingAccountId", "SubAccountId", "ResourceId"),
    *("SkuPriceId", "x_RowKind", "x_RatesId", "x_ServiceTier", "x_KeyId", "Tags", "x_Alias"),
    *("x_Route", "x_Shadow", "x_UsageSource", "x_RatingRun"),
)


class _Work:
    """One export under way."""

    def __init__(self, store: Store, wanted: Wanted, kept: Kept, summary: Summary) -> None:
        self._store = store
        self._wanted = wanted
        self._kept = kept
        self._summary = summary
        self._meters = Meters(store)
        self._providers: dict[str, Provider] = {}

    async def rows(self) -> AsyncIterator[list[Row]]:
        period = self._wanted.period
        maker = Maker(
            since_us=period.since_us,
            until_us=period.until_us,
            providers=self._providers,
            keys=await key_names(self._store),
        )
        at = period.since_us
        while at < period.until_us:
            ends = min((at // DAY_US + 1) * DAY_US, period.until_us)
            yield [*await self._used(maker, at, ends), *await self._corrected(maker, at, ends)]
            at = ends
        if last := list(maker.rounding()):
            yield last

    async def _used(self, maker: Maker, since_us: int, until_us: int) -> list[Row]:
        groups = await self._meters.groups(since_us, until_us, step_us=self._wanted.step_us)
        singly: Groups = {}
        made: list[Row] = []
        for (at, kind), sums in groups.items():
            await self._meet(kind.backend)
            self._summary.attempts += sums.attempts
            self._summary.estimated += sums.attempts * (kind.usage_source == "estimated")
            if kind.rates_id is None:
                self._summary.unpriced[kind.target] += sums.attempts
                made.append(maker.unpriced(self._span(at), kind, sums))
                continue
            rates = await self._kept.rates(kind.target, kind.rates_id)
            if rates is not None and one_by_one(rates):
                singly[at, kind] = sums
            else:
                parts = [] if rates is None else [_split(rates, sums.metered)]
                made += self._rows(maker, (at, kind), sums, rates, parts)
        if singly:
            made += await self._singly(maker, since_us, until_us, singly)
        return made

    async def _singly(
        self, maker: Maker, since_us: int, until_us: int, groups: Groups
    ) -> list[Row]:
        """Usage on a marginal scale: each attempt has its own place on it, so its row is read."""
        wanted = {(kind.target, kind.rates_id or "") for _, kind in groups}
        rates = {key: await self._kept.rates(*key) for key in wanted}
        parts: dict[tuple[int, Kind], list[Lines | None]] = {}
        rows = self._meters.rows(since_us, until_us, step_us=self._wanted.step_us, rates=wanted)
        async for at, kind, one in rows:
            held = rates[kind.target, kind.rates_id or ""]
            assert held is not None
            parts.setdefault((at, kind), []).append(_split(held, one.metered))
        made = []
        for (at, kind), sums in groups.items():
            found = parts.get((at, kind), [])
            if len(found) != sums.attempts:  # rows are gone (retention)
                found = []
            held = rates[kind.target, kind.rates_id or ""]
            made += self._rows(maker, (at, kind), sums, held, found)
        return made

    def _rows(
        self,
        maker: Maker,
        of: tuple[int, Kind],
        sums: Sum,
        rates: Rates | None,
        parts: Sequence[Lines | None],
    ) -> list[Row]:
        """One row where not all of it can be split by meter."""
        at, kind = of
        lines = [part for part in parts if part is not None]
        if rates is None or not lines or len(lines) < len(parts):
            self._summary.unsplit[kind.target] += sums.attempts
            return [maker.unsplit(self._span(at), kind, sums)]
        return maker.metered(self._span(at), kind, rates, lines)

    async def _corrected(self, maker: Maker, since_us: int, until_us: int) -> list[Row]:
        made = []
        step_us, run = self._wanted.step_us, self._wanted.run
        for one in await self._meters.corrected(since_us, until_us, step_us=step_us, run=run):
            await self._meet(one.kind.backend)
            rates = await self._kept.rates(one.kind.target, one.rates_id)
            made.append(maker.correction(self._span(one.start_us), one, rates))
        return made

    async def _meet(self, backend: str) -> None:
        if backend not in self._providers:
            known = await self._kept.backend(backend)
            self._providers[backend] = provider(
                backend, known, organization=self._wanted.organization
            )

    def _span(self, at: int) -> tuple[int, int]:
        period = self._wanted.period
        return max(at, period.since_us), min(at + self._wanted.step_us, period.until_us)


def _split(rates: Rates, metered: Metered) -> Lines | None:
    """None where the book does not say what was booked: a meter without a price in these rates."""
    try:
        lines = meter_lines(rates, metered)
    except Unpriced:
        return None
    return lines if lines.holds else None


def _count(summary: Summary, rows: Sequence[Row]) -> None:
    summary.rows += len(rows)
    with localcontext(prec=60):
        for row in rows:
            effective = Decimal(row["EffectiveCost"])
            summary.billed += Decimal(row["BilledCost"])
            summary.effective += effective
            if row.get("ChargeClass"):
                summary.corrected += effective


async def _booked(store: Store, wanted: Wanted) -> int:
    """What the ledger adds up to, with what rating runs corrected."""
    h, c = attempt_hours.c, corrections.c
    counted = sa.true() if wanted.run is None else c.run <= wanted.run
    whole = 0
    for column, started, also in (
        (h.cost_nano_usd, h.hour_us, sa.true()),
        (c.delta_nano_usd, c.request_started_at_us, counted),
    ):
        query = sa.select(sa.func.coalesce(sa.func.sum(column), 0).label("nano")).where(also)
        since = started >= wanted.period.since_us, started < wanted.period.until_us
        (row,) = await store.select(query.where(*since))
        whole += int(row["nano"])
    return whole


def _cell(row: Row, column: Column) -> str:
    """Names are given by people, a service tier by vendors: none is to be run as a formula."""
    text = row.get(column.name, "")
    return defused(text) if column.type == "text" else text


def _lines(rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
