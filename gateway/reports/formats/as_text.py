"""A report for machines: CSV (RFC 4180, UTF-8) and JSON. Money is an exact decimal string.

A cell of text that a spreadsheet would take for a formula gets an apostrophe before it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

import orjson

from gateway.reports.document import Column, Document, Row, exact

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_lines(columns: Iterable[Column], rows: Iterable[Row], *, head: bool = True) -> str:
    """Records of the columns that are data, each line ended by CR LF."""
    shown = [column for column in columns if column.kind != "command"]
    text = io.StringIO()
    writer = csv.writer(text)
    if head:
        writer.writerow([defused(_heading(column)) for column in shown])
    for row in rows:
        writer.writerow([_cell(row.get(column.name), column) for column in shown])
    return text.getvalue()


def as_csv(document: Document) -> str:
    """Groups only: the total is for whoever adds up, the foot is in the JSON."""
    return csv_lines(document.table.columns, document.table.rows)


def _heading(column: Column) -> str:
    return (
        f"{column.name}_usd"
        if column.kind in {"usd", "unit"}
        else column.name + _UNIT.get(column.kind, "")
    )


_UNIT = {"ms": "_ms"}  # of what is in neither dollars nor a plain count


def _cell(value: Any, column: Column) -> Any:
    said = exact(value, column.kind)
    if said is None:
        return ""
    return defused(said) if column.kind == "text" else said


def defused(text: str) -> str:
    """So that a spreadsheet takes it for the text it is."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_json(document: Document) -> str:
    """Lines, total and foot. A cost that is not known is null."""
    table = document.table
    return dumps(
        {
            "report": document.name,
            "lines": [line(table.columns, row) for row in table.rows],
            "total": None if table.total is None else line(table.columns, table.total),
            **{
                table.title.lower().replace(" ", "_"): [
                    line(table.columns, row) for row in table.rows
                ]
                for table in document.more
            },
            "remarks": list(document.remarks),
            "foot": document.json_foot,
        }
    )


def line(columns: Iterable[Column], row: Row) -> dict[str, Any]:
    """One row by the names that CSV uses too."""
    return {
        _heading(column): exact(row[column.name], column.kind)
        for column in columns
        if column.name in row
    }


def dumps(value: Any) -> str:
    """Indented JSON with a line's end."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
