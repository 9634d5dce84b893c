"""Prompts that begin alike go where their beginning is; nothing of their text is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.prefixes import BLOCK_CHARS, BLOCKS_MAX, Prefixes, chain_of

SYSTEM = "You are a patient clerk. " * 80


def chat(*texts: str) -> dict[str, object]:
    roles = ("system", "user", "assistant")
    return {
        "messages": [
            {"role": roles[min(i, 1 + i % 2)], "content": text} for i, text in enumerate(texts)
        ]
    }


@given(st.text(max_size=3000), st.text(max_size=1500), st.text(max_size=1500))
def test_what_two_prompts_share_is_matched_to_the_block_and_no_further(shared, one, other):
    a, b = chain_of({"prompt": shared + one}, "m"), chain_of({"prompt": shared + other}, "m")
    common = len(_common(shared + one, shared + other)) // BLOCK_CHARS
    known = Prefixes()
    known.add(a)
    assert known.match(b) == min(common, len(b.blocks))
    assert known.match(a) == len(a.blocks)


def _common(a: str, b: str) -> str:
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return a[:same]


@given(st.lists(st.text(max_size=2000), min_size=1, max_size=6), st.text(max_size=500))
def test_the_next_turn_of_a_conversation_begins_with_the_one_before(turns, more):
    known = Prefixes()
    before = chain_of(chat(*turns), "m")
    known.add(before)
    after = chain_of(chat(*turns, more), "m")
    assert known.match(after) >= len(before.blocks)


def test_aliases_and_tenants_are_told_apart():
    known = Prefixes()
    known.add(chain_of(chat(SYSTEM), "m", salt="one"))
    assert known.match(chain_of(chat(SYSTEM), "m", salt="one"))
    assert not known.match(chain_of(chat(SYSTEM), "m", salt="two"))
    assert not known.match(chain_of(chat(SYSTEM), "other", salt="one"))


def test_tools_come_before_the_messages():
    tools = {"tools": [{"type": "function", "function": {"name": "f" * 300}}]}
    known = Prefixes()
    known.add(chain_of({**chat(SYSTEM), **tools}, "m"))
    assert not known.match(chain_of(chat(SYSTEM), "m"))
    assert known.match(chain_of({**chat("Another."), **tools}, "m")) == 1


@given(st.integers(0, 700), st.integers(1, 10**6))
def test_a_match_is_a_share_of_the_prompt(blocks, prompt_tokens):
    chain = chain_of({"prompt": "x" * (blocks * BLOCK_CHARS)}, "m")
    told = [chain.tokens(n, prompt_tokens) for n in range(len(chain.blocks) + 1)]
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] <= prompt_tokens


def test_a_huge_prompt_makes_a_bounded_chain():
    chain = chain_of({"prompt": "x" * 10_000_000}, "m")
    assert len(chain.blocks) == BLOCKS_MAX
    assert chain.tokens(BLOCKS_MAX, 10**6) < 10**6


def test_the_least_recently_used_is_forgotten_and_of_a_prompt_its_end_first():
    known = Prefixes(size=10)
    old, new = chain_of({"prompt": "a" * 2048}, "m"), chain_of({"prompt": "b" * 2048}, "m")
    known.add(old)
    known.add(new)
    assert known.match(new) == 8
    assert known.match(old) == 2
    known.clear()
    assert known.match(new) == 0


def test_an_engine_that_threw_prefixes_away_is_believed_to_hold_less():
    known = Prefixes(size=1000)
    chains = [chain_of({"prompt": f"{n:03}" * 1024}, "m") for n in range(50)]
    known.heard(as_expected=False)
    for chain in chains:
        known.add(chain)
    assert known.match(chains[0])  # it has never told anything: that says nothing
    known.heard(as_expected=True)
    for _ in range(20):
        known.heard(as_expected=False)
    known.add(chains[-1])
    assert not known.match(chains[0])
    assert known.match(chains[-1])


def test_bodies_of_any_shape_make_a_chain():
    for odd in ({}, {"messages": [None, 3, {"role": None}]}, {"prompt": [1, 2]}, {"messages": {}}):
        assert chain_of(odd, "m").tokens(0, 10) == 0
