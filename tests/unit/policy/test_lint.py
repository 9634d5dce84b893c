"""Lints: each on a world made for it, told with place, reason and fix; and quiet on a good one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import pytest

from gateway.domain.catalog import Target
from gateway.domain.money import Rates
from gateway.ledger.price_file import instant
from gateway.ledger.prices import load_prices
from gateway.policy.catalog import load_catalog
from gateway.policy.language import load_policy
from gateway.policy.limits import load_limits
from gateway.policy.lint import Sheet, Subject, lint
from gateway.policy.source import ConfigErrors

CATALOG = """\
version: 1
privacy_classes: [public, internal, secret]
aliases:
  chat: {targets: [home/m, host/m, api/m]}
  embed: {targets: [api/e]}
backends:
  home:
    {kind: self_hosted, wire: openai_http, base_url: "http://localhost/v1", cleared_for: secret, data: {source: ours, region: here}, models: {m: {}}}
  host:
    {kind: managed, wire: openai_http, base_url: "https://h/v1", cleared_for: internal, data: {source: theirs}, models: {m: {output_tokens_max: 9000}}}
  api:
    kind: closed_api
    wire: openai_http
    base_url: https://a/v1
    models: {m: {context_tokens: 100000}, e: {endpoints: [embeddings]}}
"""
POLICY = """\
version: 1
name: p
behaviour: {attempts_max: 3, backends_max: 3}
routes:
  - name: guarded
    match: {privacy_at_least: internal}
    prefer: [[home], [host]]
    only: true
default:
  by: cheapest
"""
PRICES = """\
version: 1
prices:
  - {backend: home, model: m, from: 2026-01-01, input_usd_per_mtok: "1", output_usd_per_mtok: "2", source: us, read_on: 2026-11-01}
  - {backend: host, model: m, from: 2026-01-01, input_usd_per_mtok: "1", output_usd_per_mtok: "2", source: list, read_on: 2026-11-01}
  - {backend: api, model: m, from: 2026-01-01, input_usd_per_mtok: "2", output_usd_per_mtok: "10", source: list, read_on: 2026-11-01}
  - {backend: api, model: e, from: 2026-01-01, input_usd_per_mtok: "1", input_only: true, source: list, read_on: 2026-11-01}
"""
LIMITS = """\
version: 1
limits:
  - name: team-day
    per: team
    usd: "50"
    every: day
"""
TODAY = dt.date(2026, 11, 23)
MEANT = frozenset({("embed", 1)})


def told(
    *,
    catalog: str = CATALOG,
    policy: str = POLICY,
    prices: str = PRICES,
    limits: str = "",
    meant: frozenset[tuple[str, int]] = MEANT,
    **changes,
) -> list[str]:
    loaded = load_catalog(catalog, source="catalog.yaml", secret_present=lambda _: True)
    bounds = load_limits(limits, source="limits.yaml", catalog=loaded) if limits else ()
    names = frozenset(limit.name for limit in bounds)
    rates: Mapping[Target, Rates] = load_prices([("prices.yaml", prices)]).in_force(instant(TODAY))
    subject = Subject(
        catalog=loaded,
        policy=load_policy(policy, source="p.yaml", catalog=loaded, limits=names),
        rates=rates,
        today=TODAY,
        catalog_file=Sheet("catalog.yaml", catalog),
        policy_file=Sheet("p.yaml", policy),
        price_files=(Sheet("prices.yaml", prices),),
        limits=bounds,
        limits_file=Sheet("limits.yaml", limits) if limits else None,
        refusals=meant,
        **{"workers": 1, "shared_store": True, **changes},
    )
    return [str(problem) for problem in lint(subject)]


# What the good world has to tell: nobody is cleared for this class of this alias, whatever is done.
USUAL = [
    "catalog.yaml:5:20: note: aliases.embed.targets: nobody may serve internal, secret: cleared for public at most"
]


def extra(**changes) -> list[str]:
    """What a change makes of the good world."""
    assert told() == USUAL
    return [line for line in told(**changes) if line not in USUAL]


def edited(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} stands in one place"
    return text.replace(old, new)


def routes(new: str) -> str:
    """The good policy with one more route after its first."""
    return edited(POLICY, "default:\n", new + "default:\n")


def default(new: str) -> str:
    return edited(POLICY, "  by: cheapest\n", new)


def test_a_good_world_is_quiet():
    assert told() == USUAL


def test_a_route_that_nothing_reaches():
    late = routes("  - name: late\n    match: {privacy_at_least: secret}\n")
    assert extra(policy=late) == [
        "p.yaml:9:11: routes[1].name: never reached: 'guarded' before it takes all that it fits; move it up, or narrow those"
    ]


def test_an_expression_without_a_value_for_some_keys():
    """Every request that gets there would be refused: one careless line stops the company."""

    def only(expression: str, tags: str = "{}") -> str:
        return routes(
            f"  - name: ads\n    match: {{tags: {tags}, expression: '{expression}'}}\n    by: fastest\n"
        )

    assert extra(policy=only('tags["team"] == "ads"')) == [
        (
            "p.yaml:10:35: warning: routes[1].match.expression: has no value for keys without the tag 'team',"
            " and requests for which it has none are refused;"
            ' write "team" in tags && ..., or use tags of match'
        )
    ]
    assert not extra(policy=only('"team" in tags && tags["team"] == "ads"'))
    assert not extra(policy=only('tags["team"] == "ads"', "{team: [ads, web]}"))


def test_an_alias_of_a_route_that_earlier_routes_take():
    policy = routes(
        "  - {name: a, match: {aliases: [embed]}}\n  - {name: b, match: {aliases: [chat, embed]}}\n"
    )
    assert extra(policy=policy) == [
        "p.yaml:10:39: warning: routes[2].match.aliases[1]: no request for 'embed' gets here; 'guarded' and 'a' before it take them"
    ]


def test_a_class_that_nobody_may_serve():
    policy = edited(POLICY, "prefer: [[home], [host]]", "prefer: [[api]]")
    lines = extra(policy=policy)
    assert lines[0] == (
        "p.yaml:5:5: warning: routes[0]: nobody may serve chat as internal: home, host: policy (in no tier, and the route takes no other); api: privacy; let somebody, or say in a test that it is refused"
    )
    assert "nobody may serve chat as secret: home: policy" in lines[1]
    assert lines[2].startswith("p.yaml:7:15: warning: routes[0].prefer[0][0]: api is never used")


def test_a_class_that_nobody_is_cleared_for_is_not_the_policys_doing():
    assert not any("embed as" in line for line in told(meant=frozenset()))


def test_a_policy_is_named_as_its_file():
    """Headers, rows and versions tell the name; files are found by theirs."""
    assert extra(policy=edited(POLICY, "name: p\n", "name: q\n")) == [
        "p.yaml:2:7: warning: name: is q, and the file is called p.yaml; give both one name"
    ]


def test_an_alias_that_cannot_serve_what_is_matched_in_any_class():
    first = "routes:\n  - {name: v, match: {aliases: [embed], needs: [tools]}}\n"
    lines = extra(policy=edited(POLICY, "routes:\n", first))
    assert lines[0] == (
        "p.yaml:5:33: warning: routes[0].match.aliases[0]: no target of 'embed' can serve what the"
        " route matches: capability; take it out, or match less"
    )


def test_an_alias_that_cannot_serve_what_is_matched():
    policy = routes("  - {name: v, match: {aliases: [chat, embed], endpoint: embeddings}}\n")
    assert extra(policy=policy) == [
        "p.yaml:9:33: warning: routes[1].match.aliases[0]: no target of 'chat' can serve what the route matches: endpoint; take it out, or match less"
    ]


def test_a_refusal_that_a_test_wants_is_no_oversight():
    policy = edited(POLICY, "prefer: [[home], [host]]", "prefer: [[host]]")
    (line,) = extra(policy=policy)
    assert "nobody may serve chat as secret: home: policy" in line
    assert extra(policy=policy, meant=MEANT | {("chat", 2)}) == []
    assert extra(policy=policy, meant=MEANT | {("chat", 1)}) == [], "stricter is refused as well"


def test_an_alias_that_nobody_serves_at_all_is_an_error():
    policy = default("  prefer: [[home, host]]\n  only: true\n")
    assert extra(policy=policy) == [
        "p.yaml:10:3: default: nobody may serve embed as public: api: policy (in no tier, and the route takes no other); let somebody, or say in a test that it is refused"
    ]


def test_an_alias_whose_targets_are_all_switched_off():
    catalog = edited(CATALOG, "    kind: closed_api", "    enabled: false\n    kind: closed_api")
    assert told(catalog=catalog)[0] == (
        "catalog.yaml:5:20: warning: aliases.embed.targets: all of them are switched off; set enabled: true"
    )


DEAD = [
    (
        edited(POLICY, "prefer: [[home], [host]]", "prefer: [[home], [host, api]]"),
        "p.yaml:7:29: warning: routes[0].prefer[1][1]: api is never used here: cleared for public at most, and what gets here is internal or more",
    ),
    (
        edited(POLICY, "prefer: [[home], [host]]", "prefer: [[home], [host, closed_api]]"),
        "p.yaml:7:29: note: routes[0].prefer[1][1]: closed_api is never used here: cleared for public at most, and what gets here is internal or more",
    ),
    (
        edited(POLICY, "    only: true", "    canary: {backends: [api], share: 0.1}"),
        "p.yaml:8:24: routes[0].canary.backends: api never gets its share: cleared for public at most, and what gets here is internal or more",
    ),
    (
        edited(POLICY, "    only: true", "    shadow: {backend: api, share: 0.1}"),
        "p.yaml:8:23: routes[0].shadow.backend: api never gets its copies: cleared for public at most, and what gets here is internal or more",
    ),
    (
        routes("  - name: vectors\n    match: {aliases: [embed]}\n    prefer: [[api], [host]]\n"),
        "p.yaml:11:22: warning: routes[1].prefer[1][0]: host is never used here: no alias that gets here has a target there",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "line"), DEAD)
def test_a_backend_that_is_named_and_never_used(policy, line):
    assert line in extra(policy=policy)


def test_a_shadow_may_be_outside_of_the_tiers():
    policy = default(
        "  prefer: [[home, api]]\n  only: true\n  shadow: {backend: host, share: 0.1}\n"
    )
    assert extra(policy=policy) == []


HOME_ROW, HOST_ROW, API_ROW = PRICES.splitlines(keepends=True)[2:5]


def test_a_backend_without_a_price_where_prices_are_compared():
    prices = edited(PRICES, HOST_ROW, "")
    assert extra(prices=prices) == [
        "catalog.yaml:10:122: note: backends.host.models.m: no price for host/m: unpriced, not free; add a row to prices/",
        "p.yaml:10:7: warning: default.by: has no price for host/m: last of their tier, in any order; add a row to prices/, or say own_cost: marginal for machines of your own",
    ]
    assert len(extra(prices=prices, policy=default("  by: fastest\n"))) == 1, "only the note"
    tiers = default("  prefer: [[home], [host], [api]]\n  by: cheapest\n")
    assert len(extra(prices=prices, policy=tiers)) == 1, "alone in its tier it has no rival"


def test_own_machines_need_no_price_where_they_count_as_paid_for():
    prices = edited(PRICES, PRICES.splitlines(keepends=True)[2], "")
    assert len(extra(prices=prices)) == 2
    paid_for = default("  by: cheapest\n  own_cost: marginal\n")
    assert len(extra(prices=prices, policy=paid_for)) == 1


def test_a_price_limit_keeps_out_what_has_no_price():
    lines = extra(prices=edited(PRICES, HOST_ROW, ""), policy=default('  price_max_usd: "0.05"\n'))
    assert lines[1] == (
        "p.yaml:10:18: warning: default.price_max_usd: keeps out host/m: no price is known on 2026-11-23; add a row to prices/"
    )


def test_a_price_from_tomorrow_on_is_no_price_today():
    later = HOST_ROW.replace("from: 2026-01-01", "from: 2026-11-24")
    assert (
        "no price for host/m on 2026-11-23, only later"
        in extra(prices=PRICES.replace(HOST_ROW, later))[0]
    )


def test_a_price_that_nobody_has_looked_at_for_long():
    old = HOST_ROW.replace("read_on: 2026-11-01", "read_on: 2026-05-26")
    assert extra(prices=PRICES.replace(HOST_ROW, old)) == [
        "prices.yaml:4:123: warning: prices[1].read_on: the price of host/m was read 181 days ago; compare it with the vendor's and append a row"
    ]
    assert extra(prices=PRICES.replace(HOST_ROW, old.replace("05-26", "05-27"))) == []
    newer = HOST_ROW.replace("from: 2026-01-01", "from: 2026-02-01")
    assert extra(prices=PRICES.replace(HOST_ROW, old + newer)) == [], "its successor was"


def test_a_price_of_nothing():
    stray = HOST_ROW.replace("backend: host", "backend: hosts")
    assert "prices.yaml:7:5: note: prices[4]: a price for hosts/m, which is not in the catalog" in (
        extra(prices=PRICES + stray)
    )


def test_terms_that_keep_a_backend_out_are_listed():
    policy = default("  require: {regions: [here, there]}\n")
    lines = extra(policy=policy, meant=MEANT | {("embed", 0)})
    assert lines == [
        "p.yaml:10:12: note: default.require: keeps out api, host: the region is not stated, asked for is here, there"
    ]


def test_a_clearance_on_terms_that_nobody_stated():
    catalog = edited(CATALOG, "data: {source: theirs}, ", "")
    assert extra(catalog=catalog) == [
        "catalog.yaml:10:79: warning: backends.host.cleared_for: cleared for internal on terms that nobody stated; name in data.source where they were read, and when"
    ]


def test_a_hedge_without_a_second():
    hedge = "behaviour: {hedge: {after_ms: 500}, "
    policy = edited(POLICY, "behaviour: {", hedge)
    assert extra(policy=policy) == [
        "p.yaml:3:20: note: behaviour.hedge: nobody to hedge with for embed: one backend each"
    ]
    alone = edited(
        policy,
        "  - name: guarded\n    match: {privacy_at_least: internal}",
        "  - name: guarded\n    match: {aliases: [embed]}",
    )
    assert (
        "p.yaml:3:20: warning: behaviour.hedge: nobody to hedge with for embed: one backend each"
        in extra(policy=edited(alone, "    prefer: [[home], [host]]\n    only: true\n", ""))
    )


def test_a_hedge_is_told_where_it_is_written():
    policy = default("  behaviour: {hedge: {after_ms: 500}}\n")
    assert extra(policy=policy)[0].startswith("p.yaml:10:22: note: default.behaviour.hedge: nobody")


def test_a_service_level_that_cannot_be_missed():
    assert extra(policy=default("  slo: {ttft_ms: {p95: 30000}}\n")) == [
        "p.yaml:10:24: warning: default.slo.ttft_ms.p95: never missed: every backend is given up on after 30000 ms anyway; lower it"
    ]
    assert extra(policy=default("  slo: {ttft_ms: {p95: 29999}}\n")) == []
    vectors = routes("  - {name: v, match: {aliases: [embed]}, slo: {tpot_ms: {p50: 10}}}\n")
    assert extra(policy=vectors) == [
        "p.yaml:9:63: warning: routes[1].slo.tpot_ms.p50: embeddings have no time per output token"
    ]


GROUPS = """\
equivalence:
  one: {weights: w, precision: bf16, declared_by: us, targets: [home/m, host/m]}
"""


def grouped(groups: str) -> str:
    catalog = edited(CATALOG, "chat: {targets", "chat: {stand_in: group, targets")
    return edited(catalog, "backends:\n", groups + "backends:\n")


def test_a_target_in_no_group_stands_in_for_nobody():
    assert extra(catalog=grouped(GROUPS)) == [
        "catalog.yaml:4:20: warning: aliases.chat.stand_in: api/m stands in for nobody: in no equivalence group; declare a group, or say stand_in: alias"
    ]


def test_a_name_that_tells_of_another_precision():
    catalog = (
        grouped(GROUPS)
        .replace("home/m", "home/m-AWQ")
        .replace("models: {m: {}}}", "models: {m-AWQ: {}}}")
    )
    assert (
        "catalog.yaml:7:8: warning: equivalence.one: declared to be bf16, but home/m-AWQ is named AWQ; other precisions are other models: give each its group"
        in extra(catalog=catalog)
    )


# --- prices -----------------------------------------------------------------------------------


NIGHT = 'hours_utc: ["22:00-06:00"], input_usd_per_mtok: "1", output_usd_per_mtok: "5"'
HERE = 'region: here, input_usd_per_mtok: "1", output_usd_per_mtok: "5"'


def test_a_variant_of_another_region_never_holds():
    assert extra(prices=variant(HOST_ROW, f"{{{HERE}}}")) == [
        "prices.yaml:4:47: note: prices[1].when[0].region: never holds: the region of host is not stated; correct data.region in the catalog, or leave the variant out"
    ]
    assert extra(prices=variant(HOME_ROW, f"{{{HERE}}}")) == []


def test_a_variant_that_others_leave_no_minute():
    day = NIGHT.replace("22:00-06:00", "06:00-22:00").replace("hours", "region: here, hours")
    both = variant(HOME_ROW, f"{{{HERE}}}", f"{{{day}}}")
    assert extra(prices=both) == []
    night = NIGHT.replace("hours", "region: here, hours")
    assert extra(prices=variant(HOME_ROW, f"{{{HERE}}}", f"{{{day}}}", f"{{{night}}}")) == [
        "prices.yaml:3:38: warning: prices[0].when[0]: never holds: others that say more take every minute of its day; leave it out"
    ]
    flex = f"{{{FLEX}}}"
    assert extra(prices=variant(HOME_ROW, flex, f"{{{day}}}", f"{{{night}}}")) == [], "another tier"


def test_a_tier_of_prompts_that_the_catalog_does_not_allow():
    tier = 'long_prompts: [{above_prompt_tokens: 100000, input_usd_per_mtok: "6", output_usd_per_mtok: "10"}]'
    long = edited(PRICES, API_ROW, API_ROW.replace(" from:", f" {tier}, from:"))
    assert extra(prices=long) == [
        "prices.yaml:5:67: note: prices[2].long_prompts[0].above_prompt_tokens: never reached: the catalog allows api/m prompts of 100,000 tokens"
    ]
    assert extra(prices=long.replace("100000", "99999")) == []


def test_a_price_that_ends_and_none_follows():
    soon = edited(
        PRICES,
        HOST_ROW,
        HOST_ROW.replace("from: 2026-01-01", "from: 2026-01-01, until: 2026-12-01"),
    )
    assert extra(prices=soon) == [
        "prices.yaml:4:56: warning: prices[1].until: the price of host/m ends in 8 days and no other follows: unpriced then; append a row from that day on"
    ]
    following = soon + HOST_ROW.replace("2026-01-01", "2026-12-01")
    assert extra(prices=following) == []
    over = soon.replace("until: 2026-12-01", 'until: "2026-11-23T00:00:00Z"')
    assert any(
        "no price for host/m since 2026-11-23T00:00:00Z: unpriced, not free" in line
        for line in extra(prices=over)
    )


def test_files_without_prices_of_models():
    assert extra(prices=PRICES) == []
    hours = "version: 1\ngpu_hours: []\n"
    assert any("no price for api/e" in line for line in told(prices=hours))


def test_what_is_not_paid_by_the_token():
    seconds = API_ROW.replace(
        'input_usd_per_mtok: "2", output_usd_per_mtok: "10"', 'usd_per_second: "0.01"'
    )
    assert any(
        "no price for api/m: what it costs is not by the token" in line
        for line in extra(prices=edited(PRICES, API_ROW, seconds))
    )


# --- limits -----------------------------------------------------------------------------------


def test_a_budget_that_one_request_exceeds():
    lines = extra(limits=edited(LIMITS, '"50"', '"0.1"'))
    assert lines == [
        "limits.yaml:5:10: warning: limits[0].usd: one request may want more than all of it: the longest for api/m costs $0.232768, of $0.1; such requests are refused; raise it if that is not meant"
    ]
    assert extra(limits=edited(LIMITS, '"50"', '"0.25"')) == []


def test_a_budget_that_only_requests_with_their_own_cap_fit():
    """What is held is the dearest target's: 4,096 tokens at 10 dollars a million."""
    chat = edited(LIMITS, "per: team", "per: team\n    match: {alias: [chat]}")
    assert extra(limits=edited(chat, '"50"', '"0.04"')) == [
        "limits.yaml:6:10: warning: limits[0].usd: only requests that name max_tokens of at most 4,000 can fit: for all others $0.04096 is held for their output alone, of $0.04; raise it, or lower hold_output_tokens"
    ]
    assert "can fit" not in "".join(extra(limits=edited(chat, '"50"', '"0.05"')))


def test_a_budget_that_no_request_fits():
    assert extra(limits=edited(ONLY_CHAT, '"50"', '"0.000009"')) == [
        "limits.yaml:6:10: limits[0].usd: no request fits: $0.00001 is held for one token of output alone, of $0.000009; raise it"
    ]
    assert extra(limits=edited(ONLY_CHAT, '"50"', '"0.00001"'))[0].startswith(
        "limits.yaml:6:10: warning: limits[0].usd: only requests that name max_tokens of at most 1 can"
    )


def test_tokens_that_no_answer_fits():
    tokens = edited(LIMITS, 'usd: "50"', "tokens: 4096")
    assert extra(limits=tokens) == [
        "limits.yaml:5:13: warning: limits[0].tokens: only requests that name max_tokens of at most 4,095 can fit: for all others 4,096 tokens are held for their output alone, of 4,096; raise it, or lower hold_output_tokens"
    ]
    assert extra(limits=edited(tokens, "4096", "1")) == [
        "limits.yaml:5:13: limits[0].tokens: no request fits: a prompt and an output of one token each are more than 1; raise it"
    ]
    assert extra(limits=edited(tokens, "4096", "4097")) == []


def test_money_that_nobody_can_count():
    lines = extra(limits=LIMITS, prices=edited(PRICES, HOST_ROW, ""))
    assert (
        "limits.yaml:5:10: warning: limits[0].usd: keeps requests from host/m: no price, and money must count; add rows to prices/"
    ) in lines


ONLY_CHAT = edited(LIMITS, "per: team", "per: team\n    match: {alias: [chat]}")


def test_a_hard_budget_over_what_nobody_has_a_price_of_is_an_error():
    later = PRICES.replace("from: 2026-01-01", "from: 2026-12-01")
    lines = extra(limits=ONLY_CHAT, prices=later)
    assert (
        "limits.yaml:6:10: limits[0].usd: no target of chat has a price on 2026-11-23: a hard budget cannot count it, so every request would be refused; add rows to prices/, name other aliases in match, or say at_limit: route"
    ) in lines
    soft = ONLY_CHAT + "    at_limit: route\n"
    assert (
        "limits.yaml:6:10: warning: limits[0].usd: counts nothing of chat: none of its targets has a price; add rows to prices/, or name other aliases in match"
    ) in extra(limits=soft, prices=later)


def test_a_budget_that_routes_does_not_keep_requests_from_anybody():
    soft = ONLY_CHAT + "    at_limit: route\n"
    lines = extra(limits=soft, prices=edited(PRICES, HOST_ROW, ""))
    assert any("counts what it holds, not what is used, of host/m" in line for line in lines)


def test_what_the_catalog_switches_off_needs_no_price():
    off = CATALOG.replace("    kind: closed_api\n", "    enabled: false\n    kind: closed_api\n")
    assert not any(
        "limits.yaml" in line
        for line in extra(limits=ONLY_CHAT, catalog=off, prices=edited(PRICES, API_ROW, ""))
    )


def test_holds_know_what_writing_to_a_cache_costs_and_long_prompts():
    dear = edited(
        PRICES,
        API_ROW,
        API_ROW.replace(
            " from:", ' cache_write_1h_usd_per_mtok: "4", cache_write_5m_usd_per_mtok: "3", from:'
        ),
    )
    (line,) = extra(limits=edited(ONLY_CHAT, '"50"', '"0.3"'), prices=dear)
    assert "the longest for api/m costs $0.424576, of $0.3" in line
    tier = '{above_prompt_tokens: 50000, input_usd_per_mtok: "6", output_usd_per_mtok: "10"}'
    long = edited(PRICES, API_ROW, API_ROW.replace(" from:", f" long_prompts: [{tier}], from:"))
    (line,) = extra(limits=edited(ONLY_CHAT, '"50"', '"0.3"'), prices=long)
    assert "the longest for api/m costs $0.616384, of $0.3" in line


def variant(row: str, *what: str) -> str:
    return edited(PRICES, row, row.replace(" from:", f" when: [{', '.join(what)}], from:"))


FLEX = 'service_tier: flex, input_usd_per_mtok: "1", output_usd_per_mtok: "5"'


def test_a_service_tier_that_a_hard_budget_cannot_count_everywhere():
    flex = variant(API_ROW, f"{{{FLEX}}}")
    assert extra(limits=ONLY_CHAT, prices=flex) == [
        "limits.yaml:6:10: note: limits[0].usd: keeps requests for service tier flex from home/m, host/m: no price of it there; add it to their rows under when:, if they have it"
    ]
    assert extra(limits=ONLY_CHAT + "    at_limit: route\n", prices=flex)[0].startswith(
        "limits.yaml:8:15"
    )


def test_limits_that_are_not_shared():
    assert extra(limits=LIMITS) == []
    assert extra(limits=LIMITS, shared_store=False) == [
        "limits.yaml:2:1: note: limits: without WEIGHBRIDGE_REDIS_URL every process counts for itself; to share a limit, several workers or nodes need Redis"
    ]
    (line,) = extra(limits=LIMITS, shared_store=False, workers=4)
    assert line.startswith("limits.yaml:2:1: warning: ")
    assert "each of the 4 workers its part" in line


def test_a_used_up_limit_that_changes_nothing():
    asks = LIMITS + "    at_limit: route\n"
    assert extra(limits=asks) == [
        "limits.yaml:7:15: warning: limits[0].at_limit: used up, it changes nothing: no route of p matches spent: team-day; add such a route, or say at_limit: refuse"
    ]
    route = routes("  - {name: cheap, match: {spent: team-day}, prefer: [[home, api]]}\n")
    assert extra(limits=asks, policy=route) == []
    said = routes(
        "  - {name: cheap, match: {expression: '\"team-day\" in spent'}, prefer: [[home, api]]}\n"
    )
    assert extra(limits=asks, policy=said) == []


# --- values that look alike -------------------------------------------------------------------

LOOK_ALIKES = [
    ("only: no", "8:11: routes[0].only: unquoted no is not text to all readers; write true, false or null, or quote it if it is text"),
    ("window: {from: 12:30}", "8:20: routes[0].window.from: unquoted 12:30 is not the same number to all readers; write it plainly, or quote it if it is text"),
    ("price_max_usd: 010", "8:20: routes[0].price_max_usd: unquoted 010 is not the same number to all readers; write it plainly, or quote it if it is text"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), LOOK_ALIKES)
def test_a_value_that_readers_disagree_about_is_refused_with_place_reason_and_fix(text, line):
    with pytest.raises(ConfigErrors) as caught:
        told(policy=edited(POLICY, "only: true", text))
    assert f"p.yaml:{line}" in str(caught.value)


NEVER = [
    ("canary: {backends: [host], share: 0}", "routes[0].canary.share: must be more than 0"),
    ("shadow: {backend: host, share: 0}", "routes[0].shadow.share: must be more than 0"),
]


@pytest.mark.parametrize(("text", "line"), NEVER)
def test_what_could_never_happen_does_not_load(text, line):
    with pytest.raises(ConfigErrors) as caught:
        told(policy=edited(POLICY, "only: true", text))
    assert line in str(caught.value)
