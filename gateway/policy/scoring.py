"""What a request would cost and how long it would take at a target: predictions. Pure.

Owns the models of cost and of latency and what an objective compares. Knows nothing of rules, of
tiers and of who may be chosen.

COST. uncached × input + cached × cached input + output × output, as `domain.money.cost` would book
it: whole numbers, one rounding, half to even. Cached tokens are expected where the session was
before and nowhere else.

LATENCY. To the last token: (TTFT + output tokens × TPOT) × (1 + queue / in flight).
TTFT is the median seen, moved along its slope to this prompt's length, never below 0. The last
factor is the wait while the engine reports a queue: each request under way is taken to last as
long as this one, and as they end the queue moves up. Without TPOT (embeddings) it is TTFT that
counts, without TTFT nothing is known.

SERVICE LEVELS. The same with the figures of the percentile in the place of the medians; the wait
is the same. End to end adds the percentiles up, which is on the careful side. What was not
measured is taken to meet its level: else a new backend would never get the traffic to show.

THE MIX. cost^w × latency^(1-w). That is the weighted mean of the ratios to the best, and as the
best is the same for all it cancels: no score depends on who else is there. Kept as a logarithm.
Below a floor (1,000 nano-USD, 1 ms) costs and times are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from math import gcd, log
from typing import NamedTuple, TypeAlias

from gateway.domain.decision import BackendView, Facts, Tails
from gateway.domain.money import Rates
from gateway.policy.language import By, Metric, Route, Slo

COST_FLOOR_NANO_USD, LATENCY_FLOOR_MS = 1_000, 1.0

# The first part of a score. One request at a time explores what was never measured: with nothing
# in flight it sorts first, else late, so that a burst does not pile up on what is not known.
EXPLORED, KNOWN, UNMEASURED, UNPRICED = range(4)


class Prices(NamedTuple):
    """Nano-USD per token times `scale`, as integers, so that costs are exact without Decimal."""

    uncached: int
    cached: int
    output: int
    scale: int

    @classmethod
    def of(cls, rates: Rates) -> Prices:
        reread = rates.input if rates.cached_input is None else rates.cached_input
        per_mtok = (rates.input, reread, rates.output)
        scale: int = 10 ** max(map(_digits, per_mtok))
        # 1 USD per million tokens is 1,000 nano-USD per token.
        whole = [int(price * scale) * 1000 for price in per_mtok]
        common = gcd(scale, *whole)
        uncached, cached, output = (price // common for price in whole)
        return cls(uncached, cached, output, scale // common)


def _digits(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "a price is a finite number"
    return max(0, -exponent)


def cost(prices: Prices, facts: Facts, cached: int) -> int:
    """Predicted nano-USD of a request of whose prompt `cached` tokens are cached."""
    per_uncached, per_cached, per_output, scale = prices
    prompt = facts.prompt_tokens
    if cached:
        cached = min(cached, prompt)
    exact = per_uncached * (prompt - cached) + per_cached * cached
    exact += per_output * facts.output_tokens
    if scale == 1:
        return exact
    whole, rest = divmod(exact, scale)
    twice = 2 * rest
    return whole + (twice > scale or (twice == scale and whole & 1))


def latency(view: BackendView, facts: Facts) -> float | None:
    """Predicted milliseconds to the last token; None before anything was measured."""
    if view.ttft_ms is None:
        return None
    alone = _first(view.ttft_ms, view, facts) + facts.output_tokens * (view.tpot_ms or 0.0)
    return alone * (1 + view.queue / max(1, view.in_flight)) if view.queue else alone


def _first(ttft: float, view: BackendView, facts: Facts) -> float:
    """A time to the first token, moved to this prompt's length."""
    slope = view.ttft_per_1k_ms
    if not slope:
        return ttft
    return max(0.0, ttft + slope * (facts.prompt_tokens - view.ttft_prompt_tokens) / 1000)


class Level(NamedTuple):
    """A service level made ready: the wait for the first token, the time of a token, or of all.

    `tail` is an index of Tails, -1 for the median.
    """

    name: str
    first: bool
    token: bool
    tail: int
    ms_max: float

    @classmethod
    def of(cls, slo: Slo) -> Level:
        return cls(
            name=f"{slo.metric}@{slo.percentile}",
            first=slo.metric is not Metric.TPOT,
            token=slo.metric is not Metric.TTFT,
            tail=-1 if slo.percentile == 50 else Tails._fields.index(f"p{slo.percentile}"),
            ms_max=slo.ms_max,
        )


def misses(
    levels: Sequence[Level], view: BackendView, facts: Facts, whole: float | None
) -> tuple[str, ...]:
    """The levels that this request is predicted to miss there; `whole` is its `latency`."""
    if whole is None:
        return ()
    missed: tuple[str, ...] = ()
    for name, first, token, tail, ms_max in levels:
        predicted = 0.0
        if first:
            ttft = _seen(view.ttft_ms, view.ttft_tails, tail)
            if ttft is None:
                continue
            predicted = _first(ttft, view, facts)
            if view.queue:  # `whole` = alone × (1 + queue / in flight)
                predicted += whole * view.queue / (view.queue + max(1, view.in_flight))
        if token:
            tpot = _seen(view.tpot_ms, view.tpot_tails, tail) or 0.0
            predicted += tpot * facts.output_tokens if first else tpot
        if predicted > ms_max:
            missed += (name,)
    return missed


def _seen(median: float | None, tails: Tails | None, tail: int) -> float | None:
    if tail < 0:
        return median
    return None if tails is None else tails[tail]


# --- objectives -------------------------------------------------------------------------------

# Of a target: the cost that counts, its latency, how many are in flight there and its place in the
# alias. Gives one of EXPLORED to UNPRICED and a figure; lower is better.
Objective: TypeAlias = Callable[[int | None, float | None, int, int], tuple[int, float]]


def objective(route: Route) -> Objective:
    """What a route compares inside a tier."""
    return _mix(route.cost_weight) if route.by is By.MIX else _OBJECTIVES[route.by]


def _listed(_cost: int | None, _ms: float | None, _in_flight: int, place: int) -> tuple[int, float]:
    return KNOWN, place


def _cheapest(cost: int | None, _ms: float | None, _in_flight: int, _: int) -> tuple[int, float]:
    return (UNPRICED, 0.0) if cost is None else (KNOWN, cost)


def _fastest(_cost: int | None, ms: float | None, in_flight: int, _: int) -> tuple[int, float]:
    if ms is None:
        return (UNMEASURED if in_flight else EXPLORED), 0.0
    return KNOWN, ms


def _mix(weight: float) -> Objective:
    """What has no weight need not be known."""
    rest = 1.0 - weight

    def score(cost: int | None, ms: float | None, in_flight: int, _: int) -> tuple[int, float]:
        figure = 0.0
        if weight:
            if cost is None:
                return UNPRICED, 0.0
            figure = weight * log(max(cost, COST_FLOOR_NANO_USD))
        if rest:
            if ms is None:
                return (UNMEASURED if in_flight else EXPLORED), 0.0
            figure += rest * log(max(ms, LATENCY_FLOOR_MS))
        return KNOWN, figure

    return score


_OBJECTIVES: Mapping[By, Objective] = {
    By.ORDER: _listed,
    By.CHEAPEST: _cheapest,
    By.FASTEST: _fastest,
}
REASONS: Mapping[By, str] = {
    By.ORDER: "preferred",
    By.CHEAPEST: "cheapest",
    By.FASTEST: "fastest",
    By.MIX: "balanced",
}
