"""`weighbridge policy backtest`: several routing policies over one period of recorded traffic."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.database import ledger
from gateway.cli.policy.options import AsJson, Folder, usage
from gateway.cli.policy.traffic import REQUESTS_MAX, RequestsMax, Seed, Since, Until, bounds

if TYPE_CHECKING:
    from gateway.bundle import Files
    from gateway.cli.charts import Bars, Shares
    from gateway.cli.policy.figures import Privacy
    from gateway.cli.policy.traffic import Bounds, Current, Outcome
    from gateway.policy.comparison import Comparison
    from gateway.settings import Settings


def backtest(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Routing policies.")],
    folder: Folder = None,
    since: Since = "7d",
    until: Until = "",
    against: Annotated[
        str,
        typer.Option(metavar="NAME|current", help="A policy of the folder, or what is in force."),
    ] = "current",
    chart: Annotated[
        Path | None, typer.Option(metavar="OUT.svg", help="Draw the comparison too.")
    ] = None,
    requests_max: RequestsMax = REQUESTS_MAX,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Put the traffic of a period through several policies and show them side by side.

    Decided again are recorded requests (their shape, never their content). Catalog, prices and
    limits are those of --dir, else those in force. Exit status 1 where a file does not load or
    nothing was recorded in the period.

    Example: weighbridge policy backtest policies/routing/*.yaml --since 30d --chart out.svg
    """
    import asyncio

    for file in files:
        if not file.is_file():
            usage(f"no such file: {file}")
    files = [file for file in files if not file.name.endswith(".tests.yaml")]  # of a shell's *
    if not files:
        usage("tests of policies are no policies")
    if chart is not None and not chart.absolute().parent.is_dir():
        usage(f"no such folder: {chart.parent}")
    period = bounds(since, until, dt.datetime.now(dt.UTC))
    outcome, label, privacy = asyncio.run(
        _backtest(files, folder, period, against, requests_max=requests_max, seed=seed)
    )
    if outcome is None:
        typer.echo(f"nothing was recorded from {period}; try an earlier --since", err=True)
        raise typer.Exit(1)
    if chart is not None:
        from gateway.cli.charts import svg

        chart.write_text(svg(*_picture(outcome, label)), encoding="utf-8")
    if as_json:
        from gateway.cli.policy.figures import dumps

        typer.echo(dumps(_as_json(outcome, label, privacy, chart)))
    else:
        _print(outcome, label, privacy)
        if chart is not None:
            typer.echo(f"drawn: {chart}")


async def _backtest(
    files: Sequence[Path],
    folder: Path | None,
    period: Bounds,
    against: str,
    *,
    requests_max: int,
    seed: int,
) -> tuple[Outcome | None, str, list[Privacy]]:
    """The replay, what it is against, and each side's privacy changes."""
    from gateway.bundle import load
    from gateway.cli.policy import figures, traffic
    from gateway.policy.loosened import loosened
    from gateway.policy.source import ConfigErrors
    from gateway.settings import Settings

    settings = Settings.load()
    async with ledger(settings) as store:
        try:
            now = await traffic.current(store, settings, folder)
            make = await traffic.loader(store, now, period)
            base, label = _against(against, now, settings, folder)
            texts = [base, *(traffic.proposed(file, now, folder) for file in files)]
            bundles = [make(text, folder or now.folder) for text in texts]
            everywhere = [load(text, secret_present=lambda _: True) for text in texts]
        except ConfigErrors as errors:
            typer.echo(str(errors), err=True)
            raise typer.Exit(1) from None
        first = "in force" if against == "current" else against
        names = [first, *_names(files)]
        sides = [traffic.side(n, bundle) for n, bundle in zip(names, bundles, strict=True)]
        outcome = await traffic.replayed(
            store, sides, make, period, requests_max=requests_max, seed=seed
        )
    meant = [(bundle.policy, bundle.catalog) for bundle in everywhere]
    tallies = [None] * len(sides) if outcome is None else outcome.replay.tallies
    privacy = [
        figures.Privacy.of(loosened(meant[0], one), tally)
        for one, tally in zip(meant, tallies, strict=True)
    ]
    return outcome, label, privacy


def _against(
    against: str, now: Current, settings: Settings, folder: Path | None
) -> tuple[Files, str]:
    """The files all others are compared with. Raises ConfigErrors."""
    from gateway.bundle import routing_files
    from gateway.cli.policy.traffic import proposed

    if against == "current":
        return now.files, now.label
    there = folder or settings.policies_dir
    file = there / "routing" / f"{against}.yaml"
    if not file.is_file():
        names = ", ".join(path.stem for path in routing_files(there))
        usage(f"--against {against}: no such policy in {there}; there are {names}")
    return proposed(file, now, folder), f"{against} of {there}"


def _names(files: Sequence[Path]) -> list[str]:
    stems = [file.stem for file in files]
    return [
        file.stem if stems.count(file.stem) == 1 else str(file.with_suffix("")) for file in files
    ]


def _as_json(
    outcome: Outcome, label: str, privacy: Sequence[Privacy], chart: Path | None
) -> dict[str, Any]:
    from gateway.cli.policy import figures

    sides = zip(outcome.replay.sides, outcome.comparisons, privacy, strict=True)
    return {
        "ok": True,
        "against": label,
        "period": figures.period_json(outcome),
        "policies": [
            {
                "name": side.name,
                "digest": side.digest,
                "privacy": figures.privacy_json(one),
                **figures.comparison_json(comparison, outcome.period),
                "summary": figures.summary(comparison, outcome.period, len(one.changes)),
            }
            for side, comparison, one in sides
        ],
        "chart": None if chart is None else str(chart),
    }


def _print(outcome: Outcome, label: str, privacy: Sequence[Privacy]) -> None:
    from rich.console import Console

    from gateway.cli import charts
    from gateway.cli.policy import figures
    from gateway.cli.policy.traffic import moment

    console = Console(highlight=False, soft_wrap=True)
    period = outcome.period
    console.print(
        f"{period.sample:,} requests, {moment(period.from_us)} to {moment(period.until_us)} UTC,"
        f" against {label}",
        style="bold",
        markup=False,
    )
    for remark in figures.remarks(outcome, outcome.comparisons[1:]):
        console.print(f"  {remark}", markup=False)
    console.print()
    typer.echo(figures.side_by_side(outcome, [len(one.changes) for one in privacy]))
    for panel in _bars(outcome)[:2]:
        console.print()
        for line in charts.rows(panel):
            console.print(line, markup=False)
    console.print()
    for side, one in zip(outcome.replay.sides, privacy, strict=True):
        for line in one.changes:
            console.print(f"! {side.name}: {line}", markup=False)
    console.print(f"\n{figures.UNCOVERED}", style="dim")


# --- the chart ----------------------------------------------------------------------------------


def _picture(outcome: Outcome, label: str) -> tuple[str, str, list[Bars | Shares]]:
    from gateway.cli.charts import Shares
    from gateway.cli.policy.traffic import moment
    from gateway.policy.comparison import NO_ANSWER

    period = outcome.period
    rows = []
    for side, comparison in zip(outcome.replay.sides, outcome.comparisons, strict=True):
        ends: dict[str, float] = {}
        for (_, end), count in comparison.matrix.items():
            ends[end] = ends.get(end, 0) + count / comparison.sample
        rows.append((side.name, ends))
    when = f"{moment(period.from_us)} to {moment(period.until_us)} UTC"
    subtitle = f"{period.sample:,} of {period.decided:,} requests, {when}, against {label}"
    panels: list[Bars | Shares] = [
        Shares(title="Where requests go", rows=rows, last=NO_ANSWER),
        *_bars(outcome),
    ]
    return "Policies over recorded traffic", subtitle, panels


def _bars(outcome: Outcome) -> list[Bars]:
    """The panels with one bar per side, the weightiest first."""
    from gateway.cli.charts import Bar, Bars
    from gateway.cli.policy import figures

    factor, when = figures.per(outcome.period)
    usd = factor / 1e9
    sides = list(zip(outcome.replay.sides, outcome.comparisons, strict=True))

    def panel(
        title: str, unit: str, note: str, bar: Callable[[Comparison], dict[str, Any]]
    ) -> Bars:
        bars = [Bar(label=side.name, **bar(c)) for side, c in sides]
        return Bars(title=title, unit=unit, note=note, bars=bars)

    def cost(c: Comparison) -> dict[str, Any]:
        m = c.money
        text = figures.dollars(m.more * factor, sign=True)
        return {"value": m.more * usd, "text": text, "low": m.low * usd, "high": m.high * usd}

    def ttft(c: Comparison) -> dict[str, Any]:
        value = c.ttft_ms.after_p50
        return {"value": value, "text": figures.figure(value), "mark": c.ttft_ms.after_p95}

    def tps(c: Comparison) -> dict[str, Any]:
        return {"value": c.tps.after_p50, "text": figures.figure(c.tps.after_p50)}

    def percent(part: int, whole: int) -> dict[str, Any]:
        value = 100 * part / whole if whole else float("nan")
        return {"value": value, "text": figures.share(part, whole)}

    panels = [
        panel(
            f"Cost against {sides[0][0].name}",
            f"US dollars {when}",
            "line: 95 % interval",
            cost,
        ),
        panel("Time to first token", "ms", "bar: median, stroke: 95th percentile", ttft),
        panel("Output speed", "tokens per second", "median of requests", tps),
        panel(
            "Requests that move",
            "% of requests",
            "to another target",
            lambda c: percent(c.moved, c.sample),
        ),
        panel(
            "Requests without an answer",
            "% of requests",
            "no target was eligible",
            lambda c: percent(c.refused + c.unanswered, c.sample),
        ),
    ]
    if any(comparison.bounded for _, comparison in sides):
        panels.append(
            panel(
                "Service levels missed",
                "% of requests that have one",
                "the strictest bound of all policies shown",
                lambda c: percent(c.misses_after, c.bounded),
            )
        )
    return panels
