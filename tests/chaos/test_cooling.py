"""I-19: what one worker hears of a vendor holds for all of them.

Two workers of one gateway share a real Redis. `look` has a well backend first, so asking it never
reaches the busy one; but its row tells whether the worker that served it took the busy one for
cooling. That is how we see what a worker knows without changing it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from tests.chaos.audit import Row
from tests.chaos.load import CALL_S_MAX, Answer, Load, call, chat
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, ScriptedVendor, vendor_in_loop

WORKERS = {"0", "1"}
ROUNDS = 3
COOL_S = 4
TOLD_S = 0.2
CLIENTS = 10
WELL = Script(tokens=2, ttft_s=0.002)
BUSY = replace(WELL, status=429, retry_after_s=COOL_S)

SCRIPTS = {
    "well": WELL,
    **{f"busy{n}": BUSY for n in range(ROUNDS)},
    "storm": replace(BUSY, retry_after_s=1),
    "all1": BUSY,
    "all2": replace(BUSY, retry_after_s=2 * COOL_S),
}
ALIASES = {
    **{f"first{n}": [f"busy{n}", "well"] for n in range(ROUNDS)},
    **{f"look{n}": ["well", f"busy{n}"] for n in range(ROUNDS)},
    "storm": ["storm", "well"],
    "all": ["all1", "all2"],
    "peek": ["well", "all1"],
}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_cooling")]


@dataclass
class Place:
    running: GatewayProcess
    vendor: ScriptedVendor
    workers: Mapping[str, httpx.AsyncClient]  # each holds a connection to one of them
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def reached(self, model: str) -> int:
        return sum(seen.model == model for seen in self.vendor.log)

    async def ask(self, worker: str, alias: str) -> Answer:
        """A new conversation each time."""
        text = f"conversation {next(self.numbers)}"
        return await call(self.workers[worker], chat(text, model=alias))

    async def rows(self, *answers: Answer) -> list[Row]:
        """Of these, in their order."""
        return await rows_of(self.running, answers)


async def rows_of(running: GatewayProcess, answers: Sequence[Answer]) -> list[Row]:
    async with asyncio.timeout(20):
        while True:
            rows = {row["id"]: row for row in await running.ledger()}
            if all(answer.id in rows for answer in answers):
                return [rows[answer.id] for answer in answers]
            await asyncio.sleep(0.05)


async def connections(
    running: GatewayProcess, stack: AsyncExitStack
) -> Mapping[str, httpx.AsyncClient]:
    """A connection to each worker: who accepts one keeps it."""
    found: dict[str, httpx.AsyncClient] = {}
    one = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None)
    async with asyncio.timeout(30):
        while found.keys() != WORKERS:
            clients = [
                await stack.enter_async_context(
                    httpx.AsyncClient(
                        base_url=running.url,
                        headers=running.auth,
                        timeout=CALL_S_MAX,
                        limits=one,
                        verify=False,
                    )
                )
                for _ in range(8)
            ]
            answers = await asyncio.gather(*(call(c, chat(model="look0")) for c in clients))
            rows = await rows_of(running, answers)
            found |= {row["worker"]: c for row, c in zip(rows, clients, strict=True)}
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(_both: dict[str, str]) -> AsyncIterator[Place]:
    redis = urlsplit(_both["WEIGHBRIDGE_TEST_REDIS_URL"])
    async with vendor_in_loop(SCRIPTS) as vendor, AsyncExitStack() as stack:
        catalog = vendor_catalog(
            dict.fromkeys(SCRIPTS, f"{vendor.url}/v1"),
            aliases={
                alias: [f"{name}/{name}" for name in names] for alias, names in ALIASES.items()
            },
        )
        for name, backend in catalog["backends"].items():
            backend["models"] = {name: backend["models"]["m"]}
        environment = {
            "WEIGHBRIDGE_REDIS_URL": f"redis://{redis.hostname}:{redis.port}/62",
            "WEIGHBRIDGE_REDIS_MS_MAX": "5000",  # a busy machine is no fault of Redis
        }
        running = await stack.enter_async_context(
            gateway_beside(catalog, workers=len(WORKERS), environment=environment)
        )
        yield Place(running, vendor, await connections(running, stack))


def knows(row: Row) -> bool:
    """Whether the worker of this row took a busy backend for cooling."""
    return any(rule == "cooling" for _, rule, _ in row["decision"]["excluded"])


async def told_after_s(place: Place, number: int) -> float:
    """One worker gets a 429: after how many seconds did the other know?"""
    first = await place.ask("0", f"first{number}")
    until = time.monotonic() + COOL_S
    assert first.ok
    looks = []
    while time.monotonic() < until - COOL_S / 2:
        looks.append(await place.ask("1", f"look{number}"))
    asks = [await place.ask(worker, f"first{number}") for worker in ("0", "1") * 5]
    if time.monotonic() < until:
        assert place.reached(f"busy{number}") == 1
    teller, *rows = await place.rows(first, *looks, *asks)
    assert teller["worker"] == "0"
    assert {row["worker"] for row in rows} == WORKERS
    assert all(answer.ok for answer in looks + asks)
    refused, served = teller["attempts"]
    assert (refused["http_status"], served["http_status"]) == (429, 200)
    seen = [(row["started_at_us"], knows(row)) for row in rows[: len(looks)]]
    heard_us = min(at for at, known in seen if known)
    assert all(known for at, known in seen if at > heard_us)
    return max(0.0, (heard_us - refused["started_at_us"] - refused["duration_us"]) / 1e6)


async def storm(place: Place) -> tuple[float, int]:
    """A vendor that answers 429 for ever, over several cool-downs of a second."""

    def make(number: int):
        return chat(f"storm {number}", model="storm"), place.running.auth

    for worker in WORKERS:
        assert (await place.ask(worker, "storm")).ok
    upstream = place.reached("storm") + place.reached("well")
    async with Load(place.running.url, CLIENTS, make, pause_s=0.01) as load:
        async with asyncio.timeout(30):
            while place.reached("storm") < 6 or len(load.history) < 300:
                await asyncio.sleep(0.1)
    assert all(answer.ok for answer in load.history)
    upstream = place.reached("storm") + place.reached("well") - upstream
    amplification = upstream / len(load.history)
    assert amplification <= 1.1
    return amplification, len(load.history)


async def test_one_429_cools_the_backend_for_all_workers(place: Place) -> None:
    told_s = [await told_after_s(place, number) for number in range(ROUNDS)]
    assert min(told_s) <= TOLD_S, told_s  # the others say how busy this machine is
    amplification, calls = await storm(place)
    promise(
        "I-19",
        f"0 calls while it cools, {median(told_s) * 1000:.0f} ms, "
        f"{amplification:.2f} calls a request ({calls} requests)",
    )


async def test_429_of_all_is_429_with_the_smallest_wait_from_either_worker(place: Place) -> None:
    first = await place.ask("0", "all")
    until = time.monotonic() + COOL_S
    assert (first.status, first.headers["retry-after"]) == (429, str(COOL_S))
    async with asyncio.timeout(10):
        while not knows((await place.rows(await place.ask("1", "peek")))[0]):
            pass
    answers = [await place.ask(worker, "all") for worker in ("0", "1") * 5]
    if time.monotonic() < until:
        assert place.reached("all1") == place.reached("all2") == 1
    for answer in answers:
        assert answer.status == 429
        assert answer.error["type"] == "rate_limit_error"
        assert (
            1 <= int(answer.headers["retry-after"]) <= COOL_S + 1
        )  # hearsay waits a little longer


async def test_when_it_is_well_again_both_workers_come_back(place: Place) -> None:
    place.vendor.scripts["storm"] = WELL
    async with asyncio.timeout(20):
        for worker in WORKERS:
            while (await place.ask(worker, "storm")).headers["x-weighbridge-backend"] != "storm":
                await asyncio.sleep(0.05)
