"""Which requests get to which route: set arithmetic over all that a `match` can say. Pure.

The space of requests has an axis for each thing a match may name. A box takes some values on some
axes and all values on the others; a match is a box, or several where it says "one of" (`spent`).
What gets to a route is what the routes before it have left over.

INVARIANTS
- On the plain keys it is exact: a route with no box left is never reached.
- An expression is a coin of its own, alike only to the same text. So is a limit being spent, and
  the time in another zone. What is called unreachable then still is; what is not may be too.
- Fragments are bounded: past the bound nothing more is taken away, which errs the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from gateway.domain.catalog import Catalog
from gateway.domain.request import Endpoint
from gateway.policy.language import Match, Policy, Route, Window

FRAGMENTS_MAX = 2000
DAY_MINUTES, WEEK_MINUTES = 1440, 7 * 1440

Axis: TypeAlias = tuple[str, ...]
Box: TypeAlias = Mapping[Axis, frozenset[Any]]

_ALIAS, _PRIVACY, _TOKENS = ("alias",), ("privacy",), ("prompt_tokens",)
_ENDPOINT, _STREAM, _KEY = ("endpoint",), ("stream",), ("key",)
_EITHER = frozenset((True, False))
_OTHER = frozenset((None,))  # a value that no match names


@dataclass(frozen=True, slots=True)
class Reach:
    """One route: what gets to it, and the names of the earlier routes that took of what it fits."""

    route: Route
    boxes: tuple[Box, ...]
    before: tuple[str, ...]

    def overlaps(self, other: Reach, alias: str, rank: int, other_rank: int) -> bool:
        """Whether a request for `alias` that gets here as class `rank` may, where the other route
        is, get there as `other_rank`: all else about it being the same."""
        ours = [_rest(box) for box in self.boxes if alias in box[_ALIAS] and rank in box[_PRIVACY]]
        theirs = [
            _rest(box)
            for box in other.boxes
            if alias in box[_ALIAS] and other_rank in box[_PRIVACY]
        ]
        return any(_common(one, two) is not None for one in ours for two in theirs)

    def combinations(self) -> dict[str, frozenset[int]]:
        """The aliases that get here, each with the privacy ranks that do."""
        found: dict[str, frozenset[int]] = {}
        for box in self.boxes:
            for alias in box[_ALIAS]:
                found[alias] = found.get(alias, frozenset()) | box[_PRIVACY]
        return found


def reach(policy: Policy, catalog: Catalog, *beside: Policy) -> tuple[Reach, ...]:
    """For every route in order, which requests get to it.

    What a policy `beside` tells apart is told apart here too, so that boxes of both compare.
    """
    space = _space([route.match for each in (policy, *beside) for route in each.routes], catalog)
    left = _everything(catalog)
    whole = left
    earlier: list[tuple[str, tuple[Box, ...]]] = []
    found = []
    for route in policy.routes:
        boxes = _boxes(route.match, space)
        here = tuple(common for box in left for mine in boxes if (common := _common(box, mine)))
        fits = [common for box in whole for mine in boxes if (common := _common(box, mine))]
        before = tuple(
            name
            for name, theirs in earlier
            if any(_common(box, other) is not None for box in fits for other in theirs)
        )
        found.append(Reach(route, here, before))
        earlier.append((route.name, boxes))
        rest = left
        for box in boxes:
            rest = tuple(part for one in rest for part in _without(one, box, space))
        left = rest if len(rest) <= FRAGMENTS_MAX else left
    return tuple(found)


def minutes(window: Window) -> frozenset[int]:
    """The minutes of the week (0 is Monday 00:00 in its zone) in which a window is open."""
    length = (window.end_minute - window.start_minute) % DAY_MINUTES or DAY_MINUTES
    return frozenset(
        (day * DAY_MINUTES + window.start_minute + minute) % WEEK_MINUTES
        for day in window.days
        for minute in range(length)
    )


# --- the space --------------------------------------------------------------------------------


def _everything(catalog: Catalog) -> tuple[Box, ...]:
    """All requests there can be: none is classed below the floor of its alias."""
    groups: dict[int, set[str]] = {}
    for alias in catalog.aliases.values():
        groups.setdefault(alias.privacy_floor, set()).add(alias.name)
    ranks = range(len(catalog.privacy_classes))
    return tuple(
        {_ALIAS: frozenset(names), _PRIVACY: frozenset(ranks[floor:])}
        for floor, names in groups.items()
    )


def _space(matches: Sequence[Match], catalog: Catalog) -> dict[Axis, frozenset[Any]]:
    """The values of every axis that the matches name; of prompt lengths, the first of each stretch
    that no match cuts."""
    starts = {0}
    starts.update(m.prompt_tokens_min for m in matches if m.prompt_tokens_min is not None)
    starts.update(m.prompt_tokens_max + 1 for m in matches if m.prompt_tokens_max is not None)
    space: dict[Axis, frozenset[Any]] = {
        _ALIAS: frozenset(catalog.aliases),
        _PRIVACY: frozenset(range(len(catalog.privacy_classes))),
        _ENDPOINT: frozenset(Endpoint),
        _STREAM: _EITHER,
        _TOKENS: frozenset(starts),
        _KEY: _OTHER.union(*(m.keys or frozenset() for m in matches)),
    }
    for match in matches:
        for tag, values in match.tags.items():
            space[("tag", tag)] = space.get(("tag", tag), _OTHER) | values
        for need in match.needs:
            space[("needs", need.value)] = _EITHER
        for limit in match.spent:
            space[("spent", limit)] = _EITHER
        if match.expression is not None:
            space[("expression", match.expression.text)] = _EITHER
        if match.window is not None:
            space[("window", match.window.zone)] = frozenset(range(WEEK_MINUTES))
    return space


def _boxes(match: Match, space: Mapping[Axis, frozenset[Any]]) -> tuple[Box, ...]:
    """A match as boxes. Axes it does not narrow are left out."""
    box: dict[Axis, frozenset[Any]] = {}
    if match.aliases is not None:
        box[_ALIAS] = match.aliases
    if match.keys is not None:
        box[_KEY] = match.keys
    if match.endpoint is not None:
        box[_ENDPOINT] = frozenset((match.endpoint,))
    if match.stream is not None:
        box[_STREAM] = frozenset((match.stream,))
    low, high = match.privacy_at_least, match.privacy_at_most
    if low is not None or high is not None:
        box[_PRIVACY] = _between(space[_PRIVACY], low, high)
    low, high = match.prompt_tokens_min, match.prompt_tokens_max
    if low is not None or high is not None:
        box[_TOKENS] = _between(space[_TOKENS], low, high)
    for tag, values in match.tags.items():
        box["tag", tag] = values
    for need in match.needs:
        box["needs", need.value] = frozenset((True,))
    if match.window is not None:
        box["window", match.window.zone] = minutes(match.window)
    if match.expression is not None:
        box["expression", match.expression.text] = frozenset((True,))
    spent = [{**box, ("spent", limit): frozenset((True,))} for limit in sorted(match.spent)]
    return tuple(spent) or (box,)


def _between(values: Iterable[int], low: int | None, high: int | None) -> frozenset[int]:
    return frozenset(
        value
        for value in values
        if (low is None or value >= low) and (high is None or value <= high)
    )


def _rest(box: Box) -> Box:
    return {axis: values for axis, values in box.items() if axis not in {_ALIAS, _PRIVACY}}


# --- the arithmetic ---------------------------------------------------------------------------


def _common(one: Box, other: Box) -> Box | None:
    """The box of what lies in both, None where that is nothing."""
    both = dict(one)
    for axis, values in other.items():
        both[axis] = both[axis] & values if axis in both else values
        if not both[axis]:
            return None
    return both


def _without(box: Box, taken: Box, space: Mapping[Axis, frozenset[Any]]) -> Iterator[Box]:
    """What of `box` lies outside of `taken`, as boxes that do not overlap."""
    if _common(box, taken) is None:
        yield box
        return
    inside = dict(box)
    for axis, values in taken.items():
        here = inside.get(axis, space[axis])
        if outside := here - values:
            yield {**inside, axis: outside}
        inside[axis] = here & values
