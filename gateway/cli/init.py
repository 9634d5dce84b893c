"""`weighbridge init`: starter policies for someone who has the package but not the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def init(
    directory: Annotated[Path, typer.Argument(help="Folder to write into; made if missing.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Write the starter policies: catalog, prices, routing, schemas.

    Nothing that is there is overwritten: it stops before the first file if one exists.

    Example: weighbridge init ./config && weighbridge serve --policies ./config
    """
    from gateway.settings import bundled

    source = bundled("policies")
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    taken = [f for f in files if (directory / f).exists()]
    if taken:
        typer.echo(
            f"weighbridge: {directory / taken[0]} exists"
            + (f" (and {len(taken) - 1} more)" if len(taken) > 1 else "")
            + "; nothing was written. Choose an empty folder.",
            err=True,
        )
        raise typer.Exit(2)
    for file in files:
        target = directory / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((source / file).read_bytes())
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), "files": [str(f) for f in files]}))
        return
    for file in files:
        typer.echo(f"  {directory / file}")
    typer.echo(
        f"\nNext: export WEIGHBRIDGE_POLICIES={directory}, set the keys of your vendors "
        "(see catalog.yaml), then\n  weighbridge policy check\n  weighbridge serve"
    )
