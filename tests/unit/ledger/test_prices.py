"""The price book: dated rows, unknown is never zero."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.domain.money import Rates, cost
from gateway.ledger.price_file import instant
from gateway.ledger.prices import load_prices
from gateway.policy.source import ConfigErrors

GOOD = """\
version: 1
prices:
  - backend: api
    model: big
    from: 2026-03-01
    input_usd_per_mtok: "2.00"
    cached_input_usd_per_mtok: "0.20"
    output_usd_per_mtok: "10"
    source: a price list
    read_on: 2026-03-02
  - backend: api
    model: big
    from: 2026-01-01
    input_usd_per_mtok: "3"
    output_usd_per_mtok: "15"
    source: an older list
    read_on: 2026-01-02
  - {backend: api, model: vectors, from: 2026-01-01, input_usd_per_mtok: "0.02", input_only: true, source: s, read_on: 2026-01-01}
  - {backend: home, model: m, from: 2026-01-01, input_usd_per_mtok: "0", output_usd_per_mtok: "0", free: true, basis: declared, source: ours, read_on: 2026-01-01}
"""
BIG = Target("api", "big")


def told(*texts: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_prices([(f"{n}.yaml", text) for n, text in enumerate(texts)])
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("day", "source"),
    [
        ("2025-12-31", None),
        ("2026-01-01", "an older list"),
        ("2026-02-28", "an older list"),
        ("2026-03-01", "a price list"),
        ("2030-01-01", "a price list"),
    ],
)
def test_the_row_in_force_on_a_day(day, source):
    rates = load_prices([("p.yaml", GOOD)]).rates(BIG, instant(dt.date.fromisoformat(day)))
    assert (rates and rates.source) == source


def test_a_row_as_rates():
    book = load_prices([("p.yaml", GOOD)])
    day = instant(dt.date(2026, 6, 1))
    big = book.rates(BIG, day)
    assert big is not None
    assert big.id.startswith("api/big@2026-03-01#"), "and a digest of its figures"
    assert big == Rates(
        id=big.id,
        input=Decimal("2.00"),
        cached_input=Decimal("0.20"),
        output=Decimal(10),
        source="a price list",
    )
    vectors = book.rates(Target("api", "vectors"), day)
    assert vectors is not None
    assert cost(vectors, uncached=1_000_000, cached=0, output=0) == 20_000_000
    home = book.rates(Target("home", "m"), day)
    assert home is not None
    assert (home.free, home.basis) == (True, "declared")
    assert home.id.startswith("free:"), "else the ledger refuses the row"


def test_unknown_is_none_and_not_zero():
    book = load_prices([("p.yaml", GOOD)])
    assert book.rates(Target("api", "other"), instant(dt.date(2026, 6, 1))) is None
    assert set(book.in_force(instant(dt.date(2026, 6, 1)))) == {
        BIG,
        Target("api", "vectors"),
        Target("home", "m"),
    }
    assert book.in_force(instant(dt.date(2025, 1, 1))) == {}


REPLACED = [
    ('input_usd_per_mtok: "3"', "input_usd_per_mtok: 3", "14:25: prices[1].input_usd_per_mtok: expected text, not the number 3; quote it"),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "3,0"', "14:25: prices[1].input_usd_per_mtok: '3,0' is not a price; write dollars in quotes, like \"0.25\""),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "-3"', "14:25: prices[1].input_usd_per_mtok: '-3' is not a price; write dollars in quotes, like \"0.25\""),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "0.0000000001"', "14:25: prices[1].input_usd_per_mtok: '0.0000000001' is not a price; write dollars in quotes, like \"0.25\""),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "0"', "14:25: prices[1].input_usd_per_mtok: a price of 0; set free: true if it is meant"),
    ('cached_input_usd_per_mtok: "0.20"', 'cached_input_usd_per_mtok: "0.00"', "7:32: prices[0].cached_input_usd_per_mtok: a price of 0; set free: true if it is meant"),
    ('    output_usd_per_mtok: "15"\n', "", "11:5: prices[1]: no output_usd_per_mtok; set input_only: true where nothing is generated"),
    ('output_usd_per_mtok: "15"', 'output_usd_per_mtok: "15"\n    input_only: true', "15:5: prices[1].output_usd_per_mtok: contradicts input_only"),
    ('output_usd_per_mtok: "15"', 'output_usd_per_mtok: "15"\n    free: true', "16:5: prices[1].free: but no price is 0"),
    ("from: 2026-03-01", "from: 1.3.2026", "5:11: prices[0].from: expected a date, YYYY-MM-DD, or a moment like 2026-11-01T12:00:00Z, not '1.3.2026'"),
    ("from: 2026-03-01", "from: 2026-02-30", "5:11: prices[0].from: expected a date, YYYY-MM-DD, or a moment like 2026-11-01T12:00:00Z, not '2026-02-30'"),
    ("from: 2026-03-01", "form: 2026-03-01", "5:5: prices[0].form: unknown key 'form'; did you mean 'from'?"),
    ("from: 2026-03-01", "from: 2026-01-01", "11:5: prices[1]: a second price of api/big from 2026-01-01; first at 0.yaml:3:5"),
    ("    source: an older list\n", "", "11:5: prices[1].source: missing key 'source'"),
    ("basis: declared", "basis: guessed", "19:119: prices[3].basis: unknown value 'guessed'; one of: list, declared"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), REPLACED)
def test_a_mistake_is_told_with_its_place(old, new, line):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    assert f"0.yaml:{line}" in told(text)


def test_two_files_may_not_price_the_same_day():
    assert told(GOOD, GOOD)[0] == (
        "1.yaml:3:5: prices[0]: a second price of api/big from 2026-03-01; first at 0.yaml:3:5"
    )


def test_the_mistakes_of_all_files_are_told():
    assert told("version: 2\nprices: []\n", "version: 1\nprices: 1\n") == [
        "0.yaml:1:10: version: unknown value the number 2; one of: 1",
        "1.yaml:2:9: prices: expected a list, not the number 1",
    ]


@given(
    days=st.sets(st.dates(dt.date(2026, 1, 1), dt.date(2026, 12, 31)), min_size=1, max_size=8),
    at=st.dates(dt.date(2025, 12, 1), dt.date(2027, 1, 31)),
)
def test_the_row_in_force_is_the_latest_that_has_begun(days, at):
    rows = "".join(
        f'  - {{backend: b, model: m, from: {day}, input_usd_per_mtok: "1", '
        f'output_usd_per_mtok: "1", source: "{day}", read_on: {day}}}\n'
        for day in days
    )
    rates = load_prices([("p.yaml", f"version: 1\nprices:\n{rows}")]).rates(
        Target("b", "m"), instant(at)
    )
    begun = [day for day in days if day <= at]
    assert (rates.source if rates else None) == (str(max(begun)) if begun else None)
