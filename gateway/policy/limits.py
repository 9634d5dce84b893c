"""`policies/limits.yaml`: budgets, rates and permits, read into `domain.limit.Limit`. Pure.

A limit reads aloud: "search-month: per team, 500 dollars every month in Europe/Berlin".

Owns: the file's schema and its meaning. Knows nothing of how limits are kept (`gateway.limits`).

INVARIANTS
- A limit counts exactly one thing, and money is exact: dollars are quoted, nano-USD at most.
- A key that has no meaning for what a limit counts is refused, not ignored.
- Amounts stay below 2^53 in what they are counted in: the store's script counts in doubles.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.domain.catalog import Catalog
from gateway.domain.limit import CALENDAR, AtLimit, Limit, Outage, Period, Unit
from gateway.domain.money import NANO_PER_USD
from gateway.policy.source import Findings, Path, Strict, json_schema, nearest, read

_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
_DOLLARS = re.compile(r"(0|[1-9][0-9]{0,6})(\.[0-9]{1,9})?")
_USD_MAX = 9_000_000
_CALENDAR = "day, week and month"
# Any word may be a tag of a key; these are taken for a slip.
_SLIPS = {"keys": "key", "key_id": "key", "aliases": "alias", "model": "alias", "models": "alias"}
_ZONE = re.compile(r"[A-Za-z0-9_+/-]{1,64}")


def _dollars(text: str) -> str:
    if not _DOLLARS.fullmatch(text):
        raise ValueError(f"'{text}' is not an amount; write dollars in quotes, like \"500\"")
    if not 0 < Decimal(text) <= _USD_MAX:
        raise ValueError(f"must be more than 0 and at most {_USD_MAX}")
    return text


Dollars = Annotated[
    str,
    AfterValidator(_dollars),
    WithJsonSchema({"type": "string", "pattern": f"^{_DOLLARS.pattern}$", "examples": ["500"]}),
]
Count = Annotated[int, Field(ge=1, le=10**12)]
Share = Annotated[float, Field(gt=0, le=1)]
Holder = Annotated[str, Field(min_length=1, max_length=200)]


class LimitFile(Strict):
    """One limit. Each distinct value of `per` has a counter of its own."""

    name: str = Field(pattern=_NAME, description="Told to callers, and what routes name.")
    per: str = Field(
        min_length=1, max_length=64, description="key, alias, or a tag of keys: team, app, ..."
    )
    match: dict[str, Annotated[list[Holder], Field(min_length=1, max_length=1000)]] = Field(
        default={},
        max_length=20,
        description="Only requests whose key, alias and tags have one of these values.",
    )
    requests: Count | None = Field(default=None, description="So many requests every period.")
    tokens: Count | None = Field(default=None, description="Prompt and output together.")
    usd: Dollars | None = Field(default=None, description='Dollars, in quotes: "500".')
    concurrent: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="So many requests at once; has no period."
    )
    every: Period | None = Field(
        default=None,
        description="minute and hour slide; day, week and month are the calendar's in the zone.",
    )
    zone: str | None = Field(
        default=None, description="Of a day, a week or a month. Left out: UTC."
    )
    at_limit: AtLimit = Field(
        default=AtLimit.REFUSE,
        description="refuse: 429. route: it goes on, and routes that match `spent` take it.",
    )
    on_outage: Outage | None = Field(
        default=None,
        description="While Redis is away. refuse: 503. allowance: each worker goes on with a "
        "small share of what was left. Left out: refuse for usd, allowance for the rest.",
    )
    hold_output_tokens: Count | None = Field(
        default=None, description="Held for the output of a request without a cap. Default 4096."
    )
    alert_shares: list[Share] = Field(
        default=[],
        max_length=10,
        description="Fractions of a calendar period's limit, like 0.8. Money is told of at 1 too.",
    )


class LimitsFile(Strict):
    """Limits per key, team, app and alias. A request counts for every limit that fits it."""

    version: Literal[1]
    limits: list[LimitFile] = Field(default=[], max_length=1000)


def load_limits(text: str, *, source: str, catalog: Catalog) -> tuple[Limit, ...]:
    """The file's limits, aliases resolved in `catalog`. Raises ConfigErrors."""
    file, findings = read(LimitsFile, text, source)
    names: set[str] = set()
    for index, limit in enumerate(file.limits):
        path: Path = ("limits", index)
        if limit.name in names:
            findings.problem((*path, "name"), f"a second limit named '{limit.name}'")
        names.add(limit.name)
        _check_amount(limit, path, findings)
        _check_period(limit, path, findings)
        _check_names(limit, path, catalog, findings)
    findings.raise_if_any()
    return tuple(_limit(limit) for limit in file.limits)


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    body = json_schema(LimitsFile, "Weighbridge limits")
    body["$defs"]["LimitFile"]["oneOf"] = [{"required": [unit.value]} for unit in Unit]
    return body


def _units(limit: LimitFile) -> list[Unit]:
    return [unit for unit in Unit if getattr(limit, unit.value) is not None]


def _check_amount(limit: LimitFile, path: Path, findings: Findings) -> None:
    units = _units(limit)
    if not units:
        findings.problem(path, "limits nothing", f"give one of: {', '.join(Unit)}")
    for unit in units[1:]:
        findings.problem(
            (*path, unit.value),
            f"beside {units[0].value}",
            "a limit counts one thing; make it two limits",
            key=True,
        )
    if limit.hold_output_tokens is not None and not {Unit.TOKENS, Unit.USD} & set(units):
        findings.problem(
            (*path, "hold_output_tokens"), "has a meaning for tokens and usd only", key=True
        )


def _check_period(limit: LimitFile, path: Path, findings: Findings) -> None:
    units = _units(limit)
    if units and units[0] is Unit.CONCURRENT:
        if limit.every is not None:
            findings.problem(
                (*path, "every"), "contradicts concurrent: at once has no period", key=True
            )
    elif units and limit.every is None:
        findings.problem(path, "missing key 'every'", f"one of: {', '.join(Period)}")
    calendar = limit.every in CALENDAR
    if limit.zone is not None:
        if not calendar:
            findings.problem((*path, "zone"), f"has a meaning for {_CALENDAR} only", key=True)
        elif not _is_zone(limit.zone):
            findings.problem(
                (*path, "zone"),
                f"unknown time zone '{limit.zone}'",
                nearest(limit.zone, sorted(available_timezones())) or "like Europe/Berlin",
            )
    if limit.alert_shares and not calendar:
        findings.problem(
            (*path, "alert_shares"),
            f"has a meaning for {_CALENDAR} only",
            "what starts anew all the time would alert all the time",
            key=True,
        )
    for index, share in enumerate(limit.alert_shares):
        if share in limit.alert_shares[:index]:
            findings.problem((*path, "alert_shares", index), f"{share} is listed twice")


def _is_zone(name: str) -> bool:
    if not _ZONE.fullmatch(name):
        return False
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError):
        return False
    return True


def _check_names(limit: LimitFile, path: Path, catalog: Catalog, findings: Findings) -> None:
    named = [((*path, "per"), limit.per), *(((*path, "match", name), name) for name in limit.match)]
    for at, name in named:
        if name.lower() in _SLIPS:
            findings.problem(at, f"'{name}'", f"did you mean '{_SLIPS[name.lower()]}'?")
    for name, values in limit.match.items():
        for index, value in enumerate(values):
            here = (*path, "match", name, index)
            if value in values[:index]:
                findings.problem(here, f"'{value}' is listed twice")
            elif name == "alias" and value not in catalog.aliases:
                findings.problem(here, f"no alias '{value}'", nearest(value, catalog.aliases))


def _limit(file: LimitFile) -> Limit:
    (unit,) = _units(file)
    amount = getattr(file, unit.value)
    if unit is Unit.USD:
        amount = int(Decimal(amount) * NANO_PER_USD)
    outage = file.on_outage or (Outage.REFUSE if unit is Unit.USD else Outage.ALLOWANCE)
    held = (
        {} if file.hold_output_tokens is None else {"hold_output_tokens": file.hold_output_tokens}
    )
    return Limit(
        name=file.name,
        per=file.per,
        unit=unit,
        amount=amount,
        period=file.every,
        zone=file.zone or "UTC",
        match={name: frozenset(values) for name, values in file.match.items()},
        at_limit=file.at_limit,
        outage=outage,
        alert_shares=tuple(sorted(file.alert_shares)),
        **held,
    )
