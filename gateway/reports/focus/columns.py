"""The columns of the FOCUS export: which there are in which version, and of which type. Pure.

FOCUS is the FinOps Foundation's specification of cost and usage data (focus.finops.org). Ours are
the columns of 1.2 that apply to what a gateway meters; 1.3 adds who hosts, and how split costs were
allocated. Columns for what we do not have (commitments, reservations, zones) are left out, as the
specification says of features a provider does not support. What FOCUS has no column for is in
columns that begin with `x_`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal, NamedTuple

from gateway.domain.money import TOKEN_METERS, UNIT, Meter

VERSIONS: Final = ("1.2", "1.3")
Type = Literal["text", "decimal", "time", "json"]


class Column(NamedTuple):
    """`null`: may be empty. `since`: the version that brought it."""

    name: str
    type: Type = "text"
    null: bool = False
    since: str = "1.2"


_ALL: Final = (
    Column("AllocatedMethodDetails", "json", null=True, since="1.3"),
    Column("AllocatedMethodId", null=True, since="1.3"),
    Column("AllocatedResourceId", null=True, since="1.3"),
    Column("AllocatedResourceName", null=True, since="1.3"),
    Column("AllocatedTags", "json", null=True, since="1.3"),
    Column("BilledCost", "decimal"),
    Column("BillingAccountId"),
    Column("BillingAccountName"),
    Column("BillingAccountType"),
    Column("BillingCurrency"),
    Column("BillingPeriodEnd", "time"),
    Column("BillingPeriodStart", "time"),
    Column("ChargeCategory"),
    Column("ChargeClass", null=True),
    Column("ChargeDescription"),
    Column("ChargeFrequency"),
    Column("ChargePeriodEnd", "time"),
    Column("ChargePeriodStart", "time"),
    Column("CommitmentDiscountStatus", null=True),  # always: what is consumed depends on it
    Column("ConsumedQuantity", "decimal", null=True),
    Column("ConsumedUnit", null=True),
    Column("ContractApplied", "json", null=True, since="1.3"),
    Column("ContractedCost", "decimal"),
    Column("ContractedUnitPrice", "decimal", null=True),
    Column("EffectiveCost", "decimal"),
    Column("HostProviderName", since="1.3"),
    Column("InvoiceId"),
    Column("InvoiceIssuerName"),
    Column("ListCost", "decimal"),
    Column("ListUnitPrice", "decimal", null=True),
    Column("PricingCategory", null=True),
    Column("PricingCurrency"),
    Column("PricingCurrencyContractedUnitPrice", "decimal", null=True),
    Column("PricingCurrencyEffectiveCost", "decimal"),
    Column("PricingCurrencyListUnitPrice", "decimal", null=True),
    Column("PricingQuantity", "decimal", null=True),
    Column("PricingUnit", null=True),
    Column("ProviderName"),
    Column("PublisherName"),
    Column("RegionId", null=True),
    Column("RegionName", null=True),
    Column("ResourceId", null=True),
    Column("ResourceName", null=True),
    Column("ResourceType", null=True),
    Column("ServiceCategory"),
    Column("ServiceName"),
    Column("ServiceProviderName", since="1.3"),
    Column("ServiceSubcategory"),
    Column("SkuId", null=True),
    Column("SkuMeter", null=True),
    Column("SkuPriceDetails", "json", null=True),
    Column("SkuPriceId", null=True),
    Column("SubAccountId"),
    Column("SubAccountName"),
    Column("SubAccountType"),
    Column("Tags", "json", null=True),
    Column("x_Alias", null=True),
    Column("x_AttemptCount", "decimal"),
    Column("x_Backend"),
    Column("x_BackendKind", null=True),
    Column("x_KeyId", null=True),
    Column("x_MeteredQuantities", "json", null=True),
    Column("x_Model", null=True),
    Column("x_PriceBasis", null=True),
    Column("x_PriceSource", null=True),
    Column("x_RatesId", null=True),
    Column("x_RatingRun", "decimal", null=True),
    Column("x_Route", null=True),
    Column("x_RowKind"),
    Column("x_ServiceTier", null=True),
    Column("x_Shadow"),
    Column("x_UsageSource", null=True),
)


def columns(version: str) -> tuple[Column, ...]:
    """Those of a version: by name, our own last."""
    return tuple(column for column in _ALL if column.since <= version)


# --- units ----------------------------------------------------------------------------------------

SKU_METERS: Final[dict[Meter, str]] = {
    Meter.INPUT: "Input Tokens",
    Meter.CACHE_READ: "Cached Input Tokens",
    Meter.CACHE_WRITE_5M: "Cache Write Tokens (5 minutes)",
    Meter.CACHE_WRITE_1H: "Cache Write Tokens (1 hour)",
    Meter.INPUT_AUDIO: "Audio Input Tokens",
    Meter.CACHE_READ_AUDIO: "Cached Audio Input Tokens",
    Meter.INPUT_IMAGE: "Image Input Tokens",
    Meter.OUTPUT: "Output Tokens",
    Meter.REASONING: "Reasoning Tokens",
    Meter.OUTPUT_AUDIO: "Audio Output Tokens",
    Meter.OUTPUT_IMAGE: "Image Output Tokens",
    Meter.REQUEST: "Requests",
    Meter.SEARCH_CALL: "Searches",
    Meter.IMAGE: "Images",
    Meter.SECOND: "Seconds of Media",
    Meter.MINUTE: "Minutes of Media",
    Meter.GPU_SECOND: "GPU Time",
    Meter.REPLICA_MINUTE: "Replica Time",
}
_UNITS: Final[dict[Meter, str]] = dict.fromkeys(TOKEN_METERS, "Tokens") | {
    Meter.REQUEST: "Requests",
    Meter.SEARCH_CALL: "Searches",
    Meter.IMAGE: "Images",
    Meter.SECOND: "Seconds",
    Meter.MINUTE: "Minutes",
    Meter.GPU_SECOND: "GPU-Seconds",
    Meter.REPLICA_MINUTE: "Replica-Minutes",
}


def consumed_unit(meter: Meter) -> str:
    """What is counted."""
    return _UNITS[meter]


def pricing_unit(meter: Meter) -> str:
    """What a price is for: `1000000 Tokens`."""
    return _UNITS[meter] if UNIT[meter] == 1 else f"{UNIT[meter]} {_UNITS[meter]}"


def pricing_quantity(meter: Meter, quantity: int) -> Decimal:
    """So many of the pricing unit, exactly: units are powers of ten."""
    return Decimal(quantity).scaleb(1 - len(str(UNIT[meter])))


def plain(number: Decimal | int) -> str:
    """A number as FOCUS writes a decimal: digits, a point and digits; no exponent."""
    number = Decimal(number)
    if not number:
        return "0.0"
    whole, _, part = f"{number:f}".partition(".")
    return f"{whole}.{part.rstrip('0') or '0'}"
