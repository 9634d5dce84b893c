"""A report's foot: what it is of, and how it can be run again to the same digest.

The digest is SHA-256 over the definition, the sums shown, the rows and what corrected them. Rows go
in as sums: the four 32-bit words that SHA-256 over a row's line (start, id, attempt, cost) begins
with, added up. Sums do not depend on order, and the roll-ups hold them: nobody reads the rows.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from struct import unpack_from
from typing import Any

import sqlalchemy as sa

from gateway.ledger.store import attempts, requests, versions
from gateway.reports import corrected, sums
from gateway.reports.definition import OF_TIME, Definition, iso, moment
from gateway.reports.spans import spans
from gateway.reports.sums import Added
from gateway.reports.traffic import View, conditions, joined

DIGEST_CHARS_MIN = 12
_RATES_SHOWN_MAX = 12
_PAGE_ROWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Foot:
    """The same for people and for machines."""

    lines: list[tuple[str, str]]
    json: Mapping[str, Any]
    digest: str
    rows: int


async def digest(view: View, definition: Definition) -> tuple[str, int]:
    """The report's digest over its definition and its rows, and how many rows there are."""
    alone = replace(definition, by=(), attempts=definition.of_attempts)
    found = await sums.added(view, alone, definition.period, ())
    return await _digest(view, definition, found, ())


async def _digest(
    view: View, definition: Definition, added: Added, by: Sequence[str]
) -> tuple[str, int]:
    """From sums by `by`."""
    whole = added.total()
    words = list(added.words)
    for line in await _lines(view, definition, by):
        for n, word in enumerate(unpack_from(">4I", hashlib.sha256(line.encode()).digest())):
            words[n] += word
    # The sums themselves too: a sum by hour that somebody changed is another report.
    said = [*words, whole.rows, whole.cost, whole.costed, whole.unpriced]
    said += [whole.uncached, whole.cached, whole.output]
    if added.runs:
        said += [whole.correction, whole.corrected]
    rows = hashlib.sha256(" ".join(map(str, said)).encode()).hexdigest()
    return definition.digest(rows), whole.rows


async def _lines(view: View, definition: Definition, by: Sequence[str]) -> list[str]:
    """Of the rows that the sums took one by one: start, id, attempt and cost, `-` where that is
    not known (`ledger.hours`)."""
    number: Any = attempts.c.number if definition.of_attempts else sa.literal(0)
    cost = (attempts if definition.of_attempts else requests).c.cost_nano_usd
    found: list[str] = []
    parts = spans(definition.period, [name for name in OF_TIME if name in by]).parts
    for since_us, until_us in parts:
        period = replace(definition.period, since_us=since_us, until_us=until_us)
        at = requests.c.started_at_us.label("at")
        query = sa.select(at, requests.c.id, number.label("n"), cost.label("cost"))
        rows = query.select_from(joined(definition)).where(*conditions(definition, period))
        for row in await view.select(rows):
            known = "-" if row["cost"] is None else row["cost"]
            found.append(f"{row['at']} {row['id']} {row['n']} {known}")
    return found


async def foot(
    view: View,
    definition: Definition,
    added: Added,
    *,
    now: dt.datetime,
    by: Sequence[str] | None = None,
    display: tuple[str, str] | None = None,
) -> Foot:
    """The foot of a report that added up that, by `by` or the definition's groups.

    `display` are a line's name and text on the currency shown. Raises StoreUnavailable.
    """
    by = definition.by if by is None else by
    found, count = await _digest(view, definition, added, by)
    force = await _in_force(view, definition)
    notes = await corrected.run_notes(view, added.runs) if added.runs else []
    gone_us = await sums.rows_since(view)
    period = definition.period
    before = period.previous() if definition.compare else None
    where = ", ".join(f"{name}={value or '(none)'}" for name, value in definition.where) or "none"
    rows = "attempts" if definition.of_attempts else "requests"
    again = replace(definition, run=max(added.runs, default=0))
    lines = [
        (
            "Period",
            f"{period}, end not included" + (" (not over yet)" if period.unfinished else ""),
        ),
        *([("Compared with", str(before))] if before else []),
        ("Time zone", period.zone),
        ("Filters", where),
        ("Policies", _policies(force, added, period.zone)),
        ("Prices", _rates(added)),
        *([("Rating runs", _runs(notes, period.zone))] if notes else []),
        *([display] if display else []),
        ("Rows counted", f"{count:,} {rows}"),
        *([("Rows kept", _kept(gone_us, period.zone))] if _gone(gone_us, definition) else []),
        ("Generated", moment(int(now.timestamp()) * 1_000_000, period.zone)),
        ("Digest", found),
        ("Run again", f"{again.command()} --verify {found[:DIGEST_CHARS_MIN]}"),
    ]
    return Foot(
        lines=lines,
        json=_machine(definition, again, added, force, notes, now)
        | {
            "rows": count,
            "rows_of": rows,
            "rows_kept_since": iso(gone_us, period.zone)
            if gone_us is not None and _gone(gone_us, definition)
            else None,
            "digest": found,
        },
        digest=found,
        rows=count,
    )


def _machine(
    definition: Definition,
    again: Definition,
    added: Added,
    force: Sequence[Mapping[str, Any]],
    notes: Sequence[Mapping[str, Any]],
    now: dt.datetime,
) -> dict[str, Any]:
    period = definition.period
    before = period.previous() if definition.compare else None
    numbers: dict[str | None, list[int]] = {}
    for version in force:
        numbers.setdefault(version["digest"], []).append(version["number"])
    return {
        "since": iso(period.since_us, period.zone),
        "until": iso(period.until_us, period.zone),
        "unfinished": period.unfinished,
        "compared_with": before
        and {
            "since": iso(before.since_us, before.zone),
            "until": iso(before.until_us, before.zone),
        },
        "zone": period.zone,
        "by": list(definition.by),
        "where": [f"{name}={value}" for name, value in definition.where],
        "policies": [
            {"policy": policy, "digest": of, "versions": numbers.get(of, []), "rows": n}
            for (policy, of), n in _ranked(added)
        ],
        "policy_versions": [
            {
                "number": version["number"],
                "policy": version["policy"],
                "digest": version["digest"],
                "applied_at": iso(version["applied_at_us"], period.zone),
            }
            for version in force
        ],
        "prices": [{"rates_id": name, "attempts": n} for name, n in sorted(added.rates.items())],
        "rating_runs": [{**run, "made_at": iso(run["made_at_us"], period.zone)} for run in notes],
        "generated_at": iso(int(now.timestamp()) * 1_000_000, period.zone),
        "run_again": again.command(),
    }


async def _in_force(view: View, definition: Definition) -> list[dict[str, Any]]:
    """The policy versions of the period."""
    v, period = versions.c, definition.period
    first = (
        sa.select(sa.func.max(v.number)).where(v.applied_at_us <= period.since_us).scalar_subquery()
    )
    return await view.select(
        sa.select(v.number, v.policy, v.digest, v.applied_at_us)
        .where(v.applied_at_us < period.until_us, v.number >= sa.func.coalesce(first, 0))
        .order_by(v.number)
    )


def _ranked(added: Added) -> list[tuple[tuple[str | None, str | None], int]]:
    return sorted(added.policies.items(), key=lambda item: (-item[1], str(item[0])))


def _policies(force: Sequence[Mapping[str, Any]], added: Added, zone: str) -> str:
    """Versions in force, and what decided the rows where no version says so."""
    said = [
        f"version {v['number']} ({v['policy']}@{v['digest'][:12]}, from"
        f" {moment(v['applied_at_us'], zone)})"
        for v in force
    ]
    known = {version["digest"] for version in force}
    said += [
        f"{policy or 'none'}@{of[:12]} ({n:,})" if of else f"undecided ({n:,})"
        for (policy, of), n in _ranked(added)
        if of not in known
    ]
    return ", ".join(said) or "none"


def _rates(added: Added) -> str:
    ranked = sorted(added.rates.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{rates} ({n:,})" for rates, n in ranked[:_RATES_SHOWN_MAX]]
    left = len(ranked) - len(said)
    return ", ".join(said + ([f"and {left} more (in the JSON)"] if left else [])) or "none"


def _runs(notes: Sequence[Mapping[str, Any]], zone: str) -> str:
    return ", ".join(
        f"{run['number']} ({run['author']}, {moment(run['made_at_us'], zone)}"
        + (f": {run['note']})" if run["note"] else ")")
        for run in notes
    )


def _gone(gone_us: int | None, definition: Definition) -> bool:
    """Whether rows of this report are gone."""
    return gone_us is not None and gone_us > definition.period.since_us


def _kept(gone_us: int | None, zone: str) -> str:
    assert gone_us is not None
    return f"from {moment(gone_us, zone)} on; of the time before there are sums by hour, no rows"
