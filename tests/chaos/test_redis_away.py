"""Redis goes away in every manner: requests are served, a few of them late, and affinity returns.

Late is who was under way when Redis fell silent: with `CLIENTS` of them each waits once, at most
`redis_ms_max`, and nobody waits again until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from gateway.redis_link import RedisLink
from tests.chaos.load import Answer, Load, call, chat, client
from tests.chaos.proxy import ChaosProxy
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, ScriptedVendor, vendor_in_loop

CLIENTS = 3
WORKERS = 2
SLOW_S = 0.2  # added
VENDOR_S = 0.03
ANSWERING = Script(tokens=2, ttft_s=VENDOR_S)
FAILING = replace(ANSWERING, status=503)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_redis")]


@dataclass
class Place:
    running: GatewayProcess
    link: ChaosProxy
    first: ScriptedVendor
    second: ScriptedVendor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(_both: dict[str, str]) -> AsyncIterator[Place]:
    redis = urlsplit(_both["WEIGHBRIDGE_TEST_REDIS_URL"])
    async with (
        ChaosProxy(redis.hostname, redis.port) as link,
        vendor_in_loop({"m": ANSWERING}) as first,
        vendor_in_loop({"m": ANSWERING}) as second,
    ):
        catalog = vendor_catalog({"a": f"{first.url}/v1", "b": f"{second.url}/v1"})
        through = f"redis://127.0.0.1:{link.port}/63"
        async with gateway_beside(
            catalog, workers=WORKERS, environment={"WEIGHBRIDGE_REDIS_URL": through}
        ) as running:
            yield Place(running, link, first, second)


async def degraded(place: Place) -> list[str]:
    """What one worker says: a new connection each time, so it may be any."""
    async with client(place.running.url) as http:
        answer = await http.get("/readyz")
    assert answer.status_code == 200
    found: list[str] = answer.json()["degraded"]
    return found


async def seen_away(place: Place) -> None:
    """A worker says so; one that nobody asked anything meanwhile may not know."""
    async with asyncio.timeout(10):
        while not any(await asyncio.gather(*(degraded(place) for _ in range(8)))):
            pass


async def ready_again(place: Place) -> None:
    """Each worker holds its connection, and keeps it. Asking would not do: one may hear all."""
    async with asyncio.timeout(20):
        steady = 0
        while steady < 5:
            steady = steady + 1 if place.link.open == WORKERS else 0
            await asyncio.sleep(0.1)
    assert await degraded(place) == []


async def served_by(place: Place, session: str) -> Answer:
    async with client(place.running.url) as http:
        answer = await call(
            http, chat(), headers={**place.running.auth, "x-weighbridge-session": session}
        )
    assert answer.ok, answer
    return answer


async def test_a_conversation_stays_where_it_was_whichever_worker_serves_it(place: Place) -> None:
    place.first.scripts["m"] = FAILING
    where = (await served_by(place, "mine")).headers["x-weighbridge-backend"]
    assert where == "b"
    place.first.scripts["m"] = ANSWERING
    await asyncio.sleep(0.1)
    mine = [await served_by(place, "mine") for _ in range(30)]
    others = [await served_by(place, f"other {n}") for n in range(10)]
    assert {a.headers["x-weighbridge-backend"] for a in mine} == {"b"}
    assert {a.headers["x-weighbridge-reason"] for a in mine} == {"affinity"}
    assert {a.headers["x-weighbridge-backend"] for a in others} == {"a"}
    rows = {row["id"]: row for row in await place.running.ledger(41)}
    assert {rows[a.id]["worker"] for a in mine} == {"0", "1"}


async def test_late_but_in_time_is_not_down(place: Place) -> None:
    """Each command has the whole patience for itself, whenever the answer before it came."""
    redis = RedisLink(f"redis://127.0.0.1:{place.link.port}/63", timeout_s=0.25)
    await redis.connect()
    try:
        await asyncio.sleep(0.3)
        assert await redis.command("PING") == b"PONG"
        await asyncio.sleep(0.2)
        place.link.latency_s = 0.05  # each way
        assert await redis.command("PING") == b"PONG"
        assert redis.ready
        assert redis.failures == 0
    finally:
        place.link.latency_s = 0.0
        await redis.aclose()


def added_s(answer: Answer) -> float:
    """What the gateway added, as it says itself: this machine's own pauses are not Redis's."""
    return float(answer.headers["server-timing"].rpartition("overhead;dur=")[2]) / 1000


async def storm(place: Place, name: str, *, lasts_s: float) -> tuple[int, int]:
    """One fault under load, and its end: (answers, late ones)."""
    link = place.link

    def make(number: int):
        return chat(stream=number % 2 == 0), {
            **place.running.auth,
            "x-weighbridge-session": f"{name} {number % 7}",
        }

    async with Load(place.running.url, CLIENTS, make, pause_s=0.005) as load:
        await asyncio.sleep(0.5)
        match name:
            case "silent":
                link.cut()
            case "reset":
                link.reset()
            case "down":
                await link.down()
            case "slow":
                link.latency_s = 1.0  # each way
        await asyncio.sleep(lasts_s)
        if name != "reset":  # which is over before it can be seen
            await seen_away(place)
        match name:
            case "silent":
                link.heal()
            case "down":
                await link.up()
            case "slow":
                link.latency_s = 0.0
        await ready_again(place)
        await asyncio.sleep(0.3)
    failed = [a for a in load.history if not a.ok]
    assert not failed, (name, failed[:3])
    late = [a for a in load.history if not a.stowaway and added_s(a) > SLOW_S]
    return len(load.history), len(late)


async def test_requests_are_served_while_redis_is_away(place: Place) -> None:
    answers, worst = 0, 0
    for name, lasts_s in (("silent", 2.0), ("reset", 0.5), ("down", 2.0), ("slow", 2.5)):
        served, late = await storm(place, name, lasts_s=lasts_s)
        answers, worst = answers + served, max(worst, late)
        assert late <= CLIENTS, (name, late)
    promise(
        "I-6",
        f"0 failed of {answers}, at most {worst} slow (silent, reset, down, 2 s late)",
    )
    # It came back as it was: the pin outlived the storm, and each worker finds it again.
    asked: set[str] = set()
    workers: set[str] = set()
    async with asyncio.timeout(30):
        while workers != {"0", "1"}:
            answers_now = await asyncio.gather(*(served_by(place, "mine") for _ in range(8)))
            assert {a.headers["x-weighbridge-backend"] for a in answers_now} == {"b"}
            asked |= {a.id for a in answers_now}  # their rows come a moment later
            rows = await place.running.ledger()
            workers = {row["worker"] for row in rows if row["id"] in asked}
