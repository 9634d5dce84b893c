"""A row of the price book in words, part by part, so that what changed can be told. Pure.

Reads a row as it is written (`ledger.price_file.terms`): what is left out is at its default. Where
its figures were read, and when, is no part of what it means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

# Of a million tokens each.
_TOKENS: Final[Mapping[str, str]] = {
    "input_usd_per_mtok": "in",
    "cached_input_usd_per_mtok": "cached",
    "cache_write_5m_usd_per_mtok": "cached for 5 minutes",
    "cache_write_1h_usd_per_mtok": "cached for an hour",
    "output_usd_per_mtok": "out",
    "reasoning_usd_per_mtok": "reasoning",
    "audio_input_usd_per_mtok": "audio in",
    "cached_audio_input_usd_per_mtok": "audio cached",
    "image_input_usd_per_mtok": "images in",
    "audio_output_usd_per_mtok": "audio out",
    "image_output_usd_per_mtok": "images out",
}
_OTHERS: Final[Mapping[str, str]] = {
    "usd_per_1k_requests": "a thousand requests",
    "usd_per_1k_searches": "a thousand searches",
    "usd_per_image": "an image",
    "usd_per_second": "a second",
    "usd_per_minute": "a minute",
    "usd_per_gpu_second": "a GPU-second",
    "usd_per_replica_minute": "a replica-minute",
}
STATED: Final = (*_TOKENS, *_OTHERS)


def parts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each part of a row as (when it holds, what it costs then). "" is what holds else."""
    yield "", f"{prices(row)} ({'free, ' if row.get('free') else ''}{row.get('basis', 'list')})"
    yield from _longer("", row)
    for variant in row.get("when") or ():
        when = _when(variant)
        yield when, prices(variant)
        yield from _longer(f"{when}, ", variant)
    if row.get("until") is not None:
        yield "until", str(row["until"])


def prices(stated: Mapping[str, Any]) -> str:
    """`$0.1 in, $0.1 cached, $0.5 out per million tokens; $10 a thousand searches`."""
    known = dict(stated)
    if "input_usd_per_mtok" in known:
        known.setdefault("cached_input_usd_per_mtok", known["input_usd_per_mtok"])
    tokens = ", ".join(
        f"{dollars(known[key])} {what}" for key, what in _TOKENS.items() if key in known
    )
    said = [f"{tokens} per million tokens"] if tokens else []
    said += [f"{dollars(known[key])} {what}" for key, what in _OTHERS.items() if key in known]
    return "; ".join(said)


def dollars(text: str) -> str:
    """A price as it is written, without the zeros at its end."""
    return "$" + (text.rstrip("0").rstrip(".") if "." in text else text)


def _longer(when: str, part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    beyond = part.get("long_prompts_mode") == "marginal"
    for tier in part.get("long_prompts") or ():
        above = f"{when}prompts over {tier['above_prompt_tokens']:,} tokens"
        yield above, prices(tier) + (", for the tokens beyond" if beyond else "")


def _when(variant: Mapping[str, Any]) -> str:
    said = []
    if variant.get("service_tier") is not None:
        said.append(f"service tier {variant['service_tier']}")
    if variant.get("region") is not None:
        said.append(f"region {variant['region']}")
    if variant.get("hours_utc") is not None:
        said.append(f"{' and '.join(variant['hours_utc'])} UTC")
    return ", ".join(said)
