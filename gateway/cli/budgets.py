"""`weighbridge budgets`: how the limits in dollars stand, and whether alerts arrive."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from gateway.domain.limit import Limit
    from gateway.domain.money import Currency
    from gateway.ledger.prices import PriceBook
    from gateway.limits.counters import Counts
    from gateway.reports.budgets import Budget, Status
    from gateway.settings import Settings

app = typer.Typer(rich_markup_mode=None)

_BAR = 16
_REDIS_S_MAX = 5.0
_TWO_DAYS_S = 2 * 86_400
_THEN = {"refuse": "refused", "route": "routes that match `spent`"}

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def budgets(
    context: typer.Context,
    as_json: AsJson = False,
    currency: Annotated[str, typer.Option(help="Show amounts in it, like EUR.")] = "",
) -> None:
    """Each limit in dollars with each of its holders: used, held, left, forecast, ledger.

    What counts is the counter, in Redis or in the home of a process without it; beside it stands
    what the ledger has of the same period, and why the two differ. Exit status 1 where something
    could not be asked: its figures are missing then.

    Example: weighbridge budgets --currency EUR
    """
    if context.invoked_subcommand is not None:
        return
    import asyncio

    from gateway.settings import Settings

    settings = Settings.load()
    limits, prices, status = asyncio.run(_look(settings))
    shown_in = _currency(prices, currency, status.now_s)
    if as_json:
        typer.echo(json.dumps(_as_dict(status, shown_in), indent=2))
    else:
        _print(limits, status, shown_in)
    raise typer.Exit(1 if status.missing else 0)


@app.command("test-alert")
def probe(as_json: AsJson = False) -> None:
    """Send an event that says it is a test to every webhook, and print what it answers.

    Exit status 1 where one does not take it, 2 where there is none.

    Example: WEIGHBRIDGE_ALERT_WEBHOOK=env:SLACK_URL weighbridge budgets test-alert
    """
    import asyncio
    import socket
    import time

    from gateway.alerts import probe_document
    from gateway.settings import Settings
    from gateway.webhooks import SECRET, WEBHOOK, addresses, client_to, post

    settings = Settings.load()
    to = addresses(settings.alert_webhook, settings.alert_secret)
    if not to.webhooks:
        _usage(f"nobody is told: {WEBHOOK} is not set; give it a reference to an address (env:URL)")
    now = time.time()
    found = probe_document(at_s=now, gateway=socket.gethostname())

    async def ask() -> list[dict[str, Any]]:
        said = []
        for webhook in to.webhooks:
            async with client_to(webhook) as client:
                answer = await post(client, webhook, to.key, found, now)
            said.append(
                {
                    "host": webhook.host,
                    "taken": answer.taken,
                    "status": answer.status,
                    "answer": answer.text,
                    "ms": round(answer.seconds * 1000),
                }
            )
        return said

    answers = asyncio.run(ask())
    if as_json:
        typer.echo(json.dumps({"signed": to.key is not None, "webhooks": answers}, indent=2))
    else:
        for one in answers:
            verdict = "took it" if one["taken"] else "did NOT take it"
            status = f"status {one['status']}, " if one["status"] else ""
            text = f": {one['answer']}" if one["answer"] else ""
            typer.echo(f"{one['host']} {verdict} ({status}{one['ms']} ms){text}")
        if to.key is None:
            typer.echo(f"not signed: {SECRET} is not set")
    raise typer.Exit(0 if all(one["taken"] for one in answers) else 1)


# --- asking ---------------------------------------------------------------------------------------


async def _look(settings: Settings) -> tuple[tuple[Limit, ...], PriceBook, Status]:
    """What is in force, and how it stands. What cannot be asked is said and left out."""
    import functools
    import time

    from gateway.alerts import exhausted_at
    from gateway.cli.database import ledger
    from gateway.ledger.store import StoreUnreachable
    from gateway.reports.budgets import status

    missing: list[str] = []
    counts: Counts | None
    since = functools.partial(exhausted_at, settings.home)
    try:
        async with ledger(settings) as store:
            limits, prices = await _in_force(settings, store)
            now_s, counts = await _counts(settings, limits, missing)
            found = await status(
                limits,
                now_s=now_s,
                counts=counts,
                store=store,
                journal=settings.journal_dir,
                missing=missing,
                since=since,
            )
    except StoreUnreachable as error:
        missing.append(f"the database cannot be asked, so the files count: {error}")
        limits, prices = await _in_force(settings, None)
        now_s, counts = await _counts(settings, limits, missing)
        found = await status(
            limits,
            now_s=now_s or time.time(),
            counts=counts,
            store=None,
            journal=settings.journal_dir,
            missing=missing,
            since=since,
        )
    return limits, prices, found


async def _in_force(settings: Settings, store: Any) -> tuple[tuple[Limit, ...], PriceBook]:
    """The newest version's limits and prices; before there is one, those of the files."""
    from gateway.app import load_files, secret_present
    from gateway.in_force import Folder, load_version
    from gateway.ledger.versions import Versions

    newest = None
    if store is not None:
        versions = Versions(store)
        newest = await versions.newest()
    if newest is None:
        bundle = load_files(settings)
    else:
        folder = Folder(path=settings.policies_dir, secret_present=secret_present)
        bundle = await load_version(versions, newest, folder)
    return bundle.limits, bundle.prices


async def _counts(
    settings: Settings, limits: tuple[Limit, ...], missing: list[str]
) -> tuple[float, Counts | None]:
    """The time that counters go by, and the counters; None where they cannot be read."""
    import time

    from gateway.limits.counters import in_home, in_redis
    from gateway.redis_link import RedisDown, RedisLink

    if not settings.redis_url:
        now_s = time.time()
        return now_s, in_home(settings.home, limits, now_s)
    try:
        link = RedisLink(settings.redis_url, timeout_s=_REDIS_S_MAX)
        await link.connect()
        try:
            return await in_redis(link, limits)
        finally:
            await link.aclose()
    except (RedisDown, ValueError) as error:
        missing.append(f"Redis cannot be asked, so what is used is the ledger's figure: {error}")
        return time.time(), None


def _currency(prices: PriceBook, code: str, now_s: float) -> Currency:
    from gateway.domain.money import DOLLARS, Currency
    from gateway.policy.source import nearest

    code = code.upper()
    if not code:
        return DOLLARS
    day = dt.datetime.fromtimestamp(now_s, dt.UTC).date()
    per_usd = prices.per_usd(code, day)
    if per_usd is None:
        there = sorted({one.currency for one in prices.currencies} | {"USD"})
        hint = nearest(code, there) or f"known are {', '.join(there)}"
        _usage(f"--currency {code}: no rate of it on {day} in the price files; {hint}")
    return Currency(code, per_usd)


# --- telling --------------------------------------------------------------------------------------


def _as_dict(status: Status, currency: Currency) -> dict[str, Any]:
    """Exact dollars, and the same in the currency asked for as it is shown."""
    from gateway.domain.money import shown, usd

    def money(nano: int | None) -> str | None:
        return None if nano is None else usd(nano)

    def moment(at_s: int | None, budget: Budget) -> str | None:
        return None if not at_s else _local(at_s, budget).isoformat()

    out = []
    for one in status.budgets:
        limit, booked = one.limit, one.booked
        amounts = {
            "amount": limit.amount,
            "used": one.used,
            "held": one.held,
            "left": one.left,
            "forecast": one.forecast,
            "ledger": None if booked is None else booked.nano_usd,
        }
        row: dict[str, Any] = {
            "limit": limit.name,
            "per": limit.per,
            "holder": one.holder,
            "name": status.names.get(one.holder) if limit.per == "key" else None,
            "every": None if limit.period is None else limit.period.value,
            "period_start": moment(one.start_s, one),
            "period_end": moment(one.end_s, one),
            **{name: money(nano) for name, nano in amounts.items()},
            "share": None if one.share is None else float(round(one.share, 6)),
            "state": one.state,
            "since": moment(None if one.since_s is None else int(one.since_s), one),
            "spent_at": moment(one.spent_at_s, one),
            "at_limit": limit.at_limit.value,
            "alert_shares": [share for share, _ in limit.thresholds],
            "ledger_rows": None if booked is None else booked.rows,
            "cut_off": None if booked is None else booked.cut_off,
            "unpriced": None if booked is None else booked.unpriced,
            "in_journal": None if booked is None else booked.unsent,
            "in_journal_usd": None if booked is None else usd(booked.unsent_nano),
            "differences": one.differences(),
        }
        if currency.code != "USD":
            row["shown"] = {
                name: None if nano is None else shown(nano, currency)
                for name, nano in amounts.items()
            }
        out.append(row)
    return {
        "at": dt.datetime.fromtimestamp(status.now_s, dt.UTC).isoformat(timespec="seconds"),
        "currency": currency.code,
        "per_usd": str(currency.per_usd),
        "budgets": out,
        "missing": list(status.missing),
    }


def _print(limits: tuple[Limit, ...], status: Status, currency: Currency) -> None:
    from gateway.cli.policy.tables import console

    out = console()
    for sentence in status.missing:
        out.print(f"[yellow]![/] {_plain(sentence)}")
    money = [limit for limit in limits if limit.unit.value == "usd"]
    if not money:
        others = f" ({len(limits)} of other kinds)" if limits else ""
        typer.echo(f"no limit in dollars is in force{others}; they stand in limits.yaml")
        return
    for limit in money:
        _print_limit(limit, status, currency)
    if currency.code != "USD":
        typer.echo(f"shown at {currency.per_usd} {currency.code} a dollar; counted in dollars")


def _print_limit(limit: Limit, status: Status, currency: Currency) -> None:
    from rich.table import Table

    from gateway.cli.policy.tables import console, print_table
    from gateway.domain.money import shown

    out = console()
    rows = [budget for budget in status.budgets if budget.limit is limit]
    names = status.names if limit.per == "key" else {}
    every = f"every {limit.period.value}" if limit.period else ""
    head = f"[bold]{limit.name}[/]: {shown(limit.amount, currency)} {every} per {_plain(limit.per)}"
    if rows and rows[0].end_s:
        head += f", anew {_local(rows[0].end_s, rows[0]):%Y-%m-%d %H:%M} {limit.zone}"
    out.print(f"{head}; at 100 %: {_THEN[limit.at_limit.value]}")
    if not rows:
        out.print("  nobody has used anything of it yet\n")
        return

    def money(nano: int | None) -> str:
        return "?" if nano is None else shown(nano, currency)

    table = Table(box=None, pad_edge=False)
    table.add_column(_plain(limit.per), overflow="fold")
    table.add_column("", no_wrap=True)
    for column in ("share", "used", "held", "left", "forecast", "used up", "ledger"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in rows:
        table.add_row(
            f"{_plain(one.holder)} [dim]{_plain(names.get(one.holder, ''))}[/]",
            _bar(one),
            "?" if one.share is None else f"{one.share:.1%}",
            money(one.used if one.used is not None else one.known),
            money(one.held),
            money(one.left),
            "" if one.forecast is None else money(one.forecast),
            _used_up(one),
            "?" if one.booked is None else money(one.booked.nano_usd),
        )
    print_table(table, indent=2)
    for one in rows:
        for difference in one.differences():
            out.print(f"  [dim]{_plain(one.holder)}: {_plain(difference)}[/]")
    out.print()


def _used_up(budget: Budget) -> str:
    """What it does already, or when it will by its pace."""
    day = budget.end_s - budget.start_s < _TWO_DAYS_S

    def moment(at_s: int) -> str:
        return f"{_local(at_s, budget):{'%H:%M' if day else '%b %d'}}"

    if budget.state in {None, "open"}:
        return "" if budget.spent_at_s is None else moment(budget.spent_at_s)
    since = "" if budget.since_s is None else f" since {moment(int(budget.since_s))}"
    return f"[red]{budget.state}[/]{since}"


def _bar(budget: Budget) -> str:
    """A colour says how far it is."""
    if budget.share is None:
        return ""
    full = min(_BAR, max(0, int(budget.share * _BAR)))
    alert = min((share for share, _ in budget.limit.thresholds), default=1.0)
    full_up = budget.share >= 1 or budget.exhausted
    colour = "red" if full_up else "yellow" if float(budget.share) >= alert else "green"
    return f"[{colour}]{'█' * full}[/][dim]{'░' * (_BAR - full)}[/]"


def _local(at_s: int, budget: Budget) -> dt.datetime:
    from zoneinfo import ZoneInfo

    return dt.datetime.fromtimestamp(at_s, ZoneInfo(budget.limit.zone))


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _usage(message: str) -> NoReturn:
    typer.echo(f"weighbridge: {message}", err=True)
    raise typer.Exit(2)
