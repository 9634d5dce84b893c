"""Holds of money: no bill within the held token counts is above them, whatever is on the list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.domain.limit import Unit
from gateway.domain.money import Meter, Rates, Tier, Unpriced
from gateway.domain.rating import charge
from gateway.domain.request import Capability, Usage
from gateway.limits import LimitIndex
from tests.unit.test_limits import CALLER, OFF, OPEN, OWN, catalog, limit, request

_OF_THE_PROMPT = (
    Meter.CACHE_WRITE_5M,
    Meter.CACHE_WRITE_1H,
    Meter.INPUT_IMAGE,
    Meter.INPUT_AUDIO,
    Meter.CACHE_READ_AUDIO,
)
_OF_THE_OUTPUT = (Meter.OUTPUT_IMAGE, Meter.OUTPUT_AUDIO)
_SOUNDS = frozenset({Meter.INPUT_AUDIO, Meter.CACHE_READ_AUDIO, Meter.OUTPUT_AUDIO})


class Dice:
    """Draws price lists and bills."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def price(self) -> Decimal:
        return Decimal(self.random.randint(0, 10**10)).scaleb(-self.random.randint(3, 9))

    def flat(self) -> Rates:
        extra = (*_OF_THE_PROMPT, *_OF_THE_OUTPUT, Meter.REASONING, Meter.REQUEST)
        return Rates(
            id="r",
            input=self.price(),
            output=self.price(),
            cached_input=self.price() if self.chance(0.5) else None,
            others={meter: self.price() for meter in extra if self.chance(0.4)},
        )

    def scale(self) -> Rates:
        bounds = sorted({self.random.randint(1, 2000) for _ in range(self.random.randint(0, 3))})
        tiers = tuple(Tier(bound, self.flat()) for bound in bounds)
        return replace(self.flat(), tiers=tiers, marginal=bool(tiers) and self.chance(0.5))

    def rates(self) -> Rates:
        tiers = {name: self.scale() for name in ("flex", "priority") if self.chance(0.5)}
        return replace(self.scale(), service_tiers=tiers)

    def parts(self, whole: int, count: int) -> list[int]:
        cuts = sorted(self.random.randint(0, whole) for _ in range(count - 1))
        return [b - a for a, b in zip((0, *cuts), (*cuts, whole), strict=True)]

    def usage(self, prompt: int, output: int, tier: str | None, *, sounds: bool) -> Usage:
        """Of at most so many tokens, spread over any meters."""
        prompt, output = self.random.randint(0, prompt), self.random.randint(0, output)
        of_prompt = [m for m in _OF_THE_PROMPT if sounds or m not in _SOUNDS]
        of_output = [m for m in _OF_THE_OUTPUT if sounds or m not in _SOUNDS]
        uncached, cached, *beside = self.parts(prompt, 2 + len(of_prompt))
        said, *made = self.parts(output, 1 + len(of_output))
        counted = zip((*of_prompt, *of_output), (*beside, *made), strict=True)
        return Usage(
            uncached,
            cached,
            said,
            self.random.randint(0, said),
            others={meter: n for meter, n in counted if n and self.chance(0.7)},
            service_tier=tier if self.chance(0.7) else None,
        )


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_no_bill_within_the_held_tokens_is_above_the_hold(seed: int) -> None:
    dice = Dice(seed)
    table: Mapping[Target, Rates] = {OPEN: dice.rates(), OWN: dice.rates()}
    tier = dice.random.choice((None, None, "flex", "priority", "scale"))
    prompt, output, sounds = (
        dice.random.randint(0, 3000),
        dice.random.randint(1, 2000),
        dice.chance(0.3),
    )
    asked = request(
        prompt_tokens=prompt,
        output_tokens_max=output,
        service_tier=tier,
        needs=frozenset({Capability.AUDIO} if sounds else ()),
    )
    (ask,) = LimitIndex((limit(Unit.USD),), catalog(), table).asks_for(CALLER, asked)
    for rates in table.values():
        for _ in range(5):
            usage = dice.usage(prompt, output, tier, sounds=sounds)
            try:
                _, nano = charge(rates, usage)
            except Unpriced:
                continue  # then the hold stays
            assert nano <= ask.amount


def held(rates: Rates, **more: Any) -> int:
    asked = request(**{"prompt_tokens": 1000, "output_tokens_max": 10, **more})
    (ask,) = LimitIndex((limit(Unit.USD),), catalog(), {OPEN: rates}).asks_for(CALLER, asked)
    return ask.amount


BASE = Rates(id="r", input=Decimal(1), output=Decimal(2))


@pytest.mark.parametrize(
    ("prompt", "price"),
    [(100, 1), (666, 1), (667, 3), (1000, 3), (1333, 3), (1334, 7), (9000, 7)],
)
def test_a_prompt_may_be_longer_than_its_estimate_by_half(prompt: int, price: int) -> None:
    tiers = tuple(
        Tier(bound, replace(BASE, input=Decimal(usd))) for bound, usd in ((1000, 3), (2000, 7))
    )
    assert held(replace(BASE, tiers=tiers), prompt_tokens=prompt) == prompt * price * 1000 + 20_000


def test_cached_input_that_costs_more_than_input_is_the_worst() -> None:
    assert held(replace(BASE, cached_input=Decimal("1.5"))) == 1000 * 1500 + 20_000


def test_what_is_not_configured_or_not_priced_costs_nothing_here() -> None:
    index = LimitIndex((limit(Unit.USD),), catalog(), {OFF: BASE})
    assert index.asks_for(CALLER, request())[0].amount == 0


def test_longer_prompts_that_cost_less_are_held_at_what_shorter_ones_cost() -> None:
    cheaper = replace(BASE, tiers=(Tier(100, replace(BASE, input=Decimal("0.5"))),))
    assert held(cheaper) == held(BASE)


def test_a_cache_may_be_written_without_being_asked_to() -> None:
    written = {Meter.CACHE_WRITE_5M: Decimal("1.25"), Meter.CACHE_WRITE_1H: Decimal(2)}
    assert held(replace(BASE, others=written)) == 1000 * 2000 + 20_000


def test_sounds_are_held_for_where_there_are_some() -> None:
    sounds = replace(BASE, others={Meter.INPUT_AUDIO: Decimal(40), Meter.OUTPUT_AUDIO: Decimal(80)})
    assert held(sounds) == held(BASE)
    heard = held(sounds, needs=frozenset({Capability.AUDIO}))
    assert heard == 1000 * 40_000 + 10 * 80_000


def test_a_request_has_its_own_price() -> None:
    assert held(replace(BASE, others={Meter.REQUEST: Decimal(5)})) == held(BASE) + 5_000_000


@pytest.mark.parametrize(("tier", "price"), [(None, 1), ("flex", 1), ("priority", 4), ("scale", 1)])
def test_the_dearer_of_the_standard_tier_and_the_one_asked_for(
    tier: str | None, price: int
) -> None:
    priced = {"flex": Decimal("0.5"), "priority": Decimal(4)}
    tiers = {name: replace(BASE, input=usd) for name, usd in priced.items()}
    rates = replace(BASE, service_tiers=tiers)
    assert held(rates, service_tier=tier) == 1000 * price * 1000 + 20_000
