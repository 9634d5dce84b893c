"""LangChain's ChatOpenAI and the Vercel AI SDK through the gateway: what apps built on them do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.client import Client, chat_job
from tests.clients.scenes import CALLS, WEIGH, models
from tests.clients.variants import TEXT, TOKENS
from tests.vendor import VendorProcess

pytestmark = [pytest.mark.clients, pytest.mark.xdist_group("clients")]

Ask = Callable[..., dict[str, Any]]
TOOLS = {
    "langchain": [WEIGH],
    "ai-sdk": {"weigh": {k: WEIGH["function"][k] for k in ("description", "parameters")}},
}


@pytest.fixture(params=["langchain", "ai-sdk"])
def sdk(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["stream", "whole"])
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def chat(clients: Callable[[str], Client], sdk: str) -> Ask:
    """A chat request: the model, the form, then fields of the program's job."""

    def ask(model: str, form: str, **more: Any) -> dict[str, Any]:
        return clients(sdk).run(**{**chat_job(sdk, model, form), **more})

    return ask


def test_chat_with_usage(chat: Ask, form: str) -> None:
    saw = chat("chat", form)
    assert (saw["text"], saw["finish"]) == (TEXT, "stop")
    assert saw["usage"]["completion_tokens"] == TOKENS


def test_running_usage_is_not_added_up(chat: Ask) -> None:
    """We ask vLLM for usage on every chunk, and tell it once."""
    assert chat("vllm", "stream")["usage"]["completion_tokens"] == TOKENS


@pytest.mark.parametrize("model", ["tools", "vllm-tools"])
def test_tools(chat: Ask, sdk: str, form: str, model: str) -> None:
    saw = chat(model, form, tools=TOOLS[sdk])
    assert "error" not in saw
    assert saw["finish"] == ("tool_calls" if sdk == "langchain" else "tool-calls")
    called = [(name, json.loads(text)) for _, name, text in saw["calls"]]
    assert called == [(name, json.loads(text)) for name, text in CALLS]


def test_tools_arrive_upstream(chat: Ask, sdk: str, vendor: VendorProcess) -> None:
    chat("tools", "whole", tools=TOOLS[sdk])
    (tool,) = last_seen(vendor, "tools").document["tools"]
    assert tool["function"]["name"] == "weigh"
    assert tool["function"]["parameters"]["required"] == ["cart"]


def test_an_image(chat: Ask, sdk: str, vendor: VendorProcess) -> None:
    picture = "data:image/png;base64,aGVsbG8="
    image = (
        {"type": "image_url", "image_url": {"url": picture}}
        if sdk == "langchain"
        else {"type": "file", "mediaType": "image/png", "data": picture}
    )
    turn = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    assert chat("chat", "whole", messages=turn)["text"] == TEXT
    parts = last_seen(vendor, "chat").document["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"]
    assert parts[1]["image_url"]["url"] == picture


def test_an_unknown_model(chat: Ask, form: str) -> None:
    error = chat("chta", form)["error"]
    assert (error["status"], error["code"]) == (404, "model_not_found")
    assert "'chat'" in error["message"]


def test_retries_of_ours_and_of_langchain_do_not_multiply(
    clients: Callable[[str], Client], vendor: VendorProcess
) -> None:
    """Two backends, both down. `x-should-retry: false` says that we have tried already."""
    job = chat_job("langchain", "pair-c", "whole")
    assert clients("langchain").run(**job, retries=2)["error"]["code"] == "all_attempts_failed"
    assert [len(seen(vendor, model)) for model in models("pair-c")] == [1, 1]


def test_the_ai_sdk_does_not_know_that_header(
    clients: Callable[[str], Client], vendor: VendorProcess
) -> None:
    """It retries any status of 500 and more: apps behind a gateway set `maxRetries: 0`."""
    job = chat_job("ai-sdk", "pair-d", "whole")
    assert clients("ai-sdk").run(**job, retries=1)["error"]["type"] == "AI_RetryError"
    assert [len(seen(vendor, model)) for model in models("pair-d")] == [2, 2]


def test_leaving_a_stream_ends_it_upstream(
    clients: Callable[[str], Client], vendor: VendorProcess
) -> None:
    saw = clients("ai-sdk").run(**chat_job("ai-sdk", "slow", "stream"), leave_after=3)
    assert "abort" in saw["parts"]
    deadline = time.monotonic() + 5
    while last_seen(vendor, "slow").outcome != "aborted":
        assert time.monotonic() < deadline, "the upstream call goes on"
        time.sleep(0.05)


def seen(vendor: VendorProcess, model: str) -> list[Any]:
    return [one for one in vendor.log if one.model == model]


def last_seen(vendor: VendorProcess, alias: str) -> Any:
    """The last request that reached the first backend of a scene."""
    return seen(vendor, models(alias)[0])[-1]
