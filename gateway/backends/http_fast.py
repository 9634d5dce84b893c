"""The hot path's HTTP/1.1 client: an asyncio protocol on llhttp, a pool, no task, no stream reader.

Owns: connections to one origin and the exchange that runs on each. Obeys the contract of
`http_client`. Must not know: what the bytes mean.

How it stays cheap: a request is one `write`; a response wakes its reader once per socket read,
through one future; a connection has one lazy timer that is armed again only when it fires, never
once per block; a small response that came in one piece is parsed, detached and pooled before its
reader wakes.

Invariants: a connection serves one exchange at a time, and each exchange has a parser of its own,
so nothing of one response can reach the next; an exchange detaches from its connection exactly
once, and only the detaching of a complete response can put the connection back. Live connections
never outnumber permits: one is opened by a holder of a permit, when no idle one is left.
"""

import asyncio
import ssl
from collections.abc import Mapping
from math import inf
from typing import Final, cast

import httptools

from gateway.backends.http_client import (
    BODYLESS,
    USER_AGENT,
    BadResponse,
    ClosedEarly,
    ConnectFailed,
    ConnectTimeout,
    Headers,
    HeadTimeout,
    HttpLimits,
    IdleTimeout,
    Network,
    Origin,
    Permits,
    TransportError,
    check_target,
    decode_headers,
    default_tls,
    encode_headers,
    refuse_coding,
    resolve,
)

_JOIN_BYTES_MAX: Final = 64 * 1024
"""A body up to here is copied behind the head: one buffer, one TLS record, one system call."""


class FastHttpClient:
    """`HttpClient` on httptools. `headers` go with every request: credentials, content-type."""

    def __init__(
        self,
        origin: Origin,
        *,
        network: Network,
        headers: Headers = (),
        limits: HttpLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.origin = origin
        self.limits = limits or HttpLimits()
        self._network: Network = network
        self._tls = (tls or default_tls()) if origin.tls else None
        self._head = (
            f" HTTP/1.1\r\nhost: {origin.authority}\r\nuser-agent: {USER_AGENT}\r\n"
            "accept-encoding: identity\r\n"
        ).encode() + encode_headers(headers)
        self._permits = Permits(self.limits.connections_max, self.limits.pool_wait_s_max)
        self._idle: dict[
            _Connection, None
        ] = {}  # a stack: the one used last is the least likely to be stale
        self._live: set[_Connection] = set()
        self._closed = False

    @property
    def in_use(self) -> int:
        return self._permits.taken

    async def request(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        *,
        connect_s_max: float,
        head_s_max: float,
    ) -> "FastHttpResponse":
        message = self._encode(method, path, headers, body)
        permits = self._permits
        if not permits.try_take():
            await permits.take()
        try:
            connection = self._reuse()
            if connection is None:
                connection = await self._connect(connect_s_max)
                response = FastHttpResponse(connection, self.limits, method, message)
                await response.head(head_s_max)
            else:
                response = FastHttpResponse(connection, self.limits, method, message)
                try:
                    await response.head(head_s_max)
                except ClosedEarly:
                    if not response.lost_race():
                        raise
                    connection = await self._connect(connect_s_max)
                    response = FastHttpResponse(connection, self.limits, method, message)
                    await response.head(head_s_max)
        except BaseException:
            permits.give()
            raise
        response.hold(permits)
        return response

    async def aclose(self) -> None:
        self._closed = True
        gone = [connection.drop() for connection in list(self._live)]
        if gone:
            await asyncio.wait(gone, timeout=1.0)

    def _encode(self, method: str, path: str, headers: Headers, body: bytes) -> list[bytes]:
        check_target(method, path)
        size = b"" if not body and method in BODYLESS else b"content-length: %d\r\n" % len(body)
        head = b"%b %b%b%b%b\r\n" % (
            method.encode(),
            path.encode(),
            self._head,
            encode_headers(headers) if headers else b"",
            size,
        )
        return [head + body] if len(body) <= _JOIN_BYTES_MAX else [head, body]

    def _reuse(self) -> "_Connection | None":
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.fresh():
                return connection
            connection.drop()
        return None

    async def _connect(self, connect_s_max: float) -> "_Connection":
        """Tries the addresses in order; each gets its share of the time that is left."""
        if self._closed:
            raise ConnectFailed(f"{self.origin}: the client is closed")
        loop = asyncio.get_running_loop()
        end = loop.time() + connect_s_max
        try:
            async with asyncio.timeout_at(end):
                addresses = await resolve(self.origin, self._network)
        except TimeoutError:
            raise ConnectTimeout(f"{self.origin}: no address within {connect_s_max} s") from None
        for left in range(len(addresses), 1, -1):
            try:
                return await self._open(addresses[-left], (end - loop.time()) / left)
            except (ConnectFailed, ConnectTimeout):
                continue
        return await self._open(addresses[-1], end - loop.time())

    async def _open(self, address: str, s_max: float) -> "_Connection":
        origin = self.origin
        loop = asyncio.get_running_loop()
        connection = _Connection(self, loop)
        try:
            async with asyncio.timeout(s_max) as scope:
                await loop.create_connection(
                    lambda: connection,
                    address,
                    origin.port,
                    ssl=self._tls,
                    server_hostname=origin.host if origin.tls else None,
                )
        except OSError as error:  # ssl.SSLError and TimeoutError are
            self._give_up(connection)
            if scope.expired():
                raise ConnectTimeout(f"{origin} at {address}: not within {s_max:.3f} s") from error
            raise ConnectFailed(f"{origin} at {address}: {error}") from error
        except BaseException:
            self._give_up(connection)
            raise
        if self._closed:
            connection.drop()
            raise ConnectFailed(f"{origin}: the client is closed")
        return connection

    def _give_up(self, connection: "_Connection") -> None:
        """It was not made in time. If uvloop made it all the same, it never says that it ended."""
        connection.drop()
        self.lost(connection)

    def born(self, connection: "_Connection") -> None:
        self._live.add(connection)

    def rest(self, connection: "_Connection") -> None:
        """Takes a clean connection back for the next exchange."""
        self._idle[connection] = None

    def lost(self, connection: "_Connection") -> None:
        self._live.discard(connection)
        self._idle.pop(connection, None)


class _Connection(asyncio.Protocol):
    """One socket: whose exchange it carries, and until when the peer may keep us waiting."""

    __slots__ = (
        "_client",
        "_deadline",
        "_dropped",
        "_gone",
        "_old_at",
        "_timer",
        "_timer_at",
        "exchange",
        "loop",
        "transport",
    )

    def __init__(self, client: FastHttpClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.exchange: FastHttpResponse | None = None
        self._gone: asyncio.Future[None] = loop.create_future()
        self._dropped = False
        self._old_at = loop.time() + client.limits.connection_age_s_max
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._dropped:
            self.transport.abort()
        else:
            self._client.born(self)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.drop()  # nobody asked for this: whatever it is, the next response is not behind it
        else:
            self.exchange.feed(data)

    def eof_received(self) -> None:
        """The transport then closes itself: a peer that has finished sending has no further use."""
        if self.exchange is not None:
            self.exchange.end_of_input(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.exchange is not None:
            self.exchange.end_of_input(exc)
        if self._timer is not None:
            self._timer.cancel()
        self._client.lost(self)
        self._gone.set_result(None)

    # -- called by the client and the exchange

    def fresh(self) -> bool:
        """Whether an idle connection may carry one more exchange."""
        now = self.loop.time()
        assert self.transport is not None
        return now < self._deadline and now < self._old_at and not self.transport.is_closing()

    def begin(self, exchange: "FastHttpResponse", message: list[bytes]) -> None:
        assert self.transport is not None
        assert self.exchange is None
        self.exchange = exchange
        for part in message:
            self.transport.write(part)

    def detach(self, *, reusable: bool) -> None:
        """The exchange is over. A request still being written was answered without being read."""
        assert self.transport is not None
        self.exchange = None
        now = self.loop.time()
        limits = self._client.limits
        self.limit(now + limits.keepalive_s_max)
        if reusable and self.fresh() and not self.transport.get_write_buffer_size():
            self._client.rest(self)
        else:
            self.drop()

    def drop(self) -> asyncio.Future[None]:
        """Ends the connection; the future is done when it has."""
        self._dropped = True
        if self.transport is not None:
            self.transport.abort()
        return self._gone

    def limit(self, deadline: float) -> None:
        """Sets the loop time by which something must have come; a later one costs no timer."""
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline, self._check)

    def _check(self) -> None:
        self._timer, self._timer_at = None, inf
        if self.loop.time() < self._deadline:
            self.limit(self._deadline)
        elif self.exchange is None:
            self.drop()
        else:
            self.exchange.late()


class FastHttpResponse:
    """`HttpResponse`, and the parser's callbacks: one exchange from its first byte to its end."""

    __slots__ = (
        "_blocks",
        "_buffered",
        "_complete",
        "_connection",
        "_error",
        "_is_head",
        "_limits",
        "_loop",
        "_overhead",
        "_parser",
        "_paused",
        "_permits",
        "_raw",
        "_reusable",
        "_sent_at",
        "_waiter",
        "headers",
        "status",
    )

    def __init__(
        self, connection: _Connection, limits: HttpLimits, method: str, message: list[bytes]
    ) -> None:
        self.status = 0  # until the head of the final response is complete
        self.headers: Mapping[str, str] = {}
        self._connection: _Connection | None = (
            connection  # None once detached: nothing more will come
        )
        self._limits = limits
        self._loop = connection.loop
        self._is_head = method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._raw: list[tuple[bytes, bytes]] = []
        self._blocks: list[bytes] = []
        self._buffered = 0
        self._overhead = 0  # bytes since the start or the last progress in the body
        self._paused = False
        self._complete = False
        self._reusable = False
        self._error: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._permits: Permits | None = None
        self._sent_at = self._loop.time()
        connection.begin(self, message)

    # -- called by the client and the reader

    async def head(self, s_max: float) -> None:
        """Waits for the final response's head. Raises what went wrong."""
        if self._connection is not None:
            self._connection.limit(self._sent_at + s_max)
        while not self.status:
            if self._error is not None:
                raise self._error
            try:
                await self._arrival()
            except BaseException:
                self.close()
                raise

    def lost_race(self) -> bool:
        """Whether the peer closed before it can have seen the request: soon, and without a byte."""
        elapsed = self._loop.time() - self._sent_at
        return not self._overhead and not self.status and elapsed < self._limits.reuse_race_s_max

    def hold(self, permits: Permits) -> None:
        """Gives the permit back when the exchange ends; at once if it has."""
        if self._connection is None:
            permits.give()
        else:
            self._permits = permits

    async def read(self, *, idle_s_max: float) -> bytes:
        blocks = self._blocks
        if not blocks and self._connection is not None:
            self._connection.limit(self._loop.time() + idle_s_max)
            while not blocks and self._connection is not None:
                try:
                    await self._arrival()
                except BaseException:
                    self.close()
                    raise
        if blocks:
            block = blocks[0] if len(blocks) == 1 else b"".join(blocks)
            blocks.clear()
            self._buffered = 0
            if self._paused:
                self._pause(False)
            return block
        if self._error is not None:
            raise self._error
        return b""

    def close(self) -> None:
        if self._connection is not None:
            self._fail(ClosedEarly("closed by its reader", before_head=not self.status))

    def _arrival(self) -> "asyncio.Future[None]":
        waiter = self._waiter = self._loop.create_future()
        return waiter

    # -- called by the connection

    def feed(self, data: bytes) -> None:
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._reusable = False
            if not self._complete:
                cause = error.__context__
                self._fail(cause if isinstance(cause, BadResponse) else BadResponse(f"{error}"))
                return
        if self._complete:
            if self._paused:
                self._pause(False)  # its next exchange wants to hear
            self._detach(reusable=self._reusable)
        elif self._overhead > self._limits.head_bytes_max:
            self._fail(BadResponse("a head, trailer or chunk extension too large"))
        else:
            if self._buffered > self._limits.buffer_bytes_max and not self._paused:
                self._pause(True)
            if self.status:
                self._wake()

    def end_of_input(self, reason: Exception | None) -> None:
        """The peer sends no more: the end of a body without a length of its own, else too early."""
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self.status and not framed and reason is None:
            self._detach(reusable=False)
        else:
            where = "body" if self.status else "response head"
            error = ClosedEarly(f"connection ended inside the {where}", before_head=not self.status)
            error.__cause__ = reason
            self._fail(error)

    def late(self) -> None:
        """The deadline is over; that is the peer's fault only while somebody waits."""
        if self._waiter is not None:
            self._fail(IdleTimeout("no body byte") if self.status else HeadTimeout("no head"))

    def _fail(self, error: TransportError) -> None:
        self._error = error
        self._detach(reusable=False)

    def _detach(self, *, reusable: bool) -> None:
        assert self._connection is not None
        connection, self._connection = self._connection, None
        connection.detach(reusable=reusable)
        del self._parser  # which holds our methods: a cycle
        if self._permits is not None:
            self._permits.give()
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _pause(self, pause: bool) -> None:
        self._paused = pause
        if self._connection is not None and (transport := self._connection.transport) is not None:
            if pause:
                transport.pause_reading()
            else:
                transport.resume_reading()

    # -- called by the parser

    def on_message_begin(self) -> None:
        if self._complete:
            self._reusable = False  # something follows the response

    def on_header(self, name: bytes, value: bytes) -> None:
        self._raw.append((name, value))  # trailers too, which nobody reads

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status: int = self._parser.get_status_code()
        raw = self._raw
        if 100 <= status < 200 and status != 101:
            raw.clear()
            return
        if not 200 <= status < 600:
            raise BadResponse(f"status {status}")
        if len(raw) > self._limits.headers_max:
            raise BadResponse("too many headers")
        # The segment may hold body as well, so what came is only an upper bound of the head's size.
        if self._overhead > self._limits.head_bytes_max < sum(len(n) + len(v) + 4 for n, v in raw):
            raise BadResponse("head too large")
        self.headers = headers = decode_headers(raw)
        if reason := refuse_coding(headers):
            raise BadResponse(reason)
        self.status = status
        self._overhead = 0
        if self._is_head:
            self.on_message_complete()

    def on_body(self, data: bytes) -> None:
        if self._complete:
            self._reusable = False  # a body behind the answer to HEAD
            return
        self._blocks.append(data)
        self._buffered += len(data)
        self._overhead = 0

    def on_message_complete(self) -> None:
        if self.status and not self._complete:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()
