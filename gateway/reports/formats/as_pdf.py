"""A report on paper: A4 across, the same charts drawn as lines and areas, pages numbered.

The fonts every reader of PDF has know Western European letters; another letter is printed as "?".
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.reports.document import Chart, Column, Document, Row, shown
from gateway.reports.formats.drawing import COLOURS, Label, Line, Rect, draw

if TYPE_CHECKING:
    from fpdf import FPDF

_INK, _DIM, _RULE, _SOFT = (31, 35, 40), (89, 99, 110), (216, 222, 228), (246, 248, 250)
_MARGIN, _ROW, _WIDE = 14.0, 5.6, 269.0  # millimetres; A4 across is 297 wide
_PLANE = 860.0  # a chart's plane is drawn as wide as the page
_SCALE = _WIDE / _PLANE
ROWS_MAX = 400


def as_pdf(document: Document, *, now: dt.datetime) -> bytes:
    """The pages. Tables beyond ROWS_MAX lines say so and stop."""
    from fpdf import FPDF
    from fpdf.enums import XPos, YPos

    class Paper(FPDF):
        """Knows what stands at the bottom of every page."""

        def footer(self) -> None:
            self.set_y(-10)
            self.set_font("helvetica", size=8)
            self.set_text_color(*_DIM)
            left = _western(f"{document.title}, {document.subtitle}")
            self.cell(_WIDE / 2, 5, left)
            page = f"Page {self.page_no()} of {{nb}}"
            self.cell(_WIDE / 2, 5, page, align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    pdf = Paper(orientation="landscape", format="A4")
    pdf.set_creation_date(now)
    pdf.set_title(_western(document.title))
    pdf.set_margins(_MARGIN, _MARGIN)
    pdf.set_auto_page_break(True, margin=14)
    pdf.add_page()
    _head(pdf, document)
    for chart in document.charts:
        _chart(pdf, chart)
    if document.table.rows:
        for section in document.table.sections:
            _table(
                pdf, section, document.table.of(section), document.table.rows, document.table.total
            )
    for table in document.more:
        _table(pdf, table.title, table.of(table.title), table.rows, None)
    _foot(pdf, document)
    return bytes(pdf.output())


def _western(text: str) -> str:
    known = text.replace("…", "...").replace("–", "-").replace("·", "/")
    return known.encode("latin-1", "replace").decode("latin-1")


def _room(pdf: FPDF, height: float) -> None:
    """Begin a page where `height` does not fit on this one."""
    if pdf.get_y() + height > pdf.h - 14:
        pdf.add_page()


def _write(
    pdf: FPDF, text: str, size: float, colour: tuple[int, int, int], style: str = ""
) -> None:
    pdf.set_font("helvetica", style, size)
    pdf.set_text_color(*colour)
    pdf.set_x(_MARGIN)
    pdf.multi_cell(_WIDE, size * 0.5, _western(text), align="L", new_x="LMARGIN", new_y="NEXT")


def _head(pdf: FPDF, document: Document) -> None:
    _write(pdf, document.title, 18, _INK, "B")
    pdf.ln(1)
    _write(pdf, document.subtitle, 10, _DIM)
    pdf.ln(4)
    count = len(document.cards)
    if count:
        gap, top = 4.0, pdf.get_y()
        wide = (_WIDE - gap * (count - 1)) / count
        for number, card in enumerate(document.cards):
            x = _MARGIN + number * (wide + gap)
            pdf.set_fill_color(*_SOFT)
            pdf.set_draw_color(*_RULE)
            pdf.rect(x, top, wide, 19, style="DF")
            for y, text, size, colour, style in (
                (2, card.label, 8, _DIM, ""),
                (6.5, card.figure, 14, _INK, "B"),
                (13.5, card.note, 8, _DIM, ""),
            ):
                pdf.set_font("helvetica", style, size)
                pdf.set_text_color(*colour)
                pdf.set_xy(x + 3, top + y)
                pdf.cell(wide - 6, 4, _fitting(pdf, _western(text), wide - 5))
        pdf.set_xy(_MARGIN, top + 23)
    for remark in document.remarks:
        _write(pdf, f"! {remark}", 9, _INK)
        pdf.ln(1)


def _chart(pdf: FPDF, chart: Chart) -> None:
    drawing = draw(chart, _PLANE)
    _room(pdf, 12 + drawing.height * _SCALE)
    pdf.ln(3)
    _write(pdf, chart.title, 11, _INK, "B")
    pdf.ln(1)
    top = pdf.get_y()
    pdf.set_line_width(0.15)
    pdf.set_draw_color(*_RULE)
    for shape in drawing.shapes:
        match shape:
            case Line(x1, y1, x2, y2):
                ends = (_MARGIN + x1 * _SCALE, top + y1 * _SCALE)
                pdf.line(*ends, _MARGIN + x2 * _SCALE, top + y2 * _SCALE)
            case Rect(x, y, width, height, part, _):
                pdf.set_fill_color(COLOURS[part % len(COLOURS)])
                box = (_MARGIN + x * _SCALE, top + y * _SCALE, width * _SCALE, height * _SCALE)
                pdf.rect(*box, style="F")
            case Label(x, y, text, anchor, dim):
                pdf.set_font("helvetica", size=8)
                pdf.set_text_color(*(_DIM if dim else _INK))
                said = _western(text)
                back = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * pdf.get_string_width(
                    said
                )
                pdf.text(_MARGIN + x * _SCALE - back, top + y * _SCALE, said)
    pdf.set_xy(_MARGIN, top + drawing.height * _SCALE + 2)


def _table(
    pdf: FPDF, section: str, columns: Sequence[Column], rows: Sequence[Row], total: Row | None
) -> None:
    cut = rows[:ROWS_MAX]
    widths = _widths(pdf, columns, [*cut, *([total] if total else [])])
    _room(pdf, 12 + _ROW * min(4, len(cut) + 2))
    pdf.ln(4)
    _write(pdf, section, 11, _INK, "B")
    pdf.ln(1)
    _headings(pdf, columns, widths)
    for row in cut:
        if pdf.get_y() + _ROW > pdf.h - 14:
            pdf.add_page()
            _headings(pdf, columns, widths)
        _cells(pdf, columns, widths, row, "")
    if len(rows) > len(cut):
        _write(pdf, f"{len(rows) - len(cut):,} more lines are in the CSV and XLSX.", 8, _DIM)
    if total is not None:
        _room(pdf, _ROW)
        _cells(pdf, columns, widths, total, "B")


def _widths(pdf: FPDF, columns: Sequence[Column], rows: Sequence[Row]) -> list[float]:
    """As wide as what is in them; texts give way where the page is too narrow."""
    pdf.set_font("helvetica", "B", 8.5)
    wide = []
    for column in columns:
        texts = [column.heading, *(shown(row.get(column.name, ""), column.kind) for row in rows)]
        wide.append(max(pdf.get_string_width(_western(text)) for text in texts) + 4)
    spare = _WIDE - sum(wide)
    if spare > 0:
        return [one + spare / len(wide) for one in wide]
    elastic = [number for number, column in enumerate(columns) if column.kind == "text"]
    for number in elastic:
        wide[number] = max(14.0, wide[number] + spare / len(elastic))
    over = max(1.0, sum(wide) / _WIDE)
    return [one / over for one in wide]


def _headings(pdf: FPDF, columns: Sequence[Column], widths: Sequence[float]) -> None:
    pdf.set_font("helvetica", "B", 8.5)
    pdf.set_text_color(*_DIM)
    pdf.set_draw_color(*_INK)
    for column, wide in zip(columns, widths, strict=True):
        align = "L" if column.kind == "text" else "R"
        pdf.cell(wide, _ROW, _western(column.heading), border="B", align=align)
    pdf.ln(_ROW)


def _cells(
    pdf: FPDF, columns: Sequence[Column], widths: Sequence[float], row: Row, style: str
) -> None:
    pdf.set_font("helvetica", style, 8.5)
    pdf.set_text_color(*_INK)
    pdf.set_draw_color(*_RULE)
    for column, wide in zip(columns, widths, strict=True):
        text = _fitting(pdf, _western(shown(row.get(column.name, ""), column.kind)), wide - 2)
        pdf.cell(wide, _ROW, text, border="B", align="L" if column.kind == "text" else "R")
    pdf.ln(_ROW)


def _fitting(pdf: FPDF, text: str, wide: float) -> str:
    while len(text) > 4 and pdf.get_string_width(text) > wide:
        text = f"{text[:-4]}..."
    return text


def _foot(pdf: FPDF, document: Document) -> None:
    _room(pdf, 30)
    pdf.ln(6)
    for note in document.notes:
        _write(pdf, note, 8, _DIM)
        pdf.ln(0.6)
    pdf.ln(2)
    for name, value in document.foot:
        _room(pdf, 5)
        pdf.set_font("helvetica", size=8)
        pdf.set_text_color(*_DIM)
        pdf.set_x(_MARGIN)
        pdf.cell(32, 4.2, name)
        pdf.set_text_color(*_INK)
        pdf.multi_cell(_WIDE - 32, 4.2, _western(value), align="L", new_x="LMARGIN", new_y="NEXT")
