"""A model call as we understand it: parsed once at the edge, frozen from then on.

`document` is the caller's JSON as parsed. It is kept whole so that fields we do not know reach
wires that know them; nothing after the edge changes it (a wire copies the top level to set the
model). What routing needs to know is in the typed fields beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gateway.domain.money import PROMPT_METERS, Meter

# A rough figure for routing and for flagged estimates: English runs at about four characters.
CHARS_PER_TOKEN = 4


class Endpoint(StrEnum):
    """What is called; the value is the path below `/v1/` of the OpenAI wire."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


class Capability(StrEnum):
    """What a request may need of a model beyond text in, text out."""

    TOOLS = "tools"
    JSON_MODE = "json_mode"
    LOGPROBS = "logprobs"
    MULTIPLE_CHOICES = "multiple_choices"
    IMAGES = "images"
    AUDIO = "audio"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One call. Token figures are estimates until the backend reports usage.

    `prompt_tokens`: estimate from the characters, for routing and for a flagged bill when usage
    never comes. `output_tokens_max`: the caller's cap, None where it set none.
    `usage_wanted`: the caller asked for the usage chunk of a stream (else we ask and strip it).
    `service_tier`: the one it asks for, in small letters; None for what everybody gets.
    """

    endpoint: Endpoint
    alias: str
    document: Mapping[str, Any]
    stream: bool
    usage_wanted: bool
    prompt_tokens: int
    output_tokens_max: int | None
    needs: frozenset[Capability]
    choices: int = 1
    service_tier: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a backend metered. Every token is in exactly one of the counts.

    `uncached` were neither read from a cache nor written to one, `cached` were read from one.
    `output` is the text generated; `reasoning` is the part of it the caller may not have seen.
    `others` are the meters that few requests touch (cache writes, audio, searches), tokens or
    not; what is in them is in none of the other counts, and none of them is 0.
    `service_tier` is the tier the backend says it served, None where it says nothing.
    `reported` is False where the backend gave no usage, or not all of it, and we counted ourselves:
    such a row is flagged, never priced as 0.
    `contradiction` says what of the backend's figures does not add up, None where all does; they
    are then read so that nothing is left out which it may bill.
    """

    uncached: int
    cached: int
    output: int
    reasoning: int = 0
    reported: bool = True
    others: Mapping[Meter, int] = field(default_factory=dict)
    service_tier: str | None = None
    contradiction: str | None = None

    @property
    def empty(self) -> bool:
        """Nothing was metered."""
        return not (self.uncached or self.cached or self.output or self.others)

    @property
    def prompt(self) -> int:
        """Tokens of the whole prompt, however they are billed."""
        counted = self.uncached + self.cached
        if self.others:
            counted += sum(n for meter, n in self.others.items() if meter in PROMPT_METERS)
        return counted
