"""The demo from start to end: engines, gateway, traffic, tables, and then serving.

Composes real parts only: the worker is `weighbridge serve`'s own process, the traffic goes over
HTTP with a key, the tables are read from the ledger. Whatever happens, Ctrl-C included, what was
started is ended. The gateway's own modules are imported while the engines start.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from gateway.demo import backends as found
from gateway.demo import children, instance, llama_server
from gateway.demo.backends import DemoBackend, Shipped, Unavailable
from gateway.demo.screen import Screen
from gateway.demo.summary import Served, Summary, as_document, summarise
from gateway.demo.traffic import Client, Heard
from gateway.demo.workload import Faulty, Stage, request_count, workload
from gateway.domain.catalog import Kind
from gateway.domain.money import Rates
from gateway.domain.outcome import RequestRecord

if TYPE_CHECKING:
    from gateway.ledger.store import Store

_ROWS_S_MAX = 15.0
_LOOK_EVERY_S = 0.5
FINE, BROKEN, CANNOT_START = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for on the command line."""

    home: Path
    port: int | None
    engine: str
    offline: bool
    quick: bool
    once: bool
    as_json: bool


class CannotStart(Exception):
    """The message says what to do about it."""


def run(options: Options) -> int:
    """Everything; returns the exit status. Raises StartupError."""
    screen = Screen(quiet=options.as_json)
    demo = Demo(options, screen)
    try:
        return asyncio.run(demo.play())
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.stopped(after_all=demo.serving)
        return FINE if demo.serving else BROKEN
    except (CannotStart, Unavailable, children.ChildError) as error:
        screen.failed(str(error))
        return BROKEN if demo.serving else CANNOT_START
    except httpx.HTTPError as error:
        screen.failed(f"the gateway stopped answering: {error!r}; see {demo.home}/gateway.log")
        return BROKEN


class Demo:
    """One run. `serving` is set once the tables are out."""

    def __init__(self, options: Options, screen: Screen) -> None:
        self.options = options
        self.screen = screen
        self.home = options.home
        self.serving = False
        self.day = dt.datetime.now(dt.UTC).date()

    async def play(self) -> int:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        began = time.monotonic()
        with ExitStack() as stack:
            self.home.mkdir(parents=True, exist_ok=True)
            sock = stack.enter_context(self._socket())
            url = f"http://{instance.HOST}:{sock.getsockname()[1]}"
            self.screen.starting()
            backends = await self._backends(stack)
            instance.write_policies(self.home, backends)
            from gateway.app import load_files, open_store

            settings = instance.settings(self.home)
            files = load_files(settings)
            gateway = instance.start_gateway(self.home, sock)
            stack.callback(gateway.stop)
            sock.close()
            store = await open_store(settings)
            try:
                key = await instance.make_key(store, self.home)
                await asyncio.to_thread(instance.wait_until_ready, gateway, url)
                self.screen.started(backends, self._hints(backends), url, self.home, began)
                summary = await self._traffic(store, backends, url, key)
                rates = {
                    r.id: r
                    for rows in files.prices.rows.values()
                    for row in rows
                    for r in row.every()
                }
                self._show(summary, backends, rates)
                if not self.options.once:
                    self.serving = True
                    self.screen.serving(url, key, self.home)
                    await self._serve(store, gateway)
            except asyncio.CancelledError:
                self.screen.stopping()
                raise
            finally:
                await store.close()
        return FINE if summary.held else BROKEN

    def _socket(self) -> socket.socket:
        try:
            return instance.open_socket(self.options.port)
        except OSError as error:
            raise CannotStart(
                f"cannot listen on port {self.options.port}: {error.strerror}; choose another "
                "with --port"
            ) from None

    # --- backends ---------------------------------------------------------------------------------

    async def _backends(self, stack: ExitStack) -> list[DemoBackend]:
        """The three, side by side."""
        shipped = Shipped.load()
        environment: Mapping[str, str] = {} if self.options.offline else os.environ
        own, managed, closed, _ = await asyncio.gather(
            self._self_hosted(stack, shipped),
            self._hosted(Kind.MANAGED, stack, shipped, environment),
            self._hosted(Kind.CLOSED_API, stack, shipped, environment),
            asyncio.to_thread(import_module, "gateway.app"),
        )
        return [own, managed, closed]

    async def _hosted(
        self, kind: Kind, stack: ExitStack, shipped: Shipped, environment: Mapping[str, str]
    ) -> DemoBackend:
        real = found.real_vendor(kind, shipped, environment)
        return real or await self._stand_in(kind, stack, shipped)

    async def _stand_in(self, kind: Kind, stack: ExitStack, shipped: Shipped) -> DemoBackend:
        log = self.home / f"{kind.value}.log"
        child = children.start(f"the {kind.value} stand-in", found.scripted_command(kind), log)
        stack.callback(child.stop)
        return await asyncio.to_thread(found.stand_in, kind, child, shipped, self.day)

    async def _self_hosted(self, stack: ExitStack, shipped: Shipped) -> DemoBackend:
        """What was asked for, or the first that can be had."""
        wanted = self.options.engine
        for engine in ("vllm", "ollama"):
            if wanted in {"auto", engine}:
                try:
                    return await asyncio.to_thread(found.found_engine, engine, shipped)
                except Unavailable:
                    if wanted == engine:
                        raise
        if wanted in {"auto", "llama.cpp"}:
            try:
                return await self._llama(stack, shipped)
            except (llama_server.NotInstalledError, llama_server.StartError) as error:
                if wanted != "auto":
                    raise Unavailable(str(error)) from None
                self.screen.note(f"{error}\nA scripted stand-in takes its place (simulated).")
        return await self._stand_in(Kind.SELF_HOSTED, stack, shipped)

    async def _llama(self, stack: ExitStack, shipped: Shipped) -> DemoBackend:
        server = await asyncio.to_thread(found.start_llama)
        stack.callback(server.stop)
        known = instance.known_prices(self.home)
        return await asyncio.to_thread(found.llama_backend, server, shipped, self.day, known)

    def _hints(self, backends: Sequence[DemoBackend]) -> dict[str, list[str]]:
        """Per stand-in, the variables that would make it real."""
        shipped = Shipped.load()
        return {
            b.name: found.keys_wanted(b.kind, shipped)
            for b in backends
            if b.simulated and b.kind is not Kind.SELF_HOSTED
        }

    # --- traffic ----------------------------------------------------------------------------------

    async def _traffic(
        self, store: Store, backends: Sequence[DemoBackend], url: str, key: str
    ) -> Summary:
        by_kind = {b.kind: b for b in backends}
        simulated = {k: b.name if b.simulated else None for k, b in by_kind.items()}
        stages = workload(
            quick=self.options.quick,
            window_tokens=by_kind[Kind.SELF_HOSTED].window_tokens,
            faulty=Faulty(simulated[Kind.MANAGED], simulated[Kind.CLOSED_API]),
        )
        heard: list[Heard] = []
        began, client = time.monotonic(), Client(url, key)
        try:
            with self.screen.progress(request_count(stages)) as tick:
                for stage in stages:
                    tick(stage.title, 0)

                    def note(answer: Heard, title: str = stage.title) -> None:
                        heard.append(answer)
                        tick(title, 1)

                    await self._stage(client, stage, backends, note)
        finally:
            await client.aclose()
        seconds = time.monotonic() - began
        rows = await self._rows(store, [h.request_id for h in heard])
        served = [Served(h, rows[h.request_id]) for h in heard if h.request_id in rows]
        return summarise(served, backends, sent=len(heard), seconds=seconds)

    async def _stage(
        self,
        client: Client,
        stage: Stage,
        backends: Sequence[DemoBackend],
        note: Callable[[Heard], None],
    ) -> None:
        """Send one stage, its faulty backend failing meanwhile."""
        faulty = next((b for b in backends if b.name == stage.fault), None)
        if faulty is None:
            await client.play(stage, note)
            return
        await asyncio.to_thread(found.set_failing, faulty, failing=True)
        try:
            await client.play(stage, note)
        finally:
            found.set_failing(faulty, failing=False)

    @staticmethod
    async def _rows(store: Store, ids: Sequence[str]) -> dict[str, RequestRecord]:
        """The ledger's rows of these requests, once the gateway has written them all."""
        rows: dict[str, RequestRecord] = {}
        deadline = time.monotonic() + _ROWS_S_MAX
        while (missing := [i for i in ids if i not in rows]) and time.monotonic() < deadline:
            for request_id in missing:
                row = await store.request(request_id)
                if row is not None:
                    rows[request_id] = row
            await asyncio.sleep(0.1)
        return rows

    # --- afterwards -------------------------------------------------------------------------------

    def _show(
        self, summary: Summary, backends: Sequence[DemoBackend], rates: Mapping[str, Rates]
    ) -> None:
        if self.options.as_json:
            print(json.dumps(as_document(summary, backends, rates), indent=2))
        else:
            self.screen.tables(summary, rates)

    async def _serve(self, store: Store, gateway: children.Child) -> None:
        """Until Ctrl-C; each further request is a line."""
        since_us, shown = int(time.time() * 1e6), set[str]()
        while gateway.running:
            for row in reversed(await store.requests(since_us=since_us, limit=1000)):
                if row.id not in shown:
                    shown.add(row.id)
                    self.screen.passed(row)
            await asyncio.sleep(_LOOK_EVERY_S)
        raise gateway.failed("ended")
