"""The figures as a table, and the gates they are held to. Pure: a `Report` in, text out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import fill

from tests.bench.measure import DIRECT, Figures, Plan, Report

Figure = Callable[[Figures], float | None]


def _request_ms(f: Figures) -> float | None:
    return None if (us := f.median(lambda c: c.request_us)) is None else us / 1e3


def _alone_ms(f: Figures) -> float | None:
    return None if (us := f.median(lambda c: c.alone_us)) is None else us / 1e3


def _stream_ms(f: Figures) -> float | None:
    return None if (us := f.median(lambda c: c.stream_us)) is None else us / 1e3


def _chunk_us(f: Figures) -> float | None:
    return f.median(lambda c: c.chunk_us)


def _ttft_p50_ms(f: Figures) -> float | None:
    return statistics.median(t.p50_ms for t in f.ttft) if f.ttft else None


def _ttft_p99_ms(f: Figures) -> float | None:
    return statistics.median(t.p99_ms for t in f.ttft) if f.ttft else None


def _ready_s(f: Figures) -> float | None:
    return statistics.median(f.ready_s) if f.ready_s else None


def _idle_mb(f: Figures) -> float | None:
    return f.idle_bytes / 1e6 if f.idle_bytes else None


def _crowd_errors(f: Figures) -> float | None:
    """A stream that was not open together with the others counts as failed: it proves nothing."""
    return f.crowd.errors + f.crowd.streams - f.crowd.open_max if f.crowd else None


def _crowd_kb(f: Figures) -> float | None:
    return f.crowd.growth_kb if f.crowd else None


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound that weighbridge has promised to keep, and where it wants to be."""

    what: str
    figure: Figure
    at_most: float
    aim: float | None = None


GATES = (
    Gate("CPU per request, ms", _request_ms, 0.6, 0.3),
    Gate("CPU per streamed chunk, µs", _chunk_us, 50, 30),
    Gate("added TTFT at 100 streams, p50, ms", _ttft_p50_ms, 2),
    Gate("added TTFT at 100 streams, p99, ms", _ttft_p99_ms, 10),
    Gate("start to ready, s", _ready_s, 2),
    Gate("idle memory per worker, MB", _idle_mb, 120),
    Gate("1,000 streams on one worker: errors", _crowd_errors, 0),
    Gate("1,000 streams: memory per stream, kB", _crowd_kb, 60),
)


def missed(figures: Figures) -> list[Gate]:
    """Gates whose figure is too high. One that was not measured is not a miss; it shows as such."""
    return [g for g in GATES if (value := g.figure(figures)) is not None and value > g.at_most]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _times(value: float | None, floor: float | None) -> str:
    return "" if value is None or not floor else f"{value / floor:,.1f}"


def _range(values: list[float], digits: int) -> str:
    return f"{min(values):,.{digits}f} – {max(values):,.{digits}f}" if len(values) > 1 else ""


def table(report: Report) -> str:
    """A row a figure, a column a contender; an empty cell was not measured."""
    shown = [f for f in report.figures.values() if not f.unavailable]
    bare = report.figures.get("bare", Figures("bare"))
    rows: list[tuple[str, Callable[[Figures], str]]] = [
        ("**CPU per request**, ms", lambda f: _number(_request_ms(f), 3)),
        ("least – most", lambda f: _range([c.request_us / 1e3 for c in f.cpu], 3)),
        ("× bare", lambda f: _times(_request_ms(f), _request_ms(bare))),
        ("one request at a time, ms", lambda f: _number(_alone_ms(f), 3)),
        ("**CPU per streamed chunk**, µs", lambda f: _number(_chunk_us(f), 1)),
        ("least – most", lambda f: _range([c.chunk_us for c in f.cpu], 1)),
        ("× bare", lambda f: _times(_chunk_us(f), _chunk_us(bare))),
        ("CPU per streamed request, chunks apart, ms", lambda f: _number(_stream_ms(f), 3)),
        (f"**added TTFT**, {report.plan.ttft_streams} streams, p50, ms", _ttft_cell(_ttft_p50_ms)),
        ("least – most", lambda f: _range([t.p50_ms for t in f.ttft], 2)),
        ("p99, ms", _ttft_cell(_ttft_p99_ms)),
        ("least – most", lambda f: _range([t.p99_ms for t in f.ttft], 2)),
        ("start to ready, s", lambda f: _number(_ready_s(f))),
        ("idle memory, MB", lambda f: _number(_idle_mb(f), 0)),
    ]
    if report.plan.crowd_streams:
        rows += [
            (
                f"{report.plan.crowd_streams:,} streams: most open at once",
                lambda f: f"{f.crowd.open_max:,}" if f.crowd else "",
            ),
            ("errors", lambda f: f"{f.crowd.errors:,}" if f.crowd else ""),
            ("memory per stream, kB", lambda f: _number(_crowd_kb(f), 1)),
        ]
    lines = ["| | " + " | ".join(f.name for f in shown) + " |", "|---|" + "--:|" * len(shown)]
    lines += [f"| {label} | " + " | ".join(cell(f) for f in shown) + " |" for label, cell in rows]
    return "\n".join(lines)


def _ttft_cell(figure: Figure) -> Callable[[Figures], str]:
    # Going direct has nothing added to: its own TTFT stands there, in brackets.
    return lambda f: f"({_number(figure(f))})" if f.name == DIRECT else _number(figure(f))


def remarks(report: Report) -> list[str]:
    """What a reader must know before believing the table."""
    absent = [f for f in report.figures.values() if f.unavailable]
    notes = [f"{f.name} was not run: {f.unavailable}" for f in absent]
    for f in report.figures.values():
        if f.errors:
            kinds = ", ".join(f"{n:,} × {kind}" for kind, n in f.errors.most_common(3))
            notes.append(f"{f.name}: {kinds}, beside {f.requests:,} whole answers")
    if report.rounds < report.plan.rounds:
        notes.append(
            f"{report.rounds} of {report.plan.rounds} rounds fitted into {report.plan.budget_s:g} s"
        )
    if report.shared_core:
        notes.append("one core was allowed: gateway and load shared it, latencies mean little")
    if report.strangers_share > 0.05:
        notes.append(
            f"other programs took {report.strangers_share:.0%} of a core meanwhile: "
            "latencies are worse than on a quiet machine, and CPU times too (shared caches)"
        )
    return notes


def _verdict(gate: Gate, value: float | None) -> str:
    if value is None:
        return "not measured"
    if value > gate.at_most:
        return "MISSED"
    return "kept, aim reached" if gate.aim is not None and value <= gate.aim else "kept"


def gates(report: Report) -> str:
    """The gates of each weighbridge that ran; empty if none did."""
    ran = [f for f in report.figures.values() if not f.unavailable]
    lines = []
    for f in ran:
        if not f.name.startswith("weighbridge"):
            continue
        prefix = "" if f.name == "weighbridge" else f"{f.name}: "
        for gate in GATES:
            value = gate.figure(f)
            aim = "" if gate.aim is None else f"{gate.aim:g}"
            cells = [prefix + gate.what, f"{gate.at_most:g}", aim, _number(value)]
            lines.append("| " + " | ".join([*cells, _verdict(gate, value)]) + " |")
    head = ["| | at most | aim | measured | |", "|---|--:|--:|--:|---|"]
    return "\n".join(head + lines) if lines else ""


def _method(plan: Plan) -> str:
    chunk_ms, ttft_ms = plan.chunk_interval_us / 1e3, plan.ttft_interval_us / 1e3
    cpu = f"""**CPU**: user and system time of the gateway's whole process tree, read from the
        scheduler before a run and after the tree is quiet again, over the whole answers received;
        {plan.concurrency} connections, closed loop. Per request: not streamed, about 1.2 KB asked.
        Per chunk: the slope between streams of {plan.chunks_short} and {plan.chunks_long} chunks,
        one every {chunk_ms:g} ms, each written by itself. Redis and Postgres are not in the
        tree."""
    ttft = f"""**Added TTFT**: a percentile through the gateway less the same percentile going
        direct in the same round; {plan.ttft_streams} streams at a time of {plan.ttft_chunks}
        chunks, one every {ttft_ms:g} ms, starts staggered. In brackets: going direct."""
    start = """**Start**: from spawn to the first 200 of its readiness path. **Idle memory**: RSS
        of the tree then."""
    crowd = f"""**{plan.crowd_streams:,} streams**: a chunk every {plan.crowd_interval_us / 1e6:g}
        s, opened over {plan.crowd_ramp_s:g} s, on a freshly started process. Memory: the growth of
        PSS at its peak over the streams open at once."""
    cores = """The gateway has one core; upstream, load client and Valkey share another. Rounds are
        interleaved; figures are medians."""
    whole = "An answer counts only if whole: status 200, every token, `[DONE]`. Nothing is retried."
    who = """**weighbridge** has all on: key, policy, Valkey, journal, SQLite ledger, metrics.
        **bare** passes bytes through under uvicorn. **litellm** is its proxy with a master key
        only: no database, no Redis. **vllm-router** (Rust) balances: no keys, prices, records."""
    points = [cpu, ttft, start, *([crowd] if plan.crowd_streams else []), cores, whole, who]
    tidy = (" ".join(point.split()) for point in points)
    return "\n".join(fill("- " + point, 100, subsequent_indent="  ") for point in tidy) + "\n"


def page(report: Report, facts: Mapping[str, str]) -> str:
    """RESULTS.md."""
    versions = ", ".join(f"{f.name}: {f.version}" for f in report.figures.values() if f.version)
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{facts['command']}`. Figures are this machine's; ratios travel better.",
        "",
        table(report),
        "",
    ]
    if held := gates(report):
        lines += ["## Gates", "", held, ""]
    if notes := remarks(report):
        lines += ["## Read with this", "", *(f"- {note}" for note in notes), ""]
    lines += ["## How", "", _method(report.plan)]
    lines += ["## Where", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "command"]
    lines += [
        f"- versions: {versions}",
        f"- rounds: {report.rounds}, {report.wall_s:.0f} s in all",
        "",
    ]
    return "\n".join(lines)
