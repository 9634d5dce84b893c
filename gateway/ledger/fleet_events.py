"""What happened in the fleet, kept: the table `fleet_events`, appended and read.

Rows come from `fleet.events` through whoever composes the two. Several workers may tell of one
happening, each as it saw it: `source` says who.

INVARIANT: appended, never edited; a row that is there already is left as it is, so a writer that
did not hear the answer may write again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gateway.ledger.store import Store, fleet_events

_c = fleet_events.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One row. `at_us`: microseconds since the epoch. `subject`: a backend or `backend#replica`."""

    id: str
    at_us: int
    kind: str
    subject: str
    source: str
    figures: Mapping[str, Any]


async def append(store: Store, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the fields of `Told`. Raises StoreUnavailable, RowsRefused."""
    await store.add_fleet_events(rows)


async def read(
    store: Store,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    backend: str | None = None,
    kind: str | None = None,
    limit: int = 1_000,
) -> list[Told]:
    """The newest first. `since_us` <= at < `until_us`; `backend` may name one replica.

    Raises StoreUnavailable.
    """
    query = sa.select(fleet_events).order_by(_c.at_us.desc(), _c.id.desc()).limit(limit)
    if since_us is not None:
        query = query.where(_c.at_us >= since_us)
    if until_us is not None:
        query = query.where(_c.at_us < until_us)
    if backend is not None:
        replicas = _c.subject.startswith(f"{backend}#", autoescape=True)
        query = query.where(sa.or_(_c.subject == backend, replicas))
    if kind is not None:
        query = query.where(_c.kind == kind)
    return [Told(**row) for row in await store.select(query)]
