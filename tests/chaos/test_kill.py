"""kill -9 at any moment: of workers under load, then of everything at once.

Each call has a session of its own, so a row tells which call it is of, and a call with two rows is
seen although ids are unique. What a client was told must be in the ledger; what it was not told may
be there, once, as `interrupted` or as whatever had been written down before the answer got out.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter

import pytest

from gateway.domain.outcome import Outcome
from tests.chaos.audit import audited, check_rows, duplicates, missing, outcomes, prices
from tests.chaos.load import Load, chat
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, vendor_in_loop

CLIENTS = 50
KILLS = {"sqlite": 10, "postgres": 4}

pytestmark = pytest.mark.xdist_group("chaos_kill")


total: Counter[str] = Counter()  # over both databases, for the figures


def calls_of(key: str):
    """Streams, whole answers, a third of a price each, and a refusal now and then."""

    def make(number: int):
        headers = {"authorization": f"Bearer {key}", "x-weighbridge-session": f"call {number}"}
        if number % 10 == 3:
            return chat(model="chatt"), headers
        if number % 10 == 7:
            return chat(), {**headers, "authorization": "Bearer wb_live_not_a_key"}
        return chat(f"call {number}", stream=number % 2 == 0), headers

    return make


async def kill_workers(running: GatewayProcess, load: Load, kills: int, seed: int) -> int:
    """SIGKILL at random; the sum of the calls under way at those moments."""
    chance = random.Random(seed)
    in_flight = 0
    for _ in range(kills):
        answered, since = len(load.history), time.monotonic()
        await asyncio.sleep(chance.uniform(0.1, 0.9))
        while len(load.history) < answered + 20:  # a kill among the dead proves nothing
            assert time.monotonic() - since < 20, "no worker answers any more"
            await asyncio.sleep(0.02)
        victim = chance.choice(await asyncio.to_thread(running.children))
        in_flight += load.open
        os.kill(victim, signal.SIGKILL)
    return in_flight


async def kill_all(running: GatewayProcess, load: Load) -> int:
    """Everything at once; the supervisor stands still meanwhile, so that it can replace nobody."""
    await asyncio.sleep(0.5)
    supervisor = running.process.pid
    os.kill(supervisor, signal.SIGSTOP)
    in_flight = load.open
    for pid in (*running.children(), supervisor):
        os.kill(pid, signal.SIGKILL)
    return in_flight


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_no_answer_without_its_row(database: str, request: pytest.FixtureRequest) -> None:
    seed = int(os.environ.get("WEIGHBRIDGE_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    environment = {}
    if database == "postgres":
        environment["WEIGHBRIDGE_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    answering = Script(tokens=8, ttft_s=0.03, itl_s=0.02)
    async with vendor_in_loop({"m": answering}) as vendor:
        catalog = vendor_catalog({"a": f"{vendor.url}/v1", "b": f"{vendor.url}/v1"})
        async with gateway_beside(
            catalog, prices=prices("a", "b"), workers=2, environment=environment
        ) as running:
            async with Load(running.url, CLIENTS, calls_of(running.key)) as load:
                in_flight = await kill_workers(running, load, KILLS[database], seed)
                await asyncio.sleep(0.5)
                in_flight += await kill_all(running, load)
                await asyncio.to_thread(running.restart)
                await asyncio.sleep(0.5)
            told = [answer for answer in load.history if answer.told]
            deadline = time.monotonic() + 20
            while True:
                rows = await running.ledger()
                lost = missing(rows, load.history)
                if not lost or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.5)
            assert not lost, (seed, len(lost), lost[:3])
            assert duplicates(rows) == 0, seed
            assert len({row["id"] for row in rows}) == len(rows) <= len(load.history), seed
            check_rows(rows)
            await audited(running)
            found = outcomes(rows)
            assert found[Outcome.INTERRUPTED] <= in_flight, (seed, found, in_flight)
            assert found[Outcome.OK] > 100, found
            assert found[Outcome.REFUSED] > 20, found
            # Nothing was told half: each call is whole, refused, or visibly broken.
            odd = [a for a in load.history if not a.told and not a.broken]
            assert not odd, (seed, odd[:3])
            total.update(
                kills=KILLS[database] + 1,
                answers=len(told),
                refusals=sum(answer.status != 200 for answer in told),
                crash_closed=found[Outcome.INTERRUPTED],
            )
            promise(
                "I-1",
                f"0 missing, 0 duplicate ({total['kills']} kills, {total['answers']} answers, "
                f"{total['crash_closed']} crash-closed)",
            )
            weighed = [a for r in rows for a in r["attempts"] if a["usage_source"] != "none"]
            costs = [sum(a["cost_nano_usd"] or 0 for a in row["attempts"]) for row in rows]
            assert costs == [row["cost_nano_usd"] or 0 for row in rows]
            assert all(attempt["cost_nano_usd"] for attempt in weighed)
            promise("I-2", f"{len(weighed)} attempts make {len(rows)} requests, to the nano-USD")
            promise(
                "I-28",
                f"{total['answers']} answers = rows, {total['refusals']} of them refusals",
            )
