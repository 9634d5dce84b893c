"""Time, ids and owned tasks: what pure code is given instead of reaching for it.

INVARIANT: a task started here is referenced until it ends, has a name, and is drained at
shutdown; its failure is reported to `on_error`, never lost. Bare `asyncio.create_task` is banned
by the linter because a task nobody holds may vanish mid-way, with the money it was to book.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

log = logging.getLogger("weighbridge")


class Clock(Protocol):
    """Durations come from `monotonic` (seconds), dates from `wall` (seconds since the epoch)."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The machine's own clocks."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


class ManualClock:
    """A clock for tests: stands still until it is told to move."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


class RequestIds:
    """Time-ordered ids: 10 characters of milliseconds, 16 of randomness (ULID, Crockford base 32).

    Randomness is drawn 4 KiB at a time: one system call for about 400 ids.
    """

    def __init__(self, clock: Clock, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._wall = clock.wall
        self._entropy = entropy
        self._pool = b""
        self._at = 0
        self._last_ms = -1
        self._prefix = ""

    def __call__(self) -> str:
        ms = int(self._wall() * 1000)
        if ms != self._last_ms:
            self._last_ms = ms
            self._prefix = "req_" + _encode(ms, 10)
        at = self._at
        if at + 10 > len(self._pool):
            self._pool, at = self._entropy(4096), 0
        self._at = at + 10
        return self._prefix + _encode(int.from_bytes(self._pool[at : at + 10], "big"), 16)


_PAIRS = [a + b for a in _BASE32 for b in _BASE32]  # two characters a step


def _encode(number: int, length: int) -> str:
    out = []
    for _ in range(length // 2):
        out.append(_PAIRS[number & 1023])
        number >>= 10
    out.reverse()
    return "".join(out)


class TaskOwner:
    """Holds the tasks of one component and drains them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` as a named task that outlives its caller."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed: %r", task.get_name(), error, exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def drain(self, timeout_s: float) -> int:
        """Wait for all tasks up to `timeout_s`, cancel the rest; returns how many that were."""
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
        return len(late)
