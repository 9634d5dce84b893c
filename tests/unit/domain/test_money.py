"""Money: exact until one rounding, every quantity in one line, and no price is never a low one.

The oracles count in fractions, token by token; nothing here is worked out as the code does it.
"""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import replace
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gateway
from gateway.domain.money import (
    OUTPUT_METERS,
    PROMPT_METERS,
    TOKEN_METERS,
    UNIT,
    Meter,
    Rates,
    Tier,
    Unpriced,
    book,
    cost,
    rate,
    usd,
)
from gateway.domain.rating import charge, metered, quantities
from gateway.domain.request import Usage

OTHERS = sorted(set(Meter) - {Meter.INPUT, Meter.CACHE_READ, Meter.OUTPUT})
# As price files allow them: up to 7 digits before the point and 9 after it.
PRICES = st.integers(1, 10**16 - 1).map(lambda n: Decimal(n).scaleb(-9))
COUNTS = st.integers(0, 5_000) | st.integers(0, 10**12)
LEDGER_MAX = 2**63 - 1  # what a cost is stored in


def usages(*, counts: st.SearchStrategy[int] = COUNTS) -> st.SearchStrategy[Usage]:
    others = st.dictionaries(st.sampled_from([m for m in OTHERS if m is not Meter.REASONING]),
                             counts.filter(bool), max_size=4)  # fmt: skip

    def made(counted: list[int], share: int, more: dict[Meter, int], tier: str | None) -> Usage:
        uncached, cached, output = counted
        return Usage(uncached, cached, output, output * share // 4, others=more, service_tier=tier)

    three = st.lists(counts, min_size=3, max_size=3)
    return st.builds(made, three, st.integers(0, 4), others, st.sampled_from([None, "flex"]))


def text_only(usage: Usage) -> Usage:
    """What nearly every request uses: it may be rated on the quick way."""
    return replace(usage, others={}, service_tier=None)


@st.composite
def plain(draw: st.DrawFn, every: bool = True) -> Rates:
    """Rates without tiers; with a price of every meter, or of some."""
    some = set(OTHERS) if every else draw(st.sets(st.sampled_from(OTHERS)))
    return Rates(
        id=f"r{draw(st.integers(0, 9))}",
        input=draw(PRICES),
        output=draw(PRICES),
        cached_input=draw(st.none() | PRICES),
        others={meter: draw(PRICES) for meter in OTHERS if meter in some},
    )


@st.composite
def rates(draw: st.DrawFn, every: bool = True, marginal: bool | None = None) -> Rates:
    bounds = sorted(draw(st.sets(st.integers(1, 6_000), max_size=3)))
    made = replace(
        draw(plain(every)),
        tiers=tuple(Tier(above, draw(plain(every))) for above in bounds),
        marginal=draw(st.booleans()) if marginal is None else marginal,
    )
    return replace(made, service_tiers={"flex": draw(plain(every))})


def nano(meter: Meter, quantity: int, price: Decimal) -> Fraction:
    return Fraction(price) * quantity / UNIT[meter] * 10**9


# --- sums -----------------------------------------------------------------------------------------


@given(rates=rates(), usage=usages())
def test_lines_sum_to_the_total_with_one_rounding(rates, usage):
    made = rate(rates, quantities(usage), service_tier=usage.service_tier)
    exact = sum((nano(line.meter, line.quantity, line.price) for line in made.lines), Fraction())
    assume(exact < LEDGER_MAX)
    assert made.exact == sum((line.nano for line in made.lines), Decimal(0))
    assert Fraction(made.exact) == exact
    assert made.nano == round(exact), "half to even, as Python rounds fractions"
    assert isinstance(made.nano, int)


@given(rates=rates(), usage=usages())
def test_no_digit_is_lost_of_anything_the_ledger_can_hold(rates, usage):
    with localcontext() as context:
        made = rate(rates, quantities(usage), service_tier=usage.service_tier)
        whole = sum(
            (nano(line.meter, line.quantity, line.price) for line in made.lines), Fraction()
        )
        assume(whole < LEDGER_MAX)
        context.traps[Inexact] = True
        assert Fraction(made.exact) == whole
        if whole > 1:
            assert charge(rates, usage)[1] == round(whole)


@settings(max_examples=300)
@given(rates=rates(every=False) | rates(), usage=usages() | usages().map(text_only))
def test_the_quick_way_is_the_whole_way(rates, usage):
    def told(way):
        try:
            return way()
        except Unpriced as error:
            return str(error)

    def slow():
        made = rate(rates, quantities(usage), service_tier=usage.service_tier)
        if quantities(usage) and not made.nano:
            raise Unpriced(f"{made.rates_id} makes it 0, and is not declared free")
        return made.rates_id, made.nano

    assert told(lambda: charge(rates, usage)) == told(slow)


def test_a_price_of_reasoning_that_only_long_prompts_have_counts():
    dear = replace(CLIFF.tiers[0].rates, others={Meter.REASONING: Decimal(40)})
    scale = replace(CLIFF, others={}, tiers=(Tier(1000, dear),))
    usage = Usage(2_000, 0, 1_000, reasoning=900)
    made = rate(scale, quantities(usage))
    assert charge(scale, usage) == (made.rates_id, made.nano)
    assert Meter.REASONING in {line.meter for line in made.lines if line.price == 40}


def test_what_rounds_to_nothing_has_no_price_unless_it_is_declared_free():
    tiny = Rates(id="tiny", input=Decimal("0.0004"), output=Decimal("0.0004"))
    with pytest.raises(Unpriced, match="makes it 0"):
        charge(tiny, Usage(1, 0, 0))
    assert charge(tiny, Usage(2, 0, 0)) == ("tiny", 1)
    assert charge(tiny, Usage(0, 0, 0)) == ("tiny", 0)
    assert charge(replace(tiny, free=True), Usage(1, 0, 0)) == ("tiny", 0)


@given(rates=rates(), counts=st.lists(COUNTS, min_size=3, max_size=3))
def test_predictions_cost_what_rating_costs(rates, counts):
    uncached, cached, output = counts
    metered = {Meter.INPUT: uncached, Meter.CACHE_READ: cached, Meter.OUTPUT: output}
    assert cost(rates, uncached=uncached, cached=cached, output=output) == rate(rates, metered).nano


@given(rates=rates(), usage=usages())
def test_every_quantity_is_in_exactly_one_line(rates, usage):
    counted = quantities(usage)
    made = rate(rates, counted, service_tier=usage.service_tier)
    lines = Counter()
    for line in made.lines:
        assert line.quantity > 0
        lines[line.meter] += line.quantity
    fee = {Meter.REQUEST: counted.get(Meter.REQUEST, 1)}
    assert lines == Counter({**counted, **fee})
    assert len({(line.meter, line.above) for line in made.lines}) == len(made.lines)


@given(usage=usages())
def test_every_token_is_in_exactly_one_meter(usage):
    counted = quantities(usage)
    assert sum(n for m, n in counted.items() if m in PROMPT_METERS) == usage.prompt
    told = sum(n for m, n in usage.others.items() if m in OUTPUT_METERS)
    assert sum(n for m, n in counted.items() if m in OUTPUT_METERS) == usage.output + told
    assert all(counted.values())


def test_the_meters_are_prompt_output_or_no_tokens():
    assert PROMPT_METERS | OUTPUT_METERS == TOKEN_METERS
    assert not PROMPT_METERS & OUTPUT_METERS
    assert {UNIT[meter] for meter in TOKEN_METERS} == {1_000_000}


@pytest.mark.parametrize(
    ("exact", "booked"), [("0.5", 0), ("1.5", 2), ("2.5", 2), ("2.500001", 3), ("0.499", 0)]
)
def test_half_goes_to_even(exact, booked):
    assert book(Decimal(exact)) == booked


@given(nano=st.integers(-(10**20), 10**20))
def test_dollars_come_back_as_they_went(nano):
    text = usd(nano)
    assert Decimal(text).scaleb(9) == nano
    assert "e" not in text.lower()
    assert not text.endswith(".")


# --- tiers ----------------------------------------------------------------------------------------

CLIFF = Rates(
    id="r",
    input=Decimal(1),
    output=Decimal(3),
    tiers=(
        Tier(1_000, Rates(id="r;over=1000", input=Decimal(2), output=Decimal(5))),
        Tier(2_000, Rates(id="r;over=2000", input=Decimal(7), output=Decimal(11))),
    ),
)


@pytest.mark.parametrize(
    ("prompt", "id_", "input_", "output"),
    [
        (0, "r", 1, 3),
        (999, "r", 1, 3),
        (1_000, "r", 1, 3),
        (1_001, "r;over=1000", 2, 5),
        (2_000, "r;over=1000", 2, 5),
        (2_001, "r;over=2000", 7, 11),
        (10**12, "r;over=2000", 7, 11),
    ],
)
@pytest.mark.parametrize("cached", ["none", "all", "half"])
def test_one_token_more_changes_the_price_of_the_whole(prompt, id_, input_, output, cached):
    of = {"none": 0, "all": prompt, "half": prompt // 2}[cached]
    usage = Usage(prompt - of, of, 10)
    due = prompt * 1_000 * input_ + 10 * 1_000 * output
    assert charge(CLIFF, usage) == (id_, due)
    written = Usage(0, 0, 10, others={Meter.CACHE_WRITE_5M: prompt} if prompt else {})
    assert charge(CLIFF, written) == (id_, due), "writing to a cache is prompt too"


@settings(max_examples=150)
@given(
    rates=rates(marginal=True),
    counts=st.dictionaries(st.sampled_from(sorted(PROMPT_METERS)), st.integers(1, 900), min_size=1),
    output=st.integers(0, 50),
)
def test_a_marginal_scale_is_what_token_by_token_makes(rates, counts, output):
    """What a cache holds is the prompt's beginning, what was written to one comes next."""
    laid_out = [
        meter
        for meter in (
            Meter.CACHE_READ, Meter.CACHE_READ_AUDIO, Meter.CACHE_WRITE_1H, Meter.CACHE_WRITE_5M,
            Meter.INPUT_AUDIO, Meter.INPUT_IMAGE, Meter.INPUT,
        )
        for _ in range(counts.get(meter, 0))
    ]  # fmt: skip
    due = nano(Meter.REQUEST, 1, rates.others[Meter.REQUEST])
    due += nano(Meter.OUTPUT, output, rates.output)
    for position, meter in enumerate(laid_out, 1):
        held = rates
        for tier in rates.tiers:
            if position > tier.above:
                held = tier.rates
        price = held.price(meter)
        assert price is not None
        due += nano(meter, 1, price)
    assume(due < LEDGER_MAX)
    made = rate(rates, {**counts, Meter.OUTPUT: output})
    assert Fraction(made.exact) == due
    assert made.rates_id == rates.id


def test_a_marginal_scale_is_steady_where_a_cliff_jumps():
    steady = replace(CLIFF, marginal=True)
    for bound in (1_000, 2_000):
        at, beyond = (charge(steady, Usage(n, 0, 10))[1] for n in (bound, bound + 1))
        assert 0 < beyond - at < 10_000
        low, high = (charge(CLIFF, Usage(n, 0, 10))[1] for n in (bound, bound + 1))
        assert high - low > 1_000_000


# --- what has no price ----------------------------------------------------------------------------


@given(rates=rates(every=False, marginal=False), usage=usages())
def test_one_meter_without_a_price_leaves_the_whole_without(rates, usage):
    counted = quantities(usage)
    held = rates.under(usage.prompt, usage.service_tier)
    unknown = [meter for meter in counted if held.price(meter) is None]
    if unknown:
        with pytest.raises(Unpriced, match="no price of"):
            charge(rates, usage)
    else:
        made = rate(rates, counted, service_tier=usage.service_tier)
        assume(made.nano or not counted)
        assert charge(rates, usage)[0] == held.id


def test_what_costs_as_another_and_what_does_not():
    bare = Rates(id="r", input=Decimal(2), output=Decimal(5))
    as_input = {Meter.INPUT, Meter.CACHE_READ, Meter.CACHE_WRITE_5M, Meter.CACHE_WRITE_1H,
                Meter.INPUT_IMAGE}  # fmt: skip
    for meter in Meter:
        due = 2 if meter in as_input else 5 if meter in {Meter.OUTPUT, Meter.REASONING} else None
        assert bare.price(meter) == due, meter
    written = replace(bare, others={Meter.CACHE_WRITE_5M: Decimal(3)})
    assert written.price(Meter.CACHE_WRITE_1H) is None, "an hour is dearer: not known is not 3"
    audio = replace(bare, others={Meter.INPUT_AUDIO: Decimal(9)})
    assert audio.price(Meter.CACHE_READ_AUDIO) == 9


def test_a_service_tier_without_a_price_is_not_the_standard_one():
    with pytest.raises(Unpriced, match="service tier 'priority'"):
        charge(CLIFF, Usage(1, 0, 1, service_tier="priority"))


def test_tokens_of_what_is_not_paid_by_the_token_have_no_price():
    seconds = Rates(id="r", input=Decimal(0), output=Decimal(0), by_token=False,
                    others={Meter.SECOND: Decimal("0.0001")})  # fmt: skip
    with pytest.raises(Unpriced):
        charge(seconds, Usage(1, 0, 0))
    with pytest.raises(Unpriced):
        cost(seconds, uncached=1, cached=0, output=0)
    assert charge(seconds, Usage(0, 0, 0, others={Meter.SECOND: 30}))[1] == 3_000_000


@pytest.mark.parametrize("usage", [Usage(-1, 0, 0), Usage(0, -1, 5), Usage(1, 0, -1),
                                   Usage(5, 0, 5, others={Meter.SEARCH_CALL: -1})])  # fmt: skip
def test_less_than_nothing_is_refused(usage):
    with pytest.raises(ValueError, match="negative"):
        charge(CLIFF, usage)


def test_a_row_is_rated_by_what_is_on_it():
    row = {"uncached_tokens": 5, "cached_tokens": None, "output_tokens": 7, "reasoning_tokens": 2,
           "other_meters": {"search_call": 3}, "service_tier": "flex"}  # fmt: skip
    due = Usage(5, 0, 7, 2, others={Meter.SEARCH_CALL: 3}, service_tier="flex")
    assert metered(row) == due
    assert metered({**row, "other_meters": None}) == replace(due, others={})
    with pytest.raises(ValueError, match="'coffee'"):
        metered({**row, "other_meters": {"coffee": 1}})


# --- no float -------------------------------------------------------------------------------------

PACKAGE = Path(gateway.__file__).parent
EXACT = ("domain/money.py", "domain/rating.py", "ledger/prices.py", "ledger/price_file.py",
         "ledger/known_prices.py", "ledger/ratings.py")  # fmt: skip


def floats(source: str) -> list[str]:
    """Where a float could come from, by line: a literal, a true division, `float`, `round`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
        division = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
        name = isinstance(node, ast.Name) and node.id in {"float", "round"}
        if literal or division or name:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("module", EXACT)
def test_there_is_no_float_anywhere(module):
    assert floats((PACKAGE / module).read_text()) == []


@pytest.mark.parametrize("text", ["a = 0.1", "a = b / c", "a /= 2", "float(a)", "round(a)", "1e3"])
def test_a_float_would_be_found(text):
    assert floats(text)
