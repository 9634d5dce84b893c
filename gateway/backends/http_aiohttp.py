"""The reference client: aiohttp, held to the contract of `http_client`.

Owns: the settings that make aiohttp obey (nothing followed, remembered, decoded or read from the
environment), and the table of its errors in our words. Must not know: anything else.

It exists to be compared with `http_fast`, and to stand in for it. Where aiohttp cannot do what the
contract says, `DIFFERS` in `tests/contract/test_http_clients.py` says so; the difference that
matters: it takes a response that a peer sends on an idle connection for the next request's answer.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from types import SimpleNamespace

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

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

_AUTOMATIC = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_COPY_BYTES_MAX = 1024 * 1024
"""aiohttp warns of longer bytes and wants a file."""


class AiohttpClient:
    """`HttpClient` on aiohttp. `headers` go with every request: credentials, content-type.

    Made and closed inside a running loop.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        network: Network,
        headers: Headers = (),
        limits: HttpLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        encode_headers(headers)
        self.origin = origin
        self.limits = limits or HttpLimits()
        self._network: Network = network
        self._tls = (tls or default_tls()) if origin.tls else False
        self._static = [("User-Agent", USER_AGENT), ("Accept-Encoding", "identity")]
        self._static += _text(headers)
        self._permits = Permits(self.limits.connections_max, self.limits.pool_wait_s_max)
        self._pooled = self._session(force_close=False)
        self._single = self._session(force_close=True)  # for the repeat on a new connection
        self._live: set[AiohttpResponse] = set()

    def _session(self, *, force_close: bool) -> aiohttp.ClientSession:
        limits = self.limits
        connector = aiohttp.TCPConnector(
            limit=0,  # the permits are the limit
            resolver=_CheckedResolver(self.origin, self._network),
            use_dns_cache=False,
            ssl=self._tls,
            force_close=force_close,
            keepalive_timeout=None if force_close else limits.keepalive_s_max,
        )
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_connection_reuseconn.append(_reused)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_AUTOMATIC,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            trace_configs=[trace],
            read_bufsize=limits.buffer_bytes_max // 2,  # aiohttp stops reading at twice this
            max_line_size=limits.head_bytes_max,
            max_field_size=limits.head_bytes_max,
            max_headers=limits.headers_max,
        )

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
    ) -> "AiohttpResponse":
        check_target(method, path)
        encode_headers(headers)
        if self._pooled.closed:
            raise ConnectFailed(f"{self.origin}: the client is closed")
        call = _Call(method, URL(f"{self.origin}{path}", encoded=True), _text(headers), body)
        await self._permits.take()
        try:
            attempt = _Attempt(connect_s_max, head_s_max)
            try:
                response = await self._send(self._pooled, call, attempt)
            except ClosedEarly:
                if not attempt.lost_race or attempt.elapsed() > self.limits.reuse_race_s_max:
                    raise
                attempt = _Attempt(connect_s_max, head_s_max)
                response = await self._send(self._single, call, attempt)
            return AiohttpResponse(response, self._give, self._live)
        except BaseException:
            self._permits.give()
            raise

    def _give(self, response: "AiohttpResponse") -> None:
        if response in self._live:
            self._live.remove(response)
            self._permits.give()

    async def _send(
        self, session: aiohttp.ClientSession, call: "_Call", attempt: "_Attempt"
    ) -> aiohttp.ClientResponse:
        if self.origin.is_address:
            await resolve(self.origin, self._network)  # aiohttp would ask no resolver
        data = call.body if len(call.body) <= _COPY_BYTES_MAX else BytesIO(call.body)
        try:
            async with attempt.scope:
                return await session.request(
                    call.method,
                    call.url,
                    headers=[*self._static, *call.headers],
                    data=None if not call.body and call.method in BODYLESS else data,
                    allow_redirects=False,
                    trace_request_ctx=attempt,
                )
        except TimeoutError as error:
            if attempt.scope.expired() and attempt.connected:
                raise HeadTimeout("no head") from error
            raise ConnectTimeout(f"{self.origin}: not connected in time") from error
        except aiohttp.ClientConnectorError as error:
            raise ConnectFailed(f"{self.origin}: {error}") from error
        except aiohttp.ClientConnectionError as error:  # ServerDisconnectedError, ClientOSError
            # The message is a half parsed head if one had begun.
            attempt.lost_race = attempt.reused and isinstance(getattr(error, "message", ""), str)
            raise ClosedEarly(f"{error}", before_head=True) from error
        except aiohttp.ClientResponseError as error:
            raise BadResponse("not HTTP/1.1") from error  # aiohttp's words quote the peer

    async def aclose(self) -> None:
        for response in list(self._live):
            response.close()
        await self._pooled.close()
        await self._single.close()


class AiohttpResponse:
    """`HttpResponse` over aiohttp's. In `live` until its body has come, or it was closed."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        ended: "Callable[[AiohttpResponse], None]",
        live: "set[AiohttpResponse]",
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = decode_headers(response.raw_headers)
        reason = refuse_coding(self.headers)
        if not 200 <= self.status < 600:
            reason = f"status {self.status}"
        if reason is not None:
            response.close()
            raise BadResponse(reason)
        self._response = response
        self._ended = ended
        self._error: TransportError | None = None
        live.add(self)
        response.content.on_eof(self._end)

    def _end(self) -> None:
        self._ended(self)

    async def read(self, *, idle_s_max: float) -> bytes:
        if self._error is not None:
            raise self._error
        try:
            async with asyncio.timeout(idle_s_max):
                return await self._response.content.readany()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._fail(error) from error
        except BaseException:
            self.close()
            raise

    def _fail(self, error: Exception) -> TransportError:
        if self._error is None:  # else it was closed meanwhile
            self._error = _body_error(error)
        self.close()
        return self._error

    def close(self) -> None:
        if self._error is None and not self._response.content.is_eof():
            self._error = ClosedEarly("closed by its reader", before_head=False)
        self._response.close()
        self._ended(self)


def _body_error(error: Exception) -> TransportError:
    if isinstance(error, TimeoutError):
        return IdleTimeout("no body byte")
    if isinstance(error, aiohttp.ClientPayloadError):
        words = str(error)
        if "Not enough data" not in words and "Connection lost" not in words:
            return BadResponse("not HTTP/1.1")
    return ClosedEarly("connection ended inside the body", before_head=False)


class _Attempt:
    """How far one try came, by aiohttp's trace; its limit moves from connecting to the head."""

    def __init__(self, connect_s_max: float, head_s_max: float) -> None:
        self._head_s_max = head_s_max
        self._sent_at = 0.0
        self.connected = self.reused = self.lost_race = False
        self.scope = asyncio.timeout(connect_s_max)

    def on_connection(self, *, reused: bool) -> None:
        self.connected, self.reused = True, reused
        self._sent_at = asyncio.get_running_loop().time()
        self.scope.reschedule(self._sent_at + self._head_s_max)

    def elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._sent_at


async def _connected(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionCreateEndParams,
) -> None:
    context.trace_request_ctx.on_connection(reused=False)


async def _reused(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    context.trace_request_ctx.on_connection(reused=True)


class _CheckedResolver(AbstractResolver):
    """Gives aiohttp only addresses that the backend's network allows."""

    def __init__(self, origin: Origin, network: Network) -> None:
        self._origin = origin
        self._network: Network = network

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 -- aiohttp's signature
    ) -> list[ResolveResult]:
        assert (host, port) == (self._origin.host, self._origin.port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await resolve(self._origin, self._network)
        ]

    async def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    url: URL
    headers: list[tuple[str, str]]
    body: bytes


def _text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
