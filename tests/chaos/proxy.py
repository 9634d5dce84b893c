"""A TCP hop that fails on command: between the gateway and Postgres, Redis or a vendor.

Owns: carrying bytes both ways, and the ways in which a network fails. Knows no protocol.

    async with ChaosProxy("127.0.0.1", 6379) as link:
        link.latency_s = 2.0     # each way
        link.slice_bytes = 3     # every write in pieces of at most so many bytes
        link.cut()               # a partition: silence, nothing is lost, new peers are accepted
        link.heal()              # what waited is delivered, as TCP itself would
        link.reset()             # RST to both ends of every connection
        link.half_close()        # FIN to whoever connected; the other direction goes on
        await link.down()        # RST, and nobody listens any more
        await link.up()          # again, on the same port
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Self

BLOCK_BYTES = 64 * 1024


class ChaosProxy:
    """One listening port in front of one target. Use it from one event loop."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._near: set[asyncio.StreamWriter] = set()
        self._far: set[asyncio.StreamWriter] = set()
        self._closed: set[asyncio.StreamWriter] = set()  # half
        self.port = 0
        self.accepted = 0
        self.latency_s = 0.0
        self.slice_bytes = 0

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def open(self) -> int:
        """Connections that are carried now."""
        return len(self._far)

    # --- the ways to fail -------------------------------------------------------------------

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def cut(self) -> None:
        self._flowing.clear()

    def heal(self) -> None:
        self._flowing.set()

    def reset(self) -> None:
        for writer in (*self._near, *self._far):
            _reset(writer)

    def half_close(self) -> None:
        for writer in self._near - self._closed:
            self._closed.add(writer)
            writer.write_eof()

    # --- carrying ---------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._near.add(writer)
        task = asyncio.get_running_loop().create_task(self._link(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            self._near.discard(writer)
            _reset(writer)
            return
        self._far.add(far_writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far_writer))
                group.create_task(self._carry(far_reader, writer))
        except* OSError:  # one end was reset: so is the other
            _reset(writer)
            _reset(far_writer)
        finally:
            self._near.discard(writer)
            self._closed.discard(writer)
            self._far.discard(far_writer)
            writer.close()
            far_writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: each block leaves `latency_s` after it came, in order."""
        loop = asyncio.get_running_loop()
        blocks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)

        async def read() -> None:
            data = b"-"
            while data:
                data = await reader.read(BLOCK_BYTES)
                await blocks.put((loop.time(), data))

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while True:
                came_at, data = await blocks.get()
                await asyncio.sleep(max(0.0, came_at + self.latency_s - loop.time()))
                await self._flowing.wait()
                if writer in self._closed:
                    continue
                if not data:
                    writer.write_eof()
                    return
                size = self.slice_bytes or len(data)
                for at in range(0, len(data), size):
                    writer.write(data[at : at + size])
                    await writer.drain()
                    if self.slice_bytes:
                        await asyncio.sleep(0)


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN: closing a socket that lingers for zero seconds is a reset."""
    sock = writer.get_extra_info("socket")
    if not writer.is_closing():
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
