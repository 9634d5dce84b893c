"""Retries that help and no more: cool-downs, fallback in order, circuits, a bound in total outage.

Each test has backends of its own, for each has a circuit of its own. The vendors count what
reached them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace

import pytest
import pytest_asyncio

from gateway.domain.outcome import Outcome
from tests.chaos.audit import Row
from tests.chaos.load import Answer, call, calls, chat, client
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, ScriptedVendor, until, vendor_in_loop

CLIENTS = 50
CALLS = 500
WELL = Script(tokens=2, itl_s=0.002)
BROKEN = replace(WELL, status=500)
KEEPALIVE_S = 1
FIRST_STATUS_S = 2

SCRIPTS = {
    "cool-a": replace(WELL, status=429, retry_after_s=6),
    "cool-b": WELL,
    "busy-a": replace(WELL, status=429, retry_after_s=7),
    "busy-b": replace(WELL, status=429, retry_after_s=3),
    "out-a": replace(WELL, status=503),
    "out-b": BROKEN,
    "order-a": BROKEN,
    "order-b": replace(WELL, fault="reset_before_head"),
    "order-c": WELL,
    "no-a": replace(WELL, status=401),
    "no-b": replace(WELL, fault="close_before_head"),
    "no-c": replace(WELL, status=502, error="html"),
    "circuit-a": BROKEN,
    "circuit-b": WELL,
    "reject-a": replace(WELL, status=400, error_message="no such thing"),
    "reject-b": WELL,
    "pausing-a": replace(WELL, tokens=3, itl_s=2.4),
    "silent-a": Script(fault="hang_before_head"),
    "silent-b": WELL,
}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_retry")]


@dataclass
class Place:
    running: GatewayProcess
    vendor: ScriptedVendor
    silent: asyncio.Task[Answer]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def reached(self, model: str) -> int:
        return sum(seen.model == model for seen in self.vendor.log)

    async def ask(self, alias: str, *, stream: bool = False) -> Answer:
        """A new conversation each time: nothing ties it to where the last one went."""
        text = f"conversation {next(self.numbers)}"
        async with client(self.running.url, self.running.auth) as http:
            return await call(http, chat(text, model=alias, stream=stream))

    async def row(self, answer: Answer) -> Row:
        async with asyncio.timeout(10):
            while True:
                for row in await self.running.ledger():
                    if row["id"] == answer.id:
                        return row
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    aliases: dict[str, list[str]] = {}
    for name in SCRIPTS:
        aliases.setdefault(name.partition("-")[0], []).append(f"{name}/{name}")
    async with vendor_in_loop(SCRIPTS) as vendor:
        catalog = vendor_catalog(dict.fromkeys(SCRIPTS, f"{vendor.url}/v1"), aliases=aliases)
        for name, backend in catalog["backends"].items():
            backend["models"] = {name: backend["models"]["m"]}
        catalog["backends"]["silent-a"]["limits"] = {
            "connect_ms_max": 500,
            "first_chunk_ms_max": (FIRST_STATUS_S + 2) * 1000,
        }
        environment = {
            "WEIGHBRIDGE_STREAM_KEEPALIVE_S": str(KEEPALIVE_S),
            "WEIGHBRIDGE_FIRST_STATUS_S_MAX": str(FIRST_STATUS_S),
        }
        async with (
            gateway_beside(catalog, environment=environment) as running,
            client(running.url, running.auth) as http,
        ):
            # It takes a while: it runs beside all the others.
            silent = asyncio.ensure_future(call(http, chat(model="silent", stream=True)))
            yield Place(running, vendor, silent)
            await silent


async def test_429_cools_the_backend_and_the_other_takes_over(place: Place) -> None:
    first = await place.ask("cool")
    assert first.ok
    attempts = (await place.row(first))["attempts"]
    assert [(a["backend"], a["outcome"], a["http_status"]) for a in attempts] == [
        ("cool-a", "failed", 429),
        ("cool-b", "ok", 200),
    ]
    asked = place.reached("cool-b")
    answers = [await place.ask("cool") for _ in range(20)]
    assert all(answer.ok for answer in answers)
    assert place.reached("cool-a") == 1
    assert place.reached("cool-b") == asked + 20
    place.vendor.scripts["cool-a"] = WELL
    await asyncio.sleep(6.2)
    assert (await place.ask("cool")).headers["x-weighbridge-backend"] == "cool-a"


async def test_429_of_all_is_429_with_the_smallest_wait(place: Place) -> None:
    first = await place.ask("busy")
    assert (first.status, first.headers["retry-after"]) == (429, "3")
    assert first.error["type"] == "rate_limit_error"
    again = await place.ask("busy")
    assert (again.status, again.error["code"]) == (429, "no_eligible_backend")
    assert again.headers["retry-after"] in {"2", "3"}
    assert place.reached("busy-a") == place.reached("busy-b") == 1


async def test_fallback_in_the_order_of_the_alias_each_attempt_written_down(place: Place) -> None:
    answer = await place.ask("order", stream=True)
    assert answer.ok
    assert answer.headers["x-weighbridge-reason"] == "fallback"
    row = await place.row(answer)
    assert [(a["backend"], a["outcome"], a["error_code"]) for a in row["attempts"]] == [
        ("order-a", "failed", "upstream_broken"),
        ("order-b", "failed", "upstream_broken"),
        ("order-c", "ok", None),
    ]
    starts = [a["started_at_us"] for a in row["attempts"]]
    assert starts == sorted(starts)
    assert (row["backend"], row["outcome"]) == ("order-c", Outcome.OK)


async def test_an_sdk_does_not_repeat_what_we_have_repeated(place: Place) -> None:
    answer = await place.ask("no")
    assert (answer.status, answer.error["code"]) == (502, "all_attempts_failed")
    assert answer.headers["x-should-retry"] == "false"
    assert [place.reached(f"no-{name}") for name in "abc"] == [1, 1, 1]
    assert (await place.row(answer))["outcome"] == Outcome.FAILED


async def test_who_refuses_this_very_request_is_not_followed_by_another(place: Place) -> None:
    answer = await place.ask("reject")
    assert (answer.status, answer.error["message"]) == (400, "no such thing")
    assert place.reached("reject-b") == 0
    row = await place.row(answer)
    assert (row["outcome"], len(row["attempts"])) == (Outcome.REJECTED, 1)


async def test_a_circuit_opens_and_closes_again(place: Place) -> None:
    answers = [await place.ask("circuit") for _ in range(12)]
    assert all(answer.ok for answer in answers)
    assert place.reached("circuit-a") == 5
    place.vendor.scripts["circuit-a"] = WELL
    since = time.monotonic()
    while True:
        answer = await place.ask("circuit")
        assert answer.ok
        if answer.headers["x-weighbridge-backend"] == "circuit-a":
            break
        assert time.monotonic() - since < 5
        await asyncio.sleep(0.05)


async def test_a_total_outage_is_not_made_worse(place: Place) -> None:
    """I-20. Behind the first burst hardly anything reaches the broken; then they come back."""
    url, auth = place.running.url, place.running.auth

    def documents(count: int):
        return [(chat(f"call {n}", model="out", stream=n % 2 == 0), auth) for n in range(count)]

    def reached() -> int:
        return place.reached("out-a") + place.reached("out-b")

    burst = await calls(url, documents(CLIENTS), at_once=CLIENTS)
    before = reached()
    assert before <= 2 * CLIENTS  # and there are two of them
    answers = await calls(url, documents(CALLS), at_once=CLIENTS)
    amplification = (reached() - before) / CALLS
    assert amplification <= 1.1
    codes = Counter(answer.error["code"] for answer in burst + answers if answer.told)
    assert sum(codes.values()) == CLIENTS + CALLS
    assert codes["no_eligible_backend"] > CALLS / 2, codes
    for answer in burst + answers:
        assert answer.status in {502, 503}, answer
        if answer.error["code"] in {"no_eligible_backend", "all_attempts_failed"}:
            when, again = map(answer.headers.get, ("retry-after", "x-should-retry"))
            assert when is not None or again == "false", answer
    promise("I-20", f"{amplification:.2f} calls a request, {CALLS} requests")
    place.vendor.scripts |= {"out-a": WELL, "out-b": WELL}
    since = time.monotonic()
    while not (await place.ask("out")).ok:
        assert time.monotonic() - since < 10
        await asyncio.sleep(0.05)


async def test_a_pause_in_a_stream_is_filled_with_comments(place: Place) -> None:
    """One newline only: behind an empty line openai-python would read an empty event."""
    answer = await place.ask("pausing", stream=True)
    assert answer.ok
    comments = answer.raw.count(b": keepalive\n")
    assert comments >= 2
    assert b": keepalive\n\n" not in answer.raw
    for event in answer.raw.split(b"\n\n"):
        kinds = [line[:1] for line in event.split(b"\n")]
        assert kinds == sorted(kinds), event  # ":" before "d": never inside an event


async def test_a_silent_backend_gives_way_behind_comments(place: Place) -> None:
    """The head went out with them, and the next backend could still take over."""
    answer = await place.silent
    assert answer.ok
    assert answer.took_s > FIRST_STATUS_S
    head, _, rest = answer.raw.partition(b"data: ")
    assert head.strip(b"\n").split(b"\n") == [b": keepalive"] * head.count(b":")
    assert head.count(b": keepalive\n") >= 2
    assert b": keepalive\n\n" not in answer.raw
    assert rest
    assert "x-weighbridge-backend" not in answer.headers  # nobody knew then
    row = await place.row(answer)
    assert [a["outcome"] for a in row["attempts"]] == ["failed", "ok"]
    await until(lambda: all(s.outcome != "open" for s in place.vendor.log))
