"""The policy language: what it means, and its mistakes in exact words and places."""

from __future__ import annotations

import json
from copy import deepcopy

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.request import Capability, Endpoint
from gateway.policy.catalog import load_catalog
from gateway.policy.expressions import compile_expression
from gateway.policy.language import (
    Affinity,
    Behaviour,
    By,
    Canary,
    Hedge,
    Match,
    Metric,
    OwnCost,
    Priority,
    RetryBudget,
    Route,
    Shadow,
    Slo,
    Spill,
    Terms,
    Timeouts,
    Window,
    load_policy,
    schema,
)
from gateway.policy.routing_schema import PolicyFile
from gateway.policy.source import ConfigErrors, read
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


FULL = """\
version: 1
name: full
behaviour:
  affinity: {}
  retries: {share: 0.2, per_s: 5}
  timeouts: {first_token_ms: 8000, first_token_ms_per_1k_prompt_tokens: 0}
  hedge: {after_ms: 1500, share_max: 0.1}
  spill: {queue_max: 4, kv_used_max: 0.9}
routes:
  - name: nights
    match:
      aliases: chat
      keys: [0h3kd2rq9w7z]
      tags: {team: [search, ads], app: crawler}
      window: {zone: Europe/Berlin, days: [fri-mon, wed], from: "22:00", to: "06:00"}
      spent: [monthly]
      expression: alias.startsWith("ch") && privacy >= internal
    prefer: [[home], [api]]
    by: mix
    mix: {cost_weight: 0.7}
    explore: 0.02
    own_cost: marginal
    only: true
    require:
      regions: [eu]
      retention_days_max: 0
      no_training: true
      certifications: [SOC 2]
      subprocessors_allowed: []
      licences: [apache-2.0]
    slo: {end_to_end_ms: {p99: 9000}, ttft_ms: {p95: 800, p50: 400.5}}
    priority: batch
    canary: {backends: [api], share: 0.05, cost_ratio_max: 2}
    shadow: {backend: home, share: 1}
    behaviour:
      attempts_max: 2
      affinity: {cost_ratio_max: 2}
      timeouts: {total_ms: 60000, first_token_ms: null}
      hedge: null
default: {}
"""
LIMITS = frozenset({"monthly", "daily"})
GIVEN = load_catalog(CATALOG, source="c.yaml", secret_present=lambda _: True)


def load(text: str):
    return load_policy(text, source="p.yaml", catalog=GIVEN, limits=LIMITS)


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


def test_all_that_a_route_can_say():
    policy = load(FULL)
    assert policy.behaviour == Behaviour(
        affinity=Affinity(idle_s=600),
        retries=RetryBudget(share=0.2, per_s=5),
        timeouts=Timeouts(first_token_ms=8000, first_token_ms_per_1k_prompt_tokens=0),
        hedge=Hedge(after_ms=1500, share_max=0.1),
        spill=Spill(queue_max=4, kv_used_max=0.9),
    )
    assert policy.routes[1] == Route(name="default", behaviour=policy.behaviour)
    assert policy.routes[0] == Route(
        name="nights",
        match=Match(
            aliases=frozenset({"chat"}),
            keys=frozenset({"0h3kd2rq9w7z"}),
            tags={"team": frozenset({"search", "ads"}), "app": frozenset({"crawler"})},
            window=Window(
                zone="Europe/Berlin",
                days=frozenset({4, 5, 6, 0, 2}),
                start_minute=22 * 60,
                end_minute=6 * 60,
            ),
            spent=frozenset({"monthly"}),
            expression=compile_expression(
                'alias.startsWith("ch") && privacy >= internal', classes=GIVEN.privacy_classes
            ),
        ),
        prefer=(frozenset({"home"}), frozenset({"api"})),
        by=By.MIX,
        cost_weight=0.7,
        hysteresis=0.05,
        explore=0.02,
        own_cost=OwnCost.MARGINAL,
        only=True,
        require=Terms(
            regions=frozenset({"eu"}),
            retention_days_max=0,
            no_training=True,
            certifications=frozenset({"SOC 2"}),
            subprocessors_allowed=frozenset(),
            licences=frozenset({"apache-2.0"}),
        ),
        slos=(
            Slo(metric=Metric.TTFT, percentile=50, ms_max=400.5),
            Slo(metric=Metric.TTFT, percentile=95, ms_max=800),
            Slo(metric=Metric.END_TO_END, percentile=99, ms_max=9000),
        ),
        priority=Priority.BATCH,
        canary=Canary(backends=frozenset({"api"}), share=0.05, cost_ratio_max=2),
        shadow=Shadow(backend="home", share=1),
        # The file's, key by key, inside of its parts too; null takes one away.
        behaviour=Behaviour(
            attempts_max=2,
            affinity=Affinity(idle_s=600, cost_ratio_max=2),
            retries=RetryBudget(share=0.2, per_s=5),
            timeouts=Timeouts(
                first_token_ms=None, first_token_ms_per_1k_prompt_tokens=0, total_ms=60000
            ),
            hedge=None,
            spill=Spill(queue_max=4, kv_used_max=0.9),
        ),
    )


@pytest.mark.parametrize(
    ("window", "days", "start", "end"),
    [
        ("{days: sat}", {5}, 0, 1440),
        ('{days: [mon-fri], from: "08:00"}', {0, 1, 2, 3, 4}, 480, 1440),
        ('{to: "00:30"}', set(range(7)), 0, 30),
        ('{days: [sun-mon], from: "22:00", to: "00:00"}', {6, 0}, 1320, 0),
        ("{days: [tue-tue, thu]}", {1, 3}, 0, 1440),
    ],
)
def test_windows(window, days, start, end):
    match = load(
        f"version: 1\nname: p\nroutes: [{{name: r, match: {{window: {window}}}}}]\ndefault: {{}}\n"
    )
    assert match.routes[0].match.window == Window(
        zone="UTC", days=frozenset(days), start_minute=start, end_minute=end
    )


def test_one_class_alone_can_be_matched():
    text = GOOD.replace("privacy_at_most: restricted", "privacy_at_most: internal")
    match = load(text).routes[0].match
    assert (match.privacy_at_least, match.privacy_at_most) == (1, 1)


def test_the_digest_tells_an_override_from_none():
    text = "version: 1\nname: p\nbehaviour: {attempts_max: 4}\ndefault: {%s}\n"
    same = load(text % ""), load(text % "behaviour: {attempts_max: 4}")
    other = load(text % "behaviour: {attempts_max: 3}")  # the default of the file's key
    assert same[0].digest == same[1].digest != other.digest


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


REPLACED_IN_FULL = [
    ("aliases: chat", "aliases: chta", "12:16: routes[0].match.aliases: no alias 'chta'; did you mean 'chat'?"),
    ("app: crawler", "app: 5", "14:40: routes[0].match.tags.app: expected a list, not the number 5"),
    ("app: crawler", "app: []", "14:40: routes[0].match.tags.app: must not be empty"),
    ("Europe/Berlin", "Europe/Bern", "15:22: routes[0].match.window.zone: no time zone 'Europe/Bern'; did you mean 'Europe/Berlin'?"),
    ("Europe/Berlin", "../etc/passwd", "15:22: routes[0].match.window.zone: no time zone '../etc/passwd'"),
    ("fri-mon", "fry-mon", "15:44: routes[0].match.window.days[0]: 'fry-mon' is no day; write mon, tue, wed, thu, fri, sat, sun, or a range like mon-fri"),
    ('"22:00"', "22:00", "15:65: routes[0].match.window.from: unquoted 22:00 is not the same number to all readers; write it plainly, or quote it if it is text"),
    ('"22:00"', '"24:00"', "15:65: routes[0].match.window.from: '24:00' is no time of day; write it in quotes, like \"08:00\""),
    ('"06:00"', '"6:00"', "15:78: routes[0].match.window.to: '6:00' is no time of day; write it in quotes, like \"08:00\""),
    ("from: \"22:00\"", "from_: \"22:00\"", "15:59: routes[0].match.window.from_: unknown key 'from_'; did you mean 'from'?"),
    ('[fri-mon, wed], from: "22:00", to: "06:00"', 'mon-sun, from: "06:00", to: "06:00"', "15:7: routes[0].match.window: is always open; leave it out"),
    ("spent: [monthly]", "spent: [monthyl]", "16:15: routes[0].match.spent[0]: no limit 'monthyl'; did you mean 'monthly'?"),
    ('startsWith("ch")', 'startsWit("ch")', "17:34: routes[0].match.expression: unknown name 'startsWit'"),
    ("privacy >= internal", "privacy >= interna", "17:56: routes[0].match.expression: unknown name 'interna'; did you mean 'internal'?"),
    ('alias.startsWith("ch") &&', "'!stream && alais != \"\" &&", "17:31: routes[0].match.expression: unknown name 'alais'; did you mean 'alias'?"),
    ("expression: alias", "expression: |\n        stream &&\n        alais", "19:9: routes[0].match.expression: unknown name 'alais'; did you mean 'alias'?"),
    ("expression: alias", "expression: >\n        stream &&\n        alais", "17:19: routes[0].match.expression: unknown name 'alais' (line 1, column 11 of the expression); did you mean 'alias'?"),
    ('expression: alias.startsWith("ch")', 'expression: alias == "caht"', "17:28: routes[0].match.expression: no alias 'caht'; did you mean 'chat'?"),
    ('expression: alias.startsWith("ch") && privacy >= internal', "expression: ''", "17:19: routes[0].match.expression: must not be empty"),
    ("by: mix", "by: cheapest", "20:5: routes[0].mix: has no meaning by cheapest; say by: mix"),
    ("by: mix\n    mix: {cost_weight: 0.7}", "by: order", "20:5: routes[0].explore: has no meaning by order; nothing measured changes it"),
    ("cost_weight: 0.7", "cost_weight: 1.7", "20:24: routes[0].mix.cost_weight: must be at most 1.0"),
    ("own_cost: marginal", "own_cost: marginl", "22:15: routes[0].own_cost: unknown value 'marginl'; did you mean 'marginal'?"),
    ("regions: [eu]", "regions: []", "25:16: routes[0].require.regions: must not be empty"),
    ("licences: [apache-2.0]", "license: [apache-2.0]", "30:7: routes[0].require.license: unknown key 'license'; did you mean 'licences'?"),
    ("p50: 400.5", "p50: 1000", "31:54: routes[0].slo.ttft_ms.p95: is below p50, which then says nothing"),
    ("p99: 9000", "p98: 9000", "31:27: routes[0].slo.end_to_end_ms.p98: unknown key 'p98'; did you mean 'p99'?"),
    ("priority: batch", "priority: bulk", "32:15: routes[0].priority: unknown value 'bulk'; one of: critical, interactive, batch"),
    ("canary: {backends: [api]", "canary: {backends: [apu]", "33:25: routes[0].canary.backends[0]: no backend 'apu'; did you mean 'api'?"),
    ("canary: {backends: [api]", "canary: {backends: [sdk]", "33:25: routes[0].canary.backends[0]: no alias of this route has a target at 'sdk'; one of: api, home"),
    ("prefer: [[home], [api]]", "prefer: [[home]]", "33:25: routes[0].canary.backends[0]: 'api' is in no tier, and only those are used"),
    ("share: 0.05,", "share: 1,", "33:38: routes[0].canary.share: must be less than 1.0"),
    ("shadow: {backend: home", "shadow: {backend: hoem", "34:23: routes[0].shadow.backend: no backend 'hoem'; did you mean 'home'?"),
    ("shadow: {backend: home", "shadow: {backend: sdk", "34:23: routes[0].shadow.backend: no alias of this route has a target at 'sdk'; one of: api, home"),
    ("total_ms: 60000, first_token_ms: null", "total_ms: 6000", "38:7: routes[0].behaviour.timeouts.first_token_ms: is over total_ms"),
    ("hedge: null", "backends_max: 1", "35:5: routes[0].behaviour.hedge: needs a second backend, and backends_max is 1"),
    ("spill: {queue_max: 4, kv_used_max: 0.9}", "spill: {}", "8:10: behaviour.spill: has no threshold"),
    ("after_ms: 1500, ", "", "7:3: behaviour.hedge.after_ms: missing key 'after_ms'"),
    ("behaviour:\n  affinity", "behaviour:\n  attempts_max: 1\n  affinity", "8:10: behaviour.hedge: needs a second backend, and attempts_max is 1"),
    ("default: {}", "default: {mix: {}}", "40:11: default.mix: has no meaning by order; say by: mix"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), REPLACED_IN_FULL)
def test_a_mistake_in_the_rest_is_told_likewise(old, new, line):
    assert FULL.count(old) == 1, "the test replaces exactly one place"
    if "'!stream" in new:
        new, old = new + " true'", old + " privacy >= internal"
    assert f"p.yaml:{line}" in told(FULL.replace(old, new))


def test_what_follows_from_a_mistake_is_not_told():
    text = FULL.replace("by: mix", "by: mxi").replace("[monthly]", "[monthyl]")
    assert told(text) == [
        "p.yaml:16:15: routes[0].match.spent[0]: no limit 'monthyl'; did you mean 'monthly'?",
        "p.yaml:19:9: routes[0].by: unknown value 'mxi'; did you mean 'mix'?",
    ]


def test_without_limits_none_is_known():
    with pytest.raises(ConfigErrors, match="no limit 'monthly'"):
        load_policy(FULL, source="p.yaml", catalog=GIVEN)


@pytest.mark.parametrize("match", ["{}", "{tags: {}}", "{needs: []}", "{stream: null, keys: null}"])
def test_a_match_that_narrows_nothing_is_refused(match):
    text = f"version: 1\nname: p\nroutes: [{{name: all, match: {match}}}]\ndefault: {{}}\n"
    assert told(text) == [
        "p.yaml:3:29: routes[0].match: matches every request, so no later route is reached; use default"
    ]


@pytest.mark.parametrize(("old", "new", "line"), REPLACED)
def test_a_mistake_is_told_with_its_place_and_the_nearest_name(old, new, line):
    assert GOOD.count(old) == 1, "the test replaces exactly one place"
    assert f"p.yaml:{line}" in told(GOOD.replace(old, new))


# --- the schema -------------------------------------------------------------------------------


def test_every_key_says_what_it_does_and_what_leaving_it_out_means():
    for title, part in [*schema()["$defs"].items(), ("file", schema())]:
        for key, entry in part.get("properties", {}).items():
            told = entry.get("description", "")
            assert told, f"{title}.{key}"
            default_told = entry.get("default") is not None or "Left out: " in told
            assert key in part.get("required", []) or default_told, f"{title}.{key}"


@pytest.mark.parametrize("text", [GOOD, FULL])
def test_the_schema_takes_what_we_take_and_refuses_a_typing_error(text):
    document = json.loads(json.dumps(yaml.safe_load(text)))
    jsonschema.Draft202012Validator(schema()).validate(document)
    document["routes"][0]["onyl"] = True
    with pytest.raises(jsonschema.ValidationError, match="onyl"):
        jsonschema.Draft202012Validator(schema()).validate(document)


# --- properties -------------------------------------------------------------------------------

shares = st.floats(0.01, 0.99).map(lambda share: round(share, 3))
ms = st.integers(1, 3_000_000)
names = st.sampled_from
# What JSON and YAML write alike: no control characters, no ends of lines.
words = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Cn", "Zl", "Zp"]), min_size=1, max_size=9
)


def some(**keys: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=keys)


def lists(of: st.SearchStrategy, least: int = 1) -> st.SearchStrategy:
    return st.lists(of, min_size=least, max_size=3, unique=True)


behaviours = some(
    attempts_max=st.integers(2, 10),
    backends_max=st.integers(2, 10),
    affinity=st.none() | some(idle_s=st.integers(1, 86_400), cost_ratio_max=st.floats(1, 9)),
    retries=some(share=shares, per_s=st.integers(0, 9)),
    timeouts=some(connect_ms=ms, first_token_ms=st.none() | ms, total_ms=st.just(3_600_000)),
    hedge=st.none() | st.fixed_dictionaries({"after_ms": ms}, optional={"share_max": shares}),
    spill=st.none() | st.fixed_dictionaries({"queue_max": st.integers(0, 99)}),
)
matches = some(
    aliases=lists(names(["chat", "inner"])) | st.just("chat"),
    keys=lists(words),
    tags=st.dictionaries(words, lists(words)),
    endpoint=names([e.value for e in Endpoint]),
    stream=st.booleans(),
    needs=lists(names([c.value for c in Capability]), 0),
    prompt_tokens_min=st.integers(0, 1000),
    prompt_tokens_max=st.integers(1000, 9000),
    privacy_at_least=names(["public", "internal"]),
    privacy_at_most=names(["internal", "restricted"]),
    window=st.fixed_dictionaries(
        {"days": names(["mon", "fri-mon"])},
        optional={"zone": names(["UTC", "Asia/Tokyo"]), "to": st.just("24:00")},
    ),
    spent=lists(names(sorted(LIMITS))),
    expression=names(['alias == "chat"', "privacy < restricted &&\n  !stream"]),
)
choices = some(
    prefer=lists(names(["home", "api", "managed"])).map(lambda found: [[name] for name in found]),
    by=names(["cheapest", "fastest"]),
    own_cost=names(["allocated", "marginal"]),
    require=some(
        regions=lists(words),
        retention_days_max=st.integers(0, 99),
        no_training=st.booleans(),
        subprocessors_allowed=lists(words, 0),
    ),
    price_max_usd=names(["0.05", "12"]),
    slo=some(ttft_ms=some(p50=ms, p99=st.just(3_000_000)), tpot_ms=some(p90=ms)),
    priority=names([p.value for p in Priority]),
    canary=st.none() | st.fixed_dictionaries({"backends": st.just(["home"]), "share": shares}),
    behaviour=behaviours,
)
routes = st.builds(
    lambda choice, match: {**choice, "match": {"stream": True, **match}}, choices, matches
)
files = st.builds(
    lambda behaviour, routes, default: {
        "version": 1,
        "name": "made",
        "behaviour": behaviour,
        "routes": [{"name": f"r{n}", **route} for n, route in enumerate(routes)],
        "default": default,
    },
    behaviours,
    st.lists(routes, max_size=3),
    choices,
)


def upside_down(value):
    """The same with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: upside_down(inner) for key, inner in reversed(value.items())}
    return [upside_down(inner) for inner in value] if isinstance(value, list) else value


@given(files)
def test_a_file_means_the_same_however_it_is_written(file):
    text = json.dumps(file, ensure_ascii=False)
    policy = load(text)
    assert load(json.dumps(upside_down(file), indent=1, ensure_ascii=False)) == policy
    again = read(PolicyFile, text, "p.yaml")[0].model_dump_json(by_alias=True, exclude_unset=True)
    assert load(again) == policy
    jsonschema.Draft202012Validator(schema()).validate(file)


def tried(text: str) -> None:
    places = [(1, 1)]
    try:
        load(text)
    except ConfigErrors as errors:
        places = [(problem.line, problem.column) for problem in errors.problems]
    assert min(min(place) for place in places) >= 1


PIECES = st.sampled_from(
    ["{", "}", "[", "]", ":", ": ", ", ", "- ", "\n", "\n  ", '"', "'", "|\n", "&a ", "*a", "!t ", "#",
     "null", "true", "no", "1", "-1", "0.5", "1e9", "010", "12:30", "\t", "\0", "\ud800", "é", "\u2028",
     "match", "window", "expression", "behaviour", "canary", "chat", "stream", "mon-fri", '"08:00"']
)  # fmt: skip


@given(
    text=st.sampled_from([GOOD, FULL]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.lists(PIECES)), max_size=4),
)
def test_a_damaged_file_is_loaded_or_refused(text, cuts):
    for where, gone, pieces in cuts:
        at = int(where * len(text))
        text = text[:at] + "".join(pieces) + text[at + gone :]
    tried(text)


@given(st.text())
def test_any_text_is_loaded_or_refused(text):
    tried(text)


VALUES = st.sampled_from(
    [None, True, 0, -1, 1, 2.5, 10**12, "", "x", "chat", "08:00", "stream", [], ["x"], [[]], {}, {"x": 1}]
)  # fmt: skip


@given(st.sampled_from([GOOD, FULL]), st.lists(st.tuples(st.floats(0, 1), VALUES), max_size=3))
def test_a_file_with_other_values_in_it_is_loaded_or_refused(text, changes):
    document = yaml.safe_load(text)
    for where, value in changes:
        places = list(everywhere(document))
        holder, key = places[int(where * (len(places) - 1))]
        holder[key] = deepcopy(value)
    tried(json.dumps(document))


def everywhere(value):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from everywhere(inner)
