"""The cheapest vendor there is: the OpenAI wire in raw asyncio, so that a measurement weighs the
gateway and not this.

A request carries its own script in the last message, `[[chunks=64 interval_us=20000]]`: that many
content chunks, that far apart, each written by itself (0: all at once). Every chunk holds one
`TOKEN`, so a client can count what arrived. The first content chunk leaves at once, with the role
chunk. Faults are not simulated here.

    python -m tests.bench.upstream PORT
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import httptools
import orjson
import uvloop

TOKEN = b"pebble"
_SCRIPT = re.compile(rb"\[\[chunks=(\d+) interval_us=(\d+)\]\]")
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_PROMPT_TOKENS = 300


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _event(**fields: object) -> bytes:
    body = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "bench",
    }
    return b"data: " + orjson.dumps(body | fields) + b"\n\n"


def _delta(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def _usage(tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": _PROMPT_TOKENS + tokens,
    }


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_ROLE = _chunk(_delta({"role": "assistant", "content": ""}))
# Not always the same text: LiteLLM takes a hundred equal chunks for a stuck model and ends it.
_CONTENT = [_chunk(_delta({"content": f" {TOKEN.decode()} {i:x}"})) for i in range(16)]
_FINISH = _delta({}, "stop")


def _tail(tokens: int, with_usage: bool) -> bytes:
    usage = _event(choices=[], usage=_usage(tokens)) if with_usage else b""
    return (
        _chunk(_FINISH)
        + (_chunk(usage) if usage else b"")
        + _chunk(b"data: [DONE]\n\n")
        + b"0\r\n\r\n"
    )


def _answer(payload: object, status: bytes = b"200 OK") -> bytes:
    body = orjson.dumps(payload)
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def _completion(tokens: int) -> bytes:
    message = {"role": "assistant", "content": " ".join([TOKEN.decode()] * tokens)}
    return _answer(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "bench",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _usage(tokens),
        }
    )


class Tally:
    """What was asked of the upstream, to compare with what the load client believes it sent."""

    def __init__(self) -> None:
        self.requests = self.streams = self.streams_open = self.streams_open_max = 0

    def as_json(self) -> dict[str, int]:
        return dict(vars(self))


class Upstream(asyncio.Protocol):
    """One connection: requests one after another, at most one answer under way."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.timer: asyncio.TimerHandle | None = None
        self.url = b""
        self.body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()
            self._stream_over()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_url(self, url: bytes) -> None:
        self.url, self.body = url, []

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.url.endswith(b"/chat/completions"):
            self._chat(b"".join(self.body))
        elif self.url == b"/stats":
            self.transport.write(_answer(self.tally.as_json()))
        elif self.url.endswith(b"/models"):
            models = [
                {"id": "bench", "object": "model", "created": 1_700_000_000, "owned_by": "bench"}
            ]
            self.transport.write(_answer({"object": "list", "data": models}))
        else:  # health probes of every kind
            self.transport.write(_answer({"status": "ok"}))

    def _chat(self, body: bytes) -> None:
        self.tally.requests += 1
        script = _SCRIPT.search(body)
        chunks, interval_us = (int(script[1]), int(script[2])) if script else (16, 0)
        if not _STREAM.search(body):
            self.transport.write(_completion(chunks))
            return
        tail = _tail(chunks, _USAGE.search(body) is not None)
        if not interval_us:
            self.tally.streams += 1
            content = b"".join(_CONTENT[left % 16] for left in range(chunks, 0, -1))
            self.transport.write(_STREAM_HEAD + _ROLE + content + tail)
            return
        self.tally.streams += 1
        self.tally.streams_open += 1
        self.tally.streams_open_max = max(self.tally.streams_open_max, self.tally.streams_open)
        self.transport.write(_STREAM_HEAD + _ROLE + _CONTENT[chunks % 16])
        self._later(self.loop.time(), chunks - 1, interval_us / 1e6, tail)

    def _later(self, due: float, left: int, interval_s: float, tail: bytes) -> None:
        # Due times add up from the start, so that a late tick does not stretch the stream.
        due += interval_s
        self.timer = self.loop.call_at(due, self._tick, due, left, interval_s, tail)

    def _tick(self, due: float, left: int, interval_s: float, tail: bytes) -> None:
        if left > 0:
            self.transport.write(_CONTENT[left % 16])
            self._later(due, left - 1, interval_s, tail)
            return
        self.timer = None
        self._stream_over()
        self.transport.write(tail)

    def _stream_over(self) -> None:
        self.tally.streams_open -= 1


async def serve(port: int) -> None:
    tally = Tally()
    server = await asyncio.get_running_loop().create_server(
        lambda: Upstream(tally), "127.0.0.1", port, backlog=4096
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
