"""What a report adds up, group by group: requests or attempts, their costs, meters and corrections.

Everything is added up by the database, from roll-ups wherever they can say it (`traffic`); what
comes here is a row per group. A report asks all of it of one `View`, so its figures are of one
moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
import sqlalchemy as sa

from gateway.domain.money import OUTPUT_METERS, PROMPT_METERS, Meter
from gateway.domain.outcome import Outcome
from gateway.ledger.hours import BUCKETS, HOUR_US
from gateway.ledger.store import keys, prunings, request_hours
from gateway.reports import corrected, percentiles
from gateway.reports.definition import OF_TIME, Definition, Period, Unusable, iso
from gateway.reports.percentiles import Group, group_of
from gateway.reports.spans import spans
from gateway.reports.splits import Pot, Split, counted, rates_of, split
from gateway.reports.traffic import ADDED, TOKENS, WORDS, Names, View, other_meters, traffic

GROUPS_MAX = 20_000

# How an attempt that cost something can have been for nothing. In the order they are shown.
WASTE: Mapping[str, tuple[str, ...]] = {
    "retries": (Outcome.FAILED, Outcome.REJECTED, Outcome.INTERNAL),
    "hedges": (Outcome.HEDGE_LOST,),
    "abandoned": (Outcome.CANCELLED,),
    "midstream": (Outcome.FAILED_MIDSTREAM,),
}
WRITES: Final = frozenset({Meter.CACHE_WRITE_5M, Meter.CACHE_WRITE_1H})
_WHY: Final = {outcome: why for why, outcomes in WASTE.items() for outcome in outcomes}


@dataclass(slots=True, kw_only=True)
class Sums:
    """One group. Costs in nano-USD; `costed` rows have one, `unpriced` ones were weighed and have
    none or not all of it. `speed_us` is how long `speed_tokens` took.

    `others` are further meters of the attempts that answered, `split` what all attempts cost by
    meter, as corrected; `priced`, `resolved` and their tokens are what corrections made known,
    `corrected` are the attempts they are of, `pruned` is what corrects rows that are gone.
    """

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
    speed_us: int = 0
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    attempt_cost: int = 0
    correction: int = 0
    corrected: int = 0
    pruned: int = 0
    priced: int = 0
    resolved: int = 0
    priced_tokens: int = 0
    waste: Counter[str] = field(default_factory=Counter)
    others: Counter[Meter] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))
    split: Split = field(default_factory=Split)

    def add(self, other: Sums) -> None:
        """Put another group's sums on top; percentiles do not add up and are left alone."""
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.waste += other.waste
        self.others += other.others
        self.split.add(other.split)

    @property
    def writes(self) -> int:
        """Tokens written to a cache."""
        return sum(self.others[meter] for meter in WRITES)

    @property
    def other_input(self) -> int:
        """Audio and pictures."""
        return sum(n for meter, n in self.others.items() if meter in PROMPT_METERS - WRITES)

    @property
    def other_output(self) -> int:
        return sum(n for meter, n in self.others.items() if meter in OUTPUT_METERS)


# column of the traffic -> field
_COUNTED = {
    "rows": "rows",
    "cost_nano_usd": "cost",
    "costed": "costed",
    "uncached_tokens": "uncached",
    "cached_tokens": "cached",
    "output_tokens": "output",
    "costed_tokens": "costed_tokens",
    "speed_tokens": "speed_tokens",
    "speed_us": "speed_us",
    "weighed": "weighed",
    "estimated": "estimated",
    "unpriced": "unpriced",
}
_ADDED = (
    *_COUNTED.values(),
    *("attempt_cost", "correction", "corrected", "pruned"),
    *("priced", "resolved", "priced_tokens"),
)


@dataclass(slots=True, kw_only=True)
class Added:
    """The sums of a period. `words` are the digests' words of its whole hours, added up; `policies`
    (name, digest) -> rows; `rates` id -> attempts; `runs` those that corrected something; `untold`
    is what corrects rows that are gone, in nano-USD, where filters ask whose."""

    groups: dict[Group, Sums] = field(default_factory=dict)
    words: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    policies: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)
    runs: list[int] = field(default_factory=list)
    untold: int = 0
    interpolated: bool = False  # percentiles come from the histogram

    def total(self) -> Sums:
        """The groups added up, without percentiles."""
        whole = Sums()
        for one in self.groups.values():
            whole.add(one)
        return whole


Pots = dict[Group, dict[str, Pot]]  # per group by the id of their rates

# --- adding up ------------------------------------------------------------------------------------


async def added(
    view: View,
    definition: Definition,
    period: Period,
    by: Sequence[str],
    *,
    whole: bool = True,
    times: bool = False,
) -> Added:
    """All groups of a period; with `whole` also what the foot says of them, with `times` also the
    histogram of the time to the first token.

    Raises Unusable.
    """
    await _check_rows_are_there(view, period, by)
    made = Added()
    pots: Pots = {}
    await _grouped(view, definition, period, by, (made, pots), whole=whole, times=times)
    if not definition.of_attempts:
        await _attempts(view, definition, period, by, (made, pots))
    await _meters(view, definition, period, by, made, pots)
    corrections = await corrected.corrected(view, definition, period, by)
    pruned = await _pruned(view, definition, period, by)
    if definition.where:
        made.untold = sum(one.delta for one in pruned.values())
        pruned = {}
    if corrections or pruned:
        made.runs = await corrected.runs(view, period, definition.run)
    for some in (corrections, pruned):
        _correct(made, pots, some)
    rates = await rates_of(view, {name for some in pots.values() for name in some})
    for group, one in made.groups.items():
        one.split = split(pots.get(group, {}), rates)
        one.split.unsplit += one.pruned
    return made


async def before(view: View, definition: Definition) -> Added:
    """The sums of the previous period; by groups that a period can share with another."""
    timed = any(name in OF_TIME for name in definition.by)
    by = () if timed else definition.by
    return await added(view, definition, definition.period.previous(), by, whole=False)


async def rows_since(view: View) -> int | None:
    """Before then there are sums but no rows any more: they went by retention. None: no such."""
    query = sa.select(sa.func.max(prunings.c.rows_before_us).label("at"))
    (row,) = await view.select(query)
    return None if row["at"] is None else int(row["at"])


async def _check_rows_are_there(view: View, period: Period, by: Sequence[str]) -> None:
    """Hours that are cut in two are read from rows: refused where these are gone."""
    gone_us = await rows_since(view)
    if gone_us is None:
        return
    times = [name for name in OF_TIME if name in by]
    hour = request_hours.c.hour_us
    for since, until in spans(period, times).parts:
        if since >= gone_us:
            continue
        within = (hour >= since // HOUR_US * HOUR_US, hour < min(until, gone_us))
        if await view.select(sa.select(hour).where(*within).limit(1)):
            said = iso(since // HOUR_US * HOUR_US, period.zone)
            raise Unusable(
                f"the hour from {said} would be cut, and the rows before"
                f" {iso(gone_us, period.zone)} are gone (retention): their sums are kept by whole"
                " hours of UTC; choose --since, --until and --zone so that none is cut"
                " (--no-compare where only the period before reaches back so far)"
            )


async def _grouped(
    view: View,
    definition: Definition,
    period: Period,
    by: Sequence[str],
    into: tuple[Added, Pots],
    *,
    whole: bool,
    times: bool,
) -> None:
    """What is counted, requests or attempts; of attempts also what they are for a cost."""
    made, pots = into
    of_attempts = definition.of_attempts
    columns = (*ADDED, *BUCKETS) if times else ADDED
    found = traffic(definition, period, by, of_attempts=of_attempts, added=columns, words=whole)
    c, names = found.columns, found.names
    dimension = names.attempt if of_attempts else names.request
    weighed = dimension.usage_source != "none"
    none: Any = sa.literal_column("0")
    lacking = c.rows - c.costed if of_attempts else sa.case((dimension.priced, none), else_=c.rows)
    sums = found.sums((*columns, *(WORDS if whole else ())))
    sums |= {
        "weighed": sa.case((weighed, c.rows), else_=none),
        "estimated": sa.case((dimension.usage_source == "estimated", c.rows), else_=none),
        "unpriced": sa.case((weighed, lacking), else_=none),
    }
    groups = names.groups(definition, by)
    policy = [names.request.policy.label("p0"), names.request.policy_digest.label("p1")]
    apart = _apart(names) if of_attempts else []
    query = found.added_up([*groups, *(policy if whole else ()), *apart], sums)
    for row in await view.select(query):
        group = group_of(row)
        one = made.groups.setdefault(group, Sums())
        if of_attempts:
            _take(row, made, pots.setdefault(group, {}), one)
        for column, name in _COUNTED.items():
            setattr(one, name, getattr(one, name) + row[column])
        if times:
            one.buckets = [had + row[name] for had, name in zip(one.buckets, BUCKETS, strict=True)]
        if whole:
            made.words = [had + row[name] for had, name in zip(made.words, WORDS, strict=True)]
            made.policies[row["p0"], row["p1"]] += row["rows"]
    if len(made.groups) > GROUPS_MAX:
        said = " and ".join(definition.by)
        raise Unusable(f"--by {said}: more than {GROUPS_MAX:,} groups; narrow period or filters")


async def _attempts(
    view: View,
    definition: Definition,
    period: Period,
    by: Sequence[str],
    into: tuple[Added, Pots],
) -> None:
    """Costs of attempts, by what came of them and by their rates: whatever the report adds up."""
    found = traffic(
        definition,
        period,
        by,
        of_attempts=True,
        added=("rows", "cost_nano_usd", "costed", *TOKENS),
    )
    made, pots = into
    keys = [*found.names.groups(definition, by), *_apart(found.names)]
    query = found.added_up(keys, found.sums(("rows", "cost_nano_usd", "costed", *TOKENS)))
    for row in await view.select(query):
        group = group_of(row)
        one = made.groups.setdefault(group, Sums())
        _take(row, made, pots.setdefault(group, {}), one)


def _apart(names: Names) -> list[Any]:
    """What tells attempts apart besides their group: what came of them, and their rates."""
    return [names.attempt.outcome.label("ended"), names.attempt.rates_id]


def _take(row: Mapping[str, Any], made: Added, pots: dict[str, Pot], one: Sums) -> None:
    """What attempts of one group, end and rates cost."""
    cost = row["cost_nano_usd"]
    one.attempt_cost += cost
    if (why := _WHY.get(row["ended"])) is not None and cost:
        one.waste[why] += cost
    if row["rates_id"] is not None:
        made.rates[row["rates_id"]] += row["rows"]
        pots.setdefault(row["rates_id"], Pot()).put(row["rows"], cost, counted(row))


async def _meters(
    view: View,
    definition: Definition,
    period: Period,
    by: Sequence[str],
    made: Added,
    pots: Pots,
) -> None:
    """What else was metered: cache writes, sound, pictures, searches, seconds."""
    for found in other_meters(definition, period, by):
        c, names = found.columns, found.names
        from_hours = "meter" in c
        mine = sa.and_(
            names.attempt.outcome == names.request.outcome,
            names.attempt.backend == names.request.backend,
            names.attempt.model == names.request.model,
        )
        keys = [
            *names.groups(definition, by),
            names.attempt.rates_id,
            sa.case((mine, 1), else_=0).label("answered"),
            c.meter if from_hours else c.others,
        ]
        sums = {"count": c.quantity if from_hours else c.rows}
        for row in await view.select(found.added_up(keys, sums)):
            group, count = group_of(row), row["count"]
            metered = (
                {row["meter"]: count}
                if from_hours
                else {name: n * count for name, n in orjson.loads(row["others"]).items()}
            )
            quantities = {Meter(name): n for name, n in metered.items()}
            one = made.groups.setdefault(group, Sums())
            if row["rates_id"] is not None:
                pot = pots.setdefault(group, {}).setdefault(row["rates_id"], Pot())
                pot.put(0, 0, quantities)
            if row["answered"] or definition.of_attempts:
                one.others.update(quantities)
                if row["rates_id"] is not None:
                    tokens = PROMPT_METERS | OUTPUT_METERS
                    one.costed_tokens += sum(n for m, n in quantities.items() if m in tokens)


async def _pruned(
    view: View, definition: Definition, period: Period, by: Sequence[str]
) -> dict[Group, corrected.Correction]:
    """What corrects rows that are gone: looked for only before the time that rows are kept from."""
    gone_us = await rows_since(view)
    if gone_us is None or gone_us <= period.since_us:
        return {}
    before = replace(period, until_us=min(gone_us, period.until_us))
    return await corrected.of_pruned(view, definition, before, by)


def _correct(made: Added, pots: Pots, corrections: Mapping[Group, corrected.Correction]) -> None:
    """Move what was corrected to the rates it is at now."""
    for group, correction in corrections.items():
        one = made.groups.setdefault(group, Sums())
        one.correction += correction.delta
        one.pruned += correction.pruned
        one.corrected += correction.attempts
        one.priced += correction.priced
        one.priced_tokens += correction.tokens
        one.resolved += correction.resolved
        mine = pots.setdefault(group, {})
        for moved in correction.moved:
            if moved.old is not None:
                taken = {meter: -n for meter, n in moved.quantities.items()}
                mine.setdefault(moved.old, Pot()).put(-moved.rows, -moved.was, taken)
            mine.setdefault(moved.new, Pot()).put(moved.rows, moved.stands, moved.quantities)


async def with_percentiles(view: View, definition: Definition, made: Added) -> Sums:
    """The total; it and every group with percentiles. Exact where that is not too much work."""
    whole = made.total()
    gone_us = await rows_since(view)
    gone = gone_us is not None and definition.period.since_us < gone_us
    made.interpolated = gone or whole.rows > percentiles.EXACT_ROWS_MAX
    if not made.interpolated:
        points = await percentiles.of_groups(view, definition, definition.by)
        for group, one in made.groups.items():
            one.ttft_p50, one.ttft_p95 = points.get(group, (None, None))
        whole.ttft_p50, whole.ttft_p95 = await percentiles.of_all(view, definition) or (None, None)
        return whole
    everyone = [0] * len(BUCKETS)
    for group, one in made.groups.items():
        one.ttft_p50, one.ttft_p95 = percentiles.of_counts(one.buckets) or (None, None)
        if not group[0]:
            everyone = [a + b for a, b in zip(everyone, one.buckets, strict=True)]
    whole.ttft_p50, whole.ttft_p95 = percentiles.of_counts(everyone) or (None, None)
    return whole


# --- of keys --------------------------------------------------------------------------------------


async def key_names(view: View) -> dict[str, str]:
    """What the keys are called."""
    return {row["id"]: row["name"] for row in await view.select(sa.select(keys.c.id, keys.c.name))}


async def tags(view: View) -> list[str]:
    """All tags that any key gives its requests."""
    rows = await view.select(sa.select(keys.c.tags))
    return sorted({name for row in rows for name in row["tags"]})
