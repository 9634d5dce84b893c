"""One suite, two clients, two event loops: the promises of `gateway.backends.http_client`.

Each test talks over real sockets to a peer that says scripted bytes. `DIFFERS` is the list of where
aiohttp, the reference, legitimately behaves otherwise; a case named there asserts that it does.
"""

import asyncio
import contextlib
import functools
import inspect
import socket
import ssl
from dataclasses import dataclass, replace

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.backends.http_aiohttp import AiohttpClient
from gateway.backends.http_client import (
    BadResponse,
    ClosedEarly,
    ConnectFailed,
    ConnectTimeout,
    HeadTimeout,
    HttpLimits,
    IdleTimeout,
    Origin,
    Permits,
    PoolTimeout,
    TransportError,
    address_allowed,
    default_tls,
    http_tls,
    read_all,
    resolve,
)
from gateway.backends.http_fast import FastHttpClient
from tests.contract.http_peer import Peer, Wire, answering, make_authority, server_tls

CLIENTS = {"fast": FastHttpClient, "aiohttp": AiohttpClient}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def run_on(loop: str, scenario) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(bounded())


def contract(test):
    """Makes `async def test(kind, ...)` a test of each client on each loop."""

    @functools.wraps(test)
    def run(kind, loop, **more):
        run_on(loop, test(kind, **more))

    del run.__wrapped__
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    parameters = [*inspect.signature(test).parameters.values(), loop]
    run.__signature__ = inspect.Signature(parameters)
    run = pytest.mark.parametrize("loop", LOOPS)(run)
    return pytest.mark.parametrize("kind", CLIENTS)(run)


@contextlib.asynccontextmanager
async def connected(kind, peer, *, url=None, network="private", headers=(), tls=None, **limits):
    origin, _ = Origin.parse(url or peer.url)
    client = CLIENTS[kind](
        origin, network=network, headers=headers, tls=tls, limits=HttpLimits(**limits)
    )
    try:
        yield client
        assert client.in_use == 0, "a permit leaked"
    finally:
        await client.aclose()


async def ask(client, method="POST", path="/v1", headers=(), body=b"{}", connect=5.0, head=5.0):
    return await client.request(method, path, headers, body, connect_s_max=connect, head_s_max=head)


async def get_answer(client, **request) -> tuple[int, dict[str, str], bytes]:
    response = await ask(client, **request)
    return response.status, dict(response.headers), await read_all(response, 10**8, 5.0)


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


# ---- one response, byte for byte ----------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What the peer says to the first request, and how it then ends; what must come of it."""

    says: bytes
    want: tuple[int, bytes] | type[TransportError]
    reused: bool = False
    """Whether the next request goes over the same connection."""
    then: str = "keep"
    method: str = "POST"
    in_head: bool = True
    """Whether a fault is raised by `request` (else by `read`)."""
    patience_s: float = 5.0


def case(says, want, **more):
    return Case(says.replace("|", "\r\n").encode("latin-1"), want, **more)


H = "HTTP/1.1 200 OK|"
CHUNKED = H + "transfer-encoding: chunked||"
CASES = {
    # framing
    "length": case(H + "content-length: 5||hello", (200, b"hello"), reused=True),
    "length 0": case(H + "content-length: 0||", (200, b""), reused=True),
    "chunked": case(CHUNKED + "5|hello|1|!|0||", (200, b"hello!"), reused=True),
    "chunk extension": case(CHUNKED + '5;a=b;c="d"|hello|0||', (200, b"hello"), reused=True),
    "chunk size 00A": case(CHUNKED + "00A|0123456789|0||", (200, b"0123456789"), reused=True),
    "trailers": case(CHUNKED + "5|hello|0|x-a: b|x-c: d||", (200, b"hello"), reused=True),
    "until the end": case(H + "|hello", (200, b"hello"), then="close"),
    "until the end, half-close": case(H + "|hello", (200, b"hello"), then="half-close"),
    "until the end, empty": case(H + "|", (200, b""), then="close"),
    "HTTP/1.0": case("HTTP/1.0 200 OK|content-length: 5||hello", (200, b"hello")),
    "HTTP/1.0 until the end": case("HTTP/1.0 200 OK||hello", (200, b"hello"), then="close"),
    "HTTP/1.0 keep-alive": case(
        "HTTP/1.0 200 OK|connection: keep-alive|content-length: 5||hello",
        (200, b"hello"),
        reused=True,
    ),
    "connection: close": case(H + "connection: close|content-length: 5||hello", (200, b"hello")),
    "CONNECTION: Close": case(H + "CONNECTION: Close|content-length: 5||hello", (200, b"hello")),
    # no body
    "204": case("HTTP/1.1 204 No Content||", (204, b""), reused=True),
    "304 with length": case(
        "HTTP/1.1 304 Not Modified|content-length: 9||", (304, b""), reused=True
    ),
    "HEAD": case(H + "content-length: 9||", (200, b""), reused=True, method="HEAD"),
    "HEAD chunked": case(CHUNKED, (200, b""), reused=True, method="HEAD"),
    "HEAD without length": case(H + "|", (200, b""), method="HEAD"),
    "HEAD with a body": case(H + "content-length: 5||hello", (200, b""), method="HEAD"),
    # interim responses
    "100": case("HTTP/1.1 100 Continue||" + H + "content-length: 2||ok", (200, b"ok"), reused=True),
    "103 twice": case(
        "HTTP/1.1 103 Early Hints|link: </x>||" * 2 + H + "content-length: 2||ok",
        (200, b"ok"),
        reused=True,
    ),
    "an unknown 1xx": case(
        "HTTP/1.1 199 What||" + H + "content-length: 2||ok", (200, b"ok"), reused=True
    ),
    "101": case("HTTP/1.1 101 Switching|upgrade: h2c|connection: upgrade||xyz", BadResponse),
    # status
    "404": case("HTTP/1.1 404 Not Found|content-length: 2||no", (404, b"no"), reused=True),
    "302 is not followed": case(
        "HTTP/1.1 302 Found|location: /other|content-length: 2||go", (302, b"go"), reused=True
    ),
    "401 is not answered": case(
        "HTTP/1.1 401 No|www-authenticate: Basic|content-length: 0||", (401, b""), reused=True
    ),
    "no reason phrase": case("HTTP/1.1 200|content-length: 2||ok", (200, b"ok"), reused=True),
    "status 99": case("HTTP/1.1 099 X|content-length: 2||ok", BadResponse),
    "status 600": case("HTTP/1.1 600 X|content-length: 2||ok", BadResponse),
    # something behind the response: it must not become the next answer
    "a second response": case(
        H + "content-length: 2||ok" + H + "content-length: 4||evil", (200, b"ok")
    ),
    "a second response, empty": case(
        H + "content-length: 2||ok" + "HTTP/1.1 204 No||", (200, b"ok")
    ),
    "half a status line behind": case(H + "content-length: 2||okHTT", (200, b"ok")),
    "garbage behind": case(H + "content-length: 2||okXYZ", (200, b"ok")),
    "garbage behind chunks": case(CHUNKED + "2|ok|0||XYZ", (200, b"ok")),
    "garbage behind 204": case("HTTP/1.1 204 No Content||XYZ", (204, b"")),
    # ended too early
    "nothing, end": case("", ClosedEarly, then="close"),
    "nothing, reset": case("", ClosedEarly, then="reset"),
    "half a head, end": case(H + "content-le", ClosedEarly, then="close"),
    "only 100, end": case("HTTP/1.1 100 Continue||", ClosedEarly, then="close"),
    "half a body, end": case(
        H + "content-length: 9||hello", ClosedEarly, then="close", in_head=False
    ),
    "half a body, reset": case(
        H + "content-length: 9||hello", ClosedEarly, then="reset", in_head=False
    ),
    "half a body until the end, reset": case(
        H + "|hello", ClosedEarly, then="reset", in_head=False
    ),
    "half a chunk, end": case(CHUNKED + "9|hello", ClosedEarly, then="close", in_head=False),
    "no last chunk, end": case(CHUNKED + "5|hello|", ClosedEarly, then="close", in_head=False),
    "half the last chunk, end": case(
        CHUNKED + "5|hello|0|", ClosedEarly, then="close", in_head=False
    ),
    # not HTTP, or not to be trusted
    "another protocol": case("SSH-2.0-OpenSSH_9.2|", BadResponse),
    "HTML without a head": case("<html>oops</html>", BadResponse),
    "two lengths": case(H + "content-length: 2|content-length: 3||ok!", BadResponse),
    "length and chunked": case(
        H + "content-length: 2|transfer-encoding: chunked||2|ok|0||", BadResponse
    ),
    "length -2": case(H + "content-length: -2||ok", BadResponse),
    "length +2": case(H + "content-length: +2||ok", BadResponse),
    "length 2, 2": case(H + "content-length: 2, 2||ok", BadResponse),
    "length of 30 digits": case(H + "content-length: " + "9" * 30 + "||ok", BadResponse),
    "gzip as transfer coding": case(H + "transfer-encoding: gzip||ok", BadResponse, then="close"),
    "gzip, chunked": case(H + "transfer-encoding: gzip, chunked||2|ok|0||", BadResponse),
    "content-encoding: gzip": case(H + "content-encoding: gzip|content-length: 2||ok", BadResponse),
    "content-encoding: identity": case(
        H + "content-encoding: identity|content-length: 2||ok", (200, b"ok"), reused=True
    ),
    "bare LF": case("HTTP/1.1 200 OK\ncontent-length: 2\n\nok", BadResponse),
    "folded header": case(H + "x-a: b| c|content-length: 2||ok", BadResponse),
    "space before the colon": case(H + "content-length : 2||ok", BadResponse),
    "NUL in a header": case(H + "x-a: a\0b|content-length: 2||ok", BadResponse),
    "chunk size zz": case(CHUNKED + "zz|hello", BadResponse, in_head=False),
    "chunk size -5": case(CHUNKED + "-5|hello", BadResponse, in_head=False),
    "chunk size 2**68": case(CHUNKED + "F" * 17 + "|hello", BadResponse, in_head=False),
    "chunk longer than said": case(CHUNKED + "2|hello|0||", BadResponse, in_head=False),
    "head of 65 KiB": case(H + f"x-a: {'a' * 66_000}|content-length: 2||ok", BadResponse),
    "head of 65 KiB in many lines": case(
        H + "".join(f"x-{n}: {'a' * 600}|" for n in range(110)) + "content-length: 2||ok",
        BadResponse,
    ),
    "300 headers": case(H + "x-a: b|" * 300 + "content-length: 2||ok", BadResponse),
    "endless interim responses": case("HTTP/1.1 103 Early Hints|link: </x>||" * 4000, BadResponse),
    "endless trailers": case(CHUNKED + "2|ok|0|" + "x-a: b|" * 30_000, BadResponse, in_head=False),
    "an endless trailer": case(
        CHUNKED + "2|ok|0|x-a: " + "b" * 300_000, BadResponse, in_head=False
    ),
    "an endless chunk extension": case(
        CHUNKED + "2|ok|2;" + "b" * 300_000, BadResponse, in_head=False
    ),
}

_POOLED = {"reused": True}
_AT_ONCE = {"in_head": True}
DIFFERS: dict[str, tuple[dict[str, object], str]] = {
    # llhttp in its lenient mode, which aiohttp hard-codes for responses
    "bare LF": ({"want": (200, b"ok"), "reused": True}, "line feeds alone end lines"),
    "folded header": ({"want": (200, b"ok"), "reused": True}, "obsolete folding is unfolded"),
    "space before the colon": ({"want": (200, b"ok"), "reused": True}, "the space is dropped"),
    # one read of the socket is judged as a whole
    "HEAD with a body": ({"want": BadResponse}, "the good response before the garbage is lost"),
    "garbage behind": ({"want": BadResponse}, "the good response before the garbage is lost"),
    "garbage behind chunks": ({"want": BadResponse}, "the good response before it is lost"),
    "garbage behind 204": ({"want": BadResponse}, "the good response before it is lost"),
    "chunk size zz": (_AT_ONCE, "the good head before the garbage is lost"),
    "chunk size -5": (_AT_ONCE, "the good head before the garbage is lost"),
    "chunk size 2**68": (_AT_ONCE, "the good head before the garbage is lost"),
    "chunk longer than said": (_AT_ONCE, "the good head before the garbage is lost"),
    "endless trailers": (_AT_ONCE, "the good head before them is lost"),
    "an endless trailer": (_AT_ONCE, "the good head before it is lost"),
    "half a status line behind": ({"reused": True}, "goes unnoticed"),
    # we refuse what aiohttp has read to its clean end: its connection is pooled by then
    "status 99": (_POOLED, "refused behind aiohttp"),
    "status 600": (_POOLED, "refused behind aiohttp"),
    "gzip, chunked": (_POOLED, "refused behind aiohttp"),
    "content-encoding: gzip": (_POOLED, "refused behind aiohttp"),
    # limits it lacks
    "head of 65 KiB in many lines": ({"want": (200, b"ok"), "reused": True}, "limit per line only"),
    "endless interim responses": ({"want": HeadTimeout, "patience_s": 0.5}, "no limit but time"),
    "an endless chunk extension": ({"want": IdleTimeout, "patience_s": 0.5}, "no limit but time"),
    "half a body until the end, reset": ({"want": (200, b"hello")}, "a reset counts as the end"),
}


@pytest.mark.parametrize("name", CASES)
@contract
async def test_response(kind, name) -> None:
    expected = CASES[name]
    if kind == "aiohttp" and name in DIFFERS:
        expected = replace(expected, **DIFFERS[name][0])

    async def script(wire: Wire) -> None:
        await wire.request()
        if wire.number or len(wire.peer.requests) > 1:
            await wire.send(OK)
            return
        await wire.send(expected.says)
        match expected.then:
            case "close":
                wire.close()
            case "half-close":
                wire.half_close()
            case "reset":
                await asyncio.sleep(0.02)  # a reset overtakes bytes that nobody has read yet
                wire.reset()
        if expected.then == "keep":
            await wire.request()
            await wire.send(OK)

    async with Peer(script) as peer, connected(kind, peer) as client:
        await check(client, expected)
        assert (await get_answer(client))[::2] == (200, b"ok"), "the next answer is poisoned"
        assert (peer.connections == 1) is expected.reused


async def check(client, expected: Case) -> None:
    seen, in_head = await outcome(client, expected)
    if isinstance(seen, TransportError):
        assert type(seen) is expected.want, seen
        assert in_head is expected.in_head
        assert not isinstance(seen, ClosedEarly) or seen.before_head is in_head
    else:
        assert seen == expected.want


async def outcome(client, asked: Case) -> tuple[tuple[int, bytes] | TransportError, bool]:
    try:
        response = await ask(client, method=asked.method, head=asked.patience_s)
    except TransportError as error:
        return error, True
    try:
        return (response.status, await read_all(response, 10**8, asked.patience_s)), False
    except TransportError as error:
        return error, False


@contract
async def test_headers(kind) -> None:
    says = (
        b"HTTP/1.1 200 OK\r\nX-Case: Kept\r\nx-empty:\r\nx-space: \t padded \t \r\nx-two: a\r\n"
        b"X-Two: b\r\nx-latin: caf\xe9\r\ncontent-length: 0\r\n\r\n"
    )
    async with Peer(answering(says)) as peer, connected(kind, peer) as client:
        status, headers, body = await get_answer(client)
    assert (status, body) == (200, b"")
    assert headers == {
        "x-case": "Kept",
        "x-empty": "",
        "x-space": "padded",
        "x-two": "a, b",
        "x-latin": "caf\xe9",
        "content-length": "0",
    }


# ---- cut anywhere, the same answer --------------------------------------------------------------

_token = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)
_value = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
_headers = st.lists(st.tuples(_token.map(lambda name: f"x-{name}"), _value), max_size=5)


@st.composite
def responses(draw) -> tuple[bytes, bytes]:
    """A valid response and its body."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    body = b"".join(chunks)
    lines = [f"{name}: {value}" for name, value in draw(_headers)]
    interim = draw(st.lists(st.sampled_from(["100 Continue", "103 Hints"]), max_size=2))
    start = "".join(f"HTTP/1.1 {line}\r\ninterim: 1\r\n\r\n" for line in interim)
    start += f"HTTP/1.1 {draw(st.sampled_from([200, 201, 404, 500]))} Fine\r\n"
    if draw(st.booleans()):
        lines.append(f"content-length: {len(body)}")
        payload = body
    else:
        lines.append("transfer-encoding: chunked")
        extension = draw(st.sampled_from(["", ";a", ';a="b"']))
        payload = b"".join(
            b"%x%b\r\n%b\r\n" % (len(chunk), extension.encode(), chunk) for chunk in chunks
        )
        trailers = "".join(f"{name}: {value}\r\n" for name, value in draw(_headers))
        payload += b"0\r\n" + trailers.encode() + b"\r\n"
    head = start + "".join(f"{line}\r\n" for line in draw(st.permutations(lines))) + "\r\n"
    return head.encode() + payload, body


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", CLIENTS)
@settings(max_examples=100, deadline=None)
@given(response=responses(), data=st.data())
def test_where_a_response_is_cut_does_not_matter(kind, loop, response, data) -> None:
    says, body = response
    cuts = data.draw(st.lists(st.integers(1, len(says) - 1), max_size=12, unique=True).map(sorted))
    pieces = [says[a:b] for a, b in zip([0, *cuts], [*cuts, len(says)], strict=True)]

    async def scenario() -> None:
        async def script(wire: Wire) -> None:
            await wire.request()
            await wire.send(says)
            await wire.request()
            await wire.send(*pieces)

        async with Peer(script) as peer, connected(kind, peer) as client:
            whole, cut = await get_answer(client), await get_answer(client)
            assert whole == cut
            assert whole[2] == body
            assert "interim" not in whole[1], "a header of an interim response"
            assert peer.connections == 1

    run_on(loop, scenario())


@contract
async def test_blocks_come_as_they_are_sent(kind) -> None:
    """Also the proof that the property above does see cuts: here each piece is one read."""
    turn = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for word in (b"one", b"two", b"three"):
            await wire.send(b"%x\r\n%b\r\n" % (len(word), word))
            await turn.wait()
            turn.clear()
        await wire.send(b"1\r\n.\r\n", b"1\r\n!\r\n", b"0\r\n\r\n")
        await turn.wait()

    async with Peer(script) as peer, connected(kind, peer) as client:
        response = await ask(client)
        for word in (b"one", b"two", b"three"):
            assert await response.read(idle_s_max=5.0) == word
            turn.set()
        await asyncio.sleep(0.05)
        assert await response.read(idle_s_max=5.0) == b".!"  # what waits comes in one
        assert await response.read(idle_s_max=5.0) == b""
        assert await response.read(idle_s_max=5.0) == b""


# ---- what goes out ------------------------------------------------------------------------------


@contract
async def test_request_as_sent(kind) -> None:
    async with (
        Peer(answering(OK)) as peer,
        connected(kind, peer, headers=[(b"authorization", b"Bearer k")]) as client,
    ):
        await get_answer(client, path="/v1/x?a=%2F&b=[c]", headers=[(b"x-id", b"7")], body=b"{}")
        await get_answer(client, method="GET", body=b"")
        await get_answer(client, body=b"")
    ours = [
        ("host", f"127.0.0.1:{peer.port}"),
        ("user-agent", "weighbridge"),
        ("accept-encoding", "identity"),
        ("authorization", "Bearer k"),
    ]
    post, get, empty = peer.requests
    assert post.line == "POST /v1/x?a=%2F&b=[c] HTTP/1.1"
    assert sorted(post.headers) == sorted([*ours, ("x-id", "7"), ("content-length", "2")])
    assert post.body == b"{}"
    assert (get.line, sorted(get.headers)) == ("GET /v1 HTTP/1.1", sorted(ours))
    assert sorted(empty.headers) == sorted([*ours, ("content-length", "0")])


@pytest.mark.parametrize("size", [65_536, 65_537, 5_000_000])
@contract
async def test_large_request_body(kind, size) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with Peer(answering(OK)) as peer, connected(kind, peer) as client:
        assert (await get_answer(client, body=body))[2] == b"ok"
        assert (await get_answer(client, body=b"{}"))[2] == b"ok"
    assert peer.requests[0].values("content-length") == [str(size)]
    assert peer.requests[0].body == body
    assert peer.connections == 1


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": [(b"x-a", b"b\r\nauthorization: stolen")]},
        {"headers": [(b"x-a", b"b\nc")]},
        {"headers": [(b"x-a\r\nx-b", b"c")]},
        {"headers": [(b"x-a", b"b\0c")]},
        {"headers": [(b"Content-Length", b"3")]},
        {"headers": [(b"transfer-encoding", b"chunked")]},
        {"headers": [(b"Host", b"evil.test")]},
        {"headers": [(b"connection", b"close")]},
        {"path": "/a b"},
        {"path": "/a\r\nx: y"},
        {"path": "/a\n"},
        {"path": "http://evil.test/"},
        {"path": "@evil.test/"},
        {"path": ""},
        {"path": "/caf\xe9"},
        {"method": "POST /x HTTP/1.1\r\n"},
        {"method": "CONNECT"},
    ],
    ids=str,
)
@contract
async def test_what_must_not_be_sent(kind, request_) -> None:
    async with Peer(answering(OK)) as peer, connected(kind, peer) as client:
        with pytest.raises(ValueError):
            await ask(client, **request_)
        assert (await get_answer(client))[2] == b"ok"
    assert len(peer.requests) == 1


@pytest.mark.parametrize("kind", CLIENTS)
def test_environment_is_not_looked_at(kind, monkeypatch, tmp_path) -> None:
    async def scenario() -> None:
        async with Peer(answering(OK)) as peer, Peer(answering(OK)) as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
            (tmp_path / ".netrc").chmod(0o600)
            monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
            async with connected(kind, peer) as client:
                await get_answer(client)
            assert (len(peer.requests), proxy.connections) == (1, 0)
            assert not peer.requests[0].values("authorization")

    run_on("asyncio", scenario())


@contract
async def test_cookies_are_not_kept(kind) -> None:
    says = b"HTTP/1.1 200 OK\r\nset-cookie: a=b; path=/\r\ncontent-length: 2\r\n\r\nok"
    async with Peer(answering(says)) as peer, connected(kind, peer) as client:
        await get_answer(client)
        await get_answer(client)
    assert not peer.requests[1].values("cookie")


# ---- keep-alive, and its races ------------------------------------------------------------------


@contract
async def test_one_connection_serves_in_turn(kind) -> None:
    async with Peer(answering(OK)) as peer, connected(kind, peer) as client:
        for _ in range(20):
            assert (await get_answer(client))[2] == b"ok"
    assert (peer.connections, len(peer.requests)) == (1, 20)


@contract
async def test_peer_closes_although_it_announced_keep_alive(kind) -> None:
    """As llama.cpp does behind a stream."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK.replace(b"content", b"keep-alive: timeout=5\r\ncontent"))
        wire.close()

    async with Peer(script) as peer, connected(kind, peer) as client:
        for pause in (0, 0, 0.02, 0, 0.02):
            assert (await get_answer(client))[2] == b"ok"
            await asyncio.sleep(pause)
    assert len(peer.requests) == 5


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("how", ["close", "reset"])
@contract
async def test_lost_race_is_repeated_once_on_a_new_connection(kind, how, method) -> None:
    """Two kept-alive connections, both about to be closed: the repeat must not use the other."""
    both_asked = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        if wire.number == 1:
            both_asked.set()
        if wire.number < 2:
            await both_asked.wait()
        await wire.send(OK)
        await wire.request()
        if wire.number < 2:
            getattr(wire, how)()
        else:
            await wire.send(OK)

    async with Peer(script) as peer, connected(kind, peer) as client:
        await asyncio.gather(get_answer(client), get_answer(client))
        assert peer.connections == 2
        body = b"{}" if method == "POST" else b""
        assert (await get_answer(client, method=method, body=body))[2] == b"ok"
        if kind == "aiohttp" and method == "GET":  # it repeats those once more, on the other one
            assert (peer.connections, len(peer.requests)) == (3, 5)
        else:
            assert (peer.connections, len(peer.requests)) == (3, 4)


@contract
async def test_repeat_that_fails_is_not_repeated(kind) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        if not wire.number:
            await wire.send(OK)
            await wire.request()

    async with Peer(script) as peer, connected(kind, peer) as client:
        await get_answer(client)
        with pytest.raises(ClosedEarly) as caught:
            await ask(client)
        assert caught.value.before_head
        assert (peer.connections, len(peer.requests)) == (2, 3)


@contract
async def test_new_connection_that_is_closed_is_not_repeated(kind) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()

    async with Peer(script) as peer, connected(kind, peer) as client:
        with pytest.raises(ClosedEarly):
            await ask(client)
        assert (peer.connections, len(peer.requests)) == (1, 1)


@contract
async def test_after_one_byte_of_answer_nothing_is_repeated(kind) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()
        await wire.send(b"H")

    async with Peer(script) as peer, connected(kind, peer) as client:
        await get_answer(client)
        with pytest.raises(ClosedEarly) as caught:
            await ask(client)
        assert caught.value.before_head
        assert len(peer.requests) == 2


@contract
async def test_close_after_work_is_no_race(kind) -> None:
    """A peer that dies while it works on a request may have run, and billed, it."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()
        await asyncio.sleep(0.2)

    async with Peer(script) as peer, connected(kind, peer, reuse_race_s_max=0.05) as client:
        await get_answer(client)
        with pytest.raises(ClosedEarly):
            await ask(client)
        assert len(peer.requests) == 2


@contract
async def test_bytes_while_idle_are_never_an_answer(kind) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        if not wire.number:
            await asyncio.sleep(0.02)
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await wire.request()
        await wire.send(OK)

    async with Peer(script) as peer, connected(kind, peer) as client:
        await get_answer(client)
        await asyncio.sleep(0.1)
        if kind == "aiohttp":  # it believes them: why it is not the client of shared upstreams
            assert (await get_answer(client))[2] == b"evil"
        else:
            assert (await get_answer(client))[2] == b"ok"
            assert peer.connections == 2


@contract
async def test_idle_connection_ends(kind) -> None:
    ended = []

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        ended.append(await wire.ended())

    async with Peer(script) as peer, connected(kind, peer, keepalive_s_max=0.1) as client:
        await get_answer(client)
        assert not ended
        async with asyncio.timeout(5):
            while not ended:
                await asyncio.sleep(0.02)
        assert peer.open == 0


def test_old_connection_is_not_used_again() -> None:
    async def scenario() -> None:
        async with (
            Peer(answering(OK)) as peer,
            connected("fast", peer, connection_age_s_max=0.05) as client,
        ):
            await get_answer(client)
            await get_answer(client)
            assert peer.connections == 1
            await asyncio.sleep(0.1)
            await get_answer(client)
            assert peer.connections == 2

    run_on("asyncio", scenario())  # aiohttp has no such limit


@pytest.mark.parametrize("loop", LOOPS)
def test_dead_connections_are_forgotten(loop) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)

    async def scenario() -> None:
        async with Peer(script) as peer, connected("fast", peer) as client:
            await asyncio.gather(*(get_answer(client) for _ in range(5)))
            await gone(peer)
            await asyncio.sleep(0.02)
            assert not client._live
            assert not client._idle

    run_on(loop, scenario())


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_given_up_in_the_making_are_forgotten(loop) -> None:
    async def scenario() -> None:
        async with Peer(answering(OK)) as peer, connected("fast", peer) as client:
            late = 0
            for _ in range(40):
                try:
                    await ask(client, connect=0.0001)
                except ConnectTimeout:
                    late += 1
            await asyncio.sleep(0.05)
            assert late
            assert client._live <= client._idle.keys()

    run_on(loop, scenario())


@contract
async def test_answer_before_the_request_was_read(kind) -> None:
    """The rest of a refused upload must not stand before the next request."""

    async def script(wire: Wire) -> None:
        if wire.number:
            await wire.request()
            await wire.send(OK)
        else:
            await wire.reader.readuntil(b"\r\n\r\n")
            wire.writer.transport.pause_reading()
            await wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
            await asyncio.sleep(30)

    async with Peer(script) as peer, connected(kind, peer) as client:
        status, _, body = await get_answer(client, body=b"x" * 30_000_000)
        assert (status, body) == (413, b"big")
        assert (await get_answer(client))[2] == b"ok"


# ---- limits -------------------------------------------------------------------------------------


async def silent(wire: Wire) -> None:
    await wire.request()
    await wire.ended()


async def half_said(wire: Wire) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello")
    await wire.ended()


@contract
async def test_pool_is_bounded_and_its_wait_too(kind) -> None:
    async with (
        Peer(half_said) as peer,
        connected(kind, peer, connections_max=2, pool_wait_s_max=0.05) as client,
    ):
        first, second = await ask(client), await ask(client)
        assert client.in_use == 2
        with pytest.raises(PoolTimeout):
            await ask(client)
        first.close()
        third = await ask(client)
        assert client.in_use == 2
        second.close()
        third.close()
        third.close()
        assert client.in_use == 0


@contract
async def test_many_callers_share_few_connections(kind) -> None:
    async with (
        Peer(answering(OK)) as peer,
        connected(kind, peer, connections_max=3, pool_wait_s_max=10.0) as client,
    ):
        answers = await asyncio.gather(*(get_answer(client) for _ in range(60)))
    assert {answer[2] for answer in answers} == {b"ok"}
    assert (peer.open_most, len(peer.requests)) == (3, 60)


@contract
async def test_head_timeout(kind) -> None:
    async with Peer(silent) as peer, connected(kind, peer) as client:
        with pytest.raises(HeadTimeout):
            await ask(client, head=0.1)
        await gone(peer)


@contract
async def test_interim_responses_do_not_extend_the_wait_for_the_head(kind) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        while True:
            await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            await asyncio.sleep(0.02)

    async with Peer(script) as peer, connected(kind, peer) as client:
        with pytest.raises(HeadTimeout):
            await ask(client, head=0.2)


@contract
async def test_idle_timeout(kind) -> None:
    async with Peer(half_said) as peer, connected(kind, peer) as client:
        response = await ask(client)
        assert await response.read(idle_s_max=5.0) == b"hello"
        for _ in range(2):
            with pytest.raises(IdleTimeout):
                await response.read(idle_s_max=0.1)
        await gone(peer)


@contract
async def test_bytes_that_are_no_body_do_not_extend_the_wait(kind) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5;")
        while True:
            await wire.send(b"a")
            await asyncio.sleep(0.02)

    async with Peer(script) as peer, connected(kind, peer) as client:
        response = await ask(client)
        assert await response.read(idle_s_max=5.0) == b"hello"
        with pytest.raises(IdleTimeout):
            await response.read(idle_s_max=0.2)


@contract
async def test_a_slow_reader_is_no_silent_peer(kind) -> None:
    """No limit runs while nobody waits; each wait has its own."""

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none")
        await asyncio.sleep(0.4)
        await wire.send(b"two")

    async with Peer(script) as peer, connected(kind, peer) as client:
        response = await ask(client, head=0.1)
        await asyncio.sleep(0.2)
        assert await response.read(idle_s_max=0.1) == b"one"
        assert await response.read(idle_s_max=5.0) == b"two"
        assert await response.read(idle_s_max=0.1) == b""


@contract
async def test_unread_body_stops_the_peer(kind) -> None:
    size = 64 * 1024 * 1024
    wires = []

    async def script(wire: Wire) -> None:
        wires.append(wire)
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for number in range(size // 65536):
            await wire.send(bytes([number % 256]) * 65536)

    async with Peer(script) as peer, connected(kind, peer) as client:
        response = await ask(client)
        sent = -1
        while sent < wires[0].sent:
            sent = wires[0].sent
            await asyncio.sleep(0.1)
        assert sent < size // 2, "the kernel's buffers and ours hold no half of it"
        block = await response.read(idle_s_max=5.0)
        assert len(block) <= 1024 * 1024
        whole = block + await read_all(response, size, 5.0)
        assert len(whole) == size
        assert all(whole[n * 65536] == n % 256 for n in range(size // 65536))


@pytest.mark.parametrize(
    ("framing", "bytes_max"),
    [
        (b"transfer-encoding: chunked", 47),
        (b"content-length: 100", 47),
        (b"content-length: 100", 99),  # refused for what it announces
    ],
)
@contract
async def test_read_all_is_bounded(kind, framing, bytes_max) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
        await wire.send(b"30\r\n" + b"a" * 48 + b"\r\n")
        await wire.ended()

    async with Peer(script) as peer, connected(kind, peer) as client:
        with pytest.raises(BadResponse):
            await read_all(await ask(client), bytes_max, 5.0)
        await gone(peer)


# ---- cancelled, closed --------------------------------------------------------------------------


async def gone(peer: Peer) -> None:
    """Waits until the peer's connections have ended, well before a time limit of ours does it."""
    async with asyncio.timeout(2):
        while peer.open:
            await asyncio.sleep(0.01)


async def cancel(task: asyncio.Task) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@contract
async def test_cancelled_while_it_waits_for_the_head(kind) -> None:
    async with Peer(silent) as peer, connected(kind, peer) as client:
        task = asyncio.ensure_future(ask(client))
        await asyncio.sleep(0.05)
        assert client.in_use == 1
        await cancel(task)
        assert client.in_use == 0
        await gone(peer)


@contract
async def test_cancelled_while_it_waits_for_the_body(kind) -> None:
    async with Peer(half_said) as peer, connected(kind, peer) as client:
        response = await ask(client)
        assert await response.read(idle_s_max=5.0) == b"hello"
        task = asyncio.ensure_future(response.read(idle_s_max=5.0))
        await asyncio.sleep(0.05)
        await cancel(task)
        assert client.in_use == 0
        await gone(peer)


@contract
async def test_cancelled_at_any_turn(kind) -> None:
    """Whatever it was doing, no connection comes back dirty and no permit is lost."""

    async def script(wire: Wire) -> None:
        while True:
            seen = await wire.request()
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(seen.body))
            await wire.send(seen.body)

    async with (
        Peer(script) as peer,
        connected(kind, peer, connections_max=2, pool_wait_s_max=5.0) as client,
    ):
        for turns in range(40):
            tasks = [
                asyncio.ensure_future(get_answer(client, body=b"%d" % number))
                for number in range(4)
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for number, answer in enumerate(answers):
                if not isinstance(answer, asyncio.CancelledError):
                    assert answer[2] == b"%d" % number
            assert client.in_use == 0
        assert (await get_answer(client, body=b"last"))[2] == b"last"


@contract
async def test_close_in_the_body_drops_the_connection(kind) -> None:
    async with Peer(half_said) as peer, connected(kind, peer) as client:
        response = await ask(client)
        response.close()
        assert client.in_use == 0
        with pytest.raises(ClosedEarly):
            await read_all(response, 100, 5.0)
        await gone(peer)


@contract
async def test_close_behind_the_body_keeps_the_connection(kind) -> None:
    async with Peer(answering(OK)) as peer, connected(kind, peer) as client:
        for _ in range(2):
            response = await ask(client)
            assert await read_all(response, 100, 5.0) == b"ok"
            response.close()
        assert peer.connections == 1


@contract
async def test_aclose_ends_everything(kind) -> None:
    async with Peer(half_said) as peer, connected(kind, peer) as client:
        response = await ask(client)
        reader = asyncio.ensure_future(read_all(response, 100, 5.0))
        asking = asyncio.ensure_future(ask(client, path="/slow"))
        await asyncio.sleep(0.02)
        (await asking).close()
        await client.aclose()
        with pytest.raises(ClosedEarly):
            await reader
        with pytest.raises(ConnectFailed):
            await ask(client)
        await client.aclose()
        await gone(peer)


def test_permits() -> None:
    async def scenario() -> None:
        permits = Permits(1, wait_s_max=5.0)
        await permits.take()
        order = []

        async def waiter(name) -> None:
            await permits.take()
            order.append(name)

        a, b, c = (asyncio.ensure_future(waiter(name)) for name in "abc")
        await asyncio.sleep(0)
        b.cancel()
        permits.give()  # to a, which is then cancelled before it could run
        a.cancel()
        await asyncio.gather(a, b, c, return_exceptions=True)
        assert order == ["c"]
        assert permits.taken == 1
        permits.give()
        assert permits.taken == 0
        assert permits.try_take()
        assert not permits.try_take()

    run_on("asyncio", scenario())


# ---- where it connects --------------------------------------------------------------------------


@contract
async def test_refused(kind) -> None:
    async with Peer(answering(OK)) as peer:
        pass
    async with connected(kind, peer) as client:
        with pytest.raises(ConnectFailed):
            await ask(client)


@contract
async def test_unknown_name(kind) -> None:
    async with connected(kind, None, url="http://no-such-host.invalid") as client:
        with pytest.raises((ConnectFailed, ConnectTimeout)):
            await ask(client, connect=3.0)


def names(monkeypatch, *answers: list[str]) -> list[str]:
    """Makes the running loop resolve names to these addresses, in turn; the names asked for."""
    asked: list[str] = []

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("addresses", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
@pytest.mark.parametrize("kind", CLIENTS)
def test_name_with_a_dead_address(kind, addresses, monkeypatch) -> None:
    async def scenario() -> None:
        names(monkeypatch, addresses)
        async with Peer(answering(OK)) as peer:
            url = f"http://two.test:{peer.port}"
            async with connected(kind, peer, url=url) as client:
                assert (await get_answer(client))[2] == b"ok"
        assert peer.requests[0].values("host") == [f"two.test:{peer.port}"]

    run_on("asyncio", scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
@contract
async def test_private_address_is_refused_for_a_public_backend(kind, host) -> None:
    async with Peer(answering(OK)) as peer:
        url = f"http://{host}:{peer.port}"
        async with connected(kind, peer, url=url, network="public") as client:
            with pytest.raises(ConnectFailed):
                await ask(client)
    assert peer.connections == 0


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("8.8.8.8", True, True),
        ("2606:4700::1111", True, True),
        ("10.1.2.3", False, True),
        ("192.168.0.1", False, True),
        ("100.64.0.1", False, True),
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("fd12::1", False, True),
        ("::ffff:10.0.0.1", False, True),
        ("64:ff9b::a00:1", False, True),
        ("2002:0a00:0001::1", False, True),
        ("64:ff9b::808:808", True, True),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("fd00:ec2::254", False, False),
        ("100.100.100.200", False, False),
        ("fe80::1%eth0", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
    ],
)
def test_address_allowed(address, public, private) -> None:
    assert address_allowed(address, "public") is public
    assert address_allowed(address, "private") is private


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("https://api.openai.com/v1", "api.openai.com", "/v1"),
        ("https://API.openai.com:443/v1/", "api.openai.com", "/v1"),
        ("http://vllm:8000", "vllm:8000", ""),
        ("http://10.0.0.7:80/", "10.0.0.7", ""),
        ("http://[2001:DB8:0::1]:8000/v1", "[2001:db8::1]:8000", "/v1"),
        ("https://xn--bcher-kva.example/a/b", "xn--bcher-kva.example", "/a/b"),
    ],
)
def test_origin(url, authority, prefix) -> None:
    origin, path = Origin.parse(url)
    assert (origin.authority, path) == (authority, prefix)
    assert Origin.parse(str(origin)) == (origin, "")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com",
        "example.com/v1",
        "http://",
        "http://:80",
        "http://user:key@example.com",
        "http://example.com/?a=b",
        "http://example.com/#a",
        "http://example.com:0",
        "http://example.com:99999",
        "http://exa mple.com",
        "http://b\xfccher.example",
        "http://127.1",
        "http://2130706433",
        "http://0x7f.0.0.1",
        "http://127.0.0.0x1",
        "http://017700000001",
        "http://[fe80::1%eth0]",
        "http://[::1",
        "http://example..com",
        "http://example.com.",
        "http://evil.com\\@good.com",
        "http://" + "a" * 64 + ".com",
    ],
)
def test_no_origin(url) -> None:
    with pytest.raises(ValueError):
        Origin.parse(url)


@pytest.mark.parametrize("kind", CLIENTS)
def test_checked_address_is_the_one_connected_to(kind, monkeypatch) -> None:
    """A name that answers otherwise the second time (DNS rebinding) is asked only once."""

    async def scenario() -> None:
        asked = names(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
        async with Peer(answering(OK)) as peer:
            url = f"http://rebind.test:{peer.port}"
            async with connected(kind, peer, url=url) as client:
                assert (await get_answer(client))[2] == b"ok"
                assert asked == ["rebind.test"]
            async with connected(kind, peer, url=url) as client:
                with pytest.raises(ConnectFailed):
                    await ask(client)
            assert peer.connections == 1

    run_on("asyncio", scenario())


@pytest.mark.parametrize("addresses", [["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "10.0.0.1"]])
def test_one_forbidden_address_condemns_the_name(addresses, monkeypatch) -> None:
    async def scenario() -> None:
        names(monkeypatch, addresses)
        origin, _ = Origin.parse("https://mixed.test")
        assert await resolve(origin, "private") == addresses
        with pytest.raises(ConnectFailed):
            await resolve(origin, "public")

    run_on("asyncio", scenario())


# ---- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ca")
    ca = make_authority(folder)
    return {
        "trusting": http_tls(ssl.create_default_context(cafile=ca)),
        "localhost": server_tls(folder, "DNS:localhost"),
        "other": server_tls(folder, "DNS:other.test"),
        "address": server_tls(folder, "IP:127.0.0.1"),
    }


def over_tls(test):
    """As `contract`, for tests that want the authority."""
    run = contract(test)

    def with_authority(authority, **arguments):
        run(**arguments, authority=authority)

    parameters = inspect.signature(run).parameters
    with_authority.__signature__ = inspect.Signature(parameters.values())
    with_authority.pytestmark = run.pytestmark
    with_authority.__name__ = test.__name__
    return with_authority


@over_tls
async def test_tls(kind, authority) -> None:
    alpn = []

    async def script(wire: Wire) -> None:
        alpn.append(wire.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        for _ in range(2):
            await wire.request()
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n")
            await wire.send(b"a" * 300_000)

    async with Peer(script, tls=authority["localhost"]) as peer:
        url = f"https://localhost:{peer.port}"
        async with connected(kind, peer, url=url, tls=authority["trusting"]) as client:
            for _ in range(2):
                assert (await get_answer(client, body=b"x" * 200_000))[2] == b"a" * 300_000
    assert alpn == ["http/1.1"]
    assert peer.connections == 1


@over_tls
async def test_tls_to_an_address(kind, authority) -> None:
    async with (
        Peer(answering(OK), tls=authority["address"]) as peer,
        connected(kind, peer, tls=authority["trusting"]) as client,
    ):
        assert (await get_answer(client))[2] == b"ok"


@pytest.mark.parametrize("trust", ["trusting", "default"])
@over_tls
async def test_tls_certificate_is_checked(kind, trust, authority) -> None:
    """Another name, and an authority we do not know."""
    certificate = {"trusting": "other", "default": "localhost"}[trust]
    tls = authority["trusting"] if trust == "trusting" else default_tls()
    async with Peer(answering(OK), tls=authority[certificate]) as peer:
        url = f"https://localhost:{peer.port}"
        async with connected(kind, peer, url=url, tls=tls) as client:
            with pytest.raises(ConnectFailed) as caught:
                await ask(client)
            assert "certificate" in str(caught.value).lower()
    assert not peer.requests


@over_tls
async def test_tls_to_a_peer_without(kind, authority) -> None:
    async def script(wire: Wire) -> None:
        await wire.reader.read(10)
        await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Peer(script) as peer:
        url = f"https://localhost:{peer.port}"
        async with connected(kind, peer, url=url, tls=authority["trusting"]) as client:
            with pytest.raises(ConnectFailed):
                await ask(client)


@over_tls
async def test_connect_timeout(kind, authority) -> None:
    """The handshake counts: this peer accepts and then says nothing."""

    async def script(wire: Wire) -> None:
        await wire.ended()

    async with Peer(script) as peer:
        url = f"https://localhost:{peer.port}"
        async with connected(kind, peer, url=url, tls=authority["trusting"]) as client:
            with pytest.raises(ConnectTimeout):
                await ask(client, connect=0.3)
            assert client.in_use == 0
            task = asyncio.ensure_future(ask(client))
            await asyncio.sleep(0.1)
            await cancel(task)
        await gone(peer)


@over_tls
async def test_tls_keep_alive_race(kind, authority) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        if not wire.number:
            await wire.request()

    async with Peer(script, tls=authority["localhost"]) as peer:
        url = f"https://localhost:{peer.port}"
        async with connected(kind, peer, url=url, tls=authority["trusting"]) as client:
            assert (await get_answer(client))[2] == b"ok"
            assert (await get_answer(client))[2] == b"ok"
    assert (peer.connections, len(peer.requests)) == (2, 3)


def test_a_context_that_checks_nothing_is_refused() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    with pytest.raises(ValueError):
        http_tls(context)
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(ValueError):
        http_tls(context)
