"""A report's foot: what it is of, and how it can be run again to the same digest."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.ledger.store import Store
from gateway.reports import sums
from gateway.reports.definition import Definition, iso, moment
from gateway.reports.sums import Occurring

DIGEST_CHARS_MIN = 12
ROUNDS_MAX = 4  # of a report that rows arrive under


@dataclass(frozen=True, slots=True, kw_only=True)
class Foot:
    """The same for people and for machines."""

    lines: list[tuple[str, str]]
    json: Mapping[str, Any]
    digest: str
    rows: int


async def digest(store: Store, definition: Definition) -> tuple[str, int]:
    """The report's digest over its definition and its rows, and how many rows there are."""
    rows, count = await sums.rows_digest(store, definition)
    return definition.digest(rows), count


async def foot(store: Store, definition: Definition, *, now: dt.datetime) -> Foot:
    """The foot. Raises StoreUnavailable."""
    found, count = await digest(store, definition)
    occurring = await sums.occurring(store, definition)
    period = definition.period
    before = period.previous() if definition.compare else None
    where = ", ".join(f"{name}={value or '(none)'}" for name, value in definition.where) or "none"
    rows = "attempts" if definition.of_attempts else "requests"
    lines = [
        (
            "Period",
            f"{period}, end not included" + (" (not over yet)" if period.unfinished else ""),
        ),
        *([("Compared with", str(before))] if before else []),
        ("Time zone", period.zone),
        ("Filters", where),
        ("Policies", _policies(occurring, period.zone)),
        ("Prices", ", ".join(f"{rates} ({n:,})" for rates, n in occurring.rates) or "none"),
        ("Rows counted", f"{count:,} {rows}"),
        ("Generated", moment(int(now.timestamp()) * 1_000_000, period.zone)),
        ("Digest", found),
        ("Run again", f"{definition.command()} --verify {found[:DIGEST_CHARS_MIN]}"),
    ]
    numbers: dict[str | None, list[int]] = {}
    for version in occurring.versions:
        numbers.setdefault(version["digest"], []).append(version["number"])
    machine = {
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
            {"policy": policy, "digest": of, "versions": numbers.get(of, []), "requests": n}
            for policy, of, n in occurring.policies
        ],
        "policy_versions": [
            {
                "number": version["number"],
                "policy": version["policy"],
                "digest": version["digest"],
                "applied_at": iso(version["applied_at_us"], period.zone),
            }
            for version in occurring.versions
        ],
        "prices": [{"rates_id": rates, "attempts": n} for rates, n in occurring.rates],
        "rows": count,
        "rows_of": rows,
        "generated_at": iso(int(now.timestamp()) * 1_000_000, period.zone),
        "digest": found,
        "run_again": definition.command(),
    }
    return Foot(lines=lines, json=machine, digest=found, rows=count)


def _policies(occurring: Occurring, zone: str) -> str:
    """Versions in force, and what decided the rows where no version says so."""
    said = [
        f"version {v['number']} ({v['policy']}@{v['digest'][:12]}, from"
        f" {moment(v['applied_at_us'], zone)})"
        for v in occurring.versions
    ]
    known = {version["digest"] for version in occurring.versions}
    said += [
        f"{policy or 'none'}@{of[:12]} ({n:,})" if of else f"undecided ({n:,})"
        for policy, of, n in occurring.policies
        if of not in known
    ]
    return ", ".join(said) or "none"
