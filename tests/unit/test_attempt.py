"""What an attempt is weighed at: never 0 for something said, and a request's cost never by half."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import Any

import pytest

from gateway.attempt import Attempt, Progress, add_up, estimate
from gateway.backends.usage import usage_of
from gateway.domain.catalog import Target
from gateway.domain.decision import Candidate
from gateway.domain.money import Rates
from gateway.domain.request import Usage
from gateway.ledger.laws import Case, broken
from tests.unit.ledger.records import attempt as row_of
from tests.unit.ledger.records import request as record_of
from tests.unit.spine import FINE, build, request

RATES = Rates(id="r", input=Decimal(3), output=Decimal(15))
ZERO = usage_of({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})


def weighed(progress: Progress, rates: Rates = RATES) -> Attempt:
    backend = build({"a": FINE})[0].rules.catalog.backends["a"]
    candidate = Candidate(
        target=Target("a", "m"), why="order", tier=0, cost_nano_usd=None, latency_ms=None
    )
    record = row_of(usage_source="none", cost_nano_usd=None, rates_id=None)
    made = Attempt(candidate, backend, request(), record, 0.0, progress=progress)
    made.weigh(rates)
    return made


def test_an_answer_with_a_usage_of_nothing_is_estimated_and_told() -> None:
    made = weighed(Progress(usage=ZERO, chunks=20, chars=80))
    row, prompt = made.record, request().prompt_tokens
    assert (row.uncached_tokens, row.output_tokens) == (prompt, 20)
    assert row.usage_source == "estimated"
    assert row.cost_nano_usd == prompt * 3000 + 20 * 15000
    assert made.progress.usage is not None
    assert "80 characters" in str(made.progress.usage.contradiction)


def test_nothing_said_and_nothing_used_is_taken_at_its_word() -> None:
    row = weighed(Progress(usage=ZERO)).record
    assert (row.usage_source, row.cost_nano_usd) == ("reported", 0)


def test_of_a_stream_cut_off_a_prompt_of_0_is_not_known() -> None:
    known = Usage(0, 0, 0, reported=False)
    asked = request()
    assert estimate(asked, Progress(usage=known, chunks=10)).uncached == asked.prompt_tokens
    cached = Usage(0, 7, 0, reported=False)
    assert estimate(asked, Progress(usage=cached, chunks=10)).prompt == 7


def test_what_rounds_to_nothing_is_unpriced() -> None:
    tiny = Rates(id="tiny", input=Decimal("0.0001"), output=Decimal("0.0001"))
    row = weighed(Progress(usage=Usage(1, 0, 1)), tiny).record
    assert (row.usage_source, row.cost_nano_usd, row.rates_id) == ("reported", None, None)


@pytest.mark.parametrize(
    ("first", "second", "cost"),
    [(0, None, None), (5, None, 5), (0, 7, 7), (None, None, None)],
)
def test_a_sum_of_0_is_not_said_of_what_is_priced_in_part(
    first: int | None, second: int | None, cost: int | None
) -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"), 0
    )
    rates = [None if c is None else "r" for c in (first, second)]
    failed = row_of(1, outcome="failed", cost_nano_usd=first, rates_id=rates[0], **nothing)
    answered = row_of(2, cost_nano_usd=second, rates_id=rates[1])
    record = record_of("r", attempts=[failed, answered])
    add_up(record, answered)
    assert (record.cost_nano_usd, record.priced) == (cost, None not in (first, second))
    row = asdict(record)
    told = {law.name for law, _ in broken(Case(row=row, attempts=row["attempts"]))}
    assert not told & {"cost_sum", "priced", "never_zero"}
