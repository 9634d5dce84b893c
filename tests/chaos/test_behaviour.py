"""What a route promises beyond the first choice, through a real gateway: hedges, copies, canaries,
limits and what their headers say.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.audit import check_rows, prices
from tests.chaos.load import call, chat, client
from tests.gateway_process import gateway_beside, vendor_catalog
from tests.vendor import Script, until, vendor_in_loop

pytestmark = pytest.mark.xdist_group("chaos_behaviour")

SCRIPTS = {
    "m": Script(tokens=4),
    "quiet": Script(ttft_s=600),
    "broken": Script(status=500),
    "free": Script(tokens=4),
}
POLICY = """\
version: 1
name: plain
behaviour: {attempts_max: 3, backends_max: 3}
routes:
  - name: hedged
    match: {aliases: [hedged]}
    by: order
    behaviour: {hedge: {after_ms: 50, share_max: 1.0}}
  - name: copied
    match: {aliases: [copied]}
    prefer: [[a]]
    only: true
    shadow: {backend: b, share: 1.0}
  - name: tried
    match: {aliases: [tried]}
    canary: {backends: [b], share: 0.9999, samples_min: 5, error_share_max: 0.2}
default: {by: order}
"""
LIMITS = {
    "version": 1,
    "limits": [
        {
            "name": "few",
            "per": "key",
            "match": {"alias": ["counted"]},
            "requests": 3,
            "every": "day",
        },
        {
            "name": "purse",
            "per": "key",
            "match": {"alias": ["paid"]},
            "usd": "1.00",
            "every": "month",
        },
    ],
}


def catalog_of(url: str) -> dict:
    backends = {"a": f"{url}/v1", "b": f"{url}/v1"}
    aliases = {
        "hedged": ["a/quiet", "b/m"],
        "copied": ["a/m", "b/m"],
        "tried": ["a/m", "b/broken"],
        "counted": ["a/m"],
        "paid": ["a/m"],
        "given": ["a/free"],
    }
    catalog = vendor_catalog(backends, aliases=aliases)
    for backend in catalog["backends"].values():
        backend["models"] |= dict.fromkeys(SCRIPTS, backend["models"]["m"])
    return catalog


async def test_a_route_keeps_what_it_promises() -> None:
    book = {"version": 1, "prices": []}
    for name in SCRIPTS:
        book["prices"] += prices("a", "b", model=name)["prices"]
    for row in book["prices"]:
        if row["model"] == "free":
            row |= {"input_usd_per_mtok": "0", "output_usd_per_mtok": "0", "free": True}
            row.pop("cached_input_usd_per_mtok", None)
    async with (
        vendor_in_loop(SCRIPTS) as vendor,
        gateway_beside(
            catalog_of(vendor.url), routing=POLICY, prices=book, limits=LIMITS
        ) as running,
        client(running.url, running.auth) as http,
    ):
        # A silent backend is overtaken, and what it was sent is booked.
        answer = await call(http, chat(model="hedged", stream=True))
        assert answer.ok
        assert answer.headers["x-weighbridge-backend"] == "b"
        await until(lambda: vendor.concurrent == 0, 10)  # the loser was ended

        # A copy goes out; its row is nobody's.
        assert (await call(http, chat(model="copied", stream=True))).ok

        # A canary that fails is taken back by itself; nobody notices but the operator.
        tried = [await call(http, chat(model="tried")) for _ in range(12)]
        assert all(answer.ok for answer in tried)

        # Limits: what is left is told, then a refusal that an SDK understands.
        counted = [await call(http, chat(model="counted")) for _ in range(4)]
        assert [a.status for a in counted] == [200, 200, 200, 429]
        left = [a.headers["x-ratelimit-remaining-requests"] for a in counted]
        assert left == ["2", "1", "0", "0"]
        assert counted[3].error["code"] == "rate_limit_exceeded"
        assert counted[3].headers["x-should-retry"] == "false", "the day is long"
        paid = await call(http, chat(model="paid"))
        assert paid.ok
        assert float(paid.headers["x-weighbridge-budget-remaining-usd"]) < 1.0

        # What is declared free costs 0, and has its row all the same.
        assert (await call(http, chat(model="given"))).ok

        metrics = (await http.get("/metrics")).text
        rows = await running.ledger(21)

    check_rows(rows)
    by_alias: dict[str, list] = {}
    for row in rows:
        by_alias.setdefault(row["alias"], []).append(row)
    (hedged,) = by_alias["hedged"]
    assert [(a["backend"], a["why"], a["outcome"]) for a in hedged["attempts"]] == [
        ("a", "preferred", "hedge_lost"),
        ("b", "hedge", "ok"),
    ]
    assert all(a["cost_nano_usd"] > 0 for a in hedged["attempts"])
    assert hedged["cost_nano_usd"] == sum(a["cost_nano_usd"] for a in hedged["attempts"])

    real, copy = sorted(by_alias["copied"], key=lambda row: row["shadow_of"] or "")
    assert (copy["shadow_of"], copy["key_id"], copy["backend"]) == (real["id"], None, "b")
    assert real["attempt_count"] == 1
    assert copy["attempts"][0]["why"] == "shadow"

    asked = Counter(a["backend"] for row in by_alias["tried"] for a in row["attempts"])
    assert asked["b"] == 5, "samples_min, then no more"
    assert 'weighbridge_canary_reverts_total{route="tried"} 1.0' in metrics
    assert 'weighbridge_shadow_requests_total{backend="b",outcome="ok"} 1.0' in metrics
    assert [row["outcome"] for row in by_alias["counted"]].count("refused") == 1
    (given,) = by_alias["given"]
    assert (given["cost_nano_usd"], given["priced"]) == (0, True)
