"""The columns of the cost report, and how sums become their figures. Pure.

Every ratio stands on columns that are there too, so a spreadsheet can work it out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gateway.reports import pictures
from gateway.reports.definition import OF_TIME, Definition
from gateway.reports.document import Column, Kind, local, ratio
from gateway.reports.sums import Sums

COST, TOKENS, UNIT, DOUBT = "Cost", "Tokens and speed", "Unit costs", "Waste and quality"
_MILLION = 1_000_000

# Unit costs: heading, the cost and what it is divided by, per how many.
UNIT_COSTS: Mapping[str, tuple[str, str, str, int]] = {
    "per_request": ("$/request", "stands", "priced", 1),
    "per_mtok": ("$/M tokens", "stands", "priced_tokens", _MILLION),
    "per_minput": ("$/M input", "input_cost", "input_billed", _MILLION),
    "per_moutput": ("$/M output", "output_cost", "output_billed", _MILLION),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a report has columns for: `runs` corrected something; `compared` period with period;
    `others`: cache writes, sound, pictures; `currency` and how much of it a dollar is."""

    runs: bool = False
    compared: bool = False
    writes: bool = False
    others: bool = False
    currency: str = ""
    per_usd: Decimal = Decimal(1)

    @property
    def stands(self) -> str:
        """The column of what a line costs in the end."""
        return "corrected" if self.runs else "cost"

    @property
    def local(self) -> str:
        """The column of the same in the currency."""
        return f"{self.stands}_{self.currency.lower() or 'usd'}"


def shape(
    definition: Definition,
    whole: Sums,
    before: Sums,
    *,
    runs: bool,
    display: tuple[str, Decimal] | None,
) -> Shape:
    """What there is to show."""
    currency, per_usd = display or ("", Decimal(1))
    return Shape(
        runs=runs,
        compared=definition.compare and not any(name in OF_TIME for name in definition.by),
        writes=bool(whole.writes or before.writes),
        others=bool(whole.other_input or whole.other_output),
        currency=currency,
        per_usd=per_usd,
    )


def columns(definition: Definition, has: Shape) -> list[Column]:
    """The table's columns, in order."""
    groups = [
        Column(name=name, heading=name.removeprefix("tag:"), kind="text") for name in definition.by
    ]
    return [
        *(groups or [Column(name="group", heading="", kind="text")]),
        *_costs(definition, has),
        *_tokens(has),
        *_units(has),
        *_doubts(has),
    ]


def _costs(definition: Definition, has: Shape) -> list[Column]:
    rows = "attempts" if definition.of_attempts else "requests"
    made = [
        _count("requests", rows, section=COST),
        _count("priced", "with a cost", detail=True),
        _usd("cost", "booked" if has.runs else "cost", section=COST),
    ]
    if has.runs:
        made += [
            _usd("correction", "correction", section=COST),
            Column(
                name="corrected",
                heading="corrected",
                kind="usd",
                section=COST,
                added=True,
                formula="SUM(cost,correction)",
            ),
        ]
    if has.currency:
        made.append(
            Column(
                name=has.local,
                heading=f"{has.stands}, {has.currency}",
                kind="local",
                section=COST,
                formula=f"{has.stands}*{has.per_usd}",
                rank=1,
            )
        )
    made.append(_ratio("share", "share", "share", f"{has.stands}/total.{has.stands}", COST, 1))
    if has.compared:
        change = f"({has.stands}-previous)/previous"
        made.append(_count("requests_before", f"{rows} before", section=COST, rank=8))
        made.append(_usd("previous", "previous", section=COST, rank=4))
        made.append(_ratio("change", "change", "change", change, COST, 1))
    return made


def _tokens(has: Shape) -> list[Column]:
    prompt = "uncached+cached+cache_write+other_input"
    return [
        _count("uncached", "input", section=TOKENS, rank=3),
        _count("cached", "cached", section=TOKENS, rank=3),
        _count("cache_write", "cache writes", section=TOKENS, rank=5, detail=not has.writes),
        _count("other_input", "other input", section=TOKENS, rank=6, detail=not has.others),
        _count("output", "output", section=TOKENS, rank=3),
        _count("other_output", "other output", section=TOKENS, rank=6, detail=not has.others),
        _count("priced_tokens", "tokens with a cost", detail=True),
        _ratio("cache_share", "cache share", "share", f"cached/({prompt})", TOKENS, 4),
        Column(name="input_cost", heading="cost of input", kind="usd", detail=True),
        _count("input_billed", "input billed", detail=True),
        Column(name="output_cost", heading="cost of output", kind="usd", detail=True),
        _count("output_billed", "output billed", detail=True),
        Column(name="tps", heading="tokens/s", kind="tps", section=TOKENS, rank=5),
        Column(name="ttft_p50", heading="TTFT p50", kind="ms", section=TOKENS, rank=5),
        Column(name="ttft_p95", heading="TTFT p95", kind="ms", section=TOKENS, rank=5),
    ]


def _units(has: Shape) -> list[Column]:
    made = []
    for name, (heading, above, below, times) in UNIT_COSTS.items():
        was = f"{name}_before"
        made.append(_ratio(name, heading, "unit", _per(above, below, times, has), UNIT, 2))
        if has.compared:
            change = f"({name}-{was})/{was}"
            made.append(Column(name=was, heading="before", kind="unit", section=UNIT, rank=8))
            made.append(_ratio(f"{name}_change", "change", "change", change, UNIT, 8))
    return made


def _per(above: str, below: str, times: int, has: Shape) -> str:
    said = f"{has.stands if above == 'stands' else above}/{below}"
    return said if times == 1 else f"{said}*{times}"


def _doubts(has: Shape) -> list[Column]:
    waste = ",".join(f"waste_{why}" for why in pictures.WASTE)
    unpriced = _count("unpriced", "unpriced", section=DOUBT, rank=1)
    if has.runs:
        unpriced = _count("unpriced", "still unpriced", section=DOUBT, rank=1)
    return [
        *(
            _usd(f"waste_{why}", said, section=DOUBT, rank=6)
            for why, said in pictures.WASTE.items()
        ),
        _ratio("waste", "waste", "usd", f"SUM({waste})", DOUBT, 2),
        _ratio("waste_share", "waste share", "share", "waste/cost", DOUBT, 4),
        _count("weighed", "rows with usage", detail=True),
        _count("estimated", "estimated rows", detail=True),
        _ratio("estimated_share", "estimated", "share", "estimated/weighed", DOUBT, 4),
        unpriced,
        Column(name="drill_down", heading="rows", kind="command", detail=True),
    ]


def _count(name: str, heading: str, **more: Any) -> Column:
    return Column(name=name, heading=heading, kind="count", added=True, **more)


def _usd(name: str, heading: str, **more: Any) -> Column:
    return Column(name=name, heading=heading, kind="usd", added=True, **more)


def _ratio(name: str, heading: str, kind: Kind, formula: str, section: str, rank: int) -> Column:
    return Column(
        name=name, heading=heading, kind=kind, formula=formula, section=section, rank=rank
    )


# --- figures --------------------------------------------------------------------------------------


def figures(one: Sums, whole: Sums, previous: Sums | None, has: Shape) -> dict[str, Any]:
    """A line's figures, but for its groups and its command."""
    known, stands = booked(one), standing(one)
    waste = {f"waste_{why}": one.waste[why] for why in pictures.WASTE}
    prompt = one.uncached + one.cached + one.writes + one.other_input
    made: dict[str, Any] = {
        "requests": one.rows,
        "priced": one.costed + one.priced,
        "cost": known,
        "correction": one.correction,
        "corrected": stands,
        has.local: local(stands, has.per_usd),
        "share": ratio(stands, whole.cost + whole.correction),
        "uncached": one.uncached,
        "cached": one.cached,
        "cache_write": one.writes,
        "other_input": one.other_input,
        "output": one.output,
        "other_output": one.other_output,
        "priced_tokens": one.costed_tokens + one.priced_tokens,
        "cache_share": ratio(one.cached, prompt),
        "tps": one.speed_tokens * 1e6 / one.speed_us if one.speed_us else None,
        "ttft_p50": one.ttft_p50,
        "ttft_p95": one.ttft_p95,
        **(dict.fromkeys(waste) if known is None else waste),
        "waste": None if known is None else sum(waste.values()),
        "waste_share": ratio(sum(waste.values()), one.cost),
        "weighed": one.weighed,
        "estimated": one.estimated,
        "estimated_share": ratio(one.estimated, one.weighed),
        "unpriced": one.unpriced - one.resolved,
    }
    made |= unit_costs(one)
    if previous is not None:
        made |= _compared(made, stands, previous)
    return made


def _compared(made: Mapping[str, Any], stands: int | None, previous: Sums) -> dict[str, Any]:
    was, units = standing(previous), unit_costs(previous)
    found: dict[str, Any] = {
        "previous": was,
        "change": None if stands is None or was is None else ratio(stands - was, was),
        "requests_before": previous.rows,
    }
    for name in UNIT_COSTS:
        now, then = made[name], units[name]
        found[f"{name}_before"] = then
        found[f"{name}_change"] = None if now is None or not then else (now - then) / then
    return found


def unit_costs(one: Sums) -> dict[str, Any]:
    """What a unit came to, and what that stands on."""
    input_billed, input_cost = one.split.input
    output_billed, output_cost = one.split.output
    made: dict[str, Any] = {
        "input_cost": input_cost,
        "input_billed": input_billed,
        "output_cost": output_cost,
        "output_billed": output_billed,
    }
    at = made | {
        "stands": standing(one),
        "priced": one.costed + one.priced,
        "priced_tokens": one.costed_tokens + one.priced_tokens,
    }
    for name, (_, above, below, times) in UNIT_COSTS.items():
        made[name] = per(at[above], at[below], times)
    return made


def booked(one: Sums) -> int | None:
    """The cost; None where something was used and no price of any of it was known."""
    return None if one.unpriced and not one.costed else one.cost


def standing(one: Sums) -> int | None:
    """The cost as corrected; None as `booked`, unless a correction brought a price."""
    priced = one.costed or one.priced or one.pruned
    none = one.unpriced > one.resolved and not priced
    return None if none else one.cost + one.correction


def per(nano: int | None, count: int, times: int = 1) -> Decimal | None:
    """Dollars per so many; None where there are none."""
    of = ratio(nano, count)
    return None if of is None else of * times / 1_000_000_000
