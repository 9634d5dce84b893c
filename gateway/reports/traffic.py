"""The traffic of a period as one relation: from roll-ups for whole hours, from rows for the rest.

Owns the SQL that both stand in, and what a name to group or filter by is in it. Who asks adds up
the columns of a `Traffic` by whatever names and never learns where a figure came from.

INVARIANTS
- A row is in it once: `spans` divides the period, and a roll-up is committed with its rows.
- A column means the same from either source (`ledger.hours` says what); all are integers.
- An attempt is where its request is: in the period, the day and the hour of its arrival.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from gateway.domain.money import Meter
from gateway.domain.outcome import Outcome
from gateway.ledger.hours import BUCKETS, HOUR_US, TTFT_BOUNDS_US
from gateway.ledger.store import (
    attempt_dimensions,
    attempt_facts,
    attempt_hours,
    attempts,
    other_meter_hours,
    request_dimensions,
    request_facts,
    request_hours,
    requests,
)
from gateway.reports.definition import METER, OF_TIME, Definition, Period, tag
from gateway.reports.spans import Span, Spans, spans

TOKENS: Final = ("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
SPEED: Final = ("speed_tokens", "speed_us")
ADDED: Final = ("rows", "cost_nano_usd", "costed", *TOKENS, "costed_tokens", *SPEED)
WORDS: Final = ("fp0", "fp1", "fp2", "fp3")  # of roll-ups; rows in `parts` have none here

_DAY_US = 24 * HOUR_US
_SPEED_US_MAX: Final = 2**53


class View(Protocol):
    """Something to ask: the store, or what it was at one moment."""

    async def select(self, query: sa.Select[Any]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Names:
    """Where names are found: columns of requests, of attempts, the time, and whether a copy."""

    request: Any
    attempt: Any
    shadow: Any
    times: Mapping[str, Any]

    def of(self, name: str, definition: Definition) -> Any:
        """The column of a name."""
        if (label := tag(name)) is not None:
            return tagged(self.request.tags, sa.literal(label, sa.Text))
        match name:
            case "key":
                return self.request.key_id
            case "kind":
                known = sorted(definition.kinds.items())
                cases = [(self.attempt.backend == one, _text(kind)) for one, kind in known]
                return sa.case(*cases, else_=sa.null()) if cases else sa.cast(sa.null(), sa.Text)
            case "shadow":
                return sa.case((self.shadow, "yes"), else_="no")
            case "answered_by":
                return self.request.backend
            case "alias" | "route" | "policy":
                return self.request[name]
        if name in OF_TIME:
            return self.times[name]
        return (self.attempt if definition.of_attempts else self.request)[name]

    def filters(self, definition: Definition) -> list[Any]:
        """Of one name any value will do, of several names all must hold."""
        wanted: dict[str, list[str]] = {}
        for name, value in definition.where:
            wanted.setdefault(name, []).append(value)
        found = []
        for name, values in wanted.items():
            if name == METER:
                found.append(sa.or_(*(_metered(self.attempt, Meter(value)) for value in values)))
                continue
            column = self.of(name, definition)
            some = column.in_([value for value in values if value])
            found.append(sa.or_(some, column.is_(None)) if "" in values else some)
        return found

    def groups(self, definition: Definition, by: Sequence[str]) -> list[Any]:
        """`shadow`, and a `g<n>` per name; copies are one group unless they are asked for."""
        apart = not definition.only_shadow
        columns = (self.of(name, definition) for name in by)
        flag = sa.case((self.shadow, 1), else_=0) if apart else sa.literal(0)
        return [
            flag.label("shadow"),
            *(
                (sa.case((self.shadow, sa.null()), else_=one) if apart else one).label(f"g{n}")
                for n, one in enumerate(columns)
            ),
        ]


def of_rows(period: Period) -> Names:
    """The names in the views `requests` and `attempts`."""
    times = times_of(requests.c.started_at_us, period)
    return Names(requests.c, attempts.c, requests.c.shadow_of.is_not(None), times)


def times_of(at: Any, period: Period) -> dict[str, Any]:
    """The names of time of an instant in microseconds: local day and hour."""
    return {name: _time(name, at, period) for name in OF_TIME}


@dataclass(frozen=True, slots=True)
class Traffic:
    """`source` joined to its dimensions, `columns` of sums in it, `names` to group by.

    With attempts `names.attempt` is theirs; without, it has nothing to offer.
    """

    source: Any
    columns: Any
    names: Names
    where: list[Any]

    def added_up(self, keys: Sequence[Any], sums: Mapping[str, Any]) -> sa.Select[Any]:
        """By keys (labelled) the sums. The keys are worked out inside and grouped by name outside:
        a parameter in them would be another one in the grouping."""
        inner = (
            sa.select(*keys, *(column.label(name) for name, column in sums.items()))
            .select_from(self.source)
            .where(*self.where)
            .subquery("r")
        )
        by = [inner.c[key.name] for key in keys]
        added = [_whole(sa.func.sum(inner.c[name])).label(name) for name in sums]
        return sa.select(*by, *added).group_by(*by)

    def sums(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self.columns[name] for name in names}


def traffic(
    definition: Definition,
    period: Period,
    by: Sequence[str] = (),
    *,
    of_attempts: bool,
    added: Sequence[str] = ADDED,
    words: bool = False,
) -> Traffic:
    """Sums by whatever names. `added` may hold the buckets of the time to the first token."""
    times = [name for name in OF_TIME if name in by]
    cut = spans(period, times)
    key = ["request_dimension"] + (["attempt_dimension"] if of_attempts else [])
    columns = [*added, *(WORDS if words else ())]
    parts = []
    if cut.whole:
        parts.append(_hours(cut, period, times, columns, of_attempts))
    if cut.parts:
        rows = (_attempts if of_attempts else _requests)(cut, period, times, added)
        if words:
            rows = rows.add_columns(*(sa.literal(0, sa.BigInteger).label(n) for n in WORDS))
        parts.append(rows)
    found = (sa.union_all(*parts) if len(parts) > 1 else parts[0]).subquery("t")
    return _with_dimensions(definition, found, key, times)


def other_meters(definition: Definition, period: Period, by: Sequence[str]) -> list[Traffic]:
    """What attempts metered besides the counts that have a column: `meter` and `quantity` of hours,
    and of rows `others` (JSON) and how many `rows` have just that."""
    times = [name for name in OF_TIME if name in by]
    cut, found = spans(period, times), []
    key = ["request_dimension", "attempt_dimension"]
    if cut.whole:
        m = other_meter_hours.c
        marks = [_time(name, m.hour_us, period).label(f"at_{name}") for name in times]
        at = [m.request_dimension, m.attempt_dimension, m.meter, *marks]
        quantity = _whole(sa.func.sum(m.quantity)).label("quantity")
        within = sa.select(*at, quantity).where(_within(m.hour_us, cut.whole)).group_by(*at)
        found.append(_with_dimensions(definition, within.subquery("t"), key, times))
    if cut.parts:
        source, marks, where = _attempt_rows(cut, period, times)
        others = sa.cast(attempt_facts.c.other_meters, sa.Text).label("others")
        at = [*_dimensions_of_rows(), *marks, others]
        within = sa.select(*at, sa.func.count().label("rows")).select_from(source)
        within = within.where(*where, attempt_facts.c.other_meters.is_not(None)).group_by(*at)
        found.append(_with_dimensions(definition, within.subquery("t"), key, times))
    return found


def _with_dimensions(
    definition: Definition, found: sa.Subquery, key: Sequence[str], times: Sequence[str]
) -> Traffic:
    request, attempt = request_dimensions, attempt_dimensions
    source: Any = found.join(request, request.c.id == found.c.request_dimension)
    if "attempt_dimension" in key:
        source = source.join(attempt, attempt.c.id == found.c.attempt_dimension)
    marks = {name: found.c[f"at_{name}"] for name in times}
    names = Names(request.c, attempt.c, request.c.shadow, marks)
    return Traffic(source, found.c, names, names.filters(definition))


# --- from roll-ups --------------------------------------------------------------------------------


def _hours(
    cut: Spans, period: Period, times: Sequence[str], added: Sequence[str], of_attempts: bool
) -> sa.Select[Any]:
    c = (attempt_hours if of_attempts else request_hours).c
    own = (
        [c.request_dimension, c.attempt_dimension]
        if of_attempts
        else [c.dimension.label("request_dimension")]
    )
    marks = [_time(name, c.hour_us, period).label(f"at_{name}") for name in times]
    sums = [_whole(sa.func.sum(c[name])).label(name) for name in added]
    by = [c.request_dimension, c.attempt_dimension] if of_attempts else [c.dimension]
    query = sa.select(*own, *marks, *sums).where(_within(c.hour_us, cut.whole))
    return query.group_by(*by, *marks)


# --- from rows ------------------------------------------------------------------------------------


def _requests(
    cut: Spans, period: Period, times: Sequence[str], added: Sequence[str]
) -> sa.Select[Any]:
    f = request_facts.c
    marks = [_time(name, f.started_at_us, period).label(f"at_{name}") for name in times]
    timed = sa.and_(f.tps > 0, f.output_tokens.is_not(None))
    took = _double(f.output_tokens) * sa.literal(1e6, sa.Double) / f.tps
    most = sa.literal(float(_SPEED_US_MAX), sa.Double)
    took = rounded(sa.case((took > most, most), else_=took))
    made = _sums(f, timed, took)
    query = sa.select(f.dimension.label("request_dimension"), *marks, *(made[n] for n in added))
    return query.where(_within(f.started_at_us, cut.parts)).group_by(f.dimension, *marks)


def _attempts(
    cut: Spans, period: Period, times: Sequence[str], added: Sequence[str]
) -> sa.Select[Any]:
    source, marks, where = _attempt_rows(cut, period, times)
    source = source.join(attempt_dimensions, attempt_dimensions.c.id == attempt_facts.c.dimension)
    a = attempt_facts.c
    ended = attempt_dimensions.c.outcome == Outcome.OK.value
    made = _sums(a, sa.and_(ended, a.duration_us > 0, a.output_tokens > 0), a.duration_us)
    query = sa.select(*_dimensions_of_rows(), *marks, *(made[n] for n in added))
    query = query.select_from(source).where(*where)
    return query.group_by(request_facts.c.dimension, a.dimension, *marks)


def _attempt_rows(cut: Spans, period: Period, times: Sequence[str]) -> tuple[Any, list[Any], Any]:
    """Attempts joined to their requests; the marks of time; the parts."""
    f, a = request_facts.c, attempt_facts.c
    same = sa.and_(a.request_id == f.id, a.request_started_at_us == f.started_at_us)
    marks = [_time(name, f.started_at_us, period).label(f"at_{name}") for name in times]
    # Said of both, so that only the months of the period are looked into.
    where = [_within(at, cut.parts) for at in (f.started_at_us, a.request_started_at_us)]
    return request_facts.join(attempt_facts, same), marks, where


def _dimensions_of_rows() -> list[Any]:
    return [
        request_facts.c.dimension.label("request_dimension"),
        attempt_facts.c.dimension.label("attempt_dimension"),
    ]


def _sums(c: Any, timed: Any, took_us: Any) -> dict[str, Any]:
    """Every column, as `ledger.hours` adds it up."""
    tokens = [sa.func.coalesce(c[name], 0) for name in TOKENS]
    known = c.cost_nano_usd.is_not(None)
    made: dict[str, Any] = {
        "rows": sa.func.count(),
        "cost_nano_usd": sa.func.sum(c.cost_nano_usd),
        "costed": sa.func.count(c.cost_nano_usd),
        **{name: sa.func.sum(one) for name, one in zip(TOKENS, tokens, strict=True)},
        "costed_tokens": sa.func.sum(sa.case((known, tokens[0] + tokens[1] + tokens[2]))),
        "speed_tokens": sa.func.sum(sa.case((timed, c.output_tokens))),
        "speed_us": sa.func.sum(sa.case((timed, took_us))),
    }
    bounds: list[int | None] = [None, *TTFT_BOUNDS_US, None]
    for name, (low, high) in zip(BUCKETS, pairwise(bounds), strict=True):
        at = c.ttft_us
        ends = [] if low is None else [at >= low]
        ends += [] if high is None else [at < high]
        made[name] = sa.func.sum(sa.case((sa.and_(*ends), 1), else_=0))
    return {name: _whole(one).label(name) for name, one in made.items()}


def _metered(a: Any, meter: Meter) -> Any:
    """Whether an attempt used any of it. A fee per request is in its rates, not in the row."""
    match meter:
        case Meter.INPUT:
            return a.uncached_tokens > 0
        case Meter.CACHE_READ:
            return a.cached_tokens > 0
        case Meter.OUTPUT:
            return a.output_tokens > sa.func.coalesce(a.reasoning_tokens, 0)
        case Meter.REASONING:
            return a.reasoning_tokens > 0
        case Meter.REQUEST:
            return a.rates_id.is_not(None)
    return a.other_meters[meter.value].as_integer() > 0


# --- pieces ---------------------------------------------------------------------------------------


def within_rows(period: Period) -> list[Any]:
    """A period as conditions on the view `requests`."""
    started = requests.c.started_at_us
    return [started >= period.since_us, started < period.until_us]


def joined(definition: Definition) -> Any:
    """The view `requests`, with `attempts` where those are what is added up."""
    if not definition.of_attempts:
        return requests
    same = (
        attempts.c.request_id == requests.c.id,
        attempts.c.request_started_at_us == requests.c.started_at_us,
    )
    return requests.join(attempts, sa.and_(*same))


def conditions(definition: Definition, period: Period | None = None) -> list[Any]:
    """Period and filters, on the views."""
    period = period or definition.period
    said = [*within_rows(period), *of_rows(period).filters(definition)]
    if definition.of_attempts:
        at = attempts.c.request_started_at_us
        said += [at >= period.since_us, at < period.until_us]
    return said


def _within(at: Any, some: Sequence[Span]) -> Any:
    return sa.or_(*(sa.and_(at >= since, at < until) for since, until in some))


def _time(name: str, at: Any, period: Period) -> Any:
    """The number of the local day, or when the local hour began."""
    offset = _offset(at, period)
    if name == "day":
        return (at + offset) // _big(_DAY_US)
    return (at + offset) // _big(HOUR_US) * _big(HOUR_US) - offset


def _offset(at: Any, period: Period) -> Any:
    segments = period.offsets()
    if len(segments) == 1:
        return _big(segments[0][1])
    ends: Iterator[Any] = ((at < end, _big(by)) for (_, by), (end, _) in pairwise(segments))
    return sa.case(*ends, else_=_big(segments[-1][1]))


def _big(value: int) -> Any:
    """Written out: what is grouped by must be the same text where it is selected."""
    return sa.literal_column(str(value), sa.BigInteger)


def _text(value: str) -> Any:
    return sa.literal(value, sa.Text)


def _double(column: Any) -> Any:
    return sa.cast(column, sa.Double)


def _whole(amount: Any) -> Any:
    return sa.cast(sa.func.coalesce(amount, 0), sa.BigInteger)


class tagged(sa.sql.functions.GenericFunction[str]):  # noqa: N801 (a function of SQL)
    """The value of the tag of that name, whatever is in the name; NULL where it is not there.

    A JSON path would be SQLAlchemy's way: SQLite's know no way to quote `"` in a name.
    """

    type = sa.Text()
    inherit_cache = True


@compiles(tagged, "postgresql")
def _tagged_by_postgres(element: Any, compiler: Any, **options: Any) -> str:
    tags, name = (compiler.process(one, **options) for one in element.clauses)
    return f"({tags} ->> {name})"


@compiles(tagged, "sqlite")
def _tagged_by_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    tags, name = (compiler.process(one, **options) for one in element.clauses)
    return f"(SELECT j.value FROM json_each({tags}) AS j WHERE j.key = {name})"  # noqa: S608 (parameters)


class rounded(sa.sql.functions.GenericFunction[int]):  # noqa: N801 (a function of SQL)
    """A double as an integer, half to even, as Python rounds."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(rounded, "postgresql")
def _rounded_by_postgres(element: Any, compiler: Any, **options: Any) -> str:
    return f"CAST(round({compiler.process(element.clauses, **options)}) AS bigint)"


@compiles(rounded, "sqlite")
def _rounded_by_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    x = compiler.process(element.clauses, **options)
    whole = f"CAST({x} AS INTEGER)"
    return f"({whole} + ({x} - {whole} > 0.5 OR ({x} - {whole} = 0.5 AND {whole} % 2 = 1)))"
