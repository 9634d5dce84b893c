"""Hard budgets and prices: what cannot be counted is not put in force, whatever is set here."""

from __future__ import annotations

import pytest

from gateway.bundle import Bundle, load
from gateway.policy.source import ConfigErrors
from tests.unit.policy.test_lint import (
    API_ROW,
    CATALOG,
    HOME_ROW,
    HOST_ROW,
    LIMITS,
    POLICY,
    PRICES,
    edited,
)

EMBED_ROW = PRICES.splitlines(keepends=True)[5]
ONLY_CHAT = edited(LIMITS, "per: team", "per: team\n    match: {alias: [chat]}")
NOT_CHAT = PRICES.replace(HOME_ROW, "").replace(HOST_ROW, "").replace(API_ROW, "")


def loaded(prices: str = PRICES, limits: str = LIMITS, catalog: str = CATALOG) -> Bundle:
    texts = {
        "catalog.yaml": catalog,
        "prices/p.yaml": prices,
        "limits.yaml": limits,
        "routing/p.yaml": POLICY,
    }
    return load(texts, secret_present=lambda _: False)


def refused(**files: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        loaded(**files)
    return str(caught.value)


def test_a_hard_budget_over_an_alias_without_any_price_is_refused_with_its_place() -> None:
    assert refused(prices=NOT_CHAT, limits=ONLY_CHAT) == (
        "limits.yaml:6:10: limits[0].usd: no target of chat has a price: a hard budget cannot count"
        " it, so every request would be refused; add rows to prices/, name other aliases in match,"
        " or say at_limit: route"
    )
    assert "no target of embed has" in refused(prices=edited(PRICES, EMBED_ROW, ""))


def test_seconds_are_no_price_of_tokens() -> None:
    seconds = EMBED_ROW.replace('input_usd_per_mtok: "1", input_only: true', 'usd_per_second: "1"')
    assert "no target of embed has" in refused(prices=edited(PRICES, EMBED_ROW, seconds))


@pytest.mark.parametrize(
    "files",
    [
        {"limits": ONLY_CHAT, "prices": PRICES.replace(EMBED_ROW, "")},  # another alias
        {"limits": ONLY_CHAT, "prices": NOT_CHAT + HOST_ROW},  # somebody is left
        {"limits": ONLY_CHAT, "prices": NOT_CHAT + HOST_ROW.replace("2026-01-01", "2999-01-01")},
        {"limits": ONLY_CHAT + "    at_limit: route\n", "prices": NOT_CHAT},
        {"limits": ONLY_CHAT.replace('usd: "50"', "tokens: 5000"), "prices": NOT_CHAT},
    ],
)  # fmt: skip
def test_what_some_price_counts_or_nobody_must_count_loads(files: dict[str, str]) -> None:
    assert loaded(**files).limits


def test_a_secret_that_is_not_set_here_makes_no_difference_and_a_switch_does() -> None:
    secret = edited(CATALOG, "    kind: closed_api\n", "    secret: env:K\n    kind: closed_api\n")
    assert loaded(catalog=secret, limits=ONLY_CHAT, prices=NOT_CHAT + API_ROW).limits
    off = secret.replace("kind: closed_api\n", "kind: closed_api\n    enabled: false\n")
    assert "no target of chat has" in refused(
        catalog=off, limits=ONLY_CHAT, prices=NOT_CHAT + API_ROW
    )
