"""Looser privacy: by hand for each way, and against the engine over every request there can be."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalog import Alias, Catalog, Target
from gateway.domain.decision import Facts
from gateway.domain.request import Endpoint
from gateway.policy.engine import decide
from gateway.policy.exposure import PASSING
from gateway.policy.language import Match, Policy, Route, Shadow, Terms
from gateway.policy.loosened import loosened
from tests.unit.policy.worlds import backend, policy

CLASSES = ("public", "internal", "confidential")
BACKENDS = ("home", "host", "cloud")
ANY = Match()
LEGAL = Match(tags={"team": frozenset({"legal"})})


def catalog(clearances=(2, 1, 0), *, floors=(0, 1), names=BACKENDS, **changes: object) -> Catalog:
    """Three backends; alias `a` over all of them, `b` over the first two."""
    backends = {
        name: backend(name, clearance=clearance)
        for name, clearance in zip(names, clearances, strict=True)
    }
    aliases = {
        alias: Alias(
            name=alias,
            targets=tuple(Target(name, "m") for name in targets),
            privacy_floor=floor,
        )
        for alias, targets, floor in zip("ab", (names, names[:2]), floors, strict=True)
    }
    made = Catalog(privacy_classes=CLASSES, backends=backends, aliases=aliases, digest="")
    return replace(made, **changes)


def only(*names: str, match: Match = ANY, name: str = "default", **more: object) -> Route:
    return Route(name=name, match=match, prefer=(frozenset(names),), only=True, **more)


OPEN = policy(Route(name="default"))
CLOSED = policy(only("home"))
OLD = (OPEN, catalog())


def with_backend(name: str, **changes: object) -> Catalog:
    made = catalog()
    backends = {**made.backends, name: replace(made.backends[name], **changes)}
    return replace(made, backends=backends)


WAYS = {
    "nothing": (OLD, OLD, []),
    "stricter": (OLD, (CLOSED, catalog((2, 0, 0), floors=(1, 2))), []),
    "clearance": (
        OLD,
        (OPEN, catalog((2, 2, 0))),
        [
            "alias a: confidential data may reach host now",
            "alias b: confidential data may reach host now",
            "backend host: cleared for confidential data now, it was for internal",
        ],
    ),
    "a clearance that no route leads to": (
        (CLOSED, catalog()),
        (CLOSED, catalog((2, 2, 0))),
        ["backend host: cleared for confidential data now, it was for internal"],
    ),
    "floor": (
        OLD,
        (OPEN, catalog(floors=(0, 0))),
        ["alias b: public: its floor is no longer internal"],
    ),
    "only": (
        (CLOSED, catalog()),
        (OPEN, catalog()),
        [
            "alias a: internal data may reach host now",
            "alias b: internal data may reach host now",
        ],
    ),
    "one tier more": (
        (CLOSED, catalog()),
        (policy(only("home", "host")), catalog()),
        [
            "alias a: internal data may reach host now",
            "alias b: internal data may reach host now",
        ],
    ),
    "terms": (
        (policy(Route(name="default", require=Terms(regions=frozenset({"eu"})))), catalog()),
        OLD,
        [
            "alias a: internal, confidential data may reach home now",
            "alias a: internal data may reach host now",
            "alias b: internal, confidential data may reach home now",
            "alias b: internal data may reach host now",
        ],
    ),
    "the route of a team is gone": (
        (policy(only("home", match=LEGAL, name="legal"), Route(name="default")), catalog()),
        OLD,
        [
            "alias a: internal data that route legal kept from host may reach it by default now",
            "alias b: internal data that route legal kept from host may reach it by default now",
        ],
    ),
    "a route before that of a team": (
        (policy(only("home", match=LEGAL, name="legal"), Route(name="default")), catalog()),
        (
            policy(
                Route(name="long", match=Match(prompt_tokens_min=100)),
                only("home", match=LEGAL, name="legal"),
                Route(name="default"),
            ),
            catalog(),
        ),
        [
            "alias a: internal data that route legal kept from host may reach it by long now",
            "alias b: internal data that route legal kept from host may reach it by long now",
        ],
    ),
    "another team's route": (
        (policy(only("home", match=LEGAL, name="legal"), Route(name="default")), catalog()),
        (
            policy(
                Route(name="sales", match=Match(tags={"team": frozenset({"sales"})})),
                only("home", match=LEGAL, name="legal"),
                Route(name="default"),
            ),
            catalog(),
        ),
        [],
    ),
    "a shadow": (
        (CLOSED, catalog()),
        (policy(only("home", shadow=Shadow(backend="host", share=0.1))), catalog()),
        [
            "alias a: internal data may reach host now",
            "alias b: internal data may reach host now",
        ],
    ),
    "another place": (
        OLD,
        (OPEN, with_backend("host", base_url="https://elsewhere.example")),
        ["backend host: it is at elsewhere.example now, it was at x"],
    ),
    "another place for what everybody may see": (
        OLD,
        (OPEN, with_backend("cloud", base_url="https://elsewhere.example")),
        [],
    ),
    "a backend that is switched on": (
        (OPEN, with_backend("host", configured=False)),
        OLD,
        [
            "alias a: internal data may reach host now",
            "alias b: internal data may reach host now",
        ],
    ),
    "a detector": (
        (OPEN, catalog(detectors={"iban": 2, "email": 1})),
        (OPEN, catalog(detectors={"iban": 1})),
        [
            "confidential: internal is called for where iban is detected",
            "internal: none is called for where email is detected",
        ],
    ),
    "a class in the middle": (
        OLD,
        (
            OPEN,
            catalog((3, 1, 0), privacy_classes=("public", "internal", "secret", "confidential")),
        ),
        [],
    ),
    "a class less": (
        OLD,
        (OPEN, catalog((1, 1, 0), privacy_classes=("public", "internal"))),
        ["confidential: the class is gone"],
    ),
    "another order": (
        OLD,
        (OPEN, catalog((1, 2, 0), privacy_classes=("public", "confidential", "internal"))),
        ["confidential, internal: the classes are in another order"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_each_way_has_its_lines(way: str) -> None:
    old, new, lines = WAYS[way]
    found = loosened(old, new)
    for line in lines:
        assert any(line in said for said in found), found
    assert bool(found) == bool(lines), found
    if way not in {"another order", "floor"}:  # these bring others with them
        assert sorted(found) == sorted(lines)


# --- against the engine -------------------------------------------------------------------------

TEAMS, LENGTHS, EITHER = ("legal", "sales", None), (10, 200), (True, False)


def requests(made: Catalog):
    """Every request there can be in these small worlds, by alias and asked class."""
    for alias, name, team, length, stream in product("ab", CLASSES, TEAMS, LENGTHS, EITHER):
        rank = max(made.privacy_classes.index(name), made.aliases[alias].privacy_floor)
        yield (
            (alias, name, team, length, stream),
            Facts(
                alias=alias,
                endpoint=Endpoint.CHAT,
                privacy=rank,
                needs=frozenset(),
                prompt_tokens=length,
                output_tokens=1,
                stream=stream,
                tags={} if team is None else {"team": team},
            ),
        )


def open_to(side: tuple[Policy, Catalog]) -> dict[tuple[object, ...], set[str]]:
    found = {}
    for request, facts in requests(side[1]):
        decision = decide(*side, {}, facts, {})
        found[request] = {
            *(c.target.backend for c in decision.order),
            *(target.backend for target in decision.cut),
            *(e.target.backend for e in decision.excluded if e.rule in PASSING),
        }
    return found


matches = st.builds(
    Match,
    aliases=st.sampled_from([None, frozenset("a"), frozenset("b")]),
    tags=st.sampled_from(
        [{}, {"team": frozenset({"legal"})}, {"team": frozenset({"legal", "sales"})}]
    ),
    stream=st.sampled_from([None, True, False]),
    privacy_at_least=st.sampled_from([None, None, 1, 2]),
    privacy_at_most=st.sampled_from([None, None, 2]),
    prompt_tokens_min=st.sampled_from([None, None, 100]),
)
tiers = st.lists(st.sampled_from(BACKENDS), min_size=1, max_size=3, unique=True)
routes = st.tuples(matches, tiers, st.booleans()).map(
    lambda drawn: Route(match=drawn[0], prefer=(frozenset(drawn[1]),), only=drawn[2], name="")
)
sides = st.tuples(
    st.lists(routes, max_size=3),
    routes,
    st.tuples(*[st.integers(0, 2)] * 3),
    st.tuples(*[st.integers(0, 2)] * 2),
).map(
    lambda drawn: (
        policy(
            *(replace(route, name=f"r{n}") for n, route in enumerate(drawn[0])),
            replace(drawn[1], match=Match(), name="default"),
        ),
        catalog(drawn[2], floors=drawn[3]),
    )
)


@given(sides, sides)
def test_a_request_that_may_go_further_has_a_line_and_nothing_else_has(old, new) -> None:
    before, after = open_to(old), open_to(new)
    further = {
        (alias, name, b)
        for (alias, name, *rest), backends in after.items()
        for b in backends - before[(alias, name, *rest)]
        if name != CLASSES[0]
    }
    lines = [
        line for line in loosened(old, new) if line.startswith("alias") and "floor" not in line
    ]
    said = {
        (alias, name, b)
        for alias, name, b in product("ab", CLASSES, BACKENDS)
        for line in lines
        if line.startswith(f"alias {alias}: ")
        and name in line.removeprefix(f"alias {alias}: ").partition(" data ")[0].split(", ")
        and b in line.partition(" data ")[2].replace(",", "").split()
    }
    assert said == further


@given(sides)
def test_what_stays_as_it_is_is_not_looser(side) -> None:
    assert loosened(side, side) == []
