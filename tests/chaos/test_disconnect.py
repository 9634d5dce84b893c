"""A client that leaves ends the upstream call: in every phase, politely or not.

Measured from just before the client's socket is closed to when the vendor sees its peer gone; both
are this process, so one clock. What was said until then is billed, flagged as our own count.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from gateway.domain.outcome import Outcome
from tests.chaos.audit import check_rows, prices
from tests.chaos.load import Raw, call, chat, client, raw, request_bytes
from tests.gateway_process import gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, ScriptedVendor, Seen, until, vendor_in_loop

TIMES = 13  # of each phase and manner: over 100 in all
GONE_S_MAX = 0.1
SLOW = Script(tokens=500, ttft_s=0.02, itl_s=0.15)
PHASES = {
    # phase -> (script, streamed, content chunks to hear first)
    "waiting_for_the_head": (Script(fault="hang_before_head"), True, 0),
    "waiting_for_the_first_token": (Script(fault="stall", role="early"), True, 0),
    "between_two_tokens": (SLOW, True, 2),
    "waiting_for_a_whole_answer": (Script(tokens=8, ttft_s=20), False, 0),
}
PATHS = {"chat": "/v1/chat/completions", "legacy": "/v1/completions"}

pytestmark = pytest.mark.xdist_group("chaos_disconnect")


def asked(vendor: ScriptedVendor, model: str) -> list[Seen]:
    return [seen for seen in vendor.log if seen.model == model]


async def leave(
    vendor: ScriptedVendor, port: int, auth: dict[str, str], phase: str, manner: str, number: int
) -> float:
    """One call that is left in `phase`; seconds until the vendor knew."""
    _, stream, chunks = PHASES[phase]
    already = len(asked(vendor, phase))
    if number % 4 == 3:
        path, document = PATHS["legacy"], {"model": phase, "prompt": "hi", "stream": stream}
    else:
        path, document = PATHS["chat"], chat(model=phase, stream=stream)
    async with raw(port) as peer:
        peer.say(request_bytes(document, auth, path))
        await until(lambda: len(asked(vendor, phase)) > already)
        (seen,) = asked(vendor, phase)[already:]
        await _reach(peer, chunks, path)
        await asyncio.sleep(0.004 * (number % 3))
        left_at = time.monotonic()
        (peer.fin if manner == "fin" else peer.rst)()
        await until(lambda: seen.peer_closed_at is not None)
    assert seen.outcome == "aborted"
    return seen.peer_closed_at - left_at


async def _reach(peer: Raw, chunks: int, path: str) -> None:
    if chunks:
        field = b'"content":"' if path == PATHS["chat"] else b'"text":"'
        role = 1 if path == PATHS["chat"] else 0  # the role chunk has an empty content
        await peer.until(chunks + role, field)


async def test_the_upstream_call_ends_with_its_client() -> None:
    scripts = {phase: script for phase, (script, _, _) in PHASES.items()}
    async with vendor_in_loop({**scripts, "m": Script(tokens=3)}) as vendor:
        catalog = vendor_catalog(
            {"a": f"{vendor.url}/v1"},
            aliases={phase: [f"a/{phase}"] for phase in PHASES} | {"chat": ["a/m"]},
            # A place that is not given back would soon be missed.
            a={"limits": {"concurrency_max": 4}},
        )
        models = catalog["backends"]["a"]["models"]
        models |= dict.fromkeys(PHASES, models["m"])
        book = {
            "version": 1,
            "prices": [p for m in models for p in prices("a", model=m)["prices"]],
        }
        async with gateway_beside(catalog, prices=book) as running, client(running.url) as http:
            assert (await call(http, chat(), headers=running.auth)).ok  # the key is known now
            waits = [
                await leave(vendor, running.port, running.auth, phase, manner, number)
                for number in range(TIMES)
                for phase in PHASES
                for manner in ("fin", "rst")
            ]
            state = (await http.get("/readyz")).json()
            metrics = (await http.get("/metrics")).text
            again = [await call(http, chat(), headers=running.auth) for _ in range(8)]
            rows = await running.ledger(len(waits) + 9)

    assert state["in_flight"] == 0
    assert 'weighbridge_in_flight{backend="a"} 0.0' in metrics, metrics
    assert all(answer.ok for answer in again)
    left = [row for row in rows if row["alias"] in PHASES]
    assert Counter(row["outcome"] for row in left) == {Outcome.CANCELLED: len(waits)}
    check_rows(rows)
    for row in left:
        assert row["usage_source"] == "estimated", row
        (attempt,) = row["attempts"]
        assert attempt["outcome"] == Outcome.CANCELLED
        assert row["uncached_tokens"] > 0, row  # what was sent may be billed
        assert row["cost_nano_usd"] > 0, row
        if row["alias"] == "between_two_tokens":
            assert 2 <= row["output_tokens"] <= 4, row
        else:
            assert row["output_tokens"] == 0, row
    waits.sort()
    p99 = waits[round(0.99 * (len(waits) - 1))]
    assert p99 <= GONE_S_MAX, waits[-5:]
    promise(
        "I-10",
        f"p50 {waits[len(waits) // 2] * 1000:.1f} ms, p99 {p99 * 1000:.0f} ms "
        f"({len(waits)} clients, {len(PHASES)} phases, FIN and RST)",
    )
