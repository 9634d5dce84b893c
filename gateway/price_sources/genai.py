"""genai-prices' data as offers.

What holds when is asked of the package itself, at one moment of every period in which its answer
cannot change: its rules of precedence are not repeated here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from gateway.domain.catalog import Target
from gateway.price_sources.offers import (
    STANDARD,
    Condition,
    Inexact,
    Offer,
    Said,
    plain,
    row_of,
    spans,
    text,
)

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

NAME: Final = "genai-prices"
PACKAGE: Final = "genai_prices"
EXTRA: Final = "prices"
_DAY = 24 * 60
_KEYS: Final = {
    "input_mtok": "input_usd_per_mtok",
    "cache_read_mtok": "cached_input_usd_per_mtok",
    "cache_write_mtok": "cache_write_5m_usd_per_mtok",
    "cache_write_5m_mtok": "cache_write_5m_usd_per_mtok",
    "cache_write_1h_mtok": "cache_write_1h_usd_per_mtok",
    "output_mtok": "output_usd_per_mtok",
    "output_reasoning_mtok": "reasoning_usd_per_mtok",
    "input_audio_mtok": "audio_input_usd_per_mtok",
    "cache_audio_read_mtok": "cached_audio_input_usd_per_mtok",
    "input_image_mtok": "image_input_usd_per_mtok",
    "output_audio_mtok": "audio_output_usd_per_mtok",
    "output_image_mtok": "image_output_usd_per_mtok",
    "requests_kcount": "usd_per_1k_requests",
    "web_searches_kcount": "usd_per_1k_searches",
}
# What a request may say of itself there, and the service tier that a vendor's answer says of it.
_TIERS: Final = {"processing": None, "service_tier": None, "speed": "fast"}
_STANDARD_TIERS: Final = {"default", "standard"}


_Scale: TypeAlias = dict[Condition, dict[str, str]]


class _Tier(NamedTuple):
    name: str
    context: dict[str, str]


class GenaiPrices:
    """The package as installed. Raises ImportError where it is not."""

    def __init__(self, *, zero: bool = False) -> None:
        from genai_prices import __version__
        from genai_prices.data import providers

        self.label = f"{NAME} {__version__}"
        self.providers: dict[str, Provider] = {one.id: one for one in providers}
        self._zero = zero

    def offer(self, target: Target, provider: str, today: dt.date) -> Offer | None:
        """What it says of the target at that provider, None where it does not know it."""
        vendor = self.providers.get(provider)
        model = None if vendor is None else vendor.find_model(target.model)
        if vendor is None or model is None:
            return None
        return self.told(target, vendor, model, today)

    def told(self, target: Target, vendor: Provider, model: ModelInfo, today: dt.date) -> Offer:
        """All it says of a model, as prices of the target."""
        said: list[Said] = []
        left_out = dict.fromkeys(_foreign(model))
        urls = vendor.pricing_urls or []
        about = {
            "backend": target.backend,
            "model": target.model,
            "source": f"{self.label} ({urls[0]})" if urls else self.label,
            "read_on": today,
        }
        starts = sorted(_starts(model))
        for since, day in zip([None, *starts], [_before(starts, today), *starts], strict=True):
            figures: dict[Condition, dict[str, str]] = {}
            row, why_not = None, ""
            try:
                figures = plain(_figures(model, day, left_out))
                row = row_of(figures, {**about, "from": since or day}, zero=self._zero)
            except ValueError as error:
                why_not = str(error)
            if not said or said[-1].figures != figures or said[-1].why_not != why_not:
                start = None if since is None else since.isoformat()
                said.append(Said(since=start, figures=figures, row=row, why_not=why_not))
        return Offer(
            target=target,
            source=self.label,
            called=f"{vendor.id}/{model.id}",
            said=tuple(said),
            deprecated="it marks the model deprecated" if model.deprecated else "",
            left_out=tuple(left_out),
        )


def _figures(
    model: ModelInfo, day: dt.date, left_out: dict[str, None]
) -> dict[Condition, dict[str, str]]:
    """Everything that holds on that day."""
    turns = sorted(_turns(model)) or [0]
    found: dict[Condition, dict[str, str]] = {}
    by_hours: dict[str, dict[str | None, _Scale]] = {}
    spans_of: dict[str, list[int]] = {}
    usual = ""
    for index, turn in enumerate(turns):
        at = dt.datetime.combine(day, dt.time(turn // 60, turn % 60), dt.UTC)
        end = turns[index + 1] if index + 1 < len(turns) else turns[0] + _DAY
        parts: dict[str | None, _Scale] = {None: _scale(model.get_prices(at), left_out)}
        for tier in _tiers(model, at):
            parts[tier.name] = _scale(model.get_prices(at, tier.context), left_out)
        name = repr(parts)
        by_hours[name] = parts
        spans_of.setdefault(name, []).extend(range(turn, end))
        if not usual and not _special_hour(model, at):
            usual = name
    usual = usual or next(iter(by_hours))
    for name, parts in by_hours.items():
        hours = "" if name == usual else spans(frozenset(m % _DAY for m in spans_of[name]))
        for service_tier, scale in parts.items():
            same = name != usual and scale == by_hours[usual].get(service_tier)
            for where, part in scale.items() if not same else ():
                key = where._replace(service_tier=service_tier, hours=hours)
                found[key] = part
    return found


def _scale(prices: ModelPrice, left_out: dict[str, None]) -> dict[Condition, dict[str, str]]:
    """The standard prices and those for longer prompts, as files call them."""
    priced: dict[str, Any] = {}
    for key, value in vars(prices).items():
        if value is None or key.startswith("_"):
            continue
        if (ours := _KEYS.get(key)) is not None:
            priced[ours] = value
        elif key in {"audio_hours", "input_audio_hours"}:
            priced["usd_per_second"] = _per_second(key, value)
        else:
            left_out.setdefault(f"{key} {value}")
    above = sorted({tier.start for value in priced.values() for tier in _tier_list(value)})
    if above and above[0] < 1:
        raise ValueError("has a price for prompts of more than 0 tokens")
    return {
        STANDARD._replace(above=bound): {k: text(_price(v, bound)) for k, v in priced.items()}
        for bound in (0, *above)
    }


def _tier_list(value: Any) -> Any:
    return () if isinstance(value, Decimal) else value.tiers


def _price(value: Any, bound: int) -> Decimal:
    """That of prompts just longer than the bound; 0 is the shortest ones'."""
    price = value if isinstance(value, Decimal) else value.base
    for tier in _tier_list(value):
        if bound and tier.start <= bound:
            price = tier.price
    return price


def _per_second(key: str, value: Any) -> Decimal:
    per_second = Decimal(value) / 3600
    if per_second * 3600 != value or -int(per_second.as_tuple().exponent) > 9:
        raise Inexact(f"{key} {value} is not exact by the second")
    return per_second


# --- conditions -----------------------------------------------------------------------------------


def _conditional(model: ModelInfo) -> list[Any]:
    prices = model.prices if isinstance(model.prices, list) else []
    return [one.constraint for one in (*prices, *(model.price_variants or ())) if one.constraint]


def _starts(model: ModelInfo) -> set[dt.date]:
    return {c.start_date for c in _conditional(model) if hasattr(c, "start_date")}


def _before(starts: list[dt.date], today: dt.date) -> dt.date:
    """A day before anything changed."""
    return starts[0] - dt.timedelta(days=1) if starts else today


def _turns(model: ModelInfo) -> Iterator[int]:
    """Minutes of the day (UTC) at which prices change. Raises ValueError for half a minute."""
    for constraint in _conditional(model):
        if hasattr(constraint, "start_time"):
            for time in (constraint.start_time, constraint.end_time):
                at = dt.datetime.combine(dt.date(2026, 1, 2), time)
                at = at.replace(tzinfo=at.tzinfo or dt.UTC).astimezone(dt.UTC)
                if at.second or at.microsecond:
                    raise ValueError(f"changes its price at {time}, not at a whole minute")
                yield at.hour * 60 + at.minute


def _special_hour(model: ModelInfo, at: dt.datetime) -> bool:
    return any(c.active(at) for c in _conditional(model) if hasattr(c, "start_time"))


def _tiers(model: ModelInfo, at: dt.datetime) -> Iterator[_Tier]:
    """Service tiers with prices of their own at that moment."""
    seen = set(_STANDARD_TIERS)
    for variant in model.price_variants or ():
        tier = _tier(variant.when)
        active = variant.constraint is None or variant.constraint.active(at)
        if tier is not None and active and vars(variant.prices) and tier not in seen:
            seen.add(tier)
            yield _Tier(tier, dict(variant.when))


def _tier(when: Mapping[str, str]) -> str | None:
    (key, value), *more = when.items()
    if more or key not in _TIERS or (_TIERS[key] or value) != value:
        return None
    return value


def _foreign(model: ModelInfo) -> Iterator[str]:
    for variant in model.price_variants or ():
        if _tier(variant.when) is None:
            said = ", ".join(f"{key}={value}" for key, value in variant.when.items())
            yield f"prices where {said}"
