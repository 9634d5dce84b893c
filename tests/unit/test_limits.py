"""What limits ask of a request, when they start anew, and what callers are told."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.errors import error_headers, error_object, status_of
from gateway.domain.caller import Caller
from gateway.domain.catalog import Alias, Backend, Catalog, Kind, Model, Target
from gateway.domain.errors import BudgetSpent, RateLimited, StoreUnavailable
from gateway.domain.limit import Limit, Outage, Period, Unit
from gateway.domain.money import Rates
from gateway.domain.request import Endpoint, ModelRequest
from gateway.limits import (
    NOTHING,
    Admission,
    Ask,
    LimitIndex,
    LocalGate,
    Standing,
    Unlimited,
    Used,
    headers,
    refusal,
)
from gateway.limits.answers import duration
from gateway.limits.periods import calendar
from gateway.runtime import ManualClock

OPEN, OWN, OFF = Target("open", "m"), Target("own", "m"), Target("off", "m")


def catalog(**output_max: int | None) -> Catalog:
    bounds = {"open": 4000, "own": 2000, "off": 100_000, **output_max}
    backends = {
        name: Backend(
            name=name,
            kind=Kind.CLOSED_API,
            wire="openai_http",
            base_url="http://x",
            models={"m": Model(name="m", output_tokens_max=bound)},
            clearance=0,
            configured=name != "off",
        )
        for name, bound in bounds.items()
    }
    alias = Alias(name="chat", targets=(OPEN, OWN, OFF))
    return Catalog(privacy_classes=("p",), backends=backends, aliases={"chat": alias}, digest="")


def rates(fresh: str, output: str, cached: str | None = None) -> Rates:
    return Rates(
        id="",
        input=Decimal(fresh),
        output=Decimal(output),
        cached_input=None if cached is None else Decimal(cached),
    )


RATES: Mapping[Target, Rates] = {
    OPEN: rates("1.25", "10"),
    OWN: rates("2", "3"),
    OFF: rates("900", "900"),
}
CALLER = Caller(key_id="k1", name="", tags={"team": "search"})


def limit(unit: Unit = Unit.TOKENS, per: str = "key", **more) -> Limit:
    period = None if unit is Unit.CONCURRENT else Period.DAY
    return Limit(**{"name": "x", "per": per, "unit": unit, "amount": 10, "period": period, **more})


def request(**more) -> ModelRequest:
    given = {
        "endpoint": Endpoint.CHAT,
        "alias": "chat",
        "document": {},
        "stream": False,
        "usage_wanted": False,
        "prompt_tokens": 100,
        "output_tokens_max": None,
        "needs": frozenset(),
    }
    return ModelRequest(**{**given, **more})


def asked(
    of: Limit, *, among: Catalog | None = None, caller: Caller = CALLER, **more
) -> int | None:
    index = LimitIndex((of,), among or catalog(), RATES)
    asks = index.asks_for(caller, request(**more))
    return asks[0].amount if asks else None


@pytest.mark.parametrize(
    ("per", "match", "holder"),
    [
        ("key", {}, "k1"),
        ("alias", {}, "chat"),
        ("team", {}, "search"),
        ("app", {}, None),  # the key has no such tag
        ("key", {"team": frozenset({"search", "ads"})}, "k1"),
        ("key", {"team": frozenset({"ads"})}, None),
        ("key", {"app": frozenset({"x"})}, None),
        ("team", {"alias": frozenset({"chat"}), "key": frozenset({"k1"})}, "search"),
        ("team", {"alias": frozenset({"other"})}, None),
    ],
)
def test_a_limit_counts_for_whom_it_names(per: str, match, holder: str | None) -> None:
    index = LimitIndex((limit(per=per, match=match),), catalog(), RATES)
    for _ in range(2):  # found, and found again
        asks = index.asks_for(CALLER, request())
        assert [ask.holder for ask in asks] == ([] if holder is None else [holder])


def test_a_key_whose_tags_were_changed_is_looked_at_again() -> None:
    index = LimitIndex((limit(per="team"),), catalog(), RATES)
    moved = replace(CALLER, tags={"team": "ads"})
    assert [index.asks_for(who, request())[0].holder for who in (CALLER, moved)] == [
        "search",
        "ads",
    ]


@pytest.mark.parametrize(
    ("wanted", "amount"),
    [
        ({}, 100 + 4000),  # hold_output_tokens, 4096 by default, but no model writes so much
        ({"output_tokens_max": 50}, 150),
        ({"output_tokens_max": 1_000_000}, 4100),
        ({"output_tokens_max": 50, "choices": 3}, 250),
        ({"endpoint": Endpoint.EMBEDDINGS}, 100),
    ],
)
def test_tokens_are_held_for_the_prompt_and_the_most_that_may_come(wanted, amount: int) -> None:
    assert asked(limit(), **wanted) == amount


def test_a_model_without_a_bound_leaves_the_hold_at_what_the_limit_says() -> None:
    assert asked(limit(hold_output_tokens=9000), among=catalog(own=None)) == 9100


def test_money_is_held_at_the_worst_of_the_configured_rates() -> None:
    assert asked(limit(Unit.USD), output_tokens_max=1000) == 100 * 2000 + 1000 * 10_000


def test_requests_and_permits_count_one_by_one() -> None:
    assert asked(limit(Unit.REQUESTS)) == 1
    assert asked(limit(Unit.CONCURRENT)) == 1


def test_without_limits_nothing_is_asked_and_nothing_waits() -> None:
    assert LimitIndex((), catalog(), {}).asks_for(CALLER, request()) == ()

    async def run() -> Admission:
        return await Unlimited().begin("r", ())

    assert asyncio.run(run()) is NOTHING
    assert headers(NOTHING) == []


# --- periods --------------------------------------------------------------------------------------

ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Cuba", "Australia/Lord_Howe"]
)
CALENDARS = (Period.DAY, Period.WEEK, Period.MONTH)
FORMATS = {Period.DAY: "%Y-%m-%d", Period.WEEK: "%G-%V", Period.MONTH: "%Y-%m"}


@given(st.sampled_from(CALENDARS), ZONES, st.floats(0, 4e9, allow_nan=False))
def test_every_moment_is_in_one_period_and_the_next_begins_where_it_ends(
    period: Period, zone: str, at: float
) -> None:
    start, end = calendar(period, zone, at)
    assert start <= at < end
    assert calendar(period, zone, start) == (start, end)
    assert calendar(period, zone, end)[0] == end
    first = dt.datetime.fromtimestamp(start, ZoneInfo(zone))
    assert first.hour in (0, 1)  # in Cuba a day may begin at one
    assert period is not Period.WEEK or first.weekday() == 0
    assert period is not Period.MONTH or first.day == 1


@given(st.sampled_from(CALENDARS), ZONES, st.integers(0, 4_000_000_000))
def test_a_period_is_what_a_calendar_on_the_wall_calls_by_one_name(
    period: Period, zone: str, at: int
) -> None:
    """The name of the local day, ISO week or month is the same within, and another one outside."""

    def name(moment: int) -> str:
        return dt.datetime.fromtimestamp(moment, ZoneInfo(zone)).strftime(FORMATS[period])

    start, end = calendar(period, zone, at)
    assert name(start) == name(end - 1) == name(at)
    assert name(at) not in (name(start - 1), name(end))


@pytest.mark.parametrize(
    ("period", "day", "hours"),
    [
        (Period.DAY, (2026, 3, 29), 23),
        (Period.DAY, (2026, 10, 25), 25),
        (Period.WEEK, (2026, 3, 25), 7 * 24 - 1),
        (Period.WEEK, (2026, 10, 19), 7 * 24 + 1),
        (Period.WEEK, (2026, 12, 31), 7 * 24),  # of two years
        (Period.MONTH, (2026, 3, 1), 31 * 24 - 1),
        (Period.MONTH, (2026, 10, 31), 31 * 24 + 1),
        (Period.MONTH, (2028, 2, 29), 29 * 24),
    ],
)
def test_a_period_in_which_the_clocks_change_is_as_long_as_it_is(
    period: Period, day: tuple[int, int, int], hours: int
) -> None:
    at = dt.datetime(*day, 12, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    start, end = calendar(period, "Europe/Berlin", at)
    assert end - start == hours * 3600


# --- several workers without a store --------------------------------------------------------------


async def test_workers_without_a_store_never_exceed_the_whole() -> None:
    of = limit(Unit.REQUESTS, amount=10)
    clock = ManualClock()
    gates = [LocalGate(clock, workers=4) for _ in range(4)]
    let_in = 0
    for gate in gates:
        for number in range(10):
            admission = await gate.begin(f"r{number}", (Ask(of, "k", 1),))
            let_in += admission.refused is None
            assert admission.standings[0].limit.amount == 2
    assert let_in == 8


async def test_counters_of_periods_long_past_are_forgotten() -> None:
    clock = ManualClock()
    gate = LocalGate(clock)
    for number in range(5000):
        holder = (Ask(limit(Unit.REQUESTS), f"k{number}", 1), Ask(limit(Unit.CONCURRENT), "k", 1))
        gate.settle(await gate.begin(f"r{number}", holder), Used(tokens=0, nano_usd=0))
        clock.advance(3600)
    assert len(gate._counters) < 1100


# --- what is told ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "1ms"), (0.0123, "13ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (90_000, "25h0m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def refused(of: Limit, amount: int, remaining: int, reset_s: float | None, **more) -> Admission:
    return Admission(
        asks=(Ask(of, "k1", amount),), refused=Standing(of, "k1", remaining, reset_s), **more
    )


RATE = limit(Unit.REQUESTS, name="rate", period=Period.MINUTE)


def test_a_rate_that_is_used_up_says_when_to_come_back() -> None:
    error = refusal(refused(RATE, 1, 0, 12.3), 0.0)
    assert isinstance(error, RateLimited)
    assert error.message == (
        "The rate limit 'rate' for key 'k1': 10 requests per minute. None is left. Try again "
        "in 13s."
    )
    assert status_of(error) == 429
    assert error_object(error)["error"]["type"] == "rate_limit_error"
    assert error_object(error)["error"]["code"] == "rate_limit_exceeded"
    assert (b"retry-after", b"13") in error_headers(error)


def test_a_wait_longer_than_an_sdk_waits_is_no_wait() -> None:
    error = refusal(refused(limit(Unit.REQUESTS), 1, 0, 5000.0), 0.0)
    assert error_headers(error) == [(b"x-should-retry", b"false")]


def test_a_spent_budget_is_what_openai_calls_it() -> None:
    later = refusal(refused(limit(Unit.USD), 1, 0, 5000.0), 0.0)
    soon = refusal(refused(limit(Unit.USD), 1, 0, 20.0), 0.0)
    assert isinstance(later, BudgetSpent)
    told = error_object(later)["error"]
    assert (told["type"], told["code"], status_of(later)) == (
        "insufficient_quota",
        "insufficient_quota",
        429,
    )
    assert error_headers(later) == [(b"x-should-retry", b"false")]
    assert dict(error_headers(soon))[b"retry-after"] == b"20"
    assert dict(error_headers(soon))[b"x-should-retry"] == b"false"


def test_without_its_store_a_hard_limit_is_our_failure_and_a_soft_one_a_limit() -> None:
    hard = refusal(refused(limit(Unit.USD), 1, 0, None, store_down=True), 0.0)
    soft = limit(Unit.USD, outage=Outage.ALLOWANCE)
    assert isinstance(hard, StoreUnavailable)
    assert isinstance(refusal(refused(soft, 1, 0, None, store_down=True), 0.0), RateLimited)
