"""What workers tell one another: who asked to be left alone, what is broken, what was taken back.

A notice has a kind, a subject and a time to live. A worker tells at once, without waiting; all read
the board every `EVERY_S`, so a 429 that one has met cools the backend for the workers of all nodes
within 200 ms. Clocks of nodes need not agree: only what is left travels.

Nothing depends on it: while the board is away each worker goes by what it saw itself, and no
failure here reaches a request. `RedisBoard` is for all nodes; `LocalBoard`, for workers of one host
without Redis, is a file (`tests/contract/test_boards.py` holds both to one contract).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Protocol

import orjson

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
    """One small file of all notices, "when it ends, how long it was to hold" for each.

    Written under a lock and replaced whole, so a reader sees the old one or the new one. Wall-clock
    time, for a canary that was taken back stays so over restarts; where the clock was set back, a
    notice that would hold longer than it was ever to hold is dropped.
    """

    def __init__(self, file: Path, clock: Clock) -> None:
        self._file = file
        self._wall = clock.wall
        self._failing = False

    def tell(self, kind: Kind, subject: str, seconds: float) -> None:
        try:
            self._put(f"{kind} {subject}", seconds)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("other workers cannot be told of what this one sees: %s", error)
            self._failing = True

    def _put(self, field: str, seconds: float) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held for the next five lines
            now = self._wall()
            notices = self._standing(now)
            if notices.get(field, (now, 0.0))[0] < now + seconds:
                notices[field] = (now + seconds, seconds)
                draft = self._file.with_suffix(".draft")
                draft.write_bytes(orjson.dumps(notices))
                draft.replace(self._file)

    async def read(self) -> Notices:
        now = self._wall()
        try:
            standing = self._standing(now)
        except OSError as error:
            raise BoardAway(str(error)) from error
        fields = ((*field.partition(" "), ends) for field, (ends, _) in standing.items())
        return {(kind, subject): ends - now for kind, _, subject, ends in fields}

    def _standing(self, now: float) -> dict[str, tuple[float, float]]:
        """What still holds; nothing of a file that makes no sense."""
        try:
            notices = orjson.loads(self._file.read_bytes())
            return {
                field: (ends, whole)
                for field, (ends, whole) in notices.items()
                if 0 < ends - now <= whole + 1.0
            }
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}


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
