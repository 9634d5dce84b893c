"""What was decided for a request and why: the record that explain, audit and backtest read.

A decision is a pure function of (policy, catalog, facts, snapshot), each frozen, so that it can be
made again from its record, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.domain.catalog import Target
from gateway.domain.request import Capability, Endpoint


class Rule(StrEnum):
    """Why a candidate was excluded. Values are stable: they are stored and shown."""

    NOT_CONFIGURED = "not_configured"
    PRIVACY = "privacy"
    ENDPOINT = "endpoint"
    CAPABILITY = "capability"
    CONTEXT = "context"
    POLICY = "policy"
    PRICE_UNKNOWN = "price_unknown"
    PRICE_MAX = "price_max"
    CIRCUIT_OPEN = "circuit_open"
    COOLING = "cooling"
    UNHEALTHY = "unhealthy"
    CAPACITY = "capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision may know of a request: no content, only its shape.

    `privacy` is the effective class as a rank (already the maximum of key, alias and header).
    `output_tokens` is the expected output. `pinned` is the target the session last used.
    `tie_break` orders equals, derived from the request id so that load spreads and replays agree.
    """

    alias: str
    endpoint: Endpoint
    privacy: int
    needs: frozenset[Capability]
    prompt_tokens: int
    output_tokens: int
    stream: bool
    pinned: Target | None = None
    tie_break: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendView:
    """What was observed of one backend, as of the snapshot. Times in milliseconds.

    `ttft_ms`/`tpot_ms` are medians of a recent window, None before the first answer.
    `retry_after_s` is set while the breaker is open or a Retry-After runs.
    """

    healthy: bool = True
    circuit: str = "closed"  # closed | open | half_open
    cooling: bool = False
    retry_after_s: float | None = None
    in_flight: int = 0
    ttft_ms: float | None = None
    tpot_ms: float | None = None


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

    `why` is a short stable word (`affinity`, `preferred`, `cheapest`, `fastest`, `fallback`).
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
