"""A month of traffic as dispatch would have written it: teams, backends, and all that goes wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gateway.attempt import add_up
from gateway.domain.catalog import Target
from gateway.domain.money import Meter, Unpriced
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.rating import charge, metered
from gateway.ledger import known_prices
from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from gateway.ledger.prices import PriceBook
from gateway.ledger.store import Store

NOVEMBER_US = 1_793_491_200_000_000  # 2026-11-01T00:00Z
DAY_US = 86_400_000_000
MONTH_US = 30 * DAY_US

# (backend, model); the last has no price
TARGETS = (
    ("openai", "gpt-4.1-mini"),
    ("openai", "gpt-4.1"),
    ("fireworks", "llama-70b"),
    ("own-cluster", "llama-70b"),
    ("newcomer", "model-x"),
)


def _row(backend: str, model: str, since: str = "2026-10-01", **more) -> dict:
    said = {"from": since, "source": "a test", "read_on": "2026-10-01"}
    return {"backend": backend, "model": model, **said, **more}


def _prices(uncached: str, cached: str, output: str, **more: str) -> dict[str, str]:
    named = {"input_usd_per_mtok": uncached, "cached_input_usd_per_mtok": cached}
    return named | {"output_usd_per_mtok": output} | more


BOOK_ROWS = (
    _row(
        "openai", "gpt-4.1-mini", **_prices("0.40", "0.10", "1.60", usd_per_1k_searches="10"),
        when=[{"service_tier": "flex",
               **_prices("0.20", "0.05", "0.80", usd_per_1k_searches="10")}],
    ),
    _row("openai", "gpt-4.1", **_prices("2", "0.50", "8", cache_write_5m_usd_per_mtok="2.5")),
    _row(
        "fireworks", "llama-70b", **_prices("0.90", "0.90", "0.90"),
        long_prompts=[{"above_prompt_tokens": 5_000, **_prices("1.1", "1.1", "1.3")}],
    ),
    _row("own-cluster", "llama-70b", **_prices("0.3101234", "0.04", "0.62")),
)  # fmt: skip
LATER_ROWS = (  # what is stated when it is too late: rating again corrects by it
    _row("newcomer", "model-x", **_prices("1", "0.25", "3")),
    _row("own-cluster", "llama-70b", "2026-11-10", **_prices("0.28", "0.03", "0.70")),
)
BOOK = PriceBook.of(BOOK_ROWS)
LATER = PriceBook.of((*BOOK_ROWS, *LATER_ROWS))
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
    backend, model = rng.choices(TARGETS, (40, 8, 20, 31, 1))[0]
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
    made.reasoning_tokens = rng.randrange(made.output_tokens) if model == "gpt-4.1" else 0
    if model.startswith("gpt-4.1") and rng.random() < 0.3:
        others = {Meter.SEARCH_CALL: 2} if "mini" in model else {Meter.CACHE_WRITE_5M: 1_500}
        made.other_meters = {meter.value: count for meter, count in others.items()}
    if model == "gpt-4.1-mini" and rng.random() < 0.2:
        made.service_tier = rng.choice(("flex", "priority"))  # the second has no price
    rated(made, BOOK)
    return made


def rated(made: AttemptRecord, book: PriceBook) -> None:
    """Its cost by the book, as dispatch would have had it."""
    rates = book.rates(Target(made.backend, made.model), made.started_at_us)
    if rates is None:
        return
    usage = metered({name: getattr(made, name) for name in made.__slots__})
    with suppress(Unpriced):
        made.rates_id, made.cost_nano_usd = charge(rates, usage)


async def stated(store: Store, book: PriceBook = BOOK) -> None:
    """The prices, as a version would have stated them."""
    async with store.turn() as connection:
        await known_prices.recorder(book, author="a test", digest="d" * 64)(connection)


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
