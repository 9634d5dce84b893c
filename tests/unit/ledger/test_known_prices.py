"""Prices as they were known: what was recorded when, on both databases."""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.ledger import known_prices
from gateway.ledger.price_file import instant
from gateway.ledger.prices import PriceBook, load_prices
from gateway.ledger.store import Store, price_statements
from gateway.ledger.versions import Change, Conflict, Origin, Versions, start

pytest_plugins = ("tests.servers",)
pytestmark = pytest.mark.xdist_group("servers")

MARCH, APRIL = instant(dt.date(2026, 3, 1)), instant(dt.date(2026, 4, 1))


def row(day: str, price: str, *, model: str = "m", more: str = "") -> str:
    return (
        f"  - {{backend: b, model: {model}, from: {day}, input_usd_per_mtok: '{price}', "
        f"output_usd_per_mtok: '2'{more}, source: s, read_on: 2026-01-01}}\n"
    )


def book(*rows: str) -> PriceBook:
    text = "version: 1\nprices:\n" + "".join(rows) if rows else "version: 1\nprices: []\n"
    return load_prices([("p.yaml", text)])


def change(digest: str, prices: PriceBook | None, **fields: object) -> Change:
    made = Change(
        digest=digest, policy="plain", origin=Origin.APPLY, author="ada@host", prices=prices
    )
    return replace(made, **fields)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url):
    store = await Store.connect(url)
    yield store
    await store.close()


def ids(book: PriceBook) -> dict[Target, list[tuple[int, int | None, str]]]:
    return {
        target: [(row.from_us, row.until_us, row.base.id) for row in rows]
        for target, rows in book.rows.items()
    }


async def stated(store: Store) -> list[tuple[int, str, str | None]]:
    """Number, bundle, and the price or None."""
    return [
        (one.number, one.digest, one.terms and one.terms["input_usd_per_mtok"])
        for one in await known_prices.statements(store)
    ]


async def test_only_what_is_new_changed_or_gone_is_stated(store):
    versions = Versions(store)
    await versions.put(
        change("d1", book(row("2026-03-01", "1"), row("2026-04-01", "3"))), expected=0
    )
    assert await stated(store) == [(1, "d1", "1"), (2, "d1", "3")]
    await versions.put(
        change("d2", book(row("2026-03-01", "1"), row("2026-04-01", "5"))), expected=1
    )
    assert (await stated(store))[2:] == [(3, "d2", "5")]
    await versions.put(change("d3", book(row("2026-03-01", "1"))), expected=2)
    assert (await stated(store))[3:] == [(4, "d3", None)]
    await versions.put(change("d4", book(row("2026-03-01", "1"))), expected=3)
    assert len(await stated(store)) == 4
    await versions.put(
        change("d1", book(row("2026-03-01", "1"), row("2026-04-01", "3"))), expected=4
    )
    assert (await stated(store))[4:] == [(5, "d1", "3")]
    assert ids(await known_prices.as_known(store)) == ids(
        book(row("2026-03-01", "1"), row("2026-04-01", "3"))
    )


async def test_what_was_known_at_a_time_stays_what_it_was(store):
    versions = Versions(store)
    target = Target("b", "m")
    books = [book(row("2026-03-01", price)) for price in ("1", "7")]
    times = []
    for number, prices in enumerate(books):
        made = await versions.put(change(f"d{number}", prices), expected=number)
        times.append(max(one.recorded_at_us for one in await known_prices.statements(store)))
        assert abs(times[-1] - made.applied_at_us) < 2_000_000
    assert (await known_prices.as_known(store, times[0] - 1)).rows == {}
    for at_us, prices in zip((times[1] - 1, times[1]), books, strict=True):
        known = await known_prices.as_known(store, at_us)
        assert known.rates(target, APRIL) == prices.rates(target, APRIL)
    assert (await known_prices.as_known(store)).rates(target, MARCH - 1) is None


async def test_a_row_says_its_own_end_only(store):
    until = ", until: 2026-04-01"
    prices = book(row("2026-03-01", "1", more=until), row("2026-04-01", "2"))
    await Versions(store).put(change("d", prices), expected=0)
    ends = [one.valid_until_us for one in await known_prices.statements(store)]
    assert ends == [APRIL, None]
    assert ids(await known_prices.as_known(store)) == ids(prices)


async def test_a_version_that_loses_states_nothing(store):
    versions = Versions(store)
    await versions.put(change("d1", book(row("2026-03-01", "1"))), expected=0)
    with pytest.raises(Conflict):
        await versions.put(change("d2", book(row("2026-03-01", "9"))), expected=0)
    assert await stated(store) == [(1, "d1", "1")]


async def test_starts_at_once_state_once(url, store):
    stores = [store, *[await Store.connect(url) for _ in range(3)]]
    made = change("d1", book(*(row(f"2026-03-{day:02}", "1") for day in range(1, 20))))
    await asyncio.gather(
        *(start(Versions(one), replace(made, origin=Origin.START)) for one in stores)
    )
    assert [number for number, _, _ in await stated(store)] == list(range(1, 20))
    for one in stores[1:]:
        await one.close()


async def test_a_version_of_before_there_were_statements_is_stated_by_the_next_start(url, store):
    versions = Versions(store)
    prices = book(row("2026-03-01", "1"))
    old = await versions.put(change("d1", None), expected=0)
    assert await stated(store) == []
    others = [await Store.connect(url) for _ in range(2)]
    await asyncio.gather(*(Versions(one).state_prices(old, prices) for one in (store, *others)))
    assert await stated(store) == [(1, "d1", "1")]
    await versions.put(change("d2", book(row("2026-03-01", "4"))), expected=1)
    await versions.state_prices(old, prices)
    assert (await known_prices.as_known(store)).rows.keys() == prices.rows.keys()
    assert await stated(store) == [(1, "d1", "1"), (2, "d2", "4")], "d1 is not in force any more"
    for one in others:
        await one.close()


async def test_times_ascend_also_where_the_clock_went_back(store):
    versions = Versions(store)
    await versions.put(change("d1", book(row("2026-03-01", "1"))), expected=0)
    ahead = 4_000_000_000_000_000
    async with store.turn() as connection:
        await connection.execute(sa.update(price_statements).values(recorded_at_us=ahead))
    await versions.put(change("d2", book(row("2026-03-01", "2"))), expected=1)
    assert [one.recorded_at_us for one in await known_prices.statements(store)] == [ahead, ahead]
    assert ids(await known_prices.as_known(store, ahead)) == ids(book(row("2026-03-01", "2")))


BOOKS = st.dictionaries(
    st.tuples(st.integers(1, 4), st.sampled_from("mk")), st.sampled_from("123"), max_size=5
)


@settings(max_examples=25, deadline=None)
@given(history=st.lists(BOOKS, min_size=1, max_size=6))
def test_the_book_as_known_is_that_of_the_version_in_force_then(tmp_path_factory, history):
    folder = tmp_path_factory.mktemp("known")

    async def run() -> None:
        store = await Store.connect(f"sqlite:///{folder / 'ledger.db'}")
        versions, times = Versions(store), []
        for number, said in enumerate(history):
            prices = book(*(row(f"2026-0{m}-01", p, model=k) for (m, k), p in said.items()))
            await versions.put(change(f"d{number}", prices), expected=number)
            # As if they had come apart: a millisecond is all SQLite tells.
            async with store.turn() as connection:
                fresh = price_statements.c.digest == f"d{number}"
                at_us = 1_000 * (number + 1)
                await connection.execute(
                    sa.update(price_statements).where(fresh).values(recorded_at_us=at_us)
                )
            times.append((at_us, prices))
        for at_us, prices in times:
            assert ids(await known_prices.as_known(store, at_us)) == ids(prices)
        await store.close()

    asyncio.run(run())
