"""What of a route does not depend on the request, made once for each alias. Pure.

Owns the table a decision is one pass over: a row for each target, with the catalog, the terms, the
prices and the route's own bounds worked into it. Decides nothing (`engine`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import inf

from gateway.domain.catalog import Admission, Alias, Catalog, Kind, Target
from gateway.domain.decision import Rule
from gateway.domain.money import Rates
from gateway.domain.request import Capability, Endpoint
from gateway.policy.language import PRIORITY_SHARES, OwnCost, Route, Spill
from gateway.policy.matching import Condition, conditions
from gateway.policy.scoring import Cost, Level, Objective, costing, objective
from gateway.policy.terms import unmet

_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A target of an alias under a route: all that does not depend on the request.

    `salt` is stable over processes and over changes of the catalog. `paid_for`: a warm machine of
    our own that counts as costing nothing. `groups` has a bit for each declared equivalence.
    """

    target: Target
    backend: str
    place: int  # in the alias
    salt: int
    tier: int
    unconfigured: str | None
    clearance: int
    endpoints: frozenset[Endpoint]
    capabilities: frozenset[Capability]
    context_tokens: int
    prompt_tokens_max: int
    output_tokens_max: int
    unfit: tuple[Rule, str] | None  # for its terms or by the policy, whatever is asked
    in_flight_max: int
    room: str  # says whose bound that is
    cost: Cost | None  # None: its price is not known
    paid_for: bool
    groups: int
    canary: bool
    spills: tuple[float, float, float] | None  # from in flight, over queue, over KV cache
    admission: Admission | None  # None: no engine of ours


@dataclass(slots=True, eq=False)
class Plan:
    """A route as it is for one alias, its tables made when a request first takes them.

    `rows` have the standard prices, `special` those of a service tier; "" is one that nobody has.
    """

    route: Route
    alias: Alias
    conditions: tuple[Condition, ...]
    objective: Objective
    levels: tuple[Level, ...]
    canary_buckets: int
    rows: tuple[Row, ...] = ()
    places: Mapping[Target, int] = field(default_factory=dict)
    special: dict[str, tuple[Row, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, route: Route, alias: Alias) -> Plan:
        return cls(
            route=route,
            alias=alias,
            conditions=conditions(route.match),
            objective=objective(route),
            levels=tuple(map(Level.of, route.slos)),
            canary_buckets=round(route.canary.share * 10_000) if route.canary is not None else 0,
        )

    def fill(self, catalog: Catalog, rates: Mapping[Target, Rates]) -> None:
        """Make the table."""
        self.rows = tuple(
            _row(place, target, self.route, catalog, rates.get(target))
            for place, target in enumerate(dict.fromkeys(self.alias.targets))
        )
        self.places = {row.target: row.place for row in self.rows}

    def under(self, service_tier: str, rates: Mapping[Target, Rates]) -> tuple[Row, ...]:
        """The rows at the prices of that service tier; a target that has none is unpriced."""
        if service_tier in self.special:
            return self.special[service_tier]
        known = (rates[row.target] for row in self.rows if row.target in rates)
        name = service_tier if any(service_tier in r.service_tiers for r in known) else ""
        if name not in self.special:
            self.special[name] = tuple(_at(row, name, rates.get(row.target)) for row in self.rows)
        return self.special[name]


def _at(row: Row, service_tier: str, rates: Rates | None) -> Row:
    held = None if rates is None else rates.service_tiers.get(service_tier)
    return replace(row, cost=None if held is None else costing(held))


def _row(place: int, target: Target, route: Route, catalog: Catalog, rates: Rates | None) -> Row:
    backend = catalog.backends[target.backend]
    model, own = backend.models[target.model], backend.kind is Kind.SELF_HOSTED
    names = {backend.name, backend.kind.value}
    tiers = [tier for tier, preferred in enumerate(route.prefer) if preferred & names]
    unfit: tuple[Rule, str] | None = None
    if (term := unmet(route.require, backend, model)) is not None:
        unfit = Rule.TERMS, term
    elif route.only and not tiers:
        unfit = Rule.POLICY, "in no tier, and the route takes no other"
    slots, spill = backend.limits.concurrency_max, route.behaviour.spill
    share = max(1, slots * round(PRIORITY_SHARES[route.priority] * 100) // 100)
    return Row(
        target=target,
        backend=backend.name,
        place=place,
        salt=int.from_bytes(blake2b(str(target).encode(), digest_size=8).digest()),
        tier=tiers[0] if tiers else len(route.prefer),
        unconfigured=None if backend.configured else backend.why_unconfigured or "not configured",
        clearance=backend.clearance,
        endpoints=model.endpoints,
        capabilities=model.capabilities,
        context_tokens=model.context_tokens or _UNBOUNDED,
        prompt_tokens_max=model.prompt_tokens_max or _UNBOUNDED,
        output_tokens_max=model.output_tokens_max or _UNBOUNDED,
        unfit=unfit,
        in_flight_max=share,
        room="allowed" if share == slots else f"of {slots} for {route.priority} requests",
        cost=None if rates is None else costing(rates),
        paid_for=own and route.own_cost is OwnCost.MARGINAL,
        groups=sum(1 << bit for bit, e in enumerate(catalog.equivalences) if target in e.targets),
        canary=route.canary is not None and backend.name in route.canary.backends,
        spills=_thresholds(spill, slots) if own and spill is not None else None,
        admission=None if backend.engine is None else backend.engine.admission,
    )


def _thresholds(spill: Spill, slots: int) -> tuple[float, float, float]:
    """With this request there would be more in flight than allowed; over this queue, this cache."""
    share, queue, kv_used = spill.in_flight_share_max, spill.queue_max, spill.kv_used_max
    return (
        inf if share is None else share * slots,
        inf if queue is None else queue,
        inf if kv_used is None else kv_used,
    )
