"""Groups of attempts as FOCUS rows. Pure.

HOW ONE BECOMES THE OTHER
- Usage that has a price is a row per meter: quantity times price is the cost, exactly, in the
  pricing unit of the price list. Contracted prices are the list's: we know of no discount.
- A price list's cost is billed. What we declare ourselves (self-hosted) was not invoiced by the
  token: billed 0, and the declared cost is effective, allocated by the declared rates.
- Usage without a known price has no unit price, which FOCUS demands of usage; to write 0 would say
  that it was free. It is a row of category Adjustment over 0 whose `x_RowKind` is `unpriced` and
  which says what was metered. So is usage whose rates nothing kept names (`unsplit`), over what
  was booked for it.
- The ledger rounds each attempt to a nano-dollar, rows here are exact: one row of category
  Adjustment per billing period and account is the difference.
- What a rating run found is a row of class Correction in the period it corrects.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Final

from gateway.domain.catalog import Kind as BackendKind
from gateway.domain.money import Line, Meter, Rates
from gateway.reports.focus.columns import (
    SKU_METERS,
    consumed_unit,
    plain,
    pricing_quantity,
    pricing_unit,
)
from gateway.reports.meter_lines import Lines, added
from gateway.reports.metered import Corrected, Kind, Sum
from gateway.reports.providers import Provider

CURRENCY: Final = "USD"
METHOD: Final = "weighbridge-declared-rates-1"
_NANO_DIGITS: Final = 9
_RATIO_DIGITS: Final = 12
_DIGITS: Final = 60  # of exact arithmetic; sums and products here have fewer
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Row = dict[str, str]
Span = tuple[int, int]  # a charge period in microseconds


@dataclass(slots=True)
class Rest:
    """Of one billing period and account: what was booked beyond the exact rows, in nano-USD."""

    billed: Decimal = Decimal(0)
    effective: Decimal = Decimal(0)


@dataclass(slots=True, kw_only=True)
class Maker:
    """Makes the rows of one export and keeps what only shows at its end.

    `providers` says who is behind each backend, `keys` what keys are called.
    """

    until_us: int
    since_us: int
    providers: Mapping[str, Provider]
    keys: Mapping[str, str]
    rests: dict[tuple[int, str], Rest] = field(default_factory=dict)
    _prices: dict[tuple[str, Meter, int | None], Row] = field(default_factory=dict)

    # --- what a group becomes ---------------------------------------------------------------

    def metered(self, span: Span, kind: Kind, rates: Rates, parts: Sequence[Lines]) -> list[Row]:
        """Usage at known rates, all its parts together: a row per meter and price."""
        declared = rates.basis == "declared"
        booked = sum(part.booked_nano for part in parts)
        attempts = sum(part.rows for part in parts)
        rows, exact = [], Decimal(0)
        group = self._group(span, kind, attempts)
        with localcontext(prec=_DIGITS):
            for line in added(line for part in parts for line in part.lines).values():
                nano = line.nano
                exact += nano
                rows.append(group | self._price(kind, rates, line) | _used(line, nano, declared))
            self._keep(kind.backend, span, booked - exact, declared=declared)
        return rows

    def unpriced(self, span: Span, kind: Kind, sums: Sum) -> Row:
        """Usage nobody has a price for."""
        return self._unsplit(span, kind, sums, "unpriced", Decimal(0), declared=False)

    def unsplit(self, span: Span, kind: Kind, sums: Sum) -> Row:
        """Usage that was paid at rates that nothing kept names."""
        declared = self._kind(kind.backend) is BackendKind.SELF_HOSTED
        cost = Decimal(sums.booked_nano)
        return self._unsplit(span, kind, sums, "unsplit", cost, declared=declared)

    def correction(self, span: Span, found: Corrected, rates: Rates | None) -> Row:
        """What a rating run found of attempts."""
        kind = found.kind
        declared = rates is not None and rates.basis == "declared"
        return self._group(span, kind, found.attempts) | {
            **_costs(Decimal(found.delta_nano), declared=declared),
            "ChargeCategory": "Usage",
            "ChargeClass": "Correction",
            "ChargeDescription": f"Correction by rating run {found.run} of {kind.target}",
            "ChargeFrequency": "Usage-Based",
            "x_PriceBasis": "" if rates is None else rates.basis,
            "x_RatesId": found.rates_id,
            "x_RatingRun": str(found.run),
            "x_RowKind": "correction",
        }

    def rounding(self) -> Iterator[Row]:
        """The rows that bring the sum to what was booked, to the nano-dollar."""
        for (month_us, backend), rest in sorted(self.rests.items(), key=lambda one: one[0]):
            if not rest.billed and not rest.effective:
                continue
            begins, ends = _month(month_us)
            span = max(begins, self.since_us), min(ends, self.until_us)
            yield self._at(span, backend) | {
                **_costs(rest.effective, declared=False),
                "BilledCost": _usd(rest.billed),
                "ChargeCategory": "Adjustment",
                "ChargeDescription": f"Rounding of each attempt at {backend} to a nano-dollar",
                "ChargeFrequency": "One-Time",
                **_platform("platform", "Platform"),
                "x_AttemptCount": "0",
                "x_RowKind": "rounding",
                "x_Shadow": "false",
            }

    # --- parts of a row ---------------------------------------------------------------------

    def _price(self, kind: Kind, rates: Rates, line: Line) -> Row:
        """What usage of one meter at one price has, however much it is."""
        key = rates.id, line.meter, line.above
        if (known := self._prices.get(key)) is not None:
            return known
        name, price = SKU_METERS[line.meter], plain(line.price)
        beyond = "" if line.above is None else f";beyond={line.above}"
        made = self._prices[key] = {
            "ChargeCategory": "Usage",
            "ChargeDescription": f"{name} of {kind.model} at {kind.backend}",
            "ChargeFrequency": "Usage-Based",
            "ConsumedUnit": consumed_unit(line.meter),
            "ContractedUnitPrice": price,
            "ListUnitPrice": price,
            "PricingCategory": "Other" if rates.basis == "declared" else "Standard",
            "PricingCurrencyContractedUnitPrice": price,
            "PricingCurrencyListUnitPrice": price,
            "PricingUnit": pricing_unit(line.meter),
            "SkuId": f"{kind.target}/{line.meter.value}",
            "SkuMeter": name,
            "SkuPriceDetails": _json(_details(rates, line)),
            "SkuPriceId": f"{rates.id}/{line.meter.value}{beyond}",
            "x_PriceBasis": rates.basis,
            "x_PriceSource": rates.source,
            "x_RowKind": "metered",
        }
        return made

    def _unsplit(
        self, span: Span, kind: Kind, sums: Sum, what: str, nano: Decimal, *, declared: bool
    ) -> Row:
        why = "no price was known" if what == "unpriced" else "its price list is not kept"
        used = {SKU_METERS[m]: n for m, n in sums.quantities.items()}
        return self._group(span, kind, sums.attempts) | {
            **_costs(nano, declared=declared),
            "ChargeCategory": "Adjustment",
            "ChargeDescription": f"Usage of {kind.model} at {kind.backend}: {why}",
            "ChargeFrequency": "Usage-Based",
            "x_MeteredQuantities": _json(used),
            "x_RowKind": what,
        }

    def _group(self, span: Span, kind: Kind, attempts: int) -> Row:
        """What every row of a group has."""
        return self._at(span, kind.backend) | {
            **self._sub_account(kind),
            "ResourceId": str(kind.target),
            "ResourceName": kind.model,
            "ResourceType": "Model",
            "Tags": _json(dict(kind.tags)) if kind.tags else "",
            "x_Alias": kind.alias or "",
            "x_AttemptCount": str(attempts),
            "x_KeyId": kind.key_id or "",
            "x_Model": kind.model,
            "x_RatesId": kind.rates_id or "",
            "x_Route": kind.route or "",
            "x_ServiceTier": kind.service_tier or "",
            "x_Shadow": "true" if kind.shadow else "false",
            "x_UsageSource": kind.usage_source,
        }

    def _at(self, span: Span, backend: str) -> Row:
        """When, and whose."""
        begins, ends = _month(span[0])
        who = self.providers[backend]
        kind = self._kind(backend)
        return {
            "BillingAccountId": backend,
            "BillingAccountName": backend,
            "BillingAccountType": "Backend",
            "BillingCurrency": CURRENCY,
            "BillingPeriodEnd": _time(ends),
            "BillingPeriodStart": _time(begins),
            "ChargePeriodEnd": _time(span[1]),
            "ChargePeriodStart": _time(span[0]),
            "HostProviderName": who.name,
            "InvoiceId": f"provisional-{backend}-{_time(begins)[:7]}",
            "InvoiceIssuerName": who.name,
            "PricingCurrency": CURRENCY,
            "ProviderName": who.name,
            "PublisherName": who.name,
            "RegionId": who.region or "",
            "RegionName": who.region or "",
            "ServiceCategory": "AI and Machine Learning",
            "ServiceName": f"{who.name} model inference",
            "ServiceProviderName": who.name,
            "ServiceSubcategory": "Generative AI",
            "x_Backend": backend,
            "x_BackendKind": "" if kind is None else kind.value,
        }

    def _kind(self, backend: str) -> BackendKind | None:
        return self.providers[backend].kind

    def _sub_account(self, kind: Kind) -> Row:
        """The key's team, else the key. Copies are the platform's: nobody asked for them."""
        if kind.shadow:
            return _platform("platform", "Platform")
        team = dict(kind.tags).get("team")
        if team:
            return {
                "SubAccountId": f"team:{team}",
                "SubAccountName": team,
                "SubAccountType": "Team",
            }
        if kind.key_id is None:
            return _platform("platform:unattributed", "Unattributed")
        return {
            "SubAccountId": f"key:{kind.key_id}",
            "SubAccountName": self.keys.get(kind.key_id, kind.key_id),
            "SubAccountType": "Key",
        }

    def _keep(self, backend: str, span: Span, rest: Decimal, *, declared: bool) -> None:
        kept = self.rests.setdefault((_month(span[0])[0], backend), Rest())
        kept.effective += rest
        kept.billed += 0 if declared else rest


def allocate(rows: Iterable[Row]) -> None:
    """1.3: how the declared cost of a pool was split among who used it, in each charge period.

    Ratios have twelve digits; the largest takes what is missing to 1.
    """
    pools: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get("x_PriceBasis") == "declared" and row["x_RowKind"] == "metered":
            pools.setdefault((row["x_Backend"], row["ChargePeriodStart"]), []).append(row)
    for pool in pools.values():
        costs = [Decimal(row["EffectiveCost"]) for row in pool]
        whole = sum(costs)
        with localcontext(prec=_DIGITS):
            ratios = [round(cost / whole, _RATIO_DIGITS) for cost in costs] if whole else []
            if ratios:
                ratios[costs.index(max(costs))] += 1 - sum(ratios)
        for row, ratio in zip_longest(pool, ratios):
            row["AllocatedMethodId"] = METHOD
            row["AllocatedResourceId"] = row["SubAccountId"]
            row["AllocatedResourceName"] = row["SubAccountName"]
            if ratio is not None:
                row["AllocatedMethodDetails"] = (
                    f'{{"Elements":[{{"AllocatedRatio":{plain(ratio)},'
                    f'"UsageUnit":"{row["ConsumedUnit"]}",'
                    f'"UsageQuantity":{row["ConsumedQuantity"]}}}]}}'
                )


def _costs(nano: Decimal, *, declared: bool) -> Row:
    cost = _usd(nano)
    return {
        "BilledCost": plain(0) if declared else cost,
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "ListCost": cost,
        "PricingCurrencyEffectiveCost": cost,
    }


def _used(line: Line, nano: Decimal, declared: bool) -> Row:
    """So much, and what it costs."""
    return {
        **_costs(nano, declared=declared),
        "ConsumedQuantity": plain(line.quantity),
        "PricingQuantity": plain(pricing_quantity(line.meter, line.quantity)),
    }


def _usd(nano: Decimal) -> str:
    return plain(nano.scaleb(-_NANO_DIGITS))


def _details(rates: Rates, line: Line) -> dict[str, Any]:
    """Of the price, and of nothing else: one price id has one of these."""
    said: dict[str, Any] = {"x_Basis": rates.basis, "x_RatesId": rates.id}
    if line.above is not None:
        said["x_BeyondPromptTokens"] = line.above
    return said


def _platform(name: str, shown: str) -> Row:
    return {"SubAccountId": name, "SubAccountName": shown, "SubAccountType": "Platform"}


def _json(said: Mapping[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=4096)
def _month(us: int) -> Span:
    at = _EPOCH + dt.timedelta(microseconds=us)
    begins = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    ends = (begins + dt.timedelta(days=32)).replace(day=1)
    one = dt.timedelta(microseconds=1)
    return (begins - _EPOCH) // one, (ends - _EPOCH) // one


@lru_cache(maxsize=4096)
def _time(us: int) -> str:
    return f"{_EPOCH + dt.timedelta(microseconds=us):%Y-%m-%dT%H:%M:%SZ}"
