"""Lints of catalog, prices and limits: what no routing policy can put right. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from typing import Any

from gateway.domain.catalog import StandIn, Target
from gateway.domain.limit import AtLimit, Limit, Unit
from gateway.domain.money import cost, usd
from gateway.policy.lint.subject import ERROR, NOTE, WARNING, Sheet, Subject
from gateway.policy.source import Path, Problem

STALE_DAYS = 180
_PRECISION = re.compile(r"fp4|nvfp4|mxfp4|fp8|int8|int4|awq|gptq|fp16|bf16", re.IGNORECASE)


def lint_files(subject: Subject) -> Iterator[Problem]:
    """All that is suspicious in catalog, prices and limits."""
    for check in _CHECKS:
        yield from check(subject)


# --- catalog ----------------------------------------------------------------------------------


def _clearances(subject: Subject) -> Iterator[Problem]:
    """A clearance is a statement about terms; without a source it is a guess."""
    sheet = subject.catalog_file
    for backend in subject.catalog.backends.values():
        if backend.clearance and backend.data.source is None:
            name = subject.catalog.privacy_classes[backend.clearance]
            yield sheet.tell(
                WARNING,
                ("backends", backend.name, "cleared_for"),
                f"cleared for {name} on terms that nobody stated",
                "name in data.source where they were read, and when",
            )


def _stand_ins(subject: Subject) -> Iterator[Problem]:
    """Groups that cannot do what they are declared for."""
    sheet = subject.catalog_file
    catalog = subject.catalog
    grouped = {target for group in catalog.equivalences for target in group.targets}
    for alias in catalog.aliases.values():
        path: Path = ("aliases", alias.name)
        alone = [target for target in alias.targets if target not in grouped]
        if alias.stand_in is StandIn.GROUP and alone:
            yield sheet.tell(
                WARNING,
                (*path, "stand_in"),
                f"{', '.join(map(str, alone))} stands in for nobody: in no equivalence group",
                "declare a group, or say stand_in: alias",
            )
    for group in catalog.equivalences:
        for target in sorted(group.targets, key=str):
            said = _PRECISION.search(target.model)
            if said and said[0].lower() not in group.precision.lower():
                yield sheet.tell(
                    WARNING,
                    ("equivalence", group.name),
                    f"declared to be {group.precision}, but {target} is named {said[0]}",
                    "other precisions are other models: give each its group",
                )


# --- prices -----------------------------------------------------------------------------------


def _unpriced(subject: Subject) -> Iterator[Problem]:
    sheet = subject.catalog_file
    dated = {row.target for row in _rows(subject)}
    for name, backend in subject.catalog.backends.items():
        for model in backend.models:
            target = Target(name, model)
            if target not in subject.rates:
                when = f" on {subject.today}, only later" if target in dated else ""
                yield sheet.tell(
                    NOTE,
                    ("backends", name, "models", model),
                    f"no price for {target}{when}: unpriced, not free",
                    "add a row to prices/",
                    key=True,
                )


class _Row:
    """A row of a price file, where it stands."""

    def __init__(self, sheet: Sheet, index: int, row: dict[str, Any]) -> None:
        self.sheet = sheet
        self.path: Path = ("prices", index)
        self.target = Target(row["backend"], row["model"])
        self.from_ = dt.date.fromisoformat(row["from"])
        self.read_on = dt.date.fromisoformat(row["read_on"])


def _rows(subject: Subject) -> list[_Row]:
    return [
        _Row(sheet, index, row)
        for sheet in subject.price_files
        for index, row in enumerate(sheet.value["prices"])
    ]


def _stale(subject: Subject) -> Iterator[Problem]:
    """Rows in force that nobody has compared with the vendor for long, and rows of nothing."""
    in_force: dict[Target, _Row] = {}
    for row in _rows(subject):
        backend = subject.catalog.backends.get(row.target.backend)
        if backend is None or row.target.model not in backend.models:
            yield row.sheet.tell(
                NOTE, row.path, f"a price for {row.target}, which is not in the catalog"
            )
        elif row.from_ <= subject.today:
            before = in_force.get(row.target)
            in_force[row.target] = row if before is None or row.from_ > before.from_ else before
    for row in in_force.values():
        age = (subject.today - row.read_on).days
        if age > STALE_DAYS:
            yield row.sheet.tell(
                WARNING,
                (*row.path, "read_on"),
                f"the price of {row.target} was read {age} days ago",
                "compare it with the vendor's and append a row",
            )


# --- limits -----------------------------------------------------------------------------------


def _limits(subject: Subject) -> Iterator[Problem]:
    if subject.limits_file is None or not subject.limits:
        return
    sheet = subject.limits_file
    if not subject.shared_store:
        alone = subject.workers == 1
        yield sheet.tell(
            NOTE if alone else WARNING,
            ("limits",),
            "without WEIGHBRIDGE_REDIS_URL every process counts for itself"
            + ("" if alone else f", each of the {subject.workers} workers its part"),
            "to share a limit, several workers or nodes need Redis",
            key=True,
        )
    for index, limit in enumerate(subject.limits):
        for severity, message, hint in _too_small(limit, subject):
            yield sheet.tell(severity, ("limits", index, limit.unit.value), message, hint)


def _too_small(limit: Limit, subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Limits in which one request does not fit, and money that nobody can count."""
    held = limit.hold_output_tokens
    if limit.unit is Unit.TOKENS and held >= limit.amount:
        yield (
            ERROR,
            f"no request fits: {held} tokens are held for its output alone, of {limit.amount}",
            "raise it, or lower hold_output_tokens",
        )
    if limit.unit is not Unit.USD:
        return
    only = limit.match.get("alias")
    aliases = [a for name, a in subject.catalog.aliases.items() if only is None or name in only]
    targets = {target for alias in aliases for target in alias.targets}
    if unpriced := sorted(map(str, targets - set(subject.rates))):
        more = f" and {len(unpriced) - 3} more" if len(unpriced) > 3 else ""
        yield (
            WARNING,
            f"keeps requests from {', '.join(unpriced[:3])}{more}: no price, and money must count",
            "add rows to prices/",
        )
    # What is held is what the dearest target of the alias could cost.
    least = [max((_price(t, 0, held, subject) for t in a.targets), default=0) for a in aliases]
    if least and min(least) > limit.amount:
        held_usd, all_of_it = usd(min(least)), usd(limit.amount)
        yield (
            ERROR,
            f"no request fits: ${held_usd} is held for its output alone, of ${all_of_it}",
            "raise it, or lower hold_output_tokens",
        )
        return
    dearest = max(targets, key=lambda t: (_price(t, None, held, subject), str(t)), default=None)
    worst = 0 if dearest is None else _price(dearest, None, held, subject)
    if worst > limit.amount:
        price = f"${usd(worst)}, of ${usd(limit.amount)}"
        yield (
            WARNING,
            f"one request may want more than all of it: the longest for {dearest} costs {price}",
            "such requests are refused; raise it if that is not meant",
        )


def _price(target: Target, prompt: int | None, output: int, subject: Subject) -> int:
    """Nano-USD of so many tokens; a prompt of None is the longest there is. Unpriced: 0."""
    rates = subject.rates.get(target)
    if rates is None:
        return 0
    model = subject.catalog.backends[target.backend].models[target.model]
    output = min(output, model.output_tokens_max or output)
    if prompt is None:
        room = max(0, (model.context_tokens or 0) - output)
        prompt = min(room, model.prompt_tokens_max or room)
    return cost(rates, uncached=prompt, cached=0, output=output)


def _spent(subject: Subject) -> Iterator[Problem]:
    """Limits that ask for another route when they are used up, where there is none."""
    if subject.limits_file is None:
        return
    matches = [route.match for route in subject.policy.routes]
    named = {name for match in matches for name in match.spent}
    texts = " ".join(match.expression.text for match in matches if match.expression)
    for index, limit in enumerate(subject.limits):
        if limit.at_limit is AtLimit.ROUTE and limit.name not in named and limit.name not in texts:
            yield subject.limits_file.tell(
                WARNING,
                ("limits", index, "at_limit"),
                f"used up, it changes nothing: no route of {subject.policy.name} matches "
                f"spent: {limit.name}",
                "add such a route, or say at_limit: refuse",
            )


_CHECKS: tuple[Callable[[Subject], Iterator[Problem]], ...] = (
    _clearances,
    _stand_ins,
    _unpriced,
    _stale,
    _limits,
    _spent,
)
