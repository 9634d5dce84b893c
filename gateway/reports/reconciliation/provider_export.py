"""A provider's usage or cost export, read whole: what it says of each model, meter and stretch.

INVARIANTS
- It is read to its end or not at all: what is not a number, a time or dollars, a numbered line that
  is there twice, a column that is missing ends it with file, line and column.
- Lines that are equal and have no number may both be meant: both count, and are told.
- Quantities are whole numbers, money is Decimal to the digit it was written to; `slack` is how much
  their own rounding may hide.
- A line of another meter than ours is kept under the provider's word for it.
"""

from __future__ import annotations

import csv
import datetime as dt
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from gateway.domain.money import Meter
from gateway.reports.definition import Unusable
from gateway.reports.reconciliation.shapes import (
    METER_COLUMNS,
    OWN_COLUMNS,
    SHAPES,
    Shape,
    line_item,
    meter_of,
    snake,
)

UNNAMED: Final = "(no meter)"
LINES_MAX: Final = 2_000_000
_HOUR_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _HOUR_US
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NUMBER: Final = re.compile(r"-?\d{1,20}(\.\d{1,20})?([eE]-?\d{1,2})?", re.ASCII)
_NANO_DIGITS: Final = 9


class Malformed(Unusable):
    """The file is not what it should be; says where, and what was expected."""

    def __init__(self, source: str, line: int, column: str, wrong: str) -> None:
        super().__init__(
            f"{source}:{line}:{column}: {wrong}" if column else f"{source}:{line}: {wrong}"
        )


@dataclass(slots=True)
class Said:
    """What they say of one model, meter and stretch, over all its lines.

    `nano` in nano-USD, `slack` half of the last digits they wrote; None: they say nothing of it.
    """

    quantity: int | None = None
    nano: Decimal | None = None
    slack: Decimal = Decimal(0)
    lines: list[int] = field(default_factory=list)


Length = Literal["hour", "calendar day", "day"]
Key = tuple[int, str, "Meter | str | None"]  # start of the stretch, model, meter (None: all)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file as read. `length` says what its stretches are: hours, days of the calendar, or days
    that begin at one hour of UTC; `ends` says of each that is there where it ends. `wide`: it has a
    column per meter, so `says` are all the meters it can tell apart. `equal` lines are the same as
    one before them in every column.
    """

    shape: str
    about: str
    length: Length
    wide: bool
    said: Mapping[Key, Said]
    ends: Mapping[int, int]
    says: frozenset[Meter]
    lines: int
    equal: int = 0

    @property
    def since_us(self) -> int:
        return min(self.ends)

    @property
    def until_us(self) -> int:
        return max(self.ends.values())

    def stretches(self, since_us: int, until_us: int, zone: str) -> dict[int, int]:
        """Start and end of every stretch that begins in the period, with lines or without."""
        known = [at for at in self.ends if since_us <= at < until_us]
        at = min(known, default=since_us)
        long_us = _HOUR_US if self.length == "hour" else _DAY_US
        while at - since_us >= long_us and self.length != "calendar day":
            at -= long_us
        if self.length == "calendar day":
            at = since_us
        found = {}
        while at < until_us:
            found[at] = next_day(at, zone) if self.length == "calendar day" else at + long_us
            at = found[at]
        return found | {at: self.ends[at] for at in known}


class _Line:
    """One line under its header, for who reads cells of it."""

    __slots__ = ("_cells", "_columns", "equal", "number", "source")

    def __init__(
        self, source: str, number: int, columns: Mapping[str, int], cells: Sequence[str]
    ) -> None:
        self.source = source
        self.number = number
        self._columns = columns
        self._cells = cells
        self.equal = False

    def text(self, column: str) -> str:
        place = self._columns.get(column)
        return "" if place is None else self._cells[place].strip()

    def wrong(self, column: str, what: str) -> Malformed:
        return Malformed(self.source, self.number, column, what)

    def count(self, column: str, *, thousands: bool = False) -> int | None:
        """A quantity; None where the cell is empty. Raises Malformed."""
        number = self.number_of(column)
        if number is None:
            return None
        exact = number.scaleb(3) if thousands else number
        if exact < 0 or exact != exact.to_integral_value():
            raise self.wrong(column, f"'{self.text(column)}' is no count; expected a whole number")
        return int(exact)

    def number_of(self, column: str) -> Decimal | None:
        text = self.text(column)
        if not text:
            return None
        try:
            if _NUMBER.fullmatch(text):
                return Decimal(text)
        except InvalidOperation:
            pass
        raise self.wrong(
            column, f"'{text}' is not a number; expected digits and a point, like 1234.56"
        )


def read(
    text: str, source: str, *, zone: str = "UTC", columns: Mapping[str, str] | None = None
) -> Export:
    """The export in `text`. `columns` maps what we need (`time`, `model`, ...) to their columns.

    Times without an offset are of `zone`. Raises Unusable (Malformed where it is the file's fault).
    """
    records = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        header = next(records, None)
        if not header or not any(cell.strip() for cell in header):
            raise Malformed(source, 1, "", "the file is empty; expected a CSV with a header line")
        _by_commas(header, source)
        places = _places(header, source)
        name, shape = _shape(places, header, source, columns)
        lines = list(_lines(records, source, places, len(header), shape.unique))
    except csv.Error as error:
        raise Malformed(source, records.line_num, "", f"no CSV: {error}") from None
    lines = [line for line in lines if _of_models(line, shape)]
    if not lines:
        raise Malformed(source, 2, "", "there are no lines under the header; nothing to reconcile")
    return _folded(name, shape, lines, zone)


def _by_commas(header: Sequence[str], source: str) -> None:
    for sign, shown in {";": ";", "\t": "tabs"}.items():
        if len(header) == 1 and sign in header[0]:
            wrong = f"separated by {shown}, expected commas; save it as CSV with commas"
            raise Malformed(source, 1, "", wrong)


def _places(header: Sequence[str], source: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, name in enumerate(map(snake, header)):
        if name in found and name:
            raise Malformed(source, 1, header[place], "this column is there twice")
        found[name] = place
    return found


def _lines(
    records: Any, source: str, places: Mapping[str, int], width: int, unique: str
) -> Iterator[_Line]:
    seen: dict[tuple[str, ...], int] = {}
    for cells in records:
        number = records.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if number > LINES_MAX:
            raise Malformed(source, number, "", f"more than {LINES_MAX:,} lines; split the file")
        if len(cells) != width:
            wrong = f"{len(cells)} cells; the header has {width}"
            raise Malformed(source, number, "", wrong)
        first = seen.setdefault(tuple(cells), number)
        line = _Line(source, number, places, cells)
        line.equal = first != number
        if line.equal and line.text(unique):
            wrong = f"the same as line {first}; is the export there twice?"
            raise line.wrong(unique, wrong)
        yield line


def _of_models(line: _Line, shape: Shape) -> bool:
    if shape.only is None:
        return True
    column, wanted = shape.only
    return line.text(column) in {"", wanted}


# --- which shape ----------------------------------------------------------------------------------


def _shape(
    places: Mapping[str, int],
    header: Sequence[str],
    source: str,
    columns: Mapping[str, str] | None,
) -> tuple[str, Shape]:
    if columns:
        return "columns", _mapped(places, header, columns)
    fits = [(len(s.needs), name) for name, s in SHAPES.items() if set(s.needs) <= places.keys()]
    if fits:
        name = max(fits)[1]
        return name, SHAPES[name]
    missing = {name: [n for n in s.needs if n not in places] for name, s in SHAPES.items()}
    nearest = min(missing, key=lambda name: len(missing[name]) / len(SHAPES[name].needs))
    raise Malformed(
        source,
        1,
        "",
        f"the header is of no export known here. Nearest is {nearest} ({SHAPES[nearest].about}),"
        f" which also has {', '.join(missing[nearest])}. Known are {', '.join(SHAPES)}; for another"
        " say --columns time=COLUMN,model=COLUMN,input=COLUMN,output=COLUMN,cost=COLUMN, or with"
        " meter=COLUMN,quantity=COLUMN where a line is of one meter",
    )


def _mapped(places: Mapping[str, int], header: Sequence[str], columns: Mapping[str, str]) -> Shape:
    of: dict[str, str] = {}
    wide: dict[str, Meter] = {}
    for ours, theirs in columns.items():
        if ours not in OWN_COLUMNS and ours not in METER_COLUMNS:
            known = (*OWN_COLUMNS, *METER_COLUMNS)
            near = difflib.get_close_matches(ours, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise Unusable(f"--columns {ours}={theirs}: {hint}")
        column = snake(theirs)
        if column not in places:
            near = difflib.get_close_matches(theirs, header, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the file has {', '.join(header)}"
            raise Unusable(f"--columns {ours}={theirs}: the file has no such column; {hint}")
        if ours in OWN_COLUMNS:
            of[ours] = column
        else:
            wide[column] = METER_COLUMNS[ours]
    lacks = [name for name in ("time", "model") if name not in of]
    if lacks:
        raise Unusable(f"--columns: {' and '.join(lacks)} must be said")
    if not wide and "cost" not in of and "quantity" not in of:
        raise Unusable(
            "--columns: nothing to compare; say cost=COLUMN, or meters like input=COLUMN"
        )
    if "quantity" in of and "meter" not in of:
        raise Unusable("--columns quantity: of which meter? Say meter=COLUMN, or input=COLUMN")
    if wide and "meter" in of:
        raise Unusable("--columns: meter=COLUMN (a line per meter) or a column per meter, not both")
    prompt = snake(columns["prompt"]) if "prompt" in columns else None
    inside = [c for c, m in wide.items() if prompt and m is Meter.CACHE_READ]
    return Shape(
        about="columns as said",
        needs=(),
        time=(of["time"],),
        model=of["model"],
        wide=wide,
        within={column: prompt for column in inside if prompt},
        meter=of.get("meter", ""),
        quantity=of.get("quantity", ""),
        cost=of.get("cost", ""),
        currency=of.get("currency", ""),
    )


# --- what it says ---------------------------------------------------------------------------------


def _folded(name: str, shape: Shape, lines: Sequence[_Line], zone: str) -> Export:
    times = [_time(line, shape, zone) for line in lines]
    length, ends = _stretches(times, lines, shape, zone)
    said: dict[Key, Said] = {}
    for line, (at, _) in zip(lines, times, strict=True):
        for model, meter, one in _of_line(line, shape):
            said[at, model, meter] = joined(said.get((at, model, meter), Said()), one)
    says = shape.says
    if not says:
        says = frozenset(meter for _, _, meter in said if isinstance(meter, Meter))
    return Export(
        shape=name,
        about=shape.about,
        length=length,
        wide=bool(shape.wide),
        said=said,
        ends=ends,
        says=says,
        lines=len(lines),
        equal=sum(line.equal for line in lines),
    )


def _of_line(line: _Line, shape: Shape) -> Iterator[tuple[str, Meter | str | None, Said]]:
    model, words = line.text(shape.model), line.text(shape.meter)
    if shape.parts:
        model, words = line_item(line.text(shape.parts))
    if not model or model.lower() in {"null", "none", "all", "mixed", "total", "all models"}:
        wrong = f"'{model}' is no model; export it by model, without totals"
        raise line.wrong(shape.parts or shape.model, wrong)
    currency = line.text(shape.currency)
    if currency and currency.upper() != "USD":
        raise line.wrong(shape.currency, f"'{currency}': the ledger is in USD")
    nano, slack = _money(line, shape.cost)
    if shape.wide:
        counts = {column: line.count(column) for column in shape.wide}
        for column, whole in shape.within.items():
            inside, all_of = counts[column] or 0, counts[whole]
            if all_of is not None:
                if inside > all_of:
                    wrong = f"{inside} is more than the {all_of} of {whole}, in which it should be"
                    raise line.wrong(column, wrong)
                counts[whole] = all_of - inside
        for column, meter in shape.wide.items():
            if counts[column] is not None:
                yield model, meter, Said(counts[column], lines=[line.number])
        if nano is not None:
            yield model, None, Said(None, nano, slack, [line.number])
        return
    quantity = line.count(shape.quantity, thousands=shape.thousands) if shape.quantity else None
    named: Meter | str | None = meter_of(words) or words or UNNAMED
    if not shape.meter and not shape.parts:
        named = None
    yield model, named, Said(quantity, nano, slack, [line.number])


def _money(line: _Line, column: str) -> tuple[Decimal | None, Decimal]:
    """In nano-USD, and half of the last digit it was written to."""
    amount = line.number_of(column) if column else None
    if amount is None:
        return None, Decimal(0)
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int)
    return amount.scaleb(_NANO_DIGITS), Decimal((0, (5,), exponent - 1 + _NANO_DIGITS))


def joined(one: Said, other: Said) -> Said:
    """What two lines say together."""
    quantity = [q for q in (one.quantity, other.quantity) if q is not None]
    nano = [n for n in (one.nano, other.nano) if n is not None]
    return Said(
        sum(quantity) if quantity else None,
        sum(nano, Decimal(0)) if nano else None,
        one.slack + other.slack,
        [*one.lines, *other.lines],
    )


# --- when -----------------------------------------------------------------------------------------


def _time(line: _Line, shape: Shape, zone: str) -> tuple[int, bool]:
    """When a line's stretch starts, and whether it is a day of the calendar."""
    column = next((name for name in shape.time if line.text(name)), shape.time[0])
    text = line.text(column)
    try:
        if text.isdigit() and len(text) == len("1793491200"):
            return int(text) * 1_000_000, False
        given = dt.datetime.fromisoformat(text.replace("/", "-"))
    except ValueError:
        wrong = f"'{text}' is no time; expected 2026-11-01, 2026-11-01T08:00:00Z or Unix seconds"
        raise line.wrong(column, wrong) from None
    if given.tzinfo is not None:
        return (given - _EPOCH) // dt.timedelta(microseconds=1), False
    at = (given.replace(tzinfo=ZoneInfo(zone)) - _EPOCH) // dt.timedelta(microseconds=1)
    return at, given.time() == dt.time()


def _stretches(
    times: Sequence[tuple[int, bool]], lines: Sequence[_Line], shape: Shape, zone: str
) -> tuple[Length, dict[int, int]]:
    """What they are, and where each ends."""
    starts = {at for at, _ in times}
    if all(midnight for _, midnight in times):
        return "calendar day", {at: next_day(at, zone) for at in starts}
    if len({at % _DAY_US for at in starts}) == 1:
        return "day", {at: at + _DAY_US for at in starts}
    for line, (at, _) in zip(lines, times, strict=True):
        if at % _HOUR_US:
            column = shape.time[0]
            wrong = f"'{line.text(column)}' begins within an hour; export by the hour or the day"
            raise line.wrong(column, wrong)
    return "hour", {at: at + _HOUR_US for at in starts}


def next_day(at: int, zone: str) -> int:
    """The midnight of `zone` after that instant's day."""
    tz = ZoneInfo(zone)
    here = (_EPOCH + dt.timedelta(microseconds=at)).astimezone(tz).replace(tzinfo=None)
    after = (here.replace(hour=0, minute=0) + dt.timedelta(days=1)).replace(tzinfo=tz)
    return (after - _EPOCH) // dt.timedelta(microseconds=1)
