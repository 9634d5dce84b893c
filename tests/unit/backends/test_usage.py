"""Usage as vendors state it, and what it meters: documented bodies, then properties.

Bodies are as documented or as seen in the wild; where a source gives types only, the figures in it
are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.backends.usage import COUNT_MAX, SHAPES, Heard, merged, tier_of, usage_of
from gateway.domain.money import OUTPUT_METERS, PROMPT_METERS, Meter
from gateway.domain.request import Usage

# ---- as documented ---------------------------------------------------------------------------

WRITE_5M, WRITE_1H = Meter.CACHE_WRITE_5M, Meter.CACHE_WRITE_1H
BODIES: dict[str, tuple[str, dict[str, Any], Usage]] = {
    "openai, cached": (
        "https://developers.openai.com/api/docs/guides/prompt-caching",
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        Usage(86, 1920, 300),
    ),
    "openai, a longer prefix written to the cache": (
        "https://developers.openai.com/api/docs/guides/prompt-caching",
        {
            "prompt_tokens": 2600,
            "completion_tokens": 300,
            "total_tokens": 2900,
            "prompt_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400},
        },
        Usage(200, 2000, 300, others={WRITE_5M: 400}),
    ),
    "openai, nearly all of it written": (
        "https://github.com/laravel/ai/pull/846, seen, in the names of chat",
        {
            "prompt_tokens": 18014,
            "completion_tokens": 5,
            "total_tokens": 18019,
            "prompt_tokens_details": {"cache_write_tokens": 18011, "cached_tokens": 0},
        },
        Usage(3, 0, 5, others={WRITE_5M: 18011}),
    ),
    "openai, a prediction refused in part": (
        "openai.types.CompletionUsage: what was predicted in vain is in completion_tokens",
        {
            "prompt_tokens": 20,
            "completion_tokens": 90,
            "total_tokens": 110,
            "completion_tokens_details": {
                "reasoning_tokens": 40,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 18,
                "rejected_prediction_tokens": 10,
            },
        },
        Usage(20, 0, 90, 40),
    ),
    "openai, audio both ways": (
        "openai.types.CompletionUsage",
        {
            "prompt_tokens": 150,
            "completion_tokens": 200,
            "total_tokens": 350,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 110},
            "completion_tokens_details": {"audio_tokens": 160, "reasoning_tokens": 0},
        },
        Usage(40, 0, 40, others={Meter.INPUT_AUDIO: 110, Meter.OUTPUT_AUDIO: 160}),
    ),
    "openai, audio that must have been cached": (
        "openai.types.CompletionUsage: it does not say which part was cached",
        {
            "prompt_tokens": 150,
            "completion_tokens": 1,
            "total_tokens": 151,
            "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 110},
        },
        Usage(0, 40, 1, others={Meter.INPUT_AUDIO: 50, Meter.CACHE_READ_AUDIO: 60}),
    ),
    "openai, cached audio as it is said of realtime": (
        "https://developers.openai.com/api/docs/guides/realtime-costs",
        {
            "prompt_tokens": 132,
            "completion_tokens": 121,
            "total_tokens": 253,
            "prompt_tokens_details": {
                "text_tokens": 119,
                "audio_tokens": 13,
                "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 54, "audio_tokens": 10},
            },
            "completion_tokens_details": {"text_tokens": 30, "audio_tokens": 91},
        },
        Usage(
            65,
            54,
            30,
            others={
                Meter.INPUT_AUDIO: 3,
                Meter.CACHE_READ_AUDIO: 10,
                Meter.OUTPUT_AUDIO: 91,
            },
        ),
    ),
    "openai, embeddings": (
        "openai.types.create_embedding_response.Usage",
        {"prompt_tokens": 8, "total_tokens": 8},
        Usage(8, 0, 0),
    ),
    "vllm": (
        "vllm.entrypoints.openai.engine.protocol.UsageInfo",
        {"prompt_tokens": 44, "total_tokens": 92, "completion_tokens": 48},
        Usage(44, 0, 48),
    ),
    "vllm, --enable-prompt-tokens-details": (
        "vllm.entrypoints.openai.engine.protocol.UsageInfo",
        {
            "prompt_tokens": 44,
            "total_tokens": 92,
            "completion_tokens": 48,
            "prompt_tokens_details": {"cached_tokens": 32},
        },
        Usage(12, 32, 48),
    ),
    "vllm, nothing generated": (
        "vllm.entrypoints.openai.engine.protocol.UsageInfo",
        {"prompt_tokens": 44, "total_tokens": 44, "completion_tokens": None},
        Usage(44, 0, 0),
    ),
    "sglang": (
        "sglang.srt.entrypoints.openai.protocol.UsageInfo",
        {
            "prompt_tokens": 44,
            "total_tokens": 92,
            "completion_tokens": 48,
            "prompt_tokens_details": {"cached_tokens": 40},
            "reasoning_tokens": 30,
        },
        Usage(4, 40, 48, 30),
    ),
    "llama.cpp": (
        "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
        {
            "completion_tokens": 48,
            "prompt_tokens": 44,
            "total_tokens": 92,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        Usage(44, 0, 48),
    ),
    "llama.cpp, timings": (
        "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
        {
            "cache_n": 236,
            "prompt_n": 1,
            "prompt_ms": 30.958,
            "prompt_per_token_ms": 30.958,
            "prompt_per_second": 32.301828283480845,
            "predicted_n": 35,
            "predicted_ms": 661.064,
            "predicted_per_token_ms": 18.887542857142858,
            "predicted_per_second": 52.94494935437416,
        },
        Usage(1, 236, 35),
    ),
    "anthropic, caches of two lives": (
        "https://platform.claude.com/docs/en/build-with-claude/prompt-caching",
        {
            "input_tokens": 2048,
            "cache_read_input_tokens": 1800,
            "cache_creation_input_tokens": 248,
            "output_tokens": 503,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 148,
                "ephemeral_1h_input_tokens": 100,
            },
        },
        Usage(2048, 1800, 503, others={WRITE_5M: 148, WRITE_1H: 100}),
    ),
    "anthropic, searching": (
        "https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool",
        {
            "input_tokens": 105,
            "output_tokens": 6039,
            "cache_read_input_tokens": 7123,
            "cache_creation_input_tokens": 7345,
            "server_tool_use": {"web_search_requests": 1},
        },
        Usage(105, 7123, 6039, others={WRITE_5M: 7345, Meter.SEARCH_CALL: 1}),
    ),
    "anthropic, priority": (
        "https://platform.claude.com/docs/en/api/service-tiers",
        {
            "input_tokens": 410,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 585,
            "service_tier": "priority",
        },
        Usage(410, 0, 585, service_tier="priority"),
    ),
    "anthropic by litellm": (
        "litellm 1.106.2, seen; its prompt_tokens holds the caches",
        {
            "completion_tokens": 503,
            "prompt_tokens": 4096,
            "total_tokens": 4599,
            "completion_tokens_details": {"reasoning_tokens": 0, "text_tokens": 503},
            "prompt_tokens_details": {
                "cache_write_tokens": 248,
                "cached_tokens": 1800,
                "text_tokens": 2048,
                "cache_creation_tokens": 248,
                "cache_creation_token_details": {
                    "ephemeral_5m_input_tokens": 148,
                    "ephemeral_1h_input_tokens": 100,
                },
            },
            "cache_creation_input_tokens": 248,
            "cache_read_input_tokens": 1800,
            "service_tier": "standard",
            "server_tool_use": {"web_search_requests": 2},
        },
        Usage(2048, 1800, 503, others={WRITE_5M: 148, WRITE_1H: 100, Meter.SEARCH_CALL: 2}),
    ),
    "gemini by litellm": (
        "litellm 1.106.2, seen; thoughts are added, audio is without what was cached",
        {
            "completion_tokens": 603,
            "prompt_tokens": 110,
            "total_tokens": 713,
            "completion_tokens_details": {"reasoning_tokens": 405, "text_tokens": 198},
            "prompt_tokens_details": {
                "audio_tokens": 15,
                "cached_tokens": 40,
                "text_tokens": 45,
                "tool_use_tokens": 10,
            },
            "cache_read_input_tokens": 40,
        },
        Usage(55, 40, 603, 405, others={Meter.INPUT_AUDIO: 15}),
    ),
    "gemini by litellm, grounded": (
        "litellm 1.106.2; https://ai.google.dev/gemini-api/docs/pricing: what it read is free",
        {
            "completion_tokens": 603,
            "prompt_tokens": 100,
            "total_tokens": 713,
            "completion_tokens_details": {"reasoning_tokens": 405, "text_tokens": 198},
            "prompt_tokens_details": {"tool_use_tokens": 10, "web_search_requests": 1},
        },
        Usage(100, 0, 603, 405, others={Meter.SEARCH_CALL: 1}),
    ),
    "gemini by litellm, a picture made": (
        "litellm.types.utils.CompletionTokensDetailsWrapper",
        {
            "completion_tokens": 1310,
            "prompt_tokens": 20,
            "total_tokens": 1330,
            "completion_tokens_details": {"text_tokens": 20, "image_tokens": 1290},
        },
        Usage(20, 0, 20, others={Meter.OUTPUT_IMAGE: 1290}),
    ),
    "bedrock by litellm": (
        "litellm 1.106.2, AmazonConverseConfig.transform_usage",
        {
            "completion_tokens": 50,
            "prompt_tokens": 1300,
            "total_tokens": 1350,
            "completion_tokens_details": {"reasoning_tokens": 0, "text_tokens": 50},
            "prompt_tokens_details": {
                "cached_tokens": 1000,
                "cache_creation_tokens": 200,
                "cache_write_tokens": 200,
                "text_tokens": 100,
            },
            "cache_creation_input_tokens": 200,
            "cache_read_input_tokens": 1000,
        },
        Usage(100, 1000, 50, others={WRITE_5M: 200}),
    ),
    "bedrock by litellm, a total without the cache": (
        "litellm 1.106.2 passes on totalTokens, which AWS describes as input and output",
        {
            "completion_tokens": 50,
            "prompt_tokens": 1300,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 1000, "cache_creation_tokens": 200},
        },
        Usage(100, 1000, 50, others={WRITE_5M: 200}),
    ),
    "deepseek": (
        "https://api-docs.deepseek.com/guides/kv_cache",
        {
            "prompt_tokens": 176,
            "completion_tokens": 20,
            "total_tokens": 196,
            "prompt_tokens_details": {"cached_tokens": 128},
            "completion_tokens_details": {"reasoning_tokens": 8},
            "prompt_cache_hit_tokens": 128,
            "prompt_cache_miss_tokens": 48,
        },
        Usage(48, 128, 20, 8),
    ),
    "xai, cached": (
        "https://docs.x.ai/developers/advanced-api-usage/prompt-caching/usage-and-pricing",
        {
            "prompt_tokens": 125,
            "completion_tokens": 48,
            "total_tokens": 173,
            "prompt_tokens_details": {
                "text_tokens": 125,
                "audio_tokens": 0,
                "image_tokens": 0,
                "cached_tokens": 98,
            },
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        Usage(27, 98, 48),
    ),
    "xai, reasoning is an addition": (
        "grok-4-1-fast-reasoning, seen, in the names of chat",
        {
            "prompt_tokens": 2341,
            "completion_tokens": 31,
            "total_tokens": 3108,
            "prompt_tokens_details": {"text_tokens": 2341, "cached_tokens": 448},
            "completion_tokens_details": {"reasoning_tokens": 736},
            "num_sources_used": 0,
        },
        Usage(1893, 448, 767, 736),
    ),
    "xai, where reasoning is a part": (
        "grok-4 behind https://doc.302.ai/api-263332597",
        {
            "prompt_tokens": 686,
            "completion_tokens": 123,
            "total_tokens": 809,
            "prompt_tokens_details": {
                "cached_tokens": 679,
                "text_tokens": 686,
                "audio_tokens": 0,
                "image_tokens": 0,
            },
            "completion_tokens_details": {
                "text_tokens": 11,
                "audio_tokens": 0,
                "reasoning_tokens": 112,
            },
            "input_tokens": 0,
            "output_tokens": 0,
            "input_tokens_details": None,
        },
        Usage(7, 679, 123, 112),
    ),
    "gemini's thoughts beside no answer": (
        "https://github.com/router-for-me/CLIProxyAPI/issues/5733, seen",
        {
            "completion_tokens": 0,
            "total_tokens": 81,
            "prompt_tokens": 21,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        Usage(21, 0, 60, 60),
    ),
    "mistral": (
        "mistralai.models.UsageInfo; {} is seen where there is no audio",
        {
            "prompt_tokens": 26,
            "completion_tokens": 100,
            "total_tokens": 126,
            "prompt_audio_seconds": {},
        },
        Usage(26, 0, 100),
    ),
    "mistral, listening": (
        "mistralai.models.UsageInfo",
        {
            "prompt_tokens": 395,
            "completion_tokens": 100,
            "total_tokens": 495,
            "prompt_audio_seconds": 29,
        },
        Usage(395, 0, 100, others={Meter.SECOND: 29}),
    ),
    "fireworks": (
        "https://docs.fireworks.ai/guides/prompt-caching",
        {
            "prompt_tokens": 500,
            "total_tokens": 520,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 480},
        },
        Usage(20, 480, 20),
    ),
    "together": (
        "together.types, and Moonshot's",
        {
            "prompt_tokens": 500,
            "total_tokens": 520,
            "completion_tokens": 20,
            "cached_tokens": 480,
        },
        Usage(20, 480, 20),
    ),
    "baseten": (
        "Baseten's OpenAPI: UsageInfo, PromptTokensDetails",
        {
            "prompt_tokens": 500,
            "total_tokens": 520,
            "completion_tokens": 20,
            "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
            "completion_tokens_details": None,
        },
        Usage(500, 0, 20),
    ),
    "openrouter": (
        "https://openrouter.ai/docs/use-cases/usage-accounting",
        {
            "completion_tokens": 2,
            "completion_tokens_details": {"reasoning_tokens": 0},
            "cost": 0.95,
            "cost_details": {"upstream_inference_cost": 19},
            "prompt_tokens": 194,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 100,
                "audio_tokens": 0,
            },
            "total_tokens": 196,
        },
        Usage(94, 0, 2, others={WRITE_5M: 100}),
    ),
    "model studio": (
        "https://www.alibabacloud.com/help/en/model-studio/context-cache",
        {
            "prompt_tokens": 1700,
            "completion_tokens": 10,
            "total_tokens": 1710,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "cache_creation_input_tokens": 1600,
                "cache_creation": {"ephemeral_5m_input_tokens": 1600},
                "cache_type": "ephemeral",
            },
        },
        Usage(100, 0, 10, others={WRITE_5M: 1600}),
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_documented_body_meters_what_its_vendor_bills(name: str) -> None:
    _, body, expected = BODIES[name]
    assert usage_of(body) == expected


# What does not add up: the reading that leaves nothing out which may be billed, and that it is said.
CONTRADICTIONS: dict[str, tuple[dict[str, Any], Usage, str]] = {
    "a total with tokens that nothing states": (
        # Gemini behind a proxy that leaves its thoughts out: mozilla-ai/any-llm#1290
        {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
        Usage(20, 0, 603, 405),
        "do not make the total 623",
    ),
    "the same, cached": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 180,
            "prompt_tokens_details": {"cached_tokens": 60},
        },
        Usage(40, 60, 80, 30),
        "do not make the total 180",
    ),
    "reasoning that is neither in nor beside the output": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 160,
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
        Usage(100, 0, 70, 20),
        "do not make the total 160",
    ),
    "a total that is too small": (
        {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 140},
        Usage(100, 0, 50),
        "do not make the total 140",
    ),
    "more cached than there was, without a total": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 12},
        },
        Usage(9, 12, 1),
        "a part is more than its whole",
    ),
    "more reasoning than output, without a total": (
        {"prompt_tokens": 9, "completion_tokens": 1, "reasoning_tokens": 5},
        Usage(9, 0, 6, 5),
        "a part is more than its whole",
    ),
    "more sound than prompt": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "total_tokens": 10,
            "prompt_tokens_details": {"audio_tokens": 12},
        },
        Usage(0, 0, 1, others={Meter.INPUT_AUDIO: 12}),
        "the parts of the prompt are 3 more",
    ),
    "more sound than output": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "total_tokens": 10,
            "completion_tokens_details": {"audio_tokens": 4},
        },
        Usage(9, 0, 0, others={Meter.OUTPUT_AUDIO: 4}),
        "the parts of the output are 3 more",
    ),
    "a total of nothing": (
        {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 0},
        Usage(0, 0, 1),
        "do not make the total 0",
    ),
    "a total without the output, as large as one without the cache": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 1,
            "total_tokens": 100,
            "prompt_tokens_details": {"cache_write_tokens": 1},
        },
        Usage(99, 0, 1, others={WRITE_5M: 1}),
        "do not make the total 100",
    ),
    "two counts of what was cached": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "total_tokens": 10,
            "cached_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 7},
        },
        Usage(4, 5, 1),
        "cached is 5 and 7",
    ),
    "a cache that hit and missed another prompt": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 1,
            "total_tokens": 101,
            "prompt_cache_hit_tokens": 60,
            "prompt_cache_miss_tokens": 50,
        },
        Usage(40, 60, 1),
        "missed 50 + cached 60 is not prompt 100",
    ),
    "writes of two lives that are not the whole": (
        {
            "input_tokens": 1,
            "output_tokens": 1,
            "cache_creation_input_tokens": 100,
            "cache_creation": {"ephemeral_1h_input_tokens": 30, "ephemeral_5m_input_tokens": 20},
        },
        Usage(1, 0, 1, others={WRITE_5M: 70, WRITE_1H: 30}),
        "written 100 is not 20 for 5m + 30 for 1h",
    ),
    "a count that is none": (
        {
            "prompt_tokens": 9,
            "completion_tokens": 1,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": -3, "audio_tokens": "4"},
        },
        Usage(9, 0, 1),
        "cached_tokens is no count; audio_tokens is no count",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_does_not_add_up_is_read_with_caution_and_said(name: str) -> None:
    body, expected, why = CONTRADICTIONS[name]
    usage = usage_of(body)
    assert usage is not None
    assert usage.contradiction is not None
    assert why in usage.contradiction
    assert replace(usage, contradiction=None) == expected


@pytest.mark.parametrize(
    "body",
    [
        None, {}, [], "usage", 7, {"prompt_tokens": None}, {"prompt_tokens": "12"},
        {"prompt_tokens": True, "completion_tokens": 1}, {"completion_tokens": 5},
        {"prompt_tokens": -1, "completion_tokens": 5}, {"prompt_tokens": 1.5},
        {"prompt_tokens": 5, "completion_tokens": -1}, {"prompt_tokens": 5, "completion_tokens": ""},
        {"prompt_tokens": 5, "completion_tokens": [1]}, {"prompt_tokens": COUNT_MAX + 1},
        {"prompt_tokens": 5, "completion_tokens": 1 << 40, "total_tokens": 5 + (1 << 40)},
    ],
)  # fmt: skip
def test_a_figure_that_is_none_is_no_usage(body: object) -> None:
    assert usage_of(body) is None


@pytest.mark.parametrize(
    ("said", "tier"),
    [
        ({"service_tier": "default"}, None),
        ({"service_tier": "standard"}, None),
        ({"service_tier": "auto"}, None),
        ({"service_tier": None}, None),
        ({"service_tier": "flex"}, "flex"),
        ({"service_tier": "Priority"}, "priority"),
        ({"service_tier": "batch"}, "batch"),
        ({"service_tier": None, "speed": "fast"}, "fast"),
        ({"service_tier": "standard", "speed": "standard"}, None),
        ({"service_tier": 7}, None),
        ({"service_tier": "x" * 41}, None),
        ({}, None),
    ],
)
def test_the_standard_tier_has_no_name(said: dict[str, Any], tier: str | None) -> None:
    assert tier_of(said) == tier


def test_every_field_has_a_source_and_its_own_place() -> None:
    for shape in SHAPES:
        paths = [field.path for field in shape.fields]
        assert len(set(paths)) == len(paths)
        assert all(field.source for field in shape.fields)
        assert shape.known_by in paths


# ---- for any body ----------------------------------------------------------------------------

PATHS = sorted({field.path for shape in SHAPES for field in shape.fields})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
COUNT = st.integers(0, 200)
STATED = st.dictionaries(st.sampled_from(PATHS), COUNT | st.integers(0, 3) | JSON, max_size=12)


def body_of(paths: dict[str, Any]) -> dict[str, Any]:
    """The JSON that states these paths; a deeper one wins over a value on its way."""
    body: dict[str, Any] = {}
    for path in sorted(paths):
        *way, name = path.split(".")
        at = body
        for step in way:
            if not isinstance(at.get(step), dict):
                at[step] = {}
            at = at[step]
        at[name] = paths[path]
    return body


def billed(usage: Usage) -> int:
    """Tokens over all meters."""
    aside = sum(n for meter, n in usage.others.items() if meter in OUTPUT_METERS)
    return usage.prompt + usage.output + aside


def sound(usage: Usage) -> None:
    assert min(usage.uncached, usage.cached, usage.output, usage.reasoning) >= 0
    assert usage.reasoning <= usage.output
    assert all(type(n) is int and n > 0 for n in usage.others.values())
    inside = {Meter.INPUT, Meter.CACHE_READ, Meter.OUTPUT, Meter.REASONING}
    assert not inside & usage.others.keys()
    assert usage.others.keys() <= PROMPT_METERS | OUTPUT_METERS | {Meter.SEARCH_CALL, Meter.SECOND}


@given(JSON | STATED.map(body_of))
def test_any_json_is_usage_or_none(body: object) -> None:
    usage = usage_of(body)
    if usage is not None:
        sound(usage)
        assert billed(usage) <= 8 * COUNT_MAX
        told = Heard(1)
        told.read({"usage": body, "service_tier": body})
        assert told.news(whole=True) == usage
    if isinstance(body, dict):
        merged({}, merged(body, {"prompt_tokens": 1}))


@given(st.dictionaries(st.sampled_from(PATHS), COUNT), COUNT, COUNT)
def test_no_token_is_lost_or_there_twice(stated: dict[str, int], prompt: int, output: int) -> None:
    stated |= {"prompt_tokens": prompt, "completion_tokens": output}
    usage = usage_of(body_of(stated))
    assert usage is not None
    sound(usage)
    assert billed(usage) >= prompt + output
    total = stated.get("total_tokens")
    if not total:
        return
    fetched = stated.get("prompt_tokens_details.tool_use_tokens", 0)
    caches = (Meter.CACHE_READ_AUDIO, WRITE_5M, WRITE_1H)
    beside = usage.cached + sum(usage.others.get(meter, 0) for meter in caches)
    if usage.contradiction is None:
        assert total in {
            billed(usage),
            billed(usage) + fetched,  # read by tools, and not billed
            billed(usage) - beside,  # a total that leaves the cache out
        }
    elif not fetched:
        assert billed(usage) >= total or "no count" in usage.contradiction


TRUTH = st.builds(
    Usage,
    uncached=COUNT,
    cached=COUNT,
    output=st.integers(0, 100),
    reasoning=st.just(0),
    others=st.dictionaries(
        st.sampled_from([WRITE_5M, WRITE_1H, Meter.SEARCH_CALL]), st.integers(1, 200)
    ),
)
THOUGHT = st.integers(0, 100)


@given(TRUTH, THOUGHT, st.sampled_from(["openai", "xai", "apart", "anthropic", "litellm"]))
def test_what_a_vendor_means_is_what_is_metered(truth: Usage, thought: int, dialect: str) -> None:
    """The same request told in the ways of several vendors: the meters are the same."""
    truth = replace(truth, output=truth.output + thought, reasoning=thought)
    short, long = truth.others.get(WRITE_5M, 0), truth.others.get(WRITE_1H, 0)
    searches = truth.others.get(Meter.SEARCH_CALL, 0)
    beside = truth.cached + short + long
    total = truth.prompt + truth.output
    lives = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
    if dialect == "anthropic":
        body = {
            "input_tokens": truth.uncached,
            "output_tokens": truth.output,
            "cache_read_input_tokens": truth.cached,
            "cache_creation_input_tokens": short + long,
            "cache_creation": lives,
            "output_tokens_details": {"thinking_tokens": thought},
            "server_tool_use": {"web_search_requests": searches},
        }
    else:
        # The same total in another way: the figures alone cannot tell these from one another.
        assume(dialect != "apart" or beside != thought)
        body = {
            "prompt_tokens": truth.uncached if dialect == "apart" else truth.prompt,
            "completion_tokens": truth.output - (thought if dialect == "xai" else 0),
            "total_tokens": total,
            "prompt_tokens_details": {
                "cached_tokens": truth.cached,
                "cache_write_tokens": short + long,
                "cache_creation_token_details": lives,
            },
            "completion_tokens_details": {"reasoning_tokens": thought},
            "server_tool_use": {"web_search_requests": searches},
        }
        if dialect == "litellm":
            body |= {
                "cache_read_input_tokens": truth.cached,
                "cache_creation_input_tokens": short + long,
            }
    assert usage_of(orjson.loads(orjson.dumps(body))) == truth


# ---- parts, and a stream ---------------------------------------------------------------------


def test_parts_grow_into_a_whole_with_a_total_of_its_own() -> None:
    first = {
        "prompt_tokens": 15,
        "completion_tokens": 1,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "service_tier": "priority",
    }
    last = {
        "prompt_tokens": 0,
        "completion_tokens": 9,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": None},
        "service_tier": None,
    }
    both = merged(merged({}, first), last)
    assert both["total_tokens"] == 24
    assert usage_of(both) == Usage(11, 4, 9, service_tier="priority")
    whole = {**first, "completion_tokens": 9, "total_tokens": 30}  # a total stated for the whole
    assert merged(both, whole)["total_tokens"] == 30
    assert merged(both, {"prompt_tokens_details": None}) == both


def heard(*documents: dict[str, Any], vouched: bool = False) -> list[Usage | None]:
    told, news = Heard(50, vouched=vouched), []
    for document in documents:
        told.read(document)
        news.append(told.news(whole=bool(document.get("end"))))
    return news


FIGURES = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def test_figures_before_the_end_are_a_part() -> None:
    early = Usage(9, 0, 5, reported=False)
    assert heard({"usage": FIGURES}, {}, {"end": True}, {}) == [early, None, Usage(9, 0, 5), None]
    assert heard({"usage": FIGURES}, {"end": True}, vouched=True) == [Usage(9, 0, 5)] * 2
    assert heard({"end": True}, {"usage": FIGURES, "end": True}) == [None, Usage(9, 0, 5)]
    assert heard({"end": True, "usage": None}) == [None]


def test_a_tier_may_come_before_and_after_the_figures() -> None:
    flex = Usage(9, 0, 5, service_tier="flex")
    ours = Usage(50, 0, 0, reported=False, service_tier="flex")
    tier, end = {"service_tier": "flex"}, {"usage": FIGURES, "end": True}
    assert heard(tier, tier, end) == [ours, None, flex]
    assert heard(end, tier | {"end": True}) == [Usage(9, 0, 5), flex]
    assert heard(end | tier, {"service_tier": "default", "end": True}) == [flex, None]
    inside = {"usage": {"input_tokens": 9, "output_tokens": 5, "service_tier": "batch"}}
    assert heard(inside | {"end": True}) == [replace(flex, service_tier="batch")]


def test_timings_stand_in_for_usage() -> None:
    timings = {"prompt_n": 1, "cache_n": 236, "predicted_n": 35}
    assert heard({"timings": timings, "end": True}) == [Usage(1, 236, 35)]
    assert heard({"timings": timings, "usage": FIGURES, "end": True}) == [Usage(9, 0, 5)]
