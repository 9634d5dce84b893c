"""Which replica of a backend a request goes to. Pure.

The one where it costs least time, counted in prompt tokens computed: those that wait there already,
what of this prompt is not in its KV cache, and how much slower it will be said beside all that runs
there. So a cached prefix attracts just as long as the queue before it is shorter than computing the
prefix anew: affinity and balance are one figure.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.domain.engine import Need, Phase, Room

# What one more request in the batch slows an output token by, in prompt tokens computed: 0.25 ms
# against 15 a millisecond (Llama-3.3-70B in FP8 on 4 H100 under vLLM, October 2025: 11.8 ms a token
# at 4 streams, 19.5 at 64, InferenceX); a toy model on two CPU cores has 5.
SLOWER_BY = 4


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
    running = room.in_flight + (room.waiting or 0)
    slower = SLOWER_BY * need.output_tokens * running
    return room.prefill_tokens + uncached + slower, room.in_flight
