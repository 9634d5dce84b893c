"""What was decided for a request and why: the record that explain, audit and backtest read.

A decision is a pure function of (policy, catalog, rates, facts, snapshot), each frozen, so that it
can be made again, bit for bit: `record` writes down what was decided with the facts and views it
was decided on, `recalled` gives those back. The record holds no content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import Any, NamedTuple

from gateway.domain.catalog import Target
from gateway.domain.engine import Need, Phase, Room
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
    EXPRESSION = "expression"  # a route's expression failed: no route is known to be the right one
    EQUIVALENCE = "equivalence"  # in no declared group with the first choice
    PRICE_UNKNOWN = "price_unknown"
    PRICE_MAX = "price_max"
    CIRCUIT_OPEN = "circuit_open"
    COOLING = "cooling"
    UNHEALTHY = "unhealthy"
    CAPACITY = "capacity"
    ROOM = "room"  # of its engines none is up, or none will have room in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision may know of a request: no content, only its shape.

    `privacy` is the effective class as a rank (already the maximum of key, alias, header and
    detectors). `prompt_tokens` is an estimate, `output_tokens` the expected output,
    `output_tokens_max` the caller's cap (what must fit a context), None where it set none, and
    `cached_tokens` the part of the prompt expected in the pinned target's cache. `at_us` is the
    arrival, microseconds since the Unix epoch (UTC). `spent` names the limits that are used up and
    ask for another route instead of a refusal; `priced_only` is set where a hard budget counts the
    request, so that an unknown price is no candidate. `service_tier` is what the caller asks for,
    None for the standard one. `reverted` are the routes whose canary was taken back. `pinned` is
    the target the session last used, `incumbent` what this alias last went to.
    `hits` are the prompt tokens expected in the KV cache of a replica, by `Backend.seen_as`.
    `need` is what it will take of an engine, on the careful side; None where none is asked.
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
    output_tokens_max: int | None = None
    cached_tokens: int = 0
    key_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    at_us: int = 0
    spent: frozenset[str] = frozenset()
    priced_only: bool = False
    reverted: frozenset[str] = frozenset()
    pinned: Target | None = None
    incumbent: Target | None = None
    bucket: int = 0
    tie_break: int = 0
    service_tier: str | None = None
    hits: Mapping[str, int] = field(default_factory=dict)
    need: Need | None = None


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
    the KV cache, 0..1) are the engine's own readings, None where it gives none. `rooms` has what
    each of its engines can take, nothing for a backend without `engine`.
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
    rooms: tuple[Room, ...] = ()


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
    `canary`, `explore`, `spill`, `fallback`).
    `cost_nano_usd` is the predicted cost, None where unpriced; `latency_ms` the predicted
    end-to-end time, None before anything was measured. `score` is what the route's objective
    compared (lower is better), None where it could not or where the order of the alias decides.
    `patience_ms` is how long the request may wait here for room in the backend's engine.
    `misses` are the service levels this target is predicted to miss, `metric@percentile`.
    """

    target: Target
    why: str
    tier: int
    cost_nano_usd: int | None
    latency_ms: float | None
    score: float | None = None
    misses: tuple[str, ...] = ()
    patience_ms: int = 0


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


# --- the record -------------------------------------------------------------------------------

# A view is an array in this order, which only ever grows at its end. An end that is at its defaults
# is cut off, at one of a few places.
_view = attrgetter(
    *("in_flight", "ttft_ms", "tpot_ms", "ttft_per_1k_ms", "ttft_prompt_tokens", "cached_share"),
    *("queue", "kv_used", "circuit", "healthy", "cooling", "retry_after_s"),
)
# Of the facts, those that are left out where they say nothing.
_SELDOM = (
    *("key_id", "tags", "privacy", "stream", "cached_tokens"),
    *("spent", "priced_only", "reverted", "pinned", "incumbent", "service_tier", "hits"),
    "need",
)
_seldom = attrgetter(*_SELDOM)
_NO_TAILS = (None, None, None)
_DEFAULTS = (*_view(BackendView())[:3], *_NO_TAILS, *_NO_TAILS, *_view(BackendView())[3:])
_CUTS = tuple((cut, _DEFAULTS[cut:]) for cut in (12, 9, 3, 0))


def record(decision: Decision, facts: Facts, snapshot: Snapshot) -> dict[str, object]:
    """The compact form stored with the request: what was decided, and all it was decided on.

    A JSON object. `order`: [target, why, tier, cost_nano_usd, latency_ms]; `excluded`: [target,
    rule, detail]; `cut`: targets; `facts` without what is at its default; `views` of the backends
    of the alias, as arrays (`recalled` reads them).
    """
    order = [[str(c.target), c.why, c.tier, c.cost_nano_usd, c.latency_ms] for c in decision.order]
    backends = {c.target.backend for c in decision.order}
    backends.update([e.target.backend for e in decision.excluded])
    backends.update([target.backend for target in decision.cut])
    return {
        "route": decision.route,
        "order": order,
        "excluded": [[str(e.target), e.rule.value, e.detail] for e in decision.excluded],
        "cut": [str(target) for target in decision.cut],
        "facts": _facts_out(facts),
        "views": {name: _view_out(view) for name, view in snapshot.items() if name in backends},
    }


def recalled(record: Mapping[str, Any]) -> tuple[Facts, Snapshot]:
    """The facts and the snapshot that `record` was made of, from its parsed JSON.

    What a newer version has added is ignored, what an older one did not write is at its default.
    Raises KeyError where the record has no facts: it is older than those.
    """
    return _facts_in(record["facts"]), {
        name: _view_in(values) for name, values in record.get("views", {}).items()
    }


def _facts_out(facts: Facts) -> dict[str, object]:
    out: dict[str, object] = {
        "alias": facts.alias,
        "endpoint": facts.endpoint.value,
        "prompt_tokens": facts.prompt_tokens,
        "output_tokens": facts.output_tokens,
        "at_us": facts.at_us,
        "bucket": facts.bucket,
        "tie_break": facts.tie_break,
    }
    if facts.needs:
        out["needs"] = sorted(need.value for need in facts.needs)
    for name, value in zip(_SELDOM, _seldom(facts), strict=True):
        if value:
            plain = type(value) in (int, bool, str)
            out[name] = value if plain else _plain(value)
    if facts.output_tokens_max is not None:
        out["output_tokens_max"] = facts.output_tokens_max
    return out


def _plain(value: Any) -> object:
    if isinstance(value, Target):
        return str(value)
    if isinstance(value, Need):
        return list(value)
    return sorted(value) if isinstance(value, frozenset) else dict(value)


def _facts_in(given: Mapping[str, Any]) -> Facts:
    return Facts(
        alias=given["alias"],
        endpoint=Endpoint(given["endpoint"]),
        privacy=given.get("privacy", 0),
        needs=frozenset(map(Capability, given.get("needs", ()))),
        prompt_tokens=given["prompt_tokens"],
        output_tokens=given["output_tokens"],
        stream=given.get("stream", False),
        output_tokens_max=given.get("output_tokens_max"),
        cached_tokens=given.get("cached_tokens", 0),
        key_id=given.get("key_id", ""),
        tags=given.get("tags", {}),
        at_us=given.get("at_us", 0),
        spent=frozenset(given.get("spent", ())),
        priced_only=given.get("priced_only", False),
        reverted=frozenset(given.get("reverted", ())),
        pinned=_target(given.get("pinned")),
        incumbent=_target(given.get("incumbent")),
        bucket=given.get("bucket", 0),
        tie_break=given.get("tie_break", 0),
        service_tier=given.get("service_tier"),
        hits=given.get("hits", {}),
        need=Need(*given["need"]) if "need" in given else None,
    )


def _target(text: str | None) -> Target | None:
    if text is None:
        return None
    backend, _, model = text.partition("/")  # a backend's name has no slash
    return Target(backend, model)


def _view_out(view: BackendView) -> tuple[object, ...]:
    values = _view(view)
    ttft, tpot = view.ttft_tails or _NO_TAILS, view.tpot_tails or _NO_TAILS
    whole: tuple[object, ...] = (*values[:3], *ttft, *tpot, *values[3:])
    if view.rooms:
        return (*whole, [list(room) for room in view.rooms])
    end = len(whole)
    for cut, rest in _CUTS:
        if whole[cut:] != rest:
            break
        end = cut
    return whole[:end]


def _view_in(given: list[Any]) -> BackendView:
    values = (*given, *_DEFAULTS[len(given) :])
    return BackendView(
        in_flight=values[0],
        ttft_ms=_float(values[1]),
        tpot_ms=_float(values[2]),
        ttft_tails=_tails(values[3:6]),
        tpot_tails=_tails(values[6:9]),
        ttft_per_1k_ms=float(values[9]),
        ttft_prompt_tokens=values[10],
        cached_share=_float(values[11]),
        queue=values[12],
        kv_used=_float(values[13]),
        circuit=values[14],
        healthy=values[15],
        cooling=values[16],
        retry_after_s=_float(values[17]),
        rooms=tuple(map(_room, values[18])) if len(values) > 18 else (),
    )


_ROOM_FLOATS = (
    *("ready_in_s", "ramp", "prefill_tps", "tpot_ms"),
    *("first_ms", "answer_s", "next_s"),
)


def _room(given: list[Any]) -> Room:
    known = dict(zip(Room._fields, given, strict=False))  # a newer version may know more
    for name in _ROOM_FLOATS:
        known[name] = _float(known.get(name, Room._field_defaults[name]))
    known["queued"] = tuple(known.get("queued", ()))
    return Room(**{**known, "phase": Phase(known["phase"])})


def _float(value: float | None) -> float | None:
    """A store may give a whole float back as an integer (PostgreSQL's jsonb, from 1e16 on)."""
    return None if value is None else float(value)


def _tails(values: tuple[Any, ...]) -> Tails | None:
    return None if values[0] is None else Tails(*map(float, values))
