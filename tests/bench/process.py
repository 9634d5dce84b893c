"""Processes under measurement: started on one core, weighed as a tree, never left behind.

Owns spawning, pinning, and reading CPU time and memory from the kernel. Knows no HTTP and no
contender.

CPU time is the scheduler's own account in nanoseconds (the POSIX process CPU clock, readable for
any process), not the 10 ms ticks of `/proc/PID/stat`; ticks serve only for children that have
already been reaped. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG = 1
_FILES_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: what is measured on one core, everything that drives it on another."""

    gateway: int
    load: int

    @property
    def shared(self) -> bool:
        return self.gateway == self.load


def pick_cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(gateway=allowed[0], load=allowed[min(1, len(allowed) - 1)])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def raise_files_limit() -> None:
    """A thousand streams are two thousand descriptors in the gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def spawn(
    command: Sequence[str],
    *,
    core: int,
    env: Mapping[str, str],
    cwd: Path,
    log: Path | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start pinned, in a session of its own so that `stop` reaches every descendant."""
    libc = ctypes.CDLL(None)

    def enter() -> None:
        os.sched_setaffinity(0, {core})
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        raise_files_limit()

    sink = log.open("ab") if log else None
    try:
        return subprocess.Popen(
            list(command),
            env=dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=sink if stdout is None else stdout,
            stderr=sink or subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=enter,
        )
    finally:
        if sink:
            sink.close()


def stop(process: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """TERM, then KILL the whole session we started."""
    for sign, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def tree(pid: int) -> Iterator[int]:
    """`pid` and its living descendants."""
    yield pid
    for task in _PROC.glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from tree(int(child))


def _process_cpu_ns(pid: int) -> int:
    try:
        own = time.clock_gettime_ns(
            (~pid << 3) | 2
        )  # CPUCLOCK_SCHED of another process: clock_getcpuclockid(3)
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:  # gone between listing and reading; its parent accounts for it once reaped
        return 0
    return own + (int(fields[13]) + int(fields[14])) * _TICK_NS  # + children already reaped


def tree_cpu_ns(pid: int) -> int:
    return sum(map(_process_cpu_ns, tree(pid)))


def settle(
    pid: int, *, quiet_share: float = 0.02, window_s: float = 0.25, wait_s: float = 3.0
) -> None:
    """Wait until the tree is quiet: what a gateway does after the answer belongs to it too."""
    deadline = time.monotonic() + wait_s
    before = tree_cpu_ns(pid)
    while time.monotonic() < deadline:
        time.sleep(window_s)
        now = tree_cpu_ns(pid)
        if now - before < quiet_share * window_s * 1e9:
            return
        before = now


def _tree_kb(pid: int, name: bytes) -> int:
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            for line in (_PROC / str(member) / "smaps_rollup").read_bytes().splitlines():
                if line.startswith(name):
                    total += int(line.split()[1])
    return total


def tree_rss_bytes(pid: int) -> int:
    """Resident memory of the tree. Shared pages count for each, whoever else maps them: an upper
    bound that does not depend on what else runs."""
    return _tree_kb(pid, b"Rss:") * 1024


def tree_pss_bytes(pid: int) -> int:
    """Proportional set size of the tree, pages its processes share counted once: for growth."""
    return _tree_kb(pid, b"Pss:") * 1024


def machine_busy_ns() -> int:
    """CPU time used by all processes of the machine: to tell how much strangers took."""
    fields = [int(f) for f in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) * _TICK_NS
