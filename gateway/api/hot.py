"""The hot endpoints as plain ASGI callables: body in, answer out, the client watched all the while.

One path for streaming and not. Status and headers go out only when the first content is here, so
that a failure before it has its true status; from then on a failure is an error event and the end.
If a stream says nothing for `first_status_s_max`, the head goes out all the same with keep-alive
comments, because proxies between cut silent connections; fallback is still possible then.

The client is watched from the end of the body to the last byte: when it leaves, the handler's task
is cancelled, upstream is closed and the trip is settled as `client_cancelled`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from gateway.api.auth import Keys, check_scopes
from gateway.api.errors import error_body, error_event, error_headers, status_of
from gateway.api.wire import BodyLimits, parse
from gateway.dispatch import Answer, Dispatch, Trip
from gateway.domain.errors import (
    BodyTooLarge,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    RequestTooSlow,
    WrongContentType,
)
from gateway.domain.money import usd
from gateway.domain.request import Endpoint
from gateway.limits import headers as limit_headers
from gateway.runtime import TaskOwner
from gateway.sessions import session_key

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# One newline only: a comment followed by an empty line makes openai-python parse an empty event
# once a stream carries `id:` lines.
KEEPALIVE = b": keepalive\n"
DONE = b"data: [DONE]\n\n"
JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
# A duplicate of one of these lets two readers of one request see two different requests.
SINGULAR = (b"authorization", b"host", b"content-length", b"content-type")


@dataclass(frozen=True, slots=True, kw_only=True)
class HotLimits:
    """Bounds of a request on its way in, and of silence on the way out."""

    body_bytes_max: int
    body_s_max: int
    keepalive_s: int
    first_status_s_max: int
    body: BodyLimits


class ClientGone(Exception):
    """The client closed the connection."""


class HotEndpoint:
    """One of the three model endpoints."""

    def __init__(
        self,
        endpoint: Endpoint,
        dispatch: Dispatch,
        keys: Keys,
        limits: HotLimits,
        tasks: TaskOwner,
    ) -> None:
        self._endpoint = endpoint
        self._dispatch = dispatch
        self._keys = keys
        self._limits = limits
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trip = self._dispatch.arrive(self._endpoint.value)
        stage = _Stage(send, trip.record.id.encode())
        watch = _Watch(scope, receive, self._tasks)
        answer: Answer | None = None
        try:
            headers = await self._admit(scope, trip)
            body = await self._body(headers, receive, trip)
            watch.start()
            answer = await self._answer(headers, body, trip, stage)
            await self._deliver(answer, stage)
        except GatewayError as error:
            await self._fail(trip, stage, error)
        except ClientGone:
            self._dispatch.leave(trip)
        except asyncio.CancelledError:
            if not watch.gone:  # not the client: the server is ending us
                await self._cut_short(trip, answer, stage)
            else:
                if answer is not None:
                    answer.abandon()
                self._dispatch.leave(trip)
            # Either way it is obeyed; raised further the server would log it as a failure of ours.
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        except Exception:
            failure = InternalError("The gateway failed inside.")
            if answer is not None:
                answer.abandon(failure)
            await self._fail(trip, stage, failure)
            raise
        finally:
            watch.stop()
            stage.stop()

    async def _cut_short(self, trip: Trip, answer: Answer | None, stage: _Stage) -> None:
        """The drain deadline has passed: say so, and write down that it was us."""
        ending = Overloaded("This gateway is shutting down.")
        if answer is not None:
            answer.abandon(ending)
        await self._fail(trip, stage, ending)

    # --- in -------------------------------------------------------------------------------------

    async def _admit(self, scope: Scope, trip: Trip) -> Mapping[bytes, bytes]:
        """The headers. Who is refused for them is refused before a byte of the body is read."""
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"Use POST for {scope['path']}.")
        raw: Headers = scope["headers"]
        headers = dict(raw)
        if len(headers) != len(raw):
            _refuse_duplicates(raw)
        self._dispatch.check_room()
        trip.caller = self._keys.known(headers) or await self._keys.verify(headers)
        kind = headers.get(b"content-type", b"application/json")
        if not kind.startswith(b"application/json"):
            raise WrongContentType("Send the body as application/json.")
        return headers

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, trip: Trip) -> bytes:
        """The whole body, bounded in bytes and in time."""
        trip.received = trip.started
        limit = self._limits.body_bytes_max
        announced = headers.get(b"content-length", b"")
        too_large = announced.isdigit() and int(announced) > limit
        parts: list[bytes] = []
        size, more = 0, True
        while more and not too_large:
            message = await self._next_part(receive)
            more = message.get("more_body", False)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            too_large = size > limit
            if more and self._dispatch.now() - trip.started > self._limits.body_s_max:
                raise RequestTooSlow("The body did not arrive in time.")
        if too_large:
            raise BodyTooLarge(f"The body is larger than {limit} bytes.")
        if len(parts) == 1:
            return parts[0]
        trip.received = self._dispatch.now()
        return b"".join(parts)

    async def _next_part(self, receive: Receive) -> MutableMapping[str, Any]:
        try:
            async with asyncio.timeout(self._limits.body_s_max):
                message = await receive()
        except TimeoutError:
            raise RequestTooSlow("The body did not arrive in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def _answer(
        self, headers: Mapping[bytes, bytes], body: bytes, trip: Trip, stage: _Stage
    ) -> Answer:
        caller = trip.caller
        assert caller is not None
        request = parse(self._endpoint, body, self._limits.body)
        check_scopes(caller, request.alias, self._endpoint, trip.rules.catalog)
        found = session_key(caller.key_id, request.alias, headers, request.document)
        asked = headers.get(b"x-weighbridge-privacy")
        if request.stream:
            stage.promise(self._limits.first_status_s_max, self._limits.keepalive_s, self._tasks)
        return await self._dispatch.answer(
            trip,
            caller,
            request,
            privacy=asked.decode("latin-1") if asked is not None else None,
            session=found[0] if found is not None else None,
        )

    # --- out ------------------------------------------------------------------------------------

    async def _deliver(self, answer: Answer, stage: _Stage) -> None:
        trip = answer.trip
        headers = _answer_headers(answer, self._dispatch.now())
        if not answer.streamed:
            cost = trip.record.cost_nano_usd
            if cost is not None:
                headers.append((b"x-weighbridge-cost-usd", usd(cost).encode()))
            headers.append(JSON)
            await stage.whole(200, headers, answer.first)
            return
        headers.append(EVENT_STREAM)
        headers.append((b"cache-control", b"no-cache"))
        headers.append((b"x-accel-buffering", b"no"))  # nginx: do not hold our chunks
        await stage.begin(200, headers)
        await stage.part(answer.first)
        while (data := await answer.next()) is not None:
            if data:
                await stage.part(data)
        await stage.finish(DONE)

    async def _fail(self, trip: Trip, stage: _Stage, error: GatewayError) -> None:
        status = status_of(error)
        self._dispatch.refuse(trip, error, status)
        if stage.started:
            await stage.finish(error_event(error))
            return
        headers = [
            (b"x-request-id", trip.record.id.encode()),
            (b"x-weighbridge-policy", trip.rules.label.encode()),
            JSON,
            *error_headers(error),
        ]
        headers += limit_headers(trip.admission)
        if isinstance(error, RequestTooSlow | BodyTooLarge):
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        await stage.whole(status, headers, error_body(error))


def _refuse_duplicates(headers: Headers) -> None:
    names = [name for name, _ in headers]
    for name in SINGULAR:
        if names.count(name) > 1:
            raise InvalidRequest(f"The header {name.decode()} may be sent only once.")


def _answer_headers(answer: Answer, now: float) -> Headers:
    trip = answer.trip
    record = trip.record
    upstream_ms = answer.upstream_s * 1000
    own_ms = (now - trip.started) * 1000 - upstream_ms
    headers = [
        (b"x-request-id", record.id.encode()),
        (b"x-weighbridge-policy", trip.rules.label.encode()),
        (b"x-weighbridge-reason", answer.candidate.why.encode()),
        (
            b"server-timing",
            b"upstream;dur=%.1f, overhead;dur=%.2f" % (upstream_ms, own_ms),
        ),
    ]
    if trip.admission.standings:
        headers += limit_headers(trip.admission)
    if trip.caller is not None and trip.caller.debug:
        target = answer.candidate.target
        headers.append((b"x-weighbridge-backend", target.backend.encode()))
        headers.append((b"x-weighbridge-model", target.model.encode()))
        if answer.backend.simulated:
            headers.append((b"x-weighbridge-simulated", b"true"))
    return headers


class _Stage:
    """What has gone out to the client. Keeps a silent stream alive."""

    __slots__ = ("_id", "_last", "_lock", "_send", "_tasks", "_timer", "_wait_s", "started")

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._id = request_id
        self.started = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: TaskOwner | None = None
        self._wait_s = 0.0
        self._last = 0.0
        self._lock = False

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Head and body at once."""
        self.started = True
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        """The head of a stream, unless silence has forced it out already."""
        if not self.started:
            self.started = True
            if self._timer is not None:  # the wait for a status is over, that for more begins
                self._timer.cancel()
                self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._silent)
            await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, data: bytes) -> None:
        self._last = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes) -> None:
        """The last bytes."""
        self.stop()
        await self._send({"type": "http.response.body", "body": data})

    # --- silence ----------------------------------------------------------------------------------

    def promise(self, first_status_s_max: float, keepalive_s: float, tasks: TaskOwner) -> None:
        """From now on the client hears something at least this often."""
        loop = asyncio.get_running_loop()
        self._tasks, self._wait_s, self._last = tasks, keepalive_s, loop.time()
        self._timer = loop.call_later(first_status_s_max, self._silent)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _silent(self) -> None:
        loop = asyncio.get_running_loop()
        silent_s = loop.time() - self._last
        if silent_s >= self._wait_s:
            if not self._lock:  # else the last comment still waits: the client does not read
                assert self._tasks is not None
                self._lock = True
                self._tasks.start(self._keep_alive(), "keepalive")
            silent_s = 0.0
        self._timer = loop.call_later(self._wait_s - silent_s, self._silent)

    async def _keep_alive(self) -> None:
        try:
            await self.begin(200, [(b"x-request-id", self._id), EVENT_STREAM])
            if self._timer is not None:
                await self.part(KEEPALIVE)
        finally:
            self._lock = False


class _Watch:
    """Cancels the handler when its client leaves.

    Our own server calls back from `connection_lost`; before any other ASGI server a task waits on
    `receive`.
    """

    __slots__ = ("_connection", "_handler", "_receive", "_task", "_tasks", "gone")

    def __init__(self, scope: Scope, receive: Receive, tasks: TaskOwner) -> None:
        self._connection = scope.get("weighbridge.connection")
        self._receive = receive
        self._tasks = tasks
        self._handler = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    def start(self) -> None:
        """From the end of the body on."""
        if self._connection is not None:
            self._connection.on_client_gone = self._left
        else:
            self._task = self._tasks.start(self._wait(), "client watch")

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.on_client_gone = None
        elif self._task is not None:
            self._task.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        if not self.gone and self._handler is not None and not self._handler.done():
            self.gone = True
            self._handler.cancel()


def known_paths() -> Mapping[str, Endpoint]:
    """The paths served here."""
    return {f"/v1/{endpoint.value}": endpoint for endpoint in Endpoint}
