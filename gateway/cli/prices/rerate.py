"""`weighbridge prices rerate`: rows of the ledger rated again, and what that changes.

Looks first: what would change, by backend and model. With --apply it appends a rating run and its
corrections; rows are never changed. Exit status 1 where an attempt has a price that the book does
not know any more: it keeps it, and somebody should look.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.traffic import Until, bounds, instant

if TYPE_CHECKING:
    from gateway.ledger.ratings import Rerating, Sums, Wanted
    from gateway.ledger.store import Store

KnownAt = Annotated[
    str,
    typer.Option(metavar="TIME", help="By prices as they were known then; default: as now."),
]
Backend = Annotated[str | None, typer.Option(help="Only of this backend.")]


def rerate(
    since: Annotated[
        str,
        typer.Option(
            metavar="7d|DATE", help="Requests that arrived from then on: 24h, 7d, a date."
        ),
    ],
    until: Until = "",
    backend: Backend = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    key: Annotated[str | None, typer.Option(help="Only of this key's id.")] = None,
    only_unpriced: Annotated[bool, typer.Option(help="Only what has no price yet.")] = False,
    known_at: KnownAt = "",
    apply: Annotated[bool, typer.Option("--apply", help="Write the corrections.")] = False,
    note: Annotated[str, typer.Option(help="Why, kept with the run.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Rate what was metered again, by the price book as it is known now (or was then).

    Each attempt at the moment its request arrived. Without --apply it only says what would change.

    Example: weighbridge prices rerate --since 2026-11-01 --only-unpriced --apply
    """
    import asyncio

    from gateway.ledger.ratings import Wanted

    now = dt.datetime.now(dt.UTC)
    period = bounds(since, until, now)
    wanted = Wanted(
        since_us=period.since_us,
        until_us=period.until_us,
        backend=backend,
        model=model,
        key_id=key,
        only_unpriced=only_unpriced,
    )
    at_us = instant(known_at, "--known-at", now) if known_at else None
    made = asyncio.run(_made(wanted, at_us, note=note, apply=apply))
    if as_json:
        typer.echo(json.dumps(_as_json(made, wanted, applied=apply), indent=2))
    else:
        typer.echo(f"requests from {period}, prices as known {_moment(made.book_at_us)}")
        _print(made, applied=apply)
    if made.total().lost:
        raise typer.Exit(1)


async def _made(wanted: Wanted, at_us: int | None, *, note: str, apply: bool) -> Rerating:
    from gateway.cli.database import ledger
    from gateway.cli.progress import progress
    from gateway.in_force import whoami
    from gateway.ledger import known_prices, ratings
    from gateway.ledger.audit import database_us
    from gateway.settings import Settings

    async with ledger(Settings.load()) as store:
        known_us = await database_us(store) if at_us is None else at_us
        await _names_are_known(store, wanted)
        if at_us is None:
            await _say_not_in_force(store)
        book = await known_prices.as_known(store, at_us)
        await _something_is_known(store, known_us, empty=not book.rows)
        by = ratings.By(book, known_us, regions)
        with progress("rating", await ratings.count(store, wanted)) as advance:
            if not apply:
                return await ratings.rerate(store, wanted, by, progress=advance)
            return await ratings.apply(
                store, wanted, by, author=whoami(), note=note, progress=advance
            )


async def _names_are_known(store: Store, wanted: Wanted) -> None:
    """Ends with 2 where no price and no request has that backend, or that model."""
    import sqlalchemy as sa

    from gateway.cli.policy.options import usage
    from gateway.ledger import known_prices
    from gateway.ledger.store import attempts
    from gateway.policy.source import nearest

    for what, name in (("backend", wanted.backend), ("model", wanted.model)):
        if name is None:
            continue
        stated = sorted({getattr(target, what) for target in await known_prices.targets(store)})
        column = attempts.c[what]
        if name not in stated and not await store.select(
            sa.select(column).where(column == name).limit(1)
        ):
            hint = nearest(name, stated) or "see `weighbridge prices list`"
            usage(f"no {what} '{name}' in prices or requests; {hint}")


async def _say_not_in_force(store: Store) -> None:
    """A price file that was mended is not known before it is in force."""
    from gateway.bundle import PRICES
    from gateway.cli.policy.options import in_force
    from gateway.cli.prices.options import text
    from gateway.ledger.versions import Versions

    paths = sorted((in_force() / PRICES).glob("*.yaml"))
    newest = await Versions(store).newest()
    if newest is None or not paths:
        return
    known = await Versions(store).files(newest.digest)
    here = {f"{PRICES}{path.name}": text(path) for path in paths}
    there = {name: said for name, said in known.items() if name.startswith(PRICES)}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            typer.echo(
                f"{name} differs from what is in force (version {newest.number}): "
                "`weighbridge policy apply` or start the gateway first",
                err=True,
            )


async def _something_is_known(store: Store, known_us: int, *, empty: bool) -> None:
    """Ends with 2 where no price at all was known then."""
    from gateway.cli.policy.options import usage
    from gateway.ledger import known_prices

    if not empty:
        return
    stated = await known_prices.statements(store)
    first = (
        f"the first was recorded {_moment(stated[0].recorded_at_us)}"
        if stated
        else ("a gateway's start or `policy apply` records the price files")
    )
    usage(f"no price was known at {_moment(known_us)}: {first}")


def regions(files: Mapping[str, str]) -> dict[str, str | None]:
    """Where the backends of a bundle are. Raises ValueError where its catalog cannot be read."""
    from gateway.bundle import CATALOG
    from gateway.policy.catalog import load_catalog
    from gateway.policy.source import ConfigErrors

    try:
        catalog = load_catalog(files[CATALOG], source=CATALOG, secret_present=lambda _: True)
    except (KeyError, ConfigErrors) as error:
        raise ValueError(str(error)) from error
    return {name: backend.data.region for name, backend in catalog.backends.items()}


# --- out --------------------------------------------------------------------------------------


def _figures(sums: Sums) -> dict[str, Any]:
    from gateway.domain.money import usd

    return {
        "attempts": sums.attempts,
        "corrected": sums.corrected,
        "before_usd": usd(sums.stood),
        "would_be_usd": usd(sums.would_be),
        "difference_usd": usd(sums.delta),
        "get_a_price": sums.priced,
        "stay_unpriced": sums.unpriced,
        "would_lose_their_price": sums.lost,
    }


def _as_json(made: Rerating, wanted: Wanted, *, applied: bool) -> dict[str, Any]:
    return {
        "ok": not made.total().lost,
        "since": _iso(wanted.since_us),
        "until": _iso(wanted.until_us),
        "filters": wanted.filters,
        "known_at": _iso(made.book_at_us),
        "applied": applied and made.run is not None,
        "run": made.run,
        "total": _figures(made.total()),
        "targets": [
            {"backend": target.backend, "model": target.model, **_figures(sums)}
            for target, sums in sorted(made.by.items(), key=lambda one: str(one[0]))
        ],
        "lost": [lost._asdict() for lost in made.lost],
    }


def _print(made: Rerating, *, applied: bool) -> None:
    from gateway.cli.policy.tables import print_table, table_of

    shown = table_of("target", "attempts", "before", "would be", "difference", "")
    for column in shown.columns[1:5]:
        column.justify = "right"
    total = made.total()
    for target, sums in sorted(made.by.items(), key=lambda one: str(one[0])):
        shown.add_row(str(target), *_cells(sums))
    if len(made.by) > 1:
        shown.add_row("all", *_cells(total))
    if made.by:
        print_table(shown)
    for lost in made.lost:
        typer.echo(f"  {lost.request_id}, attempt {lost.attempt}: {lost.why}", err=True)
    if total.lost:
        _say_lost(total.lost, len(made.lost))
    corrections = f"{total.corrected:,} correction{'' if total.corrected == 1 else 's'}"
    if made.run is not None:
        typer.echo(f"run {made.run}: {corrections} appended; rows are as they were")
    elif applied or not total.corrected:
        typer.echo(f"{corrections}: nothing to correct in {total.attempts:,} attempts")
    else:
        typer.echo(f"{corrections} would be made; --apply makes them")


def _say_lost(lost: int, shown: int) -> None:
    more = f"  and {lost - shown:,} more\n" if lost > shown else ""
    typer.echo(
        f"{more}weighbridge: {lost:,} attempts have a price that this book does not know; they "
        "keep it.\nSee `weighbridge prices history MODEL` for who took the row back.",
        err=True,
    )


def _cells(sums: Sums) -> list[str]:
    notes = [
        f"{count:,} {what}"
        for count, what in (
            (sums.corrected, "corrected"),
            (sums.priced, "of them get a price"),
            (sums.unpriced, "stay without a price"),
            (sums.lost, "would lose their price"),
        )
        if count
    ]
    return [
        f"{sums.attempts:,}",
        *map(_usd, (sums.stood, sums.would_be, sums.delta)),
        ", ".join(notes),
    ]


def _usd(nano: int) -> str:
    from gateway.domain.money import usd

    return f"{'-' if nano < 0 else ''}${usd(abs(nano))}"


def _moment(us: int) -> str:
    return f"{dt.datetime.fromtimestamp(us // 1_000_000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _iso(us: int) -> str:
    return dt.datetime.fromtimestamp(us // 1_000_000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
