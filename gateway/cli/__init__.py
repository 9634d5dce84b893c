"""`weighbridge`: the command line. Every command has --help with an example and --json.

Exit status: 0 fine, 1 a check failed, 2 wrong usage or it cannot start. Nothing heavy is imported
at the top: `--help` must answer at once.
"""

from __future__ import annotations

import sys

import typer

from gateway import __version__
from gateway.cli import bench, budgets, db, keys, policy, prices, report
from gateway.cli.audit import audit
from gateway.cli.demo import demo
from gateway.cli.events import events
from gateway.cli.init import init
from gateway.cli.routes import routes
from gateway.cli.serve import serve

app = typer.Typer(
    name="weighbridge",
    help="The gateway every model call of a company passes through, and is weighed on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"weighbridge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """The gateway every model call of a company passes through, and is weighed on."""


app.command()(init)
app.command()(demo)
app.command()(serve)
app.command()(routes)
app.command()(audit)
app.command()(events)
app.command("bench")(bench.bench)
app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(prices.app, name="prices")
app.add_typer(report.app, name="report")
app.add_typer(budgets.app, name="budgets")
app.add_typer(db.app, name="db")


def main() -> None:
    """Entry point: our own errors are a sentence and an exit status, never a traceback."""
    from gateway.cli.failures import CANNOT_START, sentence

    try:
        app()
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        sys.stderr.write(f"weighbridge: {text}\n")
        raise SystemExit(CANNOT_START) from None
