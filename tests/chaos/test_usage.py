"""Usage as vendors state it, through a whole gateway: the ledger's meters, their cost, the metrics.

The audit runs over the rows as an operator's would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from decimal import Decimal

import orjson
import pytest
import pytest_asyncio

from gateway.domain.money import UNIT, Meter
from tests.chaos.audit import Row, audited, check_rows, prices
from tests.chaos.load import Answer, calls, chat, client
from tests.contract.wire_cases import USAGES
from tests.gateway_process import GatewayProcess, gateway_beside, vendor_catalog
from tests.vendor import Script, vendor_in_loop

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("chaos_usage")]

# USD per million tokens, odd, so that a cost that is right is right by no accident.
PRICES = {
    "input_usd_per_mtok": (Meter.INPUT, "1.37"),
    "cached_input_usd_per_mtok": (Meter.CACHE_READ, "0.11"),
    "cache_write_5m_usd_per_mtok": (Meter.CACHE_WRITE_5M, "1.93"),
    "output_usd_per_mtok": (Meter.OUTPUT, "7.39"),
    "audio_input_usd_per_mtok": (Meter.INPUT_AUDIO, "32.57"),
    "audio_output_usd_per_mtok": (Meter.OUTPUT_AUDIO, "64.91"),
}
FLEX = "cached"  # the case whose vendor says that it served the tier flex, at half the price
WORDS = Script(text="one two three four")


@dataclass
class Place:
    running: GatewayProcess
    answers: list[Answer]
    rows: dict[str, Row]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    scripts = {
        name: replace(
            WORDS,
            usage_as=orjson.dumps(told).decode(),
            service_tier="flex" if name == FLEX else "default",
        )
        for name, (told, _) in USAGES.items()
    }
    async with vendor_in_loop(scripts) as vendor:
        catalog = vendor_catalog({"v": f"{vendor.url}/v1"}, aliases={n: [f"v/{n}"] for n in USAGES})
        like = catalog["backends"]["v"]["models"].pop("m")
        catalog["backends"]["v"]["models"] = dict.fromkeys(USAGES, like)
        stated = {key: price for key, (_, price) in PRICES.items()}
        half = {key: str(Decimal(price) / 2) for key, price in stated.items()}
        (row,) = prices("v")["prices"]
        row |= stated | {"when": [{"service_tier": "flex", **half}]}
        book = {"version": 1, "prices": [{**row, "model": name} for name in USAGES]}
        async with gateway_beside(catalog, prices=book) as running:
            asked = [
                (chat(model=name, stream=stream), running.auth)
                for name in USAGES
                for stream in (True, False)
            ]
            answers = await calls(running.url, asked, at_once=4)
            rows = await running.ledger(count=len(asked))
            yield Place(running, answers, {row["id"]: row for row in rows})


async def test_the_ledger_has_every_meter_and_its_cost(place: Place) -> None:
    for number, answer in enumerate(place.answers):
        name = list(USAGES)[number // 2]
        _, metered = USAGES[name]
        assert answer.ok, answer
        (row,) = place.rows[answer.id]["attempts"]
        assert (row["uncached_tokens"], row["cached_tokens"]) == (metered.uncached, metered.cached)
        assert (row["output_tokens"], row["reasoning_tokens"]) == (
            metered.output,
            metered.reasoning,
        )
        assert (row["other_meters"] or {}) == {m.value: n for m, n in metered.others.items()}
        assert row["service_tier"] == ("flex" if name == FLEX else None)
        assert row["usage_source"] == "reported"
        quantity = {
            Meter.INPUT: metered.uncached,
            Meter.CACHE_READ: metered.cached,
            Meter.OUTPUT: metered.output,
            **metered.others,
        }
        usd = sum(
            Decimal(price) * quantity.get(meter, 0) / UNIT[meter]
            for meter, price in PRICES.values()
        ) / (2 if name == FLEX else 1)
        assert row["cost_nano_usd"] == round(usd * 10**9), name
    check_rows(place.rows.values())
    await audited(place.running)


async def test_metrics_count_every_meter_and_what_does_not_add_up(place: Place) -> None:
    async with client(place.running.url) as http:
        page = (await http.get("/metrics")).text
    for name, meter in (("cache_writing", "cache_write_5m"), ("audio", "output_audio")):
        count = 2 * USAGES[name][1].others[Meter(meter)]
        labels = f'backend="v",direction="{meter}",model="{name}"'
        assert f"weighbridge_tokens_total{{{labels}}} {count:.1f}" in page
    odd = 2 * sum(1 for _, metered in USAGES.values() if metered.contradiction)
    assert odd > 0
    assert f'weighbridge_usage_contradictions_total{{backend="v"}} {odd:.1f}' in page
    said = [line for line in place.running.output if "does not add up" in line]
    assert len(said) == odd
    assert all("do not make the total 623" in line for line in said)
