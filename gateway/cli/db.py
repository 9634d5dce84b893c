"""`weighbridge db`: the schema of the database. Exit status 1 where it is not the present one."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The schema of the database.")

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


def _print(which: str, found: str | None, needed: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"database": which, "schema": found, "needed": needed}, indent=2))
        return
    state = "up to date" if found == needed else "run `weighbridge db upgrade`"
    typer.echo(f"{which}: schema {found or 'none'}, this version needs {needed}: {state}")
