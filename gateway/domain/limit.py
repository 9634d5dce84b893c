"""Limits: how many requests, tokens and dollars somebody may use, and how much at once.

Words only. `policy.limits` reads them from a file, `gateway.limits` holds and settles them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Unit(StrEnum):
    """What is counted. Money is nano-USD everywhere but in the file."""

    REQUESTS = "requests"
    TOKENS = "tokens"  # prompt and output
    USD = "usd"
    CONCURRENT = "concurrent"  # requests under way at once; has no period


class Period(StrEnum):
    """A minute and an hour slide; the others are calendar periods in the limit's zone."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"  # from Monday, as ISO 8601 has it
    MONTH = "month"


CALENDAR = frozenset({Period.DAY, Period.WEEK, Period.MONTH})


class Outage(StrEnum):
    """What a limit means while its store cannot be asked."""

    REFUSE = "refuse"  # fail closed: the hard cap
    ALLOWANCE = "allowance"  # each worker goes on with a small share of what was left


class AtLimit(StrEnum):
    """What happens to a request that does not fit any more."""

    REFUSE = "refuse"
    ROUTE = "route"  # it goes on, and routes that match `spent` take it (cheaper, only our own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit. Each distinct value of `per` has its own counter.

    `per`: what the counter is kept for: `key`, `alias`, or the name of a key's tag (`team`,
    `app`, ...); a request without that tag is not counted by it. `match` narrows it to requests
    whose key, alias and tags have one of the given values (same names as `per`).
    `amount`: in the unit (nano-USD for money). `hold_output_tokens`: what is held for the output
    of a request that sets no cap of its own. `alert_shares`: fractions at which an alert is due.
    `thresholds`: all of those in effect, each with the amount that reaches it, ascending; the end
    of a calendar period's money is always one of them.
    """

    name: str
    per: str
    unit: Unit
    amount: int
    period: Period | None = None
    zone: str = "UTC"
    match: Mapping[str, frozenset[str]] = field(default_factory=dict)
    at_limit: AtLimit = AtLimit.REFUSE
    outage: Outage = Outage.REFUSE
    hold_output_tokens: int = 4096
    alert_shares: tuple[float, ...] = ()
    thresholds: tuple[tuple[float, int], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        shares: set[float] = set()
        if self.period in CALENDAR:
            shares.update(self.alert_shares)
            if self.unit is Unit.USD:
                shares.add(1.0)
        due = tuple((share, round(share * self.amount)) for share in sorted(shares))
        object.__setattr__(self, "thresholds", due)
