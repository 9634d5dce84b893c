"""What a source says of one model, in the words of our price files. Pure.

Figures are flat: a condition and the prices under it, so that two statements compare figure by
figure; `row_of` folds them into a row of a price file.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic import ValidationError

from gateway.domain.catalog import Target
from gateway.ledger import price_file
from gateway.ledger.price_file import METERS, PriceRow, Scale, Variant, instant
from gateway.ledger.price_file import minutes as minutes_of
from gateway.policy.source import ConfigErrors, Findings, Path

DIGITS_MAX = 9  # after the point: what a price file takes


class Condition(NamedTuple):
    """When prices hold; the default is always. `hours` is `16:30-00:30`, several with `+`."""

    service_tier: str | None = None
    region: str | None = None
    hours: str = ""
    above: int = 0

    def __str__(self) -> str:
        """`batch, over 272,000 tokens`; `standard` where there is none."""
        said = [self.service_tier, self.region, self.hours and f"{self.hours} UTC"]
        said += [f"over {self.above:,} tokens" if self.above else ""]
        return ", ".join(word for word in said if word) or "standard"


STANDARD: Final = Condition()
Figures: TypeAlias = Mapping[Condition, Mapping[str, str]]  # price keys of a file -> its text

# Where a price is not said, it is that of another key (see domain.money).
_COSTS_AS: Final = {
    "cached_input_usd_per_mtok": "input_usd_per_mtok",
    "cache_write_5m_usd_per_mtok": "input_usd_per_mtok",
    "image_input_usd_per_mtok": "input_usd_per_mtok",
    "cached_audio_input_usd_per_mtok": "audio_input_usd_per_mtok",
    "reasoning_usd_per_mtok": "output_usd_per_mtok",
}
_NEVER_APART = ("reasoning_usd_per_mtok", "image_input_usd_per_mtok")


class Inexact(ValueError):
    """A figure that no price list says: more digits than a price has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What holds from `since` on, a day or a moment as files write it (None: not said).

    `row` is how we would write it, with a start that stands for nothing where `since` is None;
    None where it cannot be written, and `why_not` says why. `place` is where a sheet says it.
    """

    since: str | None
    figures: Figures
    row: PriceRow | None
    why_not: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """All that a source says of one model. `said` ascends; `called` is its own name for it.

    `left_out` are prices it has that no meter of ours can take.
    """

    target: Target
    source: str
    called: str
    said: tuple[Said, ...]
    deprecated: str = ""
    left_out: tuple[str, ...] = field(default=())

    def at(self, day: dt.date) -> Said | None:
        """What holds at the end of that day, None where all of it is later."""
        end = instant(day + dt.timedelta(days=1))
        held = [one for one in self.said if one.since is None or instant(one.since) < end]
        return held[-1] if held else None

    @property
    def name(self) -> str:
        """The source, and what it calls the model where that is another name."""
        same = self.called.endswith(self.target.model) or self.called == str(self.target)
        return self.source if same else f"{self.source} ({self.called})"


def text(price: Decimal) -> str:
    """As price files write it: plain digits, at least two after the point. Raises Inexact."""
    digits = f"{price.normalize():f}"
    whole, _, fraction = digits.partition(".")
    if len(fraction) > DIGITS_MAX:
        raise Inexact(f"{digits} has more than {DIGITS_MAX} digits after the point")
    return f"{whole}.{fraction:0<2}"


# --- rows to figures ----------------------------------------------------------------------------


def figures(row: PriceRow) -> dict[Condition, dict[str, str]]:
    """A row of a price file, flat."""
    found = dict(_scale(row, STANDARD))
    for variant in row.when:
        where = Condition(variant.service_tier, variant.region, _hours(variant))
        found.update(_scale(variant, where))
    return plain(found)


def _scale(part: Scale, where: Condition) -> Iterable[tuple[Condition, dict[str, str]]]:
    yield where, part.stated()
    for tier in part.long_prompts:
        yield where._replace(above=tier.above_prompt_tokens), tier.stated()


def _hours(variant: Variant) -> str:
    """Canonical: the same minutes are the same text."""
    if variant.hours_utc is None:
        return ""
    return spans(minutes_of(variant))


def spans(minutes: frozenset[int]) -> str:
    """Minutes of the day as `16:30-00:30`, several joined with `+`; a span may pass midnight."""
    day = 24 * 60
    starts = sorted(m for m in minutes if (m - 1) % day not in minutes)
    told = []
    for start in starts or [0]:
        end = start
        while end % day in minutes and end - start < day:
            end += 1
        end_text = "24:00" if end % day == 0 and not start else f"{end // 60 % 24:02}:{end % 60:02}"
        told.append(f"{start // 60:02}:{start % 60:02}-{end_text}")
    return "+".join(told)


def plain(found: Figures) -> dict[Condition, dict[str, str]]:
    """Without what says nothing: reasoning that costs what output costs, output that costs nothing
    beside input that does (embeddings), and the like."""
    out = {where: dict(part) for where, part in found.items()}
    if all(_only_input(part) for part in out.values()):
        for part in out.values():
            part.pop("output_usd_per_mtok", None)
    for key in _NEVER_APART:
        parts = [part for part in out.values() if key in part]
        if all(_equal(part[key], part.get(_COSTS_AS[key])) for part in parts):
            for part in parts:
                del part[key]
    return out


def _only_input(part: Mapping[str, str]) -> bool:
    said, output = part.get("input_usd_per_mtok"), part.get("output_usd_per_mtok", "0")
    return said is not None and bool(Decimal(said)) and not Decimal(output)


def effective(part: Mapping[str, str], key: str) -> str | None:
    """The price of that key, its own or the one it costs as; None where it is not known."""
    if key in part or key not in _COSTS_AS:
        return part.get(key)
    return effective(part, _COSTS_AS[key])


class Difference(NamedTuple):
    """One figure of which two statements differ; None where one does not say it."""

    condition: Condition
    key: str
    ours: str | None
    theirs: str | None

    @property
    def per_cent(self) -> Decimal | None:
        """How much theirs is more than ours, None where that has no meaning."""
        if self.ours is None or self.theirs is None or not Decimal(self.ours):
            return None
        return (Decimal(self.theirs) / Decimal(self.ours) - 1) * 100

    def __str__(self) -> str:
        where = "" if self.condition == STANDARD else f"{self.condition}: "
        change = self.per_cent
        more = "" if change is None else f" ({change:+.1f} %)"
        return f"{where}{self.key} {self.ours or 'not said'} -> {self.theirs or 'not said'}{more}"


def told(apart: Iterable[Difference]) -> list[str]:
    """A line each; one line for all figures of a condition that only one of the two knows."""
    lines = []
    for condition, group in groupby(apart, key=lambda one: one.condition):
        every = list(group)
        if condition != STANDARD and all(one.ours is None for one in every):
            figures = ", ".join(f"{one.key} {one.theirs}" for one in every)
            lines.append(f"{condition}, not said before: {figures}")
        elif condition != STANDARD and all(one.theirs is None for one in every):
            lines.append(f"{condition}: no longer said")
        else:
            lines += map(str, every)
    return lines


def differences(ours: Figures, theirs: Figures) -> list[Difference]:
    """Figures that theirs says and ours says otherwise or not at all."""
    found = []
    for where, part in theirs.items():
        own = ours.get(where)
        for key, said in part.items():
            known = None if own is None else effective(own, key)
            if not _equal(said, known):
                found.append(Difference(where, key, known, said))
    return found


def unsaid(ours: Figures, theirs: Figures) -> list[Difference]:
    """Figures that only ours says, and that would not be the same without it being said."""
    return [
        Difference(where, key, said, effective(theirs.get(where, {}), key))
        for where, part in ours.items()
        for key, said in part.items()
        if key not in theirs.get(where, {})
        and not _equal(said, effective(theirs.get(where, {}), key))
    ]


def _equal(one: str, other: str | None) -> bool:
    return other is not None and Decimal(one) == Decimal(other)


# --- figures to rows ----------------------------------------------------------------------------


def row_of(found: Figures, about: Mapping[str, Any], *, zero: bool = False) -> PriceRow:
    """The figures as a row of a price file; `about` says backend, model, source and the like.

    A price that does not depend on tokens (searches) is carried into every condition. Raises
    ValueError with what keeps it from being written; `zero` takes prices of 0 as meant.
    """
    parts = _completed({where: dict(part) for where, part in plain(found).items()})
    base = parts[STANDARD]
    value: dict[str, Any] = {**about, **base}
    if "input_usd_per_mtok" in base and "output_usd_per_mtok" not in base:
        value["input_only"] = True
    nothing = [f"{key} ({where})" for where, part in parts.items() for key in _zeros(part)]
    if nothing and not zero:
        raise ValueError(f"says 0 for {', '.join(nothing)}: not known, or free?")
    if nothing:
        value["free"] = True
    tiers = _tiers(parts, STANDARD)
    value |= {"long_prompts": tiers} if tiers else {}
    variants = [where for where in parts if not where.above and where != STANDARD]
    if variants:
        value["when"] = [_variant(parts, where) for where in variants]
    return checked(value)


def _zeros(part: Mapping[str, str]) -> list[str]:
    return [key for key, said in part.items() if not Decimal(said)]


def _completed(parts: dict[Condition, dict[str, str]]) -> dict[Condition, dict[str, str]]:
    base = parts[STANDARD]
    for where, part in parts.items():
        for key, said in base.items():
            if key not in part:
                if key.endswith("_per_mtok"):
                    raise ValueError(f"does not say {key} for {where}")
                part[key] = said
    return parts


def _tiers(parts: Figures, where: Condition) -> list[dict[str, Any]]:
    above = sorted(c.above for c in parts if c.above and c._replace(above=0) == where)
    return [{"above_prompt_tokens": n, **parts[where._replace(above=n)]} for n in above]


def _variant(parts: Figures, where: Condition) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if where.service_tier:
        said["service_tier"] = where.service_tier
    if where.region:
        said["region"] = where.region
    if where.hours:
        said["hours_utc"] = where.hours.split("+")
    tiers = _tiers(parts, where)
    return said | dict(parts[where]) | ({"long_prompts": tiers} if tiers else {})


def checked(value: Mapping[str, Any]) -> PriceRow:
    """A row that a price file would take. Raises ValueError with why it would not."""
    findings = Findings("")
    try:
        row = PriceRow.model_validate_json(json.dumps(value, default=str))
        price_file.check(row, (), findings)
        findings.raise_if_any()
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        path: Path = first["loc"]
        raise ValueError(f"{'.'.join(map(str, path))}: {first['msg']}") from None
    except ConfigErrors as errors:
        raise ValueError("; ".join(p.message for p in errors.problems)) from None
    return row


def ordered(part: Mapping[str, str]) -> list[tuple[str, str]]:
    """Prices in the order in which files write them."""
    return [(key, part[key]) for key in METERS if key in part]
