"""Everything that can go wrong with a request, as one small tree without HTTP in it.

    GatewayError
    ├── RequestError            the caller must change something; nothing was sent upstream
    │   ├── InvalidRequest      a field is missing, of the wrong type or out of range
    │   ├── UnsupportedParameter  no model behind the alias can do what is asked
    │   ├── ContextTooLong      prompt plus output exceed every model's context
    │   ├── UnknownAlias        no such model name, or not for this key
    │   ├── BodyTooLarge        bytes, depth or number of messages over the limit
    │   ├── WrongContentType    the body is not JSON
    │   ├── RequestTooSlow      the body did not arrive in time
    │   ├── NotFound            no such path
    │   ├── MethodNotAllowed    the path is ours, the method is not
    │   ├── Unauthenticated     no key, or not one of ours
    │   └── Forbidden           the key is ours, its scopes do not reach this far
    ├── NoEligibleBackend       every candidate was excluded; carries the exclusions
    ├── RateLimited             a limit of the caller's does not let it in just now
    ├── BudgetSpent             a budget of the caller's has no room for it
    ├── Overloaded              this worker is full or draining
    ├── StoreUnavailable        we cannot know (key unknown and the store is down): fail closed
    ├── UpstreamError           what a backend did, before or after the first content chunk
    │   ├── UpstreamRejected    it understood us and refuses this very request: nobody else is asked
    │   ├── UpstreamRefused     our credentials or our configuration are wrong there
    │   ├── UpstreamBusy        429 or "at capacity", perhaps with a time to wait
    │   │   └── NoRoom          an engine of our own is full; nothing was sent
    │   ├── UpstreamTimeout     connect, head, first chunk or gap between chunks took too long
    │   ├── UpstreamUnreachable no connection
    │   └── UpstreamBroken      5xx, garbage, an early end
    ├── AllAttemptsFailed       several backends were tried; carries the last of each
    └── InternalError           our own fault; the caller sees an id only
        └── ClearanceViolated   a wire was handed what its backend may not receive; nothing was sent

`retryable` is a property of the type, never of the text: dispatch decides by it alone.
`message` is for the caller and names no address and no secret; `detail` is for the log.
The one table that speaks HTTP is `api/errors.py`; a test proves that no class lacks a row.
"""

from __future__ import annotations

from typing import ClassVar


class GatewayError(Exception):
    """Root of the tree. `code` is stable and machine-readable; `param` names the field at fault."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = detail


class RequestError(GatewayError):
    """The caller must change something."""

    code = "invalid_request"


class InvalidRequest(RequestError):
    """A field is missing, of the wrong type or out of range."""

    code = "invalid_value"


class UnsupportedParameter(RequestError):
    """No model behind the alias can do what is asked, or nobody may ask it here."""

    code = "unsupported_parameter"


class ContextTooLong(RequestError):
    """The prompt and the wished-for output exceed every eligible model's context."""

    code = "context_length_exceeded"


class UnknownAlias(RequestError):
    """No such alias, or none this key may see."""

    code = "model_not_found"


class BodyTooLarge(RequestError):
    """Bytes, nesting or number of messages over the limit."""

    code = "request_too_large"


class WrongContentType(RequestError):
    """The body is not JSON."""

    code = "unsupported_content_type"


class RequestTooSlow(RequestError):
    """The body did not arrive in time."""

    code = "request_timeout"


class Unauthenticated(RequestError):
    """No key, or not one of ours. The message never says which."""

    code = "invalid_api_key"


class Forbidden(RequestError):
    """The key is ours, but its scopes do not reach this far."""

    code = "insufficient_scope"


class NotFound(RequestError):
    """No such path."""

    code = "not_found"


class MethodNotAllowed(RequestError):
    """The path is ours, the method is not."""

    code = "method_not_allowed"


class NoEligibleBackend(GatewayError):
    """Every candidate was excluded. `exclusions` is `((backend, rule, detail), ...)`.

    `retry_after_s` is the earliest moment at which a cooling backend may be tried again, in
    seconds; None where waiting will not help (privacy, capability, configuration). `busy`: all
    that is in the way is that backends asked us to wait.
    """

    code = "no_eligible_backend"

    def __init__(
        self,
        message: str,
        *,
        exclusions: tuple[tuple[str, str, str], ...] = (),
        retry_after_s: float | None = None,
        busy: bool = False,
    ) -> None:
        super().__init__(message)
        self.exclusions = exclusions
        self.retry_after_s = retry_after_s
        self.busy = busy


class RateLimited(GatewayError):
    """A rate or a bound on concurrency has no room. The message names limit, holder and period.

    `retry_after_s`: until the request would fit; None where waiting does not help.
    """

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BudgetSpent(GatewayError):
    """A budget has no room. `retry_after_s`: until it starts anew, None if that does not help."""

    code = "insufficient_quota"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(GatewayError):
    """This worker is full or draining."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoreUnavailable(GatewayError):
    """A store is down and the answer may not be guessed."""

    code = "store_unavailable"


class UpstreamError(GatewayError):
    """What a backend did. `status` is its HTTP status, 0 where there was none."""

    code = "upstream_error"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        param: str | None = None,
        detail: str = "",
        upstream_code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param, detail=detail)
        self.status = status
        self.upstream_code = upstream_code
        self.retry_after_s = retry_after_s


class UpstreamRejected(UpstreamError):
    """It understood us and refuses this very request: too long, bad field, content filter."""

    code = "upstream_rejected"
    retryable = False


class UpstreamRefused(UpstreamError):
    """Our credentials or our configuration are wrong there; another backend may do."""

    code = "upstream_refused"


class UpstreamBusy(UpstreamError):
    """429, or at capacity. `retry_after_s` where it said so."""

    code = "upstream_busy"


class NoRoom(UpstreamBusy):
    """An engine of our own is full: nothing was sent. `retry_after_s` is a forecast."""

    code = "no_room"


class UpstreamTimeout(UpstreamError):
    """Connect, head, first chunk or the gap between two chunks took too long."""

    code = "upstream_timeout"


class UpstreamUnreachable(UpstreamError):
    """No connection: refused, DNS, TLS."""

    code = "upstream_unreachable"


class UpstreamBroken(UpstreamError):
    """5xx, garbage, or an end before the end."""

    code = "upstream_broken"


class AllAttemptsFailed(GatewayError):
    """Several backends were tried and each failed; `failures` holds the last error of each."""

    code = "all_attempts_failed"

    def __init__(self, message: str, *, failures: tuple[UpstreamError, ...]) -> None:
        super().__init__(message)
        self.failures = failures


class InternalError(GatewayError):
    """Our own fault."""

    code = "internal_error"


class ClearanceViolated(InternalError):
    """A wire was handed a request that its backend may not receive. Nothing was sent.

    It means that the decision and the catalog disagree: a bug, to be looked at at once.
    """

    code = "clearance_violated"
