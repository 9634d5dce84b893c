"""Money: Decimal while it is computed, integer nano-USD once it is booked, one rounding between.

Rates are kept as given (Decimal USD per `UNIT` of a meter: a million tokens, a thousand searches,
one second). A cost is the sum of one line per meter, exact until `book` rounds it once, half to
even. A rate of 1 USD per million tokens is exactly 1,000 nano-USD per token.

INVARIANTS
- Every quantity that was metered is in exactly one line, or the whole has no price: a meter whose
  price is not known makes the cost unknown, never smaller.
- A longer prompt can change the price of the whole request, as vendors do it (a cliff), or only of
  the tokens beyond the bound (marginal); which, the price row says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple, NewType

NanoUSD = NewType("NanoUSD", int)

NANO_PER_USD = 1_000_000_000


class Meter(StrEnum):
    """What a price can be asked for. Values are stored. Every token is in exactly one meter."""

    INPUT = "input"  # prompt tokens neither read from a cache nor written to one
    CACHE_READ = "cache_read"
    CACHE_WRITE_5M = "cache_write_5m"  # kept for five minutes
    CACHE_WRITE_1H = "cache_write_1h"
    INPUT_AUDIO = "input_audio"
    CACHE_READ_AUDIO = "cache_read_audio"
    INPUT_IMAGE = "input_image"  # tokens of pictures, where they have a price of their own
    OUTPUT = "output"  # text that was said, without reasoning
    REASONING = "reasoning"
    OUTPUT_AUDIO = "output_audio"
    OUTPUT_IMAGE = "output_image"
    REQUEST = "request"
    SEARCH_CALL = "search_call"
    IMAGE = "image"  # pictures made, counted
    SECOND = "second"  # of audio or video
    MINUTE = "minute"
    GPU_SECOND = "gpu_second"
    REPLICA_MINUTE = "replica_minute"


PROMPT_METERS = frozenset(
    {
        Meter.INPUT,
        Meter.CACHE_READ,
        Meter.CACHE_WRITE_5M,
        Meter.CACHE_WRITE_1H,
        Meter.INPUT_AUDIO,
        Meter.CACHE_READ_AUDIO,
        Meter.INPUT_IMAGE,
    }
)
OUTPUT_METERS = frozenset({Meter.OUTPUT, Meter.REASONING, Meter.OUTPUT_AUDIO, Meter.OUTPUT_IMAGE})
TOKEN_METERS = PROMPT_METERS | OUTPUT_METERS

# How much of a meter its price is for.
UNIT: Final[Mapping[Meter, int]] = {
    meter: 1_000_000 if meter in TOKEN_METERS else 1 for meter in Meter
} | {Meter.SEARCH_CALL: 1_000, Meter.REQUEST: 1_000}
# USD per unit times quantity, shifted by so many digits, is nano-USD: no digit is lost on the way.
_NANO_DIGITS: Final = {meter: 9 - (len(str(unit)) - 1) for meter, unit in UNIT.items()}

# A meter without a price of its own costs as another does, where vendors bill it so. What is not
# here (audio, searches) is unknown without a price: to guess would be to book too little.
_COSTS_AS: Final[Mapping[Meter, Meter]] = {
    Meter.CACHE_READ: Meter.INPUT,
    Meter.CACHE_WRITE_5M: Meter.INPUT,
    Meter.CACHE_WRITE_1H: Meter.INPUT,  # unless five minutes have a price: then an hour has too
    Meter.INPUT_IMAGE: Meter.INPUT,
    Meter.CACHE_READ_AUDIO: Meter.INPUT_AUDIO,
    Meter.REASONING: Meter.OUTPUT,
}
# The order in which a prompt is taken to lie: what a cache holds is its beginning.
_PROMPT_ORDER: Final = (
    Meter.CACHE_READ,
    Meter.CACHE_READ_AUDIO,
    Meter.CACHE_WRITE_1H,
    Meter.CACHE_WRITE_5M,
    Meter.INPUT_AUDIO,
    Meter.INPUT_IMAGE,
    Meter.INPUT,
)


class Unpriced(Exception):
    """A meter, or the tier the vendor served, has no known price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one model at one backend charges at a moment, in USD per `UNIT` of each meter.

    `input`, `output` and `cached_input` are those of the standard tier, in USD per million tokens;
    `cached_input` of None means the vendor gives no discount. `others` are the prices of further
    meters. `tiers` ascend: beyond `above` prompt tokens their rates hold, for the whole request or,
    if `marginal`, for the tokens beyond. `service_tiers` are whole rates of their own (`batch`,
    `flex`, `priority`). `by_token` is False where tokens are not what is paid for (seconds, GPUs).

    `source` says where the figures come from; `id` names the dated row, the window, the service
    tier and the tier, for the ledger. `basis` is `list` (a vendor's price list) or `declared` (our
    own statement, self-hosted). `free` is set where a price of 0 is meant; without it a 0 is a
    mistake, refused at load.
    """

    id: str
    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    others: Mapping[Meter, Decimal] = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()
    marginal: bool = False
    service_tiers: Mapping[str, Rates] = field(default_factory=dict)
    by_token: bool = True
    source: str = ""
    basis: str = "list"
    free: bool = False

    def price(self, meter: Meter) -> Decimal | None:
        """The price of a `UNIT` of it, its own or the one it costs as; None where not known."""
        own = self._own(meter)
        if own is not None or meter not in _COSTS_AS:
            return own
        if meter is Meter.CACHE_WRITE_1H and Meter.CACHE_WRITE_5M in self.others:
            return None
        return self.price(_COSTS_AS[meter])

    def _own(self, meter: Meter) -> Decimal | None:
        if not self.by_token and meter in TOKEN_METERS:
            return None
        if meter is Meter.INPUT:
            return self.input
        if meter is Meter.OUTPUT:
            return self.output
        if meter is Meter.CACHE_READ:
            return self.cached_input
        return self.others.get(meter)

    def under(self, prompt_tokens: int, service_tier: str | None = None) -> Rates:
        """Those that hold for such a request; of marginal ones, the whole scale.

        Raises Unpriced where that service tier has none.
        """
        rates = self
        if service_tier is not None:
            try:
                rates = self.service_tiers[service_tier]
            except KeyError:
                raise Unpriced(f"no price of the service tier {service_tier!r}") from None
        if rates.tiers and not rates.marginal:
            for tier in reversed(rates.tiers):
                if prompt_tokens > tier.above:
                    return tier.rates
        return rates

    def every(self) -> Iterator[Rates]:
        """These and all rates inside."""
        yield self
        for tier in self.tiers:
            yield from tier.rates.every()
        for rates in self.service_tiers.values():
            yield from rates.every()


class Tier(NamedTuple):
    """Rates for prompts of more than `above` tokens."""

    above: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Line:
    """What one meter cost: `quantity` at `price` USD per `UNIT` of it. `nano` is exact.

    `above`: these are the tokens beyond that bound of a marginal scale.
    """

    meter: Meter
    quantity: int
    price: Decimal
    above: int | None = None

    @property
    def nano(self) -> Decimal:
        return (self.price * self.quantity).scaleb(_NANO_DIGITS[self.meter])


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request cost and why: `nano` is the sum of the lines, rounded once."""

    rates_id: str
    lines: tuple[Line, ...]

    @property
    def exact(self) -> Decimal:
        return sum((line.nano for line in self.lines), Decimal(0))

    @property
    def nano(self) -> NanoUSD:
        return book(self.exact)


def book(exact_nano: Decimal) -> NanoUSD:
    """The one rounding: half to even, to whole nano-USD."""
    return NanoUSD(int(exact_nano.to_integral_value(rounding=ROUND_HALF_EVEN)))


def rate(
    rates: Rates, quantities: Mapping[Meter, int], *, service_tier: str | None = None
) -> Charge:
    """One line per meter that was used. Quantities are disjoint and not negative.

    Raises Unpriced where a price is missing, ValueError for a negative quantity.
    """
    if any(n < 0 for n in quantities.values()):
        raise ValueError(f"negative quantity: {dict(quantities)}")
    prompt = sum(n for meter, n in quantities.items() if meter in PROMPT_METERS)
    held = rates.under(prompt, service_tier)
    if held._own(Meter.REQUEST) is not None and Meter.REQUEST not in quantities:  # noqa: SLF001
        quantities = {**quantities, Meter.REQUEST: 1}
    if held.marginal and held.tiers:
        return Charge(held.id, tuple(_marginal(held, quantities)))
    lines = tuple(_line(held, meter, n) for meter, n in quantities.items() if n)
    return Charge(held.id, lines)


def _line(rates: Rates, meter: Meter, quantity: int, above: int | None = None) -> Line:
    price = rates.price(meter)
    if price is None:
        raise Unpriced(f"no price of {meter.value} in {rates.id}")
    return Line(meter, quantity, price, above)


def _marginal(rates: Rates, quantities: Mapping[Meter, int]) -> Iterator[Line]:
    """The prompt laid out from its beginning and cut at the bounds; the output at the base."""
    scale: list[tuple[int, int | None, Rates]] = [(0, None, rates)]
    scale += [(tier.above, tier.above, tier.rates) for tier in rates.tiers]
    ends = [start for start, _, _ in scale[1:]]
    prompt = sum(n for meter, n in quantities.items() if meter in PROMPT_METERS)
    spans = list(zip(scale, [*ends, max(prompt, ends[-1])], strict=True))
    bounds = [0]
    for meter in _PROMPT_ORDER:
        bounds.append(bounds[-1] + quantities.get(meter, 0))
    for meter, (start, end) in zip(_PROMPT_ORDER, pairwise(bounds), strict=True):
        for (since, above, held), until in spans:
            inside = min(end, until) - max(start, since)
            if inside > 0:
                yield _line(held, meter, inside, above)
    for meter, quantity in quantities.items():
        if quantity and meter not in PROMPT_METERS:
            yield _line(rates, meter, quantity)


def cost(rates: Rates, *, uncached: int, cached: int, output: int) -> NanoUSD:
    """Cost in nano-USD of so many tokens at the standard tier. Counts are disjoint, not negative.

    The quick way for predictions, and for what nearly every request is; of the output it takes
    none for reasoning. Raises Unpriced where tokens have no price.
    """
    if uncached < 0 or cached < 0 or output < 0:
        raise ValueError(f"negative token count: {uncached=} {cached=} {output=}")
    if rates.tiers:
        if rates.marginal:
            counts = {Meter.INPUT: uncached, Meter.CACHE_READ: cached, Meter.OUTPUT: output}
            return rate(rates, counts).nano
        rates = rates.under(uncached + cached)
    if not rates.by_token:
        raise Unpriced(f"no price of tokens in {rates.id}")
    cached_rate = rates.input if rates.cached_input is None else rates.cached_input
    exact = rates.input * uncached + cached_rate * cached + rates.output * output
    exact = exact.scaleb(_NANO_DIGITS[Meter.INPUT])
    if rates.others and (fee := rates.others.get(Meter.REQUEST)) is not None:
        exact += Line(Meter.REQUEST, 1, fee).nano
    return book(exact)


def usd(nano: int, digits: int = 0) -> str:
    """Nano-USD as a plain decimal string of dollars, exact and without an exponent; `digits` after
    the point at least (2: as people write cents)."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO_PER_USD)
    fraction = f"{rest:09d}".rstrip("0").ljust(digits, "0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


class Currency(NamedTuple):
    """What amounts are shown in; they are booked in US dollars. A dollar is `per_usd` of it."""

    code: str = "USD"
    per_usd: Decimal = Decimal(1)


DOLLARS: Final = Currency()
_SYMBOLS: Final = {"USD": "$", "EUR": "\u20ac", "GBP": "\u00a3"}


def shown(nano: int, currency: Currency = DOLLARS) -> str:
    """Nano-USD for people: to the cent, below one to two digits that say something.

    `$1,234.50`, `\u20ac0.0042`, `CHF 12.00`, `-$3.00`. For display only: it is rounded.
    """
    amount = (nano * currency.per_usd).scaleb(-9)
    digits = 2 if abs(amount) >= Decimal("0.01") or not nano else 1 - amount.adjusted()
    text = f"{abs(amount).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN):,f}"
    sign = "-" if nano < 0 else ""
    return f"{sign}{_SYMBOLS.get(currency.code, currency.code + ' ')}{text}"
