"""What the contract suite asks of every wire: calls, how to drive them, and the expected ends.

`STREAMED` and `WHOLE` name the end of each of `tests.vendor.FAULTS`; a fault without a row there
fails the suite, so a new way to break is a new promise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import orjson

from gateway.backends.base import Call, Piece, Wire
from gateway.domain.catalog import Backend, Kind, Model
from gateway.domain.errors import (
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.domain.money import Meter
from gateway.domain.request import Endpoint, ModelRequest, Usage
from tests.vendor import FAULTS, OPENAI, Script, Seen

ALIAS = "the-alias"
SECRET = "sk-contract-0123456789"
FIRST_CHUNK_S_MAX = 0.6
IDLE_S_MAX = 0.3

TEXT = "one two three four five six"
WIDE_TEXT = "Zürich wägt naïve 日本 façade λόγος"
SCRIPTS = {
    name: script if script.split_utf8 else replace(script, text=TEXT)
    for name, script in FAULTS.items()
} | {"plain": replace(OPENAI, text=TEXT)}


def usage_body(
    prompt_tokens: int,
    completion_tokens: int,
    total_tokens: int | None = None,
    prompt: dict | None = None,
    completion: dict | None = None,
) -> dict:
    """A usage object of OpenAI's wire, with the zeros that are in it."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": total_tokens or prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0, **(prompt or {})},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            **(completion or {}),
        },
    }


# ---- how a fault must end --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ends:
    """All is said. `usage` is False where the vendor never told it."""

    text: str = TEXT
    usage: bool = True


@dataclass(frozen=True, slots=True)
class Fails:
    """An UpstreamError of exactly this class, after exactly this text."""

    kind: type[UpstreamError]
    status: int = 0
    code: str | None = None  # None: any
    retry_after_s: float | None = None
    text: str = ""


_TOO_LONG = Fails(UpstreamRejected, 400, "context_length_exceeded")
BEFORE_BODY: dict[str, Fails] = {
    "hang_before_head": Fails(UpstreamTimeout),
    "close_before_head": Fails(UpstreamBroken),
    "reset_before_head": Fails(UpstreamBroken),
    "status_400": Fails(UpstreamRejected, 400, "invalid_value"),
    "status_401": Fails(UpstreamRefused, 401, "invalid_api_key"),
    "status_401_string": Fails(UpstreamRefused, 401, "invalid_api_key"),
    "status_404": Fails(UpstreamRefused, 404, "model_not_found"),
    "status_422_fastapi": Fails(UpstreamRejected, 422, "invalid_value"),
    "status_429": Fails(UpstreamBusy, 429, "rate_limit_exceeded", retry_after_s=2.0),
    "status_500": Fails(UpstreamBroken, 500, "server_error"),
    "status_500_text": Fails(UpstreamBroken, 500, "server_error"),
    "status_500_empty": Fails(UpstreamBroken, 500, "server_error"),
    "status_502_html": Fails(UpstreamBroken, 502, "server_error"),
    "status_503_vllm": Fails(UpstreamBusy, 503, "service_unavailable"),
    "status_400_context_openai": _TOO_LONG,
    "status_400_context_vllm": _TOO_LONG,
    "status_400_context_llama_cpp": _TOO_LONG,
    "status_200_html": Fails(UpstreamBroken),
}
_UNDERSTOOD: dict[str, Ends] = {
    "huge_line_after_3": Ends(),
    "no_done": Ends(),
    "no_finish": Ends(),  # [DONE] is an end, too
    "finish_on_last_chunk": Ends(),
    "usage_on_last_chunk": Ends(),
    "usage_twice": Ends(),
    "usage_never": Ends(usage=False),
    "usage_unasked": Ends(),
    "usage_in_each_chunk": Ends(),
    "no_role": Ends(),
    "overrun": Ends(3 * TEXT),
    "crlf": Ends(),
    "cr": Ends(),
    "no_space": Ends(),
    "multiline": Ends(),
    "event_ids": Ends(),
    "bom": Ends(),
    "pings": Ends(),
    "split_utf8": Ends(WIDE_TEXT),
    "sliced": Ends(),
    "not_chunked": Ends(),
    "closes_each": Ends(),
    "keep_alive_lie": Ends(),
    "plain": Ends(),
}
_AFTER_3 = "one two three"
STREAMED: dict[str, Ends | Fails] = {
    **BEFORE_BODY,
    **_UNDERSTOOD,
    "stall_before_token": Fails(UpstreamTimeout),
    "stall_before_token_with_pings": Fails(UpstreamTimeout),
    "stall_after_role": Fails(UpstreamTimeout),
    "reset_before_token": Fails(UpstreamBroken),
    "close_before_token": Fails(UpstreamBroken),
    "end_before_token": Fails(UpstreamBroken),
    "error_before_token": Fails(UpstreamBroken, 500),
    "document_for_stream": Fails(UpstreamBroken),
    "text_html": Fails(UpstreamBroken),
    "stall_after_3": Fails(UpstreamTimeout, text=_AFTER_3),
    "stall_after_3_with_pings": Fails(UpstreamTimeout, text=_AFTER_3),
    "reset_after_3": Fails(UpstreamBroken, text=_AFTER_3),
    "close_after_3": Fails(UpstreamBroken, text=_AFTER_3),
    "end_after_3": Fails(UpstreamBroken, text=_AFTER_3),
    "half_event_after_3": Fails(UpstreamBroken, text=_AFTER_3),
    "error_after_3": Fails(UpstreamBroken, 500, text=_AFTER_3),
    "error_after_3_vllm": Fails(UpstreamBroken, 500, text=_AFTER_3),
    "garbage_after_3": Fails(UpstreamBroken, text=_AFTER_3),
}
_STALLED, _CUT = Fails(UpstreamTimeout), Fails(UpstreamBroken)
WHOLE: dict[str, Ends | Fails] = {
    **BEFORE_BODY,
    **_UNDERSTOOD,
    "document_for_stream": Ends(),
    "text_html": Ends(),
    "stall_before_token": _STALLED,
    "stall_before_token_with_pings": _STALLED,
    "stall_after_role": _STALLED,
    "stall_after_3": _STALLED,
    "stall_after_3_with_pings": _STALLED,
    "reset_before_token": _CUT,
    "reset_after_3": _CUT,
    "close_before_token": _CUT,
    "close_after_3": _CUT,
    "half_event_after_3": _CUT,
    "end_before_token": _CUT,
    "end_after_3": _CUT,
    "error_before_token": Fails(UpstreamBroken, 500),
    "error_after_3": Fails(UpstreamBroken, 500),
    "error_after_3_vllm": Fails(UpstreamBroken, 500),
    "garbage_after_3": _CUT,
}


# ---- what usage means ------------------------------------------------------------------------

# name -> the usage a vendor tells on OpenAI's wire, and what it meters. `tests.unit.backends.
# test_usage` has the tables of every vendor; here it is that no wire loses a part of it.
USAGES: dict[str, tuple[dict, Usage]] = {
    "cached": (
        usage_body(2006, 300, prompt={"cached_tokens": 1920}),
        Usage(86, 1920, 300),
    ),
    "cache_writing": (
        usage_body(2600, 300, prompt={"cached_tokens": 2000, "cache_write_tokens": 400}),
        Usage(200, 2000, 300, others={Meter.CACHE_WRITE_5M: 400}),
    ),
    "reasoning": (
        usage_body(9, 500, completion={"reasoning_tokens": 448}),
        Usage(9, 0, 500, 448),
    ),
    "reasoning_apart": (
        usage_body(2341, 31, 3108, {"cached_tokens": 448}, {"reasoning_tokens": 736}),
        Usage(1893, 448, 767, 736),
    ),
    "audio": (
        usage_body(150, 200, prompt={"audio_tokens": 110}, completion={"audio_tokens": 160}),
        Usage(40, 0, 40, others={Meter.INPUT_AUDIO: 110, Meter.OUTPUT_AUDIO: 160}),
    ),
    "hidden": (
        usage_body(20, 198, 623),
        Usage(
            20,
            0,
            603,
            405,
            contradiction="prompt 20, output 198, of a cache 0, reasoning 0 do not make the total 623",
        ),
    ),
}


# ---- calls -----------------------------------------------------------------------------------


def backend(url: str, **changes: object) -> Backend:
    """A backend at the vendor's address; `vendor` is read by the litellm wire only."""
    return replace(
        Backend(
            name="b1",
            kind=Kind.SELF_HOSTED,
            wire="any",
            base_url=f"{url}/v1",
            models={},
            clearance=0,
            secret="env:ANY",
            vendor="openai",
        ),
        **changes,
    )


def call(
    where: Backend | str,
    model: str = "plain",
    *,
    stream: bool = True,
    usage_wanted: bool = False,
    endpoint: Endpoint = Endpoint.CHAT,
    privacy: int = 0,
    **document: object,
) -> Call:
    """A call as dispatch makes it: the document says what its `stream` says."""
    content: dict[Endpoint, dict[str, object]] = {
        Endpoint.CHAT: {"messages": [{"role": "user", "content": "how heavy is it?"}]},
        Endpoint.COMPLETIONS: {"prompt": "how heavy is it?"},
        Endpoint.EMBEDDINGS: {"input": ["a", "b"]},
    }
    whole = {"model": ALIAS, **content[endpoint], **document}
    if stream:
        whole["stream"] = True
        if usage_wanted:
            whole["stream_options"] = {"include_usage": True}
    return Call(
        request_id="req_contract",
        request=ModelRequest(
            endpoint=endpoint,
            alias=ALIAS,
            document=whole,
            stream=stream,
            usage_wanted=usage_wanted,
            prompt_tokens=4,
            output_tokens_max=None,
            needs=frozenset(),
        ),
        backend=backend(where) if isinstance(where, str) else where,
        model=Model(name=model),
        connect_s_max=1.0,
        first_chunk_s_max=FIRST_CHUNK_S_MAX,
        idle_s_max=IDLE_S_MAX,
        privacy=privacy,
    )


# ---- answers ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    """All that came of a call, and the error it ended with."""

    streamed: bool = True
    opened: bool = False
    pieces: list[Piece] = field(default_factory=list)
    error: UpstreamError | None = None

    @property
    def data(self) -> bytes:
        return b"".join(piece.data for piece in self.pieces)

    @property
    def documents(self) -> list[dict]:
        return parse(self.data) if self.streamed else [orjson.loads(self.data)]

    @property
    def usage(self) -> Usage | None:
        """As dispatch takes it: the last one told."""
        return next((piece.usage for piece in reversed(self.pieces) if piece.usage), None)

    @property
    def shown_usage(self) -> list[dict]:
        return [document["usage"] for document in self.documents if document.get("usage")]

    def text(self, index: int = 0) -> str:
        said = []
        for choice in self.choices(index):
            part = choice.get("delta") or choice.get("message") or choice
            said.append(part.get("content") or part.get("text") or "")
        return "".join(said)

    def choices(self, index: int = 0) -> list[dict]:
        return [
            choice
            for document in self.documents
            for choice in document.get("choices", ())
            if choice["index"] == index
        ]


async def drive(wire: Wire, what: Call) -> Answer:
    """Open and read to the end; only UpstreamErrors may come out."""
    answer = Answer(streamed=what.request.stream)
    try:
        reply = await wire.open(what)
        answer.opened = True
        assert reply.streamed is what.request.stream
        while (piece := await reply.next()) is not None:
            answer.pieces.append(piece)
        assert await reply.next() is None
        reply.close()
    except UpstreamError as error:
        answer.error = error
    return answer


def parse(data: bytes) -> list[dict]:
    """Strictly: whole events, each one `data` line (or several), nothing else."""
    documents = []
    *events, rest = data.split(b"\n\n")
    assert rest == b"", f"half an event: {rest[-100:]!r}"
    for event in events:
        lines = event.split(b"\n")
        assert all(line.startswith(b"data: ") for line in lines), event
        documents.append(orjson.loads(b"\n".join(line[6:] for line in lines)))
    return documents


def truth(seen: Seen) -> tuple[int, int]:
    """What the vendor's bill would say: prompt tokens, completion tokens."""
    return seen.prompt_tokens, seen.completion_tokens


def script(**changes: object) -> Script:
    return replace(OPENAI, **{"text": TEXT, **changes})
