"""What the demo shows a person: what runs, the progress, the tables, one decision, the way in.

Owns words and layout. Knows no process and no ledger. `quiet` shows nothing but failures, which
go to standard error.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.demo.backends import DemoBackend
from gateway.demo.summary import Summary, dollars, explained
from gateway.domain.catalog import Kind
from gateway.domain.money import Rates
from gateway.domain.outcome import RequestRecord

WIDTH_MAX = 100
_METERS = {"input": "in", "cache_read": "cached", "output": "out"}
_MTOK = 1_000_000  # what nearly all prices are for
KINDS = {
    Kind.SELF_HOSTED: "self-hosted",
    Kind.MANAGED: "managed",
    Kind.CLOSED_API: "closed API",
}
SIMULATED, REAL = "[yellow]simulated[/]", "[green]real[/]"


class Screen:
    """Standard output for a person."""

    def __init__(self, *, quiet: bool) -> None:
        probe = Console()
        width = min(probe.width, WIDTH_MAX) if probe.is_terminal else WIDTH_MAX
        self._out = Console(quiet=quiet, width=width, highlight=False)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)

    # --- before -----------------------------------------------------------------------------------

    def starting(self) -> None:
        self._out.print(
            "\n[bold]Weighbridge demo[/]  [dim]starting three backends and the gateway[/]"
        )

    def note(self, text: str) -> None:
        self._out.print(f"[yellow]{escape(text)}[/]")

    def started(
        self,
        backends: Sequence[DemoBackend],
        hints: Mapping[str, Sequence[str]],
        url: str,
        home: Path,
        began: float,
    ) -> None:
        """Which backends there are and why, and where the gateway is."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for backend in backends:
            label = SIMULATED if backend.simulated else REAL
            lines = [f"{label} {escape(backend.about)}", f"[dim]{escape(backend.priced)}[/]"]
            if hints.get(backend.name):
                lines.append(f"[dim]real with {_either(hints[backend.name])}[/]")
            table.add_row(KINDS[backend.kind], backend.name, "\n".join(lines))
        seconds = time.monotonic() - began
        table.add_row(
            "gateway",
            "",
            f"{url}, on SQLite, ready after {seconds:.1f} s\n[dim]home {escape(str(home))}[/]",
        )
        self._out.print(Padding(table, (1, 0, 1, 0)))

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[str, int], None]]:
        """A bar of `total` requests; call it with what goes on and how many more are done."""
        bar = Progress(
            TextColumn("Sending"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.description}"),
            console=self._out,
            transient=True,
            disable=not self._out.is_terminal,
        )
        with bar:
            task = bar.add_task("", total=total)
            yield lambda title, done: bar.update(task, description=title, advance=done)

    # --- the tables -------------------------------------------------------------------------------

    def tables(self, summary: Summary, rates: Mapping[str, Rates]) -> None:
        self._where(summary)
        self._why(summary)
        self._decision(summary, rates)
        self._promises(summary)

    def _where(self, summary: Summary) -> None:
        count = len(summary.served)
        self._title(f"Where {count} requests went", f"in {summary.seconds:.1f} s")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
        table.add_column("backend", no_wrap=True)
        for name in ("sent", "in", "cached", "out", "TTFT", "TPS", "cost"):
            table.add_column(name, justify="right", no_wrap=True)
        for line in summary.lines:
            label = f"{KINDS[Kind(line.kind)]}, {SIMULATED if line.simulated else REAL}"
            table.add_row(
                f"{line.backend}\n[dim]{label}[/]",
                str(line.requests),
                f"{line.tokens_in:,}",
                f"{line.cached:,}",
                f"{line.tokens_out:,}",
                _time(line.ttft_s),
                "–" if line.tps is None else f"{line.tps:.0f}",
                _cost(line.cost_nano_usd, line.unpriced),
            )
        nobody = count - sum(line.requests for line in summary.lines)
        if nobody:
            table.add_row("[dim]nobody: refused[/]", str(nobody), *["–"] * 6, style="dim")
        table.add_section()
        table.add_row(
            "together",
            str(count),
            f"{sum(x.tokens_in for x in summary.lines):,}",
            f"{sum(x.cached for x in summary.lines):,}",
            f"{sum(x.tokens_out for x in summary.lines):,}",
            "",
            "",
            _cost(summary.cost_nano_usd, summary.unpriced),
            style="bold",
        )
        self._out.print(table)
        overhead = (
            f" The gateway itself took {summary.overhead_ms:.1f} ms of a request (median)."
            if summary.overhead_ms is not None
            else ""
        )
        simulated = (
            f" {dollars(summary.simulated_nano_usd)} of the cost is simulated: what the copied "
            "price lists would charge."
            if summary.simulated_nano_usd
            else ""
        )
        self._out.print(
            "[dim]in, cached, out: tokens. TTFT: time to the first of them; TPS: tokens a second "
            f"after it; medians of streams, at the client.{overhead}{simulated}[/]"
        )
        if (sample := summary.sample) is not None:
            asked, said = sample.heard.work.turns[0], sample.heard.text.strip()
            self._out.print(f"[dim]A real answer of {sample.row.backend}, right or wrong:[/]")
            self._out.print(f"“{escape(asked)}” → “{escape(said)}”")
        self._out.print()

    def _why(self, summary: Summary) -> None:
        self._title("Why")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right")
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        before: str | None = ""
        for reason in summary.reasons:
            name, before = "" if reason.backend == before else reason.backend, reason.backend
            table.add_row(
                "nobody" if name is None else name,
                str(reason.count),
                reason.word,
                escape(reason.because),
            )
        self._out.print(Padding(table, (1, 0, 1, 1)))

    def _decision(self, summary: Summary, rates: Mapping[str, Rates]) -> None:
        one = summary.explained
        document = explained(one, rates)
        self._title("One decision in full", f"{one.heard.work.kind}, {document['id']}")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=True)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        table.add_row(
            "asked for",
            str(document["alias"]),
            f"{document['privacy']} data; policy {document['policy']}, route {document['route']}",
        )
        for each in document["excluded"]:
            table.add_row("excluded", escape(each["target"]), f"{each['rule']}: {each['detail']}")
        for number, each in enumerate(document["candidates"], start=1):
            cost, seconds = each["predicted_cost_usd"], each["predicted_s"]
            predicted = ", ".join(
                (
                    "unpriced" if cost is None else f"${cost}",
                    "not measured yet" if seconds is None else _time(seconds),
                )
            )
            table.add_row(
                f"choice {number}", escape(each["target"]), f"{each['why']}; predicted {predicted}"
            )
        for number, each in enumerate(document["attempts"], start=1):
            table.add_row(f"attempt {number}", escape(each["target"]), _attempt(each))
        total = document["cost_usd"]
        table.add_row("outcome", str(document["outcome"]), f"${total}" if total else "unpriced")
        self._out.print(Padding(table, (1, 0, 1, 1)))

    def _promises(self, summary: Summary) -> None:
        self._title("Checked in this run")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=True)
        for claim in summary.claims:
            mark = "[green]kept[/]" if claim.held else "[bold red]BROKEN[/]"
            table.add_row(mark, escape("\n".join((claim.text, *claim.otherwise))))
        self._out.print(Padding(table, (1, 0, 1, 1)))

    def _title(self, text: str, more: str = "") -> None:
        self._out.print(f"[bold]{text}[/]" + (f"  [dim]{escape(more)}[/]" if more else ""))

    # --- afterwards -------------------------------------------------------------------------------

    def serving(self, url: str, key: str, home: Path) -> None:
        """The way in for an app, in lines to copy."""
        print_ = self._out.print
        self._title("The gateway is running", "Ctrl-C ends everything")
        print_(f"\n  address  [bold cyan]{url}/v1[/]")
        print_(f"  key      [bold cyan]{key}[/]  [dim](7 days)[/]", soft_wrap=True)
        print_("  models   chat-small, chat-large, private-chat\n")
        print_("An app with an OpenAI SDK needs two lines:\n")
        print_(f"  export OPENAI_BASE_URL={url}/v1", soft_wrap=True)
        print_(f"  export OPENAI_API_KEY={key}\n", soft_wrap=True)
        print_("or, in code:\n")
        print_("  from openai import OpenAI")
        print_(f'  client = OpenAI(base_url="{url}/v1", api_key="{key}")\n', soft_wrap=True)
        where = f"WEIGHBRIDGE_HOME={escape(str(home))} WEIGHBRIDGE_POLICY=demo"
        print_(f"[dim]Look around: {where} weighbridge routes[/]", soft_wrap=True)
        print_("[dim]Each further request is a line here.[/]\n")

    def passed(self, row: RequestRecord) -> None:
        """One more request went through."""
        at = dt.datetime.fromtimestamp(row.started_at_us / 1e6, dt.UTC).astimezone()
        tokens = (row.uncached_tokens or 0) + (row.cached_tokens or 0)
        seconds = (row.duration_us or 0) / 1e6
        self._out.print(
            f"{at:%H:%M:%S}  {row.alias or '?'} [dim]→[/] {row.backend or 'nobody'}  {row.outcome}"
            f"  {tokens} + {row.output_tokens or 0} tokens  {seconds:.2f} s  "
            f"{dollars(row.cost_nano_usd)}"
        )

    def stopping(self) -> None:
        self._out.print("\n[dim]Stopping.[/]")

    def stopped(self, *, after_all: bool) -> None:
        text = "Everything is stopped." if after_all else "Stopped before the end."
        self._out.print(f"[dim]{text}[/]")

    def failed(self, text: str) -> None:
        self._err.print(f"weighbridge: {escape(text)}", style="red")


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def _cost(nano: int | None, unpriced: int) -> str:
    if not unpriced:
        return "–" if nano is None else dollars(nano)
    return "unpriced" if not nano else f"{dollars(nano)} + unpriced"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _attempt(each: Mapping[str, Any]) -> str:
    head = f"{each['outcome']}, HTTP {each['status']} after {_time(each['seconds'])}"
    price = each["price"]
    if not isinstance(price, Mapping):
        return head if each["error"] is None else f"{head} ({each['error']}); nothing charged"
    terms = []
    for line in price["lines"]:
        what = _METERS.get(line["meter"], line["meter"].replace("_", " "))
        per = "" if line["per"] == _MTOK else f" per {line['per']:,}"
        terms.append(f"{line['quantity']} {what} × ${line['price_usd']}{per}")
    tokens = any(line["per"] == _MTOK for line in price["lines"])
    source = str(price["source"]).partition(";")[0]
    return (
        f"{head}, first token after {_time(each['ttft_s'])}\n"
        f"{' + '.join(terms)}{' per million' if tokens else ''} = ${each['cost_usd']}\n"
        f"[dim]tokens {each['usage_source']} by the backend; {escape(source)}[/]"
    )
