"""A report as it is shown, whatever the format: a table, charts, remarks and a foot. Pure.

Values are typed by their column's kind and not yet text: `usd` integer nano-USD, `unit` (dollars
per something), `local` (another currency) and `share` Decimal, `count` integer, `ms` and `tps`
float. None is "there is none",
except in `usd` and `local` where it is "not known"; it is never written as 0. "" is an empty cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from gateway.domain.money import NANO_PER_USD, usd

Kind = Literal["text", "count", "usd", "local", "unit", "share", "change", "ms", "tps", "command"]
MONEY = ("usd", "local")
UNPRICED = "unpriced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`section` heads it where the table is too wide for one; "" stands in all of them.

    `formula` says in names of columns (and `total.NAME`) how the figure comes about, for a
    spreadsheet; `added` that the total is the sum. `detail` is only in files for machines. On a
    narrow screen the columns of the highest `rank` give way first.
    """

    name: str
    heading: str
    kind: Kind
    section: str = ""
    added: bool = False
    formula: str = ""
    detail: bool = False
    rank: int = 0


Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`title` is for those after the first, which the document's title heads."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    total: Row | None = None
    title: str = ""

    @property
    def sections(self) -> list[str]:
        return list(dict.fromkeys(c.section for c in self.columns if c.section and not c.detail))

    def of(self, section: str) -> list[Column]:
        """The columns to show under one heading."""
        return [c for c in self.columns if not c.detail and c.section in {"", section}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One part of every bar. `values` align with the chart's labels, in nano-USD or counts."""

    name: str
    values: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars of stacked parts; upright where the labels are times. Reads beside its table, which
    says the same in figures."""

    title: str
    labels: Sequence[str]
    series: Sequence[Series]
    unit: Literal["usd", "tokens", "requests"] = "usd"
    upright: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One figure that is read first."""

    label: str
    figure: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`name` says which report; `foot` how to run it again, `json_foot` the same for machines;
    `more` tables beside the one that is the report."""

    name: str
    title: str
    subtitle: str
    table: Table
    foot: Sequence[tuple[str, str]]
    json_foot: Mapping[str, Any]
    cards: Sequence[Card] = ()
    charts: Sequence[Chart] = ()
    remarks: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    more: Sequence[Table] = ()


# --- values as text -------------------------------------------------------------------------------


def shown(value: Any, kind: Kind) -> str:
    """For people: rounded, with separators."""
    if value == "":
        return ""
    if value is None:
        return UNPRICED if kind in MONEY else "–"
    match kind:
        case "count":
            return f"{value:,}"
        case "usd":
            return money(value)
        case "local":
            return _no_minus_zero(f"{value:,.{2 if abs(value) >= 1 or not value else 4}f}")
        case "unit":
            return f"${value:,.{2 if value >= 1 else 4 if value >= Decimal('0.01') else 6}f}"
        case "share":
            return _no_minus_zero(f"{value * 100:.1f}%")
        case "change":
            text = f"{value * 100:+.1f}%"
            return text if _any_digit(text) else "0.0%"
        case "ms":
            return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"
        case "tps":
            return f"{value:,.1f}"
    return str(value)


def _no_minus_zero(text: str) -> str:
    return text if _any_digit(text) else text.removeprefix("-")


def _any_digit(text: str) -> bool:
    return not set(text).isdisjoint("123456789")


def money(nano: int) -> str:
    """Dollars and cents; what is less than a cent is shown to its first digits, never as 0."""
    amount = Decimal(nano) / NANO_PER_USD
    if not nano or abs(amount) >= 1:
        return f"{'-' if nano < 0 else ''}${abs(amount):,.2f}"
    places = 4 if abs(amount) >= Decimal("0.001") else 9
    return f"{'-' if nano < 0 else ''}${abs(amount):.{places}f}"


def exact(value: Any, kind: Kind) -> Any:
    """For machines: money as an exact decimal string, shares to six digits."""
    if value is None or value == "":
        return value
    match kind:
        case "usd":
            return usd(value)
        case "unit" | "local":
            return f"{value:.12f}".rstrip("0").rstrip(".")
        case "share" | "change":
            return f"{value:.6f}"
        case "ms" | "tps":
            return round(value, 3)
    return value


def local(nano: int | None, per_usd: Decimal) -> Decimal | None:
    """An amount in another currency, exact."""
    return None if nano is None else Decimal(nano) * per_usd / NANO_PER_USD


def ratio(above: int | None, below: int | None) -> Decimal | None:
    """None where there is nothing to divide by."""
    return None if above is None or not below else Decimal(above) / Decimal(below)
