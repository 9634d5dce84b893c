"""The record of a decision gives back what the decision was made of, through any JSON."""

from __future__ import annotations

import json
from dataclasses import fields

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.domain.decision import (
    BackendView,
    Candidate,
    Decision,
    Exclusion,
    Facts,
    Rule,
    Tails,
    recalled,
    record,
)
from gateway.domain.engine import Need, Phase, Room
from gateway.domain.request import Capability, Endpoint

NAMES = ("a", "b", "c")
words = st.text(st.characters(codec="utf-8"), max_size=8)
times = st.floats(0, 1e18, allow_nan=False)
tails = st.none() | st.builds(Tails, times, times, times)
targets = st.builds(Target, st.sampled_from(NAMES), st.sampled_from(["m", "org/m"]))
counts = st.none() | st.integers(0, 10**6)
rooms = st.builds(
    Room,
    name=words,
    phase=st.sampled_from(Phase),
    open=st.booleans(),
    ready_in_s=st.none() | times,
    ramp=st.floats(0, 1),
    in_flight=st.integers(0, 5000),
    in_flight_max=counts,
    kv_tokens=counts,
    kv_free=counts,
    waiting=counts,
    prefill_tokens=st.integers(0, 10**6),
    prefill_tps=st.none() | times,
    tpot_ms=st.none() | times,
    read_ms=counts,
    first_ms=st.none() | times,
    answer_s=st.none() | times,
    next_s=st.none() | times,
    queued=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
)
view_fields = {
    "healthy": st.booleans(),
    "circuit": st.sampled_from(["closed", "open", "half_open"]),
    "cooling": st.booleans(),
    "retry_after_s": st.none() | times,
    "in_flight": st.integers(0, 5000),
    "queue": st.none() | st.integers(0, 5000),
    "kv_used": st.none() | st.floats(0, 1),
    "ttft_ms": st.none() | times,
    "tpot_ms": st.none() | times,
    "ttft_tails": tails,
    "tpot_tails": tails,
    "ttft_per_1k_ms": times,
    "ttft_prompt_tokens": st.integers(0, 10**6),
    "cached_share": st.none() | st.floats(0, 1),
    "rooms": st.lists(rooms, max_size=3).map(tuple),
}
fact_fields = {
    "alias": words,
    "endpoint": st.sampled_from(Endpoint),
    "privacy": st.integers(0, 15),
    "needs": st.frozensets(st.sampled_from(Capability)),
    "prompt_tokens": st.integers(0, 10**8),
    "output_tokens": st.integers(0, 10**8),
    "stream": st.booleans(),
    "output_tokens_max": st.none() | st.integers(1, 10**8),
    "cached_tokens": st.integers(0, 10**8),
    "key_id": words,
    "tags": st.dictionaries(words, words, max_size=3),
    "at_us": st.integers(0, 2**53),
    "spent": st.frozensets(words, max_size=3),
    "priced_only": st.booleans(),
    "reverted": st.frozensets(words, max_size=3),
    "pinned": st.none() | targets,
    "incumbent": st.none() | targets,
    "bucket": st.integers(0, 9999),
    "tie_break": st.integers(0, 2**64 - 1),
    "service_tier": st.none() | words.filter(bool),
    "hits": st.dictionaries(words, st.integers(0, 10**6), max_size=3),
    "need": st.none() | st.builds(Need, st.integers(0, 10**6), st.integers(0, 10**6)),
}
all_views = st.builds(BackendView, **view_fields)
all_facts = st.builds(Facts, **fact_fields)


def decision(*names: str) -> Decision:
    """One that speaks of the backends `names`, each in another place."""
    target = [Target(name, "m") for name in names]
    return Decision(
        policy="p",
        policy_digest="d",
        route="r",
        order=tuple(
            Candidate(target=t, why="cheapest", tier=1, cost_nano_usd=12, latency_ms=0.1)
            for t in target[:1]
        ),
        excluded=tuple(Exclusion(t, Rule.PRIVACY, "too secret") for t in target[1:2]),
        cut=tuple(target[2:]),
    )


@given(all_facts, st.dictionaries(st.sampled_from([*NAMES, "other"]), all_views))
def test_a_record_gives_back_facts_and_views_exactly(facts, snapshot):
    written = record(decision(*NAMES), facts, snapshot)
    whole = (facts, {name: view for name, view in snapshot.items() if name != "other"})
    assert recalled(written) == whole
    assert recalled(orjson.loads(orjson.dumps(written))) == whole
    assert recalled(json.loads(json.dumps(written))) == whole


def test_what_was_decided_is_told_in_the_open():
    assert {k: v for k, v in record(decision(*NAMES), SOME, {}).items() if k != "facts"} == {
        "route": "r",
        "order": [["a/m", "cheapest", 1, 12, 0.1]],
        "excluded": [["b/m", "privacy", "too secret"]],
        "cut": ["c/m"],
        "views": {},
    }


SOME = Facts(
    alias="chat",
    endpoint=Endpoint.CHAT,
    privacy=0,
    needs=frozenset(),
    prompt_tokens=1,
    output_tokens=2,
    stream=False,
)


def test_what_is_at_its_default_is_not_written():
    snapshot = {"a": BackendView(), "b": BackendView(in_flight=1, ttft_ms=2.0)}
    written = orjson.loads(orjson.dumps(record(decision(*NAMES), SOME, snapshot)))
    assert written["views"] == {"a": [], "b": [1, 2.0, None]}
    assert set(written["facts"]) == {
        *("alias", "endpoint", "prompt_tokens", "output_tokens", "at_us", "bucket", "tie_break")
    }


def test_older_and_newer_records_are_read():
    facts = {"alias": "chat", "endpoint": "chat/completions", "prompt_tokens": 1}
    given = {"facts": {**facts, "output_tokens": 2, "mood": "good"}, "future": [1]}
    assert recalled(given) == (SOME, {})
    longer = [*range(14), "open", True, False, 3, [["b", "warm", 1]], "of the future"]
    seen = recalled({**given, "views": {"a": longer}})[1]["a"]
    assert (seen.circuit, seen.retry_after_s) == ("open", 3.0)
    assert seen.rooms == (Room("b"),)


def test_a_whole_float_that_a_store_gave_back_as_an_integer_is_a_float_again():
    written = {
        "facts": record(decision(*NAMES), SOME, {})["facts"],
        "views": {"a": [1, 2, 3, 4, 5, 6]},
    }
    view = recalled(written)[1]["a"]
    assert [type(v) for v in (view.ttft_ms, view.tpot_ms)] == [float, float]
    assert view.ttft_tails is not None
    assert [type(v) for v in view.ttft_tails] == [float, float, float]


def test_every_field_of_facts_and_views_is_in_the_property_above():
    """A field added later and forgotten in the record would make replays lie."""
    assert {f.name for f in fields(Facts)} == set(fact_fields)
    assert {f.name for f in fields(BackendView)} == set(view_fields)
