"""What the lints look at, and how they tell what they find. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.domain.catalog import Catalog, Target
from gateway.domain.limit import Limit
from gateway.domain.money import Rates
from gateway.policy.language import Policy
from gateway.policy.source import Path, Problem, dotted, plain

ERROR, WARNING, NOTE = "error", "warning", "note"


class Sheet:
    """One file to tell problems of, read once: its plain values and where each stands."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self.value, self.places = plain(text, source)

    def tell(
        self, severity: str, path: Path, message: str, hint: str = "", *, key: bool = False
    ) -> Problem:
        """A problem in the value (or key) at `path`, or in what that would stand in."""
        line, column = self.places.position(path, key=key)
        return Problem(
            source=self.source,
            line=line,
            column=column,
            path=dotted(path),
            message=message,
            hint=hint,
            severity=severity,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is looked at: loaded values, and the files they came from, for the places.

    `catalog` as where every secret is set, `rates` in force `today`. `refusals`: (alias, rank)
    that tests want refused. `workers` and `shared_store` are of the instance that checks.
    """

    catalog: Catalog
    policy: Policy
    rates: Mapping[Target, Rates]
    today: dt.date
    catalog_file: Sheet
    policy_file: Sheet
    price_files: tuple[Sheet, ...] = ()
    limits: tuple[Limit, ...] = ()
    limits_file: Sheet | None = None
    refusals: frozenset[tuple[str, int]] = frozenset()
    workers: int = 1
    shared_store: bool = False
