"""How budgets stand: what was used by the counters, what the ledger says, and why they differ.

Owns the figures; who shows them is the command line's. The counters decide (they refuse); the
ledger is what is billed. They differ by what is under way and by what only one of them knows: rows
that are not in the database yet, requests whose end nobody saw, backends without a price.

INVARIANT: a figure that could not be had is None, never 0; `missing` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.domain.errors import StoreUnavailable
from gateway.domain.limit import CALENDAR, AtLimit, Limit, Unit
from gateway.domain.outcome import Outcome
from gateway.ledger.hours import HOUR_US
from gateway.ledger.store import Store
from gateway.ledger.tables import request_dimensions, request_hours, requests
from gateway.ledger.unsent import pages, segments
from gateway.limits.counters import Counts, span_of
from gateway.limits.periods import WINDOW_S
from gateway.reports.sums import key_names
from gateway.reports.traffic import tagged

JOURNAL_BYTES_MAX = 64 * 1024 * 1024  # more is not looked through
PAGE_ROWS = 500
EARLY = Decimal("0.02")  # of a period: before it a pace says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What the ledger says of one holder in the period. Money in nano-USD.

    `cut_off` requests have no cost there and count at what was held; `unpriced` ones keep their
    hold. `unsent` rows, which cost `unsent_nano`, are in this node's journal and not yet booked.
    """

    rows: int = 0
    nano_usd: int = 0
    cut_off: int = 0
    unpriced: int = 0
    unsent: int = 0
    unsent_nano: int = 0


class State(StrEnum):
    """What becomes of a request that is as large as those before it. Values are in JSON."""

    OPEN = "open"
    REFUSING = "refusing"
    REROUTING = "rerouting"  # it takes a route for `spent`


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One limit in dollars and one of its holders. Money in nano-USD, times in seconds since the
    epoch. `start_s` and `end_s` are 0 where the limit slides; None: it could not be had.

    `exhausted`: it was told in this period that all is used, or that a request did not fit any
    more, for what it might cost is held; `since_s` is when. Smaller ones may still fit.
    """

    limit: Limit
    holder: str
    start_s: int
    end_s: int
    now_s: float
    taken: int | None = None
    used: int | None = None
    booked: Booked | None = None
    exhausted: bool = False
    since_s: float | None = None

    @property
    def state(self) -> State | None:
        """None where nobody knows what is left."""
        if self.left is None:
            return None
        if not self.exhausted and self.left > 0:
            return State.OPEN
        return State.REFUSING if self.limit.at_limit is AtLimit.REFUSE else State.REROUTING

    @property
    def held(self) -> int | None:
        return None if self.taken is None or self.used is None else self.taken - self.used

    @property
    def known(self) -> int | None:
        """What is used as far as anybody knows: the counter's figure, else the ledger's."""
        if self.used is not None:
            return self.used
        if self.taken is not None:
            return self.taken
        return None if self.booked is None else self.booked.nano_usd + self.booked.unsent_nano

    @property
    def left(self) -> int | None:
        """What a request may still hold; below 0 by what was used beyond."""
        spent = self.taken if self.taken is not None else self.known
        return None if spent is None else self.limit.amount - spent

    @property
    def share(self) -> Decimal | None:
        return None if self.known is None else Decimal(self.known) / self.limit.amount

    @property
    def forecast(self) -> int | None:
        """What the period will have used at the pace so far; None while that says nothing, and
        when it is exhausted: the pace has ended then."""
        whole = self.end_s - self.start_s
        if not whole or self.known is None or self.exhausted:
            return None
        gone = Decimal(str(self.now_s)) - self.start_s
        if gone < whole * EARLY:
            return None
        return int(self.known * whole / gone)

    @property
    def spent_at_s(self) -> int | None:
        """When all of it is used at that pace; None where that is not in this period. Of what is
        exhausted, when it was, or now where nobody knows."""
        if self.exhausted:
            return int(self.now_s if self.since_s is None else self.since_s)
        forecast = self.forecast
        if forecast is None or forecast <= self.limit.amount or not self.known:
            return None
        gone = Decimal(str(self.now_s)) - self.start_s
        return max(int(self.now_s), self.start_s + int(gone * self.limit.amount / self.known))

    def differences(self) -> list[str]:
        """Why the counter and the ledger say different things, in words; what is not known last."""
        if self.used is None or self.booked is None:
            return []
        booked, said = self.booked, []
        rest = self.used - booked.nano_usd - booked.unsent_nano
        if booked.unsent:
            said.append(f"{booked.unsent:,} rows are in the journal and not yet in the database")
        if booked.cut_off and rest > 0:
            said.append(
                f"{booked.cut_off:,} requests were cut off by the end of a worker: they count at "
                "what was held, the ledger does not know their cost"
            )
        if booked.unpriced and rest > 0:
            said.append(f"{booked.unpriced:,} requests have no known price: their holds stay")
        if rest < 0:
            said.append(
                "the ledger has more: requests from before the limit, or while it was spent and "
                "sent them elsewhere, or a counter that was lost"
            )
        elif rest and not (booked.cut_off or booked.unpriced):
            said.append("rows of other nodes that are on their way, or ended since")
        return said


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All budgets. `missing` are sentences about what could not be asked; `names` of keys."""

    budgets: Sequence[Budget]
    now_s: float
    missing: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)


async def status(
    limits: Sequence[Limit],
    *,
    now_s: float,
    counts: Counts | None,
    store: Store | None,
    journal: Path,
    missing: Sequence[str] = (),
    since: Callable[[Limit, str, int], float | None] = lambda *_: None,
) -> Status:
    """Every limit in dollars with every holder that anybody knows of.

    `counts` of None: the counters could not be read; `store` of None: the database cannot. `since`
    says of limit, holder and start of the period when it was told to be exhausted.
    """
    money = [limit for limit in limits if limit.unit is Unit.USD]
    said = list(missing)
    booked: list[Mapping[str, Booked]] | None = None
    names: Mapping[str, str] = {}
    if store is not None:
        try:
            unsent = await _unsent(store, journal)
            if unsent is None:
                said.append("the journal is too long to be looked through: its rows are left out")
            booked = [await _booked(store, limit, now_s, unsent or []) for limit in money]
            names = await key_names(store)
        except StoreUnavailable as error:
            said.append(f"the database does not answer: {error.detail or error.message}")
    found = []
    for number, limit in enumerate(money):
        ledger = None if booked is None else booked[number]
        start_s, end_s = span_of(limit, now_s)
        holders = {holder for name, holder in counts or {} if name == limit.name}
        holders |= set(ledger or {}) | set(limit.match.get(limit.per, ()))
        for holder in sorted(holders):
            count = None if counts is None else counts.get((limit.name, holder))
            exhausted = count is not None and count.exhausted
            nothing = counts is not None and (limit.period in CALENDAR)
            found.append(
                Budget(
                    limit=limit,
                    holder=holder,
                    start_s=start_s,
                    end_s=end_s,
                    now_s=now_s,
                    taken=count.taken if count else 0 if nothing else None,
                    used=count.used if count else 0 if nothing else None,
                    booked=None if ledger is None else ledger.get(holder, Booked()),
                    exhausted=exhausted,
                    since_s=since(limit, holder, start_s) if exhausted else None,
                )
            )
    return Status(budgets=tuple(found), now_s=now_s, missing=tuple(said), names=names)


# --- the ledger -----------------------------------------------------------------------------------


async def _booked(
    store: Store, limit: Limit, now_s: float, unsent: Sequence[Mapping[str, Any]]
) -> dict[str, Booked]:
    """What each holder has in the ledger since its period, or its window, began."""
    since_us = _since_us(limit, now_s)
    # A roll-up is quick, and exact where the period begins with an hour (of UTC).
    by_hour = since_us % HOUR_US == 0
    table = request_dimensions if by_hour else requests
    values = {"key": table.c.key_id, "alias": table.c.alias}

    def of(name: str) -> Any:
        return values[name] if name in values else tagged(table.c.tags, sa.literal(name, sa.Text))

    cut = table.c.outcome == Outcome.INTERRUPTED.value
    unpriced = sa.and_(table.c.usage_source != "none", sa.not_(table.c.priced))
    rows: Any = request_hours.c.rows if by_hour else sa.literal(1)
    money = request_hours.c.cost_nano_usd if by_hour else requests.c.cost_nano_usd
    query = sa.select(
        of(limit.per).label("holder"),
        rows.label("rows"),
        money.label("nano_usd"),
        sa.case((cut, rows), else_=0).label("cut_off"),
        sa.case((unpriced, rows), else_=0).label("unpriced"),
    ).where(of(limit.per).is_not(None))
    if by_hour:
        query = query.select_from(
            request_hours.join(table, request_hours.c.dimension == table.c.id)
        ).where(request_hours.c.hour_us >= since_us, sa.not_(table.c.shadow))
    else:
        query = query.where(requests.c.started_at_us >= since_us, requests.c.shadow_of.is_(None))
    for name, allowed in limit.match.items():
        query = query.where(of(name).in_(sorted(allowed)))
    inner = query.subquery()
    sums = [sa.func.coalesce(sa.func.sum(inner.c[name]), 0).label(name) for name in _SUMS]
    summed = sa.select(inner.c.holder, *sums).group_by(inner.c.holder)
    found = {
        row["holder"]: {name: int(row[name]) for name in _SUMS}
        for row in await store.select(summed)
    }
    for line in unsent:
        holder = _holder(line, limit)
        if holder is not None and line["started_at_us"] >= since_us:
            one = found.setdefault(holder, {})
            one["unsent"] = one.get("unsent", 0) + 1
            one["unsent_nano"] = one.get("unsent_nano", 0) + (line["cost_nano_usd"] or 0)
    return {holder: Booked(**one) for holder, one in found.items()}


_SUMS = ("rows", "nano_usd", "cut_off", "unpriced")


def _since_us(limit: Limit, now_s: float) -> int:
    start_s, _ = span_of(limit, now_s)
    if start_s or limit.period is None:
        return start_s * 1_000_000
    return int((now_s - WINDOW_S[limit.period]) * 1e6)


def _holder(line: Mapping[str, Any], limit: Limit) -> str | None:
    """Whose request a line of the journal is to `limit`; None where it does not count."""
    if line.get("shadow_of") is not None:
        return None
    values = {**(line.get("tags") or {}), "key": line.get("key_id"), "alias": line.get("alias")}
    if any(values.get(name) not in allowed for name, allowed in limit.match.items()):
        return None
    found = values.get(limit.per)
    return None if found is None else str(found)


async def _unsent(store: Store, journal: Path) -> list[Mapping[str, Any]] | None:
    """Final lines of this node's journal that the database does not have; None: too many."""
    lines = await asyncio.to_thread(_finals, journal)
    if lines is None:
        return None
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(lines), PAGE_ROWS):
        page = {line["id"]: line for line in lines[start : start + PAGE_ROWS]}
        query = sa.select(requests.c.id).where(requests.c.id.in_(list(page)))
        there = {row["id"] for row in await store.select(query)}
        found += [line for key, line in page.items() if key not in there]
    return found


_NEEDED = ("id", "started_at_us", "key_id", "alias", "tags", "shadow_of", "cost_nano_usd")


def _finals(journal: Path) -> list[Mapping[str, Any]] | None:
    paths = [segment.path for segment in segments(journal)] if journal.is_dir() else []
    found: list[Mapping[str, Any]] = []
    bytes_left = JOURNAL_BYTES_MAX
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # sent and deleted meanwhile
            bytes_left -= path.stat().st_size
        if bytes_left < 0:
            return None
        for page in pages(path, PAGE_ROWS):
            finals = (line for line in page if "open" not in line)
            found += [{name: line.get(name) for name in _NEEDED} for line in finals]
    return found
