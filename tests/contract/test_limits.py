"""Limits: the gate over Redis and its twin in the process keep one contract.

Time is the test's own in both: the script reads a key where it would ask Redis for the time. All
else is the real script on a real server.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from zoneinfo import ZoneInfo

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.domain.errors import BudgetSpent, RateLimited
from gateway.domain.limit import AtLimit, Limit, Period, Unit
from gateway.limits import (
    Admission,
    Alert,
    Ask,
    Event,
    Gate,
    LocalGate,
    RedisGate,
    Used,
    headers,
    refusal,
)
from gateway.limits.counters import Count, counted, in_redis, key_of, named, span_of
from gateway.redis_link import RedisLink
from gateway.runtime import ManualClock

LEASE_S = 900.0
CLOCK_LUA = "redis.call('MGET', 'wb:{limits}:test:s', 'wb:{limits}:test:us')"
# A minute boundary, and noon in Berlin: nothing starts anew by chance.
NOON = dt.datetime(2026, 11, 23, 12, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()


def limit(name: str, unit: Unit, amount: int, period: Period | None = None, **more) -> Limit:
    return Limit(name=name, per="key", unit=unit, amount=amount, period=period, **more)


BUDGET = limit("budget", Unit.USD, 1000, Period.MONTH)
RATE = limit("rate", Unit.REQUESTS, 5, Period.MINUTE)
TOKENS = limit("tokens", Unit.TOKENS, 100, Period.DAY, zone="Europe/Berlin")
AT_ONCE = limit("at-once", Unit.CONCURRENT, 2)


@dataclass
class Place:
    """A gate and the time it goes by."""

    gate: Gate
    clock: ManualClock
    server: redis.Redis | None = None
    names: int = field(default=0)
    alerts: list[Alert] = field(default_factory=list)
    overruns: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.heard.alert = self.alerts.append
        self.gate.heard.overrun = lambda of, n: self.overruns.append((of.name, n))

    def told(self) -> list[tuple[Event, str, float, int]]:
        """What was told since this was last asked."""
        found = [(a.event, a.holder, a.share, a.spent) for a in self.alerts]
        self.alerts.clear()
        return found

    def at(self, now: float) -> None:
        self.clock.now = now
        if self.server is not None:
            seconds, rest = divmod(round(now * 1e6), 1_000_000)
            self.server.mset({"wb:{limits}:test:s": seconds, "wb:{limits}:test:us": rest})

    def wait(self, seconds: float) -> None:
        self.at(self.clock.now + seconds)

    def begin(self, *asks: tuple[Limit, int], holder: str = "k") -> Awaitable[Admission]:
        self.names += 1
        return self.gate.begin(f"r{self.names}", tuple(Ask(x, holder, n) for x, n in asks))

    async def left(self, of: Limit, holder: str = "k") -> int:
        """What remains, asked by a request that takes nothing."""
        admission = await self.begin((of, 0), holder=holder)
        self.gate.release(admission)
        return admission.standings[0].remaining


@asynccontextmanager
async def place_of(kind: str, url: Callable[[], str], **options) -> AsyncIterator[Place]:
    clock = ManualClock(NOON)
    if kind == "local":
        yield Place(LocalGate(clock, lease_s=LEASE_S, **options), clock)
        return
    with redis.Redis.from_url(url()) as server:
        server.flushdb()
        link = RedisLink(url(), timeout_s=10.0)
        await link.connect()
        gate = RedisGate(link, clock, lease_s=LEASE_S, time_lua=CLOCK_LUA, **options)
        place = Place(gate, clock, server)
        place.at(NOON)
        yield place
        await link.aclose()


@pytest.fixture(params=["local", "redis"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with place_of(request.param, lambda: request.getfixturevalue("redis_url")) as made:
        yield made


def used(nano_usd: int | None = 0, tokens: int = 0) -> Used:
    return Used(tokens=tokens, nano_usd=nano_usd)


async def test_a_hold_is_replaced_by_what_was_used(place: Place) -> None:
    admission = await place.begin((BUDGET, 400))
    assert admission.hold is not None
    assert admission.standings[0].remaining == 600
    place.gate.settle(admission, used(150))
    assert await place.left(BUDGET) == 850


async def test_what_is_released_is_whole_again(place: Place) -> None:
    asks = ((BUDGET, 400), (RATE, 1), (AT_ONCE, 1), (TOKENS, 10))
    place.gate.release(await place.begin(*asks))
    assert [await place.left(x) for x, _ in asks] == [1000, 5, 2, 100]


async def test_all_limits_are_held_or_none(place: Place) -> None:
    first = await place.begin((RATE, 1), (BUDGET, 900))
    assert first.refused is None
    second = await place.begin((RATE, 1), (BUDGET, 200), (AT_ONCE, 1))
    assert second.refused is not None
    assert second.refused.limit is BUDGET
    assert second.hold is None
    assert await place.left(RATE) == 4
    assert await place.left(AT_ONCE) == 2
    place.gate.settle(second, used(5))  # nothing is held, so nothing is counted
    place.gate.release(second)
    assert await place.left(BUDGET) == 100


async def test_each_holder_has_a_counter_of_its_own(place: Place) -> None:
    await place.begin((BUDGET, 1000), holder="one")
    assert await place.left(BUDGET, "one") == 0
    assert await place.left(BUDGET, "o}ne:{x") == 1000


async def test_permits_are_free_again_when_settled(place: Place) -> None:
    one, two = await place.begin((AT_ONCE, 1)), await place.begin((AT_ONCE, 1))
    refused = await place.begin((AT_ONCE, 1))
    assert refused.refused is not None
    assert refused.refused.reset_s is None
    assert isinstance(refusal(refused, NOON), RateLimited)
    place.gate.settle(one, used())
    assert (await place.begin((AT_ONCE, 1))).refused is None
    place.gate.settle(two, used())
    assert await place.left(AT_ONCE) == 1


async def test_a_hold_nobody_settles_ends_by_itself(place: Place) -> None:
    for _ in range(2):
        await place.begin((BUDGET, 500), (AT_ONCE, 1))
    place.wait(LEASE_S - 1)
    assert await place.left(AT_ONCE) == 0
    place.wait(2)
    assert await place.left(AT_ONCE) == 2
    assert await place.left(BUDGET) == 1000


async def test_what_is_settled_late_counts_all_the_same_and_once(place: Place) -> None:
    admission = await place.begin((BUDGET, 500), (AT_ONCE, 1))
    place.wait(LEASE_S + 1)
    assert await place.left(BUDGET) == 1000
    for _ in range(3):
        place.gate.settle(admission, used(200))
    assert await place.left(BUDGET) == 800
    assert await place.left(AT_ONCE) == 2


async def test_settling_twice_is_settling_once(place: Place) -> None:
    admission = await place.begin((BUDGET, 500), (AT_ONCE, 1))
    other = await place.begin((AT_ONCE, 1))
    place.gate.settle(admission, used(100))
    place.gate.settle(admission, used(100))
    place.gate.release(admission)
    place.gate.abandon(admission.hold or "")
    assert await place.left(BUDGET) == 900
    assert await place.left(AT_ONCE) == 1
    place.gate.release(other)


async def test_who_does_not_wait_for_the_answer_holds_nothing(place: Place) -> None:
    place.begin((BUDGET, 500), (AT_ONCE, 1))
    place.gate.abandon("r1")
    assert await place.left(BUDGET) == 1000
    waiting = asyncio.ensure_future(asyncio.wait_for(place.begin((BUDGET, 500)), 10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    if waiting.cancelled():  # the twin in the process answers before anybody can leave
        assert await place.left(BUDGET) == 1000


async def test_what_exceeds_its_hold_is_counted_and_the_next_is_refused(place: Place) -> None:
    admission = await place.begin((BUDGET, 900))
    place.gate.settle(admission, used(2700))
    refused = await place.begin((BUDGET, 1))
    assert refused.refused is not None
    assert refused.refused.remaining == -1700
    assert place.gate.overrun == {"budget": 1800}


async def test_a_figure_beyond_all_reason_counts_once_and_changes_nothing_else(
    place: Place,
) -> None:
    """A vendor that lies: more than the script can count in is a very large number, no error."""
    rate = limit("rate", Unit.REQUESTS, 5, Period.DAY)
    admission = await place.begin((TOKENS, 40), (BUDGET, 100), (rate, 1))
    place.gate.settle(admission, Used(tokens=7, nano_usd=10**20))
    for _ in range(3):  # each answer of the store sends again what it did not take
        assert await place.left(TOKENS) == 93
        assert await place.left(rate) == 4
    assert await place.left(BUDGET) < -(10**15)


async def test_where_the_price_is_not_known_the_hold_stays(place: Place) -> None:
    admission = await place.begin((BUDGET, 400), (TOKENS, 40))
    place.gate.settle(admission, used(None, tokens=7))
    assert await place.left(BUDGET) == 600
    assert await place.left(TOKENS) == 93


async def test_no_border_lets_twice_the_limit_through(place: Place) -> None:
    place.at(NOON + 59.5)
    admissions = [await place.begin((RATE, 1)) for _ in range(6)]
    assert [a.refused is None for a in admissions] == [True] * 5 + [False]
    last = admissions[-1].refused
    assert last is not None
    place.at(NOON + 60.5)
    assert (await place.begin((RATE, 1))).refused is not None
    place.at(NOON + 59.5 + (last.reset_s or 0) - 0.01)
    assert (await place.begin((RATE, 1))).refused is not None
    place.wait(0.02)
    assert (await place.begin((RATE, 1))).refused is None


async def test_a_steady_caller_keeps_its_rate(place: Place) -> None:
    rate = limit("steady", Unit.REQUESTS, 60, Period.MINUTE)
    refused = 0
    for _ in range(200):
        refused += (await place.begin((rate, 1))).refused is not None
        place.wait(1.0)
    assert refused <= 200 // 61 + 1


async def test_an_hour_slides_too_and_a_late_settlement_goes_where_the_hold_was(
    place: Place,
) -> None:
    hourly = limit("hourly", Unit.TOKENS, 100, Period.HOUR)
    admission = await place.begin((hourly, 50))
    place.wait(1800)
    assert await place.left(hourly) == 100  # the lease is over
    place.gate.settle(admission, used(tokens=60))
    assert await place.left(hourly) == 40
    place.wait(1900)  # the hold was an hour ago, its settlement was not
    assert await place.left(hourly) == 100


async def test_a_day_starts_anew_at_midnight_in_its_zone(place: Place) -> None:
    midnight = dt.datetime(2026, 11, 24, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    place.at(midnight - 2)
    admission = await place.begin((TOKENS, 100))
    refused = await place.begin((TOKENS, 1))
    assert refused.refused is not None
    assert refused.refused.reset_s == pytest.approx(2, abs=0.01)
    place.at(midnight + 1)
    assert await place.left(TOKENS) == 100
    place.gate.settle(admission, used(tokens=30))  # yesterday's
    assert await place.left(TOKENS) == 100
    place.at(midnight - 1)  # a clock that steps back finds yesterday as it was
    assert await place.left(TOKENS) == 70


async def test_a_request_that_can_never_fit_is_not_told_to_wait(place: Place) -> None:
    for too_large in (await place.begin((RATE, 6)), await place.begin((BUDGET, 1001))):
        assert too_large.refused is not None
        assert too_large.refused.reset_s is None
        assert "alone" in refusal(too_large, NOON).message


async def test_a_limit_that_asks_for_another_route_refuses_nothing_and_counts_what_fits(
    place: Place,
) -> None:
    soft = replace(BUDGET, name="soft", at_limit=AtLimit.ROUTE)
    first = await place.begin((soft, 900), (RATE, 1))
    second = await place.begin((soft, 200), (RATE, 1))
    assert (first.spent, second.spent) == (frozenset(), {"soft"})
    assert second.refused is None
    assert second.hold is not None
    assert [ask.limit for ask in second.asks] == [RATE]
    place.gate.settle(second, used(200))
    assert await place.left(soft) == 100
    assert await place.left(RATE) == 3
    alone = await place.begin((soft, 200))
    assert (alone.hold, alone.spent) == (None, {"soft"})
    place.gate.settle(alone, used(200))
    assert await place.left(soft) == 100


WATCHED = replace(BUDGET, alert_shares=(0.5, 0.8))


async def spend(place: Place, of: Limit, amount: int, used_: int | None = None, **more) -> None:
    """One request: held, used, and the answer of the store heard."""
    admission = await place.begin((of, amount), **more)
    place.gate.settle(admission, used(amount if used_ is None else used_, tokens=amount))
    await place.left(of, **more)


async def test_an_alert_is_about_what_was_used_and_told_once_per_period(place: Place) -> None:
    for _ in range(2):
        held = await place.begin((WATCHED, 600))
        assert place.told() == []  # nothing is used of it yet
        place.gate.release(held)
    told = []
    for amount in (400, 150, 100, 200, 100, 50, 50):
        await spend(place, WATCHED, amount)
        told.append([(event, share, spent) for event, _, share, spent in place.told()])
    assert told == [
        [],
        [(Event.SHARE, 0.5, 550)],
        [],
        [(Event.SHARE, 0.8, 850)],
        [],
        [(Event.EXHAUSTED, 1.0, 1000)],
        [],
    ]
    place.at(dt.datetime(2026, 12, 23, tzinfo=ZoneInfo("UTC")).timestamp())
    await spend(place, WATCHED, 600)
    alert = place.alerts[0]
    assert (alert.share, alert.holder, alert.limit.name) == (0.5, "k", "budget")
    begins = [dt.datetime.fromtimestamp(at, dt.UTC).date() for at in (alert.start_s, alert.end_s)]
    assert begins == [dt.date(2026, 12, 1), dt.date(2027, 1, 1)]


async def test_each_holder_is_told_of_and_a_leap_tells_the_highest_share_only(place: Place) -> None:
    await spend(place, WATCHED, 900, holder="one")
    await spend(place, WATCHED, 550, holder="two")
    assert place.told() == [(Event.SHARE, "one", 0.8, 900), (Event.SHARE, "two", 0.5, 550)]


async def test_a_budget_is_exhausted_when_a_request_does_not_fit_any_more(place: Place) -> None:
    await spend(place, BUDGET, 700)
    assert place.told() == []  # without shares of its own only its end is told
    for _ in range(2):
        assert (await place.begin((BUDGET, 400))).refused is not None
    assert place.told() == [(Event.EXHAUSTED, "k", 1.0, 700)]
    soft = replace(BUDGET, name="soft", at_limit=AtLimit.ROUTE)
    await spend(place, soft, 700)
    assert (await place.begin((soft, 400), (RATE, 1))).spent == {"soft"}
    assert place.told() == [(Event.EXHAUSTED, "k", 1.0, 700)]


async def test_a_share_listed_later_is_not_told_again_and_tokens_have_shares_too(
    place: Place,
) -> None:
    await spend(place, replace(BUDGET, alert_shares=(0.8,)), 850)
    await spend(place, replace(BUDGET, alert_shares=(0.5, 0.8)), 10)
    assert [share for _, _, share, _ in place.told()] == [0.8]
    await spend(place, TOKENS, 90)
    await spend(place, replace(TOKENS, alert_shares=(0.9,)), 5)
    assert place.told() == [(Event.SHARE, "k", 0.9, 95)]


async def test_a_request_larger_than_the_limit_raises_no_alert(place: Place) -> None:
    await place.begin((WATCHED, 5000))
    assert place.told() == []


async def test_an_overrun_is_counted_each_time_and_told_once_per_period(place: Place) -> None:
    for _ in range(2):
        await spend(place, BUDGET, 100, 130)
    await spend(place, RATE, 1)
    assert place.overruns == [("budget", 30), ("budget", 30)]
    (alert,) = place.alerts
    assert (alert.event, alert.beyond, alert.spent) == (Event.OVERRUN, 30, 130)
    assert alert.share == pytest.approx(0.13)


async def test_what_was_exhausted_and_starts_anew_is_told_once(place: Place) -> None:
    day = replace(BUDGET, name="day", period=Period.DAY, zone="Europe/Berlin")
    await spend(place, day, 1000, holder="a:b")
    await spend(place, day, 900, holder="other")
    assert await place.gate.resets((day,)) == []
    place.at(dt.datetime(2026, 11, 24, tzinfo=ZoneInfo("Europe/Berlin")).timestamp() + 1)
    (alert,) = await place.gate.resets((day, BUDGET))
    assert (alert.event, alert.holder, alert.limit) == (Event.RESET, "a:b", day)
    assert (alert.start_s, alert.end_s - alert.start_s) == (place.clock.now - 1, 86_400)
    assert await place.gate.resets((day,)) == []


async def test_a_limit_that_is_no_more_resets_in_silence(place: Place) -> None:
    day = replace(BUDGET, name="day", period=Period.DAY)
    await spend(place, day, 1000)
    place.wait(86_400)
    assert await place.gate.resets((replace(day, period=Period.MONTH), BUDGET)) == []
    assert await place.gate.resets((day,)) == []


# --- a worker that died ---------------------------------------------------------------------------


@pytest.fixture
async def shared(redis_url: str) -> AsyncIterator[Place]:
    async with place_of("redis", lambda: redis_url) as made:
        yield made


@pytest.mark.parametrize("late", [False, True])
async def test_what_a_dead_worker_had_under_way_counts_at_its_hold(
    shared: Place, late: bool
) -> None:
    """The vendor bills it, and nobody knows better; permits are free. Whenever it is told, once."""
    rate = limit("daily", Unit.REQUESTS, 5, Period.DAY)
    hour = limit("hour", Unit.TOKENS, 100, Period.HOUR)
    asks = (BUDGET, 400), (TOKENS, 40), (rate, 1), (AT_ONCE, 1), (hour, 40)
    await shared.begin(*asks)
    await shared.begin((BUDGET, 50))
    if late:
        shared.wait(LEASE_S + 1)
        assert [await shared.left(of) for of, _ in asks] == [1000, 100, 5, 2, 100]
    for _ in range(2):
        shared.gate.cut_off("r1")
    shared.gate.cut_off("nobody's", used(7))
    assert await shared.left(BUDGET) == (600 if late else 550)
    assert [await shared.left(of) for of, _ in asks[1:]] == [60, 4, 2, 60]
    await spend(shared, replace(BUDGET, alert_shares=(0.4,)), 1)
    assert shared.told() == [(Event.SHARE, "k", 0.4, 401)]  # it is used, not held


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("by", "counted"),
    [
        (Used(tokens=7, nano_usd=333), (333, 7)),
        (Used(tokens=7, nano_usd=0), (0, 7)),
        (Used(tokens=7, nano_usd=None, nano_known=3), (400, 7)),
        (Used(tokens=7, nano_usd=None, nano_known=500), (500, 7)),
        (Used(tokens=7, nano_usd=10**20), (2**53 - 1, 7)),
    ],
)
async def test_what_a_dead_worker_had_not_settled_counts_at_what_its_journal_says(
    shared: Place, by: Used, counted: tuple[int, int], late: bool
) -> None:
    asks = (BUDGET, 400), (TOKENS, 40), (AT_ONCE, 1)
    await shared.begin(*asks)
    if late:
        shared.wait(LEASE_S + 1)
        await shared.left(BUDGET)
    for _ in range(2):
        shared.gate.cut_off("r1", by)
    assert await shared.left(BUDGET) == 1000 - counted[0]
    if not late:
        assert [await shared.left(TOKENS), await shared.left(AT_ONCE)] == [100 - counted[1], 2]


async def test_what_was_settled_is_not_counted_again_by_its_journal(shared: Place) -> None:
    admission = await shared.begin((BUDGET, 400))
    shared.gate.settle(admission, Used(tokens=1, nano_usd=300))
    shared.gate.cut_off("r1", Used(tokens=1, nano_usd=300))
    assert await shared.left(BUDGET) == 700


async def test_a_counter_of_before_used_amounts_were_noted_counts_as_used(shared: Place) -> None:
    assert shared.server is not None
    await spend(shared, BUDGET, 700)
    (key,) = shared.server.scan_iter("wb:{limits}:n:*")
    shared.server.hdel(key, "u")
    await spend(shared, replace(BUDGET, alert_shares=(0.8,)), 100)
    assert shared.told() == [(Event.SHARE, "k", 0.8, 800)]


async def test_who_holds_nothing_reads_what_is_used_and_what_is_held(shared: Place) -> None:
    """Of the present period, whoever the holder is; of what slides, what is in its window."""
    hour = limit("hour", Unit.USD, 10_000, Period.HOUR)
    await spend(shared, hour, 100)
    await spend(shared, BUDGET, 300, holder="a:b")
    shared.wait(3550)
    await shared.begin((hour, 20))
    await shared.begin((BUDGET, 50), holder="a:b")
    await shared.begin((RATE, 1))
    gate = shared.gate
    assert isinstance(gate, RedisGate)

    async def read(*limits: Limit) -> dict[tuple[str, str], Count]:
        found = {}
        for of in limits:
            key = key_of(of, span_of(of, shared.clock.now)[0], "a:b" if of is BUDGET else "k")
            found[of.name, named(key).holder] = await counted(gate._link, key, of, shared.clock.now)
        return found

    assert await read(hour, BUDGET) == {
        ("hour", "k"): Count(120, None),
        ("budget", "a:b"): Count(350, 300),
    }
    await shared.begin((BUDGET, 651), holder="a:b")  # what does not fit any more is remembered
    assert await read(BUDGET) == {("budget", "a:b"): Count(350, 300, exhausted=True)}
    shared.wait(120)
    assert await read(hour) == {("hour", "k"): Count(20, None)}
    _, found = await in_redis(gate._link, (hour, BUDGET))  # by Redis's own time
    assert set(found) <= {("hour", "k"), ("budget", "a:b")}


def test_what_a_process_counted_outlives_it() -> None:
    async def run() -> None:
        clock = ManualClock(NOON)
        first = Place(LocalGate(clock), clock)
        await spend(first, WATCHED, 850)
        await first.begin((BUDGET, 50), (RATE, 1), (AT_ONCE, 1))
        assert isinstance(first.gate, LocalGate)
        again = LocalGate(clock)
        again.restore(first.gate.rows())
        second = Place(again, clock)
        assert await second.left(WATCHED) == 100  # what was held nobody can say less of
        assert await second.left(RATE) == 5
        await spend(second, WATCHED, 1)
        assert second.told() == []  # 0.8 was told before
        await spend(second, WATCHED, 99)
        clock.now = dt.datetime(2026, 12, 1, tzinfo=dt.UTC).timestamp()
        third = LocalGate(clock)
        third.restore(again.rows())
        assert [alert.event for alert in await third.resets((WATCHED,))] == [Event.RESET]
        clock.now += 86_401
        fourth = LocalGate(clock)
        fourth.restore(again.rows())
        assert fourth.rows() == []

    asyncio.run(run())


async def test_a_limit_worded_anew_goes_on_counting(place: Place) -> None:
    await place.begin((BUDGET, 400))
    assert await place.left(replace(BUDGET, amount=500)) == 100
    assert await place.left(replace(BUDGET, amount=300)) == -100


async def test_headers_tell_the_tightest_of_each_unit(place: Place) -> None:
    wide = replace(RATE, name="wide", amount=1000)
    admission = await place.begin((wide, 1), (RATE, 1), (TOKENS, 10), (BUDGET, 400))
    told = dict(headers(admission))
    assert told[b"x-ratelimit-limit-requests"] == b"5"
    assert told[b"x-ratelimit-remaining-requests"] == b"4"
    assert told[b"x-ratelimit-reset-requests"] == b"1m0s"
    assert told[b"x-ratelimit-remaining-tokens"] == b"90"
    assert told[b"x-ratelimit-reset-tokens"] == b"12h0m0s"
    assert told[b"x-weighbridge-budget-remaining-usd"] == b"0.0000006"


async def test_a_refused_budget_says_when_it_starts_anew(place: Place) -> None:
    await place.begin((BUDGET, 1000))
    error = refusal(await place.begin((BUDGET, 1)), place.clock.now)
    assert isinstance(error, BudgetSpent)
    assert error.message == (
        "The budget 'budget' for key 'k': $0.000001 per month. $0.00 left, this request may take "
        "$0.000000001. It starts anew on 2026-12-01 at 00:00 (UTC)."
    )


async def test_only_a_hard_budget_asks_for_known_prices(place: Place) -> None:
    assert (await place.begin((RATE, 1), (BUDGET, 1))).priced_only
    assert not (await place.begin((RATE, 1))).priced_only
    soft = replace(BUDGET, at_limit=AtLimit.ROUTE)
    assert not (await place.begin((soft, 1))).priced_only


# --- properties -----------------------------------------------------------------------------------

SMALL = (
    limit("p-usd", Unit.USD, 60, Period.DAY, alert_shares=(0.5, 0.9)),
    limit("p-req", Unit.REQUESTS, 6, Period.MINUTE),
    limit("p-tok", Unit.TOKENS, 50, Period.HOUR),
    limit("p-now", Unit.CONCURRENT, 3),
    limit("p-soft", Unit.USD, 30, Period.MONTH, at_limit=AtLimit.ROUTE),
)
BEGIN = st.tuples(
    st.just("begin"),
    st.dictionaries(st.integers(0, 4), st.integers(0, 25), min_size=1, max_size=4),
)
STEPS = st.lists(
    st.one_of(
        BEGIN,
        BEGIN,
        st.tuples(st.just("settle"), st.integers(0, 5), st.integers(0, 30)),
        st.tuples(st.just("release"), st.integers(0, 5)),
        st.tuples(st.just("abandon"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.sampled_from([0.4, 1.0, 30.0, 61.0, 901.0, 40_000.0])),
    ),
    max_size=30,
)


@dataclass(eq=False)
class Entry:
    """One admitted request in the model."""

    admission: Admission
    at: float
    takes: dict[str, int]  # what it takes of each limit as far as is known
    ended: bool = False  # told of, or past its lease
    told: bool = False  # settled or released


def taken(of: Limit, entries: list[Entry], now: float) -> int:
    """What a limit must have counted, worked out from the history of requests alone."""
    total = 0
    for entry in entries:
        amount = entry.takes.get(of.name, 0)
        if of.unit is Unit.CONCURRENT:
            amount = 0 if entry.ended else amount
        elif of.period in (Period.MINUTE, Period.HOUR):
            span = (60 if of.period is Period.MINUTE else 3600) / 60
            amount = amount if now // span - entry.at // span <= 60 else 0
        else:
            form = "%Y-%m-%d" if of.period is Period.DAY else "%Y-%m"
            day = [dt.datetime.fromtimestamp(t, dt.UTC).strftime(form) for t in (now, entry.at)]
            amount = amount if day[0] == day[1] else 0
        total += amount
    return total


async def play(place: Place, steps: list[tuple]) -> list[object]:
    """Run the steps, holding each answer against the model; returns what was answered."""
    history: list[object] = []
    entries: list[Entry] = []
    for step in steps:
        now = place.clock.now
        match step:
            case ("wait", seconds):
                place.wait(seconds)
                for entry in entries:
                    if not entry.ended and entry.at + LEASE_S <= place.clock.now:
                        entry.ended, entry.takes = True, {}
            case ("begin", amounts):
                asks = [(SMALL[i], 1 if SMALL[i].amount < 10 else n) for i, n in amounts.items()]
                admission = await place.begin(*asks)
                fits = {x.name: taken(x, entries, now) + n <= x.amount for x, n in asks}
                hard = [fits[x.name] for x, _ in asks if x.at_limit is AtLimit.REFUSE]
                assert (admission.refused is None) == all(hard), (asks, fits)
                if admission.refused is None:
                    takes = {x.name: n for x, n in asks if fits[x.name]}
                    entries.append(Entry(admission, now, takes, ended=not takes))
                    assert admission.spent == {n for n, fit in fits.items() if not fit}
                for standing in admission.standings:
                    of = standing.limit
                    assert of.amount - standing.remaining == taken(of, entries, now), of.name
                history.append(
                    (
                        admission.refused and admission.refused.limit.name,
                        [
                            (s.remaining, s.reset_s and round(s.reset_s, 2))
                            for s in admission.standings
                        ],
                    )
                )
            case (what, index, *amount) if index < len(entries):
                entry = entries[-1 - index]
                if entry.told:  # once is enough, and more changes nothing
                    place.gate.settle(entry.admission, used(1000, tokens=1000))
                    continue
                match what:
                    case "settle":
                        spent = used(amount[0], tokens=amount[0])
                        place.gate.settle(entry.admission, spent)
                        entry.takes = {
                            ask.limit.name: spent.of(ask.limit.unit, ask.amount)
                            for ask in entry.admission.asks
                        }
                    case "release":
                        place.gate.release(entry.admission)
                        entry.takes = {}
                    case "abandon":
                        place.gate.abandon(entry.admission.hold or "")
                        entry.takes = {}
                        entries.remove(entry)  # it was never heard of, so nobody settles it
                entry.told = entry.ended = True
    await place.left(SMALL[0], "nobody")  # what was told before it is heard by now
    history.append([(a.event, a.limit.name, a.share, a.spent, a.beyond) for a in place.alerts])
    return history


def check(kind: str, url: Callable[[], str], steps: list[tuple]) -> list[object]:
    async def run() -> list[object]:
        async with place_of(kind, url) as place:
            return await play(place, steps)

    return asyncio.run(run())


@settings(max_examples=300)
@given(STEPS)
def test_the_twin_counts_as_the_history_says(steps: list[tuple]) -> None:
    check("local", str, steps)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_script_counts_as_the_history_says_and_as_its_twin(
    redis_url: str, steps: list[tuple]
) -> None:
    assert check("redis", lambda: redis_url, steps) == check("local", str, steps)
