"""Predicted cost, latency and service levels, and what an objective compares."""

from __future__ import annotations

from decimal import Decimal
from math import exp, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import money
from gateway.domain.decision import BackendView, Tails
from gateway.domain.money import Rates
from gateway.policy.language import By, Metric, Route, Slo
from gateway.policy.scoring import (
    EXPLORED,
    KNOWN,
    UNMEASURED,
    UNPRICED,
    Level,
    Prices,
    cost,
    latency,
    misses,
    objective,
)
from tests.unit.policy.worlds import facts, rates

# --- cost -------------------------------------------------------------------------------------

usd = st.decimals("0", "999999", places=9, allow_nan=False) | st.decimals(
    "0", "20", places=2, allow_nan=False
)


@given(
    usd, usd, st.none() | usd, st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**6)
)
def test_the_predicted_cost_is_exactly_the_one_that_would_be_booked(
    inp, out, reread, prompt, cached, output
):
    price = Rates(id="r", input=inp, output=out, cached_input=reread)
    asked = facts(prompt_tokens=prompt, output_tokens=output)
    cached_there = min(cached, prompt)
    booked = money.cost(price, uncached=prompt - cached_there, cached=cached_there, output=output)
    assert cost(Prices.of(price), asked, cached) == booked


@pytest.mark.parametrize(("tokens", "nano"), [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_half_a_nano_rounds_to_even(tokens, nano):
    assert cost(Prices.of(rates("0.0005", "0")), facts(prompt_tokens=tokens), 0) == nano


def test_a_price_in_cents_needs_no_scale():
    assert Prices.of(rates("0.25", "2.10", cached="0.025")) == (250, 25, 2100, 1)


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
        Prices.of(Rates(id="r", input=Decimal("NaN"), output=Decimal(1)))
