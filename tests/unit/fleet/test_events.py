"""Events of the fleet: told at once to all, kept by a database that may be away meanwhile."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest

from gateway.domain.errors import StoreUnavailable
from gateway.fleet.events import FIGURES_MAX, TEXT_MAX, WAITING_MAX, Events, FleetEvent, Kept


def event(n: int = 0, **fields: object) -> FleetEvent:
    base = {"kind": "crash", "subject": "vllm#a", "at_us": n, "figures": {"lost": 1.5}}
    return FleetEvent(**{**base, **fields})


class Database:
    """Takes rows, or is away."""

    def __init__(self) -> None:
        self.rows: dict[str, dict] = {}
        self.away = 0
        self.lost_answers = 0
        self.broken = False

    async def write(self, rows) -> None:
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        if self.broken:
            raise ValueError("no")
        self.rows.update({row["id"]: dict(row) for row in rows})
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreUnavailable("the answer was lost")


def test_an_event_is_told_to_all_whoever_fails_and_is_in_the_log(caplog):
    heard: list[FleetEvent] = []

    def fails(_: FleetEvent) -> None:
        raise RuntimeError("deaf")

    events = Events(fails, heard.append)
    with caplog.at_level(logging.INFO, "weighbridge"):
        events.tell(event(grave=False))
        events.tell(event(1))
    assert [e.at_us for e in heard] == [e.at_us for e in events.recent] == [0, 1]
    said = [(r.levelname, r.getMessage()) for r in caplog.records if "crash" in r.getMessage()]
    assert said == [
        ("INFO", "fleet: crash vllm#a: lost=1.5"),
        ("WARNING", "fleet: crash vllm#a: lost=1.5"),
    ]


def test_an_event_has_only_what_every_database_takes():
    figures = {"inf": math.inf, "nan": math.nan, "text": "a\0" * 10_000, "n": 3, "ok": True}
    made = event(figures={**figures, **{f"f{n}": n for n in range(100)}}).figures
    assert (made["inf"], made["nan"], made["n"], made["ok"]) == (None, None, 3, True)
    assert made["text"] == "a" * TEXT_MAX
    assert len(made) == FIGURES_MAX
    assert event(subject="vllm#a").backend == event(subject="vllm").backend == "vllm"


async def test_what_waits_is_written_once_though_the_answer_was_lost():
    database = Database()
    kept = Kept(database.write, source="h/0")
    for _ in range(3):
        kept.heard(event(7))  # three that look alike are three
    database.away, database.lost_answers = 1, 1
    assert not await kept.flush()
    kept.heard(event(8))
    assert not await kept.flush()
    assert await kept.flush()
    assert sorted(row["at_us"] for row in database.rows.values()) == [7, 7, 7, 8]
    assert {row["source"] for row in database.rows.values()} == {"h/0"}
    database.away = 1
    assert await kept.flush()  # nothing waits: nothing is asked


async def test_what_waits_is_bounded_and_the_newest_stay():
    database = Database()
    kept = Kept(database.write, source="h/0")
    for n in range(WAITING_MAX + 5):
        kept.heard(event(n))
    assert kept.dropped == 5
    assert await kept.flush()
    assert min(row["at_us"] for row in database.rows.values()) == 5


async def test_rows_that_can_never_be_written_do_not_block_those_after_them():
    database = Database()
    kept = Kept(database.write, source="h/0")
    database.broken = True
    kept.heard(event(1))
    assert await kept.flush()
    database.broken = False
    kept.heard(event(2))
    assert await kept.flush()
    assert [row["at_us"] for row in database.rows.values()] == [2]


async def test_the_task_writes_when_something_comes_and_ends_when_cancelled():
    database = Database()
    kept = Kept(database.write, source="h/0")
    running = asyncio.ensure_future(kept.run())
    kept.heard(event(1))
    async with asyncio.timeout(30):
        while not database.rows:
            await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
