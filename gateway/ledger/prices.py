"""The price book: what each model at each backend costs, from which day on. Pure.

Owns: the schema of `policies/prices/*.yaml` and the choice of the row in force on a day. Knows
nothing of usage and of the ledger; `domain.money` computes with what it hands out.

INVARIANTS
- Unknown is None, never 0: a target without a row in force has no rates.
- A price of 0 must say `free: true`; a price list that forgets a figure is refused.
- Rows are appended, not edited: a new price is a new row with its own `from`. Two rows for one
  target and day are refused, across files.
- Every row says where its figures were read and when.
"""

from __future__ import annotations

import datetime as dt
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.domain.catalog import Target
from gateway.domain.money import Rates
from gateway.policy.source import ConfigErrors, Findings, Path, Problem, Strict, json_schema, read

# Nine digits after the point: an integer count of 1e-15 dollars per token, so costs stay exact.
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,6})(\.[0-9]{1,9})?")


def _decimal(text: str) -> str:
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"'{text}' is not a price; write dollars in quotes, like \"0.25\"")
    return text


Price = Annotated[
    str,
    AfterValidator(_decimal),
    WithJsonSchema({"type": "string", "pattern": f"^{_DECIMAL.pattern}$", "examples": ["0.25"]}),
]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class PriceRow(Strict):
    """One price, in USD per million tokens, from one day on."""

    backend: Name
    model: Name
    from_: dt.date = Field(
        alias="from", description="The first day (UTC) it holds, or is known to have held."
    )
    input_usd_per_mtok: Price
    cached_input_usd_per_mtok: Price | None = Field(
        default=None, description="Left out: cached input costs what input costs."
    )
    output_usd_per_mtok: Price | None = Field(
        default=None, description="Required, unless input_only."
    )
    input_only: bool = Field(
        default=False, description="Nothing is generated, so nothing is charged: embeddings."
    )
    free: bool = Field(default=False, description="A price of 0 in this row is meant.")
    basis: Literal["list", "declared"] = Field(
        default="list", description="A vendor's price list, or our own statement."
    )
    source: Annotated[str, Field(min_length=1, max_length=500)]
    read_on: dt.date


class PricesFile(Strict):
    """Rows of the price book. Append; do not edit."""

    version: Literal[1]
    prices: list[PriceRow] = Field(max_length=100_000)


@dataclass(frozen=True, slots=True)
class PriceBook:
    """All rows of all files; `rows` of a target ascend by day."""

    rows: Mapping[Target, tuple[tuple[dt.date, Rates], ...]]

    def rates(self, target: Target, at: dt.date) -> Rates | None:
        """What `target` costs on the day `at` (UTC); None where that is not known."""
        rows = self.rows.get(target, ())
        index = bisect_right(rows, at, key=lambda row: row[0])
        return rows[index - 1][1] if index else None

    def in_force(self, at: dt.date) -> dict[Target, Rates]:
        """The rates of every target that has some on the day `at`: what routing is given."""
        known = ((target, self.rates(target, at)) for target in self.rows)
        return {target: rates for target, rates in known if rates is not None}


def load_prices(files: Iterable[tuple[str, str]]) -> PriceBook:
    """`(source, text)` of each file as one book. Raises ConfigErrors with all that is wrong."""
    problems: list[Problem] = []
    rows: dict[Target, dict[dt.date, Rates]] = {}
    first: dict[tuple[Target, dt.date], str] = {}
    for source, text in files:
        try:
            file, findings = read(PricesFile, text, source)
            for index, row in enumerate(file.prices):
                path: Path = ("prices", index)
                _check(row, path, findings)
                key = (Target(row.backend, row.model), row.from_)
                line, column = findings.position(path)
                before = first.setdefault(key, f"{source}:{line}:{column}")
                if before != f"{source}:{line}:{column}":
                    findings.problem(
                        path, f"a second price of {key[0]} from {row.from_}", f"first at {before}"
                    )
                rows.setdefault(key[0], {})[row.from_] = _rates(row)
            findings.raise_if_any()
        except ConfigErrors as errors:
            problems += errors.problems
    if problems:
        raise ConfigErrors(problems)
    return PriceBook({target: tuple(sorted(dated.items())) for target, dated in rows.items()})


def schema() -> dict[str, Any]:
    """The JSON Schema of the files."""
    return json_schema(PricesFile, "Weighbridge prices")


def _check(row: PriceRow, path: Path, findings: Findings) -> None:
    if row.output_usd_per_mtok is None and not row.input_only:
        findings.problem(
            path, "no output_usd_per_mtok", "set input_only: true where nothing is generated"
        )
    if row.output_usd_per_mtok is not None and row.input_only:
        findings.problem((*path, "output_usd_per_mtok"), "contradicts input_only", key=True)
    prices = {
        "input_usd_per_mtok": row.input_usd_per_mtok,
        "cached_input_usd_per_mtok": row.cached_input_usd_per_mtok,
        "output_usd_per_mtok": row.output_usd_per_mtok,
    }
    zero = [name for name, price in prices.items() if price and not Decimal(price)]
    for name in zero:
        if not row.free:
            findings.problem((*path, name), "a price of 0", "set free: true if it is meant")
    if row.free and not zero:
        findings.problem((*path, "free"), "but no price is 0", key=True)


def _rates(row: PriceRow) -> Rates:
    cached = row.cached_input_usd_per_mtok
    return Rates(
        # The ledger takes a cost of 0 only from a rate whose id says that this is meant.
        id=f"{'free:' if row.free else ''}{row.backend}/{row.model}@{row.from_.isoformat()}",
        input=Decimal(row.input_usd_per_mtok or "0"),
        output=Decimal(row.output_usd_per_mtok or "0"),
        cached_input=None if cached is None else Decimal(cached),
        source=row.source,
        basis=row.basis,
        free=row.free,
    )
