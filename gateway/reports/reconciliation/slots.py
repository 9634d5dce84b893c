"""What the ledger has of one backend, slot by slot: for comparing with whoever counted too.

A slot is an hour, or a quarter of one where days begin within an hour. Quantities are by meter,
money exact by meter and, as booked, of the model as a whole. What a rating run corrected counts as
corrected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from gateway.domain.money import Meter, Unpriced
from gateway.ledger.hours import HOUR_US
from gateway.ledger.store import Store
from gateway.reports.kept import Kept
from gateway.reports.meter_lines import meter_lines, one_by_one
from gateway.reports.metered import Kind, Meters, Sum

QUARTER_US: Final = HOUR_US // 4


@dataclass(slots=True)
class Ours:
    """Of one model, meter and slot. Of its attempts some are estimates or have no known price."""

    quantity: int = 0
    nano: Decimal = Decimal(0)
    attempts: int = 0
    estimated: int = 0
    unpriced: int = 0

    def add(self, other: Ours, sign: int = 1) -> None:
        self.quantity += sign * other.quantity
        self.nano += sign * other.nano
        self.attempts += sign * other.attempts
        self.estimated += sign * other.estimated
        self.unpriced += sign * other.unpriced

    def __bool__(self) -> bool:
        return bool(self.quantity or self.nano or self.unpriced)


Series = dict[int, Ours]
MeterName = Meter | str | None  # a provider's word where it is none of ours; None: all together
Slots = dict[tuple[str, MeterName], Series]  # by model and meter


def over(series: Mapping[int, Ours], since_us: int, until_us: int, step_us: int) -> Ours:
    """All slots of a stretch."""
    whole = Ours()
    for at in range(since_us // step_us * step_us, until_us, step_us):
        if (one := series.get(at)) is not None:
            whole.add(one)
    return whole


def step(bounds: Iterable[int]) -> int:
    """How long slots must be to be cut there."""
    return HOUR_US if all(at % HOUR_US == 0 for at in bounds) else QUARTER_US


async def slots(
    store: Store, kept: Kept, backend: str, since_us: int, until_us: int, *, step_us: int
) -> Slots:
    """Those of a backend, of whole hours. Raises StoreUnavailable."""
    meters = Meters(store)
    found: Slots = {}
    since_us, until_us = since_us // HOUR_US * HOUR_US, -(-until_us // HOUR_US) * HOUR_US
    singly = set()
    if step_us == HOUR_US:
        groups = await meters.groups(since_us, until_us, step_us=step_us, backend=backend)
        for (at, kind), sums in groups.items():
            if not await _put(found, kept, at, kind, sums):
                singly.add((kind.target, kind.rates_id or ""))
    if singly or step_us != HOUR_US:
        only = singly or None
        rows = meters.rows(since_us, until_us, step_us=step_us, backend=backend, rates=only)
        async for at, kind, one in rows:
            await _put(found, kept, at, kind, one)
    again = meters.rated_again(since_us, until_us, step_us=step_us, backend=backend)
    async for at, kind, one, rates_id, cost in again:  # out as booked, in as corrected
        await _put(found, kept, at, kind, one, sign=-1)
        corrected = replace(one, unpriced=0, booked_nano=cost)
        await _put(found, kept, at, kind._replace(rates_id=rates_id), corrected)
    return found


async def _put(found: Slots, kept: Kept, at: int, kind: Kind, sums: Sum, *, sign: int = 1) -> bool:
    """False, and nothing put, where the group has to come attempt by attempt."""
    rates = None if kind.rates_id is None else await kept.rates(kind.target, kind.rates_id)
    if rates is not None and one_by_one(rates) and sums.attempts != 1:
        return False
    estimated = sums.attempts * (kind.usage_source == "estimated")
    used: dict[Meter, int] = dict(sums.quantities)
    costs: dict[Meter, Decimal] = {}
    unpriced = 0 if rates is not None else sums.attempts
    if rates is not None:
        try:
            for line in meter_lines(rates, sums.metered).lines:
                costs[line.meter] = costs.get(line.meter, Decimal(0)) + line.nano
                used.setdefault(line.meter, line.quantity)  # a fee per request
        except Unpriced:
            unpriced = sums.attempts
    for meter, quantity in used.items():
        one = Ours(quantity, costs.get(meter, Decimal(0)), sums.attempts, estimated, unpriced)
        found.setdefault((kind.model, meter), {}).setdefault(at, Ours()).add(one, sign)
    whole = Ours(0, Decimal(sums.booked_nano), sums.attempts, estimated, sums.unpriced)
    found.setdefault((kind.model, None), {}).setdefault(at, Ours()).add(whole, sign)
    return True
