"""`weighbridge policy plan`: what a routing policy would change, before it does."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.database import ledger
from gateway.cli.policy.options import AsJson, Folder, usage
from gateway.cli.policy.traffic import REQUESTS_MAX, RequestsMax, Seed, Since, Until, bounds

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.cli.policy.figures import Privacy
    from gateway.cli.policy.traffic import Bounds, Outcome
    from gateway.policy.difference import Change


def plan(
    new: Annotated[Path, typer.Argument(metavar="NEW.yaml", help="The routing policy.")],
    folder: Folder = None,
    since: Since = "7d",
    until: Until = "",
    requests_max: RequestsMax = REQUESTS_MAX,
    seed: Seed = 1,
    allow_loosen_privacy: Annotated[
        bool, typer.Option("--allow-loosen-privacy", help="Privacy changes are meant.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What NEW would change: in meaning, and for the traffic of the last days.

    Recorded requests (their shape, never their content) are decided again by what is in force and
    by NEW, with the catalog, prices and limits of --dir, else those in force. Exit status 1 where
    NEW does not load, or loosens privacy without --allow-loosen-privacy.

    Example: weighbridge policy plan policies/routing/cheapest.yaml --since 7d
    """
    import asyncio

    if not new.is_file():
        usage(f"no such file: {new}")
    period = bounds(since, until, dt.datetime.now(dt.UTC))
    found = asyncio.run(_plan(new, folder, period, requests_max=requests_max, seed=seed))
    refused = bool(found.privacy.changes) and not allow_loosen_privacy
    if as_json:
        from gateway.cli.policy.figures import dumps

        typer.echo(dumps({"ok": not refused} | found.as_json()))
    else:
        _print(found, refused=refused)
    raise typer.Exit(1 if refused else 0)


class _Plan:
    """All that is told of one plan. `outcome` is None where there was no traffic to replay."""

    def __init__(
        self,
        labels: tuple[str, str],
        differences: list[Change],
        privacy: Privacy,
        period: Bounds,
        outcome: Outcome | None,
    ) -> None:
        self.now, self.new = labels
        self.differences, self.privacy = differences, privacy
        self.period, self.outcome = period, outcome

    def as_json(self) -> dict[str, Any]:
        from gateway.cli.policy import figures

        outcome = self.outcome
        return {
            "in_force": self.now,
            "planned": self.new,
            "difference": [
                {"what": c.what.value, "section": c.section, "name": c.name, "words": c.words}
                for c in self.differences
            ],
            "privacy": figures.privacy_json(self.privacy),
            "period": None if outcome is None else figures.period_json(outcome),
            "replay": None
            if outcome is None
            else figures.comparison_json(outcome.comparisons[1], outcome.period),
            "summary": self.summary,
        }

    @property
    def summary(self) -> str:
        from gateway.cli.policy import figures

        if self.outcome is None:
            return f"no recorded request to replay from {self.period}"
        return figures.summary(
            self.outcome.comparisons[1], self.outcome.period, len(self.privacy.changes)
        )


async def _plan(
    new: Path, folder: Path | None, period: Bounds, *, requests_max: int, seed: int
) -> _Plan:
    from gateway.bundle import load
    from gateway.cli.policy import figures, traffic
    from gateway.policy.difference import changes
    from gateway.policy.loosened import loosened
    from gateway.policy.source import ConfigErrors
    from gateway.settings import Settings

    settings = Settings.load()
    async with ledger(settings) as store:
        now = await traffic.current(store, settings, folder)
        try:
            files = traffic.proposed(new, now, folder)
            make = await traffic.loader(store, now, period)
            old_bundle, new_bundle = make(now.files, now.folder), make(files, folder)
            # As if every secret were there: privacy must not hang on what is set on this machine.
            old_all, new_all = (load(f, secret_present=lambda _: True) for f in (now.files, files))
        except ConfigErrors as errors:
            typer.echo(str(errors), err=True)
            raise typer.Exit(1) from None
        sides = [traffic.side("in force", old_bundle), traffic.side(new.stem, new_bundle)]
        outcome = await traffic.replayed(
            store, sides, make, period, requests_max=requests_max, seed=seed
        )
    lines = loosened((old_all.policy, old_all.catalog), (new_all.policy, new_all.catalog))
    tally = None if outcome is None else outcome.replay.tallies[1]
    return _Plan(
        (now.label, new_bundle.label),
        changes(old_bundle, new_bundle),
        figures.Privacy.of(lines, tally),
        period,
        outcome,
    )


def _print(found: _Plan, *, refused: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def say(text: str = "", style: str | None = None) -> None:
        console.print(text, style=style, markup=False)

    say(f"{found.new} against {found.now}")
    say("\nDifference", "bold")
    for difference in found.differences:
        say(f"  {difference}")
    if not found.differences:
        say("  none in meaning")
    say("\nPrivacy", "bold")
    for line in found.privacy.changes or ["nothing gets looser"]:
        say(f"  ! {line}" if found.privacy.changes else f"  {line}")
    for seen in found.privacy.seen:
        say(f"    of the sample, {seen}")
    if found.outcome is not None:
        _print_replay(console, found.outcome, len(found.privacy.changes))
    say()
    say(found.summary, "bold")
    if refused:
        say("privacy gets looser: if that is meant, say --allow-loosen-privacy", "bold red")


def _print_replay(console: Console, outcome: Outcome, loosened: int) -> None:
    from gateway.cli.policy import figures
    from gateway.cli.policy.traffic import moment

    period, comparison = outcome.period, outcome.comparisons[1]
    until = moment(period.until_us)
    console.print(
        f"\nReplay of {period.sample:,} requests, {moment(period.from_us)} to {until} UTC",
        style="bold",
    )
    for remark in figures.remarks(outcome, [comparison]):
        console.print(f"  {remark}", markup=False)
    console.print()
    typer.echo(figures.matrix(comparison))
    console.print()
    typer.echo(figures.side_by_side(outcome, [0, loosened]))
    console.print(f"\n{figures.UNCOVERED}", style="dim")
