"""The quality report: how far the figures can be trusted, backend by backend, and what to do.

A row is in a class by what is missing of it: usage we had to count ourselves, a price, an end, a
decision. One row can be in several.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

from gateway.domain.outcome import Outcome
from gateway.ledger.store import Store, requests
from gateway.reports import foot
from gateway.reports.definition import Definition, Unusable
from gateway.reports.document import Card, Chart, Column, Document, Series, Table, ratio, shown
from gateway.reports.sums import conditions

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
            "No price of the target was known on that day. Add a dated row to the price book; until"
            " then these rows are in no sum."
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
        "without decision",
        (
            "Refused before there was a decision: a bad key, a bad body, a limit. Look at error"
            " codes: weighbridge report rows."
        ),
    ),
}
_NOTE = (
    "Rows are requests, copies sent for comparison included, by the backend that answered or was"
    " tried last. One request can be in several classes."
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


async def quality(store: Store, definition: Definition, *, now: dt.datetime) -> Document:
    """The report, by the backend that answered. Raises Unusable, StoreUnavailable."""
    if definition.of_attempts:
        raise Unusable("report quality counts requests; filter by answered_by instead of a backend")
    for _ in range(foot.ROUNDS_MAX):
        rows = await _counted(store, definition)
        ended = await foot.foot(store, definition, now=now)
        if ended.rows == sum(row["requests"] for row in rows):  # all saw the same rows
            break
    columns = _columns()
    lines = [_line(definition, row) for row in rows]
    added = [column.name for column in columns if column.added]
    whole: dict[str, Any] = {name: sum(line[name] or 0 for line in lines) for name in added}
    total = {"backend": "total", **whole, **_shares(whole)}
    total["drill_down"] = definition.command("rows")
    remarks = [
        f"{whole[name]:,} {CLASSES[name][0]} ({shown(total[f'{name}_share'], 'share')})."
        f" {CLASSES[name][1]}"
        for name in _SHARES
        if whole[name]
    ]
    if not whole["requests"]:
        remarks = ["Nothing was recorded in this period with these filters: the report is empty."]
    elif not remarks:
        remarks = ["Every row has usage, a price, an end and a decision."]
    return Document(
        name="quality",
        title="Quality of the data",
        subtitle=str(definition.period) + (" (so far)" if definition.period.unfinished else ""),
        table=Table(columns=columns, rows=lines, total=total),
        cards=[
            Card(
                label=CLASSES[name][0].capitalize(),
                figure=shown(total[f"{name}_share"], "share"),
                note=f"{whole[name]:,} of {whole['requests']:,}",
            )
            for name in _SHARES[:4]
        ],
        charts=_charts(lines),
        remarks=remarks,
        notes=(_NOTE,),
        foot=ended.lines,
        json_foot=ended.json,
    )


async def _counted(store: Store, definition: Definition) -> list[dict[str, Any]]:
    c = requests.c
    rows = (
        sa.select(
            c.backend,
            c.usage_source,
            c.priced,
            c.outcome,
            c.decision.is_(None).label("no_decision"),
            c.shadow_of,
            c.cost_nano_usd,
        )
        .where(*conditions(definition))
        .subquery("r")
    )
    r, count = rows.c, sa.func.count
    return await store.select(
        sa.select(
            r.backend,
            count().label("requests"),
            count().filter(r.usage_source == "estimated").label("estimated"),
            count().filter(r.usage_source != "none", sa.not_(r.priced)).label("unpriced"),
            count().filter(r.outcome == Outcome.INTERRUPTED.value).label("interrupted"),
            count().filter(r.outcome == Outcome.CANCELLED.value).label("cancelled"),
            count().filter(r.outcome == Outcome.FAILED_MIDSTREAM.value).label("broken"),
            count().filter(r.no_decision, r.shadow_of.is_(None)).label("undecided"),
            sa.func.sum(r.cost_nano_usd)
            .filter(r.usage_source == "estimated")
            .label("estimated_cost"),
        )
        .group_by(r.backend)
        .order_by(sa.desc("requests"), r.backend)
    )


def _line(definition: Definition, row: dict[str, Any]) -> dict[str, Any]:
    name = row["backend"]
    where = [f"{key}={value}" for key, value in definition.where]
    where.append(f"answered_by={name or ''}")
    line = {**row, "backend": name or NOWHERE, **_shares(row)}
    known = row["estimated_cost"] is not None or not row["estimated"]
    line["estimated_cost"] = int(row["estimated_cost"] or 0) if known else None
    line["drill_down"] = definition.command("rows", where=where)
    return line


def _shares(row: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_share": ratio(row[name], row["requests"]) for name in _SHARES}


def _charts(lines: list[dict[str, Any]]) -> list[Chart]:
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
