"""The cost report: what was spent, on what, how that changed, unit costs, and what was wasted.

Owns the report's columns and how the database's sums become its lines. Copies sent for comparison
are paid but nobody's request: one line of their own, in the total, in nobody's share of a team. A
group that the previous period had and this one has not is a line too: finance asks where it went.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from gateway.ledger.store import Store
from gateway.reports import foot, pictures, sums
from gateway.reports.definition import OF_TIME, Definition, day, iso, moment, tag
from gateway.reports.document import Card, Column, Document, Table, money, ratio, shown
from gateway.reports.sums import Group, Sums

SHADOW = "(shadow)"
_COST, _UNIT, _DOUBT = "Cost", "Tokens, unit costs, speed", "Waste and quality"

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
        "$ per million tokens is cost over all tokens with a known cost. It is not split into input"
        " and output: a row holds one cost, and the prices behind it differ by meter."
    ),
    (
        "$ per request is cost over the rows that have one. Unpriced rows were used but no price"
        " was known: they are counted and in no sum."
    ),
    (
        "Waste is the cost of attempts whose answer nobody got whole: failed tries, hedges that"
        " lost, clients that left, streams that broke."
    ),
)


# Tokens and unit costs; what was wasted and what is in doubt.
_UNITS = (
    Column(name="uncached", heading="input", kind="count", section=_UNIT, added=True, rank=3),
    Column(name="cached", heading="cached", kind="count", section=_UNIT, added=True, rank=3),
    Column(name="output", heading="output", kind="count", section=_UNIT, added=True, rank=3),
    Column(
        name="priced_tokens", heading="tokens with a cost", kind="count", added=True, detail=True
    ),
    Column(
        name="cache_share",
        heading="cache share",
        kind="share",
        section=_UNIT,
        formula="cached/(uncached+cached)",
        rank=4,
    ),
    Column(
        name="per_request",
        heading="$/request",
        kind="unit",
        section=_UNIT,
        formula="cost/priced",
        rank=2,
    ),
    Column(
        name="per_mtok",
        heading="$/M tokens",
        kind="unit",
        section=_UNIT,
        formula="cost/priced_tokens*1000000",
        rank=2,
    ),
    Column(name="tps", heading="tokens/s", kind="tps", section=_UNIT, rank=5),
    Column(name="ttft_p50", heading="TTFT p50", kind="ms", section=_UNIT, rank=5),
    Column(name="ttft_p95", heading="TTFT p95", kind="ms", section=_UNIT, rank=5),
)
_DOUBTS = (
    *(
        Column(name=f"waste_{why}", heading=heading, kind="usd", section=_DOUBT, added=True, rank=6)
        for why, heading in pictures.WASTE.items()
    ),
    Column(
        name="waste",
        heading="waste",
        kind="usd",
        section=_DOUBT,
        formula=f"SUM({','.join(f'waste_{why}' for why in pictures.WASTE)})",
        rank=2,
    ),
    Column(
        name="waste_share",
        heading="waste share",
        kind="share",
        section=_DOUBT,
        formula="waste/cost",
        rank=4,
    ),
    Column(name="weighed", heading="rows with usage", kind="count", added=True, detail=True),
    Column(name="estimated", heading="estimated rows", kind="count", added=True, detail=True),
    Column(
        name="estimated_share",
        heading="estimated",
        kind="share",
        section=_DOUBT,
        formula="estimated/weighed",
        rank=4,
    ),
    Column(name="unpriced", heading="unpriced", kind="count", section=_DOUBT, added=True, rank=1),
    Column(name="drill_down", heading="rows", kind="command", detail=True),
)


def columns(definition: Definition) -> list[Column]:
    """The table's columns, in order."""
    rows = "attempts" if definition.of_attempts else "requests"
    groups = [
        Column(name=name, heading=name.removeprefix("tag:"), kind="text") for name in definition.by
    ]
    return [
        *(groups or [Column(name="group", heading="", kind="text")]),
        Column(name="requests", heading=rows, kind="count", section=_COST, added=True),
        Column(name="priced", heading="with a cost", kind="count", added=True, detail=True),
        Column(name="cost", heading="cost", kind="usd", section=_COST, added=True),
        Column(
            name="share",
            heading="share",
            kind="share",
            section=_COST,
            formula="cost/total.cost",
            rank=1,
        ),
        *_compared(definition),
        *_UNITS,
        *_DOUBTS,
    ]


def _compared(definition: Definition) -> list[Column]:
    if not definition.compare or any(name in OF_TIME for name in definition.by):
        return []
    return [
        Column(name="previous", heading="previous", kind="usd", section=_COST, added=True, rank=4),
        Column(
            name="change",
            heading="change",
            kind="change",
            section=_COST,
            formula="(cost-previous)/previous",
            rank=1,
        ),
    ]


async def cost(
    store: Store,
    definition: Definition,
    *,
    now: dt.datetime,
    labels: Mapping[str, str] | None = None,
) -> Document:
    """The report. `labels` are names of keys. Raises Unusable, StoreUnavailable."""
    for _ in range(foot.ROUNDS_MAX):
        found = await sums.sums(store, definition)
        whole = await sums.total(store, definition, found.values())
        ended = await foot.foot(store, definition, now=now)
        if ended.rows == whole.rows:  # rows are only ever added: all queries saw the same
            break
    earlier = await sums.before(store, definition) if definition.compare else {}
    before = Sums()
    for one in earlier.values():
        before.add(one)
    timed = any(name in OF_TIME for name in definition.by)
    if not timed:
        for group in earlier:
            found.setdefault(group, Sums())
    made = columns(definition)
    lines = [
        _line(definition, group, one, whole, None if timed else earlier.get(group), labels or {})
        for group, one in _ordered(definition, found)
    ]
    total = _figures(whole, whole, before if definition.compare else None)
    total[made[0].name] = "total"
    total["drill_down"] = definition.command("rows", by=())
    table = Table(columns=made, rows=lines, total=total)
    return Document(
        name="cost",
        title="Cost" + (f" by {_said(definition)}" if definition.by else ""),
        subtitle=str(definition.period) + (" (so far)" if definition.period.unfinished else ""),
        table=table,
        cards=_cards(definition, whole, before),
        charts=pictures.of_cost(definition, table) if whole.rows else (),
        remarks=_remarks(whole, ended.rows),
        notes=NOTES,
        foot=ended.lines,
        json_foot=ended.json,
    )


def _said(definition: Definition) -> str:
    return ", ".join(name.removeprefix("tag:") for name in definition.by)


def _ordered(definition: Definition, found: Mapping[Group, Sums]) -> list[tuple[Group, Sums]]:
    """By time where that is asked for, then the dearest first; copies last."""
    times = [place for place, name in enumerate(definition.by, 1) if name in OF_TIME]

    def place(item: tuple[Group, Sums]) -> tuple[Any, ...]:
        group, one = item
        at = () if group[0] else tuple(group[n] for n in times)
        return (group[0], at, -one.cost, -one.rows, tuple(map(str, group)))

    return sorted(found.items(), key=place)


def _line(
    definition: Definition,
    group: Group,
    one: Sums,
    whole: Sums,
    previous: Sums | None,
    labels: Mapping[str, str],
) -> dict[str, Any]:
    line = _figures(one, whole, previous if previous is not None else Sums())
    first, *rest = definition.by or ("group",)
    if group[0]:
        line |= {first: SHADOW, **dict.fromkeys(rest, "")}
    elif not definition.by:
        line["group"] = "requests" if not definition.of_attempts else "attempts"
    else:
        values = zip(definition.by, group[1:], strict=True)
        line |= {name: _value(name, value, definition, labels) for name, value in values}
    line["drill_down"] = _drill_down(definition, group)
    return line


def _value(name: str, value: Any, definition: Definition, labels: Mapping[str, str]) -> str:
    if name == "day":
        return day(value)
    if name == "hour":
        return moment(value, definition.period.zone)
    if value is None:
        return f"(no {tag(name) or name})" if tag(name) is not None or name == "key" else "(none)"
    return f"{value} ({labels[value]})" if name == "key" and value in labels else str(value)


def _drill_down(definition: Definition, group: Group) -> str:
    """The command that lists the rows of a line; they add up to it."""
    where = list(definition.where)
    if group[0]:
        return definition.command(
            "rows", by=(), where=[f"{n}={v}" for n, v in [*where, ("shadow", "yes")]]
        )
    if not any(name == "shadow" for name, _ in where):
        where.append(("shadow", "no"))
    options: dict[str, Any] = {}
    for name, value in zip(definition.by, group[1:], strict=True):
        if name in OF_TIME:
            period = definition.period
            ends = period.of_day(value) if name == "day" else period.of_hour(value)
            if name == "hour" or "since" not in options:
                said = (iso(at, period.zone) for at in ends)
                options |= dict(zip(("since", "until"), said, strict=True))
        else:
            where = [pair for pair in where if pair[0] != name]
            where.append((name, "" if value is None else str(value)))
    return definition.command("rows", by=(), where=[f"{n}={v}" for n, v in where], **options)


def _figures(one: Sums, whole: Sums, previous: Sums | None) -> dict[str, Any]:
    known = _known(one)
    waste = sum(one.waste.values())
    figures: dict[str, Any] = {
        "requests": one.rows,
        "priced": one.costed,
        "cost": known,
        "share": None if known is None else ratio(known, whole.cost),
        "uncached": one.uncached,
        "cached": one.cached,
        "output": one.output,
        "priced_tokens": one.costed_tokens,
        "cache_share": ratio(one.cached, one.uncached + one.cached),
        "per_request": _per(known, one.costed),
        "per_mtok": _per(known, one.costed_tokens, 1_000_000),
        "tps": one.speed_tokens / one.speed_s if one.speed_s else None,
        "ttft_p50": one.ttft_p50,
        "ttft_p95": one.ttft_p95,
        **{f"waste_{why}": None if known is None else cost for why, cost in one.waste.items()},
        "waste": None if known is None else waste,
        "waste_share": ratio(waste, one.cost),
        "weighed": one.weighed,
        "estimated": one.estimated,
        "estimated_share": ratio(one.estimated, one.weighed),
        "unpriced": one.unpriced,
    }
    if previous is not None:
        was = _known(previous)
        figures["previous"] = was
        figures["change"] = None if known is None or was is None else ratio(known - was, was)
    return figures


def _known(one: Sums) -> int | None:
    """The cost; None where something was used and no price of any of it is known."""
    return None if one.unpriced and not one.costed else one.cost


def _per(nano: int | None, count: int, times: int = 1) -> Decimal | None:
    of = ratio(nano, count)
    return None if of is None else of * times / 1_000_000_000


def _cards(definition: Definition, whole: Sums, before: Sums) -> Sequence[Card]:
    figures = _figures(whole, whole, before)
    change = shown(figures["change"], "change")
    note = f"{change} on {money(before.cost)} before" if definition.compare else ""
    waste, known = sum(whole.waste.values()), _known(whole)
    tokens = whole.uncached + whole.cached + whole.output
    return (
        Card(label="Spend", figure=shown(known, "usd"), note=note),
        Card(
            label="Attempts" if definition.of_attempts else "Requests",
            figure=f"{whole.rows:,}",
            note=f"{shown(figures['per_request'], 'unit')} each",
        ),
        Card(
            label="Tokens",
            figure=_short(tokens),
            note=f"{shown(figures['cache_share'], 'share')} of input from cache",
        ),
        Card(
            label="$ per million tokens",
            figure=shown(figures["per_mtok"], "unit"),
            note=f"TTFT p95 {shown(whole.ttft_p95, 'ms')}",
        ),
        Card(
            label="Waste",
            figure=money(waste),
            note=f"{shown(figures['waste_share'], 'share')} of cost",
        ),
    )


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:,.1f} {letter}"
    return str(count)


def _remarks(whole: Sums, digested: int) -> list[str]:
    """What a reader must know before trusting the figures."""
    found = []
    if not whole.rows:
        found.append("Nothing was recorded in this period with these filters: the report is empty.")
    if whole.unpriced:
        found.append(
            f"{whole.unpriced:,} rows were used without a known price. They are in no sum, so the"
            " true cost is higher; add their prices to the price book."
        )
    if digested != whole.rows:
        found.append(
            f"Rows arrived while this was added up: the digest is of {digested:,}, the sums are of"
            f" {whole.rows:,}. End the period a minute ago and run it again."
        )
    elif whole.attempt_cost != whole.cost:
        found.append(
            f"Requests add up to {money(whole.cost)}, attempts to {money(whole.attempt_cost)}:"
            " the ledger contradicts itself. Run `weighbridge audit`."
        )
    return found
