"""The rows behind a figure: requests, or attempts where the figure adds those up, page by page.

Oldest first, by (start, id, attempt). A page ends with the place it stopped at; the next begins
after it, so rows that arrive meanwhile neither repeat nor hide another. Corrections stand beside
what was booked. Of a meter, each row says how much of it there was and what that came to, exactly.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from gateway.domain.money import Meter
from gateway.domain.rating import metered, quantities
from gateway.ledger.store import attempts, requests
from gateway.reports import corrected
from gateway.reports.definition import METER, Definition, Period, Unusable, iso
from gateway.reports.document import Column, Table
from gateway.reports.splits import Pot, rates_of, split
from gateway.reports.sums import WRITES, rows_since
from gateway.reports.traffic import View, conditions, joined

PAGE_ROWS = 5_000

_COMMON = (
    *("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "other_meters"),
    *("usage_source", "cost_nano_usd"),
)
_OWN = {
    False: ("outcome", "http_status", "error_code", *_COMMON, "ttft_us", "duration_us"),
    True: (
        *("number", "why", "outcome", "http_status", "error_code", "service_tier"),
        *(*_COMMON, "rates_id", "ttft_us", "duration_us"),
    ),
}
_PLACE = re.compile(r"(\d{1,19}):([^:]{1,200}):(\d{1,9})", re.ASCII)
_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("cost", "correction", "corrected"), "usd"),
    **dict.fromkeys(("ttft", "duration"), "ms"),
    **dict.fromkeys(("input", "cached", "cache_write", "output", "reasoning"), "count"),
    "quantity": "count",
}
_RANKS = {
    "key": 5,
    "route": 4,
    "http_status": 6,
    "error_code": 3,
    "usage": 5,
    "policy": 9,
    "rates": 8,
    "shadow_of": 9,
    "duration": 4,
    "ttft": 4,
    "cached": 6,
    "why": 4,
    "team": 3,
    "cache_write": 7,
    "reasoning": 8,
    "others": 9,
    "tier": 8,
    "correction": 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`after` names the place to go on from, "" at the end. Before `kept_since_us` rows that the
    period asks for are gone; None: none are."""

    table: Table
    after: str
    kept_since_us: int | None = None


def columns(definition: Definition, *, runs: bool = False) -> list[Column]:
    """What is told of a row; with `runs` also what corrected it."""
    of_attempts = definition.of_attempts
    names = ["time", "request", *(["attempt"] if of_attempts else []), "team", "key", "alias"]
    names += ["backend", "model", *(["tier", "why"] if of_attempts else ["route"]), "outcome"]
    names += ["http_status", "error_code", "input", "cached", "cache_write", "output"]
    names += ["reasoning", "others", "usage", "cost"]
    names += ["correction", "corrected"] if runs else []
    names += ["quantity", "meter_usd"] if _meters(definition) else []
    names += [*(["rates"] if of_attempts else ["policy"]), "ttft", "duration", "shadow_of"]
    return [
        Column(
            name=name,
            heading=name.replace("_", " "),
            kind=_KINDS.get(name, "text"),
            section="Rows",
            rank=_RANKS.get(name, 0),
        )
        for name in names
    ]


async def page(view: View, definition: Definition, *, after: str = "", limit: int = 100) -> Page:
    """One page. Raises Unusable where `after` is no place, StoreUnavailable."""
    runs = bool(await corrected.runs(view, definition.period, definition.run))
    found, place = await _select(view, definition, _place(after), limit, runs=runs)
    gone_us = await rows_since(view)
    return Page(
        table=Table(columns=columns(definition, runs=runs), rows=found),
        after=place if len(found) == limit else "",
        kept_since_us=gone_us
        if gone_us is not None and gone_us > definition.period.since_us
        else None,
    )


async def pages(view: View, definition: Definition) -> AsyncIterator[Table]:
    """All rows, a page at a time; the columns are those of the first."""
    runs = bool(await corrected.runs(view, definition.period, definition.run))
    made, after = columns(definition, runs=runs), ""
    while True:
        found, after = await _select(view, definition, _place(after), PAGE_ROWS, runs=runs)
        yield Table(columns=made, rows=found)
        if len(found) < PAGE_ROWS:
            return


def kept(definition: Definition, kept_since_us: int) -> str:
    """What is to be said of rows that are gone."""
    at = iso(kept_since_us, definition.period.zone)
    return f"rows before {at} are gone (retention); their sums by hour are in report cost"


async def _select(
    view: View,
    definition: Definition,
    after: tuple[Any, ...] | None,
    limit: int,
    *,
    runs: bool,
) -> tuple[list[dict[str, Any]], str]:
    of_attempts = definition.of_attempts
    table = attempts if of_attempts else requests
    number: Any = attempts.c.number if of_attempts else sa.literal(0)
    r = requests.c
    order: list[Any] = [r.started_at_us, r.id, *([number] if of_attempts else [])]
    source = joined(definition)
    query = sa.select(
        *(r.started_at_us.label("at"), r.id, r.tags, r.key_id, r.alias, r.route, r.policy),
        *(r.policy_digest, r.shadow_of, table.c.backend, table.c.model),
        *(table.c[name] for name in _OWN[of_attempts]),
    )
    if runs:
        deltas, same = _deltas(definition, definition.period)
        source = source.join(deltas, same, isouter=True)
        query = query.add_columns(deltas.c.delta)
        query = query.add_columns(deltas.c.rates_id.label("new")) if of_attempts else query
    query = query.select_from(source).where(*conditions(definition)).order_by(*order).limit(limit)
    if after is not None:
        kinds = (sa.BigInteger, sa.Text, sa.Integer)
        place: list[Any] = [
            sa.literal(value, kind) for value, kind in zip(after, kinds, strict=True)
        ]
        beyond = sa.tuple_(*order) > sa.tuple_(*place[: len(order)])
        query = query.where(r.started_at_us >= after[0], beyond)
    found = await view.select(query)
    if not found:
        return [], ""
    last = found[-1]
    made = [_row(row, definition.period.zone) for row in found]
    if meters := _meters(definition):
        lines = await _of_meters(view, found, meters)
        made = [row | line for row, line in zip(made, lines, strict=True)]
    return made, f"{last['at']}:{last['id']}:{last.get('number', 0)}"


def _deltas(definition: Definition, period: Period) -> tuple[Any, Any]:
    """What corrects attempts, or their requests, and how it is joined."""
    deltas = corrected.latest(period, definition.run)
    d, r, a = deltas.c, requests.c, attempts.c
    if definition.of_attempts:
        same = [d.request_id == a.request_id, d.attempt == a.number]
        return deltas, sa.and_(*same, d.request_started_at_us == r.started_at_us)
    whole = sa.cast(sa.func.sum(d.delta), sa.BigInteger).label("delta")
    at = (d.request_id, d.request_started_at_us)
    of = sa.select(*at, whole).group_by(*at).subquery("of")
    same = [of.c.request_id == r.id, of.c.request_started_at_us == r.started_at_us]
    return of, sa.and_(*same)


def _meters(definition: Definition) -> list[Meter]:
    return [Meter(value) for name, value in definition.where if name == METER]


async def _of_meters(
    view: View, found: Sequence[Mapping[str, Any]], meters: Sequence[Meter]
) -> list[dict[str, Any]]:
    """Of each row how much of these meters, and what that came to at the rates it stands at."""
    names = [row.get("new") or row["rates_id"] for row in found]
    rates = await rates_of(view, {name for name in names if name})
    made = []
    for row, name in zip(found, names, strict=True):
        used, cost = quantities(metered(row)), row["cost_nano_usd"]
        count, said = sum(used.get(meter, 0) for meter in meters), ""
        if name in rates and (cost is not None or row.get("delta") is not None):
            stands = (cost or 0) + (row.get("delta") or 0)
            lines = split({name: Pot(1, stands, used)}, rates)  # type: ignore[arg-type]
            if not lines.unsplit:
                count = sum(lines.quantities[meter] for meter in meters)
                nano = sum((lines.nano.get(meter, Decimal(0)) for meter in meters), Decimal(0))
                said = f"{nano.scaleb(-9).normalize():f}"
        made.append({"quantity": count, "meter_usd": said})
    return made


def _row(row: dict[str, Any], zone: str) -> dict[str, Any]:
    digest, others, cost = row["policy_digest"], row["other_meters"] or {}, row["cost_nano_usd"]
    writes = sum(others.get(meter, 0) for meter in WRITES)
    delta = row.get("delta")
    made = {
        "time": iso(row["at"], zone),
        "request": row["id"],
        "team": row["tags"].get("team", ""),
        "key": row["key_id"] or "",
        "alias": row["alias"] or "",
        "backend": row["backend"] or "",
        "model": row["model"] or "",
        "outcome": row["outcome"],
        "http_status": str(row["http_status"]),
        "error_code": row["error_code"] or "",
        "input": row["uncached_tokens"],
        "cached": row["cached_tokens"],
        "cache_write": writes if row["usage_source"] != "none" else None,
        "output": row["output_tokens"],
        "reasoning": row["reasoning_tokens"],
        "others": " ".join(
            f"{name}={count}" for name, count in sorted(others.items()) if name not in WRITES
        ),
        "usage": row["usage_source"],
        "cost": cost if row["usage_source"] != "none" else cost or "",
        "correction": delta or 0,
        "corrected": cost if delta is None else (cost or 0) + delta,
        "ttft": None if row["ttft_us"] is None else row["ttft_us"] / 1000,
        "duration": None if row["duration_us"] is None else row["duration_us"] / 1000,
        "shadow_of": row["shadow_of"] or "",
    }
    if row["usage_source"] == "none" and delta is None:
        made["corrected"] = cost or ""
    if "number" in row:
        made |= {
            "attempt": str(row["number"]),
            "why": row["why"] or "",
            "tier": row["service_tier"] or "",
            "rates": row.get("new") or row["rates_id"] or "",
        }
    else:
        made |= {
            "route": row["route"] or "",
            "policy": f"{row['policy']}@{digest[:12]}" if digest else "",
        }
    return made


def _place(after: str) -> tuple[Any, ...] | None:
    if not after:
        return None
    found = _PLACE.fullmatch(after)
    if found is None:
        raise Unusable(f"--after {after}: not a place; take it from the end of the page before")
    return int(found[1]), found[2], int(found[3])
