"""The shapes in which providers hand out usage and cost, as data. Pure.

A shape names columns; names are compared in snake case, so `lineItem/UsageType` is
`line_item_usage_type`. It is wide (a column per meter) or long (a column that names the meter).
Sources: the header lines that the consoles write, and the fields of the providers' usage and cost
APIs as their references name them (read in November 2026).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.domain.money import Meter
from gateway.reports.focus.columns import SKU_METERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`about` says what it is. `needs` are the columns it is known by, all of them.

    `time` are alternatives, the first that is there counts. `wide` maps columns to meters; a column
    in `within` has its count in another's too, which is the rest. `words` says what a meter's words
    mean beyond the common ones. `parts` splits one column into model and meter; its quantities are
    in thousands where `thousands`. `only`: a column and what it must say; other lines are not of
    models and are passed over. `unique` numbers lines: where it is there, two that are equal are
    one that is there twice.
    """

    about: str
    needs: tuple[str, ...]
    time: tuple[str, ...]
    model: str = ""
    wide: Mapping[str, Meter] = field(default_factory=dict)
    within: Mapping[str, str] = field(default_factory=dict)
    meter: str = ""
    quantity: str = ""
    cost: str = ""
    currency: str = ""
    parts: str = ""
    thousands: bool = False
    only: tuple[str, str] | None = None
    unique: str = ""

    @property
    def says(self) -> frozenset[Meter]:
        """The meters a wide shape can tell apart; empty where lines name them."""
        return frozenset(self.wide.values())


SHAPES: Final[Mapping[str, Shape]] = {
    "openai-usage": Shape(
        about="OpenAI usage export (completions), by model",
        needs=("start_time", "model", "input_tokens", "output_tokens", "num_model_requests"),
        time=("start_time",),
        model="model",
        wide={
            "input_tokens": Meter.INPUT,
            "input_cached_tokens": Meter.CACHE_READ,
            "output_tokens": Meter.OUTPUT,
            "input_audio_tokens": Meter.INPUT_AUDIO,
            "output_audio_tokens": Meter.OUTPUT_AUDIO,
        },
        within={"input_cached_tokens": "input_tokens"},
    ),
    "openai-costs": Shape(
        about="OpenAI costs export, by line item",
        needs=("start_time", "amount_value", "line_item"),
        time=("start_time",),
        parts="line_item",
        cost="amount_value",
        currency="amount_currency",
    ),
    "anthropic-usage": Shape(
        about="Claude Console usage export",
        needs=("usage_date_utc", "model_version", "usage_input_tokens_no_cache"),
        time=("usage_date_utc",),
        model="model_version",
        wide={
            "usage_input_tokens_no_cache": Meter.INPUT,
            "usage_input_tokens_cache_read": Meter.CACHE_READ,
            "usage_input_tokens_cache_write_5m": Meter.CACHE_WRITE_5M,
            "usage_input_tokens_cache_write_1h": Meter.CACHE_WRITE_1H,
            "usage_output_tokens": Meter.OUTPUT,
            "web_search_count": Meter.SEARCH_CALL,
        },
    ),
    "anthropic-cost": Shape(
        about="Claude Console cost export",
        needs=("usage_date_utc", "model", "token_type", "cost_usd"),
        time=("usage_date_utc",),
        model="model",
        meter="token_type",
        cost="cost_usd",
    ),
    "anthropic-api": Shape(
        about="Anthropic usage report of the Admin API, flattened",
        needs=("starting_at", "model", "uncached_input_tokens", "output_tokens"),
        time=("starting_at",),
        model="model",
        wide={
            "uncached_input_tokens": Meter.INPUT,
            "cache_read_input_tokens": Meter.CACHE_READ,
            "cache_creation_ephemeral_5m_input_tokens": Meter.CACHE_WRITE_5M,
            "cache_creation_ephemeral_1h_input_tokens": Meter.CACHE_WRITE_1H,
            "output_tokens": Meter.OUTPUT,
            "server_tool_use_web_search_requests": Meter.SEARCH_CALL,
        },
    ),
    "aws-cur": Shape(
        about="AWS Cost and Usage Report, lines of Amazon Bedrock",
        needs=("line_item_usage_start_date", "line_item_usage_type", "line_item_unblended_cost"),
        time=("line_item_usage_start_date",),
        parts="line_item_usage_type",
        quantity="line_item_usage_amount",
        cost="line_item_unblended_cost",
        currency="line_item_currency_code",
        thousands=True,
        only=("line_item_product_code", "AmazonBedrock"),
        unique="identity_line_item_id",
    ),
    "focus": Shape(
        about="FOCUS cost and usage",
        needs=("charge_period_start", "resource_name", "sku_meter", "billed_cost"),
        time=("charge_period_start",),
        model="resource_name",
        meter="sku_meter",
        quantity="consumed_quantity",
        cost="billed_cost",
        currency="billing_currency",
    ),
}

# What one may map columns to, beside the meters themselves; `prompt` has what a cache gave in it.
OWN_COLUMNS: Final = ("time", "model", "meter", "quantity", "cost", "currency")
METER_COLUMNS: Final[Mapping[str, Meter]] = {
    **{meter.value: meter for meter in Meter},
    "prompt": Meter.INPUT,
    "cached": Meter.CACHE_READ,
}

# How lines name meters, in snake case.
WORDS: Final[Mapping[str, Meter]] = {
    **{meter.value: meter for meter in Meter},
    **{re.sub(r"\W+", "_", shown.lower()).strip("_"): meter for meter, shown in SKU_METERS.items()},
    **SHAPES["anthropic-api"].wide,  # also what the cost report calls its token types
    "cache_creation_input_tokens": Meter.CACHE_WRITE_5M,
    "prompt": Meter.INPUT,
    "input_no_cache": Meter.INPUT,
    "uncached_input": Meter.INPUT,
    "input_token_count": Meter.INPUT,
    "input_cache_miss_tokens": Meter.INPUT,
    "cached": Meter.CACHE_READ,
    "cached_input": Meter.CACHE_READ,
    "input_cache_read": Meter.CACHE_READ,
    "cache_read_tokens": Meter.CACHE_READ,
    "cache_read_input_token_count": Meter.CACHE_READ,
    "input_cache_hit_tokens": Meter.CACHE_READ,
    "cache_write": Meter.CACHE_WRITE_5M,
    "cache_write_tokens": Meter.CACHE_WRITE_5M,
    "input_cache_write_5m": Meter.CACHE_WRITE_5M,
    "input_cache_write_1h": Meter.CACHE_WRITE_1H,
    "cache_write_input_token_count": Meter.CACHE_WRITE_5M,
    "cache_write_input_token_count_1_hour": Meter.CACHE_WRITE_1H,
    "completion": Meter.OUTPUT,
    "output_token_count": Meter.OUTPUT,
    "web_search": Meter.SEARCH_CALL,
}

# Where an export cannot tell a meter from another, ours are compared together.
FOLDS: Final[Mapping[Meter, Meter]] = {
    Meter.REASONING: Meter.OUTPUT,
    Meter.CACHE_READ: Meter.INPUT,
    Meter.CACHE_WRITE_5M: Meter.INPUT,
    Meter.CACHE_WRITE_1H: Meter.INPUT,
    Meter.INPUT_IMAGE: Meter.INPUT,
}

_REGION = re.compile(r"^[A-Z]{2,4}\d?-(?=.)")
_TYPE = re.compile(
    r"^(?P<model>.+?)(?:-mantle)?-(?P<meter>(?:cache-(?:read|write)-)?(?:input|output)?-?"
    r"token(?:s|-count(?:-1-hour)?))(?P<rest>(?:-[a-z-]+)?)$"
)


def snake(name: str) -> str:
    """A column's name as it is compared."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^A-Za-z0-9]+", "_", apart).strip("_").lower()


def meter_of(words: str) -> Meter | None:
    """The meter that a line's words mean, None where they are not ours."""
    return WORDS.get(snake(words))


def line_item(text: str) -> tuple[str, str]:
    """Model and meter of what one column says together.

    OpenAI's `gpt-4o-2024-08-06, cached input`; AWS' `USE1-Claude4.6Opus-input-tokens-batch`.
    """
    model, comma, words = text.rpartition(", ")
    if comma:
        return model, words
    found = _TYPE.match(_REGION.sub("", text))
    return (found["model"], found["meter"]) if found else (text, "")
