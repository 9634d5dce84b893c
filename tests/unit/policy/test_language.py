"""The policy language: what it means, and its mistakes in exact words and places."""

from __future__ import annotations

import pytest

from gateway.domain.request import Capability, Endpoint
from gateway.policy.catalog import load_catalog
from gateway.policy.language import Affinity, Behaviour, By, Match, Route, load_policy
from gateway.policy.source import ConfigErrors
from tests.unit.policy.test_catalog import GOOD as CATALOG

GOOD = """\
version: 1
name: sample
description: For tests.
behaviour:
  attempts_max: 4
  affinity: {idle_s: 60, cost_ratio_max: 1.5}
routes:
  - name: secret
    match: {privacy_at_least: internal, privacy_at_most: restricted, aliases: [chat]}
    prefer: [[self_hosted], [api, managed]]
    by: fastest
    only: true
  - name: long
    match: {prompt_tokens_min: 1000, prompt_tokens_max: 5000, endpoint: embeddings, stream: true, needs: [tools]}
    by: cheapest
    price_max_usd: "0.05"
default:
  prefer: [[home]]
"""


def load(text: str):
    catalog = load_catalog(CATALOG, source="c.yaml", secret_present=lambda _: True)
    return load_policy(text, source="p.yaml", catalog=catalog)


def told(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(text)
    return str(caught.value).splitlines()


def test_what_is_written_is_what_is_loaded():
    policy = load(GOOD)
    assert (policy.name, policy.description) == ("sample", "For tests.")
    assert policy.behaviour == Behaviour(
        attempts_max=4, backends_max=2, affinity=Affinity(idle_s=60, cost_ratio_max=1.5)
    )
    assert policy.routes == (
        Route(
            name="secret",
            match=Match(aliases=frozenset({"chat"}), privacy_at_least=1, privacy_at_most=2),
            prefer=(frozenset({"self_hosted"}), frozenset({"api", "managed"})),
            by=By.FASTEST,
            only=True,
            behaviour=policy.behaviour,
        ),
        Route(
            name="long",
            match=Match(
                endpoint=Endpoint.EMBEDDINGS,
                stream=True,
                needs=frozenset({Capability.TOOLS}),
                prompt_tokens_min=1000,
                prompt_tokens_max=5000,
            ),
            by=By.CHEAPEST,
            price_max_nano_usd=50_000_000,
            behaviour=policy.behaviour,
        ),
        Route(name="default", prefer=(frozenset({"home"}),), behaviour=policy.behaviour),
    )


def test_the_shortest_policy():
    policy = load("version: 1\nname: p\ndefault: {}\n")
    assert policy.behaviour == Behaviour(attempts_max=3, backends_max=2, affinity=None)
    assert policy.routes == (Route(name="default", behaviour=policy.behaviour),)


def test_one_class_alone_can_be_matched():
    text = GOOD.replace("privacy_at_most: restricted", "privacy_at_most: internal")
    match = load(text).routes[0].match
    assert (match.privacy_at_least, match.privacy_at_most) == (1, 1)


def test_the_digest_is_of_the_content():
    assert load(GOOD).digest == load(GOOD.replace("description", "# c\ndescription")).digest
    assert load(GOOD).digest != load(GOOD.replace("fastest", "order")).digest


REPLACED = [
    ("aliases: [chat]", "aliases: [chatt]", "9:80: routes[0].match.aliases[0]: no alias 'chatt'; did you mean 'chat'?"),
    ("privacy_at_least: internal", "privacy_at_least: intern", "9:31: routes[0].match.privacy_at_least: unknown privacy class 'intern'; did you mean 'internal'?"),
    ("privacy_at_most: restricted", "privacy_at_most: public", "9:58: routes[0].match.privacy_at_most: is below privacy_at_least: nothing matches"),
    ("[[self_hosted], [api, managed]]", "[[self_hosted], [apii, managed]]", "10:30: routes[0].prefer[1][0]: no kind or backend 'apii'; did you mean 'api'?"),
    ("[[self_hosted], [api, managed]]", "[[self_hosted], [api, self_hosted]]", "10:35: routes[0].prefer[1][1]: 'self_hosted' is in two tiers; the first counts"),
    ("[[self_hosted], [api, managed]]", "[self_hosted]", "10:14: routes[0].prefer[0]: expected a list, not 'self_hosted'"),
    ("by: fastest", "by: fast", "11:9: routes[0].by: unknown value 'fast'; did you mean 'fastest'?"),
    ("only: true", "onyl: true", "12:5: routes[0].onyl: unknown key 'onyl'; did you mean 'only'?"),
    ("name: long", "name: secret", "13:11: routes[1].name: a second route named 'secret'"),
    ("name: long", "name: default", "13:11: routes[1].name: a second route named 'default'"),
    ("prompt_tokens_max: 5000", "prompt_tokens_max: 50", "14:57: routes[1].match.prompt_tokens_max: is below prompt_tokens_min"),
    ("endpoint: embeddings", "endpoint: embedding", "14:73: routes[1].match.endpoint: unknown value 'embedding'; did you mean 'embeddings'?"),
    ("needs: [tools]", "needs: [tool]", "14:107: routes[1].match.needs[0]: unknown value 'tool'; did you mean 'tools'?"),
    ('price_max_usd: "0.05"', "price_max_usd: 0.05", "16:20: routes[1].price_max_usd: expected text, not the number 0.05; quote it"),
    ('price_max_usd: "0.05"', 'price_max_usd: "free"', "16:20: routes[1].price_max_usd: 'free' is not an amount; write dollars in quotes, like \"0.05\""),
    ('price_max_usd: "0.05"', 'price_max_usd: "0.00"', "16:20: routes[1].price_max_usd: '0.00' is not an amount; write dollars in quotes, like \"0.05\""),
    ("  prefer: [[home]]", "  only: true", "18:3: default.only: without prefer nothing is left"),
    ("default:\n", "defualt:\n", "17:1: defualt: unknown key 'defualt'; did you mean 'default'?"),
    ("attempts_max: 4", "attempts_max: 11", "5:17: behaviour.attempts_max: must be at most 10"),
    ("affinity: {", "affinity: off # {", "6:13: behaviour.affinity: unquoted off is not text to all readers; write true, false or null, or quote it if it is text"),
    ("idle_s: 60", "idle_s: 01:00", "6:22: behaviour.affinity.idle_s: unquoted 01:00 is not the same number to all readers; write it plainly, or quote it if it is text"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), REPLACED)
def test_a_mistake_is_told_with_its_place_and_the_nearest_name(old, new, line):
    assert GOOD.count(old) == 1, "the test replaces exactly one place"
    assert f"p.yaml:{line}" in told(GOOD.replace(old, new))


def test_a_route_that_matches_everything_is_refused():
    text = "version: 1\nname: p\nroutes: [{name: all, match: {}}]\ndefault: {}\n"
    assert told(text) == [
        "p.yaml:3:29: routes[0].match: matches every request, so no later route is reached; use default"
    ]
