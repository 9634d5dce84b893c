"""SIGTERM under streams: those that can end do, the late ones are told, every row is written.

First unready but still serving (a load balancer must notice), then no listener, then the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter

import httpx
import pytest

from gateway.domain.outcome import Outcome
from tests.chaos.audit import check_rows, missing, prices
from tests.chaos.load import Answer, call, chat, client
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, ScriptedVendor, until, vendor_in_loop

LAG_S = 2
TOLD_S = 0.5  # for the word to reach every worker of a busy machine
DRAIN_S = 2
ROUNDS = 2
SCRIPTS = {
    "m": Script(tokens=2),
    "short": Script(tokens=15, itl_s=0.1),
    "endless": Script(tokens=10_000, itl_s=0.1),
    "thinking": Script(ttft_s=600),
    "hanging": Script(fault="hang_before_head"),
}
CALLS = {
    # name -> (model, streamed, how many, status, outcome)
    "short streams": ("short", True, 12, 200, Outcome.OK),
    "short answers": ("short", False, 4, 200, Outcome.OK),
    "late streams": ("endless", True, 6, 200, Outcome.FAILED_MIDSTREAM),
    "late answers": ("thinking", False, 3, 503, Outcome.NO_ROUTE),
    "streams without a head": ("hanging", True, 3, 503, Outcome.NO_ROUTE),
}
total: Counter[str] = Counter()

pytestmark = pytest.mark.xdist_group("chaos_drain")


def catalog_of(vendor: ScriptedVendor) -> dict:
    catalog = vendor_catalog(
        {"a": f"{vendor.url}/v1"},
        aliases={name: [f"a/{name}"] for name in SCRIPTS} | {"chat": ["a/m"]},
    )
    models = catalog["backends"]["a"]["models"]
    models |= dict.fromkeys(SCRIPTS, models["m"])
    return catalog


def book_of() -> dict:
    return {
        "version": 1,
        "prices": [price for name in SCRIPTS for price in prices("a", model=name)["prices"]],
    }


async def accepted_during_the_lag(running: GatewayProcess) -> tuple[int, list[Answer]]:
    """Calls on new connections for as long as the gateway says that it is going."""
    served, unready, until_at = [], 0, time.monotonic() + 0.5 * LAG_S
    while time.monotonic() < until_at:
        async with client(running.url) as http:
            state = await http.get("/readyz")
            unready += state.status_code == 503
            served.append(await call(http, chat(), headers=running.auth))
    return unready, served


async def one_round(running: GatewayProcess, vendor: ScriptedVendor) -> list[Answer]:
    vendor.clear()
    async with client(running.url, running.auth) as http:
        under_way = {
            name: [
                asyncio.ensure_future(call(http, chat(model=model, stream=stream)))
                for _ in range(count)
            ]
            for name, (model, stream, count, _, _) in CALLS.items()
        }
        await until(lambda: vendor.received == sum(count for _, _, count, _, _ in CALLS.values()))
        await asyncio.sleep(0.3)
        told_at = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(TOLD_S)
        unready, served = await accepted_during_the_lag(running)
        assert unready == len(served) > 0
        assert all(answer.ok for answer in served), served
        await asyncio.sleep(told_at + LAG_S + 0.5 - time.monotonic())
        with pytest.raises(httpx.ConnectError):
            await httpx.AsyncClient().get(running.url + "/readyz")
        history = list(served)
        for name, (_, stream, _, status, outcome) in CALLS.items():
            answers = await asyncio.gather(*under_way[name])
            history += answers
            for answer in answers:
                assert answer.told, (name, answer)
                assert answer.status == status, (name, answer)
                if outcome is Outcome.OK:
                    assert answer.ok, (name, answer)
                    assert len(answer.text.split()) == 15
                else:
                    assert answer.error["code"] == "overloaded", (name, answer)
                    assert not answer.done
                    assert answer.ended_at - told_at > LAG_S + DRAIN_S - 0.1
                    assert answer.stream is stream
    all_told_at = time.monotonic()
    status = await asyncio.to_thread(running.process.wait, 10)
    said = "".join(running.output)
    assert status == 0, said[-3000:]
    assert "Traceback" not in said, "an orderly end is no error"
    assert time.monotonic() - all_told_at < 8.0, "it waited for nobody"
    total["ended"] += sum(answer.ok for answer in history)
    total["told"] += sum(not answer.ok for answer in history)
    return history


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_runs_ends_what_is_late_is_told(workers: int) -> None:
    limits = {
        "WEIGHBRIDGE_DRAIN_LAG_S": str(LAG_S),
        "WEIGHBRIDGE_DRAIN_S_MAX": str(DRAIN_S),
    }
    history: list[Answer] = []
    async with (
        vendor_in_loop(SCRIPTS) as vendor,
        gateway_beside(
            catalog_of(vendor), prices=book_of(), workers=workers, environment=limits
        ) as running,
    ):
        for number in range(ROUNDS):
            if number:
                await asyncio.to_thread(running.restart)
            history += await one_round(running, vendor)
        rows = await running.ledger(len(history))
        assert not list((running.home / "journal").glob("*.jsonl")), "rows were left behind"
    assert len(rows) == len(history)
    assert not missing(rows, history)
    check_rows(rows)
    by_id = {row["id"]: row for row in rows}
    for answer in history:
        row = by_id[answer.id]
        assert row["http_status"] == answer.status
        assert (row["outcome"] == Outcome.OK) == answer.ok, row
        if not answer.ok:
            model = row["alias"]
            (outcome,) = {o for m, _, _, _, o in CALLS.values() if m == model}
            assert row["outcome"] == outcome, row
            assert row["error_code"] == "overloaded"
    total["rounds"] += ROUNDS
    promise(
        "I-23",
        f"0 cut, 0 lost ({total['rounds']} times: {total['ended']} ended, {total['told']} "
        "were told at the deadline)",
    )


async def test_a_worker_that_is_just_starting_does_not_hold_the_end_up() -> None:
    async with (
        vendor_in_loop(SCRIPTS) as vendor,
        gateway_beside(catalog_of(vendor), workers=2) as running,
    ):
        for after_s in (0.0, 0.05, 0.3):
            if running.process.poll() is not None:
                await asyncio.to_thread(running.restart)
            before = running.children()
            os.kill(before[0], signal.SIGKILL)
            await until(lambda seen=before: set(running.children()) - set(seen))
            await asyncio.sleep(after_s)
            since = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(running.process.wait, 20)
            assert status == 0, (after_s, "".join(running.output[-20:]))
            assert time.monotonic() - since < 10, after_s


async def test_no_worker_outlives_its_supervisor_not_even_one_that_is_just_starting() -> None:
    async with (
        vendor_in_loop(SCRIPTS) as vendor,
        gateway_beside(catalog_of(vendor), workers=2) as running,
    ):
        before = set(running.children())
        os.kill(min(before), signal.SIGKILL)
        await until(lambda: set(running.children()) - before)
        workers = running.children()
        os.kill(running.process.pid, signal.SIGKILL)
        try:
            async with asyncio.timeout(15):
                while await listening(running.url):
                    await asyncio.sleep(0.1)
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def listening(url: str) -> bool:
    try:
        async with client(url) as http:
            await http.get("/readyz", timeout=1)
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:
        pass
    return True
