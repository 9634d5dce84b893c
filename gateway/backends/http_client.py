"""One HTTP/1.1 exchange with one upstream: the interface and the rules every client obeys.

Owns: `HttpClient` and `HttpResponse` (the whole contract), where a client may connect (`Origin`,
`resolve`), what may go into a request head (`encode_headers`), how many exchanges run at once
(`Permits`), and the ways to fail. Must not know: JSON, SSE, models, retries over backends, money.

Invariants, held by both implementations (`http_fast`, the hot one; `http_aiohttp`, the reference)
and by `tests/contract/test_http_clients.py`:

- A client is bound to one origin and keeps that origin's credentials; no argument of `request` can
  send them elsewhere. No redirect is followed; no proxy, cookie jar or netrc is looked at, and no
  environment variable but OpenSSL's own (where its roots are, its key log).
- Names are resolved, the addresses are checked, and the checked address is what we connect to (no
  DNS rebinding).
- Every wait has a limit, every buffer has a limit.
- Exactly one request is ever repeated by itself: sent on a kept-alive connection that the peer
  closed at once and without a byte of answer (RFC 9112 9.3.1; llama.cpp closes after it announced
  keep-alive). Once, on a new connection.
- A connection goes back to the pool only behind a complete, keep-alive response with nothing after
  it.

A body framed by the end of the connection (neither Content-Length nor chunked) cannot be told from
a cut one; whoever reads such a stream needs an end mark inside it (`[DONE]`, `finish_reason`).
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, Protocol, Self
from urllib.parse import urlsplit

Headers = Sequence[tuple[bytes, bytes]]
Network = Literal["public", "private"]

USER_AGENT: Final = "weighbridge"


# ---- how an exchange fails ----------------------------------------------------------------------


LEFT_S = 120.0  # after so long without a call, a client that was let go of is closed


class TransportError(Exception):
    """No complete response. The sentence names no header and no body byte, so it may be logged."""


class ConnectFailed(TransportError):
    """No connection: name, address refused or forbidden, TLS. Nothing was sent."""


class ConnectTimeout(TransportError):
    """No connection in time. Nothing was sent."""


class PoolTimeout(TransportError):
    """All connections stayed busy for `pool_wait_s_max`. Nothing was sent."""


class HeadTimeout(TransportError):
    """The request went out and no response head came in time."""


class IdleTimeout(TransportError):
    """The body stopped coming."""


class BadResponse(TransportError):
    """No answer to trust: broken framing, too large a head or body, a coding not asked for."""


class ClosedEarly(TransportError):
    """The connection ended before the response did."""

    def __init__(self, message: str, *, before_head: bool) -> None:
        super().__init__(message)
        self.before_head = before_head


# ---- the contract -------------------------------------------------------------------------------


class HttpResponse(Protocol):
    """A response whose head has come. Not safe for two readers."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names, latin-1 values; a repeated field is joined by ", ". No trailers."""

    async def read(self, *, idle_s_max: float) -> bytes:
        """All body bytes that have come; waits if there are none. b"" is the clean end, for ever.

        Raises IdleTimeout, ClosedEarly or BadResponse, after the bytes before the fault. Being
        cancelled drops the connection.
        """

    def close(self) -> None:
        """End now. Drops the connection unless the whole response had come; idempotent."""


class HttpClient(Protocol):
    """Exchanges with one origin."""

    @property
    def in_use(self) -> int:
        """Exchanges that hold a connection now, at most `connections_max`."""

    async def request(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        *,
        connect_s_max: float,
        head_s_max: float,
    ) -> HttpResponse:
        """Sends and waits for the response head; `path` begins with "/" and is sent as it is.

        `head_s_max` runs from the moment we have a connection. Raises a `TransportError`, or
        ValueError for a request that must not be sent (line breaks in headers, framing headers, a
        path that is not one).
        """

    async def aclose(self) -> None:
        """Drops every connection, also those in use; their readers get ClosedEarly."""


async def read_all(response: HttpResponse, bytes_max: int, idle_s_max: float) -> bytes:
    """The whole body. Raises BadResponse, and drops the connection, past `bytes_max`."""
    announced = response.headers.get("content-length", "0")
    left = bytes_max - int(announced) if announced.isdecimal() else -1
    blocks = []
    if left >= 0:
        left = bytes_max
        while block := await response.read(idle_s_max=idle_s_max):
            blocks.append(block)
            left -= len(block)
            if left < 0:
                break
    if left < 0:
        response.close()
        raise BadResponse(f"body larger than {bytes_max} bytes")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one client."""

    connections_max: int = 256
    pool_wait_s_max: float = 0.25
    head_bytes_max: int = 64 * 1024
    """Also of trailers, chunk extensions, interim responses: bytes without progress in the body."""
    headers_max: int = 256
    buffer_bytes_max: int = 256 * 1024
    """Unread body bytes past which we stop reading the socket; one socket read may come on top."""
    keepalive_s_max: float = 30.0
    connection_age_s_max: float = 300.0
    """Older connections are not used again, so that a change of DNS is followed."""
    reuse_race_s_max: float = 2.0
    """If a kept-alive connection ends later than this, the peer was at work: no race, no repeat."""


# ---- where we may connect -----------------------------------------------------------------------

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\Z", re.ASCII)
_LOOKS_NUMERIC = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\Z", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme ("http" or "https"), host (lower-case name, or address without brackets) and port."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> tuple[Self, str]:
        """Splits a base URL into its origin and its path ("" or "/v1"). Raises ValueError.

        Stricter than a browser: no user, query or fragment, and addresses in the usual notation
        only (not "127.1").
        """
        if not url.isascii() or not url.isprintable() or any(mark in url for mark in " ?#\\@"):
            raise ValueError("a base URL is printable ASCII without user, query or fragment")
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            raise ValueError("a base URL begins with http:// or https://")
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
        if not port:
            raise ValueError("port 0")
        return cls(parts.scheme, _host(parts.hostname or ""), port), parts.path.rstrip("/")

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def is_address(self) -> bool:
        return ":" in self.host or _LOOKS_NUMERIC.match(self.host) is not None

    @property
    def authority(self) -> str:
        """The `Host` header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def _host(host: str) -> str:
    if ":" in host and "%" not in host:
        return str(ipaddress.IPv6Address(host))
    if _LOOKS_NUMERIC.match(host):
        return str(ipaddress.IPv4Address(host))
    if len(host) > 253 or not _HOST_NAME.match(host):
        raise ValueError("not a host name")
    return host


# Instance metadata of the clouds where the address is not link-local.
_METADATA: Final = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def address_allowed(address: str, network: Network) -> bool:
    """Whether a backend declared as `network` may live at this address.

    Link-local (instance metadata), multicast and the unspecified address never; loopback and
    private ones only for `private`. An IPv4 address inside an IPv6 one counts as itself.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA:
        return False
    return network == "private" or ip.is_global


async def resolve(origin: Origin, network: Network) -> list[str]:
    """The addresses to try, in order. Raises ConnectFailed if there is none or one is forbidden."""
    if origin.is_address:
        addresses = [origin.host]
    else:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(f"{origin}: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    # One forbidden address condemns the name: an honest public name has no private one beside it.
    if not addresses or not all(address_allowed(address, network) for address in addresses):
        raise ConnectFailed(f"{origin}: no address allowed for a backend on a {network} network")
    return addresses


@cache
def default_tls() -> ssl.SSLContext:
    """The platform's roots, TLS 1.2 or later, host name checked. One per process: 10 ms each."""
    return http_tls(ssl.create_default_context())


def http_tls(context: ssl.SSLContext) -> ssl.SSLContext:
    """Makes a context fit for these clients; refuses one that checks less than the default."""
    if context.verify_mode is not ssl.CERT_REQUIRED or not context.check_hostname:
        raise ValueError("a TLS context that does not check certificate and host name")
    context.set_alpn_protocols(["http/1.1"])
    return context


# ---- what we may send ---------------------------------------------------------------------------

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BODYLESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods that announce no length when they carry no body."""

_OURS: Final = frozenset(
    b"host content-length transfer-encoding te trailer connection keep-alive upgrade expect "
    b"accept-encoding user-agent".split()
)


def encode_headers(headers: Headers) -> bytes:
    """Header lines. Raises ValueError if one could break out of its line or change our framing."""
    block = b"".join([b"%b: %b\r\n" % header for header in headers])
    # As many line ends as lines: no name and no value brought its own.
    if not block.count(b"\n") == block.count(b"\r") == len(headers) or b"\0" in block:
        raise ValueError("a line break or NUL in a header")
    for name, _ in headers:
        if name.lower() in _OURS:
            raise ValueError(f"{name.decode('latin-1')} is the client's own header")
    return block


def check_target(method: str, path: str) -> None:
    """Raises ValueError unless the two make a request line of three words."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}")
    if not (path.startswith("/") and path.isascii() and path.isprintable()) or " " in path:
        raise ValueError("a path is printable ASCII without spaces and begins with /")


def decode_headers(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """The `HttpResponse.headers` of header lines as they came."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").rstrip(" \t")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def refuse_coding(headers: Mapping[str, str]) -> str | None:
    """Why we cannot read this body, if so: all we know is `identity`, and `chunked` once."""
    coding = headers.get("content-encoding", "identity").lower()
    if coding not in {"identity", ""}:
        return "content-encoding, though we accept identity only"
    if headers.get("transfer-encoding", "chunked").lower() != "chunked":
        return "transfer-encoding other than chunked"
    return None


# ---- how many at once ---------------------------------------------------------------------------


class Permits:
    """`permits_max` exchanges at once; the next ones wait in order, `wait_s_max` at the most."""

    __slots__ = ("_free", "_queue", "_wait_s_max", "permits_max")

    def __init__(self, permits_max: int, wait_s_max: float) -> None:
        self.permits_max = permits_max
        self._free = permits_max
        self._wait_s_max = wait_s_max
        self._queue: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    @property
    def taken(self) -> int:
        return self.permits_max - self._free

    def try_take(self) -> bool:
        """Takes one if one is free; none is while others wait, for they are given one first."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def take(self) -> None:
        """Takes one. Raises PoolTimeout; a cancelled wait leaves no permit behind."""
        if self.try_take():
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._queue[turn] = None
        timer = loop.call_later(self._wait_s_max, _too_late, turn)
        try:
            mine = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.give()
            raise
        finally:
            timer.cancel()
            self._queue.pop(turn, None)
        if not mine:
            raise PoolTimeout(f"{self.permits_max} connections busy for {self._wait_s_max} s")

    def give(self) -> None:
        """Gives one back: to the first that still waits, or to whoever comes next."""
        while self._queue:
            turn, _ = self._queue.popitem(last=False)
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1


def _too_late(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)


class LetGo:
    """Clients that nobody is given any more: closed once the calls they still carry have ended."""

    def __init__(self) -> None:
        self._left: list[tuple[float, HttpClient]] = []  # and when

    async def add(self, clients: Iterable[HttpClient]) -> None:
        """Take these, and close those that have been out of use for `LEFT_S`."""
        now = asyncio.get_running_loop().time()
        self._left += [(now, client) for client in clients]
        for left in [left for left in self._left if now - left[0] > LEFT_S and not left[1].in_use]:
            self._left.remove(left)
            await left[1].aclose()

    async def aclose(self) -> None:
        """Close all of them, now."""
        for _, client in self._left:
            await client.aclose()
        self._left.clear()
