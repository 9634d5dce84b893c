"""`weighbridge prices history`: what was known of a model's prices, and since when.

A price has two times: from when on it holds, and from when on we knew. Each line is one row of a
price file between two of each.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.options import AsJson, usage
from gateway.cli.policy.traffic import instant

if TYPE_CHECKING:
    from gateway.domain.catalog import Target
    from gateway.ledger.known_prices import Known, Statement


def history(
    model: Annotated[str, typer.Argument(help="A model of the price book.")],
    backend: Annotated[str | None, typer.Option(help="Only at this backend.")] = None,
    known_at: Annotated[
        str, typer.Option(metavar="TIME", help="Only what was known then: 7d, a date, a moment.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """What was known of a model's prices when: by when they hold and when they were recorded.

    A price that was changed or taken back stays listed, with the time up to which it was known.

    Example: weighbridge prices history gpt-6 --backend openai --known-at 2026-11-01
    """
    import asyncio

    now = dt.datetime.now(dt.UTC)
    at_us = instant(known_at, "--known-at", now) if known_at else None
    said, others = asyncio.run(_statements(model, backend))
    if not said:
        from gateway.policy.source import nearest

        if not others:
            typer.echo(
                "no price was ever recorded: a gateway's start or `policy apply` records the "
                "price files",
                err=True,
            )
            raise typer.Exit(1)
        names = sorted({target.model for target in others})
        hint = nearest(model, names) or "see `weighbridge prices list`"
        usage(f"nothing was ever stated of {model}{f' at {backend}' if backend else ''}; {hint}")
    from gateway.ledger.known_prices import known

    found = [one for one in known(said) if at_us is None or one.at(at_us)]
    if as_json:
        typer.echo(json.dumps([_as_dict(one) for one in found], indent=2))
    elif not found:
        typer.echo(f"nothing was known of {model} at {known_at}")
    else:
        _print(found)


async def _statements(
    model: str, backend: str | None
) -> tuple[Sequence[Statement], Sequence[Target]]:
    from gateway.cli.database import ledger
    from gateway.ledger import known_prices
    from gateway.settings import Settings

    async with ledger(Settings.load()) as store:
        said = await known_prices.statements(store, model=model, backend=backend)
        return said, [] if said else await known_prices.targets(store)


def _as_dict(one: Known) -> dict[str, Any]:
    said = one.statement
    return {
        "backend": said.backend,
        "model": said.model,
        "valid_from": _moment(said.valid_from_us),
        "valid_until": _moment(one.valid_until_us) or None,
        "known_from": _moment(said.recorded_at_us),
        "known_until": _moment(one.known_until_us) or None,
        "rates_id": said.rates_id,
        "author": said.author,
        "policy_digest": said.digest,
        "terms": said.terms,
    }


def _print(found: Sequence[Known]) -> None:
    from gateway.cli.policy.tables import print_table, table_of

    table = table_of(
        "backend", "valid from", "until", "known from", "until", "in", "cached", "out", "more", "by"
    )
    for column in table.columns[:8]:
        column.no_wrap = True
    for one in found:
        said, rates = one.statement, one.row.base
        tokens = (rates.input, rates.cached_input, rates.output) if rates.by_token else (None,) * 3
        table.add_row(
            said.backend,
            _moment(said.valid_from_us),
            _moment(one.valid_until_us),
            _moment(said.recorded_at_us),
            _moment(one.known_until_us),
            *("" if price is None else f"${price.normalize():f}" for price in tokens),
            one.row.besides.removeprefix("; "),
            f"{said.author} ({said.digest[:12]})",
            style=None if one.known_until_us is None else "dim",
        )
    print_table(table)
    typer.echo("Times in UTC, ends not included; prices in USD per million tokens.")


def _moment(us: int | None) -> str:
    """A day, or to the second where it is not midnight; nothing for what has no end."""
    if us is None:
        return ""
    at = dt.datetime.fromtimestamp(us // 1_000_000, dt.UTC)
    return f"{at:%Y-%m-%d}" if us % 86_400_000_000 == 0 else f"{at:%Y-%m-%dT%H:%M:%SZ}"
