"""Inbound bodies: what is understood, and what is refused with the field at fault."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.wire import BodyLimits, parse
from gateway.domain.errors import BodyTooLarge, InvalidRequest, RequestError, UnsupportedParameter
from gateway.domain.request import Capability, Endpoint

LIMITS = BodyLimits(json_depth_max=64, messages_max=8, choices_max=4)
USER = [{"role": "user", "content": "hello there"}]


def chat(**fields: Any) -> Any:
    body = {"model": "chat", "messages": USER, **fields}
    return parse(Endpoint.CHAT, orjson.dumps({k: v for k, v in body.items() if v != "-"}), LIMITS)


def test_a_plain_chat_is_understood() -> None:
    request = chat(max_tokens=7, temperature=0.3, vendor_thing={"x": 1})
    assert (request.alias, request.stream, request.output_tokens_max) == ("chat", False, 7)
    assert request.usage_wanted
    assert request.needs == frozenset()
    assert request.document["vendor_thing"] == {"x": 1}
    assert request.prompt_tokens == 4 + 3


@pytest.mark.parametrize(
    ("fields", "need"),
    [
        ({"tools": [{"type": "function"}]}, Capability.TOOLS),
        ({"response_format": {"type": "json_object"}}, Capability.JSON_MODE),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, Capability.JSON_MODE),
        ({"logprobs": True}, Capability.LOGPROBS),
        ({"n": 2}, Capability.MULTIPLE_CHOICES),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            Capability.IMAGES,
        ),
    ],
)
def test_needs_are_read_from_the_body(fields: dict[str, Any], need: Capability) -> None:
    assert chat(**fields).needs == {need}


@pytest.mark.parametrize(
    ("asked", "tier"),
    [("flex", "flex"), ("Priority", "priority"), ("scale", "scale"), (None, None), ("-", None)]
    + [(usual, None) for usual in ("auto", "default", "standard", "standard_only")],
)
def test_the_service_tier_that_everybody_gets_is_none(asked: str | None, tier: str | None) -> None:
    assert chat(service_tier=asked).service_tier == tier


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"service_tier": 3}, "service_tier"),
        ({"service_tier": "x" * 41}, "service_tier"),
        ({"model": "-"}, "model"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"messages": "-"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"tools": {"a": 1}}, "tools"),
        ({"response_format": "json"}, "response_format"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "extra_headers"])
def test_a_body_may_not_choose_where_it_goes(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(**{name: "https://evil.example"})
    assert caught.value.param == name


def test_depth_and_messages_are_bounded() -> None:
    with pytest.raises(BodyTooLarge):
        chat(messages=USER * 9)
    deep = b'{"model":"chat","messages":' + b"[" * 65 + b"]" * 65 + b"}"
    with pytest.raises(BodyTooLarge):
        parse(Endpoint.CHAT, deep, LIMITS)
    wide = orjson.dumps({"model": "c", "messages": USER, "x": [{} for _ in range(500)]})
    assert parse(Endpoint.CHAT, wide, LIMITS).alias == "c"
    brackets_in_text = orjson.dumps(
        {"model": "c", "messages": [{"role": "user", "content": "[" * 999}]}
    )
    assert parse(Endpoint.CHAT, brackets_in_text, LIMITS).alias == "c"


def test_a_null_content_is_fine_beside_tool_calls() -> None:
    chat(messages=[*USER, {"role": "assistant", "content": None, "tool_calls": [{}]}])


@pytest.mark.parametrize("value", ["text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
def test_prompts_and_inputs_come_in_four_shapes(value: Any) -> None:
    for endpoint, name in ((Endpoint.COMPLETIONS, "prompt"), (Endpoint.EMBEDDINGS, "input")):
        body = orjson.dumps({"model": "m", name: value})
        assert parse(endpoint, body, LIMITS).prompt_tokens >= 1


@pytest.mark.parametrize("value", [None, "", [], [None], ["a", 1], 7, {"a": 1}])
def test_other_inputs_are_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(Endpoint.EMBEDDINGS, orjson.dumps({"model": "m", "input": value}), LIMITS)
    assert caught.value.param == "input"


def test_usage_is_wanted_only_where_it_was_asked_for() -> None:
    assert not chat(stream=True).usage_wanted
    assert chat(stream=True, stream_options={"include_usage": True}).usage_wanted


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = [
    "model",
    "messages",
    "stream",
    "n",
    "max_tokens",
    "tools",
    "response_format",
    "prompt",
    "input",
]


@given(st.sampled_from(list(Endpoint)), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_understood_or_refused_never_a_crash(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    try:
        parse(endpoint, orjson.dumps(body), LIMITS)
    except RequestError:
        pass


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_our_words(body: bytes) -> None:
    with pytest.raises(RequestError):
        parse(Endpoint.CHAT, body, LIMITS)
