"""News of budgets: what is sent, how it is signed, and what becomes of it when nobody takes it.

Receivers are real HTTP servers of the loop; gates are real, one over Redis as several nodes have it.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from gateway.alerts import QUEUE_MAX, TRIES_MAX, Alerts, HomeClaims, document, sentence
from gateway.domain.limit import AtLimit, Limit, Period, Unit
from gateway.limits import Alert, Ask, Event, Gate, LocalGate, RedisGate, Unlimited, Used
from gateway.redis_link import RedisLink
from gateway.runtime import ManualClock, SystemClock
from gateway.settings import SettingsError
from gateway.telemetry import Telemetry
from gateway.webhooks import Addresses, Answer, Webhook, addresses, client_to, post, signature

pytest_plugins = ("tests.servers",)

SOON_S = 60.0
KEY = b"k" * 32
BERLIN = {"zone": "Europe/Berlin"}
BUDGET = Limit(
    name="team-month",
    per="team",
    unit=Unit.USD,
    amount=500 * 10**9,
    period=Period.MONTH,
    alert_shares=(0.8,),
    **BERLIN,
)
NOVEMBER = tuple(
    int(dt.datetime(2026, month, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))).timestamp())
    for month in (11, 12)
)
REACHED = Alert(Event.SHARE, BUDGET, "search", 0.8, 401_200_000_000, *NOVEMBER)


@dataclass
class Receiver:
    """Somebody's address, and what it got. `answers` are given in order, the last for ever."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=lambda: [(200, {})])
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def take(self, request: web.Request) -> web.Response:
        self.heads.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(await request.read())
        if self.hold is not None:
            await self.hold.wait()
        status, headers = self.answers[min(len(self.bodies), len(self.answers)) - 1]
        return web.Response(status=status, headers=headers, text="so said the receiver")

    async def got(self, count: int) -> list[dict]:
        async with asyncio.timeout(SOON_S):
            while len(self.bodies) < count:
                await asyncio.sleep(0.005)
        return [orjson.loads(body) for body in self.bodies]


@asynccontextmanager
async def receiver(**options) -> AsyncIterator[Receiver]:
    made = Receiver(**options)
    app = web.Application()
    app.router.add_post("/hook/secret-path", made.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    made.url = f"http://127.0.0.1:{port}/hook/secret-path"
    try:
        yield made
    finally:
        if made.hold is not None:
            made.hold.set()
        await runner.cleanup()


def alerts(*urls: str, gate: Gate | None = None, **options) -> tuple[Alerts, Telemetry]:
    telemetry = Telemetry()
    to = Addresses(tuple(map(Webhook, urls)), KEY)
    options = {"gateway": "node-1", "pause_s": 0.001, **options}
    made = Alerts(to, gate or Unlimited(), telemetry, ManualClock(NOVEMBER[0] + 86_400), **options)
    made.start(lambda: (BUDGET,))
    return made, telemetry


def counted(telemetry: Telemetry) -> list[str]:
    lines = telemetry.render().decode().splitlines()
    wanted = ("weighbridge_limit_alerts_total{", "weighbridge_alert_", "weighbridge_limit_overrun_")
    return sorted(line for line in lines if line.startswith(wanted) and "_created" not in line)


# --- what is sent ---------------------------------------------------------------------------------


async def test_an_event_is_posted_signed_and_counted() -> None:
    async with receiver() as one, receiver() as two:
        made, telemetry = alerts(one.url, two.url)
        made.heard(REACHED)
        (found,), (other,) = await one.got(1), await two.got(1)
        await made.drain()
    assert (
        found
        == other
        == {
            "event": "budget.share_reached",
            "id": found["id"],
            "text": (
                "Budget team-month: team search has passed 80 % of $500.00 this month: $401.20 "
                "used (80.2 %)."
            ),
            "at": "2026-11-01T23:00:00Z",
            "gateway": "node-1",
            "limit": "team-month",
            "per": "team",
            "holder": "search",
            "share": 0.8,
            "spent": "401.2",
            "amount": "500",
            "unit": "usd",
            "currency": "USD",
            "beyond": "0",
            "period": "month",
            "period_start": "2026-11-01T00:00:00+01:00",
            "period_end": "2026-12-01T00:00:00+01:00",
            "at_limit": "refuse",
            "parts": 1,
        }
    )
    head = one.heads[0]
    assert head["content-type"] == "application/json"
    assert head["webhook-id"] == found["id"]
    # As docs/budgets.md tells a receiver to check it.
    signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + one.bodies[0]
    mac = hmac.new(KEY, signed, hashlib.sha256).digest()
    assert head["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
    assert counted(telemetry) == [
        'weighbridge_alert_deliveries_total{result="sent"} 2.0',
        'weighbridge_limit_alerts_total{event="budget.share_reached",limit="team-month",share="0.8"} 1.0',
    ]  # fmt: skip


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks reference libraries."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


SOFT = replace(BUDGET, name="soft", at_limit=AtLimit.ROUTE)
TOKENS = Limit(name="app-day", per="app", unit=Unit.TOKENS, amount=2_000_000, period=Period.DAY)


@pytest.mark.parametrize(
    ("alert", "said"),
    [
        (
            Alert(Event.EXHAUSTED, BUDGET, "search", 1.0, 499_100_000_000, *NOVEMBER),
            (
                "Budget team-month: team search has used up $500.00 of this month, $499.10 of it in "
                "fact; until 2026-12-01 00:00 Europe/Berlin requests that do not fit are refused."
            ),
        ),
        (
            Alert(Event.EXHAUSTED, SOFT, "search", 1.0, 500 * 10**9, *NOVEMBER),
            (
                "Budget soft: team search has used up $500.00 of this month, $500.00 of it in fact; "
                "until 2026-12-01 00:00 Europe/Berlin requests that do not fit take another route."
            ),
        ),
        (
            Alert(Event.OVERRUN, BUDGET, "ads", 1.002, 501 * 10**9, *NOVEMBER, beyond=4 * 10**6),
            (
                "Budget team-month: a request of team ads used $0.0040 more than was held for it; "
                "$501.00 of $500.00 (100.2 %) is used this month."
            ),
        ),
        (
            Alert(Event.RESET, BUDGET, "ads", 0.0, 0, *NOVEMBER),
            (
                "Budget team-month: a new month has begun for team ads: $500.00 until 2026-12-01 "
                "00:00 Europe/Berlin."
            ),
        ),
        (
            Alert(Event.SHARE, TOKENS, "chat", 0.9, 1_800_000, *NOVEMBER),
            (
                "Limit app-day: app chat has passed 90 % of 2,000,000 tokens this day: 1,800,000 "
                "tokens used (90.0 %)."
            ),
        ),
    ],
)
def test_each_event_says_what_it_means(alert: Alert, said: str) -> None:
    assert sentence(alert) == said


def test_tokens_have_no_currency_and_a_part_says_so() -> None:
    tokens = Alert(Event.SHARE, TOKENS, "chat", 0.9, 1_800_000, *NOVEMBER)
    found = document(tokens, at_s=0, gateway="g", parts=4)
    assert (found["unit"], found["currency"], found["spent"]) == ("tokens", None, "1800000")
    assert "2,000,000 tokens (the part of one of 4 workers) this day" in found["text"]


def test_a_tag_is_no_mention_of_everybody() -> None:
    found = document(REACHED._replace(holder="<!channel> & co"), at_s=0, gateway="g")
    assert "team &lt;!channel&gt; &amp; co has" in found["text"]
    assert found["holder"] == "<!channel> & co"


async def test_an_id_is_the_same_everywhere_and_for_ever() -> None:
    ids = {
        document(alert, at_s=at, gateway=gateway)["id"]
        for alert in (REACHED, REACHED._replace(spent=9))
        for at, gateway in ((1, "a"), (2, "b"))
    }
    assert len(ids) == 1
    others = [
        REACHED._replace(share=0.9),
        REACHED._replace(holder="x"),
        REACHED._replace(start_s=5),
        REACHED._replace(event=Event.EXHAUSTED),
        REACHED._replace(limit=TOKENS),
    ]
    assert len(ids | {document(a, at_s=1, gateway="a")["id"] for a in others}) == 6


# --- who takes it -----------------------------------------------------------------------------------


async def test_what_may_pass_is_tried_again_and_signed_anew() -> None:
    async with receiver(answers=[(500, {}), (429, {"retry-after": "0"}), (200, {})]) as one:
        made, telemetry = alerts(one.url)
        made.heard(REACHED)
        await one.got(3)
        await made.drain()
    assert len(set(one.bodies)) == 1
    assert len({head["webhook-id"] for head in one.heads}) == 1
    assert 'weighbridge_alert_deliveries_total{result="sent"} 1.0' in counted(telemetry)


@pytest.mark.parametrize(("status", "tries"), [(503, TRIES_MAX), (400, 1), (404, 1), (307, 1)])
async def test_what_is_not_taken_is_dropped_after_a_bounded_time(
    status: int, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiver(answers=[(status, {"location": "/elsewhere"})]) as one:
        made, telemetry = alerts(one.url)
        made.heard(REACHED)
        await one.got(tries)
        await made.drain()
        assert len(one.bodies) == tries
    assert 'weighbridge_alert_deliveries_total{result="dropped"} 1.0' in counted(telemetry)
    assert f"did not reach 127.0.0.1: it answers {status}" in caplog.text
    assert "secret-path" not in caplog.text


async def test_a_dead_address_holds_up_nobody_and_its_queue_is_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with receiver(hold=asyncio.Event()) as silent, receiver() as fine:
        made, telemetry = alerts(silent.url, fine.url)
        more = QUEUE_MAX + 50
        for number in range(more):
            made.heard(REACHED._replace(holder=f"team-{number}"))
            if number % 50 == 49:
                await fine.got(number + 1)
        sent = f'weighbridge_alert_deliveries_total{{result="sent"}} {more:.1f}'
        async with asyncio.timeout(SOON_S):
            while sent not in counted(telemetry):
                await asyncio.sleep(0.01)
        await made.drain(0.0)
    (dropped, _) = [line for line in counted(telemetry) if "deliveries" in line]
    assert dropped == f'weighbridge_alert_deliveries_total{{result="dropped"}} {more:.1f}'
    assert len(silent.bodies) == 1


async def test_what_cannot_be_told_breaks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def no_claim(_: str) -> bool:
        raise RuntimeError("no")

    made, _ = alerts(claim=no_claim)
    made.heard(REACHED)
    await made.drain()
    assert "could not be told" in caplog.text


async def ask(url: str) -> Answer:
    async with client_to(Webhook(url)) as client:
        return await post(client, Webhook(url), None, {"id": "e"}, 1.0)


async def test_nobody_listening_is_an_answer_too() -> None:
    found = await ask("http://127.0.0.1:9/x")
    assert found.status == 0
    assert found.may_pass
    assert "ConnectError" in found.text


async def test_a_proxy_of_the_environment_does_not_see_what_stays_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    async with receiver() as one:
        found = await ask(one.url)
    assert (found.status, found.text) == (200, "so said the receiver")
    assert "webhook-signature" not in one.heads[0]


# --- once -------------------------------------------------------------------------------------------


async def spend(gate: Gate, of: Limit, amount: int, name: str = "r") -> None:
    admission = await gate.begin(name, (Ask(of, "search", amount),))
    gate.settle(admission, Used(tokens=amount, nano_usd=amount))


async def test_several_nodes_tell_a_share_once(redis_url: str) -> None:
    """Four gates over one Redis, each with its own people to tell, spending at the same time."""
    links = [RedisLink(redis_url, timeout_s=10.0) for _ in range(4)]
    for link in links:
        await link.connect()
    gates = [RedisGate(link, SystemClock()) for link in links]
    async with receiver() as one:
        told = [alerts(one.url, gate=gate, gateway=f"n{i}")[0] for i, gate in enumerate(gates)]
        of = replace(BUDGET, amount=1000, alert_shares=(0.25, 0.5, 0.75))
        await asyncio.gather(
            *(spend(gates[n % 4], of, 10, f"r{n}") for n in range(100)),
        )
        assert (await gates[0].begin("last", (Ask(of, "search", 10),))).refused is not None
        for made in told:
            await made.drain(SOON_S)
        shares = sorted(orjson.loads(body)["share"] for body in one.bodies)
    assert shares[-1] == 1.0
    assert len(set(shares)) == len(shares)  # a leap over one tells the higher one
    for link in links:
        await link.aclose()


async def test_the_processes_of_a_home_tell_a_share_once(tmp_path: Path) -> None:
    clock = ManualClock(NOVEMBER[0] + 86_400)
    async with receiver() as one:
        for number in range(3):  # workers, or one that is restarted and has forgotten
            gate = LocalGate(clock)
            claims = HomeClaims(tmp_path / "alerts", clock)
            made, _ = alerts(one.url, gate=gate, claim=claims)
            await spend(gate, BUDGET, BUDGET.amount * 9 // 10, f"r{number}")
            await made.drain(SOON_S)
        assert [found["share"] for found in await one.got(1)] == [0.8]


def test_claims_of_long_ago_are_forgotten_and_a_disk_that_fails_tells_twice(
    tmp_path: Path,
) -> None:
    clock = SystemClock()
    claims = HomeClaims(tmp_path / "alerts", clock)
    assert [claims("one"), claims("one")] == [True, False]
    os.utime(tmp_path / "alerts" / "one", (0, 0))
    assert HomeClaims(tmp_path / "alerts", clock)("one")
    (tmp_path / "alerts" / "one").unlink()
    (tmp_path / "alerts").rmdir()
    assert [claims("one"), claims("one")] == [True, True]


async def test_an_overrun_is_a_metric_and_an_event() -> None:
    clock = ManualClock(NOVEMBER[0] + 86_400)
    gate = LocalGate(clock)
    async with receiver() as one:
        made, telemetry = alerts(one.url, gate=gate)
        for number in range(2):
            admission = await gate.begin(f"r{number}", (Ask(BUDGET, "search", 10**9),))
            gate.settle(admission, Used(tokens=1, nano_usd=3 * 10**9))
        (found,) = await one.got(1)
        await made.drain()
    assert (found["event"], found["beyond"], found["spent"]) == ("budget.overrun", "2", "3")
    assert 'weighbridge_limit_overrun_total{limit="team-month",unit="usd"} 4.0' in counted(
        telemetry
    )


async def test_a_new_period_is_told() -> None:
    clock = ManualClock(NOVEMBER[0] + 86_400)
    gate = LocalGate(clock)
    made, telemetry = alerts(gate=gate)
    await spend(gate, BUDGET, BUDGET.amount)
    await made.look()
    assert len(counted(telemetry)) == 1
    clock.now = NOVEMBER[1]
    for _ in range(2):
        await made.look()
    await made.drain()
    assert (
        'weighbridge_limit_alerts_total{event="budget.reset",limit="team-month",share=""} 1.0'
        in counted(telemetry)
    )


# --- settings ---------------------------------------------------------------------------------------


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_addresses_come_by_reference(secrets: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "two").write_text("http://localhost:8080/x\n")
    (tmp_path / "key").write_text("whsec_" + base64.b64encode(KEY).decode())
    secrets(ONE="https://hooks.example.com/T0/B0")
    found = addresses(f"env:ONE, file:{tmp_path / 'two'}", f"file:{tmp_path / 'key'}")
    assert [webhook.host for webhook in found.webhooks] == ["hooks.example.com", "localhost"]
    assert found.key == KEY
    assert addresses("", "") == Addresses()


@pytest.mark.parametrize(
    "value",
    [
        "http://hooks.example.com/x",
        "http://127.0.0.1.example.com/x",
        "ftp://127.0.0.1/x",
        "https:///x",
        "hooks.example.com",
        "http://[::1",
    ],
)
def test_an_address_without_tls_must_be_here(secrets: Callable[..., None], value: str) -> None:
    secrets(ONE=value)
    with pytest.raises(SettingsError, match="WEBHOOK: env:ONE: must hold an https:// add") as told:
        addresses("env:ONE", "")
    assert "example.com" not in str(told.value)


@pytest.mark.parametrize("value", ["http://127.0.0.9/x", "http://[::1]:9/x", "https://a.b"])
def test_here_needs_no_tls(secrets: Callable[..., None], value: str) -> None:
    secrets(ONE=value)
    assert addresses("env:ONE", "").webhooks == (Webhook(value),)


@pytest.mark.parametrize("value", ["short", "whsec_AAAA", "whsec_not base64 at all" * 5])
def test_a_key_that_is_none_says_how_one_is_made(secrets: Callable[..., None], value: str) -> None:
    secrets(KEY=value)
    with pytest.raises(SettingsError, match="openssl rand -base64 32") as told:
        addresses("", "env:KEY")
    assert value not in str(told.value)


def test_a_secret_that_is_not_there_is_said() -> None:
    with pytest.raises(SettingsError, match="ALERT_WEBHOOK: env:NOT_THERE is empty or absent"):
        addresses("env:NOT_THERE", "")
    with pytest.raises(SettingsError, match="ALERT_SECRET: .*not a secret reference"):
        addresses("", "whsec_inline:x")
