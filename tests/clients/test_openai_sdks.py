"""openai-python and openai-node through the gateway: what an app does with them, and their errors.

One text for both, where they do the same; the arguments are OpenAI's wire.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.client import MESSAGES, Client
from tests.clients.scenes import CALLS, WEIGH, models
from tests.clients.variants import TEXT, TOKENS
from tests.gateway_process import GatewayProcess
from tests.vendor import VendorProcess

pytestmark = [pytest.mark.clients, pytest.mark.xdist_group("clients")]

Ask = Callable[..., dict[str, Any]]
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(params=["openai-python", "openai-node"])
def sdk(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def app(clients: Callable[[str], Client], sdk: str) -> Client:
    return clients(sdk)


@pytest.fixture
def chat(app: Client) -> Ask:
    """A chat request: the model, then further arguments; `job` holds options of the program."""

    def ask(model: str, *, job: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        arguments = {"model": model, "messages": MESSAGES, **arguments}
        return app.run(call="chat.completions.create", arguments=arguments, **(job or {}))

    return ask


# --- what an app does ----------------------------------------------------------------------------


def test_chat(chat: Ask) -> None:
    saw = chat("chat")
    assert (saw["text"], saw["finish"]) == (TEXT, "stop")
    assert saw["usage"]["completion_tokens"] == TOKENS
    assert saw["value"]["model"] == "chat", "the alias, not the vendor's name"
    assert saw["request_id"].startswith("req_")


def test_a_stream_without_usage_has_none(chat: Ask) -> None:
    saw = chat("chat", stream=True)
    assert (saw["text"], saw["finish"]) == (TEXT, "stop")
    assert saw["usage"] is None
    assert all(chunk["choices"] for chunk in saw["chunks"]), "no chunk we asked for ourselves"
    assert saw["chunks"][0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["model"] for chunk in saw["chunks"]} == {"chat"}
    assert saw["request_id"].startswith("req_")


def test_a_stream_with_usage_ends_with_it(chat: Ask) -> None:
    saw = chat("chat", stream=True, stream_options={"include_usage": True})
    assert saw["text"] == TEXT
    last = saw["chunks"].pop()
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == TOKENS
    assert all(chunk.get("usage") is None for chunk in saw["chunks"])


def test_running_usage_is_between_us_and_the_engine(chat: Ask, vendor: VendorProcess) -> None:
    """We ask vLLM for usage on every chunk; a client that did not must not add it all up."""
    saw = chat("vllm", stream=True, stream_options={"include_usage": True})
    asked = last_seen(vendor, "vllm").document
    assert asked["stream_options"]["continuous_usage_stats"] is True
    assert saw["text"] == TEXT
    assert [
        chunk["usage"]["completion_tokens"] for chunk in saw["chunks"] if chunk.get("usage")
    ] == [TOKENS]


def test_running_usage_reaches_who_asks_for_it(chat: Ask) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    saw = chat("vllm", stream=True, stream_options=options)
    assert sum(1 for chunk in saw["chunks"] if chunk.get("usage")) > TOKENS


@pytest.mark.parametrize("model", ["tools", "vllm-tools"])
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(chat: Ask, model: str, stream: bool) -> None:
    saw = chat(model, stream=stream, tools=[WEIGH], parallel_tool_calls=True)
    assert saw["finish"] == "tool_calls"
    assert [(name, text) for _, name, text in saw["calls"]] == list(CALLS)
    ids = [number for number, _, _ in saw["calls"]]
    assert len(set(ids)) == len(CALLS)


def test_tool_call_deltas_keep_index_and_name_once(chat: Ask) -> None:
    saw = chat("tools", stream=True, tools=[WEIGH])
    deltas = [
        call
        for chunk in saw["chunks"]
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls") or ()
    ]
    assert {call["index"] for call in deltas} == {0, 1}
    assert sum(1 for call in deltas if call["function"].get("name")) == len(CALLS)
    assert len(deltas) > 2 * len(CALLS), "the arguments came in pieces"


def test_a_tool_result_goes_upstream(chat: Ask, vendor: VendorProcess) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weigh", "arguments": "{}"}}
    turn = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"kg": 12}'},
    ]
    assert chat("chat", messages=turn, tools=[WEIGH])["text"] == TEXT
    assert last_seen(vendor, "chat").document["messages"] == turn


@pytest.mark.parametrize("stream", [False, True])
def test_json_mode(chat: Ask, vendor: VendorProcess, stream: bool) -> None:
    form = {"type": "json_object"}
    saw = chat("team/words", stream=stream, response_format=form)
    assert list(json.loads(saw["text"])) == ["answer"]
    assert last_seen(vendor, "team/words").document["response_format"] == form


def test_a_json_schema_goes_upstream_whole(chat: Ask, vendor: VendorProcess) -> None:
    schema = {"type": "object", "properties": {"kg": {"type": "number"}}, "required": ["kg"]}
    form = {"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": schema}}
    assert "error" not in chat("team/words", response_format=form)
    assert last_seen(vendor, "team/words").document["response_format"] == form


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(chat: Ask, stream: bool) -> None:
    saw = chat("chat", stream=stream, logprobs=True, top_logprobs=2)
    said = saw["chunks"] if stream else [saw["value"]]
    tokens = [
        token
        for document in said
        for choice in document["choices"]
        if choice.get("logprobs")
        for token in choice["logprobs"]["content"]
    ]
    assert "".join(token["token"] for token in tokens) == TEXT
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_two_choices(chat: Ask, stream: bool) -> None:
    saw = chat("team/words", stream=stream, n=2)
    if not stream:
        texts = [choice["message"]["content"] for choice in saw["value"]["choices"]]
    else:
        texts = ["", ""]
        finished = set()
        for chunk in saw["chunks"]:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
                if choice["finish_reason"]:
                    finished.add(choice["index"])
        assert finished == {0, 1}
    assert [len(text.split()) for text in texts] == [TOKENS, TOKENS]
    assert texts[0] != texts[1]


def test_one_choice_cut_is_no_success(chat: Ask) -> None:
    """The first choice has finished; the connection ends before the second has."""
    saw = chat("one-choice-cut", stream=True, n=2)
    assert saw.get("error"), saw["text"]
    assert saw["error"]["code"] == "upstream_broken"


def test_an_image_reaches_the_model(chat: Ask, vendor: VendorProcess) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
    ]
    turn = [{"role": "user", "content": parts}]
    assert chat("chat", messages=turn)["text"] == TEXT
    assert last_seen(vendor, "chat").document["messages"] == turn


def test_a_field_only_the_vendor_knows_arrives_untouched(
    chat: Ask, sdk: str, vendor: VendorProcess
) -> None:
    mine = {
        "x_vendor": {"deep": [1, 2.5, None, "ü"]},
        "top_k": 40,
        "chat_template_kwargs": {"a": 1},
    }
    extra = {"extra_body": mine} if sdk == "openai-python" else mine
    assert chat("chat", temperature=0.1, **extra)["text"] == TEXT
    arrived = last_seen(vendor, "chat").document
    assert {name: arrived[name] for name in mine} == mine
    assert arrived["temperature"] == 0.1
    assert arrived["model"] == models("chat")[0], "ours to set"


def test_reasoning_reaches_the_app(chat: Ask) -> None:
    saw = chat("thinking", stream=True)
    thoughts = [
        choice["delta"].get("reasoning")
        for chunk in saw["chunks"]
        for choice in chunk["choices"]
        if choice["delta"].get("reasoning")
    ]
    assert len(thoughts) == 4
    assert saw["text"] == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_completions(app: Client, stream: bool) -> None:
    arguments = {"model": "chat", "prompt": "Once upon a scale", "stream": stream}
    saw = app.run(call="completions.create", arguments=arguments)
    if stream:
        assert (saw["text"], saw["finish"]) == (TEXT, "stop")
    else:
        assert saw["value"]["choices"][0]["text"] == TEXT
        assert saw["value"]["model"] == "chat"


def test_embeddings(app: Client, vendor: VendorProcess) -> None:
    """The SDKs ask for base64 unless told and decode it themselves."""
    arguments = {"model": "chat", "input": ["one", "two"], "dimensions": 16}
    saw = app.run(call="embeddings.create", arguments=arguments)
    assert last_seen(vendor, "chat").document["encoding_format"] == "base64"
    vectors = [one["embedding"] for one in saw["value"]["data"]]
    assert [len(vector) for vector in vectors] == [16, 16]
    assert all(math.isclose(sum(x * x for x in v), 1, rel_tol=1e-5) for v in vectors)
    plain = app.run(call="embeddings.create", arguments={**arguments, "encoding_format": "float"})
    assert plain["value"]["data"][0]["embedding"] == pytest.approx(vectors[0], rel=1e-6)


def test_models(app: Client, served: GatewayProcess) -> None:
    key = served.new_key("--alias", "chat", "--alias", "team/words")
    listed = app.run(call="models.list", key=key)
    assert [one["id"] for one in listed["value"]["data"]] == ["chat", "team/words"]
    assert listed["value"]["data"][0]["object"] == "model"
    one = app.run(call="models.retrieve", positional=["team/words"], key=key)
    assert (one["value"]["id"], one["value"]["object"]) == ("team/words", "model")
    hidden = app.run(call="models.retrieve", positional=["tools"], key=key)["error"]
    assert (hidden["type"], hidden["code"]) == ("NotFoundError", "model_not_found")
    assert hidden["request_id"].startswith("req_")


def test_leaving_a_stream_ends_it_upstream(chat: Ask, vendor: VendorProcess) -> None:
    saw = chat("slow", stream=True, job={"leave_after": 3})
    assert len(saw["chunks"]) == 3
    eventually(lambda: last_seen(vendor, "slow").outcome == "aborted")
    assert last_seen(vendor, "slow").tokens_sent < 100


# --- errors --------------------------------------------------------------------------------------


def test_a_wrong_key(chat: Ask) -> None:
    error = chat("chat", job={"key": "wb_live_wrong"})["error"]
    assert (error["type"], error["status"]) == ("AuthenticationError", 401)
    assert (error["code"], error["kind"]) == ("invalid_api_key", "authentication_error")
    assert error["request_id"].startswith("req_")


def test_an_unknown_model_names_the_nearest(chat: Ask) -> None:
    error = chat("team/word")["error"]
    assert (error["type"], error["status"]) == ("NotFoundError", 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "team/words" in error["message"]


def test_a_wrong_field_is_named(chat: Ask) -> None:
    error = chat("chat", n=0)["error"]
    assert (error["type"], error["status"]) == ("BadRequestError", 400)
    assert (error["code"], error["param"]) == ("invalid_value", "n")
    assert error["kind"] == "invalid_request_error"


def test_what_no_model_can_do(chat: Ask) -> None:
    error = chat("plain", tools=[WEIGH])["error"]
    assert (error["type"], error["code"]) == ("BadRequestError", "unsupported_parameter")
    assert "tools" in error["message"]


def test_a_key_that_may_not(chat: Ask, served: GatewayProcess) -> None:
    key = served.new_key("--endpoint", "embeddings")
    error = chat("chat", job={"key": key})["error"]
    assert (error["type"], error["status"]) == ("PermissionDeniedError", 403)
    assert error["code"] == "insufficient_scope"


def test_too_large_a_body(chat: Ask) -> None:
    """Both still send when the answer comes; Node drops one whose connection is reset."""
    error = chat("chat", messages=[{"role": "user", "content": "x" * 11_000_000}])["error"]
    assert (error["status"], error["code"]) == (413, "request_too_large")


def test_a_busy_vendor(chat: Ask, sdk: str) -> None:
    error = chat("busy-a" if sdk == "openai-python" else "busy-b")["error"]
    assert (error["type"], error["status"]) == ("RateLimitError", 429)
    assert error["kind"] == "rate_limit_error"
    assert error["retry_after"] == "7"


def test_no_backend(chat: Ask) -> None:
    error = chat("switched-off")["error"]
    assert (error["type"], error["status"]) == ("InternalServerError", 503)
    assert error["code"] == "no_eligible_backend"


def test_our_retries_and_the_sdks_do_not_multiply(
    chat: Ask, sdk: str, vendor: VendorProcess
) -> None:
    """Two backends, both down: two calls, not six, though the SDK would retry twice."""
    alias = "pair-a" if sdk == "openai-python" else "pair-b"
    error = chat(alias, job={"retries": 2})["error"]
    assert (error["type"], error["status"]) == ("InternalServerError", 502)
    assert error["code"] == "all_attempts_failed"
    assert [len(seen(vendor, model)) for model in models(alias)] == [1, 1]


def test_the_sdk_waits_as_long_as_the_vendor_says(
    chat: Ask, sdk: str, vendor: VendorProcess
) -> None:
    alias = "once-a" if sdk == "openai-python" else "once-b"
    chat(alias, job={"retries": 1})
    first, second = seen(vendor, models(alias)[0])
    assert second.received_at - first.received_at >= 0.95


def test_no_such_path(app: Client) -> None:
    arguments = {"model": "chat", "input": "x"}
    error = app.run(call="moderations.create", arguments=arguments)["error"]
    assert (error["type"], error["code"]) == ("NotFoundError", "not_found")
    assert "/v1/moderations" in error["message"]
    assert error["request_id"].startswith("req_")


# --- only one of them ----------------------------------------------------------------------------


def test_async_openai(clients: Callable[[str], Client]) -> None:
    def ask(model: str, **arguments: Any) -> dict[str, Any]:
        return clients("openai-python").run(
            call="chat.completions.create",
            arguments={"model": model, "messages": MESSAGES, **arguments},
            asynchronous=True,
        )

    assert ask("chat")["text"] == TEXT
    assert ask("chat", stream=True)["text"] == TEXT
    assert ask("tools", stream=True, tools=[WEIGH])["finish"] == "tool_calls"
    assert ask("nobody")["error"]["type"] == "NotFoundError"


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not hold within {timeout_s} s"
        time.sleep(0.05)


def seen(vendor: VendorProcess, model: str) -> list[Any]:
    return [one for one in vendor.log if one.model == model]


def last_seen(vendor: VendorProcess, alias: str) -> Any:
    """The last request that reached the first backend of a scene."""
    return seen(vendor, models(alias)[0])[-1]
