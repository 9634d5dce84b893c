"""Traffic that never was, as the gateway would have recorded it: journal lines over real policies.

Decisions come from the real engine over the shipped catalog and prices; lines go through the real
writer. Only the requests, the times and who fails are drawn, all from one seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson

from gateway.bundle import Bundle, load, read_folder
from gateway.domain.decision import BackendView, Facts, Snapshot, record
from gateway.domain.money import cost
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import Router
from gateway.policy.replay import Side

POLICIES = Path(__file__).parents[2] / "policies"
UNTIL_US = 1_795_392_000_000_000  # 2026-11-23 00:00 UTC
DAY_US = 86_400_000_000
DAYS = 7

# alias, share of the traffic, prompt tokens (median), output tokens (median)
_ALIASES = (
    ("chat-small", 0.45, 350, 120),
    ("chat-large", 0.30, 1_400, 380),
    ("gpt-oss-120b", 0.12, 900, 300),
    ("glm-flash", 0.08, 600, 250),
    ("embed-small", 0.05, 220, 0),
)
# TTFT in ms at a prompt of 1,000 tokens, ms per token: plain guesses, by kind of backend.
_TIMES = {
    "self_hosted": (180, 14),
    "managed": (260, 9),
    "closed_api": (480, 13),
}
# Our own machines, so that the comparison has a price for them.
OWN_PRICES = """\
version: 1
prices:
  - backend: vllm
    model: openai/gpt-oss-120b
    from: 2026-11-01
    input_usd_per_mtok: "0.08"
    output_usd_per_mtok: "0.35"
    basis: declared
    source: the benchmark
    read_on: 2026-11-23
"""


def bundle(policy: str = "balanced", *, own_prices: bool = True) -> Bundle:
    """A shipped policy with the shipped catalog and prices, every secret there."""
    files = dict(read_folder(POLICIES, policy))
    if own_prices:
        files["prices/own.yaml"] = OWN_PRICES
    return load(files, secret_present=lambda _: True)


def lines(count: int, *, seed: int = 1, policy: str = "balanced") -> Iterator[bytes]:
    """`count` settled requests over `DAYS` days, as journal lines in the order of arrival."""
    chance = random.Random(seed)
    files = bundle(policy)
    side = Side("", files.digest, files.policy, files.catalog, files.prices)
    starts = sorted(_arrival(chance) for _ in range(count))
    snapshot: Snapshot = {}
    for number, at_us in enumerate(starts):
        if number % 25 == 0:
            snapshot = _views(files, chance)
        yield orjson.dumps(_request(files, side.on(at_us).router, snapshot, number, at_us, chance))


def _arrival(chance: random.Random) -> int:
    """More by day than by night."""
    while True:
        at = chance.random() * DAYS
        if chance.random() < 0.55 - 0.45 * math.cos(2 * math.pi * at):
            return UNTIL_US - DAYS * DAY_US + int(at * DAY_US)


def _views(files: Bundle, chance: random.Random) -> Snapshot:
    views = {}
    for name, backend in files.catalog.backends.items():
        ttft, tpot = _TIMES[backend.kind.value]
        busy = chance.random() < 0.15
        views[name] = BackendView(
            circuit="open" if chance.random() < 0.02 else "closed",
            in_flight=int(
                chance.random() * backend.limits.concurrency_max * (1.1 if busy else 0.6)
            ),
            ttft_ms=round(ttft * chance.uniform(0.8, 1.6), 3),
            tpot_ms=round(tpot * chance.uniform(0.9, 1.2), 3),
        )
        if name in {"llamacpp", "ollama"}:
            views[name] = replace(views[name], healthy=False)
    return views


def _request(
    files: Bundle,
    router: Router,
    snapshot: Snapshot,
    number: int,
    at_us: int,
    chance: random.Random,
) -> RequestRecord:
    name, _, prompt_median, output_median = chance.choices(
        _ALIASES, [alias[1] for alias in _ALIASES]
    )[0]
    embeds = name.startswith("embed")
    prompt = max(8, int(chance.lognormvariate(math.log(prompt_median), 0.9)))
    output = 0 if embeds else max(2, int(chance.lognormvariate(math.log(output_median), 0.7)))
    stream = not embeds and chance.random() < 0.7
    privacy = chance.choices((0, 1, 2, 3), (0.5, 0.42, 0.06, 0.02))[0]
    facts = Facts(
        alias=name,
        endpoint=Endpoint.EMBEDDINGS if embeds else Endpoint.CHAT,
        privacy=privacy,
        needs=frozenset({Capability.TOOLS} if not embeds and chance.random() < 0.1 else ()),
        prompt_tokens=prompt,
        output_tokens=output,
        stream=stream,
        key_id=f"{chance.randrange(12):012d}",
        tags={"team": chance.choice(("search", "support", "ads"))},
        at_us=at_us,
        bucket=chance.randrange(10_000),
        tie_break=chance.randrange(1 << 32),
    )
    decision = router.decide(facts, snapshot)
    made = RequestRecord(
        id=f"req_{number:09d}",
        started_at_us=at_us,
        endpoint=facts.endpoint.value,
        alias=name,
        key_id=facts.key_id,
        tags=dict(facts.tags),
        privacy_class=files.catalog.privacy_classes[privacy],
        session=f"s{chance.randrange(5_000)}" if chance.random() < 0.4 else None,
        stream=stream,
        policy=files.policy.name,
        policy_digest=files.digest,
        route=decision.route,
        decision=record(decision, facts, snapshot),
        worker="0",
    )
    if not decision.order:
        made.outcome, made.http_status = Outcome.NO_ROUTE.value, 503
        return made
    _serve(files, made, [c.target for c in decision.order], (prompt, output), chance)
    return made


def _serve(files: Bundle, made: RequestRecord, order, tokens, chance: random.Random) -> None:
    """The first of the order, or after a failure the second, answers."""
    tries = 2 if len(order) > 1 and chance.random() < 0.01 else 1
    target = order[tries - 1]
    prompt, output = tokens
    cached = int(prompt * chance.random() * 0.6) if chance.random() < 0.3 else 0
    ttft, tpot = _TIMES[files.catalog.backends[target.backend].kind.value]
    first_ms = ttft * (0.5 + 0.5 * prompt / 1000) * chance.lognormvariate(0, 0.35)
    step_ms = tpot * chance.lognormvariate(0, 0.15)
    whole_ms = first_ms + step_ms * max(0, output - 1)
    made.backend, made.model = target.backend, target.model
    made.outcome, made.http_status, made.attempt_count = Outcome.OK.value, 200, tries
    made.uncached_tokens, made.cached_tokens = prompt - cached, cached
    made.output_tokens, made.reasoning_tokens, made.usage_source = output, 0, "reported"
    made.duration_us = int(whole_ms * 1000)
    if output:
        made.tps = round(output * 1000 / whole_ms, 3)
    if made.stream:
        made.ttft_us, made.tpot_us = int(first_ms * 1000), round(step_ms * 1000, 3)
    rates = next((row.base for row in reversed(files.prices.rows.get(target, ()))), None)
    if rates is not None:
        made.cost_nano_usd = cost(rates, uncached=prompt - cached, cached=cached, output=output)
        made.priced = True
    made.attempts = [
        AttemptRecord(
            number=number,
            backend=tried.backend,
            model=tried.model,
            started_at_us=made.started_at_us,
            outcome=Outcome.OK.value if number == tries else Outcome.FAILED.value,
            http_status=200 if number == tries else 503,
        )
        for number, tried in enumerate(order[:tries], 1)
    ]
