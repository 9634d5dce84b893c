"""Boards: a file and Redis keep one contract; workers that share one act as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.fleet.breaker import RUN_MAX
from gateway.fleet.canary import Canaries
from gateway.fleet.observed import Fleet
from gateway.fleet.shared import (
    Board,
    BoardAway,
    Kind,
    LocalBoard,
    Notices,
    RedisBoard,
    share_forever,
)
from gateway.policy.language import Canary
from gateway.redis_link import RedisDown, RedisLink
from gateway.runtime import ManualClock, SystemClock, TaskOwner

Boards = Callable[[], Awaitable[Board]]
RULE = Canary(backends=frozenset({"new"}), share=0.1, samples_min=5)


@pytest.fixture(params=["local", "redis"])
async def boards(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Boards]:
    """Makes the board of one more worker."""
    links: list[RedisLink] = []

    async def make() -> Board:
        if request.param == "local":
            return LocalBoard(tmp_path / "board.json", SystemClock())
        link = RedisLink(request.getfixturevalue("redis_url"), timeout_s=5.0)
        await link.connect()
        links.append(link)
        return RedisBoard(link)

    yield make
    for link in links:
        await link.aclose()


async def found(board: Board, key: tuple[str, str]) -> float:
    """Seconds left of a notice, once it is there."""
    async with asyncio.timeout(10):
        while key not in (notices := await board.read()):
            await asyncio.sleep(0.005)
    return notices[key]


async def gone(board: Board, key: tuple[str, str]) -> None:
    async with asyncio.timeout(10):
        while key in await board.read():
            await asyncio.sleep(0.02)


async def test_what_one_tells_the_others_read(boards: Boards) -> None:
    one, other = await boards(), await boards()
    assert await other.read() == {}
    one.tell(Kind.COOLED, "vendor/a b%", 30.0)
    one.tell(Kind.REVERTED, "d1 route", 86_400.0)
    assert 20 < await found(other, (Kind.COOLED, "vendor/a b%")) <= 30
    assert 86_000 < await found(other, (Kind.REVERTED, "d1 route")) <= 86_400
    assert await one.read() == pytest.approx(await other.read(), abs=5)


async def test_the_longer_of_two_counts(boards: Boards) -> None:
    one, other = await boards(), await boards()
    one.tell(Kind.COOLED, "a", 50.0)
    await found(other, (Kind.COOLED, "a"))
    other.tell(Kind.COOLED, "a", 10.0)
    other.tell(Kind.COOLED, "b", 10.0)
    await found(one, (Kind.COOLED, "b"))
    assert await found(one, (Kind.COOLED, "a")) > 30
    one.tell(Kind.COOLED, "b", 50.0)
    one.tell(Kind.COOLED, "c", 1.0)
    await found(other, (Kind.COOLED, "c"))
    assert await found(other, (Kind.COOLED, "b")) > 30


async def test_a_notice_ends_and_another_begins(boards: Boards) -> None:
    board = await boards()
    for _ in range(2):
        board.tell(Kind.OPENED, "a", 0.2)
        await found(board, (Kind.OPENED, "a"))
        await gone(board, (Kind.OPENED, "a"))
    assert await board.read() == {}


@asynccontextmanager
async def workers(*boards: Board) -> AsyncIterator[tuple[list[Fleet], list[Canaries]]]:
    """As many workers as boards, sharing."""
    fleets, canaries = [Fleet() for _ in boards], [Canaries() for _ in boards]
    for each in canaries:
        each.adopt("d1", {"r": RULE})
    tasks = TaskOwner("test")
    for fleet, canary, board in zip(fleets, canaries, boards, strict=True):
        tasks.start(share_forever(fleet, board, SystemClock(), canary, every_s=0.02), "share")
    await asyncio.sleep(0)
    try:
        yield fleets, canaries
    finally:
        await tasks.drain(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def cooling(fleet: Fleet) -> bool:
    return fleet.snapshot(["x"], time.monotonic())["x"].cooling


async def test_one_429_cools_for_all_and_never_longer_than_was_asked(boards: Boards) -> None:
    async with workers(await boards(), await boards(), await boards()) as (fleets, _):
        began = time.monotonic()
        fleets[0].failed("x", began, busy=True, retry_after_s=1.0)
        await until(lambda: all(map(cooling, fleets)))
        await until(lambda: not any(map(cooling, fleets)))
        assert time.monotonic() - began >= 1.0
        views = [fleet.snapshot(["x"], time.monotonic())["x"] for fleet in fleets]
        assert {view.circuit for view in views} == {"half_open"}  # each asks once


async def test_an_opened_circuit_makes_one_failure_decide_elsewhere(boards: Boards) -> None:
    async with workers(await boards(), board := await boards()) as (fleets, _):
        for _ in range(RUN_MAX):
            fleets[0].failed("x", time.monotonic())
        await found(board, (Kind.OPENED, "x"))
        await gone(board, (Kind.OPENED, "x"))  # so it was applied, and is not applied again
        now = time.monotonic()
        assert fleets[1].snapshot(["x"], now)["x"].circuit == "closed"
        fleets[1].failed("x", now)
        assert fleets[1].snapshot(["x"], now)["x"].circuit == "open"


async def test_a_canary_taken_back_is_so_everywhere_and_for_who_comes_later(boards: Boards) -> None:
    first = await boards()
    async with workers(first, await boards()) as (_, canaries):
        for _ in range(5):
            canaries[0].ended("r", "d1", canary=True, failed=True, cost_nano_usd=None)
        await until(lambda: all(each.reverted() == {"r"} for each in canaries))
    async with workers(await boards()) as (_, late):
        await until(lambda: late[0].reverted() == {"r"})


class Flaky:
    """A board that fails as told, then works."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.told: list[tuple[str, str]] = []

    def tell(self, kind: Kind, subject: str, seconds: float) -> None:
        self.told.append((kind, subject))

    async def read(self) -> Notices:
        if self.errors:
            raise self.errors.pop(0)
        return {(Kind.COOLED, "x"): 60.0, ("of a later version", "y"): 5.0}


async def test_no_failure_of_the_board_ends_the_sharing(caplog: pytest.LogCaptureFixture) -> None:
    flaky = Flaky(BoardAway("away"), RuntimeError("odd"), RuntimeError("odd"), BoardAway("away"))
    async with workers(flaky) as (fleets, canaries):
        await until(lambda: cooling(fleets[0]))
        assert [r.getMessage() for r in caplog.records] == [
            "what other workers see could not be applied"
        ]
        canaries[0].heard("d1", "r")  # which this board lost: it is told again
        await until(lambda: (Kind.REVERTED, "d1 r") in flaky.told)


async def test_while_redis_is_down_there_is_no_board_and_telling_is_silent() -> None:
    link = RedisLink("redis://127.0.0.1:1/0", timeout_s=0.1)
    with pytest.raises(RedisDown):
        await link.connect()
    board = RedisBoard(link)
    board.tell(Kind.COOLED, "a", 1.0)
    with pytest.raises(BoardAway):
        await board.read()
    await link.aclose()


async def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file in place of the folder")
    board = LocalBoard(tmp_path / "home" / "board.json", ManualClock())
    board.tell(Kind.COOLED, "a", 1.0)
    board.tell(Kind.COOLED, "a", 1.0)
    assert len(caplog.records) == 1
    with pytest.raises(BoardAway):
        await board.read()


async def test_a_clock_set_back_does_not_make_a_notice_hold_for_hours(tmp_path: Path) -> None:
    clock = ManualClock()
    board = LocalBoard(tmp_path / "board.json", clock)
    board.tell(Kind.COOLED, "a", 60.0)
    assert await board.read() == {("cooled", "a"): 60.0}
    clock.advance(-3600)
    assert await board.read() == {}
    board.tell(Kind.COOLED, "b", 60.0)
    clock.advance(3600)
    assert await board.read() == {}


@pytest.mark.parametrize(
    "damaged", [b"", b"{", b"[1]", b'{"cooled a": 5}', b'{"cooled a": ["x", 1]}']
)
async def test_a_damaged_file_is_an_empty_board_and_is_mended(
    tmp_path: Path, damaged: bytes
) -> None:
    (tmp_path / "board.json").write_bytes(damaged)
    board = LocalBoard(tmp_path / "board.json", ManualClock())
    assert await board.read() == {}
    board.tell(Kind.COOLED, "a", 60.0)
    assert await board.read() == {("cooled", "a"): 60.0}
