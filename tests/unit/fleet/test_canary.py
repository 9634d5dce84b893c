"""When a canary is taken back, when not, and that it stays so."""

from __future__ import annotations

import pytest

from gateway.fleet.canary import Canaries
from gateway.policy.language import Canary

RULE = Canary(backends=frozenset({"new"}), share=0.1, error_share_max=0.1, samples_min=20)
COSTLY = Canary(backends=frozenset({"new"}), share=0.1, cost_ratio_max=1.5, samples_min=20)


class Place:
    def __init__(self, rule: Canary = RULE, digest: str = "d1") -> None:
        self.counted: list[tuple[str, str]] = []
        self.told: list[tuple[str, str]] = []
        self.canaries = Canaries(lambda *what: self.counted.append(what))
        self.canaries.on_told = lambda *what: self.told.append(what)
        self.canaries.adopt(digest, {"r": rule})
        self.digest = digest

    def end(self, count: int, *, canary: bool, failed: bool = False, cost: int | None = 1) -> None:
        for _ in range(count):
            self.canaries.ended("r", self.digest, canary=canary, failed=failed, cost_nano_usd=cost)

    @property
    def gone(self) -> bool:
        return self.canaries.reverted() == {"r"}


def test_it_is_taken_back_at_the_stated_count_and_share_and_not_before() -> None:
    place = Place()
    place.end(100, canary=False)
    place.end(3, canary=True, failed=True)
    place.end(RULE.samples_min - 4, canary=True)
    assert not place.gone
    place.end(1, canary=True)  # 3 of 20 > 10 %
    assert place.gone
    assert place.counted == place.told == [("d1", "r")]


def test_a_share_at_the_limit_is_allowed() -> None:
    place = Place()
    place.end(2, canary=True, failed=True)
    place.end(18, canary=True)
    assert not place.gone


@pytest.mark.parametrize(("others_failed", "gone"), [(30, False), (0, True)])
def test_what_strikes_the_others_alike_is_not_its_doing(others_failed: int, gone: bool) -> None:
    place = Place()
    place.end(others_failed, canary=False, failed=True)
    place.end(30 - others_failed, canary=False)
    place.end(25, canary=True, failed=True)
    assert place.gone is gone


def test_a_good_past_does_not_outweigh_a_bad_hour() -> None:
    place = Place()
    place.end(10_000, canary=True)
    place.end(10_000, canary=False)
    place.end(2 * RULE.samples_min, canary=True, failed=True)
    assert place.gone


def test_costs_are_compared_as_means_over_enough_of_both() -> None:
    place = Place(COSTLY)
    place.end(50, canary=True, cost=1501)
    place.end(19, canary=False, cost=1000)
    place.end(10, canary=False, cost=None)
    place.end(1, canary=True, cost=1501)
    assert not place.gone  # nineteen others have a price
    place.end(1, canary=False, cost=1000)
    place.end(1, canary=True, cost=1501)
    assert place.gone


def test_costs_within_the_ratio_and_unpriced_ones_are_no_reason() -> None:
    place = Place(COSTLY)
    place.end(100, canary=False, cost=1000)
    place.end(100, canary=True, cost=1500)
    assert not place.gone
    place.end(100, canary=True, cost=None)
    assert not place.gone


def test_it_stays_so_for_the_digest_and_for_no_other() -> None:
    place = Place()
    place.end(25, canary=True, failed=True)
    place.canaries.adopt("d2", {"r": RULE})
    assert not place.gone
    place.canaries.adopt("d1", {"r": RULE})
    assert place.gone
    place.end(100, canary=True)
    assert place.gone
    assert place.counted == place.told == [("d1", "r")]


def test_what_was_decided_by_another_policy_does_not_count() -> None:
    place = Place()
    for _ in range(50):
        place.canaries.ended("r", "d0", canary=True, failed=True, cost_nano_usd=1)
        place.canaries.ended("other", "d1", canary=True, failed=True, cost_nano_usd=1)
    assert place.canaries.reverted() == frozenset()


def test_what_others_took_back_is_counted_once_and_not_told_on() -> None:
    place = Place()
    for _ in range(3):
        place.canaries.heard("d1", "r")
        place.canaries.heard("d9", "r")
    assert place.gone
    assert (place.counted, place.told) == ([("d1", "r")], [])
    assert place.canaries.gone == {("d1", "r"), ("d9", "r")}
