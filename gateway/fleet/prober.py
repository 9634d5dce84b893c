"""Health probes of the backends that have a free health path; never a paid call.

A probe proves only "process alive" (a hung engine answers it), so it can exclude a backend but
never vouch for one: latency and the breaker do that. It finds a laptop engine that is not
running before a request has to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gateway.domain.catalog import Backend
from gateway.domain.errors import UpstreamError
from gateway.fleet.observed import Fleet

PROBE_EVERY_S = 5.0


async def probe_once(
    fleet: Fleet, backends: Iterable[Backend], probe: Callable[[Backend], Awaitable[None]]
) -> None:
    """Probe all of `backends` side by side and record what was seen."""

    async def one(backend: Backend) -> None:
        try:
            await probe(backend)
        except UpstreamError:
            fleet.probed(backend.seen_as, healthy=False)
        else:
            fleet.probed(backend.seen_as, healthy=True)

    watched = [b for b in backends if b.configured and b.health_path]
    await asyncio.gather(*(one(place) for b in watched for place in b.places))


async def probe_forever(
    fleet: Fleet, backends: Iterable[Backend], probe: Callable[[Backend], Awaitable[None]]
) -> None:
    """Probe every few seconds until cancelled."""
    watched = [b for b in backends if b.configured and b.health_path]
    while watched:
        await probe_once(fleet, watched, probe)
        await asyncio.sleep(PROBE_EVERY_S)
