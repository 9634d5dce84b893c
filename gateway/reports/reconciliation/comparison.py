"""Reconciliation: what a provider says was used and what it cost, beside what the ledger says.

Compared are stretches (an hour, or a day as the provider's days begin), models and meters, in
quantities and in money, as far as the export says them. Every difference is of one class.

INVARIANTS
- All that the export says of the period and all that the ledger has of it is compared, or counted
  as what the other cannot say.
- A difference of money is theirs less ours, exact.
- What only sits in another stretch (`period edge`) and what rounding explains (`rounding`) is told
  and does not make the verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal

from gateway.domain.money import Meter
from gateway.ledger.hours import HOUR_US
from gateway.ledger.store import Store
from gateway.reports.definition import Period
from gateway.reports.kept import Kept
from gateway.reports.reconciliation.provider_export import Export, Said, joined
from gateway.reports.reconciliation.shapes import FOLDS
from gateway.reports.reconciliation.slots import MeterName, Ours, Slots, over, slots, step

# Where else a provider's days may begin, the nearest first.
SHIFTS: Final = tuple(h * HOUR_US for h in sorted(range(-14, 15), key=abs))

Class = Literal[
    "unknown meter",
    "missing here",
    "missing there",
    "unpriced here",
    "estimated here",
    "tokens differ",
    "price differs",
    "period edge",
    "rounding",
]
CLASSES: Final[Mapping[Class, str]] = {
    "unknown meter": "They name a meter that is not known here; ours of it is under another.",
    "missing here": "They bill what the ledger has nothing of: a key used past the gateway?",
    "missing there": "The ledger has what they do not bill: an export that ends early?",
    "unpriced here": "Used, but no price was known here: add it and rate again.",
    "estimated here": "They counted otherwise, and what the ledger has is in part estimated.",
    "tokens differ": "Both counted, and not the same.",
    "price differs": "The same quantity, another price: is the price book up to date?",
    "period edge": "The same in sum, in another stretch: their clock or zone is another.",
    "rounding": "Explained by the digits they write.",
}
SETTLED: Final = frozenset({"period edge", "rounding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One, of one class. Money in nano-USD.

    `worth_nano` is what it comes to, theirs less ours: in money where they say it, else what the
    quantity costs at our price; None where nobody can say.
    """

    start_us: int
    model: str
    meter: MeterName
    what: Class
    ours: Ours
    theirs: Said
    worth_nano: Decimal | None

    @property
    def quantity(self) -> int | None:
        """Theirs less ours; None where they say none."""
        if not self.theirs.lines:
            return -self.ours.quantity
        said = self.theirs.quantity
        return None if said is None else said - self.ours.quantity


@dataclass(slots=True, kw_only=True)
class Result:
    """What came of it. Sums are over what was compared, theirs None where they say no money.

    `shift_us` is how much later than said their stretches begin, where that explains differences;
    `outside` lines of the file are not of the period; `unstated` is what we have of meters the
    export has no column for; `models` are names that were matched although they differ.
    """

    differences: list[Difference] = field(default_factory=list)
    compared: int = 0
    ours_nano: Decimal = Decimal(0)
    theirs_nano: Decimal | None = None
    shift_us: int = 0
    outside: int = 0
    unstated: dict[Meter, int] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def by_class(self) -> dict[Class, list[Difference]]:
        """Those there are, the gravest first."""
        found = {what: [one for one in self.differences if one.what == what] for what in CLASSES}
        return {what: mine for what, mine in found.items() if mine}

    @property
    def open_nano(self) -> Decimal | None:
        """What is not settled, each difference without its sign; None where one cannot be said."""
        whole = Decimal(0)
        for one in self.differences:
            if one.what not in SETTLED:
                if one.worth_nano is None:
                    return None
                whole += abs(one.worth_nano)
        return whole

    def agrees(self, tolerance_nano: Decimal = Decimal(0)) -> bool:
        """Whether what is open is within the tolerance; differences worth nothing are open too."""
        unsettled = [one for one in self.differences if one.what not in SETTLED]
        open_nano = self.open_nano
        if not unsettled:
            return True
        return open_nano is not None and tolerance_nano > 0 and open_nano <= tolerance_nano


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`period` None: as much as the export spans. `models` maps their names to ours."""

    backend: str
    zone: str = "UTC"
    period: Period | None = None
    models: Mapping[str, str] = field(default_factory=dict)


async def reconcile(store: Store, wanted: Wanted, export: Export, kept: Kept) -> Result:
    """Their export beside our ledger. Raises StoreUnavailable."""
    since_us, until_us = export.since_us, export.until_us
    if wanted.period is not None:
        since_us, until_us = wanted.period.since_us, wanted.period.until_us
    stretches = export.stretches(since_us, until_us, wanted.zone)
    step_us = step((*stretches, *stretches.values()))
    margin = max(SHIFTS)
    ends = max(stretches.values(), default=until_us)
    found = await slots(
        store, kept, wanted.backend, since_us - margin, ends + margin, step_us=step_us
    )
    names = match_models(
        {model for _, model, _ in export.said}, {model for model, _ in found}, wanted.models
    )
    result = Result(models={theirs: ours for theirs, ours in names.items() if theirs != ours})
    theirs: dict[tuple[str, MeterName], dict[int, Said]] = {}
    for (at, model, meter), said in export.said.items():
        if at not in stretches:
            result.outside += len(said.lines)
            continue
        series = theirs.setdefault((names[model], meter), {})
        series[at] = joined(series.get(at, Said()), said)
    inside = range(since_us, ends)
    ours = _comparable(found, export, result, inside)
    _Compare(ours, theirs, stretches, step_us, result).all()
    return result


def match_models(theirs: Iterable[str], ours: set[str], said: Mapping[str, str]) -> dict[str, str]:
    """Their names to ours: as said, the same, without a date at its end, or as people write it.

    A name that matches none of ours stays as it is.
    """
    plain = {_plain(model): model for model in sorted(ours)}
    found = {}
    for model in theirs:
        undated = re.sub(r"[-@]20\d\d-?\d\d-?\d\d$", "", model)
        may = (model, undated, plain.get(_plain(model), ""), plain.get(_plain(undated), ""))
        near = next((name for name in may if name in ours), model)
        found[model] = said.get(model, near)
    return found


def _plain(model: str) -> str:
    """`Claude Sonnet 4.5` and `claude-sonnet-4-5` alike."""
    return "".join(c if c.isalnum() else "-" for c in model.lower())


def _comparable(found: Slots, export: Export, result: Result, inside: range) -> Slots:
    """Ours by the meters they tell apart; what a wide export has no column for is set down."""
    by_meter = {meter for _, _, meter in export.said} != {None}
    whole = any(meter is None for _, _, meter in export.said)
    made: Slots = {}
    for (model, meter), series in found.items():
        if not isinstance(meter, Meter):
            if whole:
                made[model, None] = series
            continue
        if not by_meter:
            continue
        to = meter if meter in export.says else FOLDS.get(meter, meter)
        if export.wide and to not in export.says:
            quantity = sum(one.quantity for at, one in series.items() if at in inside)
            if quantity:
                result.unstated[meter] = result.unstated.get(meter, 0) + quantity
            continue
        into = made.setdefault((model, to), {})
        for at, one in series.items():
            into.setdefault(at, Ours()).add(one)
    return made


class _Compare:
    """Every model and meter, stretch by stretch; fills `result`."""

    def __init__(
        self,
        ours: Slots,
        theirs: Mapping[tuple[str, MeterName], Mapping[int, Said]],
        stretches: Mapping[int, int],
        step_us: int,
        result: Result,
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._stretches = stretches
        self._step_us = step_us
        self._result = result
        every = [one for series in theirs.values() for one in series.values()]
        self._counts = any(one.quantity is not None for one in every)
        self._money = any(one.nano is not None for one in every)
        self._slack = max((one.slack / len(one.lines) for one in every), default=Decimal(0))

    def all(self) -> None:
        keys = sorted({*self._ours, *self._theirs}, key=lambda key: (key[0], str(key[1] or "")))
        shift = self._result.shift_us = self._shift(keys)
        for key in keys:
            cells = list(self._cells(key, shift))
            straight = list(self._cells(key, 0)) if shift else cells
            settled = _cancelled(cells)
            for place, (cell, before) in enumerate(zip(cells, straight, strict=True)):
                self._count(key, *cell[1:])
                what, was = self._class(*cell[1:]), self._class(*before[1:])
                if what == "missing here" and not isinstance(key[1], Meter | None):
                    what = "unknown meter"
                if what is None and was is not None:
                    self._differ(key, before, "period edge")
                elif what is not None:
                    self._differ(key, cell, "period edge" if place in settled else what)
        order = list(CLASSES)
        self._result.differences.sort(key=lambda one: (order.index(one.what), one.start_us))

    def _cells(self, key: tuple[str, MeterName], shift_us: int) -> Iterator[tuple[int, Ours, Said]]:
        ours, theirs = self._ours.get(key, {}), self._theirs.get(key, {})
        for at, end in self._stretches.items():
            mine = over(ours, at + shift_us, end + shift_us, self._step_us)
            yield at, mine, theirs.get(at, Said())

    def _shift(self, keys: Sequence[tuple[str, MeterName]]) -> int:
        """Where their stretches begin, if elsewhere fewer than half as many differ."""
        if len(self._stretches) < 2:
            return 0

        def differing(shift_us: int) -> int:
            found = 0
            for key in keys:
                cells = (self._class(ours, said) for _, ours, said in self._cells(key, shift_us))
                found += sum(what not in {None, "rounding"} for what in cells)
            return found

        straight = differing(0)
        if straight < 2:
            return 0
        best = min(SHIFTS, key=differing)
        return best if differing(best) * 2 < straight else 0

    def _count(self, key: tuple[str, MeterName], ours: Ours, said: Said) -> None:
        result = self._result
        if ours or said.quantity or said.nano:
            result.compared += 1
        if self._money:
            result.theirs_nano = (result.theirs_nano or Decimal(0)) + (said.nano or 0)
        if key[1] is None or None not in {meter for _, meter in self._ours}:
            result.ours_nano += ours.nano

    def _class(self, ours: Ours, said: Said) -> Class | None:
        """None where both agree, in all they say."""
        there = bool(said.quantity or said.nano)
        here = bool(ours.nano or ours.unpriced or (self._counts and ours.quantity))
        if not there or not here:
            if there == here:
                return None
            small = abs((said.nano or 0) - ours.nano) <= self._slack and not self._counts
            return "rounding" if small else "missing here" if there else "missing there"
        dearer = said.nano is not None and said.nano != ours.nano
        if dearer and ours.unpriced:
            return "unpriced here"
        if said.quantity is not None and said.quantity != ours.quantity:
            return "estimated here" if ours.estimated else "tokens differ"
        if not dearer:
            return None
        assert said.nano is not None
        within = abs(said.nano - ours.nano) <= said.slack + Decimal(ours.attempts) / 2
        return "rounding" if within else "price differs"

    def _differ(
        self, key: tuple[str, MeterName], cell: tuple[int, Ours, Said], what: Class
    ) -> None:
        at, ours, said = cell
        worth: Decimal | None = None
        if said.nano is not None:
            worth = said.nano - ours.nano
        elif said.quantity is None:  # they say nothing at all
            worth = -ours.nano
        elif ours.quantity and not ours.unpriced:
            worth = ours.nano * (said.quantity - ours.quantity) / ours.quantity
        made = Difference(
            start_us=at,
            model=key[0],
            meter=key[1],
            what=what,
            ours=ours,
            theirs=said,
            worth_nano=worth,
        )
        self._result.differences.append(made)


def _cancelled(cells: Sequence[tuple[int, Ours, Said]]) -> set[int]:
    """Places of neighbouring stretches whose quantities differ, and in sum do not."""
    found: set[int] = set()
    run: list[int] = []
    whole = 0
    for place, (_, ours, said) in enumerate(cells):
        by = (said.quantity or 0) - ours.quantity if said.quantity is not None or ours else 0
        if not by or (said.quantity is None and said.nano is not None):
            run, whole = [], 0
            continue
        run.append(place)
        whole += by
        if len(run) > 1 and not whole:
            found.update(run)
            run = []
    return found
