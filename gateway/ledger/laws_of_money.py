"""What must hold of a request's usage and of what it cost. Pure.

INVARIANTS
- A usage that cannot be (negative, unknown meters, more reasoning than output) breaks the laws of
  usage only; what it should have cost is nobody's guess.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gateway.domain.money import Meter, Rates, Unpriced, rate
from gateway.domain.rating import charge, metered, quantities
from gateway.ledger.case import (
    BUG,
    CHANGED,
    RATED,
    TOKENS,
    Case,
    Law,
    Row,
    always,
    went_to,
    with_book,
)
from gateway.ledger.prices import FREE

# What has a column of its own is not among the other meters.
_COUNTED: Final = frozenset({Meter.INPUT, Meter.CACHE_READ, Meter.OUTPUT, Meter.REASONING})
_METERS: Final = frozenset(meter.value for meter in set(Meter) - _COUNTED)


def _usage(case: Case) -> str | None:
    for what, row in case.named():
        source, tokens = row["usage_source"], [row[name] for name in TOKENS]
        reasoning = row["reasoning_tokens"]
        if source == "none":
            if any(count is not None for count in (*tokens, reasoning)):
                return f"{what}: tokens without a usage_source"
        elif source not in {"reported", "estimated"}:
            return f"{what}: usage_source {source!r}"
        elif None in tokens:
            return f"{what}: usage {source}, but tokens are missing"
        elif min(*tokens, reasoning or 0) < 0:
            return f"{what}: negative tokens"
        elif (reasoning or 0) > row["output_tokens"]:
            return f"{what}: {reasoning} reasoning tokens of {row['output_tokens']}"
    return None


def _meters(case: Case) -> str | None:
    for what, row in case.named():
        others, tier = row.get("other_meters"), row.get("service_tier")
        if row["usage_source"] == "none" and (others is not None or tier is not None):
            return f"{what}: other meters or a service tier without a usage_source"
        if others is None:
            continue
        if not others:
            return f"{what}: other meters, but none of them"
        for name, count in others.items():
            if name not in _METERS:
                return f"{what}: no other meter is called {name!r}"
            if not isinstance(count, int) or count <= 0:
                return f"{what}: {count} of {name}"
    return None


def _summed(case: Case) -> str | None:
    weighed = [a["cost_nano_usd"] for a in case.attempts if a["usage_source"] != "none"]
    costs = [cost for cost in weighed if cost is not None]
    due, booked = sum(costs) if costs else None, case.row["cost_nano_usd"]
    if due == booked or (due == 0 and booked is None and len(costs) < len(weighed)):
        return None  # 0 of what is known in part says nothing
    return f"cost {booked}, the attempts cost {due} nano-USD"


def _priced(case: Case) -> str | None:
    for attempt in case.attempts:
        if (attempt["cost_nano_usd"] is None) != (attempt["rates_id"] is None):
            return f"attempt {attempt['number']}: cost and rates_id must come together"
    weighed = [a for a in case.attempts if a["usage_source"] != "none"]
    due = bool(weighed) and all(a["cost_nano_usd"] is not None for a in weighed)
    if bool(case.row["priced"]) != due:
        return f"priced is {bool(case.row['priced'])}, its attempts say {due}"
    return None


def _never_zero(case: Case) -> str | None:
    free = [(attempt["rates_id"] or "").startswith(FREE) for attempt in case.attempts]
    for attempt, is_free in zip(case.attempts, free, strict=True):
        if attempt["cost_nano_usd"] == 0 and _said(attempt) and not is_free:
            return f"attempt {attempt['number']}: cost 0 with tokens"
    row = case.row
    if row["cost_nano_usd"] == 0 and _said(row) and not any(free):
        return "cost 0 with tokens"
    if bool(row.get("declared_free", any(free))) != any(free):
        return f"declared_free is {not any(free)}, its attempts say {any(free)}"
    return None


def _known(case: Case) -> str | None:
    assert case.book is not None
    for attempt in case.attempts:
        found = attempt["rates_id"]
        if found is not None and case.book.rates(went_to(attempt), found) is None:
            return f"attempt {attempt['number']}: no rates {found!r} of {went_to(attempt)}"
    return None


def _dated(case: Case) -> str | None:
    for attempt in case.attempts:
        # Rates that the book has never heard of are for the law above.
        if _rates(case, attempt) is None or not weighable(attempt):
            continue
        due = _due(case, attempt)
        if due != attempt["rates_id"]:
            return f"attempt {attempt['number']}: {attempt['rates_id']}, in force was {due}"
    return None


def _rated(case: Case) -> str | None:
    for attempt in case.attempts:
        if not weighable(attempt):
            continue
        rates, booked = _rates(case, attempt), attempt["cost_nano_usd"]
        if booked is None:
            if attempt["rates_id"] is None and _due(case, attempt) is not None:
                return f"attempt {attempt['number']}: no cost, but there was a price"
        elif rates is not None:
            try:
                due = made_of(attempt, rates)
            except Unpriced as error:
                return f"attempt {attempt['number']}: {booked} nano-USD, but {error}"
            if due != booked:
                return f"attempt {attempt['number']}: {booked} nano-USD, {rates.id} makes it {due}"
    return None


LAWS: Final = (
    Law("cost_sum", "A request costs what its attempts cost.", CHANGED, always, _summed),
    Law("usage", "Tokens are whole, not negative, and say who counted them.", BUG, always, _usage),
    Law("other_meters", "Other meters are known, above 0, and come with usage; a service tier too.", BUG, always, _meters),  # noqa: E501
    Law("priced", "A row is priced where every attempt with usage has a cost and its rates.", CHANGED, always, _priced),  # noqa: E501
    Law("never_zero", "Nothing that was used costs 0, unless its rates are declared free.", RATED, always, _never_zero),  # noqa: E501
    Law("rates_known", "Every rates_id is in the price book of the row's bundle.", CHANGED, with_book, _known),  # noqa: E501
    Law("rates_in_force", "Rates are those in force when the request arrived, for what was served.", RATED, with_book, _dated),  # noqa: E501
    Law("cost_rated", "What was metered makes the cost at those rates, to the nano-USD.", RATED, with_book, _rated),  # noqa: E501
)  # fmt: skip


def made_of(attempt: Row, rates: Rates) -> int:
    """What was metered costs at the rates that an id names, and nothing else: whether they were
    in force is not asked. Nano-USD. Raises Unpriced."""
    plain = rates if rates.marginal else replace(rates, tiers=())
    return rate(plain, quantities(metered(attempt))).nano


def _said(row: Row) -> bool:
    return any(row[name] for name in TOKENS) or bool(row.get("other_meters"))


def weighable(attempt: Row) -> bool:
    """Whether its usage is one that can be."""
    if attempt["usage_source"] == "none":
        return False
    counted = [attempt[name] or 0 for name in (*TOKENS, "reasoning_tokens")]
    others = attempt.get("other_meters") or {}
    return (
        min(counted) >= 0
        and counted[-1] <= counted[-2]
        and all(name in _METERS and count > 0 for name, count in others.items())
    )


def _rates(case: Case, attempt: Row) -> Rates | None:
    if case.book is None or attempt["rates_id"] is None:
        return None
    return case.book.rates(went_to(attempt), attempt["rates_id"])


def _due(case: Case, attempt: Row) -> str | None:
    """The id of the rates in force for it when the request arrived; None where it had no price."""
    assert case.book is not None
    rates = case.book.prices.rates(went_to(attempt), case.row["started_at_us"])
    try:
        return None if rates is None else charge(rates, metered(attempt))[0]
    except Unpriced:
        return None
