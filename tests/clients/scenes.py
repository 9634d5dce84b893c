"""The upstreams of the tests that walk through an SDK's features: alias -> how they behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.clients.variants import TEXT, TOKENS
from tests.vendor import VLLM, Script

CALLS = (("weigh", '{"cart": "A 7", "unit": "kg"}'), ("price", '{"kg": 12}'))
WEIGH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weigh",
        "description": "Weigh a cart.",
        "parameters": {
            "type": "object",
            "properties": {"cart": {"type": "string"}, "unit": {"type": "string"}},
            "required": ["cart"],
        },
    },
}
EVERYTHING = ("tools", "json_mode", "images", "logprobs", "multiple_choices")


@dataclass(frozen=True)
class Scene:
    """Scripts of the alias's backends, in their order, and further fields of those backends."""

    scripts: tuple[Script, ...]
    capabilities: tuple[str, ...] = EVERYTHING
    backend: Mapping[str, Any] = field(default_factory=dict)


_DOWN = Script(status=500)
# Behind the gateway's patience for a silent head (3 s here): the status has gone out, and comments.
_LATE_S = 4.5

SCENES: dict[str, Scene] = {
    "chat": Scene((Script(text=TEXT),)),
    "team/words": Scene((Script(tokens=TOKENS),)),
    "tools": Scene((Script(tool_calls=CALLS),)),
    "vllm-tools": Scene((replace(VLLM, tool_calls=CALLS),)),
    "vllm": Scene((replace(VLLM, text=TEXT),), backend={"continuous_usage": True}),
    "thinking": Scene((replace(VLLM, text=TEXT, reasoning_tokens=4),)),
    "plain": Scene((Script(text=TEXT),), capabilities=()),
    "slow": Scene((Script(tokens=200, itl_s=0.05),)),
    "flood": Scene((Script(text="x" * 20_000, overrun_factor=1000),)),
    "quiet": Scene((Script(text=TEXT, itl_s=1.3, event_ids=True),)),
    "late": Scene((Script(text=TEXT, ttft_s=_LATE_S),)),
    "late-failure": Scene((Script(status=500, head_delay_s=_LATE_S),)),
    "one-choice-cut": Scene(
        (Script(text=TEXT, finish="on_last_chunk", fault="close", fault_after=2 * TOKENS - 1),)
    ),
    "switched-off": Scene((Script(),), backend={"enabled": False}),
    # Below, one request opens a breaker or a cool-down: one client, one alias.
    **{f"busy-{who}": Scene((Script(status=429, retry_after_s=7),)) for who in "abcd"},
    **{f"pair-{who}": Scene((_DOWN, _DOWN)) for who in "abcd"},
    **{f"once-{who}": Scene((Script(status=429, retry_after_s=1),)) for who in "abcd"},
}

# They take so long that all are begun before the first test.
SLOW = ("quiet", "late", "late-failure")


def models(alias: str) -> list[str]:
    """The vendor's model name of each backend of the scene."""
    return [f"{alias.replace('/', '.')}.m{at}" for at in range(len(SCENES[alias].scripts))]
