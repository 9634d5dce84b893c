"""A report as one page: no script, nothing to load, readable light, dark and printed.

Jinja2 escapes all that comes from rows; the charts are our own SVG, which escapes by itself.
"""

from __future__ import annotations

from gateway.reports.document import Column, Document, shown
from gateway.reports.formats.drawing import COLOURS, svg


def as_html(document: Document) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    pages = Environment(
        loader=PackageLoader("gateway.reports.formats"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    commands = [column.name for column in document.table.columns if column.kind == "command"]
    charts = [(chart.title, Markup(svg(chart))) for chart in document.charts]  # noqa: S704
    return pages.get_template("report.html.j2").render(
        document=document,
        charts=charts,
        colours=COLOURS,
        command=commands[0] if commands else None,
        shown=shown,
        align=_align,
    )


def _align(column: Column) -> str:
    return "text" if column.kind in {"text", "command"} else "figure"
