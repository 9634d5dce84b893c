"""`weighbridge prices import`: take prices of a source into the book; first the difference."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.options import AsJson, Folder, usage
from gateway.cli.prices.options import Backend, Opened, Provider, opened, pairs, text

if TYPE_CHECKING:
    from gateway.domain.catalog import Target
    from gateway.ledger.price_file import PriceRow
    from gateway.price_sources.shelf import Edit
    from gateway.price_sources.sources import Source
    from gateway.price_sources.timeline import Change

_FILES = {
    "closed_api": "closed-apis.yaml",
    "managed": "managed.yaml",
    "self_hosted": "self-hosted.yaml",
}


def import_(
    source: Annotated[str, typer.Argument(help="genai-prices, litellm, or a CSV or YAML file.")],
    backend: Backend = "",
    model: Annotated[list[str] | None, typer.Option(help="Only this one; several times.")] = None,
    since: Annotated[
        dt.datetime | None,
        typer.Option(
            "--from",
            formats=["%Y-%m-%d"],
            help="The first day of prices whose beginning the source does not say; default: today.",
        ),
    ] = None,
    into: Annotated[
        str, typer.Option(help="The price file to append to; default: where its rows are.")
    ] = "",
    provider: Provider = None,
    free: Annotated[bool, typer.Option("--free", help="Prices of 0 are meant.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Append what a source says and the book does not; shows the difference, then asks.

    Rows are added, none is changed: prices take effect from the day the source names. Everything is
    written or nothing. The columns of a CSV stand in docs/prices.md.

    Example: weighbridge prices import genai-prices --backend openai --from 2026-11-01
    """
    known, today = opened(folder), dt.datetime.now(dt.UTC).date()
    found = _open(source, pairs(provider), free=free)
    wanted = _wanted(known, found, backend, model or [])
    changes, silent = _changes(known, found, wanted, since.date() if since else today, today)
    edits = _edits(known, changes, into)
    if as_json:
        typer.echo(json.dumps(_as_dict(changes, silent, edits, written=yes), indent=2))
    else:
        _print(changes, silent)
    if not edits:
        raise typer.Exit
    _must_load(known, edits)
    if not yes and (as_json or not typer.confirm(f"\nAppend to {_named(edits)}?")):
        raise typer.Exit
    _write(edits)
    if not as_json:
        typer.echo(f"written: {_named(edits)}")
        _past(changes, today)


def _open(name: str, override: dict[str, str], *, free: bool) -> Source:
    from gateway.price_sources.sources import NoSuchSource, NotInstalled
    from gateway.price_sources.sources import opened as open_source

    try:
        return open_source(name, override, zero=free)
    except (NoSuchSource, NotInstalled) as error:
        usage(str(error))


def _wanted(known: Opened, source: Source, backend: str, models: list[str]) -> list[Target]:
    """The targets to ask for: those of the sheet, else those of catalog and book."""
    from gateway.domain.catalog import Kind
    from gateway.domain.catalog import Target as Named
    from gateway.policy.source import nearest

    there = known.catalog.backends
    if backend and backend not in {t.backend for t in source.targets} | set(there):
        usage(f"no backend '{backend}'; {nearest(backend, there)}")
    targets = list(source.targets) or [
        target
        for target in known.targets()
        if target.backend in there
        and not there[target.backend].simulated
        and (backend or there[target.backend].kind is not Kind.SELF_HOSTED)
    ]
    targets = [target for target in targets if backend in ("", target.backend)]
    for model in models:
        if model not in {target.model for target in targets}:
            if not backend or source.targets:
                names = dict.fromkeys(target.model for target in targets)
                hint = nearest(model, names) or "say --backend for one that the catalog lacks"
                usage(f"no model '{model}'; {hint}")
            targets.append(Named(backend, model))
    return [target for target in targets if not models or target.model in models]


def _changes(
    known: Opened, source: Source, wanted: Sequence[Target], day: dt.date, today: dt.date
) -> tuple[list[Change], list[str]]:
    """What each statement comes to, and of which targets the source says nothing."""
    from gateway.price_sources.timeline import changes

    found: list[Change] = []
    silent = []
    for target in wanted:
        backend = known.catalog.backends.get(target.backend)
        offer = source.offer(target, backend, today)
        if offer is not None:
            found += changes(offer, known.book, day=day)
        elif backend is not None and not source.targets and source.provider(backend) is None:
            silent.append(
                f"{target}: whose prices hold there is not known; say --provider"
                f" {target.backend}=ID if {source.label} has them"
            )
        else:
            silent.append(f"{target}: {source.label} does not know it")
    return found, silent


# --- writing ------------------------------------------------------------------------------------


def _edits(known: Opened, changes: Sequence[Change], into: str) -> list[Edit]:
    from gateway.price_sources.shelf import appended

    if into and (Path(into).name != into or Path(into).suffix != ".yaml"):
        usage(f"--into {into}: the name of a file in {known.folder / 'prices'}, like mine.yaml")
    by_file: dict[Path, list[PriceRow]] = {}
    for change in changes:
        if change.row is not None:
            target = change.offer.target
            file = known.folder / "prices" / into if into else _file(known, target)
            by_file.setdefault(file, []).append(change.row)
    return [appended(file, rows) for file, rows in sorted(by_file.items())]


def _file(known: Opened, target: Target) -> Path:
    """Where the target's rows are, else its backend's, else those of its kind."""
    rows = list(known.book.rows.get(target, ()))
    if not rows:
        rows = [
            row for other, all_of in known.book.rows.items() if other.backend == target.backend
            for row in all_of
        ]  # fmt: skip
    if rows:
        return Path(rows[-1].place.rsplit(":", 2)[0])
    backend = known.catalog.backends.get(target.backend)
    name = _FILES[backend.kind.value] if backend else "imported.yaml"
    return known.folder / "prices" / name


def _must_load(known: Opened, edits: Sequence[Edit]) -> None:
    """End with 1 where the book would not load with these rows; nothing is written then."""
    from gateway.ledger.prices import load_prices
    from gateway.policy.source import ConfigErrors

    texts = {str(path): text(path) for path in known.files}
    texts |= {str(edit.path): edit.after.decode() for edit in edits}
    try:
        load_prices(texts.items())
    except ConfigErrors as errors:
        typer.echo(f"nothing written; with these rows the book would not load:\n{errors}", err=True)
        raise typer.Exit(1) from None


def _write(edits: Sequence[Edit]) -> None:
    from gateway.price_sources.shelf import ChangedMeanwhile, replace_all

    try:
        replace_all(edits)
    except ChangedMeanwhile as error:
        typer.echo(f"nothing written: {error} was changed meanwhile; run it again", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"nothing written: {error}", err=True)
        raise typer.Exit(1) from None


# --- telling ------------------------------------------------------------------------------------


def _print(changes: Sequence[Change], silent: Sequence[str]) -> None:
    for change in changes:
        if change.what == "same":
            continue
        typer.echo(f"{change.what}: {change.offer.target} from {change.since}")
        for line in _lines(change):
            typer.echo(f"  {line}")
    for line in silent:
        typer.echo(f"not known: {line}")
    counts = Counter(change.what for change in changes)
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    typer.echo(told or "nothing to compare")


def _lines(change: Change) -> list[str]:
    from gateway.price_sources.offers import figures, ordered, told

    lines = told(change.differences)
    if change.what == "new" and change.row is not None:
        for where, part in figures(change.row).items():
            lines.append(f"{where}: " + ", ".join(f"{key} {said}" for key, said in ordered(part)))
    if change.why:
        lines.append(f"not taken: {change.why}")
    if change.place:
        lines.append(f"ours: {change.place}")
    lines += [f"left out, no meter of ours: {what}" for what in change.offer.left_out]
    source = change.row.source if change.row is not None else change.offer.source
    return [*lines, f"source: {source} ({change.said_at or change.offer.called})"]


def _past(changes: Sequence[Change], today: dt.date) -> None:
    from gateway.ledger.price_file import instant

    past = sorted(c.since for c in changes if c.row and instant(c.since) < instant(today))
    if past:
        typer.echo(
            f"{len(past)} begin before today: requests since then keep what they were rated at;"
            f" `weighbridge prices rerate --since {past[0]}` shows what they would cost now"
        )


def _named(edits: Sequence[Edit]) -> str:
    return ", ".join(str(edit.path) for edit in edits)


def _as_dict(
    changes: Sequence[Change], silent: Sequence[str], edits: Sequence[Edit], *, written: bool
) -> dict[str, Any]:
    return {
        "written": written and bool(edits),
        "files": [str(edit.path) for edit in edits],
        "changes": [
            {
                "what": change.what,
                "backend": change.offer.target.backend,
                "model": change.offer.target.model,
                "from": change.since,
                "differences": [
                    {
                        "condition": str(one.condition),
                        "key": one.key,
                        "ours": one.ours,
                        "theirs": one.theirs,
                        "per_cent": None if one.per_cent is None else f"{one.per_cent:+.1f}",
                    }
                    for one in change.differences
                ],
                "place": change.place or None,
                "why": change.why or None,
                "left_out": list(change.offer.left_out),
                "source": change.offer.source,
            }
            for change in changes
        ],
        "not_known": list(silent),
    }
