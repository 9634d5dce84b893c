"""The book that the prices commands read, and the options that they share."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.policy.options import in_force, usage

if TYPE_CHECKING:
    from gateway.domain.catalog import Catalog, Target
    from gateway.ledger.prices import PriceBook

At = Annotated[
    str,
    typer.Option("--at", metavar="DATE|TIME", help="Prices of then, UTC unless it says a zone."),
]
Backend = Annotated[str, typer.Option("--backend", help="Only this backend.")]
Provider = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        metavar="BACKEND=ID",
        help="What sources call the vendor behind a backend, where we do not know.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A policy folder's catalog and price book."""

    folder: Path
    catalog: Catalog
    book: PriceBook

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "prices").glob("*.yaml"))

    def targets(self) -> list[Target]:
        """All models of the catalog, then those that only the book knows."""
        from gateway.domain.catalog import Target

        known = [
            Target(backend.name, model)
            for backend in self.catalog.backends.values()
            for model in backend.models
        ]
        return list(dict.fromkeys((*known, *self.book.rows)))


def opened(folder: Path | None) -> Opened:
    """The folder's catalog and prices. Raises ConfigErrors with all that is wrong with them."""
    from gateway.ledger.prices import load_prices
    from gateway.policy.catalog import load_catalog

    folder = folder or in_force()
    file = folder / "catalog.yaml"
    if not file.is_file():
        usage(f"no such file: {file}")
    catalog = load_catalog(text(file), source=str(file), secret_present=_present)
    regions = {name: backend.data.region for name, backend in catalog.backends.items()}
    paths = sorted((folder / "prices").glob("*.yaml"))
    book = load_prices([(str(path), text(path)) for path in paths], regions)
    return Opened(folder=folder, catalog=catalog, book=book)


def _present(reference: str) -> bool:
    from gateway.settings import SecretMissing, secret

    try:
        secret(reference)
    except SecretMissing:
        return False
    return True


def text(file: Path) -> str:
    """What is not UTF-8 becomes a finding with a position in the reader."""
    return file.read_text(encoding="utf-8-sig", errors="surrogateescape")


def moment(said: str) -> dt.datetime:
    """`--at` as a moment; now where it was not given."""
    if not said:
        return dt.datetime.now(dt.UTC)
    try:
        at = dt.datetime.fromisoformat(said)
    except ValueError:
        usage(f"--at {said}: not a date or a time; like 2026-11-24 or 2026-11-24T16:30")
    return at.replace(tzinfo=dt.UTC) if at.tzinfo is None else at


def pairs(said: list[str] | None) -> dict[str, str]:
    """`--provider BACKEND=ID`, each."""
    found = {}
    for one in said or []:
        backend, equals, name = one.partition("=")
        if not (backend and equals and name):
            usage(f"--provider {one}: write it as BACKEND=ID, like hosted-glm=zai")
        found[backend] = name
    return found
