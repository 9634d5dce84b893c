"""I-19: what one worker hears of a vendor holds for all of them.

Two workers of one gateway share a real Redis. `look` has a well backend first, so asking it never
reaches the busy one; but its row tells whether the worker that served it took the busy one for
cooling. That is how we see what a worker knows without changing it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.chaos.audit import Row
from tests.chaos.load import Answer, Load, call, chat, client
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
}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_cooling")]


@dataclass
class Place:
    running: GatewayProcess
    vendor: ScriptedVendor
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def reached(self, model: str) -> int:
        return sum(seen.model == model for seen in self.vendor.log)

    async def ask(self, alias: str) -> Answer:
        """On a connection of its own, so either worker may have it; a new conversation."""
        async with client(self.running.url, self.running.auth) as http:
            return await call(http, chat(f"conversation {next(self.numbers)}", model=alias))

    async def rows(self, answers: list[Answer]) -> list[Row]:
        wanted = {answer.id for answer in answers}
        async with asyncio.timeout(20):
            while True:
                rows = [row for row in await self.running.ledger() if row["id"] in wanted]
                if len(rows) == len(wanted):
                    return rows
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(_both: dict[str, str]) -> AsyncIterator[Place]:
    redis = urlsplit(_both["WEIGHBRIDGE_TEST_REDIS_URL"])
    async with vendor_in_loop(SCRIPTS) as vendor:
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
        async with gateway_beside(
            catalog, workers=len(WORKERS), environment=environment
        ) as running:
            yield Place(running, vendor)


def knows(row: Row) -> bool:
    """Whether the worker of this row took a busy backend for cooling."""
    return any(rule == "cooling" for _, rule, _ in row["decision"]["excluded"])


async def round_of(place: Place, number: int) -> float:
    """One 429, then much looking. Returns after how many seconds the other worker knew."""
    first = await place.ask(f"first{number}")
    until = time.monotonic() + COOL_S
    assert first.ok
    looks: list[Answer] = []
    while time.monotonic() < until - COOL_S / 2:
        looks += await asyncio.gather(*(place.ask(f"look{number}") for _ in range(4)))
    # Everybody asks for the busy one now.
    asks = await asyncio.gather(*(place.ask(f"first{number}") for _ in range(20)))
    in_time = time.monotonic() < until
    reached = place.reached(f"busy{number}")
    rows = {row["id"]: row for row in await place.rows([first, *looks, *asks])}
    teller = rows[first.id]
    assert [(a["http_status"], a["outcome"]) for a in teller["attempts"]] == [
        (429, "failed"),
        (200, "ok"),
    ]
    assert all(answer.ok for answer in looks + asks)
    if in_time:
        assert reached == 1
        assert {rows[answer.id]["worker"] for answer in asks} == WORKERS
    others = [rows[answer.id] for answer in looks if rows[answer.id]["worker"] != teller["worker"]]
    heard_us = min(row["started_at_us"] for row in others if knows(row))
    assert all(knows(row) for row in others if row["started_at_us"] > heard_us)
    return max(0.0, (heard_us - teller["started_at_us"] - teller["duration_us"]) / 1e6)


async def test_one_429_cools_the_backend_for_all_workers(place: Place) -> None:
    told_s = [await round_of(place, number) for number in range(ROUNDS)]
    assert min(told_s) <= TOLD_S, told_s  # the others say how busy this machine is
    amplification, calls = await storm(place)
    promise(
        "I-19",
        f"0 calls while it cools, {median(told_s) * 1000:.0f} ms, "
        f"{amplification:.2f} calls a request ({calls} requests)",
    )


async def storm(place: Place) -> tuple[float, int]:
    """A vendor that answers 429 for ever, over several cool-downs of a second."""

    def make(number: int):
        return chat(f"storm {number}", model="storm"), place.running.auth

    assert (await place.ask("storm")).ok
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


async def test_429_of_all_is_429_with_the_smallest_wait_from_either_worker(place: Place) -> None:
    until = time.monotonic() + COOL_S
    first = await place.ask("all")
    assert (first.status, first.headers["retry-after"]) == (429, str(COOL_S))
    await asyncio.sleep(1.0)  # told, on the slowest machine
    answers = await asyncio.gather(*(place.ask("all") for _ in range(20)))
    if time.monotonic() < until:
        assert place.reached("all1") == place.reached("all2") == 1
        assert {row["worker"] for row in await place.rows(answers)} == WORKERS
    for answer in answers:
        assert answer.status == 429
        assert answer.error["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) < COOL_S


async def test_when_it_is_well_again_both_workers_come_back(place: Place) -> None:
    place.vendor.scripts["storm"] = WELL
    back: set[str] = set()
    async with asyncio.timeout(20):
        while back != WORKERS:
            answers = await asyncio.gather(*(place.ask("storm") for _ in range(8)))
            rows = await place.rows(answers)
            back |= {row["worker"] for row in rows if row["backend"] == "storm"}
