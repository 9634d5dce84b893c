"""What was decided for a request and why: the record that explain, audit and backtest read.

A decision is a pure function of (policy, catalog, facts, snapshot), each frozen, so that it can be
made again from its record, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from gateway.domain.catalog import Target
from gateway.domain.request import Capability, Endpoint


class Rule(StrEnum):
    """Why a candidate was excluded. Values are stable: they are stored and shown."""

    NOT_CONFIGURED = "not_configured"
    PRIVACY = "privacy"
    ENDPOINT = "endpoint"
    CAPABILITY = "capability"
    CONTEXT = "context"
    TERMS = "terms"  # region, retention, training, certification or licence the route demands
    POLICY = "policy"
    EQUIVALENCE = "equivalence"  # in no declared group with the first choice
    PRICE_UNKNOWN = "price_unknown"
    PRICE_MAX = "price_max"
    CIRCUIT_OPEN = "circuit_open"
    COOLING = "cooling"
    UNHEALTHY = "unhealthy"
    CAPACITY = "capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision may know of a request: no content, only its shape.

    `privacy` is the effective class as a rank (already the maximum of key, alias, header and
    detectors). `prompt_tokens` is an estimate, `output_tokens` the expected output and
    `cached_tokens` the part of the prompt expected in the pinned target's cache. `at_us` is the
    arrival, microseconds since the Unix epoch (UTC). `spent` names the limits that are used up and
    ask for another route instead of a refusal, `reverted` the routes whose canary was taken back.
    `pinned` is the target the session last used, `incumbent` what this alias last went to.
    `bucket` (0..9999) is stable for a session: it decides who is in a share (canary).
    `tie_break` orders equals, derived from the request id so that load spreads and replays agree.
    """

    alias: str
    endpoint: Endpoint
    privacy: int
    needs: frozenset[Capability]
    prompt_tokens: int
    output_tokens: int
    stream: bool
    cached_tokens: int = 0
    key_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    at_us: int = 0
    spent: frozenset[str] = frozenset()
    reverted: frozenset[str] = frozenset()
    pinned: Target | None = None
    incumbent: Target | None = None
    bucket: int = 0
    tie_break: int = 0


class Tails(NamedTuple):
    """The slow end of a window of samples, in milliseconds."""

    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendView:
    """What was observed of one backend, as of the snapshot. Times in milliseconds.

    `ttft_ms`/`tpot_ms` are medians of a recent window, None before the first answer; the tails are
    of the same windows. `ttft_per_1k_ms` is how much longer the first token takes per thousand
    prompt tokens, around prompts of `ttft_prompt_tokens` (the window's median). `cached_share` is
    the share of the prompt that pinned requests found cached (0..1). `retry_after_s` is set while
    the breaker is open or a Retry-After runs. `queue` (requests waiting) and `kv_used` (share of
    the KV cache, 0..1) are the engine's own readings, None where it gives none.
    """

    healthy: bool = True
    circuit: str = "closed"  # closed | open | half_open
    cooling: bool = False
    retry_after_s: float | None = None
    in_flight: int = 0
    queue: int | None = None
    kv_used: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    ttft_tails: Tails | None = None
    tpot_tails: Tails | None = None
    ttft_per_1k_ms: float = 0.0
    ttft_prompt_tokens: int = 0
    cached_share: float | None = None


Snapshot = Mapping[str, BackendView]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """One candidate that was not eligible, the rule, and the figures behind it."""

    target: Target
    rule: Rule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One eligible target in the order it will be tried.

    `why` is a short stable word (`affinity`, `preferred`, `cheapest`, `fastest`, `balanced`,
    `canary`, `explore`, `fallback`).
    `cost_nano_usd` is the predicted cost, None where unpriced; `latency_ms` the predicted
    end-to-end time, None before anything was measured.
    """

    target: Target
    why: str
    tier: int
    cost_nano_usd: int | None
    latency_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Ordered attempts with the reasons, and every exclusion.

    `cut` are the targets that were eligible but lie beyond the policy's attempt limits, best
    first: with `order` and `excluded` they account for every target of the alias exactly once.
    """

    policy: str
    policy_digest: str
    route: str
    order: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...]
    cut: tuple[Target, ...] = ()

    def record(self) -> dict[str, Any]:
        """The compact form stored with the request (JSON object, no content)."""
        return {
            "route": self.route,
            "order": [
                [str(c.target), c.why, c.tier, c.cost_nano_usd, c.latency_ms] for c in self.order
            ],
            "excluded": [[str(e.target), e.rule.value, e.detail] for e in self.excluded],
            "cut": [str(target) for target in self.cut],
        }
