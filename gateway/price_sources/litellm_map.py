"""litellm's map of model prices as offers, read from the package's file: litellm is not imported.

Its figures are dollars per token in floating point; each is taken by its shortest decimal text, and
only where that is exact. It says nothing of when a price began.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from gateway.domain.catalog import Target
from gateway.price_sources.offers import Condition, Offer, Said, plain, row_of, text

NAME: Final = "litellm"
PACKAGE: Final = "litellm"
EXTRA: Final = "litellm"
FILE: Final = "model_prices_and_context_window_backup.json"
_MILLION = 1_000_000
_KEYS: Final[Mapping[str, tuple[str, int]]] = {
    "input_cost_per_token": ("input_usd_per_mtok", _MILLION),
    "cache_read_input_token_cost": ("cached_input_usd_per_mtok", _MILLION),
    "cache_creation_input_token_cost": ("cache_write_5m_usd_per_mtok", _MILLION),
    "cache_creation_input_token_cost_above_1hr": ("cache_write_1h_usd_per_mtok", _MILLION),
    "output_cost_per_token": ("output_usd_per_mtok", _MILLION),
    "output_cost_per_reasoning_token": ("reasoning_usd_per_mtok", _MILLION),
    "input_cost_per_audio_token": ("audio_input_usd_per_mtok", _MILLION),
    "cache_read_input_audio_token_cost": ("cached_audio_input_usd_per_mtok", _MILLION),
    "input_cost_per_image_token": ("image_input_usd_per_mtok", _MILLION),
    "output_cost_per_audio_token": ("audio_output_usd_per_mtok", _MILLION),
    "output_cost_per_image_token": ("image_output_usd_per_mtok", _MILLION),
    "output_cost_per_image": ("usd_per_image", 1),
    "input_cost_per_second": ("usd_per_second", 1),
    "output_cost_per_second": ("usd_per_second", 1),
    "input_cost_per_request": ("usd_per_1k_requests", 1_000),
}
_TIERS: Final = {"batches": "batch", "flex": "flex", "priority": "priority"}
_KEY: Final = re.compile(
    rf"(?P<key>{'|'.join(sorted(_KEYS, key=len, reverse=True))})"
    rf"(?:_above_(?P<above>\d+)k_tokens)?(?:_(?P<tier>{'|'.join(_TIERS)}))?"
)
_SEARCHES = "search_context_cost_per_query"
# Several names for one vendor.
_FAMILIES: Final[Mapping[str, frozenset[str]]] = {
    "bedrock": frozenset({"bedrock", "bedrock_converse", "bedrock_mantle"}),
    "cohere_chat": frozenset({"cohere_chat", "cohere"}),
}


class LitellmMap:
    """The map in the package as installed. Raises ImportError where it is not."""

    def __init__(self, *, zero: bool = False) -> None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"no module named {PACKAGE}")
        self.label = f"{NAME} {importlib.metadata.version(PACKAGE)}"
        file = Path(spec.submodule_search_locations[0]) / FILE
        # Text, not float: what is said in the file is what is taken.
        self.models: Mapping[str, Any] = json.loads(file.read_text("utf-8"), parse_float=str)
        self.providers = {
            str(entry.get("litellm_provider")) for entry in self.models.values() if entry
        }
        self._zero = zero

    def offer(self, target: Target, provider: str, today: dt.date) -> Offer | None:
        """What it says of the target at that provider, None where it does not know it."""
        family = _FAMILIES.get(provider, frozenset({provider}))
        # Of one vendor's models others make: vertex_ai-anthropic_models.
        for name in (f"{provider}/{target.model}", target.model):
            entry = self.models.get(name)
            if not entry:
                continue
            vendor = str(entry.get("litellm_provider"))
            if vendor in family or vendor.startswith(f"{provider}-"):
                return self.told(target, name, entry, today)
        return None

    def told(self, target: Target, name: str, entry: Mapping[str, Any], today: dt.date) -> Offer:
        """All that an entry says, as prices of the target."""
        cites = str(entry.get("source") or "")
        source = f"{self.label}, which cites {cites}"[:500] if cites else self.label
        about = {"backend": target.backend, "model": target.model, "source": source}
        figures: dict[Condition, dict[str, str]] = {}
        left_out: list[str] = []
        row, why_not = None, ""
        try:
            figures = _figures(entry, left_out)
            whole = _whole(figures, left_out)
            row = row_of(whole, {**about, "from": today, "read_on": today}, zero=self._zero)
        except ValueError as error:
            why_not = str(error)
        return Offer(
            target=target,
            source=self.label,
            called=name,
            said=(Said(since=None, figures=plain(figures), row=row, why_not=why_not),),
            deprecated=_deprecated(entry, today),
            left_out=tuple(left_out),
        )


def _figures(entry: Mapping[str, Any], left_out: list[str]) -> dict[Condition, dict[str, str]]:
    found: dict[Condition, dict[str, str]] = {Condition(): {}}
    for key, value in entry.items():
        match = _KEY.fullmatch(key)
        if match is None or value is None:
            if value is not None and "cost" in key and key != _SEARCHES and _number(value):
                left_out.append(f"{key} {value}")
            continue
        ours, unit = _KEYS[match["key"]]
        where = Condition(
            service_tier=_TIERS[match["tier"]] if match["tier"] else None,
            above=int(match["above"] or 0) * 1_000,
        )
        price = Decimal(str(value)) * unit
        if not price and where != Condition():
            continue  # a copy of the entry's own 0
        said = found.setdefault(where, {})
        if ours == "usd_per_second" and ours in said and Decimal(said[ours]) != price:
            left_out.append(f"{key} {value}")
            continue
        said[ours] = text(price)
    searches = entry.get(_SEARCHES)
    if isinstance(searches, dict) and searches:
        prices = {Decimal(str(price)) * 1_000 for price in searches.values()}
        if len(prices) == 1:
            found[Condition()]["usd_per_1k_searches"] = text(prices.pop())
        else:
            left_out.append(f"{_SEARCHES}, which differs by size")
    return found


def _number(value: Any) -> bool:
    try:
        return bool(Decimal(str(value)))
    except ArithmeticError:
        return False


def _whole(
    figures: Mapping[Condition, Mapping[str, str]], left_out: list[str]
) -> dict[Condition, Mapping[str, str]]:
    """Without the service tiers of which it does not say every price: the rest would be guessed."""
    tokens = {key for key in figures[Condition()] if key.endswith("_per_mtok")}
    tokens -= {"reasoning_usd_per_mtok", "image_input_usd_per_mtok"}
    if not Decimal(figures[Condition()].get("output_usd_per_mtok", "0")):
        tokens.discard("output_usd_per_mtok")
    partly: set[str | None] = {
        where.service_tier
        for where, part in figures.items()
        if where.service_tier and not tokens <= set(part)
    }
    # A tier that does not say what it costs for long prompts does not hold for them.
    bounds = {where.above for where in figures if where.service_tier is None}
    for tier in {where.service_tier for where in figures} - {None}:
        if {where.above for where in figures if where.service_tier == tier} != bounds:
            partly.add(tier)
    left_out += [
        f"{tier}, of which it does not say every price" for tier in sorted(map(str, partly))
    ]
    return {where: part for where, part in figures.items() if where.service_tier not in partly}


def _deprecated(entry: Mapping[str, Any], today: dt.date) -> str:
    """Within three months of the day it names, or after."""
    try:
        day = dt.date.fromisoformat(str(entry.get("deprecation_date")))
    except ValueError:
        return ""
    if day - today > dt.timedelta(days=90):
        return ""
    return f"it says the model {'ends' if day > today else 'ended'} on {day}"
