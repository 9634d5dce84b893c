"""Events of the fleet on both databases: as they went, once, by time, subject and kind."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.fleet.events import FleetEvent, Kept
from gateway.ledger.fleet_events import append, read
from gateway.ledger.store import Store


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


def row(n: int, **fields: object) -> dict[str, object]:
    base = {"id": f"e{n}", "at_us": n, "kind": "stalls", "subject": "vllm", "source": "h/0"}
    return {**base, "figures": {"n": n, "ü": None}, **fields}


async def test_they_come_back_as_they_went_and_once(store):
    await append(store, [row(1), row(2)])
    await append(store, [row(2, figures={}), row(3)])
    found = await read(store)
    assert [(one.id, dict(one.figures)) for one in found] == [
        ("e3", {"n": 3, "ü": None}),
        ("e2", {"n": 2, "ü": None}),
        ("e1", {"n": 1, "ü": None}),
    ]


async def test_by_time_kind_backend_and_replica(store):
    subjects = ["vllm", "vllm#a", "vllm#b", "vllm2", "v_lm#a"]
    await append(store, [row(n, subject=s) for n, s in enumerate(subjects)])
    await append(store, [row(9, kind="crash")])

    async def found(**by: object) -> list[int]:
        return [one.at_us for one in await read(store, **by)]

    assert await found(backend="vllm") == [9, 2, 1, 0]
    assert await found(backend="vllm#a") == [1]
    assert await found(backend="v_lm") == [4]
    assert await found(kind="crash") == [9]
    assert await found(since_us=1, until_us=3) == [2, 1]
    assert await found(limit=2) == [9, 4]


async def test_what_is_told_is_kept(store):
    kept = Kept(lambda rows: append(store, rows), source="h/1")
    kept.heard(FleetEvent(kind="oom", subject="vllm#a", at_us=5, figures={"kv_used": float("inf")}))
    assert await kept.flush()
    (one,) = await read(store)
    assert (one.kind, one.subject, one.source, one.figures) == (
        "oom", "vllm#a", "h/1", {"kv_used": None},
    )  # fmt: skip


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.delenv("WEIGHBRIDGE_DATABASE_URL", raising=False)
    at_us = 1_700_000_000_000_000

    async def fill() -> None:
        store = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
        figures = {"late_ms": 1.25, "ranks": 2}
        await append(
            store, [row(1, at_us=at_us, figures=figures), row(2, at_us=at_us + 60_000_000)]
        )
        await store.close()

    asyncio.run(fill())

    def run(*args: str) -> str:
        result = CliRunner().invoke(app, ["events", "--since", "2023-11-01", *args])
        assert result.exit_code == 0, result.output
        return result.output

    assert [one["at"] for one in json.loads(run("--json"))] == [
        "2023-11-14T22:14:20Z",
        "2023-11-14T22:13:20Z",
    ]
    assert json.loads(run("--json", "--backend", "other")) == []
    lines = [" ".join(line.split()) for line in run().splitlines()]
    assert lines[-1] == "2023-11-14 22:13:20 stalls vllm late_ms 1.25, ranks 2 h/0"
    assert run("--until", "2023-11-02") == (
        "nothing happened from 2023-11-01 00:00 to 2023-11-02 00:00 UTC\n"
    )
