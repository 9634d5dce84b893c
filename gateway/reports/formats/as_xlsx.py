"""A report as a workbook: figures, formulas finance can follow, the spreadsheet's own charts.

Sheets: the report (total and ratios are formulas over its cells), its charts with the data they
stand on, and the foot. A cell holds a double, about 15 digits; the exact figures are in the CSV.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.domain.money import NANO_PER_USD
from gateway.reports.document import MONEY, UNPRICED, Chart, Column, Document, Kind, Table
from gateway.reports.formats.drawing import COLOURS

if TYPE_CHECKING:
    from xlsxwriter.worksheet import Worksheet

_FORMATS: Mapping[str, str] = {
    "count": "#,##0",
    "usd": "$#,##0.00####",
    "local": "#,##0.00####",
    "unit": "$#,##0.000000",
    "share": "0.0%",
    "change": "+0.0%;-0.0%;0.0%",
    "ms": '#,##0" ms"',
    "tps": "#,##0.0",
}
_NAME = re.compile(r"(total\.)?([a-z][a-z0-9_]*)")
_HEAD = 3  # rows above the table: title, period, sections
_A4 = 9


def as_xlsx(document: Document) -> bytes:
    """The workbook."""
    import xlsxwriter

    out = io.BytesIO()
    # Text that looks like a formula or an address is text.
    options = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False}
    with xlsxwriter.Workbook(out, options) as book:
        book.set_properties({"title": document.title, "subject": document.subtitle})
        formats = {
            "title": book.add_format({"bold": True, "font_size": 16}),
            "dim": book.add_format({"font_color": "#59636e"}),
            "head": book.add_format(
                {
                    "bold": True,
                    "bottom": 1,
                    "text_wrap": True,
                    "valign": "bottom",
                    "bg_color": "#f0f3f6",
                }
            ),
            "head_right": book.add_format(
                {
                    "bold": True,
                    "bottom": 1,
                    "text_wrap": True,
                    "align": "right",
                    "valign": "bottom",
                    "bg_color": "#f0f3f6",
                }
            ),
            "wrap": book.add_format({"text_wrap": True, "valign": "top"}),
            "bold": book.add_format({"bold": True, "valign": "top"}),
            "text": book.add_format(),
            "text_total": book.add_format({"bold": True, "top": 1}),
        }
        for kind, pattern in _FORMATS.items():
            formats[kind] = book.add_format({"num_format": pattern})
            formats[f"{kind}_total"] = book.add_format(
                {"num_format": pattern, "bold": True, "top": 1}
            )
        _table(book.add_worksheet("Report"), document, formats)
        if document.charts:
            sheet, data = book.add_worksheet("Charts"), book.add_worksheet("Chart data")
            sheet.hide_gridlines(2)
            sheet.set_landscape()
            sheet.set_paper(_A4)
            sheet.fit_to_pages(1, 0)
            column, row = 0, 0
            breaks = []
            for chart in document.charts:
                made = _chart(book, data, chart, column, formats)
                sheet.insert_chart(row, 0, made)
                row += 3 + made.height // 20
                column += len(chart.series) + 2
                breaks.append(row - 1)
            sheet.set_h_pagebreaks(breaks[:-1])
        for table in document.more:
            _beside(book.add_worksheet(table.title[:31]), table, formats)
        _foot(book.add_worksheet("Foot"), document, formats)
    return out.getvalue()


def _table(sheet: Worksheet, document: Document, formats: Mapping[str, Any]) -> None:
    from xlsxwriter.utility import xl_col_to_name

    columns, rows = document.table.columns, document.table.rows
    letters = {column.name: xl_col_to_name(n) for n, column in enumerate(columns)}
    sheet.write_string(0, 0, document.title, formats["title"])
    sheet.write_string(1, 0, document.subtitle, formats["dim"])
    last = _HEAD + len(rows)  # the last line's row, counted from 0
    sections: list[str] = []
    begins: list[int] = []
    sheet.set_row(0, 24)
    for number, column in enumerate(columns):
        head = formats["head" if _style(column) == "text" else "head_right"]
        sheet.write_string(_HEAD, number, _heading(column), head)
        width = max(
            [len(_heading(column)), 11] + [len(str(row[column.name])) + 2 for row in rows[:200]]
        )
        if column.kind != "text":
            width = 14
        # What ratios stand on is folded away; the commands are for the screen, not for paper.
        folded = {"level": 1, "hidden": True} if column.detail and column.kind != "command" else {}
        sheet.set_column(number, number, min(width, 40), None, folded)
        if column.section and column.section not in sections:
            sections.append(column.section)
            begins.append(number)
            sheet.write_string(_HEAD - 1, number, column.section, formats["bold"])
        for place, row in enumerate(rows, _HEAD + 1):
            formula = _formula(column.formula, letters, place + 1, last + 2)
            _cell(
                sheet,
                (place, number),
                column,
                row.get(column.name),
                formula,
                formats[_style(column)],
            )
        if document.table.total is None:
            continue
        total = document.table.total.get(column.name, "")
        formula = _formula(column.formula, letters, last + 2, last + 2)
        if column.added and rows:
            letter = letters[column.name]
            formula = f"SUM({letter}{_HEAD + 2}:{letter}{last + 1})"
        style = formats[f"{_style(column)}_total"]
        _cell(sheet, (last + 1, number), column, total, formula, style)
    texts = sum(1 for column in columns if column.kind == "text")
    sheet.freeze_panes(_HEAD + 1, min(texts, 3))
    if rows:
        sheet.autofilter(_HEAD, 0, last, len(columns) - 1)
    sheet.set_landscape()
    sheet.set_paper(_A4)
    sheet.set_print_scale(70)
    sheet.repeat_rows(_HEAD - 1, _HEAD)
    if texts:
        sheet.repeat_columns(0, min(texts, 3) - 1)
    printed = sum(column.kind != "command" for column in columns)
    sheet.set_v_pagebreaks(begins[1:])
    sheet.print_area(0, 0, last + 1, printed - 1)


def _beside(sheet: Worksheet, table: Table, formats: Mapping[str, Any]) -> None:
    """A table beside the report: figures alone."""
    for number, column in enumerate(table.columns):
        sheet.write_string(0, number, _heading(column), formats["head"])
        sheet.set_column(number, number, 24 if column.kind == "text" else 14)
        for place, row in enumerate(table.rows, 1):
            _cell(sheet, (place, number), column, row[column.name], "", formats[_style(column)])
    sheet.freeze_panes(1, 0)


def _heading(column: Column) -> str:
    return column.heading or column.name


def _style(column: Column) -> str:
    return "text" if column.kind in {"text", "command"} else column.kind


def _formula(formula: str, letters: Mapping[str, str], row: int, total: int) -> str:
    """Names as cells; nothing to divide by shows nothing."""
    if not formula:
        return ""

    def cell(found: re.Match[str]) -> str:
        return f"{letters[found[2]]}${total}" if found[1] else f"{letters[found[2]]}{row}"

    made = _NAME.sub(cell, formula)
    return f'IFERROR({made},"")' if "/" in made else made


def _cell(
    sheet: Worksheet, at: tuple[int, int], column: Column, value: Any, formula: str, style: Any
) -> None:
    shown = _number(value, column.kind)
    if formula and shown is not None:
        sheet.write_formula(*at, f"={formula}", style, shown)
    elif isinstance(shown, str):
        sheet.write_string(*at, shown, style)
    elif shown is None:
        sheet.write_string(*at, UNPRICED if column.kind in MONEY else "", style)
    else:
        sheet.write_number(*at, shown, style)


def _number(value: Any, kind: Kind) -> Any:
    if value is None or isinstance(value, str):
        return value
    return value / NANO_PER_USD if kind == "usd" else float(value) if kind != "count" else value


def _chart(
    book: Any, data: Worksheet, chart: Chart, column: int, formats: Mapping[str, Any]
) -> Any:
    """The chart on cells of its own: a spreadsheet draws what it can find."""
    made = book.add_chart(
        {"type": "column" if chart.upright else "bar", "subtype": "stacked"}
        if len(chart.series) > 1
        else {"type": "column" if chart.upright else "bar"}
    )
    count = len(chart.labels)
    pattern = "usd" if chart.unit == "usd" else "count"
    data.write_string(0, column, chart.title, formats["head"])
    data.write_column(1, column, chart.labels)
    data.set_column(column, column, 24)
    for number, series in enumerate(chart.series):
        at = column + 1 + number
        data.write_string(0, at, series.name, formats["head"])
        values = [value / NANO_PER_USD if chart.unit == "usd" else value for value in series.values]
        data.write_column(1, at, values, formats[pattern])
        data.set_column(at, at, 14)
        made.add_series(
            {
                "name": ["Chart data", 0, at],
                "categories": ["Chart data", 1, column, count, column],
                "values": ["Chart data", 1, at, count, at],
                "fill": {"color": COLOURS[number % len(COLOURS)]},
                "gap": 60,
            }
        )
    made.set_title({"name": chart.title, "name_font": {"size": 13, "bold": True}})
    axis: dict[str, Any] = {"num_format": "$#,##0.00" if chart.unit == "usd" else "#,##0"}
    axis |= {"major_gridlines": {"visible": True, "line": {"color": "#d8dee4"}}}
    if chart.upright:
        made.set_y_axis(axis)
    else:
        made.set_x_axis(axis)
        made.set_y_axis({"reverse": True})  # the first on top, as in the table
    made.set_legend({"none": True} if len(chart.series) < 2 else {"position": "bottom"})
    made.set_size({"width": 900, "height": 360 if chart.upright else max(220, 110 + 30 * count)})
    return made


def _foot(sheet: Worksheet, document: Document, formats: Mapping[str, Any]) -> None:
    sheet.set_column(0, 0, 16)
    sheet.set_column(1, 1, 110)
    sheet.set_landscape()
    sheet.set_paper(_A4)
    sheet.fit_to_pages(1, 0)
    lines: Sequence[tuple[str, str]] = (
        *document.foot,
        *(("Remark", remark) for remark in document.remarks),
        *(("Note", note) for note in document.notes),
    )
    for row, (name, value) in enumerate(lines):
        sheet.write_string(row, 0, name, formats["bold"])
        sheet.write_string(row, 1, value[:32_000], formats["wrap"])
