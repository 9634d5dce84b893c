"""The one Redis connection of a worker: commands of concurrent requests share a round trip.

Commands issued in the same turn of the event loop leave in one write and their replies are read
together (prototypes: redis-py asyncio 104-135 µs of CPU per call, one pipelined connection 8).
redis-py still reads the URL; hiredis packs and parses. Any Redis 7 or Valkey; no command newer than
Redis 6.2.

INVARIANTS: a command waits at most `timeout_s`, then every command in flight fails and the
connection is dropped (replies are matched by order, so a late one would answer the wrong
question). While down, commands fail at once, without waiting: a slow Redis is worse than none.
A command is on its way when `command` or `send` returns: two issued before the first is awaited
share a round trip. What is sent first is answered first.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import hiredis

from gateway.runtime import TaskOwner

RECONNECT_S_MIN = 0.2
RECONNECT_S_MAX = 1.0


class RedisDown(Exception):
    """Redis cannot be reached, or did not answer in time. What that means is the caller's rule."""


class RedisReplyError(Exception):
    """Redis answered with an error."""


class Waiter(Protocol):
    """Who hears the reply to a command, or why there is none. A Future is one."""

    def done(self) -> bool: ...

    def set_result(self, reply: Any, /) -> None: ...

    def set_exception(self, error: Any, /) -> None: ...


class RedisLink(asyncio.Protocol):
    """One pipelined connection. Use from one event loop only.

    `on_ready` is called at each new connection before any caller's command leaves on it.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        from redis.asyncio.connection import parse_url  # 0.2 s that nobody without Redis pays

        self._where: dict[str, Any] = dict(parse_url(url))
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._outgoing: list[bytes] = []
        self._waiting: deque[Waiter | None] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._closing = False
        self._mending = False
        self.on_ready: list[Callable[[], None]] = []
        self._tasks = TaskOwner("redis")
        self.ready = False
        self.failures = 0

    # --- for callers -----------------------------------------------------------------------

    def command(self, *parts: str | bytes | int) -> asyncio.Future[Any]:
        """Send one command; what is returned waits for its reply.

        Waiting raises RedisDown when there is no connection or no answer in time, RedisReplyError
        when Redis refuses.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.ready:
            self._enqueue(parts, future)
        else:
            future.set_exception(RedisDown("no connection to Redis"))
        return future

    def send(self, *parts: str | bytes | int, waiter: Waiter | None = None) -> bool:
        """Send one command and go on; `waiter` hears the reply, or the loss of the connection.

        False, and nothing is done, while Redis is down.
        """
        if self.ready:
            self._enqueue(parts, waiter)
        return self.ready

    async def connect(self) -> None:
        """Connect once. Raises RedisDown with the reason; later losses are mended by themselves."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(self._timeout_s, 2.0)):
                await self._open()
        except (OSError, TimeoutError, RedisReplyError, RedisDown) as error:
            self._drop(RedisDown(str(error) or "timed out"))
            raise RedisDown(f"{self.address}: {str(error) or 'timed out'}") from error

    async def aclose(self) -> None:
        """Send what is queued and close."""
        self._closing = True
        self._flush()
        if self._transport is not None:
            self._transport.close()
        self._drop(RedisDown("closed"))
        await self._tasks.drain(0)

    @property
    def address(self) -> str:
        """Where it is, without the password."""
        where = self._where
        return str(
            where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
        )

    # --- the connection --------------------------------------------------------------------

    async def _open(self) -> None:
        where, loop = self._where, self._loop
        make: Callable[[], RedisLink] = lambda: self  # noqa: E731
        if "path" in where:
            await loop.create_unix_connection(make, where["path"])
        else:
            secure = "SSL" in getattr(where.get("connection_class"), "__name__", "")
            await loop.create_connection(
                make,
                where.get("host", "localhost"),
                int(where.get("port", 6379)),
                ssl=ssl.create_default_context() if secure else None,
            )
        if where.get("password"):
            name = [where["username"]] if where.get("username") else []
            await self._greet("AUTH", *name, where["password"])
        if where.get("db"):
            await self._greet("SELECT", int(where["db"]))
        await self._greet("PING")
        self.ready = True
        for call in self.on_ready:
            call()

    async def _greet(self, *parts: str | int) -> None:
        future = self._loop.create_future()
        self._enqueue(parts, future)
        await future

    async def _reconnect(self) -> None:
        self._mending = True
        pause = RECONNECT_S_MIN
        while not self._closing and not self.ready:
            await asyncio.sleep(pause)
            pause = min(pause * 2, RECONNECT_S_MAX)
            try:
                await self.connect()
            except RedisDown:
                continue
        self._mending = False

    def _enqueue(self, parts: tuple[str | bytes | int, ...], waiter: Waiter | None) -> None:
        if not self._waiting:
            self._answered_at = self._loop.time()  # nothing was owed: patience starts now
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(parts))  # type: ignore[arg-type]
        self._waiting.append(waiter)

    def _flush(self) -> None:
        if not self._outgoing or self._transport is None:
            return
        self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._check)

    def _check(self) -> None:
        """One timer for all: fires while anything waits, and looks when the last answer came."""
        self._timer = None
        if not self._waiting:
            return
        silent = self._loop.time() - self._answered_at
        if silent >= self._timeout_s:
            self.failures += 1
            self._drop(RedisDown(f"no answer from Redis within {self._timeout_s:g} s"))
        else:
            self._timer = self._loop.call_later(self._timeout_s - silent, self._check)

    def _drop(self, error: RedisDown) -> None:
        transport, self._transport, self.ready = self._transport, None, False
        if transport is not None:
            transport.abort()
        self._reader = hiredis.Reader()
        self._outgoing.clear()
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(error)
        if transport is not None and not self._closing and not self._mending:
            self._tasks.start(self._reconnect(), "reconnect")

    # --- asyncio.Protocol ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._answered_at = self._loop.time()
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while waiting:
                reply = reader.gets()
                if reply is False:
                    return
                future = waiting.popleft()
                if future is None or future.done():
                    continue
                if isinstance(reply, hiredis.ReplyError):
                    future.set_exception(RedisReplyError(str(reply)))
                else:
                    future.set_result(reply)
        except hiredis.HiredisError as error:
            self._drop(RedisDown(f"not the Redis protocol: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self.failures += 1
            self._drop(RedisDown(f"connection lost: {exc or 'closed by the server'}"))
