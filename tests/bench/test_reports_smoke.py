"""The benchmark of reports makes the months it says, and tells what it measured.

No figure is judged here; see RESULTS.md.
"""

from __future__ import annotations

import sqlalchemy as sa

from gateway.ledger.store import Store, attempt_hours, request_hours
from tests.bench.reports import HOURS, REPORTS, Run, fill, section


async def test_every_hour_of_both_months_is_a_copy_of_the_one_that_was_written(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    sizes = await fill(url, 30 * HOURS["October"])
    hours = sum(HOURS.values())
    assert sizes["request_hours"] % hours == 0
    store = await Store.connect(url)
    for table, least in ((request_hours, 30), (attempt_hours, 30)):
        c = table.c
        query = sa.select(sa.func.sum(c.rows).label("n"), sa.func.count(c.hour_us.distinct()))
        (row,) = await store.select(query)
        assert row["n"] >= least * hours
        assert row["count_1"] == hours
    await store.close()


def test_it_tells_what_it_measured():
    one = Run("postgres", REPORTS[0], 1.234, 0.5, 0.25, 6, 10_000_000)
    text = section(10_000_000, [one], {"postgres": {"request_hours": 10 * sum(HOURS.values())}})
    assert "| postgres | `cost --by team` | 6 | 10,000,000 | 1.23 | 0.50 | 0.25 |" in text
    assert "10 of `request_hours`" in text
