"""Strict YAML with positions: what every file people write (catalog, prices, policy) is read by.

Owns: the YAML we accept, the schema base class, and the one form in which a mistake is told,
`file:line:column: path: what is wrong; what to do`. All mistakes of a file are told at once.
Knows nothing of catalogs, prices or policies.

INVARIANTS
- What YAML readers disagree about is refused, not guessed: duplicate keys, anchors and aliases,
  tags, several documents, and unquoted scalars that are a boolean, a base-60 or a base-8 number to
  some readers and text to others (`no`, `12:30`, `010`).
- A file is at most 1 MiB and 20 levels deep.
- Values of a key named `secret` never appear in a message.
- Pydantic stays in this package: callers convert to frozen dataclasses before they hand out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import events as ev

BYTES_MAX = 1024 * 1024
DEPTH_MAX = 20

# A key by its name, an item by its index, from the top of the file down.
Path: TypeAlias = tuple[str | int, ...]
Position: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. `line` and `column` count from 1; `path` is empty for the file as a whole.

    `severity` is `error`, `warning` or `note`; what the reader itself finds is always an error.
    """

    source: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""
    severity: str = "error"

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}:{self.column}: "
        where += "" if self.severity == "error" else f"{self.severity}: "
        what = f"{self.path}: {self.message}" if self.path else self.message
        return where + (f"{what}; {self.hint}" if self.hint else what)


class ConfigErrors(Exception):
    """Everything that is wrong with one or several files; one line each when printed."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(
            sorted(problems, key=lambda p: (p.source, p.line, p.column, p.path, p.message))
        )
        super().__init__("\n".join(map(str, self.problems)))


class Strict(BaseModel):
    """Base of every file schema: no unknown keys, no silent conversion."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True
    )


class Findings:
    """The mistakes found in one file so far, and where each value of it stands.

    The first mistake at a path is the one told; what follows from it is not.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.value_at: dict[Path, Position] = {}
        self.key_at: dict[Path, Position] = {}
        self._found: dict[tuple[Path, bool], Problem] = {}

    def problem(self, path: Path, message: str, hint: str = "", *, key: bool = False) -> None:
        """Note a mistake in the value at `path`, or in its key."""
        self.problem_at(self.position(path, key=key), path, message, hint, key=key)

    def problem_at(
        self, at: Position, path: Path, message: str, hint: str = "", *, key: bool = False
    ) -> None:
        """The same at an explicit position (line and column from 1)."""
        found = Problem(
            source=self.source,
            line=at[0],
            column=at[1],
            path=dotted(path),
            message=message,
            hint=hint,
        )
        self._found.setdefault((path, key), found)

    def raise_if_any(self) -> None:
        if self._found:
            raise ConfigErrors(self._found.values())

    def position(self, path: Path, *, key: bool = False) -> Position:
        """Where the value (or key) at `path` stands; if it is missing, what it is missing from."""
        table = self.key_at if key else self.value_at
        while path:
            # An item of a list has no key: there its value stands for it.
            at = table.get(path) or self.value_at.get(path)
            if at is not None:
                return at
            path, table = path[:-1], self.key_at
        return 1, 1


ModelT = TypeVar("ModelT", bound=Strict)


def read(schema: type[ModelT], text: str, source: str) -> tuple[ModelT, Findings]:
    """The file as its schema, and the findings to add to. Raises ConfigErrors.

    When the mistakes allow it, they are mended so that the caller's own checks can run and tell
    theirs in the same go; the caller ends with `findings.raise_if_any()`.
    """
    return fitted(schema, _parse(text, findings := Findings(source)), findings), findings


def fitted(schema: type[ModelT], value: Any, findings: Findings) -> ModelT:
    """Plain values, of which `findings` knows the places, as a schema. Raises ConfigErrors."""
    for _ in range(3):
        try:
            # JSON mode: enumerations and dates come from text, sets from lists; all else is strict.
            return schema.model_validate_json(json.dumps(value))
        except ValidationError as invalid:
            errors = invalid.errors(include_url=False)
            for error in errors:
                _explain(schema, error, findings)
            if not all(_mend(value, error) for error in reversed(errors)):
                break
    findings.raise_if_any()
    raise AssertionError("a file was refused without a finding")


def plain(text: str, source: str) -> tuple[Any, Findings]:
    """The file as plain values, and where each stands. Raises ConfigErrors if it is not YAML."""
    return _parse(text, findings := Findings(source)), findings


def keys(text: str) -> frozenset[str]:
    """The top-level keys of a file, none if it cannot be read: to tell what kind of file it is."""
    try:
        value, _ = plain(text, "")
    except ConfigErrors:
        value = None
    return frozenset(value if isinstance(value, dict) else ())


def digest(schema: Strict) -> str:
    """SHA-256 over the content: comments, order of keys and layout do not change it."""
    canonical = json.dumps(
        schema.model_dump(by_alias=True),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        default=lambda value: sorted(value) if isinstance(value, frozenset) else str(value),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def json_schema(schema: type[Strict], title: str) -> dict[str, Any]:
    """The JSON Schema editors use."""
    body = schema.model_json_schema(by_alias=True)
    body["title"] = title
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **body}


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint: the valid name that `name` resembles, or the few that there are."""
    names = list(dict.fromkeys(valid))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"one of: {', '.join(names)}" if 0 < len(names) <= 8 else ""


def dotted(path: Path) -> str:
    """`backends.openai.models.gpt-6-luna.endpoints[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


# --- YAML to plain values ---------------------------------------------------------------------

_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]{1,18}")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_AMBIGUOUS_WORDS = {"yes", "no", "on", "off", "y", "n", "true", "false", "null"}
# What YAML 1.1, YAML 1.2 and JSON do not all take for the same thing, or a number too long to keep.
_AMBIGUOUS_NUMBER = re.compile(
    r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"  # 12:30 is 750 in base 60
    r"|[-+]?0[xob][0-9a-f_]+"
    r"|[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)(e[-+]?[0-9]+)?"  # 010 is 8, 1_000, 1e3
    r"|[-+]?\.inf|\.nan",
    re.IGNORECASE,
)


class _Unreadable(Exception):
    """The rest of the file cannot be made sense of; the finding is noted."""


class _Ambiguous(Exception):
    """An unquoted scalar that readers disagree about: why, and what to write."""


def _parse(text: str, findings: Findings) -> Any:
    try:
        if len(text.encode()) > BYTES_MAX:
            findings.problem((), f"larger than {BYTES_MAX} bytes")
            findings.raise_if_any()
        return _Builder(findings, yaml.parse(text, Loader=yaml.CSafeLoader)).document()
    except _Unreadable:
        findings.raise_if_any()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        why = f"{error.problem} {error.context or ''}".strip()
        findings.problem_at(at, (), f"not YAML: {why}")
    except (yaml.reader.ReaderError, UnicodeEncodeError) as error:
        where = error.position if isinstance(error, yaml.reader.ReaderError) else error.start
        before = text[:where]
        at = (before.count("\n") + 1, len(before) - before.rfind("\n"))
        findings.problem_at(at, (), f"not text: {error.reason}")
    findings.raise_if_any()
    raise AssertionError("a file was unreadable without a finding")


class _Builder:
    """Builds plain values from the parser's events and notes where each stands."""

    def __init__(self, findings: Findings, stream: Iterator[ev.Event]) -> None:
        self._findings = findings
        self._stream = stream

    def document(self) -> Any:
        next(self._stream)  # stream start
        first = next(self._stream)
        if isinstance(first, ev.StreamEndEvent):
            self._findings.problem((), "the file is empty")
            raise _Unreadable
        value = self._node(next(self._stream), ())
        next(self._stream)  # document end
        after = next(self._stream)
        if isinstance(after, ev.DocumentStartEvent):
            self._findings.problem_at(_at(after), (), "a second document; one file, one document")
            raise _Unreadable
        return value

    def _node(self, event: ev.Event, path: Path) -> Any:
        self._findings.value_at.setdefault(path, _at(event))
        if isinstance(event, ev.AliasEvent):
            self._refuse(event, path, f"an alias (*{event.anchor})", "write the value out")
            return None
        self._undecorated(event, path)
        if len(path) > DEPTH_MAX:
            self._findings.problem_at(_at(event), path, f"nested deeper than {DEPTH_MAX} levels")
            raise _Unreadable
        if isinstance(event, ev.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, ev.SequenceStartEvent):
            return self._sequence(path)
        return self._scalar(event, path)

    def _mapping(self, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self._stream), ev.MappingEndEvent):
            key = self._key(event, path)
            inner = (*path, key)
            first = self._findings.key_at.setdefault(inner, _at(event))
            twice = key in result
            if twice:
                self._findings.problem_at(
                    _at(event),
                    inner,
                    f"duplicate key '{key}'",
                    f"first given at {first[0]}:{first[1]}",
                    key=True,
                )
            value = self._node(next(self._stream), inner)
            if not twice:
                result[key] = value
        return result

    def _key(self, event: ev.Event, path: Path) -> str:
        if not isinstance(event, ev.ScalarEvent):
            self._findings.problem_at(_at(event), path, "a key must be plain text")
            raise _Unreadable
        name: str = event.value
        inner = (*path, name)
        self._undecorated(event, inner)
        if not isinstance(self._scalar(event, inner, key=True), str):
            self._findings.problem_at(
                _at(event), inner, f"the key {name or 'given'} is not text", "quote it", key=True
            )
        return name

    def _sequence(self, path: Path) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self._stream), ev.SequenceEndEvent):
            result.append(self._node(event, (*path, len(result))))
        return result

    def _scalar(self, event: Any, path: Path, *, key: bool = False) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # quoted, or a block: text is what it is
            return text
        try:
            return _plain(text)
        except _Ambiguous as doubt:
            why, hint = doubt.args
            shown = "text" if path[-1:] == ("secret",) else text
            self._findings.problem_at(_at(event), path, f"unquoted {shown} {why}", hint, key=key)
            return None

    def _undecorated(self, event: ev.Event, path: Path) -> None:
        if isinstance(event, ev.NodeEvent) and event.anchor is not None:
            self._refuse(event, path, f"an anchor (&{event.anchor})", "write the value out")
        if isinstance(event, ev.ScalarEvent | ev.CollectionStartEvent) and event.tag is not None:
            self._refuse(event, path, f"a tag ({event.tag})", "leave it out")

    def _refuse(self, event: ev.Event, path: Path, what: str, hint: str) -> None:
        self._findings.problem_at(_at(event), path, f"{what} is not allowed here", hint)


def _plain(text: str) -> Any:
    """An unquoted scalar: null, true, false, a decimal number, or text. Raises _Ambiguous."""
    if text in _WORDS:
        return _WORDS[text]
    if text.lower() in _AMBIGUOUS_WORDS:
        raise _Ambiguous(
            "is not text to all readers", "write true, false or null, or quote it if it is text"
        )
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _AMBIGUOUS_NUMBER.fullmatch(text):
        raise _Ambiguous(
            "is not the same number to all readers", "write it plainly, or quote it if it is text"
        )
    return text


def _at(event: ev.Event) -> Position:
    mark = event.start_mark
    assert mark is not None
    return mark.line + 1, mark.column + 1


# --- schema errors to findings ----------------------------------------------------------------

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "date_type": "a date, YYYY-MM-DD",
    "date_parsing": "a date, YYYY-MM-DD",
    "date_from_datetime_parsing": "a date, YYYY-MM-DD",
}
_BOUNDS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "too_long": "has more than {max_length} items",
    "string_too_long": "is longer than {max_length} characters",
    "string_pattern_mismatch": "must look like {pattern}, a regular expression",
}


def _explain(schema: type[Strict], error: Any, findings: Findings) -> None:
    """Note one pydantic error in our words, where it stands."""
    path: Path = error["loc"]
    kind, given = error["type"], error["input"]
    name = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        hint = nearest(name, _fields(schema, path[:-1]))
        findings.problem(path, f"unknown key '{name}'", hint, key=True)
    elif kind == "missing":
        findings.problem_at(findings.position(path[:-1], key=True), path, f"missing key '{name}'")
    elif kind in ("enum", "literal_error"):
        choices = _choices(error)
        findings.problem(path, f"unknown value {_shown(name, given)}", nearest(str(given), choices))
    elif kind in _EXPECTED:
        quote = kind == "string_type" and isinstance(given, bool | int | float)
        findings.problem(
            path,
            f"expected {_EXPECTED[kind]}, not {_shown(name, given)}",
            "quote it" if quote else "",
        )
    elif kind in _BOUNDS:
        findings.problem(path, _BOUNDS[kind].format(**error["ctx"]))
    elif kind == "value_error":
        message, _, hint = str(error["ctx"]["error"]).partition("; ")
        findings.problem(path, message, hint)
    else:
        findings.problem(path, str(error["msg"]))


def _mend(value: Any, error: Any) -> bool:
    """Make the value pass where that does not hide another mistake. Says whether it could."""
    path: Path = error["loc"]
    if error["type"] == "missing" or not path:
        return False
    for step in path[:-1]:
        value = value[step]
    last = path[-1]
    if error["type"] in ("enum", "literal_error"):
        value[last] = _literal(_choices(error)[0])
    elif error["type"] == "string_type":
        value[last] = ""
    elif isinstance(value, dict):
        del value[last]
    else:
        return False
    return True


def _choices(error: Any) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"]) or [error["ctx"]["expected"]]


def _literal(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _shown(name: str, given: Any) -> str:
    if name == "secret":
        return "what is given"
    match given:
        case None:
            return "nothing"
        case bool():
            return "true" if given else "false"
        case int() | float():
            return f"the number {given}"
        case str():
            return f"'{given}'" if len(given) <= 60 else f"'{given[:57]}...'"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _fields(schema: type[Strict], path: Path) -> Sequence[str]:
    """The keys the schema knows at `path`."""
    here: Any = schema
    for step in path:
        here = _bare(here)
        if isinstance(here, type) and issubclass(here, BaseModel):
            by_key = {field.alias or name: field for name, field in here.model_fields.items()}
            here = by_key[str(step)].annotation
        else:
            here = get_args(here)[1 if get_origin(here) is dict else 0]
    here = _bare(here)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return [field.alias or name for name, field in here.model_fields.items()]
    return []


def _bare(annotation: Any) -> Any:
    """Without Annotated and without `| None`."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            annotation = next(a for a in get_args(annotation) if a is not type(None))
        else:
            return annotation
