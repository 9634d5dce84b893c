"""`weighbridge prices check`: our price book against what others say."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.policy.options import AsJson, Folder, usage
from gateway.cli.prices.options import Backend, Opened, Provider, opened, pairs, text

if TYPE_CHECKING:
    from gateway.domain.catalog import Target
    from gateway.price_sources.disagreements import Finding
    from gateway.price_sources.sources import Source

_ORDER = ("error", "warning", "note")


def check(
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source", help="genai-prices, litellm, or a price sheet; default: both packages."
        ),
    ] = None,
    backend: Backend = "",
    days: Annotated[
        int, typer.Option(min=1, help="A figure read longer ago than this is stale.")
    ] = 45,
    day: Annotated[
        dt.datetime | None,
        typer.Option("--day", formats=["%Y-%m-%d"], help="Prices of this day; default: today."),
    ] = None,
    provider: Provider = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Where our prices part from what genai-prices and litellm say, and what is missing or old.

    Exit status 1 for disagreements and for configured vendors' models without a price, with
    --strict for warnings too. What one source says against ours and another confirms is a warning.

    Example: weighbridge prices check --days 30
    """
    known, today = opened(folder), (day or dt.datetime.now(dt.UTC)).date()
    if backend and backend not in known.catalog.backends:
        from gateway.policy.source import nearest

        usage(f"no backend '{backend}'; {nearest(backend, known.catalog.backends)}")
    from gateway.price_sources.disagreements import failed

    found, absent = _open(sources, pairs(provider))
    findings, compared = _look(known, found, backend, today, days)
    bad = failed(findings, strict=strict)
    if as_json:
        body = {
            "ok": not bad,
            "day": today.isoformat(),
            "sources": [source.label for source in found],
            "not_installed": absent,
            "compared": compared,
            "findings": [{**asdict(one), "target": str(one.target)} for one in findings],
        }
        typer.echo(json.dumps(body, indent=2))
    else:
        _print(findings, [source.label for source in found], absent, compared)
    raise typer.Exit(1 if bad else 0)


def _open(wanted: Sequence[str] | None, override: dict[str, str]) -> tuple[list[Source], list[str]]:
    """The sources that are there, and what is said of those that are not."""
    from gateway.price_sources.sources import PACKAGES, NoSuchSource, NotInstalled
    from gateway.price_sources.sources import opened as open_source

    found, absent = [], []
    for name in wanted or PACKAGES:
        try:
            found.append(open_source(name, override))
        except NotInstalled as error:
            absent.append(str(error))
        except NoSuchSource as error:
            usage(str(error))
    return found, absent


def _look(
    known: Opened, sources: Sequence[Source], backend: str, day: dt.date, days: int
) -> tuple[list[Finding], int]:
    """All findings, the worst first, and how many targets a source knew."""
    from gateway.ledger.price_file import instant
    from gateway.policy.source import plain
    from gateway.price_sources.disagreements import Asked, look

    file = known.folder / "catalog.yaml"
    _, places = plain(text(file), str(file))
    findings, compared = [], 0
    for target in _wanted(known, sources, backend):
        where = known.catalog.backends.get(target.backend)
        offers = [source.offer(target, where, day) for source in sources]
        line, column = places.position(("backends", target.backend, "models", target.model))
        row = known.book.row(target, instant(day))
        asked = Asked(
            target=target,
            backend=where,
            place=row.place if row else f"{file}:{line}:{column}",
            offers=[offer for offer in offers if offer is not None],
        )
        compared += bool(asked.offers)
        findings += look(asked, known.book, day, stale_days=days)
    findings.sort(key=lambda one: (_ORDER.index(one.severity), one.kind))
    return findings, compared


def _wanted(known: Opened, sources: Sequence[Source], backend: str) -> list[Target]:
    there = known.catalog.backends
    sheets = [target for source in sources for target in source.targets]
    return [
        target
        for target in dict.fromkeys((*known.targets(), *sheets))
        if backend in ("", target.backend)
        and not (target.backend in there and there[target.backend].simulated)
    ]


def _print(
    findings: Sequence[Finding], sources: Sequence[str], absent: Sequence[str], compared: int
) -> None:
    for one in findings:
        typer.echo(str(one))
    for line in absent:
        typer.echo(f"{line}; not compared with it")
    counts = Counter(one.severity for one in findings)
    told = ", ".join(
        f"{counts[name]} {name}{'s' if counts[name] > 1 else ''}" for name in _ORDER if counts[name]
    )
    with_whom = f"{compared} models compared with {' and '.join(sources)}" if sources else ""
    typer.echo("; ".join(part for part in (with_whom, told or "ok") if part))
