"""What a route requires of terms and licence: a table, and that nothing unknown satisfies."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from gateway.domain.catalog import DataTerms, Kind, Model
from gateway.policy.language import Terms
from gateway.policy.terms import unmet
from tests.unit.policy.worlds import backend

GOOD = DataTerms(
    region="eu",
    retention_days=0,
    trains_on_data=False,
    subprocessors=("acme",),
    certifications=("ISO 27001", "SOC 2"),
)
LICENSED = Model(name="m", licence="MIT")
STRICT = Terms(
    regions=frozenset({"eu", "ch"}),
    retention_days_max=0,
    no_training=True,
    certifications=frozenset({"SOC 2"}),
    subprocessors_allowed=frozenset({"acme", "other"}),
    licences=frozenset({"MIT"}),
)


def said(required: Terms, data: DataTerms, model: Model = LICENSED, kind=Kind.MANAGED):
    return unmet(required, backend("a", kind, data=data), model)


def test_all_can_be_met():
    assert said(STRICT, GOOD) is None
    assert said(Terms(), DataTerms(), Model(name="m")) is None


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        ({"region": None}, {}, "the region is not stated, asked for is ch, eu"),
        ({"region": "us"}, {}, "the region is us, not ch, eu"),
        ({"retention_days": None}, {}, "how long it keeps data is not stated, at most 0 days are asked for"),
        ({"retention_days": 1}, {}, "keeps data for 1 days, at most 0 are asked for"),
        ({"trains_on_data": None}, {}, "whether it trains on data is not stated"),
        ({"trains_on_data": True}, {}, "trains on data"),
        ({"certifications": ()}, {}, "not certified for SOC 2"),
        ({"subprocessors": ()}, {}, "the sub-processors are not stated"),
        ({"subprocessors": ("acme", "evil")}, {}, "passes data on to evil"),
        ({}, {"licence": None}, "the licence is not stated, asked for is MIT"),
        ({}, {"licence": "GPL-3.0"}, "the licence is GPL-3.0, not MIT"),
    ],
)  # fmt: skip
def test_each_term_is_told(data, model, words):
    assert said(STRICT, replace(GOOD, **data), replace(LICENSED, **model)) == words


@pytest.mark.parametrize("term", [f.name for f in fields(Terms)])
def test_what_is_not_stated_satisfies_no_term(term):
    only = Terms(**{term: getattr(STRICT, term)})
    assert said(only, GOOD) is None
    assert said(only, DataTerms(), Model(name="m")) is not None


def test_our_own_machines_pass_nothing_on_unless_they_say_so():
    only = Terms(subprocessors_allowed=frozenset())
    assert said(only, DataTerms(), kind=Kind.SELF_HOSTED) is None
    assert said(only, GOOD, kind=Kind.SELF_HOSTED) == "passes data on to acme"
