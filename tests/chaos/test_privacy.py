"""Restricted data stays with the backend cleared for it, however that one fails.

Each restricted prompt carries a canary. The uncleared vendors are healthy, cheap and first in
every alias; they search every byte they receive. The cleared one breaks in every manner we know,
before and after content. That the traps work is shown beside it: the same vendors serve public
calls all the while, and the cleared one does receive the canary.

A call comes to be restricted by its key, its alias, its header, or by nothing but what it says:
a card number in any place or disguise, a plugin that fails on it, more text than is looked at.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.load import Answer, call, chat, client
from tests.gateway_process import ROUTING as PLAIN
from tests.gateway_process import gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import FAULTS, Script, vendor_in_loop

PER_FAULT = 28
AT_ONCE = 24
# Repeats are not what is tested here: there are always enough of them.
ROUTING = PLAIN.replace("attempts_max: 3", "retries: {share: 1, per_s: 100}\n  attempts_max: 3")
ANSWERING = Script(tokens=4, itl_s=0.001)
HOW_IT_FAILS = {
    "well": ANSWERING,
    **{
        name: FAULTS[name]
        for name in (
            "status_429",
            "status_500",
            "status_503_vllm",
            "status_401",
            "status_400",
            "status_200_html",
            "hang_before_head",
            "reset_before_head",
            "close_before_head",
            "stall_before_token",
            "reset_before_token",
            "end_before_token",
            "error_before_token",
            "document_for_stream",
            "stall_after_3",
            "reset_after_3",
            "close_after_3",
            "end_after_3",
            "half_event_after_3",
            "error_after_3",
            "garbage_after_3",
        )
    },
}
CLEARED = ("own", "spare")  # fail alike, one after the other

# How a call comes to be restricted: (kind of alias, key, headers).
WAYS = {
    "header": ("chat", "plain", {"x-weighbridge-privacy": "restricted"}),
    "alias": ("secret", "plain", {}),
    "alias_and_weaker_header": ("secret", "plain", {"x-weighbridge-privacy": "public"}),
    "key": ("chat", "floor", {}),
    "key_and_weaker_header": ("chat", "floor", {"x-weighbridge-privacy": "internal"}),
    "pinned_to_an_uncleared_one": ("chat", "plain", {"x-weighbridge-privacy": "restricted"}),
}

CARD = "4539 1488 0343 6467"  # made up; it satisfies the check digit
SCAN_BYTES_MAX = 4096
PLUGIN_SAYS = "the plugin fails on this"


def said(*contents: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def tool_call(arguments: object) -> dict[str, Any]:
    function = {"name": "pay", "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


# Calls that nobody classed: what they say makes them restricted.
CONTENT: dict[str, Callable[[str], dict[str, Any]]] = {
    "text": lambda canary: said(f"{canary}: charge {CARD}"),
    "split_over_parts": lambda canary: said([part(f"{canary}, "), part(CARD[:6]), part(CARD[6:])]),
    "split_over_messages": lambda canary: said(canary, f"it is {CARD[:12]}", f"{CARD[12:]} ok"),
    "tool_argument": lambda canary: {
        "messages": [*said(canary)["messages"], tool_call({"card": CARD}), *said("go")["messages"]]
    },
    "tool_description": lambda canary: {
        **said(canary),
        "tools": [{"type": "function", "function": {"name": "pay", "description": f"to {CARD}"}}],
    },
    "other_digits": lambda canary: said(
        f"{canary} {CARD.translate({48 + n: 0xFF10 + n for n in range(10)})}"
    ),
    "failing_plugin": lambda canary: said(f"{canary} {PLUGIN_SAYS}"),
    "more_than_is_looked_at": lambda canary: said(f"{canary} {'long ' * SCAN_BYTES_MAX}"),
}
WAYS |= {f"content: {name}": ("chat", "plain", {}) for name in CONTENT}

pytestmark = pytest.mark.xdist_group("chaos_privacy")


def install_plugin(folder: Path) -> dict[str, str]:
    """A detector plugin that fails on some text, installed for a gateway of this environment."""
    (folder / "chaos_detectors.py").write_text(
        "def brittle(texts):\n"
        f"    if any({PLUGIN_SAYS!r} in text for text in texts):\n"
        "        raise RuntimeError('brittle')\n"
        "    return False\n"
    )
    info = folder / "chaos_detectors-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos-detectors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[weighbridge.detectors]\nbrittle = chaos_detectors:brittle\n"
    )
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def catalog_of(closed: str, cheap: str, own: str) -> dict[str, Any]:
    """For each fault two cleared backends and two aliases, with the uncleared between them."""
    cleared = {f"{name}-{fault}": own for fault in HOW_IT_FAILS for name in CLEARED}
    catalog = vendor_catalog(
        {"closed": closed, "cheap": cheap, **cleared},
        aliases={
            **{
                f"{kind}-{fault}": ["closed/m", f"own-{fault}/m", "cheap/m", f"spare-{fault}/m"]
                for fault in HOW_IT_FAILS
                for kind in ("chat", "secret")
            },
            "uncleared": ["closed/m", "cheap/m"],
        },
        # `cheap` says nothing of its clearance: that counts as the lowest.
        closed={"cleared_for": "internal", "health_path": "/health"},
    )
    catalog |= {
        "detectors": {"card_number": "restricted"},
        # Long enough for a busy machine: only its failing is what is tested.
        "detector_plugins": {"brittle": {"class": "internal", "timeout_ms": 10_000}},
        "scan_bytes_max": SCAN_BYTES_MAX,
    }
    for name in cleared:
        fault = name.partition("-")[2]
        backend = catalog["backends"][name]
        backend |= {"kind": "self_hosted", "cleared_for": "restricted"}
        backend["limits"] = dict.fromkeys(
            ("connect_ms_max", "first_chunk_ms_max", "idle_ms_max"), 250
        )
        backend["models"] = {fault: backend["models"]["m"]}
    for name, alias in catalog["aliases"].items():
        fault = name.partition("-")[2]
        alias["targets"] = [
            t.replace("/m", f"/{fault}") if t.startswith(CLEARED) else t for t in alias["targets"]
        ]
        if name.startswith("secret"):
            alias["privacy_floor"] = "restricted"
    return catalog


async def ask_restricted(
    http: httpx.AsyncClient, keys: Mapping[str, str], canary: str, fault: str, number: int
) -> Answer:
    way = list(WAYS)[number % len(WAYS)]
    kind, key, asked = WAYS[way]
    alias = f"{kind}-{fault}"
    headers = {"authorization": f"Bearer {keys[key]}", **asked}
    if way == "pinned_to_an_uncleared_one":
        headers["x-weighbridge-session"] = f"{fault} {number}"
        pinning = await call(
            http, chat("hi", model=alias), headers=headers | {"x-weighbridge-privacy": "public"}
        )
        assert pinning.ok, (fault, pinning)
        assert pinning.headers["x-weighbridge-backend"] == "closed"
    content = CONTENT.get(way.removeprefix("content: "))
    hidden = [CARD] if content is not None else []
    if number % 11 == 5:
        path, document = "/v1/embeddings", {"model": alias, "input": [canary, *hidden]}
    elif number % 11 == 7:
        path, document = "/v1/completions", {"model": alias, "prompt": [canary, *hidden]}
    else:
        path = "/v1/chat/completions"
        document = chat(
            f"keep {canary} here",
            model=alias,
            stream=number % 3 != 0,
            user=canary,
            metadata={"who": canary},
        )
        document |= content(canary) if content is not None else {}
    return await call(http, document, path=path, headers=headers)


async def test_no_canary_leaves(tmp_path: Path) -> None:
    canary = f"CANARY-{secrets.token_hex(12)}"
    trap = {"canaries": [canary.encode()]}
    async with (
        vendor_in_loop({"m": ANSWERING}, **trap) as closed,
        vendor_in_loop({"m": ANSWERING}, **trap) as cheap,
        vendor_in_loop(HOW_IT_FAILS, **trap) as own,
    ):
        catalog = catalog_of(*(f"{vendor.url}/v1" for vendor in (closed, cheap, own)))
        environment = {"WEIGHBRIDGE_LOG_LEVEL": "debug", **install_plugin(tmp_path)}
        async with gateway_beside(catalog, routing=ROUTING, environment=environment) as g:
            floor = await asyncio.to_thread(g.new_key, "--privacy-floor", "restricted")
            keys = {"plain": g.key, "floor": floor}
            gate = asyncio.Semaphore(AT_ONCE)
            answers: list[tuple[str, Answer]] = []
            async with client(g.url) as http:

                async def one(fault: str, number: int) -> None:
                    async with gate:
                        answer = await ask_restricted(http, keys, canary, fault, number)
                    answers.append((fault, answer))

                for number in range(0, PER_FAULT, 8):
                    numbers = range(number, min(number + 8, PER_FAULT))
                    await asyncio.gather(*(one(f, n) for n in numbers for f in HOW_IT_FAILS))
                    await asyncio.sleep(1.1)  # the circuits let a probe through: real faults again
                await own.close()
                await asyncio.gather(*(one(f, n) for n in range(6) for f in ("well", "status_500")))
                gone = answers[-12:]
                nobody = [
                    await call(
                        http,
                        chat(canary, model="uncleared", stream=stream),
                        headers={**g.auth, "x-weighbridge-privacy": asked},
                    )
                    for stream in (False, True)
                    for asked in ("confidential", "restricted")
                ]
                nobody.append(
                    await call(http, chat(f"{canary} {CARD}", model="uncleared"), headers=g.auth)
                )
                bounded = await asyncio.to_thread(g.new_key, "--privacy-ceiling", "confidential")
                above = await call(
                    http,
                    chat(f"{canary} {CARD}", model="chat-well"),
                    headers={"authorization": f"Bearer {bounded}"},
                )
                # What docs/privacy.md lists as slipping through does: no canary in this one.
                encoded = await call(
                    http,
                    chat(base64.b64encode(CARD.encode()).decode(), model="chat-well"),
                    headers=g.auth,
                )
            assert await asyncio.to_thread(g.stop) == 0
            rows = await g.ledger()
            written = b"".join(p.read_bytes() for p in g.home.rglob("*") if p.is_file())
            told = "".join(g.output)

    # The traps work, and every fault struck.
    assert own.hits
    assert closed.received > 50
    assert any(fault == "well" and answer.ok for fault, answer in answers)
    struck = Counter(a["model"] for r in rows for a in r["attempts"] if a["outcome"] != "ok")
    assert set(struck) >= set(HOW_IT_FAILS), set(HOW_IT_FAILS) - set(struck)
    # Nothing went into them.
    assert list(closed.hits) == []
    assert list(cheap.hits) == []
    restricted = [row for row in rows if row["privacy_class"] == "restricted"]
    assert len(restricted) >= len(answers)
    used = {a["backend"].partition("-")[0] for row in restricted for a in row["attempts"]}
    assert used == set(CLEARED)
    second = sum(len(row["attempts"]) > 1 for row in restricted)
    assert second > len(HOW_IT_FAILS), second
    # Nobody was downgraded, and each was told what happened.
    for fault, answer in answers:
        assert answer.told, (fault, answer)
    assert not any(answer.ok for _, answer in gone)
    for answer in nobody:
        assert (answer.status, answer.error["code"]) == (503, "no_eligible_backend"), answer
    assert (above.status, above.error["code"]) == (403, "insufficient_scope"), above
    assert "card_number" in above.error["message"]
    assert encoded.ok
    assert encoded.headers["x-weighbridge-backend"] == "closed"
    # What made a call restricted is written down by name.
    detected = Counter(name for row in rows for name in (row["decision"] or {}).get("detected", ()))
    assert set(detected) == {"card_number", "brittle:failed", "scan_bytes_max"}
    # What we keep of a call holds nothing of what it says.
    for secret in (canary, CARD, CARD.replace(" ", "")):
        assert secret.encode() not in written
        assert secret not in told
    promise(
        "I-7",
        f"0 canary hits ({len(answers) + len(nobody)} restricted calls, {sum(detected.values())} of "
        f"them by nothing but their content, {sum(struck.values())} "
        f"failed attempts in {len(struck)} ways, {second} fallbacks)",
    )
