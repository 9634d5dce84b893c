"""Quantiles that forget, a slope that outliers do not bend, a share."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.decision import Tails
from gateway.fleet.windows import (
    AGE_S_MAX,
    HALF_LIFE_S,
    LINE_SAMPLES_MIN,
    LINE_TOKENS_MIN,
    SAMPLES_MAX,
    TAIL_SAMPLES_MIN,
    Line,
    Share,
    Window,
    line,
)


def filled(*values: float, now: float = 0.0) -> Window:
    window = Window()
    for value in values:
        window.add(now, value)
    return window


def test_an_empty_window_says_nothing() -> None:
    assert Window().quantiles() == (None, None)
    assert Window().oldest is None
    assert Window().line() == Line(0.0, 0)


def test_samples_of_one_moment_have_their_plain_quantiles() -> None:
    window = filled(*(float(n) for n in range(100, 0, -1)))
    assert window.quantiles() == (50.0, Tails(90.0, 95.0, 99.0))


def test_there_is_no_tail_of_a_few_samples() -> None:
    window = filled(*[1.0] * (TAIL_SAMPLES_MIN - 1))
    assert window.quantiles() == (1.0, None)
    window.add(0.0, 500.0)
    assert window.quantiles() == (1.0, Tails(1.0, 1.0, 500.0))


def test_a_change_shows_after_a_half_life_at_any_rate() -> None:
    """A window that counted samples only would need 128 new ones: two minutes at one a second."""
    for gap_s in (0.5, 1.0, 10.0):
        window, now = Window(), 0.0
        while now < 4 * HALF_LIFE_S:
            window.add(now, 100.0)
            now += gap_s
        changed = now
        while window.quantiles()[0] == 100.0:
            window.forget(now)
            window.add(now, 900.0)
            now += gap_s
        assert now - changed <= HALF_LIFE_S + 2 * gap_s


def test_a_burst_of_fast_answers_does_not_hide_an_outage_in_the_tail() -> None:
    """What made linkerd give up moving averages."""
    window = filled(*[30_000.0] * 10, now=0.0)
    for n in range(90):
        window.add(n / 100, 10.0)
    middle, tails = window.quantiles()
    assert (middle, tails) == (10.0, Tails(10.0, 30_000.0, 30_000.0))


def test_what_is_too_old_or_too_many_goes() -> None:
    window = filled(5.0, now=0.0)
    window.add(10.0, 7.0)
    window.forget(AGE_S_MAX + 5.0)
    assert window.quantiles()[0] == 7.0
    for _ in range(SAMPLES_MAX):
        window.add(20.0, 1.0)
    assert window.quantiles()[0] == 1.0
    assert window.oldest == 20.0
    window.forget(1000.0)
    assert window.quantiles() == (None, None)


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0.01, 1e5)), max_size=600))
def test_what_is_kept_is_what_came_last(events: list[tuple[float, float]]) -> None:
    """Against the plain definition; the gaps add up to days, so weights are rescaled on the way."""
    window, now, samples = Window(), 0.0, []
    for gap, value in events:
        now += gap
        window.forget(now)
        window.add(now, value)
        samples = [(t, v) for t, v in samples if t >= now - AGE_S_MAX][-SAMPLES_MAX + 1 :]
        samples.append((now, value))
    if not samples:
        return
    total = sum(2 ** ((t - now) / HALF_LIFE_S) for t, _ in samples)
    middle = window.quantiles()[0]
    assert middle is not None
    below = sum(2 ** ((t - now) / HALF_LIFE_S) for t, v in samples if round(v, 3) < middle)
    up_to = sum(2 ** ((t - now) / HALF_LIFE_S) for t, v in samples if round(v, 3) <= middle)
    assert below <= total / 2 * (1 + 1e-9)
    assert up_to >= total / 2 * (1 - 1e-9)


# --- the line -----------------------------------------------------------------------------------


def prompts(seed: int, *, noise_ms: float, per_1k: float = 80.0, most: int = 8000):
    rng = random.Random(seed)
    tokens = [rng.randrange(50, most) for _ in range(SAMPLES_MAX)]
    return [(t, 200.0 + t * per_1k / 1000 + rng.gauss(0, noise_ms)) for t in tokens]


def test_the_slope_is_found_also_in_noise() -> None:
    assert abs(line(prompts(1, noise_ms=0.0)).ms_per_1k - 80.0) < 0.01
    found = [line(prompts(seed, noise_ms=100.0)).ms_per_1k for seed in range(20)]
    assert all(60.0 < slope < 85.0 for slope in found), found
    assert 3000 < line(prompts(1, noise_ms=100.0)).tokens < 5000


def test_a_few_outliers_do_not_bend_it() -> None:
    """A cold start of 30 s on short prompts would turn a least-squares line downwards."""
    pairs = prompts(3, noise_ms=20.0)
    shortest = sorted(pairs)[:12]
    bad = [(t, 30_000.0) for t, _ in shortest] + [p for p in pairs if p not in shortest]
    assert 60.0 < line(bad).ms_per_1k < 85.0


def test_noise_promises_no_slope() -> None:
    found = [line(prompts(s, noise_ms=150.0, per_1k=0.0, most=900)).ms_per_1k for s in range(50)]
    assert sorted(found)[25] == 0.0
    assert max(found) < 200.0


def test_no_slope_of_few_samples_of_prompts_alike_or_of_a_falling_one() -> None:
    steep = [(n * 1000, n * 100.0) for n in range(1, LINE_SAMPLES_MIN)]
    assert line(steep) == Line(0.0, 12_000)
    alike = [(1000 + n, n * 10.0) for n in range(LINE_TOKENS_MIN)]
    assert line(alike).ms_per_1k == 0.0
    assert line([(t, -y) for t, y in prompts(1, noise_ms=0.0)]).ms_per_1k == 0.0


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e6)), max_size=300))
def test_any_line_is_finite_and_never_falls(pairs: list[tuple[int, float]]) -> None:
    found = line(pairs)
    assert 0.0 <= found.ms_per_1k < 1e9
    assert found.tokens in {0, *(t for t, _ in pairs)}


# --- the share ----------------------------------------------------------------------------------


def test_a_share_weighs_by_size_and_forgets() -> None:
    share = Share()
    assert share.value is None
    share.add(0.0, 0, 1000)
    assert share.value == 0.0
    share.add(0.0, 900, 1000)
    assert share.value == 0.45
    seen = []
    for n in range(1, 20):
        share.add(n * 100.0, 900, 1000)
        seen.append(share.value or 0.0)
    assert all(a <= b for a, b in pairwise(seen))
    assert 0.89 < seen[-1] <= 0.9


def test_a_share_is_never_more_than_the_whole() -> None:
    share = Share()
    share.add(0.0, 2000, 1000)
    assert share.value == 1.0
