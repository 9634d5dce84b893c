"""A month of traffic as dispatch would have written it: teams, backends, and all that goes wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from gateway.attempt import add_up
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from gateway.ledger.store import Store

NOVEMBER_US = 1_793_491_200_000_000  # 2026-11-01T00:00Z
DAY_US = 86_400_000_000
MONTH_US = 30 * DAY_US

# (backend, model, nano-USD per token of input, cached input, output); None: no price is known
TARGETS = (
    ("openai", "gpt-4.1-mini", (400, 100, 1_600)),
    ("openai", "gpt-4.1", (2_000, 500, 8_000)),
    ("fireworks", "llama-70b", (900, 900, 900)),
    ("own-cluster", "llama-70b", (310, 40, 620)),
    ("newcomer", "model-x", None),
)
TEAMS = ("search", "support", "legal", "ads", None)
KEYS = {"search": "a" * 12, "support": "b" * 12, "legal": "c" * 12, "ads": "d" * 12, None: "e" * 12}


def month(
    count: int, *, seed: int = 1, since_us: int = NOVEMBER_US, long_us: int = MONTH_US
) -> Iterator[RequestRecord]:
    """`count` requests spread over the time, the newest last."""
    rng = random.Random(seed)
    step = long_us // count
    for n in range(count):
        yield _request(rng, f"req_{seed}_{n:08d}", since_us + n * step + rng.randrange(step))


def _request(rng: random.Random, name: str, started_us: int) -> RequestRecord:
    team = rng.choices(TEAMS, (50, 25, 12, 8, 5))[0]
    record = RequestRecord(
        id=name,
        started_at_us=started_us,
        endpoint="chat/completions",
        alias=rng.choice(("fast", "smart")),
        key_id=KEYS[team],
        tags={"app": rng.choice(("web", "batch"))} | ({"team": team} if team else {}),
        stream=True,
        policy="balanced",
        policy_digest="d" * 64,
        route="default",
        decision={"route": "default"},
        http_status=200,
        worker="0",
    )
    if rng.random() < 0.01:  # refused before anything was decided
        record.key_id, record.tags, record.decision, record.route = None, {}, None, None
        record.outcome, record.http_status = Outcome.REFUSED.value, 401
        return record
    if rng.random() < 0.01:
        record.shadow_of, record.key_id, record.tags = "req_x", None, {}
    answered = None
    for number in range(1, 3):
        made = _attempt(rng, number, started_us)
        record.attempts.append(made)
        if made.outcome == Outcome.HEDGE_LOST or (made.outcome == Outcome.FAILED and number == 1):
            continue
        answered = made
        break
    last = answered or record.attempts[-1]
    if last.outcome == Outcome.HEDGE_LOST:
        last.outcome = Outcome.OK.value
    record.attempt_count = len(record.attempts)
    record.backend, record.model, record.outcome = last.backend, last.model, last.outcome
    record.ttft_us, record.duration_us = last.ttft_us, last.duration_us
    add_up(record, answered)
    if record.output_tokens and last.duration_us and last.outcome == Outcome.OK:
        record.tps = round(record.output_tokens / (last.duration_us / 1e6), 3)
    return record


def _attempt(rng: random.Random, number: int, started_us: int) -> AttemptRecord:
    backend, model, price = rng.choices(TARGETS, (40, 8, 20, 31, 1))[0]
    outcome = rng.choices(
        [Outcome.OK, Outcome.FAILED, Outcome.HEDGE_LOST, Outcome.CANCELLED,
         Outcome.FAILED_MIDSTREAM, Outcome.INTERRUPTED],
        (900, 30, 25, 25, 15, 5),
    )[0]  # fmt: skip
    made = AttemptRecord(
        number=number,
        backend=backend,
        model=model,
        started_at_us=started_us + number,
        why="fallback" if number > 1 else "cheapest",
        outcome=outcome.value,
        http_status=200,
    )
    if outcome is Outcome.INTERRUPTED:
        return made
    made.uncached_tokens, made.cached_tokens = rng.randrange(20, 4000), rng.randrange(0, 3000)
    made.output_tokens = rng.randrange(1, 900)
    made.usage_source = "estimated" if outcome is not Outcome.OK else "reported"
    made.ttft_us = rng.randrange(80_000, 1_500_000)
    made.duration_us = made.ttft_us + made.output_tokens * rng.randrange(9_000, 30_000)
    if price is not None:
        made.rates_id = f"{backend}/{model}@2026-10-01"
        counts = (made.uncached_tokens, made.cached_tokens, made.output_tokens)
        made.cost_nano_usd = sum(a * b for a, b in zip(price, counts, strict=True))
    return made


async def written(store: Store, folder: Path, records: Iterator[RequestRecord]) -> None:
    """Through the journal and the flusher, as a worker does."""
    journal = Journal(folder, "0")
    flusher = Flusher(journal, store)
    for place, record in enumerate(records, 1):
        journal.close(record)
        if place % 20_000 == 0:
            await flusher._flush()
    assert await flusher.drain(120)
    journal.stop()
