"""Money: Decimal while it is computed, integer nano-USD once it is booked, one rounding between.

A rate of 1 USD per million tokens is exactly 1,000 nano-USD per token. Rates are kept as given
(Decimal USD per million tokens) and cost is exact until `book` rounds it once, half to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from typing import NewType

NanoUSD = NewType("NanoUSD", int)

NANO_PER_USD = 1_000_000_000
_NANO_PER_TOKEN_AT_ONE_USD_PER_MTOK = 1_000  # 1e9 nano / 1e6 tokens


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one model at one backend charges, in USD per million tokens.

    `cached_input` of None means the vendor gives no discount: cached tokens cost as input does.
    Reasoning tokens are part of the output count on every wire we speak and cost as output.
    `source` says where the figures come from; `id` names the dated row, for the ledger.
    `basis` is `list` (a vendor's price list) or `declared` (our own statement, self-hosted).
    `free` is set where a price of 0 is meant; without it a 0 is a mistake, refused at load.
    """

    id: str
    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    source: str = ""
    basis: str = "list"
    free: bool = False


def book(exact_nano: Decimal) -> NanoUSD:
    """The one rounding: half to even, to whole nano-USD."""
    return NanoUSD(int(exact_nano.to_integral_value(rounding=ROUND_HALF_EVEN)))


def cost(rates: Rates, *, uncached: int, cached: int, output: int) -> NanoUSD:
    """Cost in nano-USD of so many tokens at `rates`. Token counts are disjoint and not negative."""
    if uncached < 0 or cached < 0 or output < 0:
        raise ValueError(f"negative token count: {uncached=} {cached=} {output=}")
    cached_rate = rates.input if rates.cached_input is None else rates.cached_input
    exact = rates.input * uncached + cached_rate * cached + rates.output * output
    return book(exact * _NANO_PER_TOKEN_AT_ONE_USD_PER_MTOK)


def usd(nano: int) -> str:
    """Nano-USD as a plain decimal string of dollars, exact and without an exponent."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO_PER_USD)
    fraction = f"{rest:09d}".rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
