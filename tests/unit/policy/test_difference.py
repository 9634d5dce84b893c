"""The difference in meaning between two sets of files, in words, and what it exposes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.bundle import Bundle, load, read_folder
from gateway.domain.catalog import Target
from gateway.ledger.price_file import METERS
from gateway.policy import price_words
from gateway.policy.difference import changes
from gateway.policy.exposure import exposures, reach
from gateway.policy.language import Match, Route, Shadow, Terms
from tests.unit.policy.worlds import backend, policy, world

CATALOG = """\
version: 1
privacy_classes: [public, internal, confidential]
aliases:
  chat: {targets: [own/m, host/m]}
backends:
  own:
    kind: self_hosted
    wire: openai_http
    base_url: https://own.test/v1
    cleared_for: confidential
    data: {region: eu, retention_days: 0, trains_on_data: false, source: us}
    models: {m: {context_tokens: 8000}}
  host:
    kind: managed
    wire: openai_http
    base_url: https://host.test/v1
    cleared_for: internal
    headers: {x-team: do-not-print-me}
    data: {region: eu, retention_days: 0, trains_on_data: false, source: contract}
    limits: {concurrency_max: 8}
    models: {m: {context_tokens: 8000}}
"""
PRICES = """\
version: 1
prices:
  - {backend: host, model: m, from: 2026-01-01, input_usd_per_mtok: "0.10", output_usd_per_mtok: "0.50", source: list, read_on: 2026-01-01}
"""
LIMITS = """\
version: 1
limits:
  - {name: search, per: team, usd: "500", every: month}
"""
POLICY = """\
version: 1
name: p
behaviour: {attempts_max: 3}
routes:
  - {name: long, match: {prompt_tokens_min: 4000}, prefer: [[own], [host]]}
  - {name: streams, match: {stream: true}, by: fastest}
  - {name: secret, match: {privacy_at_least: confidential}, prefer: [[own]], only: true}
default: {by: cheapest}
"""


GPU_HOURS = """\
gpu_hours:
  - {provider: lambda, gpu: H100, from: 2026-09-01, usd_per_gpu_hour: "2.99", source: list, read_on: 2026-09-01}
  - {provider: lambda, gpu: H100, commitment: reserved_1y, from: 2026-09-01, usd_per_gpu_hour: "2.19", source: list, read_on: 2026-09-01}
  - {provider: lambda, gpu: H100, region: eu, from: 2026-09-01, usd_per_gpu_hour: "3.29", source: list, read_on: 2026-09-01}
currencies:
  - {currency: EUR, per_usd: "0.85", from: 2026-05-08, source: ecb, read_on: 2026-05-08}
"""


def files(catalog=CATALOG, prices=PRICES, limits=LIMITS, routing=POLICY) -> Bundle:
    texts = {
        "catalog.yaml": catalog,
        "prices/all.yaml": prices,
        "limits.yaml": limits,
        "routing/p.yaml": routing,
    }
    return load(texts, secret_present=lambda _: True)


def told(**new: str) -> list[str]:
    return [str(change) for change in changes(files(), files(**new))]


def swapped(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def test_what_reads_otherwise_and_means_the_same_is_no_difference():
    other = swapped(
        POLICY,
        ("version: 1\n", "# a comment\nversion: 1\n"),
        (
            "{name: streams, match: {stream: true}, by: fastest}",
            "by: fastest\n    match:\n      stream: true\n    name: streams",
        ),
        ("behaviour: {attempts_max: 3}\n", "behaviour: {}\n"),  # 3 is the default
    )
    assert told(routing=other) == []


STREAMS = "  - {name: streams, match: {stream: true}, by: fastest}\n"
LONG = "  - {name: long, match: {prompt_tokens_min: 4000}, prefer: [[own], [host]]}\n"


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (
            {"routing": swapped(POLICY, ("by: cheapest", "by: order"))},
            ["~ route default: by: order, was cheapest"],
        ),
        (
            {"routing": swapped(POLICY, (STREAMS, ""))},
            ["- route streams: stream: yes; by: fastest"],
        ),
        (
            {"routing": swapped(POLICY, ("routes:\n", "routes:\n  - {name: tools, match: {needs: [tools]}, price_max_usd: \"0.05\"}\n"))},
            ["+ route tools: needs: tools; price at most: $0.05"],
        ),
        (
            {"routing": swapped(POLICY, ("{by: cheapest}", "{by: cheapest, slo: {ttft_ms: {p95: 800}}, require: {no_training: true}}"))},
            ["~ route default: require no training: yes, was no", "~ route default: slos: ttft p95 at most 800 ms, was none"],
        ),
        (
            {"routing": swapped(POLICY, ("match: {stream: true}", "match: {window: {days: [mon, fri], from: '22:00', to: '06:00'}, tags: {team: [b, a]}, expression: 'stream'}"))},
            [
                "~ route streams: tags: team=a|b, was none",
                "~ route streams: stream no longer set, was yes",
                "~ route streams: window: Mon Fri 22:00-06:00 UTC, was not set",
                "~ route streams: expression: stream, was not set",
            ],
        ),
        (
            {"routing": swapped(POLICY, (STREAMS, ""), (LONG, STREAMS + LONG))},
            ["> route long: now before secret"],
        ),
        (
            {"routing": swapped(POLICY, ("name: streams", "name: flows"))},
            ["~ route flows: was called streams"],
        ),
        (
            {"routing": swapped(POLICY, ("4000}, prefer: [[own], [host]]", "5000}, prefer: [[own, host]]"))},
            [
                "~ route long: prompt tokens at least: 5,000, was 4,000",
                "~ route long: prefer: host or own, was own > host",
            ],
        ),
        (
            {"routing": swapped(POLICY, ("{attempts_max: 3}", "{attempts_max: 2, affinity: {idle_s: 60}}"))},
            ["~ behaviour: attempts at most: 2, was 3", "~ behaviour: affinity idle: 60 s, was not set"],
        ),
        (
            {"catalog": swapped(CATALOG, ("[own/m, host/m]", "[host/m]"))},
            ["~ alias chat: targets: loses own/m"],
        ),
        (
            {"catalog": swapped(CATALOG, ("[own/m, host/m]", "[host/m, own/m]"))},
            ["~ alias chat: targets: order is now host/m, own/m"],
        ),
        (
            {"catalog": swapped(CATALOG, ("cleared_for: internal", "cleared_for: public"), ("concurrency_max: 8", "concurrency_max: 9"), ("source: contract", "source: contract, certifications: [SOC 2]"))},
            [
                "~ backend host: clearance: public, was internal",
                "~ backend host: data certifications: SOC 2, was none",
                "~ backend host: limits concurrency at most: 9, was 8",
            ],
        ),
        (
            {"catalog": swapped(CATALOG, ("{m: {context_tokens: 8000}}\n  host", "{m: {context_tokens: 8000}, m2: {}}\n  host"))},
            ["+ model own/m2: "],
        ),
        (
            {"prices": PRICES + PRICES.splitlines()[2].replace("2026-01-01, input", "2026-12-01, input").replace("0.10", "0.08") + "\n"},
            ["~ price host/m: from 2026-12-01: $0.08 in, $0.08 cached, $0.5 out per million tokens (list), was not set"],
        ),
        (
            {"prices": swapped(PRICES, ("source: list", 'when: [{service_tier: flex, input_usd_per_mtok: "0.05", output_usd_per_mtok: "0.25"}], long_prompts: [{above_prompt_tokens: 2000, input_usd_per_mtok: "0.2", output_usd_per_mtok: "1"}], until: 2026-12-31, source: list'))},
            [
                "~ price host/m: from 2026-01-01, prompts over 2,000 tokens: $0.2 in, $0.2 cached, $1 out per million tokens, was not set",
                "~ price host/m: from 2026-01-01, service tier flex: $0.05 in, $0.05 cached, $0.25 out per million tokens, was not set",
                "~ price host/m: from 2026-01-01, until: 2026-12-31, was not set",
            ],
        ),
        (
            {"prices": swapped(PRICES, ('output_usd_per_mtok: "0.50"', 'output_usd_per_mtok: "0.50", cache_write_5m_usd_per_mtok: "0.125", usd_per_1k_searches: "10.00"'))},
            ["~ price host/m: from 2026-01-01: $0.1 in, $0.1 cached, $0.125 cached for 5 minutes, $0.5 out per million tokens; $10 a thousand searches (list), was $0.1 in, $0.1 cached, $0.5 out per million tokens (list)"],
        ),
        (
            {"prices": PRICES + GPU_HOURS},
            [
                "+ GPU H100 at lambda: on demand from 2026-09-01: $2.99 an hour; reserved 1y from 2026-09-01: $2.19 an hour",
                "+ GPU H100 at lambda in eu: on demand from 2026-09-01: $3.29 an hour",
                "+ currency EUR: from 2026-05-08: 0.85 a dollar",
            ],
        ),
        (
            {"limits": LIMITS.replace("500", "750").replace("team", "app")},
            ["~ limit search: per: app, was team", "~ limit search: amount: $750, was $500"],
        ),
    ],
)  # fmt: skip
def test_each_difference_is_told_in_words(new, expected):
    assert [line.rstrip() for line in told(**new)] == [
        line.rstrip().rstrip(":") for line in expected
    ]


def test_a_route_that_behaves_otherwise_than_the_file_says_so_and_the_others_do_not():
    own = swapped(
        POLICY, ("match: {stream: true}", "match: {stream: true}, behaviour: {attempts_max: 1}")
    )
    assert told(routing=own) == ["~ route streams: attempts at most: 1, was not set"]


def test_the_fewest_moves_are_told():
    routes = [Route(name=name, match=Match(stream=True)) for name in "abcde"]
    moved = [routes[4], *routes[:4]]
    old, new = files(), files()
    old, new = (
        replace(bundle, policy=policy(*order)) for bundle, order in ((old, routes), (new, moved))
    )
    assert [str(change) for change in changes(old, new)] == ["> route e: now before a"]


def test_a_secret_is_never_printed():
    other = swapped(CATALOG, ("do-not-print-me", "nor-me"))
    assert told(catalog=other) == []
    gone = swapped(CATALOG, ("    headers: {x-team: do-not-print-me}\n", ""))
    lines = told(catalog=gone)
    assert lines == ["~ backend host: headers: none, was x-team"]


SHIPPED = Path(__file__).parents[3] / "policies"


def shipped(name: str) -> Bundle:
    return load(read_folder(SHIPPED, name), secret_present=lambda _: True)


def test_every_shipped_policy_against_every_other_has_words():
    bundles = {
        path.stem: shipped(path.stem)
        for path in SHIPPED.glob("routing/*.yaml")
        if not path.stem.endswith(".tests")
    }
    for one in bundles.values():
        assert changes(one, one) == []
        for other in bundles.values():
            lines = [str(change) for change in changes(one, other)]
            assert bool(lines) == (one is not other)
            assert not any("None" in line or "object at" in line for line in lines)


# --- exposure ---------------------------------------------------------------------------------

OWN, HOST = backend("own"), backend("host", clearance=1)
HOME = policy(prefer=(frozenset({"own"}),), only=True)
OPEN = policy()


def exposed(old, new) -> set[tuple[str, str, str | None]]:
    return {
        (alias, name, target and target.backend) for alias, name, target, _ in exposures(old, new)
    }


def test_what_may_now_be_sent_somewhere_is_told_by_alias_and_class():
    catalog = world(OWN, HOST)
    assert exposed((HOME, catalog), (OPEN, catalog)) == {("chat", "internal", "host")}
    assert exposed((OPEN, catalog), (HOME, catalog)) == set()
    assert exposed((OPEN, catalog), (OPEN, catalog)) == set()


@pytest.mark.parametrize(
    ("catalog", "expected"),
    [
        (world(OWN, replace(HOST, clearance=2)), {("chat", "confidential", "host")}),
        (world(OWN, HOST, backend("new")), {("chat", "internal", "new"), ("chat", "confidential", "new")}),
        (world(OWN, replace(HOST, models=dict.fromkeys("mn", HOST.models["m"]))), set()),
        (world(OWN, replace(HOST, configured=False)), set()),
    ],
)  # fmt: skip
def test_a_catalog_can_expose_too(catalog, expected):
    assert exposed((OPEN, world(OWN, HOST)), (OPEN, catalog)) == expected


def test_terms_no_longer_demanded_expose():
    strict = policy(require=Terms(no_training=True))
    catalog = world(OWN, HOST)
    assert reach(strict, catalog)["chat", "internal"] == frozenset()
    assert ("chat", "internal", "host") in exposed((strict, catalog), (OPEN, catalog))


def test_a_lowered_floor_exposes_what_goes_further_for_it():
    high, low = world(OWN, HOST, privacy_floor=2), world(OWN, HOST, privacy_floor=1)
    assert exposed((OPEN, high), (OPEN, low)) == {
        ("chat", "internal", None),
        ("chat", "internal", "host"),
    }
    assert exposed((OPEN, low), (OPEN, high)) == set()


def test_a_detector_that_calls_for_less_exposes():
    old = replace(world(OWN), detectors={"iban": 2, "email": 1})
    new = replace(world(OWN), detectors={"iban": 1})
    assert exposed((OPEN, old), (OPEN, new)) == {
        ("", "confidential", None),
        ("", "internal", None),
    }
    assert exposed((OPEN, new), (OPEN, old)) == set()


def test_classes_that_go_or_change_places_expose():
    old = world(OWN)
    gone = replace(world(replace(OWN, clearance=1)), privacy_classes=("public", "confidential"))
    assert ("", "internal", None) in exposed((OPEN, old), (OPEN, gone))
    turned = replace(old, privacy_classes=("public", "confidential", "internal"))
    assert ("", "public, confidential, internal", None) in exposed((OPEN, old), (OPEN, turned))


def test_a_new_alias_exposes_only_where_no_other_alias_took_the_class():
    old = world(OWN)
    chat = old.aliases["chat"]
    same = replace(old, aliases={"chat": chat, "more": replace(chat, name="more")})
    assert exposed((OPEN, old), (OPEN, same)) == set()
    wide = world(OWN, HOST)
    more = replace(chat, name="more", targets=(Target("host", "m"),))
    assert exposed((OPEN, old), (OPEN, replace(wide, aliases={"chat": chat, "more": more}))) == {
        ("more", "internal", "host")
    }


def test_a_copy_for_comparison_exposes_as_an_answer_does():
    catalog = world(OWN, HOST)
    default = HOME.routes[-1]
    copied = replace(HOME, routes=(replace(default, shadow=Shadow(backend="host", share=0.1)),))
    assert exposed((HOME, catalog), (copied, catalog)) == {("chat", "internal", "host")}


def test_a_route_that_is_never_reached_opens_nothing():
    first = Route(
        name="all", match=Match(privacy_at_least=1), only=True, prefer=(frozenset({"own"}),)
    )
    late = Route(name="late", match=Match(aliases=frozenset({"chat"})))
    catalog = world(OWN, HOST)
    assert exposed((HOME, catalog), (policy(first, late), catalog)) == set()
    early = policy(late, first)
    assert exposed((HOME, catalog), (early, catalog)) == {("chat", "internal", "host")}


SCALE = (
    'long_prompts_mode: marginal, long_prompts: [{above_prompt_tokens: 2000, input_usd_per_mtok: "%s",'
    ' output_usd_per_mtok: "1"}]'
)
NIGHT = (
    '{hours_utc: ["16:30-00:30"], input_usd_per_mtok: "0.05", output_usd_per_mtok: "0.25", '
    + SCALE % "0.06"
    + "}"
)


def test_a_part_of_a_price_that_changes_goes_or_comes_is_told_by_itself():
    def with_(more: str) -> Bundle:
        return files(prices=swapped(PRICES, ("source: list", f"{more}, source: list")))

    def differences(old: str, new: str) -> list[str]:
        return [str(change) for change in changes(with_(old), with_(new))]

    scale = "~ price host/m: from 2026-01-01, prompts over 2,000 tokens"
    dear = "$1 out per million tokens, for the tokens beyond"
    assert differences(SCALE % "0.2", SCALE % "0.3") == [
        f"{scale}: $0.3 in, $0.3 cached, {dear}, was $0.2 in, $0.2 cached, {dear}"
    ]
    hours = "~ price host/m: from 2026-01-01, 16:30-00:30 UTC"
    assert differences(f"when: [{NIGHT}]", "note: x") == [
        f"{hours} no longer set, was $0.05 in, $0.05 cached, $0.25 out per million tokens",
        f"{hours}, prompts over 2,000 tokens no longer set, was $0.06 in, $0.06 cached, {dear}",
    ]
    usual = "$0.1 in, $0.1 cached, $0.5 out per million tokens"
    assert differences("note: x", "basis: declared") == [
        f"~ price host/m: from 2026-01-01: {usual} (declared), was {usual} (list)"
    ]


def test_every_price_that_a_row_can_state_has_words():
    assert set(price_words.STATED) == set(METERS)
