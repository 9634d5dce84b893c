"""Rows of an older schema are moved over: what is read of them is what was, sums included."""

from __future__ import annotations

import orjson
import pytest
import sqlalchemy as sa

from gateway.ledger.store import SchemaMismatch, Store, attempts, request_facts
from tests.unit.ledger import schema_0003
from tests.unit.ledger.audited import records
from tests.unit.ledger.records import STARTED_US, attempt, request

pytest_plugins = ("tests.servers",)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


async def test_rows_of_before_are_as_they_were(url):
    free = attempt(rates_id="free:vllm", cost_nano_usd=0)
    made = [
        *records(2_300),  # more than a page
        *(request(f"same-{n:04}", started_at_us=STARTED_US) for n in range(2_100)),  # one moment
        request("free", cost_nano_usd=0, attempts=[free]),
        request("meters", attempts=[attempt(other_meters={"image": 3}, service_tier="flex")]),
        request("no-clock", started_at_us=5),
        request("far", started_at_us=2**62),
    ]
    engine = await schema_0003.create(url)
    lines = [orjson.dumps(record) for record in made]
    for start in range(0, len(lines), 1_000):
        await schema_0003.append(engine, lines[start : start + 1_000])
    await engine.dispose()
    if url.startswith("postgres"):
        with pytest.raises(SchemaMismatch):
            await Store.connect(url)
    store = await Store.connect(url, auto_migrate=True)
    try:
        found = {record.id: record for record in await store.requests(limit=100_000)}
        for row in await store.select(sa.select(attempts).order_by(attempts.c.number)):
            del row["request_started_at_us"]
            tried = found[row.pop("request_id")].attempts
            tried.append(type(made[0].attempts[0])(**row))
        assert found == {record.id: record for record in made}
        assert (await store.rollups_agree()).differences == []
        await store.append(lines[-50:])  # what is sent again is known
        assert len(await store.select(sa.select(request_facts.c.id))) == len(made)
    finally:
        await store.close()


async def test_an_empty_ledger_of_before(url):
    engine = await schema_0003.create(url)
    await engine.dispose()
    store = await Store.connect(url, auto_migrate=True)
    assert await store.requests() == []
    await store.append([orjson.dumps(request("first"))])
    assert await store.request("first") == request("first")
    await store.close()
