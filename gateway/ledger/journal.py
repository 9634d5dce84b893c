"""The journal: what one worker owes the ledger, on disk before anybody is answered.

One worker appends to its own segments, `<owner>-<n>.jsonl`, and holds `<owner>.lock` for as long
as it lives. A request that is about to be sent upstream leaves an open line; when it ends, its
record leaves a final line, which is the ledger's row as it stands. Whoever starts later adopts the
segments of the dead: final lines are rows, an open line without a final one is a row `interrupted`.

INVARIANTS

- One append is one `write` of one whole line, so a crash leaves at most a torn last line, which
  is dropped: nobody had been answered for it yet.
- Survives kill -9 with no further cost. Power loss can take what `sync_job` had not yet covered.
- A segment is deleted when every final line in it was sent and no open line in it still runs.
  Sending twice does no harm (the ledger ignores a row it has), so nothing records what was sent.
- A segment whose owner lives is never touched: the lock decides, not its age.
- The disk that fills stops new requests (`full`), never the row of one that already ran.

Synchronous and for one thread; knows no SQL, no event loop and no clock. The directory must be on
a local disk (flock). Open it after any fork: a forked child would share the lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from gateway.domain.errors import StoreUnavailable
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord

log = logging.getLogger("weighbridge.journal")

READ_BYTES = 1024 * 1024  # what one `read` looks at: about 900 rows, a third of a millisecond

_FINAL = b'{"id"'  # a record's own encoding starts with its id; an open line with its mark
_SEGMENT = re.compile(r"(?P<owner>[A-Za-z0-9._-]+)-(?P<number>\d+)\.jsonl")
_WORKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REQUEST_FIELDS = frozenset(f.name for f in fields(RequestRecord)) - {"attempts"}
_ATTEMPT_FIELDS = frozenset(f.name for f in fields(AttemptRecord))


@dataclass(slots=True, eq=False)
class _Segment:
    """One file of ours. `running`: open lines whose request has not ended."""

    path: Path
    fd: int
    size: int = 0
    read_at: int = 0
    running: int = 0
    dirty: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Final lines in the order they were written; `end` is where they stop in their segment."""

    lines: list[bytes]
    segment: _Segment
    end: int


class Journal:
    """The journal of one living worker.

    `worker` names its files; where that name was used before and the files are still there, a
    numbered one is taken, see `owner`. `bytes_max` bounds what is not yet in the ledger, of this
    worker and of the dead it found.
    """

    def __init__(
        self,
        directory: Path,
        worker: str,
        *,
        bytes_max: int = 1024 * 1024 * 1024,
        segment_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        if not _WORKER.fullmatch(worker):
            raise ValueError(f"{worker!r} cannot name a file")
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        self._bytes_max = bytes_max
        self._segment_bytes = segment_bytes
        self.owner, self._lock = _new_owner(directory, worker)
        self._running: dict[str, _Segment] = {}
        self._number = 0
        self._current = self._new_segment()
        self._segments = [self._current]
        self._stuck: list[tuple[str, bytes]] = []  # final lines the disk had no room for
        self._broken = False
        self._orphan_bytes = 0
        self.unsent_bytes = 0
        self.unsent_rows = 0
        self.full = False

    # --- writing: the way of a request --------------------------------------------------------

    def open(self, record: RequestRecord) -> None:
        """Note that the last of `record.attempts` is about to be made: once each, before it starts.

        Raises StoreUnavailable when the disk does not take it: nothing must be sent upstream then.
        """
        *ended, starting = record.attempts
        line = _encode(
            {
                "open": True,
                "id": record.id,
                "started_at_us": record.started_at_us,
                "endpoint": record.endpoint,
                "alias": record.alias,
                "key_id": record.key_id,
                "tags": record.tags,
                "privacy_class": record.privacy_class,
                "session": record.session,
                "stream": record.stream,
                "policy": record.policy,
                "policy_digest": record.policy_digest,
                "route": record.route,
                "shadow_of": record.shadow_of,
                "worker": record.worker,
                "attempts": [
                    *ended,
                    {
                        "number": starting.number,
                        "backend": starting.backend,
                        "model": starting.model,
                        "started_at_us": starting.started_at_us,
                        "why": starting.why,
                    },
                ],
            }
        )
        if self._broken or not self._append(line):
            raise StoreUnavailable("The request cannot be recorded.", detail="journal write failed")
        segment = self._current
        before = self._running.get(record.id)
        if before is not segment:
            if before is not None:
                before.running -= 1
            segment.running += 1
            self._running[record.id] = segment

    def close(self, record: RequestRecord) -> None:
        """Write the row of a request that ended, opened before or not. Never raises."""
        line = _encode(record)
        self.unsent_rows += 1
        if self._append(line):
            self._ended(record.id)
        else:
            self._stuck.append((record.id, line))

    def _ended(self, request_id: str) -> None:
        segment = self._running.pop(request_id, None)
        if segment is not None:
            segment.running -= 1

    def _append(self, line: bytes) -> bool:
        segment = self._current
        if segment.size + len(line) > self._segment_bytes and segment.size:
            segment = self._rotate()
        try:
            _write_whole(segment, line)
        except OSError as error:
            if not self._broken:
                log.error("journal %s: %s; new requests are refused", segment.path, error)  # noqa: TRY400
            self._broken = self.full = True
            return False
        segment.size += len(line)
        segment.dirty = True
        self.unsent_bytes += len(line)
        if self.unsent_bytes + self._orphan_bytes >= self._bytes_max:
            self.full = True
        return True

    def _new_segment(self) -> _Segment:
        self._number += 1
        path = self.directory / f"{self.owner}-{self._number}.jsonl"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return _Segment(path, os.open(path, flags, 0o600))

    def _rotate(self) -> _Segment:
        try:
            self._current = self._new_segment()
        except OSError as error:  # a segment too long is better than a row lost
            log.warning("journal: cannot start a new segment: %s", error)
        else:
            self._segments.append(self._current)
        return self._current

    # --- reading: the way to the ledger -------------------------------------------------------

    def read(self, rows_max: int) -> Batch | None:
        """The oldest final lines not yet `sent`, or None. Reading again gives them again."""
        if self._broken:
            self._mend()
        for segment in list(self._segments):
            while (batch := _read(segment, rows_max)) is not None:
                if batch.lines:
                    return batch
                self.sent(batch)
            self._delete_if_done(segment)  # it may have waited for a long request
        return None

    def sent(self, batch: Batch) -> None:
        """These lines are in the ledger."""
        segment = batch.segment
        self.unsent_bytes -= batch.end - segment.read_at
        self.unsent_rows -= len(batch.lines)
        segment.read_at = batch.end
        self._delete_if_done(segment)
        self._measure()

    def _delete_if_done(self, segment: _Segment) -> None:
        if segment is self._current or segment.running or segment.read_at < segment.size:
            return
        self._segments.remove(segment)
        os.close(segment.fd)
        segment.path.unlink(missing_ok=True)

    def _measure(self) -> None:
        over = self.unsent_bytes + self._orphan_bytes >= self._bytes_max
        self.full = over or self._broken

    def _mend(self) -> None:
        """Try the disk again: first the rows it had refused, else an empty line, which is none."""
        self._broken = False
        while self._stuck:
            request_id, line = self._stuck[0]
            if not self._append(line):
                return
            del self._stuck[0]
            self._ended(request_id)
        if self._append(b"\n"):
            log.warning("journal: the disk takes writes again")
            self._measure()

    def sync_job(self) -> Callable[[], None] | None:
        """Work for a thread that makes what was written survive power loss; None if it does."""
        dirty = [segment for segment in self._segments if segment.dirty]
        if not dirty:
            return None
        copies = []  # the segment may be closed here while the thread still syncs it
        for segment in dirty:
            segment.dirty = False
            copies.append(os.dup(segment.fd))

        def sync() -> None:
            for fd in copies:
                try:
                    os.fdatasync(fd)
                except OSError as error:
                    log.warning("journal: fdatasync: %s", error)
                finally:
                    os.close(fd)

        return sync

    def stop(self) -> None:
        """Let go of the lock. What is not in the ledger yet stays on disk for the next start."""
        if self._stuck:
            self._mend()
        for segment in self._segments:
            os.close(segment.fd)
            if not segment.running and segment.read_at == segment.size:
                segment.path.unlink(missing_ok=True)
        if not any(owner == self.owner for _, owner, _ in _segments(self.directory)):
            _lock_path(self.directory, self.owner).unlink(missing_ok=True)
        os.close(self._lock)
        self._segments = []

    # --- the dead -----------------------------------------------------------------------------

    def adopt(self) -> list[Orphan]:
        """What dead workers left, now ours to send and then to `bury`."""
        owners = {owner for _, owner, _ in _segments(self.directory)}
        owners |= {path.name.removesuffix(".lock") for path in self.directory.glob("*.lock")}
        orphans = []
        for owner in sorted(owners - {self.owner}):
            lock = _claim(self.directory, owner)
            if lock is not None:
                orphans.append(Orphan(self.directory, owner, lock))
        self._orphan_bytes += sum(orphan.size for orphan in orphans)
        self._measure()
        return orphans

    def bury(self, orphan: Orphan) -> None:
        """All of it is in the ledger: delete it."""
        orphan.delete()
        self._orphan_bytes -= orphan.size
        self._measure()


class Orphan:
    """What a dead worker left. Its lock is ours until `delete` or `release`."""

    def __init__(self, directory: Path, owner: str, lock: int) -> None:
        self.owner = owner
        self._lock = lock
        self._lock_path = _lock_path(directory, owner)
        own = [(number, path) for path, whose, number in _segments(directory) if whose == owner]
        self._paths = [path for _, path in sorted(own)]
        self.size = sum(path.stat().st_size for path in self._paths)
        self.finals = self.damaged = 0
        self.cut_off: list[str] = []  # ids of requests that were running

    def batches(self, rows_max: int) -> Iterator[list[bytes]]:
        """Rows for the ledger: the final lines in order, then one for each request cut off."""
        opened: dict[str, dict[str, Any]] = {}
        rows: list[bytes] = []
        for line in self._lines():
            found = _parse(line)
            if found is None:
                self.damaged += 1
            elif "open" in found:
                opened[found["id"]] = found
            else:
                opened.pop(found["id"], None)
                self.finals += 1
                rows.append(line)
                if len(rows) >= rows_max:
                    yield rows
                    rows = []
        for found in opened.values():
            if (record := _record(found)) is None:
                self.damaged += 1
                continue
            self.cut_off.append(record.id)
            rows.append(_encode(record)[:-1])
        for start in range(0, len(rows), rows_max):
            yield rows[start : start + rows_max]

    def _lines(self) -> Iterator[bytes]:
        for path in self._paths:
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):  # else torn by the crash
                        text = line[:-1]
                        if text:
                            yield text

    def delete(self) -> None:
        """Remove the files, the lock last: until then nobody else may take them for their own."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let go; what still lies there is found by the next `adopt`."""
        os.close(self._lock)


# --- lines ------------------------------------------------------------------------------------


def _read(segment: _Segment, rows_max: int) -> Batch | None:
    """Whole lines from where the segment was read up to; None at its end."""
    left = segment.size - segment.read_at
    if left <= 0:
        return None
    chunk = os.pread(segment.fd, min(left, READ_BYTES), segment.read_at)
    if b"\n" not in chunk:  # a line longer than a chunk
        chunk = os.pread(segment.fd, left, segment.read_at)
    lines: list[bytes] = []
    end = segment.read_at
    for line in chunk[: chunk.rfind(b"\n")].split(b"\n"):
        end += len(line) + 1
        if line.startswith(_FINAL):
            lines.append(line)
            if len(lines) >= rows_max:
                break
    return Batch(lines, segment, end)


def _write_whole(segment: _Segment, line: bytes) -> None:
    written = os.write(segment.fd, line)
    if written != len(line):  # the disk took a part: take it back
        os.ftruncate(segment.fd, segment.size)
        raise OSError(f"{written} of {len(line)} bytes written")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("id"), str) else None


def ended(rows: list[bytes]) -> list[RequestRecord]:
    """Of an orphan's rows, the requests that had ended after an attempt was made."""
    made = (_record(found) for row in rows if (found := _parse(row)) is not None)
    return [r for r in made if r and r.attempts and r.outcome != Outcome.INTERRUPTED.value]


def _record(found: dict[str, Any]) -> RequestRecord | None:
    """Of a line; of one that never had a final one, the records' defaults say `interrupted`."""
    try:
        attempts = [
            AttemptRecord(**{name: a[name] for name in _ATTEMPT_FIELDS & a.keys()})
            for a in found["attempts"]
        ]
        told = {name: found[name] for name in _REQUEST_FIELDS & found.keys()}
        return RequestRecord(**told | {"attempts": attempts, "attempt_count": len(attempts)})
    except (TypeError, KeyError, AttributeError):
        return None


def _encode(what: RequestRecord | dict[str, object]) -> bytes:
    """One line. Text and numbers that JSON or Postgres cannot hold are replaced, never refused."""
    try:
        line = orjson.dumps(what, option=orjson.OPT_APPEND_NEWLINE)
        if b"\\u0000" not in line:  # Postgres has no NUL in text
            return line
    except TypeError:  # a lone surrogate, an int of more than 64 bits, a key that is no text
        pass
    return orjson.dumps(_plain(what), option=orjson.OPT_APPEND_NEWLINE)


def _plain(value: object) -> object:
    match value:
        case str():
            return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        case int() if not -(2**63) <= value < 2**63:
            return None
        case None | bool() | int() | float():
            return value
        case RequestRecord() | AttemptRecord():
            return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        case dict():
            return {str(_plain(str(k))): _plain(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(v) for v in value]
    return _plain(str(value))


# --- files and locks ----------------------------------------------------------------------------


def _segments(directory: Path) -> list[tuple[Path, str, int]]:
    return [
        (path, match["owner"], int(match["number"]))
        for path in directory.iterdir()
        if (match := _SEGMENT.fullmatch(path.name))
    ]


def _lock_path(directory: Path, owner: str) -> Path:
    return directory / f"{owner}.lock"


def _new_owner(directory: Path, worker: str) -> tuple[str, int]:
    """A name without a past, and its lock."""
    taken = {owner for _, owner, _ in _segments(directory)}
    owner, turn = worker, 1
    while True:
        if owner not in taken and (lock := _create_lock(directory, owner)) is not None:
            return owner, lock
        turn += 1
        owner = f"{worker}.{turn}"


def _create_lock(directory: Path, owner: str) -> int | None:
    """Locked before it gets its name: nobody can find it free. None if the name is taken."""
    fd, name = tempfile.mkstemp(dir=directory, prefix=".lock-")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.link(name, _lock_path(directory, owner))
    except FileExistsError:
        os.close(fd)
        return None
    finally:
        Path(name).unlink()
    return fd


def _claim(directory: Path, owner: str) -> int | None:
    """The lock of a dead owner, or None where it lives or somebody else was faster."""
    path = _lock_path(directory, owner)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return _create_lock(directory, owner)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None
