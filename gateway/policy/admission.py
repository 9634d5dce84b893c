"""Whether a backend's engines will take a request, and when. Pure.

    admit    a replica has room now
    queue    it will have, within `queue_ms_max`: the request waits here, not in the engine
    spill    not so soon: others first; it waits up to `wait_ms_max` where nobody else can
    refuse   never: it is larger than any of them, or none is up

An engine that is asked for more KV cache than it has throws work away and computes it again; so
what it cannot hold is not sent to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from gateway.domain.catalog import Admission
from gateway.domain.engine import Need, Phase, Room
from gateway.policy.replicas import choose


class Verdict(Enum):
    """In the order of preference."""

    ADMIT = 0
    QUEUE = 1
    SPILL = 2
    REFUSE = 3


class Judged(NamedTuple):
    """`patience_ms` is how long the request may wait for room, `detail` says why, with figures."""

    verdict: Verdict
    patience_ms: int = 0
    detail: str = ""


def judge(
    rooms: tuple[Room, ...], need: Need, hits: Mapping[str, int], admission: Admission
) -> Judged:
    """What to do with a request for a backend with these `rooms`."""
    if not rooms:  # what is not known is not full
        return Judged(Verdict.ADMIT, admission.queue_ms_max)
    up = [room for room in rooms if room.phase is Phase.WARM and room.open]
    if not up:
        phases = ", ".join(sorted({room.phase.value for room in rooms}))
        return Judged(Verdict.REFUSE, detail=f"no engine is up ({phases})")
    sizes = [room.kv_tokens for room in up if room.kv_tokens is not None]
    largest = max(sizes, default=None)
    if len(sizes) == len(up) and largest is not None and need.kv_tokens > largest:
        return Judged(
            Verdict.REFUSE, detail=f"needs {need.kv_tokens} tokens of KV cache, {largest} exist"
        )
    if choose(rooms, need, hits) is not None:
        return Judged(Verdict.ADMIT, admission.queue_ms_max)
    return Judged(Verdict.SPILL, admission.wait_ms_max, "its engines are full")
