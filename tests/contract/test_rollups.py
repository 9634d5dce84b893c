"""Sums by hour: whatever is written, sent again, merged or rebuilt, they are what the rows make."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import replace

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.ledger.hours import BUCKETS, HOUR_US, TTFT_BOUNDS_US
from gateway.ledger.store import (
    Store,
    attempt_facts,
    attempt_hours,
    attempts,
    other_meter_hours,
    request_dimensions,
    request_facts,
    request_hours,
    requests,
)
from tests.unit.ledger.audited import START_US, records
from tests.unit.ledger.records import attempt, request

pytest_plugins = ("tests.servers",)

TABLES = (request_facts, attempt_facts, request_hours, attempt_hours, other_meter_hours)


@pytest.fixture(params=["sqlite", "postgres"])
def any_store(request, tmp_path):
    """For Hypothesis, which calls many times within one fixture: a loop that stays."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    with asyncio.Runner() as runner:
        store = runner.run(Store.connect(url))
        yield runner.run, store
        runner.run(store.close())


def made(count: int, seed: int) -> list[bytes]:
    """Requests of three hours, some with meters of other kinds."""
    found = []
    for number, record in enumerate(records(count, seed=seed)):
        at_us = record.started_at_us + number % 3 * HOUR_US
        tries = [
            replace(tried, other_meters={"search_call": number} if number % 4 == 0 else None)
            for tried in record.attempts
        ]
        found.append(orjson.dumps(replace(record, started_at_us=at_us, attempts=tries)))
    return found


async def empty(store: Store) -> None:
    async with store._begin() as connection:
        for table in TABLES:
            await connection.execute(sa.delete(table))


async def summed(store: Store, table: sa.Table, names: list[str]) -> dict[str, int]:
    sums = [sa.cast(sa.func.sum(table.c[name]), sa.BigInteger).label(name) for name in names]
    (row,) = await store.select(sa.select(*sums))
    return {name: int(value or 0) for name, value in row.items()}


async def of_rows(store: Store, *, of_attempts: bool) -> dict[str, int]:
    """The same sums worked out another way: over all rows as they are read."""
    query = sa.select(requests)
    if of_attempts:
        whose = requests.c.id == attempts.c.request_id
        at = requests.c.started_at_us.label("at")
        query = sa.select(attempts, at, sa.literal(True).label("priced")).join(requests, whose)
    found: Counter[str] = Counter(rows=0)
    for row in await store.select(query):
        tokens = [row[f"{kind}_tokens"] or 0 for kind in ("uncached", "cached", "output")]
        cost, weighed = row["cost_nano_usd"], row["usage_source"] != "none"
        known = cost is not None if of_attempts else row["priced"]
        found["rows"] += 1
        found["cost_nano_usd"] += cost or 0
        found["costed"] += cost is not None
        found["costed_tokens"] += sum(tokens) if cost is not None else 0
        found["weighed"] += weighed
        found["unpriced"] += weighed and not known
        found["estimated"] += row["usage_source"] == "estimated"
        for kind, count in zip(("uncached", "cached", "output"), tokens, strict=True):
            found[f"{kind}_tokens"] += count
        found["reasoning_tokens"] += row["reasoning_tokens"] or 0
        if of_attempts:
            name = f"{row['at']} {row['request_id']} {row['number']}"
            timed = row["outcome"] == "ok" and row["duration_us"] and row["output_tokens"]
            took = row["duration_us"]
        else:
            name = f"{row['started_at_us']} {row['id']} 0"
            timed = row["tps"]
            took = round(row["output_tokens"] / row["tps"] * 1e6) if timed else 0
        if timed:
            found["speed_tokens"] += row["output_tokens"]
            found["speed_us"] += took
        digest = hashlib.sha256(f"{name} {'-' if cost is None else cost}".encode()).hexdigest()
        for word in range(4):
            found[f"fp{word}"] += int(digest[8 * word : 8 * word + 8], 16)
        if row["ttft_us"] is not None:
            under = [n for n, bound in enumerate(TTFT_BOUNDS_US) if row["ttft_us"] < bound]
            found[BUCKETS[min(under, default=len(TTFT_BOUNDS_US))]] += 1
    return found


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.sampled_from(["compact", "rebuild"])),
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**16), steps=STEPS)
def test_sums_are_what_the_rows_make(any_store, seed, steps):
    run, store = any_store
    lines = made(40, seed)

    async def play() -> None:
        await empty(store)
        sent: set[bytes] = set()
        for what, *where in steps:
            if what == "append":  # any stretch, so some lines again, and some twice in a batch
                part = lines[min(where) : max(where)]
                await store.append(part + part[:3])
                sent |= set(part)
            elif what == "compact":
                await store.compact()
            else:
                await store.rebuild_rollups()
            found = await store.rollups_agree()
            assert found.differences == []
        for of_attempts, table in ((False, request_hours), (True, attempt_hours)):
            due = await of_rows(store, of_attempts=of_attempts)
            assert await summed(store, table, list(due)) == due
            if not of_attempts:
                assert due["rows"] == len(sent)
        due_meters = sum(
            sum((tried["other_meters"] or {}).values())
            for line in sent
            for tried in orjson.loads(line)["attempts"]
        )
        assert await summed(store, other_meter_hours, ["quantity"]) == {"quantity": due_meters}

    run(play())


def test_writers_at_once_that_send_the_same_add_it_once(any_store):
    run, store = any_store
    lines = made(300, 7)

    async def play() -> None:
        await asyncio.gather(
            store.append(lines),
            store.append(lines[100:]),
            store.append(lines[::-1]),
            *(store.append(lines[at : at + 50]) for at in range(0, 300, 50)),
            store.compact(),
            store.compact(),
        )
        assert (await store.rollups_agree()).differences == []
        assert (await summed(store, request_hours, ["rows"]))["rows"] == len(set(lines))
        await asyncio.gather(store.rebuild_rollups(), store.append(made(50, 8)), store.compact())
        assert (await store.rollups_agree()).differences == []

    run(play())


def test_merged_hours_have_a_row_for_each_dimension(any_store):
    run, store = any_store

    async def play() -> None:
        for line in made(60, 3):
            await store.append([line])
        before = await store.select(sa.select(request_hours.c.hour_us))
        assert await store.compact() >= 3
        hours = await store.select(
            sa.select(request_hours.c.hour_us, request_hours.c.dimension, request_hours.c.merged)
        )
        keys = [(row["hour_us"], row["dimension"]) for row in hours]
        assert len(keys) == len(set(keys)) < len(before)
        assert all(row["merged"] for row in hours)
        assert await store.compact() == 0

    run(play())


async def test_an_hour_that_cannot_be_merged_keeps_no_other_from_it(postgres_url):
    store = await Store.connect(postgres_url)
    for line in made(40, 3):
        await store.append([line])
    query = sa.select(request_hours.c.hour_us).where(~request_hours.c.merged).distinct()
    first, *others = sorted(row["hour_us"] for row in await store.select(query))
    body = f"""CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF old.hour_us = {first} THEN
            RAISE EXCEPTION 'canceling statement due to statement timeout' USING errcode = '57014';
        END IF; RETURN old; END $$"""
    async with store._begin() as connection:
        await connection.execute(sa.text(body))
        await connection.execute(
            sa.text(
                "CREATE TRIGGER slow BEFORE DELETE ON request_hours"
                " FOR EACH ROW EXECUTE FUNCTION slow()"
            )
        )
    assert await store.compact() == len(others) > 0
    assert [row["hour_us"] for row in await store.select(query)] == [first]
    assert (await store.rollups_agree()).differences == []
    await store.close()


@pytest.mark.parametrize("table", [request_hours, attempt_hours])
def test_a_sum_that_somebody_changed_is_found_and_mended(any_store, table):
    run, store = any_store

    async def play() -> None:
        await store.append(made(30, 4))
        async with store._begin() as connection:
            await connection.execute(sa.update(table).values(cost_nano_usd=table.c.fp0))
            await connection.execute(
                sa.delete(other_meter_hours).where(other_meter_hours.c.quantity > 0)
            )
        found = await store.rollups_agree()
        assert {one.table for one in found.differences} == {table.name, "other_meter_hours"}
        assert {one.column for one in found.differences} == {"cost_nano_usd", "quantity"}
        assert await store.rebuild_rollups() == found.hours
        assert (await store.rollups_agree()).differences == []

    run(play())


def test_a_row_that_is_gone_is_missed_in_its_hour_only(any_store):
    run, store = any_store

    async def play() -> None:
        await store.append(made(30, 5))
        (row,) = await store.select(
            sa.select(request_facts.c.id, request_facts.c.started_at_us).limit(1)
        )
        async with store._begin() as connection:
            await connection.execute(
                sa.delete(request_facts).where(request_facts.c.id == row["id"])
            )
        hour = row["started_at_us"] // HOUR_US * HOUR_US
        assert {one.key[0] for one in (await store.rollups_agree()).differences} == {hour}
        assert (await store.rollups_agree(hour + HOUR_US, None)).differences == []
        assert (await store.rollups_agree(None, hour)).differences == []

    run(play())


def test_dimensions_are_few_and_say_what_their_rows_have_in_common(any_store):
    run, store = any_store

    async def play() -> None:
        lines = [
            orjson.dumps(request(f"r{n}", attempts=[attempt(), attempt(2)])) for n in range(50)
        ]
        await store.append(lines)
        other = Store(store._engine)  # another process: it knows of nothing written before
        await other.append([orjson.dumps(request("other", worker="w2"))])
        found = await store.select(sa.select(request_dimensions))
        assert len(found) == 2  # of two attempts and of one
        assert {row["alias"] for row in found} == {"fast"}

    run(play())


def test_the_hours_are_those_of_the_request(any_store):
    run, store = any_store
    late = START_US + HOUR_US - 1

    async def play() -> None:
        await store.append(
            [
                orjson.dumps(
                    request("r", started_at_us=late, attempts=[attempt(started_at_us=late + 5)])
                )
            ]
        )
        (row,) = await store.select(sa.select(attempt_hours.c.hour_us))
        assert row["hour_us"] == START_US

    run(play())
