"""Expected output tokens: unbiased where it costs money, known sources first, bounded."""

from __future__ import annotations

import random
from statistics import median

from gateway.fleet.history import DEFAULT_OUTPUT_TOKENS, MEMORY, OutputHistory


def learnt(*tokens: int, alias: str = "chat", key: str = "k") -> OutputHistory:
    history = OutputHistory()
    for count in tokens:
        history.learn(alias, key, count)
    return history


def test_before_anything_is_known_the_default_within_the_cap() -> None:
    assert OutputHistory().expect("chat", "k", None) == DEFAULT_OUTPUT_TOKENS
    assert OutputHistory().expect("chat", "k", 100) == 100
    assert OutputHistory().expect("chat", "k", 1000) == DEFAULT_OUTPUT_TOKENS


def test_the_key_goes_before_its_alias_and_that_before_the_default() -> None:
    history = OutputHistory()
    for _ in range(200):
        history.learn("chat", "long", 2000)
        history.learn("chat", "short", 20)
    alias = history.expect("chat", "new", None)
    assert 900 < alias < 1100
    assert 1850 < history.expect("chat", "long", None) <= 2000
    assert 20 <= history.expect("chat", "short", None) < 150
    assert history.expect("other", "long", None) == DEFAULT_OUTPUT_TOKENS


def test_one_answer_moves_a_little_and_many_decide() -> None:
    assert DEFAULT_OUTPUT_TOKENS < learnt(4000).expect("chat", "k", None) < 1100
    assert learnt(*[4000] * 100).expect("chat", "k", None) > 3900


def test_what_was_long_ago_is_forgotten_by_count() -> None:
    history = learnt(*[4000] * 1000, *[100] * 5 * MEMORY)
    assert history.expect("chat", "k", None) < 150


def test_requests_without_a_key_teach_the_alias() -> None:
    history = learnt(*[1000] * 100, key="")
    assert history.expect("chat", "", None) == history.expect("chat", "k", None)
    assert history.expect("chat", "", None) > 900


def test_the_least_recently_used_key_goes_first() -> None:
    history = OutputHistory(keys_max=3)  # the alias itself is one of them
    for key in ("a", "b", "a", "c"):
        for _ in range(100):
            history.learn("chat", key, 10 if key == "b" else 1000)
    assert len(history._means) == 3
    assert history.expect("chat", "b", None) > 500  # what its alias shows


def test_the_sum_of_what_is_expected_is_the_sum_of_what_comes() -> None:
    """Answers are skewed. Means add up to the bill; medians would leave a third of it out."""
    rng, history = random.Random(7), OutputHistory()
    answers = [round(rng.lognormvariate(5.5, 1.0)) for _ in range(5000)]
    expected = 0
    for tokens in answers:
        expected += history.expect("chat", "k", None)
        history.learn("chat", "k", tokens)
    assert abs(expected / sum(answers) - 1) < 0.03
    assert median(answers) * len(answers) / sum(answers) < 0.65
