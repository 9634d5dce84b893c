"""The quality report: how far the figures can be trusted, backend by backend, and what to do.

A row is in a class by what is missing of it: usage we had to count ourselves, a price, an end, a
route. One row can be in several. What has no price is told by target and service tier, with what
the price book lacks and the command that rates it again.
"""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.money import Meter, Unpriced, rate
from gateway.domain.outcome import Outcome
from gateway.ledger.prices import PriceBook
from gateway.ledger.store import Store
from gateway.reports import foot, sums
from gateway.reports.corrected import said_of_pruned
from gateway.reports.definition import Definition, Unusable, iso
from gateway.reports.document import (
    Card,
    Chart,
    Column,
    Document,
    Series,
    Table,
    money,
    ratio,
    shown,
)
from gateway.reports.sums import Added
from gateway.reports.traffic import View, other_meters, traffic

NOWHERE = "(sent nowhere)"

# class -> (heading, what to do about it)
CLASSES: dict[str, tuple[str, str]] = {
    "estimated": (
        "estimated",
        (
            "The backend sent no usage, so tokens were counted by us. Ask it for usage in streams"
            " (stream_options), or reconcile its invoice."
        ),
    ),
    "unpriced": (
        "unpriced",
        (
            "No price of what was used was known at the time; these rows are in no sum. What is"
            " missing, and how to price it, stands below."
        ),
    ),
    "interrupted": (
        "interrupted",
        (
            "The gateway ended before the request did; the vendor may bill it all the same. Look"
            " for restarts in its log, and compare with the vendor's usage."
        ),
    ),
    "cancelled": (
        "client left",
        (
            "The client went away; what had been sent by then is paid. Look at clients' timeouts,"
            " and at time to first token."
        ),
    ),
    "broken": (
        "broken streams",
        ("The backend ended after the first content. Look at its health and its total time limit."),
    ),
    "undecided": (
        "without route",
        (
            "Refused before there was a route: a bad key, a bad body, a limit, no backend. Look at"
            " error codes: weighbridge report rows."
        ),
    ),
}
_NOTES = (
    (
        "Rows are requests, copies sent for comparison included, by the backend that answered or"
        " was tried last. One request can be in several classes."
    ),
    (
        "Usage that contradicts itself is counted by the metric weighbridge_usage_contradictions,"
        " by backend. Whether a provider counted the same, only its own figures say: weighbridge"
        " report reconcile compares them with this ledger."
    ),
)
_SHARES = ("estimated", "unpriced", "interrupted", "cancelled", "broken", "undecided")


def _columns() -> list[Column]:
    made = [
        Column(name="backend", heading="backend", kind="text"),
        Column(name="requests", heading="requests", kind="count", section="Quality", added=True),
    ]
    for name in _SHARES:
        heading = CLASSES[name][0]
        made.append(Column(name=name, heading=heading, kind="count", section="Quality", added=True))
        made.append(
            Column(
                name=f"{name}_share",
                heading="share",
                kind="share",
                section="Quality",
                formula=f"{name}/requests",
                rank=2,
            )
        )
    made.append(
        Column(
            name="estimated_cost",
            heading="estimated cost",
            kind="usd",
            section="Quality",
            added=True,
            rank=1,
        )
    )
    made.append(Column(name="drill_down", heading="rows", kind="command", detail=True))
    return made


async def quality(
    store: Store, definition: Definition, *, now: dt.datetime, book: PriceBook | None = None
) -> Document:
    """The report, by the backend that answered. `book` is what is known of prices today.

    Raises Unusable, StoreUnavailable.
    """
    if definition.of_attempts:
        raise Unusable("report quality counts requests; filter by answered_by instead of a backend")
    async with store.snapshot() as view:
        found = await sums.added(view, definition, definition.period, ())
        rows = await _counted(view, definition)
        missing = await _missing(view, definition)
        ended = await foot.foot(view, definition, found, now=now)
    columns = _columns()
    lines = [_line(definition, row) for row in rows]
    added = [column.name for column in columns if column.added]
    whole: dict[str, Any] = {name: sum(line[name] or 0 for line in lines) for name in added}
    total = {"backend": "total", **whole, **_shares(whole)}
    total["drill_down"] = definition.command("rows")
    lacking = [_lacking(definition, row, book) for row in missing]
    return Document(
        name="quality",
        title="Quality of the data",
        subtitle=str(definition.period) + (" (so far)" if definition.period.unfinished else ""),
        table=Table(columns=columns, rows=lines, total=total),
        more=[Table(title=_MISSING, columns=_MISSING_COLUMNS, rows=lacking)] if lacking else (),
        cards=[
            Card(
                label=CLASSES[name][0].capitalize(),
                figure=shown(total[f"{name}_share"], "share"),
                note=f"{whole[name]:,} of {whole['requests']:,}",
            )
            for name in _SHARES[:4]
        ],
        charts=_charts(lines),
        remarks=_remarks(definition, whole, total, found),
        notes=_NOTES,
        foot=ended.lines,
        json_foot=ended.json,
    )


def _remarks(
    definition: Definition, whole: Mapping[str, Any], total: Mapping[str, Any], found: Added
) -> list[str]:
    if not whole["requests"]:
        return ["Nothing was recorded in this period with these filters: the report is empty."]
    remarks = [
        f"{whole[name]:,} {CLASSES[name][0]} ({shown(total[f'{name}_share'], 'share')})."
        f" {CLASSES[name][1]}"
        for name in _SHARES
        if whole[name]
    ]
    if found.runs:
        one = found.total()
        remarks.append(
            f"Rating runs {', '.join(map(str, found.runs))} corrected {money(one.cost)} by"
            f" {money(one.correction)}; {one.resolved:,} of the unpriced rows have a price by them."
        )
    remarks += said_of_pruned(found.total().pruned, found.untold)
    if whole["unpriced"]:
        remarks.append(f"Once the price book says them: {_again(definition)}")
    return remarks or ["Every row has usage, a price, an end and a route."]


async def _counted(view: View, definition: Definition) -> list[dict[str, Any]]:
    found = traffic(
        definition,
        definition.period,
        of_attempts=False,
        added=("rows", "cost_nano_usd", "costed"),
    )
    c, r = found.columns, found.names.request
    none: Any = sa.literal_column("0")

    def where(condition: Any, count: Any = c.rows) -> Any:
        return sa.case((condition, count), else_=none)

    estimated = r.usage_source == "estimated"
    query = found.added_up(
        [r.backend],
        {
            "requests": c.rows,
            "estimated": where(estimated),
            "unpriced": where(sa.and_(r.usage_source != "none", sa.not_(r.priced))),
            "interrupted": where(r.outcome == Outcome.INTERRUPTED.value),
            "cancelled": where(r.outcome == Outcome.CANCELLED.value),
            "broken": where(r.outcome == Outcome.FAILED_MIDSTREAM.value),
            "undecided": where(sa.and_(r.route.is_(None), sa.not_(r.shadow))),
            "estimated_cost": where(estimated, c.cost_nano_usd),
            "estimated_costed": where(estimated, c.costed),
        },
    )
    rows = await view.select(query)
    return sorted(rows, key=lambda row: (-row["requests"], row["backend"] or ""))


def _line(definition: Definition, row: dict[str, Any]) -> dict[str, Any]:
    name = row["backend"]
    where = [f"{key}={value}" for key, value in definition.where]
    where.append(f"answered_by={name or ''}")
    line = {**row, "backend": name or NOWHERE, **_shares(row)}
    known = row["estimated_costed"] or not row["estimated"]
    line["estimated_cost"] = row["estimated_cost"] if known else None
    line["drill_down"] = definition.command("rows", where=where)
    return line


# --- what has no price ----------------------------------------------------------------------------

_MISSING = "Prices that are missing"
_MISSING_COLUMNS = (
    Column(name="backend", heading="backend", kind="text"),
    Column(name="model", heading="model", kind="text"),
    Column(name="tier", heading="service tier", kind="text", section=_MISSING),
    Column(name="attempts", heading="attempts", kind="count", section=_MISSING),
    Column(name="tokens", heading="tokens", kind="count", section=_MISSING),
    Column(name="meters", heading="meters", kind="text", section=_MISSING),
    Column(name="lacks", heading="the price book today", kind="text", section=_MISSING),
    Column(name="rate_again", heading="then rate again", kind="command", detail=True),
)
_PRICED = "knows a price: rate them again"


async def _missing(view: View, definition: Definition) -> list[dict[str, Any]]:
    """Attempts with usage and no cost, by target and service tier, with all they metered."""
    of = replace(definition, by=())
    names = ("rows", "costed", "uncached_tokens", "cached_tokens", "output_tokens")
    found = traffic(of, of.period, of_attempts=True, added=names)
    unpriced = (found.names.attempt.usage_source != "none", found.names.attempt.rates_id.is_(None))
    a = found.names.attempt
    found.where.extend(unpriced)
    rows = await view.select(
        found.added_up([a.backend, a.model, a.service_tier], found.sums(names))
    )
    meters = await _unpriced_meters(view, of)
    made = []
    for row in rows:
        if row["rows"] == row["costed"]:
            continue
        target = row["backend"], row["model"], row["service_tier"]
        used = {Meter.INPUT: row["uncached_tokens"], Meter.CACHE_READ: row["cached_tokens"]}
        used |= {Meter.OUTPUT: row["output_tokens"], **dict.fromkeys(meters.get(target, ()), 1)}
        made.append(row | {"used": {meter: count for meter, count in used.items() if count}})
    return sorted(made, key=lambda row: (-row["rows"], row["backend"], row["model"]))


async def _unpriced_meters(
    view: View, definition: Definition
) -> dict[tuple[str, str, str | None], set[Meter]]:
    found: dict[tuple[str, str, str | None], set[Meter]] = {}
    for some in other_meters(definition, definition.period, ()):
        a, c = some.names.attempt, some.columns
        some.where.append(a.rates_id.is_(None))
        what = c.meter if "meter" in c else c.others
        query = some.added_up([a.backend, a.model, a.service_tier, what], {})
        for row in await view.select(query):
            names = [row["meter"]] if "meter" in row else list(orjson.loads(row["others"]))
            at = row["backend"], row["model"], row["service_tier"]
            found.setdefault(at, set()).update(Meter(name) for name in names)
    return found


def _lacking(
    definition: Definition, row: Mapping[str, Any], book: PriceBook | None
) -> dict[str, Any]:
    tokens = sum(row[name] for name in ("uncached_tokens", "cached_tokens", "output_tokens"))
    return {
        "backend": row["backend"],
        "model": row["model"],
        "tier": row["service_tier"] or "standard",
        "attempts": row["rows"],
        "tokens": tokens,
        "meters": ", ".join(meter.value for meter in row["used"]),
        "lacks": "is not at hand" if book is None else _lacks(definition, row, book),
        "rate_again": _again(definition, "--backend", row["backend"], "--model", row["model"]),
    }


def _again(definition: Definition, *of: str) -> str:
    """The command that rates again what has no price."""
    period = definition.period
    words = ["weighbridge", "prices", "rerate", "--since", iso(period.since_us, "UTC")]
    words += ["--until", iso(period.until_us, "UTC"), *of, "--only-unpriced", "--apply"]
    return shlex.join(words)


def _lacks(definition: Definition, row: Mapping[str, Any], book: PriceBook) -> str:
    """What the book would have to say for these rows to have a price."""
    target, used = Target(row["backend"], row["model"]), row["used"]
    rates = book.rates(target, definition.period.until_us - 1)
    if rates is None:
        return "has no row of this model"
    lacks = []
    for meter in used:
        try:
            rate(rates, {meter: 1}, service_tier=row["service_tier"])
        except Unpriced as error:
            lacks.append(str(error))
    return "; ".join(dict.fromkeys(lacks)) or _PRICED


def _shares(row: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_share": ratio(row[name], row["requests"]) for name in _SHARES}


def _charts(lines: Sequence[dict[str, Any]]) -> list[Chart]:
    shown_lines = [line for line in lines if any(line[name] for name in _SHARES)][:12]
    if not shown_lines:
        return []
    return [
        Chart(
            title="What is missing, by backend",
            labels=[line["backend"] for line in shown_lines],
            series=[
                Series(name=CLASSES[name][0], values=[line[name] for line in shown_lines])
                for name in _SHARES
                if any(line[name] for line in shown_lines)
            ],
            unit="requests",
        )
    ]
