"""The schema of `policies/routing/*.yaml`: the keys, their bounds, and the words editors show.

Owns what one value may look like, alone. What values mean together, and which names exist, is
`routing_file`'s. Every key says what it does and what leaving it out means; defaults come from the
frozen types of `language`, whose field names are the keys.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from gateway.domain.request import Capability, Endpoint
from gateway.policy.catalog_file import ClearanceFile
from gateway.policy.expressions import TEXT_MAX
from gateway.policy.language import (
    Behaviour,
    By,
    Canary,
    Hedge,
    OwnCost,
    Priority,
    RetryBudget,
    Route,
)
from gateway.policy.source import Strict

_BEHAVIOUR, _RETRIES = Behaviour(), RetryBudget()
_HEDGE, _ROUTE = Hedge(after_ms=1), Route(name="")
_CANARY = Canary(backends=frozenset(), share=0)
_MS_MAX = 3_600_000
_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"

_PRICE = re.compile(r"(0|[1-9][0-9]{0,6})(\.[0-9]{1,9})?")
_START = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = re.compile(rf"({'|'.join(DAYS)})(-({'|'.join(DAYS)}))?")


def _price(text: str) -> str:
    if not _PRICE.fullmatch(text) or not Decimal(text):
        raise ValueError(f"'{text}' is not an amount; write dollars in quotes, like \"0.05\"")
    return text


def _start(text: str) -> str:
    if not _START.fullmatch(text):
        raise ValueError(f"'{text}' is no time of day; write it in quotes, like \"08:00\"")
    return text


def _end(text: str) -> str:
    return text if text == "24:00" else _start(text)


def _day(text: str) -> str:
    if not _DAY.fullmatch(text):
        raise ValueError(f"'{text}' is no day; write {', '.join(DAYS)}, or a range like mon-fri")
    return text


def _listed(value: Any) -> Any:
    """One name may stand where a list of names is expected."""
    return [value] if isinstance(value, str) else value


def _one_or_more(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


Dollars = Annotated[
    str,
    AfterValidator(_price),
    WithJsonSchema({"type": "string", "pattern": f"^{_PRICE.pattern}$", "examples": ["0.05"]}),
]
Start = Annotated[
    str,
    AfterValidator(_start),
    WithJsonSchema({"type": "string", "pattern": f"^{_START.pattern}$", "examples": ["08:00"]}),
]
End = Annotated[
    str,
    AfterValidator(_end),
    WithJsonSchema(
        {"type": "string", "pattern": f"^({_START.pattern}|24:00)$", "examples": ["18:00"]}
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[
    list[Text],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=1000),
    _one_or_more({"type": "string", "minLength": 1, "maxLength": 200}),
]
Days = Annotated[
    list[Annotated[str, AfterValidator(_day)]],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=50),
    _one_or_more({"type": "string", "pattern": f"^{_DAY.pattern}$", "examples": ["mon-fri"]}),
]
Tokens = Annotated[int, Field(ge=0, le=100_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]
Ms = Annotated[int, Field(ge=1, le=_MS_MAX)]


# --- behaviour --------------------------------------------------------------------------------


class AffinityFile(Strict):
    """Stay with the backend that holds the conversation's KV cache."""

    idle_s: int = Field(default=600, ge=1, le=86_400, description="Forgotten after so long.")
    cost_ratio_max: float | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Hold on, also across tiers, while it costs at most so many times the best. "
        "Left out: hold on inside the best tier, whatever it costs.",
    )


class RetriesFile(Strict):
    """How many repeats all requests together may cause."""

    share: float = Field(
        default=_RETRIES.share, ge=0, le=1, description="Repeats per request, on average."
    )
    per_s: float = Field(
        default=_RETRIES.per_s, ge=0, le=1000, description="So many more every second."
    )


class TimeoutsFile(Strict):
    """Bounds in milliseconds. The tighter of these and the backend's own counts."""

    connect_ms: Ms | None = Field(
        default=None, description="To a connection, TLS included. Left out: the backend's own."
    )
    first_token_ms: Ms | None = Field(
        default=None, description="To the first content. Left out: the backend's own."
    )
    first_token_ms_per_1k_prompt_tokens: Annotated[int, Field(ge=0, le=60_000)] | None = Field(
        default=None,
        description="Stretches first_token_ms for long prompts. Left out: the backend's own.",
    )
    idle_ms: Ms | None = Field(
        default=None, description="Between two pieces of an answer. Left out: the backend's own."
    )
    total_ms: Annotated[int, Field(ge=1, le=24 * _MS_MAX)] | None = Field(
        default=None, description="The whole request. Left out: the backend's own."
    )


class HedgeFile(Strict):
    """Ask a second backend when the first is slow to speak. What the loser used is booked too."""

    after_ms: Ms = Field(description="Ask it when the first has said nothing for so long.")
    share_max: Share = Field(
        default=_HEDGE.share_max, description="Of the requests; none is hedged beyond it."
    )


class SpillFile(Strict):
    """From which load on our own machines are tried only after all others."""

    in_flight_share_max: Share | None = Field(
        default=None,
        description="Of the backend's concurrency_max. Left out: only when it is full.",
    )
    queue_max: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        default=None, description="Requests waiting in the engine. Left out: however many."
    )
    kv_used_max: Share | None = Field(
        default=None, description="Of the engine's KV cache. Left out: however much."
    )


class BehaviourFile(Strict):
    """How hard to try."""

    attempts_max: int = Field(
        default=_BEHAVIOUR.attempts_max, ge=1, le=10, description="Attempts of one request."
    )
    backends_max: int = Field(
        default=_BEHAVIOUR.backends_max, ge=1, le=10, description="Backends among them."
    )
    affinity: AffinityFile | None = Field(default=None, description="Left out: no affinity.")
    retries: RetriesFile = Field(
        default=RetriesFile(), description="The budget all repeats are taken from."
    )
    timeouts: TimeoutsFile = Field(default=TimeoutsFile(), description="When to give up.")
    hedge: HedgeFile | None = Field(default=None, description="Left out: no hedging.")
    spill: SpillFile | None = Field(
        default=None, description="Left out: only a full backend spills."
    )


# --- match ------------------------------------------------------------------------------------


class WindowFile(Strict):
    """A time of the week, by the clock on the wall of a zone."""

    model_config = ConfigDict(validate_by_name=False, validate_by_alias=True)

    zone: Text = Field(default="UTC", description="Such as Europe/Berlin.")
    days: Days = Field(
        default=["mon-sun"],
        description="The days on which it starts; ranges like mon-fri may run over Sunday.",
    )
    from_: Start = Field(default="00:00", alias="from", description="In quotes.")
    to: End = Field(
        default="24:00",
        description="In quotes, not part of it. When not after `from`, it is on the next day.",
    )


class MatchFile(Strict):
    """All that is given must fit. Where names are listed, one alone needs no brackets."""

    aliases: Names | None = Field(default=None, description="One of these. Left out: any.")
    keys: Names | None = Field(
        default=None, description="One of these key ids, as `keys list` shows. Left out: any."
    )
    tags: dict[Text, Names] = Field(
        default={},
        max_length=50,
        description="Tags of the key: each named one must have one of its values.",
    )
    endpoint: Endpoint | None = Field(default=None, description="Left out: any.")
    stream: bool | None = Field(default=None, description="Left out: streamed or not.")
    needs: frozenset[Capability] = Field(default=frozenset(), description="All of these.")
    prompt_tokens_min: Tokens | None = Field(
        default=None, description="Estimated. Left out: however short."
    )
    prompt_tokens_max: Tokens | None = Field(
        default=None, description="Estimated. Left out: however long."
    )
    privacy_at_least: str | None = Field(default=None, description="A class. Left out: the lowest.")
    privacy_at_most: str | None = Field(default=None, description="A class. Left out: the highest.")
    window: WindowFile | None = Field(default=None, description="When. Left out: at any time.")
    spent: Names | None = Field(
        default=None,
        description="One of these limits is used up (those with at_limit: route). "
        "Left out: whatever is.",
    )
    expression: Annotated[str, Field(min_length=1, max_length=TEXT_MAX)] | None = Field(
        default=None,
        description="CEL, true of the request; one that fails refuses it. See docs/policies.md. "
        "Left out: no more to ask.",
    )


# --- choice -----------------------------------------------------------------------------------


class MixFile(Strict):
    """Cost and latency, each as a ratio to the best, weighed together."""

    cost_weight: float = Field(
        default=_ROUTE.cost_weight, ge=0, le=1, description="The rest is the weight of latency."
    )
    hysteresis: float = Field(
        default=_ROUTE.hysteresis,
        ge=0,
        le=1,
        description="Stay where the alias last went while that is at most so much worse "
        "(0.05: 5%).",
    )


class RequireFile(ClearanceFile):
    """What the data terms of a backend and the licence of a model must say. Unknown does not do."""

    licences: list[Text] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="One of these, as the catalog writes it. Left out: whichever.",
    )


Percentile = Annotated[float, Field(gt=0, le=_MS_MAX)]


class PercentilesFile(Strict):
    """Upper bounds in milliseconds at percentiles."""

    p50: Percentile | None = Field(default=None, description="Left out: no bound.")
    p90: Percentile | None = Field(default=None, description="Left out: no bound.")
    p95: Percentile | None = Field(default=None, description="Left out: no bound.")
    p99: Percentile | None = Field(default=None, description="Left out: no bound.")


class SloFile(Strict):
    """Soft bounds: a backend that misses one is tried after those that miss none."""

    ttft_ms: PercentilesFile | None = Field(
        default=None, description="Time to the first token. Left out: no bound."
    )
    tpot_ms: PercentilesFile | None = Field(
        default=None, description="Time per token after the first. Left out: no bound."
    )
    end_to_end_ms: PercentilesFile | None = Field(
        default=None, description="Time to the last token. Left out: no bound."
    )


class CanaryFile(Strict):
    """A share of the requests goes to these backends first; all others use them last."""

    backends: list[Text] = Field(min_length=1, max_length=50, description="Names of backends.")
    share: float = Field(gt=0, lt=1, description="Of the sessions; one stays on its side.")
    error_share_max: float = Field(
        default=_CANARY.error_share_max,
        ge=0,
        le=1,
        description="Taken back by itself when more of its requests fail.",
    )
    cost_ratio_max: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None,
        description="Taken back by itself when its mean cost is more than so many times that of "
        "the others. Left out: whatever it costs.",
    )
    samples_min: int = Field(
        default=_CANARY.samples_min,
        ge=1,
        le=100_000,
        description="Of its requests must have ended before it is judged.",
    )


class ShadowFile(Strict):
    """A copy of some requests, for comparison. Its answer is thrown away, nobody is billed."""

    backend: Text = Field(description="Name of a backend; it must be cleared for the request.")
    share: Share = Field(description="Of the requests.")


class ChoiceFile(Strict):
    """How to choose among an alias's targets."""

    prefer: list[Annotated[list[str], Field(min_length=1)]] = Field(
        default=[],
        max_length=50,
        description="Tiers of kinds (self_hosted, managed, closed_api) or backends, best first.",
    )
    by: By = Field(
        default=_ROUTE.by,
        description="Inside a tier: as the alias lists them, by predicted cost, by predicted time "
        "to the last token, or by a mix of the two.",
    )
    mix: MixFile = Field(default=MixFile(), description="For `by: mix` only.")
    explore: float = Field(
        default=_ROUTE.explore,
        ge=0,
        le=0.5,
        description="This share of the requests goes to another eligible target of the best tier, "
        "to keep what is known of it fresh.",
    )
    own_cost: OwnCost = Field(
        default=_ROUTE.own_cost,
        description="What a request on our own machines counts as costing in comparisons: its "
        "share of the machine (allocated) or nothing, since that is paid for anyway (marginal).",
    )
    only: bool = Field(default=_ROUTE.only, description="Never use what is in no tier.")
    require: RequireFile = Field(
        default=RequireFile(), description="Hard: no backend without these terms."
    )
    price_max_usd: Dollars | None = Field(
        default=None,
        description="Predicted cost of one request, hard; unknown prices are out. "
        "Left out: however much.",
    )
    slo: SloFile = Field(default=SloFile(), description="Soft: who misses it comes later.")
    priority: Priority = Field(
        default=_ROUTE.priority,
        description="When room is short, batch is turned away first, critical last.",
    )
    canary: CanaryFile | None = Field(default=None, description="Left out: none.")
    shadow: ShadowFile | None = Field(default=None, description="Left out: none.")
    behaviour: BehaviourFile = Field(
        default=BehaviourFile(),
        description="In place of the file's, key by key; null takes a part away. What is not "
        "given here is as the file's behaviour says.",
    )


class RouteFile(ChoiceFile):
    """How one kind of request is routed."""

    name: str = Field(pattern=_NAME, description="Shown with every decision.")
    match: MatchFile = Field(description="Which requests; the first route that fits decides.")


class PolicyFile(Strict):
    """A routing policy."""

    version: Literal[1] = Field(description="Of this format.")
    name: str = Field(pattern=_NAME, description="As the file is called.")
    description: str = Field(default="", max_length=1000, description="Whom it is for.")
    behaviour: BehaviourFile = Field(default=BehaviourFile(), description="For all routes.")
    routes: list[RouteFile] = Field(default=[], max_length=1000, description="In order.")
    default: ChoiceFile = Field(description="For all requests that no route fits.")
