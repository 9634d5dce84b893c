"""Budgets of a whole gateway: alerts over workers, kills and restarts, and what `budgets` says of it.

Everything is real: workers, Redis, the database, the receiver of alerts, the command line. A request
costs $0.10 (a million dollars for a million tokens) and holds $0.20, so a budget is soon used.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.audit import audited
from tests.gateway_process import CLI, GatewayProcess, gateway_beside, vendor_catalog
from tests.unit.test_alerts import Receiver, receiver
from tests.vendor import Script, vendor_in_loop

pytestmark = pytest.mark.xdist_group("chaos_budgets")

SOON_S = 60.0
KEY = b"0123456789abcdef0123456789abcdef"
PRICES = {
    "version": 1,
    "prices": [
        {
            "backend": "a",
            "model": "m",
            "from": dt.date(2026, 1, 1),
            "input_usd_per_mtok": "0.000001",
            "output_usd_per_mtok": "10000",
            "source": "made up for a test",
            "read_on": dt.date(2026, 1, 1),
        }
    ],
    "currencies": [
        {
            "currency": "EUR",
            "from": dt.date(2026, 1, 1),
            "per_usd": "0.5",
            "source": "made up for a test",
            "read_on": dt.date(2026, 1, 1),
        }
    ],
}
ANSWER = Script(tokens=10)
BODY = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}


def limits(usd: str, **more: Any) -> dict[str, Any]:
    limit = {"name": "team-month", "per": "team", "usd": usd, "every": "month", **more}
    return {"version": 1, "limits": [{"zone": "Europe/Berlin", **limit}]}


@asynccontextmanager
async def place(
    hook: Receiver, usd: str, *, script: Script = ANSWER, redis: str = "", workers: int = 1
) -> AsyncIterator[tuple[GatewayProcess, httpx.AsyncClient]]:
    """A gateway with one budget per team, and a client of the team search."""
    environment = {
        "WEIGHBRIDGE_ALERT_WEBHOOK": "env:HOOK",
        "WEIGHBRIDGE_ALERT_SECRET": "env:HOOK_KEY",
        "HOOK": hook.url,
        "HOOK_KEY": "whsec_" + base64.b64encode(KEY).decode(),
        **({"WEIGHBRIDGE_REDIS_URL": redis} if redis else {}),
    }
    async with (
        vendor_in_loop({"m": script}) as vendor,
        gateway_beside(
            vendor_catalog({"a": f"{vendor.url}/v1"}),
            prices=PRICES,
            limits=limits(usd, alert_shares=[0.5]),
            workers=workers,
            environment=environment,
        ) as running,
    ):
        key = await asyncio.to_thread(running.new_key, "--tag", "team=search")
        head = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=running.url, headers=head, timeout=SOON_S) as http:
            yield running, http


async def budgets(running: GatewayProcess, *options: str) -> tuple[int, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [*CLI, "budgets", *options],
        env=running.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def standing(running: GatewayProcess) -> dict[str, Any]:
    code, said = await budgets(running, "--json")
    assert code == 0, said
    (budget,) = json.loads(said)["budgets"]
    return budget


async def settles_at(running: GatewayProcess, **wanted: Any) -> dict[str, Any]:
    """Until the budget stands so: settlements, rows and files take a moment."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(SOON_S):
            while any(found.get(name) != value for name, value in wanted.items()):
                found = await standing(running)
    except TimeoutError:
        raise AssertionError(f"{found}, not {wanted}") from None
    return found


@pytest.mark.parametrize("store", ["redis", "home"])
async def test_a_budget_is_used_up_told_once_and_agrees_with_the_ledger(
    store: str, request: pytest.FixtureRequest
) -> None:
    redis = request.getfixturevalue("redis_url") if store == "redis" else ""
    async with (
        receiver() as hook,
        place(hook, "1.1", redis=redis, workers=2 if redis else 1) as (running, http),
    ):
        statuses = []
        while len(statuses) < 40 and 429 not in statuses:
            statuses.append((await http.post("/v1/chat/completions", json=BODY)).status_code)
        assert statuses == [200] * 9 + [429]  # $0.20 are left, and a request holds a little more
        assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 429
        found = await hook.got(2)
        told = [(one["event"], one["share"], one["spent"]) for one in found]
        assert told == [("budget.share_reached", 0.5, "0.6"), ("budget.exhausted", 1.0, "0.9")]
        for head, body in zip(hook.heads, hook.bodies, strict=True):
            signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
            mac = hmac.new(KEY, signed, hashlib.sha256).digest()
            assert head["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
        row = await settles_at(running, ledger="0.9", in_journal=0, used="0.9")
        wanted = {
            "holder": "search",
            "held": "0",
            "left": "0.2",
            "share": 0.818182,
            "differences": [],
        }
        assert {name: row[name] for name in wanted} == wanted
        code, said = await budgets(running, "--currency", "eur")
        assert code == 0
        assert "€0.45" in said
        assert "shown at 0.5 EUR a dollar; counted in dollars" in said
        code, said = await budgets(running, "--currency", "EUR", "--json")
        assert json.loads(said)["budgets"][0]["shown"]["used"] == "€0.45"
        rows = await running.ledger(count=11)
        refused = [one for one in rows if one["outcome"] == "refused"]
        assert [one["decision"]["limit"] for one in refused] == ["team-month"] * 2
        await audited(running)
        if store == "home":  # the next start goes on where this one ended, and repeats nothing
            running.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(running.restart)
            answer = await http.post("/v1/chat/completions", json=BODY)
            assert answer.status_code == 429
            assert "$0.20 left" in answer.json()["error"]["message"]
        assert len(hook.bodies) == 2


@pytest.mark.parametrize("store", ["redis", "home"])
async def test_what_was_under_way_at_a_kill_counts_at_its_hold(
    store: str, request: pytest.FixtureRequest
) -> None:
    """The vendor goes on and bills: $0.20 held for each of three is what the budget loses."""
    redis = request.getfixturevalue("redis_url") if store == "redis" else ""
    slow = Script(tokens=10, ttft_s=SOON_S)
    async with receiver() as hook, place(hook, "1", script=slow, redis=redis) as (running, http):
        calls = [
            asyncio.ensure_future(http.post("/v1/chat/completions", json=BODY)) for _ in range(3)
        ]
        await settles_at(running, held="0.600000003", used="0")
        for pid in running.children():
            os.kill(pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(httpx.HTTPError):
                await call
        await asyncio.to_thread(running.restart)
        row = await settles_at(running, used="0.600000003", held="0", cut_off=3)
        assert row["ledger"] == "0"
        assert row["differences"] == [
            (
                "3 requests were cut off by the end of a worker: they count at what was held, the "
                "ledger does not know their cost"
            )
        ]
        code, said = await budgets(running)
        assert code == 0
        assert "search: 3 requests were cut off by the end of a worker" in said


async def test_what_cannot_be_asked_is_said(redis_url: str) -> None:
    async with receiver() as hook, place(hook, "1", redis=redis_url) as (running, http):
        for _ in range(3):
            assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200
        await settles_at(running, ledger="0.3", used="0.3")
        right = dict(running.environment)
        running.environment["WEIGHBRIDGE_REDIS_URL"] = "redis://127.0.0.1:9/0"
        code, said = await budgets(running)
        assert code == 1
        assert "Redis cannot be asked, so what is used is the ledger's figure: 127.0.0.1:9" in said
        assert "$0.30" in said
        running.environment["WEIGHBRIDGE_DATABASE_URL"] = "postgresql://u:secret@127.0.0.1:9/x"
        code, said = await budgets(running)
        assert code == 1
        assert "the database cannot be asked, so the files count" in said
        assert "secret" not in said
        running.environment.update(right)
        del running.environment["WEIGHBRIDGE_DATABASE_URL"]
        code, said = await budgets(running, "--currency", "EURO")
        assert code == 2
        assert "--currency EURO: no rate of it" in said


async def test_a_test_alert_says_what_the_other_side_answers() -> None:
    async with receiver() as hook, place(hook, "1") as (running, _):
        code, said = await budgets(running, "test-alert")
        assert code == 0
        assert "127.0.0.1 took it (status 200" in said
        assert "so said the receiver" in said
        (found,) = await hook.got(1)
        assert (found["event"], "signature" in "".join(hook.heads[0])) == ("test", True)
        hook.answers = [(500, {})]
        code, said = await budgets(running, "test-alert", "--json")
        assert code == 1
        assert json.loads(said)["webhooks"][0]["status"] == 500
        running.environment.pop("WEIGHBRIDGE_ALERT_WEBHOOK")
        code, said = await budgets(running, "test-alert")
        assert code == 2
        assert "WEIGHBRIDGE_ALERT_WEBHOOK is not set" in said
        assert "secret-path" not in "".join(running.output)


def test_an_address_that_is_none_ends_the_start_whoever_serves(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        done = subprocess.run(
            [*CLI, "serve", "--port", "0", "--workers", workers],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("WEIGHBRIDGE_")},
                "WEIGHBRIDGE_HOME": str(tmp_path),
                "WEIGHBRIDGE_ALERT_WEBHOOK": "env:HOOK",
                "HOOK": "http://hooks.example.com/secret-path",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=SOON_S,
        )
        assert done.returncode == 2
        assert "WEIGHBRIDGE_ALERT_WEBHOOK: env:HOOK: must hold an https:// address" in done.stderr
        assert "secret-path" not in done.stdout + done.stderr
