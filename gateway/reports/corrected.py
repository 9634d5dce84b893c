"""What rating runs changed of a report's rows: booked stays booked, corrections stand beside it.

An attempt costs, as corrected, what was booked (0 where it had no price) plus all its deltas up to
a run; its rates are those of its newest correction. Rows are read here: corrections name them.
What corrects rows that are gone (retention) stays in the total: nothing says any more whose it is,
only when its request arrived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson
import sqlalchemy as sa

from gateway.domain.money import Meter
from gateway.ledger.store import attempts, corrections, rating_runs, requests
from gateway.reports.definition import Definition, Period
from gateway.reports.document import money
from gateway.reports.percentiles import Group, group_of
from gateway.reports.splits import counted
from gateway.reports.traffic import TOKENS, View, conditions, of_rows, times_of


class Gone(Enum):
    """Stands in a group for what only a row could say. Equal to no text that anybody may send."""

    ROWS = "(rows pruned)"


@dataclass(slots=True)
class Moved:
    """Attempts that are at other rates now. `was`, `stands`: their cost booked and corrected."""

    old: str | None
    new: str
    rows: int
    was: int
    stands: int
    quantities: Mapping[Meter, int]


@dataclass(slots=True)
class Correction:
    """Of one group. `priced`: rows that had no cost and have one; `tokens` are theirs; `resolved`:
    rows that were unpriced, wholly or in part, and are not any more. `pruned` is the part of
    `delta` whose rows are gone; `attempts` are all that were corrected."""

    delta: int = 0
    pruned: int = 0
    attempts: int = 0
    priced: int = 0
    tokens: int = 0
    resolved: int = 0
    moved: list[Moved] = field(default_factory=list)


async def runs(view: View, period: Period, upto: int | None) -> list[int]:
    """The runs that corrected anything of the period."""
    c = corrections.c
    query = sa.select(c.run).distinct().where(*_between(period, upto)).order_by(c.run)
    return [row["run"] for row in await view.select(query)]


async def run_notes(view: View, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Number, author, note and time of runs."""
    c = rating_runs.c
    query = sa.select(c.number, c.author, c.note, c.made_at_us).where(c.number.in_(numbers))
    return await view.select(query.order_by(c.number))


async def corrected(
    view: View, definition: Definition, period: Period, by: Sequence[str]
) -> dict[Group, Correction]:
    """Group by group; nothing where no run has corrected anything."""
    found: dict[Group, Correction] = {}
    if not await runs(view, period, definition.run):
        return found
    rows = _rows(definition, period, by)
    await _moved(view, rows, found)
    await (_of_attempts if definition.of_attempts else _of_requests)(view, rows, found)
    return found


async def of_pruned(
    view: View, definition: Definition, period: Period, by: Sequence[str]
) -> dict[Group, Correction]:
    """What corrects rows that are gone, by groups of time where they are asked for."""
    c, a = corrections.c, attempts.c
    same = sa.and_(
        a.request_id == c.request_id,
        a.number == c.attempt,
        a.request_started_at_us == c.request_started_at_us,
        a.request_started_at_us >= period.since_us,
        a.request_started_at_us < period.until_us,
    )
    times = times_of(c.request_started_at_us, period)
    asked = [times[name].label(f"g{n}") for n, name in enumerate(by) if name in times]
    each = (
        sa.select(*asked, c.request_id, c.attempt, c.delta_nano_usd)
        .select_from(corrections.outerjoin(attempts, same))
        .where(*_between(period, definition.run), a.request_id.is_(None))
        .subquery("r")
    )
    by_attempt = [*_keys(each), each.c.request_id, each.c.attempt]
    delta = _sum(each.c.delta_nano_usd).label("delta")
    one = sa.select(*by_attempt, delta).group_by(*by_attempt).subquery("one")
    keys = _keys(one)
    query = sa.select(*keys, sa.func.count().label("n"), _sum(one.c.delta).label("delta"))
    found = {}
    for row in await view.select(query.group_by(*keys)):
        if row["n"]:
            group = (False, *(row.get(f"g{n}", Gone.ROWS) for n in range(len(by))))
            nano = int(row["delta"])
            found[group] = Correction(delta=nano, pruned=nano, attempts=row["n"])
    return found


def said_of_pruned(pruned: int, untold: int) -> list[str]:
    """What a reader must know of corrections (nano-USD) whose rows are gone."""
    told = []
    if pruned:
        told.append(
            f"{money(pruned)} corrects rows that are gone (retention). It is in the total; where"
            f" nothing says whose it is, it is line {Gone.ROWS.value}. Which unpriced rows got a"
            " price by it is not known any more."
        )
    if untold:
        told.append(
            f"{money(untold)} corrects rows of this period that are gone (retention): no filter"
            " can tell whose they were, so it is in no sum here; without filters it is in."
        )
    return told


def _between(period: Period, upto: int | None) -> list[Any]:
    at = corrections.c.request_started_at_us
    within = [at >= period.since_us, at < period.until_us]
    return within if upto is None else [*within, corrections.c.run <= upto]


def latest(period: Period, upto: int | None) -> sa.Subquery:
    """Per corrected attempt the sum of its deltas, the newest rates and what it stands at."""
    c = corrections.c
    at = (c.request_id, c.attempt, c.request_started_at_us)
    delta = sa.cast(sa.func.sum(c.delta_nano_usd), sa.BigInteger).label("delta")
    last = (
        sa.select(*at, sa.func.max(c.run).label("run"), delta)
        .where(*_between(period, upto))
        .group_by(*at)
        .subquery("last")
    )
    same = (
        c.run == last.c.run,
        c.request_id == last.c.request_id,
        c.attempt == last.c.attempt,
        c.request_started_at_us == last.c.request_started_at_us,
    )
    return (
        sa.select(*last.c, c.rates_id, c.cost_nano_usd)
        .select_from(last.join(corrections, sa.and_(*same)))
        .subquery("d")
    )


def with_deltas(deltas: sa.Subquery, *, outer: bool = False) -> Any:
    """Requests with their attempts and what corrects these; with `outer` also those it does not."""
    of = sa.and_(
        attempts.c.request_id == requests.c.id,
        attempts.c.request_started_at_us == requests.c.started_at_us,
    )
    same = sa.and_(
        attempts.c.request_id == deltas.c.request_id,
        attempts.c.number == deltas.c.attempt,
        attempts.c.request_started_at_us == deltas.c.request_started_at_us,
    )
    return requests.join(attempts, of).join(deltas, same, isouter=outer)


def _rows(definition: Definition, period: Period, by: Sequence[str]) -> sa.Subquery:
    """Every corrected attempt of the report, with its group and its request."""
    deltas = latest(period, definition.run)
    r, a = requests.c, attempts.c
    own = a if definition.of_attempts else r
    one, two, three = (sa.func.coalesce(own[name], 0) for name in TOKENS[:3])
    missing = a.cost_nano_usd.is_(None)
    return (
        sa.select(
            *of_rows(period).groups(definition, by),
            r.id,
            r.started_at_us,
            r.priced,
            r.usage_source.label("of_request"),
            r.cost_nano_usd.is_(None).label("uncosted"),
            (one + two + three).label("tokens"),
            missing.label("missing"),
            *(sa.func.coalesce(a[name], 0).label(name) for name in TOKENS),
            sa.cast(a.other_meters, sa.Text).label("others"),
            a.rates_id.label("old"),
            deltas.c.rates_id.label("new"),
            sa.func.coalesce(a.cost_nano_usd, 0).label("was"),
            deltas.c.delta,
        )
        .select_from(with_deltas(deltas))
        .where(*conditions(definition, period))
        .subquery("r")
    )


def _keys(rows: sa.Subquery) -> list[Any]:
    return [c for c in rows.c if c.name == "shadow" or (c.name[0] == "g" and c.name[1:].isdigit())]


def _sum(column: Any) -> Any:
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)


async def _moved(view: View, rows: sa.Subquery, found: dict[Group, Correction]) -> None:
    r, keys = rows.c, _keys(rows)
    by = [*keys, r.old, r.new, r.others]
    query = sa.select(
        *by,
        sa.func.count().label("rows"),
        _sum(r.was).label("was"),
        _sum(r.delta).label("delta"),
        *(_sum(r[name]).label(name) for name in TOKENS),
    ).group_by(*by)
    for row in await view.select(query):
        one = found.setdefault(group_of(row), Correction())
        others = orjson.loads(row["others"]) if row["others"] not in {None, "null"} else {}
        quantities = counted(row)
        quantities |= {Meter(name): count * row["rows"] for name, count in others.items()}
        one.delta += row["delta"]
        one.attempts += row["rows"]
        was = int(row["was"])
        stands = was + row["delta"]
        one.moved.append(Moved(row["old"], row["new"], row["rows"], was, stands, quantities))


async def _of_attempts(view: View, rows: sa.Subquery, found: dict[Group, Correction]) -> None:
    r, keys = rows.c, _keys(rows)
    query = sa.select(*keys, sa.func.count().label("n"), _sum(r.tokens).label("tokens"))
    for row in await view.select(query.where(r.missing).group_by(*keys)):
        one = found[group_of(row)]
        one.priced = one.resolved = row["n"]
        one.tokens = row["tokens"]


async def _of_requests(view: View, rows: sa.Subquery, found: dict[Group, Correction]) -> None:
    """A request is resolved where every attempt of it that lacked a price has one now."""
    r, keys, a = rows.c, _keys(rows), attempts.c
    lacked = (
        sa.select(sa.func.count())
        .where(
            a.request_id == r.id,
            a.request_started_at_us == r.started_at_us,
            a.cost_nano_usd.is_(None),
            a.usage_source != "none",
        )
        .scalar_subquery()
    )
    by = [*keys, r.id, r.started_at_us, r.uncosted, r.priced, r.of_request, r.tokens]
    each = (
        sa.select(*by, sa.func.count().label("n"), lacked.label("lacked"))
        .where(r.missing)
        .group_by(*by)
        .subquery("e")
    )
    e = each.c
    keys = _keys(each)
    done = sa.and_(sa.not_(e.priced), e.of_request != "none", e.n == e.lacked)
    query = sa.select(
        *keys,
        _sum(sa.case((e.uncosted, 1), else_=0)).label("priced"),
        _sum(sa.case((e.uncosted, e.tokens), else_=0)).label("tokens"),
        _sum(sa.case((done, 1), else_=0)).label("resolved"),
    ).group_by(*keys)
    for row in await view.select(query):
        one = found[group_of(row)]
        one.priced, one.tokens, one.resolved = row["priced"], row["tokens"], row["resolved"]
