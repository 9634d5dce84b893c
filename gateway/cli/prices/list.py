"""`weighbridge prices list`: the price book as a table."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.options import AsJson, Folder, usage
from gateway.cli.prices.options import At, Backend, Opened, moment, opened

if TYPE_CHECKING:
    from gateway.domain.catalog import Target
    from gateway.ledger.price_file import GpuHour
    from gateway.ledger.prices import Dated


def list_(
    backend: Backend = "",
    model: Annotated[str, typer.Option(help="Only models with this in their name.")] = "",
    at: At = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Every row: what was, is and will be.")
    ] = False,
    gpu_hours: Annotated[
        bool, typer.Option("--gpu-hours", help="What an hour of a GPU costs, instead.")
    ] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """The price book: what each model costs at each backend, in US dollars.

    Tokens by the million. `more` names the other meters, and the conditions under which other
    prices hold: long prompts, service tiers, hours, regions. Models without a price come last.

    Example: weighbridge prices list --model gpt-6 --all
    """
    when, known = moment(at), opened(folder)
    if backend and backend not in {target.backend for target in known.targets()}:
        from gateway.policy.source import nearest

        usage(f"no backend '{backend}'; {nearest(backend, known.catalog.backends)}")
    if gpu_hours:
        _gpu_hours(known, when, everything=everything, as_json=as_json)
        return
    chosen = [
        target
        for target in known.targets()
        if backend in ("", target.backend) and model.lower() in target.model.lower()
    ]
    found = list(_rows(known, chosen, when, everything=everything))
    if as_json:
        typer.echo(json.dumps([_as_dict(*item) for item in found], indent=2))
        return
    _print(found, when, everything=everything)


def _rows(
    known: Opened, targets: list[Target], when: dt.datetime, *, everything: bool
) -> Iterator[tuple[Target, Dated | None]]:
    """Targets with their rows, those without one at the end."""
    from gateway.ledger.price_file import instant

    without = []
    for target in targets:
        row = known.book.row(target, instant(when))
        rows = known.book.rows.get(target, ()) if everything else [row] if row else []
        if not rows:
            without.append(target)
        for one in rows:
            yield target, one
    for target in without:
        yield target, None


def _print(
    found: list[tuple[Target, Dated | None]], when: dt.datetime, *, everything: bool
) -> None:
    from gateway.cli.policy.tables import print_table, table_of

    typer.echo("all prices" if everything else f"prices of {when.isoformat(timespec='minutes')}")
    until = ["until"] if everything else []
    table = table_of("model", "from", *until, "input", "cached", "output", "more", "read")
    for target, row in found:
        if row is None:
            blank = [""] * (len(table.columns) - 2)
            table.add_row(str(target), "unpriced", *blank, style="dim")
            continue
        terms = row.terms
        price = ["$" + str(terms[key]) if key in terms else "" for key in _COLUMNS]
        ends = [_ends(row)] if everything else []
        table.add_row(
            str(target), str(terms["from"]), *ends, *price, _more(row), str(terms["read_on"])
        )
    print_table(table)


_COLUMNS = ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")


def _more(row: Dated) -> str:
    """The other meters, and what else holds sometimes."""
    from gateway.ledger.price_file import METERS

    said = [
        f"{METERS[key].value} ${row.terms[key]}"
        for key in METERS
        if key in row.terms and key not in _COLUMNS
    ]
    said += [f"over {tier['above_prompt_tokens']:,}" for tier in row.terms.get("long_prompts", ())]
    for one in row.terms.get("when", ()):
        where = (one.get("service_tier"), one.get("region"), "+".join(one.get("hours_utc", ())))
        said.append("/".join(word for word in where if word))
    if row.terms.get("basis") == "declared":
        said.append("declared")
    return ", ".join(said)


def _ends(row: Dated) -> str:
    if row.until_us is None:
        return ""
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=row.until_us)
    return at.date().isoformat() if at.time() == dt.time.min else at.isoformat()


def _as_dict(target: Target, row: Dated | None) -> dict[str, Any]:
    if row is None:
        return {"backend": target.backend, "model": target.model, "unpriced": True}
    return {**row.terms, "until": _ends(row) or None, "id": row.base.id, "written_at": row.place}


def _gpu_hours(known: Opened, when: dt.datetime, *, everything: bool, as_json: bool) -> None:
    from gateway.cli.policy.tables import print_table, table_of

    newest: dict[tuple[str | None, ...], GpuHour] = {}
    for one in sorted(known.book.gpu_hours, key=lambda row: row.from_):
        name = (one.provider, one.gpu, one.commitment, one.region, one.note)
        if everything:
            newest[(*name, one.from_.isoformat())] = one
        elif one.from_ <= when.date():
            newest[name] = one
    rows = sorted(newest.values(), key=lambda one: (one.gpu, Decimal(one.usd_per_gpu_hour)))
    if as_json:
        told = [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in rows]
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo("US dollars for an hour of one GPU; --json says the sources")
    table = table_of("gpu", "provider", "price", "commitment", "region", "from", "note")
    for one in rows:
        table.add_row(
            one.gpu,
            one.provider,
            f"${one.usd_per_gpu_hour}",
            one.commitment,
            one.region or "",
            one.from_.isoformat(),
            one.note,
        )
    print_table(table)
