"""`weighbridge db`: the database's schema and its upkeep.

Exit status 1 where the schema is not the present one, or sums are not what their rows make.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.ledger.retention import Due
    from gateway.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The database: its schema and its upkeep.")

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def upgrade(as_json: _Json = False) -> None:
    """Bring the database to the schema this version needs. Safe to repeat.

    Example: WEIGHBRIDGE_DATABASE_URL=postgresql://db/weighbridge weighbridge db upgrade
    """
    import asyncio

    from gateway.ledger import store
    from gateway.settings import Settings

    url = Settings.load().ledger_url
    asyncio.run(store.upgrade(url))
    _print(store.which(url), store.SCHEMA, store.SCHEMA, as_json=as_json)


@app.command()
def current(as_json: _Json = False) -> None:
    """Show the database's schema and the one this version needs.

    Example: weighbridge db current --json
    """
    import asyncio

    from gateway.ledger import store
    from gateway.settings import Settings

    url = Settings.load().ledger_url
    found = asyncio.run(store.current(url))
    _print(store.which(url), found, store.SCHEMA, as_json=as_json)
    if found != store.SCHEMA:
        raise typer.Exit(1)


@app.command()
def compact(as_json: _Json = False) -> None:
    """Merge what was added to the sums by hour. A running gateway does so every minute.

    Example: weighbridge db compact
    """
    import asyncio

    from gateway.cli.database import ledger
    from gateway.settings import Settings

    async def run() -> int:
        async with ledger(Settings.load()) as store:
            return await store.compact()

    hours = asyncio.run(run())
    typer.echo(json.dumps({"hours": hours}) if as_json else f"{_many(hours, 'hour')} merged")


@app.command()
def rebuild_rollups(
    check: Annotated[bool, typer.Option("--check", help="Compare only, change nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Make the sums by hour again from the rows, while the gateway goes on. Safe to stop.

    Example: weighbridge db rebuild-rollups --check
    """
    import asyncio

    from gateway.cli.database import ledger
    from gateway.settings import Settings

    async def run() -> tuple[int, int]:
        async with ledger(Settings.load()) as store:
            with _bar("hours") as progress:
                if check:
                    found = await store.rollups_agree(progress=progress)
                    return found.hours, len(found.differences)
                return await store.rebuild_rollups(progress=progress), 0

    hours, wrong = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps({"hours": hours, "differences": wrong, "changed": not check}))
    elif not check:
        typer.echo(f"{_many(hours, 'hour')} made again")
    elif wrong:
        typer.echo(f"{_many(wrong, 'sum')} of {_many(hours, 'hour')} not as the rows make them:")
        typer.echo("run `weighbridge db rebuild-rollups`, and `weighbridge audit` for the rows")
    else:
        typer.echo(f"the sums of {_many(hours, 'hour')} are what their rows make")
    if wrong:
        raise typer.Exit(1)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, only.")] = False,
    as_json: _Json = False,
) -> None:
    """Delete what is older than the settings KEEP_ROWS_MONTHS and KEEP_DECISIONS_DAYS say.

    Whole months of requests and attempts, never one that is not complete; the sums by hour stay.

    Example: WEIGHBRIDGE_KEEP_ROWS_MONTHS=24 weighbridge db prune --dry-run
    """
    import asyncio
    import time

    from gateway.cli.database import ledger
    from gateway.settings import Settings

    settings = Settings.load()

    async def run() -> None:
        async with ledger(settings) as store:
            now_us = int(time.time() * 1e6)
            due = await store.due(
                now_us=now_us,
                rows_months=settings.keep_rows_months or None,
                decisions_days=settings.keep_decisions_days or None,
            )
            _say_due(due, settings, dry_run=dry_run, as_json=as_json)
            if not dry_run:
                await store.prune(due, now_us=now_us)

    asyncio.run(run())


def _say_due(due: Due, settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    months = {f"{month // 100}-{month % 100:02}": count for month, count in due.months.items()}
    if as_json:
        found = {"months": months, "requests": due.requests, "decisions": due.decisions}
        typer.echo(json.dumps(found | {"deleted": not dry_run}, indent=2))
        return
    would = "would go" if dry_run else "go"
    if settings.keep_rows_months:
        kept = f"{_many(settings.keep_rows_months, 'complete month')} and the present one stay"
        typer.echo(f"rows: {_many(due.requests, 'request')} {would}; {kept}")
        for month, count in months.items():
            typer.echo(f"  {month}  {count:,}")
    else:
        typer.echo("rows: all stay; WEIGHBRIDGE_KEEP_ROWS_MONTHS is not set")
    if settings.keep_decisions_days:
        kept = f"those of {_many(settings.keep_decisions_days, 'day')} stay"
        typer.echo(f"decisions: {due.decisions:,} {would}; {kept}")
    else:
        typer.echo("decisions: all stay; WEIGHBRIDGE_KEEP_DECISIONS_DAYS is not set")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where somebody watches; it hears how many of how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _print(which: str, found: str | None, needed: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"database": which, "schema": found, "needed": needed}, indent=2))
        return
    state = "up to date" if found == needed else "run `weighbridge db upgrade`"
    typer.echo(f"{which}: schema {found or 'none'}, this version needs {needed}: {state}")
