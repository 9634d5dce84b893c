"""Recorded requests, read back to be decided again: in pages, oldest first, never all at once.

Owns the way from a row to `policy.replay.Recorded`, and the sample where there are more rows than
asked for. Reads only. Pages follow (started_at_us, id), so rows that arrive meanwhile repeat
nothing; what is appended behind the place already read is not seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.decision import Rule
from gateway.domain.rating import metered
from gateway.ledger.store import Store, requests
from gateway.policy.chance import one_of_each
from gateway.policy.replay import Recorded

PAGE_ROWS = 1_000
KEYS_PER_ROW = 20  # a key is so much smaller than a row

_KEY = (requests.c.started_at_us, requests.c.id)
# What a limit refused has no route, and in place of a decision a record of the limit.
_DECIDED = sa.and_(
    requests.c.decision.is_not(None), requests.c.route.is_not(None), requests.c.shadow_of.is_(None)
)
_COLUMNS = (
    *_KEY,
    requests.c.decision,
    requests.c.policy_digest,
    requests.c.privacy_class,
    requests.c.session,
    requests.c.backend,
    requests.c.model,
    requests.c.uncached_tokens,
    requests.c.cached_tokens,
    requests.c.output_tokens,
    requests.c.reasoning_tokens,
    requests.c.other_meters,
    requests.c.cost_nano_usd,
    requests.c.ttft_us,
    requests.c.tpot_us,
    requests.c.tps,
    requests.c.duration_us,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many requests a period holds. `undecided` ended before a decision, `copies` were sent
    for comparison. `first_us` is the first decided one's arrival, None where there is none."""

    decided: int
    undecided: int
    copies: int
    first_us: int | None


async def counts(store: Store, since_us: int, until_us: int) -> Counts:
    """Count the requests with `since_us` <= arrival < `until_us`."""
    undecided = (
        sa.or_(requests.c.decision.is_(None), requests.c.route.is_(None)),
        requests.c.shadow_of.is_(None),
    )
    wanted: list[sa.ColumnElement[Any]] = [
        sa.func.count().filter(_DECIDED).label("decided"),
        sa.func.count().filter(*undecided).label("undecided"),
        sa.func.count().filter(requests.c.shadow_of.is_not(None)).label("copies"),
        sa.func.min(requests.c.started_at_us).filter(_DECIDED).label("first_us"),
    ]
    (row,) = await store.select(sa.select(*wanted).where(_within(since_us, until_us)))
    return Counts(**row)


async def pages(
    store: Store, since_us: int, until_us: int, *, rows: int = PAGE_ROWS
) -> AsyncIterator[list[Recorded]]:
    """All decided requests of the period, `rows` at a time."""
    async for page in _paged(store, _COLUMNS, rows, since_us, until_us):
        yield [from_row(row) for row in page]


async def sample(
    store: Store,
    since_us: int,
    until_us: int,
    *,
    total: int,
    wanted: int,
    seed: int,
    rows: int = PAGE_ROWS,
) -> AsyncIterator[list[Recorded]]:
    """`wanted` of the `total` decided requests: one drawn from each of as many runs in a row.

    Stratified by time: every part of the period is in the sample with its share of the traffic.
    """
    picks: Iterator[int] = one_of_each(total, wanted, seed)
    pick, seen = next(picks, None), 0
    async for keys in _paged(store, _KEY, KEYS_PER_ROW * rows, since_us, until_us):
        ids: list[str] = []
        while pick is not None and pick < seen + len(keys):
            ids.append(keys[pick - seen]["id"])
            pick = next(picks, None)
        seen += len(keys)
        for start in range(0, len(ids), rows):
            page = ids[start : start + rows]
            query = sa.select(*_COLUMNS).where(requests.c.id.in_(page)).order_by(*_KEY)
            yield [from_row(row) for row in await store.select(query)]


async def configured(store: Store, since_us: int, until_us: int, *, rows: int = 200) -> set[str]:
    """The backends that the newest decisions of the period took for configured."""
    query = (
        sa.select(requests.c.decision)
        .where(_within(since_us, until_us), _DECIDED)
        .order_by(requests.c.started_at_us.desc())
        .limit(rows)
    )
    found: set[str] = set()
    for row in await store.select(query):
        record = row["decision"]
        targets = [entry[0] for entry in record["order"]] + list(record.get("cut", ()))
        targets += [e[0] for e in record["excluded"] if e[1] != Rule.NOT_CONFIGURED.value]
        found.update(target.partition("/")[0] for target in targets)
    return found


async def _paged(
    store: Store, columns: tuple[sa.Column[Any], ...], size: int, since_us: int, until_us: int
) -> AsyncIterator[list[dict[str, Any]]]:
    after: tuple[int, str] = (since_us, "")
    while True:
        query = (
            sa.select(*columns)
            # The first condition says nothing new; it lets the index on the time find the place.
            .where(
                _within(after[0], until_us), sa.tuple_(*_KEY) > sa.tuple_(*map(sa.literal, after))
            )
            .where(_DECIDED)
            .order_by(*_KEY)
            .limit(size)
        )
        rows = await store.select(query)
        if rows:
            yield rows
        if len(rows) < size:
            return
        after = rows[-1]["started_at_us"], rows[-1]["id"]


def _within(since_us: int, until_us: int) -> sa.ColumnElement[bool]:
    started = requests.c.started_at_us
    return sa.and_(started >= since_us, started < until_us)


def from_row(row: Mapping[str, Any]) -> Recorded:
    """A row of the ledger, or a line of the journal as parsed, that has a decision."""
    backend, model = row["backend"], row["model"]
    return Recorded(
        at_us=row["started_at_us"],
        decision=row["decision"],
        digest=row["policy_digest"],
        privacy_class=row["privacy_class"],
        session=row["session"],
        served=None if backend is None or model is None else Target(backend, model),
        usage=None if row["output_tokens"] is None else metered(row),
        cost_nano_usd=row["cost_nano_usd"],
        ttft_ms=_ms(row["ttft_us"]),
        tpot_ms=_ms(row["tpot_us"]),
        tps=row["tps"],
        whole_ms=_ms(row["duration_us"]),
    )


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1000
