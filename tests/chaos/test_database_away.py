"""Postgres goes away under load: nobody who has a key notices, and every row arrives afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from urllib.parse import urlsplit

import pytest

from gateway.domain.outcome import Outcome
from tests.chaos.audit import audited, check_rows, missing, outcomes, prices
from tests.chaos.load import Load, call, chat, client
from tests.chaos.proxy import ChaosProxy
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, until, vendor_in_loop

CLIENTS = 20
AWAY_S = 4.0

pytestmark = pytest.mark.xdist_group("chaos_database")


async def readiness(url: str) -> tuple[int, list[str]]:
    async with client(url) as http:
        answer = await http.get("/readyz")
        return answer.status_code, answer.json()["degraded"]


async def degraded(url: str, expected: list[str], timeout_s: float = 20.0) -> None:
    """Wait until a worker says so; it must be ready all the while.

    A connection each: a kept one stays with one worker, which may have had no row to write.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        status, found = await readiness(url)
        assert status == 200
        if found == expected:
            return
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def arrive(running: GatewayProcess, load: Load, timeout_s: float = 20.0):
    deadline = time.monotonic() + timeout_s
    while True:
        rows = await running.ledger()
        lost = missing(rows, load.history)
        if not lost:
            return rows
        assert time.monotonic() < deadline, (len(lost), lost[:3])
        await asyncio.sleep(0.1)


async def known_to_all(running: GatewayProcess, workers: int) -> None:
    """Wait until every worker has seen the key: one that has not can verify nobody later."""
    deadline = time.monotonic() + 30
    while len({row["worker"] for row in await running.ledger()}) < workers:
        assert time.monotonic() < deadline, "one worker gets no connection"

        async def once() -> None:
            async with client(running.url, running.auth) as http:
                assert (await call(http, chat())).ok

        await asyncio.gather(*(once() for _ in range(10)))


async def test_traffic_goes_on_and_every_row_arrives(postgres_url: str) -> None:
    url = urlsplit(postgres_url)
    async with (
        ChaosProxy(url.hostname, url.port) as link,
        vendor_in_loop({"m": Script(tokens=6, ttft_s=0.05, itl_s=0.02)}) as vendor,
    ):
        through = url._replace(netloc=f"postgres@127.0.0.1:{link.port}").geturl()
        catalog = vendor_catalog({"a": f"{vendor.url}/v1"})
        async with (
            gateway_beside(
                catalog,
                prices=prices("a"),
                workers=2,
                environment={"WEIGHBRIDGE_DATABASE_URL": through},
            ) as running,
        ):
            late = {"authorization": f"Bearer {await asyncio.to_thread(running.new_key)}"}

            def make(number: int):
                return chat(f"call {number}", stream=number % 2 == 0), running.auth

            await known_to_all(running, 2)
            async with Load(running.url, CLIENTS, make) as load:
                await until(lambda: len(load.history) > 100, 20)
                before = len(load.history)
                await link.down()
                await degraded(running.url, ["database"])
                # A key that no worker has seen cannot be judged: refused, and that is written too.
                async with client(running.url) as http:
                    refused = await call(http, chat(), headers=late)
                load.history.append(refused)
                await asyncio.sleep(AWAY_S)
                during = len(load.history) - before
                await link.up()
                await degraded(running.url, [])

                # Silence is worse than a refusal: nothing fails, everything waits.
                link.cut()
                await asyncio.sleep(2)
                link.heal()

                # A worker that dies meanwhile must not take the other with it.
                await link.down()
                victim = running.children()[0]
                os.kill(victim, signal.SIGKILL)
                await asyncio.sleep(4)
                assert running.process.poll() is None, "".join(running.output[-20:])
                survived = len(load.history)
                await until(lambda: len(load.history) > survived + 50, 10)
                await link.up()
                await until(lambda: len(running.children()) == 2, 10)
            back_at = time.monotonic()
            rows = await arrive(running, load)
            caught_up_s = time.monotonic() - back_at
            await audited(running)

    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    failed = [a for a in load.history if not a.ok and a is not refused]
    broken = [a for a in failed if a.broken]
    assert failed == broken, [a for a in failed if not a.broken][:3]
    assert len(broken) <= CLIENTS  # those the killed worker had
    check_rows(rows)
    assert outcomes(rows).get(Outcome.INTERRUPTED, 0) <= len(broken)
    promise(
        "I-3",
        f"0 failed, 0 missing ({during} answers in {AWAY_S:g} s without the database, "
        f"{len(rows)} rows, all there {caught_up_s:.1f} s after)",
    )
