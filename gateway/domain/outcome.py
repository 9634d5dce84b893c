"""How a request ended: exactly one Outcome each, refusals included.

Metrics, log line and ledger row all derive from the record below, so they cannot disagree. The
record is also the journal's line and the ledger's row: the field names are the column names.
Times: `*_us` integer microseconds; `started_at_us` since the Unix epoch (UTC). Money: nano-USD,
None where it is not known (`priced` says so); a cost of 0 with tokens is impossible by type check
in the ledger, not by hope.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.domain.money import TOKEN_METERS


class Outcome(StrEnum):
    """How a request or an attempt ended. Values are stored."""

    OK = "ok"
    REFUSED = "refused"  # the caller must change something; nothing was sent upstream
    NO_ROUTE = "no_route"  # every candidate was excluded, or we could take no work just then
    REJECTED = "rejected"  # the backend refused this very request
    FAILED = "failed"  # every attempt failed before content
    FAILED_MIDSTREAM = "failed_midstream"  # content had gone out already
    CANCELLED = "client_cancelled"  # the client left
    INTERRUPTED = "interrupted"  # we died; closed on the next start
    HEDGE_LOST = "hedge_lost"  # of an attempt: another one answered first
    INTERNAL = "internal_error"


@dataclass(slots=True, kw_only=True)
class AttemptRecord:
    """One dispatch to one backend. `number` counts from 1. `why` is the candidate's, or `hedge`."""

    number: int
    backend: str
    model: str
    started_at_us: int
    why: str | None = None
    outcome: str = Outcome.INTERRUPTED.value
    http_status: int = 0
    error_code: str | None = None
    uncached_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    other_meters: dict[str, int] | None = None  # Usage.others, None where there are none
    service_tier: str | None = None
    usage_source: str = "none"  # reported | estimated | none
    cost_nano_usd: int | None = None
    rates_id: str | None = None
    ttft_us: int | None = None
    duration_us: int | None = None

    @property
    def tokens(self) -> int:
        """All that it used, however they are billed; 0 where it was not weighed."""
        counted = (self.uncached_tokens or 0) + (self.cached_tokens or 0)
        counted += self.output_tokens or 0
        if self.other_meters:
            counted += sum(n for name, n in self.other_meters.items() if name in TOKEN_METERS)
        return counted


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request. Written open when the first attempt starts, whole when it ends.

    Tokens are those of the answer; the cost is the sum over all attempts, a hedge's loser included.
    `policy_digest` names the whole set of files in force (`bundle`). `shadow_of` is set on a copy
    sent for comparison: the request it copies. Such a row has no key: nobody is billed for it.
    """

    id: str
    started_at_us: int
    endpoint: str
    alias: str | None = None
    key_id: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    privacy_class: str | None = None
    session: str | None = None
    stream: bool = False
    backend: str | None = None
    model: str | None = None
    policy: str | None = None
    policy_digest: str | None = None
    route: str | None = None
    shadow_of: str | None = None
    decision: dict[str, object] | None = None
    outcome: str = Outcome.INTERRUPTED.value
    http_status: int = 0
    error_code: str | None = None
    uncached_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    other_meters: dict[str, int] | None = None
    usage_source: str = "none"
    cost_nano_usd: int | None = None
    priced: bool = False
    ttft_us: int | None = None
    tpot_us: float | None = None
    tps: float | None = None
    duration_us: int | None = None
    overhead_us: int | None = None
    attempt_count: int = 0
    worker: str | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
