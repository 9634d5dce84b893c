"""A decision taken apart: why this route, what each candidate costs and takes, who is out and why."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from typer.testing import CliRunner

from gateway.cli.policy import app
from gateway.domain.catalog import Target
from gateway.domain.decision import BackendView, record
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import decide
from gateway.policy.explain import as_it_was, explain, from_record, read_match
from gateway.policy.expressions import compile_expression
from gateway.policy.language import Behaviour, By, Match, Metric, Route, Slo, Window
from tests.unit.policy.worlds import CLASSES, backend, facts, policy, prices, world, worlds

POLICIES = Path(__file__).parents[3] / "policies"
NOON_US = int(dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC).timestamp()) * 1_000_000
NIGHT = Window(zone="Asia/Tokyo", days=frozenset({0, 4}), start_minute=22 * 60, end_minute=360)


KEYS = [
    (Match(aliases=frozenset({"a", "chat"})), True, "aliases a | chat: this is chat"),
    (Match(endpoint=Endpoint.EMBEDDINGS), False, "endpoint embeddings: this is chat/completions"),
    (Match(stream=True), False, "stream true: this is false"),
    (Match(privacy_at_least=1), True, "privacy_at_least internal: this is internal"),
    (Match(privacy_at_most=0), False, "privacy_at_most public: this is internal"),
    (Match(prompt_tokens_min=101), False, "prompt_tokens_min 101: this is 100"),
    (Match(prompt_tokens_max=100), True, "prompt_tokens_max 100: this is 100"),
    (Match(keys=frozenset({"k"})), False, "keys k: this is none"),
    (Match(needs=frozenset({Capability.TOOLS})), False, "needs tools: this is none"),
    (Match(spent=frozenset({"day"})), True, "spent day: this is day"),
    (Match(tags={"team": frozenset({"x", "y"})}), False, "tags team x | y: this is team search"),
    (Match(tags={"app": frozenset({"x"})}), False, "tags app x: this is none of these"),
    (Match(window=NIGHT), False, "window Mon Fri 22:00-06:00 Asia/Tokyo: this is Mon 21:00"),
    (Match(expression=compile_expression("stream")), False, "expression stream: false"),
]  # fmt: skip


@pytest.mark.parametrize(("match", "fits", "words"), KEYS, ids=[words for _, _, words in KEYS])
def test_a_key_of_a_match_in_words(match, fits, words):
    asked = facts(privacy=1, tags={"team": "search"}, spent=frozenset({"day"}), at_us=NOON_US)
    (key,) = read_match(match, asked, CLASSES)
    assert (key.fits, str(key)) == (fits, words)


def test_an_expression_that_fails_says_so():
    wrong = Match(expression=compile_expression('tags["team"] == "a"'))
    (key,) = read_match(wrong, facts(), CLASSES)
    assert key.error
    assert not key.fits
    assert 'expression tags["team"] == "a": ' in str(key)


@given(worlds)
def test_it_gives_the_engines_reason(drawn):
    """The routes passed by are those before the one taken, and each has a key that did not fit."""
    decision = drawn.decide()
    told = explain(drawn.policy, drawn.catalog, drawn.rates, drawn.facts, drawn.snapshot, decision)
    earlier = []
    for route in drawn.policy.routes:
        if route.name == decision.route:
            break
        earlier.append(route.name)
    if decision.route:
        assert [passed.route for passed in told.passed] == earlier
        assert all(key.fits for key in told.matched)
    else:
        assert told.passed[-1].key.error
    assert not any(passed.key.fits for passed in told.passed)


@given(worlds)
def test_every_target_has_a_line_and_the_order_is_the_decisions(drawn):
    decision = drawn.decide()
    told = explain(drawn.policy, drawn.catalog, drawn.rates, drawn.facts, drawn.snapshot, decision)
    tried = [line.target for line in told.lines if line.place is not None]
    assert tried == [str(candidate.target) for candidate in decision.order]
    assert [line.place for line in told.lines[: len(tried)]] == list(range(1, len(tried) + 1))
    assert {line.target for line in told.lines} == {str(t) for t in drawn.alias.targets}


@given(worlds)
def test_a_record_tells_the_decision_it_was_made_of(drawn):
    decision = drawn.decide()
    stored = json.loads(json.dumps(record(decision, drawn.facts, drawn.snapshot)))
    again = from_record(stored, policy=decision.policy, digest=decision.policy_digest)
    bare = tuple(replace(candidate, score=None, misses=()) for candidate in decision.order)
    assert again == replace(decision, order=bare)


@given(worlds)
def test_what_was_not_configured_then_comes_from_the_record(drawn):
    """Whatever is configured today: the decision is the same."""
    decision = drawn.decide()
    today = replace(
        drawn.catalog,
        backends={name: replace(b, configured=True) for name, b in drawn.catalog.backends.items()},
    )
    then = as_it_was(today, decision)
    again = decide(drawn.policy, then, drawn.rates, drawn.facts, drawn.snapshot)
    if decision.route:  # else nobody was looked at
        assert again == decision


def test_figures_stand_beside_the_best_of_the_tier():
    catalog = world(backend("a"), backend("b"), backend("c"))
    chosen = policy(behaviour=Behaviour(attempts_max=2, backends_max=2), by=By.MIX)
    views = {
        "a": BackendView(ttft_ms=100),
        "b": BackendView(ttft_ms=200),
        "c": BackendView(ttft_ms=900),
    }
    rates = prices(a=400, b=100, c=300)
    decision = decide(chosen, catalog, rates, facts(), views)
    told = explain(chosen, catalog, rates, facts(), views, decision)
    assert told.objective == "mix, cost 50% and time 50%"
    first, second, left = told.lines
    assert (first.target, first.cost_ratio, first.latency_ratio, first.mix_ratio) == (
        "b/m",
        1,
        2,
        1,
    )
    assert (second.target, second.cost_ratio, second.latency_ratio) == ("a/m", 4, 1)
    assert second.mix_ratio == pytest.approx(2**0.5)
    assert (left.target, left.place, left.verdict, left.cost_ratio) == ("c/m", None, "left over", 3)


def test_a_missed_service_level_is_told():
    catalog = world(backend("a"))
    slow = policy(slos=(Slo(metric=Metric.TTFT, percentile=50, ms_max=100),))
    views = {"a": BackendView(ttft_ms=250)}
    decision = decide(slow, catalog, {}, facts(), views)
    (line,) = explain(slow, catalog, {}, facts(), views, decision).lines
    assert line.misses == ("ttft_ms@50",)


def test_an_exclusion_has_its_rule_and_figures():
    catalog = world(backend("a", clearance=0), backend("b"))
    chosen = policy(Route(name="r", match=Match(privacy_at_least=2)))
    decision = decide(chosen, catalog, {}, facts(privacy=1), {})
    told = explain(chosen, catalog, {}, facts(privacy=1), {}, decision)
    assert [str(passed.key) for passed in told.passed] == [
        "privacy_at_least confidential: this is internal"
    ]
    out = told.lines[1]
    assert (out.target, out.place, out.verdict) == (str(Target("a", "m")), None, "privacy")
    assert out.detail == "the request is internal, the backend is cleared for public"


# --- the command ------------------------------------------------------------------------------


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["explain", *map(str, args)])
    return result.exit_code, result.output


@pytest.fixture
def asked(tmp_path):
    file = tmp_path / "facts.yaml"
    file.write_text("alias: gpt-oss-120b\nprivacy: internal\nat: 2026-11-23T10:00Z\n")
    return file


def test_facts_of_a_request_that_nobody_sent(asked):
    code, output = run(asked, "--dir", POLICIES, "--policy", "balanced")
    assert code == 0
    assert "gpt-oss-120b by chat/completions; streamed; internal; 1000 prompt tokens" in output
    assert "not route confidential: privacy_at_least confidential: this is internal" in output
    assert "route default: it takes what no other route took" in output
    assert "inside a tier: cheapest" in output
    lines = [line.split() for line in output.splitlines()]
    assert ["1", "vllm/openai/gpt-oss-120b", "cheapest", "1"] in lines
    assert ["2", "baseten/openai/gpt-oss-120b", "fallback", "2", "$0.00025", "1.00×"] in lines
    assert any(line[:2] == ["together/openai/gpt-oss-120b", "privacy"] for line in lines)


def test_as_json(asked):
    code, output = run(asked, "--dir", POLICIES, "--policy", "balanced", "--json")
    told = json.loads(output)
    assert code == 0
    assert told["policy"].startswith("balanced@")
    assert told["decision"]["route"] == "default"
    assert [line["target"] for line in told["decision"]["lines"] if line["place"]] == [
        "vllm/openai/gpt-oss-120b",
        "baseten/openai/gpt-oss-120b",
    ]


def test_wrong_usage_exits_2(asked, tmp_path):
    assert run(tmp_path / "none.yaml")[0] == 2
    assert run("01k9z4m5q2t8w6x0y7n3b1c5d9", "--policy", "balanced")[0] == 2
