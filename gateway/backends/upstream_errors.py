"""What a backend's failure means: one table from (status, vendor's words) to our UpstreamErrors.

Owns: reading error bodies of every shape we met, the table, and what of a vendor's text a caller
may see. Must not know: requests, retries, clocks, sockets; equal arguments give equal errors.

INVARIANTS
- Total: any status, any bytes, any headers give an error; nothing is raised, work is bounded.
- The class is that of the first row of `_RULES` that matches, else of the status.
- `message` is for the caller: one short line without address, path or secret. Only a rejection
  quotes the vendor, because only a rejection is about the caller's own words; what a vendor says
  of our key or our account stays in `detail`, for the log, with secrets masked there too.
- `upstream_code` is OpenAI's word for it, or a vendor's where that is a plain word.

Shapes read (each seen in the wild): OpenAI `{"error": {message, type, param, code}}`, the same
with vLLM's integer code, Anthropic's `{"type": "error", ...}`, Google's `{status, details}` and
its array around it, `{"error": "text"}` (vLLM's 401, Baseten), FastAPI's `{"detail": ...}`, bare
`{"message": ...}` (Bedrock, Cohere), a JSON string, plain text, HTML, nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from gateway.backends.http_client import (
    ConnectFailed,
    ConnectTimeout,
    HeadTimeout,
    IdleTimeout,
    PoolTimeout,
    TransportError,
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

BODY_BYTES_MAX: Final = 64 * 1024
"""A longer error body is read as opaque text: no vendor's error object comes near it."""
RETRY_AFTER_S_MAX: Final = 60.0
_QUOTE_CHARS_MAX: Final = 300
_DETAIL_CHARS_MAX: Final = 1_000
_TEXT_CHARS_MAX: Final = 4_000


# ---- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    """Matches one of `codes` (the vendor's code or type, lower case) or `text` in its message.

    Vendors quote the caller's values in messages. So a row that takes a bad request for more than
    that reads only how the sentence begins: no caller can make a backend look misconfigured.
    """

    error: type[UpstreamError]
    code: str
    statuses: frozenset[int]
    codes: frozenset[str]
    text: re.Pattern[str] | None

    def matches(self, status: int, said: _Said) -> bool:
        if self.statuses and status not in self.statuses:
            return False
        if said.code.lower() in self.codes or said.type.lower() in self.codes:
            return True
        return self.text is not None and self.text.search(said.message) is not None


def _rule(
    error: type[UpstreamError], code: str, statuses: str = "", codes: str = "", text: str = ""
) -> _Rule:
    return _Rule(
        error,
        code,
        frozenset(map(int, statuses.split())),
        frozenset(codes.split()),
        re.compile(text, re.IGNORECASE) if text else None,
    )


_RULES: Final = (
    # This very request. vLLM and Google have no code for "too long", only a sentence.
    _rule(
        UpstreamRejected,
        "context_length_exceeded",
        "400 413 422 500",
        "context_length_exceeded exceed_context_size_error",
        r"maximum context length|available context size|prompt is too long|input is too long"
        r"|exceeds? the maximum number of tokens|exceeds? the context window",
    ),
    _rule(
        UpstreamRejected,
        "content_filter",
        "400 403 422",
        "content_filter content_policy_violation responsibleaipolicyviolation",
        r"content management policy|^your (request|input|prompt) was (flagged|rejected)"
        r"|requires moderation",
    ),
    # Our key, our bill or our catalog, in the guise of a bad request, a rate limit or a 404.
    _rule(
        UpstreamRefused,
        "invalid_api_key",
        "400",
        "invalid_api_key api_key_invalid",
        r"^api key (not valid|expired)",
    ),
    _rule(
        UpstreamRefused,
        "insufficient_quota",
        "400 412 429",
        "insufficient_quota billing_hard_limit_reached billing_not_active",
        r"^your credit balance is too low|^account .{0,80} is suspended",
    ),
    _rule(
        UpstreamRefused,
        "model_not_found",
        "400 404",
        "model_not_found deploymentnotfound model_not_available",
        r"^(the )?models?\b.{0,200}(does not exist|not found|decommissioned)|^model: "
        r"|^the provided model identifier is invalid|is not a valid model"
        r"|^this (is not a chat model|model is (only|not) supported)",
    ),
    _rule(
        UpstreamRefused,
        "not_found",
        "404",
        text=r"^\s*$|^[\w ]{0,40}not found\W*$|^\s*<|^invalid url|^no (route|static resource)",
    ),
    # Engines say with a 500 what they mean with a 503, and the other way round.
    _rule(UpstreamBusy, "draining", "500 503", text=r"cannot schedule new futures"),
    _rule(UpstreamBroken, "engine_dead", "500 503", text=r"enginecore|enginedead"),
    _rule(
        UpstreamBusy,
        "scaling_up",
        "500 502 503 504",
        "deployment_scaling_up scaling_up",
        r"deployment_scaling_up|^loading model|model is (currently )?loading",
    ),
    _rule(UpstreamBusy, "overloaded", "500", "overloaded_error"),
)

_BY_STATUS: Final[Mapping[int, tuple[type[UpstreamError], str]]] = {
    400: (UpstreamRejected, "invalid_value"),
    413: (UpstreamRejected, "request_too_large"),
    422: (UpstreamRejected, "invalid_value"),
    451: (UpstreamRejected, "content_filter"),
    404: (UpstreamRejected, "not_found"),
    401: (UpstreamRefused, "invalid_api_key"),
    402: (UpstreamRefused, "insufficient_quota"),
    403: (UpstreamRefused, "permission_denied"),
    405: (UpstreamRefused, "method_not_allowed"),
    407: (UpstreamRefused, "proxy_authentication_required"),
    415: (UpstreamRefused, "unsupported_content_type"),
    408: (UpstreamBusy, "request_timeout"),
    409: (UpstreamBusy, "conflict"),
    425: (UpstreamBusy, "too_early"),
    429: (UpstreamBusy, "rate_limit_exceeded"),
    503: (UpstreamBusy, "service_unavailable"),
    529: (UpstreamBusy, "overloaded"),
    504: (UpstreamBroken, "gateway_timeout"),
}
_BY_HUNDRED: Final[Mapping[int, tuple[type[UpstreamError], str]]] = {
    3: (
        UpstreamRefused,
        "redirect",
    ),  # never followed: base_url is wrong, or somebody lures us away
    4: (UpstreamRejected, "invalid_value"),
    5: (UpstreamBroken, "server_error"),
}
_ELSE: Final = (UpstreamBroken, "server_error")

# Error events of a stream bear no status; their type or code stands for one.
_STATUS_OF_WORD: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "badrequesterror": 400,
    "bad request": 400,
    "invalid_argument": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "content_filter": 400,
    "authentication_error": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "notfounderror": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "resource_exhausted": 429,
    "insufficient_quota": 429,
    "throttlingexception": 429,
    "service unavailable": 503,
    "unavailable": 503,
    "unavailable_error": 503,
    "service_unavailable_error": 503,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "overloaded_error": 529,
}

_SENTENCES: Final[Mapping[type[UpstreamError], str]] = {
    UpstreamRejected: "The backend rejected the request.",
    UpstreamRefused: "The backend does not accept calls from this gateway.",
    UpstreamBusy: "The backend is at capacity.",
    UpstreamBroken: "The backend failed.",
    UpstreamTimeout: "The backend did not answer in time.",
    UpstreamUnreachable: "The backend could not be reached.",
}
_SENTENCE_OF_CODE: Final[Mapping[str, str]] = {
    "context_length_exceeded": "The request is longer than the model's context.",
    "content_filter": "The backend's content filter refused the request.",
    "request_too_large": "The request is too large for the backend.",
}


# ---- the three ways in --------------------------------------------------------------------------


def from_status(
    status: int,
    body: bytes,
    headers: Mapping[str, str],
    backend: str,
    *,
    now_s: float | None = None,
) -> UpstreamError:
    """The error for an answer that is not a success.

    `headers` have lower-case names. `now_s` (seconds since the epoch) dates a Retry-After given as
    a date; without it the answer's own Date header does.
    """
    said = _read(body)
    error, code = _classify(status, said)
    retry_after_s = None
    if error is UpstreamBusy:
        retry_after_s = _retry_after_s(headers, now_s)
        if retry_after_s is None:
            retry_after_s = said.retry_after_s
    return _build(error, code, status, said, backend, retry_after_s)


def from_event(doc: Mapping[str, Any], backend: str) -> UpstreamError:
    """The error for an event of a stream that carries an `error`, or for that object itself."""
    said = _read_document(doc)
    status = said.status
    if status is None:
        words = (said.code.lower(), said.type.lower())
        status = next((_STATUS_OF_WORD[word] for word in words if word in _STATUS_OF_WORD), 500)
    error, code = _classify(status, said)
    return _build(error, code, status, said, backend, said.retry_after_s)


_BY_TRANSPORT: Final[Mapping[type[TransportError], tuple[type[UpstreamError], str]]] = {
    ConnectFailed: (UpstreamUnreachable, "connect_failed"),
    ConnectTimeout: (UpstreamTimeout, "connect_timeout"),
    PoolTimeout: (UpstreamBusy, "pool_timeout"),
    HeadTimeout: (UpstreamTimeout, "head_timeout"),
    IdleTimeout: (UpstreamTimeout, "idle_timeout"),
}


def from_transport(failure: TransportError, backend: str) -> UpstreamError:
    """The error for an exchange that brought no complete answer."""
    error, code = _BY_TRANSPORT.get(type(failure), (UpstreamBroken, "connection_broken"))
    return error(
        _SENTENCES[error],
        detail=f"{backend}: {type(failure).__name__}: {failure}"[:_DETAIL_CHARS_MAX],
        upstream_code=code,
    )


# ---- what was said ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Said:
    """An error body of any shape. Strings are bounded; `status` is what the body itself names."""

    code: str = ""
    type: str = ""
    param: str | None = None
    message: str = ""
    status: int | None = None
    retry_after_s: float | None = None


def _read(body: bytes) -> _Said:
    if len(body) <= BODY_BYTES_MAX:
        try:
            return _read_document(orjson.loads(body))
        except orjson.JSONDecodeError:
            pass
    return _Said(message=body[:_TEXT_CHARS_MAX].decode("utf-8", "replace"))


def _read_document(doc: Any) -> _Said:
    if isinstance(doc, list):
        doc = doc[0] if doc else None
    if isinstance(doc, Mapping):
        inner = next((doc[key] for key in ("error", "detail", "errors") if doc.get(key)), doc)
    else:
        inner = doc
    if isinstance(inner, list):
        inner = inner[0] if inner else None
    if isinstance(inner, Mapping):
        code = inner.get("code")
        return _Said(
            code=_text(code) if isinstance(code, str) else "",
            type=_text(inner.get("type") or inner.get("status") or inner.get("__type")),
            param=_param(inner.get("param") or inner.get("loc")),
            message=_text(inner.get("message") or inner.get("msg") or inner.get("Message")),
            status=_http_status(code) or _http_status(inner.get("status_code")),
            retry_after_s=_retry_delay_s(inner.get("details")),
        )
    return _Said(message=_text(inner))


def _text(value: Any) -> str:
    return value[:_TEXT_CHARS_MAX] if isinstance(value, str) else ""


def _param(value: Any) -> str | None:
    if isinstance(value, list):  # FastAPI's location: ["body", "messages", 0]
        value = ".".join(str(part) for part in value[:8] if isinstance(part, str | int))
    if not isinstance(value, str) or not _PARAM.fullmatch(value):
        return None
    return value.removeprefix("body.")


def _http_status(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) == 3:
        value = int(value)
    return value if type(value) is int and 400 <= value <= 599 else None


def _classify(status: int, said: _Said) -> tuple[type[UpstreamError], str]:
    for rule in _RULES:
        if rule.matches(status, said):
            return rule.error, rule.code
    error, code = _BY_STATUS.get(status) or _BY_HUNDRED.get(status // 100, _ELSE)
    plain = said.code.lower()
    return error, plain if _PLAIN_CODE.fullmatch(plain) else code


def _build(
    error: type[UpstreamError],
    code: str,
    status: int,
    said: _Said,
    backend: str,
    retry_after_s: float | None,
) -> UpstreamError:
    rejected = error is UpstreamRejected
    quote = clean(said.message, _QUOTE_CHARS_MAX) if rejected else ""
    spoken = clean(f"{said.code} {said.type} {said.message}", _DETAIL_CHARS_MAX)
    return error(
        quote or _SENTENCE_OF_CODE.get(code if rejected else "", _SENTENCES[error]),
        status=status,
        param=said.param if rejected else None,
        detail=f"{backend}: HTTP {status}: {spoken}".rstrip(": "),
        upstream_code=code,
        retry_after_s=retry_after_s,
    )


# ---- what a caller may see ----------------------------------------------------------------------

_PLAIN_CODE: Final = re.compile(r"[a-z][a-z_]{2,59}")
_PARAM: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,100}")
_MARKUP: Final = re.compile(r"\s*<(!doctype|html|head|body|\?xml|title)\b", re.IGNORECASE)
# Every alternative begins with a literal or a bounded class: linear time on any text.
_UNSPEAKABLE: Final = re.compile(
    r"""
      \b[a-z][a-z0-9+.-]{1,15}://[^\s"'<>]*                        # an address
    | \b(?:\d{1,3}\.){3}\d{1,3}\b(?::\d{1,5})?                     # an IPv4 address
    | \[?\b(?:[0-9a-f]{1,4}:{1,2}){3,7}[0-9a-f]{1,4}\b\]?(?::\d{1,5})?  # an IPv6 address
    | \b(?:[a-z0-9-]{1,63}\.){1,8}                                # a host: dotted field names stay
      (?:com|net|org|io|ai|dev|app|cloud|run|internal|local|svc|lan|corp|cluster)\b(?::\d{1,5})?
    | \b[a-z0-9.-]{1,253}:\d{2,5}\b                               # a host with a port
    | (?:/[\w.@+-]{1,64}){2,16}/?                                 # a path
    | \b(?:bearer|basic)\s+[^\s"']{4,}                            # a credential
    | \b(?:sk|pk|rk|gsk|fw|hf|xai|whsec|gw|wb)[-_*][^\s"',;]{4,}
    | \b(?:aiza|akia|ya29)[\w.-]{8,}
    | \b[\w-]{32,}                                               # a token, a hash
    """,
    re.IGNORECASE | re.VERBOSE,
)


def clean(text: str, chars_max: int) -> str:
    """One line without addresses and secrets; nothing at all of a page of markup."""
    if _MARKUP.match(text):
        return ""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = _UNSPEAKABLE.sub("[…]", line)
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


# ---- when to come again -------------------------------------------------------------------------

_DURATION: Final = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)(ms|h|m|s)")
_SECONDS_PER: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _retry_after_s(headers: Mapping[str, str], now_s: float | None) -> float | None:
    """Seconds to wait, 0 to `RETRY_AFTER_S_MAX`; None where nothing usable was said."""
    for seconds in _hints(headers, now_s):
        if seconds is not None and math.isfinite(seconds):
            return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)
    return None


def _hints(headers: Mapping[str, str], now_s: float | None) -> Iterator[float | None]:
    """Best first: the exact one, the standard one, then the window whose allowance is used up."""
    milliseconds = _number(headers.get("retry-after-ms"))
    yield None if milliseconds is None else milliseconds / 1000
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is None and (at := _date_s(said)) is not None:
        now_s = _date_s(headers.get("date")) if now_s is None else now_s
        seconds = None if now_s is None else at - now_s
    yield seconds
    for what in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
            yield _duration_s(headers.get(f"x-ratelimit-reset-{what}"))


def _number(text: str | None) -> float | None:
    try:
        return float(text[:32]) if text else None
    except ValueError:
        return None


def _date_s(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text[:64]).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _duration_s(text: str | None) -> float | None:
    """Go's notation, as OpenAI and Groq send it: `6m0s`, `20ms`, `2m59.56s`; plain seconds too."""
    text = (text or "")[:32].strip()
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return _number(text)
    return sum(float(number) * _SECONDS_PER[unit] for number, unit in parts)


def _retry_delay_s(details: Any) -> float | None:
    """Google's RetryInfo: `{"details": [{"retryDelay": "34s"}]}`."""
    for item in details[:16] if isinstance(details, list) else ():
        if isinstance(item, Mapping) and isinstance(delay := item.get("retryDelay"), str):
            seconds = _duration_s(delay)
            if seconds is not None and math.isfinite(seconds):
                return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)
    return None
