"""Each engine by itself, no gateway in between.

When a test of the gateway before an engine fails, these say whether the engine is to blame. They
pin what the gateway relies on: shapes, usage, metric names, prefix cache, tool calls, and that
engines end with us.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.clients.environments import ROOT
from tests.engines.processes import Engine

KEY = {"Authorization": "Bearer any"}
ASK = [{"role": "user", "content": "How does the sun heat the earth?"}]
# The series a gateway reads, and the counter of generated tokens among them.
METRICS = {
    "vllm": {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:generation_tokens_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
    },
    "llamacpp": {
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
        "llamacpp:tokens_predicted_total",
    },
}
GENERATED = {"vllm": "vllm:generation_tokens_total", "llamacpp": "llamacpp:tokens_predicted_total"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_chat(engine: Engine) -> None:
    answer = chat(engine, max_tokens=6)

    choice, usage = answer["choices"][0], answer["usage"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].strip()
    assert choice["finish_reason"] in ("stop", "length")
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_streamed_chat_says_text_then_reason_then_usage_then_done(engine: Engine) -> None:
    chunks = stream(engine, max_tokens=6, stream_options={"include_usage": True})

    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    assert text.strip()
    assert len(reasons) == 1
    assert choices[-1]["finish_reason"] == reasons[0]
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_it_lists_its_model(engine: Engine) -> None:
    listed = httpx.get(f"{engine.url}/v1/models", headers=KEY).json()

    assert engine.model in [model["id"] for model in listed["data"]]


@pytest.mark.parametrize("engine", ["llamacpp", "vllm", "vllm_tp2"], indirect=True)
def test_metrics_count_what_was_generated(engine: Engine) -> None:
    before = metrics(engine)
    generated = chat(engine, max_tokens=6)["usage"]["completion_tokens"]

    assert before.keys() >= METRICS[engine.kind]
    counter = GENERATED[engine.kind]
    eventually(lambda: metrics(engine)[counter] - before[counter] == generated)


@pytest.mark.parametrize("engine", ["vllm", "vllm_tp2"], indirect=True)
def test_vllm_answers_with_exactly_the_tokens_asked_for(engine: Engine) -> None:
    answer = chat(engine, max_tokens=17)
    stopped = chat(engine, max_tokens=200, stop=["a"])

    assert answer["usage"]["completion_tokens"] == 17
    assert answer["choices"][0]["finish_reason"] == "length"
    assert stopped["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("engine", ["vllm", "vllm_tp2"], indirect=True)
def test_vllm_reuses_the_cache_of_a_prompt_it_has_seen(engine: Engine) -> None:
    long = [{"role": "user", "content": f"{time.monotonic_ns()} " + "the long river " * 40}]
    first = chat(engine, messages=long, max_tokens=1)["usage"]
    again = chat(engine, messages=long, max_tokens=1)["usage"]

    # The cache works in whole blocks of 32; the page is long enough for several.
    assert first["prompt_tokens_details"]["cached_tokens"] < 32
    assert again["prompt_tokens"] - again["prompt_tokens_details"]["cached_tokens"] <= 32


@pytest.mark.parametrize("engine", ["vllm", "vllm_tp2"], indirect=True)
def test_vllm_calls_a_tool_with_arguments_of_its_schema(engine: Engine) -> None:
    answer = chat(engine, max_tokens=120, tools=[WEATHER], tool_choice="required")

    call = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    assert json.loads(call["arguments"])["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("engine", ["vllm", "vllm_tp2"], indirect=True)
def test_vllm_outlives_a_seeded_long_prompt(engine: Engine) -> None:
    """It kills a CPU engine that prefills in chunks; `serve.py` starts ours without."""
    long = [{"role": "user", "content": "the cat in the rain " * 180}]
    texts = {
        chat(engine, messages=long, max_tokens=8, seed=7)["choices"][0]["message"]["content"]
        for _ in range(2)
    }

    assert len(texts) == 1
    assert httpx.get(f"{engine.url}/health").status_code == 200


def test_two_ranks_hold_twice_the_keys_and_values(vllm: Engine, vllm_tp2: Engine) -> None:
    """Each rank keeps half of the heads, so the same bytes a rank hold twice the tokens."""
    assert capacity_tokens(vllm_tp2) == 2 * capacity_tokens(vllm)
    ranks = [
        child
        for child in psutil.Process(vllm_tp2.pid).children(recursive=True)
        if "Worker_TP" in " ".join(child.cmdline())
    ]
    assert len(ranks) == 2


def test_llamacpp_embeds_beside_chat(llamacpp: Engine) -> None:
    texts = ["the sun is hot", "the sun is very hot", "a ledger of invoices"]
    body = {"model": llamacpp.model, "input": texts}
    answer = httpx.post(f"{llamacpp.url}/v1/embeddings", json=body, timeout=60).json()

    sun, hot_sun, ledger = [row["embedding"] for row in answer["data"]]
    assert answer["usage"]["prompt_tokens"] > 0
    assert cosine(sun, hot_sun) > cosine(sun, ledger)


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/messages", {"x-api-key": "any"}, {"messages": ASK, "max_tokens": 9}),
        (
            "/v1beta/models/{model}:generateContent",
            KEY,
            {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
        ),
        (
            "/model/{model}/converse",
            KEY,
            {"messages": [{"role": "user", "content": [{"text": "Hello"}]}]},
        ),
        (
            "/openai/deployments/{model}/chat/completions?api-version=2024-10-21",
            {"api-key": "any"},
            {"messages": ASK},
        ),
    ],
    ids=["anthropic", "vertex", "bedrock", "azure"],
)
def test_katan_speaks_the_other_vendors_apis(
    katan: Engine, path: str, headers: dict[str, str], body: dict[str, Any]
) -> None:
    url = katan.url + path.format(model=katan.model)
    answer = httpx.post(url, headers=headers, json={"model": katan.model, **body})

    assert answer.status_code == 200, answer.text


@pytest.mark.xdist_group("engines")
def test_llamacpp_ends_when_the_process_that_started_it_is_killed() -> None:
    script = (
        "from gateway.demo import llama_server\n"
        "server = llama_server.start()\n"
        "print(server.pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()

    eventually(lambda: not alive(pid))


@pytest.mark.xdist_group("engines")
def test_katan_ends_when_the_test_process_is_killed(tmp_path: Path, katan: Engine) -> None:
    script = (
        "from pathlib import Path\n"
        "from tests.engines import processes\n"
        f"with processes.katan(Path({str(tmp_path / 'log')!r})) as engine:\n"
        "    print(engine.pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        assert pid != katan.pid
        assert psutil.pid_exists(pid)
        os.kill(parent.pid, signal.SIGKILL)

    eventually(lambda: not alive(pid))


# --- how these tests talk to an engine ---


def chat(engine: Engine, **fields: Any) -> dict[str, Any]:
    body = {"model": engine.model, "messages": ASK, "temperature": 0, **fields}
    answer = httpx.post(f"{engine.url}/v1/chat/completions", headers=KEY, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(engine: Engine, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, which must end with `[DONE]`."""
    body = {"model": engine.model, "messages": ASK, "temperature": 0, "stream": True, **fields}
    url = f"{engine.url}/v1/chat/completions"
    with httpx.stream("POST", url, headers=KEY, json=body, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def metrics(engine: Engine) -> dict[str, float]:
    """Sums over labels; good for the counters and gauges that are read here."""
    sums: dict[str, float] = {}
    for name, _, value in _samples(engine):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def capacity_tokens(engine: Engine) -> int:
    labels = next(
        labels for name, labels, _ in _samples(engine) if name == "vllm:cache_config_info"
    )
    return int(labels.partition('kv_cache_size_tokens="')[2].partition('"')[0])


def _samples(engine: Engine) -> Iterator[tuple[str, str, str]]:
    page = httpx.get(f"{engine.url}/metrics", timeout=30)
    assert page.status_code == 200
    for line in page.text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            yield name, labels, value


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
