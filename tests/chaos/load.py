"""What clients do and what they saw: calls with a history, a bounded closed loop, raw sockets.

Owns: the client's side of every chaos test. An answer is believed only when the HTTP body ended as
its framing says; what broke is kept, nothing is retried, every wait has a limit. Judges nothing: it
records, the tests compare with the ledger and with what the vendors saw.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.vendor import CANARY

CHAT = "/v1/chat/completions"
CALL_S_MAX = 40.0
STOWAWAY_EVERY = 20


def chat(content: str = "hi", *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """A chat request of one message for the alias `chat`."""
    document = {"model": "chat", "messages": [{"role": "user", "content": content}], **more}
    return {**document, "stream": True} if stream else document


# --- one call ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    """One call as its client saw it. Times are `time.monotonic()`."""

    number: int = 0
    stream: bool = False
    asked_at: float = 0.0
    first_at: float = 0.0  # the first content
    last_at: float = 0.0  # the last content
    ended_at: float = 0.0
    status: int = 0  # 0: no head came
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""
    text: str = ""
    error: dict[str, Any] | None = None  # the error object, of the body or of the last event
    finished: bool = False  # a finish_reason came
    done: bool = False  # `data: [DONE]` was last
    whole: bool = False  # the body ended as its framing says
    broken: str = ""  # what happened instead
    stowaway: bool = False  # restricted, with a canary: nobody here may have it

    @property
    def id(self) -> str:
        return self.headers.get("x-request-id", "")

    @property
    def ok(self) -> bool:
        """An answer without any complaint; for a stowaway, that it was refused as it must be."""
        if self.stowaway:
            refused = self.error is not None and self.error["code"] == "no_eligible_backend"
            return self.whole and refused
        ended = self.done and self.finished if self.stream else True
        return self.status == 200 and self.whole and self.error is None and ended

    @property
    def told(self) -> bool:
        """The client knows how it ended: a whole answer, or a refusal with its status."""
        return self.whole and (self.ok or self.error is not None)

    @property
    def took_s(self) -> float:
        return self.ended_at - self.asked_at

    def _event(self, data: bytes, now: float) -> None:
        self.done = data == b"[DONE]"
        if self.done:
            return
        document = json.loads(data)
        if "error" in document:
            self.error = document["error"]
            return
        for choice in document.get("choices", ()):
            said = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            if said:
                self.text += said
                self.first_at = self.first_at or now
                self.last_at = now
            self.finished = self.finished or choice.get("finish_reason") is not None

    def _document(self) -> None:
        try:
            document = json.loads(self.raw)
        except ValueError:
            return
        self.error = document.get("error")
        for choice in document.get("choices", ()):
            self.text += (choice.get("message") or {}).get("content") or choice.get("text") or ""


async def call(
    client: httpx.AsyncClient,
    document: Mapping[str, Any] | bytes,
    *,
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    number: int = 0,
) -> Answer:
    """Ask once and read to the end. Never raises for what the other side does."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    stream = not isinstance(document, bytes) and bool(document.get("stream"))
    answer = Answer(number=number, stream=stream, asked_at=time.monotonic())
    sent = {"content-type": "application/json", **(headers or {})}
    try:
        async with (
            asyncio.timeout(CALL_S_MAX),
            client.stream("POST", path, content=body, headers=sent) as response,
        ):
            answer.status, answer.headers = response.status_code, response.headers
            events = "text/event-stream" in response.headers.get("content-type", "")
            rest = b""
            async for block in response.aiter_raw():
                answer.raw += block
                now = time.monotonic()
                *lines, rest = (rest + block).split(b"\n")
                for line in lines if events else ():
                    if line.startswith(b"data: "):
                        answer._event(line[6:], now)
            if not events:
                answer._document()
            answer.whole = True
    except (httpx.HTTPError, TimeoutError, OSError) as error:
        answer.broken = f"{type(error).__name__}: {error}"
    answer.ended_at = time.monotonic()
    return answer


def client(url: str, auth: Mapping[str, str] | None = None, **options: Any) -> httpx.AsyncClient:
    """A client without limits of its own below ours."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(
        base_url=url,
        headers=dict(auth or {}),
        timeout=CALL_S_MAX,
        limits=limits,
        verify=False,  # all is loopback, and loading the roots would stop this loop for 30 ms
        **options,
    )


# --- many calls -------------------------------------------------------------------------------

Make = Callable[[int], tuple[Mapping[str, Any] | bytes, Mapping[str, str]]]


class Load:
    """So many clients, each asking again when it was answered; `make(number)` says what.

    `async with` starts them; leaving it lets the calls under way end. `history` is all of them.
    Now and then one is a stowaway: a restricted request with a canary that no vendor of
    `tests.vendor` may ever see, whatever else the test is about.
    """

    def __init__(self, url: str, clients: int, make: Make, *, pause_s: float = 0.0) -> None:
        self._url = url
        self._clients = clients
        self._make = make
        self._pause_s = pause_s
        self._ending = False
        self._numbers = 0
        self.open = 0
        self.history: list[Answer] = []

    async def __aenter__(self) -> Self:
        self._http = client(self._url)
        self._tasks = [asyncio.ensure_future(self._ask_on()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)
        await self._http.aclose()

    async def _ask_on(self) -> None:
        while not self._ending:
            number, self._numbers = self._numbers, self._numbers + 1
            document, headers = self._make(number)
            stowaway = number % STOWAWAY_EVERY == 0 and isinstance(document, Mapping)
            if stowaway:
                document = {**document, "messages": [{"role": "user", "content": CANARY}]}
                headers = {**headers, "x-weighbridge-privacy": "restricted"}
            self.open += 1
            answer = await call(self._http, document, headers=headers, number=number)
            answer.stowaway = stowaway and answer.status not in {400, 401, 403, 404}
            self.open -= 1
            self.history.append(answer)
            # Who was refused a connection does not spin.
            await asyncio.sleep(self._pause_s if answer.status else max(self._pause_s, 0.05))


async def calls(
    url: str, documents: list[tuple[Mapping[str, Any], Mapping[str, str]]], *, at_once: int
) -> list[Answer]:
    """Each of these once, so many at a time."""
    gate = asyncio.Semaphore(at_once)
    async with client(url) as http:

        async def one(number: int) -> Answer:
            document, headers = documents[number]
            async with gate:
                return await call(http, document, headers=headers, number=number)

        return list(await asyncio.gather(*map(one, range(len(documents)))))


# --- below HTTP -------------------------------------------------------------------------------


def request_bytes(
    document: Mapping[str, Any] | bytes, headers: Mapping[str, str], path: str = CHAT
) -> bytes:
    """A whole HTTP/1.1 request."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = {
        "host": "gateway",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


class Raw:
    """A socket that says and hears bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.heard = b""

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    async def until(self, count: int, mark: bytes, timeout_s: float = 5.0) -> None:
        """Hear on until `mark` has come `count` times."""
        async with asyncio.timeout(timeout_s):
            while self.heard.count(mark) < count:
                block = await self._reader.read(65536)
                if not block:
                    raise EOFError(f"ended after {self.heard[-300:]!r}")
                self.heard += block

    async def closed(self, timeout_s: float) -> bytes:
        """All that is said until the other side closes. Raises TimeoutError if it does not."""
        async with asyncio.timeout(timeout_s):
            with suppress(ConnectionError):
                while block := await self._reader.read(65536):
                    self.heard += block
        return self.heard

    def fin(self) -> None:
        """Leave politely."""
        self._writer.close()

    def rst(self) -> None:
        """Leave rudely: a socket that lingers for zero seconds is reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


def status_of(heard: bytes) -> int:
    """The status of the (last) HTTP answer in these bytes, 0 if there is none."""
    _, found, rest = heard.rpartition(b"HTTP/1.1 ")
    return int(rest[:3]) if found else 0
