"""Small worlds to decide in: builders with defaults, and strategies that draw whole worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random

from hypothesis import strategies as st

from gateway.domain.catalog import (
    Alias,
    Backend,
    Catalog,
    DataTerms,
    Equivalence,
    Kind,
    Limits,
    Model,
    StandIn,
    Target,
)
from gateway.domain.decision import BackendView, Decision, Facts, Rule, Snapshot, Tails
from gateway.domain.money import Meter, Rates, Tier
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import decide
from gateway.policy.expressions import compile_expression
from gateway.policy.language import (
    Affinity,
    Behaviour,
    By,
    Canary,
    Match,
    Metric,
    OwnCost,
    Policy,
    Priority,
    Route,
    Slo,
    Spill,
    Terms,
    Window,
)

CLASSES = ("public", "internal", "confidential")
ALL = Behaviour(attempts_max=10, backends_max=10)


# --- builders ---------------------------------------------------------------------------------


def backend(name: str, kind: Kind = Kind.MANAGED, **changes) -> Backend:
    model = Model(name="m", context_tokens=1000, prompt_tokens_max=800, output_tokens_max=500)
    given = {"clearance": 2, "limits": Limits(concurrency_max=5), "models": {"m": model}, **changes}
    return Backend(name=name, kind=kind, wire="openai_http", base_url="https://x", **given)


def world(*backends: Backend, alias: str = "chat", groups=(), **changes) -> Catalog:
    """An alias over all models of all backends; `groups` of backends are declared equivalent."""
    targets = tuple(Target(b.name, m) for b in backends for m in b.models)
    return Catalog(
        privacy_classes=CLASSES,
        backends={b.name: b for b in backends},
        aliases={alias: Alias(name=alias, targets=targets, **changes)},
        digest="d",
        equivalences=tuple(
            equivalence(*[t for t in targets if t.backend in group]) for group in groups
        ),
    )


def equivalence(*targets: Target) -> Equivalence:
    return Equivalence(
        name="e", weights="w", precision="fp8", declared_by="me", targets=frozenset(targets)
    )


def policy(*routes: Route, behaviour: Behaviour = ALL, **default) -> Policy:
    """All routes behave alike; `default` says what the last one is."""
    last = Route(name="default", **default)
    same = tuple(replace(route, behaviour=behaviour) for route in (*routes, last))
    return Policy(name="p", description="", behaviour=behaviour, routes=same, digest="d")


def facts(**changes) -> Facts:
    given = {
        "alias": "chat",
        "endpoint": Endpoint.CHAT,
        "privacy": 0,
        "needs": frozenset(),
        "prompt_tokens": 100,
        "output_tokens": 50,
        "stream": False,
        **changes,
    }
    return Facts(**given)


def rates(inp: str, out: str = "1", cached: str | None = None) -> Rates:
    reread = None if cached is None else Decimal(cached)
    return Rates(id="r", input=Decimal(inp), output=Decimal(out), cached_input=reread)


def prices(**costs: int) -> dict[Target, Rates]:
    """Targets by backend; each costs so many thousand nano-USD for a token of the prompt."""
    return {Target(name, "m"): rates(str(cost), "0") for name, cost in costs.items()}


def names(decision: Decision) -> list[str]:
    return [c.target.backend for c in decision.order]


def rules(decision: Decision) -> dict[str, Rule]:
    return {e.target.backend: e.rule for e in decision.excluded}


# --- whole worlds -----------------------------------------------------------------------------

NAMES = [f"b{n}" for n in range(6)]
EXPRESSIONS = [
    compile_expression('tags["team"] == "search"'),  # fails where there is no such tag
    compile_expression("prompt_tokens > 100 || privacy >= 2"),
    compile_expression("stream"),
]
HOUR_US = 3_600_000_000
NIGHT = Window(zone="UTC", days=frozenset(range(7)), start_minute=60, end_minute=180)


@dataclass(frozen=True, kw_only=True)
class World:
    """All that a decision is a function of."""

    policy: Policy
    catalog: Catalog
    rates: Mapping[Target, Rates]
    facts: Facts
    snapshot: Snapshot

    def decide(self) -> Decision:
        return decide(self.policy, self.catalog, self.rates, self.facts, self.snapshot)

    @property
    def alias(self) -> Alias:
        return self.catalog.aliases["chat"]

    @property
    def routes(self) -> dict[str, Route]:
        return {route.name: route for route in self.policy.routes}

    def without(self, gone) -> World:
        """The same with some targets taken out of the alias."""
        left = tuple(t for t in self.alias.targets if t not in gone)
        return self.with_alias(replace(self.alias, targets=left))

    def with_alias(self, alias: Alias) -> World:
        return replace(self, catalog=replace(self.catalog, aliases={"chat": alias}))

    def view(self, target: Target) -> BackendView:
        return self.snapshot.get(target.backend, BackendView())

    def backend(self, target: Target) -> Backend:
        return self.catalog.backends[target.backend]


class Dice:
    """Draws the parts of a world. Most of them are plain: else nothing would ever be eligible."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.of = random.choice

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def maybe(self, share: float, *values):
        """One of the values, else None."""
        return self.of(values) if self.chance(share) else None

    def some(self, values) -> frozenset:
        return frozenset(v for v in values if self.chance(0.5))

    def few(self, values, least: int = 1) -> frozenset:
        return frozenset(self.random.sample(values, self.random.randint(least, 3)))

    def rates(self) -> Rates:
        inp, out, reread = (Decimal(self.random.randint(0, 5000)) / 1000 for _ in range(3))
        return Rates(
            id="r",
            input=inp,
            output=out,
            cached_input=self.maybe(0.5, min(inp, reread)),
            others={Meter.REQUEST: reread} if self.chance(0.1) else {},
        )

    def tiered(self) -> Rates:
        """Most for any length of a prompt, and for nobody in a hurry."""
        made = self.rates()
        if self.chance(0.2):
            tiers = (Tier(self.random.randint(1, 200), self.rates()),)
            made = replace(made, tiers=tiers, marginal=self.chance(0.5))
        if self.chance(0.3):
            made = replace(made, service_tiers={"flex": self.rates()})
        return made

    def backend(self, name: str) -> Backend:
        model = Model(
            name="m",
            context_tokens=self.maybe(0.2, 100, 10_000),
            prompt_tokens_max=self.maybe(0.1, 150),
            output_tokens_max=self.maybe(0.1, 150),
            endpoints=frozenset(Endpoint if self.chance(0.8) else {Endpoint.CHAT}),
            capabilities=frozenset(Capability) if self.chance(0.8) else frozenset(),
            licence=self.maybe(0.8, "MIT", "Apache-2.0"),
        )
        return Backend(
            name=name,
            kind=self.of(list(Kind)),
            wire="openai_http",
            base_url="https://x",
            models={"m": model},
            clearance=self.of([0, 1, 2, 2, 2]),
            configured=self.chance(0.95),
            data=DataTerms(
                region=self.maybe(0.8, "eu", "us"),
                retention_days=self.maybe(0.8, 0, 30),
                trains_on_data=self.maybe(0.8, False, False, True),
                subprocessors=self.of([(), ("acme",), ("acme", "other")]),
                certifications=self.of([(), ("ISO 27001",), ("ISO 27001", "SOC 2")]),
            ),
            limits=Limits(concurrency_max=self.random.randint(1, 8)),
        )

    def catalog(self) -> Catalog:
        chosen = self.random.sample(NAMES, self.of([1, 2, 3, 4, 5, 6, 6, 6]))
        return world(
            *map(self.backend, chosen),
            groups=[self.few(NAMES, 2) for _ in range(self.random.randint(0, 2))],
            stand_in=StandIn.GROUP if self.chance(0.3) else StandIn.ALIAS,
        )

    def tails(self) -> Tails | None:
        return Tails(*sorted(self.random.uniform(1, 900) for _ in range(3)))

    def view(self) -> BackendView:
        return BackendView(
            healthy=self.chance(0.97),
            circuit=self.of(["closed"] * 12 + ["half_open", "open"]),
            cooling=self.chance(0.03),
            in_flight=self.of([0, 0, 0, 1, 2, 4]),
            queue=self.maybe(0.5, 0, 1, 3, 5),
            kv_used=self.maybe(0.5, 0.2, 0.7, 0.95),
            ttft_ms=self.maybe(0.8, 1.0, 50.0, 50.0, 200.0, 500.0),
            tpot_ms=self.maybe(0.8, 1.0, 10.0, 30.0),
            ttft_tails=self.tails() if self.chance(0.6) else None,
            tpot_tails=self.tails() if self.chance(0.6) else None,
            ttft_per_1k_ms=self.of([0.0, 0.0, 100.0]),
            ttft_prompt_tokens=self.random.randint(0, 200),
        )

    def match(self) -> Match:
        return Match(
            privacy_at_least=self.maybe(0.3, 0, 1, 2),
            stream=self.maybe(0.3, True, False),
            tags={"team": frozenset({"search"})} if self.chance(0.2) else {},
            window=self.maybe(0.2, NIGHT),
            spent=frozenset({"day"} if self.chance(0.1) else ()),
            expression=self.maybe(0.15, *EXPRESSIONS),
        )

    def terms(self) -> Terms:
        if self.chance(0.8):
            return Terms()
        return Terms(
            regions=self.maybe(0.3, frozenset({"eu"})),
            retention_days_max=self.maybe(0.3, 0, 30),
            no_training=self.chance(0.3),
            certifications=frozenset({"SOC 2"} if self.chance(0.3) else ()),
            subprocessors_allowed=self.maybe(0.3, frozenset({"acme"})),
            licences=self.maybe(0.3, frozenset({"MIT"})),
        )

    def behaviour(self) -> Behaviour:
        return Behaviour(
            attempts_max=self.random.randint(1, 6),
            backends_max=self.random.randint(1, 6),
            affinity=self.maybe(
                0.5,
                Affinity(idle_s=1),
                Affinity(idle_s=1, cost_ratio_max=self.random.uniform(1, 3)),
            ),
            spill=self.maybe(
                0.3,
                Spill(in_flight_share_max=0.25),
                Spill(queue_max=1),
                Spill(kv_used_max=0.5, queue_max=3),
            ),
        )

    def route(self, name: str, match: Match) -> Route:
        return Route(
            name=name,
            match=match,
            prefer=tuple(self.few([*Kind, *NAMES]) for _ in range(self.random.randint(0, 2))),
            by=self.of(list(By)),
            cost_weight=self.of([0.0, 0.3, 0.5, 1.0]),
            hysteresis=self.of([0.0, 0.05, 1.0]),
            explore=self.of([0.0, 0.0, 0.5]),
            own_cost=self.of(list(OwnCost)),
            only=self.chance(0.1),
            require=self.terms(),
            price_max_nano_usd=self.maybe(0.15, 10_000, 100_000, 500_000),
            slos=tuple(
                Slo(
                    metric=self.of(list(Metric)),
                    percentile=self.of([50, 90, 95, 99]),
                    ms_max=self.of([10.0, 100.0, 500.0, 5000.0]),
                )
                for _ in range(self.of([0, 0, 1, 2]))
            ),
            priority=self.of(list(Priority)),
            canary=self.maybe(0.3, Canary(backends=self.few(NAMES), share=self.of([0.1, 0.5]))),
            behaviour=self.behaviour(),
        )

    def policy(self) -> Policy:
        routes = [
            *(self.route(f"r{n}", self.match()) for n in range(self.random.randint(0, 2))),
            self.route("default", Match()),
        ]
        return Policy(name="p", description="", digest="d", behaviour=ALL, routes=tuple(routes))

    def facts(self) -> Facts:
        return Facts(
            alias="chat",
            endpoint=self.of([*[Endpoint.CHAT] * 5, Endpoint.EMBEDDINGS]),
            privacy=self.of([0, 0, 0, 1, 1, 2]),
            needs=self.of([frozenset(), frozenset(), frozenset({Capability.TOOLS})]),
            prompt_tokens=self.random.randint(0, 200),
            output_tokens=self.of([0, 1, 20, 200]),
            output_tokens_max=self.maybe(0.3, 20, 200, 2000),
            stream=self.chance(0.5),
            cached_tokens=self.of([0, 0, 10, 300]),
            tags=self.of([{}, {"team": "search"}, {"team": "ads"}]),
            at_us=self.random.randint(0, 24) * HOUR_US,
            spent=frozenset({"day"} if self.chance(0.3) else ()),
            reverted=frozenset({"default"} if self.chance(0.2) else ()),
            pinned=self.maybe(0.5, *[Target(name, "m") for name in NAMES]),
            incumbent=self.maybe(0.5, *[Target(name, "m") for name in NAMES]),
            bucket=self.random.randint(0, 9999),
            tie_break=self.random.getrandbits(64),
            priced_only=self.chance(0.1),
            service_tier=self.maybe(0.1, "flex", "scale"),
        )

    def world(self) -> World:
        return World(
            policy=self.policy(),
            catalog=self.catalog(),
            rates={Target(name, "m"): self.tiered() for name in NAMES if self.chance(0.8)},
            facts=self.facts(),
            snapshot={name: self.view() for name in NAMES if self.chance(0.8)},
        )


# One draw for a whole world: twenty times as fast as a draw for each part, which is what makes
# ten thousand of them affordable. To have a failure made small, put st.randoms() in its place.
worlds = st.integers(0, 2**64 - 1).map(lambda seed: Dice(Random(seed)).world())
