"""Detectors: what the text of a request says of its privacy class. Pure, and linear in the text.

Owns: which text of a request is read, how disguises are taken off, and what a hit raises the class
to. The table of what is looked for is `detectors`; heavier ones run beside (`gateway.classify`).

    document -> all its text -> one RE2 set over it -> checks on the few candidates -> Finding

INVARIANTS
- A detector only raises the class. What it cannot read counts as the strictest: more text than
  `scan_bytes_max`, more look-alikes than are worth checking, and prompts of token ids unless the
  catalog classes those.
- A Finding holds names of detectors, never what was found.
- It is a net, not the wall: names and addresses in prose pass, as does anything encoded. The wall
  is the floor of a key or an alias. What passes is written down in docs/privacy.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.domain.catalog import Catalog
from gateway.policy.detectors import DETECTORS, Check

CANDIDATES_MAX: Final = 5_000  # at up to 20 µs each; honest text has a handful
MEDIA, TOKEN_IDS = "media", "token_ids"
CONTENT: Final[Mapping[str, str]] = {
    MEDIA: "Images, sound and files, which are not read. Left out: they do not raise the class.",
    TOKEN_IDS: "Prompts of token ids, which cannot be read. Left out: the strictest class.",
}
"""Detectors of what has no text; the others are in `DETECTORS`."""


class DetectorFailed(Exception):
    """Nothing can be said of this content. Never says what it was."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The least class (a rank) that the content calls for, and what called for it, in order."""

    rank: int = 0
    names: tuple[str, ...] = ()

    def __or__(self, other: Finding) -> Finding:
        return Finding(
            max(self.rank, other.rank), tuple(dict.fromkeys((*self.names, *other.names)))
        )


NOTHING: Final = Finding()


@dataclass(slots=True)
class Text:
    """What a request says. `speech` are the strings a model reads one after the other."""

    strings: list[str] = field(default_factory=list)
    speech: list[str] = field(default_factory=list)
    media: bool = False
    token_ids: bool = False

    @property
    def chars(self) -> int:
        return sum(map(len, self.speech)) + sum(map(len, self.strings))


@dataclass(frozen=True, slots=True)
class Detectors:
    """The detectors a catalog switches on. Build once, scan often, from any thread."""

    strictest: int
    bytes_max: int
    media: int = 0
    token_ids: int = 0
    rows: tuple[tuple[str, int, Any, Check], ...] = ()  # name, rank, compiled pattern, check
    table: Any = None
    hidden: Any = None

    @classmethod
    def build(cls, catalog: Catalog) -> Detectors:
        """Imports RE2 (1.5 MB, 30 ms) only where a detector needs it."""
        ranks = catalog.detectors
        strictest = len(catalog.privacy_classes) - 1
        wanted = [
            (name, ranks[name], pattern, check)
            for name, detector in DETECTORS.items()
            if name in ranks
            for pattern, check in detector.patterns
        ]
        if not (ranks or catalog.detector_plugins):
            return cls(strictest, catalog.scan_bytes_max)
        table, compiled, hidden = _compile([pattern for _, _, pattern, _ in wanted])
        return cls(
            strictest,
            catalog.scan_bytes_max,
            ranks.get(MEDIA, 0),
            ranks.get(TOKEN_IDS, strictest),
            tuple(
                (name, rank, pattern, check)
                for (name, rank, _, check), pattern in zip(wanted, compiled, strict=True)
            ),
            table,
            hidden,
        )

    @property
    def any(self) -> bool:
        """Whether the catalog switches on any."""
        return self.table is not None

    def scan(self, document: Mapping[str, Any]) -> Finding:
        """What the content of this request (its parsed JSON) calls for. Raises DetectorFailed."""
        return self.look(read(document)) if self.any else NOTHING

    def look(self, text: Text) -> Finding:
        """The same for what was read already."""
        rank, names = 0, []
        if text.media and self.media:
            rank, names = self.media, [MEDIA]
        if text.token_ids and self.token_ids:
            rank = max(rank, self.token_ids)
            names.append(TOKEN_IDS)
        data = self._scannable(joined(text)) if text.chars <= self.bytes_max else None
        if data is None or len(data) > self.bytes_max:
            return Finding(self.strictest, (*names, "scan_bytes_max"))
        hits = set(self.table.Match(data) or ())
        if len(self.rows) not in hits:
            raise DetectorFailed("RE2 gave up on this text")  # it says so by saying nothing
        hits.discard(len(self.rows))
        left = CANDIDATES_MAX
        for index in sorted(hits):
            name, raised, pattern, check = self.rows[index]
            if name in names:
                continue
            for candidate in pattern.finditer(data):
                if check(data, *candidate.span()):
                    names.append(name)
                    rank = max(rank, raised)
                    break
                left -= 1
                if not left:
                    return Finding(self.strictest, (*names, "candidates_max"))
        return Finding(rank, tuple(names)) if names else NOTHING

    def _scannable(self, text: str) -> bytes:
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        data = text.encode("utf-8", "surrogatepass")
        if len(data) != len(text) and self.hidden.search(data) is not None:
            data = undisguised(text).encode("utf-8", "surrogatepass")
        return data + _END


def _compile(patterns: Iterable[str]) -> tuple[Any, list[Any], Any]:
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes are bytes
    options.max_mem = 64 << 20
    options.log_errors = False
    table, compiled = re2.Set.SearchSet(options), []
    for pattern in patterns:
        table.Add(pattern.encode("latin-1"))
        compiled.append(re2.compile(pattern.encode("latin-1"), options))
    table.Add(rb"\x01\z")
    table.Compile()
    return table, compiled, re2.compile(_HIDDEN)


# --- which text ---------------------------------------------------------------------------------

_READ_ELSEWHERE: Final = frozenset({"model", "messages", "prompt", "input"})
_SPOKEN: Final = frozenset({"text", "refusal", "input_text", "output_text"})
_NOT_MEDIA: Final = _SPOKEN | {"tool_use", "tool_result", "thinking", "reasoning"}
_BYTES: Final = frozenset({"data", "file_data"})  # base64 without the data: before it
_BIG: Final = 10**8  # a number in JSON that could be an identifier


def read(document: Mapping[str, Any]) -> Text:
    """All text of a request: content, tool calls, tools, prompts, and fields nobody knows.

    Keys and large numbers too. Left out are the alias, roles and the bytes of media.
    """
    text = Text()
    strings = text.strings
    messages = document.get("messages")
    for message in messages if type(messages) is list else ():
        if type(message) is not dict:
            continue
        for key, value in message.items():
            if key == "content":
                if type(value) is str:
                    text.speech.append(value)
                elif type(value) is list:
                    _parts(value, text)
            elif key != "role":
                strings.append(key)
                _walk(value, strings)
    for name in ("prompt", "input"):
        _prompt(document.get(name), text)
    for key, value in document.items():
        if key not in _READ_ELSEWHERE:
            strings.append(key)
            _walk(value, strings)
    return text


def _parts(parts: Sequence[Any], text: Text) -> None:
    for part in parts:
        if type(part) is not dict:
            _walk(part, text.strings)
            continue
        kind = part.get("type")
        media = kind not in _NOT_MEDIA
        text.media = text.media or media
        for key, value in part.items():
            if key == "text" and kind in _SPOKEN and type(value) is str:
                text.speech.append(value)
            elif key != "type":
                text.strings.append(key)
                _walk(value, text.strings, media=True)


def _prompt(value: Any, text: Text) -> None:
    """A string, strings, token ids, or lists of token ids."""
    if type(value) is str:
        text.speech.append(value)
    elif type(value) is list:
        for item in value:
            if type(item) is str:
                text.speech.append(item)
            elif type(item) is int:
                text.token_ids = True
                break
            else:
                _prompt(item, text)
    else:
        _walk(value, text.strings)


def _walk(value: Any, into: list[str], *, media: bool = False) -> None:
    """Every string in a JSON value, its keys too; inside a media part without its bytes."""
    kind = type(value)
    if kind is str:
        if not (media and value.startswith("data:")):
            into.append(value)
    elif kind is dict:
        for key, item in value.items():
            into.append(key)
            if not (media and key in _BYTES):
                _walk(item, into, media=media)
    elif kind is list:
        for item in value:
            _walk(item, into, media=media)
    elif kind is int and abs(value) >= _BIG:
        into.append(str(value))


# --- disguises ----------------------------------------------------------------------------------

_END: Final = b"\n\1"  # the last pattern of every set: it has been read to here
_EDGE: Final = 80  # characters: longer than what is looked for and may be cut in two
_ESCAPED: Final = re.compile(r"\\{1,8}u(?![dD][89a-fA-F])([0-9a-fA-F]{4})")
_INVISIBLE: Final = (
    "\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e007f"
)
_DASHES: Final = "\u2010-\u2015\u2212"
# Letters that look like digits, where they stand among digits.
_ALIKE: Final = {
    **dict.fromkeys("\u041e\u043e\u039f\u03bf", "0"),  # Cyrillic and Greek o
    **dict.fromkeys("\u0406\u0456\u0399\u04c0\u04cf", "1"),  # i, iota, palochka
    **dict.fromkeys("\u0417\u0437", "3"),  # ze
}
_ALIKES: Final = "".join(_ALIKE)
_ALIKE_RUN: Final = re.compile(f"[0-9{_ALIKES}]+(?:[ -][0-9{_ALIKES}]+)*")
_ALIKE_FOLD: Final = str.maketrans({c: c for c in "0123456789 -"} | _ALIKE)
# Only where they hide something: dashes, soft hyphens and emoji are in honest prose too.
_HIDDEN: Final = (
    f"[0-9A-Za-z][{_INVISIBLE}]+[0-9A-Za-z]|[0-9][{_DASHES}][0-9]"
    rf"|[^\P{{Nd}}\x00-\x7f]|[0-9][ -]?[{_ALIKES}]|[{_ALIKES}][ -]?[0-9]"
)


class _Fold(dict[int, str]):
    """For `str.translate`: plain characters, made as they are met."""

    _gone = re.compile(f"[{_INVISIBLE}]")
    _dash = re.compile(f"[{_DASHES}]")

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if self._gone.match(character):
            character = ""
        elif self._dash.match(character):
            character = "-"
        elif (digit := unicodedata.decimal(character, None)) is not None:
            character = str(digit)
        if len(self) < 10_000:  # most scripts; the rest is looked up again
            self[code] = character
        return character


_FOLD: Final = _Fold()


def joined(text: Text) -> str:
    """All of it, and what was said in pieces put together: a number may be cut in two."""
    strings = text.speech + text.strings
    if len(text.speech) > 1:
        strings.append(
            "".join(s if len(s) <= 2 * _EDGE else f"{s[:_EDGE]}\n{s[-_EDGE:]}" for s in text.speech)
        )
    whole = "\n".join(strings)
    if "\\u" in whole:  # JSON inside JSON, as tools are called with
        whole = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), whole)
    return whole


def undisguised(text: str) -> str:
    """Invisible characters gone, digits of other scripts and what looks like digits made digits."""
    return _ALIKE_RUN.sub(_digits, text.translate(_FOLD))


def _digits(found: re.Match[str]) -> str:
    run = found[0]
    return run.translate(_ALIKE_FOLD) if any("0" <= c <= "9" for c in run) else run
