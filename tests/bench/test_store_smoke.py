"""The benchmark of the store runs, and its sums are what its rows make. No figure is judged here."""

from __future__ import annotations

import pytest

from tests.bench.store import main
from tests.bench.traffic import MONTH_US, OCTOBER_US, month

pytestmark = pytest.mark.xdist_group("bench")


def test_it_prints_a_table_of_all_it_measured(capsys):
    assert main(["--rows", "2000", "--old", "500", "--check"]) in (0, 1)
    out = capsys.readouterr().out
    assert out.startswith("\n2,000 requests with their attempts, 1 writer(s)\n")
    for what in ("written", "CPU a request", "bytes a request", "look-up by id", "month, by team"):
        assert f"\n| {what}" in out
    assert " hours, 0 differences, " in out


def test_a_month_has_everything_and_is_the_same_again():
    made = list(month(3_000, seed=5))
    assert [r.id for r in made] == [r.id for r in month(3_000, seed=5)]
    starts = [record.started_at_us for record in made]
    assert starts == sorted(starts)
    assert (starts[0] >= OCTOBER_US, starts[-1] < OCTOBER_US + MONTH_US) == (True, True)
    assert len({record.id for record in made}) == 3_000
    assert len({record.key_id for record in made}) > 30
    assert len({record.alias for record in made}) == 6
    assert len({attempt.backend for record in made for attempt in record.attempts}) == 8
    assert {a.outcome for record in made for a in record.attempts} >= {
        "ok", "failed", "hedge_lost", "client_cancelled", "failed_midstream"
    }  # fmt: skip
    assert any(record.outcome == "refused" for record in made)
