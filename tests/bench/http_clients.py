"""CPU of the upstream HTTP clients, per request and per streamed block.

    .venv/bin/python -m tests.bench.http_clients [--loop asyncio] [--rounds 7] [--tls]

The peer runs in a process of its own and answers from ready bytes, a stream one block every few
milliseconds; only this process's CPU time is counted. `bare` is an asyncio protocol that writes the
same request and wakes a coroutine per segment, with no HTTP at all: what no client can go below.
Rounds of the three alternate, so noise of the machine falls on all of them; figures are medians,
`over bare` their difference.
"""

import argparse
import asyncio
import gc
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from gateway.backends.http_aiohttp import AiohttpClient
from gateway.backends.http_client import HttpClient, Origin, http_tls, read_all
from gateway.backends.http_fast import FastHttpClient

HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 01 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: application/json\r\nx-request-id: 0123456789abcdef\r\n"
    b"x-ratelimit-limit-requests: 1000\r\nx-ratelimit-remaining-requests: 999\r\n"
)
JSON = b'{"id":"c","choices":[{"message":{"role":"assistant","content":"%s"}}]}' % (b"a" * 400)
ANSWER = HEAD + b"content-length: %d\r\n\r\n" % len(JSON) + JSON
EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'
BLOCK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
BODY = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"q" * 600)
STATIC = [(b"authorization", b"Bearer 0123456789"), (b"content-type", b"application/json")]
DYNAMIC = [(b"x-request-id", b"0123456789abcdef")]
BLOCKS = 100
PACE_S = 0.004
CONCURRENCY = 8


class Peer(asyncio.Protocol):
    """Answers each request at once; one for `/stream` block by block."""

    def connection_made(self, transport):
        self.transport = transport
        self.got = b""

    def data_received(self, data):
        self.got += data
        if self.got.endswith(BODY):
            stream, self.got = self.got.startswith(b"POST /stream"), b""
            if stream:
                self.transport.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
                self.tick(BLOCKS)
            else:
                self.transport.write(ANSWER)

    def tick(self, left):
        self.transport.write(BLOCK if left else b"0\r\n\r\n")
        if left and not self.transport.is_closing():
            asyncio.get_running_loop().call_later(PACE_S, self.tick, left - 1)


async def serve(tls):
    server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until our parent ends
    server.close()


class Bare(asyncio.Protocol):
    """The floor: bytes out, bytes in, one wake-up per segment."""

    def connection_made(self, transport):
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.waiter = None
        self.got = 0

    def data_received(self, data):
        self.got += len(data)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(data)

    async def exchange(self, request, size):
        self.got, reads = 0, 0
        self.transport.write(request)
        while self.got < size:
            self.waiter = self.loop.create_future()
            await self.waiter
            reads += 1
        return reads


def bare_worker(port, tls):
    async def start() -> Callable[[bool], Awaitable[int]]:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(
            Bare, "127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls else None
        )
        lines = [b"host: localhost", *(b"%b: %b" % header for header in STATIC + DYNAMIC)]
        lines.append(b"content-length: %d\r\n\r\n" % len(BODY))
        rest = b" HTTP/1.1\r\n" + b"\r\n".join(lines) + BODY
        sizes = {
            False: len(ANSWER),
            True: len(HEAD)
            + len(b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n")
            + BLOCKS * len(BLOCK),
        }
        return lambda stream: protocol.exchange(
            (b"POST /stream" if stream else b"POST /json") + rest, sizes[stream]
        )

    return start


def client_worker(client: HttpClient):
    async def exchange(stream: bool) -> int:
        response = await client.request(
            "POST",
            "/stream" if stream else "/json",
            DYNAMIC,
            BODY,
            connect_s_max=2.0,
            head_s_max=30.0,
        )
        if not stream:
            assert len(await read_all(response, 1_000_000, 20.0)) == len(JSON)
            return 1
        reads, size = 0, 0
        while block := await response.read(idle_s_max=20.0):
            reads += 1
            size += len(block)
        assert size == BLOCKS * len(EVENT)
        return reads

    async def start():
        return exchange

    return start


async def measure(start, *, stream: bool, repeats: int) -> tuple[float, float]:
    """CPU microseconds per exchange (or per read, when streaming), and reads per exchange."""
    workers = [await start() for _ in range(CONCURRENCY)]
    await asyncio.gather(*(work(False) for work in workers))  # connect

    async def loop(work) -> int:
        return sum([await work(stream) for _ in range(repeats)])

    gc.collect()
    begun = time.process_time()
    reads = sum(await asyncio.gather(*map(loop, workers)))
    cpu = (time.process_time() - begun) * 1e6
    exchanges = CONCURRENCY * repeats
    return cpu / (reads if stream else exchanges), reads / exchanges


async def compare(port: int, tls, rounds: int, *, stream: bool) -> None:
    host = "localhost" if tls else "127.0.0.1"
    origin, _ = Origin.parse(f"{'https' if tls else 'http'}://{host}:{port}")
    options = {"network": "private", "headers": STATIC, "tls": tls}
    clients = {
        "fast": FastHttpClient(origin, **options),
        "aiohttp": AiohttpClient(origin, **options),
    }
    kinds = {"bare": bare_worker(port, tls)}
    kinds |= {name: client_worker(client) for name, client in clients.items()}
    figures = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, start in kinds.items():
            figures[name].append(await measure(start, stream=stream, repeats=1 if stream else 400))
    floor = statistics.median(cpu for cpu, _ in figures["bare"])
    what = "streamed block" if stream else "request"
    print(f"\nCPU per {what}, µs: median of {rounds} rounds (least .. most)")
    for name, rows in figures.items():
        cpu = sorted(row[0] for row in rows)
        middle = statistics.median(cpu)
        note = f"   {statistics.median(row[1] for row in rows):.0f} reads of {BLOCKS}" * stream
        print(
            f"  {name:8} {middle:7.1f}  ({cpu[0]:.1f} .. {cpu[-1]:.1f})"
            f"  over bare {middle - floor:7.1f}{note}"
        )
    for client in clients.values():
        await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from tests.contract.http_peer import make_authority, server_tls

    if args.serve is not None:
        tls = server_tls(Path(args.serve), "DNS:localhost") if args.tls else None
        uvloop.run(serve(tls))
        return
    with tempfile.TemporaryDirectory() as folder:
        client_tls = None
        if args.tls:
            client_tls = http_tls(ssl.create_default_context(cafile=make_authority(Path(folder))))
        command = [sys.executable, "-m", "tests.bench.http_clients", "--serve", folder]
        with subprocess.Popen(
            command + ["--tls"] * args.tls, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as peer:
            port = int(peer.stdout.readline())
            print(f"{args.loop}, {'TLS' if args.tls else 'plain'}, {CONCURRENCY} at once", end="")
            print(f", Python {sys.version.split()[0]}, {os.cpu_count()} cores")
            factory = uvloop.new_event_loop if args.loop == "uvloop" else asyncio.new_event_loop
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(compare(port, client_tls, args.rounds, stream=False))
                runner.run(compare(port, client_tls, args.rounds, stream=True))
            peer.stdin.close()


if __name__ == "__main__":
    main()
