"""What is known of a race and of a copy that were cut off: whose, which route, both attempts."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import pytest

from tests.chaos.audit import prices
from tests.chaos.load import call, chat, client
from tests.gateway_process import gateway_beside, vendor_catalog
from tests.vendor import Script, until, vendor_in_loop

pytestmark = pytest.mark.xdist_group("chaos_kill_in_race")

POLICY = """\
version: 1
name: plain
routes:
  - name: hedged
    match: {aliases: [hedged]}
    by: order
    behaviour: {hedge: {after_ms: 20, share_max: 1.0}}
  - name: copied
    match: {aliases: [copied]}
    prefer: [[a]]
    only: true
    shadow: {backend: b, share: 1.0}
default: {by: order}
"""


def catalog_of(url: str) -> dict:
    aliases = {
        "hedged": ["a/quiet", "b/quiet"],
        "copied": ["a/m", "b/quiet"],
        "plain": ["a/m"],
    }
    catalog = vendor_catalog({"a": f"{url}/v1", "b": f"{url}/v1"}, aliases=aliases)
    for backend in catalog["backends"].values():
        backend["models"] |= dict.fromkeys(("m", "quiet"), backend["models"]["m"])
    return catalog


async def test_what_a_kill_cut_off_is_still_known() -> None:
    scripts = {"m": Script(tokens=4), "quiet": Script(ttft_s=600)}
    async with (
        vendor_in_loop(scripts) as vendor,
        gateway_beside(catalog_of(vendor.url), routing=POLICY) as running,
    ):
        async with client(running.url, running.auth) as http:
            racing = asyncio.ensure_future(call(http, chat(model="hedged", stream=True)))
            await until(lambda: vendor.concurrent == 2, 10)
            assert (await call(http, chat(model="copied"))).ok
            await until(lambda: vendor.concurrent == 3, 10)
            running.process.kill()
            with contextlib.suppress(httpx.HTTPError, OSError):
                await racing
        await asyncio.to_thread(running.restart)
        rows = {(r["alias"], bool(r["shadow_of"])): r for r in await running.ledger(3)}
    race, real, copy = rows["hedged", False], rows["copied", False], rows["copied", True]
    assert [r["outcome"] for r in (race, real, copy)] == ["interrupted", "ok", "interrupted"]
    assert (race["route"], copy["route"], copy["shadow_of"]) == ("hedged", "copied", real["id"])
    assert race["key_id"] == real["key_id"] is not None
    assert copy["key_id"] is None
    assert [(a["backend"], a["why"], a["outcome"]) for a in race["attempts"]] == [
        ("a", "preferred", "interrupted"),
        ("b", "hedge", "interrupted"),
    ]


async def test_a_permit_of_a_killed_worker_is_free_once_its_journal_is_read(redis_url: str) -> None:
    """Its money counts at the hold (`test_budgets`): the purse has room for that and one more."""
    limits = {
        "version": 1,
        "limits": [
            {"name": "alone", "per": "key", "concurrent": 1},
            {"name": "purse", "per": "key", "usd": "1", "every": "day"},
        ],
    }
    book = [row for model in ("m", "quiet") for row in prices("a", "b", model=model)["prices"]]
    scripts = {"m": Script(tokens=4), "quiet": Script(ttft_s=600)}
    async with (
        vendor_in_loop(scripts) as vendor,
        gateway_beside(
            catalog_of(vendor.url),
            routing=POLICY,
            limits=limits,
            prices={"version": 1, "prices": book},
            environment={"WEIGHBRIDGE_REDIS_URL": redis_url},
        ) as running,
    ):
        async with client(running.url, running.auth) as http:
            racing = asyncio.ensure_future(call(http, chat(model="hedged", stream=True)))
            await until(lambda: vendor.concurrent == 2, 10)
            assert (await call(http, chat(model="plain"))).status == 429
            running.process.kill()
            with contextlib.suppress(httpx.HTTPError, OSError):
                await racing
        await asyncio.to_thread(running.restart)
        async with client(running.url, running.auth) as http:
            for _ in range(300):  # the lease is a quarter of an hour
                if (again := await call(http, chat(model="plain"))).ok:
                    break
                await asyncio.sleep(0.1)
            assert again.ok


async def test_a_copy_under_way_at_the_end_is_written_down() -> None:
    scripts = {"m": Script(tokens=4), "quiet": Script(ttft_s=600)}
    async with (
        vendor_in_loop(scripts) as vendor,
        gateway_beside(catalog_of(vendor.url), routing=POLICY) as running,
    ):
        async with client(running.url, running.auth) as http:
            assert (await call(http, chat(model="copied"))).ok
        await until(lambda: vendor.concurrent == 1, 10)
        status = await asyncio.to_thread(running.stop)
        rows = {bool(r["shadow_of"]): r for r in await running.ledger(2)}
    assert status == 0
    assert rows[True]["outcome"] == "client_cancelled"
    assert not [line for line in running.output if "rror" in line], running.output
