"""The demo as a user starts it: one run with the real small model, one that keeps serving; and the
parts whose failure such a run would not show."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from gateway.cli.policy.check import look
from gateway.demo import backends, children
from gateway.demo.backends import DemoBackend, Shipped, Unavailable, found_engine, real_vendor
from gateway.demo.scripted_vendor import Page, ScriptedVendor
from gateway.demo.summary import Served, explained, reason, summarise
from gateway.demo.traffic import Heard
from gateway.demo.workload import LARGE, SMALL, Faulty, Work, request_count, workload
from gateway.domain.catalog import Kind
from gateway.domain.money import Meter, Rates
from gateway.domain.outcome import AttemptRecord, RequestRecord
from gateway.policy.catalog import load_catalog

COMMAND = [sys.executable, "-m", "gateway.cli", "demo"]
TODAY = dt.date(2026, 11, 23)


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHBRIDGE_")}
    return {**clean, **more}


# --- one run with the real model ------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "home"


@pytest.fixture(scope="module")
def summary(home: Path) -> dict[str, Any]:
    """What `--json` prints. A WEIGHBRIDGE_* of a real instance must have no part in it."""
    done = subprocess.run(
        [
            *COMMAND,
            "--json",
            "--quick",
            "--offline",
            "--engine",
            "llama.cpp",
            "--port",
            "0",
            "--home",
            str(home),
        ],
        env=environment(WEIGHBRIDGE_DATABASE_URL="postgresql://nobody@192.0.2.1/real"),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def by_kind(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["kind"]: line for line in summary["backends"]}


@pytest.mark.xdist_group("engines")
class TestOneRun:
    def test_every_promise_is_kept(self, summary: dict[str, Any]) -> None:
        assert len(summary["promises"]) >= 5
        assert all(promise["kept"] for promise in summary["promises"])

    def test_the_real_model_is_real_and_the_stand_ins_say_that_they_are_not(
        self, summary: dict[str, Any]
    ) -> None:
        lines = by_kind(summary)
        assert {kind: line["simulated"] for kind, line in lines.items()} == {
            "self_hosted": False,
            "managed": True,
            "closed_api": True,
        }
        for line in lines.values():
            assert line["simulated"] == line["backend"].startswith("simulated-")
            assert line["requests"] > 0
            assert line["tokens_out"] > 0
        assert lines["self_hosted"]["ttft_s_p50"] > 0
        assert lines["self_hosted"]["cached_tokens"] > 0, "a second turn reads the first from cache"

    def test_restricted_data_stays_on_the_self_hosted_backend(
        self, summary: dict[str, Any]
    ) -> None:
        own = by_kind(summary)["self_hosted"]["backend"]
        restricted = [each for each in summary["each"] if each["privacy"] == "restricted"]
        served = [each for each in restricted if each["status"] == 200]
        assert served
        assert {a["backend"] for each in restricted for a in each["attempts"]} == {own}
        [refused] = [each for each in restricted if each["status"] != 200]
        assert (refused["status"], refused["attempts"], refused["outcome"]) == (503, [], "no_route")

    def test_a_session_stays_where_its_cache_is(self, summary: dict[str, Any]) -> None:
        turns = [each for each in summary["each"] if each["session"]]
        later = [each for each in turns if each["turn"] > 1]
        assert len(later) == 3
        assert {each["reason"] for each in later} == {"affinity"}
        for session in {each["session"] for each in turns}:
            assert len({e["backend"] for e in turns if e["session"] == session}) == 1

    def test_costs_add_up_to_the_last_nano(self, summary: dict[str, Any]) -> None:
        def nano(usd: str | None) -> int:
            return round(float(usd or 0) * 1e9)

        for each in summary["each"]:
            assert nano(each["cost_usd"]) == sum(nano(a["cost_usd"]) for a in each["attempts"])
        assert nano(summary["cost_usd"]) == sum(nano(e["cost_usd"]) for e in summary["each"])
        assert nano(summary["cost_usd"]) == sum(nano(b["cost_usd"]) for b in summary["backends"])
        assert 0 < nano(summary["simulated_cost_usd"]) < nano(summary["cost_usd"])

    def test_the_failure_is_explained_with_both_attempts_and_the_exclusion(
        self, summary: dict[str, Any]
    ) -> None:
        told = summary["explained"]
        assert [a["outcome"] for a in told["attempts"]] == ["failed", "ok"]
        assert told["attempts"][0]["status"] == 503
        assert [c["target"] for c in told["candidates"]] == [a["target"] for a in told["attempts"]]
        assert [(e["rule"], e["detail"]) for e in told["excluded"]] == [
            ("context", "2612 tokens, 2048 fit")
        ]
        assert told["attempts"][1]["price"]["source"].startswith("copied from openai/")

    def test_where_all_went_accounts_for_all(self, summary: dict[str, Any]) -> None:
        assert sum(r["requests"] for r in summary["reasons"]) == summary["requests"]
        assert sum(b["requests"] for b in summary["backends"]) == summary["requests"] - 1

    def test_a_stand_in_costs_what_the_real_model_it_names_costs(
        self, summary: dict[str, Any], home: Path
    ) -> None:
        rows = yaml.safe_load((home / "policies/prices/demo.yaml").read_text())["prices"]
        shipped = {(r["backend"], r["model"]): r for r in Shipped.load().prices}
        copied = [row for row in rows if row["backend"].startswith("simulated-")]
        assert len(copied) == 4
        for row in copied:
            backend, _, model = row["source"].split(" ")[2].partition("/")
            figures = [k for k in row if k.endswith("_per_mtok")]
            assert {k: row[k] for k in figures} == {k: shipped[backend, model][k] for k in figures}
        [own] = [row for row in rows if row not in copied]
        assert own["basis"] == "declared"
        assert float(own["input_usd_per_mtok"]) > 0
        assert "measured" in own["source"]

    def test_the_home_is_an_ordinary_instance(self, summary: dict[str, Any], home: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "routes", "--json"],
            env=environment(WEIGHBRIDGE_HOME=str(home), WEIGHBRIDGE_POLICY="demo"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert {row["alias"] for row in json.loads(done.stdout)} == {
            "chat-small",
            "chat-large",
            "private-chat",
        }


def test_its_policies_are_without_mistake(home: Path, summary: dict[str, Any]) -> None:
    """Tests of the shipped catalog are none of this one."""
    problems = look([], home / "policies", TODAY).problems
    assert [str(problem) for problem in problems if problem.severity == "error"] == []
    assert not list(home.rglob("*.tests.yaml"))


# --- one that keeps serving -----------------------------------------------------------------------


@contextmanager
def serving(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that has shown its tables and serves, with what it printed."""
    process = subprocess.Popen(
        [
            *COMMAND,
            "--quick",
            "--offline",
            "--engine",
            "simulated",
            "--port",
            "0",
            "--home",
            str(home),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    shown: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            shown.append(line)
            if "Each further request" in line:
                break
        assert process.poll() is None, "".join(shown)
        yield process, "".join(shown)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_serves_with_the_lines_it_shows_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as (process, shown):
        [url] = re.findall(r"export OPENAI_BASE_URL=(\S+)", shown)
        [key] = re.findall(r"export OPENAI_API_KEY=(\S+)", shown)
        assert f'OpenAI(base_url="{url}", api_key="{key}")' in shown
        answer = httpx.post(
            f"{url}/chat/completions",
            headers={"authorization": f"Bearer {key}"},
            json={"model": SMALL, "messages": [{"role": "user", "content": "Hello"}]},
            timeout=30,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-weighbridge-simulated"] == "true"
        assert process.stdout is not None
        lines = (line for line in process.stdout if "→" in line)
        assert "simulated-engine  ok" in next(lines)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) == 4, "the gateway and three stand-ins"
        process.send_signal(signal.SIGINT)
        assert "Everything is stopped." in process.stdout.read()
        assert process.wait(30) == 0
        _, alive = psutil.wait_procs(started, timeout=5)
        assert not alive


def test_its_children_do_not_outlive_it(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as (process, _):
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(started, timeout=15)
        assert not alive


# --- usage ----------------------------------------------------------------------------------------


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options], env=environment(), capture_output=True, text=True, check=False
    )


def test_help_has_an_example() -> None:
    done = demo("--help")
    assert done.returncode == 0
    assert "Example: weighbridge demo --once" in done.stdout


def test_a_taken_port_is_a_sentence_and_status_2(tmp_path: Path) -> None:
    from gateway.supervisor import listen

    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        done = demo("--once", "--port", port, "--home", str(tmp_path / "home"))
    assert done.returncode == 2
    assert f"cannot listen on port {port}" in done.stderr
    assert "--port" in done.stderr


def test_an_engine_that_does_not_exist_is_wrong_usage() -> None:
    assert demo("--engine", "tea").returncode == 2


# --- which backends -------------------------------------------------------------------------------


def test_a_vendor_is_real_where_its_key_is_set() -> None:
    shipped = Shipped.load()
    found = real_vendor(Kind.MANAGED, shipped, {"TOGETHER_API_KEY": "tk"})
    assert found is not None
    assert (found.name, found.simulated) == ("together", False)
    assert found.models == {SMALL: "zai-org/GLM-5.3-Flash", LARGE: "zai-org/GLM-5.3"}
    assert {row["model"] for row in found.prices} == set(found.models.values())
    catalog = {
        "version": 1,
        "privacy_classes": shipped.catalog["privacy_classes"],
        "backends": {found.name: found.entry},
    }
    loaded = load_catalog(
        yaml.safe_dump(catalog), source="demo", secret_present=lambda reference: True
    )
    assert loaded.backends["together"].configured


@pytest.mark.parametrize("kind", [Kind.MANAGED, Kind.CLOSED_API])
def test_no_vendor_is_real_without_a_key_or_with_one_of_ours(kind: Kind) -> None:
    shipped = Shipped.load()
    assert real_vendor(kind, shipped, {}) is None
    wanted = backends.keys_wanted(kind, shipped)
    assert "OPENAI_API_KEY" in wanted or kind is Kind.MANAGED
    assert len(wanted) == len(set(wanted))
    assert real_vendor(kind, shipped, dict.fromkeys(wanted, "wb_demo_x")) is None


def shipped_at(engine: str, url: str) -> Shipped:
    """What is shipped, with the engine looked for at `url`."""
    shipped = Shipped.load()
    entry = {**shipped.entry(engine), "base_url": f"{url}/v1"}
    catalog = {**shipped.catalog, "backends": {**shipped.catalog["backends"], engine: entry}}
    return replace(shipped, catalog=catalog)


async def test_a_vllm_that_runs_is_found_with_its_model() -> None:
    async with ScriptedVendor(name="vllm") as vendor:
        found = await asyncio.to_thread(found_engine, "vllm", shipped_at("vllm", vendor.url))
    assert found.models == {SMALL: "vllm"}
    assert found.entry["base_url"] == f"{vendor.url}/v1"
    assert found.prices == (), "nobody declared a price, so there is none"


async def test_an_ollama_that_runs_is_found_with_its_smallest_chat_model() -> None:
    tags = {
        "models": [
            {"name": "large:70b", "size": 40_000, "details": {"family": "llama"}},
            {"name": "small:1b", "size": 700, "details": {"family": "gemma3"}},
            {"name": "nomic-embed", "size": 200, "details": {"family": "nomic-bert"}},
        ]
    }
    async with ScriptedVendor() as vendor:
        vendor.pages["/api/tags"] = Page(200, "application/json", json.dumps(tags).encode())
        found = await asyncio.to_thread(found_engine, "ollama", shipped_at("ollama", vendor.url))
    assert found.models == {SMALL: "small:1b"}


@pytest.mark.parametrize("engine", ["vllm", "ollama"])
async def test_something_else_on_the_port_is_not_taken_for_an_engine(engine: str) -> None:
    async with ScriptedVendor(name="somebody") as vendor:
        with pytest.raises(Unavailable, match=engine):
            await asyncio.to_thread(found_engine, engine, shipped_at(engine, vendor.url))
        assert not any(seen.path.endswith("/completions") for seen in vendor.log)


def test_nothing_on_the_port_is_no_engine() -> None:
    with pytest.raises(Unavailable):
        found_engine("vllm", shipped_at("vllm", "http://127.0.0.1:9"))


# --- the workload ---------------------------------------------------------------------------------


def test_documents_exceed_a_small_window_so_that_they_must_go_elsewhere() -> None:
    stages = workload(quick=False, window_tokens=2048, faulty=None)
    documents = [w for s in stages for w in s.works if w.kind == "long document"]
    assert len(documents) == 4
    assert all(len(work.turns[0]) / 4 > 2048 for work in documents)


def test_what_fails_is_what_would_have_been_chosen() -> None:
    both = Faulty("host", "api")
    *_, last = workload(quick=True, window_tokens=2048, faulty=both)
    assert (last.fault, last.works[0].alias) == ("host", SMALL)
    *_, last = workload(quick=True, window_tokens=128_000, faulty=both)
    assert (last.fault, last.works[0].alias) == ("api", LARGE)


def test_a_real_vendor_is_never_told_to_fail() -> None:
    for faulty in (None, Faulty(None, None)):
        stages = workload(quick=True, window_tokens=2048, faulty=faulty)
        assert all(stage.fault is None for stage in stages)
    *_, last = workload(quick=True, window_tokens=2048, faulty=Faulty(None, "api"))
    assert last.fault == "api"


def test_quick_has_every_kind() -> None:
    def kinds(quick: bool) -> set[str]:
        stages = workload(quick=quick, window_tokens=2048, faulty=Faulty("host", "api"))
        return {work.kind for stage in stages for work in stage.works}

    assert kinds(quick=True) == kinds(quick=False)
    few, all_ = (
        request_count(workload(quick=q, window_tokens=2048, faulty=None)) for q in (True, False)
    )
    assert few < all_ / 2 < 20


# --- the summary must be able to say no -----------------------------------------------------------

OWN = DemoBackend(
    name="own", kind=Kind.SELF_HOSTED, models={}, entry={}, prices=(), about="", priced=""
)
API = replace(OWN, name="api", kind=Kind.CLOSED_API)


def served(
    *tried: str,
    privacy: str = "restricted",
    status: int = 200,
    cost: int | None = 5,
    refusal: bool = False,
) -> Served:
    row = RequestRecord(
        id="r",
        started_at_us=0,
        endpoint="chat/completions",
        privacy_class=privacy,
        outcome="ok" if status == 200 else "no_route",
        backend=tried[-1] if tried else None,
        model="m" if tried else None,
        cost_nano_usd=cost if tried else None,
        attempt_count=len(tried),
        decision={
            "route": "default",
            "order": [[f"{name}/m", "cheapest", 0, 5, None] for name in tried],
            "excluded": [],
            "cut": [],
        },
        attempts=[
            AttemptRecord(number=i, backend=b, model="m", started_at_us=0, outcome="failed")
            for i, b in enumerate(tried, start=1)
        ],
    )
    if row.attempts:
        row.attempts[-1].outcome, row.attempts[-1].cost_nano_usd = "ok", 5
    work = Work(kind="k", alias="a", turns=("t",), refusal=refusal)
    heard = Heard(
        work=work, turn=1, request_id="r", status=status, text="", error=None, total_s=1.0
    )
    return Served(heard, row)


REFUSED = served(status=503, refusal=True)


def broken(*each: Served, sent: int | None = None) -> list[str]:
    result = summarise(each, [OWN, API], sent=len(each) if sent is None else sent, seconds=1.0)
    assert result.held is not any(not claim.held for claim in result.claims)
    return [claim.text for claim in result.claims if not claim.held]


def test_a_run_as_it_should_be_breaks_no_promise() -> None:
    assert broken(served("own"), served("api", privacy="public"), REFUSED) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([served("api"), REFUSED], "0 of 1 restricted requests"),
        ([served("api", "own"), REFUSED], "0 of 1 restricted requests"),
        ([served("own"), served("api", refusal=True)], "refused, nothing was sent"),
        ([served("own"), served("api", status=503, refusal=True)], "refused, nothing was sent"),
        ([served("own")], "refused, nothing was sent"),
        ([served("own", status=502), REFUSED], "0 of 1 requests answered"),
        ([served("own", cost=6), REFUSED], "costs of all attempts"),
    ],
)
def test_a_broken_promise_is_said(wrong: list[Served], said: str) -> None:
    assert any(said in text for text in broken(*wrong))


def test_a_request_that_is_not_in_the_ledger_breaks_a_promise() -> None:
    assert broken(served("own"), REFUSED, sent=3) == ["2 of 3 requests are in the ledger"]


@pytest.mark.parametrize(
    ("why", "excluded", "tried", "said"),
    [
        ("affinity", [], ["own"], ("affinity", "the session's KV cache is there")),
        (
            "fallback",
            [["x/m", "capacity", ""]],
            ["own"],
            ("fallback", "the preferred backend had no room"),
        ),
        (
            "preferred",
            [["x/m", "privacy", ""]],
            ["own"],
            ("preferred", "the only one cleared for restricted data"),
        ),
    ],
)
def test_reasons_in_words(
    why: str, excluded: list[list[str]], tried: list[str], said: tuple[str, str]
) -> None:
    row = served(*tried).row
    assert row.decision is not None
    row.decision["order"] = [[f"{tried[-1]}/m", why, 0, None, None]]
    row.decision["excluded"] = excluded
    assert reason(row) == said


def test_every_meter_of_an_attempt_has_its_line_and_they_make_its_cost() -> None:
    one = served("own")
    attempt = one.row.attempts[-1]
    attempt.uncached_tokens, attempt.cached_tokens, attempt.output_tokens = 60, 40, 50
    attempt.reasoning_tokens, attempt.service_tier = 20, "flex"
    attempt.other_meters = {"cache_write_5m": 30, "search_call": 2}
    rates = Rates(
        id="own/m;service_tier=flex",
        input=Decimal(1),
        output=Decimal(4),
        others={Meter.SEARCH_CALL: Decimal(10), Meter.CACHE_WRITE_5M: Decimal("1.25")},
    )
    attempt.rates_id, attempt.usage_source = rates.id, "reported"
    attempt.cost_nano_usd = one.row.cost_nano_usd = 100_000 + 37_500 + 200_000 + 20_000_000
    told = explained(one, {rates.id: rates})["attempts"][-1]
    lines = told["price"]["lines"]
    assert {line["meter"]: line["quantity"] for line in lines} == {
        "input": 60,
        "cache_read": 40,
        "output": 30,
        "reasoning": 20,
        "cache_write_5m": 30,
        "search_call": 2,
    }
    made = sum(Decimal(x["price_usd"]) / x["per"] * x["quantity"] for x in lines)
    assert made == Decimal(told["cost_usd"])
    (line,) = [
        x
        for x in summarise([one, REFUSED], [OWN, API], sent=2, seconds=1.0).lines
        if x.backend == "own"
    ]
    assert line.tokens_in == 130


# --- children -------------------------------------------------------------------------------------


def test_a_child_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "import sys; sys.exit('no disk')"]
    child = children.start("the engine", dying, tmp_path / "log")
    with pytest.raises(children.ChildError, match=r"the engine did not start:\nno disk"):
        children.address(child)


def test_a_deaf_child_is_ended_all_the_same(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('listening on x', flush=True); time.sleep(60)"
    child = children.start("deaf", [sys.executable, "-c", deaf], tmp_path / "log")
    assert children.address(child) == "x"
    began = time.monotonic()
    child.stop(timeout_s=0.2)
    assert not child.running
    assert time.monotonic() - began < 30
