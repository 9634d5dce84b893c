"""The measurement: who runs when, what is weighed, and how the figures are drawn from it.

Owns the order of runs and the arithmetic, nothing of HTTP or of any contender.

- CPU is that of the contender's whole process tree, read before a run and once the tree is quiet
  again after it.
- CPU per request: unary runs. CPU per chunk: the slope between streams of two lengths, so that what
  a request costs by itself cancels. CPU per streamed request: the intercept.
- Added TTFT: a percentile through the contender less the same percentile going direct, in the same
  round.
- Rounds are interleaved (A B C, A B C), medians reported, so that a busy minute of the machine hits
  all alike.
"""

from __future__ import annotations

import math
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import orjson

from tests.bench import process
from tests.bench.contenders import (
    ROOT,
    Place,
    Running,
    Unavailable,
    start,
    valkey_command,
    wait_ready,
)
from tests.bench.load import Result, Spec

DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Times in seconds unless named otherwise."""

    rounds: int
    concurrency: int  # of the CPU runs
    warm_s: float
    unary_s: float
    stream_s: float
    chunks_short: int
    chunks_long: int
    chunk_interval_us: int
    ttft_s: float
    ttft_streams: int
    ttft_chunks: int
    ttft_interval_us: int
    crowd_streams: int  # 0: leave out
    crowd_chunks: int
    crowd_interval_us: int
    crowd_ramp_s: float
    starts: int
    budget_s: float  # no new round begins that would not fit


FULL = Plan(
    rounds=3,
    concurrency=16,
    warm_s=0.25,
    unary_s=2.0,
    stream_s=2.5,
    chunks_short=16,
    chunks_long=256,
    chunk_interval_us=2_000,
    ttft_s=6.0,
    ttft_streams=100,
    ttft_chunks=64,
    ttft_interval_us=20_000,
    crowd_streams=1_000,
    crowd_chunks=9,
    crowd_interval_us=1_000_000,
    crowd_ramp_s=4.0,
    starts=3,
    budget_s=585.0,
)
QUICK = Plan(
    rounds=1,
    concurrency=16,
    warm_s=0.5,
    unary_s=1.0,
    stream_s=1.0,
    chunks_short=16,
    chunks_long=128,
    chunk_interval_us=2_000,
    ttft_s=2.0,
    ttft_streams=100,
    ttft_chunks=24,
    ttft_interval_us=20_000,
    crowd_streams=0,
    crowd_chunks=0,
    crowd_interval_us=0,
    crowd_ramp_s=0.0,
    starts=1,
    budget_s=85.0,
)
SMOKE = Plan(
    rounds=1,
    concurrency=4,
    warm_s=0.1,
    unary_s=0.2,
    stream_s=0.2,
    chunks_short=2,
    chunks_long=8,
    chunk_interval_us=2_000,
    ttft_s=0.3,
    ttft_streams=10,
    ttft_chunks=5,
    ttft_interval_us=10_000,
    crowd_streams=40,
    crowd_chunks=5,
    crowd_interval_us=100_000,
    crowd_ramp_s=0.1,
    starts=1,
    budget_s=30.0,
)


@dataclass(frozen=True, slots=True)
class Cpu:
    """One round of one contender, in microseconds of CPU time of the process tree."""

    request_us: float
    alone_us: float  # a request while no other is under way: nothing is shared between requests
    stream_us: float  # a streamed request, its chunks apart
    chunk_us: float


@dataclass(frozen=True, slots=True)
class Ttft:
    p50_ms: float
    p99_ms: float
    samples: int


@dataclass(frozen=True, slots=True)
class Crowd:
    """Many streams at once on one worker."""

    streams: int
    open_max: int
    errors: int
    growth_bytes: int  # of the tree's proportional set size, at its peak

    @property
    def growth_kb(self) -> float:
        return self.growth_bytes / 1000 / max(1, self.open_max)


@dataclass(slots=True)
class Figures:
    """All that was seen of one contender."""

    name: str
    version: str = ""
    unavailable: str = ""
    ready_s: list[float] = field(default_factory=list)
    idle_bytes: int = 0
    cpu: list[Cpu] = field(default_factory=list)
    ttft: list[Ttft] = field(default_factory=list)
    crowd: Crowd | None = None
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def note(self, result: Result) -> Result:
        self.requests += result.requests
        self.errors.update(result.errors)
        self.example = self.example or result.example
        return result

    def median(self, of: Callable[[Cpu], float]) -> float | None:
        return statistics.median(map(of, self.cpu)) if self.cpu else None


@dataclass(slots=True)
class Report:
    plan: Plan
    shared_core: bool
    figures: dict[str, Figures]
    rounds: int = 0
    wall_s: float = 0.0
    strangers_share: float = 0.0  # of one core, by processes that are not ours, while we measured

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Bench:
    """The stage: upstream, load client and Redis on one core, contenders on the other."""

    def __init__(self, folder: Path, cores: process.Cores, stack: ExitStack) -> None:
        self.folder, self.cores, self.stack = folder, cores, stack
        self.redis_url = ""
        self.upstream_port = process.free_port()
        upstream = self._helper("upstream", str(self.upstream_port))
        wait_ready(self.upstream_port, "/health", 10.0, upstream)
        self.load = self._helper("load", pipes=True)

    def _helper(self, module: str, *arguments: str, pipes: bool = False) -> subprocess.Popen[bytes]:
        return self._keep(
            process.spawn(
                [sys.executable, "-m", f"tests.bench.{module}", *arguments],
                core=self.cores.load,
                env={"PATH": os.environ["PATH"]},
                cwd=ROOT,
                log=self.folder / f"{module}.log",
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else None,
            )
        )

    def _keep(self, child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        self.stack.callback(process.stop, child)
        return child

    def start_redis(self) -> None:
        port = process.free_port()
        command, env = valkey_command(port), {"PATH": os.environ["PATH"]}
        log = self.folder / "valkey.log"
        self._keep(process.spawn(command, core=self.cores.load, env=env, cwd=self.folder, log=log))
        self.redis_url = f"redis://127.0.0.1:{port}/0"

    def start_postgres(self) -> str:
        """A cluster that keeps its promises (fsync on), on the core of the load."""
        from tests.servers import NoServer, Postgres

        try:
            cluster = Postgres.start(durable=True)
        except (NoServer, OSError) as why:
            raise Unavailable(f"no Postgres: {why}") from None
        self.stack.enter_context(cluster)
        return cluster.url

    def start(self, name: str, database_url: str) -> Running:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        place = Place(folder, process.free_port(), self.upstream_port, self.redis_url, database_url)
        running = start(name, place, self.cores)
        self.stack.callback(running.stop)
        return running

    def begin(self, spec: Spec) -> None:
        """Hand a run to the load client; `result` waits for it."""
        assert self.load.stdin is not None
        self.load.stdin.write(orjson.dumps(asdict(spec)) + b"\n")
        self.load.stdin.flush()

    def over(self, wait_s: float) -> bool:
        assert self.load.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.load.stdout, selectors.EVENT_READ)
            return bool(selector.select(wait_s))

    def result(self, wait_s: float) -> Result:
        assert self.load.stdout is not None
        if not self.over(wait_s):
            raise RuntimeError(f"the load client gave no result within {wait_s:g} s")
        line = self.load.stdout.readline()
        if not line:
            raise RuntimeError(
                "the load client ended: " + (self.folder / "load.log").read_text()[-2000:]
            )
        return Result(**orjson.loads(line))

    def run(self, spec: Spec) -> Result:
        self.begin(spec)
        return self.result(spec.duration_s + spec.drain_s + 20.0)


@contextmanager
def stage() -> Iterator[Bench]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weighbridge-bench-")))
        cores = process.pick_cores()
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cores.load})
        stack.callback(os.sched_setaffinity, 0, own)
        process.raise_files_limit()
        yield Bench(folder, cores, stack)


def measure(
    names: Iterable[str],
    plan: Plan,
    *,
    database_url: str = "",
    step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run the whole plan. Raises Unavailable only if the stage itself cannot be set."""
    begun = time.monotonic()
    report = Report(plan, process.pick_cores().shared, {name: Figures(name) for name in names})
    busy_ns, ours_ns = process.machine_busy_ns(), process.tree_cpu_ns(os.getpid())
    with stage() as bench:
        if any(name.startswith("weighbridge") for name in report.figures):
            bench.start_redis()
        running = {DIRECT: Running(DIRECT, bench.upstream_port)}
        for name, figures in report.figures.items():
            if name != DIRECT:
                step(f"{name}: start")
                try:
                    if name == "weighbridge-pg":
                        database_url = database_url or bench.start_postgres()
                    running[name] = _raise_up(bench, figures, plan, database_url)
                except Unavailable as why:
                    figures.unavailable = str(why)
                    continue
                step(f"{name}: {plan.crowd_streams} streams")
                figures.crowd = _crowd(bench, running[name], figures, plan)
        longest_s = 0.0
        for number in range(1, plan.rounds + 1):
            if time.monotonic() - begun + longest_s > plan.budget_s and report.rounds:
                break
            round_begun = time.monotonic()
            _round(bench, running, report, lambda what, n=number: step(f"round {n}: {what}"))
            longest_s = max(longest_s, time.monotonic() - round_begun)
            report.rounds = number
        strangers_ns = (
            process.machine_busy_ns() - busy_ns - process.tree_cpu_ns(os.getpid()) + ours_ns
        )
        report.strangers_share = max(0.0, strangers_ns / 1e9 / (time.monotonic() - begun))
    report.wall_s = time.monotonic() - begun
    return report


def steps(names: Iterable[str], plan: Plan) -> int:
    """How often `measure` will call `step`, if every contender comes up."""
    gateways = len([name for name in names if name != DIRECT])
    return gateways * (2 + plan.rounds * 2) + plan.rounds


_SLOW_START_S = 5.0


def _spec(running: Running, **of: object) -> Spec:
    return Spec(port=running.port, headers=dict(running.headers), **of)  # type: ignore[arg-type]


def _raise_up(bench: Bench, figures: Figures, plan: Plan, database_url: str) -> Running:
    """Start it as often as the plan says (once if that takes long); the last instance stays up."""
    while True:
        running = bench.start(figures.name, database_url)
        assert running.ready_s is not None
        figures.version = running.version
        figures.ready_s.append(running.ready_s)
        if len(figures.ready_s) >= plan.starts or running.ready_s > _SLOW_START_S:
            break
        running.stop()
    process.settle(running.pid)
    figures.idle_bytes = process.tree_rss_bytes(running.pid)
    return running


def _crowd(bench: Bench, running: Running, figures: Figures, plan: Plan) -> Crowd | None:
    """All streams open at once, in a process hardly used before: what does one cost in memory?"""
    figures.note(
        bench.run(_spec(running, stream=True, interval_us=1_000, requests_max=50, concurrency=10))
    )
    if not plan.crowd_streams:
        return None
    process.settle(running.pid)
    before = peak = process.tree_pss_bytes(running.pid)
    spec = _spec(
        running,
        stream=True,
        chunks=plan.crowd_chunks,
        interval_us=plan.crowd_interval_us,
        concurrency=plan.crowd_streams,
        requests_max=plan.crowd_streams,
        duration_s=plan.crowd_ramp_s + 20.0,
        stagger_s=plan.crowd_ramp_s,
        drain_s=60.0,
    )
    bench.begin(spec)
    while not bench.over(0.5):
        peak = max(peak, process.tree_pss_bytes(running.pid))
    result = figures.note(bench.result(1.0))
    return Crowd(plan.crowd_streams, result.open_max, sum(result.errors.values()), peak - before)


def _round(
    bench: Bench, running: dict[str, Running], report: Report, step: Callable[[str], None]
) -> None:
    gateways = {name: r for name, r in running.items() if name != DIRECT}
    for name, contender in gateways.items():
        step(f"{name}: CPU")
        if (cpu := _cpu(bench, contender, report.figures[name], report.plan)) is not None:
            report.figures[name].cpu.append(cpu)
    step("direct: TTFT")
    direct = _ttft(bench, running[DIRECT], report.figures.get(DIRECT), report.plan)
    if direct and DIRECT in report.figures:
        report.figures[DIRECT].ttft.append(direct)
    for name, contender in gateways.items():
        step(f"{name}: TTFT")
        through = _ttft(bench, contender, report.figures[name], report.plan)
        if through and direct:
            added = Ttft(
                through.p50_ms - direct.p50_ms, through.p99_ms - direct.p99_ms, through.samples
            )
            report.figures[name].ttft.append(added)


def _cpu(bench: Bench, running: Running, figures: Figures, plan: Plan) -> Cpu | None:
    def each_us(concurrency: int = plan.concurrency, **of: object) -> float:
        spec = _spec(running, concurrency=concurrency, **of)
        figures.note(bench.run(replace(spec, duration_s=plan.warm_s)))
        process.settle(running.pid)
        before_ns = process.tree_cpu_ns(running.pid)
        result = figures.note(bench.run(spec))
        process.settle(running.pid)
        spent_ns = process.tree_cpu_ns(running.pid) - before_ns
        return spent_ns / 1e3 / result.requests if result.requests else math.nan

    def stream_us(chunks: int) -> float:
        return each_us(
            stream=True, chunks=chunks, interval_us=plan.chunk_interval_us, duration_s=plan.stream_s
        )

    request_us = each_us(duration_s=plan.unary_s)
    alone_us = each_us(1, duration_s=plan.unary_s / 2)
    short_us, long_us = stream_us(plan.chunks_short), stream_us(plan.chunks_long)
    chunk_us = (long_us - short_us) / (plan.chunks_long - plan.chunks_short)
    if math.isnan(request_us + alone_us + chunk_us):
        return None  # not one whole answer; the errors are in the figures
    return Cpu(request_us, alone_us, short_us - plan.chunks_short * chunk_us, chunk_us)


def _ttft(bench: Bench, running: Running, figures: Figures | None, plan: Plan) -> Ttft | None:
    spec = _spec(
        running,
        stream=True,
        chunks=plan.ttft_chunks,
        interval_us=plan.ttft_interval_us,
        concurrency=plan.ttft_streams,
        duration_s=plan.ttft_s,
        stagger_s=plan.ttft_chunks * plan.ttft_interval_us / 1e6,
    )
    result = bench.run(spec)
    if figures:
        figures.note(result)
    if running.process:
        process.settle(running.pid)
    samples = sorted(result.ttft_s)
    if not samples:
        return None
    return Ttft(_percentile(samples, 0.5) * 1e3, _percentile(samples, 0.99) * 1e3, len(samples))


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
