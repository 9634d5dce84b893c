"""The language a routing policy is written in, as frozen types. Pure.

    behaviour   how hard to try: attempts, backends, affinity, retries, timeouts, hedge, spill
    routes      in order; the first whose `match` fits a request decides how it is routed
    default     for all other requests

A route sorts candidates and takes some away, it never adds one: they come from the alias. `prefer`
is a list of tiers (kinds or backend names) tried in order; what is in no tier comes last, or not
at all with `only`. `by` orders inside a tier. `require` and `price_max_usd` are hard, `slo` is
soft. Privacy, capability, context and health are no matter of policy: they are filtered before and
cannot be switched off here.

Owns what a policy can say. How it is written in a file is `routing_schema`'s, how a file becomes a
Policy `routing_file`'s (only who reads files needs pydantic), and `engine` applies it. Knows
nothing of what was observed. To extend the language, add a field here with a default that means
what was before, its key to the schema, and carry it over in `routing_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gateway.domain.catalog import Catalog
from gateway.domain.request import Capability, Endpoint
from gateway.policy.expressions import Expression

DEFAULT_ROUTE = "default"


class By(StrEnum):
    """What orders candidates inside a tier."""

    ORDER = "order"
    CHEAPEST = "cheapest"
    FASTEST = "fastest"
    MIX = "mix"


class OwnCost(StrEnum):
    """What a request on our own machines counts as costing when candidates are compared."""

    ALLOCATED = "allocated"  # the price book's figure; unpriced sorts last
    MARGINAL = "marginal"  # nothing: a warm machine is paid for anyway


class Priority(StrEnum):
    """Who goes first when room is short."""

    CRITICAL = "critical"
    INTERACTIVE = "interactive"
    BATCH = "batch"


# The share of a bound (a backend's concurrency, a worker's requests in flight) each may fill.
PRIORITY_SHARES = {Priority.CRITICAL: 1.0, Priority.INTERACTIVE: 0.95, Priority.BATCH: 0.7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """Stay with the backend that holds the conversation's KV cache.

    A pin is forgotten after `idle_s`. It holds inside the best tier that has a candidate. With
    `cost_ratio_max` price decides instead, where both are priced: the pin holds, also across
    tiers, while the pinned target costs at most that many times the best candidate.
    """

    idle_s: int
    cost_ratio_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """Repeats allowed: `share` of the requests, and `per_s` more every second."""

    share: float = 0.1
    per_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds in milliseconds; None leaves the backend's own. The tighter of the two counts."""

    connect_ms: int | None = None
    first_token_ms: int | None = None
    first_token_ms_per_1k_prompt_tokens: int | None = None
    idle_ms: int | None = None
    total_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """Ask a second backend when the first has said nothing after `after_ms`.

    At most `share_max` of the requests are hedged. Who answers first wins; what the other one
    used is booked too.
    """

    after_ms: int
    share_max: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Spill:
    """From which load on our own machines are tried only after all others.

    `in_flight_share_max` of the backend's concurrency, `queue_max` requests waiting in the engine,
    `kv_used_max` of its KV cache.
    """

    in_flight_share_max: float | None = None
    queue_max: int | None = None
    kv_used_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How hard to try. `affinity` of None: every request is routed afresh."""

    attempts_max: int = 3
    backends_max: int = 2
    affinity: Affinity | None = None
    retries: RetryBudget = RetryBudget()
    timeouts: Timeouts = Timeouts()
    hedge: Hedge | None = None
    spill: Spill | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A time of the week in a zone. `days`: 0 is Monday. Minutes of the day (the end up to 1440);
    an end that is not after the start lies on the next day."""

    zone: str
    days: frozenset[int]
    start_minute: int
    end_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which requests a route is for; None does not narrow. Privacy bounds are ranks, inclusive.

    `tags` are the key's: each named one must have one of the values. `spent` names limits, one of
    which must be used up. `expression` is CEL, see `policy.expressions`.
    """

    aliases: frozenset[str] | None = None
    keys: frozenset[str] | None = None
    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    endpoint: Endpoint | None = None
    privacy_at_least: int | None = None
    privacy_at_most: int | None = None
    stream: bool | None = None
    needs: frozenset[Capability] = frozenset()
    prompt_tokens_min: int | None = None
    prompt_tokens_max: int | None = None
    window: Window | None = None
    spent: frozenset[str] = frozenset()
    expression: Expression | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a backend's data terms and a model's licence must say. Unknown does not satisfy."""

    regions: frozenset[str] | None = None
    retention_days_max: int | None = None
    no_training: bool = False
    certifications: frozenset[str] = frozenset()
    subprocessors_allowed: frozenset[str] | None = None
    licences: frozenset[str] | None = None


class Metric(StrEnum):
    """What a service level is about; all in milliseconds."""

    TTFT = "ttft_ms"
    TPOT = "tpot_ms"
    END_TO_END = "end_to_end_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """A soft bound at a percentile (50, 90, 95 or 99): who misses it comes after who does not."""

    metric: Metric
    percentile: int
    ms_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A share of the requests goes to `backends` first; all others use them last.

    Taken back by itself once `samples_min` of them have ended and their failures exceed
    `error_share_max`, or their mean cost `cost_ratio_max` times that of the others.
    """

    backends: frozenset[str]
    share: float
    error_share_max: float = 0.05
    cost_ratio_max: float | None = None
    samples_min: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A copy of a share of the requests goes to `backend` too; its answer is thrown away."""

    backend: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one kind of request is routed. Tiers hold names of kinds and of backends.

    For `By.MIX`, `cost_weight` (0..1) against 1 - `cost_weight` for latency. `hysteresis`: the
    incumbent stays while its score is at most so much worse (share). `explore`: this share of the
    requests goes to another eligible target of the best tier, to keep what is known fresh.
    `behaviour` is complete: the file's with what the route overrides.
    """

    name: str
    match: Match = Match()
    prefer: tuple[frozenset[str], ...] = ()
    by: By = By.ORDER
    cost_weight: float = 0.5
    hysteresis: float = 0.05
    explore: float = 0.0
    own_cost: OwnCost = OwnCost.ALLOCATED
    only: bool = False
    require: Terms = Terms()
    price_max_nano_usd: int | None = None
    slos: tuple[Slo, ...] = ()
    priority: Priority = Priority.INTERACTIVE
    canary: Canary | None = None
    shadow: Shadow | None = None
    behaviour: Behaviour = Behaviour()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A routing policy. The last route matches everything. `behaviour` is the file's own."""

    name: str
    description: str
    behaviour: Behaviour
    routes: tuple[Route, ...]
    digest: str


# --- the file ---------------------------------------------------------------------------------


def load_policy(
    text: str, *, source: str, catalog: Catalog, limits: frozenset[str] = frozenset()
) -> Policy:
    """The file as a Policy, its names resolved in `catalog` and `limits`. Raises ConfigErrors."""
    from gateway.policy.routing_file import load

    return load(text, source=source, catalog=catalog, limits=limits)


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    from gateway.policy.routing_schema import PolicyFile
    from gateway.policy.source import json_schema

    return json_schema(PolicyFile, "Weighbridge routing policy")
