"""Decide again: where recorded requests would have gone under other policies, at what cost. Pure.

Owns the counterfactual model, one request at a time; `comparison` adds up. Of a request it knows
what the ledger keeps: the facts and the snapshot of its decision, who served it, the tokens, the
cost and the times. No content.

THE MODEL. Each side (a set of policy files) decides every request with the facts and the snapshot
it was decided with, at the prices of that moment. Then

- it goes to the first target of the side's order that is not known to have failed for this very
  request; where all of them failed then, it gets no answer;
- where it went in fact, it cost and took what was measured; only where a side's prices differ from
  those of the side compared with is it priced anew;
- elsewhere what was metered costs what that target charged then, in the service tier that was
  asked for (no known price: unpriced, counted, never 0), and it takes as long as a request that
  target served in the period (`comparison` draws one of about the same prompt size; none seen:
  unknown, counted);
- what nobody had measured by then is tried out once by each side, as a worker does it one request
  at a time; from then on it is known as it was next measured in the record, else not at all;
- without an answer it costs nothing;
- a conversation stays where the side has sent it, and an alias's incumbent is the side's own.

WHAT IT CANNOT KNOW, so no interval covers it: the tokens another model's tokeniser and verbosity
would have made of the text, what its cache would have held, the queue that moved load would have
built up at its new place, affinity and lower floors that were not in force when it was recorded,
what callers would have asked next, and what a side would have hedged: the recorded cost includes
the losers of hedges, which a request that moves leaves behind. Copies are left out on all sides.

INVARIANTS: every request of the sample has one choice per side; a side that decides as recorded
chooses what was chosen; the same requests in the same order give the same columns.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Any, NamedTuple, Protocol

from gateway.domain.catalog import Catalog, Target
from gateway.domain.decision import BackendView, Decision, Facts, Rule, Snapshot, recalled
from gateway.domain.money import Rates, Unpriced
from gateway.domain.rating import charge
from gateway.domain.request import Usage
from gateway.policy.columns import NOBODY, UNMEASURED, UNPRICED, Columns
from gateway.policy.engine import Router
from gateway.policy.language import Metric, Policy

_UNSEEN = BackendView()
_SIZE_MIN = 4  # below 256 tokens all prompts are of one size

# Excluded by these, a target may still be sent such a request at another moment or price.
PASSING = frozenset(
    {
        Rule.EQUIVALENCE,
        Rule.PRICE_UNKNOWN,
        Rule.PRICE_MAX,
        Rule.CIRCUIT_OPEN,
        Rule.COOLING,
        Rule.UNHEALTHY,
        Rule.CAPACITY,
    }
)


class Prices(Protocol):
    """A price book, as `ledger.prices` has it. Moments in microseconds since the epoch (UTC)."""

    def in_force(self, at_us: int) -> Mapping[Target, Rates]:
        """The rates of that moment."""
        ...

    def changes_after(self, at_us: int) -> int | None:
        """The next moment at which any change, None where none do."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One settled request of the ledger. Times in milliseconds but for `at_us` (Unix, UTC).

    `decision` is `domain.decision.record` as parsed, with facts. `digest` names the files it was
    decided by. `served` is who answered or failed last, None where nothing was sent.
    """

    at_us: int
    decision: Mapping[str, Any]
    digest: str | None
    privacy_class: str | None
    session: str | None
    served: Target | None
    usage: Usage | None
    cost_nano_usd: int | None
    ttft_ms: float | None
    tpot_ms: float | None
    tps: float | None
    whole_ms: float | None


class _Span(NamedTuple):
    """A stretch of time in which prices stood still."""

    since_us: int
    until_us: float
    router: Router
    rates: Mapping[Target, Rates]


class Bounds(NamedTuple):
    """What a route's service levels ask for, milliseconds; infinite where they ask for nothing."""

    ttft: float
    tpot: float
    whole: float


_NO_BOUNDS = Bounds(inf, inf, inf)
_METRICS = (Metric.TTFT, Metric.TPOT, Metric.END_TO_END)


class Side:
    """One set of policy files made ready to decide for any moment."""

    def __init__(
        self, name: str, digest: str, policy: Policy, catalog: Catalog, prices: Prices
    ) -> None:
        self.name, self.digest = name, digest
        self.policy, self.catalog = policy, catalog
        self._prices = prices
        self._spans: list[_Span] = []  # by their start; they may overlap at their ends
        self._bounds = {
            route.name: Bounds(
                *(
                    min((slo.ms_max for slo in route.slos if slo.metric is metric), default=inf)
                    for metric in _METRICS
                )
            )
            for route in policy.routes
            if route.slos
        }

    def on(self, at_us: int) -> _Span:
        """Router and rates of the moment `at_us`."""
        index = bisect_right(self._spans, at_us, key=lambda span: span.since_us)
        if index and at_us < self._spans[index - 1].until_us:
            return self._spans[index - 1]
        rates, until_us = self._prices.in_force(at_us), self._prices.changes_after(at_us)
        known = next((span.router for span in self._spans if span.rates == rates), None)
        span = _Span(
            at_us,
            inf if until_us is None else until_us,
            known or Router.build(self.policy, self.catalog, rates),
            rates,
        )
        self._spans.insert(index, span)
        return span

    def bounds(self, route: str) -> Bounds:
        """The service levels of a route by its name."""
        return self._bounds.get(route, _NO_BOUNDS)

    def rank(self, facts: Facts, name: str | None) -> int:
        """The request's class as a rank here: by name, unknown is the strictest, floors raise it.

        Of the class that was recorded only the whole is known, not who asked for it: a floor that
        is lower here leaves it as it was.
        """
        classes = self.catalog.privacy_classes
        rank = facts.privacy
        if name is not None and (rank >= len(classes) or classes[rank] != name):
            rank = classes.index(name) if name in classes else len(classes) - 1
        alias = self.catalog.aliases.get(facts.alias)
        return rank if alias is None else max(rank, alias.privacy_floor)


class Exposure(NamedTuple):
    """Requests of a class for an alias, and a target that may be sent them."""

    alias: str
    privacy_class: str
    target: Target


@dataclass(slots=True)
class Tally:
    """What one side did that needs a name: beside the columns.

    `opened` and `exposed` count requests above the lowest class for which a target became
    reachable whose backend was not, and those that go there. `refusals` counts requests without an
    answer here by the rules that excluded their targets. `guessed_nano_usd` is the predicted cost
    of requests without tokens on record.
    """

    opened: Counter[Exposure] = field(default_factory=Counter)
    exposed: Counter[Exposure] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    guessed_nano_usd: int = 0
    explored: set[str] = field(default_factory=set)
    pins: dict[str, Target] = field(default_factory=dict)
    incumbents: dict[str, Target] = field(default_factory=dict)


class Replay:
    """Feed it requests in the order they arrived, then read `columns` and `tallies`.

    `sides[0]` is what the others are compared with. `again` counts how many requests were decided
    `same` or `other` than recorded by the files named in their row, and `gone`: decided by files
    nobody has any more, so by the first side.
    """

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = tuple(sides)
        self.columns = Columns.empty(len(self.sides))
        self.tallies = tuple(Tally() for _ in self.sides)
        self.again: Counter[str] = Counter()
        self._index: dict[Target, int] = {}
        self._measured: dict[str, BackendView] = {}
        self._changed: dict[tuple[int, int], frozenset[Target]] = {}

    def add(self, past: Recorded, by: Side | None) -> None:
        """One more request; `by` is the side that decided it then, None where it is gone.

        Raises KeyError or ValueError where the record is not one of ours.
        """
        facts, snapshot = recalled(past.decision)
        order: list[str] = [entry[0] for entry in past.decision["order"]]
        then = by or self.sides[0]
        again = then.on(past.at_us).router.decide(facts, snapshot)
        self.again["gone"] += by is None
        self.again["same" if _same(again, past.decision) else "other"] += 1
        tried = _tried(order, past.served)
        actual = past.served or (_target(order[0]) if order else None)
        self._note(facts, past)
        first: Decision | None = None
        bounds = _NO_BOUNDS
        rates_first = self.sides[0].on(past.at_us).rates
        for number, (side, tally) in enumerate(zip(self.sides, self.tallies, strict=True)):
            own = _own_facts(side, tally, facts, past)
            _, _, router, rates = side.on(past.at_us)
            if side is then and own is facts:
                decision = again
            else:
                known = snapshot
                if side.digest != then.digest:
                    known = _explored(snapshot, self._measured, tally.explored)
                decision = router.decide(own, known)
                _note_explored(tally.explored, decision, known)
            choice, guess = _choice(decision, tried)
            _remember(tally, facts.alias, past.session, choice, actual)
            self.columns.choice[number].append(self._number(choice))
            changed = self._differing(rates, rates_first)
            spent = _cost(choice, past, facts.service_tier, rates, changed)
            self.columns.cost[number].append(spent)
            if spent == UNMEASURED:
                tally.guessed_nano_usd += guess
            if choice is None:
                tally.refusals[_why(decision)] += 1
            if first is None:
                first = decision
            elif own.privacy:
                _expose(tally, side, own, first, decision, choice)
            asked = side.bounds(decision.route)
            if asked is not _NO_BOUNDS:
                bounds = Bounds(*map(min, bounds, asked))
        self._measured.update(
            (name, view) for name, view in snapshot.items() if view.ttft_ms is not None
        )
        columns = self.columns
        columns.ttft_ms_max.append(bounds.ttft)
        columns.tpot_ms_max.append(bounds.tpot)
        columns.whole_ms_max.append(bounds.whole)

    def _note(self, facts: Facts, past: Recorded) -> None:
        """What was measured, whatever a side would do."""
        columns, usage = self.columns, past.usage
        columns.served.append(self._number(past.served))
        columns.stream.append(facts.stream)
        prompt = facts.prompt_tokens if usage is None else usage.prompt
        columns.size.append(max(_SIZE_MIN, (prompt.bit_length() + 1) // 2))
        columns.output.append(-1 if usage is None else usage.output)
        columns.ttft_ms.append(nan if past.ttft_ms is None else past.ttft_ms)
        columns.tpot_ms.append(nan if past.tpot_ms is None else past.tpot_ms)
        columns.tps.append(nan if past.tps is None else past.tps)
        columns.whole_ms.append(nan if past.whole_ms is None else past.whole_ms)

    def _differing(
        self, rates: Mapping[Target, Rates], first: Mapping[Target, Rates]
    ) -> frozenset[Target]:
        """Whose prices differ. Compared once: sides keep the rates of each of their spans."""
        key = id(rates), id(first)
        if key not in self._changed:
            both = {*rates, *first}
            self._changed[key] = frozenset(t for t in both if rates.get(t) != first.get(t))
        return self._changed[key]

    def _number(self, target: Target | None) -> int:
        if target is None:
            return NOBODY
        number = self._index.get(target)
        if number is None:
            number = self._index[target] = len(self.columns.targets)
            self.columns.targets.append(target)
        return number


# --- one request --------------------------------------------------------------------------------


def _same(decision: Decision, recorded: Mapping[str, Any]) -> bool:
    """Whether it is the recorded decision, word for word and figure for figure."""
    return (
        decision.route == recorded["route"]
        and [[str(c.target), c.why, c.tier, c.cost_nano_usd, c.latency_ms] for c in decision.order]
        == [list(entry) for entry in recorded["order"]]
        and [[str(e.target), e.rule.value, e.detail] for e in decision.excluded]
        == [list(entry) for entry in recorded["excluded"]]
        and [str(target) for target in decision.cut] == list(recorded.get("cut", ()))
    )


def _explored(
    snapshot: Snapshot, measured: Mapping[str, BackendView], explored: set[str]
) -> Snapshot:
    """What was observed, and what a side that had tried a backend out would know of it.

    In the record a backend without traffic is unmeasured for every request; a policy that tries
    out what it does not know would so send it all of them.
    """
    known = dict(snapshot)
    for name, view in snapshot.items():
        if view.ttft_ms is not None or name not in explored:
            continue
        seen = measured.get(name)
        if seen is None:
            known[name] = replace(view, in_flight=max(1, view.in_flight))  # not tried out again
        else:
            known[name] = replace(
                view,
                ttft_ms=seen.ttft_ms,
                tpot_ms=seen.tpot_ms,
                ttft_tails=seen.ttft_tails,
                tpot_tails=seen.tpot_tails,
                ttft_per_1k_ms=seen.ttft_per_1k_ms,
                ttft_prompt_tokens=seen.ttft_prompt_tokens,
            )
    return known


def _note_explored(explored: set[str], decision: Decision, snapshot: Snapshot) -> None:
    if decision.order:
        name = decision.order[0].target.backend
        if snapshot.get(name, _UNSEEN).ttft_ms is None:
            explored.add(name)


def _tried(order: Sequence[str], served: Target | None) -> frozenset[str]:
    """The targets that were asked before the one that served, and did not."""
    if served is None or not order or order[0] == (name := str(served)) or name not in order:
        return frozenset()
    return frozenset(order[: order.index(name)])


def _own_facts(side: Side, tally: Tally, facts: Facts, past: Recorded) -> Facts:
    """The facts as the side would have had them: its classes, its pins, its incumbents."""
    changed: dict[str, Any] = {}
    rank = side.rank(facts, past.privacy_class)
    if rank != facts.privacy:
        changed["privacy"] = rank
    if past.session is not None and past.session in tally.pins:
        changed["pinned"] = tally.pins[past.session]
    if facts.alias in tally.incumbents:
        changed["incumbent"] = tally.incumbents[facts.alias]
    return replace(facts, **changed) if changed else facts


def _remember(
    tally: Tally, alias: str, session: str | None, choice: Target | None, actual: Target | None
) -> None:
    """Keep where the side parted from the record; where it did not, the record knows better."""
    if choice is None or choice == actual:
        tally.incumbents.pop(alias, None)
        if session is not None:
            tally.pins.pop(session, None)
        return
    tally.incumbents[alias] = choice
    if session is not None:
        tally.pins[session] = choice


def _choice(decision: Decision, tried: frozenset[str]) -> tuple[Target | None, int]:
    """Who would answer, and what that was predicted to cost."""
    for candidate in decision.order:
        if not tried or str(candidate.target) not in tried:
            return candidate.target, candidate.cost_nano_usd or 0
    return None, 0


def _cost(
    choice: Target | None,
    past: Recorded,
    service_tier: str | None,
    rates: Mapping[Target, Rates],
    changed: Container[Target],
) -> int:
    """Nano-USD, or UNPRICED, or UNMEASURED. `changed` cost something else on the first side."""
    if choice is None:
        return 0
    here, usage = rates.get(choice), past.usage
    if choice == past.served and past.cost_nano_usd is not None and choice not in changed:
        return past.cost_nano_usd
    if usage is None:
        return UNMEASURED
    if here is None:
        return UNPRICED
    if usage.service_tier != service_tier:
        usage = replace(usage, service_tier=service_tier)
    try:
        return charge(here, usage)[1]
    except Unpriced:
        return UNPRICED


def _why(decision: Decision) -> str:
    if decision.order:
        return "all that it would try had failed"
    rules = sorted({e.rule.value for e in decision.excluded})
    return ", ".join(rules) or "no such alias"


def _expose(
    tally: Tally,
    side: Side,
    facts: Facts,
    first: Decision,
    decision: Decision,
    choice: Target | None,
) -> None:
    """Count what this side may send to backends that the first one may not."""
    if first is decision:
        return
    before = {target.backend for target in _reach(first)}
    for target in _reach(decision):
        if target.backend not in before:
            exposure = Exposure(facts.alias, side.catalog.privacy_classes[facts.privacy], target)
            tally.opened[exposure] += 1
            tally.exposed[exposure] += target == choice


def _reach(decision: Decision) -> list[Target]:
    return [
        *(c.target for c in decision.order),
        *decision.cut,
        *(e.target for e in decision.excluded if e.rule in PASSING),
    ]


def _target(text: str) -> Target:
    backend, _, model = text.partition("/")
    return Target(backend, model)
