"""A month of a company's traffic, as records: many rows, made fast, with decisions of the real shape.

Forty keys of teams and apps, each with its own aliases and habits; six aliases over eight backends;
what goes wrong goes wrong as seldom as it does: failures and their fallbacks, hedges, clients that
leave, streams cut off, requests refused. Decisions are those that `recording` has the real engine
make, with what differs from request to request put in anew. One seed, one traffic.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import orjson

from gateway.attempt import add_up
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.runtime import RequestIds
from tests.bench.recording import lines

OCTOBER_US = 1_790_812_800_000_000  # 2026-10-01 00:00 UTC
DAY_US = 86_400_000_000
MONTH_US = 31 * DAY_US

_DECISIONS = 1_500  # made by the engine, then varied
# backend -> ms to the first token, ms a token, nano-USD per token of input, cached input, output
_BACKENDS = {
    "openai": (480, 13, 400, 100, 1_600), "azure": (510, 13, 400, 100, 1_600),
    "anthropic": (520, 15, 3_000, 300, 15_000), "bedrock": (560, 15, 3_000, 300, 15_000),
    "google": (430, 11, 300, 75, 2_500), "fireworks": (260, 9, 900, 450, 900),
    "together": (280, 9, 880, 880, 880), "vllm": (180, 14, 80, 80, 350),
}  # fmt: skip
# alias -> prompt tokens, output tokens (medians), its targets in their usual order
_ALIASES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "chat-small": (350, 120, ("openai/gpt-mini", "azure/gpt-mini", "google/flash")),
    "chat-large": (1_400, 380, ("anthropic/sonnet", "bedrock/sonnet", "openai/gpt-large")),
    "gpt-oss-120b": (900, 300, ("vllm/openai/gpt-oss-120b", "together/gpt-oss-120b")),
    "glm-flash": (600, 250, ("fireworks/glm-flash", "together/glm-flash")),
    "summaries": (3_000, 200, ("google/flash", "vllm/openai/gpt-oss-120b")),
    "embed-small": (220, 0, ("openai/embed-small", "azure/embed-small")),
}
_DIGESTS = ("a1" * 32, "b2" * 32, "c3" * 32)  # policies changed twice in the month


class _Key(NamedTuple):
    id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    stream: bool
    privacy: str
    share: float


def _keys(chance: random.Random) -> list[_Key]:
    teams = ("search", "support", "ads", "legal", "research", "mobile", "billing", "data")
    return [
        _Key(
            id=f"{number:012x}",
            tags={"team": teams[number % len(teams)], "app": f"app-{number // 2}"},
            aliases=tuple(chance.sample(list(_ALIASES), chance.choice((1, 1, 2, 3)))),
            stream=chance.random() < 0.7,
            privacy=chance.choice(("public", "internal", "internal", "restricted")),
            share=chance.paretovariate(1.2),
        )
        for number in range(40)
    ]


class _At:
    """A clock that says when the request being made arrives."""

    def __init__(self) -> None:
        self.us = 0

    def wall(self) -> float:
        return self.us / 1e6

    def monotonic(self) -> float:
        return self.us / 1e6


def month(
    count: int, *, seed: int = 1, since_us: int = OCTOBER_US, long_us: int = MONTH_US
) -> Iterator[RequestRecord]:
    """`count` requests over the time, in the order of their arrival."""
    chance = random.Random(seed)
    keys = _keys(random.Random(0))
    decided = [orjson.loads(line)["decision"] for line in islice(lines(_DECISIONS), _DECISIONS)]
    decided = [decision for decision in decided if decision["order"]]
    clock = _At()
    ids = RequestIds(clock, chance.randbytes)
    step = long_us / count
    whose = iter(())
    for number in range(count):
        key = next(whose, None)
        if key is None:
            whose = iter(chance.choices(keys, [key.share for key in keys], k=1_000))
            key = next(whose)
        clock.us = since_us + int((number + chance.random()) * step)
        yield _request(chance, ids(), clock.us, key, decided, (clock.us - since_us) / MONTH_US)


def _request(
    chance: random.Random,
    name: str,
    at_us: int,
    key: _Key,
    decided: list[dict[str, Any]],
    through: float,
) -> RequestRecord:
    luck = chance.random()
    alias = key.aliases[int(luck * 1e6) % len(key.aliases)]
    prompt_median, output_median, targets = _ALIASES[alias]
    prompt = int(prompt_median * chance.lognormvariate(0, 0.9)) + 8
    output = int(output_median * chance.lognormvariate(0, 0.7)) + 2 if output_median else 0
    made = RequestRecord(
        id=name,
        started_at_us=at_us,
        endpoint="chat/completions" if output_median else "embeddings",
        alias=alias,
        key_id=key.id,
        tags=key.tags,
        privacy_class=key.privacy,
        session=f"s{int(luck * 1e9) % 50_000}" if luck > 0.6 else None,
        stream=key.stream and bool(output_median),
        policy="balanced",
        policy_digest=_DIGESTS[int(through * 3) % 3],
        route="default",
        worker=str(int(luck * 1e7) % 4),
    )
    if luck < 0.008:
        made.outcome, made.http_status = Outcome.REFUSED.value, 429
        made.error_code, made.duration_us, made.route = "rate_limited", 300, None
        return made
    like = decided[int(luck * 1e8) % len(decided)]
    facts = {
        "alias": alias, "endpoint": made.endpoint, "prompt_tokens": prompt,
        "output_tokens": output, "at_us": at_us, "bucket": int(luck * 1e4),
        "tie_break": int(luck * 2**32), "key_id": key.id, "tags": key.tags,
    }  # fmt: skip
    made.decision = {**like, "facts": facts}
    _serve(made, chance, luck, targets, (prompt, output))
    return made


def _serve(
    made: RequestRecord,
    chance: random.Random,
    luck: float,
    targets: tuple[str, ...],
    tokens: tuple[int, int],
) -> None:
    first = targets[0] if luck < 0.85 else targets[-1]
    tried = [(first, "cheapest", Outcome.OK)]
    if luck < 0.018:
        tried = [(first, "cheapest", Outcome.FAILED), (targets[1], "fallback", Outcome.OK)]
    elif luck < 0.028:
        tried = [(first, "cheapest", Outcome.HEDGE_LOST), (targets[1], "hedge", Outcome.OK)]
    elif luck < 0.034:
        tried = [(first, "cheapest", Outcome.CANCELLED)]
    elif luck < 0.036:
        tried = [(first, "cheapest", Outcome.FAILED_MIDSTREAM)]
    speed = chance.lognormvariate(0, 0.3)
    at_us = made.started_at_us + 400
    for number, (target, why, outcome) in enumerate(tried, 1):
        attempt = _attempt(number, target, why, outcome, at_us, tokens, speed, luck)
        made.attempts.append(attempt)
        at_us += 40_000
    last = made.attempts[-1]
    made.attempt_count = len(tried)
    made.backend, made.model, made.outcome = last.backend, last.model, last.outcome
    made.http_status, made.overhead_us = 200, 350 + int(luck * 100)
    made.duration_us = last.started_at_us - made.started_at_us + (last.duration_us or 0) + 50
    add_up(made, last)
    if last.outcome == Outcome.OK and last.duration_us and last.output_tokens:
        made.ttft_us = last.ttft_us
        made.tps = round(last.output_tokens * 1e6 / last.duration_us, 3)
        if last.ttft_us and last.output_tokens > 1:
            rest = last.duration_us - last.ttft_us
            made.tpot_us = round(rest / (last.output_tokens - 1), 3)


def _attempt(
    number: int,
    target: str,
    why: str,
    outcome: Outcome,
    at_us: int,
    tokens: tuple[int, int],
    speed: float,
    luck: float,
) -> AttemptRecord:
    backend, _, model = target.partition("/")
    first_ms, token_ms, input_nano, cached_nano, output_nano = _BACKENDS[backend]
    made = AttemptRecord(
        number=number, backend=backend, model=model, started_at_us=at_us, why=why, outcome=outcome
    )
    if outcome is Outcome.FAILED:
        made.http_status, made.error_code, made.duration_us = 503, "upstream_error", 90_000
        return made
    prompt, output = tokens
    cached = prompt // 2 if luck > 0.7 else 0
    made.http_status = 200
    made.uncached_tokens, made.cached_tokens, made.output_tokens = prompt - cached, cached, output
    made.reasoning_tokens = 0
    made.usage_source = "reported" if outcome is Outcome.OK else "estimated"
    made.ttft_us = int(first_ms * speed * 1_000)
    made.duration_us = made.ttft_us + int(output * token_ms * speed * 1_000) + 2_000
    made.rates_id = f"{target}@2026-09-01"
    made.cost_nano_usd = (
        (prompt - cached) * input_nano + cached * cached_nano + output * output_nano
    )
    return made
