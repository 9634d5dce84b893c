"""`weighbridge policy check`: everything that is wrong with the files people write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.options import AsJson, Folder, in_force, usage

if TYPE_CHECKING:
    from gateway.domain.catalog import Catalog
    from gateway.policy.source import Problem


def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Left out: everything in the folder."),
    ] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Read the files and print everything that is wrong with them, or ok.

    Example: weighbridge policy check policies/routing/mine.yaml
    """
    folder = folder or in_force()
    wanted = files or _all(folder)
    _require(wanted or [folder / "catalog.yaml"])
    problems, notes = _check(wanted, folder)
    if as_json:
        body: dict[str, Any] = {
            "ok": not problems,
            "files": [str(file) for file in wanted],
            "problems": [_as_dict(problem) for problem in problems],
            "notes": notes,
        }
        typer.echo(json.dumps(body, indent=2))
    else:
        for problem in problems:
            typer.echo(str(problem))
        for note in notes:
            typer.echo(f"note: {note}")
        bad = len({problem.source for problem in problems})
        typer.echo(
            f"{len(problems)} problems in {bad} of {len(wanted)} files" if problems else "ok"
        )
    raise typer.Exit(1 if problems else 0)


def _check(files: list[Path], folder: Path) -> tuple[list[Problem], list[str]]:
    """All problems of the files, and what is worth knowing although it is none."""
    from gateway.policy.source import ConfigErrors

    kinds = {file: _kind(file) for file in files}
    problems: list[Problem] = []
    notes: list[str] = []
    catalog_file = next((f for f in files if kinds[f] == "catalog"), folder / "catalog.yaml")
    catalog: Catalog | None = None
    if "catalog" in kinds.values() or "routing" in kinds.values():
        _require([catalog_file])
        try:
            catalog = _catalog(catalog_file)
        except ConfigErrors as errors:
            problems += errors.problems
    try:
        notes += _prices([f for f in files if kinds[f] == "prices"], catalog)
    except ConfigErrors as errors:
        problems += errors.problems
    for file in (f for f in files if kinds[f] == "routing"):
        if catalog is None:
            notes.append(f"{file} not checked: its catalog {catalog_file} does not load")
            continue
        try:
            _routing(file, catalog)
        except ConfigErrors as errors:
            problems += errors.problems
    return problems, notes


def _catalog(file: Path) -> Catalog:
    from gateway.policy.catalog import load_catalog

    return load_catalog(_read(file), source=str(file), secret_present=_secret_present)


def _routing(file: Path, catalog: Catalog) -> None:
    from gateway.policy.language import load_policy

    load_policy(_read(file), source=str(file), catalog=catalog)


def _prices(files: list[Path], catalog: Catalog | None) -> list[str]:
    from gateway.domain.catalog import Target
    from gateway.ledger.prices import load_prices

    book = load_prices((str(file), _read(file)) for file in files)
    if catalog is None or not files:
        return []
    served = {Target(name, m) for name, backend in catalog.backends.items() for m in backend.models}
    unpriced = sorted(str(target) for target in served - set(book.rows))
    stray = sorted(str(target) for target in set(book.rows) - served)
    return [
        *(f"no price for {target}: unpriced, not free" for target in unpriced),
        *(f"a price for {target}, which is not in the catalog" for target in stray),
    ]


def _kind(file: Path) -> str:
    """By what the file holds: a routing policy may be checked under any name."""
    from gateway.policy.source import keys

    top = keys(_read(file))
    if "backends" in top or file.name == "catalog.yaml":
        return "catalog"
    return "prices" if "prices" in top or file.parent.name == "prices" else "routing"


def _all(folder: Path) -> list[Path]:
    catalog = folder / "catalog.yaml"
    found = [*sorted(folder.glob("prices/*.yaml")), *sorted(folder.glob("routing/*.yaml"))]
    return [catalog, *found] if catalog.is_file() else found


def _read(file: Path) -> str:
    # What is not UTF-8 becomes a lone surrogate here, and a finding with a position in the reader.
    return file.read_text(encoding="utf-8-sig", errors="surrogateescape")


def _secret_present(reference: str) -> bool:
    from gateway.settings import SecretMissing, secret

    try:
        secret(reference)
    except SecretMissing:
        return False
    return True


def _as_dict(problem: Problem) -> dict[str, Any]:
    fields = ("source", "line", "column", "path", "message", "hint")
    return {name: getattr(problem, name) for name in fields}


def _require(files: list[Path]) -> None:
    for file in files:
        if not file.is_file():
            usage(f"no such file: {file}")
