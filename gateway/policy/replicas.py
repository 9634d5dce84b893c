"""Which replica of a backend a request goes to. Pure.

The one that will say the first token soonest: prompt tokens that wait there already, and what of
this prompt is not in its KV cache, over its prefill speed. So a cached prefix attracts just as long
as the queue before it is shorter than computing the prefix anew: affinity and balance are one
figure. Equals go by what is in flight.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.domain.engine import Need, Phase, Room


def choose(
    rooms: tuple[Room, ...],
    need: Need,
    hits: Mapping[str, int],
    *,
    avoid: frozenset[str] = frozenset(),
) -> Room | None:
    """The best of `rooms` that can take the request now; None where none can.

    `hits` are the tokens of the prompt in a replica's cache, by its name; `avoid` names those that
    were tried already.
    """
    able = [room for room in rooms if room.name not in avoid and fits(room, need)]
    return min(able, key=lambda room: _work(room, need, hits), default=None)


def fits(room: Room, need: Need) -> bool:
    """Whether the replica can take the request now."""
    if not room.open or room.phase is not Phase.WARM:
        return False
    if room.in_flight_max is not None and room.in_flight >= room.in_flight_max:
        return False
    return room.kv_free is None or need.kv_tokens <= room.kv_free


def _work(room: Room, need: Need, hits: Mapping[str, int]) -> tuple[float, int]:
    uncached = max(need.prompt_tokens - hits.get(room.name, 0), 0)
    return room.prefill_tokens + uncached, room.in_flight
