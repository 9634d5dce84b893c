"""A workbook worked out again: the few forms of formula that reports write, and nothing else.

Reads the file as a spreadsheet does: cells, shared strings, formulas. Text counts as nothing in
SUM, and makes anything else an error, as it does there.
"""

from __future__ import annotations

import ast
import io
import re
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import dataclass

_NS = {"x": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
_CELL = re.compile(r"\$?([A-Z]{1,3})\$?(\d+)(?::\$?([A-Z]{1,3})\$?(\d+))?")


class Mistake(Exception):
    """What a cell shows as an error."""


@dataclass
class Sheet:
    """`values` as they were written (what a reader without a calculator shows), `formulas`."""

    values: dict[str, float | str]
    formulas: dict[str, str]

    def worked_out(self, cell: str) -> float | str:
        """The cell's value from the cells it stands on, all the way down."""
        if cell not in self.formulas:
            return self.values.get(cell, "")
        return self._formula(self.formulas[cell])

    def _formula(self, text: str) -> float | str:
        if found := re.fullmatch(r'IFERROR\((.*),""\)', text):
            try:
                return self._formula(found[1])
            except (Mistake, ZeroDivisionError):
                return ""
        if found := re.fullmatch(r"SUM\((.*)\)", text):
            cells = [cell for part in found[1].split(",") for cell in _cells(part)]
            some = [self.worked_out(cell) for cell in cells]
            return sum(value for value in some if not isinstance(value, str))
        return self._arithmetic(ast.parse(_CELL.sub(r"\1\2", text), mode="eval").body)

    def _arithmetic(self, node: ast.AST) -> float:
        match node:
            case ast.BinOp(left, op, right):
                a, b = self._arithmetic(left), self._arithmetic(right)
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.Div():
                        return a / b
            case ast.Constant(value):
                return value
            case ast.Name(cell):
                value = self.worked_out(cell)
                if isinstance(value, str):
                    raise Mistake(f"{cell} is {value!r}")
                return value
        raise AssertionError(f"not a form that is written: {ast.dump(node)}")


def _cells(part: str) -> list[str]:
    found = _CELL.fullmatch(part)
    assert found, part
    if found[3] is None:
        return [found[1] + found[2]]
    assert found[1] == found[3]
    return [f"{found[1]}{row}" for row in range(int(found[2]), int(found[4]) + 1)]


def read(content: bytes, sheet: int = 1) -> Sheet:
    """One sheet of a workbook, counted from 1."""
    with zipfile.ZipFile(io.BytesIO(content)) as book:
        strings = [
            "".join(text.text or "" for text in item.iterfind(".//x:t", _NS))
            for item in ET.fromstring(book.read("xl/sharedStrings.xml")).iterfind("x:si", _NS)
        ]
        root = ET.fromstring(book.read(f"xl/worksheets/sheet{sheet}.xml"))
    values: dict[str, float | str] = {}
    formulas = {}
    for cell in root.iterfind(".//x:c", _NS):
        name, value = cell.get("r"), cell.find("x:v", _NS)
        assert name
        formula = cell.find("x:f", _NS)
        if formula is not None and formula.text:
            formulas[name] = formula.text
        if value is not None and value.text is not None:
            shared = cell.get("t") == "s"
            text = strings[int(value.text)] if shared else value.text
            values[name] = text if shared or cell.get("t") == "str" else float(text)
    return Sheet(values, formulas)
