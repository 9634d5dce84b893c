"""Bodies as vendors send them, and what each must mean."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.backends import http_client
from gateway.backends.upstream_errors import (
    BODY_BYTES_MAX,
    RETRY_AFTER_S_MAX,
    from_event,
    from_status,
    from_transport,
)
from gateway.domain.errors import (
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)

Rejected, Refused, Busy, Broken = UpstreamRejected, UpstreamRefused, UpstreamBusy, UpstreamBroken


def error(message="", *, code=None, type=None, param=None, **more):  # noqa: A002
    return {"error": {"message": message, "type": type, "param": param, "code": code, **more}}


def vllm(status, type, message, param=None):  # noqa: A002
    return status, error(message, type=type, param=param, code=status)


def anthropic(status, type, message):  # noqa: A002
    return status, {"type": "error", "error": {"type": type, "message": message}}


def google(status, word, message):
    return status, {"error": {"code": status, "message": message, "status": word}}


VLLM_TOO_LONG = (
    "This model's maximum context length is 1024 tokens. However, your prompt contains 24050 "
    "characters (more than 13312 characters, which is the upper bound for 1024 input tokens)."
)

MEANING = {
    # this very request
    (Rejected, "context_length_exceeded"): {
        "openai": (400, error("Too long", code="context_length_exceeded")),
        "vllm": vllm(400, "BadRequestError", VLLM_TOO_LONG, "input_text"),
        "llama.cpp": (400, error("too big", type="exceed_context_size_error", code=400, n_ctx=512)),
        "llama.cpp, older": (500, error("the request exceeds the available context size")),
        "anthropic": anthropic(400, "invalid_request_error", "prompt is too long: 210000 tokens"),
        "google": google(
            400,
            "INVALID_ARGUMENT",
            "The input token count (9) exceeds the maximum number of tokens allowed (8).",
        ),
        "bedrock": (400, {"message": "Input is too long for requested model."}),
    },
    (Rejected, "content_filter"): {
        "azure": (400, error("The prompt triggered our policy", code="content_filter")),
        "azure, no code": (400, error("triggering Azure OpenAI's content management policy.")),
        "openrouter": (403, error("x requires moderation. Your input was flagged", code=403)),
    },
    (Rejected, "invalid_value"): {
        "vllm": vllm(400, "BadRequestError", "temperature must be non-negative, got -1.0."),
        "vllm, max_tokens": vllm(
            400,
            "BadRequestError",
            "max_tokens=5000 cannot be greater than max_model_len=1024.",
            "max_tokens",
        ),
        "fastapi": (422, {"detail": [{"loc": ["body", "n"], "msg": "missing", "type": "missing"}]}),
    },
    (Rejected, "decimal_above_max_value"): {
        "openai": (400, error("Invalid 'temperature'", code="decimal_above_max_value")),
    },
    (Rejected, "request_too_large"): {"nginx": (413, b"<html>413</html>")},
    (Rejected, "not_found"): {"openai": (404, error("No file found with id 'file-1'."))},
    # our key, our bill, our catalog
    (Refused, "invalid_api_key"): {
        "openai": (401, error("Incorrect API key provided: sk-a***z.", code="invalid_api_key")),
        "vllm": (401, {"error": "Unauthorized"}),
        "google": google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid one."),
    },
    (Refused, "insufficient_quota"): {
        "anthropic": anthropic(400, "invalid_request_error", "Your credit balance is too low to."),
        "openai": (429, error("You exceeded your current quota", code="insufficient_quota")),
        "baseten": (402, {"error": "billing"}),
    },
    (Refused, "permission_denied"): {"anybody": (403, b"")},
    (Refused, "model_not_found"): {
        "openai": (404, error("The model `x` does not exist or", code="model_not_found")),
        "vllm": vllm(404, "NotFoundError", "The model `x` does not exist. Valid aliases: t."),
        "anthropic": anthropic(404, "not_found_error", "model: claude-9"),
        "google": google(404, "NOT_FOUND", "models/x is not found for API version v1beta"),
        "ollama": (404, error('model "x" not found, try pulling it first')),
        "fireworks": (404, error("Model not found, inaccessible, and/or not deployed")),
        "azure": (404, error("The API deployment does not exist.", code="DeploymentNotFound")),
    },
    (Refused, "not_found"): {
        "fastapi": (404, {"detail": "Not Found"}),
        "azure": (404, error("Resource not found", code="404")),
        "nginx": (404, b"<html><head><title>404 Not Found</title>"),
        "nothing": (404, b""),
    },
    (Refused, "method_not_allowed"): {"fastapi": (405, {"detail": "Method Not Allowed"})},
    (Refused, "redirect"): {"anybody": (307, b"")},
    # busy
    (Busy, "rate_limit_exceeded"): {
        "openai": (429, error("Rate limit reached", code="rate_limit_exceeded")),
        "google": google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota"),
    },
    (Busy, "service_unavailable"): {
        "vllm": vllm(503, "Service Unavailable", "The engine is currently busy and cannot accept"),
    },
    (Busy, "draining"): {
        "vllm": vllm(500, "InternalServerError", "cannot schedule new futures after shutdown"),
    },
    (Busy, "scaling_up"): {
        "fireworks": (503, error("not ready", code="DEPLOYMENT_SCALING_UP")),
        "fireworks, a string": (503, {"error": "DEPLOYMENT_SCALING_UP"}),
        "llama.cpp": vllm(503, "unavailable_error", "Loading model"),
    },
    (Busy, "overloaded"): {"anthropic": anthropic(529, "overloaded_error", "Overloaded")},
    (Busy, "too_early"): {"anybody": (425, b"")},
    (Busy, "request_timeout"): {"anybody": (408, b"")},
    # broken
    (Broken, "engine_dead"): {
        "vllm": vllm(500, "InternalServerError", "EngineCore encountered an issue. See stack"),
    },
    (Broken, "server_error"): {
        "plain": (500, b"Internal Server Error"),
        "page": (502, b"<html><body>Bad Gateway</body></html>"),
        "cloudflare": (524, b"error code: 524"),
        "no status": (0, b""),
        "a success": (200, b"{}"),
    },
    (Broken, "gateway_timeout"): {"anybody": (504, b"")},
}
TABLE = [
    pytest.param(status, body, kind, code, id=f"{code}-{vendor}")
    for (kind, code), bodies in MEANING.items()
    for vendor, (status, body) in bodies.items()
]


def encode(body):
    return body if isinstance(body, bytes) else orjson.dumps(body)


@pytest.mark.parametrize(("status", "body", "kind", "code"), TABLE)
def test_table(status, body, kind, code):
    got = from_status(status, encode(body), {}, "b1")
    assert (type(got), got.upstream_code, got.status) == (kind, code, status)
    assert got.message
    assert "b1" in got.detail
    assert "b1" not in got.message


def test_only_a_rejection_quotes_the_vendor():
    words = "xylophone does not suit"
    for status in [*range(300, 600), 0, 999]:
        got = from_status(status, encode(error(words, param="messages.0")), {}, "b")
        assert (words in got.message) == (type(got) is Rejected)
        assert (got.param is not None) == (type(got) is Rejected)
        assert words in got.detail


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("value", [
    "API key not valid", "Your credit balance is too low", "insufficient_quota",
    "model: gone", "The model `x` does not exist", "invalid_api_key", "EngineCore",
])  # fmt: skip
def test_a_callers_words_cannot_make_a_backend_look_misconfigured(status, value):
    got = from_status(status, encode(error(f"Invalid value for 'stop': '{value}'")), {}, "b")
    assert type(got) is Rejected


@pytest.mark.parametrize(("text", "hidden"), [
    ("see https://internal.example/v1/x?key=abc", "internal.example"),
    ("connect to 10.0.3.7:8000 failed", "10.0.3.7"),
    ("connect to [fd00:1:2:3::7]:8000 failed", "fd00"),
    ("host gpu-7.prod.svc.cluster.local says no", "gpu-7"),
    ("worker gpu-7:8000 says no", "gpu-7"),
    ("file /srv/models/secret-model/config.json", "secret-model"),
    ("Incorrect API key provided: sk-proj-abcdefgh1234", "abcdefgh"),
    ("header Authorization: Bearer abcd.efgh.ijkl", "efgh"),
    ("token 0123456789abcdef0123456789abcdef0123", "abcdef"),
    ("key AIzaSyA1234567890", "SyA1234"),
])  # fmt: skip
def test_no_address_and_no_secret_leaves(text, hidden):
    for status in (400, 401, 500):
        got = from_status(status, encode(error(text)), {}, "b")
        assert hidden not in got.message
        assert hidden not in got.detail


@pytest.mark.parametrize("text", [
    "Invalid type for 'messages[0].content': expected a string, but got an integer instead.",
    "Missing required parameter: 'response_format.json_schema'.",
    "temperature must be in [0, 2], got 2.5.",
    "Unsupported value: 'text/plain' and/or 'none'.",
])  # fmt: skip
def test_an_honest_sentence_stays_whole(text):
    assert from_status(400, encode(error(text)), {}, "b").message == text


def test_markup_and_control_characters_do_not_reach_the_caller():
    page = b"<!DOCTYPE html><html><title>400</title></html>"
    assert from_status(400, page, {}, "b").message == "The backend rejected the request."
    got = from_status(400, encode(error("a\r\nset-cookie: x\x00\x1b[31m" + "y " * 900)), {}, "b")
    assert got.message.isprintable()
    assert len(got.message) <= 300
    assert len(got.detail) <= 1_100


def test_fastapi_and_vllm_locations_name_the_callers_field():
    body = encode({"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "Input is wrong"}]})
    assert from_status(422, body, {}, "b").param == "messages.0.role"
    got = from_status(400, encode(error("x", param="body.messages", code=400)), {}, "b")
    assert got.param == "messages"
    assert from_status(400, encode(error("x", param="a b\n")), {}, "b").param is None


NOW = "Mon, 23 Nov 2026 12:00:00 GMT"
NOW_S = 1795435200.0


@pytest.mark.parametrize(("headers", "seconds"), [
    ({}, None),
    ({"retry-after": "7"}, 7),
    ({"retry-after": "0"}, 0),
    ({"retry-after": "1.5"}, 1.5),
    ({"retry-after": "-3"}, 0),
    ({"retry-after": "9999"}, RETRY_AFTER_S_MAX),
    ({"retry-after": "1e999"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "soon"}, None),
    ({"retry-after": "Mon, 23 Nov 2026 12:00:09 GMT"}, 9),
    ({"retry-after": "Mon, 23 Nov 2026 11:59:00 GMT"}, 0),
    ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
    ({"retry-after-ms": "x", "retry-after": "3"}, 3),
    ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02),
    ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, RETRY_AFTER_S_MAX),
    ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2.5s"}, 2.5),
    ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "2.5s"}, None),
])  # fmt: skip
def test_retry_after(headers, seconds):
    assert from_status(429, b"", headers, "b", now_s=NOW_S).retry_after_s == seconds
    # The answer's own date does as well as a clock.
    assert from_status(429, b"", {"date": NOW, **headers}, "b").retry_after_s == seconds
    assert from_status(500, b"", headers, "b", now_s=NOW_S).retry_after_s is None


def test_googles_retry_delay_is_read_from_the_body():
    body = {"error": {"code": 429, "details": [{"@type": "x"}, {"retryDelay": "34s"}]}}
    assert from_status(429, encode(body), {}, "b").retry_after_s == 34
    assert from_status(429, encode([body]), {}, "b").retry_after_s == 34
    assert from_event(body, "b").retry_after_s == 34


@pytest.mark.parametrize(("doc", "kind", "status"), [
    (error("EngineCore encountered an issue.", type="InternalServerError", code=500), Broken, 500),
    (error("cannot schedule new futures", code=500), Busy, 500),
    (error(VLLM_TOO_LONG, type="BadRequestError", code=400), Rejected, 400),
    (error("slow down", type="rate_limit_error"), Busy, 429),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Busy, 529),
    ({"type": "overloaded_error", "message": "Overloaded"}, Busy, 529),
    (error("bad key", type="authentication_error"), Refused, 401),
    (error("x", type="server_error"), Broken, 500),
    ({"error": "something"}, Broken, 500),
    ({"error": {}}, Broken, 500),
    ({}, Broken, 500),
    (error("x", code="429"), Busy, 429),
    (error("x", code=True), Broken, 500),
])  # fmt: skip
def test_events(doc, kind, status):
    got = from_event(doc, "b")
    assert (type(got), got.status) == (kind, status)


@pytest.mark.parametrize(("failure", "kind", "code"), [
    (http_client.ConnectFailed("x"), UpstreamUnreachable, "connect_failed"),
    (http_client.ConnectTimeout("x"), UpstreamTimeout, "connect_timeout"),
    (http_client.PoolTimeout("x"), Busy, "pool_timeout"),
    (http_client.HeadTimeout("x"), UpstreamTimeout, "head_timeout"),
    (http_client.IdleTimeout("x"), UpstreamTimeout, "idle_timeout"),
    (http_client.BadResponse("x"), Broken, "connection_broken"),
    (http_client.ClosedEarly("x", before_head=True), Broken, "connection_broken"),
])  # fmt: skip
def test_transport(failure, kind, code):
    got = from_transport(failure, "b1")
    assert (type(got), got.upstream_code, got.status) == (kind, code, 0)
    assert "b1" in got.detail
    assert "b1" not in got.message


def test_a_huge_body_is_bounded():
    huge = b'{"error":{"message":"' + b"maximum context length " * 500_000 + b'"}}'
    assert len(huge) > 10_000_000
    got = from_status(500, huge, {}, "b")
    assert len(got.message) + len(got.detail) < 2_000
    just_over = (
        b'{"error":{"code":"insufficient_quota","message":"' + b"x" * BODY_BYTES_MAX + b'"}}'
    )
    assert type(from_status(429, just_over, {}, "b")) is Busy  # read as text, not as an object


KEYS = [
    "error",
    "detail",
    "errors",
    "message",
    "msg",
    "code",
    "type",
    "param",
    "loc",
    "status",
    "status_code",
    "details",
    "retryDelay",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=4),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "date", "x-ratelimit-remaining-requests",
                     "x-ratelimit-reset-requests"]),
    st.sampled_from(["0", NOW, "Mon, 99 Nov 2026 12:00:00 GMT", "5s"]) | st.text(max_size=40),
)  # fmt: skip


def check_sane(got: UpstreamError):
    assert got.message
    assert got.message.isprintable()
    assert len(got.message) <= 300
    assert got.upstream_code
    assert got.retry_after_s is None or 0 <= got.retry_after_s <= RETRY_AFTER_S_MAX


@settings(max_examples=300, deadline=None)
@given(st.integers(-1, 1000), st.binary(max_size=200) | JSON, HEADERS)
def test_total(status, body, headers):
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    check_sane(from_status(status, raw, headers, "b", now_s=NOW_S))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["error", "message", "code", "type"]), JSON))
def test_total_for_events(doc):
    check_sane(from_event(doc, "b"))
