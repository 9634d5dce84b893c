"""`weighbridge prices`: what the price book says, what it lacks, and what a request costs.

Exit codes: 0 fine, 1 a check failed, 2 usage. Heavy imports happen inside the commands.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from gateway.cli.prices.check import check
from gateway.cli.prices.history import history
from gateway.cli.prices.import_ import import_
from gateway.cli.prices.list import list_
from gateway.cli.prices.quote import quote
from gateway.cli.prices.rerate import rerate

app = typer.Typer(
    name="prices",
    help="What the price book says, what it lacks, and what a request costs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# What reads the files first, then what works on the ledger's side of prices.
COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "quote": quote,
    "check": check,
    "import": import_,
    "history": history,
    "rerate": rerate,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
