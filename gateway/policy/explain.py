"""A decision taken apart for a reader: which route and why, every candidate with its figures. Pure.

Owns the words for what a route asked and what a request was. Decides nothing: the decision is
given, and what it does not hold is asked of the engine again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from gateway.domain.catalog import Catalog, Target
from gateway.domain.decision import Candidate, Decision, Exclusion, Facts, Rule, Snapshot
from gateway.domain.money import Rates
from gateway.policy.engine import Router
from gateway.policy.expressions import ExpressionFailed
from gateway.policy.language import By, Match, Policy, Route, Window
from gateway.policy.matching import CONDITIONS

_MANY = 1_000
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a match: what it asks for, what the request is, whether that fits.

    `error`: an expression that is neither true nor false of the request.
    """

    name: str
    wanted: str
    got: str
    fits: bool
    error: bool = False

    def __str__(self) -> str:
        if self.name == "expression":
            return f"{self.name} {self.wanted}: {self.got}"
        return f"{self.name} {self.wanted}: this is {self.got}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """An earlier route that did not take the request, and the first key that kept it from it."""

    route: str
    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One target of the alias. `place` is its place in the order, from 1; None: not to be tried.

    `verdict` is the candidate's reason, the rule that excluded it, or `left over` (eligible, but
    beyond the attempts). Ratios are to the lowest of its tier; None where a figure is not known.
    """

    target: str
    place: int | None
    verdict: str
    tier: int | None = None
    cost_nano_usd: int | None = None
    latency_ms: float | None = None
    cost_ratio: float | None = None
    latency_ratio: float | None = None
    mix_ratio: float | None = None
    misses: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything about one decision. `objective` says in words what the route compares."""

    route: str
    objective: str
    matched: tuple[Key, ...]
    passed: tuple[Passed, ...]
    lines: tuple[Line, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def explain(
    policy: Policy,
    catalog: Catalog,
    rates: Mapping[Target, Rates],
    facts: Facts,
    snapshot: Snapshot,
    decision: Decision,
) -> Explanation:
    """Take apart what `policy` decided. The snapshot is the one it was decided on."""
    route = next((route for route in policy.routes if route.name == decision.route), None)
    passed = []
    for earlier in policy.routes:
        keys = read_match(earlier.match, facts, catalog.privacy_classes)
        failed = next((key for key in keys if not key.fits), None)
        if earlier is route or failed is None:
            break
        passed.append(Passed(route=earlier.name, key=failed))
        if failed.error:
            break  # nobody can say which route would have been right
    matched = read_match(route.match, facts, catalog.privacy_classes) if route else ()
    # With room for all of them, what lies beyond the attempts has its figures too.
    everybody = Router.build(_roomy(policy), catalog, rates).decide(facts, snapshot)
    return Explanation(
        route=decision.route,
        objective=objective(route) if route else "",
        matched=matched,
        passed=tuple(passed),
        lines=lines(decision, everybody.order, mix=route is not None and route.by is By.MIX),
    )


def read_match(match: Match, facts: Facts, classes: tuple[str, ...]) -> tuple[Key, ...]:
    """The keys that a match names, in the order they are looked at, with what they found."""
    keys = []
    if match.aliases is not None:
        wanted, fits = _some(match.aliases), facts.alias in match.aliases
        keys.append(Key(name="aliases", wanted=wanted, got=facts.alias, fits=fits))
    for name, made in CONDITIONS.items():
        value = getattr(match, name)
        if value == getattr(_ANY, name):
            continue
        wanted, got = _WORDS[name](value, facts, classes)
        try:
            fits = made(value)(facts)
        except ExpressionFailed as error:
            keys.append(Key(name=name, wanted=wanted, got=str(error), fits=False, error=True))
        else:
            keys.append(Key(name=name, wanted=wanted, got=got or str(fits).lower(), fits=fits))
    return tuple(keys)


def objective(route: Route) -> str:
    """What orders candidates inside a tier, in words."""
    if route.by is not By.MIX:
        return route.by.value
    return f"{route.by.value}, cost {route.cost_weight:.0%} and time {1 - route.cost_weight:.0%}"


def lines(
    decision: Decision, known: tuple[Candidate, ...] = (), *, mix: bool = False
) -> tuple[Line, ...]:
    """Every target of the alias: the order, what is left over, what is excluded.

    `known` has the figures of those left over, as far as anybody has them.
    """
    figures = {candidate.target: candidate for candidate in known}
    figures.update({candidate.target: candidate for candidate in decision.order})
    tiers: dict[int, list[Candidate]] = {}
    for candidate in figures.values():
        tiers.setdefault(candidate.tier, []).append(candidate)
    shown = [
        _eligible(candidate, tiers[candidate.tier], place, candidate.why, mix=mix)
        for place, candidate in enumerate(decision.order, 1)
    ]
    for target in decision.cut:
        left = figures.get(target)
        if left is None:
            shown.append(Line(target=str(target), place=None, verdict=LEFT_OVER))
        else:
            shown.append(_eligible(left, tiers[left.tier], None, LEFT_OVER, mix=mix))
    return (*shown, *map(_excluded, decision.excluded))


LEFT_OVER = "left over"


def from_record(record: Mapping[str, Any], *, policy: str, digest: str) -> Decision:
    """The decision as a ledger's row tells it (`domain.decision.record`)."""
    return Decision(
        policy=policy,
        policy_digest=digest,
        route=record["route"],
        order=tuple(
            Candidate(
                target=_target(target),
                why=why,
                tier=tier,
                cost_nano_usd=cost,
                latency_ms=None if latency is None else float(latency),
            )
            for target, why, tier, cost, latency in record["order"]
        ),
        excluded=tuple(
            Exclusion(_target(target), Rule(rule), detail)
            for target, rule, detail in record["excluded"]
        ),
        cut=tuple(map(_target, record["cut"])),
    )


def as_it_was(catalog: Catalog, decision: Decision) -> Catalog:
    """`catalog` with those backends configured that were, as the decision's exclusions tell."""
    missing = {
        exclusion.target.backend: exclusion.detail
        for exclusion in decision.excluded
        if exclusion.rule is Rule.NOT_CONFIGURED
    }
    return replace(
        catalog,
        backends={
            name: replace(
                backend, configured=name not in missing, why_unconfigured=missing.get(name)
            )
            for name, backend in catalog.backends.items()
        },
    )


# --- lines ------------------------------------------------------------------------------------


def _eligible(
    candidate: Candidate, tier: list[Candidate], place: int | None, verdict: str, *, mix: bool
) -> Line:
    best = min((c.score for c in tier if c.score is not None), default=None)
    return Line(
        target=str(candidate.target),
        place=place,
        verdict=verdict,
        tier=candidate.tier,
        cost_nano_usd=candidate.cost_nano_usd,
        latency_ms=candidate.latency_ms,
        cost_ratio=_ratio(candidate.cost_nano_usd, [c.cost_nano_usd for c in tier]),
        latency_ratio=_ratio(candidate.latency_ms, [c.latency_ms for c in tier]),
        mix_ratio=candidate.score / best
        if mix and candidate.score is not None and best is not None
        else None,
        misses=candidate.misses,
    )


def _ratio(value: float | None, all_of_them: list[int | None] | list[float | None]) -> float | None:
    least = min((other for other in all_of_them if other is not None), default=None)
    return None if value is None or not least else value / least


def _excluded(exclusion: Exclusion) -> Line:
    return Line(
        target=str(exclusion.target),
        place=None,
        verdict=exclusion.rule.value,
        detail=exclusion.detail,
    )


def _roomy(policy: Policy) -> Policy:
    def roomy(route: Route) -> Route:
        wide = replace(route.behaviour, attempts_max=_MANY, backends_max=_MANY)
        return replace(route, behaviour=wide)

    return replace(
        policy,
        behaviour=replace(policy.behaviour, attempts_max=_MANY, backends_max=_MANY),
        routes=tuple(map(roomy, policy.routes)),
    )


def _target(text: str) -> Target:
    backend, _, model = text.partition("/")
    return Target(backend, model)


# --- words ------------------------------------------------------------------------------------

_ANY = Match()
_Words = Callable[[Any, Facts, tuple[str, ...]], tuple[str, str]]


def _tags(
    wanted: Mapping[str, frozenset[str]], facts: Facts, _: tuple[str, ...]
) -> tuple[str, str]:
    asked = ", ".join(f"{name} {_some(values)}" for name, values in wanted.items())
    given = ", ".join(f"{name} {facts.tags[name]}" for name in wanted if name in facts.tags)
    return asked, given or "none of these"


def _window(window: Window, facts: Facts, _: tuple[str, ...]) -> tuple[str, str]:
    start, end = (f"{m // 60:02}:{m % 60:02}" for m in (window.start_minute, window.end_minute))
    days = " ".join(_DAYS[day] for day in sorted(window.days))
    now = dt.datetime.fromtimestamp(facts.at_us // 1_000_000, ZoneInfo(window.zone))
    return f"{days} {start}-{end} {window.zone}", f"{_DAYS[now.weekday()]} {now:%H:%M}"


_WORDS: Mapping[str, _Words] = {
    "endpoint": lambda wanted, facts, _: (wanted.value, facts.endpoint.value),
    "stream": lambda wanted, facts, _: (str(wanted).lower(), str(facts.stream).lower()),
    "privacy_at_least": lambda wanted, facts, classes: (classes[wanted], classes[facts.privacy]),
    "privacy_at_most": lambda wanted, facts, classes: (classes[wanted], classes[facts.privacy]),
    "prompt_tokens_min": lambda wanted, facts, _: (str(wanted), str(facts.prompt_tokens)),
    "prompt_tokens_max": lambda wanted, facts, _: (str(wanted), str(facts.prompt_tokens)),
    "keys": lambda wanted, facts, _: (_some(wanted), facts.key_id or "none"),
    "needs": lambda wanted, facts, _: (_some(wanted), _some(facts.needs)),
    "spent": lambda wanted, facts, _: (_some(wanted), _some(facts.spent)),
    "tags": _tags,
    "window": _window,
    "expression": lambda wanted, _, __: (wanted.text, ""),
}


def _some(names: frozenset[Any]) -> str:
    return " | ".join(sorted(map(str, names))) or "none"
