"""What an audit looks at beside the laws of a request, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from gateway.ledger import price_audit

SHOWN_MAX: Final = 5  # of what was found, kept of each check


class Found(NamedTuple):
    """One violation. `id` is the request's, or whatever the check is about."""

    id: str
    what: str


@dataclass(slots=True, kw_only=True)
class Check:
    """One named check: its law, what to do, what was looked at and what was found."""

    name: str
    says: str
    fix: str
    weight: Literal["violation", "warning"] = "violation"
    looked: int = 0
    broken: int = 0
    first: list[Found] = field(default_factory=list)

    def add(self, found: Found) -> None:
        self.broken += 1
        if len(self.first) < SHOWN_MAX:
            self.first.append(found)

    @property
    def state(self) -> str:
        return self.weight if self.broken else "ok"


@dataclass(slots=True, kw_only=True)
class Report:
    """What an audit found. `figures` are counts that are no faults."""

    since_us: int
    until_us: int
    checks: dict[str, Check]
    figures: dict[str, int]

    def count(self, weight: str) -> int:
        """How many violations, or warnings, there are."""
        return sum(c.broken for c in self.checks.values() if c.weight == weight)


OTHERS: Final = (
    Check(
        name="unique",
        says="No request is there twice: the key of the table sees to it.",
        fix="The table has lost its primary key: restore the schema, then the rows.",
    ),
    Check(
        name="orphans",
        says="Every attempt has its request; they are written together.",
        fix="Rows were deleted: restore them from a backup.",
    ),
    Check(
        name="future",
        says="No request started after the database's present.",
        fix="The clock of a gateway is wrong: correct it, and mind the periods of its rows.",
    ),
    Check(
        name="bundle_unchanged",
        says="The texts kept of a policy bundle have the digest they are kept under.",
        fix="Somebody changed them: put the texts back from version control.",
    ),
    Check(
        name="bundle_readable",
        says="This version reads the catalog and the prices of every bundle.",
        fix="Audit that period with the version that wrote it: costs and privacy were not checked.",
        weight="warning",
    ),
    *(Check(name=name, says=says, fix=fix) for name, (says, fix) in price_audit.LAWS.items()),
    Check(
        name="rollups",
        says="The sums by hour are those of the rows.",
        fix="`weighbridge db rebuild-rollups` makes them again from the rows.",
    ),
    Check(
        name="refused_rows",
        says="The database took every row.",
        fix="The rows are in journal/refused.jsonl: mend what the log says and insert them.",
    ),
    Check(
        name="journal_adopted",
        says="What a dead worker left is adopted by a living one.",
        fix="Start a gateway on this folder: it sends the rows. Do not delete the files.",
        weight="warning",
    ),
    Check(
        name="journal_sent",
        says="Rows reach the database within a minute of their end.",
        fix="See /readyz and the log: the database is away, or slower than the traffic.",
        weight="warning",
    ),
    Check(
        name="holds",
        says="No budget is still held for a request that has ended.",
        fix="It is given back when its lease ends; report it, a settlement was lost.",
    ),
)
FIGURES: Final = (
    "requests",
    "attempts",
    "cost_nano_usd",
    "unpriced_requests",
    "unpriced_attempts",
    "estimated_requests",
    "interrupted_requests",
    "copies",
    "copies_waiting",
    "rows_waiting",
    "requests_in_flight",
    "bundles",
)
