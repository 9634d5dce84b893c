"""Options and endings that the policy commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="The folder with catalog.yaml; default: the one in force."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def in_force() -> Path:
    """The policy folder of this instance."""
    from gateway.settings import Settings, SettingsError

    try:
        return Settings.load().policies_dir
    except SettingsError as error:
        usage(str(error))


def usage(message: str) -> NoReturn:
    """Say it and end with 2."""
    typer.echo(message, err=True)
    raise typer.Exit(2)
