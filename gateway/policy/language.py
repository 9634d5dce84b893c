"""`policies/routing/*.yaml`: the language a routing policy is written in. Pure.

    behaviour   how hard to try: attempts, backends, affinity
    routes      in order; the first whose `match` fits a request decides how it is routed
    default     for all other requests

A route sorts candidates, it never adds one: they come from the alias. `prefer` is a list of tiers
(kinds or backend names) tried in order; what is in no tier comes last, or not at all with `only`.
`by` orders inside a tier. Privacy, capability, context and health are no matter of policy: they
are filtered before and cannot be switched off here.

Owns: the schema and the frozen Policy. Knows nothing of what was observed; `engine` applies it.
Names (aliases, backends, classes) are resolved against a catalog at load. To extend the language,
add a field to the schema with a default that means what was before, and carry it to the dataclass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.domain.catalog import Catalog, Kind
from gateway.domain.money import NANO_PER_USD
from gateway.domain.request import Capability, Endpoint
from gateway.policy.expressions import Expression
from gateway.policy.source import Findings, Path, Strict, digest, json_schema, nearest, read

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
    """A time of the week in a zone. `days`: 0 is Monday. Minutes of the day; an end that is not
    after the start lies on the next day."""

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

_PRICE = re.compile(r"(0|[1-9][0-9]{0,6})(\.[0-9]{1,9})?")
_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"


def _price(text: str) -> str:
    if not _PRICE.fullmatch(text) or not Decimal(text):
        raise ValueError(f"'{text}' is not an amount; write dollars in quotes, like \"0.05\"")
    return text


Dollars = Annotated[
    str,
    AfterValidator(_price),
    WithJsonSchema({"type": "string", "pattern": f"^{_PRICE.pattern}$", "examples": ["0.05"]}),
]
Tokens = Annotated[int, Field(ge=0, le=100_000_000)]


class AffinityFile(Strict):
    """Stay with the backend that holds the conversation's KV cache."""

    idle_s: int = Field(default=600, ge=1, le=86_400, description="Forgotten after so long.")
    cost_ratio_max: float | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Hold on, also across tiers, while it costs at most so many times the best.",
    )


class BehaviourFile(Strict):
    """How hard to try."""

    attempts_max: int = Field(default=3, ge=1, le=10, description="Attempts of one request.")
    backends_max: int = Field(default=2, ge=1, le=10, description="Backends among them.")
    affinity: AffinityFile | None = Field(default=None, description="Left out: no affinity.")


class MatchFile(Strict):
    """All that is given must fit."""

    aliases: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    endpoint: Endpoint | None = None
    privacy_at_least: str | None = None
    privacy_at_most: str | None = None
    stream: bool | None = None
    needs: frozenset[Capability] = Field(default=frozenset(), description="All of these.")
    prompt_tokens_min: Tokens | None = None
    prompt_tokens_max: Tokens | None = None


class ChoiceFile(Strict):
    """How to choose among an alias's targets."""

    prefer: list[Annotated[list[str], Field(min_length=1)]] = Field(
        default=[],
        max_length=50,
        description="Tiers of kinds (self_hosted, managed, closed_api) or backends, best first.",
    )
    by: Literal["order", "cheapest", "fastest"] = Field(
        default="order", description="Inside a tier."
    )
    only: bool = Field(default=False, description="Never use what is in no tier.")
    price_max_usd: Dollars | None = Field(
        default=None, description="Predicted cost of one request, hard; unknown prices are out."
    )


class RouteFile(ChoiceFile):
    """How one kind of request is routed."""

    name: str = Field(pattern=_NAME)
    match: MatchFile


class PolicyFile(Strict):
    """A routing policy."""

    version: Literal[1]
    name: str = Field(pattern=_NAME, description="As the file is called.")
    description: str = Field(default="", max_length=1000, description="Whom it is for.")
    behaviour: BehaviourFile = BehaviourFile()
    routes: list[RouteFile] = Field(default=[], max_length=1000)
    default: ChoiceFile


def load_policy(
    text: str,
    *,
    source: str,
    catalog: Catalog,
    limits: frozenset[str] = frozenset(),  # noqa: ARG001
) -> Policy:
    """The file as a Policy, its names resolved in `catalog` and `limits`. Raises ConfigErrors."""
    file, findings = read(PolicyFile, text, source)
    names: set[str] = {DEFAULT_ROUTE}
    for index, route in enumerate(file.routes):
        path: Path = ("routes", index)
        if route.name in names:
            findings.problem((*path, "name"), f"a second route named '{route.name}'")
        names.add(route.name)
        _check_match(route.match, (*path, "match"), catalog, findings)
        _check_choice(route, path, catalog, findings)
    _check_choice(file.default, ("default",), catalog, findings)
    findings.raise_if_any()
    behaviour = _behaviour(file.behaviour)
    return Policy(
        name=file.name,
        description=file.description,
        behaviour=behaviour,
        routes=(
            *(
                _route(route.name, route, _match(route.match, catalog), behaviour)
                for route in file.routes
            ),
            _route(DEFAULT_ROUTE, file.default, Match(), behaviour),
        ),
        digest=digest(file),
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return json_schema(PolicyFile, "Weighbridge routing policy")


def _check_match(match: MatchFile, path: Path, catalog: Catalog, findings: Findings) -> None:
    if not match.model_fields_set:
        findings.problem(path, "matches every request, so no later route is reached", "use default")
    for index, alias in enumerate(match.aliases or ()):
        if alias not in catalog.aliases:
            findings.problem(
                (*path, "aliases", index), f"no alias '{alias}'", nearest(alias, catalog.aliases)
            )
    classes = catalog.privacy_classes
    for bound in ("privacy_at_least", "privacy_at_most"):
        name = getattr(match, bound)
        if name is not None and name not in classes:
            findings.problem(
                (*path, bound), f"unknown privacy class '{name}'", nearest(name, classes)
            )
            return
    least, most = _rank(match.privacy_at_least, classes), _rank(match.privacy_at_most, classes)
    if least is not None and most is not None and least > most:
        findings.problem((*path, "privacy_at_most"), "is below privacy_at_least: nothing matches")
    low, high = match.prompt_tokens_min, match.prompt_tokens_max
    if low is not None and high is not None and low > high:
        findings.problem((*path, "prompt_tokens_max"), "is below prompt_tokens_min")


def _check_choice(choice: ChoiceFile, path: Path, catalog: Catalog, findings: Findings) -> None:
    known = [*Kind, *catalog.backends]
    seen: set[str] = set()
    for tier, names in enumerate(choice.prefer):
        for index, name in enumerate(names):
            at = (*path, "prefer", tier, index)
            if name not in known:
                findings.problem(at, f"no kind or backend '{name}'", nearest(name, known))
            if name in seen:
                findings.problem(at, f"'{name}' is in two tiers; the first counts")
            seen.add(name)
    if choice.only and not choice.prefer:
        findings.problem((*path, "only"), "without prefer nothing is left", key=True)


def _rank(name: str | None, classes: tuple[str, ...]) -> int | None:
    return None if name is None else classes.index(name)


def _behaviour(file: BehaviourFile) -> Behaviour:
    affinity = None
    if file.affinity is not None:
        affinity = Affinity(
            idle_s=file.affinity.idle_s, cost_ratio_max=file.affinity.cost_ratio_max
        )
    return Behaviour(
        attempts_max=file.attempts_max, backends_max=file.backends_max, affinity=affinity
    )


def _match(file: MatchFile, catalog: Catalog) -> Match:
    return Match(
        aliases=None if file.aliases is None else frozenset(file.aliases),
        endpoint=file.endpoint,
        privacy_at_least=_rank(file.privacy_at_least, catalog.privacy_classes),
        privacy_at_most=_rank(file.privacy_at_most, catalog.privacy_classes),
        stream=file.stream,
        needs=file.needs,
        prompt_tokens_min=file.prompt_tokens_min,
        prompt_tokens_max=file.prompt_tokens_max,
    )


def _route(name: str, file: ChoiceFile, match: Match, behaviour: Behaviour) -> Route:
    price = file.price_max_usd
    return Route(
        name=name,
        match=match,
        prefer=tuple(map(frozenset, file.prefer)),
        by=By(file.by),
        only=file.only,
        price_max_nano_usd=None if price is None else int(Decimal(price) * NANO_PER_USD),
        behaviour=behaviour,
    )
