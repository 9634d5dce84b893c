"""The one table that turns an error into HTTP. A test proves that no class lacks a row.

Every body is OpenAI's error object, also for 404, 405 and our own faults: the SDKs show a raw
dump, or nothing, for any other shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.domain import errors as e

# class -> (status, OpenAI error type)
TABLE: dict[type[e.GatewayError], tuple[int, str]] = {
    e.GatewayError: (500, "server_error"),
    e.RequestError: (400, "invalid_request_error"),
    e.InvalidRequest: (400, "invalid_request_error"),
    e.UnsupportedParameter: (400, "invalid_request_error"),
    e.ContextTooLong: (400, "invalid_request_error"),
    e.UnknownAlias: (404, "invalid_request_error"),
    e.BodyTooLarge: (413, "invalid_request_error"),
    e.WrongContentType: (415, "invalid_request_error"),
    e.RequestTooSlow: (408, "invalid_request_error"),
    e.Unauthenticated: (401, "authentication_error"),
    e.Forbidden: (403, "permission_error"),
    e.NotFound: (404, "invalid_request_error"),
    e.MethodNotAllowed: (405, "invalid_request_error"),
    e.NoEligibleBackend: (503, "server_error"),
    e.RateLimited: (429, "rate_limit_error"),
    e.BudgetSpent: (429, "insufficient_quota"),
    e.Overloaded: (503, "server_error"),
    e.StoreUnavailable: (503, "server_error"),
    e.UpstreamError: (502, "upstream_error"),
    e.UpstreamRejected: (400, "invalid_request_error"),
    e.UpstreamRefused: (502, "upstream_error"),
    e.UpstreamBusy: (503, "upstream_error"),
    e.NoRoom: (503, "server_error"),
    e.UpstreamTimeout: (504, "upstream_error"),
    e.UpstreamUnreachable: (502, "upstream_error"),
    e.UpstreamBroken: (502, "upstream_error"),
    e.AllAttemptsFailed: (502, "upstream_error"),
    e.InternalError: (500, "server_error"),
    e.ClearanceViolated: (500, "server_error"),
}

# SDKs wait no longer than this; told of more, they would try at once and again.
RETRY_AFTER_S_MAX = 60.0


def status_of(error: e.GatewayError) -> int:
    """The HTTP status of `error`."""
    if isinstance(error, e.UpstreamRejected) and 400 <= error.status < 500:
        return error.status
    if isinstance(error, e.UpstreamBusy) and error.status == 429:
        return 429
    if isinstance(error, e.NoEligibleBackend) and error.busy:
        return 429
    if isinstance(error, e.AllAttemptsFailed):
        statuses = {status_of(failure) for failure in error.failures}
        return statuses.pop() if len(statuses) == 1 else TABLE[type(error)][0]
    return TABLE[type(error)][0]


def error_object(error: e.GatewayError) -> dict[str, Any]:
    """OpenAI's error object, without the text that is only for the log."""
    # A rejection's code is what SDKs look at; of other failures the caller needs our word only.
    upstream_code = (
        error.upstream_code if isinstance(error, e.UpstreamRejected | e.UpstreamBusy) else None
    )
    status, kind = TABLE[type(error)]
    if status != 429 and status_of(error) == 429:
        kind = "rate_limit_error"
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": upstream_code or error.code,
        }
    }


def error_body(error: e.GatewayError) -> bytes:
    return orjson.dumps(error_object(error))


def error_event(error: e.GatewayError) -> bytes:
    """The last event of a stream that failed: every SDK raises on it (see C1 of the research)."""
    return b"data: " + orjson.dumps(error_object(error)) + b"\n\n"


def retry_after_s(error: e.GatewayError) -> float | None:
    """The smallest honest time to wait, in seconds; None where waiting will not help."""
    if isinstance(error, e.NoEligibleBackend | e.Overloaded):
        return error.retry_after_s
    if isinstance(error, e.RateLimited | e.BudgetSpent):
        wait = error.retry_after_s
        return None if wait is None or wait > RETRY_AFTER_S_MAX else wait
    if isinstance(error, e.UpstreamError):
        return error.retry_after_s
    if isinstance(error, e.AllAttemptsFailed):
        waits = [f.retry_after_s for f in error.failures if f.retry_after_s is not None]
        return min(waits) if waits else None
    return None


def error_headers(error: e.GatewayError) -> Sequence[tuple[bytes, bytes]]:
    """`retry-after`, and `x-should-retry: false` where we have tried already.

    Without the latter an SDK's own two retries multiply ours: nine calls for one request.
    """
    out: list[tuple[bytes, bytes]] = []
    wait = retry_after_s(error)
    if wait is not None:
        out.append((b"retry-after", b"%d" % max(1, math.ceil(wait))))
        out.append((b"retry-after-ms", b"%d" % max(1, math.ceil(wait * 1000))))
    elif isinstance(error, e.AllAttemptsFailed | e.NoEligibleBackend | e.RateLimited):
        out.append((b"x-should-retry", b"false"))
    if isinstance(error, e.BudgetSpent):
        out.append((b"x-should-retry", b"false"))
    if isinstance(error, e.Unauthenticated):
        out.append((b"www-authenticate", b"Bearer"))
    return out
