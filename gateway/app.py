"""The composition root: from settings to a running worker. Assembles; decides nothing.

A worker is built in the order of its dependencies and taken down in the reverse one. What cannot
work is found here, before the first request: a file that does not load, a store that cannot be
reached. `StartupError` says which, and how to mend it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from gateway.alerts import alerts_of
from gateway.api.auth import Keys
from gateway.api.hot import HotEndpoint, HotLimits, known_paths
from gateway.api.routes import App, build_rest
from gateway.api.wire import BodyLimits
from gateway.backends.base import Wire
from gateway.backends.http_fast import FastHttpClient
from gateway.backends.openai_http import ClientFactory, OpenAIHttpWire
from gateway.bundle import Bundle, load, read_folder
from gateway.classify import Classifier, Pool
from gateway.dispatch import Dispatch, Rules, used_by
from gateway.domain.catalog import Backend, Catalog
from gateway.fleet.canary import Canaries
from gateway.fleet.observed import Fleet
from gateway.fleet.prober import probe_forever, probe_once
from gateway.fleet.shared import Board, LocalBoard, RedisBoard, share_forever
from gateway.housekeeping import PRICES_AHEAD_US, Housekeeping
from gateway.in_force import FileWatch, Folder, InForce, Unloadable, load_version, whoami
from gateway.ledger.flusher import Flusher
from gateway.ledger.journal import Journal
from gateway.ledger.keys import KeyStore
from gateway.ledger.store import Store, StoreUnreachable
from gateway.ledger.versions import Change, Origin, Version, Versions, start
from gateway.limits import Gate, LimitIndex, LocalGate, RedisGate
from gateway.limits.kept import Kept
from gateway.policy.engine import Router
from gateway.policy.source import ConfigErrors
from gateway.redis_link import RedisDown, RedisLink
from gateway.runtime import Clock, RequestIds, SystemClock, TaskOwner
from gateway.sessions import LocalSessions, RedisSessions, Sessions
from gateway.settings import SecretMissing, Settings, secret
from gateway.telemetry import Telemetry

log = logging.getLogger("weighbridge")

FLUSH_S_MAX = 10.0
UNSENT_ROWS_DEGRADED = 10_000
FIRST_PROBE_S_MAX = 1.0


class StartupError(Exception):
    """The gateway cannot start. The message says what to do about it."""


def rules(bundle: Bundle, now_us: int, plugins: Pool) -> Rules:
    """What is decided by at that moment: prices have dates and hours. Raises PluginMissing."""
    rates = bundle.prices.in_force(now_us)
    return Rules(
        catalog=bundle.catalog,
        router=Router.build(bundle.policy, bundle.catalog, rates),
        prices=bundle.prices,
        limits=LimitIndex(
            bundle.limits, bundle.catalog, rates, bundle.prices.in_force(now_us + PRICES_AHEAD_US)
        ),
        classifier=Classifier.build(bundle.catalog, plugins),
        policy=bundle.policy,
        digest=bundle.digest,
        label=bundle.label,
    )


def secret_present(reference: str) -> bool:
    """Whether a secret reference resolves, without looking at the value."""
    try:
        secret(reference)
    except SecretMissing:
        return False
    return True


def load_files(settings: Settings) -> Bundle:
    """Read the policy folder with the policy in force. Raises StartupError: file and place."""
    folder = settings.policies_dir
    try:
        files = read_folder(folder, settings.policy)
        return load(files, secret_present=secret_present, folder=folder)
    except ConfigErrors as error:
        raise StartupError(str(error)) from error


async def settle_policy(settings: Settings, store: Store) -> None:
    """Once per start: the files become a version, unless the newest was put by command.

    Files that do not load change nothing: what was in force goes on, and it is said loudly. Only
    where nothing ever was in force, or the policy asked for does not exist, there is no start.
    Raises StartupError, StoreUnavailable.
    """
    try:
        files = load_files(settings)
    except StartupError as error:
        newest = await Versions(store).newest()
        asked_for = settings.policies_dir / "routing" / f"{settings.policy}.yaml"
        if newest is None or not asked_for.is_file():
            raise
        log.error("policy: the files do not load; %s goes on\n%s", newest.label, error)  # noqa: TRY400
        return
    await put_files_in_force(settings, store, files)


async def put_files_in_force(settings: Settings, store: Store, files: Bundle) -> None:
    """The same for files that load."""
    change = Change(
        digest=files.digest,
        policy=files.policy.name,
        origin=Origin.START,
        author=whoami(),
        files=files.files,
        prices=files.prices,
    )
    version = await start(Versions(store), change)
    if version.digest != files.digest:
        log.warning(
            "policy: %s, put by command (%s, %s), wins over the files in %s (%s); "
            "`weighbridge policy apply` puts those in force",
            version.label,
            version.origin.value,
            version.author,
            settings.policies_dir,
            files.label,
        )


async def open_store(settings: Settings) -> Store:
    """The database, its schema checked. Raises StartupError."""
    settings.home.mkdir(parents=True, exist_ok=True)
    try:
        return await Store.connect(settings.ledger_url, auto_migrate=settings.auto_migrate)
    except StoreUnreachable as error:
        raise StartupError(str(error)) from error


@dataclass(slots=True, kw_only=True)
class Worker:
    """A built worker. `draining`: unready, though it serves until its listener closes."""

    dispatch: Dispatch
    journal: Journal
    flusher: Flusher
    in_force: InForce
    files: FileWatch
    redis: RedisLink | None
    keys: Keys
    telemetry: Telemetry
    tasks: TaskOwner
    limits: HotLimits
    draining: bool = False

    def drain(self) -> None:
        self.draining = True

    def readiness(self) -> Mapping[str, Any]:
        """What `/readyz` says. A store that is down degrades; it does not make us unready."""
        degraded = []
        if self.redis is not None and not self.redis.ready:
            degraded.append("redis")
        if self.flusher.failing is not None or self.journal.unsent_rows > UNSENT_ROWS_DEGRADED:
            degraded.append("database")
        return {
            "ready": not self.draining and not self.journal.full,
            "draining": self.draining,
            "degraded": degraded,
            "policy": self.dispatch.rules.label,
            "policy_version": self.in_force.version.number,
            **self._policy_trouble(),
            "in_flight": self.dispatch.in_flight,
            "journal_unsent_rows": self.journal.unsent_rows,
        }

    def _policy_trouble(self) -> dict[str, str]:
        said = {}
        if self.in_force.errors:
            said["policy_error"] = "\n".join(self.in_force.errors.values())
        if self.files.differs:
            said["policy_files"] = "differ from the version in force"
        return said

    def asgi(self) -> App:
        """The application: the hot endpoints, and FastAPI for the rest."""
        hot = {
            path: HotEndpoint(endpoint, self.dispatch, self.keys, self.limits, self.tasks)
            for path, endpoint in known_paths().items()
        }
        rest = build_rest(
            dispatch=self.dispatch,
            keys=self.keys,
            telemetry=self.telemetry,
            readiness=self.readiness,
            since=int(self.dispatch.clock.wall()),
        )
        return App(hot, rest)


@asynccontextmanager
async def worker(settings: Settings, *, name: str = "0") -> AsyncIterator[Worker]:
    """One worker and its background tasks, all of it taken down again. Raises StartupError."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        store = await open_store(settings)
        stack.push_async_callback(store.close)
        journal = Journal(settings.journal_dir, name, bytes_max=settings.journal_bytes_max)
        stack.callback(journal.stop)
        flusher = Flusher(journal, store)
        stack.push_async_callback(flusher.drain, FLUSH_S_MAX)
        state = await stack.enter_async_context(_state(settings, clock, name))
        flusher.on_cut_off = state.gate.cut_off
        flusher.on_ended = lambda record: state.gate.cut_off(record.id, used_by(record))
        wires = _Wires(settings)
        stack.push_async_callback(wires.aclose)
        tasks = TaskOwner("worker")
        stack.push_async_callback(tasks.drain, 0.0)  # all of them run for ever
        folder = Folder(path=settings.policies_dir, secret_present=secret_present)
        version, bundle = await _newest(settings, store, folder)
        fleet = Fleet(bundle.catalog.backends)
        telemetry = _telemetry(settings, name, fleet, journal)
        alerts = alerts_of(settings, state.gate, telemetry, clock)
        stack.push_async_callback(alerts.drain)
        canaries, plugins = Canaries(telemetry.canary_reverted), Pool()
        dispatch = Dispatch(
            rules=_first_rules(bundle, plugins),
            wires=wires.by_name,
            fleet=fleet,
            sessions=state.sessions,
            book=journal,
            telemetry=telemetry,
            clock=clock,
            new_id=RequestIds(clock),
            worker=name,
            in_flight_max=settings.in_flight_max,
            gate=state.gate,
            canaries=canaries,
        )
        stack.push_async_callback(dispatch.drain)
        flusher.start()
        alerts.start(lambda: dispatch.rules.limits.limits)
        switch = _Switch(dispatch, wires, tasks, plugins)
        await switch.start(bundle)
        in_force = InForce(Versions(store), version, bundle, folder=folder, consumer=switch)
        files = FileWatch(in_force, on=settings.policy_watch)
        background = [
            tasks.start(in_force.follow(), "policy versions"),
            tasks.start(files.run(), "policy files"),
            tasks.start(share_forever(fleet, state.board, clock, canaries), "what workers share"),
            tasks.start(_house(in_force, dispatch, state.keep).run(), "housekeeping"),
        ]
        try:
            yield Worker(
                dispatch=dispatch,
                journal=journal,
                flusher=flusher,
                in_force=in_force,
                files=files,
                redis=state.redis,
                keys=Keys(KeyStore(store, pepper=settings.key_pepper, home=settings.home)),
                telemetry=telemetry,
                tasks=tasks,
                limits=_limits(settings),
            )
        finally:
            async with in_force.asking:
                for task in background:
                    task.cancel()
            switch.stop()
            telemetry.save()


class _State(NamedTuple):
    """What a worker keeps beyond one request: for all nodes in Redis, else for itself.

    `keep` is called now and then: what of it must outlive this process.
    """

    sessions: Sessions
    gate: Gate
    board: Board
    redis: RedisLink | None
    keep: Callable[[], None]


@asynccontextmanager
async def _state(settings: Settings, clock: Clock, name: str) -> AsyncIterator[_State]:
    redis, workers = await _redis(settings), settings.workers
    if redis is None:
        gate = LocalGate(clock, workers=workers)
        kept = Kept(gate, settings.home, name)
        board = LocalBoard(settings.home / "board.json", clock)
        try:
            yield _State(LocalSessions(clock), gate, board, None, kept.save)
        finally:
            kept.save()
        return
    try:
        gate_of_all = RedisGate(redis, clock, workers=workers)
        yield _State(RedisSessions(redis), gate_of_all, RedisBoard(redis), redis, lambda: None)
    finally:
        await redis.aclose()


def _first_rules(bundle: Bundle, plugins: Pool) -> Rules:
    try:
        return rules(bundle, _now_us(), plugins)
    except ConfigErrors as error:
        raise StartupError(str(error)) from error


async def _newest(settings: Settings, store: Store, folder: Folder) -> tuple[Version, Bundle]:
    """What is in force, put there now if nothing ever was. Raises StartupError."""
    versions = Versions(store)
    version = await versions.newest()
    if version is None:
        await put_files_in_force(settings, store, load_files(settings))
        version = await versions.newest()
        assert version is not None
    try:
        bundle = await load_version(versions, version, folder)
    except Unloadable as error:
        raise StartupError(
            f"{error}\n  it was put in force by a program that knows more; run that one, "
            "or `weighbridge policy rollback`"
        ) from error
    await versions.state_prices(version, bundle.prices)
    return version, bundle


class _Switch:
    """What a bundle means to this worker: all that is made from it, made again and swapped."""

    def __init__(self, dispatch: Dispatch, wires: _Wires, tasks: TaskOwner, plugins: Pool) -> None:
        self._dispatch = dispatch
        self._wires = wires
        self._tasks = tasks
        self._plugins = plugins
        self._probing: asyncio.Task[None] | None = None

    async def start(self, bundle: Bundle) -> None:
        """Know before the first request who is not there."""
        await self._provide(bundle.catalog)
        backends = bundle.catalog.backends.values()
        try:
            async with asyncio.timeout(FIRST_PROBE_S_MAX):
                await probe_once(self._dispatch.fleet, backends, self._wires.probe)
        except TimeoutError:
            log.info("some backends did not answer their first health probe; probing goes on")
        await self.install(bundle)

    async def _provide(self, catalog: Catalog) -> None:
        for wire in await self._wires.provide(catalog):
            self._tasks.start(wire.warm(), "warm a wire")

    async def install(self, bundle: Bundle, *, anew: bool = False) -> None:
        made = await asyncio.to_thread(rules, bundle, _now_us(), self._plugins)
        await self._provide(bundle.catalog)
        if anew or bundle.catalog != self._dispatch.rules.catalog:
            await self._wires.renew()
        # From here on nothing can fail.
        self._dispatch.rules = made
        trials = {route.name: route.canary for route in bundle.policy.routes if route.canary}
        self._dispatch.canaries.adopt(bundle.digest, trials)
        self._dispatch.telemetry.aliases = frozenset(bundle.catalog.aliases)
        self.stop()
        backends = list(bundle.catalog.backends.values())
        self._dispatch.entrance.adopt(backends)
        self._probing = self._tasks.start(
            probe_forever(self._dispatch.fleet, backends, self._wires.probe), "health"
        )

    def in_force(self, version: Version) -> None:
        self._dispatch.telemetry.policy(version.number, version.policy, version.digest[:12])

    def failed(self, what: str) -> None:
        self._dispatch.telemetry.policy_failed(what)

    def stop(self) -> None:
        if self._probing is not None:
            self._probing.cancel()


async def _redis(settings: Settings) -> RedisLink | None:
    if not settings.redis_url:
        return None
    try:
        link = RedisLink(settings.redis_url, timeout_s=settings.redis_ms_max / 1000)
        await link.connect()
    except (RedisDown, ValueError) as error:
        raise StartupError(
            f"Redis: {error}\n"
            "  WEIGHBRIDGE_REDIS_URL must name a running Redis or Valkey "
            "(redis://host:6379/0); leave it unset for in-process state"
        ) from error
    return link


class _Wires:
    """The wires there are, by name. What few need (0.1-0.2 s to import) only those few import."""

    def __init__(self, settings: Settings) -> None:
        self._client: ClientFactory = FastHttpClient
        if settings.upstream_client == "aiohttp":
            from gateway.backends.http_aiohttp import AiohttpClient

            self._client = AiohttpClient
        self.by_name: dict[str, Wire] = {"openai_http": OpenAIHttpWire(secret, self._client)}

    async def provide(self, catalog: Catalog) -> list[Wire]:
        """Add what the catalog speaks and is not there yet; those that were added."""
        wanted = {b.wire for b in catalog.backends.values() if b.configured}
        added: list[Wire] = []
        if "litellm_sdk" in wanted - self.by_name.keys():
            wire = await asyncio.to_thread(self._litellm)
            self.by_name["litellm_sdk"] = wire
            added.append(wire)
        return added

    def _litellm(self) -> Wire:
        from gateway.backends.litellm_sdk import LitellmWire

        return LitellmWire(secret, self._client)

    async def probe(self, backend: Backend) -> None:
        await self.by_name[backend.wire].probe(backend)

    async def renew(self) -> None:
        for wire in self.by_name.values():
            await wire.renew()

    async def aclose(self) -> None:
        for wire in self.by_name.values():
            await wire.aclose()


def _telemetry(settings: Settings, name: str, fleet: Fleet, journal: Journal) -> Telemetry:
    return Telemetry(
        directory=settings.home / "metrics",
        worker=f"{name}-{os.getpid()}",
        gauges={
            "weighbridge_in_flight": (
                "Attempts under way",
                lambda: {(n,): float(v) for n, v in fleet.in_flight().items()},
            ),
            "weighbridge_journal_unsent_rows": (
                "Rows that wait for the database",
                lambda: {(): float(journal.unsent_rows)},
            ),
        },
    )


def _limits(settings: Settings) -> HotLimits:
    return HotLimits(
        body_bytes_max=settings.body_bytes_max,
        body_s_max=settings.body_s_max,
        keepalive_s=settings.stream_keepalive_s,
        first_status_s_max=settings.first_status_s_max,
        body=BodyLimits(
            json_depth_max=settings.json_depth_max,
            messages_max=settings.messages_max,
            choices_max=settings.choices_max,
        ),
    )


def _house(in_force: InForce, dispatch: Dispatch, keep: Callable[[], None]) -> Housekeeping:
    return Housekeeping(
        dispatch.clock,
        prices=lambda: dispatch.rules.prices,
        reload=partial(in_force.reload, secrets=False),
        saves={"the metrics": dispatch.telemetry.save, "what limits have counted": keep},
    )


def _now_us() -> int:
    return time.time_ns() // 1000
