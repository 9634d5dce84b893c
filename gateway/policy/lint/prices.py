"""Lints of the price book: what has no price, what nobody read for long, what never holds. Pure.

Reads the rows as they are written; that they fit together was seen to when they were loaded.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from gateway.domain.catalog import Backend, Model, Target
from gateway.policy.lint.subject import NOTE, WARNING, Sheet, Subject
from gateway.policy.source import Path, Problem

STALE_DAYS = 180
ENDING_DAYS = 30
_DAY_MINUTES = 24 * 60


def lint_prices(subject: Subject) -> Iterator[Problem]:
    """All that is suspicious in the price files, and what they lack."""
    rows = _rows(subject)
    for check in _CHECKS:
        yield from check(subject, rows)


class _Row:
    """A row of a price file, where it stands. It holds from `starts` until before `ends`."""

    def __init__(self, sheet: Sheet, index: int, row: Mapping[str, Any]) -> None:
        self.sheet = sheet
        self.path: Path = ("prices", index)
        self.target = Target(row["backend"], row["model"])
        self.starts = _moment(row["from"])
        self.until: str | None = row.get("until")
        self.ends = None if self.until is None else _moment(self.until)
        self.read_on = dt.date.fromisoformat(row["read_on"])
        self.row = row

    def holds(self, at: dt.datetime) -> bool:
        return self.starts <= at and (self.ends is None or at < self.ends)

    def tell(self, severity: str, at: Path, message: str, hint: str = "") -> Problem:
        return self.sheet.tell(severity, (*self.path, *at), message, hint)


_Rows = Mapping[Target, list[_Row]]  # of each target by their start


def _rows(subject: Subject) -> _Rows:
    found: dict[Target, list[_Row]] = {}
    for sheet in subject.price_files:
        for index, row in enumerate(sheet.value.get("prices") or ()):
            made = _Row(sheet, index, row)
            found.setdefault(made.target, []).append(made)
    for rows in found.values():
        rows.sort(key=lambda row: row.starts)
    return found


def _moment(text: str) -> dt.datetime:
    """A day starts at midnight UTC."""
    when = dt.datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


def _model(subject: Subject, target: Target) -> tuple[Backend, Model] | None:
    backend = subject.catalog.backends.get(target.backend)
    model = None if backend is None else backend.models.get(target.model)
    return None if backend is None or model is None else (backend, model)


# --- targets ------------------------------------------------------------------------------------


def _unpriced(subject: Subject, rows: _Rows) -> Iterator[Problem]:
    now = _moment(subject.today.isoformat())
    for name, backend in subject.catalog.backends.items():
        for model in backend.models:
            target = Target(name, model)
            if target in subject.rates:
                continue
            when = ""
            if own := rows.get(target):
                past = [row for row in own if row.ends is not None and row.ends <= now]
                if any(row.holds(now) for row in own):
                    when = ": what it costs is not by the token"
                elif past:
                    when = f" since {past[-1].until}"
                else:
                    when = f" on {subject.today}, only later"
            said = f"no price for {target}{when}"
            yield subject.catalog_file.tell(
                NOTE,
                ("backends", name, "models", model),
                said if ": " in when else f"{said}: unpriced, not free",
                "add a row to prices/",
                key=True,
            )


def _of_nothing(subject: Subject, rows: _Rows) -> Iterator[Problem]:
    for target, own in rows.items():
        if _model(subject, target) is None:
            for row in own:
                yield row.tell(NOTE, (), f"a price for {target}, which is not in the catalog")


# --- rows ---------------------------------------------------------------------------------------


def _stale(subject: Subject, rows: _Rows) -> Iterator[Problem]:
    """Rows in force that nobody has compared with the vendor for long."""
    now = _moment(subject.today.isoformat())
    for target, own in rows.items():
        row = next((row for row in reversed(own) if row.starts <= now), None)
        if row is None or not row.holds(now) or _model(subject, target) is None:
            continue
        age = (subject.today - row.read_on).days
        if age > STALE_DAYS:
            yield row.tell(
                WARNING,
                ("read_on",),
                f"the price of {target} was read {age} days ago",
                "compare it with the vendor's and append a row",
            )


def _ending(subject: Subject, rows: _Rows) -> Iterator[Problem]:
    """Prices that end soon with nothing after them."""
    now = _moment(subject.today.isoformat())
    for target, own in rows.items():
        last = own[-1]
        if last.ends is None or _model(subject, target) is None or last.ends <= now:
            continue
        days = (last.ends - now).days
        if days <= ENDING_DAYS:
            yield last.tell(
                WARNING,
                ("until",),
                f"the price of {target} ends in {days} days and no other follows: unpriced then",
                "append a row from that day on",
            )


def _never(subject: Subject, rows: _Rows) -> Iterator[Problem]:
    """Parts of rows that no request can meet."""
    for target, own in rows.items():
        if (found := _model(subject, target)) is None:
            continue
        backend, model = found
        for row in own:
            yield from _variants(row, backend)
        # Once for each target: what is said of one row is so of the others.
        beyond = (found for row in own for found in _bounds(row, model))
        yield from islice(beyond, 1)


def _scales(row: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    yield (), row
    for number, variant in enumerate(row.get("when") or ()):
        yield ("when", number), variant


def _bounds(row: _Row, model: Model) -> Iterator[Problem]:
    longest = min(
        (n for n in (model.prompt_tokens_max, model.context_tokens) if n is not None), default=None
    )
    for path, part in _scales(row.row):
        for index, tier in enumerate(part.get("long_prompts") or ()):
            if longest is not None and tier["above_prompt_tokens"] >= longest:
                yield row.tell(
                    NOTE,
                    (*path, "long_prompts", index, "above_prompt_tokens"),
                    f"never reached: the catalog allows {row.target} prompts of {longest:,} tokens",
                )


def _variants(row: _Row, backend: Backend) -> Iterator[Problem]:
    """Those of another region, and those that others which say more leave no minute of the day."""
    variants = list(row.row.get("when") or ())
    here = [v for v in variants if v.get("region") in (None, backend.data.region)]
    for number, variant in enumerate(variants):
        if variant not in here:
            region = backend.data.region or "not stated"
            yield row.tell(
                NOTE,
                ("when", number, "region"),
                f"never holds: the region of {backend.name} is {region}",
                "correct data.region in the catalog, or leave the variant out",
            )
            continue
        tier = variant.get("service_tier")
        left = _minutes(variant)
        for other in here:
            if other.get("service_tier") == tier and _says(other) > _says(variant):
                left -= _minutes(other)
        if not left:
            yield row.tell(
                WARNING,
                ("when", number),
                "never holds: others that say more take every minute of its day",
                "leave it out",
            )


def _says(variant: Mapping[str, Any]) -> int:
    """How much it says beside its service tier: who says most wins."""
    return (variant.get("region") is not None) + (variant.get("hours_utc") is not None)


def _minutes(variant: Mapping[str, Any]) -> frozenset[int]:
    """The minutes of the day in which it holds; hours may pass midnight."""
    hours = variant.get("hours_utc")
    if hours is None:
        return frozenset(range(_DAY_MINUTES))
    found: set[int] = set()
    for text in hours:
        start, end = (int(at[:2]) * 60 + int(at[3:]) for at in text.split("-"))
        found.update(
            at % _DAY_MINUTES for at in range(start, end if end > start else end + _DAY_MINUTES)
        )
    return frozenset(found)


_CHECKS: tuple[Callable[[Subject, _Rows], Iterator[Problem]], ...] = (
    _unpriced,
    _of_nothing,
    _stale,
    _ending,
    _never,
)
