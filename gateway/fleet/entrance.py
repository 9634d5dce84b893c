"""The way into an engine: a request goes in when a replica has room for it, and waits here if not.

First come, first served, for each backend; who waits longer than its patience is turned away with
the time to come back. What waits here costs the engine nothing, what waits in the engine does.

INVARIANTS
- A ticket is left once, however often it is told to; what it held is free then, at once.
- Who is cancelled while it waits holds nothing.
- Nobody waits while there is room for it and nobody is before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway.domain.catalog import Backend
from gateway.domain.engine import Need
from gateway.domain.errors import NoRoom
from gateway.fleet.observed import Fleet
from gateway.fleet.prefixes import Chain
from gateway.fleet.rooms import Holding, Place, Rooms
from gateway.policy.replicas import choose
from gateway.runtime import Clock


@dataclass(slots=True, eq=False)
class Ticket:
    """The leave to send one attempt to one replica."""

    place: Backend
    waited_s: float
    hit_tokens: int
    _place: Place
    _held: Holding
    _entrance: Entrance

    def answered(self) -> None:
        """The first token is here: its prompt is computed."""
        self._held.prefill_tokens = 0

    def sent(self, chain: Chain) -> None:
        """It is asked to compute this prompt, and will have it in its cache."""
        self._place.prefixes.add(chain)

    def cached(self, tokens: int) -> None:
        """So much of the prompt it found in its cache."""
        if self.hit_tokens:
            self._place.prefixes.heard(as_expected=tokens >= self.hit_tokens // 2)

    def leave(self) -> None:
        """The attempt ended."""
        if self._held in self._place.holdings:
            self._place.holdings.remove(self._held)
            self._entrance.serve(self.place.name)


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that wants in."""

    backend: str
    need: Need
    hits: Mapping[str, int]
    avoid: frozenset[str]
    since: float


@dataclass(slots=True)
class Entrance:
    """All backends with an engine."""

    fleet: Fleet
    clock: Clock
    rooms: Rooms = field(init=False)
    _queues: dict[str, deque[tuple[_Asked, asyncio.Future[Ticket]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rooms = Rooms(self.fleet)

    def adopt(self, backends: Iterable[Backend]) -> None:
        """These are the backends now."""
        self.rooms.adopt(backends)

    async def enter(
        self,
        backend: Backend,
        need: Need,
        hits: Mapping[str, int],
        *,
        patience_s: float,
        avoid: frozenset[str] = frozenset(),
    ) -> Ticket:
        """Wait for room and take it. `hits` and `avoid` name replicas as `Backend.seen_as`.

        Raises NoRoom after `patience_s`.
        """
        asked = _Asked(backend.name, need, hits, avoid, self.clock.monotonic())
        queue = self._queues.setdefault(backend.name, deque())
        if not queue and (ticket := self._take(asked)) is not None:
            return ticket
        waiting: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        queue.append((asked, waiting))
        try:
            async with asyncio.timeout(patience_s):
                return await waiting
        except BaseException as error:
            if waiting.done() and not waiting.cancelled():
                waiting.result().leave()  # it was let in just as it gave up
            elif (asked, waiting) in queue:
                queue.remove((asked, waiting))
            if isinstance(error, TimeoutError):
                raise NoRoom(f"The engines of {backend.name} are full.", retry_after_s=1) from None
            raise

    def serve(self, name: str) -> None:
        """Let in who waits at `name` while there is room, in order."""
        queue = self._queues.get(name)
        while queue:
            asked, waiting = queue[0]
            if not waiting.done():
                ticket = self._take(asked)
                if ticket is None:
                    return
                waiting.set_result(ticket)
            queue.popleft()

    def _take(self, asked: _Asked) -> Ticket | None:
        now = self.clock.monotonic()
        rooms = self.rooms.of(asked.backend, now)
        room = choose(rooms, asked.need, asked.hits, avoid=asked.avoid)
        if room is None:
            return None
        place, hit = self.rooms.places[room.name], asked.hits.get(room.name, 0)
        held = place.hold(asked.need, hit, now)
        return Ticket(place.backend, now - asked.since, hit, place, held, self)
