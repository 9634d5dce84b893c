"""The rules of FOCUS 1.2 and 1.3 as tables, over an export with every kind of row in it.

Written from the specification, for machines without the official validator (`make test-focus`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from decimal import Decimal

import pytest

from gateway.ledger.store import Store
from gateway.reports import definition as d
from gateway.reports.focus.columns import VERSIONS, columns
from gateway.reports.focus.export import Summary, Wanted, export
from gateway.reports.kept import Kept
from tests.unit.reports.month import MONTH_US, NOVEMBER_US
from tests.unit.reports.priced import attempt, fill, month

pytestmark = pytest.mark.xdist_group("reports")

Row = dict[str, str]

# Rule -> what must hold of every row. "" is null.
MANDATORY = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeDescription"),
    *("ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost"),
    *("InvoiceIssuerName", "ListCost", "ProviderName", "PublisherName", "ServiceCategory"),
    *("ServiceName", "ServiceSubcategory", "ChargeFrequency", "BillingAccountType"),
)
MANDATORY_13 = (*MANDATORY, "HostProviderName", "ServiceProviderName")
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Committed", "Dynamic", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Generative AI"},
    "BillingCurrency": {"USD"},
    "PricingCurrency": {"USD"},
}
_PRICED = (
    *("ListUnitPrice", "ContractedUnitPrice", "PricingQuantity", "PricingUnit", "PricingCategory"),
    *("SkuId", "SkuPriceId", "SkuMeter", "ConsumedQuantity", "ConsumedUnit"),
)


def usage(row: Row) -> bool:
    return row["ChargeCategory"] == "Usage" and not row["ChargeClass"]


def pairs(*names: str) -> Callable[[Row], bool]:
    """All null or none."""
    return lambda row: len({bool(row[name]) for name in names}) == 1


RULES: dict[str, Callable[[Row], bool]] = {
    "usage has its prices, quantities and SKU": lambda r: not usage(r) or all(r[n] for n in _PRICED),
    "a unit price is not negative": lambda r: Decimal(r["ListUnitPrice"] or 0) >= 0,
    "unit price times quantity is the cost": lambda r: (
        not r["ListUnitPrice"]
        or Decimal(r["ListUnitPrice"]) * Decimal(r["PricingQuantity"]) == Decimal(r["ListCost"])
    ),
    "consumed only where used": lambda r: r["ChargeCategory"] == "Usage" or not r["ConsumedQuantity"],
    "units with quantities": lambda r: (
        pairs("PricingQuantity", "PricingUnit")(r) and pairs("ConsumedQuantity", "ConsumedUnit")(r)
    ),
    "names with ids": lambda r: (
        pairs("ResourceId", "ResourceName", "ResourceType")(r)
        and pairs("SubAccountId", "SubAccountName", "SubAccountType")(r)
        and pairs("RegionId", "RegionName")(r)
    ),
    "details only of a price": lambda r: bool(r["SkuPriceId"]) or not r["SkuPriceDetails"],
    "the charge lies in its billing period": lambda r: (
        r["BillingPeriodStart"] <= r["ChargePeriodStart"] < r["ChargePeriodEnd"] <= r["BillingPeriodEnd"]
    ),
    "other categories bill what they cost, but for what is declared": lambda r: (
        usage(r) or r["x_Backend"] == "own" or r["BilledCost"] == r["EffectiveCost"]
    ),
    "null is empty, never a word": lambda r: not {"None", "null", "N/A"} & set(r.values()),
    "detail keys are ours": lambda r: all(k.startswith("x_") for k in json.loads(r["SkuPriceDetails"] or "{}")),
    "tags are flat": lambda r: all(isinstance(v, str) for v in json.loads(r["Tags"] or "{}").values()),
}  # fmt: skip
TYPES: dict[str, Callable[[str], bool]] = {
    "text": lambda s: s == s.strip(),
    "decimal": lambda s: re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", s) is not None,
    "time": lambda s: re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00:00Z", s) is not None,
    "json": lambda s: isinstance(json.loads(s), dict),
}


@pytest.fixture
async def store(tmp_path):
    made = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    records = list(month(400))
    lost = attempt("openai", "gpt-x", NOVEMBER_US, uncached=100, output=7)
    lost.rates_id = "openai/gpt-x@2020-01-01#00000000"
    records[0].attempts = [lost]
    await fill(made, tmp_path / "journal", records)
    yield made
    await made.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_rule_holds_of_every_row(store, version):
    wanted = Wanted(
        period=d.Period(since_us=NOVEMBER_US, until_us=NOVEMBER_US + MONTH_US), version=version
    )
    text = "".join([lines async for _, lines in export(store, wanted, Kept(store), Summary())])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["x_RowKind"] for row in rows} == {"metered", "unpriced", "unsplit", "rounding"}
    broken = set()
    for row in rows:
        mandatory = MANDATORY if version == "1.2" else MANDATORY_13
        broken |= {f"{name} is null" for name in mandatory if not row[name]}
        broken |= {f"{name}: {row[name]}" for name, may in ALLOWED.items() if row[name] not in may}
        broken |= {rule for rule, holds in RULES.items() if not holds(row)}
        for column in columns(version):
            value = row[column.name]
            if value and not TYPES[column.type](value):
                broken.add(f"{column.name} is no {column.type}: {value}")
            if not value and not column.null:
                broken.add(f"{column.name} is null")
    assert broken == set()
    by_service = {(row["ServiceName"], row["ServiceCategory"]) for row in rows}
    assert len(by_service) == len({name for name, _ in by_service})
    by_price = {(row["SkuPriceId"], row["SkuId"], row["SkuPriceDetails"]) for row in rows}
    assert len(by_price) == len({price for price, *_ in by_price})


@pytest.mark.parametrize("version", VERSIONS)
def test_columns_are_named_and_ordered_as_the_specification_wants(version):
    names = [column.name for column in columns(version)]
    ours = [name for name in names if name.startswith("x_")]
    focus = names[: -len(ours)]
    assert focus == sorted(focus)
    assert ours == sorted(ours) == names[len(focus) :]
    assert all(re.fullmatch(r"(x_)?[A-Z][A-Za-z]{2,49}", name) for name in names)
