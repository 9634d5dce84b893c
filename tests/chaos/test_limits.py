"""Limits hold under concurrency, when models write more than asked, and while Redis goes away.

The gates are real, each with a connection of its own, as workers have; so is Redis, behind a link
that fails on command. Requests are played: what is counted is what gates admit and are told.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import redis

from gateway.domain.errors import StoreUnavailable
from gateway.domain.limit import Limit, Outage, Period, Unit
from gateway.limits import Admission, Ask, RedisGate, Used, refusal
from gateway.limits.gate import Ready
from gateway.redis_link import RedisLink
from gateway.runtime import SystemClock
from tests.chaos.proxy import ChaosProxy
from tests.promises import promise
from tests.servers import Valkey

pytestmark = pytest.mark.xdist_group("chaos_limits")

SOON_S = 60.0  # a busy machine's patience


@dataclass
class Tally:
    """What the requests of one holder of one limit came to, as the requests know it."""

    of: Limit
    used: int = 0
    admitted: int = 0
    refused: int = 0
    failed: int = 0  # 503
    waited: int = 0  # decided without Redis, after having asked it
    ids: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    async def ask(self, gate: RedisGate, amount: int) -> Admission | None:
        """Begin a request; None where it is not let in."""
        self.ids += 1
        waiting = gate.begin(f"{self.of.name}-{self.ids}", (Ask(self.of, "k", amount),))
        admission = await waiting
        self.waited += admission.store_down and not isinstance(waiting, Ready)
        if admission.refused is None:
            self.admitted += 1
            return admission
        error = refusal(admission, 0.0)
        self.errors[type(error).__name__] += 1
        self.refused += 1
        self.failed += isinstance(error, StoreUnavailable)
        return None

    def settle(self, gate: RedisGate, admission: Admission, amount: int) -> None:
        self.used += amount
        gate.settle(admission, Used(tokens=amount, nano_usd=amount))

    async def remaining(self, gate: RedisGate) -> int:
        self.ids += 1
        admission = await gate.begin(f"{self.of.name}-{self.ids}", (Ask(self.of, "k", 0),))
        gate.release(admission)
        assert not admission.store_down
        return admission.standings[0].remaining

    async def settles_at(self, gate: RedisGate, remaining: int) -> None:
        """Leases end, settlements arrive: then the store says what the requests know."""
        found = None
        try:
            async with asyncio.timeout(SOON_S):
                while (found := await self.remaining(gate)) != remaining:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{found} remain, not {remaining}") from None


@asynccontextmanager
async def gates(url: str, count: int, *, lease_s: float) -> AsyncIterator[list[RedisGate]]:
    """As many workers."""
    async with AsyncExitStack() as stack:
        out = []
        for _ in range(count):
            link = RedisLink(url, timeout_s=0.25)
            await link.connect()
            stack.push_async_callback(link.aclose)
            out.append(RedisGate(link, SystemClock(), workers=count, lease_s=lease_s))
        yield out


def budget(name: str, amount: int, outage: Outage = Outage.REFUSE) -> Limit:
    return Limit(
        name=name, per="key", unit=Unit.USD, amount=amount, period=Period.MONTH, outage=outage
    )


async def test_a_budget_holds_at_200_at_once(redis_url: str) -> None:
    """3,000 requests of random cost, a tenth of them abandoned: nobody settles their holds."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    tally = Tally(budget("spend", 350_000))
    numbers = iter(range(3000))
    async with gates(redis_url, 4, lease_s=2.0) as workers:

        async def client(gate: RedisGate) -> None:
            for number in numbers:
                hold = rng.randint(50, 400)
                admission = await tally.ask(gate, hold)
                await asyncio.sleep(rng.random() * 0.02)
                if admission is not None and number % 10:
                    tally.settle(gate, admission, rng.randint(hold // 4, hold))

        await asyncio.gather(*(client(workers[n % 4]) for n in range(200)))
        assert tally.used <= tally.of.amount, seed
        await tally.settles_at(workers[0], tally.of.amount - tally.used)  # no hold has leaked
        while (admission := await tally.ask(workers[0], rng.randint(50, 400))) is not None:
            tally.settle(workers[0], admission, admission.asks[0].amount)
            assert tally.used <= tally.of.amount, seed
        assert tally.failed == 0
    share = tally.used / tally.of.amount
    assert share >= 0.98, seed
    promise("I-4", f"overshoot 0 in {tally.ids:,} requests, {share:.1%} used, 0 holds leaked")


async def test_what_a_model_writes_beyond_its_cap_is_counted(redis_url: str) -> None:
    """Three times what was held: alone, one request goes beyond; together, those under way."""
    alone, crowd = Tally(budget("alone", 10_000)), Tally(budget("crowd", 10_000))
    async with gates(redis_url, 1, lease_s=60.0) as (gate,):
        while (admission := await alone.ask(gate, 1000)) is not None:
            before = alone.used
            alone.settle(gate, admission, 3000)
        assert before <= alone.of.amount < alone.used
        assert alone.used - alone.of.amount <= 2000
        assert gate.overrun["alone"] == alone.admitted * 2000

        admissions = [await crowd.ask(gate, 1000) for _ in range(20)]
        under_way = [a for a in admissions if a is not None]
        assert len(under_way) == 10
        for admission in under_way:
            crowd.settle(gate, admission, 3000)
        assert await crowd.ask(gate, 1) is None
        assert crowd.used - crowd.of.amount <= 2000 * len(under_way)
        assert await crowd.remaining(gate) == crowd.of.amount - crowd.used
    over = -(-(alone.used - alone.of.amount) // 3000)
    promise("I-5", f"{over} request beyond at N=1, overrun told, the next refused")


WORKERS = 2
CLIENTS = 6


@dataclass
class Scene:
    """Two workers over one link to a Redis of our own."""

    server: Valkey
    link: ChaosProxy
    gates: list[RedisGate]
    soft: Tally
    hard: Tally

    def admin(self) -> redis.Redis:
        return redis.Redis(port=self.server.port)


@asynccontextmanager
async def scene(*, lease_s: float = 3.0) -> AsyncIterator[Scene]:
    with Valkey.start() as server:
        where = urlsplit(server.url)
        async with (
            ChaosProxy(where.hostname or "", where.port or 0) as link,
            gates(f"redis://127.0.0.1:{link.port}/0", WORKERS, lease_s=lease_s) as workers,
        ):
            soft = Tally(budget("soft", 40_000_000, Outage.ALLOWANCE))
            yield Scene(server, link, workers, soft, Tally(budget("hard", 10**12)))


async def silent(place: Scene) -> None:
    place.link.cut()


async def down(place: Scene) -> None:
    await place.link.down()


async def slow(place: Scene) -> None:
    place.link.latency_s = 1.0  # each way


async def out_of_memory(place: Scene) -> None:
    place.admin().config_set("maxmemory", 1)


async def heal(place: Scene) -> None:
    place.link.heal()
    place.link.latency_s = 0.0
    if place.link._server is None:
        await place.link.up()
    place.admin().config_set("maxmemory", 0)


FAULTS = [silent, down, slow, out_of_memory]


async def clients(place: Scene, stop: asyncio.Event) -> None:
    """Requests on both limits, at both workers, until told to stop."""

    async def client(number: int) -> None:
        rng = random.Random(number)
        gate = place.gates[number % WORKERS]
        while not stop.is_set():
            for tally in (place.soft, place.hard):
                hold = rng.randint(500, 1000)
                admission = await tally.ask(gate, hold)
                await asyncio.sleep(0.002)
                if admission is not None:
                    tally.settle(gate, admission, rng.randint(200, hold))

    await asyncio.gather(*(client(n) for n in range(CLIENTS)))


async def until(true) -> None:
    async with asyncio.timeout(SOON_S):
        while not true():
            await asyncio.sleep(0.01)


async def storm(fault) -> int:
    """One fault under load, and its end; returns how many soft requests were served."""
    async with scene() as place:
        stop = asyncio.Event()
        load = asyncio.ensure_future(clients(place, stop))
        await until(lambda: place.soft.admitted > 100 and place.hard.admitted > 100)
        await fault(place)
        failures = [gate.failures for gate in place.gates]
        await until(
            lambda: all(g.failures > f + 100 for g, f in zip(place.gates, failures, strict=True))
        )
        admitted, failed = place.hard.admitted, place.hard.failed
        await until(lambda: place.hard.failed > failed + 50)
        assert place.hard.admitted == admitted, fault  # nothing is let in unseen
        await heal(place)
        await until(lambda: place.hard.admitted > admitted + 100)
        stop.set()
        await load
        # Who asked and was not answered waited once; after that nobody asks. Out of memory is an
        # answer, and costs nobody any time.
        waits = place.soft.waited + place.hard.waited
        assert fault is out_of_memory or waits <= 2 * CLIENTS, (fault, waits)
        assert place.soft.refused == 0, fault
        for tally in (place.soft, place.hard):
            await tally.settles_at(place.gates[0], tally.of.amount - tally.used)
        assert [gate.lost for gate in place.gates] == [0, 0], fault
        return place.soft.admitted


async def test_while_redis_is_away_soft_limits_go_on_and_hard_ones_refuse() -> None:
    served = sum([await storm(fault) for fault in FAULTS])
    promise("I-6b", f"0 of {served:,} soft refused (silent, down, 2 s late, out of memory); exact")


async def test_an_allowance_is_what_it_says() -> None:
    """Away for good: each worker takes its share of a quarter of what it last saw."""
    async with scene() as place:
        tally = Tally(budget("small", 100_000, Outage.ALLOWANCE))
        for gate in place.gates * 3:
            admission = await tally.ask(gate, 10_000)
            assert admission is not None
            tally.settle(gate, admission, 10_000)
        await asyncio.gather(*(tally.remaining(gate) for gate in place.gates))
        seen = tally.of.amount - tally.used
        before = tally.used
        await place.link.down()
        for gate in place.gates:
            await until(lambda gate=gate: not gate._link.ready)
            while (admission := await tally.ask(gate, 1000)) is not None:
                tally.settle(gate, admission, 1000)
        assert tally.used - before == seen // 4
        assert tally.errors == {"RateLimited": WORKERS}
        await place.link.up()
        await until(lambda: all(gate._link.ready for gate in place.gates))
        await tally.settles_at(place.gates[0], tally.of.amount - tally.used)


async def test_a_store_that_lost_its_memory_does_not_open_budgets_again() -> None:
    async with scene() as place:
        tally = Tally(budget("spend", 10_000))
        first, second = place.gates
        for gate in (first, second) * 4:
            admission = await tally.ask(gate, 1000)
            assert admission is not None
            tally.settle(gate, admission, 1000)
        open_one = await tally.ask(first, 500)
        place.admin().flushall()
        place.admin().script_flush()
        place.link.reset()
        await until(
            lambda: place.link.accepted >= 2 * WORKERS and all(g._link.ready for g in place.gates)
        )
        assert await tally.remaining(first) == 10_000 - 8000 - 500
        assert open_one is not None
        tally.settle(first, open_one, 500)
        while (admission := await tally.ask(second, 250)) is not None:
            tally.settle(second, admission, 250)
        assert tally.used <= tally.of.amount


async def test_a_reset_connection_loses_no_settlement() -> None:
    async with scene() as place:
        stop = asyncio.Event()
        load = asyncio.ensure_future(clients(place, stop))
        for _ in range(5):
            before = place.hard.admitted
            await until(lambda before=before: place.hard.admitted > before + 50)
            place.link.reset()
        before = place.hard.admitted
        await until(lambda: place.hard.admitted > before + 50)
        stop.set()
        await load
        for tally in (place.soft, place.hard):
            await tally.settles_at(place.gates[0], tally.of.amount - tally.used)


async def test_a_hold_whose_answer_was_lost_is_given_back() -> None:
    async with scene(lease_s=600.0) as place:
        gate, tally = place.gates[0], place.hard
        gate._link._transport.pause_reading()  # type: ignore[union-attr]
        asking = asyncio.ensure_future(tally.ask(gate, 1000))
        await until(lambda: place.admin().exists("wb:{limits}:h:hard-1"))
        assert await asking is None
        assert tally.errors == {"StoreUnavailable": 1}
        await until(lambda: gate._link.ready)
        await tally.settles_at(gate, tally.of.amount)


async def test_an_unknown_script_costs_no_request(redis_url: str) -> None:
    async with gates(redis_url, 1, lease_s=60.0) as (gate,):
        tally = Tally(budget("spend", 10_000))
        with redis.Redis.from_url(redis_url) as server:
            for _ in range(5):
                server.script_flush()
                admission = await tally.ask(gate, 1000)
                assert admission is not None
                assert not admission.store_down
                server.script_flush()
                tally.settle(gate, admission, 100)
        assert await tally.remaining(gate) == 9500


@pytest.mark.parametrize("days", [-40, -1, 1, 40])
async def test_a_worker_whose_clock_is_off_opens_no_other_period(redis_url: str, days: int) -> None:
    class Wrong(SystemClock):
        def wall(self) -> float:  # type: ignore[override]
            return SystemClock.wall() + days * 86_400

    day = Limit(name="daily", per="key", unit=Unit.TOKENS, amount=100, period=Period.DAY)
    async with gates(redis_url, 1, lease_s=60.0) as (right,):
        tally = Tally(day)
        assert await tally.ask(right, 80) is not None
        wrong = RedisGate(right._link, Wrong(), lease_s=60.0)
        assert await tally.ask(wrong, 30) is None
        assert await tally.ask(wrong, 20) is not None
        assert round(wrong.clock_offset_s / 86_400) == -days
        with redis.Redis.from_url(redis_url) as server:
            assert len(list(server.scan_iter("wb:{limits}:n:*"))) == 1
