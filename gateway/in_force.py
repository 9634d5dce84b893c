"""What is in force in this worker: it follows the list of versions and watches the policy folder.

`InForce` asks the database several times a second for the newest version and switches to it: texts
are checked and tables built in a thread, then one swap. `FileWatch` looks at the files: what
changed on disk is changed in what is in force and becomes a version, which all workers follow.

Owns both loops and what is told of them. What a switch means to the rest of the worker is its
consumer's. Knows nothing of requests.

INVARIANTS
- What does not load changes nothing. It is said in the log, counted, and shown by `/readyz` until
  something that loads has taken its place.
- With the database away the present version stays; the newest is followed once it is back.
- Files count when they change: that they differ from what was put by command is no change.
- Several workers that see one change of the files make one version of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.bundle import ROUTING, Bundle, Files, Marks, digest, load, marks, policy_path, texts
from gateway.domain.errors import NotFound, StoreUnavailable
from gateway.ledger.versions import Change, Conflict, Origin, Version, Versions
from gateway.policy.loosened import loosened
from gateway.policy.source import ConfigErrors

log = logging.getLogger("weighbridge")

FOLLOW_S = 0.3
WATCH_S = 0.3
STORE_S_MAX = 3.0
VERSION, FILES = "version", "files"  # what can fail to load
WAITING = "changed files wait for the database"


class Unloadable(Exception):
    """A version that this program cannot use. The message has a line for each reason."""


class Consumer(Protocol):
    """Who is told what is in force."""

    async def install(self, bundle: Bundle, *, anew: bool = False) -> None:
        """Decide by `bundle` from now on; where this raises, nothing may have changed.

        `anew`: secrets may have changed although the texts have not.
        """
        ...

    def in_force(self, version: Version) -> None: ...

    def failed(self, what: str) -> None:
        """`what` (VERSION or FILES) did not load."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where the files are, and how texts become a bundle: theirs, and those of the database."""

    path: Path
    secret_present: Callable[[str], bool]

    async def load(self, files: Files, *, on_disk: bool) -> Bundle:
        """In a thread: requests go on meanwhile. Raises ConfigErrors, which name the files."""
        folder = self.path if on_disk else None
        return await asyncio.to_thread(
            load, files, secret_present=self.secret_present, folder=folder
        )


async def load_version(versions: Versions, version: Version, folder: Folder) -> Bundle:
    """The bundle of a version. Raises Unloadable, StoreUnavailable."""
    try:
        async with asyncio.timeout(STORE_S_MAX):
            files = await versions.files(version.digest)
        if digest(files) != version.digest:
            raise Unloadable(f"{version.label}: its texts in the database were tampered with")
        return await folder.load(files, on_disk=False)
    except (ConfigErrors, NotFound) as error:
        raise Unloadable(f"{version.label} does not load here:\n{error}") from error
    except TimeoutError as error:
        raise StoreUnavailable("The database does not answer.", detail="no answer") from error


def whoami() -> str:
    """`user@host`, for the list of versions."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for this user id: a container
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class InForce:
    """What is in force, one per worker: `version`, and its `bundle`."""

    def __init__(
        self,
        versions: Versions,
        version: Version,
        bundle: Bundle,
        *,
        folder: Folder,
        consumer: Consumer,
    ) -> None:
        self.versions = versions
        self.version = version
        self.bundle = bundle
        self.folder = folder
        self.errors: dict[str, str] = {}  # of VERSION and FILES, while they stand
        self._consumer = consumer
        # Held while the database is asked: who ends `follow` takes it first, for a cancelled
        # question is answered into an event loop that may be gone by then.
        self.asking = asyncio.Lock()
        self._switching = asyncio.Lock()
        self._newer = asyncio.Event()
        self.refused: Version | None = None  # newer, and does not load here
        self._away = False
        consumer.in_force(version)

    async def follow(self) -> None:
        """Switch to whatever is newest, for ever."""
        while True:
            try:
                async with self.asking, asyncio.timeout(STORE_S_MAX):
                    newest = await self.versions.newest()
                if newest not in (None, self.version, self.refused):
                    assert newest is not None
                    await self._switch(newest)
                if self._away:
                    log.info("policy: the database is back")
                self._away = False
            except Exception as error:  # noqa: BLE001 -- who stops following never switches again
                if not self._away:
                    why = getattr(error, "detail", None) or repr(error)
                    log.warning(
                        "policy: %s stays, the database is away: %s", self.version.label, why
                    )
                self._away = True
            await wait(self._newer, FOLLOW_S)

    def hurry(self) -> None:
        """There is a newer version: do not wait for the next look."""
        self._newer.set()

    async def _switch(self, version: Version) -> None:
        async with self._switching:
            try:
                if version.digest != self.bundle.digest:
                    bundle = await load_version(self.versions, version, self.folder)
                    await self._consumer.install(bundle)
                    self.bundle = bundle
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it is, the present one goes on
                self.refused = version
                self.fail(VERSION, error, f"{self.version.label} stays in force")
                return
            self.version, self.refused = version, None
            self.errors.pop(VERSION, None)
            self._consumer.in_force(version)
            how = f"{version.origin.value}, {version.author}"
            log.info("policy: %s is in force (%s)", version.label, how)

    async def reload(self, *, secrets: bool) -> None:
        """Hand what is in force to the consumer again; with `secrets`, read those anew."""
        async with self._switching:
            bundle = (
                await self.folder.load(self.bundle.files, on_disk=False) if secrets else self.bundle
            )
            await self._consumer.install(bundle, anew=secrets)
            self.bundle = bundle

    def fail(self, what: str, error: Exception, but: str) -> None:
        """Say loudly that something did not load, and what holds instead."""
        ours = isinstance(error, ConfigErrors | Unloadable)
        self.errors[what] = str(error) if ours else f"{type(error).__name__}: {error}"
        log.error("policy: %s\n%s", but, self.errors[what], exc_info=None if ours else error)
        self._consumer.failed(what)


class FileWatch:
    """The policy folder, looked at: by itself if `on`, and whenever `reread` asks for it."""

    def __init__(self, in_force: InForce, *, on: bool) -> None:
        self._in_force = in_force
        self._folder = in_force.folder.path
        self._on = on
        self._asked = asyncio.Event()
        self._found: Files = in_force.bundle.files  # as last read
        self._texts: Files = in_force.bundle.files  # as last dealt with
        self._marks: Marks | None = None  # of what was last dealt with, good or bad
        self._settling: Marks | None = None  # seen once; dealt with when seen again
        self._path = policy_path(self._texts)  # of the routing policy that was read
        self._proposed: tuple[str, int] | None = None  # digest, and the version it would follow

    @property
    def differs(self) -> bool:
        """Whether the files, as last read, are not what is in force."""
        ours, theirs = self._found, self._in_force.bundle.files
        looked_for = policy_path(theirs) == self._path
        return any(
            ours.get(path) != theirs.get(path)
            for path in ours.keys() | theirs.keys()
            if looked_for or not path.startswith(ROUTING)
        )

    def reread(self) -> None:
        """Read files and secrets again, now (SIGHUP)."""
        self._asked.set()

    async def run(self) -> None:
        """Make a version of every change, for ever."""
        await self._guarded(self._first_look())
        while True:
            restless = self._on or self._settling is not None
            asked = await wait(self._asked, WATCH_S if restless else None)
            if asked:
                log.info("policy: told to read files and secrets again")
                await self._guarded(self._in_force.reload(secrets=True))
            await self._guarded(self._look(at_once=asked))

    async def _guarded(self, work: Awaitable[None]) -> None:
        """What goes wrong is said, once; a watch that ended would be silent for ever."""
        in_force = self._in_force
        try:
            await work
        except StoreUnavailable:
            if in_force.errors.get(FILES) != WAITING:
                log.warning("policy: %s", WAITING)
            in_force.errors[FILES] = WAITING
        except Exception as error:  # noqa: BLE001
            self._marks, self._settling = self._settling, None
            in_force.fail(FILES, error, f"{in_force.version.label} stays in force")

    async def _first_look(self) -> None:
        """Know the files as they are: only what changes from here on counts.

        Unless they say what no version ever said: they were changed while nobody looked.
        """
        in_force = self._in_force
        by_command = in_force.version.origin.by_command
        path = policy_path(in_force.bundle.files)
        self._marks = self._settling = await asyncio.to_thread(marks, self._folder, path)
        found = await self._read(path)
        found.setdefault(path, in_force.bundle.files[path])
        if by_command:
            self._texts = found
        if found != in_force.bundle.files:
            bundle = await in_force.folder.load(found, on_disk=True)
            if not by_command and self._on and not await self._known(bundle.digest):
                self._marks = None
                return
        self._texts, self._settling = found, None

    async def _known(self, digest: str) -> bool:
        with contextlib.suppress(StoreUnavailable):
            return await self._in_force.versions.since(digest, after=0) is not None
        return True

    async def _look(self, *, at_once: bool) -> None:
        """Deal with the files if they changed and are at rest."""
        in_force = self._in_force
        path = policy_path(in_force.bundle.files)
        seen = await asyncio.to_thread(marks, self._folder, path)
        if seen == self._marks and not at_once:
            self._settling = None
            return
        if seen != self._settling:
            self._settling, self._proposed = seen, None
            if not at_once:
                return
        before = dict(self._texts)
        now = await self._read(path)
        if await asyncio.to_thread(marks, self._folder, path) != seen:
            return  # it is being written
        # Another routing policy in force, or a file that went, is no change of what it says.
        if path in before:
            now.setdefault(path, before[path])
        elif path in now:
            before[path] = now[path]
        changed = sorted(p for p in before.keys() | now.keys() if before.get(p) != now.get(p))
        files = {p: t for p, t in in_force.bundle.files.items() if p not in changed}
        files |= {p: now[p] for p in changed if p in now}
        if files != in_force.bundle.files:
            bundle = await in_force.folder.load(dict(sorted(files.items())), on_disk=True)
            if not await self._put(bundle, ", ".join(changed)):
                return
        elif at_once:
            log.info("policy: no file has changed; %s stays in force", in_force.version.label)
        if in_force.errors.pop(FILES, None):
            log.info("policy: the files load again")
        self._texts, self._marks, self._settling = now, seen, None

    async def _read(self, path: str) -> dict[str, str]:
        self._found = await asyncio.to_thread(texts, self._folder, path)
        self._path = path
        return dict(self._found)

    async def _put(self, bundle: Bundle, note: str) -> bool:
        """Whether `bundle` is now a version, by us or by another worker that saw the same."""
        in_force = self._in_force
        number = in_force.version.number
        self._proposed = self._proposed or (bundle.digest, number)
        digest, after = self._proposed
        if await in_force.versions.since(digest, after=after) is None:
            change = Change(
                digest=bundle.digest,
                policy=bundle.policy.name,
                origin=Origin.FILE,
                author=whoami(),
                note=note,
                files=bundle.files,
                prices=bundle.prices,
            )
            try:
                await in_force.versions.put(change, expected=number)
            except Conflict as conflict:
                if conflict.newest == in_force.refused:
                    raise Unloadable(
                        f"{note}: not put over a version that does not load here; "
                        "`weighbridge policy apply` does that"
                    ) from conflict
                in_force.hurry()
                return False  # on top of what is in force by then
            in_force.hurry()
            await self._warn(bundle)
        in_force.hurry()
        return True

    async def _warn(self, bundle: Bundle) -> None:
        """Whoever may edit the files needs no flag; what got looser is said all the same."""
        before = self._in_force
        lines = await asyncio.to_thread(
            loosened,
            (before.bundle.policy, before.bundle.catalog),
            (bundle.policy, bundle.catalog),
        )
        for line in lines:
            log.warning("policy: looser than %s: %s", before.version.label, line)


async def wait(event: asyncio.Event, seconds: float | None) -> bool:
    """Until the event or the time is over; whether it was the event, which is clear again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    was = event.is_set()
    event.clear()
    return was
