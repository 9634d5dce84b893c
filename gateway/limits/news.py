"""What a gate has to tell people: a share of a budget was reached, it is used up, it starts anew.

Owns what news there are. A gate leaves them with its `Heard`; who is told of them, and how, is
`gateway.alerts`'.

INVARIANTS
- Alerts are about what was used, not about what is held: a hold is the worst case, and comes back.
- Each share of a period is told once, by one worker of all, whatever share list comes later; so are
  its first overrun, and that what was exhausted starts anew.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from gateway.domain.limit import Limit

WHOLE = 1.0


class Event(StrEnum):
    """What an alert is about. Values are sent and documented."""

    SHARE = "budget.share_reached"
    EXHAUSTED = "budget.exhausted"  # all of it is used, or a request did not fit any more
    OVERRUN = "budget.overrun"  # a request used more than it held
    RESET = "budget.reset"  # what was exhausted starts anew


class Alert(NamedTuple):
    """News of one holder's counter of one calendar period.

    `share`: the one that was reached; of an overrun, what is used of the whole. `spent`: used in
    the period, in the limit's unit. `start_s`, `end_s`: the period, seconds since the epoch; of a
    reset, the one that begins. `beyond`: how much more than its hold a request used.
    """

    event: Event
    limit: Limit
    holder: str
    share: float
    spent: int
    start_s: int
    end_s: int
    beyond: int = 0


def of_share(limit: Limit, holder: str, share: float, spent: int, span: tuple[int, int]) -> Alert:
    """`share` was reached in the period that is `span`."""
    event = Event.EXHAUSTED if share >= WHOLE else Event.SHARE
    return Alert(event, limit, holder, share, spent, *span)


def of_overrun(limit: Limit, holder: str, beyond: int, spent: int, span: tuple[int, int]) -> Alert:
    """A request used `beyond` more than it held."""
    share = spent / limit.amount
    return Alert(Event.OVERRUN, limit, holder, share, spent, *span, beyond=beyond)


def of_reset(limit: Limit, holder: str, span: tuple[int, int]) -> Alert:
    """What was exhausted starts anew with `span`."""
    return Alert(Event.RESET, limit, holder, 0.0, 0, *span)


def _unheard(*_: object) -> None:
    """Until somebody wants to know."""


class Heard:
    """Who is told. Both are called on the event loop and must not wait.

    `alert` gets each Alert; `overrun` a limit and what a request used of it beyond its hold.
    """

    __slots__ = ("alert", "overrun")

    def __init__(self) -> None:
        self.alert: Callable[[Alert], None] = _unheard
        self.overrun: Callable[[Limit, int], None] = _unheard
