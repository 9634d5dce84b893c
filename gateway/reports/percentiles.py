"""Percentiles of the time to the first token: exact from rows, or from the roll-ups' histogram.

Exact means interpolated linearly between the two rows that are next, as Postgres' percentile_cont
does, by one statement on both databases. Beyond `EXACT_ROWS_MAX` rows, and where rows are gone,
the figure is interpolated inside the bucket of the row at that rank: off by less than the bucket
is wide, which is `ERROR_MAX` of it (under 8 ms: 8 ms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import sqlalchemy as sa

from gateway.ledger.hours import TTFT_BOUNDS_US
from gateway.ledger.store import attempts, requests
from gateway.reports.definition import Definition
from gateway.reports.traffic import View, conditions, joined, of_rows

EXACT_ROWS_MAX: Final = 200_000
ERROR_MAX: Final = 0.284

Group = tuple[Any, ...]
Points = tuple[float, float]  # p50 and p95, milliseconds


def of_counts(counts: Sequence[int]) -> Points | None:
    """From so many rows in each bucket; None where there are none."""
    if not sum(counts):
        return None
    return _in_bucket(counts, 50), _in_bucket(counts, 95)


def _in_bucket(counts: Sequence[int], percent: int) -> float:
    place = (sum(counts) - 1) * percent / 100
    ends = list(accumulate(counts))
    bucket = next(n for n, end in enumerate(ends) if end > place)
    low = TTFT_BOUNDS_US[bucket - 1] if bucket else 0
    if bucket == len(TTFT_BOUNDS_US):  # beyond all bounds: at least so long
        return low / 1000
    inside = (place - (ends[bucket] - counts[bucket]) + 0.5) / counts[bucket]
    return (low + (TTFT_BOUNDS_US[bucket] - low) * min(inside, 1.0)) / 1000


async def of_groups(view: View, definition: Definition, by: Sequence[str]) -> dict[Group, Points]:
    """Group by group, from the rows."""
    return await _exact(view, definition, by, apart=True)


async def of_all(view: View, definition: Definition) -> Points | None:
    """Over all rows but copies, from the rows."""
    return (await _exact(view, definition, (), apart=False)).get((False,))


async def _exact(
    view: View, definition: Definition, by: Sequence[str], *, apart: bool
) -> dict[Group, Points]:
    table = attempts if definition.of_attempts else requests
    rows = (
        sa.select(*of_rows(definition.period).groups(definition, by), table.c.ttft_us)
        .select_from(joined(definition))
        .where(*conditions(definition))
        .subquery("r")
    )
    keys = [column for column in rows.c if column.name != "ttft_us"]
    group: list[Any] = keys if apart else [sa.literal(0).label("shadow")]
    window: dict[str, Any] = {"partition_by": keys} if apart else {}
    ranked = (
        sa.select(
            *group,
            rows.c.ttft_us,
            (sa.func.row_number().over(**window, order_by=rows.c.ttft_us) - 1).label("place"),
            (sa.func.count().over(**window) - 1).label("last"),
        )
        .where(rows.c.ttft_us.is_not(None), sa.true() if apart else rows.c.shadow == 0)
        .subquery("ranked")
    )
    c, hundred = ranked.c, sa.literal(100, sa.BigInteger)
    wanted = [
        place for p in (50, 95) for place in (c.last * p // hundred, (c.last * p + 99) // hundred)
    ]
    query = sa.select(ranked).where(sa.or_(*(c.place == place for place in wanted)))
    seen: dict[Group, dict[int, int]] = {}
    last: dict[Group, int] = {}
    for row in await view.select(query):
        at = group_of(row)
        seen.setdefault(at, {})[int(row["place"])] = int(row["ttft_us"])
        last[at] = int(row["last"])
    return {
        group: (_between(at, last[group], 50), _between(at, last[group], 95))
        for group, at in seen.items()
    }


def _between(at: Mapping[int, int], last: int, percent: int) -> float:
    low, rest = divmod(last * percent, 100)
    return (at[low] + (at[low + 1] - at[low]) * rest / 100 if rest else at[low]) / 1000


def group_of(row: Mapping[str, Any]) -> Group:
    """Whether it is of copies, then the value of each name grouped by."""
    count = sum(name[0] == "g" and name[1:].isdigit() for name in row)
    return (bool(row["shadow"]), *(row[f"g{n}"] for n in range(count)))
