"""What a sum of attempts cost per meter, against each attempt rated by itself."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.domain.money import TOKEN_METERS, Line, Meter, Rates, Tier, Unpriced, rate
from gateway.ledger.prices import load_prices
from gateway.reports.meter_lines import Metered, added, meter_lines, one_by_one

METERS = sorted(TOKEN_METERS | {Meter.SEARCH_CALL, Meter.SECOND})
prices = st.decimals(min_value="0.000001", max_value="500", places=6)
used = st.dictionaries(st.sampled_from(METERS), st.integers(1, 300_000), min_size=1)


@st.composite
def rates(draw, **fixed) -> Rates:
    others = {meter: draw(prices) for meter in METERS}
    if draw(st.booleans()):
        others[Meter.REQUEST] = draw(prices)
    values = {"id": "r", "input": draw(prices), "output": draw(prices), "others": others} | fixed
    return Rates(**values)


@given(rates(), st.lists(used, min_size=1, max_size=20))
def test_the_lines_of_a_sum_are_the_lines_of_every_attempt_added_up(rates, attempts):
    charges = [rate(rates, quantities) for quantities in attempts]
    booked = sum(charge.nano for charge in charges)
    whole = Counter()
    for quantities in attempts:
        whole.update(quantities)
    found = meter_lines(rates, Metered(len(attempts), dict(whole), booked))
    singly = added(line for charge in charges for line in charge.lines)
    assert added(found.lines) == singly
    assert sum(line.nano for line in found.lines) + found.rest == booked
    assert found.holds


def test_a_cliff_is_not_chosen_again_for_a_sum_of_prompts():
    """A thousand short prompts are beyond the bound together, and none of them is."""
    long = Rates(id="r;over=200000", input=Decimal(4), output=Decimal(8))
    base = Rates(id="r", input=Decimal(2), output=Decimal(8), tiers=(Tier(200_000, long),))
    short = meter_lines(base, Metered(1_000, {Meter.INPUT: 1_000_000}, 2_000_000_000))
    assert short.lines == (Line(Meter.INPUT, 1_000_000, Decimal(2)),)
    assert short.rest == 0
    beyond = meter_lines(long, Metered(1, {Meter.INPUT: 300_000}, 1_200_000_000))
    assert (beyond.lines[0].price, beyond.rest) == (4, 0)


def test_a_marginal_scale_goes_one_by_one():
    cheap = Rates(id="r;over=100", input=Decimal(1), output=Decimal(8))
    scale = Rates(
        id="r", input=Decimal(2), output=Decimal(8), tiers=(Tier(100, cheap),), marginal=True
    )
    assert one_by_one(scale)
    assert not one_by_one(cheap)
    one = meter_lines(scale, Metered(1, {Meter.INPUT: 150, Meter.OUTPUT: 10}, 330_000))
    assert one.lines == (
        Line(Meter.INPUT, 100, Decimal(2)),
        Line(Meter.INPUT, 50, Decimal(1), 100),
        Line(Meter.OUTPUT, 10, Decimal(8)),
    )
    assert one.rest == 0
    with pytest.raises(ValueError, match="marginal"):
        meter_lines(scale, Metered(2, {Meter.INPUT: 150}, 1))


def test_what_rounding_does_not_explain_is_seen():
    plain = Rates(id="r", input=Decimal("0.0005"), output=Decimal(1))
    assert meter_lines(plain, Metered(3, {Meter.INPUT: 3}, 0)).holds  # 0.5 nano each, to even
    assert meter_lines(plain, Metered(3, {Meter.INPUT: 3}, 0)).rest == Decimal("-1.5")
    assert not meter_lines(plain, Metered(3, {Meter.INPUT: 3}, 4)).holds


def test_a_meter_without_a_price_has_no_line_of_nought():
    plain = Rates(id="r", input=Decimal(1), output=Decimal(1))
    with pytest.raises(Unpriced, match="search_call"):
        meter_lines(plain, Metered(1, {Meter.SEARCH_CALL: 1}, 0))


def test_with_a_row_of_the_price_book_by_its_id():
    book = load_prices(
        [
            (
                "prices.yaml",
                """
version: 1
prices:
  - backend: b
    model: m
    from: 2026-01-01
    input_usd_per_mtok: "0.15"
    output_usd_per_mtok: "0.60"
    long_prompts:
      - above_prompt_tokens: 200000
        input_usd_per_mtok: "0.30"
        output_usd_per_mtok: "0.90"
    source: test
    read_on: 2026-01-01
""",
            )
        ]
    )
    target = Target("b", "m")
    base = book.rates(target, 1_793_491_200_000_000)
    charge = rate(base, {Meter.INPUT: 250_000, Meter.OUTPUT: 7})
    held = book.by_id(target, charge.rates_id)
    found = meter_lines(held, Metered(4, {Meter.INPUT: 1_000_000, Meter.OUTPUT: 28}, 0))
    assert [line.price for line in found.lines] == [Decimal("0.30"), Decimal("0.90")]
