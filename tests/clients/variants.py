"""The compatibility table: how an upstream behaves, and what any app behind the gateway must see.

After C1 of the research, and wider: every fault the scripted vendor knows is in it. An app sees one
of three things, and nothing in between:

    ANSWER      the whole text, the finish reason, the usage
    a status    a typed error before any text
    BROKEN      some text, then an error that is raised

What SDKs make of some of these upstreams without a gateway is in `ALONE`: the reason for the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.vendor import FAULTS, Script

# With wide characters, so that every row proves them too.
TEXT = "Zürich wägt die Last vor 日本"
TOKENS = 6
ANSWER: Literal["answer"] = "answer"
BROKEN: Literal["broken"] = "broken"
Seen = Literal["answer", "broken"] | int

CLIENTS = ("openai-python", "openai-node", "langchain", "ai-sdk")


@dataclass(frozen=True)
class Variant:
    """One behaviour of an upstream; what is seen of a streamed and of a whole answer.

    code: of the error. usage, finish: of an ANSWER. raised_by_the_sdk: clients whose SDK raises
    after the whole text, by a rule of its own.
    """

    script: Script
    stream: Seen
    whole: Seen | None
    code: str | None = None
    raised_by_the_sdk: tuple[str, ...] = ()

    @property
    def finish(self) -> str | None:
        return None if self.script.finish == "absent" else "stop"

    @property
    def usage(self) -> bool:
        return self.script.usage != "none"


def _as_broken_by_vendor() -> dict[str, Variant]:
    """A row for each of the vendor's faults."""
    return {
        name: Variant(replace(FAULTS[name], text=TEXT), *expected)
        for name, expected in _EXPECTED.items()
    }


_TIMEOUT = "upstream_timeout"
_BROKE = "upstream_broken"
_OURS = "upstream_refused"  # our key or our catalog: no code that an app takes for its own key
_LONG = "context_length_exceeded"

# name in FAULTS -> (streamed, whole, code, clients that raise by themselves)
_EXPECTED: dict[str, tuple[Any, ...]] = {
    # Before the head: the true status, whatever the SDK asked for.
    "hang_before_head": (504, 504, _TIMEOUT),
    "close_before_head": (502, 502, _BROKE),
    "reset_before_head": (502, 502, _BROKE),
    "status_400": (400, 400, "invalid_value"),
    "status_401": (502, 502, _OURS),
    "status_404": (502, 502, _OURS),
    "status_429": (429, 429, "rate_limit_exceeded"),
    "status_500": (502, 502, _BROKE),
    "status_503_vllm": (503, 503, "service_unavailable"),
    "status_400_context_openai": (400, 400, _LONG),
    "status_400_context_vllm": (400, 400, _LONG),
    "status_400_context_llama_cpp": (400, 400, _LONG),
    "status_422_fastapi": (422, 422, "invalid_value"),
    "status_401_string": (502, 502, _OURS),
    "status_502_html": (502, 502, _BROKE),
    "status_500_text": (502, 502, _BROKE),
    "status_500_empty": (502, 502, _BROKE),
    "status_200_html": (502, 502, _BROKE),
    # After the head, before the first token: nothing has gone out yet, so the status is true.
    "stall_before_token": (504, 504, _TIMEOUT),
    "stall_before_token_with_pings": (504, 504, _TIMEOUT),
    "stall_after_role": (504, 504, _TIMEOUT),
    "reset_before_token": (502, 502, _BROKE),
    "close_before_token": (502, 502, _BROKE),
    "end_before_token": (502, 502, _BROKE),
    "error_before_token": (502, 502, _BROKE),
    "document_for_stream": (502, ANSWER, _BROKE),
    "text_html": (502, ANSWER, _BROKE),
    # After content. An answer that is not streamed has not begun: it has its status.
    "stall_after_3": (BROKEN, 504, _TIMEOUT),
    "stall_after_3_with_pings": (BROKEN, 504, _TIMEOUT),
    "reset_after_3": (BROKEN, 502, _BROKE),
    "close_after_3": (BROKEN, 502, _BROKE),
    "end_after_3": (BROKEN, 502, _BROKE),
    "half_event_after_3": (BROKEN, 502, _BROKE),
    "error_after_3": (BROKEN, 502, _BROKE),
    "error_after_3_vllm": (BROKEN, 502, _BROKE),
    "garbage_after_3": (BROKEN, 502, _BROKE),
    # Odd, and understood all the same. [DONE] says that all was said, so we do not call it cut;
    # the AI SDK wants a finish reason.
    "no_finish": (ANSWER, ANSWER, None, ("ai-sdk",)),
    **dict.fromkeys(
        (
            *("no_done", "no_role", "finish_on_last_chunk", "usage_on_last_chunk", "usage_twice"),
            *("usage_never", "usage_unasked", "usage_in_each_chunk", "crlf", "cr", "no_space"),
            *("multiline", "event_ids", "bom", "pings", "split_utf8", "sliced", "not_chunked"),
            *("closes_each", "keep_alive_lie"),
        ),
        (ANSWER, ANSWER),
    ),
}
# Not of this table: they are about how much is said.
_ELSEWHERE = {"huge_line_after_3", "overrun"}

_PINGED = Script(tokens=TOKENS, itl_s=0.02, ping_every_s=0.005, text=TEXT)
_FINISHED = Script(
    tokens=TOKENS, text=TEXT, finish="on_last_chunk", usage="none", fault_after=TOKENS
)
_FOREIGN = Script(tokens=TOKENS, itl_s=0.002, fault="garbage_line", fault_after=3, text=TEXT)


def _with(event: str) -> Script:
    """A sound stream with a foreign event in its middle."""
    return replace(_FOREIGN, garbage=event + "\n\n")


VARIANTS: dict[str, Variant] = {
    **_as_broken_by_vendor(),
    # C1's rows that no fault of the vendor has a name for.
    "pings_with_event_ids": Variant(replace(_PINGED, event_ids=True), ANSWER, None),
    "ping_events": Variant(
        replace(_PINGED, ping='event: ping\ndata: {"type": "ping"}\n\n'), ANSWER, None
    ),
    "empty_data": Variant(replace(_PINGED, ping="data:\n\n"), ANSWER, None),
    "foreign_object": Variant(_with('data: {"warning": "quota nearly used"}'), ANSWER, None),
    "chunk_without_choices": Variant(
        _with(
            'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m",'
            '"choices":[],"prompt_filter_results":[{"prompt_index":0}]}'
        ),
        ANSWER,
        None,
    ),
    # All was said: what the farewell lacks is no matter.
    "closed_after_the_finish": Variant(replace(_FINISHED, fault="close"), ANSWER, None),
    "silent_after_the_finish": Variant(replace(_FINISHED, fault="stall"), ANSWER, None),
    "error_event_named": Variant(
        _with('event: error\ndata: {"error":{"message":"GPU lost","type":"server_error"}}'),
        BROKEN,
        None,
        _BROKE,
    ),
}


def missing_faults() -> set[str]:
    """Faults of the vendor that have no row here."""
    return FAULTS.keys() - VARIANTS.keys() - _ELSEWHERE


# (variant, sdk) -> what the SDK makes of it when nothing stands between.
ALONE = {
    ("end_after_3", "openai-python"): "took the half for the whole",
    ("end_after_3", "openai-node"): "took the half for the whole",
    ("end_after_3", "langchain"): "took the half for the whole",
    ("usage_twice", "langchain"): "counted too many tokens",
    ("usage_in_each_chunk", "langchain"): "counted too many tokens",
    ("pings_with_event_ids", "openai-python"): "failed on a sound stream",
    ("pings_with_event_ids", "langchain"): "failed on a sound stream",
    ("foreign_object", "openai-python"): "failed on a sound stream",
    ("foreign_object", "openai-node"): "failed on a sound stream",
    ("foreign_object", "ai-sdk"): "failed on a sound stream",
    ("status_422_fastapi", "openai-node"): "dumped the body as the message",
}


def alias_of(variant: str, client: str, form: str) -> str:
    """The alias whose only backend behaves as `variant`, for this client and form alone."""
    return f"{variant}-{client}-{form}"
