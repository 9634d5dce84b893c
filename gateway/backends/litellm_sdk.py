"""Foreign wires through the litellm SDK: Anthropic, Gemini, Bedrock and the rest of its list.

Owns: the only import of litellm, and what of a call may reach it. Must not know: routing, prices
(litellm's own cost is ignored), retries. For a vendor that speaks OpenAI's wire use `openai_http`:
it costs a thirtieth and passes everything through.

litellm translates; it does not travel. Every byte goes over our own `HttpClient`: after the import
its HTTP clients are replaced by ones that know nothing but the exchange of the call they run in.

INVARIANTS
- One call is one request to the backend's own origin: a second one (litellm has retries of its
  own), another origin (a media download, somebody's `api_base`), a redirect are refused there.
- litellm reads nothing but the arguments below: the fields of OpenAI's documented request, the
  catalog's address, vendor and secret. `api_base`, `base_url`, `api_key`, `extra_headers`,
  `custom_llm_provider`, `fallbacks`, `mock_response`, callbacks and its other hundred control words
  share one namespace with the request's fields, so that namespace is closed: a field outside the
  allow-list travels in `extra_body` (merged into the body by the SDK, read by nobody) where the
  vendor speaks OpenAI's wire, and is refused elsewhere, never dropped. Only `metadata` is dropped:
  it says nothing to a model, and litellm takes it for its own.
- A backend without a secret gets a placeholder, or litellm would send it the OPENAI_API_KEY of our
  environment. Vendors of ambient identity (AWS, Google) are the exception, by name: they find their
  credentials there, and the catalog's reference only says that they are.
- Failures are read from the vendor's own answer, which the exchange sees (`upstream_errors`);
  litellm's exception classes decide only where there was none.
- We iterate the translated stream inside litellm's wrapper, not the wrapper: that one ends a cut
  stream with an invented `finish_reason`, counts missing usage itself, drops the finish of every
  choice but the first, fails when a model repeats itself, starts tasks, and costs five times more.

Not offered: streamed legacy completions (litellm has only the wrapper for them).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl

import httpx
import orjson

from gateway.backends.base import Call, Piece, place, require_clearance
from gateway.backends.http_client import (
    HttpClient,
    HttpLimits,
    HttpResponse,
    LetGo,
    Origin,
    TransportError,
    read_all,
)
from gateway.backends.http_fast import FastHttpClient
from gateway.backends.openai_body import said, whole_chars
from gateway.backends.openai_http import (
    ERROR_BYTES_MAX,
    ERROR_S_MAX,
    FAREWELL_S_MAX,
    ClientFactory,
    network_of,
)
from gateway.backends.upstream_errors import clean, from_event, from_status, from_transport
from gateway.backends.usage import Heard, merged, usage_of
from gateway.domain.catalog import Backend
from gateway.domain.errors import (
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.domain.request import Endpoint, ModelRequest, Usage

_CALL_S_EXTRA: Final = 5.0
"""What litellm may take beside the wire: its own waits know no deadline of ours."""
_TAIL_BYTES: Final = 4 * 1024


# ---- what may reach litellm ------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION: Final[Mapping[Endpoint, str]] = {
    Endpoint.CHAT: "acompletion",
    Endpoint.COMPLETIONS: "atext_completion",
    Endpoint.EMBEDDINGS: "aembedding",
}
_FIELDS: Final[Mapping[Endpoint, frozenset[str]]] = {
    Endpoint.CHAT: _words(
        "messages audio frequency_penalty function_call functions logit_bias logprobs"
        " max_completion_tokens max_tokens modalities n parallel_tool_calls prediction"
        " presence_penalty prompt_cache_key reasoning_effort response_format safety_identifier"
        " seed service_tier stop store temperature thinking tool_choice tools top_k top_logprobs"
        " top_p user verbosity web_search_options"
    ),
    Endpoint.COMPLETIONS: _words(
        "prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty"
        " seed stop suffix temperature top_p user"
    ),
    Endpoint.EMBEDDINGS: frozenset({"input", "dimensions", "encoding_format", "user"}),
}
_OURS: Final = frozenset({"model", "stream", "stream_options", "metadata"})
_SPEAK_OPENAI: Final = frozenset({"openai", "azure"})
_AMBIENT: Final = frozenset(
    {"bedrock", "bedrock_converse", "sagemaker", "sagemaker_chat", "vertex_ai", "vertex_ai_beta"}
)
_PLACEHOLDER: Final = "none"


def _arguments(call: Call, route: _Route) -> dict[str, Any]:
    """The keyword arguments of litellm's function. Raises UpstreamRefused."""
    request, backend = call.request, call.backend
    vendor = route.vendor
    allowed = _FIELDS[request.endpoint]
    arguments: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in request.document.items():
        if value is None or name in _OURS or name in backend.unsupported_parameters:
            continue
        if name in allowed:
            arguments[name] = value
        elif vendor in _SPEAK_OPENAI:
            extra[name] = value
        else:
            _refuse(f"The backend does not take the field {clean(name, 60)!r}.", backend, name)
    if vendor not in _SPEAK_OPENAI and _names_remote_media(arguments.get("messages")):
        _refuse("The backend takes images and files as data: URLs only.", backend, "messages")
    if request.stream and request.endpoint is Endpoint.COMPLETIONS:
        _refuse("The backend does not stream legacy completions.", backend, "stream")
    if request.stream:
        arguments["stream"] = True
        arguments["stream_options"] = {"include_usage": True}
    if extra:
        arguments["extra_body"] = extra
    if request.endpoint is Endpoint.CHAT:
        # With tools litellm would look for MCP servers to call by itself; its core cannot even do
        # that without an extra package.
        arguments["_skip_mcp_handler"] = True
    if "api-version" in route.query:
        arguments["api_version"] = route.query["api-version"]
    return arguments | {
        "model": call.model.name,
        "custom_llm_provider": vendor,
        "api_base": backend.base_url or None,
        "api_key": route.key,
        "timeout": call.connect_s_max + call.first_chunk_s_max + _CALL_S_EXTRA,
        "max_retries": 0,
        "num_retries": 0,
        "drop_params": False,
    }


def _refuse(message: str, backend: Backend, param: str | None = None) -> NoReturn:
    raise UpstreamRefused(
        message,
        param=param,
        detail=f"{backend.name}: {message}",
        upstream_code="unsupported_parameter",
    )


def _names_remote_media(messages: object) -> bool:
    """Whether litellm would download something: it inlines media for vendors that cannot fetch."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict):
                continue
            for holder in (part.get("image_url"), part.get("file"), part.get("video_url")):
                values = holder.values() if isinstance(holder, dict) else (holder,)
                if any(isinstance(v, str) and "://" in v[:16] for v in values):
                    return True
    return False


# ---- one exchange ----------------------------------------------------------------------------

_BOM: Final = b"\xef\xbb\xbf"
_DONE: Final = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
_FINISH_MARKS: Final = {
    # litellm's translator of Gemini calls every chunk finished; only the vendor's word is evidence.
    "vertex_and_google_ai_studio_gemini": re.compile(rb'(?<!\\)"finishReason"'),
}
"""By litellm's module: what in the vendor's bytes says that it finished."""

_NOT_SENT: Final = _words(
    "accept-encoding connection content-length cookie host keep-alive openai-organization"
    " openai-project te trailer transfer-encoding upgrade user-agent"
)
_EXCHANGE: ContextVar[_Exchange] = ContextVar("litellm_exchange")


@dataclass(slots=True)
class _Route:
    """What is the same for every call to one backend. `key` is its secret."""

    vendor: str
    key: str | None
    query: Mapping[str, str]
    connect: Callable[[Origin], HttpClient]
    origin: Origin | None
    client: HttpClient | None = None

    def client_to(self, url: httpx.URL) -> HttpClient:
        """The client of the backend's origin; where the catalog names none, of the first one asked.

        Raises ValueError for any other.
        """
        asked, _ = Origin.parse(f"{url.scheme}://{url.netloc.decode('ascii')}")
        if self.origin is None and asked.tls:
            self.origin = asked
        if asked != self.origin:
            raise ValueError(f"litellm asked {asked}, not {self.origin}")
        if self.client is None:
            self.client = self.connect(asked)
        return self.client


class _Exchange:
    """The one request of one call: what litellm's HTTP clients become.

    `error` is what we know better than litellm; `tail` the last bytes read, where an error event
    can be found that litellm retold. `ended`: the vendor's own mark of a whole stream was read.
    `deadline` (loop time) is when the backend must have spoken.
    """

    __slots__ = (
        "_call",
        "_clock",
        "_response",
        "_route",
        "_sent",
        "deadline",
        "end_mark",
        "ended",
        "error",
        "tail",
    )

    def __init__(self, route: _Route, call: Call) -> None:
        self._route = route
        self._call = call
        self._clock = asyncio.get_running_loop().time
        self._sent = False
        self._response: HttpResponse | None = None
        self.deadline = self._clock() + call.connect_s_max + call.first_chunk_s_max
        self.error: UpstreamError | None = None
        self.tail = b""
        self.end_mark = _DONE
        self.ended = False

    @property
    def _left_s(self) -> float:
        return max(self.deadline - self._clock(), 0.001)

    def spoke(self) -> None:
        """From now on the backend may be silent for `idle_s_max`."""
        self.deadline = self._clock() + self._call.idle_s_max

    async def send(self, request: httpx.Request) -> httpx.Response:
        route, backend = self._route, self._call.backend
        if self._sent:
            self._fail(UpstreamBroken("The backend failed.", detail="litellm asked a second time"))
        self._sent = True
        url = request.url.copy_merge_params(route.query) if route.query else request.url
        headers = [
            (name, value)
            for name, value in request.headers.raw
            if (lower := name.lower().decode("latin-1")) not in _NOT_SENT
            and not lower.startswith("x-stainless-")
        ]
        headers.append((b"x-request-id", self._call.request_id.encode()))
        try:
            self._response = response = await route.client_to(url).request(
                request.method,
                url.raw_path.decode("ascii"),
                headers,
                await request.aread(),
                connect_s_max=self._call.connect_s_max,
                head_s_max=self._left_s,
            )
        except TransportError as error:
            self._fail(from_transport(error, backend.name))
        except ValueError as error:
            self._fail(
                UpstreamRefused("The backend is not configured.", detail=f"{backend.name}: {error}")
            )
        if response.status >= 300:
            self._fail(await _refusal(response, backend.name))
        page = response.headers.get("content-type", "").startswith("text/html")
        if page and self._call.request.stream:
            self._fail(UpstreamBroken("The backend sent a web page.", detail=backend.name))
        if not self._call.request.stream:
            self.spoke()
        return httpx.Response(
            response.status, headers=list(response.headers.items()), stream=_Body(self)
        )

    def _fail(self, error: UpstreamError) -> NoReturn:
        self.error = self.error or error  # the first is the cause
        # No subclass: litellm repeats requests that failed to connect.
        raise httpx.TransportError(error.message)

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end."""
        if self._response is None:
            return b""
        try:
            block = await self._response.read(idle_s_max=self._left_s)
        except TransportError as error:
            self._fail(from_transport(error, self._call.backend.name))
        if not self._call.request.stream:
            self.spoke()
        if not self.tail and block.startswith(_BOM):  # the SDK would lose the first event
            if block == _BOM:
                return await self.read()
            block = block.removeprefix(_BOM)
        self.tail = self.tail[-_TAIL_BYTES:] + block
        self.ended = self.ended or self.end_mark.search(self.tail) is not None
        return block

    async def farewell(self) -> None:
        """Take the end of a body that was read to its last event: the connection serves again."""
        if self._response is not None:
            try:
                while await self._response.read(idle_s_max=FAREWELL_S_MAX):
                    pass
            except TransportError:
                pass  # the connection is lost, nothing else
        self.close()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()

    def check(self) -> None:
        """Raises what litellm made an answer of its own out of (it knows such cases)."""
        if self.error is not None:
            raise self.error

    def failure(self, error: Exception) -> UpstreamError:
        """What went wrong, from the best witness: the transport, the vendor's words, litellm."""
        backend = self._call.backend.name
        if self.error is not None:
            return self.error
        event = _error_in(self.tail)
        if event is not None:
            return from_event(event, backend)
        names = (base.__name__ for base in type(error).__mro__)
        kind, code, message = next(
            (_BY_EXCEPTION[name] for name in names if name in _BY_EXCEPTION), _ELSE
        )
        return kind(
            message,
            detail=f"{backend}: {clean(f'{type(error).__name__}: {error}', 500)}",
            upstream_code=code,
        )


async def _refusal(response: HttpResponse, backend: str) -> UpstreamError:
    try:
        body = await read_all(response, ERROR_BYTES_MAX, ERROR_S_MAX)
    except TransportError:
        body = b""  # the status says enough
    return from_status(response.status, body, response.headers, backend)


def _error_in(tail: bytes) -> Mapping[str, Any] | None:
    """The error document at the end of what was read: a whole body, or a stream's last event."""
    for text in (tail, *(line.partition(b"data:")[2] for line in reversed(tail.splitlines()))):
        if b'"error"' in text:
            try:
                document = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue
            if isinstance(document, dict) and document.get("error"):
                return document
    return None


# litellm's and openai's classes by name; the nearest in the method resolution order decides.
_BY_EXCEPTION: Final[Mapping[str, tuple[type[UpstreamError], str, str]]] = {
    "ContextWindowExceededError": (
        UpstreamRejected,
        "context_length_exceeded",
        "The request is longer than the model's context.",
    ),
    "ContentPolicyViolationError": (
        UpstreamRejected,
        "content_filter",
        "The backend's content filter refused the request.",
    ),
    "UnsupportedParamsError": (
        UpstreamRefused,
        "unsupported_parameter",
        "The backend does not support a parameter of the request.",
    ),
    "BadRequestError": (
        UpstreamRejected,
        "invalid_value",
        "The request cannot be translated for the backend.",
    ),
    "AuthenticationError": (
        UpstreamRefused,
        "invalid_api_key",
        "The backend does not accept calls from this gateway.",
    ),
    "NotFoundError": (
        UpstreamRefused,
        "model_not_found",
        "The backend does not accept calls from this gateway.",
    ),
    "ImportError": (
        UpstreamRefused,
        "not_installed",
        "The backend is not configured.",
    ),
    "RateLimitError": (UpstreamBusy, "rate_limit_exceeded", "The backend is at capacity."),
    "ServiceUnavailableError": (UpstreamBusy, "service_unavailable", "The backend is at capacity."),
    "APITimeoutError": (UpstreamTimeout, "timeout", "The backend did not answer in time."),
    "TimeoutError": (UpstreamTimeout, "timeout", "The backend did not answer in time."),
}


_ELSE: Final = (
    UpstreamBroken,
    "invalid_answer",
    "The backend sent something that is not a proper answer.",
)


class _Body(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while block := await self._exchange.read():
            yield block

    async def aclose(self) -> None:
        """The exchange is ended by its reply: litellm and the SDK also close what they read."""


class _Transport(httpx.AsyncBaseTransport):
    """What every asynchronous HTTP client of litellm sends through."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = _EXCHANGE.get(None)
        if exchange is None:
            raise httpx.TransportError("litellm may not call anybody by itself")
        response = await exchange.send(request)
        response.request = request
        return response


class _Refusing(httpx.BaseTransport):
    """What its synchronous ones send through: nothing we ask for is done that way."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        raise httpx.TransportError("litellm may not call anybody by itself")


# ---- litellm ---------------------------------------------------------------------------------

_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else a price file is downloaded by the import
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",  # and a header list by the first call
    "LITELLM_MODE": "PRODUCTION",  # else a .env file in the working directory is loaded
}


@dataclass(frozen=True, slots=True)
class _Sdk:
    """litellm, ready for use. While `silent` is set it logs nothing and starts no logging tasks."""

    module: Any
    silent: ContextVar[bool]


_ready: _Sdk | None = None
_loading: Final = threading.Lock()


async def _sdk() -> _Sdk:
    """Takes seconds the first time, in a thread. Raises ImportError or AttributeError."""
    return await asyncio.to_thread(_load) if _ready is None else _ready


def _load() -> _Sdk:
    """Import and tame."""
    global _ready  # noqa: PLW0603 - a module is one per process, and so is this
    with _loading:
        if _ready is None:
            _ready = _tamed()
            asyncio.run(_rehearse(_ready))
        return _ready


def _tamed() -> _Sdk:
    os.environ.update(_ENVIRONMENT)
    litellm: Any = importlib.import_module("litellm")
    handlers: Any = importlib.import_module("litellm.llms.custom_httpx.http_handler")
    handlers.AsyncHTTPHandler.create_client = lambda *_, **__: _client()
    handlers.HTTPHandler.create_client = lambda *_, **__: httpx.Client(transport=_Refusing())
    litellm.aclient_session = _client()
    litellm.client_session = httpx.Client(transport=_Refusing())
    for name in ("callbacks", "input_callback", "success_callback", "failure_callback"):
        setattr(litellm, name, [])
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.drop_params = litellm.modify_params = False
    litellm.num_retries = 0
    litellm.cache = None
    litellm.model_fallbacks = None
    context: Any = importlib.import_module("litellm._internal_context")
    return _Sdk(litellm, context.is_internal_call)


async def _rehearse(sdk: _Sdk) -> None:
    """A first call that gets nowhere: it imports another second's worth, here, off the loop."""
    sdk.silent.set(True)
    with contextlib.suppress(Exception):
        await sdk.module.acompletion(
            model="rehearsal",
            custom_llm_provider="openai",
            messages=[{"role": "user", "content": "-"}],
            stream=True,
            api_key=_PLACEHOLDER,
            max_retries=0,
        )


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=_Transport(), trust_env=False)


# ---- the wire --------------------------------------------------------------------------------


class LitellmWire:
    """All backends of wire `litellm_sdk`. `secret` resolves a reference; `client` makes clients."""

    def __init__(
        self, secret: Callable[[str], str], client: ClientFactory = FastHttpClient
    ) -> None:
        self._secret = secret
        self._new_client = client
        self._routes: dict[tuple[object, ...], _Route] = {}
        self._let_go = LetGo()

    async def warm(self) -> None:
        """Load litellm now, off the loop; else the first call waits the seconds that it takes."""
        with contextlib.suppress(ImportError, AttributeError):
            await _sdk()

    async def open(self, call: Call) -> _StreamReply | _WholeReply:
        require_clearance(call)
        request, backend = call.request, call.backend
        try:
            sdk = await _sdk()
        except (ImportError, AttributeError) as error:
            raise UpstreamRefused(
                "The backend is not configured.",
                detail=f"{backend.name}: {error}: pip install 'weighbridge[litellm]'",
                upstream_code="not_installed",
            ) from None
        route = self._route(backend)
        if route.vendor not in sdk.module.provider_list:
            _refuse(f"litellm knows no vendor {route.vendor!r}.", backend)
        arguments = _arguments(call, route)
        exchange = _Exchange(route, call)
        token, silence = _EXCHANGE.set(exchange), sdk.silent.set(True)
        try:
            async with asyncio.timeout(arguments["timeout"]):
                answer = await getattr(sdk.module, _FUNCTION[request.endpoint])(**arguments)
                exchange.check()
                if request.stream:
                    return await _StreamReply.start(answer, exchange, call)
            await exchange.farewell()
            return _WholeReply(_whole(answer, request))
        except UpstreamError:
            exchange.close()
            raise
        except Exception as error:  # noqa: BLE001 - litellm raises anything
            exchange.close()
            # Not chained: litellm's exceptions carry the request, and with it the secret.
            raise exchange.failure(error) from None
        except BaseException:
            exchange.close()
            raise
        finally:
            _EXCHANGE.reset(token)
            sdk.silent.reset(silence)

    async def probe(self, backend: Backend) -> None:
        if backend.health_path is None:
            return
        route = self._route(backend)
        if route.origin is None:  # the vendor's own address: litellm alone knows it
            return
        try:
            client = route.client = route.client or route.connect(route.origin)
            response = await client.request(
                "GET", backend.health_path, [], b"", connect_s_max=1.0, head_s_max=2.0
            )
            try:
                await read_all(response, ERROR_BYTES_MAX, 2.0)
            finally:
                response.close()
        except TransportError as error:
            raise from_transport(error, backend.name) from error
        if response.status != 200:
            raise UpstreamBroken("The backend is not healthy.", status=response.status)

    async def renew(self) -> None:
        clients = [route.client for route in self._routes.values()]
        self._routes.clear()
        await self._let_go.add(client for client in clients if client is not None)

    async def aclose(self) -> None:
        await self.renew()
        await self._let_go.aclose()

    def _route(self, backend: Backend) -> _Route:
        if (known := self._routes.get(place(backend))) is not None:
            return known
        try:
            route = self._new_route(backend)
        except Exception as error:
            # The text of the error may name the reference, never the value.
            raise UpstreamRefused(
                "The backend is not configured.", detail=f"{backend.name}: {error}"
            ) from error
        self._routes[place(backend)] = route
        return route

    def _new_route(self, backend: Backend) -> _Route:
        vendor = backend.vendor or ""
        origin = None
        if backend.base_url:
            origin, _ = Origin.parse(backend.base_url)
        else:
            for suffix in ("API_BASE", "BASE_URL", "API_URL"):
                if (name := f"{vendor.upper()}_{suffix}") in os.environ:
                    raise ValueError(f"{name} would divert it: say base_url, or unset that")
        key = None if vendor in _AMBIENT else _PLACEHOLDER
        if backend.secret is not None:
            resolved = self._secret(backend.secret)
            key = key and resolved

        def connect(origin: Origin) -> HttpClient:
            return self._new_client(
                origin,
                network=network_of(origin, backend),
                headers=[(name.encode(), value.encode()) for name, value in backend.headers],
                limits=HttpLimits(connections_max=backend.limits.concurrency_max + 1),
            )

        return _Route(vendor, key, dict(parse_qsl(backend.query)), connect, origin)


# ---- replies ---------------------------------------------------------------------------------

_FINISH_REASONS: Final = frozenset(
    {"stop", "length", "tool_calls", "content_filter", "function_call"}
)


_END: Final = object()


class _StreamReply:
    """A stream: one chunk of litellm's is one piece."""

    streamed = True
    __slots__ = (
        "_alias",
        "_backend",
        "_choices",
        "_chunks",
        "_created",
        "_ended",
        "_exchange",
        "_finish_late",
        "_finished",
        "_heard",
        "_id",
        "_primed",
        "_request_id",
        "_usage",
        "_usage_wanted",
    )

    def __init__(self, chunks: AsyncIterator[Any], exchange: _Exchange, call: Call) -> None:
        self._chunks = chunks
        self._exchange = exchange
        self._backend = call.backend.name
        self._request_id = call.request_id
        self._alias = call.request.alias
        self._usage_wanted = call.request.usage_wanted
        self._id: str | None = None
        self._created = int(time.time())
        self._choices: set[int] = set()
        self._finish_late: dict[int, str] | None = None
        self._usage: dict[str, Any] = {}
        self._heard = Heard(call.request.prompt_tokens)
        self._finished = self._ended = False
        self._primed: Piece | None = None

    @classmethod
    async def start(cls, wrapper: Any, exchange: _Exchange, call: Call) -> _StreamReply:
        """Wait for the first chunk: some vendors' requests are sent only now."""
        if getattr(wrapper, "completion_stream", None) is None:
            await wrapper.fetch_stream()
        chunks = wrapper.completion_stream
        reply = cls(aiter(chunks), exchange, call)
        mark = _FINISH_MARKS.get(type(chunks).__module__.rpartition(".")[2])
        if mark is not None:
            exchange.end_mark, reply._finish_late = mark, {}
        reply._primed = await reply.next()
        if reply._primed is None:
            raise UpstreamBroken("The backend sent an empty stream.", detail=call.backend.name)
        return reply

    async def next(self) -> Piece | None:
        if self._primed is not None:
            primed, self._primed = self._primed, None
            return primed
        while not self._ended:
            try:
                chunk = await anext(self._chunks, _END)
                if chunk is None:  # some translators answer so to what says nothing
                    continue
                piece = await self._end() if chunk is _END else self._piece(chunk)
            except UpstreamError:
                self.close()
                raise
            except Exception as error:  # noqa: BLE001 - litellm raises anything
                self.close()
                raise self._exchange.failure(error) from None
            if piece is not None:
                return piece
        return None

    def close(self) -> None:
        self._exchange.close()

    def _piece(self, chunk: Any) -> Piece | None:
        document = _document(chunk)
        piece = Piece(b"")
        raw_usage = document.pop("usage", None)
        if isinstance(raw_usage, dict):
            self._usage = merged(self._usage, raw_usage)
            self._heard.figures(_reported(self._usage))
        self._heard.tier(document)
        if self._id is None and (known := document.get("id")):
            self._id, self._created = known, document.get("created") or self._created
        choices = [c for c in document.get("choices") or () if self._tidy(c, piece)]
        self._finished = self._finished or piece.finished
        piece.usage = self._heard.news(whole=self._finished)
        if piece.content or self._finished:
            self._exchange.spoke()
        if choices:
            piece.data = self._event(document, choices)
        return piece if choices or piece.usage is not None else None

    def _tidy(self, choice: dict[str, Any], piece: Piece) -> bool:
        """Bring a choice into OpenAI's shape; whether it says anything."""
        index = choice.setdefault("index", 0)
        delta = choice.setdefault("delta", {})
        _lift(delta)
        finish = choice.setdefault("finish_reason", None)
        if finish and self._finish_late is not None:
            self._finish_late[index] = finish
            finish = choice["finish_reason"] = None
        if not finish and all(value in ("", None) for value in delta.values()):
            return False
        if index not in self._choices:
            self._choices.add(index)
            delta["role"] = "assistant"
        else:
            delta.pop("role", None)
        if finish:
            piece.finished = True
            if finish not in _FINISH_REASONS:
                choice["finish_reason"] = _finish_reason(finish)
        chars = said(delta)
        if chars:
            piece.content = True
            piece.content_chunks += 1
            piece.content_chars += chars
        return True

    async def _end(self) -> Piece | None:
        self._ended = True
        if not (self._exchange.ended or self._finished):
            raise UpstreamBroken(
                "The backend ended the stream before it was finished.", detail=self._backend
            )
        await self._exchange.farewell()
        last = Piece(b"", usage=self._heard.news(whole=True))
        if self._finish_late:
            choices = [
                {"index": index, "delta": {}, "finish_reason": finish}
                for index, finish in self._finish_late.items()
            ]
            last.data, last.finished = self._event({}, choices), True
        if self._usage_wanted and _reported(self._usage) is not None:
            last.data += self._event({}, [], usage=self._usage)
        return last if last.data or last.usage is not None else None

    def _event(self, document: dict[str, Any], choices: list[Any], **more: object) -> bytes:
        named = {
            **document,
            "id": self._id or f"chatcmpl-{self._request_id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._alias,
            "choices": choices,
            **more,
        }
        return b"data: %b\n\n" % orjson.dumps(named)


def _document(chunk: Any) -> dict[str, Any]:
    """A chunk of any of litellm's three shapes as a document in OpenAI's."""
    if not isinstance(chunk, dict):  # openai's ChatCompletionChunk, litellm's ModelResponseStream
        dumped: dict[str, Any] = chunk.model_dump(exclude_none=True, warnings=False)
        return dumped
    delta: dict[str, Any] = {}  # litellm's GenericStreamingChunk
    if chunk.get("text"):
        delta["content"] = chunk["text"]
    if chunk.get("tool_use"):
        delta["tool_calls"] = [chunk["tool_use"]]
    finish = chunk.get("finish_reason") if chunk.get("is_finished") else None
    return {
        "choices": [
            {"index": chunk.get("index", 0), "delta": delta, "finish_reason": finish or None}
        ],
        "usage": chunk.get("usage"),
    }


def _finish_reason(word: str) -> str:
    mapped: str = importlib.import_module(
        "litellm.litellm_core_utils.core_helpers"
    ).map_finish_reason(word)
    return mapped


def _lift(message: dict[str, Any]) -> None:
    """Undo litellm's drawer for what it has no field for, e.g. `refusal`; drop what is empty."""
    drawer = message.pop("provider_specific_fields", None)
    for name, value in drawer.items() if isinstance(drawer, dict) else ():
        if value is not None:
            message.setdefault(name, value)
    if not message.get("annotations", True):
        del message["annotations"]


def _reported(raw: dict[str, Any]) -> Usage | None:
    """litellm writes zeros where the vendor reported nothing; no call costs no token at all."""
    usage = usage_of(raw)
    return usage if usage is not None and (usage.prompt or usage.output) else None


class _WholeReply:
    """An answer that is not streamed: one piece."""

    streamed = False
    __slots__ = ("_piece",)

    def __init__(self, piece: Piece) -> None:
        self._piece: Piece | None = piece

    async def next(self) -> Piece | None:
        piece, self._piece = self._piece, None
        return piece

    def close(self) -> None:
        """Nothing runs any more."""


def _whole(answer: Any, request: ModelRequest) -> Piece:
    document: dict[str, Any] = answer.model_dump(exclude_none=True, warnings=False)
    document["model"] = request.alias
    heard = Heard(request.prompt_tokens)
    heard.tier(document)
    usage = _reported(document.get("usage") or {})
    if usage is None:
        document.pop("usage", None)
    heard.figures(usage)
    for choice in document.get("choices") or ():
        _lift(choice)
        if isinstance(message := choice.get("message"), dict):
            _lift(message)
            message.setdefault("content", None)
    return Piece(
        data=orjson.dumps(document),
        content=True,
        content_chars=whole_chars(document),
        finished=True,
        usage=heard.news(whole=True),
    )
