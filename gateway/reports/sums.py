"""What a report asks of the database: sums, percentiles, what occurs, and the rows' digest.

Owns the SQL. Everything is added up by the database; what comes here is a row per group. All
queries stand on one inner select, so that they speak of the same rows: requests, or their attempts
joined to them, of one period. Percentiles interpolate linearly, as Postgres' percentile_cont does,
by one statement on both databases.

The digest is SHA-256 over one line per row (start, id, cost) in the order of start and id; the
database joins the lines of a page into one text, so a row costs a copy of 50 bytes, no object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from gateway.domain.outcome import Outcome
from gateway.ledger.store import Store, attempts, keys, requests, versions
from gateway.reports.definition import Definition, Period, Unusable, tag

GROUPS_MAX = 20_000
PAGE_ROWS = 50_000
_DAY_US, _HOUR_US = 86_400_000_000, 3_600_000_000

# How an attempt that cost something can have been for nothing. In the order they are shown.
WASTE: Mapping[str, tuple[str, ...]] = {
    "retries": (Outcome.FAILED, Outcome.REJECTED, Outcome.INTERNAL),
    "hedges": (Outcome.HEDGE_LOST,),
    "abandoned": (Outcome.CANCELLED,),
    "midstream": (Outcome.FAILED_MIDSTREAM,),
}

Group = tuple[Any, ...]  # whether it is of copies, then a value per name grouped by


@dataclass(slots=True, kw_only=True)
class Sums:
    """One group. Costs in nano-USD; `costed` rows have one, `unpriced` ones were weighed and have
    none or not all of it. `speed_s` is how long `speed_tokens` took."""

    rows: int = 0
    cost: int = 0
    costed: int = 0
    unpriced: int = 0
    weighed: int = 0
    estimated: int = 0
    uncached: int = 0
    cached: int = 0
    output: int = 0
    costed_tokens: int = 0
    speed_tokens: int = 0
    speed_s: float = 0.0
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    attempt_cost: int = 0
    waste: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WASTE, 0))

    def add(self, other: Sums) -> None:
        """Put another group's sums on top; percentiles do not add up and are left alone."""
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for why, cost in other.waste.items():
            self.waste[why] += cost


_COUNTED = (
    *("rows", "cost", "costed", "unpriced", "weighed", "estimated"),
    *("uncached", "cached", "output", "costed_tokens", "speed_tokens"),
)
_ADDED = (*_COUNTED, "speed_s", "attempt_cost")


# --- the rows a report speaks of ------------------------------------------------------------------


def _value(name: str, definition: Definition) -> Any:
    """The column of a name."""
    here = attempts if definition.of_attempts else requests
    if (label := tag(name)) is not None:
        return requests.c.tags[label].as_string()
    if name == "key":
        return requests.c.key_id
    if name == "kind":
        known = sorted(definition.kinds.items())
        cases = [(attempts.c.backend == one, sa.literal(kind, sa.Text)) for one, kind in known]
        return sa.case(*cases, else_=sa.null()) if cases else sa.cast(sa.null(), sa.Text)
    if name == "shadow":
        return sa.case((requests.c.shadow_of.is_not(None), "yes"), else_="no")
    if name in {"day", "hour"}:
        return _bucket(name, definition.period)
    if name == "answered_by":
        return requests.c.backend
    return requests.c[name] if name in {"alias", "route"} else here.c[name]


def _bucket(name: str, period: Period) -> Any:
    """The number of the local day, or when the local hour began."""
    started = requests.c.started_at_us
    parts = period.offsets()
    offset: Any = sa.literal(parts[0][1], sa.BigInteger)
    if len(parts) > 1:
        ends = pairwise(parts)
        offset = sa.case(
            *((started < end, sa.literal(by, sa.BigInteger)) for (_, by), (end, _) in ends),
            else_=sa.literal(parts[-1][1], sa.BigInteger),
        )
    if name == "day":
        return (started + offset) // sa.literal(_DAY_US, sa.BigInteger)
    hour = sa.literal(_HOUR_US, sa.BigInteger)
    return (started + offset) // hour * hour - offset


def conditions(definition: Definition, period: Period | None = None) -> list[Any]:
    """Period and filters. Of one name any value will do, of several names all must hold."""
    period = period or definition.period
    started = requests.c.started_at_us
    wanted: dict[str, list[str]] = {}
    for name, value in definition.where:
        wanted.setdefault(name, []).append(value)
    found: list[Any] = [started >= period.since_us, started < period.until_us]
    for name, values in wanted.items():
        column = _value(name, definition)
        some = column.in_([value for value in values if value])
        found.append(sa.or_(some, column.is_(None)) if "" in values else some)
    return found


def joined(definition: Definition) -> Any:
    """Requests, with their attempts where those are what is added up."""
    if not definition.of_attempts:
        return requests
    return requests.join(attempts, attempts.c.request_id == requests.c.id)


def _inner(
    definition: Definition,
    *columns: Any,
    period: Period | None = None,
    source: Any = None,
    by: Iterable[str] | None = None,
) -> sa.Subquery:
    """The rows: `shadow`, a `g<n>` per name grouped by, and `columns`. Copies are one group,
    unless they are what is asked for."""
    shadow = requests.c.shadow_of.is_not(None)
    apart = not definition.only_shadow
    groups = [
        (sa.case((shadow, sa.null()), else_=column) if apart else column).label(f"g{number}")
        for number, column in enumerate(
            _value(name, definition) for name in (definition.by if by is None else by)
        )
    ]
    flag = (sa.case((shadow, 1), else_=0) if apart else sa.literal(0)).label("shadow")
    query = sa.select(flag, *groups, *columns)
    query = query.select_from(joined(definition) if source is None else source)
    return query.where(*conditions(definition, period)).subquery("r")


def _group(rows: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    return [column for column in rows.c if column.name == "shadow" or column.name[1:].isdigit()]


def _of(row: Mapping[str, Any]) -> Group:
    groups = sorted(name for name in row if name[0] == "g" and name[1:].isdigit())
    return (bool(row["shadow"]), *(row[name] for name in groups))


# --- sums -----------------------------------------------------------------------------------------


async def sums(store: Store, definition: Definition) -> dict[Group, Sums]:
    """All groups of the period with everything that is known of each. Raises Unusable."""
    found = await _added(store, definition)
    await _waste(store, definition, found)
    await _ttft(store, definition, found)
    return found


async def total(store: Store, definition: Definition, groups: Iterable[Sums]) -> Sums:
    """The groups added up, with percentiles over all of their rows."""
    whole = Sums()
    for one in groups:
        whole.add(one)
    points = await _points(store, definition, by=(), apart=False)
    whole.ttft_p50, whole.ttft_p95 = points.get((False,), (None, None))
    return whole


async def before(store: Store, definition: Definition) -> dict[Group, Sums]:
    """The sums of the previous period; by groups that a period can share with another."""
    by = tuple(name for name in definition.by if name not in {"day", "hour"})
    timed = len(by) < len(definition.by)
    return await _added(store, definition, definition.period.previous(), () if timed else by)


async def _added(
    store: Store,
    definition: Definition,
    period: Period | None = None,
    by: tuple[str, ...] | None = None,
) -> dict[Group, Sums]:
    table = attempts if definition.of_attempts else requests
    c = table.c
    if definition.of_attempts:
        known: Any = c.cost_nano_usd.is_not(None)
        timed: Any = sa.and_(c.outcome == Outcome.OK.value, c.duration_us > 0, c.output_tokens > 0)
        seconds = sa.case((timed, c.duration_us / 1e6))
    else:
        known = c.priced
        timed = c.tps > 0
        seconds = sa.case((timed, c.output_tokens / c.tps))
    rows = _inner(
        definition,
        c.cost_nano_usd,
        c.usage_source,
        sa.case((known, 1), else_=0).label("known"),
        sa.func.coalesce(c.uncached_tokens, 0).label("uncached"),
        sa.func.coalesce(c.cached_tokens, 0).label("cached"),
        sa.func.coalesce(c.output_tokens, 0).label("output"),
        sa.case((timed, c.output_tokens)).label("speed_tokens"),
        seconds.label("speed_s"),
        period=period,
        by=by,
    )
    r = rows.c
    weighed, costed = r.usage_source != "none", r.cost_nano_usd.is_not(None)
    count, add, none = sa.func.count, sa.func.sum, sa.func.coalesce
    group = _group(rows)
    query = (
        sa.select(
            *group,
            count().label("rows"),
            none(add(r.cost_nano_usd), 0).label("cost"),
            count(r.cost_nano_usd).label("costed"),
            count().filter(weighed, r.known == 0).label("unpriced"),
            count().filter(weighed).label("weighed"),
            count().filter(r.usage_source == "estimated").label("estimated"),
            add(r.uncached).label("uncached"),
            add(r.cached).label("cached"),
            add(r.output).label("output"),
            none(add(r.uncached + r.cached + r.output).filter(costed), 0).label("costed_tokens"),
            none(add(r.speed_tokens), 0).label("speed_tokens"),
            none(add(r.speed_s), 0.0).label("speed_s"),
        )
        .group_by(*group)
        .limit(GROUPS_MAX + 1)
    )
    found = await store.select(query)
    if len(found) > GROUPS_MAX:
        said = " and ".join(definition.by)
        raise Unusable(f"--by {said}: more than {GROUPS_MAX:,} groups; narrow period or filters")
    return {_of(row): _sums(row) for row in found}


def _sums(row: Mapping[str, Any]) -> Sums:
    made = Sums(speed_s=float(row["speed_s"]))
    for name in _COUNTED:
        setattr(made, name, int(row[name]))
    return made


async def _waste(store: Store, definition: Definition, found: Mapping[Group, Sums]) -> None:
    """Costs of attempts, by what came of them: whatever the report adds up."""
    rows = _inner(
        definition,
        attempts.c.cost_nano_usd,
        attempts.c.outcome.label("ended"),
        source=requests.join(attempts, attempts.c.request_id == requests.c.id),
    )
    group, cost = _group(rows), sa.func.sum(rows.c.cost_nano_usd)
    query = (
        sa.select(*group, rows.c.ended, cost.label("cost"))
        .where(rows.c.cost_nano_usd.is_not(None))
        .group_by(*group, rows.c.ended)
    )
    of = {outcome: why for why, outcomes in WASTE.items() for outcome in outcomes}
    for row in await store.select(query):
        sums = found.get(_of(row))
        if sums is None:  # written between the two queries
            continue
        sums.attempt_cost += int(row["cost"])
        if (why := of.get(row["ended"])) is not None:
            sums.waste[why] += int(row["cost"])


async def _ttft(store: Store, definition: Definition, found: Mapping[Group, Sums]) -> None:
    for group, points in (await _points(store, definition)).items():
        if group in found:
            found[group].ttft_p50, found[group].ttft_p95 = points


async def _points(
    store: Store, definition: Definition, by: tuple[str, ...] | None = None, *, apart: bool = True
) -> dict[Group, tuple[float, float]]:
    """p50 and p95 of the time to the first token in milliseconds, group by group."""
    table = attempts if definition.of_attempts else requests
    rows = _inner(definition, table.c.ttft_us, by=by)
    group = _group(rows) if apart else [sa.literal(0).label("shadow")]
    window: dict[str, Any] = {"partition_by": _group(rows)} if apart else {}
    ranked = (
        sa.select(
            *group,
            rows.c.ttft_us,
            (sa.func.row_number().over(**window, order_by=rows.c.ttft_us) - 1).label("place"),
            (sa.func.count().over(**window) - 1).label("last"),
        )
        .where(rows.c.ttft_us.is_not(None), sa.true() if apart else rows.c.shadow == 0)
        .subquery("ranked")
    )
    c = ranked.c
    hundred = sa.literal(100, sa.BigInteger)
    wanted = [
        place for p in (50, 95) for place in (c.last * p // hundred, (c.last * p + 99) // hundred)
    ]
    query = sa.select(ranked).where(sa.or_(*(c.place == place for place in wanted)))
    seen: dict[Group, dict[int, int]] = {}
    last: dict[Group, int] = {}
    for row in await store.select(query):
        seen.setdefault(_of(row), {})[int(row["place"])] = int(row["ttft_us"])
        last[_of(row)] = int(row["last"])
    return {
        group: (_between(at, last[group], 50), _between(at, last[group], 95))
        for group, at in seen.items()
    }


def _between(at: Mapping[int, int], last: int, percent: int) -> float:
    low, rest = divmod(last * percent, 100)
    return (at[low] + (at[low + 1] - at[low]) * rest / 100 if rest else at[low]) / 1000


# --- what occurs ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurring:
    """For the foot. `policies`: (name, digest, rows) that decided; `versions` in force, each with
    its number, digest and when; `rates`: (id, attempts) that were paid."""

    policies: list[tuple[str | None, str | None, int]]
    versions: list[dict[str, Any]]
    rates: list[tuple[str, int]]


async def occurring(store: Store, definition: Definition) -> Occurring:
    """Policies and prices of the report's rows."""
    period = definition.period
    policy, digest = requests.c.policy, requests.c.policy_digest
    decided = await store.select(
        sa.select(policy, digest, sa.func.count(requests.c.id.distinct()).label("n"))
        .select_from(joined(definition))
        .where(*conditions(definition))
        .group_by(policy, digest)
        .order_by(sa.desc("n"), digest)
    )
    paid = await store.select(
        sa.select(attempts.c.rates_id, sa.func.count().label("n"))
        .select_from(requests.join(attempts, attempts.c.request_id == requests.c.id))
        .where(*conditions(definition), attempts.c.rates_id.is_not(None))
        .group_by(attempts.c.rates_id)
        .order_by(attempts.c.rates_id)
    )
    v = versions.c
    first = (
        sa.select(sa.func.max(v.number)).where(v.applied_at_us <= period.since_us).scalar_subquery()
    )
    force = await store.select(
        sa.select(v.number, v.policy, v.digest, v.applied_at_us)
        .where(v.applied_at_us < period.until_us, v.number >= sa.func.coalesce(first, 0))
        .order_by(v.number)
    )
    return Occurring(
        policies=[(row["policy"], row["policy_digest"], row["n"]) for row in decided],
        versions=force,
        rates=[(row["rates_id"], row["n"]) for row in paid],
    )


async def key_names(store: Store) -> dict[str, str]:
    """What the keys are called."""
    return {row["id"]: row["name"] for row in await store.select(sa.select(keys.c.id, keys.c.name))}


async def tags(store: Store) -> list[str]:
    """All tags that any key gives its requests."""
    rows = await store.select(sa.select(keys.c.tags))
    return sorted({name for row in rows for name in row["tags"]})


# --- the digest -----------------------------------------------------------------------------------


async def rows_digest(
    store: Store, definition: Definition, *, page_rows: int = PAGE_ROWS
) -> tuple[str, int]:
    """SHA-256 over the rows in order, and how many there are. Reads page by page.

    A page is a stretch of time, so that no order but that of numbers is asked of the database:
    collations differ. Inside a page the lines are sorted here, by their bytes.
    """
    started = requests.c.started_at_us
    line = _line(definition)
    digest, count = hashlib.sha256(), 0
    since_us, end_us = definition.period.since_us, definition.period.until_us
    while since_us < end_us:
        stretch = [*conditions(definition), started >= since_us]
        source = joined(definition)
        next_page = (
            sa.select(started.label("at")).select_from(source).where(*stretch).order_by(started)
        )
        found = await store.select(next_page.offset(page_rows).limit(1))
        until_us = max(found[0]["at"], since_us + 1) if found else end_us
        lines = sa.select(line.label("line")).select_from(source)
        page = lines.where(*stretch, started < until_us).subquery("page")
        text = sa.func.aggregate_strings(page.c.line, "\n").label("text")
        (row,) = await store.select(sa.select(text))
        if row["text"]:
            parts = sorted(row["text"].encode().split(b"\n"))
            digest.update(b"\n".join(parts) + b"\n")
            count += len(parts)
        since_us = until_us
    return digest.hexdigest(), count


def _line(definition: Definition) -> sa.ColumnElement[str]:
    """Start, id, attempt and cost of a row; `-` where the cost is not known."""
    number: Any = attempts.c.number if definition.of_attempts else sa.literal(0)
    cost = (attempts if definition.of_attempts else requests).c.cost_nano_usd
    start, name = sa.cast(requests.c.started_at_us, sa.Text), requests.c.id
    known = sa.func.coalesce(sa.cast(cost, sa.Text), "-")
    return start + " " + name + " " + sa.cast(number, sa.Text) + " " + known
