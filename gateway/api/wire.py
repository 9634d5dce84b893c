"""The OpenAI wire, inbound: bytes to a frozen ModelRequest, refused with the field at fault.

We check what we act on (model, messages, stream, n, token caps) and what would otherwise reach a
backend as nonsense; all else is passed through, because vendors know fields we do not. What a body
may never carry is a destination or a credential.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.domain.errors import BodyTooLarge, InvalidRequest, UnsupportedParameter
from gateway.domain.request import CHARS_PER_TOKEN, Capability, Endpoint, ModelRequest

# A body that names these tries to choose where its prompt, or our key, is sent.
FORBIDDEN = frozenset(
    {"api_base", "base_url", "api_key", "extra_headers", "custom_llm_provider", "api_version"}
)
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_ROLES_TEXT = ", ".join(sorted(ROLES))
TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 1_000
SERVICE_TIER_CHARS_MAX = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """Bounds of a request body."""

    json_depth_max: int
    messages_max: int
    choices_max: int


def parse(endpoint: Endpoint, body: bytes, limits: BodyLimits) -> ModelRequest:
    """Read one request body. Raises InvalidRequest, UnsupportedParameter or BodyTooLarge."""
    if not _shallow(body, limits.json_depth_max):
        raise BodyTooLarge(f"The body is nested deeper than {limits.json_depth_max} levels.")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if type(document) is not dict:
        raise InvalidRequest("The body must be a JSON object.")
    if not FORBIDDEN.isdisjoint(document):
        name = min(FORBIDDEN & document.keys())
        raise UnsupportedParameter(
            f"{name!r} is not accepted: destinations and credentials come from the catalog.",
            param=name,
        )
    alias = document.get("model")
    if type(alias) is not str or not alias:
        raise InvalidRequest("'model' must be a non-empty string.", param="model")
    stream = document.get("stream")
    if stream is None:
        stream = False
    elif type(stream) is not bool:
        raise InvalidRequest("'stream' must be true or false.", param="stream")
    needs: set[Capability] = set()
    prompt_tokens = _READERS[endpoint](document, needs, limits)
    if stream and endpoint is Endpoint.EMBEDDINGS:
        raise UnsupportedParameter("Embeddings cannot be streamed.", param="stream")
    choices = _choices(document, needs, limits)
    return ModelRequest(
        endpoint=endpoint,
        alias=alias,
        document=document,
        stream=stream,
        usage_wanted=_usage_wanted(document, stream=stream),
        prompt_tokens=prompt_tokens,
        output_tokens_max=_output_tokens_max(document),
        needs=frozenset(needs) if needs else _NOTHING,
        choices=choices,
        service_tier=_service_tier(document),
    )


_NOTHING: frozenset[Capability] = frozenset()
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def _shallow(body: bytes, depth_max: int) -> bool:
    """Whether nesting stays within bounds; most bodies have too few brackets to be deep."""
    if body.count(b"[") + body.count(b"{") <= depth_max:
        return True
    depth = 0
    for found in _BRACKETS.finditer(body):
        mark = body[found.start()]
        if mark in b"[{":
            depth += 1
            if depth > depth_max:
                return False
        elif mark in b"]}":
            depth -= 1
    return True


def _usage_wanted(document: dict[str, Any], *, stream: bool) -> bool:
    options = document.get("stream_options")
    if options is None:
        return not stream
    if type(options) is not dict:
        raise InvalidRequest("'stream_options' must be an object.", param="stream_options")
    if not stream:
        raise InvalidRequest(
            "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
        )
    return bool(options.get("include_usage"))


def _choices(document: dict[str, Any], needs: set[Capability], limits: BodyLimits) -> int:
    choices = document.get("n")
    if choices is None:
        return 1
    if type(choices) is not int or choices < 1:
        raise InvalidRequest("'n' must be a whole number of at least 1.", param="n")
    if choices > limits.choices_max:
        raise InvalidRequest(f"'n' must be at most {limits.choices_max}.", param="n")
    if choices > 1:
        needs.add(Capability.MULTIPLE_CHOICES)
    return choices


# How callers ask for the tier that everybody gets.
_STANDARD = frozenset({"", "auto", "default", "on_demand", "standard", "standard_only"})


def _service_tier(document: dict[str, Any]) -> str | None:
    """What is asked for; what a vendor then serves it says itself."""
    tier = document.get("service_tier")
    if tier is None:
        return None
    if type(tier) is not str or len(tier) > SERVICE_TIER_CHARS_MAX:
        raise InvalidRequest(
            f"'service_tier' must be a string of at most {SERVICE_TIER_CHARS_MAX} characters.",
            param="service_tier",
        )
    tier = tier.lower()
    return None if tier in _STANDARD else tier


def _output_tokens_max(document: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = document.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise InvalidRequest(f"'{name}' must be a whole number of at least 1.", param=name)
            return value
    return None


def _chat(document: dict[str, Any], needs: set[Capability], limits: BodyLimits) -> int:
    messages = document.get("messages")
    if type(messages) is not list:
        raise InvalidRequest("'messages' must be a list of messages.", param="messages")
    if not messages:
        raise InvalidRequest("'messages' must not be empty.", param="messages")
    if len(messages) > limits.messages_max:
        raise BodyTooLarge(
            f"'messages' has {len(messages)} messages; at most {limits.messages_max} are allowed.",
            param="messages",
        )
    chars, tokens = 0, TOKENS_PER_MESSAGE * len(messages)
    for at, message in enumerate(messages):
        if type(message) is not dict or message.get("role") not in ROLES:
            raise InvalidRequest(
                f"'messages[{at}]' must be an object whose role is one of {_ROLES_TEXT}.",
                param=f"messages[{at}].role",
            )
        content = message.get("content")
        if type(content) is str:
            chars += len(content)
        elif type(content) is list:
            more_chars, more_tokens = _parts(content, at, needs)
            chars += more_chars
            tokens += more_tokens
        elif content is not None or not (message.keys() & _INSTEAD_OF_CONTENT):
            raise InvalidRequest(
                f"'messages[{at}].content' must be a string or a list of parts.",
                param=f"messages[{at}].content",
            )
    _chat_needs(document, needs)
    return tokens + -(-chars // CHARS_PER_TOKEN)


_INSTEAD_OF_CONTENT = {"tool_calls", "function_call", "refusal", "audio"}


def _parts(content: list[Any], at: int, needs: set[Capability]) -> tuple[int, int]:
    chars = tokens = 0
    for part in content:
        kind = part.get("type") if type(part) is dict else None
        if type(kind) is not str:
            raise InvalidRequest(
                f"'messages[{at}].content' has a part without a type.",
                param=f"messages[{at}].content",
            )
        if kind == "image_url":
            needs.add(Capability.IMAGES)
            tokens += TOKENS_PER_IMAGE
        elif kind == "input_audio":
            needs.add(Capability.AUDIO)
        else:
            text = part.get("text")
            chars += len(text) if type(text) is str else 0
    return chars, tokens


def _chat_needs(document: dict[str, Any], needs: set[Capability]) -> None:
    tools = document.get("tools") or document.get("functions")
    if tools:
        if type(tools) is not list:
            raise InvalidRequest("'tools' must be a list.", param="tools")
        needs.add(Capability.TOOLS)
    form = document.get("response_format")
    if form is not None:
        if type(form) is not dict:
            raise InvalidRequest("'response_format' must be an object.", param="response_format")
        if form.get("type") in {"json_object", "json_schema"}:
            needs.add(Capability.JSON_MODE)
    if document.get("logprobs"):
        needs.add(Capability.LOGPROBS)
    if document.get("audio") is not None:
        needs.add(Capability.AUDIO)


def _text_or_tokens(value: object, name: str) -> int:
    """Estimated tokens of a prompt or an input: text, texts, token ids, or lists of token ids."""
    if type(value) is str and value:
        return -(-len(value) // CHARS_PER_TOKEN)
    if type(value) is list and value:
        first = value[0]
        if type(first) is str and all(type(v) is str for v in value):
            return sum(-(-len(v) // CHARS_PER_TOKEN) for v in value)
        if type(first) is int and all(type(v) is int for v in value):
            return len(value)
        if type(first) is list and all(type(v) is list for v in value):
            return sum(len(v) for v in value)
    raise InvalidRequest(
        f"'{name}' must be a non-empty string, a list of strings or a list of token ids.",
        param=name,
    )


def _completions(document: dict[str, Any], needs: set[Capability], _: BodyLimits) -> int:
    if document.get("logprobs"):
        needs.add(Capability.LOGPROBS)
    return _text_or_tokens(document.get("prompt"), "prompt")


def _embeddings(document: dict[str, Any], _: set[Capability], __: BodyLimits) -> int:
    return _text_or_tokens(document.get("input"), "input")


_READERS = {
    Endpoint.CHAT: _chat,
    Endpoint.COMPLETIONS: _completions,
    Endpoint.EMBEDDINGS: _embeddings,
}
