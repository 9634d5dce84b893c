"""What callers are told of their limits: answer headers, and the error of a refusal. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

from gateway.domain.errors import BudgetSpent, GatewayError, RateLimited, StoreUnavailable
from gateway.domain.limit import Limit, Outage, Unit
from gateway.domain.money import usd
from gateway.limits.gate import Admission, Standing
from gateway.limits.periods import WINDOW_S

RETRY_S = 1.0  # where nobody knows how long: an SDK's own back-off takes it from here


def headers(admission: Admission) -> list[tuple[bytes, bytes]]:
    """`x-ratelimit-*` as OpenAI sends them, and what is left of the money.

    Of several limits of a unit the tightest is told: the one with the least left.
    """
    tightest: dict[Unit, Standing] = {}
    for standing in admission.standings:
        unit = standing.limit.unit
        if unit not in tightest or standing.remaining < tightest[unit].remaining:
            tightest[unit] = standing
    out: list[tuple[bytes, bytes]] = []
    for unit in (Unit.REQUESTS, Unit.TOKENS):
        if unit in tightest:
            limit, _, remaining, reset_s = tightest[unit]
            kind = unit.value.encode()
            out.append((b"x-ratelimit-limit-" + kind, b"%d" % limit.amount))
            out.append((b"x-ratelimit-remaining-" + kind, b"%d" % max(0, remaining)))
            if reset_s is not None:
                out.append((b"x-ratelimit-reset-" + kind, duration(reset_s).encode()))
    if Unit.USD in tightest:
        left = usd(max(0, tightest[Unit.USD].remaining))
        out.append((b"x-weighbridge-budget-remaining-usd", left.encode()))
    return out


def duration(seconds: float) -> str:
    """As OpenAI writes it: `12ms`, `1s`, `6m0s`, `25h0m0s`. Rounded up: to be true when waited."""
    if seconds < 1:
        return f"{max(1, -int(-seconds * 1000 // 1))}ms"
    whole = int(-(-seconds // 1))
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes}m{whole % 60}s"
    return f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"


def refusal(admission: Admission, now_s: float) -> GatewayError:
    """The error of an admission that was refused; `now_s` since the epoch, to name the reset."""
    standing = admission.refused
    assert standing is not None
    limit, holder, remaining, reset_s = standing
    name = f"'{limit.name}' for {limit.per} '{holder}'"
    if admission.store_down and limit.outage is Outage.REFUSE:
        return StoreUnavailable(f"The limit {name} cannot be checked, and may not be guessed.")
    if admission.store_down:
        return RateLimited(
            f"The limit {name} cannot be checked; what may be used meanwhile is used up.",
            retry_after_s=RETRY_S,
        )
    asked = next(a.amount for a in admission.asks if a.limit.name == limit.name)
    what = f"{name}: {_amount(limit, limit.amount)} {_every(limit)}"
    if asked > limit.amount:
        then = f"This request alone may take {_amount(limit, asked)}; ask for fewer output tokens."
    elif limit.unit is Unit.CONCURRENT:
        then = "Try again when one has ended."
    elif limit.unit is Unit.REQUESTS:
        then = f"None is left. {_again(limit, reset_s, now_s)}"
    else:
        left, need = _amount(limit, max(0, remaining)), _amount(limit, asked)
        then = f"{left} left, this request may take {need}. {_again(limit, reset_s, now_s)}"
    if limit.unit is Unit.USD:
        return BudgetSpent(f"The budget {what}. {then}", retry_after_s=reset_s)
    wait = RETRY_S if limit.unit is Unit.CONCURRENT else reset_s
    return RateLimited(f"The rate limit {what}. {then}", retry_after_s=wait)


def refusal_record(admission: Admission) -> dict[str, object]:
    """For the ledger, in place of a decision: which limit did not let the request in, and why.

    A JSON object; amounts in the limit's unit, money in nano-USD.
    """
    standing = admission.refused
    assert standing is not None
    limit = standing.limit
    asked = next(a.amount for a in admission.asks if a.limit.name == limit.name)
    return {
        "limit": limit.name,
        "per": limit.per,
        "holder": standing.holder,
        "unit": limit.unit.value,
        "every": None if limit.period is None else limit.period.value,
        "amount": limit.amount,
        "left": standing.remaining,
        "asked": asked,
        "unchecked": admission.store_down,
    }


def refusal_told(record: Mapping[str, Any]) -> str:
    """What a `refusal_record` says, for people."""
    unit = Unit(record["unit"])
    every = "at once" if record["every"] is None else f"per {record['every']}"
    limit = f"the limit '{record['limit']}' for {record['per']} '{record['holder']}'"
    if record["unchecked"]:
        return f"refused by {limit}: its store could not be asked"
    left, asked = (_quantity(unit, max(0, record[name])) for name in ("left", "asked"))
    return (
        f"refused by {limit}, {_quantity(unit, record['amount'])} {every}: {left} left, "
        f"the request may take {asked}"
    )


def _amount(limit: Limit, amount: int) -> str:
    return _quantity(limit.unit, amount)


def _quantity(unit: Unit, amount: int) -> str:
    match unit:
        case Unit.USD:
            return f"${usd(amount, 2)}"
        case Unit.CONCURRENT:
            return f"{amount} requests"
        case unit:
            return f"{amount} {unit.value}"


def _every(limit: Limit) -> str:
    return "at once" if limit.period is None else f"per {limit.period.value}"


def _again(limit: Limit, reset_s: float | None, now_s: float) -> str:
    if reset_s is None:
        return ""
    if limit.period in WINDOW_S:
        return f"Try again in {duration(reset_s)}."
    # The moment itself is a whole minute: what a clock and a round trip blur is rounded away.
    at = dt.datetime.fromtimestamp(round((now_s + reset_s) / 60) * 60, ZoneInfo(limit.zone))
    return f"It starts anew on {at:%Y-%m-%d at %H:%M} ({limit.zone})."
