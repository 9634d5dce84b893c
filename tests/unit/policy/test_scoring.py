"""Predicted cost, latency and service levels, and what an objective compares."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from math import exp, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.decision import BackendView, Tails
from gateway.domain.money import Meter, Rates, Tier, rate
from gateway.policy.language import By, Metric, Route, Slo
from gateway.policy.scoring import (
    EXPLORED,
    KNOWN,
    UNMEASURED,
    UNPRICED,
    Level,
    costing,
    latency,
    misses,
    objective,
)
from tests.unit.policy.worlds import facts, rates

# --- cost -------------------------------------------------------------------------------------

usd = st.decimals("0", "999999", places=9, allow_nan=False) | st.decimals(
    "0", "20", places=2, allow_nan=False
)
others = st.dictionaries(st.sampled_from([Meter.REQUEST, Meter.CACHE_WRITE_5M]), usd)
plain = st.builds(
    Rates, id=st.just("r"), input=usd, output=usd, cached_input=st.none() | usd, others=others
)
bounds = st.lists(st.integers(1, 10**7), unique=True, max_size=3).map(sorted)
tiered = st.builds(
    lambda base, above, marginal, data: replace(
        base, tiers=tuple(map(Tier, above, data)), marginal=marginal
    ),
    plain,
    bounds,
    st.booleans(),
    st.lists(plain, min_size=3, max_size=3),
)


@given(tiered, st.data(), st.integers(0, 10**7), st.integers(0, 10**6))
def test_the_predicted_cost_is_exactly_the_one_that_would_be_booked(price, data, cached, output):
    edges = [above + more for above, _ in price.tiers for more in (0, 1)]
    prompt = data.draw(st.sampled_from(edges) if edges else st.integers(0, 10**7))
    asked = facts(prompt_tokens=prompt, output_tokens=output)
    there = min(cached, prompt)
    quantities = {Meter.INPUT: prompt - there, Meter.CACHE_READ: there, Meter.OUTPUT: output}
    assert costing(price)(asked, cached) == rate(price, quantities).nano


@given(tiered, st.integers(0, 2 * 10**7), st.integers(0, 10**6))
def test_wherever_in_the_tiers_the_prompt_ends(price, prompt, output):
    quantities = {Meter.INPUT: prompt, Meter.OUTPUT: output}
    asked = facts(prompt_tokens=prompt, output_tokens=output)
    assert costing(price)(asked, 0) == rate(price, quantities).nano


@pytest.mark.parametrize(("tokens", "nano"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_half_a_nano_rounds_to_even(tokens, nano):
    assert costing(rates("0.0005", "0"))(facts(prompt_tokens=tokens), 0) == nano


@pytest.mark.parametrize("reasoning", ["0.5", "3"])
def test_reasoning_with_a_price_of_its_own_counts_where_it_is_dearer(reasoning):
    price = replace(rates("0", "1"), others={Meter.REASONING: Decimal(reasoning)})
    dearer = max(Decimal(1), Decimal(reasoning))
    assert costing(price)(facts(output_tokens=10), 0) == dearer * 10_000


def test_what_is_not_paid_by_the_token_has_no_predicted_cost():
    seconds = Rates(id="r", input=Decimal(0), output=Decimal(0), by_token=False)
    assert costing(seconds) is None


# --- latency ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "asked", "ms"),
    [
        ({}, {}, None),
        ({"tpot_ms": 10}, {}, None),
        ({"ttft_ms": 200}, {}, 200),
        ({"ttft_ms": 200, "tpot_ms": 10}, {"output_tokens": 50}, 700),
        ({"ttft_ms": 200, "ttft_per_1k_ms": 100, "ttft_prompt_tokens": 1000}, {"prompt_tokens": 3000}, 400),
        ({"ttft_ms": 200, "ttft_per_1k_ms": 100, "ttft_prompt_tokens": 3000}, {"prompt_tokens": 2000}, 100),
        ({"ttft_ms": 200, "ttft_per_1k_ms": 100, "ttft_prompt_tokens": 9000}, {"prompt_tokens": 0}, 0),
        ({"ttft_ms": 200, "tpot_ms": 10, "queue": 0, "in_flight": 4}, {"output_tokens": 50}, 700),
        ({"ttft_ms": 200, "tpot_ms": 10, "queue": 2, "in_flight": 4}, {"output_tokens": 50}, 1050),
        ({"ttft_ms": 200, "tpot_ms": 10, "queue": 2, "in_flight": 0}, {"output_tokens": 50}, 2100),
    ],
)  # fmt: skip
def test_latency_is_to_the_last_token(view, asked, ms):
    assert latency(BackendView(**view), facts(**asked)) == ms


# --- service levels ---------------------------------------------------------------------------

SEEN = {
    "ttft_ms": 200.0,
    "tpot_ms": 10.0,
    "ttft_tails": Tails(300, 400, 500),
    "tpot_tails": Tails(20, 30, 40),
}


@pytest.mark.parametrize(
    ("metric", "percentile", "view", "ms"),
    [
        (Metric.TTFT, 50, {}, 200),
        (Metric.TTFT, 90, {}, 300),
        (Metric.TTFT, 95, {}, 400),
        (Metric.TTFT, 99, {}, 500),
        (Metric.TTFT, 95, {"ttft_per_1k_ms": 50, "ttft_prompt_tokens": 1100}, 350),
        (Metric.TTFT, 95, {"queue": 1, "in_flight": 2}, 400 + 700 / 2),
        (Metric.TPOT, 50, {}, 10),
        (Metric.TPOT, 99, {}, 40),
        (Metric.TPOT, 99, {"queue": 1, "in_flight": 2}, 40),
        (Metric.END_TO_END, 50, {}, 700),
        (Metric.END_TO_END, 95, {}, 400 + 50 * 30),
        (Metric.END_TO_END, 50, {"queue": 1, "in_flight": 2}, 700 * 1.5),
        (Metric.END_TO_END, 95, {"tpot_ms": None, "tpot_tails": None}, 400),
    ],
)
def test_a_level_is_missed_beyond_its_bound_only(metric, percentile, view, ms):
    seen, asked = BackendView(**{**SEEN, **view}), facts(prompt_tokens=100, output_tokens=50)
    for bound, missed in ((ms, ()), (ms - 0.001, (f"{metric}@{percentile}",))):
        level = Level.of(Slo(metric=metric, percentile=percentile, ms_max=bound))
        assert misses([level], seen, asked, latency(seen, asked)) == missed


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("percentile", [50, 95])
def test_what_was_not_measured_meets_its_level(metric, percentile):
    level = Level.of(Slo(metric=metric, percentile=percentile, ms_max=0.001))
    seen = BackendView(queue=9)
    assert misses([level], seen, facts(), latency(seen, facts())) == ()


# --- objectives -------------------------------------------------------------------------------


def score(by: By, weight: float, cost, ms, in_flight=0):
    return objective(Route(name="r", by=by, cost_weight=weight))(cost, ms, in_flight, 4)


@pytest.mark.parametrize(
    ("by", "weight", "cost", "ms", "in_flight", "expected"),
    [
        (By.ORDER, 0.5, None, None, 1, (KNOWN, 4)),  # its place in the alias
        (By.CHEAPEST, 0.5, 0, None, 1, (KNOWN, 0)),
        (By.CHEAPEST, 0.5, 7, None, 1, (KNOWN, 7)),
        (By.CHEAPEST, 0.5, None, 7.0, 1, (UNPRICED, 0)),
        (By.FASTEST, 0.5, None, 7.0, 1, (KNOWN, 7)),
        (By.FASTEST, 0.5, 7, None, 0, (EXPLORED, 0)),
        (By.FASTEST, 0.5, 7, None, 1, (UNMEASURED, 0)),
        (By.MIX, 0.5, 7, None, 0, (EXPLORED, 0)),
        (By.MIX, 0.5, 7, None, 1, (UNMEASURED, 0)),
        (By.MIX, 0.5, None, 7.0, 0, (UNPRICED, 0)),
        (By.MIX, 0.5, None, None, 0, (UNPRICED, 0)),
        (By.MIX, 0.0, None, 1.0, 0, (KNOWN, 0)),  # what has no weight need not be known
        (By.MIX, 1.0, 1000, None, 1, (KNOWN, pytest.approx(6.9077553))),
    ],
)  # fmt: skip
def test_what_an_objective_compares(by, weight, cost, ms, in_flight, expected):
    assert score(by, weight, cost, ms, in_flight) == expected


@given(st.floats(0, 1), st.integers(1000, 10**12), st.floats(1, 10**6))
def test_a_mix_is_a_product_of_powers(weight, cost, ms):
    group, figure = score(By.MIX, weight, cost, ms)
    assert group == KNOWN
    assert isclose(exp(figure), cost**weight * ms ** (1 - weight), rel_tol=1e-9)


@given(st.floats(0, 1), st.integers(0, 1000), st.floats(0, 1))
def test_below_the_floors_all_are_alike(weight, cost, ms):
    assert score(By.MIX, weight, cost, ms) == score(By.MIX, weight, 1000, 1.0)


def test_prices_are_finite():
    with pytest.raises(AssertionError):
        costing(Rates(id="r", input=Decimal("NaN"), output=Decimal(1)))
