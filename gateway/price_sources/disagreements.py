"""Where our price book and what others say part: disagreements, gaps, and figures grown old. Pure.

A disagreement is an error only where no source that states the figure agrees with ours: sources
disagree with one another too.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby

from gateway.domain.catalog import Backend, Kind, Target
from gateway.ledger.price_file import PriceRow, instant
from gateway.ledger.prices import Dated, PriceBook
from gateway.price_sources.offers import (
    STANDARD,
    Condition,
    Difference,
    Figures,
    Offer,
    Said,
    differences,
    effective,
    figures,
    told,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to look at. `place` is `file:line:column`; `severity` is error, warning or note.

    `kind` is missing, disagrees, lacks, announced, stale, deprecated, unreadable or unchecked.
    """

    kind: str
    severity: str
    target: Target
    place: str
    what: str
    todo: str = ""
    source: str = ""
    condition: str = ""
    key: str = ""
    ours: str | None = None
    theirs: str | None = None

    def __str__(self) -> str:
        mark = "" if self.severity == "error" else f"{self.severity}: "
        line = f"{self.place}: {mark}{self.target}: {self.what}"
        return f"{line}; {self.todo}" if self.todo else line


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A target to look at: where the catalog or the book has it, and what sources say of it."""

    target: Target
    backend: Backend | None
    place: str
    offers: Sequence[Offer]


def look(asked: Asked, book: PriceBook, day: dt.date, *, stale_days: int) -> list[Finding]:
    """Everything that is to be said of one target on that day."""
    row = book.row(asked.target, instant(day))
    found = list(_about_sources(asked, row))
    if row is None:
        found.append(_missing(asked))
    elif row.terms.get("basis") != "declared":
        found += _stale(asked.target, row, day, stale_days)
        found += _compared(asked, row, day)
    if row is None or row.terms.get("basis") != "declared":
        found += _announced(asked, book, day)
    return found


def _missing(asked: Asked) -> Finding:
    backend = asked.backend
    own = backend is not None and backend.kind is Kind.SELF_HOSTED
    ready = backend is not None and backend.configured
    todo = "add a row below prices/"
    if own:
        todo = "declare what its tokens cost: see prices/self-hosted.yaml; unpriced is not free"
    elif taken := [offer for offer in asked.offers if offer.said[-1].row is not None]:
        todo = _import(taken[0])
    return Finding(
        kind="missing",
        severity="note" if own else "error" if ready else "warning",
        target=asked.target,
        place=asked.place,
        what="no price" if ready or own else "no price, for the day it is configured",
        todo=todo,
    )


def _about_sources(asked: Asked, row: Dated | None) -> Iterator[Finding]:
    place = row.place if row is not None else asked.place
    own = asked.backend is not None and asked.backend.kind is Kind.SELF_HOSTED
    if not asked.offers and row is not None and row.terms.get("basis") != "declared" and not own:
        yield Finding(
            kind="unchecked",
            severity="note",
            target=asked.target,
            place=place,
            what="no source knows it: nothing to compare with",
            todo=f"read it again at {row.terms.get('source')}, or name it by --provider",
        )
    for offer in asked.offers:
        if offer.deprecated:
            yield Finding(
                kind="deprecated",
                severity="warning",
                target=asked.target,
                place=place,
                what=f"{offer.source}: {offer.deprecated} ({offer.called})",
                todo="plan its successor",
                source=offer.source,
            )


def _stale(target: Target, row: Dated, day: dt.date, stale_days: int) -> Iterator[Finding]:
    read_on = dt.date.fromisoformat(str(row.terms["read_on"]))
    if (age := (day - read_on).days) > stale_days:
        yield Finding(
            kind="stale",
            severity="warning",
            target=target,
            place=row.place,
            what=f"read {age} days ago, on {read_on}",
            todo="read it again and append a row, or import it",
        )


def _compared(asked: Asked, row: Dated, day: dt.date) -> Iterator[Finding]:
    ours = figures(_read(row))
    lacking: set[tuple[Condition, str, str | None]] = set()  # what an earlier source said too
    for offer in asked.offers:
        said = offer.at(day)
        if said is None:
            continue
        if said.why_not and not said.figures:
            yield Finding(
                kind="unreadable",
                severity="note",
                target=asked.target,
                place=row.place,
                what=f"{offer.source} {said.why_not}",
                source=offer.source,
            )
        apart = differences(ours, said.figures)
        for condition, group in groupby(apart, key=lambda d: d.condition):
            own = ours.get(condition, {})
            fresh = [d for d in group if (condition, d.key, d.theirs) not in lacking]
            lacking |= {(condition, d.key, d.theirs) for d in fresh if d.key not in own}
            if fresh:
                yield from _condition(asked, offer, said, fresh, ours, day)


def _condition(
    asked: Asked,
    offer: Offer,
    said: Said,
    apart: Sequence[Difference],
    ours: Figures,
    day: dt.date,
) -> Iterator[Finding]:
    """What is told of figures that differ under one condition."""
    condition = apart[0].condition
    since = f" since {said.since}" if said.since else ""
    blank = Finding(
        kind="lacks",
        severity="warning",
        target=asked.target,
        place=asked.place,
        what="",
        todo=_import(offer),
        source=offer.source,
        condition=str(condition),
    )
    if condition not in ours:
        listed = ", ".join(f"{one.key} {one.theirs}" for one in apart)
        unsent = _unsent(asked, condition) or _partly(said, condition)
        yield replace(
            blank,
            severity="note" if unsent else "warning",
            what=f"no prices for {condition}; {offer.name}{since}: {listed}",
            todo=unsent or blank.todo,
        )
        return
    for one in apart:
        where = "" if condition == STANDARD else f"{condition}: "
        change = one.per_cent
        more = "" if change is None else f" ({change:+.1f} %)"
        agreeing = [
            other.source
            for other in asked.offers
            if other is not offer and one.ours is not None and _says(other, day, one, one.ours)
        ]
        stated = one.key in ours[condition]
        yield replace(
            blank,
            kind="disagrees" if stated else "lacks",
            severity="error" if stated and not agreeing else "warning",
            key=one.key,
            ours=one.ours,
            theirs=one.theirs,
            what=f"{where}{one.key}: ours {one.ours if stated else _unstated(one)},"
            f" {offer.name} says {one.theirs}{since}{more}"
            + (f"; {', '.join(agreeing)} agrees with ours" if agreeing else ""),
        )


def _says(offer: Offer, day: dt.date, one: Difference, price: str) -> bool:
    held = offer.at(day)
    said = None if held is None else effective(held.figures.get(one.condition, {}), one.key)
    return said is not None and Decimal(said) == Decimal(price)


def _unstated(one: Difference) -> str:
    return "not said" if one.ours is None else f"not said, so {one.ours}"


def _unsent(asked: Asked, condition: Condition) -> str:
    """Why no request can meet that condition; empty where one can."""
    model = None if asked.backend is None else asked.backend.models.get(asked.target.model)
    longest = None if model is None else model.prompt_tokens_max
    if condition.above and longest is not None and longest <= condition.above:
        return f"the catalog sends it no more than {longest:,} tokens"
    return ""


def _partly(said: Said, condition: Condition) -> str:
    """Why it cannot be imported; empty where it can."""
    if said.row is not None and condition not in figures(said.row):
        return "it does not say every price of it, so none can be taken"
    return ""


def _announced(asked: Asked, book: PriceBook, day: dt.date) -> Iterator[Finding]:
    """What a source says will be, and the book does not."""
    end = instant(day + dt.timedelta(days=1))
    for offer in asked.offers:
        for said in offer.said:
            if said.since is None or instant(said.since) < end:
                continue
            row = book.row(asked.target, instant(said.since))
            ours: Mapping[Condition, Mapping[str, str]] = {} if row is None else figures(_read(row))
            if apart := differences(ours, said.figures):
                yield Finding(
                    kind="announced",
                    severity="warning",
                    target=asked.target,
                    place=asked.place if row is None else row.place,
                    what=f"from {said.since}, says {offer.source}: " + "; ".join(told(apart)),
                    todo=_import(offer),
                    source=offer.source,
                )


def _import(offer: Offer) -> str:
    source = offer.source.partition(" ")[0]
    target = offer.target
    return f"weighbridge prices import {source} --backend {target.backend} --model {target.model}"


def _read(row: Dated) -> PriceRow:
    return PriceRow.model_validate_json(json.dumps(row.terms))


def failed(findings: Iterable[Finding], *, strict: bool) -> bool:
    """Whether any of them is one to fail for."""
    bad = {"error", "warning"} if strict else {"error"}
    return any(finding.severity in bad for finding in findings)
