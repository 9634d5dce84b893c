"""What a sum of attempts cost, meter by meter: exact lines, and what rounding made of them. Pure.

The ledger books one cost per attempt, rounded once; which meter it was for is in the attempt's
quantities and in the rates its `rates_id` names. Prices are linear, so the quantities of any number
of attempts at the same rates can be added up first and priced then: the lines are those of every
attempt, added up.

INVARIANTS
- The lines and `rest` add up to what was booked, exactly.
- Rates are those the id names. A cliff has been chosen when the attempt was rated: its bound is
  never looked at again, for a sum of prompts lies beyond every bound.
- A marginal scale is not linear in a prompt: its attempts come one by one (`one_by_one`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from gateway.domain.money import Charge, Line, Meter, Rates, rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Of one group of attempts. `lines` are exact, one per meter (and bound of a marginal scale).

    `rest` is what was booked less their sum, in nano-USD: up to half of one per attempt where each
    was booked at these very rates.
    """

    lines: tuple[Line, ...]
    booked_nano: int
    rows: int

    @property
    def rest(self) -> Decimal:
        return self.booked_nano - Charge("", self.lines).exact

    @property
    def holds(self) -> bool:
        """Whether rounding explains the rest. If not, the rows were not booked at these rates."""
        return abs(self.rest) * 2 <= self.rows


class Metered(NamedTuple):
    """Attempts at the same rates: how many, what they metered in all, what was booked for them."""

    rows: int
    quantities: Mapping[Meter, int]
    booked_nano: int


def one_by_one(rates: Rates) -> bool:
    """Whether attempts at these rates can only be split one by one."""
    return rates.marginal and bool(rates.tiers)


def meter_lines(rates: Rates, metered: Metered) -> Lines:
    """The lines of such attempts. `rates` are what `PriceBook.by_id` gives for their `rates_id`.

    A fee per request is a line of `Meter.REQUEST`, once per attempt. Raises Unpriced where a meter
    has no price in these rates, ValueError where a quantity is negative or several attempts at
    rates that go one by one come as a sum.
    """
    rows, quantities, booked = metered
    if one_by_one(rates):
        if rows != 1:
            raise ValueError(f"{rates.id}: a marginal scale; {rows} attempts cannot be added up")
        return Lines(lines=rate(rates, quantities).lines, booked_nano=booked, rows=1)
    if Meter.REQUEST in rates.others and Meter.REQUEST not in quantities:
        quantities = {**quantities, Meter.REQUEST: rows}
    lines = rate(replace(rates, tiers=()), quantities).lines
    return Lines(lines=lines, booked_nano=booked, rows=rows)


def added(lines: Iterable[Line]) -> dict[tuple[Meter, Decimal, int | None], Line]:
    """Lines of the same meter, price and bound as one, whatever attempts they are of."""
    found: dict[tuple[Meter, Decimal, int | None], Line] = {}
    for line in lines:
        key = line.meter, line.price, line.above
        known = found.get(key)
        found[key] = (
            line if known is None else replace(known, quantity=known.quantity + line.quantity)
        )
    return found
