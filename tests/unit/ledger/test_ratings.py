"""Rating again: corrections are appended, add up, and never take a price away."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.domain.catalog import Target
from gateway.domain.money import rate
from gateway.domain.rating import metered, quantities
from gateway.ledger import ratings
from gateway.ledger.prices import PriceBook, load_prices
from gateway.ledger.ratings import By, Sums, Wanted
from gateway.ledger.store import (
    Store,
    attempt_facts,
    attempts,
    corrections,
    rating_runs,
    requests,
)
from tests.unit.ledger.audited import PRICES, SPACING_US, START_US, put_bundle, records, write

pytest_plugins = ("tests.servers",)
pytestmark = pytest.mark.xdist_group("servers")

COUNT = 60
ALL = Wanted(since_us=0, until_us=2**60)
LATER_US = 1_800_000_000_000_000
C_ROW = (
    '  - {backend: c, model: m, from: 2026-11-01, input_usd_per_mtok: "1.111", '
    'output_usd_per_mtok: "3.007", source: made up, read_on: 2026-11-01}\n'
)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url, tmp_path):
    store = await Store.connect(url)
    await put_bundle(store)
    await write(store, tmp_path / "journal", records(COUNT))
    yield store
    await store.close()


def b(price: str) -> str:
    """The book with another price of b's input, in every service tier."""
    return PRICES.replace('"2.503"', price).replace('"1.253"', price)


def by(text: str = PRICES, regions: dict[str, str | None] | None = None, at_us: int = 7) -> By:
    book = load_prices([("p.yaml", text)])
    return By(book, at_us, lambda files: regions or {})


async def facts(store: Store) -> list[dict]:
    """What must never change."""
    found = await store.select(
        sa.select(attempts).order_by(attempts.c.request_id, attempts.c.number)
    )
    return found + await store.select(sa.select(requests).order_by(requests.c.id))


async def apply(store: Store, asked: By, wanted: Wanted = ALL, **more: object) -> ratings.Rerating:
    return await ratings.apply(store, wanted, asked, author="ada@host", **more)


async def corrected(store: Store) -> dict[tuple[str, int], int | None]:
    """What each attempt with usage costs now."""
    due: dict[tuple[str, int], int | None] = {}
    for row in await store.select(sa.select(attempts).where(attempts.c.usage_source != "none")):
        due[row["request_id"], row["number"]] = row["cost_nano_usd"]
    for row in await store.select(sa.select(ratings.deltas())):
        at = row["request_id"], row["attempt"]
        due[at] = (due[at] or 0) + row["delta_nano_usd"]
    return due


async def by_hand(store: Store, book: PriceBook) -> dict[tuple[str, int], int | None]:
    """The same, worked out line by line."""
    started = {r["id"]: r["started_at_us"] for r in await store.select(sa.select(requests))}
    due: dict[tuple[str, int], int | None] = {}
    for row in await store.select(sa.select(attempts).where(attempts.c.usage_source != "none")):
        rates = book.rates(Target(row["backend"], row["model"]), started[row["request_id"]])
        made = (
            None
            if rates is None
            else (rate(rates, quantities(metered(row)), service_tier=row["service_tier"]).nano)
        )
        due[row["request_id"], row["number"]] = made
    return due


async def test_by_the_same_book_nothing_changes(store):
    found = await ratings.rerate(store, ALL, by())
    total = found.total()
    assert total.attempts == await ratings.count(store, ALL) > COUNT / 2
    assert (total.corrected, total.delta, total.priced, total.lost) == (0, 0, 0, 0)
    assert total.unpriced > 0, "backend c has no price"
    assert (await apply(store, by())).run is None
    assert await ratings.newest_run(store) == 0


async def test_looking_writes_nothing(store):
    before = await facts(store)
    found = await ratings.rerate(store, ALL, by(b('"2.504"')))
    assert found.total().corrected > 0
    assert found.run is None
    assert await store.select(sa.select(corrections)) == []
    assert await facts(store) == before


@pytest.mark.parametrize("rows", [1, 7, 1_000])
async def test_corrections_add_up_to_the_book_and_the_ledger_stays(store, rows):
    before = await facts(store)
    told: list[int] = []
    text = b('"2.4"').replace('"0.139"', '"0.2"') + C_ROW
    made = await apply(store, by(text), rows=rows, progress=told.append, note="wrong list")
    assert await facts(store) == before
    assert sum(told) == await ratings.count(store, ALL) == made.total().attempts
    due = await by_hand(store, by(text).book)
    assert await corrected(store) == due
    total = made.total()
    assert total.stood == sum(r["cost_nano_usd"] or 0 for r in before if "number" in r)
    assert total.would_be == sum(cost for cost in due.values() if cost is not None)
    assert total.delta == total.would_be - total.stood
    assert total.priced == made.by[Target("c", "m")].corrected > 0
    (run,) = await ratings.runs(store)
    listed = await store.select(sa.select(corrections))
    assert (run["number"], run["author"], run["note"], run["book_at_us"]) == (
        1, "ada@host", "wrong list", 7
    )  # fmt: skip
    assert run["attempts_rated"] == total.attempts
    assert run["attempts_corrected"] == total.corrected == len(listed)
    assert run["delta_nano_usd"] == total.delta == sum(c["delta_nano_usd"] for c in listed)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_every_page_is_planned_by_what_it_asks_for(store):
    """A plan for any page reads the whole period for each: Postgres takes one from the sixth on."""
    asked = by(b('"2.4"'))
    looked, written = [], []
    await ratings.rerate(store, ALL, asked, rows=2, progress=looked.append)
    await apply(store, asked, rows=2, progress=written.append)
    assert min(len(looked), len(written)) > 8
    said = sa.text("SELECT statement FROM pg_prepared_statements WHERE generic_plans > 0")
    found: list[str] = []
    async with AsyncExitStack() as stack:  # every connection of the pool
        for queue in "abcd":
            connection = await stack.enter_async_context(store.turn(queue))
            found += (await connection.execute(said)).scalars()
    paged = [one for one in found if one.startswith("SELECT") and "LIMIT" in one]
    assert [one for one in paged if "usage_source" in one] == []


async def test_again_corrects_nothing_and_another_book_only_what_is_left(store):
    books = [by(PRICES + C_ROW), by(b('"2.6"') + C_ROW), by()]
    assert (await apply(store, books[0])).run == 1
    assert (await apply(store, books[0])).run is None
    second = await apply(store, books[1])
    assert second.run == 2
    assert {t for t, sums in second.by.items() if sums.corrected} == {Target("b", "m")}
    back = await apply(store, books[2])
    assert back.run == 3
    assert back.total().lost == back.by[Target("c", "m")].lost > 0, "c has had a price"
    assert await ratings.newest_run(store) == 3
    now = await corrected(store)
    assert {at: cost for at, cost in now.items() if at[0].startswith("unpriced")} == {
        at: cost
        for at, cost in (await by_hand(store, books[0].book)).items()
        if at[0].startswith("unpriced")
    }
    for row in await store.select(sa.select(ratings.deltas(run=1))):
        assert row["request_id"].startswith("unpriced")
        assert row["runs"] == 1


async def test_a_price_is_never_taken_away(store):
    without_b = "".join(line for line in PRICES.splitlines(True) if "backend: b" not in line)
    made = await apply(store, by(without_b))
    total = made.total()
    assert (total.corrected, made.run) == (0, None)
    assert total.lost == made.by[Target("b", "m")].attempts > 0
    assert "the book has no price of b/m" in made.lost[0].why
    assert len(made.lost) <= ratings.LOST_SHOWN_MAX


async def test_nothing_with_tokens_is_corrected_to_0_unless_it_is_free(store):
    tiny = C_ROW.replace('"1.111"', '"0.000000001"').replace('"3.007"', '"0.000000001"')
    made = await apply(store, by(PRICES + tiny))
    assert made.by[Target("c", "m")].unpriced == made.by[Target("c", "m")].attempts > 0
    free = C_ROW.replace('"1.111"', '"0"').replace('"3.007", ', '"0", free: true, ')
    made = await apply(store, by(PRICES + free))
    sums = made.by[Target("c", "m")]
    assert (sums.priced, sums.delta) == (sums.attempts, 0)
    (rates,) = {c["rates_id"].partition("@")[0] for c in await store.select(sa.select(corrections))}
    assert rates == "free:c/m"
    assert (await apply(store, by(PRICES + free))).run is None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"backend": "b"}, lambda a, r: a["backend"] == "b"),
        ({"model": "other"}, lambda a, r: False),
        ({"key_id": "0123456789ab"}, lambda a, r: r["key_id"] is not None),
        ({"only_unpriced": True}, lambda a, r: a["cost_nano_usd"] is None),
        ({"since_us": START_US + 5 * SPACING_US}, lambda a, r: r["started_at_us"] >= START_US + 5 * SPACING_US),
        ({"until_us": START_US + 5 * SPACING_US}, lambda a, r: r["started_at_us"] < START_US + 5 * SPACING_US),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
)  # fmt: skip
async def test_only_what_was_asked_for(store, wanted, expected):
    asked = Wanted(**{"since_us": 0, "until_us": 2**60, **wanted})
    of = {r["id"]: r for r in await store.select(sa.select(requests))}
    weighed = await store.select(sa.select(attempts).where(attempts.c.usage_source != "none"))
    due = [a for a in weighed if expected(a, of[a["request_id"]])]
    text = b('"2.6"').replace('"0.139"', '"0.2"') + C_ROW
    found = await apply(store, by(text), asked)
    assert found.total().attempts == len(due)
    listed = await store.select(sa.select(corrections))
    assert len(listed) == len(due)
    if due:
        (run,) = await ratings.runs(store)
        assert run["filters"] == {k: v for k, v in wanted.items() if not k.endswith("_us")}
    inside = ratings.deltas(asked.since_us, asked.until_us)
    assert len(await store.select(sa.select(inside))) == len(due)


async def test_two_at_once_correct_once(url, store):
    other = await Store.connect(url)
    text = PRICES + C_ROW
    made = await asyncio.gather(apply(store, by(text)), apply(other, by(text)))
    await other.close()
    assert sorted(one.run or 0 for one in made) == [0, 1]
    seen = Counter(
        (c["request_id"], c["attempt"]) for c in await store.select(sa.select(corrections))
    )
    assert set(seen.values()) == {1}


async def test_what_breaks_off_writes_nothing(store):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await apply(store, by(PRICES + C_ROW), progress=stop, rows=5)
    assert await store.select(sa.select(corrections)) == []
    assert await store.select(sa.select(rating_runs)) == []


async def test_a_price_of_a_region_is_that_of_where_the_backend_was(store):
    priced = C_ROW.replace(
        "source:",
        'when: [{region: eu, input_usd_per_mtok: "2.222", output_usd_per_mtok: "6.014"}], source:',
    )
    home = (await ratings.rerate(store, ALL, by(PRICES + priced))).by[Target("c", "m")]
    asked: list[list[str]] = []

    def regions(files: dict[str, str]) -> dict[str, str | None]:
        asked.append(sorted(files))
        return {"c": "eu"}

    book = load_prices([("p.yaml", PRICES + priced)])
    abroad = await ratings.rerate(store, ALL, By(book, 7, regions))
    assert asked == [["catalog.yaml", "prices/own.yaml", "routing/plain.yaml"]], "once per bundle"
    assert home.would_be < abroad.by[Target("c", "m")].would_be


async def test_the_documents_statement_says_what_attempts_cost_as_corrected(store):
    await apply(store, by(PRICES + C_ROW))
    await apply(store, by(b('"2.7"') + C_ROW))
    text = (Path(__file__).parents[3] / "docs" / "rating.md").read_text()
    (statement,) = re.findall(r"```sql\n(.*?);\n```", text, re.DOTALL)
    async with store.turn() as connection:
        found = await connection.execute(sa.text(statement), {"since": 0, "until": 2**60})
        told = {(row.request_id, row.number): int(row.corrected) for row in found}
    due = await corrected(store)
    assert {at: told[at] for at in due} == due
    assert sum(told.values()) == sum(due.values())


async def test_one_requests_corrections_in_their_order(store):
    await apply(store, by(b('"2.6"')))
    await apply(store, by(b('"2.7"')))
    found = await ratings.corrections_of(store, "hedged-00002")
    assert [(one["run"], one["attempt"]) for one in found] == [(1, 2), (2, 2)]
    assert await ratings.corrections_of(store, "nobody") == []
    assert json.dumps(found), "plain values"


def test_sums_add_up_by_name():
    made = ratings.Rerating(book_at_us=1)
    made.by = {
        Target("a", "m"): Sums(attempts=1, stood=2, would_be=5),
        Target("b", "m"): Sums(stood=1),
    }
    assert (made.total().attempts, made.total().stood, made.total().delta) == (1, 3, 2)


async def test_what_a_newer_version_metered_ends_no_run(store):
    asked = by(b('"2.4"'))
    known = (await ratings.rerate(store, ALL, asked)).total()
    (row, *_) = await store.select(
        sa.select(attempts).where(attempts.c.backend == "b", attempts.c.cost_nano_usd > 0).limit(1)
    )
    async with store.turn() as connection:
        await connection.execute(
            sa.update(attempt_facts)
            .where(
                attempt_facts.c.request_id == row["request_id"],
                attempt_facts.c.number == row["number"],
            )
            .values(other_meters={"holograms": 3})
        )
    made = await ratings.rerate(store, ALL, asked)
    total = made.total()
    assert (total.attempts, total.lost) == (known.attempts, known.lost + 1)
    assert total.corrected == known.corrected - 1
    (lost,) = (one for one in made.lost if one.request_id == row["request_id"])
    assert "holograms" in lost.why
    assert (await apply(store, asked)).total().corrected == total.corrected
