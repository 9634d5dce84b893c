"""Price sheets that people hand over: CSV, and YAML as our own price files are.

A CSV has one line per set of prices: the line without conditions is the row itself, the others hold
where they say so, as a price file's `when` and `long_prompts`. A mistake is told with the line and
the number of the column, both from 1.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

from gateway.domain.catalog import Target
from gateway.ledger import price_file
from gateway.ledger.price_file import METERS, PriceRow, PricesFile, instant
from gateway.policy.source import BYTES_MAX, Findings, Path, fitted, nearest, read
from gateway.price_sources.offers import Offer, Said, figures

_NAMES: Final = ("backend", "model", "from")
_CONDITIONS: Final = ("service_tier", "region", "hours_utc")
_ABOUT: Final = ("until", "input_only", "free", "basis", "source", "read_on", "note")
COLUMNS: Final = (*_NAMES, *_CONDITIONS, "above_prompt_tokens", *METERS, *_ABOUT, "currency")
_NOT_TEXT: Final = re.compile("[\ud800-\udfff\0]")  # what bytes that are no text are read as
_FLAGS: Final = {"true": True, "false": False}


def offers(text: str, source: str) -> list[Offer]:
    """All that a sheet says, by its targets. Raises ConfigErrors with every mistake."""
    if source.lower().endswith((".yaml", ".yml")):
        file, findings = read(PricesFile, text, source)
        for key in ("gpu_hours", "currencies"):
            if getattr(file, key):
                findings.problem((key,), "only prices are imported", "copy these by hand", key=True)
    else:
        findings = Findings(source)
        file = fitted(PricesFile, _Csv(text, findings).value(), findings)
    by_target: dict[Target, list[tuple[int, PriceRow]]] = {}
    for index, row in enumerate(file.prices):
        price_file.check(row, ("prices", index), findings)
        by_target.setdefault(Target(row.backend, row.model), []).append((index, row))
    for rows in by_target.values():
        _in_order(rows, findings)
    findings.raise_if_any()
    return [
        Offer(
            target=target,
            source=source,
            called=str(target),
            said=tuple(
                Said(
                    since=row.from_,
                    figures=figures(row),
                    row=row,
                    place=f"{source}:{findings.position(('prices', index))[0]}",
                )
                for index, row in rows
            ),
        )
        for target, rows in by_target.items()
    ]


def _in_order(rows: list[tuple[int, PriceRow]], findings: Findings) -> None:
    rows.sort(key=lambda item: instant(item[1].from_))
    for (one, before), (other, after) in pairwise(rows):
        path: Path = ("prices", other, "from")
        line, _ = findings.position(("prices", one))
        if instant(before.from_) == instant(after.from_):
            findings.problem(path, f"a second price from {after.from_}", f"first in line {line}")
        elif before.until is not None and instant(before.until) > instant(after.from_):
            findings.problem(path, f"overlaps with line {line}, which ends on {before.until}")


class _Line(NamedTuple):
    """The cells of one line that are not empty, by their columns."""

    number: int
    said: dict[str, Any]


_Parts: TypeAlias = dict[int, _Line]  # above so many tokens; 0 is the part itself


class _Csv:
    """A CSV as the plain value of a price file; every path in it has its line and column."""

    def __init__(self, text: str, findings: Findings) -> None:
        self._text = text
        self._findings = findings
        self._columns: list[str] = []

    def value(self) -> dict[str, Any]:
        if (odd := _NOT_TEXT.search(self._text)) is not None:
            self._fail(self._text.count("\n", 0, odd.start()) + 1, "not UTF-8 text", "save it so")
        if len(self._text.encode()) > BYTES_MAX:
            self._fail(1, f"larger than {BYTES_MAX} bytes")
        lines = self._lines()
        _, header = next(lines, (1, []))
        self._columns = self._header([name.strip() for name in header])
        rows: dict[tuple[str, ...], dict[str, _Parts]] = {}
        for number, cells in lines:
            self._sort(number, dict(zip(self._columns, cells, strict=True)), rows)
        self._findings.raise_if_any()
        if not rows:
            self._fail(1, "no prices in it", "one line per price below the names of the columns")
        found = [self._row(index, parts) for index, parts in enumerate(rows.values())]
        self._findings.raise_if_any()
        return {"version": 1, "prices": found}

    # --- cells ------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(self._text, newline=""), strict=True)
        width = None
        try:
            for cells in reader:
                if not any(map(str.strip, cells)):
                    continue
                width = width or len(cells)
                if len(cells) != width:
                    self._fail(reader.line_num, f"{len(cells)} cells, not {width}")
                yield reader.line_num, cells
        except csv.Error as error:
            self._fail(reader.line_num, f"not CSV: {error}")

    def _header(self, names: list[str]) -> list[str]:
        if len(names) == 1 and ";" in names[0]:
            self._fail(1, "its cells are separated by ';'", "save it with commas")
        for column, name in enumerate(names, 1):
            if name not in COLUMNS:
                hint = nearest(name, COLUMNS) or "see docs/prices.md"
                self._findings.problem_at((1, column), (column,), f"unknown column '{name}'", hint)
            elif names.index(name) != column - 1:
                self._findings.problem_at((1, column), (column,), f"a second column '{name}'")
        for name in _NAMES:
            if name not in names:
                self._findings.problem_at((1, 1), (name,), f"no column '{name}'")
        self._findings.raise_if_any()
        return names

    def _sort(
        self, number: int, cells: Mapping[str, str], rows: dict[tuple[str, ...], dict[str, _Parts]]
    ) -> None:
        """Put a line to its row and its conditions."""
        said = {key: text for key, cell in cells.items() if (text := cell.strip())}
        if said.pop("currency", "USD") != "USD":
            what = f"{cells['currency'].strip()} is not the currency of prices"
            self._problem(number, "currency", what, "convert to USD first")
        above = said.get("above_prompt_tokens", "0")
        if not (above.isascii() and above.isdecimal()):
            what = f"'{above}' is not a number of tokens"
            return self._problem(number, "above_prompt_tokens", what)
        try:  # here: lines of one price are put together by it
            price_file.written(said.get("from", "1970-01-01"))
        except ValueError as error:
            return self._problem(number, "from", str(error))
        where = " ".join(f"{key}={said[key]}" for key in _CONDITIONS if key in said)
        name = tuple(said.get(key, "") for key in _NAMES)
        parts = rows.setdefault(name, {}).setdefault(where, {})
        if int(above) in parts:
            what = f"the same conditions as line {parts[int(above)].number}"
            return self._problem(number, "backend", what)
        parts[int(above)] = _Line(number, said)
        return None

    # --- rows -------------------------------------------------------------------------------------

    def _row(self, index: int, by_condition: dict[str, _Parts]) -> dict[str, Any]:
        path: Path = ("prices", index)
        value = self._scale(path, by_condition.pop("", {}), by_condition)
        if by_condition:
            value["when"] = [
                self._scale((*path, "when", number), parts, {}, inside=True)
                for number, parts in enumerate(by_condition.values())
            ]
        return value

    def _scale(
        self, path: Path, parts: _Parts, others: dict[str, _Parts], *, inside: bool = False
    ) -> dict[str, Any]:
        own = parts.pop(0, None)
        if own is None:
            first = next(iter(parts.values()), None) or next(
                iter(next(iter(others.values())).values())
            )
            without = "above_prompt_tokens" if inside or parts else "conditions"
            what = f"no line without {without}: what holds otherwise is not said"
            self._findings.problem_at((first.number, 1), path, what)
            return {}
        keys = (*_CONDITIONS, *METERS) if inside else (*_NAMES, *METERS, *_ABOUT)
        value = self._part(path, own, keys)
        if parts:
            value["long_prompts"] = [
                self._part((*path, "long_prompts", n), line, ("above_prompt_tokens", *METERS))
                for n, (_, line) in enumerate(sorted(parts.items()))
            ]
        return value

    def _part(self, path: Path, line: _Line, keys: tuple[str, ...]) -> dict[str, Any]:
        self._findings.value_at[path] = self._findings.key_at[path] = (line.number, 1)
        value = {}
        for key in keys:
            if key in line.said:
                at = (line.number, self._columns.index(key) + 1)
                self._findings.value_at[(*path, key)] = self._findings.key_at[(*path, key)] = at
                value[key] = _typed(key, line.said[key])
        return value

    def _problem(self, number: int, key: str, what: str, hint: str = "") -> None:
        column = self._columns.index(key) + 1
        self._findings.problem_at((number, column), (number, key), what, hint)

    def _fail(self, number: int, what: str, hint: str = "") -> NoReturn:
        self._findings.problem_at((number, 1), (), what, hint)
        self._findings.raise_if_any()
        raise AssertionError("a sheet was refused without a finding")


def _typed(key: str, text: str) -> Any:
    if key == "above_prompt_tokens":
        return int(text)
    if key == "hours_utc":
        return text.replace("+", " ").split()
    if key in {"input_only", "free"}:
        return _FLAGS.get(text.lower(), text)
    return text
