"""What a caller can get wrong: each has its status, its error object, its row, and goes nowhere.

One table. `rule` is what the message must name, so that the caller can mend it without asking us.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from gateway.domain.outcome import Outcome
from tests.chaos.load import CHAT, call, chat, client, raw, request_bytes, status_of
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.vendor import Script, ScriptedVendor, vendor_in_loop

EMBEDDINGS = "/v1/embeddings"
BODY_BYTES = 200_000

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_input")]


@dataclass
class Place:
    running: GatewayProcess
    vendor: ScriptedVendor
    keys: Mapping[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    async with vendor_in_loop({"m": Script(tokens=2)}) as vendor:
        catalog = vendor_catalog(
            {"a": f"{vendor.url}/v1", "own": f"{vendor.url}/v1"},
            aliases={
                "chat": ["a/m"],
                "blind": ["a/blind"],
                "short": ["a/short"],
                "vectors": ["a/vectors"],
                "confidential-chat": ["a/m", "own/m"],
            },
            own={"kind": "self_hosted", "cleared_for": "restricted"},
        )
        catalog["aliases"]["confidential-chat"]["privacy_floor"] = "confidential"
        models = catalog["backends"]["a"]["models"]
        models["blind"] = {**models["m"], "capabilities": []}
        models["short"] = {**models["m"], "context_tokens": 300}
        models["vectors"] = {**models["m"], "endpoints": ["embeddings"]}
        limits = {"WEIGHBRIDGE_BODY_BYTES_MAX": str(BODY_BYTES)}
        async with gateway_beside(catalog, environment=limits) as running:
            keys = await keys_of(running)
            yield Place(running, vendor, keys)


async def keys_of(running: GatewayProcess) -> dict[str, str]:
    """Keys of several scopes, made at the store: a process for each would cost seconds."""
    from gateway.domain.keys import Scopes
    from gateway.domain.request import Endpoint
    from gateway.ledger.keys import KeyStore
    from gateway.ledger.store import Store
    from gateway.settings import Settings

    settings = Settings.load(running.environment)
    store = await Store.connect(settings.ledger_url)
    try:
        keys = KeyStore(store, pepper=settings.key_pepper, home=settings.home)

        async def make(**scopes: Any) -> tuple[str, str]:
            made = await keys.create(Scopes(name="test", **scopes))
            assert made is not None
            return made[0].id, made[1]

        revoked_id, revoked = await make()
        await keys.revoke(revoked_id)
        return {
            "plain": running.key,
            "revoked": revoked,
            "only_vectors_alias": (await make(aliases=frozenset({"vectors"})))[1],
            "only_embeddings": (await make(endpoints=frozenset({Endpoint.EMBEDDINGS})))[1],
            "ceiling": (await make(privacy_ceiling="internal"))[1],
        }
    finally:
        await store.close()


@dataclass(frozen=True)
class Bad:
    """A request that must be refused, and how."""

    status: int
    code: str
    document: Mapping[str, Any] | bytes = field(default_factory=chat)
    param: str | None = None
    says: str = ""
    key: str | None = "plain"
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = CHAT
    outcome: Outcome = Outcome.REFUSED


def with_image(model: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    return chat(model=model, messages=[{"role": "user", "content": [image]}])


INVALID = (400, "invalid_value")
UNSUPPORTED = (400, "unsupported_parameter")
NO_KEY = (401, "invalid_api_key")
NOT_FOUND = (404, "model_not_found")
USER = {"role": "user", "content": "hi"}

TABLE = {
    # The body as a whole.
    "no JSON": Bad(*INVALID, b"{model: chat}", says="not valid JSON"),
    "empty body": Bad(*INVALID, b"", says="not valid JSON"),
    "half a body": Bad(*INVALID, b'{"model": "chat", "messages": [', says="not valid JSON"),
    "NaN": Bad(*INVALID, b'{"model":"chat","messages":[],"x":NaN}', says="not valid JSON"),
    "a list": Bad(*INVALID, b"[]", says="JSON object"),
    "not UTF-8": Bad(*INVALID, b'{"model":"\xff\xfe"}', says="not valid JSON"),
    "oversized": Bad(413, "request_too_large", chat("x" * BODY_BYTES), says=str(BODY_BYTES)),
    "too deep": Bad(413, "request_too_large", b"[" * 65 + b"]" * 65, says="64"),
    "too many messages": Bad(
        413, "request_too_large", chat(messages=[USER] * 2049), "messages", "2048"
    ),
    "wrong content type": Bad(
        415, "unsupported_content_type", headers={"content-type": "text/plain"}, says="json"
    ),
    # Fields.
    "no model": Bad(*INVALID, {"messages": [USER]}, "model"),
    "model of a wrong type": Bad(*INVALID, chat(model=7), "model"),
    "no messages": Bad(*INVALID, {"model": "chat"}, "messages"),
    "empty messages": Bad(*INVALID, chat(messages=[]), "messages", "empty"),
    "messages of a wrong type": Bad(*INVALID, chat(messages="hi"), "messages"),
    "message of a wrong type": Bad(*INVALID, chat(messages=["hi"]), "messages[0].role"),
    "unknown role": Bad(
        *INVALID, chat(messages=[USER, {"role": "god", "content": "x"}]), "messages[1].role"
    ),
    "no content": Bad(*INVALID, chat(messages=[{"role": "user"}]), "messages[0].content"),
    "content of a wrong type": Bad(
        *INVALID, chat(messages=[{"role": "user", "content": 7}]), "messages[0].content"
    ),
    "part without a type": Bad(
        *INVALID, chat(messages=[{"role": "user", "content": [{}]}]), "messages[0].content"
    ),
    "stream of a wrong type": Bad(*INVALID, chat() | {"stream": "yes"}, "stream"),
    "stream_options without stream": Bad(
        *INVALID, chat(stream_options={"include_usage": True}), "stream_options"
    ),
    "n too large": Bad(*INVALID, chat(n=17), "n", "16"),
    "n of zero": Bad(*INVALID, chat(n=0), "n"),
    "n of a wrong type": Bad(*INVALID, chat(n=True), "n"),
    "max_tokens of zero": Bad(*INVALID, chat(max_tokens=0), "max_tokens"),
    "max_tokens of a wrong type": Bad(*INVALID, chat(max_tokens="many"), "max_tokens"),
    "max_completion_tokens below zero": Bad(
        *INVALID, chat(max_completion_tokens=-1), "max_completion_tokens"
    ),
    "tools of a wrong type": Bad(*INVALID, chat(tools="hammer"), "tools"),
    "response_format of a wrong type": Bad(
        *INVALID, chat(response_format="json"), "response_format"
    ),
    "no input": Bad(*INVALID, {"model": "vectors"}, "input", path=EMBEDDINGS),
    "empty input": Bad(*INVALID, {"model": "vectors", "input": []}, "input", path=EMBEDDINGS),
    "no prompt": Bad(*INVALID, {"model": "chat"}, "prompt", path="/v1/completions"),
    # Destinations and credentials.
    **{
        f"{name} in the body": Bad(*UNSUPPORTED, chat(**{name: "http://evil.example"}), name)
        for name in ("api_base", "base_url", "api_key", "extra_headers", "custom_llm_provider")
    },
    # What no model behind the alias can do.
    "streamed embeddings": Bad(
        *UNSUPPORTED, {"model": "vectors", "input": "x", "stream": True}, "stream", path=EMBEDDINGS
    ),
    "an image for a blind model": Bad(*UNSUPPORTED, with_image("blind"), says="images"),
    "tools for one that has none": Bad(
        *UNSUPPORTED, chat(model="blind", tools=[{"type": "function"}]), says="tools"
    ),
    "chat with one for vectors": Bad(*UNSUPPORTED, chat(model="vectors")),
    "too long a prompt": Bad(
        400, "context_length_exceeded", chat("x" * 4000, model="short"), "messages"
    ),
    "too long an output": Bad(
        400, "context_length_exceeded", chat(model="short", max_tokens=4000), "messages"
    ),
    # Names.
    "unknown alias": Bad(*NOT_FOUND, chat(model="chatt"), "model", "Did you mean 'chat'"),
    "an alias unlike any": Bad(*NOT_FOUND, chat(model="zzz"), "model", "/v1/models"),
    "a backend's name": Bad(*NOT_FOUND, chat(model="a/m"), "model"),
    # Keys.
    "no key": Bad(*NO_KEY, key=None, says="keys create"),
    "a key of nobody": Bad(*NO_KEY, headers={"authorization": "Bearer sk-nobody"}),
    "an empty key": Bad(*NO_KEY, headers={"authorization": "Bearer"}),
    "basic authentication": Bad(*NO_KEY, headers={"authorization": "Basic YTpi"}),
    "a revoked key": Bad(*NO_KEY, key="revoked"),
    "a key without this alias": Bad(*NOT_FOUND, key="only_vectors_alias", param="model"),
    "a key without this endpoint": Bad(
        403, "insufficient_scope", key="only_embeddings", says="chat/completions"
    ),
    "above the key's ceiling": Bad(
        403,
        "insufficient_scope",
        key="ceiling",
        headers={"x-weighbridge-privacy": "restricted"},
        param="x-weighbridge-privacy",
        says="restricted",
    ),
    "an alias above the key's ceiling": Bad(
        403,
        "insufficient_scope",
        chat(model="confidential-chat"),
        key="ceiling",
        param="x-weighbridge-privacy",
    ),
    "unknown privacy class": Bad(
        *INVALID,
        headers={"x-weighbridge-privacy": "secret"},
        param="x-weighbridge-privacy",
        says="public, internal",
    ),
    "data that nobody may see": Bad(
        503,
        "no_eligible_backend",
        headers={"x-weighbridge-privacy": "restricted"},
        says="privacy",
        outcome=Outcome.NO_ROUTE,
    ),
}


@pytest.mark.parametrize("name", TABLE)
async def test_refused_and_written_down_and_sent_nowhere(place: Place, name: str) -> None:
    bad = TABLE[name]
    place.vendor.clear()
    auth = {} if bad.key is None else {"authorization": f"Bearer {place.keys[bad.key]}"}
    async with client(place.running.url) as http:
        answer = await call(http, bad.document, path=bad.path, headers={**auth, **bad.headers})
    assert answer.whole, answer
    error = answer.error
    assert error is not None, answer
    assert (answer.status, error["code"]) == (bad.status, bad.code), error
    assert error["param"] == bad.param, error
    assert set(error) == {"message", "type", "param", "code"}
    assert bad.says in error["message"], error
    assert place.vendor.received == 0
    async with asyncio.timeout(10):
        while not (found := [r for r in await place.running.ledger() if r["id"] == answer.id]):
            await asyncio.sleep(0.05)
    (row,) = found
    assert (row["http_status"], row["error_code"]) == (bad.status, bad.code)
    assert row["outcome"] == bad.outcome
    assert row["attempts"] == []
    assert row["cost_nano_usd"] is None
    assert (row["key_id"] is not None) == (bad.status != 401), row


async def test_one_who_sends_two_keys_is_refused(place: Place) -> None:
    """httpx would fold them; two readers could take different ones."""
    place.vendor.clear()
    auth = place.running.auth
    whole = request_bytes(chat(), {**auth, "connection": "close"})
    line = f"authorization: {auth['authorization']}\r\n".encode()
    async with raw(place.running.port) as peer:
        peer.say(whole.replace(line, line + b"Authorization: Bearer other\r\n"))
        heard = await peer.closed(5)
    assert status_of(heard) == 400
    error = json.loads(heard.partition(b"\r\n\r\n")[2])["error"]
    assert "authorization" in error["message"]
    assert place.vendor.received == 0


async def test_other_methods_and_paths_speak_the_same_language(place: Place) -> None:
    async with client(place.running.url, place.running.auth) as http:
        for method, path, status, code in (
            ("GET", CHAT, 405, "method_not_allowed"),
            ("PUT", EMBEDDINGS, 405, "method_not_allowed"),
            ("POST", "/v1/chat/completion", 404, "not_found"),
            ("POST", "/v1/chat/completions/", 404, "not_found"),
            ("POST", "/v1//chat/completions", 404, "not_found"),
            ("POST", "/v1/chat%2Fcompletions", 404, "not_found"),
            ("DELETE", "/v1/models", 405, "method_not_allowed"),
            ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ):
            answer = await http.request(method, path, json=chat())
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path


async def test_who_is_in_order_still_gets_through(place: Place) -> None:
    """The table above refuses nothing because everything is refused."""
    good = {
        "chat": (chat(), CHAT, "plain"),
        "tags unknown to us": (chat(reasoning_effort="high", x_vendor={"a": 1}), CHAT, "plain"),
        "n": (chat(n=16), CHAT, "plain"),
        "image": (with_image("chat"), CHAT, "plain"),
        "embeddings": ({"model": "vectors", "input": "x"}, EMBEDDINGS, "only_embeddings"),
        "ceiling": (chat(), CHAT, "ceiling"),
        "short": (chat(model="short", max_tokens=200), CHAT, "plain"),
        "confidential": (chat(model="confidential-chat"), CHAT, "plain"),
    }
    async with client(place.running.url) as http:
        for name, (document, path, key) in good.items():
            headers = {"authorization": f"Bearer {place.keys[key]}"}
            answer = await call(http, document, path=path, headers=headers)
            assert answer.ok, (name, answer)
