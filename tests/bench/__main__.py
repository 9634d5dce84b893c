"""`python -m tests.bench`, what `weighbridge bench` runs. Exit code 0: measured, 1: a check failed,
2: usage."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import signal
import sys
import threading
from pathlib import Path

import orjson
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import measure, results
from tests.bench.contenders import CONTENDERS, Unavailable

RESULTS = Path(__file__).with_name("RESULTS.md")
OTHERS = "\n<!-- What follows is other programs' and kept. -->\n"
_PLANS = {"full": measure.FULL, "quick": measure.QUICK, "smoke": measure.SMOKE}
_OURS = {measure.DIRECT, "bare", "weighbridge", "weighbridge-pg"}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="weighbridge bench", description=__doc__)
    known = ", ".join([measure.DIRECT, *CONTENDERS])
    parser.add_argument("--only", default="", help=f"comma-separated: {known}")
    parser.add_argument("--plan", choices=_PLANS, default="full")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--gate", action="store_true", help="exit 1 if a gate is missed")
    parser.add_argument(
        "--database-url", default="", help="Postgres for weighbridge-pg; else one is started"
    )
    parser.add_argument("--output", type=Path, help="page to write; a full run writes RESULTS.md")
    return parser


def _chosen(only: str, plan: str) -> list[str]:
    """Names in the order they run. Raises ValueError for one that does not exist."""
    if only:
        asked = [name.strip() for name in only.split(",") if name.strip()]
        if unknown := [n for n in asked if n != measure.DIRECT and n not in CONTENDERS]:
            known = ", ".join([measure.DIRECT, *CONTENDERS])
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {known}")
        return asked
    default = [measure.DIRECT, "bare", "weighbridge", "litellm"]
    if plan == "full":
        default += ["weighbridge-pg", "vllm-router"]
    return default


def _facts(command: str) -> dict[str, str]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    kernel = ".".join(platform.release().split(".")[:2])
    return {
        "command": command,
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": f"{cpu}, {os.cpu_count()} cores, {memory_gb:.0f} GB, Linux {kernel}",
        "Python": platform.python_version(),
    }


def _failures(report: measure.Report, asked: bool, gate: bool) -> list[str]:
    found = []
    for figures in report.figures.values():
        if figures.unavailable and (asked or figures.name in _OURS):
            found.append(f"{figures.name} did not run")
        if figures.errors and figures.name in _OURS:
            found.append(f"{figures.name}: {figures.errors.total()} errors")
        if gate and figures.name.startswith("weighbridge"):
            found += [
                f"{figures.name}: {g.what} above {g.at_most:g}" for g in results.missed(figures)
            ]
    return found


def _write(output: Path, page: str) -> None:
    """In the place of the last one, but for the sections of other programs."""
    before = output.read_text() if output.is_file() else ""
    output.write_text(page + "".join(before.partition(OTHERS)[1:]))


def main() -> int:
    options = _arguments().parse_args()
    console = Console(stderr=True)
    if not sys.platform.startswith("linux"):
        console.print("bench needs Linux: it pins processes to cores and reads /proc")
        return 2
    try:
        names = _chosen(options.only, options.plan)
    except ValueError as error:
        console.print(str(error))
        return 2
    told_to_stop = threading.Event()

    def stop(*_: object) -> None:  # unwinds, so that what was started is stopped
        told_to_stop.set()
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    plan = _PLANS[options.plan]
    bar = Progress(
        TextColumn("{task.description:40}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
    )
    with bar:
        task = bar.add_task("", total=measure.steps(names, plan))

        def step(what: str) -> None:
            # The interpreter swallows what a signal handler raises inside an at-fork callback.
            if told_to_stop.is_set():
                sys.exit(143)
            bar.update(task, description=what, advance=1, refresh=True)

        try:
            report = measure.measure(names, plan, database_url=options.database_url, step=step)
        except Unavailable as why:
            console.print(f"cannot measure: {why}")
            return 1
    only = f" --only {options.only}" if options.only else ""
    mode = f" --{options.plan}" if options.plan != "full" else ""
    facts = _facts(f"weighbridge bench{mode}{only}")
    page = results.page(report, facts)
    output = options.output or (RESULTS if options.plan == "full" and not options.only else None)
    if output:
        _write(output, page)
    if options.json:
        sys.stdout.buffer.write(
            orjson.dumps(report.as_json() | {"facts": facts}, option=orjson.OPT_INDENT_2) + b"\n"
        )
    elif sys.stdout.isatty():
        Console().print(Markdown(page))
    else:
        print(page)
    failures = _failures(report, bool(options.only), options.gate)
    for failure in failures:
        console.print(f"[red]failed[/]: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
