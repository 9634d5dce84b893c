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


def test_the_first_content_of_a_probe_is_its_verdict() -> None:
    """A long answer would keep everyone else waiting for its end."""
    breaker = Breaker()
    failed(breaker, RUN_MAX)
    breaker.answered()  # of one that was sent before
    assert breaker.state(0.5) == "open"
    breaker.sending(1.0, patience_s=30.0)
    breaker.answered()
    assert breaker.state(1.1) == "closed"


def test_what_was_decided_before_it_opened_is_no_probe() -> None:
    breaker = Breaker()
    failed(breaker, RUN_MAX)
    breaker.sending(0.5, patience_s=30.0)
    breaker.success(0.6)
    assert breaker.state(0.6) == "open"
    assert breaker.state(1.0) == "half_open"


def test_a_hold_is_the_backends_own_word() -> None:
    breaker = Breaker()
    breaker.failure(0.0, busy=True, wait_s=2.0)
    assert (breaker.state(1.9), breaker.held, breaker.retry_after_s(0.5)) == ("open", True, 1.5)
    breaker.hasten()  # health is not what it was about
    assert breaker.state(1.9) == "open"
    for n in range(1, 9):  # and is kept to, not doubled
        breaker.sending(2.0 * n, 30.0)
        breaker.failure(2.0 * n, busy=True, wait_s=2.0)
        assert breaker.retry_after_s(2.0 * n) == 2.0
    breaker.sending(18.0, 30.0)
    breaker.failure(18.0, busy=True, wait_s=0.0)  # "again at once" is no word to keep to
    assert breaker.retry_after_s(18.0) == 2.0


def test_a_hold_does_not_shorten_the_wait_of_what_is_broken() -> None:
    breaker = Breaker()
    failed(breaker, RUN_MAX)
    breaker.hold(0.5)
    assert (breaker.retry_after_s(0.0), breaker.held) == (1.0, False)


def test_suspicion_makes_the_next_failure_decide_and_a_success_ends_it() -> None:
    breaker = Breaker()
    breaker.suspect()
    assert breaker.state(0.0) == "closed"
    breaker.success(0.0)
    failed(breaker, 1)
    assert breaker.state(0.0) == "closed"
    breaker.suspect()
    assert not breaker.failure(0.0, busy=True)
    assert breaker.state(0.0) == "closed"
    assert not breaker.failure(0.0)
    assert breaker.state(0.0) == "open"


@given(
    st.lists(
        st.sampled_from(["good", "bad", "busy", "send", "gone", "wait", "hold", "told", "began"]),
        max_size=200,
    )
)
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
            case "hold":
                breaker.failure(now, busy=True, wait_s=7.0)
            case "told":
                breaker.suspect()
            case "began":
                breaker.answered()
    assert breaker.state(now + OPEN_S_MAX + 10.0) != "open"


def test_busy_without_end_is_no_last_resort() -> None:
    """A vendor that says 503 to all is busy, not broken, by each answer; but it serves nobody."""
    breaker = Breaker()
    for number in range(SAMPLES_MIN + 10):
        breaker.failure(1.0 + number / 100, busy=True)
    assert breaker.state(2.0) == "open"
    assert not breaker.shaky
