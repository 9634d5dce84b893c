"""Recorded requests come back whole, in order and in pages, from both databases."""

from __future__ import annotations

import orjson
import pytest

from gateway.domain.catalog import Target
from gateway.domain.request import Usage
from gateway.ledger import recorded
from gateway.ledger.store import Store
from tests.bench.recording import DAY_US, DAYS, UNTIL_US, lines
from tests.unit.ledger.records import STARTED_US, request

pytest_plugins = ("tests.servers",)

SINCE_US = UNTIL_US - DAYS * DAY_US
ROWS = 450
DECISION = {"route": "r", "order": [["a/m", "cheapest", 0, 1, 1.5]], "excluded": [], "cut": []}


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    store = await Store.connect(url)
    yield store
    await store.close()


async def read(pages) -> list:
    return [one async for page in pages for one in page]


async def test_a_row_comes_back_as_the_line_it_was(store):
    written = list(lines(ROWS))
    await store.append(written)
    assert await read(recorded.pages(store, SINCE_US, UNTIL_US)) == [
        recorded.from_row(orjson.loads(line)) for line in written
    ]


async def test_pages_hold_every_request_once_in_order_even_at_one_moment(store):
    rows = [request(f"r{n:03d}", started_at_us=STARTED_US + n // 250) for n in range(ROWS)]
    await store.append([orjson.dumps(row) for row in reversed(rows)])
    got = [page async for page in recorded.pages(store, STARTED_US, STARTED_US + 10, rows=100)]
    assert [len(page) for page in got] == [100, 100, 100, 100, 50]
    times = [one.at_us for page in got for one in page]
    assert times == sorted(times)
    assert len(times) == ROWS
    second = await read(recorded.pages(store, STARTED_US + 1, STARTED_US + 2))
    assert len(second) == ROWS - 250


async def test_what_was_not_decided_or_is_a_copy_is_counted_and_left_out(store):
    rows = [
        request("one", decision=DECISION),
        request("two", decision=DECISION, started_at_us=STARTED_US + 5),
        request("refused", decision=None, backend=None, model=None, attempts=[]),
        request("copy", decision=DECISION, shadow_of="one"),
        request("later", decision=DECISION, started_at_us=STARTED_US + 10),
    ]
    await store.append([orjson.dumps(row) for row in rows])
    period = STARTED_US, STARTED_US + 10
    assert await recorded.counts(store, *period) == recorded.Counts(
        decided=2, undecided=1, copies=1, first_us=STARTED_US
    )
    assert len(await read(recorded.pages(store, *period))) == 2
    nothing = await recorded.counts(store, 0, 1)
    assert (nothing.decided, nothing.first_us) == (0, None)


async def test_a_sample_has_one_of_each_stretch_of_time(store):
    written = [orjson.loads(line) for line in lines(ROWS)]
    await store.append([orjson.dumps(row) for row in written])
    place = {row["started_at_us"]: number for number, row in enumerate(written)}
    period = SINCE_US, UNTIL_US

    async def drawn(seed: int) -> list[int]:
        chosen = recorded.sample(store, *period, total=ROWS, wanted=150, seed=seed, rows=4)
        return [place[one.at_us] for one in await read(chosen)]

    first = await drawn(1)
    assert [number // 3 for number in first] == list(range(150))
    assert first == await drawn(1) != await drawn(2)


async def test_unknown_figures_come_back_unknown(store):
    bare = request(
        "bare",
        decision=DECISION,
        backend=None,
        model=None,
        attempts=[],
        **dict.fromkeys(("uncached_tokens", "cached_tokens", "output_tokens", "cost_nano_usd")),
        **dict.fromkeys(("ttft_us", "tpot_us", "tps", "duration_us", "reasoning_tokens")),
        priced=False,
    )
    whole = request("whole", decision=DECISION, started_at_us=STARTED_US + 1)
    await store.append([orjson.dumps(bare), orjson.dumps(whole)])
    unknown, known = await read(recorded.pages(store, STARTED_US, STARTED_US + 2))
    assert (unknown.served, unknown.usage, unknown.cost_nano_usd) == (None, None, None)
    assert (unknown.ttft_ms, unknown.tpot_ms, unknown.tps, unknown.whole_ms) == (None,) * 4
    assert known.served == Target("openai", "gpt-4.1-mini")
    assert known.usage == Usage(100, 20, 50, 5)
    assert (known.ttft_ms, known.tpot_ms, known.whole_ms) == (200.0, 14.2857, 900.0)


async def test_configured_is_what_the_newest_decisions_took_for_configured(store):
    excluded = [["b/m", "not_configured", "env:B is not set"], ["c/m", "privacy", "..."]]
    old = {"route": "r", "order": [["b/m", "cheapest", 0, 1, None]], "excluded": [], "cut": []}
    new = DECISION | {"excluded": excluded, "cut": ["d/m/with/slashes"]}
    rows = [request(f"r{n}", started_at_us=STARTED_US + n, decision=new) for n in range(5)]
    rows.append(request("old", started_at_us=STARTED_US - 1, decision=old))
    await store.append([orjson.dumps(row) for row in rows])
    period = STARTED_US - 10, STARTED_US + 10
    assert await recorded.configured(store, *period, rows=5) == {"a", "c", "d"}
    assert await recorded.configured(store, *period) == {"a", "b", "c", "d"}
