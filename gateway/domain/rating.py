"""Rating: what a backend metered, at the rates that held. Pure.

Owns the way from `Usage` to quantities, one per meter, each token in exactly one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.domain.money import Meter, NanoUSD, Rates, Unpriced, cost, rate
from gateway.domain.request import Usage


def metered(row: Mapping[str, Any]) -> Usage:
    """The usage that a row has on it, by the names of `AttemptRecord`. Raises ValueError."""
    return Usage(
        row["uncached_tokens"] or 0,
        row["cached_tokens"] or 0,
        row["output_tokens"] or 0,
        row["reasoning_tokens"] or 0,
        others={Meter(name): n for name, n in (row.get("other_meters") or {}).items()},
        service_tier=row.get("service_tier"),
    )


def quantities(usage: Usage) -> dict[Meter, int]:
    """So much of each meter, those of 0 left out."""
    counted = {
        Meter.INPUT: usage.uncached,
        Meter.CACHE_READ: usage.cached,
        Meter.OUTPUT: usage.output - usage.reasoning,
        Meter.REASONING: usage.reasoning,
        **usage.others,
    }
    return {meter: count for meter, count in counted.items() if count}


def charge(rates: Rates, usage: Usage) -> tuple[str, NanoUSD]:
    """The id of the rates that held and what the usage costs at them; equal to `rate`.

    Raises Unpriced where a meter or the service tier has no known price, and where what was used
    rounds to 0 though nobody declared it free: nothing that was used is booked at 0.
    """
    rates_id, nano = _charge(rates, usage)
    if not nano and not rates.free and not usage.empty:
        raise Unpriced(f"{rates_id} makes it 0, and is not declared free")
    return rates_id, nano


def _charge(rates: Rates, usage: Usage) -> tuple[str, NanoUSD]:
    if not (usage.others or usage.service_tier is not None or rates.marginal):
        held = rates.under(usage.prompt) if rates.tiers else rates
        # Of the rates that hold: only a longer prompt may have a price of reasoning.
        if not (usage.reasoning and Meter.REASONING in held.others):
            plain = {"uncached": usage.uncached, "cached": usage.cached, "output": usage.output}
            return held.id, cost(held, **plain)
    made = rate(rates, quantities(usage), service_tier=usage.service_tier)
    return made.rates_id, made.nano
