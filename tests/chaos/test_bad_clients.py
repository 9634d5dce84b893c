"""Clients that drip, idle, exceed and smuggle: refused in time, closed, and nobody else suffers.

The limits are set short, so that what takes minutes in the field is over in seconds here. The
probes are those of a survey of servers: each is accepted by one that is in use.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.chaos.load import Load, call, chat, client, raw, request_bytes, status_of
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, ScriptedVendor, until, vendor_in_loop

HEAD_S = 1
BODY_S = 2
IDLE_S = 2
LATE_S = 3.0  # what a busy machine may add
LORISES = 200
VICTIMS = 4
BODY_BYTES = 100_000

LIMITS = {
    "WEIGHBRIDGE_HEAD_S_MAX": str(HEAD_S),
    "WEIGHBRIDGE_BODY_S_MAX": str(BODY_S),
    "WEIGHBRIDGE_KEEPALIVE_S_MAX": str(IDLE_S),
    "WEIGHBRIDGE_BODY_BYTES_MAX": str(BODY_BYTES),
}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_clients")]


@dataclass
class Place:
    running: GatewayProcess
    vendor: ScriptedVendor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    scripts = {
        "m": Script(tokens=3, ttft_s=0.01),
        "slow": Script(tokens=30, itl_s=0.1),
        "flood": Script(tokens=60_000),
    }
    async with vendor_in_loop(scripts) as vendor:
        catalog = vendor_catalog(
            {"a": f"{vendor.url}/v1"},
            aliases={"chat": ["a/m"], "slow": ["a/slow"], "flood": ["a/flood"]},
        )
        models = catalog["backends"]["a"]["models"]
        models |= {"slow": models["m"], "flood": models["m"]}
        async with gateway_beside(catalog, environment=LIMITS) as running:
            yield Place(running, vendor)


# --- slow ones --------------------------------------------------------------------------------


async def loris(place: Place, kind: str) -> tuple[str, float, int]:
    """One slow client; (kind, seconds until it was gone, the status it was told)."""
    whole = request_bytes(chat("x" * 2000), place.running.auth)
    head, _, body = whole.partition(b"\r\n\r\n")
    async with raw(place.running.port) as peer:
        if kind == "idle after an answer":
            peer.say(whole)
            await peer.until(1, b'"usage"')
        elif kind == "dripping body":
            peer.say(head + b"\r\n\r\n")
        elif kind == "silent body":
            peer.say(head + b"\r\n\r\n" + body[:100])
        elif kind == "silent head":
            peer.say(head[:40])
        since = time.monotonic()
        gone = asyncio.ensure_future(peer.closed(20))
        drops = {"dripping head": head, "dripping body": body}.get(kind, b"")
        for at in range(len(drops)):
            if gone.done():
                break
            peer.say(drops[at : at + 1])
            await asyncio.wait([gone], timeout=0.2)
        heard = await gone
        return kind, time.monotonic() - since, status_of(heard)


GONE = {
    # kind -> (seconds, what it is told; 0: nothing, for nothing was asked)
    "idle": (HEAD_S, 0),
    "idle after an answer": (IDLE_S, 200),
    "silent head": (HEAD_S, 408),
    "dripping head": (HEAD_S, 408),
    "silent body": (BODY_S, 408),
    "dripping body": (BODY_S, 408),
}


async def test_slow_ones_go_in_time_and_nobody_suffers(place: Place) -> None:
    def make(number: int):
        return chat(stream=number % 2 == 0), place.running.auth

    async with Load(place.running.url, VICTIMS, make, pause_s=0.02) as load:
        kinds = [list(GONE)[n % len(GONE)] for n in range(LORISES)]
        found = await asyncio.gather(*(loris(place, kind) for kind in kinds))
    assert all(answer.ok for answer in load.history)
    worst = 0.0
    for kind, gone_s, status in found:
        limit_s, told = GONE[kind]
        assert status == told, (kind, status)
        assert limit_s / 2 < gone_s < limit_s + LATE_S, (kind, gone_s)
        worst = max(worst, gone_s - limit_s)
    promise(
        "I-15",
        f"all gone in time ({LORISES} lorises, at most {worst:.1f} s late; "
        f"{len(load.history)} ordinary calls beside them, all answered)",
    )


async def test_who_never_reads_is_let_go(place: Place) -> None:
    """Else it holds its stream, its place and its backend's connection for ever."""
    place.vendor.clear()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", place.running.port))
        deaf.sendall(request_bytes(chat(model="flood", stream=True), place.running.auth))
        await until(lambda: place.vendor.received)
        await asyncio.sleep(IDLE_S / 2)
        async with client(place.running.url) as http:
            assert (await http.get("/readyz")).json()["in_flight"] == 1
            async with asyncio.timeout(IDLE_S / 2 + LATE_S):
                while (await http.get("/readyz")).json()["in_flight"]:
                    await asyncio.sleep(0.05)


async def test_who_has_no_key_is_not_listened_to(place: Place) -> None:
    """A body costs memory: it is not read for anybody we would refuse anyway."""
    head, _, _ = request_bytes(chat("x" * 50_000), {}).partition(b"\r\n\r\n")
    since = time.monotonic()
    status, error = await refused(place, head + b"\r\n\r\n{")
    assert (status, error["code"]) == (401, "invalid_api_key")
    assert time.monotonic() - since < BODY_S / 2


# --- large ones -------------------------------------------------------------------------------


async def refused(place: Place, data: bytes, timeout_s: float = 5.0) -> tuple[int, dict]:
    """Say it, hear the refusal and the end of the connection."""
    async with raw(place.running.port) as peer:
        peer.say(data)
        heard = await peer.closed(timeout_s)
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1 ") == 1, heard[:500]
    return status_of(head), json.loads(body)["error"]


async def test_a_head_out_of_bounds_is_431(place: Place) -> None:
    auth = place.running.auth
    for much in ({"x-long": "y" * 33_000}, {f"x-{n}": "y" for n in range(101)}):
        status, error = await refused(place, request_bytes(chat(), {**auth, **much}))
        assert (status, error["code"]) == (431, "request_head_too_large")
    # A head without an end is refused as soon as it is too large, not when it is late.
    since = time.monotonic()
    status, _ = await refused(place, b"GET / HTTP/1.1\r\nx-a: " + b"y" * 40_000)
    assert status == 431
    assert time.monotonic() - since < HEAD_S


async def test_a_body_out_of_bounds_is_413_whoever_sends_it(place: Place) -> None:
    large = json.dumps(chat("x" * 20 * BODY_BYTES)).encode()
    # As a browser or an SDK sends it: the whole body first, then it listens. The refusal must
    # not be lost to a reset.
    async with client(place.running.url, place.running.auth) as http:
        for _ in range(10):
            answer = await call(http, large)
            assert (answer.status, answer.error and answer.error["code"]) == (
                413,
                "request_too_large",
            ), answer

    async def in_pieces():
        for at in range(0, len(large), 10_000):
            yield large[at : at + 10_000]

    async with client(place.running.url, place.running.auth) as http:
        sent = await http.post(
            "/v1/chat/completions",
            content=in_pieces(),
            headers={"content-type": "application/json"},
        )
    assert (sent.status_code, sent.json()["error"]["code"]) == (413, "request_too_large")
    async with client(place.running.url, place.running.auth) as http:
        deep = b'{"model":"chat","messages":' + b"[" * 3000 + b"]" * 3000 + b"}"
        answer = await call(http, deep)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        many = chat(messages=[{"role": "user", "content": "x"}] * 2049)
        answer = await call(http, many)
        assert (answer.status, answer.error["param"]) == (413, "messages")


# --- smuggling --------------------------------------------------------------------------------

_BODY = json.dumps(chat("smuggled")).encode()
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
_LENGTH = b"content-length: %d\r\n" % len(_BODY)
_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)

PROBES = {
    "length and chunked": _LENGTH + b"transfer-encoding: chunked\r\nAUTH\r\n\r\n" + _CHUNK,
    "chunked and length": b"transfer-encoding: chunked\r\n" + _LENGTH + b"AUTH\r\n\r\n" + _CHUNK,
    "two equal lengths": _LENGTH + _LENGTH + b"AUTH\r\n\r\n" + _BODY,
    "two lengths": _LENGTH + b"content-length: 3\r\nAUTH\r\n\r\n" + _BODY,
    "a list of lengths": b"content-length: %d, %d\r\nAUTH\r\n\r\n" % (len(_BODY), len(_BODY))
    + _BODY,
    "a signed length": b"content-length: +%d\r\nAUTH\r\n\r\n" % len(_BODY) + _BODY,
    "a hexadecimal length": b"content-length: 0x%x\r\nAUTH\r\n\r\n" % len(_BODY) + _BODY,
    "a space before the colon": b"content-length : %d\r\nAUTH\r\n\r\n" % len(_BODY) + _BODY,
    "bare line feeds": (_LENGTH + b"AUTH\r\n\r\n").replace(b"\r\n", b"\n") + _BODY,
    "bare carriage returns": (_LENGTH + b"AUTH\r\n\r\n").replace(b"\r\n", b"\r") + _BODY,
    "a folded line": _LENGTH + b"x-folded: a\r\n b\r\nAUTH\r\n\r\n" + _BODY,
    "an unknown coding": b"transfer-encoding: xchunked\r\nAUTH\r\n\r\n" + _CHUNK,
    "chunked, then another": b"transfer-encoding: chunked, identity\r\nAUTH\r\n\r\n" + _CHUNK,
    "a bad chunk size": b"transfer-encoding: chunked\r\nAUTH\r\n\r\nzz\r\n" + _BODY,
    "a chunk longer than said": b"transfer-encoding: chunked\r\nAUTH\r\n\r\n1\r\n" + _CHUNK,
    "a NUL in a value": _LENGTH + b"x-nul: a\0b\r\nAUTH\r\n\r\n" + _BODY,
    "a name that is none": _LENGTH + b"x y: a\r\nAUTH\r\n\r\n" + _BODY,
    "a line without a colon": _LENGTH + b"nonsense\r\nAUTH\r\n\r\n" + _BODY,
}


@pytest.mark.parametrize("probe", PROBES)
async def test_what_two_parsers_could_read_differently_is_refused(place: Place, probe: str) -> None:
    place.vendor.clear()
    auth = f"authorization: {place.running.auth['authorization']}".encode()
    data = _HEAD + PROBES[probe].replace(b"AUTH", auth)
    status, error = await refused(place, data)
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert place.vendor.received == 0


async def test_a_request_line_that_is_none_is_refused(place: Place) -> None:
    for line in (b"\x16\x03\x01\x02\x00\x01", b"POST\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        status, _ = await refused(place, line)
        assert status == 400, line


async def test_two_in_one_segment_are_two_in_their_order(place: Place) -> None:
    place.vendor.clear()
    one = request_bytes(chat("first"), place.running.auth)
    two = request_bytes(chat(model="nobody"), {**place.running.auth, "connection": "close"})
    async with raw(place.running.port) as peer:
        peer.say(one + two)
        heard = await peer.closed(5)
    first, _, second = heard.partition(b"HTTP/1.1 404")
    assert first.startswith(b"HTTP/1.1 200")
    assert b"model_not_found" in second
    assert place.vendor.received == 1


async def test_garbage_behind_a_request_is_not_answered_into_its_answer(place: Place) -> None:
    async with raw(place.running.port) as peer:
        peer.say(request_bytes(chat(model="slow", stream=True), place.running.auth))
        await peer.until(1, b"data: ")
        peer.say(b"\x00garbage\r\n\r\n")
        heard = await peer.closed(5)
    assert heard.count(b"HTTP/1.1 ") == 1, heard[-300:]
    assert not heard.endswith(b"0\r\n\r\n")


async def test_a_stray_line_end_behind_a_body_does_no_harm(place: Place) -> None:
    """RFC 9112, 2.2: an empty line before a request line is skipped. Some clients send one."""
    async with raw(place.running.port) as peer:
        peer.say(request_bytes(chat(model="slow", stream=True), place.running.auth))
        await peer.until(1, b"data: ")
        peer.say(b"\r\n")
        await peer.until(1, b"data: [DONE]", 10)
        assert peer.heard.count(b"HTTP/1.1 ") == 1, peer.heard[-300:]
        peer.say(request_bytes(chat(), place.running.auth))
        await peer.until(2, b"HTTP/1.1 200")
