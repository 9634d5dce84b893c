"""Decide: which targets of an alias a request may go to, and in what order. Pure.

Owns the order of the rules and who is chosen; `matching`, `terms` and `scoring` say what fits, what
satisfies and what compares how. A decision is a function of policy, catalog, rates, facts and
snapshot alone, so its record replays to the same decision.

1. Route. The first that fits decides. An expression that fails leaves no route and no candidate:
   which route would have been right is not known.
2. Filter. Each target meets the rules in the order of `domain.decision.Rule`; the first that it
   breaks excludes it. Privacy comes before everything a policy or the moment could say, and no
   setting reaches it.
3. Order what is left:
     turn      a canary for the requests in its share; all others; our own machines over their
               spill thresholds; a canary for the requests outside its share, and one taken back
     tier      of the route's `prefer`
     level     who is predicted to meet all service levels before who misses one
     score     the route's objective; equals by lower cost, then by the tie-break
4. Choose. The first of that order, but for, in this order,
     affinity  the pin, in the same turn and level: in the same tier, or with `cost_ratio_max` in
               any tier while it costs at most so many times as much (where both are priced)
     explore   a share of the requests takes another target of the same tier
     incumbent of a mix: stays while its score is within the hysteresis of the best
   None of them adds a target, nor goes to one that spilled or is a canary of others.
5. Keep, where only an equivalence group may stand in, those in a group with the first.
6. Cut to the route's attempts and backends.

INVARIANTS
- Every target of the alias ends in exactly one of `order`, `cut` and `excluded`.
- No target whose clearance is below the request's privacy class is ever in `order`.
- What is not known is never taken for good: an unknown price, also of the service tier that was
  asked for, fails a price limit and sorts last, terms that are not stated do not satisfy.
  Exceptions: the backend itself refuses what is too long for an unknown context; what was not
  measured meets its level (`scoring`).
- Who else is there does not matter: removing a target that was not chosen never changes who is.
  One exception: where an explored target, or a pin with `cost_ratio_max`, was put before the first
  of the order, it was so in view of that one; without it the choice is made anew.
- No decision is an error: with nothing eligible, `order` is empty and `excluded` says why.

`Router` does per (policy, catalog, rates) what does not depend on the request, when an alias and a
route are first asked for, so that a decision is one pass over a short table. Build a new one when
any of the three changes: prices do at dates and hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, inf, log1p
from typing import NamedTuple

from gateway.domain.catalog import Catalog, StandIn, Target
from gateway.domain.decision import (
    BackendView,
    Candidate,
    Decision,
    Exclusion,
    Facts,
    Rule,
    Snapshot,
)
from gateway.domain.engine import Need
from gateway.domain.money import Rates, usd
from gateway.policy.admission import Judged, Verdict, judge
from gateway.policy.expressions import ExpressionFailed
from gateway.policy.language import Affinity, By, Policy, Route
from gateway.policy.scoring import KNOWN, REASONS, latency, misses
from gateway.policy.table import Plan, Row

_UNSEEN = BackendView()
_MIX, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1  # Fibonacci hashing
_CANARY, _REGULAR, _SPILLED, _WITHHELD = range(4)  # turns
_ADMITTED = Judged(Verdict.ADMIT)


class _Ranked(NamedTuple):
    """An eligible target, sorted by its first eight fields: `place` is unique, no other counts.

    `compared` is the cost that counts, `cost` the one that would be booked.
    """

    turn: int
    tier: int
    missed: bool
    group: int
    figure: float
    dearness: float
    tie: int
    place: int
    row: Row
    compared: int | None
    cost: int | None
    latency: float | None
    misses: tuple[str, ...]
    patience_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A policy made ready for a catalog and the rates in force."""

    policy: Policy
    catalog: Catalog
    rates: Mapping[Target, Rates]
    _routes: Mapping[str, Route]
    _plans: dict[str, tuple[Plan, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, policy: Policy, catalog: Catalog, rates: Mapping[Target, Rates]) -> Router:
        """Cheap: the tables are made as they are first asked for."""
        routes = {route.name: route for route in policy.routes}
        return cls(policy=policy, catalog=catalog, rates=rates, _routes=routes)

    def route(self, name: str) -> Route:
        """The route that `Decision.route` names. Raises KeyError where there is none."""
        return self._routes[name]

    def decide(self, facts: Facts, snapshot: Snapshot) -> Decision:
        """The decision for one request. An alias that does not exist has no candidates."""
        plan = None
        try:
            for plan in self._plans.get(facts.alias) or self._plans_of(facts.alias):
                for fits in plan.conditions:
                    if not fits(facts):
                        break
                else:
                    return self._decide(plan, facts, snapshot)
        except ExpressionFailed as error:
            assert plan is not None
            detail = f"the expression of route {plan.route.name} failed: {error}"
            targets = dict.fromkeys(plan.alias.targets)
            return self._decision(
                "", (), tuple(Exclusion(t, Rule.EXPRESSION, detail) for t in targets)
            )
        return self._decision("", (), ())

    def _decide(self, plan: Plan, facts: Facts, snapshot: Snapshot) -> Decision:
        if not plan.rows:
            plan.fill(self.catalog, self.rates)
        ranked, excluded = self._sift(plan, facts, snapshot)
        if not ranked:
            return self._decision(plan.route.name, (), tuple(excluded))
        ranked.sort()
        why = _choose(plan, facts, ranked)
        if plan.alias.stand_in is StandIn.GROUP:
            ranked = _only_stand_ins(ranked, excluded)
        order, cut = _cut(plan, ranked, why)
        return self._decision(plan.route.name, order, tuple(excluded), cut)

    def _decision(
        self,
        route: str,
        order: tuple[Candidate, ...],
        excluded: tuple[Exclusion, ...],
        cut: tuple[Target, ...] = (),
    ) -> Decision:
        return Decision(
            policy=self.policy.name,
            policy_digest=self.policy.digest,
            route=route,
            order=order,
            excluded=excluded,
            cut=cut,
        )

    def _plans_of(self, name: str) -> tuple[Plan, ...]:
        alias = self.catalog.aliases.get(name)
        if alias is None:
            return ()
        plans = tuple(
            Plan.of(route, alias)
            for route in self.policy.routes
            if route.match.aliases is None or name in route.match.aliases
        )
        self._plans[name] = plans
        return plans

    # --- filtering --------------------------------------------------------------------------

    def _sift(
        self, plan: Plan, facts: Facts, snapshot: Snapshot
    ) -> tuple[list[_Ranked], list[Exclusion]]:
        """Who is eligible, with its place in the order, and who is not."""
        route = plan.route
        price_max, score, levels = route.price_max_nano_usd, plan.objective, plan.levels
        in_share = facts.bucket < plan.canary_buckets and route.name not in facts.reverted
        pinned = -1 if facts.pinned is None else plan.places.get(facts.pinned, -1)
        ranked: list[_Ranked] = []
        excluded: list[Exclusion] = []
        tier = facts.service_tier
        for row in plan.rows if tier is None else plan.under(tier, self.rates):
            broken = self._unfit(row, facts)
            if broken is None:
                view = snapshot.get(row.backend, _UNSEEN)
                booked = compared = None
                if row.cost is not None:
                    cached = facts.cached_tokens if row.place == pinned else 0
                    booked = compared = row.cost(facts, cached)
                if row.paid_for:
                    compared = 0
                if booked is None and facts.priced_only:
                    broken = Rule.PRICE_UNKNOWN, f"a hard budget counts it, {_unknown(tier, 'its')}"
                else:
                    broken = _unready(row, view, compared, price_max, tier)
            judged = _ADMITTED
            if broken is None and row.admission is not None:
                need = Need(facts.prompt_tokens, facts.output_tokens)
                judged = judge(view.rooms, need, facts.hits, row.admission)
                if judged.verdict is Verdict.REFUSE:
                    broken = Rule.ROOM, judged.detail
            if broken is not None:
                excluded.append(Exclusion(row.target, *broken))
                continue
            turn = _REGULAR
            if row.canary:
                turn = _CANARY if in_share else _WITHHELD
            full = judged.verdict is Verdict.SPILL or (
                row.spills is not None and _over(row.spills, view)
            )
            if full and turn != _WITHHELD:
                turn = _SPILLED
            time = latency(view, facts)
            missed = misses(levels, view, facts, time) if levels else ()
            group, figure = score(compared, time, view.in_flight, row.place)
            ranked.append(
                _Ranked(
                    turn,
                    row.tier,
                    bool(missed),
                    group,
                    figure,
                    inf if booked is None else booked,
                    # Keeps its order when others come or go.
                    ((row.salt ^ facts.tie_break) * _MIX) & _MASK,
                    row.place,
                    row,
                    compared,
                    booked,
                    time,
                    missed,
                    judged.patience_ms,
                )
            )
        return ranked, excluded

    def _unfit(self, row: Row, facts: Facts) -> tuple[Rule, str] | None:
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
        prompt, output = facts.prompt_tokens, facts.output_tokens
        if facts.output_tokens_max is not None:
            output = facts.output_tokens_max  # backends refuse what might not fit
        if prompt + output > row.context_tokens:
            return Rule.CONTEXT, f"{prompt + output} tokens, {row.context_tokens} fit"
        if prompt > row.prompt_tokens_max:
            return Rule.CONTEXT, f"prompt of {prompt} tokens over {row.prompt_tokens_max}"
        if output > row.output_tokens_max:
            return Rule.CONTEXT, f"output of {output} tokens over {row.output_tokens_max}"
        return row.unfit

    def _class(self, rank: int) -> str:
        classes = self.catalog.privacy_classes
        return classes[rank] if 0 <= rank < len(classes) else f"class {rank}"


def decide(
    policy: Policy,
    catalog: Catalog,
    rates: Mapping[Target, Rates],
    facts: Facts,
    snapshot: Snapshot,
) -> Decision:
    """The same in one call, for explaining and replaying; a server keeps the Router."""
    return Router.build(policy, catalog, rates).decide(facts, snapshot)


def _unready(
    row: Row, view: BackendView, cost: int | None, price_max: int | None, tier: str | None
) -> tuple[Rule, str] | None:
    """The rule by which this target is out for its price or for the moment, if there is one.

    A half-open circuit is neither out nor behind: it lets one request through, which has the
    others to fall back on; behind them it would never get the traffic that closes it again.
    """
    if price_max is not None:
        if cost is None:
            return Rule.PRICE_UNKNOWN, f"the route has a price limit and {_unknown(tier, 'this')}"
        if cost > price_max:
            return Rule.PRICE_MAX, f"would cost ${usd(cost)}, the limit is ${usd(price_max)}"
    if view.circuit == "open":
        return Rule.CIRCUIT_OPEN, _wait(view, "failing")
    if view.cooling:
        return Rule.COOLING, _wait(view, "asked us to wait")
    if not view.healthy:
        return Rule.UNHEALTHY, "its health check fails"
    if view.in_flight >= row.in_flight_max:
        return Rule.CAPACITY, f"{view.in_flight} requests in flight, {row.in_flight_max} {row.room}"
    return None


def _unknown(service_tier: str | None, whose: str) -> str:
    of_it = "" if service_tier is None else f" of service tier {service_tier}"
    return f"{whose} price{of_it} is not known"


def _wait(view: BackendView, why: str) -> str:
    return why if view.retry_after_s is None else f"{why}, next try in {view.retry_after_s:.1f} s"


def _over(spills: tuple[float, float, float], view: BackendView) -> bool:
    in_flight, queue, kv_used = spills
    return (
        view.in_flight >= in_flight
        or (view.queue is not None and view.queue > queue)
        or (view.kv_used is not None and view.kv_used > kv_used)
    )


# --- choosing ---------------------------------------------------------------------------------


def _choose(plan: Plan, facts: Facts, ranked: list[_Ranked]) -> str:
    """Move who is to be tried first to the front, and say why it is that one."""
    route, best = plan.route, ranked[0]
    affinity = route.behaviour.affinity
    if affinity is not None and facts.pinned is not None:
        pinned = _find(plan, ranked, facts.pinned)
        if pinned is not None and _holds(pinned, best, affinity):
            _to_front(ranked, pinned)
            return "affinity"
    if best.turn == _CANARY:
        return "canary"
    if best.turn != _REGULAR:
        return "fallback"
    if route.explore and _uniform(facts.tie_break) < route.explore:
        others = [e for e in ranked[1:] if e.turn == best.turn and e.tier == best.tier]
        if others:
            _to_front(ranked, min(others, key=lambda entry: (entry.tie, entry.place)))
            return "explore"
    if route.by is By.MIX and facts.incumbent is not None and best.group == KNOWN:
        incumbent = _find(plan, ranked, facts.incumbent)
        # As neighbours in the order, up to the figure.
        if (
            incumbent is not None
            and incumbent[:4] == best[:4]
            and incumbent.figure <= best.figure + log1p(route.hysteresis)
        ):
            _to_front(ranked, incumbent)
    # Whoever has spilled and would be before: it is the reason.
    if any(e.turn == _SPILLED and e[1:8] < ranked[0][1:8] for e in ranked):
        return "spill"
    return REASONS[route.by] if best.tier == 0 else "fallback"


def _find(plan: Plan, ranked: list[_Ranked], target: Target) -> _Ranked | None:
    place = plan.places.get(target)
    return next((entry for entry in ranked if entry.place == place), None)


def _holds(pinned: _Ranked, best: _Ranked, affinity: Affinity) -> bool:
    if pinned.turn != best.turn or pinned.missed > best.missed:
        return False
    ratio = affinity.cost_ratio_max
    if ratio is None or best.compared is None or pinned.compared is None:
        return pinned.tier == best.tier
    return pinned.compared <= best.compared * ratio


def _to_front(ranked: list[_Ranked], entry: _Ranked) -> None:
    ranked.remove(entry)
    ranked.insert(0, entry)


def _uniform(seed: int) -> float:
    """0..1 from a tie-break, with nothing in common with the order it gives (splitmix64)."""
    z = (seed + _MIX) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) / (_MASK + 1)


def _only_stand_ins(ranked: list[_Ranked], excluded: list[Exclusion]) -> list[_Ranked]:
    first = ranked[0].row
    kept = ranked[:1]
    for entry in ranked[1:]:
        if entry.row.groups & first.groups:
            kept.append(entry)
        else:
            detail = f"in no declared group with {first.target}"
            excluded.append(Exclusion(entry.row.target, Rule.EQUIVALENCE, detail))
    return kept


def _cut(
    plan: Plan, ranked: list[_Ranked], why: str
) -> tuple[tuple[Candidate, ...], tuple[Target, ...]]:
    """The first `attempts_max` over `backends_max` backends, and what that leaves out."""
    limits, by = plan.route.behaviour, plan.route.by
    order: list[Candidate] = []
    cut: list[Target] = []
    backends: set[str] = set()
    for entry in ranked:
        row = entry.row
        is_new = row.backend not in backends
        if len(order) == limits.attempts_max or (is_new and len(backends) == limits.backends_max):
            cut.append(row.target)
            continue
        backends.add(row.backend)
        score = None
        if by is not By.ORDER and entry.group == KNOWN:
            score = exp(entry.figure) if by is By.MIX else entry.figure
        order.append(
            Candidate(
                target=row.target,
                why="fallback" if order else why,
                tier=row.tier,
                cost_nano_usd=entry.cost,
                latency_ms=entry.latency,
                score=score,
                misses=entry.misses,
                patience_ms=entry.patience_ms,
            )
        )
    return tuple(order), tuple(cut)
