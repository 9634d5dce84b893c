"""`weighbridge report reconcile`: a provider's usage or cost export beside the ledger."""

from __future__ import annotations

import datetime as dt
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.policy.options import usage

if TYPE_CHECKING:
    from decimal import Decimal

    from gateway.reports.definition import Period
    from gateway.reports.document import Document

FORMATS = ("table", "csv", "json")
BYTES_MAX = 512 * 1024 * 1024
SHOWN_MAX = 40  # differences on a terminal; files have all


def reconcile(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Their export or invoice.")],
    backend: Annotated[str, typer.Option("--backend", help="Whose it is: a backend's name.")],
    month: Annotated[str, typer.Option("--month", metavar="2026-11", help="A whole month.")] = "",
    since: Annotated[str, typer.Option(metavar="DATE|TIME", help="From then on.")] = "",
    until: Annotated[str, typer.Option(metavar="DATE|TIME", help="Up to then, not included.")] = "",
    zone: Annotated[
        str, typer.Option("--zone", help="Time zone of their days, and of dates given.")
    ] = "UTC",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN,...",
            help="What is where in a file of no known shape: time, model, cost, currency; a column"
            " per meter (input, cached, output, prompt, ...) or meter and quantity.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="THEIRS=OURS", help="What they call a model.")
    ] = None,
    tolerance: Annotated[
        str, typer.Option(metavar="USD", help="Differences worth up to that much are fine.")
    ] = "0",
    format_: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead of printing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As --format json.")] = False,
) -> None:
    """A provider's export beside the ledger: tokens and money, differences by class.

    Known shapes: OpenAI usage and costs, Claude Console usage and cost, Anthropic's usage report,
    AWS Cost and Usage Report, FOCUS. All of the file is compared unless a period is given. Exit
    status 1 where more differs than rounding, period edges and the tolerance explain.

    Example: weighbridge report reconcile claude_usage_2026_10.csv --backend anthropic
    """
    import asyncio

    from gateway.reports.definition import Unusable

    chosen = "json" if as_json else format_
    if chosen not in FORMATS:
        usage(f"weighbridge: --format {chosen}: must be one of {', '.join(FORMATS)}")
    if output is not None and not output.absolute().parent.is_dir():
        usage(f"weighbridge: --output {output}: no such folder")
    if output is not None and chosen == "table":
        usage("weighbridge: --output: say --format csv or json with it")
    try:
        from gateway.reports.reconciliation.document import nano, now_zone, pairs

        maps = pairs(columns or [], "--columns"), pairs(model or [], "--model")
        period = _period(now_zone(zone), month, since, until)
        document, agrees = asyncio.run(
            _reconcile(file, backend, period, zone, maps, nano(tolerance))
        )
    except Unusable as error:
        usage(f"weighbridge: {error}")
    _show(document, chosen, output)
    if not agrees:
        raise typer.Exit(1)


def _period(zone: str, month: str, since: str, until: str) -> Period | None:
    if not month and not since and not until:
        return None
    from gateway.reports import definition as d

    now = dt.datetime.now(dt.UTC)
    return d.period(now=now, zone=zone, since=since, until=until, month=month)


async def _reconcile(
    file: Path,
    backend: str,
    period: Period | None,
    zone: str,
    maps: tuple[dict[str, str], dict[str, str]],
    tolerance: Decimal,
) -> tuple[Document, bool]:
    import hashlib

    from gateway.cli.database import ledger
    from gateway.cli.focus import kept
    from gateway.reports.reconciliation.comparison import Wanted
    from gateway.reports.reconciliation.comparison import reconcile as compared
    from gateway.reports.reconciliation.document import document, known_backend
    from gateway.reports.reconciliation.provider_export import read
    from gateway.settings import Settings

    columns, models = maps
    content = _content(file)
    export = read(_text(content, file), str(file), zone=zone, columns=columns or None)
    wanted = Wanted(backend=backend, zone=zone, period=period, models=models)
    async with ledger(Settings.load()) as store:
        known = kept(store)
        await known_backend(store, known, backend)
        result = await compared(store, wanted, export, known)
    digest = hashlib.sha256(content).hexdigest()
    made = document(result, wanted, export, source=str(file), digest=digest, tolerance=tolerance)
    return made, result.agrees(tolerance)


def _content(file: Path) -> bytes:
    from gateway.reports.definition import Unusable

    try:
        if file.stat().st_size > BYTES_MAX:
            raise Unusable(f"{file}: more than {BYTES_MAX // 2**20} MiB; split it by month")
        return file.read_bytes()
    except OSError as error:
        raise Unusable(f"{file}: {(error.strerror or str(error)).lower()}") from None


def _text(content: bytes, file: Path) -> str:
    from gateway.reports.reconciliation.provider_export import Malformed

    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Malformed(
            str(file), line, "", "not UTF-8 text; a CSV is expected, no spreadsheet"
        ) from None


def _show(document: Document, chosen: str, output: Path | None) -> None:
    if chosen == "table":
        from gateway.reports.formats.as_table import print_document
        from gateway.reports.reconciliation.comparison import SETTLED

        rows = [row for row in document.table.rows if row["class"] not in SETTLED]
        said = list(document.remarks)
        if len(rows) > SHOWN_MAX:
            said.append(f"The first {SHOWN_MAX} of {len(rows):,}; --format csv has them all.")
        document = replace(
            document, table=replace(document.table, rows=rows[:SHOWN_MAX]), remarks=said
        )
        print_document(document)
        return
    from gateway.reports.formats import as_text

    text = as_text.as_csv(document) if chosen == "csv" else as_text.as_json(document)
    if output is not None:
        output.write_text(text, encoding="utf-8", newline="")
        typer.echo(f"written: {output}", err=True)
    else:
        sys.stdout.write(text)
    if chosen == "csv":
        typer.echo(document.remarks[0], err=True)
