"""Is privacy looser than it was, and where? What guards `policy apply` and `rollback`. Pure.

`exposure` says what data may newly reach at all, by alias and class. Here is added what stays
hidden in that: requests of one kind (a team, a tag, long prompts) that were kept from a backend
which others could reach already; a clearance raised, even where no alias leads to it yet; a name
that now means another place.

INVARIANT: where a request of a class above the lowest may be sent to a backend to which the old
files could not have sent the very same request, there is a line. What cannot be told apart (an
expression, a moment) is taken for possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from gateway.domain.catalog import Backend, Catalog
from gateway.policy.exposure import Exposed, by_route, exposures
from gateway.policy.language import Policy
from gateway.policy.reach import reach

Side = tuple[Policy, Catalog]


def loosened(old: Side, new: Side) -> list[str]:
    """One line for each thing that is looser; none where nothing is.

    Load both as if every secret were there: what is not set here may be set elsewhere.
    """
    broad = exposures(old, new)
    told = {(e.alias, e.privacy_class, e.target.backend) for e in broad if e.target is not None}
    return [
        *_merged(_line(exposed) for exposed in broad),
        *_merged(_kinds(old, new, told)),
        *_backends(old[1], new[1]),
    ]


def _line(exposed: Exposed) -> tuple[str, str, str]:
    """What is said before the class, the class, and what is said after it."""
    alias = f"alias {exposed.alias}: " if exposed.alias else ""
    if exposed.target is None:
        return alias, exposed.privacy_class, f": {exposed.why}"
    return alias, exposed.privacy_class, f" data may reach {exposed.target.backend} now"


def _merged(lines: Iterator[tuple[str, str, str]]) -> list[str]:
    """Lines that differ only in the class as one."""
    classes: dict[tuple[str, str], dict[str, None]] = {}
    for before, name, after in lines:
        classes.setdefault((before, after), {})[name] = None
    return [f"{before}{', '.join(names)}{after}" for (before, after), names in classes.items()]


def _kinds(old: Side, new: Side, told: set[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Requests that come from a narrower route to a wider one."""
    (before, before_catalog), (after, after_catalog) = old, new
    was_open, is_open = by_route(*old), by_route(*new)
    ways = reach(before, before_catalog, after), reach(after, after_catalog, before)
    ranks = [
        {name: rank for rank, name in enumerate(catalog.privacy_classes)}
        for catalog in (before_catalog, after_catalog)
    ]
    for (to_name, alias, name), targets in is_open.items():
        if alias not in before_catalog.aliases or name not in ranks[0]:
            continue
        floors = before_catalog.aliases[alias], after_catalog.aliases[alias]
        rank, to_rank = (
            max(rank[name], floor.privacy_floor) for rank, floor in zip(ranks, floors, strict=True)
        )
        to = next(way for way in ways[1] if way.route.name == to_name)
        reached = {target.backend for target in targets}
        for way in ways[0]:
            known = {t.backend for t in was_open.get((way.route.name, alias, name), ())}
            fresh = {b for b in reached - known if (alias, name, b) not in told}
            if fresh and way.overlaps(to, alias, rank, to_rank):
                where = f"route {way.route.name} kept from " + ", ".join(sorted(fresh))
                yield f"alias {alias}: ", name, f" data that {where} may reach it by {to_name} now"


def _backends(old: Catalog, new: Catalog) -> Iterator[str]:
    for name, backend in new.backends.items():
        was = old.backends.get(name)
        if was is None or not backend.clearance:
            continue
        class_was, class_is = (
            catalog.privacy_classes[b.clearance] for catalog, b in ((old, was), (new, backend))
        )
        if class_was in new.privacy_classes:
            raised = backend.clearance > new.privacy_classes.index(class_was)
        else:
            raised = backend.clearance > was.clearance
        if raised:
            yield f"backend {name}: cleared for {class_is} data now, it was for {class_was}"
        if _place(was) != _place(backend):
            yield f"backend {name}: it is at {_place(backend)} now, it was at {_place(was)}"


def _place(backend: Backend) -> str:
    """Whom a backend's name means: the port and the path are its operator's affair."""
    return urlsplit(backend.base_url).hostname or f"{backend.vendor}'s own address"
