"""A reconciliation as a document: every difference a line, the classes summed up, a verdict."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from gateway.domain.money import NANO_PER_USD, Meter, book
from gateway.ledger.store import Store, attempt_dimensions
from gateway.reports.definition import Unusable, iso, moment
from gateway.reports.document import Column, Document, Table, money
from gateway.reports.focus.columns import plain
from gateway.reports.kept import Kept
from gateway.reports.reconciliation.comparison import CLASSES, SETTLED, Difference, Result, Wanted
from gateway.reports.reconciliation.provider_export import Export
from gateway.reports.reconciliation.slots import MeterName

COLUMNS = (
    Column(name="class", heading="class", kind="text"),
    Column(name="from", heading="from", kind="text"),
    Column(name="model", heading="model", kind="text"),
    Column(name="meter", heading="meter", kind="text"),
    Column(name="their_quantity", heading="theirs", kind="count", rank=3),
    Column(name="our_quantity", heading="ours", kind="count", rank=3),
    Column(name="quantity", heading="difference", kind="count"),
    Column(name="their_cost", heading="their cost", kind="usd", rank=4),
    Column(name="our_cost", heading="our cost", kind="usd", rank=4),
    Column(name="worth", heading="worth", kind="usd"),
    Column(name="lines", heading="lines", kind="text", rank=2),
)
CLASS_COLUMNS = (
    Column(name="class", heading="class", kind="text"),
    Column(name="places", heading="places", kind="count", added=True),
    Column(name="worth", heading="worth", kind="usd", added=True),
    Column(name="meaning", heading="", kind="text", rank=1),
)
_LINES_SHOWN = 4


async def known_backend(store: Store, kept: Kept, backend: str) -> None:
    """Raises Unusable where neither a catalog nor the ledger has heard of it."""
    if await kept.backend(backend) is not None:
        return
    rows = await store.select(sa.select(attempt_dimensions.c.backend).distinct())
    known = sorted(row["backend"] for row in rows)
    if backend not in known:
        near = difflib.get_close_matches(backend, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none yet'}"
        raise Unusable(f"--backend {backend}: the ledger has nothing of it; {hint}")


def document(
    result: Result, wanted: Wanted, export: Export, *, source: str, digest: str, tolerance: Decimal
) -> Document:
    """The report. `tolerance` in nano-USD; `digest` is the file's SHA-256."""
    agrees = result.agrees(tolerance)
    since_us = export.since_us if wanted.period is None else wanted.period.since_us
    until_us = export.until_us if wanted.period is None else wanted.period.until_us
    said = _said(result, export, tolerance, agrees=agrees)
    foot = [
        ("File", f"{source}, {export.lines:,} lines ({export.shape}: {export.about})"),
        ("SHA-256", digest),
        ("Period", f"{moment(since_us, wanted.zone)} to {moment(until_us, wanted.zone)}"),
        ("Compared", f"{result.compared:,} figures by {export.length}, model and meter"),
        ("Ours", f"${plain(result.ours_nano / NANO_PER_USD)}"),
        ("Theirs", _theirs(result)),
    ]
    classes = result.by_class()
    machine: dict[str, Any] = {
        "file": source,
        "sha256": digest,
        "shape": export.shape,
        "backend": wanted.backend,
        "since": iso(since_us, wanted.zone),
        "until": iso(until_us, wanted.zone),
        "zone": wanted.zone,
        "by": export.length,
        "compared": result.compared,
        "lines_outside": result.outside,
        "lines_equal": export.equal,
        "ours_usd": plain(result.ours_nano / NANO_PER_USD),
        "theirs_usd": None
        if result.theirs_nano is None
        else plain(result.theirs_nano / NANO_PER_USD),
        "open_usd": None if result.open_nano is None else plain(result.open_nano / NANO_PER_USD),
        "tolerance_usd": plain(tolerance / NANO_PER_USD),
        "shift_hours": result.shift_us // 3_600_000_000,
        "models": result.models,
        "unstated": {meter.value: n for meter, n in result.unstated.items()},
        "agrees": agrees,
    }
    return Document(
        name="reconcile",
        title=f"Reconciliation with {wanted.backend}",
        subtitle=f"{source} beside the ledger; theirs less ours",
        table=Table(
            columns=COLUMNS, rows=[_row(one, wanted, export) for one in result.differences]
        ),
        more=[Table(columns=CLASS_COLUMNS, rows=_classes(classes), title="By class")]
        if classes
        else [],
        remarks=said,
        foot=foot,
        json_foot=machine,
    )


def _theirs(result: Result) -> str:
    if result.theirs_nano is None:
        return "the file says no money"
    return f"${plain(result.theirs_nano / NANO_PER_USD)}"


def _said(result: Result, export: Export, tolerance: Decimal, *, agrees: bool) -> list[str]:
    """The verdict, then what a reader must know."""
    found = [_verdict(result, tolerance, agrees=agrees)]
    if result.shift_us:
        hours = result.shift_us // 3_600_000_000
        found.append(
            f"Their {'hours' if export.length == 'hour' else 'days'} fit ours best when they begin"
            f" {abs(hours)} hours {'later' if hours > 0 else 'earlier'}: say --zone if that is so."
        )
    for theirs, ours in result.models.items():
        found.append(f"Their {theirs} is taken for {ours}; --model {theirs!r}=NAME says otherwise.")
    if result.outside:
        found.append(f"{result.outside:,} figures of the file lie outside the period.")
    if export.equal:
        found.append(
            f"{export.equal:,} lines of the file are equal to one before them in every column; all"
            " are counted. If it was put together from parts, see that none is in it twice."
        )
    for meter, quantity in result.unstated.items():
        found.append(
            f"The file has no column for {meter.value}; the ledger has {quantity:,} of it."
        )
    return found


def _verdict(result: Result, tolerance: Decimal, *, agrees: bool) -> str:
    within = f" within the tolerance of {money(book(tolerance))}" if tolerance else ""
    if not result.compared:
        return "Nothing to compare: neither side has anything in this period."
    if not result.differences:
        return f"They agree: {result.compared:,} figures, no difference."
    classes = ", ".join(f"{what} {len(mine):,}" for what, mine in result.by_class().items())
    if agrees:
        return f"They agree{within}: {classes}."
    worth = result.open_nano
    amount = "an amount nobody here can say" if worth is None else money(book(worth))
    return f"They differ by {amount}{f', not{within}' if within else ''}: {classes}."


def _classes(classes: Any) -> list[dict[str, Any]]:
    return [
        {
            "class": what + (" (settled)" if what in SETTLED else ""),
            "places": len(mine),
            "worth": _sum(mine),
            "meaning": CLASSES[what],
        }
        for what, mine in classes.items()
    ]


def _sum(mine: Sequence[Difference]) -> int | None:
    worth = [one.worth_nano for one in mine]
    known = [nano for nano in worth if nano is not None]
    return book(sum(known, Decimal(0))) if len(known) == len(worth) else None


def _row(one: Difference, wanted: Wanted, export: Export) -> dict[str, Any]:
    at = moment(one.start_us, wanted.zone)
    theirs = one.theirs
    shown = [str(n) for n in theirs.lines[:_LINES_SHOWN]]
    counted = theirs.quantity is not None or not theirs.lines
    return {
        "class": one.what,
        "from": at[:10] if export.length == "calendar day" else at,
        "model": one.model,
        "meter": _meter(one.meter),
        "their_quantity": theirs.quantity,
        "our_quantity": one.ours.quantity if one.meter is not None else None,
        "quantity": one.quantity if counted and one.meter is not None else None,
        "their_cost": "" if theirs.nano is None else book(theirs.nano),
        "our_cost": book(one.ours.nano),
        "worth": None if one.worth_nano is None else book(one.worth_nano),
        "lines": ", ".join(shown) + (", ..." if len(theirs.lines) > _LINES_SHOWN else ""),
    }


def _meter(meter: MeterName) -> str:
    if meter is None:
        return "(all)"
    return meter.value if isinstance(meter, Meter) else meter


def nano(text: str) -> Decimal:
    """A tolerance as typed, in dollars, as nano-USD. Raises Unusable."""
    try:
        amount = Decimal(text.removeprefix("$"))
    except ArithmeticError:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0:
        raise Unusable(f"--tolerance {text}: an amount of dollars, like 0.05")
    return amount * NANO_PER_USD


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """`a=b` each, several in one by commas. Raises Unusable."""
    found: dict[str, str] = {}
    for one in (part for text in given for part in text.split(",")):
        name, sign, value = one.rpartition("=") if option == "--model" else one.partition("=")
        if not sign or not name.strip() or not value.strip():
            like = "'Claude Sonnet 4.5=claude-sonnet-4-5'" if option == "--model" else "cost=Net"
            raise Unusable(f"{option} {one}: must look like {like}")
        if found.setdefault(name.strip(), value.strip()) != value.strip():
            raise Unusable(f"{option} {name.strip()}: said twice")
    return found


def now_zone(zone: str) -> str:
    """The zone, checked. Raises Unusable."""
    from gateway.reports.definition import period

    return period(now=dt.datetime.now(dt.UTC), zone=zone).zone
