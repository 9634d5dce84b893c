"""Appending rows to price files: what is there stays byte for byte, and all files change or none.

Owns how a row is written, where in a file it belongs, and the replacement of files. Reads and
writes files; what to append is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml import events as ev

from gateway.ledger.price_file import METERS, PriceRow, Scale
from gateway.policy.source import ConfigErrors, Problem

# What needs no quotes to be text to every reader of YAML.
_PLAIN = r"[A-Za-z0-9_./@()+,&=?%~-]"
_BARE = re.compile(rf"[A-Za-z]({_PLAIN}| (?! )|:(?={_PLAIN}))*")
_WORDS = {"yes", "no", "on", "off", "y", "n", "true", "false", "null"}
HEADER = """\
# yaml-language-server: $schema=../schema/prices.schema.json
#
# Prices in US dollars. Append a row when a price changes; never edit one: requests are rated by the
# row in force on their day.
version: 1
prices:
"""


@dataclass(frozen=True, slots=True)
class Edit:
    """A file as it was read (None: it is not there), and as it is to be."""

    path: Path
    before: bytes | None
    after: bytes


class ChangedMeanwhile(Exception):
    """A file is not as it was when it was read."""


def appended(path: Path, rows: Sequence[PriceRow]) -> Edit:
    """The file with these rows at the end of its `prices`.

    Raises ConfigErrors where it is written in a way that cannot be appended to.
    """
    before = path.read_bytes() if path.exists() else None
    text = HEADER if before is None else before.decode("utf-8")
    ending = "\r\n" if "\r\n" in text else "\n"
    at, indent, text = _place(text, str(path), ending)
    lines = [line for row in rows for line in written(row)]
    block = "".join(f"{' ' * indent}{line}".rstrip() + ending for line in lines)
    if at and not text[:at].endswith("\n"):
        block = ending + block
    return Edit(path, before, (text[:at] + block + text[at:]).encode("utf-8"))


def replace_all(edits: Sequence[Edit]) -> None:
    """Write all of them, or none. Raises ChangedMeanwhile, OSError."""
    fresh: list[tuple[Edit, Path]] = []
    try:
        for edit in edits:
            now = edit.path.read_bytes() if edit.path.exists() else None
            if now != edit.before:
                raise ChangedMeanwhile(str(edit.path))
            fresh.append((edit, _beside(edit.path, edit.after)))
        done: list[Edit] = []
        try:
            for edit, new in fresh:
                new.replace(edit.path)
                done.append(edit)
        except OSError:
            for edit in done:
                _restore(edit)
            raise
    finally:
        for _, new in fresh:
            new.unlink(missing_ok=True)


def _beside(path: Path, content: bytes) -> Path:
    """The content in a new file of the same folder, on the disk."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, new)
        else:
            new.chmod(0o644)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    return new


def _restore(edit: Edit) -> None:
    with contextlib.suppress(OSError):
        if edit.before is None:
            edit.path.unlink()
        else:
            _beside(edit.path, edit.before).replace(edit.path)


# --- where --------------------------------------------------------------------------------------


def _place(text: str, source: str, ending: str) -> tuple[int, int, str]:
    """Where rows go, how far in, and the text with room for them."""
    found = _prices(text)
    if found is None:
        text += ("" if text.endswith("\n") else ending) + f"prices:{ending}"
        return len(text), 2, text
    start, last, more = found
    if isinstance(start, ev.ScalarEvent) or not _block(start):
        if last is not None:
            line, column = start.start_mark.line + 1, start.start_mark.column + 1
            raise ConfigErrors(
                [
                    Problem(
                        source=source,
                        line=line,
                        column=column,
                        path="prices",
                        message="written within brackets",
                        hint="write it as a list, one item below the other",
                    )
                ]
            )
        return _opened(text, start, ending)
    if not more:
        return len(text), start.start_mark.column, text
    assert last is not None
    end = text.find("\n", last.end_mark.index)
    return (len(text) if end < 0 else end + 1), start.start_mark.column, text


def _opened(text: str, start: Any, ending: str) -> tuple[int, int, str]:
    """`prices: []` made ready for items."""
    before, after = text[: start.start_mark.index].rstrip(" "), text[start.end_mark.index :]
    if isinstance(start, ev.SequenceStartEvent):
        after = after[after.index("]") + 1 :]
    rest, _, after = after.partition("\n")
    head = before + rest.rstrip("\r ") + ending
    return len(head), 2, head + after


def _block(start: Any) -> bool:
    return isinstance(start, ev.SequenceStartEvent) and not start.flow_style


def _prices(text: str) -> tuple[Any, Any, bool] | None:
    """The event that starts `prices`, its last scalar, and whether anything follows it."""
    depth, key, start, last = 0, "", None, None
    expects_key = True
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if start is not None and depth == 1:
            return start, last, not isinstance(event, ev.MappingEndEvent)
        if isinstance(event, ev.CollectionEndEvent):
            depth -= 1
            expects_key = expects_key or depth == 1
            continue
        if depth == 1 and expects_key and isinstance(event, ev.ScalarEvent):
            key, expects_key = event.value, False
            continue
        if depth == 1 and key == "prices":
            start = event
        elif start is not None and isinstance(event, ev.ScalarEvent):
            last = event
        if isinstance(event, ev.CollectionStartEvent):
            depth += 1
        elif depth == 1:
            expects_key = True
    return None


# --- how ----------------------------------------------------------------------------------------


def written(row: PriceRow) -> Iterator[str]:
    """A row as an item of a list, line by line."""
    lines = [f"backend: {scalar(row.backend)}", f"model: {scalar(row.model)}"]
    lines.append(f"from: {row.from_}")
    if row.until is not None:
        lines.append(f"until: {row.until}")
    lines += _scale(row)
    if row.when:
        lines.append("when:")
    for variant in row.when:
        said = [
            f"{key}: {scalar(value)}"
            for key, value in (("service_tier", variant.service_tier), ("region", variant.region))
            if value is not None
        ]
        if variant.hours_utc is not None:
            said.append(f"hours_utc: {json.dumps(variant.hours_utc)}")
        lines += _item([*said, *_scale(variant)])
    lines += [f"{key}: true" for key in ("input_only", "free") if getattr(row, key)]
    if row.basis != "list":
        lines.append(f"basis: {row.basis}")
    lines += [f"source: {scalar(row.source)}", f"read_on: {row.read_on.isoformat()}"]
    if row.note:
        lines.append(f"note: {scalar(row.note)}")
    for number, line in enumerate(lines):
        yield f"{'  ' if number else '- '}{line}"


def _scale(part: Scale) -> list[str]:
    lines = _priced(part.stated())
    if part.long_prompts_mode != "cliff":
        lines.append(f"long_prompts_mode: {part.long_prompts_mode}")
    if part.long_prompts:
        lines.append("long_prompts:")
    for tier in part.long_prompts:
        lines += _item(
            [f"above_prompt_tokens: {tier.above_prompt_tokens}", *_priced(tier.stated())]
        )
    return lines


def _priced(stated: Mapping[str, str]) -> list[str]:
    return [f'{key}: "{stated[key]}"' for key in METERS if key in stated]


def _item(lines: Sequence[str]) -> list[str]:
    return [f"  {'  ' if number else '- '}{line}" for number, line in enumerate(lines)]


def scalar(text: str) -> str:
    """As YAML: bare where every reader takes it for the same text, else quoted."""
    bare = _BARE.fullmatch(text) and text == text.strip() and text.lower() not in _WORDS
    return text if bare else json.dumps(text, ensure_ascii=False)
