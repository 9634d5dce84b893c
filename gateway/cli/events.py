"""`weighbridge events`: what happened to our own engines, from the ledger's database."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.traffic import Bounds, Since, Until, bounds

if TYPE_CHECKING:
    from gateway.ledger.fleet_events import Told
    from gateway.settings import Settings


def events(
    since: Since = "7d",
    until: Until = "",
    backend: Annotated[
        str | None, typer.Option(help="Of this backend, or of one replica: vllm#a.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only these: straggler, stalls, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The newest so many.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what happened to our own engines: stragglers, stalls, crashes; the newest first.

    Example: weighbridge events --since 24h --backend vllm
    """
    import asyncio

    from gateway.settings import Settings

    period = bounds(since, until, dt.datetime.now(dt.UTC))
    end_us = period.until_us if until else None
    found = asyncio.run(_read(Settings.load(), period.since_us, end_us, backend, kind, limit))
    if as_json:
        typer.echo(json.dumps([_shown(one) for one in found], indent=2))
        return
    if not found:
        typer.echo(f"nothing happened from {Bounds(period.since_us, period.until_us)}")
        return
    from gateway.cli.policy.tables import print_table, table_of

    table = table_of("time (UTC)", "kind", "subject", "figures", "seen by")
    for one in found:
        table.add_row(_when(one.at_us), one.kind, one.subject, _figures(one), one.source)
    print_table(table)


async def _read(
    settings: Settings,
    since_us: int,
    until_us: int | None,
    backend: str | None,
    kind: str | None,
    limit: int,
) -> list[Told]:
    from gateway.cli.database import ledger
    from gateway.ledger.fleet_events import read

    async with ledger(settings) as store:
        return await read(
            store, since_us=since_us, until_us=until_us, backend=backend, kind=kind, limit=limit
        )


def _shown(one: Told) -> dict[str, Any]:
    return {
        "id": one.id,
        "at": _when(one.at_us).replace(" ", "T") + "Z",
        "kind": one.kind,
        "subject": one.subject,
        "source": one.source,
        "figures": dict(one.figures),
    }


def _when(us: int) -> str:
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _figures(one: Told) -> str:
    return ", ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in one.figures.items()
    )
