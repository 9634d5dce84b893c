"""The OpenAI wire over HTTP: vendors, managed hosts, vLLM, llama.cpp, Ollama; bytes pass through.

A stream is parsed once: each event is read to know content, finish and usage, and its bytes go on
as they came, but for the model's name (the alias is echoed) and usage nobody asked for. Unknown
fields, both ways, are none of our business.

Where the formats come from: OpenAI's API reference (chat, completions, embeddings, streaming),
vLLM 0.32 and llama.cpp's server as observed. A backend here is a row in the catalog, no code.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import orjson

from gateway.backends.base import Call, Piece, place, require_clearance
from gateway.backends.http_client import (
    ClosedEarly,
    Headers,
    HttpClient,
    HttpLimits,
    HttpResponse,
    IdleTimeout,
    LetGo,
    Network,
    Origin,
    TransportError,
    read_all,
)
from gateway.backends.openai_body import Renamer, said, whole_chars
from gateway.backends.sse import EventStream, EventTooLarge
from gateway.backends.upstream_errors import from_event, from_status, from_transport
from gateway.backends.usage import Heard
from gateway.domain.catalog import Backend, Kind
from gateway.domain.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
)
from gateway.domain.request import Endpoint, ModelRequest

ANSWER_BYTES_MAX = 64 * 1024 * 1024
ERROR_BYTES_MAX = 64 * 1024
ERROR_S_MAX = 5.0
FAREWELL_S_MAX = 0.02


class ClientFactory(Protocol):
    """Makes the client of one origin; `headers` hold its secret and go with every request."""

    def __call__(
        self, origin: Origin, *, network: Network, headers: Headers, limits: HttpLimits
    ) -> HttpClient: ...


def _raise(error: TransportError, backend: str) -> NoReturn:
    raise from_transport(error, backend) from error


@dataclass(frozen=True, slots=True)
class _Route:
    """What is the same for every call to one backend; its client holds the secret."""

    client: HttpClient
    prefix: str
    query: str


class OpenAIHttpWire:
    """All backends of wire `openai_http`. `secret` resolves a reference; `client` makes clients."""

    def __init__(self, secret: Callable[[str], str], client: ClientFactory) -> None:
        self._secret = secret
        self._new_client = client
        self._routes: dict[tuple[object, ...], _Route] = {}
        self._let_go = LetGo()

    async def open(self, call: Call) -> _StreamReply | _WholeReply:
        require_clearance(call)
        request, backend = call.request, call.backend
        route = self._routes.get(place(backend)) or self._route(backend)
        loop_time = asyncio.get_running_loop().time
        deadline = loop_time() + call.connect_s_max + call.first_chunk_s_max
        headers = [(b"x-request-id", call.request_id.encode())]
        if call.session is not None and backend.kind is Kind.SELF_HOSTED:
            headers.append((b"x-session-id", call.session.encode()))
        try:
            response = await route.client.request(
                "POST",
                f"{route.prefix}/{request.endpoint.value}{route.query}",
                headers,
                _body(call),
                connect_s_max=call.connect_s_max,
                head_s_max=call.first_chunk_s_max,
            )
        except TransportError as error:
            _raise(error, backend.name)
        try:
            if response.status != 200:
                await _raise_status(response, backend.name)
            if request.stream:
                return await _StreamReply.start(response, call, deadline, loop_time)
            return await _WholeReply.read(response, call, deadline - loop_time())
        except BaseException:
            response.close()
            raise

    async def probe(self, backend: Backend) -> None:
        if backend.health_path is None:
            return
        route = self._routes.get(place(backend)) or self._route(backend)
        try:
            response = await route.client.request(
                "GET", backend.health_path, [], b"", connect_s_max=1.0, head_s_max=2.0
            )
            try:
                await read_all(response, ERROR_BYTES_MAX, 2.0)
            finally:
                response.close()
        except TransportError as error:
            _raise(error, backend.name)
        if response.status != 200:
            raise UpstreamBroken("The backend is not healthy.", status=response.status)

    async def warm(self) -> None:
        """Nothing is slow here."""

    async def renew(self) -> None:
        clients = [route.client for route in self._routes.values()]
        self._routes.clear()
        await self._let_go.add(clients)

    async def aclose(self) -> None:
        await self.renew()
        await self._let_go.aclose()

    def _route(self, backend: Backend) -> _Route:
        try:
            origin, prefix = Origin.parse(backend.base_url)
            headers = [(b"content-type", b"application/json")]
            headers += [(k.encode(), v.encode()) for k, v in backend.headers]
            if backend.secret is not None:
                value = self._secret(backend.secret)
                if backend.auth_header == "authorization":
                    value = f"Bearer {value}"
                headers.append((backend.auth_header.encode(), value.encode()))
        except Exception as error:
            # No secret, no call: the text of the error may name the reference, never the value.
            raise UpstreamRefused("The backend is not configured.", detail=str(error)) from error
        route = _Route(
            client=self._new_client(
                origin,
                network=network_of(origin, backend),
                headers=headers,
                # One more than requests may use: a health probe must not wait behind them.
                limits=HttpLimits(connections_max=backend.limits.concurrency_max + 1),
            ),
            prefix=prefix,
            query=f"?{backend.query}" if backend.query else "",
        )
        self._routes[place(backend)] = route
        return route


def network_of(origin: Origin, backend: Backend) -> Network:
    """Private addresses only for what the company runs, or where the catalog names the address."""
    if backend.kind is Kind.SELF_HOSTED:
        return "private"
    try:
        return "private" if ipaddress.ip_address(origin.host).is_private else "public"
    except ValueError:
        return "private" if origin.host == "localhost" else "public"


def _body(call: Call) -> bytes:
    """The caller's document with the vendor's model name; usage is always asked for."""
    request, backend = call.request, call.backend
    document: dict[str, Any] = {**request.document, "model": call.model.name}
    if request.stream:
        options = document.get("stream_options")
        document["stream_options"] = {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
            **({"continuous_usage_stats": True} if backend.continuous_usage else {}),
        }
    for name in backend.unsupported_parameters:
        document.pop(name, None)
    return orjson.dumps(document)


async def _raise_status(response: HttpResponse, backend: str) -> NoReturn:
    try:
        body = await read_all(response, ERROR_BYTES_MAX, ERROR_S_MAX)
    except TransportError:
        body = b""  # the status says enough
    raise from_status(response.status, body, response.headers, backend)


def _choices_asked(request: ModelRequest) -> int:
    """How many choices must finish; a legacy completion has `n` for each of its prompts."""
    if request.endpoint is Endpoint.COMPLETIONS:
        prompt = request.document["prompt"]
        if type(prompt) is list and type(prompt[0]) is not int:
            return request.choices * len(prompt)
    return request.choices


class _StreamReply:
    """A stream: several events that came in one block make one piece."""

    streamed = True
    __slots__ = (
        "_alias",
        "_backend",
        "_choices_left",
        "_clock",
        "_deadline",
        "_ended",
        "_error",
        "_events",
        "_finished",
        "_heard",
        "_idle_s_max",
        "_primed",
        "_rename",
        "_response",
        "_running_usage_wanted",
        "_usage_event",
        "_usage_wanted",
    )

    def __init__(
        self, response: HttpResponse, call: Call, deadline: float, clock: Callable[[], float]
    ) -> None:
        self._response = response
        self._backend = call.backend.name
        self._usage_wanted = call.request.usage_wanted
        options = call.request.document.get("stream_options") or {}
        self._running_usage_wanted = bool(options.get("continuous_usage_stats"))
        self._usage_event: dict[str, Any] | None = None
        self._heard = Heard(call.request.prompt_tokens, vouched=call.backend.continuous_usage)
        self._alias = call.request.alias
        self._rename = Renamer(self._alias)
        self._events = EventStream()
        self._idle_s_max = call.idle_s_max
        self._clock = clock
        # Until something was said the whole wait for the first chunk counts, then each silence.
        self._deadline = deadline
        self._error: UpstreamError | None = None
        self._choices_left = set(range(_choices_asked(call.request)))
        self._finished = self._ended = False
        self._primed: Piece | None = None

    @classmethod
    async def start(
        cls, response: HttpResponse, call: Call, deadline: float, clock: Callable[[], float]
    ) -> _StreamReply:
        """Wait for the first event, so that `open` fails where the stream does."""
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise UpstreamBroken(
                "The backend did not answer with an event stream.",
                detail=f"content-type {kind[:80]!r}",
            )
        reply = cls(response, call, deadline, clock)
        reply._primed = await reply.next()
        if reply._primed is None:
            raise UpstreamBroken("The backend sent an empty stream.")
        return reply

    async def next(self) -> Piece | None:
        if self._primed is not None:
            primed, self._primed = self._primed, None
            return primed
        while True:
            if self._error is not None:
                self._response.close()
                raise self._error
            if self._ended:
                if self._usage_event is not None:
                    event, self._usage_event = self._usage_event, None
                    return Piece(b"data: %b\n\n" % orjson.dumps(event))
                await self._farewell()
                return None
            try:
                block = await self._response.read(
                    idle_s_max=max(self._deadline - self._clock(), 0.001)
                )
                payloads = self._events.feed(block) if block else self._events.end()
            except TransportError as error:
                if isinstance(error, ClosedEarly | IdleTimeout) and self._finished:
                    self._ended = True  # everything was said; the farewell was rude
                    continue
                _raise(error, self._backend)
            except EventTooLarge as error:
                self._response.close()
                raise UpstreamBroken(
                    "The backend sent an event that is too large.", detail=str(error)
                ) from error
            piece = self._piece(payloads) if payloads else None
            if not block:
                self._body_ended()
            if piece is not None:
                return piece

    def _body_ended(self) -> None:
        if not (self._finished or self._ended or self._error):
            self._error = UpstreamBroken("The backend ended the stream before it was finished.")
        self._ended = True

    def close(self) -> None:
        self._response.close()

    async def _farewell(self) -> None:
        """Take the end of the body, so that the connection can be used again; it is due now."""
        try:
            while await self._response.read(idle_s_max=FAREWELL_S_MAX):
                pass
        except TransportError:
            pass  # the connection is lost, nothing else
        self._response.close()

    def _piece(self, payloads: list[bytes]) -> Piece | None:
        """Read the events that came together. An error among them is raised after the rest."""
        out: list[bytes] = []
        piece = Piece(b"")
        for payload in payloads:
            if payload == b"[DONE]":
                self._ended = True
                break
            try:
                document = orjson.loads(payload)
            except orjson.JSONDecodeError:
                if not payload.strip():
                    continue
                document = None
            if type(document) is not dict:
                self._error = UpstreamBroken("The backend sent an event that is not a JSON object.")
                break
            if document.get("error"):
                self._error = from_event(document, self._backend)
                break
            self._read(payload, document, piece, out)
        self._finished = self._finished or piece.finished
        piece.usage = self._heard.news(whole=self._finished or self._ended)
        if piece.content or self._finished:
            self._deadline = self._clock() + self._idle_s_max
        if not out:
            return piece if piece.usage is not None or piece.finished else None
        piece.data = b"".join(out)
        return piece

    def _read(
        self, payload: bytes, document: dict[str, Any], piece: Piece, out: list[bytes]
    ) -> None:
        choices = document.get("choices")
        raw_usage = document.get("usage")
        if choices is None and raw_usage is None:
            return  # a ping, a notice: not a chunk, and SDKs fail on what is not one
        self._heard.read(document)
        if raw_usage is not None and not (choices and self._running_usage_wanted):
            self._take_usage(document, raw_usage)
            if not choices:
                return
            payload = orjson.dumps(document)
        if choices:
            for choice in choices:
                if type(choice) is not dict:
                    continue
                if choice.get("finish_reason") is not None:
                    index = choice.get("index")
                    self._choices_left.discard(index if type(index) is int else 0)
                    piece.finished = not self._choices_left
                delta = choice.get("delta")
                chars = said(delta) if type(delta) is dict else len(choice.get("text") or "")
                if chars:
                    piece.content = True
                    piece.content_chunks += 1
                    piece.content_chars += chars
        if b"\n" in payload:  # it came as several data lines; between tokens a blank does as well
            payload = payload.replace(b"\n", b" ")
        out.append(b"data: ")
        out.append(self._rename(payload, document))
        out.append(b"\n\n")

    def _take_usage(self, document: dict[str, Any], usage: Any) -> None:
        """Off the chunk: it is told once, last and alone, to who asked for it.

        So says OpenAI's reference; vendors tell it on the last chunk, on each, or twice, and
        LangChain adds up whatever comes.
        """
        if "model" in document:
            document["model"] = self._alias
        if self._usage_wanted:
            self._usage_event = {**document, "choices": [], "usage": usage}
            document["usage"] = None
        else:
            del document["usage"]


class _WholeReply:
    """An answer that is not streamed: one piece."""

    streamed = False
    __slots__ = ("_piece",)

    def __init__(self, piece: Piece) -> None:
        self._piece: Piece | None = piece

    @classmethod
    async def read(cls, response: HttpResponse, call: Call, patience_s: float) -> _WholeReply:
        backend = call.backend.name
        kind = response.headers.get("content-type", "")
        try:
            body = await read_all(response, ANSWER_BYTES_MAX, max(patience_s, call.idle_s_max))
        except TransportError as error:
            _raise(error, backend)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            document = None
        if type(document) is not dict:
            raise UpstreamBroken(
                "The backend sent an answer that is not a JSON object.",
                detail=f"content-type {kind[:80]!r}, {len(body)} bytes",
            )
        if document.get("error"):
            raise from_event(document, backend)
        heard = Heard(call.request.prompt_tokens)
        heard.read(document)
        return cls(
            Piece(
                data=Renamer(call.request.alias)(body, document),
                content=True,
                content_chars=whole_chars(document),
                finished=True,
                usage=heard.news(whole=True),
            )
        )

    async def next(self) -> Piece | None:
        piece, self._piece = self._piece, None
        return piece

    def close(self) -> None:
        """Nothing runs any more."""
