"""Child processes of the demo: started quietly, told apart by their log, ended in order.

Each is a process group of its own, so that a Ctrl-C at the terminal reaches the demo alone, which
then ends them one by one. Each also watches its parent and ends when that is gone.
"""

from __future__ import annotations

import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_READY = "listening on "


class ChildError(RuntimeError):
    """A child ended or was not ready in time; the message closes with the end of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running child; `stop` may be called again."""

    name: str
    log: Path
    process: subprocess.Popen[str] = field(repr=False)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def failed(self, what: str) -> ChildError:
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-1500:].strip()
        return ChildError(f"{self.name} {what}" + (f":\n{tail}" if tail else ""))

    def stop(self, timeout_s: float = 10.0) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def start(
    name: str,
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    hand_over: Sequence[int] = (),
) -> Child:
    """Start `command`, its errors into `log`; `hand_over` are descriptors it inherits."""
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if not hand_over else errors,
            stderr=errors,
            text=True,
            env=environment,
            pass_fds=hand_over,
            process_group=0,
        )
    return Child(name, log, process)


def address(child: Child, within_s: float = 20.0) -> str:
    """The address a child announces in its first line. Raises ChildError."""
    assert child.process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.process.stdout, selectors.EVENT_READ)
        line = child.process.stdout.readline() if selector.select(within_s) else ""
    if not line.startswith(_READY):
        child.stop()
        raise child.failed("did not start")
    return line.removeprefix(_READY).strip()


def wait_until(child: Child, ready: Callable[[], bool], within_s: float) -> None:
    """Poll `ready` while the child runs. Raises ChildError."""
    deadline = time.monotonic() + within_s
    while not ready():
        if not child.running:
            raise child.failed("ended")
        if time.monotonic() > deadline:
            child.stop()
            raise child.failed(f"was not ready within {within_s:g} s")
        time.sleep(0.02)
