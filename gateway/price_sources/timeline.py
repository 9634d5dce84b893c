"""What an offer changes in our book: the rows that it adds, and what stands against them. Pure.

Our book and the source are compared at every moment at which the source's prices begin, and at the
day from which prices are taken whose beginning it does not say. Where all that the source says is
in the book there is nothing to add, whatever else the book says.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from gateway.ledger.price_file import PriceRow, instant
from gateway.ledger.prices import Dated, PriceBook
from gateway.price_sources.offers import Difference, Offer, Said, differences, figures, unsaid

What = Literal["new", "changed", "same", "against", "declared", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one statement of a source comes to.

    `new` and `changed` have the `row` to append, the rest has none: `same` is in the book,
    `against` contradicts a row that begins at the same moment, `declared` a price of our own,
    `refused` cannot be written as a row. `place` is where the book says otherwise, `said_at` where
    a sheet says it.
    """

    offer: Offer
    what: What
    since: str
    row: PriceRow | None = None
    differences: tuple[Difference, ...] = ()
    place: str = ""
    why: str = ""
    said_at: str = ""


def changes(offer: Offer, book: PriceBook, *, day: dt.date) -> list[Change]:
    """In the order of time. Prices without a beginning are taken from `day` on."""
    known = {row.from_us: (_read(row), row.place) for row in book.rows.get(offer.target, ())}
    found: list[Change] = []
    for since, said in _moments(offer, day):
        change = _at(offer, since, said, known)
        if change.row is not None:
            known[instant(since)] = (change.row, "")
        if change.what != "same" or not found:
            found.append(change)
    return found


def _moments(offer: Offer, day: dt.date) -> Iterator[tuple[str, Said]]:
    """When each statement begins to hold, and `day`, on which one of them holds."""
    dated = [(one.since, one) for one in offer.said if one.since is not None]
    if offer.said[0].since is None:
        held = [one for since, one in dated if instant(since) <= instant(day)]
        dated.append((day.isoformat(), held[-1] if held else offer.said[0]))
    yield from sorted(
        {instant(since): (since, one) for since, one in dated}.values(),
        key=lambda item: instant(item[0]),
    )


def _at(
    offer: Offer,
    since: str,
    said: Said,
    known: dict[int, tuple[PriceRow, str]],
) -> Change:
    at = instant(since)
    starts = [start for start in known if start <= at]
    before, place = known[max(starts)] if starts else (None, "")
    if before is not None and before.until is not None and instant(before.until) <= at:
        before = None
    change = Change(offer=offer, what="same", since=since, place=place, said_at=said.place)
    if said.row is None:
        return replace(change, what="refused", why=said.why_not)
    row = said.row.model_copy(update={"from_": since})
    if before is None:
        return replace(change, what="new", row=row, place="")
    ours, theirs = figures(before), figures(row)
    apart = differences(ours, theirs)
    if not apart:
        return change
    change = replace(change, differences=(*apart, *unsaid(ours, theirs)))
    if before.basis == "declared" and row.basis != "declared":
        return replace(change, what="declared", why="our own statement stands")
    if at in known:
        why = "begins on the same day, and rows are not edited"
        return replace(change, what="against", why=why)
    return replace(change, what="changed", row=row)


def _read(row: Dated) -> PriceRow:
    return PriceRow.model_validate_json(json.dumps(row.terms))
