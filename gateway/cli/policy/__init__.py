"""`weighbridge policy`: check, explain, plan, apply and roll back what traffic is routed by.

Exit codes: 0 fine, 1 a check failed, 2 usage. Heavy imports happen inside the commands.
"""

from __future__ import annotations

import typer

from gateway.cli.policy.backtest import backtest
from gateway.cli.policy.check import check
from gateway.cli.policy.explain import explain
from gateway.cli.policy.plan import plan
from gateway.cli.policy.schema import schema
from gateway.cli.policy.versions import apply, history, rollback

app = typer.Typer(
    name="policy",
    help="Check, explain, plan, apply and roll back what traffic is routed by.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (backtest, check, explain, plan, schema, apply, history, rollback):
    app.command()(command)
