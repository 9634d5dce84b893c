"""Lints of the routes: who gets there, who may serve them, and what never happens. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gateway.domain.catalog import Alias, Backend, Catalog, Kind, Target
from gateway.domain.decision import Decision, Exclusion, Facts, Rule
from gateway.domain.request import Endpoint
from gateway.policy.engine import Router
from gateway.policy.expressions import ExpressionFailed
from gateway.policy.language import By, Match, Metric, OwnCost, Route
from gateway.policy.lint.subject import ERROR, NOTE, WARNING, Sheet, Subject
from gateway.policy.reach import Reach, reach
from gateway.policy.source import Path, Problem

_OUTSIDE = 9999  # a bucket in no share but a whole one


class Case(NamedTuple):
    """The smallest request of an alias and class that gets to a route, decided."""

    alias: str
    rank: int
    decision: Decision

    @property
    def eligible(self) -> tuple[Target, ...]:
        return (*(candidate.target for candidate in self.decision.order), *self.decision.cut)


@dataclass(frozen=True, slots=True)
class Look:
    """A route with what gets there and what the engine says of it."""

    subject: Subject
    path: Path
    reach: Reach
    cases: tuple[Case, ...]

    @property
    def route(self) -> Route:
        return self.reach.route

    @property
    def sheet(self) -> Sheet:
        return self.subject.policy_file

    def backend(self, target: Target) -> Backend:
        return self.subject.catalog.backends[target.backend]

    def possible(self) -> tuple[Target, ...]:
        """Every target that some request may go to here."""
        return tuple(dict.fromkeys(target for case in self.cases for target in case.eligible))

    def exclusions(self) -> Iterator[Exclusion]:
        return (e for case in self.cases for e in case.decision.excluded)

    def classes(self, ranks: Iterable[int]) -> str:
        return ", ".join(self.subject.catalog.privacy_classes[rank] for rank in sorted(ranks))

    def behaviour(self, name: str) -> Path:
        """Where a behaviour of this route is written: at the route, or for the whole file."""
        own: Path = (*self.path, "behaviour", name)
        return own if own in self.sheet.places.value_at else ("behaviour", name)

    def listed(self, *at: str) -> list[Any]:
        """What the file lists there, in its order; nothing where it does not."""
        value = self.sheet.value
        for step in (*self.path, *at):
            if isinstance(value, dict) and step not in value:
                return []
            value = value[step]
        return [value] if isinstance(value, str) else list(value or ())

    def tell(self, severity: str, at: Path, message: str, hint: str = "") -> Problem:
        return self.sheet.tell(severity, (*self.path, *at), message, hint)


def lint_routes(subject: Subject) -> Iterator[Problem]:
    """All that is suspicious in the routing policy, and in the aliases it serves."""
    looks = [
        _look(subject, index, found)
        for index, found in enumerate(reach(subject.policy, subject.catalog))
    ]
    yield from _name(subject)
    for look in looks:
        for check in _OF_A_ROUTE:
            yield from check(look)
    yield from _nobody(looks)
    for alias in subject.catalog.aliases.values():
        yield from _nobody_cleared(alias, subject)


def _name(subject: Subject) -> Iterator[Problem]:
    """Policies are found by their file's name and told by the one inside."""
    sheet, name = subject.policy_file, subject.policy.name
    file = sheet.source.rsplit("/", 1)[-1]
    if file.rsplit(".", 1)[0] != name:
        yield sheet.tell(
            WARNING, ("name",), f"is {name}, and the file is called {file}", "give both one name"
        )


def _look(subject: Subject, index: int, found: Reach) -> Look:
    route = found.route
    last = index == len(subject.policy.routes) - 1
    combinations = found.combinations()
    aliases = {name: subject.catalog.aliases[name] for name in combinations}
    router = Router.build(
        replace(subject.policy, routes=(replace(route, match=Match()),)),
        replace(subject.catalog, aliases=aliases),
        subject.rates,
    )
    cases = tuple(
        Case(name, rank, router.decide(_smallest(subject.catalog, aliases[name], rank, route), {}))
        for name, ranks in sorted(combinations.items())
        for rank in sorted(ranks)
    )
    return Look(subject, ("default",) if last else ("routes", index), found, cases)


def _smallest(catalog: Catalog, alias: Alias, rank: int, route: Route) -> Facts:
    """The request of `alias` and class `rank` that gets to `route` and asks least of a backend."""
    served = {
        e for t in alias.targets for e in catalog.backends[t.backend].models[t.model].endpoints
    }
    usual = next(endpoint for endpoint in Endpoint if endpoint in served)
    return Facts(
        alias=alias.name,
        endpoint=route.match.endpoint or usual,
        privacy=rank,
        needs=route.match.needs,
        prompt_tokens=max(1, route.match.prompt_tokens_min or 0),
        output_tokens=1,
        stream=route.match.stream is not False,
        bucket=_OUTSIDE,
    )


# --- routes -----------------------------------------------------------------------------------


_UNABLE = frozenset((Rule.ENDPOINT, Rule.CAPABILITY, Rule.CONTEXT))


def _takes(names: Sequence[str]) -> str:
    return "take" if len(names) > 1 else "takes"


def _expressions(look: Look) -> Iterator[Problem]:
    """An expression that reads a tag which a key need not have; each such key is refused there."""
    match = look.route.match
    if match.expression is None:
        return
    tags = {name: min(values) for name, values in match.tags.items()}
    for case in look.cases:
        alias = look.subject.catalog.aliases[case.alias]
        facts = _smallest(look.subject.catalog, alias, case.rank, look.route)
        try:
            match.expression.matches(replace(facts, tags=tags))
        except ExpressionFailed as failed:
            if (tag := re.search(r'not found in map : "(.+)"', str(failed))) is None:
                continue
            yield look.tell(
                WARNING,
                ("match", "expression"),
                f"has no value for keys without the tag '{tag[1]}', and requests for which it has"
                " none are refused",
                f'write "{tag[1]}" in tags && ..., or use tags of match',
            )
            return


def _unreachable(look: Look) -> Iterator[Problem]:
    names = look.reach.before[-3:]
    earlier = " and ".join(f"'{name}'" for name in names)
    if not look.reach.boxes and look.path != ("default",):
        yield look.tell(
            ERROR,
            ("name",),
            f"never reached: {earlier} before it {_takes(names)} all that it fits",
            "move it up, or narrow those",
        )
        return
    here = look.reach.combinations()
    for index, alias in enumerate(look.listed("match", "aliases")):
        cases = [case for case in look.cases if case.alias == alias]
        # Of the lowest class that gets here: in stricter ones others are not cleared, besides.
        why = {e.rule for case in cases[:1] for e in case.decision.excluded}
        able = any(case.eligible for case in cases)
        if alias in here and not able and why <= _UNABLE:
            yield look.tell(
                WARNING,
                ("match", "aliases", index),
                f"no target of '{alias}' can serve what the route matches: "
                f"{', '.join(sorted(rule.value for rule in why))}",
                "take it out, or match less",
            )
        if alias not in here:
            yield look.tell(
                WARNING,
                ("match", "aliases", index),
                f"no request for '{alias}' gets here",
                f"{earlier} before it {_takes(names)} them"
                if earlier
                else "its privacy floor is above",
            )


def _dead_names(look: Look) -> Iterator[Problem]:
    """Tiers, canaries and shadows that can never be used: what a fallback outside a class is."""
    if not look.reach.boxes:
        return
    route, possible = look.route, look.possible()
    for tier, names in enumerate(look.listed("prefer")):
        for index, name in enumerate(names):
            if not any(_named(name, t, look) for t in possible):
                kind = name in {k.value for k in Kind}
                yield look.tell(
                    NOTE if kind else WARNING,
                    ("prefer", tier, index),
                    f"{name} is never used here: {_why_dead(name, look)}",
                )
    for name in sorted(route.canary.backends if route.canary else ()):
        if not any(_named(name, t, look) for t in possible):
            yield look.tell(
                ERROR,
                ("canary", "backends"),
                f"{name} never gets its share: {_why_dead(name, look)}",
            )
    if route.shadow is not None:
        by_policy = {e.target for e in look.exclusions() if e.rule is Rule.POLICY}
        if not any(t.backend == route.shadow.backend for t in (*possible, *by_policy)):
            name = route.shadow.backend
            yield look.tell(
                ERROR,
                ("shadow", "backend"),
                f"{name} never gets its copies: {_why_dead(name, look)}",
            )


def _named(name: str, target: Target, look: Look) -> bool:
    return name in (target.backend, look.backend(target).kind.value)


def _why_dead(name: str, look: Look) -> str:
    """Why nothing of a backend or kind is ever eligible at a route."""
    of_it = [e for e in look.exclusions() if _named(name, e.target, look)]
    if not of_it:
        return "no alias that gets here has a target there"
    rules = {e.rule for e in of_it}
    if rules == {Rule.PRIVACY}:
        classes = look.subject.catalog.privacy_classes
        best = max(look.backend(e.target).clearance for e in of_it)
        least = min(case.rank for case in look.cases)
        return (
            f"cleared for {classes[best]} at most, and what gets here is {classes[least]} or more"
        )
    first = of_it[0]
    others = ", ".join(sorted(rule.value for rule in rules - {first.rule}))
    return f"{first.rule.value}, {first.detail}" + (f"; also {others}" if others else "")


def _prices(look: Look) -> Iterator[Problem]:
    route, rates = look.route, look.subject.rates
    unknown = {e.target for e in look.exclusions() if e.rule is Rule.PRICE_UNKNOWN}
    if unknown:
        yield look.tell(
            WARNING,
            ("price_max_usd",),
            f"keeps out {_listed(unknown)}: no price is known on {look.subject.today}",
            "add a row to prices/",
        )
    if route.by not in (By.CHEAPEST, By.MIX):
        return
    compared = {t for case in look.cases for t in _rivals(case, look)}
    unpriced = {
        target
        for target in compared - set(rates)
        if not (
            route.own_cost is OwnCost.MARGINAL and look.backend(target).kind is Kind.SELF_HOSTED
        )
    }
    if unpriced:
        yield look.tell(
            WARNING,
            ("by",),
            f"has no price for {_listed(unpriced)}: last of their tier, in any order",
            "add a row to prices/, or say own_cost: marginal for machines of your own",
        )


def _rivals(case: Case, look: Look) -> Iterator[Target]:
    """The eligible targets of a case that are not alone in their tier."""
    tiers: dict[int, list[Target]] = {}
    for target in case.eligible:
        tiers.setdefault(_tier(look.route, look.backend(target)), []).append(target)
    return (target for tier in tiers.values() if len(tier) > 1 for target in tier)


def _tier(route: Route, backend: Backend) -> int:
    names = {backend.name, backend.kind.value}
    found = [index for index, tier in enumerate(route.prefer) if tier & names]
    return found[0] if found else len(route.prefer)


def _terms(look: Look) -> Iterator[Problem]:
    """Who can never meet what a route requires: most often because nobody wrote it down."""
    out: dict[str, set[str]] = {}
    for exclusion in look.exclusions():
        if exclusion.rule is Rule.TERMS and exclusion.target not in look.possible():
            out.setdefault(exclusion.detail, set()).add(exclusion.target.backend)
    for detail, backends in sorted(out.items()):
        yield look.tell(NOTE, ("require",), f"keeps out {', '.join(sorted(backends))}: {detail}")


def _hedges(look: Look) -> Iterator[Problem]:
    behaviour = look.route.behaviour
    if behaviour.hedge is None:
        return
    at = look.behaviour("hedge")
    backends: dict[str, int] = {}
    for case in look.cases:
        several = len({target.backend for target in case.eligible})
        backends[case.alias] = max(backends.get(case.alias, 0), several)
    alone = sorted(alias for alias, count in backends.items() if count == 1)
    if alone:
        yield look.sheet.tell(
            NOTE if len(alone) < len(backends) else WARNING,
            at,
            f"nobody to hedge with for {', '.join(alone)}: one backend each",
        )


def _slos(look: Look) -> Iterator[Problem]:
    bounds = [look.backend(target).limits for target in look.possible()]
    endpoints = {
        endpoint
        for target in look.possible()
        for endpoint in look.backend(target).models[target.model].endpoints
    }
    for slo in look.route.slos:
        at: Path = ("slo", slo.metric.value, f"p{slo.percentile}")
        first = {limit.first_chunk_ms_max for limit in bounds}
        if slo.metric is Metric.TTFT and first and slo.ms_max >= max(first):
            yield look.tell(
                WARNING,
                at,
                f"never missed: every backend is given up on after {max(first)} ms anyway",
                "lower it",
            )
        if slo.metric is Metric.TPOT and endpoints == {Endpoint.EMBEDDINGS}:
            yield look.tell(WARNING, at, "embeddings have no time per output token")


_OF_A_ROUTE: tuple[Callable[[Look], Iterator[Problem]], ...] = (
    _unreachable,
    _expressions,
    _dead_names,
    _prices,
    _terms,
    _hedges,
    _slos,
)

# --- aliases and classes ----------------------------------------------------------------------

# What another policy could have let pass, unlike a clearance, a context length or an endpoint.
_CHOSEN = frozenset((Rule.TERMS, Rule.POLICY, Rule.PRICE_UNKNOWN, Rule.PRICE_MAX))


def _nobody(looks: list[Look]) -> Iterator[Problem]:
    """Aliases and classes that the policy has refused, and no test says that they should be."""
    served = {case.alias for look in looks for case in look.cases if case.eligible}
    for look in looks:
        refused: dict[tuple[str, str], list[int]] = {}
        for case in look.cases:
            if not case.eligible and any(e.rule in _CHOSEN for e in case.decision.excluded):
                reasons = _reasons(case.decision)
                refused.setdefault((case.alias, reasons), []).append(case.rank)
        told: dict[tuple[str, str, str], list[str]] = {}
        for (alias, reasons), ranks in refused.items():
            meant = [rank for name, rank in look.subject.refusals if name == alias]
            missing = [rank for rank in ranks if not any(rank >= least for least in meant)]
            if missing:
                severity = WARNING if alias in served else ERROR
                told.setdefault((severity, look.classes(missing), reasons), []).append(alias)
        for (severity, classes, reasons), aliases in told.items():
            yield look.tell(
                severity,
                (),
                f"nobody may serve {', '.join(aliases)} as {classes}: {reasons}",
                "let somebody, or say in a test that it is refused",
            )


def _nobody_cleared(alias: Alias, subject: Subject) -> Iterator[Problem]:
    """Classes of an alias that no policy could serve: the catalog's doing."""
    catalog, best = subject.catalog_file, _cleared(alias.name, subject)
    ranks = range(max(best + 1, alias.privacy_floor), len(subject.catalog.privacy_classes))
    if not ranks:
        return
    names = ", ".join(subject.catalog.privacy_classes[rank] for rank in ranks)
    path: Path = ("aliases", alias.name, "targets")
    if best < 0:
        yield catalog.tell(WARNING, path, "all of them are switched off", "set enabled: true")
    else:
        cleared = subject.catalog.privacy_classes[best]
        yield catalog.tell(
            NOTE, path, f"nobody may serve {names}: cleared for {cleared} at most", ""
        )


def _cleared(alias: str, subject: Subject) -> int:
    """The highest class that some target of an alias may get, -1 if all are switched off."""
    catalog = subject.catalog
    backends = (catalog.backends[target.backend] for target in catalog.aliases[alias].targets)
    return max((backend.clearance for backend in backends if backend.configured), default=-1)


def _reasons(decision: Decision) -> str:
    """The exclusions that the policy chose, with their figures; of the others only the rules."""
    grouped: dict[str, list[str]] = {}
    for exclusion in decision.excluded:
        figures = f" ({exclusion.detail})" if exclusion.rule in _CHOSEN else ""
        names = grouped.setdefault(exclusion.rule.value + figures, [])
        if exclusion.target.backend not in names:
            names.append(exclusion.target.backend)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in grouped.items())


def _listed(targets: Iterable[Target]) -> str:
    names = sorted(map(str, targets))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
