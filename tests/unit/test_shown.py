"""Amounts for people: in any currency, never 0.00 for what is not nothing."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.money import DOLLARS, Currency, shown

EURO = Currency("EUR", Decimal("0.8612"))
FRANC = Currency("CHF", Decimal("0.9"))


@pytest.mark.parametrize(
    ("nano", "currency", "text"),
    [
        (0, DOLLARS, "$0.00"),
        (1, DOLLARS, "$0.0000000010"),
        (4_200_000, DOLLARS, "$0.0042"),
        (9_960_000, DOLLARS, "$0.0100"),
        (10_000_000, DOLLARS, "$0.01"),
        (1_234_500_000_000, DOLLARS, "$1,234.50"),
        (-3_000_000_000, DOLLARS, "-$3.00"),
        (10_000_000_000, EURO, "€8.61"),
        (1_000_000_000_000, FRANC, "CHF 900.00"),
        (125_000_000, DOLLARS, "$0.12"),  # half to even
    ],
)
def test_an_amount_reads_as_people_write_it(nano: int, currency: Currency, text: str) -> None:
    assert shown(nano, currency) == text


@given(st.integers(-(10**18), 10**18), st.sampled_from([DOLLARS, EURO, FRANC]))
def test_what_is_shown_is_near_and_never_nothing_for_something(
    nano: int, currency: Currency
) -> None:
    text = shown(nano, currency)
    number = Decimal(text.lstrip("-$€CHF ").replace(",", "")) * (-1 if text[0] == "-" else 1)
    exact = Decimal(nano) * currency.per_usd / 10**9
    assert abs(number - exact) <= max(Decimal("0.005"), abs(exact) / 20)
    assert (number == 0) == (nano == 0)
