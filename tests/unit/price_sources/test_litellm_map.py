"""litellm's map, read from its file: exact or not at all, and litellm itself is not imported."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from decimal import Decimal

import pytest

from gateway.domain.catalog import Target
from gateway.price_sources.litellm_map import LitellmMap
from gateway.price_sources.offers import Condition, Offer

TODAY = dt.date(2026, 11, 24)
TARGET = Target("b", "m")


@pytest.fixture(scope="module")
def table() -> LitellmMap:
    return LitellmMap(zero=True)


def told(table: LitellmMap, **entry: object) -> Offer:
    return table.told(TARGET, "m", {key: str(value) for key, value in entry.items()}, TODAY)


def test_litellm_is_not_imported():
    code = (
        "from gateway.price_sources.litellm_map import LitellmMap\n"
        "import sys; LitellmMap(); assert 'litellm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_floats_are_taken_by_their_text(table):
    offer = told(table, input_cost_per_token="1e-07", output_cost_per_token="5.5e-07")
    assert offer.said[0].figures[Condition()] == {
        "input_usd_per_mtok": "0.10",
        "output_usd_per_mtok": "0.55",
    }


def test_what_is_not_exact_in_nine_digits_is_refused(table):
    offer = told(table, input_cost_per_token="2.9999900000000002e-06", output_cost_per_token="1e-6")
    assert offer.said[0].row is None
    assert offer.said[0].why_not == "2.9999900000000002 has more than 9 digits after the point"


def test_bounds_and_service_tiers_are_conditions(table):
    entry = {
        "input_cost_per_token": "2e-06",
        "output_cost_per_token": "1e-05",
        "input_cost_per_token_above_272k_tokens": "4e-06",
        "output_cost_per_token_above_272k_tokens": "1.5e-05",
        "input_cost_per_token_batches": "1e-06",
        "output_cost_per_token_batches": "5e-06",
        "input_cost_per_token_above_272k_tokens_batches": "2e-06",
        "output_cost_per_token_above_272k_tokens_batches": "7.5e-06",
        "input_cost_per_token_flex": "1e-06",
    }
    offer = told(table, **entry)
    row = offer.said[0].row
    assert row is not None
    assert [(t.above_prompt_tokens, t.output_usd_per_mtok) for t in row.long_prompts] == [
        (272_000, "15.00")
    ]
    (batch,) = row.when  # flex does not say its output: half a tier would be a guess
    assert batch.service_tier == "batch"
    assert batch.long_prompts[0].input_usd_per_mtok == "2.00"
    assert "flex, of which it does not say every price" in offer.left_out


def test_nothing_is_guessed_for_long_prompts(table):
    offer = told(
        table,
        input_cost_per_token="2e-06",
        cache_read_input_token_cost="2e-07",
        output_cost_per_token="1e-05",
        input_cost_per_token_above_200k_tokens="4e-06",
        output_cost_per_token_above_200k_tokens="1.5e-05",
    )
    assert offer.said[0].row is None
    assert offer.said[0].why_not == "does not say cached_input_usd_per_mtok for over 200,000 tokens"


@pytest.mark.parametrize(("date", "said"), [("2026-12-24", "ends"), ("2026-01-01", "ended")])
def test_a_model_that_ends_soon_says_so(table, date, said):
    assert told(table, input_cost_per_token="1e-6", deprecation_date=date).deprecated == (
        f"it says the model {said} on {date}"
    )


def test_a_model_that_ends_later_does_not(table):
    entry = {"input_cost_per_token": "1e-6", "deprecation_date": "2028-03-11"}
    assert told(table, **entry).deprecated == ""


def test_every_row_it_makes_says_what_the_file_says(table):
    """By the file's own arithmetic: dollars per token times tokens."""
    checked = 0
    for name, entry in table.models.items():
        said = table.told(TARGET, name, entry, TODAY).said[0]
        if said.row is None or "input_cost_per_token" not in entry:
            continue
        theirs = Decimal(entry["input_cost_per_token"]) * 1_000_000
        assert Decimal(said.row.input_usd_per_mtok or "-1") == theirs, name
        if said.row.output_usd_per_mtok is not None:
            out = Decimal(entry["output_cost_per_token"]) * 1_000_000
            assert Decimal(said.row.output_usd_per_mtok) == out, name
        checked += 1
    assert checked > 2_000


def test_a_model_is_found_under_its_vendor_only(table):
    assert table.offer(Target("openai", "gpt-6-sol"), "openai", TODAY) is not None
    assert table.offer(Target("mine", "gpt-6-sol"), "fireworks_ai", TODAY) is None
    claude = table.offer(Target("vertex", "claude-sonnet-5-5"), "vertex_ai", TODAY)
    assert claude is not None
    assert claude.called == "vertex_ai/claude-sonnet-5-5"
    found = table.offer(Target("bedrock", "us.amazon.nova-lite-v1:0"), "bedrock", TODAY)
    assert found is not None
    assert found.called == "us.amazon.nova-lite-v1:0"
