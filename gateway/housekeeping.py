"""What is due once a second: what others and the next start read, and prices that changed.

INVARIANTS
- No step that fails ends the others or the next second: a disk that was full for a moment must not
  keep a worker from learning prices. Each failure is told once, and its end too.
- A change of prices counts as learnt only when the reload succeeded; until then it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from gateway.ledger.prices import PriceBook
from gateway.runtime import Clock

log = logging.getLogger("weighbridge")

HOUSEKEEPING_S = 1.0
PRICES_AHEAD_US = 5_000_000  # holds know a change of prices so long before it
_PRICES = "changed prices"


class Housekeeping:
    """`saves` by what each keeps; `prices` is the book in force, `reload` puts it in force anew."""

    def __init__(
        self,
        clock: Clock,
        *,
        prices: Callable[[], PriceBook],
        reload: Callable[[], Awaitable[None]],
        saves: Mapping[str, Callable[[], None]],
    ) -> None:
        self._clock = clock
        self._prices = prices
        self._reload = reload
        self._saves = saves
        self._seen_us = self._now_us()
        self._failing: dict[str, str] = {}  # what fails, and how

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            await self.once()

    async def once(self) -> None:
        """All that is due now. Raises nothing."""
        for what, save in self._saves.items():
            with self._guarded(what):
                save()
        with self._guarded(_PRICES):
            now_us = self._now_us()
            if self._prices().turned(self._seen_us, now_us, ahead_us=PRICES_AHEAD_US):
                await self._reload()
            self._seen_us = now_us

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._failing.get(what) != type(error).__name__:
                log.exception("housekeeping: %s: it is tried again", what)
            self._failing[what] = type(error).__name__
        else:
            if self._failing.pop(what, None) is not None:
                log.info("housekeeping: %s: well again", what)

    def _now_us(self) -> int:
        return round(self._clock.wall() * 1e6)
