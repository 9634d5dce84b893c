"""`weighbridge bench`: run the checkout's benchmarks and pass on what they say.

The benchmarks live with the tests, not in the wheel: they drive other gateways and a load client,
which nobody wants installed beside a product. This module only finds and starts them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

_MARK = Path("tests/bench/__main__.py")


def checkout(start: Path) -> Path | None:
    """The folder that holds the benchmarks: from `start` upwards, else this package's own."""
    package = Path(__file__).resolve().parents[2]
    return next((p for p in (start, *start.parents, package) if (p / _MARK).is_file()), None)


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="One short round, under 90 s; writes nothing.")
    ] = False,
    only: Annotated[
        str,
        typer.Option(
            help="Comma-separated: direct, bare, weighbridge, weighbridge-pg, litellm, vllm-router."
        ),
    ] = "",
    database_url: Annotated[
        str, typer.Option(help="Postgres for weighbridge-pg; without it one is started.")
    ] = "",
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit 1 if weighbridge misses a gate.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Measure this gateway beside LiteLLM's proxy, vllm-router and a bare pass-through.

    CPU per request and per streamed chunk, added time to first token, start, memory, 1,000
    streams, in under 10 minutes. A full run writes tests/bench/RESULTS.md. Others' programs are
    installed into .engines on first use. Needs a checkout, and Linux.

    Example: weighbridge bench --quick --only direct,bare,weighbridge
    """
    root = checkout(Path.cwd())
    if root is None:
        typer.echo(
            "bench needs a checkout of weighbridge (tests/bench); run it inside one", err=True
        )
        raise typer.Exit(2)
    command = [sys.executable, "-m", "tests.bench"]
    command += ["--plan", "quick"] if quick else []
    command += ["--only", only] if only else []
    command += ["--database-url", database_url] if database_url else []
    command += [flag for flag, asked in (("--gate", gate), ("--json", json)) if asked]
    raise typer.Exit(subprocess.run(command, cwd=root, check=False).returncode)  # noqa: S603
