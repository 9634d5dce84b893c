"""Several workers on one socket: start them, replace the dead, end them in order.

A worker is a process of its own (no fork of a running interpreter), handed the listening socket.
A worker that dies is replaced at once, or after a pause if it did not live long. One that cannot
start at all (exit status 2) ends everything, as long as none has ever run: it would fail the same
way for ever. Later it is tried again: its database may be away, and the others still serve.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

CANNOT_START = 2
SHORT_LIFE_S = 5.0
PAUSE_S = 1.0

log = logging.getLogger("weighbridge")


@dataclass(slots=True)
class _Slot:
    number: int
    process: subprocess.Popen[bytes]
    started: float


class Supervisor:
    """`command` starts a worker. Appended are the slot's number, the socket's descriptor and our
    process id: a worker that asked for it later could already be an orphan."""

    def __init__(self, command: list[str], workers: int, sock: socket.socket) -> None:
        self._command = command
        self._workers = workers
        self._socket = sock
        self._slots: list[_Slot] = []
        self._ending = False
        self._proven = False  # a worker has run for a while: they can start

    def run(self) -> int:
        """Until SIGTERM or SIGINT; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, self._reread)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        self._slots = [self._start(number) for number in range(self._workers)]
        while not self._ending:
            for slot in self._slots:
                status = slot.process.poll()
                short_life = time.monotonic() - slot.started < SHORT_LIFE_S
                self._proven = self._proven or (status is None and not short_life)
                if status is None or self._ending:
                    continue
                if status == CANNOT_START and not self._proven:
                    self._end(signal.SIGTERM, None)
                    self._wait()
                    return CANNOT_START
                log.error("worker %d ended with status %d; starting another", slot.number, status)
                if short_life:
                    time.sleep(PAUSE_S)
                if not self._ending:
                    slot.process, slot.started = self._start(slot.number).process, time.monotonic()
            time.sleep(0.1)
        return self._wait()

    def _start(self, number: int) -> _Slot:
        fd = self._socket.fileno()
        own = ("--worker", str(number), "--fd", str(fd), "--parent", str(os.getpid()))
        with hangups_held():  # a mask is inherited: the worker lifts it once it listens
            process = subprocess.Popen(  # noqa: S603 — our own command line
                [*self._command, *own],
                pass_fds=(fd,),
                process_group=0,  # a Ctrl-C at the terminal reaches us alone; we pass it on once
            )
        return _Slot(number, process, time.monotonic())

    def _reread(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        for slot in self._slots:
            if slot.process.poll() is None:
                slot.process.send_signal(signal.SIGHUP)

    def _end(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        again, self._ending = self._ending, True
        for slot in self._slots:
            if slot.process.poll() is None:
                slot.process.send_signal(signal.SIGINT if again else signal.SIGTERM)

    def _wait(self) -> int:
        self._socket.close()  # else the kernel goes on accepting what nobody will serve
        for slot in self._slots:  # one that was being started when the signal came has not heard it
            if slot.process.poll() is None:
                slot.process.send_signal(signal.SIGTERM)
        ended = [slot.process.wait() for slot in self._slots]
        # Who is too young to end in order dies of the signal, and has nothing to lose yet.
        return max((abs(status) for status in ended if status != -signal.SIGTERM), default=0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


@contextmanager
def hangups_held() -> Iterator[None]:
    """Within it SIGHUP waits."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def watch_parent(parent: int) -> None:
    """A worker whose supervisor was killed has nobody to end it: it ends itself."""
    while os.getppid() == parent:  # noqa: ASYNC110 -- nothing tells of a parent that was killed
        await asyncio.sleep(1.0)
    log.error("the supervisor is gone; ending")
    signal.raise_signal(signal.SIGTERM)


def self_command() -> list[str]:
    """How to start this program again, whatever started it."""
    return [sys.executable, "-m", "gateway.cli"]
