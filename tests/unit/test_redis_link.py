"""The Redis connection: what leaves when, and who hears of what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.redis_link import RedisDown, RedisLink


@dataclass
class Peer:
    """Answers PONG to every command, and keeps what came in which piece."""

    port: int = 0
    pieces: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while data := await reader.read(65536):
            self.pieces.append(data)
            writer.write(b"+PONG\r\n" * data.count(b"*"))


@asynccontextmanager
async def peer() -> AsyncIterator[tuple[Peer, RedisLink]]:
    heard = Peer()
    server = await asyncio.start_server(heard.serve, "127.0.0.1", 0)
    heard.port = server.sockets[0].getsockname()[1]
    link = RedisLink(f"redis://127.0.0.1:{heard.port}/0", timeout_s=10)
    try:
        yield heard, link
    finally:
        await link.aclose()
        for writer in heard.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        server.close()
        await server.wait_closed()


async def test_what_is_issued_before_the_first_wait_leaves_in_one_write() -> None:
    async with peer() as (heard, link):
        await link.connect()
        heard.pieces.clear()
        one, two = link.command("GET", "a"), link.command("GET", "b")
        link.send("GET", "c")
        assert await two == await one
        assert len(heard.pieces) == 1
        assert heard.pieces[0].count(b"GET") == 3


async def test_who_is_told_of_a_connection_speaks_first_on_it() -> None:
    async with peer() as (heard, link):
        link.on_ready.append(lambda: bool(link.send("HELLO", "there")))
        await link.connect()
        await link.command("GET", "a")
        said = b"".join(heard.pieces)
        assert said.index(b"HELLO") < said.index(b"GET")


class Ear:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any, /) -> None:
        self.heard.append(reply)

    def set_exception(self, error: Any, /) -> None:
        self.heard.append(type(error))


async def test_what_is_sent_without_waiting_is_heard_of_all_the_same() -> None:
    async with peer() as (heard, link):
        ear = Ear()
        assert not link.send("GET", "a", waiter=ear)
        await link.connect()
        assert link.send("GET", "a", waiter=ear)
        await link.command("PING")
        assert ear.heard == [b"PONG"]
        link.send("GET", "b", waiter=ear)
        heard.writers[0].transport.abort()
        with pytest.raises(RedisDown):
            await link.command("PING")
        assert ear.heard == [b"PONG", RedisDown]
