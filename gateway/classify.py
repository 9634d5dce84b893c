"""How a request comes by its privacy class: detectors on its text, plugins in a pool, one maximum.

Owns what of this takes time: which work leaves the event loop, the threads that plugins run in,
and what happens when they fail. What is looked for is `policy.detect`'s, the maximum is
`policy.privacy`'s.

INVARIANTS
- What cannot be classified is of the strictest class: an exception, a time-out, a full pool, more
  text than the bound. That holds for plugins and for our own detectors alike.
- A plugin keeps nobody waiting for longer than its `timeout_ms`. One that never returns holds a
  thread for ever, and with all of them gone every request is of the strictest class: fail closed,
  loudly.
- Neither content nor what was found in it reaches a log; a plugin's exception is told by its type.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final, TypeAlias

from gateway.domain.caller import Caller
from gateway.domain.catalog import Catalog, DetectorPlugin
from gateway.policy.detect import NOTHING, Detectors, Finding, Text, read
from gateway.policy.privacy import classify
from gateway.policy.source import ConfigErrors, Problem, nearest

log = logging.getLogger("weighbridge")

GROUP: Final = "weighbridge.detectors"
THREADS: Final = 4
WAITING_MAX: Final = 64
ON_LOOP_CHARS_MAX: Final = 32 * 1024  # 0.1 ms, at worst 4; more is looked at in a thread

Plugin: TypeAlias = Callable[[Sequence[str]], object]
"""Given all strings of a request, says True or False: it found what it looks for. In a thread."""


class PluginMissing(ConfigErrors):
    """The catalog names a plugin that is not installed, or does not load. Says which and why."""

    def __init__(self, name: str, why: str, hint: str = "") -> None:
        path = f"detector_plugins.{name}"
        super().__init__(
            [Problem(source="catalog.yaml", line=1, column=1, path=path, message=why, hint=hint)]
        )


def installed(name: str) -> Plugin:
    """The entry point `name` of the group `weighbridge.detectors`. Raises PluginMissing."""
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        known = [entry.name for entry in entry_points(group=GROUP)]
        hint = nearest(name, known) if known else "install the package that has it"
        raise PluginMissing(name, f"no such entry point in the group {GROUP} is installed", hint)
    try:
        plugin: Plugin = found[0].load()
    except Exception as error:
        raise PluginMissing(name, f"does not load: {error!r}") from error
    if not callable(plugin):
        raise PluginMissing(name, f"{found[0].value} cannot be called")
    return plugin


class Pool:
    """A few daemon threads and a short queue, for code that may hang. Started when first needed."""

    def __init__(self, threads: int = THREADS, waiting_max: int = WAITING_MAX) -> None:
        self._size = threads
        self._threads: list[threading.Thread] = []
        self._work: queue.Queue[tuple[Future[object], Callable[[], object]]] = queue.Queue(
            waiting_max
        )

    def submit(self, work: Callable[[], object]) -> Future[object]:
        """Raises queue.Full. A future cancelled while it waits is never run."""
        if len(self._threads) < self._size:
            self._threads.append(threading.Thread(target=self._serve, daemon=True, name="detector"))
            self._threads[-1].start()
        future: Future[object] = Future()
        self._work.put_nowait((future, work))
        return future

    def _serve(self) -> None:
        while True:
            future, work = self._work.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except (CancelledError, StopIteration) as error:  # asyncio takes these for its own
                future.set_exception(RuntimeError(type(error).__name__))
            except Exception as error:  # noqa: BLE001 - plugins raise anything
                future.set_exception(error)
            except BaseException:  # noqa: BLE001 - SystemExit: the loop must not, the thread goes on
                future.set_exception(RuntimeError("it tried to leave"))


@dataclass(frozen=True, slots=True)
class Classifier:
    """What one catalog says of classes. Built with the rules that it belongs to."""

    catalog: Catalog
    detectors: Detectors
    plugins: tuple[tuple[DetectorPlugin, Plugin], ...]
    pool: Pool
    strictest: int

    @classmethod
    def build(
        cls, catalog: Catalog, pool: Pool, *, find: Callable[[str], Plugin] = installed
    ) -> Classifier:
        """Imports RE2 and plugins, so call it off the event loop. Raises PluginMissing."""
        return cls(
            catalog,
            Detectors.build(catalog),
            tuple((plugin, find(plugin.name)) for plugin in catalog.detector_plugins),
            pool,
            len(catalog.privacy_classes) - 1,
        )

    async def classify(
        self, caller: Caller, *, floor: int, asked: str | None, document: Mapping[str, Any]
    ) -> tuple[int, tuple[str, ...]]:
        """The class as a rank, and the names of the detectors that found something.

        Raises InvalidRequest, Forbidden. Content is not looked at where it cannot matter: what is
        of the strictest class already stays there.
        """
        rank = classify(self.catalog, caller, floor=floor, asked=asked)
        if rank == self.strictest:
            return rank, ()
        found = await self.look(document)
        return classify(self.catalog, caller, floor=floor, asked=asked, found=found), found.names

    async def look(self, document: Mapping[str, Any]) -> Finding:
        """What detectors and plugins say of the content. Never raises."""
        if not (self.detectors.any or self.plugins):
            return NOTHING
        try:
            text = read(document)
            if text.chars <= ON_LOOP_CHARS_MAX:
                found = self.detectors.look(text)
            else:
                found = await asyncio.to_thread(self.detectors.look, text)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is known of the content
            log.critical("detectors failed: %s; the strictest class", type(error).__name__)
            return Finding(self.strictest, ("detectors:failed",))
        if self.plugins and found.rank < self.strictest:
            answers = (self._ask(plugin, run, text) for plugin, run in self.plugins)
            for answer in await asyncio.gather(*answers):
                found |= answer
        return found

    async def _ask(self, plugin: DetectorPlugin, run: Plugin, text: Text) -> Finding:
        strings = (*text.speech, *text.strings)
        try:
            async with asyncio.timeout(plugin.timeout_ms / 1000):
                says = await asyncio.wrap_future(self.pool.submit(lambda: run(strings)))
        except TimeoutError:
            return self._failed(plugin, "timeout", f"no answer in {plugin.timeout_ms} ms")
        except queue.Full:
            return self._failed(plugin, "full", "too many requests wait for a thread")
        except Exception as error:  # noqa: BLE001 - plugins raise anything
            return self._failed(plugin, "failed", type(error).__name__)
        if type(says) is not bool:
            return self._failed(plugin, "failed", "it says neither True nor False")
        return Finding(plugin.rank, (plugin.name,)) if says else NOTHING

    def _failed(self, plugin: DetectorPlugin, how: str, why: str) -> Finding:
        log.warning("detector plugin %s: %s; the strictest class", plugin.name, why)
        return Finding(self.strictest, (f"{plugin.name}:{how}",))
