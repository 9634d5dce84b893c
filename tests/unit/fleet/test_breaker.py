"""The breaker: opens on a run or a bad share, one probe at a time, doubles its wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.breaker import OPEN_S_MAX, RUN_MAX, SAMPLES_MIN, Breaker


def failed(breaker: Breaker, times: int, now: float = 0.0, *, busy: bool = False) -> None:
    for _ in range(times):
        breaker.failure(now, busy=busy)


def test_a_run_of_failures_opens_it() -> None:
    breaker = Breaker()
    failed(breaker, RUN_MAX - 1)
    assert breaker.state(0.0) == "closed"
    failed(breaker, 1)
    assert breaker.state(0.0) == "open"
    assert breaker.retry_after_s(0.0) == 1.0


def test_a_success_in_between_breaks_the_run() -> None:
    breaker = Breaker()
    for _ in range(3):
        failed(breaker, RUN_MAX - 1)
        breaker.success(0.0)
    assert breaker.state(0.0) == "closed"


def test_busy_is_not_broken_but_a_bad_share_is() -> None:
    breaker = Breaker()
    failed(breaker, SAMPLES_MIN - 1, busy=True)
    assert breaker.state(0.0) == "closed"
    failed(breaker, 1, busy=True)
    assert breaker.state(0.0) == "open"


def test_old_failures_do_not_count_in_the_share() -> None:
    breaker = Breaker()
    failed(breaker, SAMPLES_MIN - 1, 0.0, busy=True)
    for _ in range(SAMPLES_MIN):
        breaker.success(100.0)
    failed(breaker, 1, 100.0, busy=True)
    assert breaker.state(100.0) == "closed"


def test_one_probe_goes_while_the_others_wait() -> None:
    breaker = Breaker()
    failed(breaker, RUN_MAX)
    assert breaker.state(1.0) == "half_open"
    breaker.sending(1.0, patience_s=30.0)
    assert breaker.state(1.1) == "open"
    breaker.success(1.2)
    assert breaker.state(1.2) == "closed"


def test_only_a_probe_speaks_while_it_is_open() -> None:
    """What was sent before it opened comes back late: it neither doubles the wait nor ends it."""
    breaker = Breaker()
    failed(breaker, RUN_MAX + 50)
    assert breaker.retry_after_s(0.0) == 1.0
    breaker.success(0.5)
    assert breaker.state(0.5) == "open"


def test_a_probe_that_is_lost_does_not_lock_it_for_ever() -> None:
    breaker = Breaker()
    failed(breaker, RUN_MAX)
    breaker.sending(1.0, patience_s=30.0)
    assert breaker.state(31.1) == "half_open"
    breaker.sending(31.1, patience_s=30.0)
    breaker.abandoned()
    assert breaker.state(31.2) == "half_open"


def test_each_failed_probe_doubles_the_wait_up_to_a_bound() -> None:
    breaker, now, waits = Breaker(), 0.0, []
    failed(breaker, RUN_MAX)
    for _ in range(9):
        wait = breaker.retry_after_s(now)
        assert wait is not None
        waits.append(wait)
        now += wait
        breaker.sending(now, 30.0)
        breaker.failure(now)
    assert waits[:7] == [1, 2, 4, 8, 16, 32, OPEN_S_MAX]
    assert waits[-1] == OPEN_S_MAX


@given(st.lists(st.sampled_from(["good", "bad", "busy", "send", "gone", "wait"]), max_size=200))
def test_it_never_locks_out_for_ever(events: list[str]) -> None:
    breaker, now = Breaker(), 0.0
    for event in events:
        match event:
            case "good":
                breaker.success(now)
            case "bad":
                breaker.failure(now)
            case "busy":
                breaker.failure(now, busy=True)
            case "send":
                breaker.sending(now, 10.0)
            case "gone":
                breaker.abandoned()
            case "wait":
                now += 0.7
    assert breaker.state(now + OPEN_S_MAX + 10.0) != "open"
