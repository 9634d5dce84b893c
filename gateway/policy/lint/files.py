"""Lints of catalog and limits: what no routing policy can put right. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from gateway.domain.catalog import StandIn, Target
from gateway.domain.limit import AtLimit, Limit, Unit
from gateway.domain.money import usd
from gateway.policy.budgets import Uncounted, counted, refusal, uncounted
from gateway.policy.lint.subject import ERROR, NOTE, WARNING, Subject
from gateway.policy.source import Path, Problem
from gateway.policy.worst import hold_nano_usd, worst

_PRECISION = re.compile(r"fp4|nvfp4|mxfp4|fp8|int8|int4|awq|gptq|fp16|bf16", re.IGNORECASE)


def lint_files(subject: Subject) -> Iterator[Problem]:
    """All that is suspicious in catalog and limits."""
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
    for found in uncounted(subject.limits, subject.catalog, subject.rates):
        for severity, message, hint in _uncounted(found, subject):
            yield sheet.tell(severity, ("limits", found.index, "usd"), message, hint)
    for index, limit in enumerate(subject.limits):
        for severity, message, hint in (
            *_too_small(limit, subject),
            *_service_tiers(limit, subject),
        ):
            yield sheet.tell(severity, ("limits", index, limit.unit.value), message, hint)


def _uncounted(found: Uncounted, subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Money that nobody can count: kept away from by a hard budget, passed over by another."""
    if found.hard and found.nobody:
        yield (ERROR, *refusal(found, f" on {subject.today}"))
    elif found.nobody:
        yield (
            WARNING,
            f"counts nothing of {_few(found.nobody)}: none of its targets has a price",
            "add rows to prices/, or name other aliases in match",
        )
    if found.targets:
        what = "keeps requests from" if found.hard else "counts what it holds, not what is used, of"
        names = _few(tuple(map(str, found.targets)))
        yield (
            WARNING,
            f"{what} {names}: no price, and money must count",
            "add rows to prices/",
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _too_small(limit: Limit, subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Limits in which one request does not fit, or only one that says how long its answer is."""
    held = limit.hold_output_tokens
    if limit.unit is Unit.TOKENS and limit.amount < 2:
        each = "a prompt and an output of one token each"
        yield (ERROR, f"no request fits: {each} are more than {limit.amount}", "raise it")
    elif limit.unit is Unit.TOKENS and held >= limit.amount:
        yield _capped(limit.amount - 1, f"{held:,} tokens are", f"{limit.amount:,}")
    if limit.unit is not Unit.USD:
        return
    aliases = counted(limit, subject.catalog)

    def least(output: int) -> int:
        """Of the cheapest alias; what is held is what the dearest of its targets could cost."""
        holds = (max((_holds(t, output, subject) for t in a.targets), default=0) for a in aliases)
        return min(holds, default=0)

    if least(held) > limit.amount:
        fits = bisect_right(range(held), limit.amount, key=least) - 1
        if fits >= 1:
            yield _capped(fits, f"${usd(least(held))} is", f"${usd(limit.amount)}")
            return
        one = f"${usd(least(1))} is held for one token of output alone, of ${usd(limit.amount)}"
        yield (ERROR, f"no request fits: {one}", "raise it")
        return
    targets = {target for alias in aliases for target in alias.targets}
    most, dearest = max(
        ((_holds(t, held, subject, longest=True), str(t)) for t in targets), default=(0, "")
    )
    if most > limit.amount:
        price = f"${usd(most)}, of ${usd(limit.amount)}"
        yield (
            WARNING,
            f"one request may want more than all of it: the longest for {dearest} costs {price}",
            "such requests are refused; raise it if that is not meant",
        )


def _capped(fits: int, held: str, amount: str) -> tuple[str, str, str]:
    return (
        WARNING,
        (
            f"only requests that name max_tokens of at most {fits:,} can fit: for all others "
            f"{held} held for their output alone, of {amount}"
        ),
        "raise it, or lower hold_output_tokens",
    )


def _holds(target: Target, output: int, subject: Subject, *, longest: bool = False) -> int:
    """Nano-USD that a request there holds at least, or for the longest prompt. Unpriced: 0."""
    rates = worst([subject.rates[target]] if target in subject.rates else [])
    if rates is None:
        return 0
    model = subject.catalog.backends[target.backend].models[target.model]
    output, prompt = min(output, model.output_tokens_max or output), 0
    if longest:
        room = max(0, (model.context_tokens or 0) - output)
        prompt = min(room, model.prompt_tokens_max or room)
    return hold_nano_usd(rates, prompt_tokens=prompt, output_tokens=output)


def _service_tiers(limit: Limit, subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Service tiers that a hard budget can count at some targets of an alias and not at others."""
    if limit.unit is not Unit.USD or limit.at_limit is not AtLimit.REFUSE:
        return
    kept: dict[str, set[str]] = {}
    for alias in counted(limit, subject.catalog):
        priced = {t: subject.rates[t] for t in alias.targets if t in subject.rates}
        for tier in {tier for rates in priced.values() for tier in rates.service_tiers}:
            lacking = (t for t, rates in priced.items() if tier not in rates.service_tiers)
            kept.setdefault(tier, set()).update(map(str, lacking))
    for tier, targets in sorted(kept.items()):
        if targets:
            names = _few(sorted(targets))
            yield (
                NOTE,
                f"keeps requests for service tier {tier} from {names}: no price of it there",
                "add it to their rows under when:, if they have it",
            )


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
    _limits,
    _spent,
)
