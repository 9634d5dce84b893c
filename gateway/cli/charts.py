"""Charts without a library: SVG for files, pages and print, and bars for the terminal. Pure.

Owns the drawing of bars and of shares; knows nothing of what they show. A picture is one SVG
without script and without anything to load. It is light by default and dark where the reader's
system is; every bar says its figure beside it and every part of a bar has its own hatching, so
that nothing hangs on colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isnan, log10

WIDTH, MARGIN, GAP = 960, 24, 28
ROW, BAR, HEAD, AXIS = 30, 18, 42, 38
LABEL, VALUE = 150, 96  # room left of the bars for names, right of them for figures
_CHAR = 6.4  # a character's width at 12 px, on average

# Okabe and Ito's colours, told apart by most eyes; beyond them, the same again with other hatches.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c00", "#a0522d")
_HATCHES = ("", "M0 8 8 0", "M0 4H8", "M4 0V8", "M0 0 8 8", "M0 8 8 0M0 0 8 8", "M0 4H8M4 0V8")

_STYLE = """
.bg{fill:#ffffff}.ink{fill:#1f2328}.dim{fill:#59636e}.line{stroke:#d1d9e0}.zero{stroke:#59636e}
.bar{fill:#0072b2}.first{fill:#7d8590}.mark{stroke:#1f2328}.hatch{stroke:#ffffff}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.title{font-size:18px;font-weight:600}.head{font-size:13px;font-weight:600}.small{font-size:11px}
@media(prefers-color-scheme:dark){
.bg{fill:#0d1117}.ink{fill:#e6edf3}.dim{fill:#9198a1}.line{stroke:#30363d}.zero{stroke:#9198a1}
.bar{fill:#4aa3df}.mark{stroke:#e6edf3}.hatch{stroke:#0d1117}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar. `value` is NaN where there is none; `text` says it. `low` to `high` is drawn as a
    whisker, `mark` as a stroke on the same axis."""

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    mark: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Bars over one axis; `unit` stands at its end. The first is the one to compare with."""

    title: str
    unit: str
    bars: Sequence[Bar]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What each row is made of, in shares of 1 by part. `last` is no part like the others."""

    title: str
    rows: Sequence[tuple[str, dict[str, float]]]
    last: str = ""


def svg(title: str, subtitle: str, panels: Sequence[Bars | Shares]) -> str:
    """The picture: shares over the whole width, bars two beside each other."""
    drawn: list[str] = []
    top: float = 78
    half = (WIDTH - 2 * MARGIN - GAP) / 2
    rest = list(panels)
    while rest:
        one = rest.pop(0)
        if isinstance(one, Shares):
            parts, height = _shares(one, MARGIN, top, WIDTH - 2 * MARGIN)
        elif rest and isinstance(two := rest[0], Bars):
            parts, height = _bars(one, MARGIN, top, half)
            beside, its_height = _bars(two, MARGIN + half + GAP, top, half)
            parts, height = parts + beside, max(height, its_height)
            rest.pop(0)
        else:
            parts, height = _bars(one, MARGIN, top, WIDTH - 2 * MARGIN)
        drawn += parts
        top += height + GAP
    height_all = ceil(top - GAP + MARGIN)
    size = f'viewBox="0 0 {WIDTH} {height_all}" width="{WIDTH}" height="{height_all}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="t d">',
            f'<title id="t">{escape(title)}</title><desc id="d">{escape(subtitle)}</desc>',
            f"<style>{_STYLE}</style>{_hatches()}",
            '<rect class="bg" width="100%" height="100%"/>',
            _text(MARGIN, 38, title, "ink title"),
            _text(MARGIN, 58, subtitle, "dim"),
            *drawn,
            "</svg>\n",
        ]
    )


def _bars(panel: Bars, x: float, y: float, width: float) -> tuple[list[str], float]:
    """The panel's parts and its height."""
    ends = [
        end
        for bar in panel.bars
        for end in (bar.value, bar.low, bar.high, bar.mark)
        if end is not None and not isnan(end)
    ]
    low, high, step = _axis(min(ends, default=0), max(ends, default=0))
    left, right = x + LABEL, x + width - VALUE
    scale = (right - left) / (high - low)

    def at(value: float) -> float:
        return left + (value - low) * scale

    bottom = y + HEAD + ROW * len(panel.bars)
    parts = [_text(x, y + 14, panel.title, "ink head")]
    if panel.note:
        parts.append(_text(x, y + 30, panel.note, "dim small"))
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        kind = "zero" if abs(value) < step / 1e6 else "line"
        parts.append(_line(at(value), y + HEAD - 4, at(value), bottom, kind))
        parts.append(_text(at(value), bottom + 15, _tick(value, step), "dim small", "middle"))
    parts.append(_text((left + right) / 2, bottom + 31, panel.unit, "dim small", "middle"))
    for number, bar in enumerate(panel.bars):
        middle = y + HEAD + ROW * number + ROW / 2
        parts += _bar(bar, at, middle, x, right, "first" if number == 0 else "bar")
    return parts, HEAD + ROW * len(panel.bars) + AXIS


def _bar(
    bar: Bar, at: Callable[[float], float], middle: float, x: float, right: float, kind: str
) -> list[str]:
    parts = [_text(x + LABEL - 10, middle + 4, _short(bar.label, LABEL - 10), "ink", "end")]
    parts.append(_text(right + VALUE, middle + 4, bar.text, "ink", "end"))
    if isnan(bar.value) or (not bar.value and bar.mark is None):
        return parts
    start, end = sorted((at(0), at(bar.value)))
    parts.append(
        f'<rect class="{kind}" x="{start:.1f}" y="{middle - BAR / 2:.1f}"'
        f' width="{max(1.0, end - start):.1f}" height="{BAR}" rx="2">'
        f"<title>{escape(f'{bar.label}: {bar.text}')}</title></rect>"
    )
    strokes: list[tuple[float, float]] = []  # where, and half how high
    if bar.low is not None and bar.high is not None:
        parts.append(_line(at(bar.low), middle, at(bar.high), middle, "mark", 1.6))
        strokes += [(bar.low, 5), (bar.high, 5)]
    if bar.mark is not None and not isnan(bar.mark):
        strokes.append((bar.mark, BAR / 2))
    parts += [
        _line(at(where), middle - half, at(where), middle + half, "mark", 1.6)
        for where, half in strokes
    ]
    return parts


def _shares(panel: Shares, x: float, y: float, width: float) -> tuple[list[str], float]:
    """Rows of parts that make a whole, and what each hatching means."""
    total: dict[str, float] = {}
    for _, row in panel.rows:
        for name, share in row.items():
            total[name] = max(total.get(name, 0.0), share)
    names = sorted(total, key=lambda name: (name == panel.last, -total[name], name))
    styles = {name: _fill(number) for number, name in enumerate(names)}
    if panel.last in styles:
        styles[panel.last] = "#7d8590", "h1"
    left, right = x + LABEL, x + width
    parts = [_text(x, y + 14, panel.title, "ink head")]
    for number, (label, row) in enumerate(panel.rows):
        middle = y + HEAD - 14 + ROW * number + ROW / 2
        parts.append(_text(left - 10, middle + 4, _short(label, LABEL - 10), "ink", "end"))
        start = left
        for name in names:
            wide = row.get(name, 0.0) * (right - left)
            if wide <= 0:
                continue
            said = f"{label}: {name} {row[name]:.1%}"
            parts += _part(start, middle, wide, styles[name], said)
            if wide >= 48:
                parts += _plate(start + wide / 2, middle, f"{row[name]:.0%}")
            start += wide
    bottom = y + HEAD - 14 + ROW * len(panel.rows)
    for share in (0, 25, 50, 75, 100):
        at = left + share / 100 * (right - left)
        parts.append(_text(at, bottom + 13, f"{share}", "dim small", "middle"))
    parts.append(_text((left + right) / 2, bottom + 28, "% of requests", "dim small", "middle"))
    legend, height = _legend(names, styles, left, bottom + 40, right)
    return parts + legend, bottom - y + 40 + height


def _part(x: float, middle: float, width: float, style: tuple[str, str], said: str) -> list[str]:
    colour, hatch = style
    box = f'x="{x:.1f}" y="{middle - BAR / 2:.1f}" width="{width:.1f}" height="{BAR}"'
    over = f'<rect {box} fill="url(#{hatch})"/>' if hatch else ""
    drawn = f'<rect {box} fill="{colour}"/>{over}'
    return [f"<g><title>{escape(said)}</title>{drawn}</g>"]


def _plate(x: float, middle: float, words: str) -> list[str]:
    """A few words that can be read on any hatching."""
    box = f'x="{x - 18:.1f}" y="{middle - 7:.1f}" width="36" height="14" rx="3"'
    return [
        f'<rect class="bg" {box} fill-opacity=".85"/>',
        _text(x, middle + 4, words, "ink small", "middle"),
    ]


def _legend(
    names: Sequence[str],
    styles: dict[str, tuple[str, str]],
    left: float,
    y: float,
    right: float,
) -> tuple[list[str], float]:
    parts: list[str] = []
    x, top = left, y
    for name in names:
        wide = 40 + _CHAR * len(name)
        if x + wide > right and x > left:
            x, top = left, top + 20
        parts += _part(x, top + 9, 14, styles[name], name)
        parts.append(_text(x + 20, top + 13, name, "ink small"))
        x += wide
    return parts, top - y + 24


def _fill(number: int) -> tuple[str, str]:
    hatch = number % len(_HATCHES)
    return _COLOURS[number % len(_COLOURS)], f"h{hatch}" if hatch else ""


def _hatches() -> str:
    patterns = "".join(
        f'<pattern id="h{number}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<path class="hatch" d="{path}" fill="none" stroke-width="1.4" stroke-opacity=".75"/>'
        "</pattern>"
        for number, path in enumerate(_HATCHES)
        if path
    )
    return f"<defs>{patterns}</defs>"


# --- axes and text ------------------------------------------------------------------------------


def _axis(low: float, high: float) -> tuple[float, float, float]:
    """Ends and step of an axis that has 0 on it and about four steps of 1, 2 or 5."""
    low, high = min(0.0, low), max(0.0, high)
    if low == high:
        high = 1.0
    rough = (high - low) / 4
    power = 10.0 ** floor(log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    return floor(low / step) * step, ceil(high / step) * step, step


def _tick(value: float, step: float) -> str:
    if abs(value) < step / 1e6:
        return "0"
    places = max(0, -floor(log10(step)))
    return f"{value:,.{places}f}"


def _short(text: str, width: float) -> str:
    room = int(width / _CHAR)
    return text if len(text) <= room else text[: room - 1] + "…"


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{place}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {ends} stroke-width="{width:g}"/>'


# --- the terminal -------------------------------------------------------------------------------


def rows(panel: Bars, *, width: int = 40) -> list[str]:
    """The panel as lines of text: name, bar, figure. Negative values grow to the left."""
    known = [bar.value for bar in panel.bars if not isnan(bar.value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    span = high - low or 1.0
    left = round(-low / span * width)
    name = max((len(bar.label) for bar in panel.bars), default=0)
    lines = [f"{panel.title}, {panel.unit}" if panel.unit else panel.title]
    for bar in panel.bars:
        cells = 0 if isnan(bar.value) else round(abs(bar.value) / span * width)
        cells = max(cells, 1) if not isnan(bar.value) and bar.value else cells
        before = max(0, left - cells if bar.value < 0 else left)
        drawn = (" " * before + "█" * cells).ljust(width)
        lines.append(f"  {bar.label.ljust(name)}  {drawn}  {bar.text}".rstrip())
    return lines
