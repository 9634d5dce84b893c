"""Policy versions on both databases: appended only, one winner, and what a start makes of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from gateway.domain.errors import NotFound
from gateway.ledger.store import Store
from gateway.ledger.versions import Change, Conflict, Origin, Version, Versions, start

FILES = {"catalog.yaml": "a: ü\n", "routing/plain.yaml": "b: 1\n", "prices/a.yaml": ""}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def versions(url):
    store = await Store.connect(url)
    yield Versions(store)
    await store.close()


def change(digest: str, origin: Origin = Origin.FILE, **fields: object) -> Change:
    made = Change(digest=digest, policy="plain", origin=origin, author="ada@host", files=FILES)
    return replace(made, **fields)


async def test_there_is_none_at_first(versions):
    assert await versions.newest() is None
    assert await versions.history() == []
    with pytest.raises(NotFound):
        await versions.get(1)
    with pytest.raises(NotFound):
        await versions.files("d1")


async def test_a_version_comes_back_as_it_went_with_its_texts_and_the_databases_time(versions):
    before = time.time()
    made = await versions.put(change("d1", Origin.APPLY, note="für 'alle'"), expected=0)
    assert made == Version(
        number=1, digest="d1", policy="plain", origin=Origin.APPLY, author="ada@host",
        note="für 'alle'", applied_at_us=made.applied_at_us,
    )  # fmt: skip
    assert before - 2 < made.applied_at_us / 1e6 < time.time() + 2
    assert await versions.newest() == await versions.get(1) == made
    assert await versions.files("d1") == FILES
    assert list(await versions.files("d1")) == sorted(FILES)


async def test_history_is_the_newest_first_and_bundles_are_kept_once(versions):
    await versions.put(change("d1"), expected=0)
    await versions.put(change("d2"), expected=1)
    back = await versions.put(change("d1", Origin.ROLLBACK, files=None), expected=2)
    assert [v.number for v in await versions.history()] == [3, 2, 1]
    assert [v.number for v in await versions.history(limit=2)] == [3, 2]
    assert (await versions.newest()) == back
    assert await versions.files("d1") == FILES
    assert await versions.since("d1", after=1) == back
    assert await versions.since("d2", after=2) is None


async def test_what_is_in_force_is_not_put_again(versions):
    first = await versions.put(change("d1"), expected=0)
    assert await versions.put(change("d1", Origin.APPLY), expected=1) == first
    assert await versions.put(change("d1", Origin.APPLY), expected=0) == first
    assert await versions.history() == [first]


async def test_who_looked_at_another_version_is_told_who_was_faster(versions):
    await versions.put(change("d1"), expected=0)
    await versions.put(change("d2", Origin.APPLY, author="grace@host"), expected=1)
    with pytest.raises(Conflict, match=r"version 1 .*version 2 \(plain@d2\).*apply, grace@host"):
        await versions.put(change("d3"), expected=1)
    with pytest.raises(Conflict, match="version 9 was expected"):
        await versions.put(change("d3"), expected=9)
    with pytest.raises(Conflict, match="no version was expected"):
        await versions.put(change("d3"), expected=0)
    assert len(await versions.history()) == 2


async def test_of_many_at_once_one_wins_and_the_losers_leave_nothing(url, versions):
    stores = [await Store.connect(url) for _ in range(3)]
    everyone = [versions, *map(Versions, stores)]
    await versions.put(change("d0"), expected=0)
    results = await asyncio.gather(
        *(v.put(change(f"d{n}"), expected=1) for n, v in enumerate(everyone, 1)),
        return_exceptions=True,
    )
    won = [r for r in results if isinstance(r, Version)]
    lost = [r for r in results if isinstance(r, Conflict)]
    assert (len(won), len(lost)) == (1, 3)
    assert {conflict.newest for conflict in lost} == set(won)
    for number in range(1, 5):
        if f"d{number}" != won[0].digest:
            with pytest.raises(NotFound):
                await versions.files(f"d{number}")
    for store in stores:
        await store.close()


async def test_at_once_with_the_same_files_nobody_loses(url, versions):
    stores = [await Store.connect(url) for _ in range(3)]
    everyone = [versions, *map(Versions, stores)]
    await versions.put(change("d0"), expected=0)
    made = await asyncio.gather(*(v.put(change("d1"), expected=1) for v in everyone))
    assert len(set(made)) == 1
    assert len(await versions.history()) == 2
    for store in stores:
        await store.close()


async def test_the_store_does_not_take_another_mistake_for_a_conflict(versions):
    from gateway.ledger.store import RowsRefused

    with pytest.raises(RowsRefused):
        await versions.put(change("d1", author=None), expected=0)


# --- starting -----------------------------------------------------------------------------------


async def test_a_first_start_puts_its_files_in_force(versions):
    made = await start(versions, change("d1", Origin.START))
    assert (made.number, made.origin) == (1, Origin.START)
    assert await start(versions, change("d1", Origin.START)) == made


@pytest.mark.parametrize("before", [Origin.START, Origin.FILE])
async def test_files_that_changed_since_become_a_version(versions, before):
    await versions.put(change("d1", before), expected=0)
    made = await start(versions, change("d2", Origin.START))
    assert (made.number, made.digest, made.origin) == (2, "d2", Origin.START)


@pytest.mark.parametrize("before", [Origin.APPLY, Origin.ROLLBACK])
async def test_what_was_put_by_command_wins_over_files(versions, before):
    applied = await versions.put(change("d1", before), expected=0)
    assert await start(versions, change("d2", Origin.START)) == applied
    assert await versions.history() == [applied]


async def test_starts_at_once_with_the_same_files_make_one_version(url, versions):
    stores = [await Store.connect(url) for _ in range(3)]
    made = await asyncio.gather(
        *(start(Versions(store), change("d1", Origin.START)) for store in stores)
    )
    assert len(set(made)) == 1
    assert await versions.history() == [made[0]]
    for store in stores:
        await store.close()
