"""What was seen of a backend, and the snapshot made of it."""

from __future__ import annotations

from gateway.fleet.observed import WINDOW_S_MAX, Fleet


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
    assert fleet.snapshot(["x"], 2.0 + WINDOW_S_MAX)["x"].ttft_ms is None


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
