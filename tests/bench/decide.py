"""What a decision costs: `python -m tests.bench.decide`. Exit code 1 where the bound is missed.

Pure CPU in one process. Each figure is the median of the single calls of a round, and of five
rounds over all cases the least disturbed; the requests differ in size, pin, tie-break and bucket,
so that no branch is always the same. `floor` is the least a router
could do in Python: filter by clearance, price exactly, sort; without reasons, health and latency.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import orjson

from gateway.domain.catalog import Alias, Backend, Catalog, Kind, Model, Target
from gateway.domain.decision import BackendView, Facts, Snapshot, Tails, recalled, record
from gateway.domain.money import Rates
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import Router
from gateway.policy.expressions import compile_expression
from gateway.policy.language import (
    Affinity,
    Behaviour,
    By,
    Canary,
    Match,
    Metric,
    Policy,
    Route,
    Slo,
    Spill,
    Terms,
    Window,
)
from gateway.policy.scoring import costing

BOUND_US = 100  # the median for 20 targets and 50 routes
TARGETS, ROUTES = (2, 5, 10, 20, 40, 80), (1, 10, 50, 200)
NIGHT = Window(zone="Europe/Berlin", days=frozenset(range(7)), start_minute=60, end_minute=120)

# None of these fits: every request is tried against all of them and takes the last route.
PLAIN = (
    Match(keys=frozenset({"nobody"})),
    Match(tags={"team": frozenset({"legal"})}),
    Match(privacy_at_least=2),
    Match(endpoint=Endpoint.EMBEDDINGS),
    Match(prompt_tokens_min=1_000_000),
    Match(needs=frozenset({Capability.AUDIO})),
    Match(spent=frozenset({"month"})),
    Match(stream=False, tags={"app": frozenset({"batch"})}),
    Match(privacy_at_most=0, prompt_tokens_max=10),
)
WITH_WINDOWS = (*PLAIN, Match(window=NIGHT))
TIERS = (frozenset({"self_hosted"}), frozenset({"managed", "closed_api"}))
RICH = Route(
    name="default",
    prefer=TIERS,
    by=By.MIX,
    explore=0.01,
    require=Terms(),
    price_max_nano_usd=10**9,
    slos=(
        Slo(metric=Metric.TTFT, percentile=95, ms_max=900),
        Slo(metric=Metric.END_TO_END, percentile=99, ms_max=20_000),
    ),
    canary=Canary(backends=frozenset({"backend-1"}), share=0.05),
    behaviour=Behaviour(affinity=Affinity(idle_s=600), spill=Spill(queue_max=8, kv_used_max=0.9)),
)


def catalog(targets: int) -> Catalog:
    model = Model(name="m", context_tokens=131_072, capabilities=frozenset(Capability))
    backends = [
        Backend(
            name=f"backend-{n}",
            kind=tuple(Kind)[n % 3],
            wire="openai_http",
            base_url="https://x",
            clearance=2,
            models={"m": model},
        )
        for n in range(targets)
    ]
    alias = Alias(name="chat", targets=tuple(Target(b.name, "m") for b in backends))
    return Catalog(
        privacy_classes=("public", "internal", "confidential"),
        backends={b.name: b for b in backends},
        aliases={"chat": alias},
        digest="d",
    )


def rates(there: Catalog) -> dict[Target, Rates]:
    return {
        target: Rates(id="r", input=Decimal(20 + n) / 100, output=Decimal("2.125"))
        for n, target in enumerate(there.aliases["chat"].targets)
    }


def policy(matches: Sequence[Match], last: Route) -> Policy:
    routes = [Route(name=f"r{n}", match=match) for n, match in enumerate(matches)]
    return Policy(
        name="p", description="", digest="d", behaviour=last.behaviour, routes=(*routes, last)
    )


def cycle(matches: Sequence[Match], routes: int) -> list[Match]:
    return [matches[n % len(matches)] for n in range(routes - 1)]


def snapshot(targets: int) -> Snapshot:
    return {
        f"backend-{n}": BackendView(
            in_flight=n % 5,
            ttft_ms=300.0 + n * 7 % 50,
            tpot_ms=10.0 + n * 3 % 7,
            ttft_tails=Tails(500.0, 700.0, 1000.0 + n),
            tpot_tails=Tails(15.0, 20.0, 25.0),
            ttft_per_1k_ms=40.0,
            ttft_prompt_tokens=800,
            cached_share=0.6,
            queue=n % 2 if n % 3 == 2 else None,
            kv_used=0.5 if n % 3 == 2 else None,
        )
        for n in range(targets)
    }


def requests(targets: int) -> list[Facts]:
    first = Facts(
        alias="chat",
        endpoint=Endpoint.CHAT,
        privacy=1,
        needs=frozenset({Capability.TOOLS}),
        prompt_tokens=1,
        output_tokens=1,
        stream=True,
        key_id="wk_01J9ZQ3N5T",
        tags={"team": "search", "app": "assistant"},
    )
    return [
        replace(
            first,
            prompt_tokens=100 + n * 7919 % 4000,
            output_tokens=20 + n * 104_729 % 900,
            at_us=1_795_477_200_000_000 + n * 1_000_003,
            pinned=Target(f"backend-{n % targets}", "m") if n % 2 else None,
            incumbent=Target("backend-0", "m"),
            cached_tokens=50 if n % 2 else 0,
            bucket=n * 7919 % 10_000,
            tie_break=n * 2_654_435_761 % 2**32,
        )
        for n in range(256)
    ]


@dataclass(frozen=True)
class Case:
    """One way to handle a request, and the requests."""

    name: str
    one: Callable[[Facts], object]
    asked: Sequence[Facts]

    def median_us(self, calls: int) -> float:
        took = []
        for n in range(calls):
            facts = self.asked[n % len(self.asked)]
            before = time.perf_counter_ns()
            self.one(facts)
            took.append(time.perf_counter_ns() - before)
        return statistics.median(took) / 1000


def decides(name: str, targets: int, matches: Sequence[Match], last: Route) -> Case:
    there, views = catalog(targets), snapshot(targets)
    router = Router.build(policy(matches, last), there, rates(there))
    return Case(name, lambda facts: router.decide(facts, views), requests(targets))


def floor(targets: int) -> Case:
    there = catalog(targets)
    costs = {target: costing(held) for target, held in rates(there).items()}
    rows = [
        (there.backends[t.backend].clearance, cost, t.backend)
        for t, cost in costs.items()
        if cost is not None
    ]

    def one(facts: Facts) -> list[tuple[int, str]]:
        fit = [(cost(facts, 0), name) for clear, cost, name in rows if facts.privacy <= clear]
        return sorted(fit)

    return Case("floor: filter, price, sort", one, requests(targets))


def scaling() -> list[Case]:
    last = Route(name="default", prefer=TIERS, by=By.CHEAPEST)
    return [decides(f"{n} {r}", n, cycle(PLAIN, r), last) for n in TARGETS for r in ROUTES]


def features() -> list[Case]:
    """By 20 targets and 50 routes."""
    plain = cycle(PLAIN, 50)
    last = {by: Route(name="default", prefer=TIERS, by=by) for by in By}
    cheapest = last[By.CHEAPEST]
    team = Match(expression=compile_expression('"team" in tags && tags["team"] == "legal"'))
    return [
        *(decides(f"by {by.value}", 20, plain, last[by]) for by in By),
        decides("everything a route can say", 20, plain, RICH),
        decides("five of the routes by a window", 20, cycle(WITH_WINDOWS, 50), cheapest),
        decides("one of the routes by an expression", 20, [*plain[:-1], team], cheapest),
        floor(20),
    ]


def records() -> list[Case]:
    """The record of a decision among nine targets: write, read, and its size for any request."""
    there, views, asked = catalog(9), snapshot(9), requests(9)
    router = Router.build(policy((), RICH), there, rates(there))
    decided = {facts.tie_break: router.decide(facts, views) for facts in asked}
    written = {
        facts.tie_break: orjson.loads(orjson.dumps(record(decided[facts.tie_break], facts, views)))
        for facts in asked
    }
    return [
        Case("write", lambda f: record(decided[f.tie_break], f, views), asked),
        Case("read", lambda f: recalled(written[f.tie_break]), asked),
    ]


def record_bytes() -> float:
    write = records()[0]
    return statistics.median(len(orjson.dumps(write.one(facts))) for facts in write.asked)


def measure(cases: Sequence[Case], calls: int, rounds: int) -> dict[str, float]:
    """µs by name, rounds interleaved."""
    figures: dict[str, list[float]] = {case.name: [] for case in cases}
    for case in cases:  # tables are made on first use
        case.median_us(len(case.asked))
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for case in cases:
                figures[case.name].append(case.median_us(calls))
    finally:
        gc.enable()
    return {name: min(found) for name, found in figures.items()}


def slope(counts: Sequence[int], took: Sequence[float]) -> tuple[float, float]:
    """µs a target, and the share of the variation that a straight line leaves unexplained."""
    line = statistics.linear_regression(counts, took)
    return line.slope, 1 - statistics.correlation(counts, took) ** 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.decide", description=__doc__)
    parser.add_argument("--calls", type=int, default=1024, help="of each case in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    found = measure([*scaling(), *features(), *records()], options.calls, options.rounds)
    print("µs; targets down, routes across: all are tried, the last one fits (`by: cheapest`)\n")
    print("| | " + " | ".join(map(str, ROUTES)) + " |\n|--:" + "|--:" * len(ROUTES) + "|")
    for n in TARGETS:
        print(f"| {n} | " + " | ".join(f"{found[f'{n} {r}']:.1f}" for r in ROUTES) + " |")
    each, crooked = slope(TARGETS, [found[f"{n} 50"] for n in TARGETS])
    print(
        f"\nOne target more: {each:.2f} µs; {crooked:.2%} of the variation is not a straight line."
    )
    for title, cases in (
        ("20 targets, 50 routes, µs", features()),
        ("record of a decision among 9 targets, µs", records()),
    ):
        print(f"\n| {title} | |\n|---|--:|")
        for case in cases:
            print(f"| {case.name} | {found[case.name]:.1f} |")
    print(f"\nThe record has {record_bytes():,.0f} bytes of JSON.")
    reached = found["20 50"]
    kept = reached < BOUND_US
    print(f"20 targets and 50 routes: {reached:.1f} µs, {'under' if kept else 'OVER'} {BOUND_US}.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
