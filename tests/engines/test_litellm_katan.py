"""The litellm wire before an independent imitation of five vendors (llm-katan's echo).

What Anthropic, Google, AWS and Azure send was written down there by others than us: that the
translations agree is worth more than our own pages in the contract suite.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.backends.base import Call
from gateway.backends.http_fast import FastHttpClient
from gateway.backends.litellm_sdk import LitellmWire
from gateway.domain.errors import UpstreamRefused
from tests.contract.wire_cases import ALIAS, backend, call, drive
from tests.engines.processes import Engine

pytestmark = pytest.mark.filterwarnings("ignore")  # litellm and pydantic warn of one another

# Where each imitation answers. Katan wants a bearer from Google's callers, too.
VENDORS: dict[str, dict[str, object]] = {
    "openai": {"path": "/v1"},
    "anthropic": {"path": ""},
    "gemini": {"path": "/v1beta", "headers": (("authorization", "Bearer any"),)},
    "azure": {"path": "", "query": "api-version=2024-10-21"},
    "bedrock": {"path": ""},
}
STREAMING = sorted(VENDORS.keys() - {"bedrock"})  # katan frames AWS's event stream without its CRCs


def ask(katan: Engine, vendor: str, *, stream: bool, usage_wanted: bool = False) -> Call:
    place = dict(VENDORS[vendor])
    url = f"{katan.url}{place.pop('path')}"
    model = "anthropic.claude-3-haiku-20240307-v1:0" if vendor == "bedrock" else katan.model
    what = call(
        backend(katan.url, name=vendor, base_url=url, vendor=vendor, **place),
        model,
        stream=stream,
        usage_wanted=usage_wanted,
        max_tokens=20,
    )
    return replace(what, first_chunk_s_max=10.0, idle_s_max=5.0)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION_NAME", "us-east-1")


@pytest.mark.parametrize("vendor", VENDORS)
async def test_whole(katan: Engine, aws: None, vendor: str):
    wire = LitellmWire(lambda _: "any", FastHttpClient)
    answer = await drive(wire, ask(katan, vendor, stream=False))
    await wire.aclose()
    assert answer.error is None, answer.error.detail
    assert answer.text().startswith("[echo]")
    [document] = answer.documents
    assert (document["model"], document["object"]) == (ALIAS, "chat.completion")
    assert document["choices"][0]["finish_reason"] == "stop"
    assert document["choices"][0]["message"]["role"] == "assistant"
    assert (answer.usage.prompt, answer.usage.cached) == (4, 0)  # katan counts words
    assert answer.usage.output > 5
    assert document["usage"]["total_tokens"] == answer.usage.prompt + answer.usage.output


@pytest.mark.parametrize("usage_wanted", [True, False])
@pytest.mark.parametrize("vendor", STREAMING)
async def test_streamed(katan: Engine, vendor: str, usage_wanted: bool):
    wire = LitellmWire(lambda _: "any", FastHttpClient)
    answer = await drive(wire, ask(katan, vendor, stream=True, usage_wanted=usage_wanted))
    await wire.aclose()
    assert answer.error is None, answer.error.detail
    assert answer.text().startswith("[echo]")
    assert answer.text().endswith("how heavy is it?")
    finishes = [choice["finish_reason"] for choice in answer.choices()]
    assert finishes == [None] * (len(finishes) - 1) + ["stop"]
    assert answer.choices()[0]["delta"]["role"] == "assistant"
    assert {document["model"] for document in answer.documents} == {ALIAS}
    assert len({document["id"] for document in answer.documents}) == 1
    assert answer.usage.prompt == 4
    assert answer.usage.output > 5
    assert len(answer.shown_usage) == usage_wanted
    assert sum(piece.content_chars for piece in answer.pieces) == len(answer.text())


@pytest.mark.parametrize("vendor", ["openai", "anthropic", "gemini"])
async def test_a_path_that_is_not_there_is_our_configuration(katan: Engine, vendor: str):
    wire = LitellmWire(lambda _: "any", FastHttpClient)
    what = ask(katan, vendor, stream=True)
    elsewhere = replace(what.backend, base_url=f"{katan.url}/nowhere")
    answer = await drive(wire, replace(what, backend=elsewhere))
    await wire.aclose()
    assert (type(answer.error), answer.error.status) == (UpstreamRefused, 404)
