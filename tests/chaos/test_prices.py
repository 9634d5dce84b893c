"""A price goes under load and comes back: nothing costs 0, and what had no price gets one later.

The price book is changed as an operator would: the file, `policy rollback`, `prices rerate`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from gateway.ledger import known_prices
from gateway.ledger.store import Store
from gateway.ledger.versions import Versions
from gateway.settings import Settings
from tests.chaos.audit import audited, check_rows, prices
from tests.chaos.load import Load, chat, client
from tests.gateway_process import CLI, GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, until, vendor_in_loop

pytestmark = pytest.mark.xdist_group("chaos_database")

CLIENTS = 12
PHASE = 150  # answers at least, with a price and without


async def cli(running: GatewayProcess, *arguments: str) -> tuple[int, dict]:
    done = await asyncio.to_thread(
        subprocess.run,
        [*CLI, *arguments, "--json"],
        env=running.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


async def switched(running: GatewayProcess, number: int, workers: int) -> None:
    """Until every worker has said that this version is in force."""
    deadline = time.monotonic() + 60
    while sum(f"policy: version {number} (" in line for line in running.output) < workers:
        assert time.monotonic() < deadline, "".join(running.output[-20:])
        await asyncio.sleep(0.02)


def write(file: Path, book: dict) -> None:
    """As editors do that write beside it and rename."""
    fresh = file.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(book, sort_keys=False))
    fresh.replace(file)


async def more(load: Load, count: int) -> None:
    before = len(load.history)
    enough: Callable[[], bool] = lambda: len(load.history) >= before + count  # noqa: E731
    await until(enough, 60)


async def told(running: GatewayProcess) -> tuple[list[tuple[int, str, bool]], list[str]]:
    """Number, bundle and whether it states a price, of each statement; the versions' bundles."""
    store = await Store.connect(Settings.load(running.environment).ledger_url)
    said = [(s.number, s.digest, s.terms is not None) for s in await known_prices.statements(store)]
    digests = [version.digest for version in reversed(await Versions(store).history())]
    await store.close()
    return said, digests


async def test_a_price_that_goes_under_load_leaves_rows_without_a_price(postgres_url: str) -> None:
    async with vendor_in_loop({"m": Script(tokens=4, ttft_s=0.01, itl_s=0.002)}) as vendor:
        catalog = vendor_catalog({"a": f"{vendor.url}/v1"})
        book = prices("a")
        async with gateway_beside(
            catalog,
            prices=book,
            workers=2,
            environment={"WEIGHBRIDGE_DATABASE_URL": postgres_url},
        ) as running:
            file = running.home / "policies" / "prices" / "test.yaml"

            def make(number: int):
                return chat(f"call {number}", stream=number % 2 == 0), running.auth

            async with Load(running.url, CLIENTS, make) as load:
                await more(load, PHASE)
                write(file, {"version": 1, "prices": []})
                await switched(running, 2, 2)
                await more(load, PHASE)
                status, found = await cli(running, "policy", "rollback")
                assert (status, found["version"]["number"]) == (0, 3)
                await switched(running, 3, 2)
                await more(load, PHASE)
            assert all(answer.ok for answer in load.history)
            rows = await running.ledger(len(load.history))
            async with client(running.url) as http:
                page = (await http.get("/metrics")).text
            said, digests = await told(running)
            free = [r for r in rows if r["cost_nano_usd"] == 0 and r["output_tokens"]]
            weighed = [r for r in rows if r["usage_source"] != "none"]  # stowaways are refused
            without = [r for r in weighed if r["cost_nano_usd"] is None]
            assert (len(rows), free) == (len(load.history), [])
            assert len(without) >= PHASE // 2
            assert {r["policy_digest"] for r in without} == {digests[1]}
            name = 'weighbridge_unpriced_requests_total{backend="a",model="m"} '
            assert f"{name}{len(without)}.0" in page, page
            # Two workers saw the file change, and each change was stated once.
            assert said == [(1, digests[0], True), (2, digests[1], False), (3, digests[2], True)]

            status, seen = await cli(running, "prices", "rerate", "--since", "1d")
            assert (status, seen["applied"], seen["total"]["get_a_price"]) == (
                0,
                False,
                len(without),
            )
            status, made = await cli(running, "prices", "rerate", "--since", "1d", "--apply")
            assert (status, made["run"], made["total"]["corrected"]) == (0, 1, len(without))
            status, again = await cli(running, "prices", "rerate", "--since", "1d", "--apply")
            assert (status, again["run"], again["total"]["corrected"]) == (0, None, 0)
            assert again["total"]["stay_unpriced"] == 0
            await audited(running)
    check_rows([r for r in rows if r not in without])
    promise(
        "I-13",
        f"0 rows with cost 0 of {len(weighed)}, {len(without)} unpriced, all of them priced since",
    )


async def test_a_full_journal_refuses_new_work_and_loses_no_row(postgres_url: str) -> None:
    """I-3's other end: the database stays away until what waits is as large as it may be."""
    from urllib.parse import urlsplit

    from tests.chaos.proxy import ChaosProxy

    url = urlsplit(postgres_url)
    async with (
        ChaosProxy(url.hostname, url.port) as link,
        vendor_in_loop({"m": Script(tokens=2)}) as vendor,
    ):
        through = url._replace(netloc=f"postgres@127.0.0.1:{link.port}").geturl()
        async with gateway_beside(
            vendor_catalog({"a": f"{vendor.url}/v1"}),
            prices=prices("a"),
            environment={
                "WEIGHBRIDGE_DATABASE_URL": through,
                "WEIGHBRIDGE_JOURNAL_BYTES_MAX": str(1024 * 1024),
            },
        ) as running:
            key = await asyncio.to_thread(running.new_key, "--tag", f"note={'x' * 200}")
            auth = {"authorization": f"Bearer {key}"}

            def make(number: int):
                return chat(f"call {number}"), auth

            async with Load(running.url, CLIENTS, make) as load:
                await more(load, 20)
                await link.down()
                await until(lambda: not all(a.ok for a in load.history), 120)
                waiting = len(load.history)
                async with httpx.AsyncClient(base_url=running.url) as http:
                    ready = await http.get("/readyz")
                await link.up()
                await until(lambda: load.history[-1].ok and len(load.history) > waiting, 60)
                await more(load, 20)
            refused = [a for a in load.history if not a.ok]
            assert {(a.status, a.error["code"]) for a in refused} == {(503, "overloaded")}
            assert all("ledger is not accepting rows" in a.error["message"] for a in refused)
            assert (ready.status_code, ready.json()["degraded"]) == (503, ["database"])
            # The refusals have their rows too: what is refused for want of room is small.
            rows = await running.ledger(len(load.history), timeout_s=60)
            assert {row["id"] for row in rows} == {answer.id for answer in load.history}
            check_rows(rows)
