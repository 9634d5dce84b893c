"""A scripted stand-in for a model vendor: it imitates the wire of one, and is not one.

Owns: an HTTP/1.1 server that answers chat completions, legacy completions, embeddings and models
as its `Script` says, well-formed or broken in a named way, and a log of what reached it. The demo
runs it with honest timing and the label "simulated"; contract, chaos and client tests run it as
the far side of the wire.

Must not know: anything else of `gateway`. What it says is made of a word list; no figure it yields
is a measurement of any vendor.

The format comes from the OpenAI API reference (chat, chat streaming, completions, embeddings,
models, error codes), from vLLM 0.32 as observed (`VLLM`: finish reason on the last content chunk,
int error codes, running usage) and from llama.cpp's server as observed (`LLAMA_CPP`: usage without
being asked, a connection announced as kept alive and then closed).

Invariants
- Pure functions compile a request into a `Plan`: bytes, and the pause before each. Playing it is
  all a connection does. So a fault is data in a plan, and the same script and request give the
  same bytes, save the identity (id, created).
- Times in the log are `time.monotonic()` seconds, comparable between processes of one machine.
- Canaries are searched in every byte received, over read boundaries, and again in a body that came
  in pieces (a chunked body has framing inside).
- Nothing grows without a limit: the log and the caches are bounded.

What a fault does once `fault_after` tokens are out (0: right after the head)

                     streamed                                     not streamed
  hang_before_head   not one byte, ever                           the same
  close_before_head  the connection ends without one byte         the same
  reset_before_head  TCP reset without one byte                   the same
  stall              silence, the connection stays open           half the body, silence
  reset              TCP reset                                    half the body, TCP reset
  close              the connection ends inside the HTTP body     half the body, connection ends
  end                the body ends well, no finish, no [DONE]     an empty 200
  half_event         half the next event, the connection ends     half the body, connection ends
  error_event        `data: {"error": ...}`, the body ends        200 with the error document
  garbage_line       `garbage` as it stands, then on              200 with `garbage` as the body
  huge_line          a valid event of `huge_bytes`, then on       a document, then that many blanks
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import random  # noqa: TID251 - only random.Random(seed), and the seed is an argument
import re
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from http import HTTPStatus
from typing import Literal, NamedTuple, Self, cast, get_args

import httptools
import orjson

Usage = Literal[
    "null_each_chunk", "final_chunk", "on_last_chunk", "duplicate", "continuous", "none"
]
Finish = Literal["own_chunk", "on_last_chunk", "absent"]
Role = Literal["with_first_token", "early", "absent"]
ErrorShape = Literal["openai", "vllm", "llama_cpp", "fastapi", "string", "html", "text", "empty"]
KeepAlive = Literal["keep", "close", "lie"]
Fault = Literal[
    "none",
    "hang_before_head",
    "close_before_head",
    "reset_before_head",
    "stall",
    "reset",
    "close",
    "end",
    "half_event",
    "error_event",
    "garbage_line",
    "huge_line",
]
End = Literal["keep", "close", "reset", "hang"]
Outcome = Literal["open", "completed", "cut", "aborted"]
Json = dict[str, object]

_CHOICES: dict[str, tuple[str, ...]] = {
    "usage": get_args(Usage),
    "finish": get_args(Finish),
    "role": get_args(Role),
    "error": get_args(ErrorShape),
    "keep_alive": get_args(KeepAlive),
    "fault": get_args(Fault),
    "line_end": ("\n", "\r\n", "\r"),
}
_CACHE_MAX = 512


class ScriptError(ValueError):
    """A script that names an unknown field, or a value that its field does not take."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Script:
    """How one model answers. The default is OpenAI's documented wire, at once, without a fault.

    Compared by identity: a script is a key of the plan cache, and hashing fifty fields would cost
    more than an answer.
    """

    # What is said. A token is a word of `text`, or of a fixed list turned by `seed` (a seed in the
    # request wins).
    tokens: int = 16
    text: str = ""
    seed: int = 0
    overrun_factor: int = 0  # above 0: ignores the request's limit and says that multiple of it
    reasoning_tokens: int = 0
    reasoning_field: str = ""  # "": hidden as at OpenAI; else the delta's field
    tool_calls: tuple[tuple[str, str], ...] = ()  # (name, arguments as JSON text)
    dimensions: int = 8  # of an embedding whose request names none

    # How the stream opens, counts and ends.
    role: Role = "with_first_token"
    finish: Finish = "own_chunk"
    done: bool = True
    usage: Usage = "null_each_chunk"
    usage_unasked: bool = False  # also without stream_options
    usage_details: bool = True
    usage_as: str = ""  # a JSON object told in place of the usage that was counted
    cached_tokens: int = 0
    service_tier: str = ""  # beside the usage, as OpenAI tells it

    # When. A non-streamed answer takes as long as its stream would.
    head_delay_s: float = 0.0
    ttft_s: float = 0.0
    ttft_per_1k_s: float = 0.0  # added for each 1,000 prompt tokens that are not cached
    itl_s: float = 0.0
    jitter: float = 0.0  # sigma of the lognormal factor (mean 1) on each pause

    # Refusals: an error document for any status but 200, and for 200 where the shape is html, text
    # or empty.
    status: int = 200
    error: ErrorShape = "openai"
    error_message: str = ""
    error_type: str = ""
    error_code: str = ""
    error_param: str = ""
    retry_after_s: float = -1.0  # below 0: no header
    headers: tuple[tuple[str, str], ...] = ()
    failure_rate: float = 0.0
    failure_status: int = 500

    # One fault, see the table in the module's law.
    fault: Fault = "none"
    fault_after: int = 0
    garbage: str = 'data: {"id":"chatcmpl-\n\n'
    huge_bytes: int = 1_100_000

    # How the bytes lie on the wire.
    ignore_stream: bool = False  # one JSON document though a stream was asked for
    content_type: str = ""
    chunked: bool = True  # False: the end of the connection is the end of the stream
    keep_alive: KeepAlive = "keep"
    slice_bytes: int = 0
    slice_gap_s: float = 0.002
    line_end: str = "\n"
    data_space: bool = True
    multiline: bool = False  # one event's document over three data lines
    event_ids: bool = False
    bom: bool = False
    split_utf8: bool = False  # wide words, each event of one sent as two, cut inside a character
    ping_every_s: float = 0.0
    ping: str = ": ping\n\n"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ScriptError(f"{name} must be one of {', '.join(map(repr, allowed))}")
        if self.tokens < 0 or self.slice_bytes < 0 or not 0 <= self.huge_bytes <= 1 << 28:
            raise ScriptError("tokens, slice_bytes, huge_bytes: 0 or more, huge_bytes to 256 MiB")


OPENAI = Script()
VLLM = Script(
    finish="on_last_chunk",
    usage="continuous",
    usage_details=False,
    error="vllm",
    reasoning_field="reasoning",
)
LLAMA_CPP = Script(
    usage="final_chunk",
    usage_unasked=True,
    error="llama_cpp",
    reasoning_field="reasoning_content",
    keep_alive="lie",
)
KATAN = Script(finish="on_last_chunk", usage="on_last_chunk", usage_unasked=True)
DIALECTS = {"openai": OPENAI, "vllm": VLLM, "llama_cpp": LLAMA_CPP, "katan": KATAN}

_DEFAULTS = {field.name: field.default for field in fields(Script)}


def script_from(document: object, base: Script = OPENAI) -> Script:
    """`base` with the fields of a JSON object laid over it. Raises ScriptError."""
    if not isinstance(document, dict):
        raise ScriptError("a script is a JSON object")
    for name in document:
        if name not in _DEFAULTS:
            raise ScriptError(f"a script has no field {name!r}")
    changes = {str(name): _field(name, value) for name, value in document.items()}
    return replace(base, **changes)  # type: ignore[arg-type] # each checked by _field


def _field(name: str, value: object) -> object:
    kind = type(_DEFAULTS[name])
    if kind is tuple:
        try:
            pairs = cast("list[list[object]]", value)
            return tuple((str(first), str(second)) for first, second in pairs)
        except (TypeError, ValueError):
            raise ScriptError(f"{name} must be a list of pairs of texts") from None
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ScriptError(f"{name} must be {kind.__name__}, not {type(value).__name__}")
    return value


# --- the request ----------------------------------------------------------------------------------


class Ask(NamedTuple):
    """What of a request shapes its answer; with the script, the key of the plan cache."""

    model: str
    prompt_tokens: int
    legacy: bool = False  # /v1/completions
    stream: bool = False
    choices: int = 1
    limit: int | None = None
    include_usage: bool = False
    continuous: bool = False
    json_mode: bool = False
    logprobs: int = -1  # -1: not asked; else how many alternatives
    seed: int | None = None


class Refusal(Exception):
    """A request that a vendor refuses as invalid, whatever the script."""

    def __init__(self, status: int, message: str, param: str = "", code: str = "") -> None:
        super().__init__(message)
        self.reply = Script(
            status=status, error_message=message, error_param=param, error_code=code
        )


def ask_from(document: object, *, legacy: bool) -> Ask:
    """Reads a chat or legacy completion request. Raises Refusal."""
    model, body = _model_of(document)
    name = "prompt" if legacy else "messages"
    prompt = body.get(name)
    if not (isinstance(prompt, list) or (legacy and isinstance(prompt, str))):
        raise _missing(name)
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if not (limit is None or (type(limit) is int and limit > 0)):
        raise Refusal(400, "Invalid 'max_tokens': integer above 0.", "max_tokens", "invalid_value")
    choices = body.get("n") or 1
    if not isinstance(choices, int) or not 1 <= choices <= 128:
        raise Refusal(400, "Invalid 'n': integer from 1 to 128.", "n", "invalid_value")
    if legacy and isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        choices *= len(prompt)
    options, shape, seed = _object(body, "stream_options"), _object(body, "response_format"), None
    if type(body.get("seed")) is int:
        seed = cast("int", body["seed"])
    return Ask(
        model=model,
        prompt_tokens=_prompt_tokens(prompt),
        legacy=legacy,
        stream=body.get("stream") is True,
        choices=choices,
        limit=limit,
        include_usage=bool(options.get("include_usage")),
        continuous=bool(options.get("continuous_usage_stats")),
        json_mode=shape.get("type") in ("json_object", "json_schema"),
        logprobs=_alternatives(body, legacy),
        seed=seed,
    )


def _model_of(document: object) -> tuple[str, Mapping[str, object]]:
    if not isinstance(document, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "you must provide a model parameter", "model")
    return model, document


def _missing(name: str) -> Refusal:
    return Refusal(
        400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter"
    )


def _object(body: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _alternatives(body: Mapping[str, object], legacy: bool) -> int:
    asked = body.get("logprobs")
    if asked is None or asked is False:
        return -1
    count = asked if legacy else body.get("top_logprobs")
    return count if isinstance(count, int) else 0


def _prompt_tokens(prompt: object) -> int:
    """A quarter of the characters (a rule of thumb for English), or the token ids; at least 1."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    return max(1, _characters(prompt) // 4)


def _characters(node: object) -> int:
    if isinstance(node, str):
        return len(node)
    if isinstance(node, list):
        return sum(map(_characters, node))
    if isinstance(node, dict):
        return _characters(node.get("content") or node.get("text"))
    return 4 if isinstance(node, int) else 0


# --- what is said ---------------------------------------------------------------------------------

_WORDS = (
    *("a", "scale", "reads", "the", "load", "before", "the", "road", "does", "and", "every"),
    *("cart", "that", "passes", "leaves", "its", "weight", "in", "the", "book", "so", "the"),
    *("owner", "may", "count", "what", "was", "carried", "how", "far", "by", "whom", "at"),
    *("which", "price", "for", "as", "long", "as", "there", "is", "a", "record", "kept"),
)
_WIDE_WORDS = ("Zürich", "wägt", "naïve", "日本", "façade", "λόγος", "größer", "🚚")
_FINGERPRINT = "fp_simulated"


class _Said(NamedTuple):
    """One choice's answer: its tokens as deltas of a chat chunk, and why it ends."""

    deltas: list[Json]
    finish: str

    def pieces(self, name: str) -> list[str]:
        return [cast("str", delta[name]) for delta in self.deltas if name in delta]


def _say(script: Script, ask: Ask, choice: int) -> _Said:
    overrun, limit = script.overrun_factor, ask.limit
    count = overrun * (limit or script.tokens) if overrun else script.tokens
    seed = (script.seed if ask.seed is None else ask.seed) + 7 * choice
    if script.text:
        pieces = re.findall(r"\s*\S+|\s+$", script.text) * max(1, overrun)
    else:
        pieces = _words(_WIDE_WORDS if script.split_utf8 else _WORDS, count, seed)
        if ask.json_mode:
            pieces = ['{"answer": "', *pieces[: max(0, count - 2)], '"}']
    deltas: list[Json] = [{"content": piece} for piece in pieces]
    finish = "stop"
    if script.tool_calls and not ask.legacy:
        deltas, finish = _tool_deltas(script.tool_calls), "tool_calls"
    if script.reasoning_field and not ask.legacy:
        thought = _words(_WORDS, script.reasoning_tokens, seed + 3)
        deltas[:0] = [{script.reasoning_field: piece} for piece in thought]
    elif limit is not None:
        limit = max(0, limit - script.reasoning_tokens)  # what stays hidden is paid from the limit
    if limit is not None and not overrun and len(deltas) > limit:
        deltas, finish = deltas[:limit], "length"
    return _Said(deltas, finish)


def _words(words: Sequence[str], count: int, seed: int) -> list[str]:
    return [f"{' ' if at else ''}{words[(seed + at) % len(words)]}" for at in range(count)]


def _tool_deltas(calls: Sequence[tuple[str, str]]) -> list[Json]:
    """Index on every delta, id and name once, the arguments in pieces of eight characters."""
    deltas: list[Json] = []
    for index, (name, arguments) in enumerate(calls):
        opening = {"name": name, "arguments": ""}
        call = {"index": index, "id": f"call_{index:08x}", "type": "function", "function": opening}
        deltas.append({"tool_calls": [call]})
        for at in range(0, len(arguments), 8):
            piece = {"arguments": arguments[at : at + 8]}
            deltas.append({"tool_calls": [{"index": index, "function": piece}]})
    return deltas


def _chat_logprobs(pieces: Sequence[str], alternatives: int) -> Json | None:
    def entry(token: str, logprob: float) -> Json:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    def top(piece: str) -> list[Json]:
        others = (f" {word}" for word in _WORDS[1:alternatives])
        tokens = [piece, *others][:alternatives]
        return [entry(token, -0.25 - rank) for rank, token in enumerate(tokens)]

    content = [{**entry(piece, -0.25), "top_logprobs": top(piece)} for piece in pieces]
    return {"content": content, "refusal": None} if pieces else None


def _legacy_logprobs(pieces: Sequence[str], alternatives: int) -> Json | None:
    starts = [sum(map(len, pieces[:at])) for at in range(len(pieces))]
    likely = [{piece: -0.25} for piece in pieces] if alternatives else None
    values: Json = {"tokens": list(pieces), "token_logprobs": [-0.25] * len(pieces)}
    return {**values, "top_logprobs": likely, "text_offset": starts} if pieces else None


# --- error documents ------------------------------------------------------------------------------

# status -> (type, code, message), after OpenAI's guide to error codes and bodies seen in the field
_OPENAI_ERRORS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "Invalid request."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Not supported."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
}
_VLLM_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
_ERROR_CONTENT_TYPES = {"html": "text/html", "text": "text/plain; charset=utf-8", "empty": ""}


def error_document(script: Script, status: int) -> bytes:
    """The body of a refusal, in the script's shape."""
    kind, code, message = _OPENAI_ERRORS.get(status, ("server_error", None, _reason(status)))
    message, param = script.error_message or message, script.error_param or None
    if script.error == "vllm":
        kind = _VLLM_TYPES.get(status, _reason(status))
    kind = script.error_type or kind
    title = f"{status} {_reason(status)}"
    match script.error:
        case "openai":
            error: Json = {"message": message, "type": kind, "param": param}
            return orjson.dumps({"error": {**error, "code": script.error_code or code}})
        case "vllm":
            error = {"message": message, "type": kind, "param": param, "code": status}
            return orjson.dumps({"error": error})
        case "llama_cpp":
            return orjson.dumps({"error": {"code": status, "message": message, "type": kind}})
        case "fastapi":
            return orjson.dumps({"detail": message})
        case "string":
            return orjson.dumps({"error": message})
        case "html":
            return f"<html><head><title>{title}</title></head><body>{title}</body></html>".encode()
        case "text":
            return message.encode()
        case "empty":
            return b""


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


# --- the plan -------------------------------------------------------------------------------------

# The identity (id, object, created) differs in each answer but has a fixed width. Plans carry a run
# of NULs in its place, which no JSON text contains; one bytes.replace() at play time makes a cached
# plan this answer's own.
_CHAT = '"id":"chatcmpl-{:016x}","object":"chat.completion","created":{:010d}'
_CHAT_CHUNK = '"id":"chatcmpl-{:016x}","object":"chat.completion.chunk","created":{:010d}'
_LEGACY = '"id":"cmpl-{:016x}","object":"text_completion","created":{:010d}'
_REQUEST_ID = b"\1" * 16


class Step(NamedTuple):
    """Bytes to send after a pause that counts from the step before."""

    gap_s: float
    data: bytes
    tokens: int = 0


class Plan(NamedTuple):
    """An answer, ready to play.

    end: what becomes of the connection. cut: a fault ended it. ping: what to send again and again
    while it hangs.
    """

    steps: tuple[Step, ...]
    status: int = 0
    end: End = "keep"
    cut: bool = False
    stamp: str = ""
    blank: bytes = b""
    jitter: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ping: Step | None = None
    slice_bytes: int = 0
    slice_gap_s: float = 0.0


_BEFORE_HEAD: dict[str, End] = {
    "hang_before_head": "hang",
    "close_before_head": "close",
    "reset_before_head": "reset",
}
_CUTS: dict[str, End] = {
    "stall": "hang",
    "reset": "reset",
    "close": "close",
    "half_event": "close",
}


class _Answer(NamedTuple):
    """All that the two forms of a completion, document and stream, are told from."""

    script: Script
    ask: Ask
    said: list[_Said]  # as many deltas in each choice
    hidden: int  # reasoning tokens of each choice that are counted and not sent
    first_token_s: float
    blank: bytes

    @property
    def length(self) -> int:
        return len(self.said[0].deltas)

    def document(self, choices: list[Json], *usage: Json | None) -> bytes:
        """The JSON text with the identity left blank; with no `usage` the field is absent."""
        body: Json = {"model": self.ask.model, "system_fingerprint": _FINGERPRINT}
        body["choices"] = choices
        if self.script.service_tier:
            body["service_tier"] = self.script.service_tier
        if usage:
            body["usage"] = usage[0]
        return b"{" + self.blank + b"," + orjson.dumps(body)[1:]

    def usage(self, tokens: int) -> Json:
        """The usage object when `tokens` were said besides those that stay hidden."""
        script, hidden = self.script, self.hidden * len(self.said)
        if script.usage_as:
            return cast("Json", orjson.loads(script.usage_as))
        shown = script.reasoning_tokens * len(self.said) if script.reasoning_field else 0
        prompt, completion = self.ask.prompt_tokens, tokens + hidden
        usage: Json = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage["total_tokens"] = prompt + completion
        if script.usage_details:
            cached = min(script.cached_tokens, prompt)
            reasoning = hidden + min(shown, tokens)
            usage["prompt_tokens_details"] = {"cached_tokens": cached, "audio_tokens": 0}
            usage["completion_tokens_details"] = {
                "reasoning_tokens": reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
        return usage


def plan_for(script: Script, ask: Ask) -> Plan:
    """Compiles the answer to a chat or legacy completion."""
    said = [_say(script, ask, choice) for choice in range(ask.choices)]
    hidden = 0 if script.reasoning_field else script.reasoning_tokens
    if ask.limit is not None and not script.overrun_factor:
        hidden = min(hidden, ask.limit)
    fresh = max(0, ask.prompt_tokens - script.cached_tokens)
    first_token_s = script.ttft_s + script.ttft_per_1k_s * fresh / 1000 + script.itl_s * hidden
    stream = ask.stream and not script.ignore_stream
    stamp = _LEGACY if ask.legacy else _CHAT_CHUNK if stream else _CHAT
    blank = b"\0" * len(stamp.format(0, 0))
    answer = _Answer(script, ask, said, hidden, first_token_s, blank)
    plan = _stream_plan(answer) if stream else _single_plan(answer)
    return plan._replace(
        stamp=stamp,
        blank=blank,
        prompt_tokens=ask.prompt_tokens,
        completion_tokens=len(said) * (answer.length + hidden),
    )


def _single_plan(answer: _Answer) -> Plan:
    script, length = answer.script, answer.length
    choices = [_choice(answer, index) for index in range(len(answer.said))]
    tokens = length * len(choices)
    usage = () if script.usage == "none" else (answer.usage(tokens),)
    gap = answer.first_token_s + script.itl_s * max(0, length - 1)
    plan = document_plan(script, answer.document(choices, *usage), gap, tokens=tokens)
    # One pause stands for n; the sum of n independent ones varies by 1/sqrt(n) as much.
    return plan._replace(jitter=script.jitter / max(1, length) ** 0.5)


def _choice(answer: _Answer, index: int) -> Json:
    script, ask, one = answer.script, answer.ask, answer.said[index]
    pieces = one.pieces("content")
    text = "".join(pieces)
    ending: Json = {"finish_reason": None if script.finish == "absent" else one.finish}
    if ask.legacy:
        logprobs = _legacy_logprobs(pieces, ask.logprobs) if ask.logprobs >= 0 else None
        return {"text": text, "index": index, "logprobs": logprobs, **ending}
    message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if script.reasoning_field:
        message[script.reasoning_field] = "".join(one.pieces(script.reasoning_field))
    if one.finish == "tool_calls":
        message["content"] = None
        calls = [{"name": name, "arguments": text} for name, text in script.tool_calls]
        message["tool_calls"] = [
            {"id": f"call_{at:08x}", "type": "function", "function": call}
            for at, call in enumerate(calls)
        ]
    logprobs = _chat_logprobs(pieces, ask.logprobs) if ask.logprobs >= 0 else None
    return {"index": index, "message": message, "logprobs": logprobs, **ending}


def document_plan(
    script: Script,
    body: bytes,
    gap_s: float = 0.0,
    *,
    tokens: int = 0,
    status: int = 200,
    content_type: str = "application/json",
) -> Plan:
    """One whole body, or what the script's fault lets through of it."""
    fault = script.fault
    if fault in _BEFORE_HEAD:
        return _ended(script, [Step(script.head_delay_s, b"")], 0, _BEFORE_HEAD[fault])
    if fault == "end":
        body = b""
    elif fault == "error_event":
        body = error_document(script, 500)
    elif fault == "garbage_line":
        body = script.garbage.encode()
    elif fault == "huge_line":
        body += b" " * script.huge_bytes
    head = _head(script, status, script.content_type or content_type, len(body))
    cut = _CUTS.get(fault)
    if cut:
        body, tokens = body[: _middle(body)], 0
    return _ended(script, [Step(script.head_delay_s + gap_s, head + body, tokens)], status, cut)


def error_plan(script: Script, status: int) -> Plan:
    """A refusal in the script's shape; of its faults only those before the head apply."""
    if script.fault not in _BEFORE_HEAD:
        script = replace(script, fault="none")
    kind = _ERROR_CONTENT_TYPES.get(script.error, "application/json")
    return document_plan(script, error_document(script, status), status=status, content_type=kind)


def _ended(script: Script, steps: list[Step], status: int, cut: End | None) -> Plan:
    return Plan(
        tuple(steps),
        status,
        end=cut or ("keep" if script.keep_alive == "keep" else "close"),
        cut=cut is not None,
        jitter=script.jitter,
        slice_bytes=script.slice_bytes,
        slice_gap_s=script.slice_gap_s,
    )


def _middle(data: bytes) -> int:
    """The middle of what follows the identity, so that the blank for it stays whole."""
    return (data.rfind(b"\0") + 1 + len(data)) // 2


def _head(script: Script, status: int, content_type: str, length: int | None) -> bytes:
    """Status line and fields. With no length: chunked, or a body that the connection's end ends."""
    lines = [f"HTTP/1.1 {status} {_reason(status)}", "server: scripted-vendor"]
    if content_type:
        lines.append(f"content-type: {content_type}")
    if length is not None:
        lines.append(f"content-length: {length}")
    elif script.chunked:
        lines += ["cache-control: no-cache", "transfer-encoding: chunked"]
    if script.keep_alive == "lie":
        lines += ["connection: keep-alive", "keep-alive: timeout=5, max=100"]
    elif script.keep_alive == "close" or (length is None and not script.chunked):
        lines.append("connection: close")
    if script.retry_after_s >= 0:
        lines.append(f"retry-after: {script.retry_after_s:g}")
    lines += [f"{name}: {value}" for name, value in script.headers]
    return "\r\n".join(lines).encode() + b"\r\nx-request-id: req_" + _REQUEST_ID + b"\r\n\r\n"


# --- the stream -----------------------------------------------------------------------------------


def _stream_plan(answer: _Answer) -> Plan:
    script = answer.script
    if script.fault in _BEFORE_HEAD:
        return document_plan(script, b"")
    head = _head(script, 200, script.content_type or "text/event-stream; charset=utf-8", None)
    events = _Stream(answer).events()
    at = _behind(events, script)
    cut = _CUTS.get(script.fault)
    steps = [step for event in _faulted(script, events, at) for step in _framed(script, event)]
    if script.fault == "half_event" and at < len(events):
        whole = _chunk(script, events[at].data)
        steps.append(Step(0, whole[: _middle(whole)]))
    elif cut is None and script.chunked:
        steps.append(Step(0, b"0\r\n\r\n"))
    ping = None
    if script.ping_every_s > 0:
        ping = Step(script.ping_every_s, _chunk(script, script.ping.encode()))
        steps = _with_pings(steps, ping)
    plan = _ended(script, [Step(script.head_delay_s, head), *steps], 200, cut)
    # Without chunks only the end of the connection can tell the end of the body.
    end: End = "close" if plan.end == "keep" and not script.chunked else plan.end
    return plan._replace(end=end, ping=ping)


class _Stream:
    """Tells the events of an undisturbed stream, in the order of OpenAI's reference.

    Choices speak in turn; the pause of a token lies before the first choice's.
    """

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        script, ask = answer.script, answer.ask
        usage = script.usage if ask.include_usage or script.usage_unasked else "none"
        if usage == "continuous" and not (ask.continuous or script.usage_unasked):
            usage = "final_chunk"  # vLLM: running usage only where both options ask for it
        self._usage = usage
        self._tokens = 0
        self._events: list[Step] = []

    def events(self) -> list[Step]:
        script, length = self._answer.script, self._answer.length
        choices = range(len(self._answer.said))
        pause = self._answer.first_token_s
        if script.role != "absent" and not self._answer.ask.legacy:
            for index in choices:
                gap = pause if script.role == "with_first_token" and index == 0 else 0.0
                self._tell(gap, index, {"role": "assistant", "content": "", "refusal": None})
            pause = 0.0 if script.role == "with_first_token" else pause
        on_last = script.finish == "on_last_chunk" and length > 0
        own = script.finish != "absent" and not on_last
        for at in range(length):
            for index in choices:
                one = self._answer.said[index]
                last = at == length - 1
                gap = 0.0 if index else script.itl_s if at else pause
                finish = one.finish if last and on_last else None
                closing = last and not own and index == choices[-1]
                self._tell(gap, index, one.deltas[at], finish, tokens=1, closing=closing)
        for index in choices if own else ():
            closing = index == choices[-1]
            self._tell(0, index, {}, self._answer.said[index].finish, closing=closing)
        return self._ended()

    def _tell(
        self,
        gap_s: float,
        index: int,
        delta: Json,
        finish: str | None = None,
        *,
        tokens: int = 0,
        closing: bool = False,
    ) -> None:
        answer, ask = self._answer, self._answer.ask
        self._tokens += tokens
        content = cast("str", delta.get("content", ""))
        spoken = [content] if content and ask.logprobs >= 0 else []
        choice: Json = {"index": index}
        if ask.legacy:
            choice |= {"text": content, "logprobs": _legacy_logprobs(spoken, ask.logprobs)}
        else:
            choice |= {"delta": delta, "logprobs": _chat_logprobs(spoken, ask.logprobs)}
        choice["finish_reason"] = finish
        usage: tuple[Json | None, ...] = ()
        if self._usage == "continuous" or (
            closing and self._usage in ("on_last_chunk", "duplicate")
        ):
            usage = (answer.usage(self._tokens),)
        elif self._usage == "null_each_chunk":
            usage = (None,)
        self._add(gap_s, answer.document([choice], *usage), tokens)

    def _ended(self) -> list[Step]:
        if self._usage not in ("none", "on_last_chunk"):
            self._add(0, self._answer.document([], self._answer.usage(self._tokens)))
        if self._answer.script.done:
            self._add(0, b"[DONE]")
        if self._answer.script.bom and self._events:
            first = self._events[0]
            self._events[0] = first._replace(data=b"\xef\xbb\xbf" + first.data)
        return self._events

    def _add(self, gap_s: float, document: bytes, tokens: int = 0) -> None:
        data = _event(self._answer.script, document, len(self._events))
        self._events.append(Step(gap_s, data, tokens))


def _event(script: Script, document: bytes, number: int) -> bytes:
    end = script.line_end.encode()
    field = b"data: " if script.data_space else b"data:"
    lines = [document]
    if script.multiline and document[:1] == b"{":
        behind = document.rfind(b"\0") + 2  # the identity and its comma
        lines = [document[:1], document[1:behind], document[behind:]]
    event = b"id: %d%b" % (number, end) if script.event_ids else b""
    return event + b"".join(field + line + end for line in lines if line) + end


def _behind(events: list[Step], script: Script) -> int:
    """Index of the event after `fault_after` tokens; a role chunk belongs to the first token."""
    spoken = [at for at, event in enumerate(events) if event.tokens]
    if not spoken or script.fault_after <= 0:
        return spoken[0] if spoken and script.role == "early" else 0
    return spoken[min(script.fault_after, len(spoken)) - 1] + 1


def _faulted(script: Script, events: list[Step], at: int) -> list[Step]:
    """The whole events that go out under the script's fault, which strikes at index `at`."""
    match script.fault:
        case "none":
            return events
        case "error_event":
            error = _event(script, error_document(script, 500), at)
            return [*events[:at], Step(0, error)]
        case "garbage_line":
            return [*events[:at], Step(0, script.garbage.encode()), *events[at:]]
        case "huge_line":
            filler = {"index": 0, "delta": {"content": "x" * script.huge_bytes}}
            chunk: Json = {"id": "chatcmpl-huge", "object": "chat.completion.chunk", "created": 0}
            chunk |= {"model": "huge", "choices": [{**filler, "finish_reason": None}]}
            huge = _event(script, orjson.dumps(chunk), at)
            return [*events[:at], Step(0, huge), *events[at:]]
        case _:
            return events[:at]


def _framed(script: Script, event: Step) -> list[Step]:
    """The event as one HTTP chunk, or as two with the cut inside a wide character."""
    data = event.data
    wide = next((at for at, byte in enumerate(data) if byte >= 0x80), -1)
    if not script.split_utf8 or wide < 0:
        return [event._replace(data=_chunk(script, data))]
    first, second = _chunk(script, data[: wide + 1]), _chunk(script, data[wide + 1 :])
    return [Step(event.gap_s, first), Step(script.slice_gap_s, second, event.tokens)]


def _chunk(script: Script, data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if script.chunked else data


def _with_pings(steps: list[Step], ping: Step) -> list[Step]:
    """A ping inside every pause that is longer than the ping's; the pauses keep their lengths."""
    told: list[Step] = []
    for step in steps:
        gap = step.gap_s
        while gap > ping.gap_s:
            told.append(ping)
            gap -= ping.gap_s
        told.append(step._replace(gap_s=gap))
    return told


def jittered(gap_s: float, sigma: float, rng: random.Random) -> float:
    """The pause times a lognormal factor whose mean is 1."""
    return gap_s * rng.lognormvariate(-sigma * sigma / 2, sigma) if sigma else gap_s


def _sliced(steps: Iterable[Step], size: int, gap_s: float) -> tuple[Step, ...]:
    cut: list[Step] = []
    for step in steps:
        pieces = [step.data[at : at + size] for at in range(0, len(step.data), size)] or [b""]
        cut += [Step(gap_s if at else step.gap_s, piece) for at, piece in enumerate(pieces)]
        cut[-1] = cut[-1]._replace(tokens=step.tokens)
    return tuple(cut)


# --- embeddings -----------------------------------------------------------------------------------


def embeddings_plan(script: Script, document: object) -> Plan:
    """Each vector follows from its input alone and has length 1. Raises Refusal."""
    model, body = _model_of(document)
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        raise _missing("input")
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    size = body.get("dimensions", script.dimensions)
    if type(size) is not int or not 0 < size <= 8192:
        raise Refusal(400, "Invalid 'dimensions'.", "dimensions", "invalid_value")
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _vector(orjson.dumps(one), size, packed)}
        for at, one in enumerate(inputs)
    ]
    tokens = sum(map(_prompt_tokens, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})
    gap = script.ttft_s + script.ttft_per_1k_s * tokens / 1000
    return document_plan(script, answer, gap)._replace(prompt_tokens=tokens)


def _vector(seed: bytes, size: int, packed: bool) -> list[float] | str:
    values = [zlib.crc32(b"%d:%b" % (at, seed)) / 2**31 - 1 for at in range(size)]
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    unit = [value / norm for value in values]
    return base64.b64encode(struct.pack(f"<{size}f", *unit)).decode() if packed else unit


# --- the log --------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Seen:
    """One request as it reached the vendor, and how it ended.

    outcome: open (still playing or hanging), completed, cut (the script ended it), aborted (the
    peer left first, at `peer_closed_at`).
    """

    number: int
    path: str
    model: str
    raw_headers: Sequence[tuple[bytes, bytes]]
    document: object
    received_at: float
    concurrent: int  # requests in progress when this one came, itself included
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0  # of the whole answer: what a bill would say
    tokens_sent: int = 0  # handed to the kernel
    outcome: Outcome = "open"
    first_byte_at: float | None = None
    finished_at: float | None = None
    peer_closed_at: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; of a repeated field the last."""
        pairs = (
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw_headers
        )
        return {name.lower(): value for name, value in pairs}

    def as_document(self) -> Json:
        shown = {name: getattr(self, name) for name in self.__slots__ if name != "raw_headers"}
        return {**shown, "headers": self.headers}


class CanaryHit(NamedTuple):
    """A forbidden byte string that arrived."""

    canary: bytes
    at: float


class Page(NamedTuple):
    """A fixed answer on one path, e.g. /health or /metrics."""

    status: int = 200
    content_type: str = ""
    body: bytes = b""


# --- the server -----------------------------------------------------------------------------------


class _Ticker:
    """One loop timer per millisecond, however many streams wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[int, list[Callable[[], None]]] = {}

    def at(self, when: float, callback: Callable[[], None]) -> None:
        tick = int(when * 1000) + 1
        waiting = self._due.get(tick)
        if waiting is None:
            self._due[tick] = [callback]
            self._loop.call_at(tick / 1000, self._fire, tick)
        else:
            waiting.append(callback)

    def _fire(self, tick: int) -> None:
        for callback in self._due.pop(tick):
            callback()


class ScriptedVendor:
    """The server and its control object: in a test's own process, the attributes are the controls.

    scripts: model name -> Script, read at each request. default: for every other name; None answers
    404. canaries: byte strings nobody may send; `hits` tells that somebody did. pages: fixed
    answers by path.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script] | None = None,
        *,
        default: Script | None = OPENAI,
        name: str = "simulated",
        canaries: Iterable[bytes] = (),
        seed: int = 0,
        log_max: int = 10_000,
    ) -> None:
        self.scripts: dict[str, Script] = dict(scripts or {})
        self.default = default
        self.name = name
        self.canaries: frozenset[bytes] = frozenset(canaries)
        self.pages: dict[str, Page] = {"/health": Page()}
        self.log: deque[Seen] = deque(maxlen=log_max)
        self.hits: deque[CanaryHit] = deque(maxlen=log_max)
        self.received = 0
        self.concurrent = 0
        self.concurrent_max = 0
        self.host, self.port = "127.0.0.1", 0
        self.random = random.Random(seed)
        self.connections: set[_Connection] = set()
        self._started = int(time.time())
        self._plans: dict[tuple[Script, Ask], Plan] = {}
        self._laid: dict[tuple[Script, bytes], Script] = {}
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> Self:
        """Listens. After close(), with no port named, it comes back on the port it had."""
        loop = asyncio.get_running_loop()
        ticker = _Ticker(loop)
        self._server = await loop.create_server(
            lambda: _Connection(self, loop, ticker), host, port or self.port, backlog=1024
        )
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        return self

    async def close(self) -> None:
        """Stops listening and drops every connection; the log stays."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self.connections):
            connection.drop()
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def clear(self) -> None:
        """Forgets the log and the hits; scripts, canaries and running requests stay."""
        self.log.clear()
        self.hits.clear()
        self.received = 0
        self.concurrent_max = self.concurrent

    def scan(self, data: bytes, known: int = 0, but: frozenset[bytes] = frozenset()) -> set[bytes]:
        """Records, and returns, each canary that does not lie in the first `known` bytes alone."""
        found = {
            canary
            for canary in self.canaries - but
            if data.find(canary, max(0, known - len(canary) + 1)) >= 0
        }
        self.hits.extend(CanaryHit(canary, time.monotonic()) for canary in found)
        return found

    def answer(self, seen: Seen, method: str, body: bytes, override: bytes) -> Plan:
        """The plan for one request; notes in `seen` what only the body tells."""
        try:
            return self._route(seen, method, body, override)
        except Refusal as refusal:
            return error_plan(refusal.reply, refusal.reply.status)
        except ScriptError as error:
            return error_plan(Script(error_message=str(error)), 400)

    def _route(self, seen: Seen, method: str, body: bytes, override: bytes) -> Plan:
        path = seen.path
        page = self.pages.get(path)
        if page is not None:
            kind = page.content_type
            return document_plan(OPENAI, page.body, status=page.status, content_type=kind)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            return document_plan(OPENAI, self._models(path[11:]))
        if path.startswith("/__control"):
            return document_plan(OPENAI, self._control(path, method, body))
        if path not in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            raise Refusal(404, f"Invalid URL ({method} {path})", code="unknown_url")
        if method != "POST":
            raise Refusal(405, f"Not allowed to {method} on {path}.", code="method_not_supported")
        try:
            seen.document = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise Refusal(400, "We could not parse the JSON body of your request.") from None
        seen.model, _ = _model_of(seen.document)
        return self._inference(self._script(seen.model, override), path, seen.document)

    def _inference(self, script: Script, path: str, document: object) -> Plan:
        if script.status != 200 or script.error in _ERROR_CONTENT_TYPES:
            return error_plan(script, script.status)
        if script.failure_rate and self.random.random() < script.failure_rate:
            return error_plan(script, script.failure_status)
        if path == "/v1/embeddings":
            return embeddings_plan(script, document)
        ask = ask_from(document, legacy=path == "/v1/completions")
        plan = self._plans.get((script, ask))
        if plan is None:
            if len(self._plans) >= _CACHE_MAX:
                self._plans.clear()
            plan = self._plans[script, ask] = plan_for(script, ask)
        return plan

    def _script(self, model: str, override: bytes) -> Script:
        script = self.scripts.get(model, self.default)
        if script is None:
            raise Refusal(404, f"The model `{model}` does not exist.", code="model_not_found")
        if not override:
            return script
        laid = self._laid.get((script, override))
        if laid is None:
            if len(self._laid) >= _CACHE_MAX:
                self._laid.clear()
            laid = self._laid[script, override] = script_from(_json(override), script)
        return laid

    def _models(self, name: str) -> bytes:
        card = {"object": "model", "created": self._started, "owned_by": self.name}
        names = list(self.scripts) or [self.name]
        if not name:
            data = [{"id": one, **card} for one in names]
            return orjson.dumps({"object": "list", "data": data})
        if name not in names:
            raise Refusal(404, f"The model '{name}' does not exist", "model", "model_not_found")
        return orjson.dumps({"id": name, **card})

    # The control plane over HTTP, for a vendor in its own process. Canaries travel as hex digits:
    # setting one would else be a hit.

    def _control(self, path: str, method: str, body: bytes) -> bytes:
        if path == "/__control/log":
            return orjson.dumps([seen.as_document() for seen in self.log])
        if method == "POST":
            try:
                self._set(_json(body))
            except (AttributeError, TypeError, ValueError) as error:
                raise ScriptError(f"control: {error}") from None
        state = {
            "name": self.name,
            "scripts": {model: asdict(script) for model, script in self.scripts.items()},
            "default": asdict(self.default) if self.default else None,
            "received": self.received,
            "concurrent": self.concurrent,
            "concurrent_max": self.concurrent_max,
            "hits": [{"canary_hex": hit.canary.hex(), "at": hit.at} for hit in self.hits],
        }
        return orjson.dumps(state)

    def _set(self, document: object) -> None:
        if not isinstance(document, dict):
            raise ScriptError("a JSON object")
        unknown = set(document) - {"scripts", "default", "canaries_hex", "pages", "clear"}
        if unknown:
            raise ScriptError(f"unknown {sorted(unknown)}")
        for model, script in document.get("scripts", {}).items():
            if script is None:
                self.scripts.pop(model, None)
            else:
                self.scripts[model] = script_from(script)
        if "default" in document:
            given = document["default"]
            self.default = None if given is None else script_from(given)
        if "canaries_hex" in document:
            self.canaries = frozenset(map(bytes.fromhex, document["canaries_hex"]))
        for path, (status, content_type, text) in document.get("pages", {}).items():
            self.pages[path] = Page(int(status), str(content_type), str(text).encode())
        if document.get("clear"):
            self.clear()


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise ScriptError("not a JSON text") from None


class _Request(NamedTuple):
    path: str
    method: str
    headers: list[tuple[bytes, bytes]]
    override: bytes
    body: bytes
    keep_alive: bool


class _Connection(asyncio.Protocol):
    """Parses requests and plays their plans, one after the other.

    It never stops reading, so a peer that leaves is seen at once, whatever is being played.
    """

    def __init__(
        self, vendor: ScriptedVendor, loop: asyncio.AbstractEventLoop, ticker: _Ticker
    ) -> None:
        self._vendor = vendor
        self._loop = loop
        self._ticker = ticker
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._tail = b""  # the last bytes before this read, for a canary that lies over the border
        self._found: frozenset[bytes] = frozenset()  # the canaries in this request's bytes so far
        # The request being read.
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._override = b""
        self._body: list[bytes] = []
        self._waiting: deque[_Request] = deque()
        # The answer being played; no `_seen` means idle.
        self._seen: Seen | None = None
        self._keep_alive = True
        self._plan = Plan(())
        self._steps: tuple[Step, ...] = ()
        self._next = 0
        self._due = 0.0
        self._stamp = b""
        self._request_id = b""

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._vendor.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._vendor.canaries:
            longest = max(map(len, self._vendor.canaries))
            joined = self._tail + data
            self._found |= self._vendor.scan(joined, len(self._tail))
            self._tail = joined[1 - longest :] if longest > 1 else b""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # an upgrade, which we do not speak, too
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
                self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._waiting.clear()
        self._vendor.connections.discard(self)
        if self._seen is not None:
            self._seen.peer_closed_at = time.monotonic()
            self._finish("aborted")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._next < len(self._steps):
            self._play()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._url, self._headers, self._override, self._body = b"", [], b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if len(name) == 8 and name.lower() == b"x-script":
            self._override = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        if len(self._body) > 1 and self._vendor.canaries:
            self._vendor.scan(body, but=self._found)
        self._found = frozenset()
        path = self._url.partition(b"?")[0].decode("latin-1")
        method, keep = self._parser.get_method().decode(), self._parser.should_keep_alive()
        request = _Request(path, method, self._headers, self._override, body, keep)
        if self._seen is None:
            self._begin(request)
        else:
            self._waiting.append(request)

    # Playing

    def _begin(self, request: _Request) -> None:
        vendor, now = self._vendor, time.monotonic()
        seen = Seen(vendor.received + 1, request.path, "", request.headers, None, now, 0)
        if not request.path.startswith("/__control"):
            vendor.log.append(seen)
            vendor.received += 1
        vendor.concurrent += 1
        vendor.concurrent_max = max(vendor.concurrent_max, vendor.concurrent)
        seen.concurrent = vendor.concurrent
        plan = vendor.answer(seen, request.method, request.body, request.override)
        seen.status = plan.status
        seen.prompt_tokens, seen.completion_tokens = plan.prompt_tokens, plan.completion_tokens
        self._seen, self._plan, self._keep_alive = seen, plan, request.keep_alive
        self._request_id = b"%016x" % seen.number
        self._stamp = plan.stamp.format(seen.number, int(time.time())).encode()
        self._steps = plan.steps
        if plan.slice_bytes:  # behind the stamping, or a slice could cut a blank in two
            stamped = [step._replace(data=self._stamped(step.data)) for step in plan.steps]
            self._steps = _sliced(stamped, plan.slice_bytes, plan.slice_gap_s)
        self._next = 0
        self._due = self._loop.time() + self._gap()
        self._play()

    def _gap(self) -> float:
        gap = self._steps[self._next].gap_s
        return jittered(gap, self._plan.jitter, self._vendor.random) if gap else 0.0

    def _stamped(self, data: bytes) -> bytes:
        data = data.replace(_REQUEST_ID, self._request_id)
        return data.replace(self._plan.blank, self._stamp) if self._stamp else data

    def _play(self) -> None:
        """Sends every step that is due in one write, then waits for the next."""
        seen, transport, steps = self._seen, self._transport, self._steps
        if seen is None or transport is None or self._paused:
            return
        now = self._loop.time()
        due: list[bytes] = []
        while self._next < len(steps) and self._due <= now:
            step = steps[self._next]
            due.append(step.data)
            seen.tokens_sent += step.tokens
            self._next += 1
            if self._next < len(steps):
                self._due += self._gap()
        data = b"".join(due)
        if data:
            if seen.first_byte_at is None:
                seen.first_byte_at = time.monotonic()
            transport.write(self._stamped(data))
        if self._next < len(steps):
            self._ticker.at(self._due, self._play)
        else:
            self._end(transport)

    def _end(self, transport: asyncio.Transport) -> None:
        plan = self._plan
        if plan.end == "hang":
            self._ping()
            return
        self._finish("cut" if plan.cut else "completed")
        if plan.end == "reset":
            # To linger for zero seconds makes closing a reset; else it may be an orderly end.
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        elif plan.end == "close" or not self._keep_alive:
            transport.close()
        elif self._waiting:
            self._begin(self._waiting.popleft())

    def _ping(self) -> None:
        ping = self._plan.ping
        if ping is None or self._seen is None:
            return
        self._steps, self._next, self._due = (ping,), 0, self._loop.time() + ping.gap_s
        self._ticker.at(self._due, self._play)

    def _finish(self, outcome: Outcome) -> None:
        if self._seen is not None:
            self._seen.outcome, self._seen.finished_at = outcome, time.monotonic()
            self._seen = None
            self._vendor.concurrent -= 1

    def drop(self) -> None:
        """Ends the connection from our side."""
        self._finish("cut")
        if self._transport is not None:
            self._transport.abort()


# --- the process ----------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.demo.scripted_vendor",
        description="A scripted stand-in for a model vendor, with honest timing. It is no vendor.",
        epilog="Example: --port 0 --name simulated-closed --ttft-ms 350 --itl-ms 12 --tokens 64",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0: any free one")
    add("--name", default="simulated", help="who owns the models; without --model also the model")
    add("--model", action="append", default=[], help="a model name in /v1/models; may be repeated")
    add("--dialect", choices=DIALECTS, default="openai")
    add("--ttft-ms", type=float, default=0.0)
    add("--ttft-per-1k-ms", type=float, default=0.0, help="added for each 1,000 prompt tokens")
    add("--itl-ms", type=float, default=0.0)
    add("--jitter", type=float, default=0.0, help="sigma of the lognormal factor on each pause")
    add("--tokens", type=int, default=16)
    add("--failure-rate", type=float, default=0.0)
    add("--seed", type=int, default=0)
    add("--log-max", type=int, default=10_000, help="requests remembered")
    add("--script", default="{}", help="any other field of a Script, as a JSON object")
    return parser.parse_args()


async def _serve(options: argparse.Namespace) -> None:
    script = replace(
        DIALECTS[options.dialect],
        tokens=options.tokens,
        ttft_s=options.ttft_ms / 1000,
        ttft_per_1k_s=options.ttft_per_1k_ms / 1000,
        itl_s=options.itl_ms / 1000,
        jitter=options.jitter,
        failure_rate=options.failure_rate,
        seed=options.seed,
    )
    script = script_from(_json(options.script.encode()), script)
    vendor = ScriptedVendor(
        dict.fromkeys(options.model or [options.name], script),
        default=script,
        name=options.name,
        seed=options.seed,
        log_max=options.log_max,
    )
    parent = os.getppid()
    await vendor.start(options.host, options.port)
    print(f"listening on {vendor.url}", flush=True)
    # Polled: PR_SET_PDEATHSIG fires when the parent's spawning thread ends, which is too early.
    while os.getppid() == parent:  # noqa: ASYNC110 - a parent's death sets no event
        await asyncio.sleep(0.25)
    await vendor.close()


def main() -> None:
    """The process: serves until its parent ends or it is interrupted."""
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run
    with contextlib.suppress(KeyboardInterrupt):
        run(_serve(_arguments()))


if __name__ == "__main__":
    main()
