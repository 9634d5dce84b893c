"""The rows behind a figure: requests, or attempts where the figure adds those up, page by page.

Oldest first, by (start, id, attempt). A page ends with the place it stopped at; the next begins
after it, so rows that arrive meanwhile neither repeat nor hide another.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gateway.ledger.store import Store, attempts, requests
from gateway.reports.definition import Definition, Unusable, iso
from gateway.reports.document import Column, Table
from gateway.reports.sums import conditions, joined

PAGE_ROWS = 5_000

_COMMON = ("uncached_tokens", "cached_tokens", "output_tokens", "usage_source")
_OWN = {
    False: (
        "outcome",
        "http_status",
        "error_code",
        *_COMMON,
        "cost_nano_usd",
        "ttft_us",
        "duration_us",
    ),
    True: (
        *("number", "why", "outcome", "http_status", "error_code"),
        *(*_COMMON, "cost_nano_usd", "rates_id", "ttft_us", "duration_us"),
    ),
}
_PLACE = re.compile(r"(\d{1,19}):([^:]{1,200}):(\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`after` names the place to go on from, "" at the end."""

    table: Table
    after: str


def columns(definition: Definition) -> list[Column]:
    """What is told of a row."""
    of_attempts = definition.of_attempts
    kinds: dict[str, Any] = {"cost": "usd", "ttft": "ms", "duration": "ms"}
    names = ["time", "request", *(["attempt"] if of_attempts else []), "team", "key", "alias"]
    names += ["backend", "model", *(["why"] if of_attempts else ["route"]), "outcome"]
    names += ["http_status", "error_code", "input", "cached", "output", "usage", "cost"]
    names += [*(["rates"] if of_attempts else ["policy"]), "ttft", "duration", "shadow_of"]
    counts = {"input", "cached", "output"}
    ranks = {"key": 5, "route": 4, "http_status": 6, "error_code": 3, "usage": 5, "policy": 9}
    ranks |= {
        "rates": 8,
        "shadow_of": 9,
        "duration": 4,
        "ttft": 4,
        "cached": 6,
        "why": 4,
        "team": 3,
    }
    return [
        Column(
            name=name,
            heading=name.replace("_", " "),
            kind=kinds.get(name, "count" if name in counts else "text"),
            section="Rows",
            rank=ranks.get(name, 0),
        )
        for name in names
    ]


async def page(store: Store, definition: Definition, *, after: str = "", limit: int = 100) -> Page:
    """One page. Raises Unusable where `after` is no place, StoreUnavailable."""
    found, place = await _select(store, definition, _place(after), limit)
    return Page(
        table=Table(columns=columns(definition), rows=found),
        after=place if len(found) == limit else "",
    )


async def pages(store: Store, definition: Definition) -> AsyncIterator[list[dict[str, Any]]]:
    """All rows, a page at a time."""
    after = ""
    while True:
        found, after = await _select(store, definition, _place(after), PAGE_ROWS)
        yield found
        if len(found) < PAGE_ROWS:
            return


async def _select(
    store: Store, definition: Definition, after: tuple[Any, ...] | None, limit: int
) -> tuple[list[dict[str, Any]], str]:
    of_attempts = definition.of_attempts
    table = attempts if of_attempts else requests
    number: Any = attempts.c.number if of_attempts else sa.literal(0)
    r = requests.c
    order: list[Any] = [r.started_at_us, r.id, *([number] if of_attempts else [])]
    query = (
        sa.select(
            *(r.started_at_us.label("at"), r.id, r.tags, r.key_id, r.alias, r.route, r.policy),
            *(r.policy_digest, r.shadow_of, table.c.backend, table.c.model),
            *(table.c[name] for name in _OWN[of_attempts]),
        )
        .select_from(joined(definition))
        .where(*conditions(definition))
        .order_by(*order)
        .limit(limit)
    )
    if after is not None:
        kinds = (sa.BigInteger, sa.Text, sa.Integer)
        place: list[Any] = [
            sa.literal(value, kind) for value, kind in zip(after, kinds, strict=True)
        ]
        beyond = sa.tuple_(*order) > sa.tuple_(*place[: len(order)])
        query = query.where(r.started_at_us >= after[0], beyond)
    found = await store.select(query)
    if not found:
        return [], ""
    last = found[-1]
    zone = definition.period.zone
    return [_row(row, zone) for row in found], f"{last['at']}:{last['id']}:{last.get('number', 0)}"


def _row(row: dict[str, Any], zone: str) -> dict[str, Any]:
    digest = row["policy_digest"]
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
        "output": row["output_tokens"],
        "usage": row["usage_source"],
        "cost": row["cost_nano_usd"]
        if row["usage_source"] != "none"
        else row["cost_nano_usd"] or "",
        "ttft": None if row["ttft_us"] is None else row["ttft_us"] / 1000,
        "duration": None if row["duration_us"] is None else row["duration_us"] / 1000,
        "shadow_of": row["shadow_of"] or "",
    }
    if "number" in row:
        made |= {
            "attempt": str(row["number"]),
            "why": row["why"] or "",
            "rates": row["rates_id"] or "",
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
