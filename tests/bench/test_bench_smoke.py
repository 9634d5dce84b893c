"""The harness itself: it counts what happened, notices what went wrong, and leaves nothing behind.

No figure is judged here; machines differ and tests run beside others. The figures are in
RESULTS.md.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.bench import bench
from tests.bench import process, results
from tests.bench.contenders import ROOT
from tests.bench.load import Spec, drive
from tests.bench.measure import SMOKE, Cpu, Crowd, Figures, Report, Ttft
from tests.bench.upstream import Tally, Upstream

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bench needs Linux")


# ------------------------------------------------------------------------- load client and upstream


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[int, Tally]]:
    tally = Tally()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(tally), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], tally
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"stream": True, "interval_us": 0},
        {"stream": True, "interval_us": 1_000},
    ],
    ids=["unary", "stream at once", "stream in steps"],
)
async def test_client_and_upstream_count_the_same(upstream: tuple[int, Tally], shape: dict) -> None:
    port, tally = upstream
    result = await drive(Spec(port=port, chunks=20, concurrency=3, requests_max=10, **shape))
    assert (result.requests, result.tokens, result.errors) == (10, 200, {})
    assert tally.requests == 10
    assert len(result.latency_s) == len(result.ttft_s) == 10
    assert all(0 < t <= whole for t, whole in zip(result.ttft_s, result.latency_s, strict=True))


async def test_all_streams_are_open_at_once(upstream: tuple[int, Tally]) -> None:
    port, tally = upstream
    spec = Spec(port, stream=True, chunks=5, interval_us=50_000, concurrency=50, requests_max=50)
    result = await drive(spec)
    assert (result.requests, result.open_max, tally.streams_open_max) == (50, 50, 50)
    assert tally.streams_open == 0


def _answering(body: bytes, head: bytes = b"200 OK") -> type[asyncio.Protocol]:
    class Scripted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            length = len(body)
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (head, length, body)
            )

    return Scripted


@pytest.mark.parametrize(
    ("body", "head", "stream", "error"),
    [
        (b"pebble pebble", b"200 OK", False, "wrong token count"),
        (b"pebble pebble pebble pebble", b"200 OK", False, "wrong token count"),
        (b"pebble pebble pebble", b"200 OK", True, "no [DONE]"),
        (b"pebble pebble pebble", b"503 Busy", False, "status 503"),
    ],
    ids=["too few", "too many", "cut off", "refused"],
)
async def test_an_answer_that_is_not_whole_is_an_error(
    body: bytes, head: bytes, stream: bool, error: str
) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_answering(body, head), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    result = await drive(Spec(port, stream=stream, chunks=3, concurrency=2, requests_max=4))
    server.close()
    assert (result.requests, result.errors) == (0, {error: 4})


async def test_what_never_ends_is_an_error_too(upstream: tuple[int, Tally]) -> None:
    port, _ = upstream
    spec = Spec(port, stream=True, chunks=99, interval_us=1_000_000, concurrency=2, requests_max=2)
    result = await drive(replace(spec, duration_s=0.1, drain_s=0.1))
    assert (result.requests, result.errors) == (0, {"unfinished": 2})


async def test_a_mark_cut_in_two_by_the_network_is_counted_once(
    upstream: tuple[int, Tally],
) -> None:
    """One byte at a time is the worst a network may do."""
    payload = b"data: pebble\n\ndata: pebble\n\ndata: [DONE]\n\n"

    class Dribble(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(payload)
            self._send(head + payload)

        def _send(self, left: bytes) -> None:
            self.transport.write(left[:1])
            if left[1:]:
                loop.call_later(0.0005, self._send, left[1:])

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Dribble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    result = await drive(Spec(port, stream=True, chunks=2, concurrency=1, requests_max=1))
    server.close()
    assert (result.requests, result.tokens, result.errors) == (1, 2, {})


# ------------------------------------------------------------------------------------ process tree


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[bytes]]:
    """A parent that sleeps and a child that burns 0.3 s of CPU, then sleeps."""
    child = (
        "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
        "print('burnt', flush=True)\ntime.sleep(60)"
    )
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    spawned = process.spawn(
        [sys.executable, "-c", parent],
        core=process.pick_cores().gateway,
        env={"PATH": os.environ["PATH"]},
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    yield spawned
    process.stop(spawned)


def _left(pids: list[int], wait_s: float = 5.0) -> list[int]:
    """Those that still run after a moment. A zombie is over: whoever adopted it is slow to reap."""

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
        except OSError:
            return False

    deadline = time.monotonic() + wait_s
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_cpu_and_memory_are_those_of_the_whole_tree(burner: subprocess.Popen[bytes]) -> None:
    assert burner.stdout is not None
    assert burner.stdout.readline() == b"burnt\n"
    members = list(process.tree(burner.pid))
    assert len(members) == 2
    assert all(os.sched_getaffinity(pid) == {process.pick_cores().gateway} for pid in members)
    assert 0.3e9 <= process.tree_cpu_ns(burner.pid) < 1.5e9
    assert 1e6 < process.tree_pss_bytes(burner.pid) < process.tree_rss_bytes(burner.pid) < 100e6
    process.stop(burner)
    assert _left(members) == []


# ------------------------------------------------------------------------------------------ whole


def test_the_whole_harness_in_small(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "tests.bench", "--plan", "smoke", "--only", "direct,bare"]
    done = subprocess.run(
        [*command, "--json", "--output", str(page)], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    report = orjson.loads(done.stdout)
    bare = report["figures"]["bare"]
    assert bare["errors"] == report["figures"]["direct"]["errors"] == {}
    assert bare["requests"] > 100
    assert len(bare["cpu"]) == len(bare["ttft"]) == SMOKE.rounds
    assert bare["cpu"][0]["request_us"] > 0
    assert bare["crowd"] | {"growth_bytes": 0} == {
        "streams": SMOKE.crowd_streams,
        "open_max": SMOKE.crowd_streams,
        "errors": 0,
        "growth_bytes": 0,
    }
    assert "| | direct | bare |" in page.read_text()
    assert f"{Path.home()}/" not in page.read_text()


def test_a_contender_that_does_not_exist_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "tests.bench", "--only", "direct,nobody"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30)
    assert done.returncode == 2
    assert b"nobody" in done.stderr


# ---------------------------------------------------------------------------------------- results


def _report() -> Report:
    direct = Figures("direct", ttft=[Ttft(0.2, 0.4, 600)])
    bare = Figures("bare", cpu=[Cpu(100, 200, 150, 35)], ready_s=[0.2], idle_bytes=20_000_000)
    ours = Figures(
        "weighbridge",
        cpu=[
            Cpu(300, 700, 350, 20),
            Cpu(900, 990, 950, 80),
            Cpu(500, 800, 550, 40),
        ],
        ttft=[Ttft(1.0, 4.0, 600), Ttft(1.5, 12.0, 600), Ttft(1.2, 11.0, 600)],
        ready_s=[1.0],
        crowd=Crowd(1_000, 1_000, 0, 30_000_000),
    )
    gone = Figures("litellm", unavailable="no network")
    return Report(SMOKE, False, {f.name: f for f in (direct, bare, ours, gone)}, rounds=1)


def test_the_page_gives_medians_ratios_gates_and_what_is_missing() -> None:
    page = results.page(_report(), {"command": "weighbridge bench", "date": "today"})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert rows[4][1:] == ["direct", "bare", "weighbridge"]
    column = {row[0]: row[3] for row in reversed(rows) if len(row) == 4}
    assert column["**CPU per request**, ms"] == "0.500"
    assert column["least – most"] == "0.300 – 0.900"
    assert column["× bare"] == "5.0"
    assert column["one request at a time, ms"] == "0.800"
    assert column["**CPU per streamed chunk**, µs"] == "40.0"
    assert column["p99, ms"] == "11.00"
    assert column["memory per stream, kB"] == "30.0"
    assert column["start to ready, s"] == "1.00"
    assert "litellm was not run: no network" in page
    assert "| idle memory per worker, MB | 120 |  |  | not measured |" in page
    assert "| added TTFT at 100 streams, p99, ms | 10 |  | 11.00 | MISSED |" in page
    assert "1 of" not in page


def test_a_stream_that_was_not_there_with_the_others_fails_the_crowd_gate() -> None:
    ours = Figures("weighbridge", crowd=Crowd(1_000, 997, 0, 1_000_000))
    assert [gate.what for gate in results.missed(ours)] == ["1,000 streams on one worker: errors"]


def test_gates_tell_missed_from_kept() -> None:
    ours = _report().figures["weighbridge"]
    assert [gate.what for gate in results.missed(ours)] == ["added TTFT at 100 streams, p99, ms"]


# -------------------------------------------------------------------------------------------- CLI


def test_outside_a_checkout_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gateway.cli.bench._MARK", Path("tests/bench/absent.py"))
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 2
    assert "checkout" in done.output


def test_help_names_the_choices() -> None:
    app = typer.Typer()
    app.command()(bench)
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"})
    assert done.exit_code == 0
    assert "Example: weighbridge bench --quick" in done.output


def test_stopping_is_not_left_to_luck() -> None:
    """Terminated in mid-run, the harness takes its upstream, client and gateway along."""
    command = [sys.executable, "-m", "tests.bench", "--plan", "quick", "--only", "direct,bare"]
    harness = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while len(members := list(process.tree(harness.pid))) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(members) >= 4  # the harness, upstream, load client, bare
    harness.terminate()
    assert harness.wait(20) == 143
    assert _left(members) == []
