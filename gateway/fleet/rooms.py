"""What each engine can still take: our own count of what we sent it, and what it said of itself.

Own counts come first: they are exact and instant, while a reading is late, and many who act on the
same late reading arrive together (the thundering herd). A reading adds what others sent, and tells
the capacity. Knows neither policy nor how readings are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gateway.domain.catalog import Backend, Engine
from gateway.domain.decision import Snapshot
from gateway.domain.engine import Need, Phase, Reading, Room
from gateway.fleet.observed import Fleet
from gateway.fleet.prefixes import TOKENS_A_BLOCK, Chain, Prefixes

READING_S_MAX = 5.0  # older ones say nothing of the load any more


class Holding:
    """What one request holds of a replica, from when it may be sent until it ended."""

    __slots__ = ("at", "kv_tokens", "prefill_tokens")

    def __init__(self, at: float, kv_tokens: int, prefill_tokens: int) -> None:
        self.at = at
        self.kv_tokens = kv_tokens
        self.prefill_tokens = prefill_tokens


class Place:
    """One replica. Tokens and counts are this worker's own."""

    __slots__ = (
        *("backend", "engine", "holdings", "phase", "prefixes", "ramp", "reading", "ready_in_s"),
    )

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.engine = backend.engine or Engine()
        self.holdings: set[Holding] = set()
        self.reading: Reading | None = None
        self.phase = Phase.WARM
        self.ready_in_s: float | None = None
        self.ramp = 1.0
        self.prefixes = Prefixes()

    def hold(self, need: Need, hit_tokens: int, now: float) -> Holding:
        """Set room aside for a request that is about to be sent."""
        held = Holding(now, need.kv_tokens, max(need.prompt_tokens - hit_tokens, 0))
        self.holdings.add(held)
        return held

    def room(self, now: float, *, open_: bool) -> Room:
        """What it can still take."""
        reading = self.reading
        fresh = reading is not None and now - reading.at <= READING_S_MAX
        size = (reading.kv_tokens if reading is not None else None) or self.engine.kv_tokens
        stated = self.engine.running_max or (None if reading is None else reading.running_max)
        free = None
        if size is not None:
            self.prefixes.size = size // TOKENS_A_BLOCK
            taken = sum(held.kv_tokens for held in self.holdings)
            if reading is not None and fresh and reading.kv_used is not None:
                unseen = sum(held.kv_tokens for held in self.holdings if held.at > reading.at)
                taken = max(taken, round(reading.kv_used * size) + unseen)
            free = max(int(size * self.engine.admission.kv_used_max) - taken, 0)
        return Room(
            name=self.backend.seen_as,
            phase=self.phase,
            open=open_,
            ready_in_s=self.ready_in_s,
            ramp=self.ramp,
            in_flight=len(self.holdings),
            in_flight_max=stated,
            kv_tokens=size,
            kv_free=free,
            waiting=reading.waiting if reading is not None and fresh else None,
            prefill_tokens=sum(held.prefill_tokens for held in self.holdings),
            tpot_ms=None if reading is None else reading.tpot_ms,
            read_ms=None if reading is None else round((now - reading.at) * 1000),
        )


class Rooms:
    """The replicas of all backends with an engine, by `Backend.seen_as`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.places: dict[str, Place] = {}
        self._of: dict[str, tuple[Place, ...]] = {}

    def adopt(self, backends: Iterable[Backend]) -> None:
        """These are the backends now. Who was known keeps what is known of it."""
        known, self.places, self._of = self.places, {}, {}
        for backend in backends:
            if not (backend.configured and (backend.engine or backend.replicas)):
                continue
            for replica in backend.places:
                place = known.get(replica.seen_as)
                if place is None or place.backend.base_url != replica.base_url:
                    place = Place(replica)
                place.backend, place.engine = replica, replica.engine or Engine()
                self.places[replica.seen_as] = place
            self._of[backend.name] = tuple(self.places[r.seen_as] for r in backend.places)
            self._fleet.group(backend.name, [r.seen_as for r in backend.replicas])

    def __contains__(self, backend: str) -> bool:
        return backend in self._of

    def hits(self, backends: Iterable[str], chain: Chain, prompt_tokens: int) -> dict[str, int]:
        """The prompt tokens each replica of `backends` is believed to have cached, if any."""
        found = {}
        for backend in backends:
            for place in self._of.get(backend, ()):
                matched = place.prefixes.match(chain)
                if matched:
                    found[place.backend.seen_as] = chain.tokens(matched, prompt_tokens)
        return found

    def into(self, snapshot: Snapshot, now: float) -> Snapshot:
        """`snapshot` with the rooms of those that have engines."""
        if self._of.keys().isdisjoint(snapshot):
            return snapshot
        return {
            name: replace(view, rooms=self.of(name, now)) if name in self._of else view
            for name, view in snapshot.items()
        }

    def of(self, backend: str, now: float) -> tuple[Room, ...]:
        """What the replicas of `backend` can take; () where it has no engine."""
        fleet = self._fleet
        return tuple(
            place.room(now, open_=fleet.may_send(place.backend.seen_as, now))
            for place in self._of.get(backend, ())
        )
