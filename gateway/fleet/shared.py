"""What workers tell one another: who asked to be left alone, what is broken, what was taken back.

A notice has a kind, a subject and a time to live. A worker tells at once, without waiting; all read
the board every `EVERY_S`, so a 429 that one has met cools the backend for the workers of all nodes
within 200 ms. Clocks of nodes need not agree: only what is left travels.

Nothing depends on it: while the board is away each worker goes by what it saw itself, and no
failure here reaches a request. `RedisBoard` is for all nodes; `LocalBoard`, for workers of one host
without Redis, is a folder (`tests/contract/test_boards.py` holds both to one contract).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from gateway.fleet.breaker import OPEN_S_MIN
from gateway.fleet.canary import Canaries
from gateway.fleet.observed import Fleet
from gateway.redis_link import RedisDown, RedisLink, RedisReplyError
from gateway.runtime import Clock

EVERY_S = 0.1
REVERTED_S = 30 * 86_400.0

log = logging.getLogger("weighbridge")


class Kind(StrEnum):
    """What a notice is about. Values are shared between versions."""

    COOLED = "cooled"  # subject: a backend that asked to be left alone so long
    OPENED = "opened"  # subject: a backend on which a run of failures opened a circuit
    REVERTED = "reverted"  # subject: "digest route" whose canary was taken back


class BoardAway(Exception):
    """The board cannot be read now."""


Notices = Mapping[tuple[str, str], float]  # (kind, subject) -> seconds left


class Board(Protocol):
    """Where notices are. Both implementations keep this contract."""

    def tell(self, kind: Kind, subject: str, seconds: float) -> None:
        """Put a notice up, without waiting and without failing. The longer of two counts."""
        ...

    async def read(self) -> Notices:
        """All notices that still hold. Raises BoardAway."""
        ...


# Each field of the hash is a notice; its value is when it ends, by the clock of Redis.
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
_TELL = (
    _NOW
    + """
local ends, old = now + ARGV[2], redis.call('HGET', KEYS[1], ARGV[1])
if not old or ends > tonumber(old) then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', ends))
end
"""
)
_READ = (
    _NOW
    + """
local all, out = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local left = all[i + 1] - now
  if left > 0 then out[#out + 1] = all[i] out[#out + 1] = left
  else redis.call('HDEL', KEYS[1], all[i]) end
end
return out
"""
)


class RedisBoard:
    """One hash that every worker of every node reads with one command."""

    KEY = "wb:board"

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    def tell(self, kind: Kind, subject: str, seconds: float) -> None:
        left_ms = round(seconds * 1000)
        self._link.send("EVAL", _TELL, 1, self.KEY, f"{kind} {subject}", left_ms)

    async def read(self) -> Notices:
        try:
            found = await self._link.command("EVAL", _READ, 1, self.KEY)
        except (RedisDown, RedisReplyError) as error:
            raise BoardAway(str(error)) from error
        fields = (field.decode().partition(" ") for field in found[::2])
        return {
            (kind, subject): left_ms / 1000
            for (kind, _, subject), left_ms in zip(fields, found[1::2], strict=True)
        }


class LocalBoard:
    """A folder with a file for each notice, named by it: "when it ends, how long it was to hold".

    A file is replaced whole, so a reader sees an old one or a new one. Wall-clock time, for a
    taken-back canary stays so over restarts; where the clock was set back, a notice that would
    hold longer than it was ever to hold is dropped.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._wall = clock.wall
        self._numbers = itertools.count()
        self._failing = False

    def tell(self, kind: Kind, subject: str, seconds: float) -> None:
        try:
            self._put(self._folder / quote(f"{kind} {subject}", safe=" "), seconds)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("other workers cannot be told of what this one sees: %s", error)
            self._failing = True

    def _put(self, file: Path, seconds: float) -> None:
        now = self._wall()
        left = self._left(file, now)
        if left is None or left < seconds:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f".{os.getpid()}-{next(self._numbers)}"
            draft.write_text(f"{now + seconds:.3f} {seconds:.3f}")
            draft.replace(file)

    async def read(self) -> Notices:
        try:
            return self._all()
        except OSError as error:
            raise BoardAway(str(error)) from error

    def _all(self) -> Notices:
        now, found = self._wall(), {}
        if not self._folder.exists():
            return {}
        for name in os.listdir(self._folder):  # noqa: PTH208 — ten times a second: a third of iterdir
            if name.startswith("."):
                continue
            left = self._left(self._folder / name, now)
            if left is None:  # one put up this moment is lost with it, and told at the next 429
                (self._folder / name).unlink(missing_ok=True)
            else:
                kind, _, subject = unquote(name).partition(" ")
                found[kind, subject] = left
        return found

    @staticmethod
    def _left(file: Path, now: float) -> float | None:
        """Seconds left of a notice; None if there is none, or none that makes sense."""
        try:
            ends, whole = map(float, file.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        left = ends - now
        return left if 0 < left <= whole + 1.0 else None


async def share_forever(
    fleet: Fleet,
    board: Board,
    clock: Clock,
    canaries: Canaries | None = None,
    *,
    every_s: float = EVERY_S,
) -> None:
    """Tell what this worker sees, apply what others saw. Only a cancellation ends it."""
    canaries = canaries or Canaries()
    fleet.on_cooled = partial(board.tell, Kind.COOLED)
    fleet.on_opened = lambda name: board.tell(Kind.OPENED, name, OPEN_S_MIN)
    canaries.on_told = lambda digest, route: board.tell(
        Kind.REVERTED, f"{digest} {route}", REVERTED_S
    )
    known: frozenset[tuple[str, str]] = frozenset()
    said = ""
    while True:
        try:
            notices = await board.read()
            _apply(notices, known, fleet, canaries, clock.monotonic())
            known, said = frozenset(notices), ""
        except BoardAway:
            pass  # what we saw ourselves still counts
        except Exception as error:  # sharing helps, and must never be what fails
            if repr(error) != said:
                said = repr(error)
                log.exception("what other workers see could not be applied")
        await asyncio.sleep(every_s)


def _apply(
    notices: Notices,
    known: frozenset[tuple[str, str]],
    fleet: Fleet,
    canaries: Canaries,
    now: float,
) -> None:
    for (kind, subject), seconds in notices.items():
        if kind == Kind.COOLED:
            fleet.cooled(subject, now, seconds)
        elif kind == Kind.OPENED and (kind, subject) not in known:
            fleet.suspect(subject)
        elif kind == Kind.REVERTED:
            digest, _, route = subject.partition(" ")
            canaries.heard(digest, route)
    for digest, route in canaries.gone:  # a board that was emptied, or away when it was told
        if (Kind.REVERTED, f"{digest} {route}") not in notices:
            canaries.on_told(digest, route)
