"""`weighbridge audit`: everything that must hold of the ledger, looked up again from its rows.

Reads the database, this machine's journals and, where there is a Redis, the open holds; changes
nothing, and may run while gateways work. Exit status 1 where a law is broken, with --strict also
where something only waits or could not be checked.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.traffic import Since, Until, bounds, moment
from gateway.cli.progress import progress

if TYPE_CHECKING:
    from gateway.ledger.audit import Check, Report
    from gateway.ledger.laws import Book
    from gateway.settings import Settings

HOLDS = 1_000  # asked of Redis at a time
_COLOURS = {"ok": "green", "violation": "red", "warning": "yellow", "nothing": "dim"}


def audit(
    since: Since = "7d",
    until: Until = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Warnings count too: exit status 1.")
    ] = False,
) -> None:
    """Check that every row of the ledger adds up, and that none is missing.

    Sums, prices, times, outcomes, privacy, decisions and copies of every request of the period,
    and what still lies in this machine's journal.

    Example: weighbridge audit --since 30d --strict
    """
    import asyncio

    from gateway.settings import Settings

    settings = Settings.load()
    period = bounds(since, until, dt.datetime.now(dt.UTC))
    end_us = period.until_us if until else None
    report = asyncio.run(audited(settings, period.since_us, end_us))
    if as_json:
        typer.echo(json.dumps(_as_json(report), indent=2))
    else:
        _print(report)
    if report.count("violation") or (strict and report.count("warning")):
        raise typer.Exit(1)


async def audited(settings: Settings, since_us: int, until_us: int | None = None) -> Report:
    """The audit of this instance. Raises StoreUnreachable, StoreUnavailable."""
    from gateway.cli.database import ledger
    from gateway.ledger import audit as ledger_audit

    async with ledger(settings) as store:
        total = await ledger_audit.count(store, since_us, until_us)
        with progress("auditing", total) as advance:
            return await ledger_audit.audit(
                store,
                read=read,
                since_us=since_us,
                until_us=until_us,
                journal=settings.journal_dir,
                holds=_holds(settings) if settings.redis_url else None,
                progress=advance,
            )


def read(files: Mapping[str, str]) -> tuple[str, Book]:
    """The digest of a bundle's texts, and what rows are held against. Raises Unreadable."""
    from gateway.bundle import CATALOG, PRICES, digest
    from gateway.ledger.audit import Unreadable
    from gateway.ledger.laws import Book
    from gateway.ledger.prices import load_prices
    from gateway.policy.catalog import load_catalog
    from gateway.policy.source import ConfigErrors

    try:
        catalog = load_catalog(files[CATALOG], source=CATALOG, secret_present=lambda _: True)
        prices = load_prices(
            [(path, text) for path, text in files.items() if path.startswith(PRICES)],
            {name: backend.data.region for name, backend in catalog.backends.items()},
        )
    except KeyError:
        raise Unreadable(f"there is no {CATALOG}") from None
    except ConfigErrors as errors:
        raise Unreadable(str(errors.problems[0])) from errors
    return digest(files), Book(
        ranks={name: rank for rank, name in enumerate(catalog.privacy_classes)},
        clearance={name: backend.clearance for name, backend in catalog.backends.items()},
        prices=prices,
    )


async def _holds(settings: Settings) -> AsyncIterator[Sequence[str]]:
    """The requests for which a budget is held, in pages; none, and a word, if Redis is away."""
    from gateway.limits.counters import LEASES
    from gateway.redis_link import RedisDown, RedisLink

    link = RedisLink(settings.redis_url, timeout_s=5.0)
    try:
        await link.connect()
        for start in range(0, 10**9, HOLDS):
            page = await link.command("ZRANGE", LEASES, start, start + HOLDS - 1)
            if page:
                yield [member.decode() for member in page]
            if len(page) < HOLDS:
                return
    except RedisDown as error:
        typer.echo(f"weighbridge: open holds were not checked: Redis: {error}", err=True)
    finally:
        await link.aclose()


# --- out --------------------------------------------------------------------------------------


def _state(check: Check) -> str:
    return check.state if check.looked or check.broken else "nothing"


def _as_json(report: Report) -> dict[str, Any]:
    violations, warnings = report.count("violation"), report.count("warning")
    return {
        "ok": not violations,
        "from": _iso(report.since_us),
        "until": _iso(report.until_us),
        "violations": violations,
        "warnings": warnings,
        "figures": report.figures,
        "checks": [
            {
                "name": check.name,
                "law": check.says,
                "state": _state(check),
                "looked_at": check.looked,
                "found": check.broken,
                "first": [found._asdict() for found in check.first],
                "what_to_do": check.fix if check.broken else None,
            }
            for check in report.checks.values()
        ],
    }


def _print(report: Report) -> None:
    from rich.markup import escape
    from rich.table import Table

    from gateway.cli.policy.tables import console

    out = console()
    period = f"{moment(report.since_us)} to {moment(report.until_us)} UTC"
    table = Table(title=f"requests from {period}", box=None, pad_edge=False, title_justify="left")
    for name in ("check", "law"):
        table.add_column(name)
    for name in ("looked at", "found"):
        table.add_column(name, justify="right")
    table.add_column("")
    for check in report.checks.values():
        state = _state(check)
        found = f"{check.broken:,}" if state != "nothing" else "-"
        colour = _COLOURS[state]
        word = {"ok": "ok", "nothing": "nothing to check"}.get(state, state)
        table.add_row(
            check.name, check.says, f"{check.looked:,}", found, f"[{colour}]{word}[/{colour}]"
        )
    out.print(table)
    for check in report.checks.values():
        if check.broken:
            out.print(f"\n[{_COLOURS[check.weight]}]{check.name}[/]: {check.broken:,} found")
            for one in check.first:
                out.print(f"  {escape(one.id)}: {escape(one.what)}")
            if check.broken > len(check.first):
                out.print(f"  and {check.broken - len(check.first):,} more")
            out.print(f"  What to do: {escape(check.fix)}")
    out.print(f"\n{_figures(report)}")
    out.print(_verdict(report))


def _figures(report: Report) -> str:
    from gateway.domain.money import usd

    figures = report.figures
    shown = [f"${usd(figures['cost_nano_usd'])} booked"]
    for name, count in figures.items():
        if name != "cost_nano_usd" and (count or name in {"unpriced_requests", "rows_waiting"}):
            shown.append(f"{count:,} {name.replace('_', ' ')}")
    return "; ".join(shown)


def _verdict(report: Report) -> str:
    violations, warnings = report.count("violation"), report.count("warning")
    also = f", {_many(warnings, 'warning')}" if warnings else ""
    if violations:
        broken = sum(c.state == "violation" for c in report.checks.values())
        return f"{_many(violations, 'violation')} of {_many(broken, 'law')}{also}"
    return f"clean: no violation in {report.figures['requests']:,} requests{also}"


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _iso(us: int) -> str:
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
