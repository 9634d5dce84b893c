"""The price book: what each model at each backend costs, from which moment on. Pure.

Owns the choice of the row in force at a moment, of its variant for the backend's region and the
hour, and the identity of rates. `price_file` is how rows are written; `domain.money` and
`domain.rating` compute with what this hands out.

INVARIANTS
- Unknown is None, never 0: a target without a row in force has no rates.
- Rows are appended, not edited: a new price is a new row with its own `from`. Two rows that hold
  for one target at one moment are refused, across files, and so is a hole between two.
- An id names its figures: it carries a digest of them, so a corrected row is other rates.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

from gateway.domain.catalog import Target
from gateway.domain.money import Meter, Rates, Tier
from gateway.ledger import price_file
from gateway.ledger.price_file import METERS, GpuHour, PriceRow, PricesFile, Scale, Variant, instant
from gateway.policy.source import ConfigErrors, Findings, Path, Problem, json_schema, read

_MINUTE_US = 60_000_000
_DAY_US = 86_400_000_000
FREE = "free:"  # how the id of rates that are declared free begins: the ledger takes their 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Special:
    """Rates under conditions; `rank` is how many they are.

    `turns` are the minutes of the day at which they begin or end to hold.
    """

    rates: Rates
    service_tier: str | None
    region: str | None
    minutes: frozenset[int]
    turns: frozenset[int]
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dated:
    """One row made ready: it holds for `from_us` <= moment < `until_us` (None: for good).

    `terms` is the row as written; `place` is where. The standard rates are `base`.
    """

    from_us: int
    until_us: int | None
    base: Rates
    specials: tuple[_Special, ...] = ()
    terms: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    def at(self, at_us: int, region: str | None = None) -> Rates:
        """The rates at that time of the day in that region, with those of its service tiers."""
        if not self.specials:
            return self.base
        minute = at_us // _MINUTE_US % price_file.DAY_MINUTES
        best: dict[str | None, _Special] = {}
        for one in self.specials:
            if minute in one.minutes and one.region in (None, region):
                known = best.get(one.service_tier)
                if known is None or one.rank > known.rank:
                    best[one.service_tier] = one
        standard = best.pop(None).rates if None in best else self.base
        tiers = {name: one.rates for name, one in best.items() if name is not None}
        return replace(standard, service_tiers=tiers) if tiers else standard

    @property
    def since(self) -> str:
        """Its start as it was written."""
        return str(self.terms.get("from", "the beginning"))

    @property
    def besides(self) -> str:
        """The rates it has beside the standard's input and output, by their ids and meters."""
        others = [f"{m.value} ${p.normalize():f}" for m, p in self.base.others.items()]
        inside = [rates.id.partition("#")[2].partition(";")[2] for rates in self.every()][1:]
        return "".join(f"; {what}" for what in (*others, *inside))

    def every(self) -> Iterator[Rates]:
        """All rates this row can lead to."""
        for rates in (self.base, *(one.rates for one in self.specials)):
            yield from rates.every()

    def turns(self) -> frozenset[int]:
        """The minutes of the day at which its rates change."""
        return frozenset().union(*(one.turns for one in self.specials))


@dataclass(frozen=True, slots=True)
class PriceBook:
    """All rows of all files; `rows` of a target ascend by their start.

    `regions` says where each backend is, for prices that differ by it. `_spans` are moments from
    which on a change is the next one: each worker asks for it twice a second.
    """

    rows: Mapping[Target, tuple[Dated, ...]]
    regions: Mapping[str, str | None] = field(default_factory=dict)
    gpu_hours: tuple[GpuHour, ...] = ()
    currencies: tuple[price_file.Exchange, ...] = ()
    _spans: deque[tuple[int, int | None]] = field(
        default_factory=lambda: deque(maxlen=4), init=False, repr=False, compare=False
    )

    @classmethod
    def always(cls, rates: Mapping[Target, Rates]) -> PriceBook:
        """A book in which these hold at every moment."""
        return cls(
            {t: (Dated(from_us=-(1 << 62), until_us=None, base=r),) for t, r in rates.items()}
        )

    @classmethod
    def of(
        cls, terms: Iterable[Mapping[str, Any]], regions: Mapping[str, str | None] | None = None
    ) -> PriceBook:
        """The book of rows as they were written (`Dated.terms`), which fit together.

        Raises ValueError where one is none.
        """
        found: dict[Target, list[Dated]] = {}
        for said in terms:
            row = PriceRow.model_validate_json(json.dumps(dict(said)))
            found.setdefault(Target(row.backend, row.model), []).append(_dated(row, ""))
        return cls({target: _following(rows) for target, rows in found.items()}, regions or {})

    def row(self, target: Target, at_us: int) -> Dated | None:
        """The row of `target` in force at that moment (microseconds since the epoch, UTC)."""
        rows = self.rows.get(target, ())
        index = bisect_right(rows, at_us, key=lambda row: row.from_us)
        if not index:
            return None
        row = rows[index - 1]
        return row if row.until_us is None or at_us < row.until_us else None

    def rates(self, target: Target, at_us: int) -> Rates | None:
        """What `target` costs at that moment; None where that is not known."""
        row = self.row(target, at_us)
        return None if row is None else row.at(at_us, self.regions.get(target.backend))

    def in_force(self, at_us: int) -> dict[Target, Rates]:
        """The rates of every target paid by the token that has some: what routing is given."""
        known = ((target, self.rates(target, at_us)) for target in self.rows)
        return {t: rates for t, rates in known if rates is not None and rates.by_token}

    def by_id(self, target: Target, rates_id: str) -> Rates | None:
        """The rates of that id, whatever their time."""
        every = (rates for row in self.rows.get(target, ()) for rates in row.every())
        return next((rates for rates in every if rates.id == rates_id), None)

    def changes_after(self, at_us: int) -> int | None:
        """The next moment at which any rates change, None where none ever do."""
        for since_us, change_us in self._spans:
            if since_us <= at_us and (change_us is None or at_us < change_us):
                return change_us
        change_us = self._next_change(at_us)
        self._spans.append((at_us, change_us))
        return change_us

    def _next_change(self, at_us: int) -> int | None:
        found = []
        for rows in self.rows.values():
            for row in rows:
                ends = row.until_us is not None and row.until_us <= at_us
                found += [at for at in (row.from_us, row.until_us) if at is not None and at > at_us]
                if row.specials and not ends and (turns := row.turns()):
                    since = max(at_us, row.from_us)
                    midnight = since // _DAY_US * _DAY_US
                    at = (midnight + day + m * _MINUTE_US for day in (0, _DAY_US) for m in turns)
                    found.append(min(moment for moment in at if moment > since))
        return min(found, default=None)

    def turned(self, since_us: int, now_us: int, *, ahead_us: int) -> bool:
        """Whether rates changed after `since_us`, or were seen to come: so long before, too."""
        for ahead in (0, ahead_us):
            change_us = self.changes_after(since_us + ahead)
            if change_us is not None and change_us <= now_us + ahead:
                return True
        return False

    def per_usd(self, currency: str, day: dt.date) -> Decimal | None:
        """How much of the currency a dollar is on that day, for display; None where not known."""
        if currency == "USD":
            return Decimal(1)
        known = [e for e in self.currencies if e.currency == currency and e.from_ <= day]
        return Decimal(max(known, key=lambda e: e.from_).per_usd) if known else None


def load_prices(
    files: Iterable[tuple[str, str]], regions: Mapping[str, str | None] | None = None
) -> PriceBook:
    """`(source, text)` of each file as one book. Raises ConfigErrors with all that is wrong."""
    problems: list[Problem] = []
    found: dict[Target, dict[int, tuple[Dated, Path, Findings]]] = {}
    gpu_hours: list[GpuHour] = []
    currencies: list[price_file.Exchange] = []
    rated: dict[tuple[str, dt.date], str] = {}
    everyone: list[Findings] = []
    for source, text in files:
        try:
            file, findings = read(PricesFile, text, source)
        except ConfigErrors as errors:
            problems += errors.problems
            continue
        everyone.append(findings)
        for index, row in enumerate(file.prices):
            path: Path = ("prices", index)
            price_file.check(row, path, findings)
            line, column = findings.position(path)
            made = _dated(row, f"{source}:{line}:{column}")
            rows = found.setdefault(Target(row.backend, row.model), {})
            if (before := rows.get(made.from_us)) is not None:
                findings.problem(
                    path,
                    f"a second price of {row.backend}/{row.model} from {row.from_}",
                    f"first at {before[0].place}",
                )
            rows[made.from_us] = (made, path, findings)
        gpu_hours += file.gpu_hours
        currencies += file.currencies
        for index, rate in enumerate(file.currencies):
            path = ("currencies", index)
            line, column = findings.position(path)
            first = rated.setdefault(
                (rate.currency, rate.from_), here := f"{source}:{line}:{column}"
            )
            if first != here:
                what = f"a second rate of {rate.currency} from {rate.from_}"
                findings.problem(path, what, f"first at {first}")
    book = {target: tuple(_in_order(target, rows)) for target, rows in found.items()}
    for findings in everyone:
        try:
            findings.raise_if_any()
        except ConfigErrors as errors:
            problems += errors.problems
    if problems:
        raise ConfigErrors(problems)
    return PriceBook(book, regions or {}, tuple(gpu_hours), tuple(currencies))


def schema() -> dict[str, Any]:
    """The JSON Schema of the files."""
    return json_schema(PricesFile, "Weighbridge prices")


def _in_order(target: Target, rows: Mapping[int, tuple[Dated, Path, Findings]]) -> Iterator[Dated]:
    """By their start, each ending where the next begins; overlaps and holes are mistakes."""
    ordered = [rows[start] for start in sorted(rows)]
    for (one, path, findings), (following, _, _) in pairwise(ordered):
        if one.until_us is not None and one.until_us != following.from_us:
            how = "overlaps with" if one.until_us > following.from_us else "leaves a hole before"
            findings.problem(
                (*path, "until"),
                f"{how} the next price of {target}",
                f"leave it out: it ends where the row at {following.place} begins",
            )
        yield replace(one, until_us=following.from_us)
    if ordered:
        yield ordered[-1][0]


def _following(rows: Iterable[Dated]) -> tuple[Dated, ...]:
    """By their start, each ending where the next begins."""
    ordered = sorted(rows, key=lambda row: row.from_us)
    ends = [*(row.from_us for row in ordered[1:]), *(row.until_us for row in ordered[-1:])]
    return tuple(replace(row, until_us=end) for row, end in zip(ordered, ends, strict=True))


def _dated(row: PriceRow, place: str) -> Dated:
    said = price_file.terms(row)
    figures = {k: v for k, v in said.items() if k not in {"source", "read_on", "note"}}
    digest = hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{FREE if row.free else ''}{row.backend}/{row.model}@{row.from_}#{digest}"
    return Dated(
        from_us=instant(row.from_),
        until_us=None if row.until is None else instant(row.until),
        base=_rates(row, row, name),
        specials=tuple(_special(row, variant, name) for variant in row.when),
        terms=said,
        place=place,
    )


def _special(row: PriceRow, variant: Variant, name: str) -> _Special:
    said = {
        "hours": "+".join(variant.hours_utc or ()),
        "region": variant.region,
        "service_tier": variant.service_tier,
    }
    name += "".join(f";{what}={value}" for what, value in said.items() if value)
    minutes = price_file.minutes(variant)
    return _Special(
        rates=_rates(row, variant, name),
        service_tier=variant.service_tier,
        region=variant.region,
        minutes=minutes,
        turns=minutes ^ frozenset((minute + 1) % price_file.DAY_MINUTES for minute in minutes),
        rank=price_file.rank(variant),
    )


def _rates(row: PriceRow, part: Scale, name: str) -> Rates:
    tiers = tuple(
        Tier(
            tier.above_prompt_tokens,
            _plain(row, tier.stated(), f"{name};over={tier.above_prompt_tokens}"),
        )
        for tier in part.long_prompts
    )
    rates = _plain(row, part.stated(), name)
    return replace(rates, tiers=tiers, marginal=part.long_prompts_mode == "marginal")


def _plain(row: PriceRow, stated: Mapping[str, str], name: str) -> Rates:
    prices = {METERS[key]: Decimal(text) for key, text in stated.items()}
    own = (Meter.INPUT, Meter.CACHE_READ, Meter.OUTPUT)
    return Rates(
        id=name,
        input=prices.get(Meter.INPUT, Decimal(0)),
        output=prices.get(Meter.OUTPUT, Decimal(0)),
        cached_input=prices.get(Meter.CACHE_READ),
        others={meter: price for meter, price in prices.items() if meter not in own},
        by_token=Meter.INPUT in prices,
        source=row.source,
        basis=row.basis,
        free=row.free,
    )
