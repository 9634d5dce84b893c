"""A replica is chosen for what it saves: prefix, queue and company are one figure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.engine import Need, Phase, Room
from gateway.policy.replicas import SLOWER_BY, choose, fits

NEED = Need(prompt_tokens=2000, output_tokens=100)

rooms = st.builds(
    Room,
    name=st.just(""),
    phase=st.sampled_from([Phase.WARM, Phase.WARM, Phase.DRAINING, Phase.FAILED]),
    open=st.booleans(),
    in_flight=st.integers(0, 50),
    in_flight_max=st.none() | st.integers(1, 50),
    kv_free=st.none() | st.integers(0, 10_000),
    waiting=st.none() | st.integers(0, 20),
    prefill_tokens=st.integers(0, 10_000),
)
several = st.lists(rooms, max_size=5).map(
    lambda made: tuple(room._replace(name=f"own#{i}") for i, room in enumerate(made))
)


@given(several, st.dictionaries(st.sampled_from(["own#0", "own#1"]), st.integers(0, 2000)))
def test_only_who_can_take_it_is_chosen_and_somebody_is_if_anyone_can(given_rooms, hits):
    room = choose(given_rooms, NEED, hits)
    able = [r for r in given_rooms if fits(r, NEED)]
    assert room is None if not able else room in able


@given(several, st.dictionaries(st.sampled_from(["own#0", "own#1"]), st.integers(0, 2000)))
def test_who_was_not_chosen_does_not_matter(given_rooms, hits):
    room = choose(given_rooms, NEED, hits)
    for other in given_rooms:
        if other is not room:
            assert choose(tuple(r for r in given_rooms if r is not other), NEED, hits) == room


def test_a_prefix_attracts_until_the_company_there_costs_more():
    per_request = SLOWER_BY * NEED.output_tokens
    for busy in range(20):
        a, b = Room("own#a", in_flight=busy), Room("own#b")
        chosen = choose((a, b), NEED, {"own#a": 1600})
        assert chosen is (a if busy * per_request < 1600 else b)


def test_a_queue_of_prompts_repels_as_many_tokens_as_wait():
    a, b = Room("own#a", prefill_tokens=1500), Room("own#b", in_flight=0)
    assert choose((a, b), NEED, {"own#a": 1600}) is a
    assert choose((a, b), NEED, {"own#a": 1400}) is b


def test_who_was_tried_is_avoided():
    a, b = Room("own#a"), Room("own#b", in_flight=9)
    assert choose((a, b), NEED, {}, avoid=frozenset({"own#a"})) is b
    assert choose((a,), NEED, {}, avoid=frozenset({"own#a"})) is None
