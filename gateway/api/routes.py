"""The routes that are not hot, on FastAPI: models, health, metrics; and what no route matches.

The three model endpoints are answered before FastAPI is asked (`App`): the framework costs more
than the whole rest of the way of a request.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from gateway import __version__
from gateway.api.auth import Keys, visible_aliases
from gateway.api.errors import error_body, error_headers, status_of
from gateway.api.hot import HotEndpoint, Receive, Scope, Send
from gateway.dispatch import Dispatch
from gateway.domain.caller import Caller
from gateway.domain.catalog import Alias
from gateway.domain.errors import (
    Forbidden,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    UnknownAlias,
)
from gateway.telemetry import Telemetry


class App:
    """The whole ASGI application: hot paths by one dictionary look-up, the rest by FastAPI."""

    def __init__(self, hot: Mapping[str, HotEndpoint], rest: FastAPI) -> None:
        self._hot = hot
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            endpoint = self._hot.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await self._rest(scope, receive, send)


def build_rest(
    *,
    dispatch: Dispatch,
    keys: Keys,
    telemetry: Telemetry,
    readiness: Callable[[], Mapping[str, Any]],
    since: int,
) -> FastAPI:
    """FastAPI with everything but the hot endpoints.

    `readiness()["ready"]` decides 200 or 503; `since` (seconds of the epoch) is what models are
    said to be created at, where the catalog does not say.
    """
    rest = FastAPI(
        title="Weighbridge",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )

    async def caller(request: Request) -> Caller:
        headers = dict(request.scope["headers"])
        return keys.known(headers) or await keys.verify(headers)

    @rest.get("/v1/models")
    async def models(request: Request) -> Response:
        catalog = dispatch.rules.catalog
        names = sorted(visible_aliases(await caller(request), catalog))
        return _json({"object": "list", "data": [_model(catalog.aliases[n], since) for n in names]})

    @rest.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        catalog = dispatch.rules.catalog
        name = unquote(name)  # SDKs quote the slash of `team/model`; the server unquotes no path
        if name not in visible_aliases(await caller(request), catalog):
            raise UnknownAlias(f"The model {name!r} does not exist.", param="model")
        return _json(_model(catalog.aliases[name], since))

    @rest.get("/livez")
    async def livez() -> Response:
        return _json({"status": "ok"})

    @rest.get("/readyz")
    async def readyz(request: Request) -> Response:
        state = readiness()
        if "policy_error" in state and not _is_loopback(request):  # paths, and what files say
            state = {**state, "policy_error": "something does not load; the log says what"}
        return _json(state, status=200 if state["ready"] else 503)

    @rest.get("/metrics")
    async def metrics(request: Request) -> Response:
        # Costs and names of aliases are the company's business: this machine, or an admin key.
        if not _is_loopback(request) and not (await caller(request)).admin:
            raise Forbidden("Metrics are for this machine and for admin keys.")
        return Response(telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _speak_openai_errors(rest, dispatch.new_id)
    rest.add_middleware(_WithRequestId, new_id=dispatch.new_id)
    return rest


class _WithRequestId:
    """Every answer has an id to ask about, as those of the hot endpoints do."""

    def __init__(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                header = (b"x-request-id", self._new_id().encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        await self._app(scope, receive, with_id)


def _model(alias: Alias, since: int) -> dict[str, Any]:
    return {
        "id": alias.name,
        "object": "model",
        "created": alias.created or since,
        "owned_by": "weighbridge",
    }


def _is_loopback(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _json(body: Mapping[str, Any], *, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def _speak_openai_errors(rest: FastAPI, new_id: Callable[[], str]) -> None:
    def answer(error: GatewayError, status: int | None = None) -> Response:
        headers = {k.decode(): v.decode() for k, v in error_headers(error)}
        return Response(
            error_body(error),
            status_code=status or status_of(error),
            headers=headers,
            media_type="application/json",
        )

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, GatewayError)
        return answer(error)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"]
        if error.status_code == 404:
            return answer(NotFound(f"There is no {path} here."))
        if error.status_code == 405:
            return answer(MethodNotAllowed(f"{request.method} is not allowed on {path}."))
        return answer(InvalidRequest(str(error.detail)), error.status_code)

    async def validation(_: Request, error: Exception) -> Response:
        return answer(InvalidRequest(str(error)))

    async def unexpected(_: Request, __: Exception) -> Response:
        response = answer(InternalError("The gateway failed inside."))
        response.headers["x-request-id"] = new_id()  # Starlette answers this outside of middleware
        return response

    rest.add_exception_handler(GatewayError, ours)
    rest.add_exception_handler(HTTPException, framework)
    rest.add_exception_handler(RequestValidationError, validation)
    rest.add_exception_handler(Exception, unexpected)
