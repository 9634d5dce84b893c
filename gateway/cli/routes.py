"""`weighbridge routes`: what an app may ask for, who may serve it, and what is not configured."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def routes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List aliases, their targets and which backends are not configured.

    Example: weighbridge routes
    """
    import time

    from gateway.app import load_files
    from gateway.settings import Settings

    files = load_files(Settings.load())
    catalog = files.catalog
    rates = files.prices.in_force(time.time_ns() // 1000)
    rows = [
        {
            "alias": alias.name,
            "target": str(target),
            "kind": catalog.backends[target.backend].kind.value,
            "clearance": catalog.privacy_classes[catalog.backends[target.backend].clearance],
            "priced": target in rates,
            "configured": catalog.backends[target.backend].configured,
            "why": catalog.backends[target.backend].why_unconfigured,
        }
        for alias in catalog.aliases.values()
        for target in alias.targets
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from gateway.cli.policy.tables import print_table, table_of

    table = table_of("alias", "target", "kind", "cleared for", "price", "state")
    before = ""
    for row in rows:
        state = "ready" if row["configured"] else f"not configured: {row['why']}"
        table.add_row(
            str(row["alias"]) if row["alias"] != before else "",
            str(row["target"]),
            str(row["kind"]),
            str(row["clearance"]),
            "known" if row["priced"] else "unknown",
            state,
            style=None if row["configured"] else "dim",
        )
        before = str(row["alias"])
    typer.echo(f"policy {files.label}")
    print_table(table)
