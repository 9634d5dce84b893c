"""Tests of policies: what passes, what fails and how it is told, what is refused at load."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest

from gateway.domain.catalog import Target
from gateway.domain.money import Rates
from gateway.ledger.price_file import instant
from gateway.policy.cases import load_cases, load_given, run
from gateway.policy.catalog import load_catalog
from gateway.policy.language import load_policy
from gateway.policy.source import ConfigErrors

CATALOG = load_catalog(
    """
version: 1
privacy_classes: [public, internal, secret]
aliases:
  chat: {targets: [home/m, host/m, api/m]}
  guarded: {privacy_floor: internal, targets: [home/m, host/m]}
backends:
  home: {kind: self_hosted, wire: openai_http, base_url: "http://localhost/v1", cleared_for: secret, models: {m: {}}}
  host: {kind: managed, wire: openai_http, base_url: "https://h/v1", secret: "env:H", cleared_for: internal, models: {m: {}}}
  api: {kind: closed_api, wire: openai_http, base_url: "https://a/v1", secret: "env:A", models: {m: {capabilities: [tools]}}}
""",
    source="catalog.yaml",
    secret_present=lambda _: True,
)
POLICY = load_policy(
    """
version: 1
name: p
behaviour: {attempts_max: 3, backends_max: 3, affinity: {}}
routes: [{name: night, match: {window: {from: "20:00", to: "06:00"}}, prefer: [[home]], only: true}]
default: {by: cheapest}
""",
    source="p.yaml",
    catalog=CATALOG,
)
NOVEMBER, DECEMBER = dt.date(2026, 11, 1), dt.date(2026, 12, 1)


def rates(at_us: int) -> dict[Target, Rates]:
    """The API is cheapest, until December."""
    api = "9" if at_us >= instant(DECEMBER) else "1"
    prices = {"home": "3", "host": "2", "api": api}
    return {
        Target(name, "m"): Rates(id=name, input=Decimal(price), output=Decimal(0))
        for name, price in prices.items()
    }


def load(*tests: str, at: str = "2026-11-23T10:00Z"):
    listed = "\n".join(f"  - {test}" for test in tests)
    text = f"version: 1\nat: {at}\ntests:\n{listed}\n"
    limits = frozenset({"day"})
    return load_cases(text, source="t.yaml", catalog=CATALOG, policy=POLICY, limits=limits)


def told(*tests: str, **file: str) -> list[str]:
    """What comes of the tests, a line for each expectation that does not hold."""
    verdicts = run(load(*tests, **file), POLICY, CATALOG, rates)
    return [str(problem) for verdict in verdicts for problem in verdict.problems]


def one(given: str, expect: str) -> str:
    return f"{{name: t, given: {{alias: chat, {given}}}, expect: {{{expect}}}}}"


HOLDS = [
    ("", "route: default, order: [api, host, home], reason: cheapest, class: public"),
    ("", "first: closed_api, order: [closed_api, ...]"),
    ("", "order: [api/m, ...], never: []"),
    ("at: 2026-12-01T12:00Z", "order: [host, home, api]"),
    ("at: 2026-12-01T00:30+12:00", "first: api"),
    ("at: 2026-11-23T22:00Z", "route: night, order: [home], never: [managed, api/m]"),
    ("privacy: internal", "order: [host, home], never: [api], excluded: {api: privacy}"),
    ("privacy: secret", "order: [home], class: secret"),
    ("needs: [tools]", "order: [api], excluded: {home: capability, host/m: capability}"),
    ("pinned: home/m", "first: home, reason: affinity"),
    ("configured: [home]", "order: [home], excluded: {api: not_configured, host: not_configured}"),
    ("configured: []", "refused: not_configured"),
    ("endpoint: embeddings", "refused: endpoint, excluded: {self_hosted: endpoint}"),
    ("backends: {api: {circuit: open}}", "first: host, excluded: {api: circuit_open}"),
    ("backends: {api: {in_flight: 256}, host: {healthy: false}}", "order: [home]"),
    ("needs: [images]", "refused: no_eligible_backend"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expect"), HOLDS)
def test_an_expectation_that_holds_is_quiet(given, expect):
    assert told(one(given, expect)) == []


FAILS = [
    ("", "route: night", "4:55: tests[0].expect.route: test 't' expected night, got default"),
    ("", "class: secret", "expect.class: test 't' expected secret, got public"),
    ("", "first: home", "expect.first: test 't' expected home, got api/m"),
    ("", "order: [api, host]", "expect.order: test 't' expected api, host, got api/m, host/m, home/m"),
    ("", "order: [host, ...]", "expected host, ..., got api/m, host/m, home/m"),
    ("", "never: [managed]", "expected managed never, got host/m may serve it"),
    ("", "excluded: {api: privacy}", "expected api: privacy, got api/m: eligible"),
    ("privacy: internal", "excluded: {api: capability}", "expected api: capability, got api/m: privacy"),
    ("", "refused: privacy", "expected refused, privacy, got api/m, host/m, home/m"),
    ("needs: [images]", "refused: privacy", "expected refused, privacy, got nobody may serve it (capability 3×)"),
    ("needs: [images]", "first: home", "expected home, got nobody may serve it (capability 3×)"),
    ("", "reason: affinity", "expected affinity, got cheapest"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expect", "line"), FAILS)
def test_an_expectation_that_fails_says_where_what_and_what_instead(given, expect, line):
    (problem,) = told(one(given, expect))
    assert problem.startswith("t.yaml:4:")
    assert line in problem


def test_every_expectation_is_looked_at():
    assert len(told(one("", "first: home, reason: affinity, never: [api]"))) == 3


def test_a_test_says_the_same_in_a_year():
    """Prices are those of the file's date, whenever it runs."""
    assert told(one("", "first: api")) == []
    assert told(one("", "first: host"), at="2026-12-24T10:00Z") == []


def test_a_test_needs_no_secret():
    bare = load_catalog(
        """
version: 1
privacy_classes: [public]
aliases: {chat: {targets: [host/m, idle/m]}}
backends:
  host: {kind: managed, wire: openai_http, base_url: "https://h/v1", secret: "env:H", models: {m: {}}}
  idle: {kind: managed, wire: openai_http, base_url: "https://o/v1", enabled: false, models: {m: {}}}
""",
        source="c",
        secret_present=lambda _: True,
    )
    policy = load_policy("version: 1\nname: p\ndefault: {}\n", source="p", catalog=bare)
    text = "version: 1\nat: 2026-11-23T10:00Z\ntests:\n  - {name: t, given: {alias: chat}, expect: {order: [host], excluded: {idle: not_configured}}}\n"
    suite = load_cases(text, source="t", catalog=bare, policy=policy)
    assert [v.problems for v in run(suite, policy, bare, lambda _: {})] == [()]


REFUSED = [
    (one("", ""), "4:47: tests[0].expect: expects nothing; say what must come of it, like first: vllm"),
    (one("", "frist: home"), "tests[0].expect.frist: unknown key 'frist'; did you mean 'first'?"),
    (one("", "first: hme"), "tests[0].expect.first: no backend, kind or backend/model 'hme'; did you mean 'home'?"),
    (one("", "order: [home/x]"), "tests[0].expect.order[0]: no backend, kind or backend/model 'home/x'; did you mean 'home/m'?"),
    (one("", "never: [managd]"), "tests[0].expect.never[0]: no backend, kind or backend/model 'managd'; did you mean 'managed'?"),
    (one("", "excluded: {home: privcy}"), "tests[0].expect.excluded.home: unknown value 'privcy'; did you mean 'privacy'?"),
    (one("", "route: nihgt"), "tests[0].expect.route: no route 'nihgt' in p; did you mean 'night'?"),
    (one("", "refused: privcy"), "tests[0].expect.refused: no rule 'privcy'; did you mean 'privacy'?"),
    (one("", "refused: privacy, first: home"), "tests[0].expect.refused: contradicts order, first and reason"),
    (one("", "class: secrt"), "tests[0].expect.class: unknown privacy class 'secrt'; did you mean 'secret'?"),
    (one("privacy: secrt", "first: home"), "tests[0].given.privacy: unknown privacy class 'secrt'; did you mean 'secret'?"),
    (one("pinned: home/x", "first: home"), "tests[0].given.pinned: no target 'home/x'; did you mean 'home/m'?"),
    (one("spent: [dya]", "first: home"), "tests[0].given.spent: no limit 'dya'; did you mean 'day'?"),
    (one("configured: [hme]", "first: home"), "tests[0].given.configured: no backend 'hme'; did you mean 'home'?"),
    (one("backends: {hme: {}}", "first: home"), "tests[0].given.backends.hme: no backend 'hme'; did you mean 'home'?"),
    (one("backends: {home: {helthy: false}}", "first: home"), "tests[0].given.backends.home.helthy: unknown key 'helthy'; did you mean 'healthy'?"),
    (one("at: 2026-11-23", "first: home"), "tests[0].given.at: '2026-11-23' is not a moment in a zone; write it like 2026-11-23T10:00Z"),
    (one("bucket: 10000", "first: home"), "tests[0].given.bucket: must be at most 9999"),
    ("{name: t, given: {alias: cat}, expect: {first: home}}", "tests[0].given.alias: no alias 'cat'; did you mean 'chat'?"),
]  # fmt: skip


@pytest.mark.parametrize(("test", "line"), REFUSED)
def test_a_mistake_is_told_with_its_place_and_the_nearest_name(test, line):
    with pytest.raises(ConfigErrors) as caught:
        load(test)
    assert line in str(caught.value)


def test_two_tests_of_one_name_are_refused():
    with pytest.raises(ConfigErrors, match="5:12: .*a second test named 't'"):
        load(one("", "first: home"), one("", "first: home"))


def test_the_floor_of_an_alias_raises_the_class():
    test = "{name: t, given: {alias: guarded}, expect: {class: internal, never: [api]}}"
    assert told(test) == []


def test_a_wanted_refusal_counts_as_one_only_without_a_moments_trouble():
    suite = load(
        "{name: a, given: {alias: chat, privacy: secret, needs: [images]}, expect: {refused: capability}}",
        "{name: b, given: {alias: chat, backends: {home: {healthy: false}}}, expect: {refused: unhealthy}}",
        "{name: c, given: {alias: guarded}, expect: {first: host}}",
    )
    assert suite.refusals() == {("chat", 2)}


def test_facts_alone_are_a_file_too():
    at = dt.datetime(2026, 12, 1, 9, tzinfo=dt.UTC)
    given = load_given("alias: chat\n", source="f.yaml", catalog=CATALOG, at=at)
    assert (given.facts.alias, given.day) == ("chat", DECEMBER)
    with pytest.raises(ConfigErrors, match="f.yaml:1:8: alias: no alias 'cat'; did you mean"):
        load_given("alias: cat\n", source="f.yaml", catalog=CATALOG, at=at)


def test_what_was_observed_reaches_the_engine():
    text = "alias: chat\nbackends: {home: {ttft_ms: 100, tpot_ms: 2, ttft_tails: {p90: 1, p95: 2, p99: 3}, queue: 4}}\n"
    view = load_given(text, source="f", catalog=CATALOG, at=dt.datetime.now(dt.UTC)).snapshot[
        "home"
    ]
    assert (view.ttft_ms, view.tpot_ms, view.queue) == (100, 2, 4)
    assert view.ttft_tails is not None
    assert view.ttft_tails.p95 == 2
