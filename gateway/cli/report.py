"""`weighbridge report`: what was spent and on what, how far to trust it, and the rows behind it."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from gateway.cli.database import ledger
from gateway.cli.focus import focus
from gateway.cli.reconcile import reconcile

if TYPE_CHECKING:
    from decimal import Decimal

    from gateway.bundle import Files
    from gateway.ledger.prices import PriceBook
    from gateway.ledger.store import Store
    from gateway.reports.definition import Definition
    from gateway.reports.document import Document

app = typer.Typer(no_args_is_help=True, help="Cost and quality reports, and the rows behind them.")
app.command()(focus)
app.command()(reconcile)

_T = TypeVar("_T")
FORMATS = ("table", "csv", "json", "xlsx", "html", "pdf")
_BINARY = ("xlsx", "pdf")

By = Annotated[
    list[str] | None,
    typer.Option(
        "--by",
        help="team, app, key, alias, backend, kind, model, service_tier, meter, policy, route, "
        "day, hour, outcome, answered_by or a tag; up to 3 times.",
    ),
]
Since = Annotated[str, typer.Option("--since", metavar="DATE|TIME", help="From then on.")]
Until = Annotated[
    str, typer.Option("--until", metavar="DATE|TIME", help="Up to then, not included.")
]
Month = Annotated[str, typer.Option("--month", metavar="2026-11", help="A whole month.")]
Last = Annotated[str, typer.Option("--last", metavar="7d", help="Up to now: 24h, 7d, 4w.")]
Zone = Annotated[str, typer.Option("--zone", help="Time zone of days, hours and dates given.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="NAME=VALUE", help="Only these rows; NAME= for those without."),
]
Format = Annotated[str, typer.Option("--format", help="table, csv, json, xlsx, html or pdf.")]
Output = Annotated[Path | None, typer.Option("--output", help="Write there instead of printing.")]
AsJson = Annotated[bool, typer.Option("--json", help="As --format json.")]
Run = Annotated[
    int | None,
    typer.Option(
        "--run", min=0, metavar="N", help="With rating runs up to that number only; 0: none."
    ),
]
Verify = Annotated[
    str,
    typer.Option("--verify", metavar="DIGEST", help="Say whether the digest is still the same."),
]


@app.command()
def cost(
    by: By = None,
    since: Since = "",
    until: Until = "",
    month: Month = "",
    last: Last = "",
    zone: Zone = "UTC",
    where: Where = None,
    compare: Annotated[bool, typer.Option(help="With the period before, as long.")] = True,
    format_: Format = "table",
    output: Output = None,
    run: Run = None,
    currency: Annotated[
        str, typer.Option(metavar="EUR", help="Amounts in that currency too.")
    ] = "",
    verify: Verify = "",
    as_json: AsJson = False,
) -> None:
    """What was spent, on what, and what it came to per request and per token.

    By team unless --by says otherwise; this month so far unless a period is given. Exit status 1
    where --verify finds another digest.

    Example: weighbridge report cost --by team --by model --month 2026-11 --zone Europe/Berlin
    """
    asked = _asked(format_, output, as_json)
    options = (since, until, month, last, zone, where or [])

    async def made(store: Store, now: dt.datetime) -> Document | bool:
        from dataclasses import replace

        from gateway.reports import sums
        from gateway.reports.cost import cost as report

        asked_by = ["team"] if by is None else by
        definition = await _definition(store, "cost", asked_by, options, now, compare)
        definition = replace(definition, run=run, currency=currency.upper())
        if verify:
            return await _verified(store, definition, verify)
        display = await _display(store, definition) if currency else None
        labels = await sums.key_names(store)
        return await report(store, definition, now=now, labels=labels, display=display)

    _finish(made, asked)


@app.command()
def quality(
    since: Since = "",
    until: Until = "",
    month: Month = "",
    last: Last = "",
    zone: Zone = "UTC",
    where: Where = None,
    format_: Format = "table",
    output: Output = None,
    run: Run = None,
    verify: Verify = "",
    as_json: AsJson = False,
) -> None:
    """How much is estimated, unpriced or cut short, by backend, and what to do about it.

    Says what the price book lacks, and the command that rates those rows again.

    Exit status 1 where --verify finds another digest.

    Example: weighbridge report quality --last 7d
    """
    asked = _asked(format_, output, as_json)
    options = (since, until, month, last, zone, where or [])

    async def made(store: Store, now: dt.datetime) -> Document | bool:
        from dataclasses import replace

        from gateway.reports.quality import quality as report

        definition = await _definition(store, "quality", [], options, now, compare=False)
        definition = replace(definition, run=run)
        if verify:
            return await _verified(store, definition, verify)
        return await report(store, definition, now=now, book=await _book(store))

    _finish(made, asked)


@app.command()
def rows(
    since: Since = "",
    until: Until = "",
    month: Month = "",
    last: Last = "",
    zone: Zone = "UTC",
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, max=5_000, help="Rows of a page.")] = 100,
    after: Annotated[
        str, typer.Option(metavar="PLACE", help="The next page: as the one before ended.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="All of them; csv only.")] = False,
    attempts: Annotated[bool, typer.Option("--attempts", help="Attempts, not requests.")] = False,
    run: Run = None,
    format_: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """The rows behind a figure, oldest first: requests, or attempts where a filter is of those.

    Example: weighbridge report rows --month 2026-11 --where team=search --format csv --all
    """
    chosen, path = _asked(format_, output, as_json, ("table", "csv", "json"))
    if everything and chosen != "csv":
        _usage("--all: only with --format csv; else page by --after")
    options = (since, until, month, last, zone, where or [])

    async def work(store: Store, now: dt.datetime) -> None:
        from dataclasses import replace

        definition = await _definition(store, "rows", [], options, now, compare=False)
        definition = replace(definition, run=run, attempts=attempts)
        if everything:
            with _text(path) as out:
                await _all_rows(store, definition, out)
            return
        await _one_page(store, definition, (after, limit), chosen, path)

    _run(work)


async def _one_page(
    store: Store, definition: Definition, place: tuple[str, int], chosen: str, path: Path | None
) -> None:
    from gateway.reports.formats import as_table, as_text
    from gateway.reports.rows import kept, page

    after, limit = place
    async with store.snapshot() as view:
        found = await page(view, definition, after=after, limit=limit)
    table = found.table
    if found.kept_since_us is not None:
        typer.echo(f"weighbridge: {kept(definition, found.kept_since_us)}", err=True)
    onwards = f"{definition.command(by=())} --limit {limit} --after {found.after}"
    if chosen == "table" and path is None:
        as_table.print_table(table)
        typer.echo(f"{len(table.rows)} rows" + (f"; the next: {onwards}" if found.after else ""))
        return
    lines = [as_text.line(table.columns, row) for row in table.rows]
    if chosen == "json":
        text = as_text.dumps({"rows": lines, "after": found.after or None})
    else:
        text = as_text.csv_lines(table.columns, table.rows)
        if found.after:
            typer.echo(f"the next: {onwards}", err=True)
    with _text(path) as out:
        out.write(text)


# --- asking ---------------------------------------------------------------------------------------


def _asked(
    format_: str, output: Path | None, as_json: bool, formats: tuple[str, ...] = FORMATS
) -> tuple[str, Path | None]:
    """The format and where to; a wrong one ends with status 2 before anything is read."""
    chosen = "json" if as_json else format_
    if chosen not in formats:
        _usage(f"--format {chosen}: must be one of {', '.join(formats)}")
    if output is not None and not output.absolute().parent.is_dir():
        _usage(f"--output {output}: no such folder")
    if output is not None and output.is_dir():
        _usage(f"--output {output}: is a folder")
    if chosen == "table" and output is not None:
        _usage("--output: say --format csv, json, xlsx, html or pdf with it")
    if chosen in _BINARY and output is None and sys.stdout.isatty():
        _usage(f"--format {chosen}: say --output FILE.{chosen}")
    return chosen, output


async def _definition(
    store: Store,
    report: str,
    by: list[str],
    options: tuple[str, str, str, str, str, list[str]],
    now: dt.datetime,
    compare: bool,
) -> Definition:
    """Raises Unusable."""
    from gateway.reports import definition as d
    from gateway.reports import sums

    since, until, month, last, zone, where = options
    period = d.period(now=now, zone=zone, since=since, until=until, month=month, last=last)
    tags = await sums.tags(store)
    made = d.Definition(
        report=report,
        period=period,
        by=d.names(by, tags),
        where=d.filters(where, tags),
        compare=compare,
    )
    if "kind" not in (*made.by, *(name for name, _ in made.where)):
        return made
    from dataclasses import replace

    return replace(made, kinds=await _kinds(store))


async def _kinds(store: Store) -> dict[str, str]:
    """Of which kind each backend is: as every version of the catalog said, the newest last."""
    from gateway.bundle import load, read_folder
    from gateway.ledger.versions import Versions
    from gateway.policy.source import ConfigErrors
    from gateway.settings import Settings

    settings = Settings.load()
    versions = Versions(store)
    digests = dict.fromkeys(version.digest for version in await versions.history(limit=500))
    bundles: list[Files] = [await versions.files(digest) for digest in reversed(digests)]
    if not bundles:
        bundles = [read_folder(settings.policies_dir, settings.policy)]
    found: dict[str, str] = {}
    for files in bundles:
        try:
            catalog = load(files, secret_present=lambda _: True).catalog
        except ConfigErrors:  # of a version that today's program no longer reads
            continue
        found |= {name: backend.kind.value for name, backend in catalog.backends.items()}
    return found


async def _book(store: Store) -> PriceBook:
    """What is known of prices today: as stated, else as the files say it."""
    from gateway.ledger.known_prices import as_known
    from gateway.ledger.prices import PriceBook
    from gateway.policy.source import ConfigErrors

    book = await as_known(store)
    if book.rows:
        return book
    try:
        return await _files_book(store)
    except (ConfigErrors, OSError):
        return PriceBook({})


async def _files_book(store: Store) -> PriceBook:
    """The price book of the version in force, else of the files. Raises ConfigErrors."""
    from gateway.bundle import PRICES, read_folder
    from gateway.ledger.prices import load_prices
    from gateway.ledger.versions import Versions
    from gateway.settings import Settings

    versions = Versions(store)
    newest = await versions.newest()
    if newest is not None:
        files: Files = await versions.files(newest.digest)
    else:
        settings = Settings.load()
        files = read_folder(settings.policies_dir, settings.policy)
    return load_prices((path, text) for path, text in files.items() if path.startswith(PRICES))


async def _display(store: Store, definition: Definition) -> tuple[str, Decimal, str]:
    """The currency asked for and how much of it a dollar is at the period's end. Raises Unusable,
    ConfigErrors."""
    import difflib

    from gateway.reports.definition import Unusable, end_day

    currency, day = definition.currency, end_day(definition.period)
    book = await _files_book(store)
    per_usd = book.per_usd(currency, day)
    if per_usd is not None:
        dated = [e.from_ for e in book.currencies if e.currency == currency and e.from_ <= day]
        source = f"price book, rate from {max(dated)}" if dated else "itself"
        return currency, per_usd, source
    there = sorted({exchange.currency for exchange in book.currencies})
    near = difflib.get_close_matches(currency, there, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there) or 'none'}"
    raise Unusable(
        f"--currency {currency}: the price book has no rate of it on {day}; {hint}"
        " (currencies: in policies/prices/*.yaml)"
    )


async def _verified(store: Store, definition: Definition, digest: str) -> bool:
    from gateway.reports.definition import Unusable
    from gateway.reports.foot import DIGEST_CHARS_MIN
    from gateway.reports.foot import digest as of

    wanted = digest.lower()
    if not DIGEST_CHARS_MIN <= len(wanted) <= 64 or set(wanted) - set("0123456789abcdef"):
        raise Unusable(
            f"--verify {digest}: at least {DIGEST_CHARS_MIN} digits of a report's digest"
        )
    async with store.snapshot() as view:
        found, count = await of(view, definition)
    same = found.startswith(wanted)
    typer.echo(f"{'same' if same else 'different'}: {found} over {count:,} rows")
    return same


# --- answering ------------------------------------------------------------------------------------


def _finish(
    made: Callable[[Store, dt.datetime], Awaitable[Document | bool]], asked: tuple[str, Path | None]
) -> None:
    async def work(store: Store, now: dt.datetime) -> Document | bool:
        return await made(store, now)

    document = _run(work)
    if isinstance(document, bool):
        raise typer.Exit(0 if document else 1)
    _show(document, *asked)


def _show(document: Document, chosen: str, output: Path | None) -> None:
    if chosen == "table":
        from gateway.reports.formats.as_table import print_document

        print_document(document)
        return
    try:
        content = _content(document, chosen)
    except ModuleNotFoundError as error:
        _usage(
            f"--format {chosen}: {error.name} is not installed; pip install 'weighbridge[reports]'"
        )
    if output is not None:
        output.write_bytes(content)
        typer.echo(f"written: {output}", err=True)
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def _content(document: Document, chosen: str) -> bytes:
    match chosen:
        case "xlsx":
            from gateway.reports.formats.as_xlsx import as_xlsx

            return as_xlsx(document)
        case "pdf":
            from gateway.reports.formats.as_pdf import as_pdf

            return as_pdf(document, now=dt.datetime.now(dt.UTC))
        case "html":
            from gateway.reports.formats.as_html import as_html

            return as_html(document).encode()
    from gateway.reports.formats import as_text

    text = as_text.as_csv(document) if chosen == "csv" else as_text.as_json(document)
    return text.encode()


async def _all_rows(store: Store, definition: Definition, out: Any) -> None:
    from gateway.reports.formats.as_text import csv_lines
    from gateway.reports.rows import kept, pages
    from gateway.reports.sums import rows_since

    head = True
    async with store.snapshot() as view:
        gone_us = await rows_since(view)
        if gone_us is not None and gone_us > definition.period.since_us:
            typer.echo(f"weighbridge: {kept(definition, gone_us)}", err=True)
        async for found in pages(view, definition):
            out.write(csv_lines(found.columns, found.rows, head=head))
            head = False


def _text(path: Path | None) -> Any:
    """Where text goes, its line ends as they are."""
    import contextlib
    import io

    if path is not None:
        return path.open("w", encoding="utf-8", newline="")
    out = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="", write_through=True)

    @contextlib.contextmanager
    def kept() -> Any:
        try:
            yield out
        finally:
            out.detach()

    return kept()


def _run(work: Callable[[Store, dt.datetime], Awaitable[_T]]) -> _T:
    """Do `work` on this instance's ledger; what makes no sense ends with status 2."""
    import asyncio

    from gateway.policy.source import ConfigErrors
    from gateway.reports.definition import Unusable
    from gateway.settings import Settings

    settings = Settings.load()

    async def connected() -> _T:
        async with ledger(settings) as store:
            return await work(store, dt.datetime.now(dt.UTC))

    try:
        return asyncio.run(connected())
    except (Unusable, ConfigErrors) as error:
        _usage(str(error))


def _usage(message: str) -> NoReturn:
    typer.echo(f"weighbridge: {message}", err=True)
    raise typer.Exit(2)
