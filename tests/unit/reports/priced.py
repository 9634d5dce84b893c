"""A month whose every cost is what the price book makes of it: all kinds of prices, all that goes wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from gateway.attempt import add_up
from gateway.bundle import digest
from gateway.domain.catalog import Target
from gateway.domain.money import Meter, Unpriced
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.rating import charge, metered
from gateway.ledger.prices import load_prices
from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Origin, Versions
from tests.unit.reports.month import DAY_US, NOVEMBER_US, written

CATALOG = """\
version: 1
privacy_classes: [public, internal]
aliases:
  chat: {targets: [openai/gpt-x, claude/sonnet-x]}
backends:
  openai: {kind: closed_api, wire: openai_http, base_url: "https://api.openai.com/v1", models: {gpt-x: {}, gpt-x-mini: {}}}
  claude: {kind: closed_api, wire: litellm_sdk, vendor: anthropic, base_url: "", models: {sonnet-x: {}}, data: {region: us}}
  scale: {kind: managed, wire: openai_http, base_url: "https://inference.baseten.co/v1", models: {m: {}}}
  own: {kind: self_hosted, wire: openai_http, base_url: "http://127.0.0.1:8000/v1", models: {llama: {}}}
  gift: {kind: managed, wire: openai_http, base_url: "https://gift.example/v1", models: {m: {}}}
  newcomer: {kind: managed, wire: openai_http, base_url: "https://new.example/v1", models: {model-x: {}}}
"""
PRICES = """\
version: 1
prices:
  - {backend: openai, model: gpt-x, from: 2026-01-01, input_usd_per_mtok: "2.003", cached_input_usd_per_mtok: "0.2007",
     output_usd_per_mtok: "10.001", reasoning_usd_per_mtok: "11", usd_per_1k_searches: "10",
     long_prompts: [{above_prompt_tokens: 2500, input_usd_per_mtok: "4", cached_input_usd_per_mtok: "0.4",
       output_usd_per_mtok: "15", reasoning_usd_per_mtok: "15", usd_per_1k_searches: "10"}],
     when: [{service_tier: flex, input_usd_per_mtok: "1", cached_input_usd_per_mtok: "0.1",
       output_usd_per_mtok: "5", reasoning_usd_per_mtok: "5", usd_per_1k_searches: "10"}],
     source: made up, read_on: 2026-11-01}
  - {backend: openai, model: gpt-x-mini, from: 2026-01-01, input_usd_per_mtok: "0.1501", output_usd_per_mtok: "0.6003",
     source: made up, read_on: 2026-11-01}
  - {backend: openai, model: gpt-x-mini, from: 2026-11-15, input_usd_per_mtok: "0.1207", output_usd_per_mtok: "0.6",
     source: made up, read_on: 2026-11-01}
  - {backend: claude, model: sonnet-x, from: 2026-01-01, input_usd_per_mtok: "3", cached_input_usd_per_mtok: "0.3",
     cache_write_5m_usd_per_mtok: "3.75", cache_write_1h_usd_per_mtok: "6", output_usd_per_mtok: "15.0007",
     source: made up, read_on: 2026-11-01}
  - {backend: scale, model: m, from: 2026-01-01, input_usd_per_mtok: "0.9", output_usd_per_mtok: "0.9003",
     usd_per_1k_requests: "0.0101",
     long_prompts: [{above_prompt_tokens: 1000, input_usd_per_mtok: "0.4501", output_usd_per_mtok: "0.9",
       usd_per_1k_requests: "0.0101"}],
     long_prompts_mode: marginal, source: made up, read_on: 2026-11-01}
  - {backend: own, model: llama, from: 2026-01-01, input_usd_per_mtok: "0.311", output_usd_per_mtok: "0.6203",
     basis: declared, source: our own GPUs, read_on: 2026-11-01}
  - {backend: gift, model: m, from: 2026-01-01, input_usd_per_mtok: "0", output_usd_per_mtok: "0", free: true,
     source: made up, read_on: 2026-11-01}
"""
FILES = {
    "catalog.yaml": CATALOG,
    "prices/own.yaml": PRICES,
    "routing/plain.yaml": "version: 1\nname: plain\ndefault: {by: order}\n",
}
BOOK = load_prices([("prices/own.yaml", PRICES)])
TARGETS = (
    ("openai", "gpt-x", 30),
    ("openai", "gpt-x-mini", 20),
    ("claude", "sonnet-x", 20),
    ("scale", "m", 12),
    ("own", "llama", 12),
    ("gift", "m", 3),
    ("newcomer", "model-x", 3),
)


def month(
    count: int, *, seed: int = 1, since_us: int = NOVEMBER_US, long_us: int = 30 * DAY_US
) -> Iterator[RequestRecord]:
    """`count` requests spread over the time."""
    rng = random.Random(seed)
    step = long_us // count
    for n in range(count):
        at_us = since_us + n * step + rng.randrange(step)
        team = rng.choice(("search", "support", None))
        made = RequestRecord(
            id=f"req_{seed}_{n:06d}",
            started_at_us=at_us,
            endpoint="chat/completions",
            alias=rng.choice(("fast", "smart")),
            key_id={"search": "a" * 12, "support": "b" * 12, None: "c" * 12}[team],
            tags={"team": team, "größe": 'X"L,'} if team else {},
            policy="plain",
            policy_digest=digest(FILES),
            route="default",
            outcome=Outcome.OK.value,
            http_status=200,
            worker="0",
        )
        if rng.random() < 0.05:
            made.key_id, made.tags, made.shadow_of = None, {}, "req_x"
        for number in range(1, 3 if rng.random() < 0.1 else 2):
            made.attempts.append(_attempt(rng, number, at_us))
        last = made.attempts[-1]
        made.attempt_count = len(made.attempts)
        made.backend, made.model = last.backend, last.model
        add_up(made, last)
        yield made


def _attempt(rng: random.Random, number: int, at_us: int) -> AttemptRecord:
    backend, model, _ = rng.choices(TARGETS, [weight for *_, weight in TARGETS])[0]
    made = attempt(
        backend,
        model,
        at_us,
        number=number,
        uncached=rng.randrange(1, 3000),
        cached=rng.randrange(2000) if backend in {"openai", "claude"} else 0,
        output=rng.randrange(1, 900),
        reasoning=rng.randrange(0, 2),
        service_tier="flex" if model == "gpt-x" and rng.random() < 0.2 else None,
        others={Meter.CACHE_WRITE_5M: rng.randrange(1, 999)}
        if backend == "claude"
        else {Meter.SEARCH_CALL: 2}
        if model == "gpt-x" and rng.random() < 0.1
        else {},
    )
    made.usage_source = "estimated" if rng.random() < 0.1 else "reported"
    if rng.random() < 0.02:  # it ended before anything was used
        made = AttemptRecord(
            number=number, backend=backend, model=model, started_at_us=at_us, outcome="failed"
        )
    return made


def attempt(
    backend: str,
    model: str,
    at_us: int,
    *,
    number: int = 1,
    uncached: int = 0,
    cached: int = 0,
    output: int = 0,
    reasoning: int = 0,
    others: dict[Meter, int] | None = None,
    service_tier: str | None = None,
) -> AttemptRecord:
    """One that the book priced, where it can."""
    made = AttemptRecord(
        number=number,
        backend=backend,
        model=model,
        started_at_us=at_us + number,
        why="cheapest",
        outcome=Outcome.OK.value,
        http_status=200,
        uncached_tokens=uncached,
        cached_tokens=cached,
        output_tokens=output,
        reasoning_tokens=reasoning,
        other_meters={meter.value: n for meter, n in (others or {}).items()} or None,
        service_tier=service_tier,
        usage_source="reported",
        ttft_us=100_000,
        duration_us=900_000,
    )
    rates = BOOK.rates(Target(backend, model), at_us)
    if rates is not None:
        row = {name: getattr(made, name) for name in made.__slots__}
        try:
            made.rates_id, made.cost_nano_usd = charge(rates, metered(row))
        except Unpriced:
            pass
    return made


async def put(store: Store) -> None:
    """The policy files, in force, and what they state of prices."""
    change = Change(
        digest=digest(FILES),
        policy="plain",
        origin=Origin.APPLY,
        author="test",
        files=FILES,
        prices=BOOK,
    )
    await Versions(store).put(change, expected=0)


async def fill(store: Store, folder: Path, records: list[RequestRecord]) -> None:
    """A ledger as workers leave it."""
    await put(store)
    await written(store, folder, iter(records))
