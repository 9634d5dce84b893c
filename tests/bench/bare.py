"""The floor: a bare ASGI callable that passes bytes through, no parsing, no auth, no record.

What uvicorn, httptools, uvloop and a keep-alive client of a hundred lines cost by themselves. Every
gateway in Python on this stack costs at least this, so figures are given as multiples of it. Not a
gateway: it trusts both sides.

    python -m tests.bench.bare PORT UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httptools
import uvicorn

_END = None
_FORWARDED = {b"content-type", b"content-length"}


class Connection(asyncio.Protocol):
    """One keep-alive connection to the upstream: one answer at a time, pieces as they arrive."""

    __slots__ = ("headers", "keep", "parser", "pieces", "transport", "waiter")

    def __init__(self) -> None:
        self.transport: Any = None
        self.keep = True
        self.pieces: deque[bytes | None] = deque()
        self.waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.keep = False
        self._push(_END)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in _FORWARDED:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._push(b"")

    def on_body(self, data: bytes) -> None:
        self._push(data)

    def on_message_complete(self) -> None:
        self.keep = self.keep and self.parser.should_keep_alive()
        self._push(_END)

    def _push(self, piece: bytes | None) -> None:
        self.pieces.append(piece)
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    def send(self, request: bytes) -> None:
        self.pieces.clear()
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    async def piece(self) -> bytes | None:
        if not self.pieces:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
            self.waiter = None
        return self.pieces.popleft()


class PassThrough:
    def __init__(self, upstream_port: int) -> None:
        self.port = upstream_port
        self.idle: list[Connection] = []

    async def _connection(self) -> Connection:
        while self.idle:
            connection = self.idle.pop()
            if connection.keep:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, "127.0.0.1", self.port
        )
        return connection

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        message = await receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        connection = await self._connection()
        connection.send(
            b"%b %b HTTP/1.1\r\nhost: upstream\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b"
            % (scope["method"].encode(), scope["raw_path"], len(body), body)
        )
        await connection.piece()  # the head
        status = connection.parser.get_status_code()
        await send({"type": "http.response.start", "status": status, "headers": connection.headers})
        while (piece := await connection.piece()) is not _END:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        if connection.keep:
            self.idle.append(connection)


if __name__ == "__main__":
    uvicorn.run(
        PassThrough(int(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
