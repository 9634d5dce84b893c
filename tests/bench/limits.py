"""CPU of limits: what holding and settling cost the gateway's process and Redis, per request.

    .venv/bin/python -m tests.bench.limits [--requests 8000] [--rounds 7]

Sixteen tasks ask at once, as concurrent requests do. A request is: which limits count, `begin`, its
answer, `settle`. `ping` is one bare command on the same connection, awaited: what no use of Redis
goes below. Rounds of the variants alternate, so noise of the machine falls on all; figures are
medians of the rounds. `redis` is the CPU of the server, from its own INFO.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal

import redis
import uvloop

from gateway.domain.caller import Caller
from gateway.domain.catalog import Alias, Backend, Catalog, Kind, Model, Target
from gateway.domain.limit import Limit, Period, Unit
from gateway.domain.money import Rates
from gateway.domain.request import Endpoint, ModelRequest
from gateway.limits import Gate, LimitIndex, LocalGate, RedisGate, Used
from gateway.redis_link import RedisLink
from gateway.runtime import SystemClock
from tests.servers import Valkey

AT_ONCE = 16
TARGET = Target("b", "m")
CATALOG = Catalog(
    privacy_classes=("public",),
    backends={
        "b": Backend(
            name="b",
            kind=Kind.CLOSED_API,
            wire="openai_http",
            base_url="http://b",
            models={"m": Model(name="m")},
            clearance=0,
        )
    },
    aliases={"chat": Alias(name="chat", targets=(TARGET,))},
    digest="",
)
RATES = {TARGET: Rates(id="", input=Decimal("1.25"), output=Decimal(10))}
CALLER = Caller(key_id="k1", name="", tags={"team": "search"})
REQUEST = ModelRequest(
    endpoint=Endpoint.CHAT,
    alias="chat",
    document={},
    stream=False,
    usage_wanted=False,
    prompt_tokens=500,
    output_tokens_max=200,
    needs=frozenset(),
)
LARGE = 10**12
LIMITS = (
    Limit(name="team-month", per="team", unit=Unit.USD, amount=LARGE, period=Period.MONTH),
    Limit(name="key-rate", per="key", unit=Unit.REQUESTS, amount=LARGE, period=Period.MINUTE),
    Limit(name="key-tokens", per="key", unit=Unit.TOKENS, amount=LARGE, period=Period.DAY),
    Limit(name="key-at-once", per="key", unit=Unit.CONCURRENT, amount=1000),
)
USED = Used(tokens=650, nano_usd=1_500_000)

One = Callable[[], Awaitable[object]]


def request_of(gate: Gate, limits: tuple[Limit, ...]) -> One:
    index = LimitIndex(limits, CATALOG, RATES)
    numbers = itertools.count()
    run = f"req_{os.getpid()}_{id(index):x}_"

    async def one() -> None:
        asks = index.asks_for(CALLER, REQUEST)
        if not asks:
            return
        admission = await gate.begin(f"{run}{next(numbers)}", asks)
        assert admission.refused is None
        gate.settle(admission, USED)

    return one


async def measure(one: One, requests: int) -> float:
    """CPU seconds of this process for so many, in `AT_ONCE` tasks."""
    left = iter(range(requests))

    async def task() -> None:
        for _ in left:
            await one()

    gc.collect()
    started = time.process_time()
    await asyncio.gather(*(task() for _ in range(AT_ONCE)))
    return time.process_time() - started


def server_cpu(server: redis.Redis) -> float:
    info = server.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def run(url: str, requests: int, rounds: int) -> None:
    link = RedisLink(url, timeout_s=10.0)
    await link.connect()
    shared, own = RedisGate(link, SystemClock()), LocalGate(SystemClock())
    variants: dict[str, One] = {
        "ping": lambda: link.command("PING"),
        "no limits": request_of(shared, ()),
        "1 limit": request_of(shared, LIMITS[:1]),
        "4 limits": request_of(shared, LIMITS),
        "1 limit, in process": request_of(own, LIMITS[:1]),
        "4 limits, in process": request_of(own, LIMITS),
    }
    here: dict[str, list[float]] = {name: [] for name in variants}
    there: dict[str, list[float]] = {name: [] for name in variants}
    with redis.Redis.from_url(url) as server:
        for _ in range(rounds):
            for name, one in variants.items():
                before = server_cpu(server)
                here[name].append(await measure(one, requests))
                await link.command("PING")  # what was settled last has been done
                there[name].append(server_cpu(server) - before)
    await link.aclose()
    print(f"{requests} requests a round, {AT_ONCE} at once, median of {rounds}; µs of CPU each")
    print("| | gateway | redis |\n|---|---|---|")
    for name in variants:
        figures = (1e6 * statistics.median(x[name]) / requests for x in (here, there))
        print(f"| {name} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.limits", description=__doc__)
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with Valkey.start() as server:
        uvloop.run(run(server.url, arguments.requests, arguments.rounds))


if __name__ == "__main__":
    main()
