"""Charts as shapes on a plane: drawn once, by a pen for pages (SVG) and one for paper (PDF). Pure.

Owns geometry, axes and the order of colours; knows no format. Units are points of a plane as wide
as asked for; y grows downwards. Every part has a colour of its own number, a legend says which,
and bars say their figure: nothing hangs on colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from math import ceil, floor, log10
from typing import Literal

from gateway.domain.money import NANO_PER_USD
from gateway.reports.document import Chart, money

# Okabe and Ito's colours, told apart by most eyes.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c00", "#7a7a7a")

_ROW, _BAR, _LEGEND, _CHAR = 26, 15, 24, 5.9
_LABEL, _FIGURE = 170, 92  # room beside lying bars for names and for figures
_TALL, _LEFT, _BELOW = 190, 64, 34  # of upright bars: the plot, the axis' figures, the times


@dataclass(frozen=True, slots=True)
class Rect:
    """`part` is the number of its colour; `said` what it shows."""

    x: float
    y: float
    width: float
    height: float
    part: int
    said: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """Text on its base line."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    dim: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    x1: float
    y1: float
    x2: float
    y2: float


Shape = Rect | Label | Line


@dataclass(frozen=True, slots=True)
class Drawing:
    width: float
    height: float
    shapes: Sequence[Shape]


def draw(chart: Chart, width: float = 860) -> Drawing:
    """The chart without its title, and with a legend where it has several parts."""
    shapes, top = _legend(chart, width)
    more, height = (_upright if chart.upright else _lying)(chart, width, top)
    return Drawing(width, height, [*shapes, *more])


def _legend(chart: Chart, width: float) -> tuple[list[Shape], float]:
    if len(chart.series) < 2:
        return [], 4
    shapes: list[Shape] = []
    x, y = 0.0, 4.0
    for number, series in enumerate(chart.series):
        wide = 26 + _CHAR * len(series.name) + 14
        if x and x + wide > width:
            x, y = 0.0, y + 18
        shapes += [Rect(x, y, 12, 12, number), Label(x + 18, y + 10, series.name)]
        x += wide
    return shapes, y + _LEGEND


def _lying(chart: Chart, width: float, top: float) -> tuple[list[Shape], float]:
    left, right = float(_LABEL), width - _FIGURE
    sums = [sum(s.values[n] for s in chart.series) for n in range(len(chart.labels))]
    high, step = _axis(max(sums, default=0), chart.unit)
    scale = (right - left) / high
    bottom = top + _ROW * len(chart.labels)
    shapes: list[Shape] = []
    for tick in range(round(high / step) + 1):
        at = left + tick * step * scale
        shapes.append(Line(at, top - 2, at, bottom))
        shapes.append(
            Label(at, bottom + 14, _tick(tick * step, step, chart.unit), "middle", dim=True)
        )
    for row, (name, whole) in enumerate(zip(chart.labels, sums, strict=True)):
        middle = top + _ROW * (row + 0.5)
        shapes.append(Label(left - 8, middle + 4, short(name, _LABEL - 10), "end"))
        x = left
        for part, series in enumerate(chart.series):
            wide = series.values[row] * scale
            if wide > 0:
                said = f"{name}, {series.name}: {figure(series.values[row], chart.unit)}"
                shapes.append(Rect(x, middle - _BAR / 2, max(wide, 0.8), _BAR, part, said))
            x += wide
        shapes.append(Label(x + 6, middle + 4, figure(whole, chart.unit)))
    return shapes, bottom + 20


def _upright(chart: Chart, width: float, top: float) -> tuple[list[Shape], float]:
    count = max(1, len(chart.labels))
    sums = [sum(s.values[n] for s in chart.series) for n in range(len(chart.labels))]
    high, step = _axis(max(sums, default=0), chart.unit)
    bottom, left = top + _TALL, float(_LEFT)
    scale, slot = (_TALL - 6) / high, (width - left) / count
    shapes: list[Shape] = []
    for tick in range(round(high / step) + 1):
        at = bottom - tick * step * scale
        shapes.append(Line(left, at, width, at))
        shapes.append(
            Label(left - 8, at + 4, _tick(tick * step, step, chart.unit), "end", dim=True)
        )
    every = ceil(count * 74 / (width - left))
    for place, name in enumerate(chart.labels):
        x, y = left + slot * place + slot * 0.12, bottom
        for part, series in enumerate(chart.series):
            high_part = series.values[place] * scale
            if high_part > 0:
                said = f"{name}, {series.name}: {figure(series.values[place], chart.unit)}"
                y -= high_part
                shapes.append(Rect(x, y, min(slot * 0.76, 44), max(high_part, 0.8), part, said))
        if place % every == 0:
            middle = x + min(slot * 0.76, 44) / 2
            shapes.append(Label(middle, bottom + 15, _time(name), "middle", dim=True))
    return shapes, bottom + _BELOW - 10


def _time(name: str) -> str:
    """A day without its year, an hour without its offset: the table has them."""
    return name[5:16] if name[:4].isdigit() else short(name, 70)


# --- axes and text --------------------------------------------------------------------------------


def _axis(high: int, unit: str) -> tuple[float, float]:
    """End and step of an axis from 0 with about four steps of 1, 2 or 5."""
    rough = max(high, 1) / 4
    power = 10.0 ** floor(log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    if unit != "usd":
        step = max(step, 1.0)
    return max(step, ceil(high / step) * step), step


def _tick(value: float, step: float, unit: str) -> str:
    if unit == "usd":
        places = max(0, -floor(log10(step / NANO_PER_USD)))
        places = max(2, places) if places else 0
        return f"${value / NANO_PER_USD:,.{places}f}"
    return _count(value)


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{Decimal(value) / Decimal(size):.3g} {letter}"
    return f"{value:.0f}"


def figure(value: int, unit: str) -> str:
    """A bar's figure."""
    return money(value) if unit == "usd" else _count(value)


def short(text: str, width: float) -> str:
    """What fits, and a sign that there is more."""
    room = int(width / _CHAR)
    return text if len(text) <= room else text[: room - 1] + "…"


# --- the pen for pages ----------------------------------------------------------------------------


def svg(chart: Chart, width: float = 860) -> str:
    """The chart as one `<svg>`, coloured by the classes `p0` to `p7`, `ink`, `dim` and `rule`."""
    drawing = draw(chart, width)
    size = f'viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">']
    parts.append(f"<title>{escape(chart.title)}</title>")
    parts += map(_drawn, drawing.shapes)
    return "\n".join([*parts, "</svg>"])


def _drawn(shape: Shape) -> str:
    match shape:
        case Rect(x, y, width, height, part, said):
            box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            title = f"<title>{escape(said)}</title>" if said else ""
            return f'<rect class="p{part % len(COLOURS)}" {box} rx="1.5">{title}</rect>'
        case Label(x, y, text, anchor, dim):
            place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
            return f'<text class="{"dim" if dim else "ink"}" {place}>{escape(text)}</text>'
        case Line(x1, y1, x2, y2):
            ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            return f'<line class="rule" {ends}/>'
