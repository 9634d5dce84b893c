"""A journal folder as somebody sees it who owns none of it: what its files still hold.

Reads only. Whether an owner lives is asked of its lock (see `journal`), never guessed from ages.
Files come and go meanwhile: one that is gone holds nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

REFUSED = "refused.jsonl"  # rows the database will never take (`flusher`)


class Segment(NamedTuple):
    """One file of a worker that lives, or does not."""

    path: Path
    alive: bool


def segments(folder: Path) -> list[Segment]:
    """The segments in the folder, which need not be there."""
    paths = [path for path in sorted(folder.glob("*-*.jsonl")) if path.name != REFUSED]
    owners = {path: path.stem.rpartition("-")[0] for path in paths}
    return [Segment(path, _held(folder / f"{owners[path]}.lock")) for path in paths]


def pages(path: Path, rows: int) -> Iterator[list[dict[str, Any]]]:
    """The lines, parsed, `rows` at a time; torn and strange ones are left out."""
    page: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    found = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(found, dict) and isinstance(found.get("id"), str):
                    page.append(found)
                if len(page) >= rows:
                    yield page
                    page = []
    except FileNotFoundError:
        return
    if page:
        yield page


def _held(lock: Path) -> bool:
    """Whether somebody holds this lock. A shared one is asked for, and let go at once."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
