"""What was seen of a backend, and the snapshot made of it."""

from __future__ import annotations

import pytest

from gateway.fleet.breaker import RUN_MAX, SAMPLES_MIN
from gateway.fleet.observed import COOL_S_MAX, HEARSAY_S, READING_S_MAX, Fleet
from gateway.fleet.windows import AGE_S_MAX


def test_an_unknown_backend_is_taken_to_be_well() -> None:
    view = Fleet().snapshot(["x"], 0.0)["x"]
    assert (view.healthy, view.circuit, view.in_flight, view.ttft_ms) == (True, "closed", 0, None)


def test_in_flight_follows_each_attempt_at_once() -> None:
    fleet = Fleet()
    fleet.sending("x", 0.0, 30.0)
    fleet.sending("x", 0.0, 30.0)
    fleet.ended("x")
    assert fleet.snapshot(["x"], 0.0)["x"].in_flight == 1


def test_latencies_are_medians_of_what_is_recent() -> None:
    fleet = Fleet()
    for ms in (10.0, 20.0, 900.0):
        fleet.succeeded("x", 1.0, ttft_ms=ms, tpot_ms=ms / 10)
    view = fleet.snapshot(["x"], 1.0)["x"]
    assert (view.ttft_ms, view.tpot_ms) == (20.0, 2.0)
    assert fleet.snapshot(["x"], 2.0 + AGE_S_MAX)["x"].ttft_ms is None


def test_a_retry_after_cools_until_its_time() -> None:
    fleet = Fleet()
    fleet.failed("x", 10.0, busy=True, retry_after_s=5.0)
    view = fleet.snapshot(["x"], 12.0)["x"]
    assert view.cooling
    assert view.retry_after_s == 3.0
    assert not fleet.snapshot(["x"], 15.1)["x"].cooling


def test_an_unchanged_backend_keeps_its_view() -> None:
    fleet = Fleet()
    first = fleet.snapshot(["x"], 0.0)["x"]
    assert fleet.snapshot(["x"], 1.0)["x"] is first


def test_a_failed_probe_of_health_shows() -> None:
    fleet = Fleet(["x"])
    fleet.probed("x", healthy=False)
    assert not fleet.snapshot(["x"], 0.0)["x"].healthy


def test_the_view_shows_tails_slope_and_cached_share_in_short_figures() -> None:
    fleet = Fleet()
    for n in range(100):
        fleet.succeeded(
            "x",
            1.0,
            ttft_ms=100 + n / 3,
            tpot_ms=n / 7,
            prompt_tokens=100 * n + 100,
            cached_tokens=33 * n,
            pinned=n % 2 == 0,
        )
    view = fleet.snapshot(["x"], 1.0)["x"]
    assert view.ttft_tails == pytest.approx((130, 131.5, 133), abs=0.5)
    assert view.tpot_tails == pytest.approx((12.8, 13.5, 14.1), abs=0.2)
    assert view.ttft_ms == pytest.approx(116.5, abs=0.5)
    assert view.ttft_per_1k_ms == pytest.approx(3.333, abs=0.01)
    assert view.ttft_prompt_tokens == 5100
    assert view.cached_share == 0.323
    for figure in (view.ttft_ms, *view.ttft_tails, *view.tpot_tails, view.ttft_per_1k_ms):
        assert len(repr(figure)) <= len("129.667")


def test_who_was_not_pinned_or_reports_nothing_tells_nothing_of_the_cache() -> None:
    fleet = Fleet()
    fleet.succeeded("x", 1.0, ttft_ms=1.0, tpot_ms=1.0, prompt_tokens=100, cached_tokens=100)
    fleet.succeeded("x", 1.0, ttft_ms=1.0, tpot_ms=1.0, prompt_tokens=100, pinned=True)
    assert fleet.snapshot(["x"], 1.0)["x"].cached_share is None


def test_figures_move_at_most_every_quarter_second_and_other_things_at_once() -> None:
    fleet = Fleet()
    fleet.succeeded("x", 10.0, ttft_ms=1.0, tpot_ms=None)
    assert fleet.snapshot(["x"], 10.0)["x"].ttft_ms == 1.0
    fleet.succeeded("x", 10.1, ttft_ms=3.0, tpot_ms=None)
    fleet.succeeded("x", 10.1, ttft_ms=3.0, tpot_ms=None)
    fleet.sending("x", 10.1, 30.0)
    view = fleet.snapshot(["x"], 10.1)["x"]
    assert (view.ttft_ms, view.in_flight) == (1.0, 1)
    assert fleet.snapshot(["x"], 10.2)["x"] is view
    assert fleet.snapshot(["x"], 10.25)["x"].ttft_ms == 3.0


def test_readings_of_an_engine_age_out() -> None:
    fleet = Fleet()
    fleet.reported("x", 10.0, queue=7, kv_used=0.87654)
    view = fleet.snapshot(["x"], 10.0)["x"]
    assert (view.queue, view.kv_used) == (7, 0.877)
    assert fleet.snapshot(["x"], 10.0 + READING_S_MAX - 0.1)["x"].queue == 7
    view = fleet.snapshot(["x"], 10.0 + READING_S_MAX)["x"]
    assert (view.queue, view.kv_used) == (None, None)


# --- cool-downs and circuits over workers ---------------------------------------------------------


def test_after_a_cool_down_one_request_asks_and_the_others_wait_for_its_answer() -> None:
    fleet = Fleet()
    fleet.failed("x", 10.0, busy=True, retry_after_s=2.0)
    assert not fleet.may_send("x", 11.9)
    view = fleet.snapshot(["x"], 12.0)["x"]
    assert (view.cooling, view.circuit, fleet.may_send("x", 12.0)) == (False, "half_open", True)
    fleet.sending("x", 12.0, 30.0)
    assert not fleet.may_send("x", 12.0)
    view = fleet.snapshot(["x"], 12.0)["x"]
    assert (view.cooling, view.circuit, view.retry_after_s) == (True, "closed", 1.0)
    fleet.answering("x")
    assert fleet.snapshot(["x"], 12.1)["x"].circuit == "closed"


def test_a_cool_down_is_told_and_bounded() -> None:
    fleet, told = Fleet(), []
    fleet.on_cooled = lambda name, seconds: told.append((name, seconds))
    fleet.failed("x", 10.0, busy=True, retry_after_s=86_400.0)
    assert told == [("x", COOL_S_MAX)]
    assert fleet.snapshot(["x"], 10.0)["x"].retry_after_s == COOL_S_MAX
    fleet.cooled("y", 10.0, 86_400.0)
    assert fleet.snapshot(["y"], 10.0)["y"].retry_after_s == COOL_S_MAX
    assert told == [("x", COOL_S_MAX)]  # what was heard is not told on


def test_hearsay_waits_a_little_longer_than_who_was_told() -> None:
    teller, hearer = Fleet(), Fleet()
    teller.failed("x", 10.0, busy=True, retry_after_s=2.0)
    for tenth in range(1, 20):  # again and again, a little off, and to the teller too
        now = 10 + tenth / 10
        for fleet in (teller, hearer):
            fleet.cooled("x", now, 12.0 - now + 0.01 * (tenth % 3))
    assert teller.snapshot(["x"], 12.0)["x"].circuit == "half_open"
    view = hearer.snapshot(["x"], 12.0)["x"]
    assert view.cooling
    assert view.circuit == "closed"
    assert view.retry_after_s is not None
    assert HEARSAY_S - 0.02 < view.retry_after_s < HEARSAY_S + 0.04
    assert hearer.snapshot(["x"], 12.4)["x"].circuit == "half_open"


def test_a_success_does_not_end_a_cool_down() -> None:
    fleet = Fleet()
    fleet.sending("x", 9.0, 30.0)
    fleet.cooled("x", 10.0, 5.0)
    fleet.succeeded("x", 10.1, ttft_ms=5.0, tpot_ms=None)
    assert fleet.snapshot(["x"], 10.1)["x"].cooling


def test_only_a_run_of_our_own_is_told_as_an_opening() -> None:
    fleet, told = Fleet(), []
    fleet.on_opened = told.append
    fleet.suspect("heard")
    fleet.failed("heard", 10.0)
    assert fleet.snapshot(["heard"], 10.0)["heard"].circuit == "open"
    assert told == []
    for _ in range(RUN_MAX + 3):
        fleet.failed("seen", 10.0)
    assert told == ["seen"]


def test_health_that_comes_back_calls_for_a_probe_at_once() -> None:
    fleet = Fleet()
    for _ in range(RUN_MAX):
        fleet.failed("x", 10.0)
    fleet.probed("x", healthy=False)
    fleet.probed("x", healthy=True)
    assert fleet.snapshot(["x"], 10.1)["x"].circuit == "half_open"


def test_the_last_that_is_merely_shaky_is_not_ejected() -> None:
    """One in four fails. Refusing all for that would turn three of four into none."""
    fleet = Fleet(["well"])
    for n in range(SAMPLES_MIN + 1):
        if n % 4 == 0:
            fleet.failed("shaky", 10.0)
        else:
            fleet.succeeded("shaky", 10.0, ttft_ms=1.0, tpot_ms=None)
    for _ in range(RUN_MAX):
        fleet.failed("down", 10.0)
    names = ["shaky", "down", "well"]
    snapshot = fleet.snapshot(names, 10.0)
    assert [snapshot[name].circuit for name in names] == ["open", "open", "closed"]
    spare = fleet.last_resort(snapshot)
    assert spare is not None
    assert [spare[name].circuit for name in names] == ["half_open", "open", "closed"]
    assert [fleet.may_send(name, 10.0) for name in names] == [True, False, True]
    assert fleet.last_resort(fleet.snapshot(["down", "well"], 10.0)) is None
    fleet.cooled("shaky", 10.0, 5.0)  # that is the vendor's word, and kept
    assert fleet.last_resort(fleet.snapshot(names, 10.0)) is None
    assert not fleet.may_send("shaky", 10.0)
