"""The most that a request may cost, before anybody knows what it will use. Pure.

A bill may take any rates of any target that may serve the request, so that it is these:
- of the prices of prompts (read from a cache, written to one for however long, pictures) the
  dearest, for what a vendor's cache will do nobody knows; of the output's reasoning and pictures
  too; sounds only where the request has or asks for sounds;
- the rates of long prompts from two thirds of their bound on: the prompt is an estimate;
- the standard rates and those of the service tier asked for: a vendor may serve either;
- what a request costs as such. Searches and other things counted singly are not foreseen.

INVARIANT: no bill of at most so many tokens is above `hold_nano_usd` of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from gateway.domain.money import OUTPUT_METERS, PROMPT_METERS, UNIT, Meter, Rates

_FEMTO_PER_NANO = 1_000_000
_AUDIO = frozenset({Meter.INPUT_AUDIO, Meter.CACHE_READ_AUDIO, Meter.OUTPUT_AUDIO})


@dataclass(frozen=True, slots=True)
class WorstRates:
    """The most a token costs anywhere, in femto-USD (10^-15): what prices are exact in.

    `request` is what one costs besides. `longer`: (bound, rates) for prompts of more tokens than
    the bound, the longest first; none is below those of shorter ones.
    """

    input: int
    output: int
    request: int = 0
    longer: tuple[tuple[int, WorstRates], ...] = ()


def worst(
    priced: Iterable[Rates], *, service_tier: str | None = None, sounds: bool = False
) -> WorstRates | None:
    """The highest of each rate; None where no rates are of tokens."""
    standard = list(priced)
    special = [r.service_tiers.get(service_tier) for r in standard] if service_tier else []
    known = [held for held in (*standard, *special) if held is not None and held.by_token]
    if not known:
        return None
    meters = frozenset(Meter) if sounds else frozenset(Meter) - _AUDIO
    base = _highest(known, meters)
    longer: list[tuple[int, WorstRates]] = []
    for bound in sorted({tier.above for held in known for tier in held.tiers}):
        tiers = [tier.rates for held in known for tier in held.tiers if tier.above <= bound]
        longer.insert(0, (bound, _highest([*known, *tiers], meters)))
    return WorstRates(base.input, base.output, base.request, tuple(longer))


def _highest(several: Iterable[Rates], meters: frozenset[Meter]) -> WorstRates:
    def of(some: frozenset[Meter]) -> int:
        return max(_femto(rates.price(meter), meter) for rates in held for meter in some & meters)

    held = list(several)
    return WorstRates(of(PROMPT_METERS), of(OUTPUT_METERS), of(frozenset({Meter.REQUEST})))


def _femto(usd: Decimal | None, meter: Meter) -> int:
    """Of one of it; exact, for a price has nine digits after the point at most."""
    return 0 if usd is None else int(usd * 10**15 // UNIT[meter])


def hold_nano_usd(rates: WorstRates, *, prompt_tokens: int, output_tokens: int) -> int:
    """The most that so many tokens cost, in nano-USD, rounded up."""
    for bound, longer in rates.longer:
        if 3 * prompt_tokens > 2 * bound:
            rates = longer
            break
    femto = rates.input * prompt_tokens + rates.output * output_tokens + rates.request
    return -(-femto // _FEMTO_PER_NANO)
