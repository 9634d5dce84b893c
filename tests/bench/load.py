"""A bounded closed-loop client: so many connections, each asking again as soon as it was answered.

Owns the clock of the client side: latency, time to first token, and whether the answer was whole.
An answer counts only if its status is 200, every token that was asked for arrived, and a stream
ended with `[DONE]`: a gateway that drops or truncates must not look fast. Nothing is retried. Every
run ends: by count or by time, and then by a drain limit.

Run as a process it reads one `Spec` per line as JSON and answers with one `Result` per line, so
that the start of an interpreter is never part of a measurement.

    python -m tests.bench.load
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import httptools
import orjson
import uvloop

from tests.bench.upstream import TOKEN

_DONE = b"[DONE]"
_TAIL = len(TOKEN) - 1
_CONNECT_S = 10.0
_CONVERSATION = b"0000000000000000"
_TURNS = 4  # requests of one conversation: a gateway that keeps affinity meets new and known ones


@dataclass(frozen=True, slots=True)
class Spec:
    """One run. With `requests_max` 0 only the time bounds it."""

    port: int
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    model: str = "bench"
    stream: bool = False
    chunks: int = 16
    interval_us: int = 0
    concurrency: int = 16
    requests_max: int = 0
    duration_s: float = 5.0  # no request starts later
    stagger_s: float = (
        0.0  # connections start spread over this long; TTFTs of that time are left out
    )
    drain_s: float = 30.0  # what is unfinished this long after `duration_s` is an error


@dataclass(frozen=True, slots=True)
class Result:
    requests: int  # whole answers
    tokens: int
    errors: dict[str, int]
    example: str  # the first error in full
    open_max: int  # most requests under way at once
    wall_s: float
    latency_s: list[float]
    ttft_s: list[float]


def request_bytes(spec: Spec) -> bytes:
    """An ordinary chat turn of about 1.2 KB, with the upstream's script in its last message.

    `_CONVERSATION` stands where a number comes, see `Run.next_request`.
    """
    script = f"Go on. [[chunks={spec.chunks} interval_us={spec.interval_us}]]"
    rules = (
        "Answer in plain words, say what you are unsure of, and keep to the question asked. " * 10
    )
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": [
            {"role": "system", "content": f"Conversation {_CONVERSATION.decode()}. {rules}"},
            {
                "role": "user",
                "content": "How does a weighbridge work, and what are its limits? " * 3,
            },
            {"role": "assistant", "content": "It weighs a vehicle twice."},
            {"role": "user", "content": script},
        ],
        "max_tokens": spec.chunks,
        "temperature": 0.2,
    }
    if spec.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    payload = orjson.dumps(body)
    headers = {
        "host": "gateway",
        "content-type": "application/json",
        "content-length": str(len(payload)),
    }
    lines = "".join(f"{k}: {v}\r\n" for k, v in (headers | spec.headers).items())
    return f"POST {spec.path} HTTP/1.1\r\n{lines}\r\n".encode() + payload


class Run:
    """What one `Spec` has seen so far."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.request = request_bytes(spec)
        self.first_conversation = time.time_ns()
        self.begun = time.perf_counter()
        self.started = self.requests = self.tokens = self.open = self.open_max = 0
        self.errors: Counter[str] = Counter()
        self.example = ""
        self.latency_s: list[float] = []
        self.ttft_s: list[float] = []

    def take(self) -> bool:
        """May one more request start?"""
        if self.spec.requests_max and self.started >= self.spec.requests_max:
            return False
        if time.perf_counter() - self.begun >= self.spec.duration_s:
            return False
        self.started += 1
        return True

    def next_request(self) -> bytes:
        number = self.first_conversation + self.started // _TURNS
        return self.request.replace(_CONVERSATION, b"%016x" % number, 1)

    def fail(self, kind: str, detail: str = "") -> None:
        self.errors[kind] += 1
        self.example = self.example or f"{kind}: {detail}"[:600]

    def result(self) -> Result:
        return Result(
            self.requests,
            self.tokens,
            dict(self.errors),
            self.example,
            self.open_max,
            time.perf_counter() - self.begun,
            self.latency_s,
            self.ttft_s,
        )


class Connection(asyncio.Protocol):
    """One client: one request at a time over keep-alive."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: Any = None
        self.answered: asyncio.Future[None] | None = None
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self) -> asyncio.Future[None]:
        run = self.run
        run.open += 1
        run.open_max = max(run.open_max, run.open)
        self.parser = httptools.HttpResponseParser(self)
        self.tokens, self.first_s, self.done = 0, 0.0, False
        self.text = self.tail = b""
        self.answered = asyncio.get_running_loop().create_future()
        request = run.next_request()
        self.sent_s = time.perf_counter()
        self.transport.write(request)
        return self.answered

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._over("broken HTTP", str(error))
            self.transport.abort()

    def on_body(self, data: bytes) -> None:
        self.text = text = self.tail + data
        if found := text.count(TOKEN):
            if not self.tokens:
                self.first_s = time.perf_counter()
            self.tokens += found
        self.done = self.done or _DONE in text
        # A mark may lie across two reads; what is kept is too short to hold one that was counted.
        self.tail = text[-_TAIL:]

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        self.usable = self.parser.should_keep_alive()
        if status != 200:
            self._over(f"status {status}", self.text[:500].decode(errors="replace"))
        elif self.tokens != self.run.spec.chunks:
            self._over("wrong token count", f"{self.tokens}, expected {self.run.spec.chunks}")
        elif self.run.spec.stream and not self.done:
            self._over("no [DONE]")
        else:
            self._over()

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._over("connection lost", str(exc))

    def _over(self, error: str = "", detail: str = "") -> None:
        if self.answered is None or self.answered.done():
            return
        run = self.run
        run.open -= 1
        if error:
            run.fail(error, detail)
        else:
            run.requests += 1
            run.tokens += self.tokens
            run.latency_s.append(time.perf_counter() - self.sent_s)
            if self.sent_s - run.begun >= run.spec.stagger_s:
                run.ttft_s.append(self.first_s - self.sent_s)
        self.answered.set_result(None)


async def _client(run: Run, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(delay_s)
    connection: Connection | None = None
    try:
        while run.take():
            if connection is None or not connection.usable:
                try:
                    async with asyncio.timeout(_CONNECT_S):
                        _, connection = await loop.create_connection(
                            lambda: Connection(run), "127.0.0.1", run.spec.port
                        )
                except OSError as error:
                    run.fail("cannot connect", str(error))
                    await asyncio.sleep(0.05)
                    continue
            await connection.ask()
    finally:
        if connection:
            connection.transport.abort()


async def drive(spec: Spec) -> Result:
    run = Run(spec)
    step_s = spec.stagger_s / spec.concurrency
    clients = [asyncio.ensure_future(_client(run, i * step_s)) for i in range(spec.concurrency)]
    _, late = await asyncio.wait(clients, timeout=spec.duration_s + spec.drain_s)
    for _ in range(run.open):
        run.fail("unfinished", f"still open {spec.drain_s:g} s after the run")
    result = run.result()
    for client in late:
        client.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for client in clients:
        if not client.cancelled():
            client.result()  # a bug here must not pass for a quiet run
    return result


def main() -> None:
    gc.disable()  # a collection would show up as somebody's latency; runs are bounded
    for line in sys.stdin.buffer:
        result = uvloop.run(drive(Spec(**orjson.loads(line))))
        sys.stdout.buffer.write(orjson.dumps(asdict(result)) + b"\n")
        sys.stdout.buffer.flush()
        gc.collect()


if __name__ == "__main__":
    main()
