"""Real engines as child processes: vLLM on CPU, llama.cpp, and llm-katan's many vendor APIs.

Owns: how each is installed when it is missing, started, waited for, warmed up and ended. Must not
know: pytest (`conftest.py` makes fixtures of these) or the gateway. Invariants: every engine
listens on loopback only; it has answered a chat request before it is handed out; it ends with its
block, and with this process even when that is killed. Whatever goes wrong is an `EngineError` whose
message says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal

import httpx

from gateway.demo import llama_server
from tests.clients.environments import ROOT, BuildError, build_python

ENGINES = ROOT / ".engines"
CPU = ROOT / "selfhost" / "cpu"
KATAN = "0.22.0"


class EngineError(RuntimeError):
    """An engine could not be installed or started; the message says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine. `url` has no path; llm-katan wants a key, any key, the others want none."""

    url: str
    model: str
    kind: Literal["vllm", "llamacpp", "katan"]
    version: str
    pid: int


# --- the engines ---


@contextmanager
def llamacpp() -> Iterator[Engine]:
    """A real 270M model, chat and embeddings, behind llama.cpp's own server: 3 s, 0.45 GB."""
    try:
        server = llama_server.start()
    except (llama_server.NotInstalledError, llama_server.StartError) as error:
        raise EngineError(str(error)) from None
    with server:
        engine = Engine(
            server.url, server.model, "llamacpp", installed_version("xllamacpp"), server.pid
        )
        _warm_up(engine)
        yield engine


@contextmanager
def vllm(log: Path, *more: str, ranks: int = 1) -> Iterator[Engine]:
    """A real vLLM, `ranks` wide, as `install_vllm` left it; `more` are further flags of its own.

    Ready in half a minute to a minute; 1.1 GB for one rank, 2.1 GB for two.
    """
    url = f"http://127.0.0.1:{_free_port()}"
    command = [sys.executable, CPU / "serve.py", "--tp", ranks, "--port", url.rpartition(":")[2]]
    with _running([*command, "--", *more], log) as process:
        _wait_until_healthy(url, process, log, within_s=300)
        version = httpx.get(f"{url}/version").json()["version"]
        engine = Engine(url, "tiny", "vllm", version, process.pid)
        _warm_up(engine)
        yield engine


@contextmanager
def katan(log: Path, *more: str) -> Iterator[Engine]:
    """An echo that speaks five vendors' APIs; `more` may set faults, such as `--error-rate 0.5`."""
    try:
        python = build_python(ENGINES / "katan", [f"llm-katan=={KATAN}"])
    except BuildError as error:
        raise EngineError(str(error)) from None
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    options = {
        "--model": "katan-echo",
        "--backend": "echo",
        "--host": "127.0.0.1",
        "--port": port,
        "--providers": "openai,anthropic,vertexai,bedrock,azure_openai",
        "--max-concurrent": 64,
        "--ttft-ms": 5,
        "--itl-ms": 1,
        "--stats-file": log.with_suffix(".stats.json"),
    }
    command = [python.with_name("llm-katan"), *(word for pair in options.items() for word in pair)]
    with _running([*command, "--disable-dashboard", *more], log) as process:
        _wait_until_healthy(url, process, log, within_s=60)
        yield Engine(url, "katan-echo", "katan", KATAN, process.pid)


def install_vllm(say: Callable[[str], object] = print) -> None:
    """Install vLLM (2.4 GB) and build its model, unless both are there; `say` gets each line."""
    engine_python = ENGINES / "vllm" / "bin" / "python"
    for command in ([sys.executable, CPU / "install.py"], [engine_python, CPU / "tiny_model.py"]):
        _follow(["nice", "-n", "10", *command], say)


# --- processes ---


def _follow(command: Sequence[object], say: Callable[[str], object]) -> None:
    """Run a recipe and pass on its lines; on failure its last one is the reason."""
    line = ""
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_die_with_parent,
    ) as process:
        for line in process.stdout or ():
            say(line.rstrip())
    if process.returncode:
        raise EngineError(line.strip() or f"{command} ended with {process.returncode}")


@contextmanager
def _running(command: Sequence[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        # The leader is gone or deaf; its session holds whatever it left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Runs in the child before exec, which keeps the setting: end when the test process ends."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_healthy(
    url: str, process: subprocess.Popen[bytes], log: Path, *, within_s: float
) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    ended = "" if process.returncode is None else f" and ended with {process.returncode}"
    tail = log.read_text(errors="replace")[-3000:]
    raise EngineError(f"{process.args} was not healthy within {within_s:g} s{ended}:\n{tail}")


def _warm_up(engine: Engine) -> None:
    """One chat request: the first one of a tensor-parallel vLLM may take half a minute."""
    body = {"model": engine.model, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(
        f"{engine.url}/v1/chat/completions", json={**body, "max_tokens": 4}, timeout=180
    )
    if answer.status_code != 200:
        raise EngineError(f"{engine} answered its first request with {answer.text[:2000]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
