"""The cost report by meter: what was metered, at what price, and what it came to.

A meter is inside of rows: an attempt is in the lines of all that it metered. Lines are rounded to
nano-USD and the cost was rounded once per attempt, so a line says what rounding made of it; with
it, and with what could not be split, the lines add up to the total.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from gateway.domain.money import TOKEN_METERS, Meter, book
from gateway.reports import cost as costs
from gateway.reports import foot, pictures, sums
from gateway.reports.corrected import said_of_pruned
from gateway.reports.cost_columns import per
from gateway.reports.definition import METER, OF_TIME, Definition
from gateway.reports.document import Card, Column, Document, Table, local, money, ratio, shown
from gateway.reports.percentiles import Group
from gateway.reports.sums import Added
from gateway.reports.traffic import View

ROUNDING, UNSPLIT = "(rounding)", "(not split)"
_SECTION = "Cost"
_UNITS = {
    Meter.REQUEST: "requests",
    Meter.SEARCH_CALL: "searches",
    Meter.IMAGE: "images",
    Meter.SECOND: "seconds",
    Meter.MINUTE: "minutes",
    Meter.GPU_SECOND: "GPU-seconds",
    Meter.REPLICA_MINUTE: "replica-minutes",
}
_NOTES = (
    (
        "Quantities are those of all attempts, as billed. A price is what the quantity came to on"
        " average: $ per million tokens, or per one of anything else."
    ),
    (
        "An attempt's cost is rounded once to nano-USD, a line once over all attempts: (rounding)"
        " is the difference. (not split) is of rows whose prices the price book's history lacks,"
        " and what corrects rows that are gone (retention)."
    ),
)

Line = tuple[str, int | None, int]  # meter, quantity, nano-USD


async def by_meter(
    view: View,
    definition: Definition,
    *,
    now: dt.datetime,
    labels: Mapping[str, str],
    display: tuple[str, Decimal, str] | None,
) -> Document:
    """The report. Raises Unusable, StoreUnavailable."""
    wanted = {value for name, value in definition.where if name == METER}
    rows = replace(
        definition,
        where=tuple(pair for pair in definition.where if pair[0] != METER),
        attempts=True,
    )
    by = costs.groups_of(definition)
    plain = replace(rows, by=tuple(by))
    found = await sums.added(view, plain, definition.period, by)
    compared = definition.compare and not any(name in OF_TIME for name in by)
    earlier = await sums.before(view, plain) if compared else Added()
    ended = await foot.foot(
        view, definition, found, now=now, by=by, display=costs.display_line(display)
    )
    currency, per_usd, _ = display or ("", Decimal(1), "")
    columns = _columns(by, compared=compared, currency=currency, per_usd=per_usd)
    converted = f"cost_{currency.lower()}"
    lines = []
    was = {group: _lines(one, wanted) for group, one in earlier.groups.items()}
    for group, one in costs.ordered(plain, found.groups):
        before = {name: nano for name, _, nano in was.pop(group, [])}
        made = _lines(one, wanted)
        gone = [(name, 0, 0) for name in before if name not in {line[0] for line in made}]
        lines += [
            _row(plain, group, line, before.get(line[0], 0), labels) for line in (*made, *gone)
        ]
    for group, old in was.items():
        lines += [_row(plain, group, (name, 0, 0), nano, labels) for name, _, nano in old]
    whole, previous = (sum(row[name] or 0 for row in lines) for name in ("cost", "previous"))
    for row in lines:
        share = None if row[METER] == ROUNDING else ratio(row["cost"], whole)
        row |= {"share": share, converted: local(row["cost"], per_usd)}
    first = columns[0].name
    total = {first: "total", "cost": whole, "previous": previous, "share": ratio(whole, whole)}
    total |= {"change": ratio(whole - previous, previous), converted: local(whole, per_usd)}
    table = Table(
        columns=columns,
        rows=lines,
        total=total | {"drill_down": plain.command("rows", by=())},
    )
    return Document(
        name="cost",
        title=f"Cost by {costs.said(definition)}",
        subtitle=costs.subtitle(definition),
        table=table,
        cards=_cards(lines, whole, found),
        charts=pictures.of_cost(definition, table) if lines else (),
        remarks=_remarks(lines, found),
        notes=(*_NOTES, *costs.NOTES[:1]),
        foot=ended.lines,
        json_foot=ended.json,
    )


def _remarks(lines: Sequence[Mapping[str, Any]], found: Added) -> list[str]:
    told = [] if lines else ["Nothing was recorded in this period with these filters."]
    return told + said_of_pruned(found.total().pruned, found.untold)


def _lines(one: sums.Sums, wanted: set[str]) -> list[Line]:
    """What a group came to by meter, the dearest first; rounding and what was not split last."""
    made: list[Line] = [
        (meter.value, one.split.quantities[meter], book(nano))
        for meter, nano in one.split.nano.items()
        if not wanted or meter in wanted
    ]
    made.sort(key=lambda line: (-line[2], line[0]))
    if wanted:
        return made
    if one.split.unsplit:
        made.append((UNSPLIT, None, one.split.unsplit))
    rest = one.attempt_cost + one.correction - sum(nano for _, _, nano in made)
    return [*made, *([(ROUNDING, None, rest)] if rest else [])]


def _row(
    definition: Definition, group: Group, line: Line, previous: int, labels: Mapping[str, str]
) -> dict[str, Any]:
    name, quantity, nano = line
    known = name not in {ROUNDING, UNSPLIT}
    tokens = known and name in TOKEN_METERS
    unit = "" if not known else "tokens" if tokens else _UNITS[Meter(name)]
    groups = costs.named(definition, group, labels) if definition.by or group[0] else {}
    if group[0] and not definition.by:
        groups, name = {}, f"{name} {costs.SHADOW}"
    more = [(METER, line[0])] if known else []
    return groups | {
        METER: name,
        "quantity": quantity,
        "counted": unit,
        "cost": nano,
        "price": per(nano, quantity, 1_000_000 if tokens else 1) if quantity else None,
        "previous": previous,
        "change": ratio(nano - previous, previous),
        "drill_down": costs.drill_down(definition, group, *more),
    }


def _columns(by: Sequence[str], *, compared: bool, currency: str, per_usd: Decimal) -> list[Column]:
    made = [
        *(Column(name=name, heading=name.removeprefix("tag:"), kind="text") for name in by),
        Column(name=METER, heading="meter", kind="text"),
        Column(name="quantity", heading="quantity", kind="count", section=_SECTION),
        Column(name="counted", heading="of", kind="text", section=_SECTION),
        Column(name="cost", heading="cost", kind="usd", section=_SECTION, added=True),
    ]
    if currency:
        made.append(
            Column(
                name=f"cost_{currency.lower()}",
                heading=f"cost, {currency}",
                kind="local",
                section=_SECTION,
                formula=f"cost*{per_usd}",
                rank=1,
            )
        )
    made += [
        Column(
            name="share",
            heading="share",
            kind="share",
            section=_SECTION,
            formula="cost/total.cost",
            rank=1,
        ),
        Column(name="price", heading="$/M or $ each", kind="unit", section=_SECTION, rank=1),
    ]
    if compared:
        made += [
            Column(name="previous", heading="previous", kind="usd", section=_SECTION, added=True),
            Column(
                name="change",
                heading="change",
                kind="change",
                section=_SECTION,
                formula="(cost-previous)/previous",
            ),
        ]
    return [*made, Column(name="drill_down", heading="rows", kind="command", detail=True)]


def _cards(lines: Sequence[Mapping[str, Any]], whole: int, found: Added) -> list[Card]:
    attempts = sum(one.rows for one in found.groups.values())
    top = max(lines, key=lambda line: line["cost"], default=None)
    made = [
        Card(label="Spend", figure=money(whole), note=f"{attempts:,} attempts"),
    ]
    if top is not None:
        made.append(
            Card(
                label="Largest meter",
                figure=str(top[METER]),
                note=f"{shown(top['share'], 'share')} of cost",
            )
        )
    return made
