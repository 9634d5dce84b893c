"""The price book: dated rows, unknown is never zero."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.domain.money import Rates, cost
from gateway.domain.rating import charge
from gateway.domain.request import Usage
from gateway.ledger.price_file import instant
from gateway.ledger.prices import PriceBook, load_prices
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
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "3,0"', "14:25: prices[1].input_usd_per_mtok: '3,0' is not a number; write dollars in digits, like \"0.25\""),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "-3"', "14:25: prices[1].input_usd_per_mtok: '-3' is negative; a price is 0 or more"),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "99999999999999"', "14:25: prices[1].input_usd_per_mtok: '99999999999999' is too large; a price is below 10,000,000 dollars"),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "NaN"', "14:25: prices[1].input_usd_per_mtok: 'NaN' is not a number; write dollars in digits, like \"0.25\""),
    ('input_usd_per_mtok: "3"', 'input_usd_per_mtok: "0.0000000001"', "14:25: prices[1].input_usd_per_mtok: '0.0000000001' has more than nine digits after the point"),
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


@pytest.mark.parametrize("wrong", ["-3", "0.0000000001", "99999999999999", "NaN"])
def test_a_price_that_is_none_is_one_mistake(wrong):
    assert len(told(GOOD.replace('input_usd_per_mtok: "3"', f'input_usd_per_mtok: "{wrong}"'))) == 1


EURO = """\
version: 1
currencies:
  - {currency: EUR, per_usd: "0.9", from: 2026-01-01, source: s, read_on: 2026-01-01}
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (EURO.replace('"0.9"', '"0"'), '0.yaml:3:30: currencies[0].per_usd: a rate of 0'),
        (EURO.replace("EUR,", "EURO,"), "0.yaml:3:16: currencies[0].currency: 'EURO' is no currency; three capital letters, like EUR"),
    ],
)  # fmt: skip
def test_a_rate_that_cannot_be(text, line):
    assert told(text) == [line]


def test_a_currency_has_one_rate_for_one_day():
    other = EURO.replace("EUR", "GBP") + EURO.splitlines()[2].replace("01-01", "02-01", 1)
    assert told(EURO, other, EURO) == [
        "2.yaml:3:5: currencies[0]: a second rate of EUR from 2026-01-01; first at 0.yaml:3:5"
    ]


def test_hours_of_one_variant_do_not_overlap():
    row = (
        "version: 1\nprices:\n"
        '  - {backend: b, model: m, from: 2026-01-01, input_usd_per_mtok: "2", input_only: true, '
        "source: s, read_on: 2026-01-01, when: "
        '[{input_usd_per_mtok: "1", hours_utc: ["22:00-02:00", "04:00-05:00", "01:00-03:00"]}]}\n'
    )
    assert told(row) == [
        "0.yaml:3:196: prices[0].when[0].hours_utc[2]: '01:00-03:00' overlaps with '22:00-02:00'"
    ]


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


# --- two times, hours, regions --------------------------------------------------------------------

MINUTE, DAY = 60_000_000, 86_400_000_000
MIDNIGHT = instant(dt.date(2026, 5, 4))
TARGET = Target("b", "m")
PLAIN = (
    '  - {backend: b, model: m, from: 2026-05-01, input_usd_per_mtok: "1", '
    'output_usd_per_mtok: "1", source: s, read_on: 2026-05-01'
)


def variant(input_: int, conditions: str) -> str:
    return f'{{{conditions}, input_usd_per_mtok: "{input_}", output_usd_per_mtok: "1"}}'


def special(*variants: str, region: str | None = None) -> PriceBook:
    text = f"version: 1\nprices:\n{PLAIN}, when: [{', '.join(variants)}]}}\n"
    return load_prices([("p.yaml", text)], {"b": region})


def price(book: PriceBook, at_us: int) -> int | None:
    rates = book.rates(TARGET, at_us)
    return None if rates is None else int(rates.input)


@pytest.mark.parametrize(
    ("hours", "inside"),
    [
        ("16:30-00:30", lambda m: m >= 16 * 60 + 30 or m < 30),
        ("00:00-00:01", lambda m: m == 0),
        ("23:59-00:00", lambda m: m == 23 * 60 + 59),
        ("23:59-24:00", lambda m: m == 23 * 60 + 59),
        ("08:00-20:00", lambda m: 8 * 60 <= m < 20 * 60),
        ("20:00-08:00", lambda m: not 8 * 60 <= m < 20 * 60),
    ],
)
def test_hours_hold_from_their_first_microsecond_to_before_their_last(hours, inside):
    book = special(variant(2, f'hours_utc: ["{hours}"]'))
    for minute in range(24 * 60):
        at = MIDNIGHT + minute * MINUTE
        due = 2 if inside(minute) else 1
        assert [price(book, at), price(book, at + MINUTE - 1)] == [due, due], minute


@pytest.mark.parametrize("wrong", ["24:00-01:00", "10:00-10:00", "09:00-24:30", "9:00-10:00", "a"])
def test_hours_that_are_none(wrong):
    inside = variant(2, f'hours_utc: ["{wrong}"]')
    text = f"version: 1\nprices:\n{PLAIN}, when: [{inside}]}}\n"
    assert any(f"'{wrong}' is not a time of day" in line for line in told(text))


@pytest.mark.parametrize(
    ("first", "from_"),
    [("2026-05-04", MIDNIGHT), ("2026-05-04T12:30:00+02:00", MIDNIGHT + 630 * MINUTE)],
)
def test_a_row_begins_and_the_one_before_ends_with_the_same_microsecond(first, from_):
    rows = (
        PLAIN + "}\n" + PLAIN.replace("2026-05-01,", f"{first},", 1).replace('"1"', '"3"') + "}\n"
    )
    book = load_prices([("p.yaml", f"version: 1\nprices:\n{rows}")])
    assert [price(book, from_ - 1), price(book, from_)] == [1, 3]
    begun = instant(dt.date(2026, 5, 1))
    assert [price(book, begun - 1), price(book, begun)] == [None, 1]
    assert book.changes_after(from_ - 1) == from_
    assert book.changes_after(from_) is None


def test_an_end_is_not_part_of_what_it_ends():
    text = f"version: 1\nprices:\n{PLAIN}, until: 2026-05-04}}\n"
    book = load_prices([("p.yaml", text)])
    assert [price(book, MIDNIGHT - 1), price(book, MIDNIGHT)] == [1, None]


def test_a_region_has_its_price_and_hours_there_their_own():
    both = (variant(2, "region: eu"), variant(4, 'region: eu, hours_utc: ["10:00-12:00"]'))
    night = variant(8, 'hours_utc: ["10:00-12:00"]')
    at = {hour: MIDNIGHT + hour * 60 * MINUTE for hour in (9, 10, 11)}
    for region, due in (("eu", [2, 4]), ("us", [1, 8]), (None, [1, 8])):
        book = special(*both, night, region=region)
        assert [price(book, at[9]), price(book, at[10])] == due, region
    us = special(*both, night, region="us")
    assert [price(us, at[h]) for h in (9, 10, 11)] == [1, 8, 8]


def test_two_that_say_equally_much_of_one_moment_are_refused():
    """Which of them held would be the one that is written first: nobody means that."""
    eu, morning = variant(2, "region: eu"), variant(8, 'hours_utc: ["10:00-12:00"]')
    third = 'region: eu, hours_utc: ["{}"]'
    for others in ((), (variant(4, third.format("10:00-11:59")),)):
        with pytest.raises(ConfigErrors) as caught:
            special(eu, morning, *others)
        assert [p.message for p in caught.value.problems] == ["overlaps with when[0]"]
    settled = special(eu, morning, variant(4, third.format("09:00-12:00")), region="eu")
    assert [price(settled, MIDNIGHT + hour * 60 * MINUTE) for hour in (8, 9, 11, 12)] == [
        2,
        4,
        4,
        2,
    ]
    special(eu, variant(8, "region: us"), variant(3, "service_tier: flex"))


def test_a_service_tier_has_its_own_rates_and_hours_of_its_own():
    book = special(
        variant(5, "service_tier: flex"),
        variant(6, 'service_tier: flex, hours_utc: ["10:00-11:00"]'),
        variant(7, 'hours_utc: ["10:00-11:00"]'),
    )
    for hour, standard, flex in ((9, 1, 5), (10, 7, 6), (11, 1, 5)):
        rates = book.rates(TARGET, MIDNIGHT + hour * 60 * MINUTE)
        assert rates is not None
        assert (rates.input, rates.service_tiers["flex"].input) == (standard, flex)
        flexible = charge(rates, Usage(1_000_000, 0, 0, service_tier="flex"))
        assert flexible == (rates.service_tiers["flex"].id, flex * 10**9)
        assert ";service_tier=flex" in flexible[0]
        assert (";hours=10:00-11:00" in flexible[0]) == (hour == 10)


HOURS = st.tuples(st.integers(0, 23), st.sampled_from([0, 15, 30]), st.integers(1, 23 * 60)).map(
    lambda t: (t[0] * 60 + t[1], (t[0] * 60 + t[1] + t[2]) % (24 * 60))
)


def apart(windows: list[tuple[int, int]]) -> bool:
    """Whether they overlap nowhere."""
    held = [(a + m) % (24 * 60) for a, b in windows for m in range((b - a - 1) % (24 * 60) + 1)]
    return len(held) == len(set(held))


@settings(max_examples=60, deadline=None)
@given(
    windows=st.lists(HOURS, min_size=1, max_size=3).map(lambda w: w if apart(w) else w[:1]),
    at=st.integers(MIDNIGHT - DAY, MIDNIGHT + DAY),
    day=st.integers(2, 9),
)
def test_nothing_changes_before_the_next_change(windows, at, day):
    """Told by looking at every minute there is: the first at which another price holds."""
    said = [f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in windows]
    quoted = ", ".join(f'"{text}"' for text in said)
    inside = variant(2, f"hours_utc: [{quoted}]")
    rows = f"{PLAIN}, when: [{inside}]}}\n"
    rows += PLAIN.replace("2026-05-01,", f"2026-05-{day:02},", 1).replace('"1"', '"3"') + "}\n"
    book = load_prices([("p.yaml", f"version: 1\nprices:\n{rows}")])
    first = (at // MINUTE + 1) * MINUTE
    later = (m for m in range(first, first + 9 * DAY, MINUTE) if price(book, m) != price(book, at))
    due = next(later, None)
    found = book.changes_after(at)
    assert found is None if due is None else found is not None and at < found <= due
    if due is not None and found != due:
        assert price(book, found) == price(book, at), "an hour that says what held anyway"


@given(
    days=st.lists(st.integers(1, 28), unique=True, min_size=1, max_size=6),
    bounds=st.lists(st.integers(1, 10**6), unique=True, max_size=3).map(sorted),
    free=st.booleans(),
)
def test_a_book_of_terms_is_the_book_they_were_written_in(days, bounds, free):
    tiers = ", ".join(
        f'{{above_prompt_tokens: {b}, input_usd_per_mtok: "2", output_usd_per_mtok: "1"}}'
        for b in bounds
    )
    more = f", long_prompts: [{tiers}], when: [{variant(5, 'service_tier: flex')}]"
    more = more.replace('"1"', '"0"') + ", free: true" if free else more
    rows = "".join(PLAIN.replace("05-01,", f"05-{day:02},", 1) + more + "}\n" for day in days)
    book = load_prices([("p.yaml", f"version: 1\nprices:\n{rows}")], {"b": "eu"})
    terms = json.loads(json.dumps([row.terms for row in book.rows[TARGET]]))
    again = PriceBook.of(reversed(terms), {"b": "eu"})
    assert [replace(row, place="") for row in book.rows[TARGET]] == list(again.rows[TARGET])
    assert again.regions == book.regions
    with pytest.raises(ValueError, match="from"):
        PriceBook.of([{k: v for k, v in terms[0].items() if k != "from"}])


class Counted(dict):  # type: ignore[type-arg]
    """Rows that count how often all of them are looked at."""

    looks = 0

    def values(self):  # type: ignore[no-untyped-def]
        self.looks += 1
        return super().values()


def test_the_next_change_is_looked_for_once_however_often_it_is_asked_for() -> None:
    made = load_prices([("p.yaml", GOOD)])
    rows = Counted(made.rows)
    book = PriceBook(rows)
    begin, end = instant("2026-01-01"), instant("2026-03-01")
    moments = [
        end - 1,
        begin,
        begin - 1,
        begin + 1,
        end,
        end + 5,
        *range(begin, end, 86_400 * 10**6),
    ]
    for at in moments:
        assert book.changes_after(at) == PriceBook(made.rows).changes_after(at)
    assert rows.looks <= 4
    for at in range(begin, end - 10**7, 86_400 * 10**6):
        book.turned(at, at + 10**6, ahead_us=5_000_000)
    assert rows.looks <= 4
    assert book == PriceBook(made.rows), "what it remembers is no part of it"
