"""A ledger as the gateway would have left it: every way a request can end, through the real writer.

Figures are odd, so that a sum that is right is right by no accident. An id begins with the name of
what happened, then a number: `hedged-00007`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from gateway.attempt import add_up
from gateway.bundle import digest
from gateway.domain.catalog import Target
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.rating import charge, metered
from gateway.ledger import ratings
from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from gateway.ledger.prices import PriceBook, load_prices
from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Origin, Versions

START_US = 1_794_268_800_000_000  # 2026-11-10 00:00 UTC
SPACING_US = 7_000_001

CATALOG = """\
version: 1
privacy_classes: [public, internal, restricted]
aliases:
  chat: {targets: [a/m, b/m, c/m]}
backends:
  a: {kind: self_hosted, wire: openai_http, base_url: "http://127.0.0.1:1/v1", cleared_for: restricted, models: {m: {}}}
  b: {kind: closed_api, wire: openai_http, base_url: "http://127.0.0.1:2/v1", cleared_for: internal, models: {m: {}}}
  c: {kind: managed, wire: openai_http, base_url: "http://127.0.0.1:3/v1", cleared_for: internal, models: {m: {}}}
"""
PRICES = """\
version: 1
prices:
  - {backend: a, model: m, from: 2026-01-01, input_usd_per_mtok: "0.137", output_usd_per_mtok: "1.913", source: made up, read_on: 2026-11-01}
  - {backend: a, model: m, from: 2026-11-10, input_usd_per_mtok: "0.139", cached_input_usd_per_mtok: "0.017", output_usd_per_mtok: "1.931", source: made up, read_on: 2026-11-01}
  - {backend: b, model: m, from: 2026-11-01, input_usd_per_mtok: "2.503", output_usd_per_mtok: "10.007", cache_write_5m_usd_per_mtok: "3.129", reasoning_usd_per_mtok: "12.011", usd_per_1k_searches: "10.503", when: [{service_tier: flex, input_usd_per_mtok: "1.253", output_usd_per_mtok: "5.003", cache_write_5m_usd_per_mtok: "1.567", reasoning_usd_per_mtok: "6.007", usd_per_1k_searches: "10.507"}], source: made up, read_on: 2026-11-01}
"""
ROUTING = "version: 1\nname: plain\ndefault: {by: order}\n"
FILES = {"catalog.yaml": CATALOG, "prices/own.yaml": PRICES, "routing/plain.yaml": ROUTING}
DIGEST = digest(FILES)
_RATES = load_prices([("own.yaml", PRICES)])

# What happened -> how it ended, its status, its code, and its attempts as (backend, outcome).
HAPPENED: Mapping[str, tuple[Outcome, int, str | None, tuple[tuple[str, Outcome], ...]]] = {
    "ok": (Outcome.OK, 200, None, (("a", Outcome.OK),)),
    "retried": (Outcome.OK, 200, None, (("a", Outcome.FAILED), ("b", Outcome.OK))),
    "hedged": (Outcome.OK, 200, None, (("a", Outcome.HEDGE_LOST), ("b", Outcome.OK))),
    "kept": (Outcome.OK, 200, None, (("a", Outcome.OK), ("b", Outcome.HEDGE_LOST))),
    "unpriced": (Outcome.OK, 200, None, (("c", Outcome.OK),)),
    "failed": (Outcome.FAILED, 502, "upstream_error", (("a", Outcome.FAILED), ("b", Outcome.FAILED))),
    "rejected": (Outcome.REJECTED, 400, "bad", (("a", Outcome.REJECTED),)),
    "refused": (Outcome.REFUSED, 404, "model_not_found", ()),
    "nowhere": (Outcome.NO_ROUTE, 503, "no_eligible_backend", ()),
    "broken": (Outcome.FAILED_MIDSTREAM, 200, "upstream_error", (("a", Outcome.FAILED_MIDSTREAM),)),
    "left": (Outcome.CANCELLED, 200, None, (("a", Outcome.CANCELLED),)),
    "early": (Outcome.CANCELLED, 0, None, (("a", Outcome.CANCELLED),)),
    "crashed": (Outcome.INTERRUPTED, 0, None, (("a", Outcome.INTERRUPTED),)),
    "internal": (Outcome.INTERNAL, 500, "internal_error", (("a", Outcome.INTERNAL),)),
    "copy": (Outcome.OK, 200, None, (("b", Outcome.OK),)),
}  # fmt: skip
_WEIGHED = {
    Outcome.OK, Outcome.HEDGE_LOST, Outcome.FAILED_MIDSTREAM, Outcome.CANCELLED, Outcome.INTERNAL
}  # fmt: skip


def records(count: int, *, seed: int = 1, start_us: int = START_US) -> Iterator[RequestRecord]:
    """`count` requests, what happens to them in turn; a copy follows its original at once."""
    chance = random.Random(seed)
    names = [name for name in HAPPENED if name != "copy"]
    number = 0
    while number < count:
        name = names[number % len(names)]
        made = _request(name, number, start_us + number * SPACING_US, chance)
        yield made
        number += 1
        if name == "ok" and number < count:
            yield _copy(made, chance)


def _request(name: str, number: int, at_us: int, chance: random.Random) -> RequestRecord:
    outcome, status, code, tried = HAPPENED[name]
    made = RequestRecord(
        id=f"{name}-{number:05d}",
        started_at_us=at_us,
        endpoint="chat/completions",
        alias="chat",
        key_id="0123456789ab",
        tags={"team": "größe"},
        privacy_class=None if name == "refused" else "internal",
        stream=True,
        policy="plain",
        policy_digest=DIGEST,
        outcome=outcome.value,
        http_status=status,
        error_code=code,
        worker="0",
        attempt_count=len(tried),
    )
    starts = at_us + chance.randint(100, 900)
    for at, (backend, ended) in enumerate(tried, 1):
        attempt = _attempt(at, backend, ended, starts, chance)
        _rate(attempt, at_us)
        made.attempts.append(attempt)
        starts += chance.randint(1_000, 50_000)
    _settle(made, name)
    return made


def _copy(original: RequestRecord, chance: random.Random) -> RequestRecord:
    at_us = original.started_at_us + 40_000
    made = _request("copy", int(original.id.rpartition("-")[2]), at_us, chance)
    made.key_id, made.tags, made.decision = None, {}, None
    made.shadow_of, made.route = original.id, original.route
    made.attempts[0].why = "shadow"
    return made


def _attempt(
    number: int, backend: str, outcome: Outcome, at_us: int, chance: random.Random
) -> AttemptRecord:
    made = AttemptRecord(
        number=number,
        backend=backend,
        model="m",
        started_at_us=at_us,
        why="preferred" if number == 1 else "fallback",
        outcome=outcome.value,
    )
    if outcome is Outcome.INTERRUPTED:
        return made
    made.duration_us = chance.randint(200_000, 3_000_000)
    if outcome in {Outcome.FAILED, Outcome.REJECTED}:
        made.http_status, made.error_code = 500, "upstream_error"
    if outcome is Outcome.OK:
        made.http_status, made.ttft_us = 200, chance.randint(1_000, 100_000)
    if outcome in _WEIGHED:
        made.uncached_tokens = chance.randint(1, 5_000)
        made.cached_tokens = chance.randint(0, 900)
        made.output_tokens = chance.randint(2, 900)
        made.reasoning_tokens = chance.randint(0, made.output_tokens)
        made.usage_source = "reported" if outcome is Outcome.OK else "estimated"
        if backend == "b" and outcome is Outcome.OK:
            written, searches = chance.randint(1, 700), chance.randint(1, 3)
            made.other_meters = {"cache_write_5m": written, "search_call": searches}
            made.service_tier = chance.choice([None, "flex"])
    return made


def _rate(made: AttemptRecord, arrived_us: int) -> None:
    rates = _RATES.rates(Target(made.backend, "m"), arrived_us)
    if rates is not None and made.usage_source != "none":
        made.rates_id, made.cost_nano_usd = charge(rates, metered(asdict(made)))


def _settle(made: RequestRecord, name: str) -> None:
    tried = made.attempts
    same = [attempt for attempt in tried if attempt.outcome == made.outcome]
    answered = same[0] if same and made.http_status == 200 else None
    add_up(made, answered)
    if name == "crashed":
        return
    ends = [a.started_at_us - made.started_at_us + (a.duration_us or 0) for a in tried]
    made.duration_us = max(ends, default=300) + 50
    last = answered or (tried[-1] if tried else None)
    if last is not None:
        made.backend, made.model, made.overhead_us = last.backend, last.model, 90
    if name != "refused":
        made.route = "default"
        order = [[f"{a.backend}/{a.model}", a.why, 0, None, None] for a in tried]
        made.decision = {"route": "default", "order": order, "excluded": [], "cut": []}
    if answered is not None and answered.duration_us and answered.output_tokens:
        made.ttft_us = answered.ttft_us
        made.tps = round(answered.output_tokens * 1e6 / answered.duration_us, 3)
        if answered.ttft_us is not None:
            rest = answered.duration_us - answered.ttft_us - 100
            made.tpot_us = round(rest / (answered.output_tokens - 1), 3)


def _day(at_us: int):
    import datetime as dt

    return dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC).date()


async def put_bundle(store: Store, files: Mapping[str, str] = FILES) -> None:
    """The policy files, in force."""
    change = Change(
        digest=digest(files),
        policy="plain",
        origin=Origin.APPLY,
        author="test",
        files=files,
        prices=book_of(files),
    )
    versions = Versions(store)
    newest = await versions.newest()
    await versions.put(change, expected=newest.number if newest else 0)


def book_of(files: Mapping[str, str]) -> PriceBook:
    """The price book of policy files."""
    return load_prices([(p, text) for p, text in files.items() if p.startswith("prices/")])


async def correct(store: Store) -> None:
    """Two ratings again, each by a book in force: c gets a price, then b another one."""
    priced = "".join(
        line.replace("backend: b", "backend: c") for line in PRICES.splitlines(True)[4:]
    )
    for at_us, text in enumerate((PRICES + priced, PRICES.replace('"2.503"', '"2.6"') + priced), 1):
        await put_bundle(store, {**FILES, "prices/own.yaml": text})
        by = ratings.By(load_prices([("own.yaml", text)]), at_us, lambda files: {})
        everything = ratings.Wanted(since_us=0, until_us=2**60)
        made = await ratings.apply(store, everything, by, author="test", rows=50)
        assert made.run == at_us


async def write(store: Store, journal: Path, made: Iterable[RequestRecord]) -> None:
    """As a worker does: into its journal, and from there into the database."""
    own = Journal(journal, "w", bytes_max=2**40)
    flusher = Flusher(own, store, sync=False)
    for record in made:
        own.close(record)
    assert await flusher.drain(600.0)
    own.stop()
