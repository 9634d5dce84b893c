"""`weighbridge report focus`: what was spent, as the FinOps Foundation's format has it."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from gateway.cli.policy.options import usage

if TYPE_CHECKING:
    from gateway.ledger.store import Store
    from gateway.reports.definition import Period
    from gateway.reports.focus.export import Summary, Wanted
    from gateway.reports.kept import Kept


def focus(
    month: Annotated[str, typer.Option("--month", metavar="2026-11", help="A whole month.")] = "",
    since: Annotated[str, typer.Option(metavar="DATE|TIME", help="From then on (UTC).")] = "",
    until: Annotated[
        str, typer.Option(metavar="DATE|TIME", help="Up to then, not included; a full hour.")
    ] = "",
    granularity: Annotated[str, typer.Option(help="Charges by the hour or by the day.")] = "day",
    version: Annotated[
        str, typer.Option("--focus-version", help="1.2, or 1.3 with allocation and host columns.")
    ] = "1.2",
    organization: Annotated[
        str, typer.Option(help="Your name: who provides what is self-hosted.")
    ] = "Own organization",
    run: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With rating runs up to that number only."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead of printing.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: the rows and what they add up to.")
    ] = False,
) -> None:
    """Cost and usage as FOCUS 1.2 or 1.3: a CSV that FinOps tools read.

    This month so far unless a period is given. What it adds up to, what has no price and its
    digest go to stderr. Exit status 1 where the rows do not add up to the ledger.

    Example: weighbridge report focus --month 2026-10 -o focus-2026-10.csv
    """
    import asyncio

    from gateway.reports.definition import Unusable

    if output is not None and not output.absolute().parent.is_dir():
        usage(f"weighbridge: --output {output}: no such folder")
    if output is not None and output.is_dir():
        usage(f"weighbridge: --output {output}: is a folder")
    try:
        from gateway.reports.focus.export import Wanted

        now = dt.datetime.now(dt.UTC)
        wanted = Wanted(
            period=_period(now, month, since, until),
            version=version,
            granularity=granularity,  # type: ignore[arg-type]  # it looks itself
            organization=organization,
            run=run,
        )
        summary = asyncio.run(_export(wanted, output, as_json))
    except Unusable as error:
        usage(f"weighbridge: {error}")
    _say(wanted, summary, now)
    if output is not None:
        typer.echo(f"written: {output}", err=True)
    if not summary.agrees:
        raise typer.Exit(1)


def _period(now: dt.datetime, month: str, since: str, until: str) -> Period:
    """As the reports read it, to the end of the hour; a named future is empty, no mistake."""
    from dataclasses import replace

    from gateway.ledger.hours import HOUR_US
    from gateway.reports import definition as d

    far = dt.datetime(9990, 1, 1, tzinfo=dt.UTC)
    named = bool(month or until)
    period = d.period(now=far if named else now, since=since, until=until, month=month)
    hour_us = -(-int(now.timestamp() * 1_000_000) // HOUR_US) * HOUR_US
    if not named:
        return replace(period, until_us=hour_us)
    return replace(period, until_us=max(period.since_us, min(period.until_us, hour_us)))


async def _export(wanted: Wanted, output: Path | None, as_json: bool) -> Summary:
    from gateway.cli.database import ledger
    from gateway.reports.focus.export import Summary
    from gateway.settings import Settings

    settings = Settings.load()
    summary = Summary()
    async with ledger(settings) as store:
        with _out(output) as out:
            await _write(store, wanted, kept(store), summary, out, as_json=as_json)
    return summary


async def _write(
    store: Store, wanted: Wanted, known: Kept, summary: Summary, out: TextIO, *, as_json: bool
) -> None:
    import json

    from gateway.cli.progress import progress
    from gateway.reports.focus.columns import columns
    from gateway.reports.focus.export import export

    names = [column.name for column in columns(wanted.version)]
    said = '{"rows": ['
    with progress("exporting days", wanted.days()) as advance:
        async for rows, text in export(store, wanted, known, summary, progress=lambda: advance(1)):
            if not as_json:
                out.write(text)
                continue
            for row in rows:
                whole = {name: row.get(name) or None for name in names}
                out.write(f"{said}\n{json.dumps(whole, ensure_ascii=False)}")
                said = ","
    if as_json:
        said = said if said.startswith("{") else ""
        out.write(f'{said}\n], "summary": {json.dumps(_figures(wanted, summary))}}}\n')


def kept(store: Store) -> Kept:
    """What rows name, with the files of this instance where no version is kept."""
    from gateway.bundle import read_folder
    from gateway.policy.source import ConfigErrors
    from gateway.reports.kept import Kept
    from gateway.settings import Settings

    settings = Settings.load()
    try:
        return Kept(store, read_folder(settings.policies_dir, settings.policy))
    except (ConfigErrors, OSError):
        return Kept(store)


@contextmanager
def _out(path: Path | None) -> Iterator[TextIO]:
    """Where the text goes. A file is there whole or not at all."""
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
        yield sys.stdout
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as out:
            yield out
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _figures(wanted: Wanted, summary: Summary) -> dict[str, Any]:
    from gateway.domain.money import usd
    from gateway.reports.definition import iso
    from gateway.reports.focus.columns import plain

    return {
        "since": iso(wanted.period.since_us, "UTC"),
        "until": iso(wanted.period.until_us, "UTC"),
        "focus_version": wanted.version,
        "granularity": wanted.granularity,
        "rows": summary.rows,
        "attempts": summary.attempts,
        "billed_usd": plain(summary.billed),
        "effective_usd": plain(summary.effective),
        "corrected_usd": plain(summary.corrected),
        "ledger_usd": usd(summary.ledger_nano),
        "agrees": summary.agrees,
        "attempts_estimated": summary.estimated,
        "attempts_unpriced": {str(target): n for target, n in most(summary.unpriced)},
        "attempts_unsplit": {str(target): n for target, n in most(summary.unsplit)},
        "digest": summary.digest,
    }


def most(counts: Any) -> list[tuple[Any, int]]:
    """The most first."""
    return sorted(counts.items(), key=lambda one: (-one[1], str(one[0])))


def _say(wanted: Wanted, summary: Summary, now: dt.datetime) -> None:
    """The summary for people, on stderr."""
    from gateway.domain.money import usd

    figures = _figures(wanted, summary)
    rows = f"{summary.rows:,} rows of {summary.attempts:,} attempts"
    lines = [
        f"{wanted.period}; FOCUS {wanted.version} by the {wanted.granularity}: {rows}",
        f"effective ${figures['effective_usd']}, billed ${figures['billed_usd']}"
        + (f", corrections ${figures['corrected_usd']}" if summary.corrected else ""),
    ]
    if wanted.period.since_us >= now.timestamp() * 1_000_000:
        lines.append("this lies in the future: nothing is recorded of it yet")
    elif not summary.rows:
        lines.append("nothing was recorded in this period: the file is its header alone")
    if summary.agrees:
        lines.append(f"the ledger adds up to the same: ${usd(summary.ledger_nano)}")
    else:
        lines.append(
            f"the ledger adds up to ${usd(summary.ledger_nano)}, which is not the same. Rows may"
            " have arrived meanwhile: run it again. Else run `weighbridge audit`"
        )
    if summary.estimated:
        lines.append(f"{summary.estimated:,} attempts are estimates (x_UsageSource)")
    for target, count in most(summary.unpriced):
        lines.append(
            f"no price was known of {target}: {count:,} attempts are rows over 0, x_RowKind"
            " unpriced. Add the price and run `weighbridge prices rerate`"
        )
    for target, count in most(summary.unsplit):
        lines.append(
            f"the prices of {target} are no longer kept, or its rows: {count:,} attempts are"
            " not split by meter, x_RowKind unsplit"
        )
    lines.append(f"sha256 {summary.digest}")
    for line in lines:
        typer.echo(line, err=True)
