"""Each script looks on the wire as its name says, read from a raw socket; the good ones are what
OpenAI's generated types accept in strict mode."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import pytest_asyncio
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from pydantic import BaseModel

from gateway.demo.scripted_vendor import (
    Ask,
    Script,
    ScriptedVendor,
    ScriptError,
    error_plan,
    jittered,
    plan_for,
    script_from,
)
from tests.vendor import FAULTS, KATAN, LLAMA_CPP, VLLM, Page, VendorProcess, until, vendor_process

CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture
async def vendor() -> AsyncIterator[ScriptedVendor]:
    async with ScriptedVendor() as running:
        yield running


def http(path: str, body: object, *fields: str, method: str = "POST") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: vendor", f"content-length: {len(data)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def chat(model: str = "m", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Weigh this cart."}], **more}


class Wire:
    """What a raw socket got: the bytes as they came, and how the connection stood at the end."""

    def __init__(self, reads: list[bytes], end: str) -> None:
        self.reads = reads
        self.raw = b"".join(reads)
        self.end = end  # "open", "closed" or "reset"
        self.head, blank, self.rest = self.raw.partition(b"\r\n\r\n")
        self.head = self.head if blank else b""
        self.status = int(self.head.split()[1]) if self.head else 0
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        self.fields = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        self.body, self.ended = self._body()

    def _body(self) -> tuple[bytes, bool]:
        """The body without its framing, and whether the framing came to its end."""
        if not self.head:
            return b"", False
        if "content-length" in self.fields:
            return self.rest, len(self.rest) == int(self.fields["content-length"])
        if self.fields.get("transfer-encoding") != "chunked":
            return self.rest, self.end == "closed"
        body, rest = b"", self.rest
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if length == 0:
                return body, rest == b"\r\n"
            body += rest[:length]
            if rest[length : length + 2] != b"\r\n":
                return body, False
            rest = rest[length + 2 :]
        return body, False

    @property
    def events(self) -> list[str]:
        """The data of each event, by the WHATWG rules of server-sent events."""
        text = self.body.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        events = []
        for block in text.split("\n\n"):
            lines = [line for line in block.split("\n") if line.startswith("data:")]
            if lines:
                data = [line.removeprefix("data:").removeprefix(" ") for line in lines]
                events.append("\n".join(data))
        return events

    @property
    def chunks(self) -> list[dict]:
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def text(self) -> str:
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", [])]
        return "".join(choice["delta"].get("content", "") for choice in choices)

    @property
    def json(self) -> dict:
        return json.loads(self.body)


async def ask(vendor: ScriptedVendor | VendorProcess, request: bytes, quiet_s: float = 0.5) -> Wire:
    """Sends the bytes; reads until the connection ends or nothing comes for `quiet_s` any more,
    which is shortened once the body is whole."""
    reader, writer = await asyncio.open_connection(vendor.host, vendor.port)
    writer.write(request)
    reads: list[bytes] = []
    end = "open"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            whole = bool(reads) and Wire(reads, end).ended
            data = await asyncio.wait_for(reader.read(1 << 20), 0.01 if whole else quiet_s)
        except TimeoutError:
            break
        except ConnectionResetError:
            end = "reset"
            break
        if not data:
            end = "closed"
            break
        reads.append(data)
    await leave(writer)
    return Wire(reads, end)


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def stream(vendor: ScriptedVendor, script: Script, **more: object) -> Wire:
    vendor.scripts["m"] = script
    return await ask(vendor, http(CHAT, chat(stream=True, **more)))


async def single(vendor: ScriptedVendor, script: Script, **more: object) -> Wire:
    vendor.scripts["m"] = script
    return await ask(vendor, http(CHAT, chat(**more)))


def valid(kind: type[BaseModel], document: object) -> None:
    """Strict, and with no field that the type does not know (openai's models allow extras)."""
    model = kind.model_validate(document, strict=True)
    extras = list(_extras(model))
    assert not extras, extras


def _extras(model: BaseModel) -> list[str]:
    found = list(model.model_extra or {})
    for value in model.__dict__.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                found += _extras(one)
    return found


# --- the documented wire --------------------------------------------------------------------------


async def test_a_chat_completion_is_what_the_reference_says(vendor: ScriptedVendor) -> None:
    wire = await single(vendor, Script(tokens=3), n=2, logprobs=True, top_logprobs=2)
    assert (wire.status, wire.end, wire.ended) == (200, "open", True)
    valid(ChatCompletion, wire.json)
    assert [choice["index"] for choice in wire.json["choices"]] == [0, 1]
    assert wire.json["choices"][0]["message"]["content"] == "a scale reads"
    assert wire.json["choices"][1]["message"]["content"] != "a scale reads"
    assert len(wire.json["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    usage = wire.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 6, 10)


async def test_a_chat_stream_is_what_the_reference_says(vendor: ScriptedVendor) -> None:
    options = {"include_usage": True}
    wire = await stream(vendor, Script(tokens=3), stream_options=options, logprobs=True)
    assert (wire.status, wire.end, wire.ended) == (200, "open", True)
    assert wire.fields["content-type"].startswith("text/event-stream")
    for chunk in wire.chunks:
        valid(ChatCompletionChunk, chunk)
    first, *_, finish, usage = wire.chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert [chunk["usage"] for chunk in wire.chunks[:-1]] == [None] * 5
    assert wire.text == "a scale reads"
    assert wire.events[-1] == "[DONE]"
    assert len({chunk["id"] for chunk in wire.chunks}) == 1


async def test_usage_is_told_only_when_asked_for(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, Script(tokens=3))
    assert not any("usage" in chunk for chunk in wire.chunks)


async def test_identities_differ_between_answers_and_nothing_else_does(
    vendor: ScriptedVendor,
) -> None:
    first, second = [await single(vendor, Script(seed=5)) for _ in range(2)]
    assert first.json["id"] != second.json["id"]
    assert first.fields["x-request-id"] != second.fields["x-request-id"]
    assert first.json["choices"] == second.json["choices"]


async def test_legacy_completions(vendor: ScriptedVendor) -> None:
    ask_for = {"model": "m", "prompt": ["one", "two"], "logprobs": 1, "max_tokens": 2}
    whole = await ask(vendor, http("/v1/completions", ask_for))
    valid(Completion, whole.json)
    assert [choice["finish_reason"] for choice in whole.json["choices"]] == ["length", "length"]
    assert whole.json["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    streamed = await ask(vendor, http("/v1/completions", {**ask_for, "stream": True}))
    texts = {0: "", 1: ""}
    for chunk in streamed.chunks:
        assert chunk["object"] == "text_completion"
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == [choice["text"] for choice in whole.json["choices"]]


async def test_embeddings_as_floats_and_packed(vendor: ScriptedVendor) -> None:
    def asking(**more: object) -> bytes:
        return http("/v1/embeddings", {"model": "e", "input": ["one", "two"], **more})

    floats = (await ask(vendor, asking(dimensions=5))).json
    valid(CreateEmbeddingResponse, floats)
    one, two = (entry["embedding"] for entry in floats["data"])
    assert one != two
    assert sum(value * value for value in one) == pytest.approx(1)
    packed = (await ask(vendor, asking(dimensions=5, encoding_format="base64"))).json
    decoded = struct.unpack("<5f", base64.b64decode(packed["data"][0]["embedding"]))
    assert decoded == pytest.approx(one, abs=1e-6)


async def test_models_and_health(vendor: ScriptedVendor) -> None:
    vendor.scripts = {"a": Script(), "b": Script()}
    listed = (await ask(vendor, http("/v1/models", b"", method="GET"))).json
    assert listed["object"] == "list"
    for card in listed["data"]:
        valid(Model, card)
    assert [card["id"] for card in listed["data"]] == ["a", "b"]
    assert (await ask(vendor, http("/v1/models/b", b"", method="GET"))).json["id"] == "b"
    assert (await ask(vendor, http("/v1/models/c", b"", method="GET"))).status == 404
    assert (await ask(vendor, http("/health", b"", method="GET"))).status == 200
    vendor.pages["/health"] = Page(503)
    assert (await ask(vendor, http("/health", b"", method="GET"))).status == 503


async def test_tool_calls_give_index_always_and_name_once(vendor: ScriptedVendor) -> None:
    calls = (("weigh", '{"cart": 7, "unit": "kg"}'), ("toll", "{}"))
    script = Script(tool_calls=calls)
    wire = await stream(vendor, script)
    heard: dict[int, list] = {}
    for chunk in wire.chunks:
        valid(ChatCompletionChunk, chunk)
        for delta in chunk["choices"][0]["delta"].get("tool_calls", []):
            call = heard.setdefault(delta["index"], [[], ""])
            call[0] += [delta["function"]["name"]] if "id" in delta else []
            assert ("id" in delta) == ("name" in delta["function"])
            call[1] += delta["function"]["arguments"]
    assert {at: (names, text) for at, (names, text) in heard.items()} == {
        at: ([name], arguments) for at, (name, arguments) in enumerate(calls)
    }
    assert wire.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    whole = (await single(vendor, script)).json
    valid(ChatCompletion, whole)
    functions = [c["function"] for c in whole["choices"][0]["message"]["tool_calls"]]
    assert [(f["name"], f["arguments"]) for f in functions] == list(calls)


async def test_json_mode_gives_a_json_text(vendor: ScriptedVendor) -> None:
    shape = {"type": "json_object"}
    wire = await stream(vendor, Script(tokens=9), response_format=shape)
    assert set(json.loads(wire.text)) == {"answer"}
    assert len([c for c in wire.chunks if c["choices"][0]["delta"].get("content")]) == 9


async def test_max_tokens_is_honoured_unless_the_script_overruns(vendor: ScriptedVendor) -> None:
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        cut = (await single(vendor, Script(tokens=9), **limit)).json
        assert cut["choices"][0]["message"]["content"] == "a scale"
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["usage"]["completion_tokens"] == 2
    over = (await single(vendor, FAULTS["overrun"], max_tokens=4)).json
    assert over["usage"]["completion_tokens"] == 12
    assert len(over["choices"][0]["message"]["content"].split()) == 12


async def test_a_seed_and_a_text_decide_what_is_said(vendor: ScriptedVendor) -> None:
    def content(wire: Wire) -> str:
        return wire.json["choices"][0]["message"]["content"]

    assert content(await single(vendor, Script(tokens=2), seed=1)) == "scale reads"
    assert content(await single(vendor, Script(tokens=2, seed=1))) == "scale reads"
    wire = await stream(vendor, Script(text="Sieben Tonnen,  \n€ 12 "))
    assert wire.text == "Sieben Tonnen,  \n€ 12 "


async def test_reasoning_is_hidden_or_streamed_and_counted(vendor: ScriptedVendor) -> None:
    hidden = (await single(vendor, Script(tokens=3, reasoning_tokens=5, cached_tokens=2))).json
    usage = hidden["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 5
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2
    shown = Script(tokens=3, reasoning_tokens=5, reasoning_field="reasoning_content")
    wire = await stream(vendor, shown, stream_options={"include_usage": True})
    deltas = [c["choices"][0]["delta"] for c in wire.chunks if c["choices"]]
    kinds = ["reasoning_content" if "reasoning_content" in delta else "content" for delta in deltas]
    assert kinds[1:9] == ["reasoning_content"] * 5 + ["content"] * 3
    assert wire.chunks[-1]["usage"]["completion_tokens"] == 8


# --- dialects and usage ---------------------------------------------------------------------------


async def test_vllm_finishes_on_the_last_content_chunk_and_counts_as_it_goes(
    vendor: ScriptedVendor,
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    wire = await stream(vendor, replace(VLLM, tokens=3), stream_options=options)
    *_, last, usage = wire.chunks
    assert last["choices"][0]["delta"]["content"] == " reads"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert [chunk["usage"]["completion_tokens"] for chunk in wire.chunks] == [0, 1, 2, 3, 3]
    assert usage["choices"] == []
    plain = await stream(vendor, replace(VLLM, tokens=3), stream_options={"include_usage": True})
    assert ["usage" in chunk for chunk in plain.chunks] == [False, False, False, False, True]
    refusal = (await single(vendor, FAULTS["status_503_vllm"])).json["error"]
    assert (refusal["code"], refusal["type"]) == (503, "Service Unavailable")


async def test_llama_cpp_tells_usage_unasked_and_lies_about_keep_alive(
    vendor: ScriptedVendor,
) -> None:
    wire = await stream(vendor, LLAMA_CPP)
    assert wire.chunks[-1]["usage"]["completion_tokens"] == 16
    assert wire.fields["connection"] == "keep-alive"
    assert wire.fields["keep-alive"] == "timeout=5, max=100"
    assert (wire.ended, wire.end) == (True, "closed")


@pytest.mark.parametrize(
    ("usage", "where"),
    [
        ("null_each_chunk", [None, None, None, None, 2]),
        ("final_chunk", ["-", "-", "-", "-", 2]),
        ("on_last_chunk", ["-", "-", "-", 2]),
        ("duplicate", ["-", "-", "-", 2, 2]),
        ("continuous", [0, 1, 2, 2, 2]),
        ("none", ["-", "-", "-", "-"]),
    ],
)
async def test_usage_lies_where_the_script_says(
    vendor: ScriptedVendor, usage: str, where: list
) -> None:
    script = Script(tokens=2, usage=usage, usage_unasked=True)
    wire = await stream(vendor, script)
    told = [chunk.get("usage", "-") for chunk in wire.chunks]
    assert [one["completion_tokens"] if isinstance(one, dict) else one for one in told] == where


async def test_katan_tells_usage_with_the_finish_reason(vendor: ScriptedVendor) -> None:
    last = (await stream(vendor, KATAN)).chunks[-1]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == 16


async def test_absent_parts_are_absent(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, Script(tokens=2, finish="absent", done=False, role="absent"))
    assert [c["choices"][0]["finish_reason"] for c in wire.chunks] == [None, None]
    assert wire.ended
    assert "[DONE]" not in wire.events
    assert "role" not in wire.chunks[0]["choices"][0]["delta"]


# --- refusals -------------------------------------------------------------------------------------


async def test_error_shapes(vendor: ScriptedVendor) -> None:
    async def refused(**fields: object) -> Wire:
        return await single(vendor, Script(**fields))

    openai = await refused(status=429, retry_after_s=2, headers=(("x-ratelimit-limit", "3"),))
    valid(ErrorObject, openai.json["error"])
    assert openai.json["error"]["code"] == "rate_limit_exceeded"
    assert (openai.status, openai.fields["retry-after"]) == (429, "2")
    assert openai.fields["x-ratelimit-limit"] == "3"
    assert (await refused(status=500, error="vllm")).json["error"]["code"] == 500
    assert (await refused(status=422, error="fastapi", error_message="no")).json == {"detail": "no"}
    assert (await refused(status=401, error="string", error_message="no")).json == {"error": "no"}
    llama = (
        await refused(status=400, error="llama_cpp", error_type="exceed_context_size_error")
    ).json
    assert llama["error"]["type"] == "exceed_context_size_error"
    html = await refused(status=502, error="html")
    assert (html.status, html.fields["content-type"]) == (502, "text/html")
    assert html.body.startswith(b"<html>")
    empty = await refused(status=500, error="empty")
    assert (empty.status, empty.body) == (500, b"")
    assert "content-type" not in empty.fields
    page = await refused(error="html")
    assert (page.status, page.fields["content-type"]) == (200, "text/html")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, b"{", 400),
        (CHAT, b"[]", 400),
        (CHAT, {"messages": []}, 400),
        (CHAT, {"model": "m"}, 400),
        (CHAT, chat(n=0.5), 400),
        (CHAT, chat(max_tokens=0), 400),
        (CHAT, chat("unknown"), 404),
        ("/v1/embeddings", {"model": "m"}, 400),
        ("/v1/embeddings", {"model": "m", "input": "x", "dimensions": -1}, 400),
        ("/v1/nothing", {}, 404),
    ],
)
async def test_invalid_requests_are_refused_as_a_vendor_would(
    vendor: ScriptedVendor, path: str, body: object, status: int
) -> None:
    vendor.default = None
    vendor.scripts["m"] = Script()
    wire = await ask(vendor, http(path, body))
    assert wire.status == status
    valid(ErrorObject, wire.json["error"])


async def test_failures_come_at_the_rate_and_from_the_seed() -> None:
    async def statuses(seed: int) -> list[int]:
        scripts = {"m": Script(failure_rate=0.3, failure_status=503)}
        async with ScriptedVendor(scripts, seed=seed) as vendor:
            return [(await ask(vendor, http(CHAT, chat()), 0.02)).status for _ in range(40)]

    first = await statuses(3)
    assert first == await statuses(3)
    assert set(first) == {200, 503}


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        ("hang_before_head", "open"),
        ("close_before_head", "closed"),
        ("reset_before_head", "reset"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_before_the_head_there_is_not_one_byte(
    vendor: ScriptedVendor, fault: str, end: str, streamed: bool
) -> None:
    wire = await (stream if streamed else single)(vendor, FAULTS[fault])
    assert (wire.raw, wire.end) == (b"", end)


@pytest.mark.parametrize(
    ("fault", "end"), [("stall", "open"), ("reset", "reset"), ("close", "closed")]
)
@pytest.mark.parametrize("after", [0, 1, 3, 6, 99])
async def test_a_stream_breaks_after_exactly_k_tokens(
    vendor: ScriptedVendor, fault: str, end: str, after: int
) -> None:
    wire = await stream(vendor, Script(tokens=6, itl_s=0.001, fault=fault, fault_after=after))
    assert (wire.status, wire.end, wire.ended) == (200, end, False)
    assert len(wire.text.split()) == min(after, 6)
    assert not any(choice["finish_reason"] for c in wire.chunks for choice in c["choices"])
    assert vendor.log[-1].tokens_sent == min(after, 6)


async def test_an_early_role_chunk_comes_before_the_stall(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, FAULTS["stall_after_role"])
    assert [c["choices"][0]["delta"]["role"] for c in wire.chunks] == ["assistant"]


async def test_a_clean_end_is_well_framed_and_has_no_finish(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, FAULTS["end_after_3"])
    assert (wire.end, wire.ended) == ("open", True)
    assert len(wire.text.split()) == 3
    assert "[DONE]" not in wire.events
    assert not any(c["choices"][0]["finish_reason"] for c in wire.chunks)


async def test_half_an_event_is_cut_inside_its_json(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, FAULTS["half_event_after_3"])
    assert (wire.end, wire.ended) == ("closed", False)
    *whole, half = wire.events
    assert [json.loads(event)["object"] for event in whole] == ["chat.completion.chunk"] * 4
    assert half.startswith('{"id":"chatcmpl-')
    with pytest.raises(json.JSONDecodeError):
        json.loads(half)


async def test_an_error_event_ends_the_body(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, FAULTS["error_after_3"])
    *chunks, error = wire.chunks
    valid(ErrorObject, error["error"])
    assert (len(chunks), wire.ended, wire.events[-1]) == (
        4,
        True,
        json.dumps(error, separators=(",", ":")),
    )
    vllm = (await stream(vendor, FAULTS["error_after_3_vllm"])).chunks[-1]
    assert vllm["error"]["code"] == 500


async def test_garbage_comes_after_k_and_the_stream_goes_on(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, FAULTS["garbage_after_3"])
    with pytest.raises(json.JSONDecodeError):
        json.loads(wire.events[4])
    assert [json.loads(event)["object"] for event in wire.events[:4]]
    assert wire.events[-1] == "[DONE]"


async def test_a_huge_line_is_one_valid_event(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, FAULTS["huge_line_after_3"])
    assert len(wire.events[4]) > 1 << 20
    valid(ChatCompletionChunk, json.loads(wire.events[4]))
    assert wire.ended


@pytest.mark.parametrize(
    ("fault", "end"),
    [("stall", "open"), ("reset", "reset"), ("close", "closed"), ("half_event", "closed")],
)
async def test_half_of_a_document(vendor: ScriptedVendor, fault: str, end: str) -> None:
    wire = await single(vendor, Script(fault=fault))
    assert (wire.status, wire.end, wire.ended) == (200, end, False)
    assert 0 < len(wire.body) < int(wire.fields["content-length"])


async def test_documents_that_are_none(vendor: ScriptedVendor) -> None:
    assert "error" in (await single(vendor, Script(fault="error_event"))).json
    assert (await single(vendor, Script(fault="end"))).body == b""
    assert (await single(vendor, Script(fault="garbage_line"))).body.startswith(b'data: {"id"')
    huge = await single(vendor, Script(fault="huge_line"))
    assert len(huge.body) > 1 << 20
    valid(ChatCompletion, huge.json)


# --- the lie of the bytes -------------------------------------------------------------------------

ODD = ["crlf", "cr", "no_space", "multiline", "event_ids", "bom", "sliced", "not_chunked", "pings"]


@pytest.mark.parametrize("name", ODD)
async def test_odd_wires_carry_the_same_events(vendor: ScriptedVendor, name: str) -> None:
    plain = await stream(vendor, Script(tokens=6))
    odd = await stream(vendor, FAULTS[name])
    assert odd.ended
    assert odd.text == plain.text
    assert [c["choices"] for c in odd.chunks] == [c["choices"] for c in plain.chunks]
    assert odd.body != plain.body or name in ("sliced", "not_chunked")


async def test_odd_wires_are_odd(vendor: ScriptedVendor) -> None:
    body = {name: (await stream(vendor, FAULTS[name])).body for name in ODD}
    assert body["crlf"].count(b"\r\n\r\n") == body["crlf"].count(b"data: ")
    assert b"\n" not in body["cr"]
    assert b"data:{" in body["no_space"]
    assert b"data: " not in body["no_space"]
    assert body["multiline"].count(b"\ndata: ") > 2 * body["multiline"].count(b"\n\n")
    assert body["event_ids"].startswith(b"id: 0\ndata: ")
    assert body["bom"].startswith(b"\xef\xbb\xbfdata: ")
    assert body["pings"].count(b": ping\n\n") >= 5


async def test_slices_arrive_apart(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, replace(FAULTS["sliced"], slice_gap_s=0.003))
    sizes = sorted(map(len, wire.reads))
    assert sizes[len(sizes) // 2] <= 7


async def test_a_wide_character_is_split_between_chunks_and_reads(vendor: ScriptedVendor) -> None:
    # A gap that a busy machine does not close: what it reads at once is not split.
    wire = await stream(vendor, replace(FAULTS["split_utf8"], slice_gap_s=0.03))
    split = 0
    for read in wire.reads:
        try:
            read.decode()
        except UnicodeDecodeError:
            split += 1
    assert split >= 3
    assert wire.text == "Zürich wägt naïve 日本 façade λόγος"


async def test_without_chunks_the_connection_ends_the_body(vendor: ScriptedVendor) -> None:
    wire = await stream(vendor, FAULTS["not_chunked"])
    assert wire.end == "closed"
    assert not {"transfer-encoding", "content-length"} & set(wire.fields)
    assert wire.body.endswith(b"data: [DONE]\n\n")


async def test_content_types_lie_when_told_to(vendor: ScriptedVendor) -> None:
    assert (await stream(vendor, FAULTS["text_html"])).fields["content-type"] == "text/html"
    whole = await stream(vendor, FAULTS["document_for_stream"])
    assert whole.fields["content-type"] == "application/json"
    valid(ChatCompletion, whole.json)


async def test_pings_go_on_through_a_stall(vendor: ScriptedVendor) -> None:
    vendor.scripts["m"] = FAULTS["stall_after_3_with_pings"]
    reader, writer = await asyncio.open_connection(vendor.host, vendor.port)
    writer.write(http(CHAT, chat(stream=True)))
    for _ in range(5):
        await asyncio.wait_for(reader.readuntil(b": ping\n\n"), 5)
    assert vendor.log[-1].tokens_sent == 3
    await leave(writer)


# --- connections ----------------------------------------------------------------------------------


async def test_keep_alive_serves_pipelined_requests_in_order(vendor: ScriptedVendor) -> None:
    vendor.scripts = {"a": Script(text="first", ttft_s=0.02), "b": Script(text="second")}
    wire = await ask(vendor, http(CHAT, chat("a")) + http(CHAT, chat("b")))
    assert wire.raw.count(b"HTTP/1.1 200 OK") == 2
    assert wire.raw.index(b'"first"') < wire.raw.index(b'"second"')


async def test_a_closing_client_or_script_ends_the_connection(vendor: ScriptedVendor) -> None:
    asked = await ask(vendor, http(CHAT, chat(), "connection: close"))
    assert asked.end == "closed"
    told = await single(vendor, FAULTS["closes_each"])
    assert (told.end, told.fields["connection"]) == ("closed", "close")
    lied = await single(vendor, FAULTS["keep_alive_lie"])
    assert (lied.end, lied.fields["connection"]) == ("closed", "keep-alive")


async def test_a_malformed_request_gets_400(vendor: ScriptedVendor) -> None:
    wire = await ask(vendor, b"not http\r\n\r\n")
    assert (wire.status, wire.end) == (400, "closed")


async def test_it_can_go_down_and_come_back_on_its_port(vendor: ScriptedVendor) -> None:
    url = vendor.url
    await vendor.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(vendor.host, vendor.port)
    await vendor.start()
    assert vendor.url == url
    assert (await single(vendor, Script())).status == 200


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "script",
    [
        Script(fault="hang_before_head"),
        Script(fault="stall"),
        Script(fault="stall", fault_after=2),
        Script(tokens=5000, itl_s=0.001),
        Script(ttft_s=30),
        Script(ttft_s=30, ping_every_s=0.01),
    ],
    ids=["no head", "no token", "stalled", "streaming", "first token far", "pings"],
)
async def test_a_peer_that_leaves_is_seen_at_once(
    vendor: ScriptedVendor, script: Script, reset: bool
) -> None:
    vendor.scripts["m"] = script
    _, writer = await asyncio.open_connection(vendor.host, vendor.port)
    writer.write(http(CHAT, chat(stream=True)))
    await until(lambda: vendor.log)
    await asyncio.sleep(0.01)
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    left_at = time.monotonic()
    await leave(writer)
    seen = vendor.log[0]
    await until(lambda: seen.outcome == "aborted")
    assert seen.peer_closed_at - left_at < 0.5  # single milliseconds on an idle machine
    assert vendor.concurrent == 0
    sent = seen.tokens_sent
    await asyncio.sleep(0.02)
    assert seen.tokens_sent == sent


# --- timing, the log, canaries --------------------------------------------------------------------


async def test_pauses_are_those_of_the_script(vendor: ScriptedVendor) -> None:
    script = Script(tokens=5, head_delay_s=0.02, ttft_s=0.04, itl_s=0.02, ttft_per_1k_s=5)
    vendor.scripts["m"] = script
    for streamed in (True, False):
        await ask(vendor, http(CHAT, chat(stream=streamed)), quiet_s=2)
        seen = vendor.log[-1]
        whole = 0.02 + 0.04 + 4 * 0.02 + 5 * 0.004  # 4 prompt tokens
        assert whole - 0.003 <= seen.finished_at - seen.received_at < whole + 2
    assert vendor.log[0].first_byte_at - vendor.log[0].received_at < whole


def test_jitter_comes_from_the_seed_and_keeps_the_mean() -> None:
    def draws(seed: int, count: int) -> list[float]:
        rng = random.Random(seed)
        return [jittered(0.01, 0.5, rng) for _ in range(count)]

    assert draws(1, 9) == draws(1, 9) != draws(2, 9)
    many = draws(1, 20_000)
    assert statistics.fmean(many) == pytest.approx(0.01, rel=0.02)
    assert statistics.median(many) < 0.0095  # skewed to the right, as latencies are
    assert jittered(0.01, 0.0, random.Random(1)) == 0.01


async def test_the_log_tells_what_came_and_what_became_of_it(vendor: ScriptedVendor) -> None:
    vendor.scripts = {"m": Script(tokens=3), "cut": FAULTS["reset_after_3"]}
    await ask(vendor, http(CHAT, chat(temperature=0.5), "Authorization: Bearer key", "X-Tag: 1"))
    await ask(vendor, http(CHAT, chat("cut", stream=True)))
    first, second = vendor.log
    assert (first.path, first.model, first.status, first.outcome) == (CHAT, "m", 200, "completed")
    assert first.headers["authorization"] == "Bearer key"
    assert first.headers["x-tag"] == "1"
    assert first.document["temperature"] == 0.5
    assert (first.prompt_tokens, first.completion_tokens, first.tokens_sent) == (4, 3, 3)
    assert (second.model, second.outcome, second.tokens_sent) == ("cut", "cut", 3)
    assert vendor.received == 2
    vendor.clear()
    assert (len(vendor.log), vendor.received) == (0, 0)


async def test_concurrency_is_counted(vendor: ScriptedVendor) -> None:
    vendor.scripts["m"] = Script(ttft_s=0.1)
    await asyncio.gather(*(ask(vendor, http(CHAT, chat())) for _ in range(7)))
    assert vendor.concurrent_max == 7
    assert vendor.concurrent == 0
    assert sorted(seen.concurrent for seen in vendor.log) == list(range(1, 8))


@pytest.mark.parametrize("place", ["body", "header", "path", "over two reads", "over two chunks"])
async def test_canaries_are_found_wherever_they_lie(vendor: ScriptedVendor, place: str) -> None:
    canary = b"canary-4711-secret"
    vendor.canaries = frozenset({canary, b"another"})
    text = canary.decode()
    whole = http(CHAT, chat(user=text))
    if place == "header":
        whole = http(CHAT, chat(), f"x-note: {text}")
    elif place == "path":
        whole = http(f"/v1/nothing/{text}", {})
    elif place == "over two chunks":
        body = json.dumps(chat(user=text)).encode()
        at = body.index(canary) + 5
        head = f"POST {CHAT} HTTP/1.1\r\nhost: v\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:], b"")]
        whole = head + b"".join(parts)
        assert canary not in whole
    _, writer = await asyncio.open_connection(vendor.host, vendor.port)
    at = whole.index(canary) + 5 if place == "over two reads" else len(whole)
    writer.write(whole[:at])
    await asyncio.sleep(0.02)
    writer.write(whole[at:])
    await until(lambda: vendor.log and vendor.log[0].outcome == "completed")
    assert [hit.canary for hit in vendor.hits] == [canary]
    await leave(writer)


async def test_no_canary_no_hit(vendor: ScriptedVendor) -> None:
    vendor.canaries = frozenset({b"canary-4711-secret"})
    await single(vendor, Script(), user="canary-4711-secre")
    assert not vendor.hits


# --- scripts and the control plane ----------------------------------------------------------------


async def test_a_header_overrides_the_model_s_script(vendor: ScriptedVendor) -> None:
    vendor.scripts["m"] = Script(text="kept", status=200)
    override = 'X-Script: {"tokens": 1, "ttft_s": 0, "status": 418, "headers": [["x-a", "b"]]}'
    wire = await ask(vendor, http(CHAT, chat(), override))
    assert (wire.status, wire.fields["x-a"]) == (418, "b")
    assert (await ask(vendor, http(CHAT, chat()))).status == 200
    wrong = await ask(vendor, http(CHAT, chat(), 'x-script: {"tokenz": 1}'))
    assert wrong.status == 400
    assert "tokenz" in wrong.json["error"]["message"]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"tokens": "3"},
        {"tokens": True},
        {"fault": "explode"},
        {"headers": [["one"]]},
        {"usage": "sometimes"},
        {"tokens": -1},
    ],
)
def test_a_wrong_script_is_refused(document: object) -> None:
    with pytest.raises(ScriptError):
        script_from(document)


def test_scripts_survive_their_json() -> None:
    for script in FAULTS.values():
        again = script_from(json.loads(json.dumps(asdict(script))))
        assert asdict(again) == asdict(script)


def test_no_two_named_faults_are_the_same() -> None:
    asked = Ask("m", 4, stream=True, limit=9, include_usage=True)
    named = {"plain": Script(tokens=6, itl_s=0.002), **FAULTS}
    plans = {
        error_plan(script, script.status)
        if name.startswith("status")
        else plan_for(script, asked): name
        for name, script in named.items()
    }
    assert set(plans.values()) == set(named)


def test_a_process_is_controlled_over_http_and_logs_the_same() -> None:
    with vendor_process({"m": Script(tokens=2)}, "--name", "simulated-closed") as vendor:
        assert isinstance(vendor, VendorProcess)
        vendor.forbid([b"canary-4711"])
        vendor.page("/metrics", Page(200, "text/plain", b"up 1\n"))
        port = int(vendor.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(http(CHAT, chat(user="canary-4711"), "X-Tag: 1"))
            assert b'"a scale"' in sock.recv(65536)
            sock.sendall(http("/metrics", b"", method="GET"))
            assert sock.recv(65536).endswith(b"up 1\n")
        first, second = vendor.log
        assert (first.model, first.headers["x-tag"], first.outcome) == ("m", "1", "completed")
        assert 0 <= time.monotonic() - first.received_at < 60
        assert second.path == "/metrics"
        assert [hit.canary for hit in vendor.hits] == [b"canary-4711"]
        assert (vendor.received, vendor.concurrent) == (2, 0)
        vendor.clear()
        assert (vendor.log, vendor.hits) == ([], [])


async def test_a_process_breaks_the_wire_as_a_loop_does() -> None:
    """The process runs on uvloop where there is one, whose transports are another code."""
    names = ("reset_before_head", "reset_after_3", "close_after_3", "stall_after_3")
    with vendor_process({name: FAULTS[name] for name in names}) as vendor:
        wires = [await ask(vendor, http(CHAT, chat(name, stream=True))) for name in names]
        assert [wire.end for wire in wires] == ["reset", "reset", "closed", "open"]
        assert [len(wire.text.split()) for wire in wires] == [0, 3, 3, 3]
        await until(lambda: vendor.concurrent == 0)
        assert [seen.outcome for seen in vendor.log] == ["cut", "cut", "cut", "aborted"]


def test_a_process_takes_its_timing_from_the_command_line() -> None:
    arguments = ("--dialect", "vllm", "--ttft-ms", "30", "--tokens", "2", "--script", '{"seed":1}')
    with vendor_process(None, *arguments) as vendor:
        state = vendor.control()
        assert list(state["scripts"]) == ["simulated"]
        script = state["default"]
        assert (script["ttft_s"], script["tokens"], script["seed"]) == (0.03, 2, 1)
        assert script["finish"] == "on_last_chunk"


@pytest.mark.skipif(sys.platform == "win32", reason="kills its parent with SIGKILL")
def test_a_process_dies_with_its_parent() -> None:
    parent = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'gateway.demo.scripted_vendor'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert process.stdout.readline().startswith("listening on http://127.0.0.1:")
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        # Orphaned, it may stay as a zombie where no init reaps.
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.05)
    else:
        pytest.fail("the vendor outlived its parent")
    process.stdout.close()
