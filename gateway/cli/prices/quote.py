"""`weighbridge prices quote`: what a request would cost, and why, line by line."""

from __future__ import annotations

import datetime as dt
import difflib
import json
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gateway.cli.policy.options import AsJson, Folder, usage
from gateway.cli.prices.options import At, Opened, moment, opened
from gateway.domain.money import UNIT, Meter, Unpriced, rate, usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.domain.catalog import Target
    from gateway.domain.money import Charge, Line, Rates
    from gateway.ledger.prices import Dated


_OF_PROMPT = (
    Meter.CACHE_READ,
    Meter.CACHE_WRITE_5M,
    Meter.CACHE_WRITE_1H,
    Meter.INPUT_AUDIO,
    Meter.CACHE_READ_AUDIO,
    Meter.INPUT_IMAGE,
)
_OF_ANSWER = (Meter.REASONING, Meter.OUTPUT_AUDIO, Meter.OUTPUT_IMAGE)
_BESIDE = (
    Meter.SEARCH_CALL,
    Meter.IMAGE,
    Meter.SECOND,
    Meter.MINUTE,
    Meter.GPU_SECOND,
    Meter.REPLICA_MINUTE,
)


_UNITS = {  # of what is not tokens
    Meter.REQUEST: "1,000 requests",
    Meter.SEARCH_CALL: "1,000 searches",
    Meter.IMAGE: "picture",
    Meter.SECOND: "second",
    Meter.MINUTE: "minute",
    Meter.GPU_SECOND: "GPU-second",
    Meter.REPLICA_MINUTE: "replica-minute",
}


def _count(what: str) -> Any:
    return typer.Option(min=0, help=what)


def quote(
    model: Annotated[str, typer.Argument(help="A model, an alias, or BACKEND/MODEL.")],
    backend: Annotated[str, typer.Option(help="Only there; default: wherever it is.")] = "",
    input_: Annotated[
        int, typer.Option("--input", min=0, help="Tokens of the whole prompt, with its parts.")
    ] = 0,
    cached: Annotated[int, _count("Of the prompt: read from a cache.")] = 0,
    cache_write: Annotated[int, _count("Of the prompt: written to a cache, 5 minutes.")] = 0,
    cache_write_1h: Annotated[int, _count("Of the prompt: written to one for an hour.")] = 0,
    audio_input: Annotated[int, _count("Of the prompt: audio.")] = 0,
    cached_audio_input: Annotated[int, _count("Of the prompt: audio from a cache.")] = 0,
    image_input: Annotated[int, _count("Of the prompt: pictures.")] = 0,
    output: Annotated[int, _count("Tokens of the whole answer, with its parts.")] = 0,
    reasoning: Annotated[int, _count("Of the answer: reasoning.")] = 0,
    audio_output: Annotated[int, _count("Of the answer: audio.")] = 0,
    image_output: Annotated[int, _count("Of the answer: pictures.")] = 0,
    searches: Annotated[int, _count("Web searches.")] = 0,
    images: Annotated[int, _count("Pictures made, where counted.")] = 0,
    seconds: Annotated[int, _count("Of audio or video.")] = 0,
    minutes: Annotated[int, _count("Of audio or video.")] = 0,
    gpu_seconds: Annotated[int, _count("Of rented GPUs.")] = 0,
    replica_minutes: Annotated[int, _count("Of rented replicas.")] = 0,
    at: At = "",
    service_tier: Annotated[str, typer.Option(help="As the vendor names it: batch, flex.")] = "",
    region: Annotated[str, typer.Option(help="Default: the backend's data.region.")] = "",
    currency: Annotated[str, typer.Option(help="Show the total in it too, like EUR.")] = "",
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """What a request costs and why: each meter's quantity, unit price and exact amount.

    --input is the whole prompt and --output the whole answer: cached tokens, cache writes, audio
    and pictures are parts of the one, reasoning is part of the other. The cheapest backend comes
    first. Exit status 1 where nothing asked for has a price.

    Example: weighbridge prices quote gpt-6-sol --input 300000 --cached 200000 --output 1500
    """
    quantities = _quantities(
        input_,
        (cached, cache_write, cache_write_1h, audio_input, cached_audio_input, image_input),
        output,
        (reasoning, audio_output, image_output),
        (searches, images, seconds, minutes, gpu_seconds, replica_minutes),
    )
    when, known = moment(at), opened(folder)
    asked = _asked(known, model, backend)
    if region:
        known = replace(
            known, book=replace(known.book, regions=dict.fromkeys(_backends(asked), region))
        )
    quotes = [_quote(known, target, quantities, when, service_tier or None) for target in asked]
    quotes.sort(key=lambda one: (one.charge is None, one.charge.exact if one.charge else 0))
    per_usd = _per_usd(known, currency, when)
    if as_json:
        typer.echo(json.dumps(_as_dict(quotes, when, per_usd), indent=2))
    else:
        for number, one in enumerate(quotes):
            typer.echo("" if number else f"prices of {when.isoformat(timespec='minutes')}\n")
            _print(one, per_usd)
    raise typer.Exit(0 if any(one.charge for one in quotes) else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quote:
    """What one target would charge; `why_not` says why that is not known."""

    target: Target
    charge: Charge | None = None
    rates: Rates | None = None
    row: Dated | None = None
    why_not: str = ""


def _quantities(
    prompt: int,
    of_prompt: tuple[int, ...],
    answer: int,
    of_answer: tuple[int, ...],
    others: tuple[int, ...],
) -> dict[Meter, int]:
    """So much of each meter; ends with 2 where parts are more than their whole, or all is 0."""
    in_parts = dict(zip(_OF_PROMPT, of_prompt, strict=True))
    out_parts = dict(zip(_OF_ANSWER, of_answer, strict=True))
    metered = {
        Meter.INPUT: _rest("--input", prompt, in_parts),
        **in_parts,
        Meter.OUTPUT: _rest("--output", answer, out_parts),
        **out_parts,
        **dict(zip(_BESIDE, others, strict=True)),
    }
    quantities = {meter: count for meter, count in metered.items() if count}
    if not quantities:
        usage("nothing to quote: say at least --input and --output")
    return quantities


def _rest(name: str, whole: int, parts: Mapping[Meter, int]) -> int:
    said = sum(parts.values())
    if said > whole:
        told = " + ".join(f"{count:,} {meter.value}" for meter, count in parts.items() if count)
        usage(f"{name} {whole:,} is less than its parts: {told} = {said:,}; {name} is the whole")
    return whole - said


def _asked(known: Opened, model: str, backend: str) -> list[Target]:
    """The targets that the words name: a target, an alias, a model."""
    from gateway.policy.source import nearest

    targets = known.targets()
    if backend and backend not in (names := _backends(targets)):
        usage(f"no backend '{backend}'; {nearest(backend, names) or ', '.join(names)}")
    alias = known.catalog.aliases.get(model)
    found = [target for target in targets if model in (target.model, str(target))]
    found = found or list(alias.targets if alias else ())
    there = [target for target in found if backend in ("", target.backend)]
    if not found:
        names = [*known.catalog.aliases, *dict.fromkeys(target.model for target in targets)]
        close = difflib.get_close_matches(model, names, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(close)}" if close else "`weighbridge prices list` has all"
        usage(f"no model or alias '{model}'; {hint}")
    if not there:
        usage(f"no {model} at {backend}; it is at {', '.join(_backends(found))}")
    return there


def _backends(targets: list[Target]) -> list[str]:
    return list(dict.fromkeys(target.backend for target in targets))


def _quote(
    known: Opened,
    target: Target,
    quantities: Mapping[Meter, int],
    when: dt.datetime,
    service_tier: str | None,
) -> _Quote:
    from gateway.ledger.price_file import instant

    at = instant(when)
    rates, row = known.book.rates(target, at), known.book.row(target, at)
    if rates is None:
        return _Quote(target=target, why_not=f"no price of it on {when.date()}")
    try:
        charge = rate(rates, quantities, service_tier=service_tier)
    except Unpriced as error:
        return _Quote(target=target, row=row, why_not=_no_price(str(error), rates))
    held = next(one for one in rates.every() if one.id == charge.rates_id)
    return _Quote(target=target, charge=charge, rates=held, row=row)


def _no_price(why: str, rates: Rates) -> str:
    if "service tier" in why:
        why += f"; it has {', '.join(sorted(rates.service_tiers)) or 'the standard one only'}"
    return why


class _Currency(NamedTuple):
    """How much of a currency a dollar is, and since when."""

    name: str
    rate: Decimal
    since: dt.date


def _per_usd(known: Opened, currency: str, when: dt.datetime) -> _Currency | None:
    from gateway.policy.source import nearest

    if not currency:
        return None
    found = known.book.per_usd(currency.upper(), when.date())
    if found is None:
        there = sorted({one.currency for one in known.book.currencies} | {"USD"})
        typer.echo(
            f"no rate of {currency.upper()} on {when.date()}: add one under currencies: in "
            f"{known.folder / 'prices'}; {nearest(currency.upper(), there)}",
            err=True,
        )
        raise typer.Exit(1)
    dated = [one.from_ for one in known.book.currencies if one.currency == currency.upper()]
    since = max((day for day in dated if day <= when.date()), default=when.date())
    return _Currency(currency.upper(), found, since)


# --- telling ------------------------------------------------------------------------------------


def _print(one: _Quote, per_usd: _Currency | None) -> None:
    from gateway.cli.policy.tables import print_table, table_of

    if one.charge is None or one.rates is None or one.row is None:
        typer.echo(f"{one.target}  unpriced: {one.why_not}")
        return
    total = f"${usd(one.charge.nano)}"
    if per_usd is not None:
        amount = _converted(_dollars(one.charge.exact) * per_usd.rate)
        total += f" = {amount} {per_usd.name} (at {per_usd.rate} of {per_usd.since})"
    typer.echo(f"{one.target}  {total}")
    table = table_of("meter", "quantity", "unit price", "amount", "")
    for column in table.columns[1:4]:
        column.justify = "right"
    for line in one.charge.lines:
        table.add_row(
            line.meter.value,
            f"{line.quantity:,}",
            f"${_exact(line.price)} per {_UNITS.get(line.meter, '1M tokens')}",
            f"${_exact(_dollars(line.nano))}",
            _remark(line, one.rates),
        )
    table.add_row("total", "", "exact", f"${_exact(_dollars(one.charge.exact))}", "")
    print_table(table, indent=2)
    for name, value in _because(one).items():
        if value:
            typer.echo(f"  {name.replace('_', ' '):<11} {value}")


def _because(one: _Quote) -> dict[str, str]:
    """Which price held, and who says so."""
    assert one.charge is not None
    assert one.row is not None
    name, _, inside = one.charge.rates_id.partition("#")
    said = dict(part.partition("=")[::2] for part in inside.split(";")[1:])
    terms = one.row.terms
    return {
        "price": one.charge.rates_id,
        "since": str(terms.get("from", "")),
        "service_tier": said.get("service_tier", ""),
        "region": said.get("region", ""),
        "hours": f"{said['hours']} UTC" if "hours" in said else "",
        "tier": f"over {int(said['over']):,} prompt tokens" if "over" in said else "",
        "source": str(terms.get("source", "")),
        "read_on": str(terms.get("read_on", "")),
        "written_at": one.row.place,
    } | ({"declared": "free"} if name.startswith("free:") else {})


def _remark(line: Line, rates: Rates) -> str:
    """Why that price, where the row does not say it for this meter."""
    if line.above is not None:
        return f"beyond {line.above:,} tokens"
    own = {Meter.INPUT, Meter.OUTPUT, *rates.others}
    if rates.cached_input is not None:
        own.add(Meter.CACHE_READ)
    if line.meter in own or rates.marginal:
        return ""
    like = {Meter.REASONING: "output", Meter.CACHE_READ_AUDIO: "audio"}.get(line.meter, "input")
    return f"as {like}: no price of its own"


def _dollars(nano: Decimal) -> Decimal:
    return nano.scaleb(-9)


def _exact(amount: Decimal) -> str:
    """Plain digits, none lost, none for show but the cents."""
    whole, _, fraction = f"{amount.normalize():f}".partition(".")
    return f"{whole}.{fraction:0<2}"


def _converted(amount: Decimal) -> str:
    """Six digits that say something: a rate has no more. Never coarser than a cent."""
    return _exact(amount.quantize(Decimal(1).scaleb(-max(2, 5 - amount.adjusted()))))


def _as_dict(quotes: list[_Quote], when: dt.datetime, per_usd: _Currency | None) -> dict[str, Any]:
    return {
        "at": when.isoformat(),
        "currency": None
        if per_usd is None
        else {
            "name": per_usd.name,
            "per_usd": str(per_usd.rate),
            "since": per_usd.since.isoformat(),
        },
        "quotes": [_one_as_dict(one, per_usd) for one in quotes],
    }


def _one_as_dict(one: _Quote, per_usd: _Currency | None) -> dict[str, Any]:
    told: dict[str, Any] = {"backend": one.target.backend, "model": one.target.model}
    if one.charge is None or one.rates is None:
        return told | {"total_nano_usd": None, "unpriced": one.why_not}
    exact = _dollars(one.charge.exact)
    return told | {
        "total_nano_usd": one.charge.nano,
        "exact_usd": _exact(exact),
        **({} if per_usd is None else {"converted": _converted(exact * per_usd.rate)}),
        "lines": [
            {
                "meter": line.meter.value,
                "quantity": line.quantity,
                "unit_price_usd": _exact(line.price),
                "unit": UNIT[line.meter],
                "amount_usd": _exact(_dollars(line.nano)),
                "above": line.above,
                "remark": _remark(line, one.rates),
            }
            for line in one.charge.lines
        ],
        **_because(one),
    }
