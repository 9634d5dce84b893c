"""The limits file: what it means, and every mistake in the words and place it is told."""

from __future__ import annotations

import jsonschema
import pytest

from gateway.domain.catalog import Alias, Catalog
from gateway.domain.limit import AtLimit, Limit, Outage, Period, Unit
from gateway.policy.limits import LimitsFile, load_limits, schema
from gateway.policy.source import ConfigErrors, read

ALIASES = ("chat-small", "chat-large")
CATALOG = Catalog(
    privacy_classes=("public",),
    backends={},
    aliases={name: Alias(name=name, targets=()) for name in ALIASES},
    digest="",
)


def load(*entries: str) -> tuple[Limit, ...]:
    text = "version: 1\nlimits:\n" + "".join(f"  - {entry}\n" for entry in entries)
    return load_limits(text, source="l.yaml", catalog=CATALOG)


def told(*entries: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(*entries)
    return str(caught.value).splitlines()


def test_a_limit_means_what_it_says() -> None:
    (limit,) = load(
        "{name: search-month, per: team, match: {team: [search, ads], alias: [chat-small]},"
        ' usd: "500.25", every: month, zone: Europe/Berlin, at_limit: route, on_outage: allowance,'
        " hold_output_tokens: 1000, alert_shares: [1.0, 0.8]}"
    )
    assert limit == Limit(
        name="search-month",
        per="team",
        unit=Unit.USD,
        amount=500_250_000_000,
        period=Period.MONTH,
        zone="Europe/Berlin",
        match={"team": frozenset({"search", "ads"}), "alias": frozenset({"chat-small"})},
        at_limit=AtLimit.ROUTE,
        outage=Outage.ALLOWANCE,
        hold_output_tokens=1000,
        alert_shares=(0.8, 1.0),
    )


def test_money_fails_closed_and_rates_go_on_unless_told_otherwise() -> None:
    money, rate, at_once = load(
        '{name: a, per: key, usd: "1", every: day}',
        "{name: b, per: key, requests: 60, every: minute}",
        "{name: c, per: key, concurrent: 4}",
    )
    assert (money.outage, rate.outage, at_once.outage) == (
        Outage.REFUSE,
        Outage.ALLOWANCE,
        Outage.ALLOWANCE,
    )
    assert (rate.zone, at_once.period, money.hold_output_tokens) == ("UTC", None, 4096)


MISTAKES = {
    "{name: a, per: key, every: day}": (
        "l.yaml:3:5: limits[0]: limits nothing; give one of: requests, tokens, usd, concurrent"
    ),
    '{name: a, per: key, usd: "5", tokens: 1, every: day}': (
        "l.yaml:3:25: limits[0].usd: beside tokens; a limit counts one thing; make it two limits"
    ),
    "{name: a, per: key, usd: 5.5, every: day}": (
        "l.yaml:3:30: limits[0].usd: expected text, not the number 5.5; quote it"
    ),
    '{name: a, per: key, usd: "0.1234567891", every: day}': (
        "l.yaml:3:30: limits[0].usd: '0.1234567891' is not an amount; "
        'write dollars in quotes, like "500"'
    ),
    '{name: a, per: key, usd: "9000001", every: day}': (
        "l.yaml:3:30: limits[0].usd: must be more than 0 and at most 9000000"
    ),
    '{name: a, per: key, usd: "0", every: day}': (
        "l.yaml:3:30: limits[0].usd: must be more than 0 and at most 9000000"
    ),
    "{name: a, per: key, tokens: 5}": (
        "l.yaml:3:5: limits[0]: missing key 'every'; one of: minute, hour, day, week, month"
    ),
    "{name: a, per: key, tokens: 5, every: year}": (
        "l.yaml:3:43: limits[0].every: unknown value 'year'; one of: minute, hour, day, week, month"
    ),
    "{name: a, per: key, concurrent: 5, every: day}": (
        "l.yaml:3:40: limits[0].every: contradicts concurrent: at once has no period"
    ),
    "{name: a, per: key, tokens: 5, every: minute, zone: UTC}": (
        "l.yaml:3:51: limits[0].zone: has a meaning for day, week and month only"
    ),
    "{name: a, per: key, tokens: 5, every: day, zone: Europe/Berln}": (
        "l.yaml:3:54: limits[0].zone: unknown time zone 'Europe/Berln'; "
        "did you mean 'Europe/Berlin'?"
    ),
    "{name: a, per: key, requests: 5, every: hour, alert_shares: [0.5]}": (
        "l.yaml:3:51: limits[0].alert_shares: has a meaning for day, week and month only; "
        "what starts anew all the time would alert all the time"
    ),
    "{name: a, per: key, requests: 5, every: hour, hold_output_tokens: 5}": (
        "l.yaml:3:51: limits[0].hold_output_tokens: has a meaning for tokens and usd only"
    ),
    "{name: a, per: key, requests: 5, every: day, alert_shares: [80]}": (
        "l.yaml:3:65: limits[0].alert_shares[0]: must be at most 1.0"
    ),
    "{name: a, per: keys, concurrent: 5}": "l.yaml:3:20: limits[0].per: 'keys'; did you mean 'key'?",
    "{name: a, per: key, concurrent: 5, match: {alias: [chat-smal]}}": (
        "l.yaml:3:56: limits[0].match.alias[0]: no alias 'chat-smal'; did you mean 'chat-small'?"
    ),
    "{name: a, per: key, concurent: 5}": (
        "l.yaml:3:25: limits[0].concurent: unknown key 'concurent'; did you mean 'concurrent'?"
    ),
    "{name: a, per: key, match: {team: [x, x]}, concurrent: 5}": (
        "l.yaml:3:43: limits[0].match.team[1]: 'x' is listed twice"
    ),
}


@pytest.mark.parametrize("entry", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_what_to_write(entry: str) -> None:
    assert MISTAKES[entry] in told(entry)


def test_a_name_is_given_once() -> None:
    twice = ["{name: a, per: key, concurrent: 5}", "{name: a, per: team, concurrent: 5}"]
    assert told(*twice) == ["l.yaml:4:12: limits[1].name: a second limit named 'a'"]


def test_editors_are_told_of_exactly_one_amount() -> None:
    check = jsonschema.Draft202012Validator(schema())
    entry = {"name": "a", "per": "key", "requests": 1, "every": "day"}
    assert check.is_valid({"version": 1, "limits": [entry]})
    assert not check.is_valid({"version": 1, "limits": [{**entry, "tokens": 1}]})


def test_every_unit_is_a_key_of_the_file() -> None:
    file, _ = read(LimitsFile, "version: 1\nlimits: [{name: a, per: b}]", "")
    assert all(hasattr(file.limits[0], unit.value) for unit in Unit)
