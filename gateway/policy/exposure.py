"""Which backends data of a privacy class may reach, and what another set of files opens up. Pure.

The engine itself is asked: for each alias, each class above the lowest (which is for everybody) and
each route that may take such a request, with all else about the request left open. Data is what
matters, so the unit is the backend: another model at a backend that could be sent this class for
this alias before is no change, nor is a new alias over backends that could be sent this class for
some other one. On the careful side: what `policy.reach` cannot tell is taken for possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from gateway.domain.catalog import Alias, Catalog, Target
from gateway.domain.decision import Decision, Facts, Rule
from gateway.domain.request import Endpoint
from gateway.policy.engine import Router
from gateway.policy.language import Match, Policy, Route
from gateway.policy.reach import reach as ways
from gateway.policy.replay import PASSING


class Exposed(NamedTuple):
    """What loosens privacy, and why. `alias` is empty where it is all of them; `target` is None
    where requests get a class less strict than before, wherever that may go."""

    alias: str
    privacy_class: str
    target: Target | None
    why: str


def exposures(old: tuple[Policy, Catalog], new: tuple[Policy, Catalog]) -> list[Exposed]:
    """What the new files let out that the old did not; each loosens privacy.

    Load both as if every secret were there: what is not set here may be set elsewhere.
    """
    before, after = reach(*old), reach(*new)
    anywhere: dict[str, set[str]] = {}
    for (_, name), targets in before.items():
        anywhere.setdefault(name, set()).update(target.backend for target in targets)
    found: list[Exposed] = []
    for (alias, name), targets in after.items():
        if name not in old[1].privacy_classes:
            continue  # no request had it
        if alias in old[1].aliases:
            known = {target.backend for target in before.get((alias, name), ())}
        else:
            known = anywhere.get(name, set())
        found += [
            Exposed(alias, name, target, "may be sent there now")
            for target in sorted(targets, key=str)
            if target.backend not in known
        ]
    return [*found, *_lowered(old[1], new[1])]


def reach(policy: Policy, catalog: Catalog) -> dict[tuple[str, str], frozenset[Target]]:
    """By alias and privacy class above the lowest: the targets such a request may be sent to."""
    found: dict[tuple[str, str], frozenset[Target]] = {}
    for (_, alias, name), targets in by_route(policy, catalog).items():
        found[alias, name] = found.get((alias, name), frozenset()) | targets
    return found


def by_route(policy: Policy, catalog: Catalog) -> dict[tuple[str, str, str], frozenset[Target]]:
    """The same by the name of the route they come to."""
    found: dict[tuple[str, str, str], set[Target]] = {}
    for way in ways(policy, catalog):
        route, comes = way.route, way.combinations()
        alone = replace(policy, routes=(replace(route, match=Match()),))
        router = Router.build(alone, catalog, {})
        for alias in catalog.aliases.values():
            for rank, name in enumerate(catalog.privacy_classes[1:], 1):
                floored = max(rank, alias.privacy_floor)
                if floored in comes.get(alias.name, ()):
                    open_to = found.setdefault((route.name, alias.name, name), set())
                    for endpoint in Endpoint:
                        decision = router.decide(_any(alias, floored, endpoint), {})
                        open_to.update(_open(decision, route))
    return {key: frozenset(targets) for key, targets in found.items()}


def _any(alias: Alias, rank: int, endpoint: Endpoint) -> Facts:
    """A request that asks for as little as can be, so that only who may have it decides."""
    return Facts(
        alias=alias.name,
        endpoint=endpoint,
        privacy=rank,
        needs=frozenset(),
        prompt_tokens=1,
        output_tokens=1,
        stream=False,
    )


def _open(decision: Decision, route: Route) -> Iterator[Target]:
    """Who may be sent it at some moment or other; a shadow also where no tier has it."""
    yield from (candidate.target for candidate in decision.order)
    yield from decision.cut
    shadow = route.shadow.backend if route.shadow is not None else None
    for target, rule, _ in ((e.target, e.rule, e.detail) for e in decision.excluded):
        if rule in PASSING or (rule is Rule.POLICY and target.backend == shadow):
            yield target


def _lowered(old: Catalog, new: Catalog) -> Iterator[Exposed]:
    """What makes requests less strict than they were, so that they may go further."""
    before, now = old.privacy_classes, new.privacy_classes

    def looser(was: int, rank: int) -> bool:
        name = now[rank]
        return (before.index(name) if name in before else rank) < was

    for name, alias in new.aliases.items():
        known = old.aliases.get(name)
        if known is not None and looser(known.privacy_floor, alias.privacy_floor):
            floor, was = now[alias.privacy_floor], before[known.privacy_floor]
            yield Exposed(name, floor, None, f"its floor is no longer {was}")
    for name, rank in old.detectors.items():
        found = new.detectors.get(name)
        if found is None or looser(rank, found):
            to = "none is called for" if found is None else f"{now[found]} is called for"
            yield Exposed("", before[rank], None, f"{to} where {name} is detected")
    for name in before[1:]:
        if name not in now:
            yield Exposed("", name, None, "the class is gone")
    common = [name for name in now if name in before]
    if common != [name for name in before if name in now]:
        yield Exposed("", ", ".join(common), None, "the classes are in another order")
