"""The schema of `policies/prices/*.yaml`: rows of the price book as people write them. Pure.

Owns the keys, what they mean together and the mistakes told of them; `prices` makes the book.

INVARIANTS
- A price is written in quotes: exact decimal digits, USD for the unit that its key names.
- A price of 0 must say `free: true`; a price list that forgets a figure is refused.
- What holds for long prompts, a service tier, a region or an hour states every price that the row
  itself states: nothing is inherited in silence.
- Every row says where its figures were read and when.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.domain.money import TOKEN_METERS, UNIT, Meter
from gateway.policy.source import Findings, Path, Strict

# Nine digits after the point: an integer count of 1e-15 dollars per token, so costs stay exact.
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,6})(\.[0-9]{1,9})?")
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]|24):([0-5][0-9])")
DAY_MINUTES = 24 * 60


def _decimal(text: str) -> str:
    if _DECIMAL.fullmatch(text):
        return text
    try:
        amount = Decimal(text)
    except ArithmeticError:
        amount = Decimal("NaN")
    if amount.is_nan():
        why = 'is not a number; write dollars in digits, like "0.25"'
    elif amount.is_signed():
        why = "is negative; a price is 0 or more"
    elif amount >= 10_000_000:
        why = "is too large; a price is below 10,000,000 dollars"
    elif len(text.partition(".")[2]) > 9:
        why = "has more than nine digits after the point"
    else:
        why = 'is not written plainly; write dollars in digits, like "0.25"'
    raise ValueError(f"'{text}' {why}")


def _rate(text: str) -> str:
    if not Decimal(text):
        raise ValueError("a rate of 0")
    return text


def _currency(text: str) -> str:
    if not re.fullmatch("[A-Z]{3}", text):
        raise ValueError(f"'{text}' is no currency; three capital letters, like EUR")
    return text


def _hours(text: str) -> str:
    if not _HOURS.fullmatch(text) or text[6:] > "24:00" or text[:5] == text[6:]:
        raise ValueError(f"'{text}' is not a time of day; write it in quotes, like \"16:30-00:30\"")
    return text


def written(text: str) -> str:
    """A day or a moment as rows say it, as it is. Raises ValueError."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or (moment.tzinfo is None and len(text) != len("2026-11-01")):
        raise ValueError(
            f"expected a date, YYYY-MM-DD, or a moment like 2026-11-01T12:00:00Z, not '{text}'"
        )
    return text


Price = Annotated[
    str,
    AfterValidator(_decimal),
    WithJsonSchema({"type": "string", "pattern": f"^{_DECIMAL.pattern}$", "examples": ["0.25"]}),
]
Currency = Annotated[
    str,
    AfterValidator(_currency),
    Field(description="ISO 4217, like EUR."),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$"}),
]
Hours = Annotated[
    str,
    AfterValidator(_hours),
    WithJsonSchema({"type": "string", "pattern": f"^{_HOURS.pattern}$"}),
]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Source = Annotated[str, Field(min_length=1, max_length=500)]
When = Annotated[
    str,
    AfterValidator(written),
    WithJsonSchema({"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}(T.*)?$"}),
]


class Prices(Strict):
    """Prices in US dollars, each for the unit in its name (`mtok`: a million tokens)."""

    input_usd_per_mtok: Price | None = None
    cached_input_usd_per_mtok: Price | None = Field(
        default=None, description="Left out: cached input costs what input costs."
    )
    cache_write_5m_usd_per_mtok: Price | None = Field(
        default=None, description="Writing to a cache kept for five minutes. Left out: as input."
    )
    cache_write_1h_usd_per_mtok: Price | None = Field(
        default=None, description="Left out beside a price for five minutes: not known."
    )
    output_usd_per_mtok: Price | None = Field(
        default=None, description="Required, unless input_only."
    )
    reasoning_usd_per_mtok: Price | None = Field(
        default=None, description="Left out: reasoning costs what output costs."
    )
    audio_input_usd_per_mtok: Price | None = None
    cached_audio_input_usd_per_mtok: Price | None = None
    image_input_usd_per_mtok: Price | None = Field(
        default=None, description="Left out: tokens of pictures cost what input costs."
    )
    audio_output_usd_per_mtok: Price | None = None
    image_output_usd_per_mtok: Price | None = None
    usd_per_1k_requests: Price | None = None
    usd_per_1k_searches: Price | None = None
    usd_per_image: Price | None = None
    usd_per_second: Price | None = Field(default=None, description="Of audio or video.")
    usd_per_minute: Price | None = Field(default=None, description="Of audio or video.")
    usd_per_gpu_second: Price | None = None
    usd_per_replica_minute: Price | None = None

    def stated(self) -> dict[str, str]:
        """The prices that are there, by their keys."""
        return {key: text for key in METERS if (text := getattr(self, key)) is not None}


METERS: Final[Mapping[str, Meter]] = {
    "input_usd_per_mtok": Meter.INPUT,
    "cached_input_usd_per_mtok": Meter.CACHE_READ,
    "cache_write_5m_usd_per_mtok": Meter.CACHE_WRITE_5M,
    "cache_write_1h_usd_per_mtok": Meter.CACHE_WRITE_1H,
    "output_usd_per_mtok": Meter.OUTPUT,
    "reasoning_usd_per_mtok": Meter.REASONING,
    "audio_input_usd_per_mtok": Meter.INPUT_AUDIO,
    "cached_audio_input_usd_per_mtok": Meter.CACHE_READ_AUDIO,
    "image_input_usd_per_mtok": Meter.INPUT_IMAGE,
    "audio_output_usd_per_mtok": Meter.OUTPUT_AUDIO,
    "image_output_usd_per_mtok": Meter.OUTPUT_IMAGE,
    "usd_per_1k_requests": Meter.REQUEST,
    "usd_per_1k_searches": Meter.SEARCH_CALL,
    "usd_per_image": Meter.IMAGE,
    "usd_per_second": Meter.SECOND,
    "usd_per_minute": Meter.MINUTE,
    "usd_per_gpu_second": Meter.GPU_SECOND,
    "usd_per_replica_minute": Meter.REPLICA_MINUTE,
}
assert len(METERS) == len(UNIT), "every meter has its key"


class LongPrompts(Prices):
    """Prices for prompts of more tokens than so many."""

    above_prompt_tokens: Annotated[int, Field(ge=1, le=100_000_000)]


class Scale(Prices):
    """Prices, and what they become for long prompts."""

    long_prompts: list[LongPrompts] = Field(default_factory=list, max_length=20)
    long_prompts_mode: Literal["cliff", "marginal"] = Field(
        default="cliff",
        description="cliff: a longer prompt changes the price of the whole request, as vendors do."
        " marginal: only that of the prompt's tokens beyond the bound.",
    )


class Variant(Scale):
    """Prices that hold where all that is said here is so; the one that says most wins."""

    service_tier: Name | None = Field(
        default=None, description="As the vendor names it in its answers: batch, flex, priority."
    )
    region: Name | None = Field(default=None, description="The backend's data.region.")
    hours_utc: list[Hours] | None = Field(
        default=None, min_length=1, description='Times of the day, like ["16:30-00:30"].'
    )


class PriceRow(Scale):
    """The price of one model at one backend from one moment on, in US dollars."""

    backend: Name
    model: Name
    from_: When = Field(
        alias="from",
        description="The first day (UTC), or moment, it holds, or is known to have held.",
    )
    until: When | None = Field(
        default=None, description="Where it ends. Left out: at the next row's `from`, or never."
    )
    when: list[Variant] = Field(default_factory=list, max_length=50)
    input_only: bool = Field(
        default=False, description="Nothing is generated, so nothing is charged: embeddings."
    )
    free: bool = Field(default=False, description="A price of 0 in this row is meant.")
    basis: Literal["list", "declared"] = Field(
        default="list", description="A vendor's price list, or our own statement."
    )
    source: Source
    read_on: dt.date
    note: Annotated[str, Field(max_length=500)] = ""

    def parts(self) -> Iterator[tuple[Path, Prices]]:
        """All that states prices: the row itself, and what lies in it, each with its path."""
        yield (), self
        for index, tier in enumerate(self.long_prompts):
            yield ("long_prompts", index), tier
        for number, variant in enumerate(self.when):
            yield ("when", number), variant
            for index, tier in enumerate(variant.long_prompts):
                yield ("when", number, "long_prompts", index), tier


class GpuHour(Strict):
    """What an hour of one GPU costs at a provider: for capacity and break-even, no request."""

    provider: Name
    gpu: Annotated[str, Field(min_length=1, max_length=40, description="As in H100-SXM-80GB.")]
    commitment: Literal["on_demand", "spot", "reserved_1y", "reserved_3y", "dedicated", "owned"] = (
        "on_demand"
    )
    region: Name | None = None
    from_: dt.date = Field(alias="from", description="The first day (UTC) it is known to hold.")
    usd_per_gpu_hour: Price
    source: Source
    read_on: dt.date
    note: Annotated[str, Field(max_length=500)] = ""


class Exchange(Strict):
    """What a US dollar is in another currency, from a day on: to show amounts, never to book."""

    currency: Currency
    per_usd: Annotated[Price, AfterValidator(_rate)]
    from_: dt.date = Field(alias="from")
    source: Source
    read_on: dt.date


class PricesFile(Strict):
    """Rows of the price book. Append; do not edit."""

    version: Literal[1]
    currency: Literal["USD"] = Field(
        default="USD", description="Of all prices: what is billed otherwise is converted first."
    )
    prices: list[PriceRow] = Field(default_factory=list, max_length=100_000)
    gpu_hours: list[GpuHour] = Field(default_factory=list, max_length=100_000)
    currencies: list[Exchange] = Field(default_factory=list, max_length=10_000)


def check(row: PriceRow, path: Path, findings: Findings) -> None:
    """What is wrong with one row by itself."""
    # Also what was written and is no price: that is told already.
    metered = [
        meter
        for key, meter in METERS.items()
        if key in row.stated() or (*path, key) in findings.key_at
    ]
    if Meter.INPUT in metered:
        if Meter.OUTPUT not in metered and not row.input_only:
            findings.problem(
                path, "no output_usd_per_mtok", "set input_only: true where nothing is generated"
            )
        if Meter.OUTPUT in metered and row.input_only:
            findings.problem((*path, "output_usd_per_mtok"), "contradicts input_only", key=True)
    elif not metered or TOKEN_METERS & set(metered):
        findings.problem(path, "no input_usd_per_mtok", "every price of tokens starts with it")
    if row.until is not None and instant(row.until) <= instant(row.from_):
        findings.problem((*path, "until"), f"{row.until} is not after from: {row.from_}")
    zero = []
    for inside, part in row.parts():
        _check_part(row, part, (*path, *inside), findings)
        zero += [(*path, *inside, key) for key, text in part.stated().items() if not Decimal(text)]
    if row.free and not zero:
        findings.problem((*path, "free"), "but no price is 0", key=True)
    for place in zero if not row.free else ():
        findings.problem(place, "a price of 0", "set free: true if it is meant")
    _check_variants(row, path, findings)


def _check_part(row: PriceRow, part: Prices, path: Path, findings: Findings) -> None:
    if part is not row:
        for key in row.stated():
            if key not in part.stated() and (*path, key) not in findings.key_at:
                findings.problem(path, f"no {key}", "say it here too: nothing is inherited")
    if isinstance(part, Variant) and not (part.service_tier or part.region or part.hours_utc):
        findings.problem(path, "holds always", "say service_tier, region or hours_utc")
    if isinstance(part, Variant):
        _check_hours(part.hours_utc or [], path, findings)
    if isinstance(part, Scale):
        bounds = [tier.above_prompt_tokens for tier in part.long_prompts]
        for index, (before, after) in enumerate(pairwise(bounds), 1):
            if after <= before:
                place = (*path, "long_prompts", index, "above_prompt_tokens")
                findings.problem(place, f"{after} is not above {before}", "let them ascend")
        if part.long_prompts_mode == "marginal" and not bounds:
            findings.problem((*path, "long_prompts_mode"), "but no long_prompts", key=True)


def _check_hours(hours: list[str], path: Path, findings: Findings) -> None:
    for later, text in enumerate(hours):
        for other in hours[:later]:
            if span(text) & span(other):
                place = (*path, "hours_utc", later)
                findings.problem(place, f"'{text}' overlaps with '{other}'")


def _check_variants(row: PriceRow, path: Path, findings: Findings) -> None:
    """Two that could hold at once and say equally much: which one would not be known.

    Unless a third settles it, which says all that they say together.
    """
    for later, one in enumerate(row.when):
        for earlier, other in enumerate(row.when[:later]):
            regions = {one.region, other.region} - {None}
            if one.service_tier != other.service_tier or rank(one) != rank(other):
                continue
            if len(regions) > 1:
                continue
            both = minutes(one) & minutes(other)
            for third in row.when:
                settles = rank(third) > rank(one) and {third.region} == regions
                if settles and third.service_tier == one.service_tier:
                    both -= minutes(third)
            if both:
                findings.problem(
                    (*path, "when", later),
                    f"overlaps with when[{earlier}]",
                    "two prices for the same moment",
                )


def rank(variant: Variant) -> int:
    """How much it says beside the service tier: of those that hold, the highest wins."""
    return (variant.region is not None) + (variant.hours_utc is not None)


def minutes(variant: Variant) -> frozenset[int]:
    """The minutes of the day (UTC) in which it holds; hours are half-open and may pass midnight."""
    if variant.hours_utc is None:
        return frozenset(range(DAY_MINUTES))
    return frozenset().union(*map(span, variant.hours_utc))


def span(hours: str) -> frozenset[int]:
    """The minutes of the day of `16:30-00:30`."""
    hour, minute, end_hour, end_minute = map(int, re.split("[:-]", hours))
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if end <= start:
        end += DAY_MINUTES
    return frozenset(at % DAY_MINUTES for at in range(start, end))


def instant(when: str | dt.date) -> int:
    """Microseconds since the epoch (UTC) of a day's first moment, or of a moment as written."""
    if isinstance(when, str):
        when = dt.datetime.fromisoformat(when)
    if not isinstance(when, dt.datetime):
        when = dt.datetime.combine(when, dt.time.min)
    if when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)
    return (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def terms(row: PriceRow) -> dict[str, Any]:
    """The row as it would be written, what was left out left out: for the record and for the id."""
    return row.model_dump(mode="json", by_alias=True, exclude_defaults=True)
