"""One suite for every wire: the invariants of `backends/base.py`, over a vendor that misbehaves.

What one wire alone promises (bytes untouched, litellm tamed) is at the end.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.backends.base import Call, Piece, Wire
from gateway.backends.http_client import ConnectFailed, Origin
from gateway.backends.http_fast import FastHttpClient
from gateway.backends.litellm_sdk import LitellmWire
from gateway.backends.openai_http import OpenAIHttpWire
from gateway.domain.catalog import Backend, Kind
from gateway.domain.errors import (
    ClearanceViolated,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamUnreachable,
)
from gateway.domain.money import Meter
from gateway.domain.request import Endpoint, Usage
from tests.contract.wire_cases import (
    ALIAS,
    BEFORE_BODY,
    SCRIPTS,
    SECRET,
    STREAMED,
    TEXT,
    USAGES,
    WHOLE,
    Answer,
    Ends,
    Fails,
    backend,
    call,
    drive,
    script,
    truth,
)
from tests.vendor import FAULTS, KATAN, LLAMA_CPP, VLLM, Page, ScriptedVendor, until

# One worker imports litellm, not each. It and pydantic under it warn of one another.
LITELLM_MARKS = [pytest.mark.xdist_group("litellm"), pytest.mark.filterwarnings("ignore")]


def in_litellm(test: Callable) -> Callable:
    for mark in LITELLM_MARKS:
        test = mark(test)
    return test


WIRES: dict[str, Callable[[], Wire]] = {
    "openai_http": lambda: OpenAIHttpWire(lambda _: SECRET, FastHttpClient),
    "litellm_sdk": lambda: LitellmWire(lambda _: SECRET, FastHttpClient),
}
PARAMS = ["openai_http", pytest.param("litellm_sdk", marks=LITELLM_MARKS)]


@pytest.fixture
async def vendor() -> AsyncIterator[ScriptedVendor]:
    async with ScriptedVendor(SCRIPTS) as running:
        yield running


@pytest.fixture(params=PARAMS)
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    """Each wire in turn; a task it leaves behind fails the test."""
    async with _running(request.param) as running:
        yield running


class _running:
    """A wire that must leave nothing running."""

    def __init__(self, name: str) -> None:
        self._wire = WIRES[name]()

    async def __aenter__(self) -> Wire:
        self._before = asyncio.all_tasks()
        return self._wire

    async def __aexit__(self, *_: object) -> None:
        await self._wire.aclose()
        ours = self._before | {asyncio.current_task()}
        await until(lambda: asyncio.all_tasks() <= ours)


# ---- how it ends -----------------------------------------------------------------------------


def test_every_fault_has_an_expected_end():
    assert STREAMED.keys() == WHOLE.keys() == FAULTS.keys() | {"plain"}


@pytest.mark.parametrize("fault", STREAMED)
async def test_streamed(wire: Wire, vendor: ScriptedVendor, fault: str):
    answer = await drive(wire, call(vendor.url, fault))
    check_end(answer, STREAMED[fault], vendor)
    if fault in BEFORE_BODY:
        assert not answer.opened
    for document in answer.documents:
        assert document["model"] == ALIAS
    if isinstance(STREAMED[fault], Ends):
        assert any(piece.finished for piece in answer.pieces) == (fault != "no_finish")
        assert sum(piece.content_chars for piece in answer.pieces) == len(answer.text())
        assert sum(piece.content_chunks for piece in answer.pieces) >= 6
        assert [piece.content for piece in answer.pieces].count(True) >= 1


@pytest.mark.parametrize("fault", WHOLE)
async def test_whole(wire: Wire, vendor: ScriptedVendor, fault: str):
    answer = await drive(wire, call(vendor.url, fault, stream=False))
    check_end(answer, WHOLE[fault], vendor)
    if answer.pieces:
        [piece] = answer.pieces
        [document] = answer.documents
        assert (piece.content, piece.finished) == (True, True)
        assert piece.content_chars == len(answer.text())
        assert document["model"] == ALIAS
        assert document["object"] == "chat.completion"
        assert document["choices"][0]["finish_reason"] == "stop" or fault == "no_finish"


def check_end(answer: Answer, expected: Ends | Fails, vendor: ScriptedVendor) -> None:
    assert b"[DONE]" not in answer.data
    assert vendor.received == 1, "a wire never repeats a request"
    if isinstance(expected, Ends):
        assert answer.error is None, answer.error.detail
        assert re.sub("x{9999,}", "", answer.text()) == expected.text  # a huge line says x
        if expected.usage:
            usage = answer.usage
            assert usage is not None
            assert (usage.prompt, usage.output) == truth(vendor.log[-1])
            assert usage.reported
        else:
            assert answer.usage is None
        return
    error = answer.error
    assert error is not None
    assert (type(error), error.status, error.retry_after_s) == (
        expected.kind,
        expected.status,
        expected.retry_after_s,
    )
    assert expected.code in (None, error.upstream_code)
    if answer.streamed:
        assert answer.text() == expected.text
    else:
        assert not answer.pieces
    assert error.message.isprintable()
    assert str(vendor.port) not in error.message
    assert SECRET not in error.message + error.detail


async def test_unreachable(wire: Wire):
    gone = ScriptedVendor()
    async with gone:
        pass
    answer = await drive(wire, call(gone.url))
    assert type(answer.error) is UpstreamUnreachable


async def test_open_waits_for_the_first_byte_and_no_longer(wire: Wire, vendor: ScriptedVendor):
    vendor.scripts["slow"] = script(text=5 * TEXT, ttft_s=0.15, itl_s=0.05)
    reply = await wire.open(call(vendor.url, "slow"))
    seen = vendor.log[-1]
    assert seen.first_byte_at is not None
    assert seen.outcome == "open"
    reply.close()


async def test_a_redirect_is_not_followed(wire: Wire, vendor: ScriptedVendor):
    async with ScriptedVendor(SCRIPTS) as elsewhere:
        for status in (301, 302, 307, 308):
            vendor.scripts["away"] = script(
                status=status,
                error="empty",
                headers=(("location", f"{elsewhere.url}/v1/chat/completions"),),
            )
            answer = await drive(wire, call(vendor.url, "away"))
            assert (type(answer.error), answer.error.status) == (UpstreamRefused, status)
        assert elsewhere.received == 0


# ---- who may be sent what --------------------------------------------------------------------


async def test_what_a_backend_is_not_cleared_for_never_leaves(
    wire: Wire, caplog: pytest.LogCaptureFixture
):
    connected = 0

    def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        writer.close()

    async with await asyncio.start_server(count, "127.0.0.1", 0) as vendor:
        where = f"http://127.0.0.1:{vendor.sockets[0].getsockname()[1]}"
        forgotten = Call(
            **{f.name: getattr(call(where), f.name) for f in fields(Call) if f.name != "privacy"}
        )
        refused = [
            forgotten,
            call(backend(where, clearance=1), privacy=2),
            call(backend(where, clearance=1), privacy=2, stream=False),
            call(backend(where, clearance=1), privacy=-1),
            call(
                backend(where, clearance=0), privacy=1, endpoint=Endpoint.EMBEDDINGS, stream=False
            ),
        ]
        for what in refused:
            with pytest.raises(ClearanceViolated) as caught:
                await drive(wire, what)
            assert "b1" not in caught.value.message
        assert connected == 0
        assert [r.levelname for r in caplog.records] == ["CRITICAL"] * len(refused)
        # The trap works: at its clearance, and below, it is asked.
        await drive(wire, call(backend(where, clearance=2), privacy=2))
        assert connected == 1


async def test_a_backend_that_moved_is_not_asked_at_its_old_address(wire: Wire):
    """A reload may give a name to another place, cleared for more than the old one was."""
    async with ScriptedVendor(SCRIPTS) as old, ScriptedVendor(SCRIPTS) as new:
        assert (await drive(wire, call(old.url))).error is None
        assert (await drive(wire, call(backend(new.url, clearance=1), privacy=1))).error is None
        assert (old.received, new.received) == (1, 1)
        # One that is still on its way under the old catalog goes where that said.
        assert (await drive(wire, call(old.url))).error is None
        assert (old.received, new.received) == (2, 1)


@in_litellm
async def test_a_changed_header_or_key_is_sent_from_the_next_request_on(vendor: ScriptedVendor):
    for make in (OpenAIHttpWire, LitellmWire):
        wire = make(lambda reference: f"key-{reference}", FastHttpClient)
        for secret, team in (("env:A", "red"), ("env:B", "blue")):
            where = backend(vendor.url, secret=secret, headers=(("x-team", team),))
            assert (await drive(wire, call(where))).error is None
            assert vendor.log[-1].headers["authorization"] == f"Bearer key-{secret}"
            assert vendor.log[-1].headers["x-team"] == team
        await wire.aclose()


async def test_renewed_a_wire_reads_its_secrets_again_and_lets_calls_under_way_end(
    wire: Wire, vendor: ScriptedVendor
):
    """`file:` secrets rotate: told so, the next request carries what is in the file now."""
    secret = {"env:A": "old"}
    made = type(wire)(secret.__getitem__, FastHttpClient)
    where = backend(vendor.url, secret="env:A")
    running = await made.open(call(where))
    assert vendor.log[-1].headers["authorization"] == "Bearer old"
    secret["env:A"] = "new"
    await made.renew()
    assert (await drive(made, call(where))).error is None
    assert vendor.log[-1].headers["authorization"] == "Bearer new"
    while await running.next() is not None:
        pass
    await made.aclose()


# ---- what goes up ----------------------------------------------------------------------------


async def test_the_request_as_the_vendor_sees_it(wire: Wire, vendor: ScriptedVendor):
    for stream in (True, False):
        answer = await drive(
            wire,
            call(
                backend(vendor.url, headers=(("x-team", "blue"),)),
                stream=stream,
                temperature=0.5,
                stop=["\n\n"],
                user=None,
            ),
        )
        assert answer.error is None
        seen = vendor.log[-1]
        assert seen.headers["authorization"] == f"Bearer {SECRET}"
        assert seen.headers["x-request-id"] == "req_contract"
        assert seen.headers["x-team"] == "blue"
        assert seen.headers["content-type"] == "application/json"
        assert seen.path == "/v1/chat/completions"
        assert seen.document["model"] == "plain"
        assert seen.document["temperature"] == 0.5
        assert seen.document["stop"] == ["\n\n"]
        assert seen.document["messages"] == [{"role": "user", "content": "how heavy is it?"}]
        if stream:
            assert seen.document["stream_options"]["include_usage"] is True


async def test_fields_nobody_knows_go_through(wire: Wire, vendor: ScriptedVendor):
    extra = {"guided_json": {"type": "object"}, "mm_kwargs": [1, {"a": None}], "min_p": 0.1}
    await drive(wire, call(vendor.url, **extra))
    sent = vendor.log[-1].document
    assert {name: sent[name] for name in extra} == extra


async def test_parameters_a_backend_does_not_take_are_left_out(wire: Wire, vendor: ScriptedVendor):
    shy = backend(vendor.url, unsupported_parameters=frozenset({"logit_bias", "min_p"}))
    await drive(wire, call(shy, logit_bias={"1": 2}, min_p=0.1, top_p=0.9))
    sent = vendor.log[-1].document
    assert "logit_bias" not in sent
    assert "min_p" not in sent
    assert sent["top_p"] == 0.9


CONTROL_WORDS = [
    "api_base", "base_url", "api_key", "api_version", "organization", "extra_headers", "headers",
    "extra_query", "extra_body", "custom_llm_provider", "model_list", "fallbacks", "mock_response",
    "mock_delay", "callbacks", "success_callback", "client", "http_client", "shared_session",
    "num_retries", "max_retries", "timeout", "request_timeout", "drop_params", "cache", "caching",
    "metadata", "litellm_metadata", "litellm_logging_obj", "litellm_call_id", "proxy_server_request",
    "azure_ad_token", "azure_endpoint", "deployment_id", "aws_access_key_id", "vertex_project",
    "context_window_fallback_dict", "no-log", "logger_fn", "litellm_params", "use_litellm_proxy",
    "additional_drop_params", "allowed_openai_params", "extra_args", "acompletion", "transport",
]  # fmt: skip


@pytest.mark.parametrize("word", CONTROL_WORDS)
async def test_no_word_of_a_caller_moves_the_request(wire: Wire, vendor: ScriptedVendor, word: str):
    async with ScriptedVendor(SCRIPTS) as evil:
        for value in (f"{evil.url}/v1", {"host": f"127.0.0.1:{evil.port}", "authorization": "x"}):
            vendor.clear()
            answer = await drive(wire, call(vendor.url, **{word: value}))
            # The vendor may dislike the field, but it is the vendor who is asked, once, as us.
            assert answer.text() == TEXT, answer.error and answer.error.detail
            assert vendor.received == 1
            assert vendor.log[-1].headers["authorization"] == f"Bearer {SECRET}"
            assert evil.received == 0


async def test_no_key_of_our_environment_goes_to_a_backend_without_one(
    wire: Wire, vendor: ScriptedVendor, monkeypatch: pytest.MonkeyPatch
):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "canary-1234567890")
    vendor.canaries = frozenset({b"canary-1234567890"})
    answer = await drive(wire, call(backend(vendor.url, secret=None)))
    assert answer.error is None
    assert not vendor.hits


async def test_a_secret_that_cannot_be_had_is_a_refusal(vendor: ScriptedVendor):
    def missing(reference: str) -> str:
        raise KeyError(f"{reference} is not set")

    for wire in (OpenAIHttpWire(missing, FastHttpClient), LitellmWire(missing, FastHttpClient)):
        answer = await drive(wire, call(vendor.url))
        assert type(answer.error) is UpstreamRefused
        assert "env:ANY" in answer.error.detail
        assert "env:ANY" not in answer.error.message
    assert vendor.received == 0


# ---- what comes down -------------------------------------------------------------------------


@pytest.mark.parametrize("usage_wanted", [True, False])
@pytest.mark.parametrize("dialect", ["openai", "vllm", "llama_cpp", "katan"])
async def test_usage_is_known_and_shown_only_on_request(
    wire: Wire, vendor: ScriptedVendor, dialect: str, usage_wanted: bool
):
    base = {"openai": script(), "vllm": VLLM, "llama_cpp": LLAMA_CPP, "katan": KATAN}[dialect]
    vendor.scripts["m"] = base
    here = backend(vendor.url, continuous_usage=dialect == "vllm")
    answer = await drive(wire, call(here, "m", usage_wanted=usage_wanted))
    assert answer.error is None
    prompt, output = truth(vendor.log[-1])
    assert (answer.usage.prompt, answer.usage.output) == (prompt, output)
    if usage_wanted:
        last = answer.shown_usage[-1]
        assert (last["prompt_tokens"], last["completion_tokens"]) == (prompt, output)
        assert last["total_tokens"] == prompt + output
    else:
        assert answer.shown_usage == []


@pytest.mark.parametrize("stream", [True, False])
async def test_cached_and_reasoning_tokens(wire: Wire, vendor: ScriptedVendor, stream: bool):
    vendor.scripts["m"] = script(cached_tokens=3, reasoning_tokens=5)
    answer = await drive(wire, call(vendor.url, "m", stream=stream))
    prompt, output = truth(vendor.log[-1])
    usage = answer.usage
    assert (usage.cached, usage.uncached, usage.output, usage.reasoning) == (
        3,
        prompt - 3,
        output,
        5,
    )


@pytest.mark.parametrize("form", ["stream", "byte by byte", "whole"])
@pytest.mark.parametrize("name", USAGES)
async def test_every_token_is_in_one_meter(
    wire: Wire, vendor: ScriptedVendor, name: str, form: str
):
    told, metered = USAGES[name]
    tier = "flex" if name == "cached" else "default"
    vendor.scripts["m"] = script(
        usage_as=orjson.dumps(told).decode(),
        service_tier=tier,
        slice_bytes=1 if form == "byte by byte" else 0,
        slice_gap_s=0.0,
    )
    answer = await drive(wire, call(vendor.url, "m", stream=form != "whole"))
    assert answer.error is None, answer.error.detail
    assert answer.usage == replace(metered, service_tier=None if tier == "default" else tier)
    assert answer.text() == TEXT


@pytest.mark.parametrize("told_in_each", [True, False])
async def test_usage_that_runs_along_is_whole_only_where_that_is_vouched_for(
    wire: Wire, vendor: ScriptedVendor, told_in_each: bool
):
    vendor.scripts["m"] = replace(VLLM, text=TEXT, fault="reset", fault_after=3, usage_unasked=True)
    if not told_in_each:
        vendor.scripts["m"] = script(fault="reset", fault_after=3, service_tier="priority")
    where = backend(vendor.url, continuous_usage=told_in_each)
    answer = await drive(wire, call(where, "m"))
    assert answer.text() == "one two three"
    usage = answer.usage
    vouched = told_in_each and isinstance(wire, OpenAIHttpWire)
    assert usage.reported == vouched
    if told_in_each:
        assert (usage.prompt, usage.output) == (vendor.log[-1].prompt_tokens, 3)
    else:  # the tier is known, the tokens are ours to count
        assert (usage.prompt, usage.output, usage.service_tier) == (4, 0, "priority")


TOOLS = (("weigh", '{"cart": 7, "note": "été \\"x\\""}'), ("book", '{"grams": 12}'))


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_arrive_intact(wire: Wire, vendor: ScriptedVendor, stream: bool):
    vendor.scripts["m"] = script(tool_calls=TOOLS)
    tool = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}
    answer = await drive(wire, call(vendor.url, "m", stream=stream, tools=[tool]))
    assert vendor.log[-1].document["tools"] == [tool]
    calls: dict[int, list[str]] = {}
    ids = set()
    for choice in answer.choices():
        part = choice["delta" if stream else "message"]
        for number, tool_call in enumerate(part.get("tool_calls") or ()):
            known = calls.setdefault(tool_call["index"] if stream else number, ["", ""])
            function = tool_call["function"]
            known[0] += function.get("name") or ""
            known[1] += function.get("arguments") or ""
            if tool_call.get("id"):
                ids.add(tool_call["id"])
    assert [tuple(c) for c in calls.values()] == list(TOOLS)
    assert len(ids) == 2
    assert answer.choices()[-1]["finish_reason"] == "tool_calls"
    assert any(piece.content for piece in answer.pieces)


@pytest.mark.parametrize("stream", [True, False])
async def test_every_choice_is_whole(wire: Wire, vendor: ScriptedVendor, stream: bool):
    answer = await drive(wire, call(vendor.url, stream=stream, n=3))
    for index in range(3):
        assert answer.text(index) == TEXT
        finishes = [choice["finish_reason"] for choice in answer.choices(index)]
        assert finishes[-1] == "stop"
        assert finishes[:-1] == [None] * (len(finishes) - 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_logprobs(wire: Wire, vendor: ScriptedVendor, stream: bool):
    what = call(vendor.url, stream=stream, logprobs=True, top_logprobs=2)
    answer = await drive(wire, what)
    tokens = [
        entry["token"]
        for choice in answer.choices()
        if choice.get("logprobs")
        for entry in choice["logprobs"]["content"]
    ]
    assert "".join(tokens) == TEXT
    entry = next(c for c in answer.choices() if c.get("logprobs"))["logprobs"]["content"][0]
    assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] == -0.25


async def test_reasoning_is_speech(wire: Wire, vendor: ScriptedVendor):
    vendor.scripts["m"] = script(reasoning_tokens=3, reasoning_field="reasoning_content")
    answer = await drive(wire, call(vendor.url, "m"))
    first = next(piece for piece in answer.pieces if piece.content)
    assert b"reasoning_content" in first.data
    thought = [c["delta"].get("reasoning_content") or "" for c in answer.choices()]
    assert len([t for t in thought if t]) == 3


async def test_a_bom_may_come_by_itself(wire: Wire, vendor: ScriptedVendor):
    vendor.scripts["m"] = script(text="a b", bom=True, chunked=False, slice_bytes=3)
    answer = await drive(wire, call(vendor.url, "m"))
    assert answer.error is None, answer.error.detail
    assert answer.choices()[0]["delta"]["role"] == "assistant"
    assert answer.text() == "a b"


async def test_a_model_may_repeat_itself(wire: Wire, vendor: ScriptedVendor):
    vendor.scripts["m"] = script(text=" ha" * 300)
    answer = await drive(wire, call(vendor.url, "m"))
    assert answer.error is None, answer.error.detail
    assert answer.text() == " ha" * 300


async def test_the_first_chunk_has_the_role(wire: Wire, vendor: ScriptedVendor):
    answer = await drive(wire, call(vendor.url))
    assert answer.choices()[0]["delta"]["role"] == "assistant"
    assert len({document["id"] for document in answer.documents}) == 1


async def test_legacy_completions(wire: Wire, vendor: ScriptedVendor):
    what = call(vendor.url, stream=False, endpoint=Endpoint.COMPLETIONS)
    answer = await drive(wire, what)
    assert answer.error is None
    assert answer.text() == TEXT
    assert vendor.log[-1].path == "/v1/completions"
    assert vendor.log[-1].document["prompt"] == "how heavy is it?"
    assert (answer.usage.prompt, answer.usage.output) == truth(vendor.log[-1])
    [document] = answer.documents
    assert (document["model"], document["object"]) == (ALIAS, "text_completion")


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_embeddings(wire: Wire, vendor: ScriptedVendor, encoding: str | None):
    what = call(
        vendor.url,
        "text-embedding-3-small",
        stream=False,
        endpoint=Endpoint.EMBEDDINGS,
        encoding_format=encoding,
        dimensions=4,
    )
    answer = await drive(wire, what)
    assert answer.error is None, answer.error.detail
    assert vendor.log[-1].path == "/v1/embeddings"
    [document] = answer.documents
    assert document["model"] == ALIAS
    vectors = [item["embedding"] for item in document["data"]]
    assert len(vectors) == 2
    assert all(isinstance(v, str) if encoding == "base64" else len(v) == 4 for v in vectors)
    assert answer.usage.prompt == vendor.log[-1].prompt_tokens
    assert answer.usage.output == 0


# ---- leaving ---------------------------------------------------------------------------------


async def gone(vendor: ScriptedVendor) -> None:
    """The vendor saw its peer leave, within a second."""
    await until(lambda: vendor.log[-1].outcome == "aborted", 1.0)
    await until(lambda: not vendor.connections, 1.0)


async def still_serves(wire: Wire, vendor: ScriptedVendor) -> None:
    assert (await drive(wire, call(vendor.url))).text() == TEXT


HANGING = {
    "after open": script(itl_s=0.05),
    "in a silence": script(fault="stall", fault_after=3),
    "in pings": script(fault="stall", fault_after=3, ping_every_s=0.02),
}


@pytest.mark.parametrize("phase", HANGING)
@pytest.mark.parametrize("reading", [False, True], ids=["between", "reading"])
async def test_close_ends_the_call_at_once(
    wire: Wire, vendor: ScriptedVendor, phase: str, reading: bool
):
    vendor.scripts["m"] = HANGING[phase]
    reply = await wire.open(call(vendor.url, "m"))
    pending = asyncio.ensure_future(read_out(reply)) if reading else None
    await asyncio.sleep(0.03)
    reply.close()
    reply.close()
    if pending is not None:
        # A reader is not left hanging, and not told that all was said.
        with pytest.raises(UpstreamError):
            await asyncio.wait_for(pending, 1.0)
    await gone(vendor)
    reply.close()
    await still_serves(wire, vendor)


async def read_out(reply: object) -> list[Piece]:
    pieces = []
    while (piece := await reply.next()) is not None:
        pieces.append(piece)
    return pieces


async def test_after_the_last_piece_close_costs_nothing(wire: Wire, vendor: ScriptedVendor):
    for stream in (True, False):
        reply = await wire.open(call(vendor.url, stream=stream))
        await read_out(reply)
        reply.close()
        assert vendor.log[-1].outcome == "completed"
        await still_serves(wire, vendor)
    assert len(vendor.connections) == 1, "the connection served again"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["hang_before_head", "stall_before_token"])
async def test_a_cancelled_open_ends_the_call(
    wire: Wire, vendor: ScriptedVendor, fault: str, stream: bool
):
    await still_serves(wire, vendor)
    vendor.clear()
    opening = asyncio.ensure_future(wire.open(call(vendor.url, fault, stream=stream)))
    await until(lambda: vendor.received)
    await asyncio.sleep(0.02)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await gone(vendor)
    await still_serves(wire, vendor)


async def test_a_cancelled_next_ends_the_call(wire: Wire, vendor: ScriptedVendor):
    reply = await wire.open(call(vendor.url, "stall_after_3"))
    reading = asyncio.ensure_future(read_out(reply))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await gone(vendor)
    reply.close()
    await still_serves(wire, vendor)


@pytest.mark.parametrize("fault", [name for name, end in STREAMED.items() if type(end) is Fails])
async def test_a_failure_leaves_no_connection_in_use(
    wire: Wire, vendor: ScriptedVendor, fault: str
):
    before = asyncio.all_tasks()
    await drive(wire, call(vendor.url, fault))
    await until(lambda: vendor.log[-1].outcome != "open", 1.0)
    await until(lambda: asyncio.all_tasks() <= before, 1.0)
    await still_serves(wire, vendor)


async def test_many_at_once_are_not_mixed_up(wire: Wire, vendor: ScriptedVendor):
    for number in range(16):
        vendor.scripts[f"m{number}"] = script(text=f"{number} " * 20, itl_s=0.001)
    answers = await asyncio.gather(
        *(drive(wire, call(vendor.url, f"m{n}", stream=bool(n % 2))) for n in range(16))
    )
    assert [answer.text() for answer in answers] == [f"{n} " * 20 for n in range(16)]
    assert vendor.received == 16


# ---- health ----------------------------------------------------------------------------------


async def test_probe_is_free_and_honest(wire: Wire, vendor: ScriptedVendor):
    await wire.probe(backend(vendor.url))  # no path, nothing to ask
    assert vendor.received == 0
    sick = backend(vendor.url, health_path="/health")
    await wire.probe(sick)
    vendor.pages["/health"] = Page(503, "text/plain", b"no")
    with pytest.raises(UpstreamError):
        await wire.probe(sick)
    assert {seen.path for seen in vendor.log} == {"/health"}
    await vendor.close()
    with pytest.raises(UpstreamUnreachable):
        await wire.probe(sick)


# ---- openai_http: bytes pass through ---------------------------------------------------------


class CannedResponse:
    """An answer in given slices; the far side of the wire without a socket."""

    status = 200
    headers = {"content-type": "text/event-stream"}

    def __init__(self, slices: list[bytes]) -> None:
        self._slices = iter(slices)

    async def read(self, *, idle_s_max: float) -> bytes:
        return next(self._slices, b"")

    def close(self) -> None:
        self._slices = iter(())


def canned_wire(slices: list[bytes]) -> OpenAIHttpWire:
    class Client:
        in_use = 0

        async def request(self, *_: object, **__: object) -> CannedResponse:
            return CannedResponse(slices)

        async def aclose(self) -> None: ...

    return OpenAIHttpWire(lambda _: SECRET, lambda *_, **__: Client())


RECORDED = {
    "openai": script(),
    "vllm": VLLM,
    "llama_cpp": LLAMA_CPP,
    "tools": script(tool_calls=TOOLS),
    "wide": script(text=SCRIPTS["split_utf8"].text, split_utf8=True),
    "crlf": script(line_end="\r\n", bom=True, event_ids=True),
    "multiline": script(multiline=True),
    "metered": script(usage_as=orjson.dumps(USAGES["audio"][0]).decode(), service_tier="flex"),
}


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    """The bytes of each stream, as another client reads them."""

    async def record() -> dict[str, bytes]:
        async with ScriptedVendor(RECORDED) as vendor, httpx.AsyncClient() as client:
            found = {}
            for name in RECORDED:
                document = {
                    "model": name,
                    "stream": True,
                    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
                    "messages": [{"role": "user", "content": "how heavy is it?"}],
                }
                answer = await client.post(f"{vendor.url}/v1/chat/completions", json=document)
                found[name] = answer.content
            return found

    return asyncio.run(record())


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One loop for hundreds of examples."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(RECORDED)),
    usage_wanted=st.booleans(),
    cuts=st.lists(st.floats(0, 1, exclude_max=True), max_size=60),
)
def test_a_stream_is_the_same_wherever_it_is_cut(recordings, loop, name, usage_wanted, cuts):
    stream = recordings[name]
    at = sorted({int(cut * len(stream)) for cut in cuts} | {0, len(stream)})
    slices = [stream[start:end] for start, end in pairwise(at) if start < end]

    def read(pieces: list[bytes]) -> Answer:
        what = call("http://127.0.0.1:1", usage_wanted=usage_wanted)
        return loop.run_until_complete(drive(canned_wire(pieces), what))

    cut, whole = read(slices), read([stream])
    assert cut.error is None
    assert cut.data == whole.data
    assert cut.usage == whole.usage
    for figure in ("content_chunks", "content_chars"):
        told = sum(getattr(piece, figure) for piece in cut.pieces)
        assert told == sum(getattr(piece, figure) for piece in whole.pieces) > 0
    assert any(piece.finished for piece in cut.pieces)


def test_a_stream_byte_by_byte(recordings, loop):
    for stream in recordings.values():
        what = call("http://127.0.0.1:1", usage_wanted=True)
        slices = [stream[i : i + 1] for i in range(len(stream))]
        cut = loop.run_until_complete(drive(canned_wire(slices), what))
        whole = loop.run_until_complete(drive(canned_wire([stream]), what))
        assert cut.error is None
        assert cut.data == whole.data
        assert cut.usage == whole.usage
        assert whole.usage.reported


# ---- litellm_sdk: tamed ----------------------------------------------------------------------


@pytest.fixture
async def litellm_wire() -> AsyncIterator[Wire]:
    async with _running("litellm_sdk") as running:
        yield running


def anthropic(vendor: ScriptedVendor, **changes: object) -> Backend:
    return backend(vendor.url, **{"base_url": vendor.url, "vendor": "anthropic", **changes})


def sse(*documents: dict) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (document["type"].encode(), orjson.dumps(document))
        for document in documents
    )


STARTED = (
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": 11, "cache_read_input_tokens": 4, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "seven "},
    },
    {"type": "ping"},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "kilos"},
    },
)
ENDED = (
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 9},
    },
    {"type": "message_stop"},
)


@in_litellm
@pytest.mark.parametrize("usage_wanted", [True, False])
async def test_anthropic_speaks_openai(litellm_wire, vendor: ScriptedVendor, usage_wanted: bool):
    vendor.pages["/v1/messages"] = Page(200, "text/event-stream", sse(*STARTED, *ENDED))
    vendor.canaries = frozenset({b'"top_k"'})
    answer = await drive(
        litellm_wire, call(anthropic(vendor), "claude-x", usage_wanted=usage_wanted, top_k=3)
    )
    assert answer.error is None, answer.error.detail
    assert answer.text() == "seven kilos"
    finishes = [choice["finish_reason"] for choice in answer.choices()]
    assert finishes == [None] * (len(finishes) - 1) + ["stop"]
    assert [c["delta"].get("role") for c in answer.choices()][:2] == ["assistant", None]
    assert {d["object"] for d in answer.documents} == {"chat.completion.chunk"}
    assert {d["model"] for d in answer.documents} == {ALIAS}
    assert len({d["id"] for d in answer.documents}) == 1
    usage = answer.usage
    assert (usage.uncached, usage.cached, usage.output) == (11, 4, 9)
    shown = answer.shown_usage
    assert len(shown) == usage_wanted
    if usage_wanted:
        assert answer.documents[-1]["choices"] == []
        assert (shown[0]["prompt_tokens"], shown[0]["completion_tokens"]) == (15, 9)
        assert shown[0]["total_tokens"] == 24
    sent = vendor.log[-1]
    assert sent.headers["x-api-key"] == SECRET
    assert [hit.canary for hit in vendor.hits] == [b'"top_k"']
    assert "authorization" not in sent.headers


def block(index: int, start: dict, *deltas: dict) -> Iterator[dict]:
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def typed(*parts: str) -> Iterator[dict]:
    return ({"type": "input_json_delta", "partial_json": part} for part in parts)


TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "weigh", "input": {}}
CALLED = {
    "type": "message_delta",
    "delta": {"stop_reason": "tool_use"},
    "usage": {"output_tokens": 9},
}


@in_litellm
async def test_anthropics_thoughts_and_tool_calls(litellm_wire, vendor: ScriptedVendor):
    thought = {"type": "thinking_delta", "thinking": "hm, heavy"}
    body = sse(
        STARTED[0],
        *block(0, {"type": "thinking", "thinking": "", "signature": ""}, thought),
        *block(1, TOOL_USE, *typed('{"cart"', ": 7}")),
        *block(2, {**TOOL_USE, "id": "toolu_2", "name": "book"}, *typed("{}")),
        CALLED,
        {"type": "message_stop"},
    )
    vendor.pages["/v1/messages"] = Page(200, "text/event-stream", body)
    tool = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}
    answer = await drive(litellm_wire, call(anthropic(vendor), "claude-x", tools=[tool]))
    assert answer.error is None, answer.error.detail
    deltas = [choice["delta"] for choice in answer.choices()]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == "hm, heavy"
    calls: dict[int, str] = {}
    for tool_call in (c for delta in deltas for c in delta.get("tool_calls", ())):
        function = tool_call["function"]
        said = (tool_call.get("id") or "") + (function.get("name") or "") + function["arguments"]
        calls[tool_call["index"]] = calls.get(tool_call["index"], "") + said
    assert calls == {0: 'toolu_1weigh{"cart": 7}', 1: "toolu_2book{}"}
    assert answer.choices()[-1]["finish_reason"] == "tool_calls"
    assert any(piece.content for piece in answer.pieces)


@in_litellm
async def test_json_by_way_of_anthropics_tools_is_content(litellm_wire, vendor: ScriptedVendor):
    use = {**TOOL_USE, "name": "json_tool_call"}
    body = sse(STARTED[0], *block(0, use, *typed('{"cart"', ": 7}")), CALLED)
    vendor.pages["/v1/messages"] = Page(200, "text/event-stream", body)
    schema = {"type": "object", "properties": {"cart": {"type": "integer"}}}
    shape = {"type": "json_schema", "json_schema": {"name": "cart", "schema": schema}}
    model = "claude-3-7-sonnet-20250219"  # litellm chooses this way for older models
    answer = await drive(litellm_wire, call(anthropic(vendor), model, response_format=shape))
    assert answer.error is None, answer.error.detail
    assert orjson.loads(answer.text()) == {"cart": 7}
    assert answer.choices()[-1]["finish_reason"] == "stop"


@in_litellm
async def test_a_cut_stream_gets_no_invented_end(litellm_wire, vendor: ScriptedVendor):
    vendor.pages["/v1/messages"] = Page(200, "text/event-stream", sse(*STARTED))
    answer = await drive(litellm_wire, call(anthropic(vendor), "claude-x"))
    assert type(answer.error) is UpstreamBroken
    assert answer.text() == "seven kilos"
    assert not any(choice["finish_reason"] for choice in answer.choices())
    # It told what the prompt was when it began, and of the output only how it began.
    assert answer.usage == Usage(11, 4, 1, reported=False)


@in_litellm
@pytest.mark.parametrize("stream", [True, False])
async def test_anthropics_meters(litellm_wire, vendor: ScriptedVendor, stream: bool):
    first = {
        "input_tokens": 2048,
        "cache_read_input_tokens": 1800,
        "cache_creation_input_tokens": 248,
        "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
        "output_tokens": 1,
        "service_tier": "priority",
    }
    last = {"output_tokens": 503, "server_tool_use": {"web_search_requests": 2}}
    if stream:
        message = {**STARTED[0]["message"], "usage": first}
        delta = {**ENDED[1], "usage": last}
        body = sse({**STARTED[0], "message": message}, *STARTED[1:], ENDED[0], delta, ENDED[2])
        kind = "text/event-stream"
    else:
        message = {**STARTED[0]["message"], "usage": first | last, "stop_reason": "end_turn"}
        body = orjson.dumps({**message, "content": [{"type": "text", "text": "seven"}]})
        kind = "application/json"
    vendor.pages["/v1/messages"] = Page(200, kind, body)
    answer = await drive(litellm_wire, call(anthropic(vendor), "claude-x", stream=stream))
    assert answer.error is None, answer.error.detail
    writes = {Meter.CACHE_WRITE_5M: 148, Meter.CACHE_WRITE_1H: 100}
    whole = Usage(2048, 1800, 503, others={**writes, Meter.SEARCH_CALL: 2}, service_tier="priority")
    assert answer.usage == whole
    assert answer.usage.prompt == 4096
    if stream:
        early = next(piece.usage for piece in answer.pieces if piece.usage)
        assert early == replace(whole, output=1, others=writes, reported=False)


@in_litellm
async def test_an_error_event_keeps_its_meaning(litellm_wire, vendor: ScriptedVendor):
    overloaded = {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Overloaded"},
    }
    vendor.pages["/v1/messages"] = Page(200, "text/event-stream", sse(*STARTED, overloaded))
    answer = await drive(litellm_wire, call(anthropic(vendor), "claude-x"))
    assert (type(answer.error), answer.error.status) == (UpstreamBusy, 529)
    assert answer.text() == "seven kilos"


def gemini(vendor: ScriptedVendor) -> Backend:
    return backend(vendor.url, base_url=f"{vendor.url}/v1beta", vendor="gemini")


def gemini_stream(*texts: str, finish: str | None, **usage: int) -> bytes:
    events = []
    for number, text in enumerate(texts):
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        document: dict[str, object] = {"candidates": [candidate]}
        if finish is not None and number == len(texts) - 1:
            candidate["finishReason"] = finish
            document["usageMetadata"] = usage
        events.append(b"data: %b\n\n" % orjson.dumps(document))
    return b"".join(events)


GEMINI_PATH = "/v1beta/models/gem:streamGenerateContent"


@in_litellm
@pytest.mark.parametrize(
    ("word", "finish"), [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter")]
)
async def test_gemini_speaks_openai(litellm_wire, vendor: ScriptedVendor, word: str, finish: str):
    body = gemini_stream(
        "seven ",
        'kilos, \\"finishReason\\"',
        "!",
        finish=word,
        promptTokenCount=9,
        candidatesTokenCount=5,
        totalTokenCount=14,
    )
    vendor.pages[GEMINI_PATH] = Page(200, "text/event-stream", body)
    answer = await drive(litellm_wire, call(gemini(vendor), "gem", usage_wanted=True))
    assert answer.error is None, answer.error.detail
    assert answer.text() == 'seven kilos, \\"finishReason\\"!'
    finishes = [choice["finish_reason"] for choice in answer.choices()]
    assert finishes == [None] * (len(finishes) - 1) + [finish]
    assert answer.usage == Usage(9, 0, 5)
    assert len(answer.shown_usage) == 1
    assert vendor.log[-1].headers["x-goog-api-key"] == SECRET


@in_litellm
@pytest.mark.parametrize("grounded", [True, False], ids=["grounded", "not grounded"])
@pytest.mark.parametrize("stream", [True, False])
async def test_geminis_meters(litellm_wire, vendor: ScriptedVendor, stream: bool, grounded: bool):
    """Thoughts are beside the candidates, the cache inside the prompt; what a grounded answer
    fetched is not billed as input, what other tools fetched is."""
    figures = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 40,
        "toolUsePromptTokenCount": 10,
        "candidatesTokenCount": 198,
        "thoughtsTokenCount": 405,
        "totalTokenCount": 713,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 70},
            {"modality": "AUDIO", "tokenCount": 30},
        ],
    }
    candidate = {
        "content": {"role": "model", "parts": [{"text": "seven"}]},
        "index": 0,
        "finishReason": "STOP",
    }
    if grounded:
        candidate["groundingMetadata"] = {"webSearchQueries": ["weight of a cart"]}
    document = orjson.dumps({"candidates": [candidate], "usageMetadata": figures})
    page = Page(200, "application/json", document)
    if stream:
        page = Page(200, "text/event-stream", b"data: %b\n\n" % document)
    vendor.pages[GEMINI_PATH if stream else "/v1beta/models/gem:generateContent"] = page
    answer = await drive(litellm_wire, call(gemini(vendor), "gem", stream=stream))
    assert answer.error is None, answer.error.detail
    others = {Meter.INPUT_AUDIO: 30}
    if grounded:
        others[Meter.SEARCH_CALL] = 1
    assert answer.usage == Usage(30 if grounded else 40, 40, 603, 405, others=others)


@in_litellm
async def test_a_cut_gemini_stream_gets_no_invented_end(litellm_wire, vendor: ScriptedVendor):
    # litellm calls each of these chunks finished.
    body = gemini_stream("seven ", '"finishReason": "STOP"', finish=None)
    vendor.pages[GEMINI_PATH] = Page(200, "text/event-stream", body)
    answer = await drive(litellm_wire, call(gemini(vendor), "gem"))
    assert type(answer.error) is UpstreamBroken
    assert answer.text() == 'seven "finishReason": "STOP"'
    assert not any(choice["finish_reason"] for choice in answer.choices())


OWN_ADDRESSES = {
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
    "bedrock": "https://bedrock-runtime.eu-west-1.amazonaws.com",
    "cohere_chat": "https://api.cohere.com",
    "openrouter": "https://openrouter.ai",
}


@in_litellm
@pytest.mark.parametrize("name", OWN_ADDRESSES)
async def test_without_an_address_the_vendors_own_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_REGION_NAME", "eu-west-1")
    asked = []

    class Client:
        async def request(self, method: str, path: str, *_: object, **__: object) -> None:
            asked.append((method, path))
            raise ConnectFailed("no network in tests")

        async def aclose(self) -> None: ...

    def connect(origin: Origin, *, network: str, **_: object) -> Client:
        asked.append((str(origin), network))
        return Client()

    wire = LitellmWire(lambda _: SECRET, connect)
    model = "us.amazon.nova-lite-v1:0" if name == "bedrock" else "any"
    what = backend("", base_url="", vendor=name, kind=Kind.CLOSED_API)
    for stream in (True, False):
        answer = await drive(wire, call(what, model, stream=stream))
        assert type(answer.error) is UpstreamUnreachable, answer.error.detail
    assert asked[0] == (OWN_ADDRESSES[name], "public")
    assert [method for method, _ in asked[1:]] == ["POST", "POST"]


ANTHROPIC_REFUSALS = [
    (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", UpstreamRejected),
    (400, "invalid_request_error", "Your credit balance is too low", UpstreamRefused),
    (401, "authentication_error", "invalid x-api-key", UpstreamRefused),
    (404, "not_found_error", "model: claude-x", UpstreamRefused),
    (413, "request_too_large", "Request exceeds the maximum size", UpstreamRejected),
    (429, "rate_limit_error", "slow down", UpstreamBusy),
    (500, "api_error", "Internal server error", UpstreamBroken),
    (529, "overloaded_error", "Overloaded", UpstreamBusy),
]


@in_litellm
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("status", "kind", "message", "expected"), ANTHROPIC_REFUSALS)
async def test_anthropics_refusals(
    litellm_wire, vendor: ScriptedVendor, status, kind, message, expected, stream
):
    body = orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    vendor.pages["/v1/messages"] = Page(status, "application/json", body)
    answer = await drive(litellm_wire, call(anthropic(vendor), "claude-x", stream=stream))
    assert (type(answer.error), answer.error.status) == (expected, status)
    assert vendor.received == 1


@in_litellm
@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": {"url": "{url}/image.png"}},
    {"type": "image_url", "image_url": "{url}/image.png"},
    {"type": "file", "file": {"file_id": "{url}/a.pdf"}},
    {"type": "file", "file": {"file_data": "{url}/a.pdf"}},
])  # fmt: skip
async def test_litellm_downloads_nothing(litellm_wire, vendor: ScriptedVendor, part: dict):
    text = orjson.dumps(part).decode().replace("{url}", vendor.url)
    message = {"role": "user", "content": [orjson.loads(text)]}
    answer = await drive(litellm_wire, call(anthropic(vendor), messages=[message]))
    assert type(answer.error) is UpstreamRefused
    assert answer.error.param == "messages"
    assert vendor.received == 0


REFUSED_UNSENT = {
    "an unknown field": ({"vendor": "anthropic"}, {"guided_json": {}}, "guided_json"),
    "an address": ({"vendor": "anthropic"}, {"api_base": "http://127.0.0.1:9"}, "api_base"),
    "an unknown vendor": ({"vendor": "nobody"}, {}, None),
    "no vendor": ({"vendor": None}, {}, None),
    "an address that is none": ({"base_url": "127.0.0.1"}, {}, None),
    "a streamed legacy completion": ({}, {"endpoint": Endpoint.COMPLETIONS}, "stream"),
}


@in_litellm
@pytest.mark.parametrize("case", REFUSED_UNSENT)
async def test_refused_before_anything_is_sent(litellm_wire, vendor: ScriptedVendor, case: str):
    changes, more, param = REFUSED_UNSENT[case]
    answer = await drive(litellm_wire, call(backend(vendor.url, **changes), **more))
    assert type(answer.error) is UpstreamRefused
    assert answer.error.param == param
    assert vendor.received == 0


@in_litellm
async def test_an_address_in_the_environment_does_not_divert(
    litellm_wire, vendor: ScriptedVendor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", vendor.url)
    answer = await drive(litellm_wire, call(anthropic(vendor, base_url="")))
    assert type(answer.error) is UpstreamRefused
    assert vendor.received == 0


def in_fresh_process(source: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd=cwd,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.xdist_group("litellm")
def test_the_import_is_late_and_offline(tmp_path: Path):
    (tmp_path / ".env").write_text("CANARY=1\n")
    out = in_fresh_process(
        """
        import asyncio, os, sys
        asked = []
        def hook(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname",
                         "socket.sendto", "socket.sendmsg"):
                asked.append((event, repr(arguments)))
        sys.addaudithook(hook)
        from gateway.backends import litellm_sdk
        assert "litellm" not in sys.modules, "not with the module"
        litellm_sdk.LitellmWire(str)
        assert "litellm" not in sys.modules, "nor with the wire"
        asyncio.run(litellm_sdk._sdk())
        assert "litellm" in sys.modules
        assert not asked, asked
        assert "CANARY" not in os.environ
        # The hook sees what it should.
        import socket
        try:
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        except OSError:
            pass
        assert asked
        print("fine")
        """,
        tmp_path,
    )
    assert out.endswith("fine\n")


def test_without_litellm_the_way_to_get_it_is_said(tmp_path: Path):
    out = in_fresh_process(
        """
        import asyncio, sys
        sys.modules["litellm"] = None
        from gateway.backends.litellm_sdk import LitellmWire
        from gateway.domain.errors import UpstreamRefused
        from tests.contract.wire_cases import call
        try:
            asyncio.run(LitellmWire(str).open(call("http://127.0.0.1:9")))
        except UpstreamRefused as error:
            print(error.upstream_code, error.detail)
        """,
        tmp_path,
    )
    assert "not_installed" in out
    assert "pip install 'weighbridge[litellm]'" in out
