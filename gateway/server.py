"""The process that listens: uvicorn with httptools, and what uvicorn leaves out.

- A request head has a time and a size (uvicorn has neither: a dripping head stays for ever), and
  so has the patience with a client that does not read.
- What the parser refuses is answered with OpenAI's error object.
- A refusal is heard: who is still sending when it goes out is listened to for a moment more.
- A handler may ask to be told when its client is gone (`on_client_gone`), without a task.
- Head and first body bytes leave in one write.
- Shutdown in order: unready, a lag for load balancers to notice, stop listening, let streams end,
  then an error event for the rest; exit status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

HEADER_FIELDS_MAX = 100
LINGER_S_MAX = 2.0
_ERROR = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"%b"}}'

log = logging.getLogger("weighbridge")


class _Cycle(RequestResponseCycle):
    """One request and its response. The head waits for the first body bytes: one write, not two."""

    _head: list[bytes] | None = None
    write_s_max = 75.0

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            try:
                async with asyncio.timeout(self.write_s_max):
                    await self.flow.drain()
            except TimeoutError:  # it does not read: `connection_lost` tells its handler
                self.transport.abort()
                return
        if self.disconnected:
            return
        if not self.response_started:
            self._start(message)
        elif self.response_complete:
            raise RuntimeError("a message after the response was complete")
        else:
            self._body(message.get("body", b""), more=message.get("more_body", False))

    def _start(self, message: Any) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        status: int = message["status"]
        if self.more_body:  # answered before its end: the rest of the request is not read
            self.keep_alive = False
        head = [STATUS_LINE[status]]
        self.chunked_encoding = status not in {204, 304}
        for name, value in (*self.default_headers, *message.get("headers", ())):
            # A line break in a value would let a backend's text write our head.
            if b"\n" in value or b"\r" in value or b"\0" in value:
                raise RuntimeError(f"control character in header {name!r}")
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            head += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            head.append(b"connection: close\r\n")
        if self.chunked_encoding:
            head.append(b"transfer-encoding: chunked\r\n")
        head.append(b"\r\n")
        self._head = head

    def _body(self, body: bytes, *, more: bool) -> None:
        out = self._head if self._head is not None else []
        self._head = None
        if self.scope["method"] != "HEAD":
            if not self.chunked_encoding:
                self.expected_content_length -= len(body)
                out.append(body)
            else:
                if body:
                    out += (b"%x\r\n" % len(body), body, b"\r\n")
                if not more:
                    out.append(b"0\r\n\r\n")
        if out:
            self.transport.write(b"".join(out))
        if not more:
            if self.expected_content_length and self.scope["method"] != "HEAD":
                raise RuntimeError("the body is not as long as its content-length says")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive and not self.more_body:
                self.transport.close()
            self.on_response()


class Connection(HttpToolsProtocol):
    """One client connection."""

    head_bytes_max = 32 * 1024
    head_s_max = 10.0
    on_client_gone: Callable[[], None] | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _over = False  # told to go: what still comes is not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_here()
        super().connection_lost(exc)
        if self.on_client_gone is not None:
            self.on_client_gone()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_timer is None and not self._answering():
                self._await_head()
        super().data_received(data)
        # Checked after parsing: a body that came with its head is not part of the head.
        if self._in_head and self._head_bytes > self.head_bytes_max:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self.scope["weighbridge.connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > HEADER_FIELDS_MAX:
            self._refuse(431, b"The request head has too many fields.", b"request_head_too_large")

    def on_headers_complete(self) -> None:
        if self._head_bytes > self.head_bytes_max and self._head_size() > self.head_bytes_max:
            self._refuse_head()
        self._head_here()
        if self._over:
            return
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        # Not unquoted: no path of ours needs quoting, so `%2F` can never look like one of them.
        scope["path"] = path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before: RequestResponseCycle | None = self.cycle
        self.cycle = _Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle.write_s_max = self.timeout_keep_alive
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # pipelined: one at a time
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if self._over or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if not self._over and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()
        self._in_head, self._head_bytes = True, 0

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg.encode("ascii", "replace").replace(b'"', b"'"), b"invalid_http")

    def handle_websocket_upgrade(self) -> None:
        self._refuse(400, b"WebSocket is not spoken here.", b"invalid_http")

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        cycle = self.cycle
        if cycle.response_complete and not cycle.keep_alive and cycle.more_body:
            self._linger()

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_head(self) -> None:
        self._refuse(431, b"The request head is too large.", b"request_head_too_large")

    def _refuse(self, status: int, message: bytes, code: bytes) -> None:
        if self._over or self.transport.is_closing():
            return
        if self._answering():
            self.cycle.disconnected = True  # as far as its handler can do anything about it
            self.cycle.message_event.set()
            if self.cycle.response_started or self.pipeline:  # nothing may be said into an answer
                self._over = True
                self.transport.close()
                return
        body = _ERROR % (message, code)
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        self._linger()

    def _linger(self) -> None:
        """Close once the peer has: closing on unread bytes resets, and our answer is lost."""
        self._over = True
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(LINGER_S_MAX, self.transport.close)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_s_max, self._head_late)

    def _head_here(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._in_head and self._head_bytes:
            self._refuse(408, b"The request head did not arrive in time.", b"request_timeout")
        elif self._in_head:
            self.transport.close()


class Server(uvicorn.Server):
    """One worker's server. `on_drain` makes it unready; `on_idle_end` cuts what will not end."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_lag_s: float,
        drain_s_max: float,
        on_drain: Callable[[], None],
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._drain_lag_s = drain_lag_s
        self._drain_s_max = drain_s_max
        self._on_drain = on_drain
        self._on_started = on_started

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: Any = None) -> None:
        self._on_drain()
        if not self.force_exit:
            await asyncio.sleep(self._drain_lag_s)
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        tasks = self.server_state.tasks
        if tasks and not self.force_exit:
            log.info("waiting for %d running requests", len(tasks))
            await asyncio.wait(set(tasks), timeout=self._drain_s_max)
        if tasks:
            log.warning("ending %d requests that did not end by themselves", len(tasks))
            for task in set(tasks):
                task.cancel()
            await asyncio.wait(set(tasks), timeout=2.0)
        await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: exit status 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
