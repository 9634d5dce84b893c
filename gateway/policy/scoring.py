"""What a request would cost and how long it would take at a target: predictions. Pure.

Owns the models of cost and of latency and what an objective compares. Knows nothing of rules, of
tiers and of who may be chosen.

COST. uncached × input + cached × cached input + output × output + what a request costs, in the tier
of the prompt's length, as `domain.money.rate` would book it: whole numbers, one rounding, half to
even. Cached tokens are expected where the session was before and nowhere else. How much of the
output will be reasoning is not known: where that has a price of its own, the dearer of both counts
for all of it. Nobody can know beforehand what will be written to a cache, or searched: left out.

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
from itertools import pairwise
from math import gcd, inf, log
from typing import NamedTuple, TypeAlias

from gateway.domain.decision import BackendView, Facts, Tails
from gateway.domain.money import UNIT, Meter, Rates
from gateway.policy.language import By, Metric, Route, Slo

COST_FLOOR_NANO_USD, LATENCY_FLOOR_MS = 1_000, 1.0

# The first part of a score. One request at a time explores what was never measured: with nothing
# in flight it sorts first, else late, so that a burst does not pile up on what is not known.
EXPLORED, KNOWN, UNMEASURED, UNPRICED = range(4)


# Predicted nano-USD of a request of whose prompt so many tokens are cached.
Cost: TypeAlias = Callable[[Facts, int], int]


def costing(rates: Rates) -> Cost | None:
    """What requests are predicted to cost at these rates; None where tokens have no price."""
    if not rates.by_token:
        return None
    if rates.marginal and rates.tiers:
        return _marginal(rates)
    flat = _flat(rates)
    if not rates.tiers:
        return flat
    longer = [(tier.above, _flat(tier.rates)) for tier in reversed(rates.tiers)]

    def cliff(facts: Facts, cached: int) -> int:
        for above, held in longer:
            if facts.prompt_tokens > above:
                return held(facts, cached)
        return flat(facts, cached)

    return cliff


class _Whole(NamedTuple):
    """Nano-USD per token, and of a request, times a scale: exact without Decimal."""

    uncached: int
    cached: int
    output: int
    request: int


def _whole(several: Sequence[Rates]) -> tuple[list[_Whole], int]:
    """All of them at the least scale that makes them whole numbers, and that scale."""
    prices = [
        (
            (Meter.INPUT, rates.input),
            (Meter.CACHE_READ, rates.price(Meter.CACHE_READ)),
            (Meter.OUTPUT, max(rates.output, rates.price(Meter.REASONING) or rates.output)),
            (Meter.REQUEST, rates.price(Meter.REQUEST)),
        )
        for rates in several
    ]
    digits = (_digits(usd) for row in prices for _, usd in row if usd)
    scale: int = 10 ** max(digits, default=0)
    whole = [
        [0 if usd is None else int(usd * scale) * (10**9 // UNIT[meter]) for meter, usd in row]
        for row in prices
    ]
    common = gcd(scale, *(price for row in whole for price in row))
    return [_Whole(*(price // common for price in row)) for row in whole], scale // common


def _digits(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "a price is a finite number"
    return max(0, -exponent)


def _flat(rates: Rates) -> Cost:
    ((uncached_, cached_, output_, request_),), scale = _whole((rates,))

    def exact(facts: Facts, cached: int) -> int:
        prompt = facts.prompt_tokens
        if cached:
            cached = min(cached, prompt)
            prompt -= cached
            return uncached_ * prompt + cached_ * cached + output_ * facts.output_tokens + request_
        return uncached_ * prompt + output_ * facts.output_tokens + request_

    if scale == 1:
        return exact
    return lambda facts, cached: _rounded(exact(facts, cached), scale)


def _marginal(rates: Rates) -> Cost:
    """The prompt from its beginning, what is cached first, cut at the bounds of the tiers."""
    (base, *longer), scale = _whole((rates, *(tier.rates for tier in rates.tiers)))
    bounds = [0, *(tier.above for tier in rates.tiers), inf]
    spans = list(zip(pairwise(bounds), (base, *longer), strict=True))

    def cost(facts: Facts, cached: int) -> int:
        prompt = facts.prompt_tokens
        exact = base.output * facts.output_tokens + base.request
        for (start, end), held in spans:
            if prompt <= start:
                break
            inside = int(min(prompt, end) - start)
            reread = int(min(max(cached - start, 0), inside))
            exact += held.uncached * (inside - reread) + held.cached * reread
        return _rounded(exact, scale)

    return cost


def _rounded(exact: int, scale: int) -> int:
    """Half to even."""
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
