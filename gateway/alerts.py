"""News of budgets, told to people: the log, the metrics, and addresses that take a POST.

Owns the document and its delivery (`webhooks` is one try). What is news, and that it is told by one
worker of all, is the gates' (`limits.news`); a process without Redis claims each event in its home,
so that neither its other workers nor its next start tell it again.

`text` of the document is what Slack and its likes show.

INVARIANTS
- No request waits for any of this: `heard` logs, counts and queues.
- Everything is bounded: a queue per address, so many tries each, so long per try. What finds no
  room or is not taken is dropped, counted and logged; it is told at most once.
- No content of requests, no key, no address of a webhook is in a document, a log or a metric.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import orjson

from gateway.domain.limit import AtLimit, Limit, Unit
from gateway.domain.money import shown, usd
from gateway.limits import Alert, Event, Gate, LocalGate
from gateway.limits.news import WHOLE, of_share
from gateway.runtime import Clock, TaskOwner
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.webhooks import Addresses, Answer, Webhook, addresses, client_to, post

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("weighbridge")

QUEUE_MAX = 256  # events that wait for one address
TRIES_MAX = 6
PAUSE_S_FIRST, PAUSE_S_MAX = 1.0, 60.0
LOOK_S = 5.0  # how soon after its start a new period is told
DRAIN_S_MAX = 5.0
CLAIM_S = 40 * 86_400  # longer than any period
TEST = "test"
FOLDER = "alerts"  # below the home


# --- the document ---------------------------------------------------------------------------------


def event_id(alert: Alert) -> str:
    """The same on every node and at every try: a receiver may drop what it has seen."""
    what = alert.event, alert.limit.name, alert.holder, f"{alert.share:g}", alert.start_s
    if alert.event is Event.OVERRUN:
        what = (*what[:3], "", alert.start_s)
    return "evt_" + hashlib.sha256(orjson.dumps(what)).hexdigest()[:32]


def document(alert: Alert, *, at_s: float, gateway: str, parts: int = 1) -> dict[str, Any]:
    """What is sent. Amounts are exact decimal text; `currency` is null where tokens are counted.

    `parts`: without Redis each of so many workers has its part of the limit, and tells of that.
    """
    limit = alert.limit
    money = limit.unit is Unit.USD
    exact = usd if money else str
    return {
        "event": alert.event.value,
        "id": event_id(alert),
        "text": _slack(sentence(alert, parts=parts)),
        "at": _utc(at_s),
        "gateway": gateway,
        "limit": limit.name,
        "per": limit.per,
        "holder": alert.holder,
        "share": round(alert.share, 6),
        "spent": exact(alert.spent),
        "amount": exact(limit.amount),
        "unit": limit.unit.value,
        "currency": "USD" if money else None,
        "beyond": exact(alert.beyond),
        "period": limit.period.value if limit.period is not None else None,
        "period_start": _local(alert.start_s, limit.zone).isoformat(),
        "period_end": _local(alert.end_s, limit.zone).isoformat(),
        "at_limit": limit.at_limit.value,
        "parts": parts,
    }


def probe_document(*, at_s: float, gateway: str) -> dict[str, Any]:
    """An event that says that it is none."""
    return {
        "event": TEST,
        "id": f"evt_test_{int(at_s * 1000)}",
        "text": f"Test of budget alerts from weighbridge on {_slack(gateway)}: nothing is wrong.",
        "at": _utc(at_s),
        "gateway": gateway,
    }


def sentence(alert: Alert, *, parts: int = 1) -> str:
    """The same for people."""
    limit, span = alert.limit, alert.limit.period.value if alert.limit.period else ""
    who = f"{limit.per} {alert.holder}"
    spent, whole = _amount(limit, alert.spent), _amount(limit, limit.amount)
    if parts > 1:
        whole += f" (the part of one of {parts} workers)"
    until = f"{_local(alert.end_s, limit.zone):%Y-%m-%d %H:%M} {limit.zone}"
    match alert.event:
        case Event.SHARE:
            said = (
                f"{who} has passed {alert.share * 100:g} % of {whole} this {span}: "
                f"{spent} used ({alert.spent / limit.amount * 100:.1f} %)"
            )
        case Event.EXHAUSTED:
            then = "take another route" if limit.at_limit is AtLimit.ROUTE else "are refused"
            said = (
                f"{who} has used up {whole} of this {span}, {spent} of it in fact; until {until} "
                f"requests that do not fit {then}"
            )
        case Event.OVERRUN:
            said = (
                f"a request of {who} used {_amount(limit, alert.beyond)} more than was held for "
                f"it; {spent} of {whole} ({alert.share * 100:.1f} %) is used this {span}"
            )
        case Event.RESET:
            said = f"a new {span} has begun for {who}: {whole} until {until}"
    return f"{'Budget' if limit.unit is Unit.USD else 'Limit'} {limit.name}: {said}."


def _amount(limit: Limit, amount: int) -> str:
    return shown(amount) if limit.unit is Unit.USD else f"{amount:,} {limit.unit.value}"


def _slack(text: str) -> str:
    """Slack's three: a tag of a key must not become a mention or a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _utc(at_s: float) -> str:
    return dt.datetime.fromtimestamp(at_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _local(at_s: int, zone: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_s, ZoneInfo(zone))


# --- delivery -------------------------------------------------------------------------------------


class _NotTaken(Exception):
    """A try failed."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


class Alerts:
    """What a worker tells of its gate. `claim` says whether an event is ours to tell."""

    def __init__(
        self,
        to: Addresses,
        gate: Gate,
        telemetry: Telemetry,
        clock: Clock,
        *,
        gateway: str,
        claim: Callable[[str], bool] = lambda _: True,
        parts: int = 1,
        pause_s: float = PAUSE_S_FIRST,
    ) -> None:
        self._to = to
        self._gate = gate
        gate.heard.alert, gate.heard.overrun = self.heard, telemetry.limit_overrun
        self._limits: Callable[[], Sequence[Limit]] = tuple
        self._telemetry = telemetry
        self._clock = clock
        self._gateway = gateway
        self._claim = claim
        self._parts = parts
        self._pause_s = pause_s
        self._tasks = TaskOwner("alerts")
        self._queues: list[asyncio.Queue[dict[str, Any]]] = []

    def start(self, limits: Callable[[], Sequence[Limit]]) -> None:
        """Send from now on, until `drain`, and look what starts anew of the `limits` in force."""
        self._limits = limits
        for webhook in self._to.webhooks:
            queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE_MAX)
            self._queues.append(queue)
            self._tasks.start(self._send_forever(webhook, queue), webhook.host)
        self._tasks.start(self._look_forever(), "look")

    def heard(self, alert: Alert) -> None:
        """A gate has news. Does not wait and never raises: it is called between two answers."""
        try:
            if not self._claim(event_id(alert)):
                return
            log.warning("%s", sentence(alert, parts=self._parts))
            of_share = alert.event in (Event.SHARE, Event.EXHAUSTED)
            share = f"{alert.share:g}" if of_share else ""
            self._telemetry.limit_alert(alert.limit.name, alert.event.value, share)
            found = document(
                alert, at_s=self._clock.wall(), gateway=self._gateway, parts=self._parts
            )
            for webhook, queue in zip(self._to.webhooks, self._queues, strict=False):
                try:
                    queue.put_nowait(found)
                except asyncio.QueueFull:
                    self._dropped(webhook, found, "too many wait for it")
        except Exception:
            log.exception("an alert of the limit %s could not be told", alert.limit.name)

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Tell of what has started anew; whatever the gate had to tell before is heard then too."""
        for alert in await self._gate.resets(self._limits()):
            self.heard(alert)

    async def drain(self, timeout_s: float = DRAIN_S_MAX) -> None:
        """Hear and send what waits within `timeout_s`; what is left is dropped."""
        await self.look()
        waiting = [asyncio.ensure_future(queue.join()) for queue in self._queues]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout_s)
            for task in late:
                task.cancel()
        await self._tasks.drain(0.0)
        for webhook, queue in zip(self._to.webhooks, self._queues, strict=True):
            while not queue.empty():
                self._dropped(webhook, queue.get_nowait(), "the gateway ends")

    async def _send_forever(self, webhook: Webhook, queue: asyncio.Queue[dict[str, Any]]) -> None:
        async with await asyncio.to_thread(client_to, webhook) as client:
            while True:
                found = await queue.get()
                try:
                    await self._send(client, webhook, found)
                except asyncio.CancelledError:
                    self._dropped(webhook, found, "the gateway ends")
                    raise
                except _NotTaken as error:
                    answer = error.answer  # what it says may repeat its address
                    said = f"it answers {answer.status}" if answer.status else answer.text
                    self._dropped(webhook, found, said)
                except Exception:
                    log.exception("the alert %s could not be sent", found["id"])
                finally:
                    queue.task_done()

    async def _send(
        self, client: httpx.AsyncClient, webhook: Webhook, found: dict[str, Any]
    ) -> None:
        """Raises _NotTaken after the last try."""
        from tenacity import (
            AsyncRetrying,
            RetryCallState,
            retry_if_exception,
            stop_after_attempt,
            wait_random_exponential,
        )

        growing = wait_random_exponential(
            multiplier=self._pause_s, max=PAUSE_S_MAX, min=self._pause_s
        )

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked = error.answer.retry_after_s if isinstance(error, _NotTaken) else 0.0
            return min(max(growing(state), asked), PAUSE_S_MAX)

        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(TRIES_MAX),
            wait=pause,
            retry=retry_if_exception(lambda e: isinstance(e, _NotTaken) and e.answer.may_pass),
            reraise=True,
        ):
            with attempt:
                answer = await post(client, webhook, self._to.key, found, self._clock.wall())
                if not answer.taken:
                    raise _NotTaken(answer)
        self._telemetry.alert_delivery("sent")

    def _dropped(self, webhook: Webhook, found: dict[str, Any], why: str) -> None:
        log.error(
            "alert %s (%s) did not reach %s: %s", found["id"], found["event"], webhook.host, why
        )
        self._telemetry.alert_delivery("dropped")


def exhausted_at(home: Path, limit: Limit, holder: str, start_s: int) -> float | None:
    """When processes without Redis told that it is exhausted, by their claim; None: not known."""
    told = of_share(limit, holder, WHOLE, limit.amount, (start_s, 0))
    try:
        return (home / FOLDER / event_id(told)).stat().st_mtime
    except OSError:
        return None


class HomeClaims:
    """Events told by the processes of one home: whoever makes an event's file first tells it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.stat().st_mtime < clock.wall() - CLAIM_S:
                path.unlink(missing_ok=True)

    def __call__(self, event: str) -> bool:
        """Whether it is ours to tell. Where the disk fails it is: twice is better than never."""
        try:
            os.close(os.open(self._folder / event, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return False
        except OSError as error:
            log.warning("alerts: %s", error)
        return True


def alerts_of(settings: Settings, gate: Gate, telemetry: Telemetry, clock: Clock) -> Alerts:
    """A worker's, as it is set up. Raises SettingsError."""
    alone = isinstance(gate, LocalGate)
    return Alerts(
        addresses(settings.alert_webhook, settings.alert_secret),
        gate,
        telemetry,
        clock,
        gateway=socket.gethostname(),
        claim=HomeClaims(settings.home / FOLDER, clock) if alone else lambda _: True,
        parts=settings.workers if alone else 1,
    )
