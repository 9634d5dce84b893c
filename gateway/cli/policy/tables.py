"""What check and explain print: grouped and coloured for a terminal, plain lines for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from gateway.domain.money import usd

if TYPE_CHECKING:
    from gateway.domain.decision import Facts
    from gateway.domain.outcome import AttemptRecord
    from gateway.policy.cases import Verdict
    from gateway.policy.explain import Explanation, Line
    from gateway.policy.source import Problem

_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
_PIPE_WIDTH = 160


def console() -> Console:
    """On a terminal as wide as that is, else wide enough not to fold."""
    # A pipe is no terminal, and neither is a test's.
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def print_table(table: Table, indent: int = 0) -> None:
    """As wide as it is in a pipe, and without the blanks that fill its lines."""
    out = console()
    if out.is_terminal:
        out.print(Padding(table, (0, 0, 0, indent)))
        return
    with out.capture() as captured:
        out.print(Padding(table, (0, 0, 0, indent)))
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def print_report(problems: Sequence[Problem], verdicts: Sequence[Verdict]) -> None:
    """Problems by file and line, then the decisions of the tests that failed, then how many ran."""
    out = console()
    failed = [verdict for verdict in verdicts if verdict.problems]
    if out.is_terminal:
        _grouped(out, problems)
    else:
        for problem in problems:
            typer.echo(str(problem))
    for verdict in failed:
        from gateway.policy.explain import lines

        out.print(
            f"\ndecided in test '{escape(verdict.case.name)}',"
            f" route {verdict.decision.route or 'none'}:"
        )
        print_table(_candidates(lines(verdict.decision)), indent=2)
    if verdicts:
        policies = len({verdict.decision.policy for verdict in verdicts})
        passed = len(verdicts) - len(failed)
        of = f"{policies} policies" if policies > 1 else "1 policy"
        typer.echo(f"{passed} of {len(verdicts)} tests of {of} passed")


def print_explanation(facts: Facts | None, privacy: str, told: Explanation) -> None:
    """The request, the route and why, the candidates in order, and who is excluded by what."""
    out = console()
    if facts is not None:
        out.print(_facts(facts, privacy))
    for passed in told.passed:
        out.print(f"[dim]not route[/] {passed.route}: {escape(str(passed.key))}")
    because = "; ".join(str(key) for key in told.matched) or "it takes what no other route took"
    out.print(f"route [bold]{told.route or 'none'}[/]: {escape(because)}")
    if told.objective:
        out.print(f"inside a tier: {told.objective}")
    out.print()
    print_table(_candidates(told.lines))


def print_attempts(attempts: Iterable[AttemptRecord]) -> None:
    """What was sent where, and what came of it."""
    table = table_of("", "attempt", "why", "outcome", "first token", "in all", "tokens", "cost")
    for attempt in attempts:
        tokens = (attempt.uncached_tokens or 0) + (attempt.cached_tokens or 0)
        said = attempt.usage_source != "none"
        table.add_row(
            str(attempt.number),
            escape(f"{attempt.backend}/{attempt.model}"),
            attempt.why or "",
            attempt.outcome + (f" ({attempt.error_code})" if attempt.error_code else ""),
            _ms(None if attempt.ttft_us is None else attempt.ttft_us / 1000),
            _ms(None if attempt.duration_us is None else attempt.duration_us / 1000),
            f"{tokens} + {attempt.output_tokens or 0}" if said else "",
            _usd(attempt.cost_nano_usd),
        )
    print_table(table)


def _grouped(out: Console, problems: Sequence[Problem]) -> None:
    for source in dict.fromkeys(problem.source for problem in problems):
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", no_wrap=True)
        for problem in (p for p in problems if p.source == source):
            colour = _COLOURS[problem.severity]
            path = f"[bold]{escape(problem.path)}[/]: " if problem.path else ""
            hint = f"\n[dim]{escape(problem.hint)}[/]" if problem.hint else ""
            table.add_row(
                f"{problem.line}:{problem.column}",
                f"[{colour}]{problem.severity}[/]",
                f"{path}{escape(problem.message)}{hint}",
            )
        out.print(f"[bold]{escape(source)}[/]")
        out.print(Padding(table, (0, 0, 1, 2)))


def _facts(facts: Facts, privacy: str) -> str:
    """The request in a line or two: what is at its default is left out."""
    size = f"{facts.prompt_tokens} prompt tokens"
    size += f" ({facts.cached_tokens} cached)" if facts.cached_tokens else ""
    parts = [
        f"[bold]{escape(facts.alias)}[/] by {facts.endpoint.value}",
        "streamed" if facts.stream else "not streamed",
        privacy,
        f"{size}, {facts.output_tokens} output tokens expected",
    ]
    if facts.service_tier is not None:
        parts.append(f"service tier {escape(facts.service_tier)}")
    if facts.needs:
        parts.append("needs " + ", ".join(sorted(facts.needs)))
    if facts.tags:
        parts.append(", ".join(f"{name}={value}" for name, value in sorted(facts.tags.items())))
    if facts.pinned is not None:
        parts.append(f"session at {facts.pinned}")
    if facts.incumbent is not None:
        parts.append(f"alias last at {facts.incumbent}")
    if facts.spent:
        parts.append("used up: " + ", ".join(sorted(facts.spent)))
    return "; ".join(parts)


def _candidates(lines: Sequence[Line]) -> Table:
    mix = any(line.mix_ratio is not None for line in lines)
    columns = ["", "target", "verdict", "tier", "cost", "", "time", ""]
    table = table_of(*columns, *(["mix"] if mix else []), "why not, or what it misses")
    for line in lines:
        missed = f"misses {', '.join(line.misses)}" if line.misses else ""
        table.add_row(
            str(line.place or ""),
            escape(line.target),
            line.verdict,
            "" if line.tier is None else str(line.tier + 1),
            _usd(line.cost_nano_usd),
            _times(line.cost_ratio),
            _ms(line.latency_ms),
            _times(line.latency_ratio),
            *([_times(line.mix_ratio)] if mix else []),
            escape(line.detail or missed),
            style=None if line.place else "dim",
        )
    return table


def table_of(*columns: str) -> Table:
    """No lines, and what is too wide goes on below."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _usd(nano: int | None) -> str:
    return "" if nano is None else f"${usd(nano)}"


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"
