"""Decide: which targets of an alias a request may go to, and in what order. Pure.

Owns: the order of the rules, the scores, and nothing else. A decision is a function of policy,
catalog, rates, facts and snapshot alone, so its record replays to the same decision.

1. Filter. Each target meets the rules in the order of `domain.decision.Rule`; the first that it
   breaks excludes it. Privacy comes before everything a policy or the moment could say, and no
   setting reaches it.
2. Order what is left: tier, then the route's objective, then the tie-break.
3. Affinity may move one target to the front; it never adds one.
4. Cut to the policy's attempts and backends.

INVARIANTS
- Every target of the alias ends in exactly one of `order`, `cut` and `excluded`.
- No target whose clearance is below the request's privacy class is ever in `order`.
- What is not known is never taken for good: an unknown price fails a price limit and sorts last.
  An unknown context window is the one exception: the backend itself refuses what is too long.
- No decision is an error: with nothing eligible, `order` is empty and `excluded` says why.

`Router` does per (policy, catalog, rates) what does not depend on the request, so that a decision
is one pass over a short table. Build a new one when any of the three changes, at the latest at
midnight UTC, when other price rows may come into force.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import NamedTuple

from gateway.domain.catalog import Alias, Backend, Catalog, Model, Target
from gateway.domain.decision import (
    BackendView,
    Candidate,
    Decision,
    Exclusion,
    Facts,
    Rule,
    Snapshot,
)
from gateway.domain.money import Rates
from gateway.domain.request import Capability, Endpoint
from gateway.policy.language import Affinity, By, Match, Policy, Route

_UNBOUNDED = 1 << 62
_UNSEEN = BackendView()
_MIX, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1  # Fibonacci hashing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A target of an alias under a route: all that does not depend on the request.

    `price_in`/`price_out` are integers: nano-USD per token times `price_scale`; scale 0 where
    the target has no price. `salt` is stable over processes and over changes of the catalog.
    """

    target: Target
    backend: str
    index: int
    salt: int
    tier: int
    by_policy: bool
    unconfigured: str | None
    clearance: int
    endpoints: frozenset[Endpoint]
    capabilities: frozenset[Capability]
    context_tokens: int
    prompt_tokens_max: int
    output_tokens_max: int
    concurrency_max: int
    price_in: int
    price_out: int
    price_scale: int


class _Ranked(NamedTuple):
    """An eligible target, sorted by its first five fields; `place` is unique, so no row counts."""

    tier: int
    group: int
    value: float
    tie: int
    place: int  # in the alias
    row: _Row
    cost: int | None
    latency: float | None


@dataclass(frozen=True, slots=True)
class _Plan:
    route: Route
    rows: tuple[_Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A policy made ready for a catalog and the rates in force."""

    policy: Policy
    classes: tuple[str, ...]
    plans: Mapping[str, tuple[_Plan, ...]]
    routes: Mapping[str, Route]

    @classmethod
    def build(cls, policy: Policy, catalog: Catalog, rates: Mapping[Target, Rates]) -> Router:
        """Prepare the tables: one per alias and route that may match it."""
        return cls(
            policy=policy,
            classes=catalog.privacy_classes,
            routes={route.name: route for route in policy.routes},
            plans={
                name: tuple(
                    _Plan(route, _rows(alias, route, catalog, rates))
                    for route in policy.routes
                    if route.match.aliases is None or name in route.match.aliases
                )
                for name, alias in catalog.aliases.items()
            },
        )

    def decide(self, facts: Facts, snapshot: Snapshot) -> Decision:
        """The decision for one request. An alias that does not exist has no candidates."""
        policy = self.policy
        for plan in self.plans.get(facts.alias, ()):
            if _matches(plan.route.match, facts):
                break
        else:
            return Decision(
                policy=policy.name, policy_digest=policy.digest, route="", order=(), excluded=()
            )
        route = plan.route
        price_max = route.price_max_nano_usd
        ranked: list[_Ranked] = []
        excluded: list[Exclusion] = []
        for row in plan.rows:
            view = snapshot.get(row.backend, _UNSEEN)
            cost = _cost(row, facts) if row.price_scale else None
            broken = self._unfit(row, facts) or _unready(row, view, cost, price_max)
            if broken is None:
                ranked.append(_rank(row, route.by, facts, view, cost))
            else:
                excluded.append(Exclusion(row.target, *broken))
        ranked.sort()
        pinned = _pin(ranked, facts.pinned, policy.behaviour.affinity)
        order, cut = _cut(ranked, policy, route.by, pinned)
        return Decision(
            policy=policy.name,
            policy_digest=policy.digest,
            route=route.name,
            order=order,
            excluded=tuple(excluded),
            cut=cut,
        )

    def route(self, name: str) -> Route:
        """The route a decision names. Raises KeyError."""
        return self.routes[name]

    def _unfit(self, row: _Row, facts: Facts) -> tuple[Rule, str] | None:
        """The rule by which this request may never go to this target, if there is one."""
        if row.unconfigured is not None:
            return Rule.NOT_CONFIGURED, row.unconfigured
        if facts.privacy > row.clearance:
            need, have = self._class(facts.privacy), self._class(row.clearance)
            return Rule.PRIVACY, f"the request is {need}, the backend is cleared for {have}"
        if facts.endpoint not in row.endpoints:
            return Rule.ENDPOINT, f"does not serve {facts.endpoint.value}"
        if facts.needs and not facts.needs <= row.capabilities:
            missing = sorted(need.value for need in facts.needs - row.capabilities)
            return Rule.CAPABILITY, f"lacks {', '.join(missing)}"
        tokens = facts.prompt_tokens + facts.output_tokens
        if tokens > row.context_tokens:
            return Rule.CONTEXT, f"{tokens} tokens, {row.context_tokens} fit"
        if facts.prompt_tokens > row.prompt_tokens_max:
            return (
                Rule.CONTEXT,
                f"prompt of {facts.prompt_tokens} tokens over {row.prompt_tokens_max}",
            )
        if facts.output_tokens > row.output_tokens_max:
            return (
                Rule.CONTEXT,
                f"output of {facts.output_tokens} tokens over {row.output_tokens_max}",
            )
        if row.by_policy:
            return Rule.POLICY, "in no tier, and the route takes no other"
        return None

    def _class(self, rank: int) -> str:
        return self.classes[rank] if 0 <= rank < len(self.classes) else f"class {rank}"


def decide(
    policy: Policy,
    catalog: Catalog,
    rates: Mapping[Target, Rates],
    facts: Facts,
    snapshot: Snapshot,
) -> Decision:
    """The same in one call, for explaining and replaying; a server keeps the Router."""
    return Router.build(policy, catalog, rates).decide(facts, snapshot)


# --- preparing --------------------------------------------------------------------------------


def _rows(
    alias: Alias, route: Route, catalog: Catalog, rates: Mapping[Target, Rates]
) -> tuple[_Row, ...]:
    rows = []
    for index, target in enumerate(dict.fromkeys(alias.targets)):
        backend = catalog.backends[target.backend]
        rows.append(_row(index, target, backend, route, rates.get(target)))
    return tuple(rows)


def _row(index: int, target: Target, backend: Backend, route: Route, rates: Rates | None) -> _Row:
    model: Model = backend.models[target.model]
    names = {backend.name, backend.kind.value}
    tiers = [tier for tier, preferred in enumerate(route.prefer) if preferred & names]
    price_in, price_out, price_scale = _integers(rates)
    return _Row(
        target=target,
        backend=backend.name,
        index=index,
        salt=int.from_bytes(blake2b(str(target).encode(), digest_size=8).digest()),
        tier=tiers[0] if tiers else len(route.prefer),
        by_policy=route.only and not tiers,
        unconfigured=None if backend.configured else backend.why_unconfigured or "not configured",
        clearance=backend.clearance,
        endpoints=model.endpoints,
        capabilities=model.capabilities,
        context_tokens=model.context_tokens or _UNBOUNDED,
        prompt_tokens_max=model.prompt_tokens_max or _UNBOUNDED,
        output_tokens_max=model.output_tokens_max or _UNBOUNDED,
        concurrency_max=backend.limits.concurrency_max,
        price_in=price_in,
        price_out=price_out,
        price_scale=price_scale,
    )


def _integers(rates: Rates | None) -> tuple[int, int, int]:
    """Rates as whole numbers over a common scale, so that costs are exact without Decimal."""
    if rates is None:
        return 0, 0, 0
    digits = max(_digits(rates.input), _digits(rates.output))
    scale: int = 10**digits
    # 1 USD per million tokens is 1,000 nano-USD per token.
    return int(rates.input * scale) * 1000, int(rates.output * scale) * 1000, scale


def _digits(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "a price is a finite number"
    return max(0, -exponent)


# --- filtering --------------------------------------------------------------------------------


def _matches(match: Match, facts: Facts) -> bool:
    if match.endpoint is not None and match.endpoint is not facts.endpoint:
        return False
    if match.stream is not None and match.stream is not facts.stream:
        return False
    if match.needs and not match.needs <= facts.needs:
        return False
    privacy, tokens = facts.privacy, facts.prompt_tokens
    return not (
        (match.privacy_at_least is not None and privacy < match.privacy_at_least)
        or (match.privacy_at_most is not None and privacy > match.privacy_at_most)
        or (match.prompt_tokens_min is not None and tokens < match.prompt_tokens_min)
        or (match.prompt_tokens_max is not None and tokens > match.prompt_tokens_max)
    )


def _cost(row: _Row, facts: Facts) -> int:
    """Predicted cost in nano-USD, half to even: `domain.money.cost` with nothing cached."""
    exact = row.price_in * facts.prompt_tokens + row.price_out * facts.output_tokens
    whole, rest = divmod(exact, row.price_scale)
    twice = 2 * rest
    return whole + (twice > row.price_scale or (twice == row.price_scale and whole & 1))


def _unready(
    row: _Row, view: BackendView, cost: int | None, price_max: int | None
) -> tuple[Rule, str] | None:
    """The rule by which this target is out for its price or for the moment, if there is one."""
    if price_max is not None:
        if cost is None:
            return Rule.PRICE_UNKNOWN, "the route has a price limit and this price is not known"
        if cost > price_max:
            return Rule.PRICE_MAX, f"would cost {cost} nano-USD, the limit is {price_max}"
    if view.circuit == "open":
        return Rule.CIRCUIT_OPEN, _wait(view, "failing")
    if view.cooling:
        return Rule.COOLING, _wait(view, "asked us to wait")
    if not view.healthy:
        return Rule.UNHEALTHY, "its health check fails"
    if view.in_flight >= row.concurrency_max:
        return Rule.CAPACITY, f"{view.in_flight} requests in flight, {row.concurrency_max} allowed"
    return None


def _wait(view: BackendView, why: str) -> str:
    return why if view.retry_after_s is None else f"{why}, next try in {view.retry_after_s:.1f} s"


# --- ordering ---------------------------------------------------------------------------------


def _rank(row: _Row, by: By, facts: Facts, view: BackendView, cost: int | None) -> _Ranked:
    """The sort key. A half-open circuit keeps its place: it lets one request through, which has the
    others to fall back on; behind them it would never get the traffic that closes it again."""
    latency = _latency(view, facts)
    group, value = 0, 0.0
    tie = ((row.salt ^ facts.tie_break) * _MIX) & _MASK  # keeps its order when others come or go
    if by is By.CHEAPEST:
        group, value = (1, 0) if cost is None else (0, cost)
    elif by is By.FASTEST:
        # One request at a time explores a backend that was never measured: with nothing in flight
        # it sorts first, else last, so that a burst does not pile up on what is not known.
        if latency is not None:
            group, value = 1, latency
        elif view.in_flight:
            group = 2
    else:
        value = row.index
    return _Ranked(row.tier, group, value, tie, row.index, row, cost, latency)


def _latency(view: BackendView, facts: Facts) -> float | None:
    """Predicted milliseconds to the last token; without TPOT (embeddings) to the first."""
    if view.ttft_ms is None:
        return None
    return view.ttft_ms + facts.output_tokens * (view.tpot_ms or 0.0)


def _pin(ranked: list[_Ranked], pinned: Target | None, affinity: Affinity | None) -> bool:
    """Move the pinned target to the front, if it is eligible and affinity holds for it."""
    if pinned is None or affinity is None:
        return False
    entry = next((entry for entry in ranked if entry.row.target == pinned), None)
    if entry is None:
        return False
    best = ranked[0]
    if affinity.cost_ratio_max is not None and best.cost is not None and entry.cost is not None:
        holds = entry.cost <= best.cost * affinity.cost_ratio_max
    else:
        holds = entry.tier == best.tier
    if holds:
        ranked.remove(entry)
        ranked.insert(0, entry)
    return holds


def _cut(
    ranked: list[_Ranked], policy: Policy, by: By, pinned: bool
) -> tuple[tuple[Candidate, ...], tuple[Target, ...]]:
    """The first `attempts_max` over `backends_max` backends, and what that leaves out."""
    limits = policy.behaviour
    order: list[Candidate] = []
    cut: list[Target] = []
    backends: set[str] = set()
    for tier, _, _, _, _, row, cost, latency in ranked:
        is_new = row.backend not in backends
        if len(order) == limits.attempts_max or (is_new and len(backends) == limits.backends_max):
            cut.append(row.target)
            continue
        backends.add(row.backend)
        why = "fallback"
        if not order and (pinned or tier == 0):
            why = "affinity" if pinned else _WHY[by]
        order.append(
            Candidate(target=row.target, why=why, tier=tier, cost_nano_usd=cost, latency_ms=latency)
        )
    return tuple(order), tuple(cut)


_WHY = {
    By.ORDER: "preferred",
    By.CHEAPEST: "cheapest",
    By.FASTEST: "fastest",
    By.MIX: "balanced",
}
