"""What an offer changes in a book: rows to add, and what stands against them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from gateway.domain.catalog import Target
from gateway.ledger.price_file import PriceRow
from gateway.ledger.prices import PriceBook, load_prices
from gateway.price_sources import shelf
from gateway.price_sources.offers import Offer, Said, checked, figures
from gateway.price_sources.offers import told as words
from gateway.price_sources.timeline import Change, changes

TARGET = Target("b", "m")
DAY = dt.date(2026, 11, 24)
BATCH = {"service_tier": "batch", "input_usd_per_mtok": "0.50", "output_usd_per_mtok": "1.00"}

CACHED = {**BATCH, "cached_input_usd_per_mtok": "0.05"}


def row(start: str, price: str = "1.00", **more: object) -> PriceRow:
    return checked(
        {
            "backend": "b",
            "model": "m",
            "from": start,
            "input_usd_per_mtok": price,
            "output_usd_per_mtok": "2.00",
            "source": "s",
            "read_on": "2026-11-24",
            **more,
        }
    )


def book(*rows: PriceRow) -> PriceBook:
    lines = [f"  {line}\n" for one in rows for line in shelf.written(one)]
    return load_prices([("book.yaml", shelf.HEADER + "".join(lines))]) if rows else PriceBook({})


def offer(said: Mapping[str | None, PriceRow | str]) -> Offer:
    return Offer(
        target=TARGET,
        source="source 1",
        called="m",
        said=tuple(
            Said(since=since, figures={}, row=None, why_not=one)
            if isinstance(one, str)
            else Said(since=since, figures=figures(one), row=one)
            for since, one in said.items()
        ),
    )


def told(said: Mapping[str | None, PriceRow | str], *rows: PriceRow) -> list[tuple[str, str]]:
    return [(c.what, c.since) for c in changes(offer(said), book(*rows), day=DAY)]


def test_a_model_that_the_book_lacks_begins_on_the_day_it_was_taken():
    assert told({None: row("1970-01-01")}) == [("new", "2026-11-24")]


def test_every_statement_begins_on_its_own_day():
    said = {None: row("1970-01-01"), "2026-10-12": row("2026-10-12", "0.90"),
            "2027-01-01": row("2027-01-01", "1.80")}  # fmt: skip
    assert told(said) == [("new", "2026-10-12"), ("changed", "2027-01-01")]
    early = changes(offer(said), PriceBook({}), day=dt.date(2026, 9, 22))
    assert [(c.what, c.since) for c in early] == [
        ("new", "2026-09-22"),
        ("changed", "2026-10-12"),
        ("changed", "2027-01-01"),
    ]


def test_what_the_book_says_is_not_said_again():
    said = {None: row("1970-01-01"), "2027-01-01": row("2027-01-01", "1.80")}
    mine = (row("2026-11-01"), row("2027-01-01", "1.80"))
    assert told(said, *mine) == [("same", "2026-11-24")]


def test_importing_again_changes_nothing():
    said = {None: row("1970-01-01"), "2026-12-01": row("2026-12-01", "0.90", when=[BATCH])}
    made = [c.row for c in changes(offer(said), PriceBook({}), day=DAY) if c.row is not None]
    assert len(made) == 2
    for day in (DAY, DAY + dt.timedelta(days=3), dt.date(2026, 12, 24)):
        again = changes(offer(said), book(*made), day=day)
        assert {c.what for c in again} == {"same"}


def test_what_the_book_says_beyond_the_source_stays():
    assert told({None: row("1970-01-01")}, row("2026-11-01", when=[BATCH])) == [
        ("same", "2026-11-24")
    ]


def test_a_price_that_differs_is_a_new_row_and_says_what_is_lost():
    (change,) = changes(
        offer({None: row("1970-01-01", "1.10")}),
        book(row("2026-11-01", cached_input_usd_per_mtok="0.10", when=[CACHED])),
        day=DAY,
    )
    assert change.what == "changed"
    assert change.place == "book.yaml:7:5"
    assert words(change.differences) == [
        "input_usd_per_mtok 1.00 -> 1.10 (+10.0 %)",
        "cached_input_usd_per_mtok 0.10 -> 1.10 (+1000.0 %)",  # as input: it is not said
        "batch: no longer said",
    ]


def test_a_cached_price_that_equals_input_is_no_difference():
    mine = row("2026-11-01")
    assert told({None: row("1970-01-01", cached_input_usd_per_mtok="1")}, mine) == [
        ("same", "2026-11-24")
    ]


def test_a_row_of_the_same_day_is_not_edited():
    (change,) = changes(
        offer({"2026-12-01": row("2026-12-01", "1.10")}), book(row("2026-12-01")), day=DAY
    )
    assert (change.what, change.row) == ("against", None)
    assert change.why == "begins on the same day, and rows are not edited"


def test_our_own_statement_stands():
    mine = row("2026-11-01", "0.80", basis="declared")
    assert told({None: row("1970-01-01")}, mine) == [("declared", "2026-11-24")]


def test_a_later_price_of_ours_is_questioned_from_the_day_on():
    said = {"2025-05-01": row("2025-05-01")}
    assert told(said, row("2026-11-01", "0.70")) == [("new", "2025-05-01")]
    said = {None: row("1970-01-01"), **said}
    assert told(said, row("2026-11-01", "0.70")) == [
        ("new", "2025-05-01"),
        ("changed", "2026-11-24"),
    ]


def test_what_cannot_be_written_is_refused_with_its_reason():
    (change,) = changes(offer({None: "says 0"}), PriceBook({}), day=DAY)
    assert (change.what, change.why, change.row) == ("refused", "says 0", None)


def test_a_price_that_ended_is_a_new_one():
    ended = row("2026-10-01", until="2026-11-01")
    assert told({None: row("1970-01-01")}, ended) == [("new", "2026-11-24")]


def test_changes_come_in_the_order_of_time():
    said = {None: row("1970-01-01"), "2027-01-01": row("2027-01-01", "3.00"),
            "2026-12-01": row("2026-12-01", "2.00")}  # fmt: skip
    made: list[Change] = changes(offer(said), PriceBook({}), day=DAY)
    assert [c.since for c in made] == ["2026-11-24", "2026-12-01", "2027-01-01"]
