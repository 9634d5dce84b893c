"""A report on a terminal: the columns that fit, the most telling ones first, and its foot."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from gateway.reports.document import Column, Document, Table, shown

_PIPE_WIDTH = 160
_TEXT_MAX = 40


def print_document(document: Document) -> None:
    """Title, remarks, table and foot."""
    out = console()
    out.print(f"[bold]{escape(document.title)}[/]  [dim]{escape(document.subtitle)}[/]")
    for remark in document.remarks:
        out.print(f"! {escape(remark)}", style="yellow")
    if document.table.rows:
        out.print()
        print_table(document.table, out)
    for table in document.more:
        out.print(f"\n[bold]{escape(table.title)}[/]")
        print_table(table, out)
    out.print()
    foot = Grid.grid(padding=(0, 2))
    foot.add_column(style="dim", no_wrap=True)
    foot.add_column(overflow="fold")
    for name, value in document.foot:
        foot.add_row(name, escape(value))
    out.print(foot)


def print_table(table: Table, out: Console | None = None) -> None:
    """As many columns as there is room for."""
    out = out or console()
    rows = [*table.rows, *([table.total] if table.total else [])]
    columns, left_out = _fitting(table, out.width)
    grid = Grid(box=None, pad_edge=False, show_edge=False, header_style="dim")
    for column in columns:
        text = column.kind == "text"
        grid.add_column(column.heading, justify="left" if text else "right", no_wrap=not text)
    for row in rows:
        cells = [shown(row.get(column.name, ""), column.kind) for column in columns]
        grid.add_row(*map(escape, cells), style="bold" if row is table.total else None)
    out.print(grid)
    if left_out:
        out.print(f"not shown for want of room: {', '.join(dict.fromkeys(left_out))}", style="dim")


def _fitting(table: Table, width: int) -> tuple[Sequence[Column], list[str]]:
    columns = [column for column in table.columns if not column.detail]
    wide = {column.name: _wide(table, column) for column in columns}
    left_out: list[str] = []
    while sum(wide[column.name] + 2 for column in columns) > width:
        gives_way = max(columns, key=lambda column: column.rank)
        if not gives_way.rank:
            break
        columns.remove(gives_way)
        left_out.insert(0, gives_way.heading)
    return columns, left_out


def _wide(table: Table, column: Column) -> int:
    rows = [*table.rows, *([table.total] if table.total else [])]
    texts = [shown(row.get(column.name, ""), column.kind) for row in rows]
    widest = max((len(text) for text in [*texts, column.heading]), default=0)
    return min(widest, _TEXT_MAX) if column.kind == "text" else widest


def console() -> Console:
    """On a terminal as wide as that is, else wide enough for a line."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
