"""`weighbridge policy schema`: what editors complete and check the files with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gateway.cli.policy.options import AsJson, Folder, in_force, usage


def schema(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="[catalog|routing|policy-tests|prices|limits]", help="Print this one."
        ),
    ] = "",
    folder: Folder = None,
    write: Annotated[bool, typer.Option("--write", help="Write all to DIR/schema/.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fail where DIR/schema/ differs.")] = False,
    as_json: AsJson = False,
) -> None:
    """The JSON Schemas that editors complete and check these files with.

    Example: weighbridge policy schema --check
    """
    schemas = _schemas()
    if kind:
        if kind not in schemas or write or check:
            usage(f"give one of {', '.join(schemas)} alone, or --write, or --check")
        typer.echo(schemas[kind], nl=False)
        return
    if write == check:
        usage("give a kind, or --write, or --check")
    folder = folder or in_force()
    stale = []
    for name, text in schemas.items():
        path = folder / "schema" / f"{name}.schema.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path))
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"ok": write or not stale, "written" if write else "stale": stale}))
    else:
        for path_name in stale:
            typer.echo(f"{'wrote' if write else 'out of date:'} {path_name}")
        if check and stale:
            typer.echo("run: weighbridge policy schema --write")
        elif not stale:
            typer.echo("ok")
    raise typer.Exit(1 if check and stale else 0)


def _schemas() -> dict[str, str]:
    from gateway.ledger import prices
    from gateway.policy import cases, catalog, language, limits

    made = {
        "catalog": catalog.schema(),
        "routing": language.schema(),
        "policy-tests": cases.schema(),
        "prices": prices.schema(),
        "limits": limits.schema(),
    }
    return {
        name: json.dumps(body, indent=2, ensure_ascii=False) + "\n" for name, body in made.items()
    }
