"""Doctored sources against a book: what is told, how badly, and where."""

from __future__ import annotations

import datetime as dt

import pytest

from gateway.domain.catalog import Backend, Kind, Model, Target
from gateway.ledger.price_file import PriceRow
from gateway.ledger.prices import PriceBook
from gateway.price_sources.disagreements import Asked, Finding, failed, look
from gateway.price_sources.offers import Offer, Said, figures
from tests.unit.price_sources.test_timeline import BATCH, book, row

DAY = dt.date(2026, 11, 24)
TARGET = Target("b", "m")
LONG = {"above_prompt_tokens": 272_000, "input_usd_per_mtok": "2.00", "output_usd_per_mtok": "3.00"}


def backend(**changed: object) -> Backend:
    said: dict[str, object] = {
        "name": "b",
        "kind": Kind.CLOSED_API,
        "wire": "openai_http",
        "base_url": "https://api.openai.com/v1",
        "models": {"m": Model(name="m")},
        "clearance": 0,
    }
    return Backend(**(said | changed))  # type: ignore[arg-type]


def says(one: PriceRow, name: str = "source 1", since: str | None = None, **more: object) -> Offer:
    return Offer(
        target=TARGET,
        source=name,
        called="m",
        said=(Said(since=since, figures=figures(one), row=one),),
        **more,  # type: ignore[arg-type]
    )


def found(*offers: Offer, mine: PriceBook, at: Backend | None = None) -> list[Finding]:
    place = "book.yaml:7:5" if mine.rows else "catalog.yaml:3:1"
    asked = Asked(target=TARGET, backend=at or backend(), place=place, offers=offers)
    return look(asked, mine, DAY, stale_days=45)


def kinds(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.kind, one.severity) for one in findings]


def test_what_agrees_is_not_mentioned():
    assert found(says(row("2026-01-01")), mine=book(row("2026-11-01"))) == []


def test_a_figure_that_differs_is_told_with_both_and_what_to_do():
    (one,) = found(says(row("2026-01-01", "1.25")), mine=book(row("2026-11-01")))
    assert str(one) == (
        "book.yaml:7:5: b/m: input_usd_per_mtok: ours 1.00, source 1 says 1.25 (+25.0 %);"
        " weighbridge prices import source --backend b --model m"
    )
    assert (one.kind, one.ours, one.theirs) == ("disagrees", "1.00", "1.25")
    assert failed([one], strict=False)


def test_sources_that_disagree_with_one_another_are_a_warning():
    findings = found(
        says(row("2026-01-01"), "one 1"),
        says(row("2026-01-01", "1.25"), "two 2"),
        mine=book(row("2026-11-01")),
    )
    assert kinds(findings) == [("disagrees", "warning")]
    assert "two 2 says 1.25 (+25.0 %); one 1 agrees with ours" in findings[0].what
    assert not failed(findings, strict=False)
    assert failed(findings, strict=True)


def test_a_tier_that_we_lack_is_told_once_whatever_sources_say_so():
    theirs = row("2026-01-01", when=[BATCH])
    findings = found(says(theirs, "one 1"), says(theirs, "two 2"), mine=book(row("2026-11-01")))
    assert kinds(findings) == [("lacks", "warning")]
    assert findings[0].what == (
        "no prices for batch; one 1: input_usd_per_mtok 0.50, output_usd_per_mtok 1.00"
    )


def test_long_prompts_that_we_do_not_send_are_a_note():
    theirs, mine = row("2026-01-01", long_prompts=[LONG]), book(row("2026-11-01"))
    assert kinds(found(says(theirs), mine=mine)) == [("lacks", "warning")]
    short = backend(models={"m": Model(name="m", prompt_tokens_max=272_000)})
    (one,) = found(says(theirs), mine=mine, at=short)
    assert (one.severity, one.todo) == ("note", "the catalog sends it no more than 272,000 tokens")


def test_cache_writes_that_we_rate_as_input():
    theirs = row("2026-01-01", cache_write_5m_usd_per_mtok="1.25")
    (one,) = found(says(theirs), mine=book(row("2026-11-01")))
    assert one.kind == "lacks"
    assert one.what == (
        "cache_write_5m_usd_per_mtok: ours not said, so 1.00, source 1 says 1.25 (+25.0 %)"
    )


@pytest.mark.parametrize(
    ("changed", "severity", "todo"),
    [
        ({}, "error", "weighbridge prices import source --backend b --model m"),
        ({"configured": False}, "warning", "weighbridge prices import source"),
        ({"kind": Kind.SELF_HOSTED}, "note", "declare what its tokens cost"),
    ],
)
def test_a_missing_price_is_as_bad_as_its_use(changed, severity, todo):
    (one,) = found(says(row("2026-01-01")), mine=PriceBook({}), at=backend(**changed))
    assert (one.kind, one.severity) == ("missing", severity)
    assert one.todo.startswith(todo)
    assert one.place == "catalog.yaml:3:1"


def test_old_figures_are_told_by_their_age():
    mine = book(row("2026-09-01", read_on="2026-10-01"))
    (one,) = found(says(row("2026-01-01")), mine=mine)
    assert (one.kind, one.what) == ("stale", "read 54 days ago, on 2026-10-01")


def test_a_model_that_its_vendor_gives_up():
    gone = says(row("2026-01-01"), deprecated="it marks the model deprecated")
    (one,) = found(gone, mine=book(row("2026-11-01")))
    assert (one.kind, one.severity) == ("deprecated", "warning")
    assert one.what == "source 1: it marks the model deprecated (m)"


def test_what_a_source_announces_and_the_book_lacks():
    now, later = row("2026-01-01"), row("2027-01-01", "2.00")
    offer = Offer(
        target=TARGET,
        source="source 1",
        called="m",
        said=(
            Said(since=None, figures=figures(now), row=now),
            Said(since="2027-01-01", figures=figures(later), row=later),
        ),
    )
    (one,) = found(offer, mine=book(row("2026-11-01")))
    assert (one.kind, one.severity) == ("announced", "warning")
    assert one.what == (
        "from 2027-01-01, says source 1: input_usd_per_mtok 1.00 -> 2.00 (+100.0 %)"
    )
    assert found(offer, mine=book(row("2026-11-01"), later)) == []


def test_what_nobody_knows_is_said():
    (one,) = found(mine=book(row("2026-11-01")))
    assert (one.kind, one.severity) == ("unchecked", "note")


def test_a_statement_of_our_own_is_compared_with_nobody():
    mine = book(row("2026-11-01", "0.10", basis="declared", read_on="2026-01-01"))
    assert found(says(row("2026-01-01")), mine=mine) == []
