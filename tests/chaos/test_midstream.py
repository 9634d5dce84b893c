"""A vendor dies at its k-th token, for every k and in every manner; and falls silent there.

Before the first token the next backend may take over. From then on there is one attempt, and the
client reads an error as the last event: no [DONE], no text of anybody else. What was received is
billed, flagged as our own count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from gateway.domain.outcome import Outcome
from tests.chaos.audit import Row, check_rows, prices
from tests.chaos.load import Answer, calls, chat
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, ScriptedVendor, vendor_in_loop

TOKENS = 24
DEATHS = {
    "reset": "upstream_broken",
    "close": "upstream_broken",
    "end": "upstream_broken",
    "half_event": "upstream_broken",
    "error_event": "upstream_broken",
    "garbage_line": "upstream_broken",
}
AT = range(21)
IDLE_S = 0.8
SLACK_S = 0.5
STALLS = {f"stall-{k}": k for k in (0, 1, 2, 7, 20)} | {f"pinging-{k}": k for k in (0, 1, 7)}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_midstream")]


def scripts() -> dict[str, Script]:
    """One model for each death, so that each has a circuit of its own."""
    found = {
        f"{death}-{k}": Script(tokens=TOKENS, itl_s=0.003, seed=k, fault=death, fault_after=k)
        for death in DEATHS
        for k in AT
    }
    for name, k in STALLS.items():
        ping_every_s = 0.1 if name.startswith("pinging") else 0.0
        found[name] = Script(
            tokens=TOKENS, itl_s=0.003, fault="stall", fault_after=k, ping_every_s=ping_every_s
        )
    return found


@dataclass
class Place:
    running: GatewayProcess
    dying: ScriptedVendor
    other: ScriptedVendor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    told = scripts()
    healthy = Script(text="the other one answers", itl_s=0.001)
    async with vendor_in_loop(told) as dying, vendor_in_loop({"m": healthy}) as other:
        catalog = vendor_catalog(
            {**dict.fromkeys(told, f"{dying.url}/v1"), "other": f"{other.url}/v1"},
            aliases={name: [f"{name}/{name}", "other/m"] for name in told},
        )
        for name in told:
            backend = catalog["backends"][name]
            backend["models"] = {name: backend["models"]["m"]}
            backend["limits"] = {
                "connect_ms_max": 200,
                "first_chunk_ms_max": int(IDLE_S * 1000),
                "first_chunk_ms_per_1k_prompt_tokens": 0,
                "idle_ms_max": int(IDLE_S * 1000),
            }
        book = prices("other")
        book["prices"] += [
            {**price, "model": name} for name in told for price in prices(name)["prices"]
        ]
        async with gateway_beside(catalog, prices=book) as running:
            yield Place(running, dying, other)


async def ask(place: Place, names: list[str]) -> dict[str, tuple[Answer, Row]]:
    documents = [(chat(model=name, stream=True), place.running.auth) for name in names]
    answers = await calls(place.running.url, documents, at_once=8)
    for answer in answers:
        assert answer.told, answer
    deadline = time.monotonic() + 10
    while True:
        rows = {row["id"]: row for row in await place.running.ledger()}
        if all(answer.id in rows for answer in answers):
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    return {name: (a, rows[a.id]) for name, a in zip(names, answers, strict=True)}


def check_failed(answer: Answer, row: Row, tokens: int, code: str) -> None:
    """The client was told and the row is billed for what it got."""
    assert (answer.status, answer.whole, answer.done) == (200, True, False), answer
    assert answer.error is not None
    assert answer.raw.rstrip().rpartition(b"\n\n")[2].startswith(b'data: {"error"')
    assert len(answer.text.split()) == tokens, (answer.text, tokens)
    assert "other" not in answer.text
    assert row["outcome"] == Outcome.FAILED_MIDSTREAM
    assert row["http_status"] == 200
    assert row["error_code"] == code
    (attempt,) = row["attempts"]
    assert attempt["outcome"] == Outcome.FAILED_MIDSTREAM
    assert row["usage_source"] == "estimated"
    assert row["output_tokens"] == tokens
    assert row["cost_nano_usd"] > 0


def check_failed_over(answer: Answer, row: Row) -> None:
    assert answer.ok
    assert answer.text == "the other one answers"
    assert [a["backend"] for a in row["attempts"]][1:] == ["other"]
    assert [a["outcome"] for a in row["attempts"]] == ["failed", "ok"]


async def test_death_at_every_token(place: Place) -> None:
    place.other.clear()
    names = [f"{death}-{k}" for death in DEATHS for k in AT]
    found = await ask(place, names)
    for death, code in DEATHS.items():
        for k in AT:
            answer, row = found[f"{death}-{k}"]
            try:
                if k == 0:
                    check_failed_over(answer, row)
                else:
                    check_failed(answer, row, k, code)
            except AssertionError as error:
                raise AssertionError(f"{death} at {k}: {error}") from error
    check_rows(row for _, row in found.values())
    assert {seen.model: 1 for seen in place.dying.log} == dict.fromkeys(names, 1)
    assert len(place.dying.log) == len(names)
    assert place.other.received == len(DEATHS)
    late = len(names) - len(DEATHS)
    promise(
        "I-9", f"1 attempt each ({late} deaths after content, {len(DEATHS)} failed over before)"
    )


async def test_silence_is_cut_at_its_deadline(place: Place) -> None:
    """Comments of the vendor are not speech: they do not put the deadline off."""
    place.other.clear()
    found = await ask(place, list(STALLS))
    worst = 0.0
    for name, k in STALLS.items():
        answer, row = found[name]
        if k == 0:
            check_failed_over(answer, row)
            waited_s = row["attempts"][0]["duration_us"] / 1e6
            patience_s = IDLE_S + 0.2  # the first wait includes connecting
        else:
            check_failed(answer, row, k, "upstream_timeout")
            waited_s, patience_s = answer.ended_at - answer.last_at, IDLE_S
        assert waited_s > patience_s - 0.05, (name, waited_s)
        assert waited_s < patience_s + SLACK_S, (name, waited_s)
        worst = max(worst, waited_s - patience_s)
    promise("I-17", f"within {max(worst, 0.001):.3f} s ({len(STALLS)} stalls)")
