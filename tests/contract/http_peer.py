"""A raw HTTP peer that says exactly the bytes it is told: the other end of the client contract.

Owns: a loopback server, plain or TLS, whose behaviour per connection is a coroutine (`Script`);
what it saw; a throw-away certificate authority. Must not know: any client, or what a correct answer is.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


@dataclass
class Wire:
    """The peer's end of one connection."""

    number: int
    """0 for the first that was accepted."""
    peer: "Peer"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: int = 0

    async def request(self) -> Seen:
        """Reads one request with its body. Raises EOFError when the client has closed."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head[:-4].split("\r\n")
        headers = [(name.lower(), value) for name, value in (each.split(": ", 1) for each in rest)]
        size = next((int(value) for name, value in headers if name == "content-length"), 0)
        seen = Seen(line, headers, await self.reader.readexactly(size))
        self.peer.requests.append(seen)
        return seen

    async def send(self, *pieces: bytes) -> None:
        """Sends each piece as a segment of its own, as far as a kernel lets one decide that."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            self.sent += len(piece)
            for _ in range(3):  # both ends share one loop: it polls its sockets once per turn
                await asyncio.sleep(0)

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def ended(self) -> bytes:
        """Waits until the client has closed; what it still said."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


Script = Callable[[Wire], Awaitable[None]]


@dataclass
class Peer:
    """Runs a script for each connection; `async with` listens and, at the end, hangs up."""

    script: Script
    tls: ssl.SSLContext | None = None
    requests: list[Seen] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    open_most: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self.tls, limit=2**20
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        wire = Wire(self.connections, self, reader, writer)
        self.connections += 1
        self.open += 1
        self.open_most = max(self.open_most, self.open)
        try:
            with contextlib.suppress(EOFError, ConnectionError, asyncio.CancelledError):
                await self.script(wire)
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()


def answering(*pieces: bytes) -> Script:
    """Says the same to every request."""

    async def script(wire: Wire) -> None:
        while True:
            await wire.request()
            await wire.send(*pieces)

    return script


# ---- certificates -----------------------------------------------------------------------------


def make_authority(folder: Path) -> Path:
    """A new certificate authority; the path of its certificate. Needs the `openssl` program."""
    _openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca "
        "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign "
        "-keyout ca.key -out ca.pem",
        folder,
    )
    return folder / "ca.pem"


def server_tls(folder: Path, name: str) -> ssl.SSLContext:
    """A server context with a certificate of that authority for `name`, in openssl's words."""
    (folder / "ext").write_text(f"subjectAltName={name}\nextendedKeyUsage=serverAuth\n")
    _openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=server "
        "-keyout server.key -out server.csr",
        folder,
    )
    _openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
        "-extfile ext -out server.pem",
        folder,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _openssl(arguments: str, folder: Path) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)
