"""What a real gateway recorded is decided again, and a plan over it says what would have been."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.chaos.audit import prices
from tests.chaos.load import CHAT, chat
from tests.gateway_process import CLI, GatewayProcess, gateway, vendor_catalog
from tests.promises import promise
from tests.vendor import Script, vendor_process

ASKED = 24
CHEAPER = """\
version: 1
name: cheaper
default: {prefer: [[b], [a]]}
"""

pytestmark = pytest.mark.xdist_group("chaos_plan")


def policy(running: GatewayProcess, *args: object) -> dict:
    done = subprocess.run(
        [*CLI, "policy", *map(str, args), "--since", "1d", "--json"],
        env=running.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_a_gateway_recorded_is_replayed_exactly(tmp_path: Path):
    script = Script(tokens=6, itl_s=0.002)
    with vendor_process({"m": script}) as a, vendor_process({"m": script}) as b:
        catalog = vendor_catalog({"a": f"{a.url}/v1", "b": f"{b.url}/v1"})
        with gateway(catalog, prices=prices("b", "a")) as running:
            with httpx.Client(base_url=running.url, headers=running.auth, timeout=30) as client:
                for number in range(ASKED):
                    if number == ASKED // 2:
                        a.set("m", Script(status=503))
                    if number == ASKED // 2 + 3:
                        a.set("m", script)
                    asked = chat(f"number {number % 5}", stream=number % 2 == 0)
                    assert client.post(CHAT, json=asked).status_code == 200
                refused = client.post(CHAT, json=chat("x"), headers={"authorization": "no"})
                assert refused.status_code == 401
            rows = running.rows(count=ASKED + 1)
            new = tmp_path / "cheaper.yaml"
            new.write_text(CHEAPER)
            plan = policy(running, "plan", new)
            same = running.home / "policies" / "routing" / "plain.yaml"
            beside = policy(running, "backtest", new, same)

    served = [row["backend"] for row in rows if row["decision"] is not None]
    assert len(served) == ASKED
    assert 3 <= served.count("b") < ASKED
    period, replay = plan["period"], plan["replay"]
    assert period["decided_again"] == {"same": ASKED, "other": 0, "gone": 0}
    assert (period["requests"], period["not_decided"]) == (ASKED, 1)
    assert replay["moved"] == served.count("a")
    assert replay["matrix"] == [
        {"from": "a", "to": "b", "requests": served.count("a")},
        {"from": "b", "to": "b", "requests": served.count("b")},
    ]
    measured = sum(row["cost_nano_usd"] for row in rows if row["decision"] is not None)
    cost = replay["cost"]["period"]
    assert cost["before_usd"] == pytest.approx(measured / 1e9)
    assert cost["low_usd"] <= cost["difference_usd"] < 0
    assert replay["cost"]["unpriced"] == replay["cost"]["unmeasured"] == 0
    names = ["in force", "cheaper", "plain"]
    assert [one["name"] for one in beside["policies"]] == names
    assert [one["moved"] for one in beside["policies"]] == [0, served.count("a"), 0]
    promise("plan", f"{ASKED} of {ASKED}")
