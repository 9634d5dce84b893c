"""The cost report: what was spent, on what, how that changed, unit costs, and what was wasted.

Owns how groups become lines and what a reader is told before trusting them. Copies sent for
comparison are paid but nobody's request: one line of their own, in the total, in nobody's share of
a team. A group that the previous period had and this one has not is a line too: finance asks where
it went.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from gateway.ledger.store import Store
from gateway.reports import foot, pictures, sums
from gateway.reports.corrected import Gone, said_of_pruned
from gateway.reports.cost_columns import Shape, columns, figures, shape, standing
from gateway.reports.definition import METER, OF_TIME, Definition, Unusable, day, iso, moment, tag
from gateway.reports.document import Card, Document, Table, money, shown
from gateway.reports.percentiles import ERROR_MAX, EXACT_ROWS_MAX, Group
from gateway.reports.sums import Added, Sums

SHADOW = "(shadow)"

NOTES = (
    (
        "Line (shadow): copies sent for comparison. They are paid, so they are in the total, and"
        " billed to nobody."
    ),
    (
        "Cost of a request is that of all its attempts; with groups by backend, kind or model each"
        " attempt counts where it ran. Both ways add up to the same total."
    ),
    (
        "$/M tokens is cost over all tokens with a known cost; by request the tokens are those of"
        " the answer, so it is what delivered tokens cost. $/M input and output are what the tokens"
        " of all attempts were billed at, by the prices their rows name."
    ),
    (
        "$ per request is cost over the rows that have one. Unpriced rows were used but no price"
        " was known: they are counted and in no sum."
    ),
    (
        "Waste is the cost of attempts whose answer nobody got whole: failed tries, hedges that"
        " lost, clients that left, streams that broke. It is what was booked."
    ),
)
_CORRECTED = (
    "Booked costs are never changed. What a rating run found to be otherwise is a correction beside"
    " them; corrected is booked plus corrections, and unit costs, share and change stand on it."
)


async def cost(
    store: Store,
    definition: Definition,
    *,
    now: dt.datetime,
    labels: Mapping[str, str] | None = None,
    display: tuple[str, Decimal, str] | None = None,
) -> Document:
    """The report. `labels` are names of keys; `display` a currency, how much of it a dollar is, and
    where that is from. Raises Unusable, StoreUnavailable."""
    if any(name == METER for name, _ in definition.where) and METER not in definition.by:
        raise Unusable(f"--where {METER}=…: only with --by {METER}, or in report rows")
    async with store.snapshot() as view:
        if METER in definition.by:
            from gateway.reports.meters import by_meter

            return await by_meter(view, definition, now=now, labels=labels or {}, display=display)
        found = await sums.added(view, definition, definition.period, definition.by, times=True)
        whole = await sums.with_percentiles(view, definition, found)
        earlier = await sums.before(view, definition) if definition.compare else Added()
        ended = await foot.foot(view, definition, found, now=now, display=display_line(display))
    before = earlier.total()
    has = shape(
        definition,
        whole,
        before,
        runs=bool(found.runs or earlier.runs),
        display=display and display[:2],
    )
    made = columns(definition, has)
    table = Table(
        columns=made,
        rows=_lines(definition, found, whole, earlier, has, labels or {}),
        total=figures(whole, whole, before if definition.compare else None, has)
        | {made[0].name: "total", "drill_down": definition.command("rows", by=())},
    )
    return Document(
        name="cost",
        title="Cost" + (f" by {said(definition)}" if definition.by else ""),
        subtitle=subtitle(definition),
        table=table,
        cards=_cards(definition, whole, before, has),
        charts=pictures.of_cost(definition, table, has.stands) if whole.rows else (),
        remarks=_remarks(whole, found),
        notes=(*NOTES, _CORRECTED) if has.runs else NOTES,
        foot=ended.lines,
        json_foot=ended.json,
    )


def subtitle(definition: Definition) -> str:
    """The period."""
    return str(definition.period) + (" (so far)" if definition.period.unfinished else "")


def said(definition: Definition) -> str:
    """What it is grouped by."""
    return ", ".join(name.removeprefix("tag:") for name in definition.by)


def display_line(display: tuple[str, Decimal, str] | None) -> tuple[str, str] | None:
    """The foot's line on a currency that is shown."""
    if display is None:
        return None
    currency, per_usd, source = display
    return "Currency", f"booked in USD; {currency} at {per_usd} for a dollar ({source})"


def _lines(
    definition: Definition,
    found: Added,
    whole: Sums,
    earlier: Added,
    has: Shape,
    labels: Mapping[str, str],
) -> list[dict[str, Any]]:
    groups = dict(found.groups)
    timed = any(name in OF_TIME for name in definition.by)
    if not timed:
        for group in earlier.groups:
            groups.setdefault(group, Sums())
    return [
        figures(one, whole, None if timed else earlier.groups.get(group, Sums()), has)
        | named(definition, group, labels)
        | {"drill_down": drill_down(definition, group)}
        for group, one in ordered(definition, groups)
    ]


def ordered(definition: Definition, found: Mapping[Group, Sums]) -> list[tuple[Group, Sums]]:
    """By time where that is asked for, then the dearest first; copies last."""
    times = [place for place, name in enumerate(groups_of(definition), 1) if name in OF_TIME]

    def place(item: tuple[Group, Sums]) -> tuple[Any, ...]:
        group, one = item
        at = () if group[0] else tuple(group[n] for n in times)
        return (group[0], at, -one.cost - one.correction, -one.rows, tuple(map(str, group)))

    return sorted(found.items(), key=place)


def groups_of(definition: Definition) -> list[str]:
    """The names that rows are grouped by: a meter is not one, it is inside of rows."""
    return [name for name in definition.by if name != METER]


def named(definition: Definition, group: Group, labels: Mapping[str, str]) -> dict[str, str]:
    """The cells that say which line it is."""
    names = groups_of(definition)
    first, *rest = names or ("group",)
    if group[0]:
        return {first: SHADOW, **dict.fromkeys(rest, "")}
    if not names:
        return {"group": "attempts" if definition.of_attempts else "requests"}
    values = zip(names, group[1:], strict=True)
    return {name: _value(name, value, definition, labels) for name, value in values}


def _value(name: str, value: Any, definition: Definition, labels: Mapping[str, str]) -> str:
    if name == "day":
        return day(value)
    if name == "hour":
        return moment(value, definition.period.zone)
    if value is Gone.ROWS:
        return Gone.ROWS.value
    if value is None:
        if name == "service_tier":
            return "standard"
        return f"(no {tag(name) or name})" if tag(name) is not None or name == "key" else "(none)"
    return f"{value} ({labels[value]})" if name == "key" and value in labels else str(value)


def drill_down(definition: Definition, group: Group, *more: tuple[str, str]) -> str:
    """The command that lists the rows of a line; they add up to it. "" where they are gone."""
    if Gone.ROWS in group:
        return ""
    where = [*definition.where, *more]
    if group[0]:
        where.append(("shadow", "yes"))
        return definition.command("rows", by=(), where=[f"{n}={v}" for n, v in where])
    if not any(name == "shadow" for name, _ in where):
        where.append(("shadow", "no"))
    options: dict[str, Any] = {}
    for name, value in zip(groups_of(definition), group[1:], strict=True):
        if name in OF_TIME:
            period = definition.period
            ends = period.of_day(value) if name == "day" else period.of_hour(value)
            if name == "hour" or "since" not in options:
                texts = (iso(at, period.zone) for at in ends)
                options |= dict(zip(("since", "until"), texts, strict=True))
        else:
            where = [pair for pair in where if pair[0] != name]
            where.append((name, "" if value is None else str(value)))
    return definition.command("rows", by=(), where=[f"{n}={v}" for n, v in where], **options)


def _cards(definition: Definition, whole: Sums, before: Sums, has: Shape) -> Sequence[Card]:
    made = figures(whole, whole, before, has)
    was = standing(before)
    change = shown(made["change"], "change")
    note = f"{change} on {shown(was, 'usd')} before" if definition.compare else ""
    if has.currency:
        note = f"{shown(made[has.local], 'local')} {has.currency}; {note}".removesuffix("; ")
    if whole.correction:
        note = f"{money(whole.cost)} booked, {money(whole.correction)} corrected"
    tokens = made["uncached"] + made["cached"] + made["cache_write"] + made["output"]
    tokens += made["other_input"] + made["other_output"]
    return (
        Card(label="Spend", figure=shown(standing(whole), "usd"), note=note),
        Card(
            label="Attempts" if definition.of_attempts else "Requests",
            figure=f"{whole.rows:,}",
            note=f"{shown(made['per_request'], 'unit')} each",
        ),
        Card(
            label="Tokens",
            figure=_short(tokens),
            note=f"{shown(made['cache_share'], 'share')} of input from cache",
        ),
        Card(
            label="$ per million tokens",
            figure=shown(made["per_mtok"], "unit"),
            note=f"input {shown(made['per_minput'], 'unit')},"
            f" output {shown(made['per_moutput'], 'unit')}",
        ),
        Card(
            label="Waste",
            figure=money(sum(whole.waste.values())),
            note=f"{shown(made['waste_share'], 'share')} of cost",
        ),
    )


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:,.1f} {letter}"
    return str(count)


def _remarks(whole: Sums, found: Added) -> list[str]:
    """What a reader must know before trusting the figures."""
    told = []
    if not whole.rows:
        told.append("Nothing was recorded in this period with these filters: the report is empty.")
    if left := whole.unpriced - whole.resolved:
        told.append(
            f"{left:,} rows were used without a known price. They are in no sum, so the true cost"
            " is higher; `weighbridge report quality` says which prices are missing."
        )
    if whole.correction or found.runs:
        told.append(
            f"Rating runs {', '.join(map(str, found.runs))} corrected {money(whole.cost)} by"
            f" {money(whole.correction)}."
        )
    told += said_of_pruned(whole.pruned, found.untold)
    if unsplit := whole.split.unsplit - whole.pruned:
        told.append(
            f"{money(unsplit)} could not be split into input and output: its prices are on a"
            " marginal scale, or not in the price book's history. $/M input and output are"
            " without them."
        )
    if found.interpolated and whole.ttft_p50 is not None:
        why = "rows are gone" if whole.rows <= EXACT_ROWS_MAX else f"over {EXACT_ROWS_MAX:,} rows"
        told.append(
            f"Times to first token are from the hours' histogram ({why}): off by at most"
            f" {ERROR_MAX:.1%}."
        )
    if whole.attempt_cost != whole.cost:
        told.append(
            f"Requests add up to {money(whole.cost)}, attempts to {money(whole.attempt_cost)}:"
            " the ledger contradicts itself. Run `weighbridge audit`."
        )
    return told
