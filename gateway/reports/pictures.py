"""Which charts a report gets: chosen from its table's lines. Pure; drawing is `drawing`'s."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.reports.definition import METER, OF_TIME, Definition
from gateway.reports.document import Chart, Row, Series, Table

BARS_MAX = 12
PARTS_MAX = 6
TIMES_MAX = 62
REST = "all others"

# The reasons of `sums.WASTE` in words.
WASTE = {
    "retries": "failed tries",
    "hedges": "lost hedges",
    "abandoned": "client left",
    "midstream": "broken streams",
}
_TOKENS = {
    "uncached": "input",
    "cached": "cached input",
    "cache_write": "cache writes",
    "other_input": "other input",
    "output": "output",
    "other_output": "other output",
}


def of_cost(definition: Definition, table: Table, spent: str = "cost") -> list[Chart]:
    """Cost over time where that was asked for, else by group, tokens, and waste if there is any.

    `spent` is the column that says the cost.
    """
    times = [name for name in definition.by if name in OF_TIME]
    if times:
        at = times[-1]
        others = [name for name in definition.by if name not in OF_TIME]
        return [_over_time(table.rows, at, others, spent)]
    charts = [_bars(table.rows, definition, f"Cost by {_said(definition)}", {spent: "cost"}, "usd")]
    if METER in definition.by:
        return charts
    charts.append(_bars(table.rows, definition, "Tokens", _TOKENS, "tokens"))
    if any(row["waste"] for row in table.rows):
        waste = {f"waste_{why}": name for why, name in WASTE.items()}
        charts.append(_bars(table.rows, definition, "Waste by reason", waste, "usd"))
    return charts


def _said(definition: Definition) -> str:
    return ", ".join(name.removeprefix("tag:") for name in definition.by) or "what was sent"


def label(row: Row, names: Sequence[str]) -> str:
    """A line's groups as one name."""
    return " · ".join(str(row[name]) for name in names if row[name] != "")


def _bars(
    rows: Sequence[Row], definition: Definition, title: str, parts: dict[str, str], unit: str
) -> Chart:
    names = definition.by or ("group",)
    weigh = [(sum(row[part] or 0 for part in parts), row) for row in rows]
    ranked = sorted((pair for pair in weigh if pair[0]), key=lambda pair: -pair[0])
    shown, rest = [row for _, row in ranked], []
    if len(shown) > BARS_MAX:
        shown, rest = shown[: BARS_MAX - 1], shown[BARS_MAX - 1 :]
    labels = [label(row, names) for row in shown] + ([f"{REST} ({len(rest)})"] if rest else [])
    series = []
    for part, name in parts.items():
        values = [row[part] or 0 for row in shown]
        values += [sum(row[part] or 0 for row in rest)] if rest else []
        series.append(Series(name=name, values=values))
    return Chart(
        title=title,
        labels=labels,
        series=[one for one in series if any(one.values)],
        unit="usd" if unit == "usd" else "tokens",
    )


def _over_time(rows: Sequence[Row], at: str, others: Sequence[str], spent: str) -> Chart:
    """One upright bar per day or hour, its parts the other groups; the dearest by name."""
    sums: dict[str, int] = {}
    for row in rows:
        name = _part(row, others)
        sums[name] = sums.get(name, 0) + (row[spent] or 0)
    named = sorted(sums, key=lambda name: -sums[name])
    if len(named) > PARTS_MAX:
        named = [*named[: PARTS_MAX - 1], REST]
    times = list(dict.fromkeys(str(row[at]) for row in rows if row[at] and row[at][0].isdigit()))
    cut = times[-TIMES_MAX:]
    values = {name: dict.fromkeys(cut, 0) for name in named}
    for row in rows:
        if row[at] in cut:
            name = _part(row, others)
            values[name if name in values else REST][row[at]] += row[spent] or 0
    left_out = f" (the last {TIMES_MAX} of {len(times)})" if len(times) > len(cut) else ""
    return Chart(
        title=f"Cost by {at}{left_out}",
        labels=cut,
        series=[
            Series(name=name, values=list(values[name].values()))
            for name in named
            if any(values[name].values())
        ],
        upright=True,
    )


def _part(row: Row, others: Sequence[str]) -> str:
    return label(row, others) or "cost"
