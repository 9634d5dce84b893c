"""What costs were for: attempts at the same rates put together, and split by meter.

Owns finding the rates that ids of rows name, in all that was ever stated of prices. What cannot be
split is said: costs at rates nobody knows any more, rows not booked at the rates they name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from gateway.domain.money import OUTPUT_METERS, PROMPT_METERS, Meter, Rates, Unpriced, book
from gateway.ledger.prices import PriceBook
from gateway.ledger.store import price_statements
from gateway.reports.meter_lines import Metered, meter_lines, one_by_one
from gateway.reports.traffic import View

_IDS_PER_QUERY = 500


@dataclass(slots=True)
class Pot:
    """Attempts at the same rates."""

    rows: int = 0
    booked: int = 0
    quantities: Counter[Meter] = field(default_factory=Counter)

    def put(self, rows: int, booked: int, quantities: Mapping[Meter, int]) -> None:
        """Negative takes out."""
        self.rows += rows
        self.booked += booked
        for meter, count in quantities.items():
            self.quantities[meter] += count


@dataclass(slots=True)
class Split:
    """`nano` by meter is exact; `unsplit` nano-USD could not be split. Rounding is the rest."""

    quantities: Counter[Meter] = field(default_factory=Counter)
    nano: dict[Meter, Decimal] = field(default_factory=dict)
    unsplit: int = 0

    def add(self, other: Split) -> None:
        self.quantities += other.quantities
        for meter, nano in other.nano.items():
            self.nano[meter] = self.nano.get(meter, Decimal(0)) + nano
        self.unsplit += other.unsplit

    @property
    def input(self) -> tuple[int, int]:
        """Tokens and their cost in nano-USD."""
        return self._of(PROMPT_METERS)

    @property
    def output(self) -> tuple[int, int]:
        return self._of(OUTPUT_METERS)

    def _of(self, meters: frozenset[Meter]) -> tuple[int, int]:
        cost = sum((n for meter, n in self.nano.items() if meter in meters), Decimal(0))
        return sum(self.quantities[meter] for meter in meters), book(cost)


def counted(row: Mapping[str, Any]) -> dict[Meter, int]:
    """The counts that have a column, as meters."""
    reasoning = int(row["reasoning_tokens"])
    return {
        Meter.INPUT: int(row["uncached_tokens"]),
        Meter.CACHE_READ: int(row["cached_tokens"]),
        Meter.OUTPUT: int(row["output_tokens"]) - reasoning,
        Meter.REASONING: reasoning,
    }


async def rates_of(view: View, ids: Iterable[str]) -> dict[str, Rates]:
    """The rates that these ids name, whenever they were stated. Raises StoreUnavailable."""
    wanted = set(ids)
    bases = sorted({one.partition(";")[0] for one in wanted})
    found: dict[str, Rates] = {}
    c = price_statements.c
    for at in range(0, len(bases), _IDS_PER_QUERY):
        some = bases[at : at + _IDS_PER_QUERY]
        query = sa.select(c.rates_id, c.terms).where(c.rates_id.in_(some), c.terms.is_not(None))
        for row in await view.select(query.order_by(c.number)):
            for rows in PriceBook.of([row["terms"]]).rows.values():
                found |= {one.id: one for dated in rows for one in dated.every()}
    return {name: rates for name, rates in found.items() if name in wanted}


def split(pots: Mapping[str, Pot], rates: Mapping[str, Rates]) -> Split:
    """`pots` by the id of their rates."""
    whole = Split()
    for name, pot in pots.items():
        known = rates.get(name)
        made = None if known is None else _lines(known, pot)
        if made is None:
            whole.unsplit += pot.booked
        else:
            whole.add(made)
    return whole


def _lines(rates: Rates, pot: Pot) -> Split | None:
    if one_by_one(rates):
        return None
    quantities = {meter: count for meter, count in pot.quantities.items() if count}
    try:
        lines = meter_lines(rates, Metered(pot.rows, quantities, pot.booked))
    except (Unpriced, ValueError):
        return None
    if not lines.holds:
        return None
    made = Split()
    for line in lines.lines:
        made.quantities[line.meter] += line.quantity
        made.nano[line.meter] = made.nano.get(line.meter, Decimal(0)) + line.nano
    return made
