"""genai-prices' data, imported, costs exactly what the package itself computes."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices import Usage
from genai_prices.types import (
    ClauseEquals,
    ModelInfo,
    ModelPrice,
    Provider,
    TieredPrices,
)

from gateway.domain.catalog import Kind, Target
from gateway.domain.money import Meter, rate
from gateway.ledger.price_file import instant
from gateway.ledger.prices import PriceBook, load_prices
from gateway.policy.catalog import load_catalog
from gateway.price_sources import shelf
from gateway.price_sources.genai import GenaiPrices
from gateway.price_sources.offers import Condition, Offer
from gateway.price_sources.providers import names
from gateway.price_sources.timeline import changes

POLICIES = Path(__file__).parents[3] / "policies"
TODAY = dt.date(2026, 11, 24)
SOURCE = GenaiPrices(zero=True)
EVERY = [(vendor, model) for vendor in SOURCE.providers.values() for model in vendor.models]
CONTEXT = {"batch": {"processing": "batch"}}


def imported(offer: Offer) -> PriceBook:
    """Written to a file and read again, as an import does it."""
    dated = [one.since for one in offer.said if one.since is not None]
    first = dt.date.fromisoformat(dated[0]) if dated else TODAY
    made = changes(offer, PriceBook({}), day=first - dt.timedelta(days=1))
    lines = [line for c in made if c.row is not None for line in shelf.written(c.row)]
    text = shelf.HEADER + "".join(f"  {line}\n" for line in lines)
    return load_prices([("imported.yaml", text)])


def priced(prices: ModelPrice) -> set[str]:
    return {key for key, value in vars(prices).items() if value is not None}


def usages(prices: ModelPrice) -> list[dict[Meter, int]]:
    """Requests that use what has a price, on both sides of each bound."""
    known = priced(prices)
    writes = "cache_write_mtok" in known or "cache_write_5m_mtok" in known
    parts = {
        Meter.CACHE_READ: 301,
        Meter.CACHE_WRITE_5M: 203,
        Meter.CACHE_WRITE_1H: 107 if not writes or "cache_write_1h_mtok" in known else 0,
        Meter.INPUT_AUDIO: 53 if "input_audio_mtok" in known else 0,
        Meter.OUTPUT: 997 if "output_mtok" in known else 0,
        Meter.REASONING: 211 if "output_mtok" in known else 0,
        Meter.SEARCH_CALL: 3 if "web_searches_kcount" in known else 0,
    }
    tiers = [value.tiers for value in vars(prices).values() if isinstance(value, TieredPrices)]
    bounds = {tier.start for some in tiers for tier in some}
    totals = [1_009, *sorted(total for bound in bounds for total in (bound, bound + 1))]
    used = sum(parts[m] for m in list(parts)[:4])
    return [{**parts, Meter.INPUT: max(0, total - used)} for total in totals]


def theirs(used: dict[Meter, int]) -> Usage:
    prompt = sum(used[m] for m in (Meter.INPUT, Meter.CACHE_READ, Meter.INPUT_AUDIO))
    five, hour = used[Meter.CACHE_WRITE_5M], used[Meter.CACHE_WRITE_1H]
    return Usage(
        input_tokens=prompt + five + hour,
        cache_read_tokens=used[Meter.CACHE_READ],
        cache_write_tokens=five + hour,
        cache_write_5m_tokens=five,
        cache_write_1h_tokens=hour,
        input_audio_tokens=used[Meter.INPUT_AUDIO],
        cache_audio_read_tokens=0,
        output_tokens=used[Meter.OUTPUT] + used[Meter.REASONING],
        output_reasoning_tokens=used[Meter.REASONING],
        web_searches=used[Meter.SEARCH_CALL],
    )


def moments(offer: Offer, book: PriceBook) -> list[dt.datetime]:
    """Edges of days and hours at which something begins, and the minutes before."""
    row = book.rows[offer.target]
    found = {at for one in row for at in (one.from_us, one.from_us + 86_400_000_000 - 1)}
    for one in row:
        turns = sorted(one.turns())
        found |= {one.from_us + turn * 60_000_000 + d for turn in turns for d in (-1, 0)}
        found |= {one.from_us + 86_400_000_000 + turn * 60_000_000 for turn in turns}
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return [epoch + dt.timedelta(microseconds=at) for at in sorted(found) if at >= row[0].from_us]


def compared(vendor: Provider, model: ModelInfo) -> int:
    """How many requests cost the same to the last digit; fails at the first that does not."""
    target = Target("theirs", model.id)
    offer = SOURCE.told(target, vendor, model, TODAY)
    if any(one.row is None for one in offer.said):
        return 0
    book, count = imported(offer), 0
    for at in moments(offer, book):
        rates = book.rates(target, instant(at))
        assert rates is not None
        for tier in (None, *rates.service_tiers):
            context = CONTEXT.get(tier or "", {"service_tier": tier}) if tier else None
            if tier == "fast" and vendor.id != "openai":
                context = {"speed": "fast"}
            prices = model.get_prices(at, context)
            if not priced(prices) <= EXACT:
                continue
            for used in usages(prices):
                ours = rate(rates, used, service_tier=tier).exact.scaleb(-9)
                said = model.calc_price(
                    theirs(used),
                    vendor,
                    genai_request_timestamp=at,
                    price_context=context,
                ).total_price
                assert ours == said, (vendor.id, model.id, at, tier, used)
                assert isinstance(ours, Decimal)
                count += 1
    return count


# What the requests above use; a model with other prices is compared where it is imported by them.
EXACT = {
    "input_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_5m_mtok",
    "cache_write_1h_mtok", "output_mtok", "output_reasoning_mtok", "web_searches_kcount",
    "storage_searches_kcount", "input_audio_mtok", "cache_audio_read_mtok",
}  # fmt: skip


def of_the_catalog() -> list[tuple[Provider, ModelInfo]]:
    text = (POLICIES / "catalog.yaml").read_text()
    catalog = load_catalog(text, source="catalog.yaml", secret_present=lambda _: True)
    found = []
    for backend in catalog.backends.values():
        provider = names(backend, {}).genai
        if backend.kind is Kind.SELF_HOSTED or provider is None:
            continue
        for name in backend.models:
            if (model := SOURCE.providers[provider].find_model(name)) is not None:
                found.append((SOURCE.providers[provider], model))
    return found


@pytest.mark.parametrize("pair", of_the_catalog(), ids=lambda pair: f"{pair[0].id}/{pair[1].id}")
def test_every_model_of_our_catalog_costs_what_the_package_computes(pair):
    assert compared(*pair) > 0


def test_so_does_every_model_of_its_whole_data_that_our_meters_can_express():
    counts = [compared(vendor, model) for vendor, model in EVERY]
    assert sum(bool(count) for count in counts) > 0.85 * len(EVERY)
    assert sum(counts) > 5_000


def test_so_do_all_whose_prices_differ_by_the_hour():
    found = [
        (vendor, model)
        for vendor, model in EVERY
        if isinstance(model.prices, list)
        and any("Time" in repr(p.constraint) for p in model.prices)
    ]
    assert len(found) == 5
    assert all(compared(vendor, model) >= 8 for vendor, model in found)


def test_what_is_announced_begins_on_its_day():
    vendor = SOURCE.providers["google"]
    offer = SOURCE.offer(Target("google", "gemini-3.8-flash"), "google", TODAY)
    assert offer is not None
    assert vendor.find_model("gemini-3.8-flash") is not None
    assert [one.since for one in offer.said] == [None, "2026-10-14", "2027-01-01"]
    assert offer.at(TODAY) is offer.said[1]
    assert Offer(target=offer.target, source="s", called="m", said=offer.said[2:]).at(TODAY) is None
    assert offer.at(dt.date(2027, 1, 1)) is offer.said[2]


def model(prices: object, **others: object) -> ModelInfo:
    return ModelInfo(id="m", match=ClauseEquals(equals="m"), prices=prices, **others)


def told(made: ModelInfo, *, zero: bool = False) -> Offer:
    vendor = Provider(id="v", name="V", api_pattern="x", models=[made])
    return GenaiPrices(zero=zero).told(Target("b", "m"), vendor, made, TODAY)


def test_more_than_nine_digits_are_no_price():
    (said,) = told(model(ModelPrice(input_mtok=Decimal("0.18000000000000002")))).said
    assert said.row is None
    assert said.why_not == "0.18000000000000002 has more than 9 digits after the point"


def test_a_price_of_nothing_is_taken_only_where_it_is_meant():
    free = model(ModelPrice(input_mtok=Decimal(0), output_mtok=Decimal(0)))
    (said,) = told(free).said
    assert said.row is None
    assert said.why_not.startswith("says 0 for input_usd_per_mtok (standard)")
    (said,) = told(free, zero=True).said
    assert said.row is not None
    assert said.row.free


def test_an_output_of_nothing_beside_input_that_costs_is_an_embedding():
    (said,) = told(model(ModelPrice(input_mtok=Decimal("0.02"), output_mtok=Decimal(0)))).said
    assert said.row is not None
    assert said.row.input_only
    assert said.row.output_usd_per_mtok is None


def test_what_has_no_meter_is_left_out_and_said():
    offer = told(
        model(
            ModelPrice(
                input_mtok=Decimal(1),
                output_mtok=Decimal(2),
                storage_searches_kcount=Decimal("2.5"),
            )
        )
    )
    assert offer.left_out == ("storage_searches_kcount 2.5",)
    assert offer.said[0].row is not None


def test_audio_by_the_hour_is_by_the_second_where_that_is_exact():
    (said,) = told(model(ModelPrice(input_audio_hours=Decimal("0.36")))).said
    assert said.figures[Condition()] == {"usd_per_second": "0.0001"}
    (said,) = told(model(ModelPrice(input_audio_hours=Decimal("0.04")))).said
    assert said.why_not == "input_audio_hours 0.04 is not exact by the second"


def test_a_deprecated_model_says_so():
    assert told(model(ModelPrice(input_mtok=Decimal(1)), deprecated=True)).deprecated
