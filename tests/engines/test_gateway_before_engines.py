"""The gateway before real engines, asked by the official SDK.

What only real engines show: their streams, their usage, their errors, their KV cache. Each test
runs on llama.cpp in `make test` and on vLLM (single and tensor-parallel) in `make test-engines`.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.environments import python_env
from tests.engines.processes import Engine
from tests.gateway_process import GatewayProcess, gateway

REAL = ["llamacpp", "vllm", "vllm_tp2"]
WORDS = "the scale weighs each request that passes and writes down what it cost "
# The newest openai-python, in its own environment: what an app has.
SDK = """
import json, sys, time
from openai import OpenAI
job = json.load(sys.stdin)
client = OpenAI(base_url=job["url"] + "/v1", api_key=job["key"], max_retries=0)
started = time.perf_counter()
stream = client.chat.completions.create(
    model="chat", stream=True, stream_options={"include_usage": True}, temperature=0,
    max_tokens=job["tokens"], messages=[{"role": "user", "content": job["prompt"]}])
text, chunks, finish, usage, models = "", 0, None, None, set()
for event in stream:
    models.add(event.model)
    if event.usage:
        usage = event.usage.model_dump()
    for choice in event.choices:
        if choice.delta.content:
            text += choice.delta.content
            chunks += 1
        finish = choice.finish_reason or finish
json.dump({"text": text, "chunks": chunks, "finish": finish, "usage": usage,
           "models": sorted(models), "seconds": time.perf_counter() - started}, sys.stdout)
"""


def catalog(*engines: Engine) -> dict[str, Any]:
    return {
        "version": 1,
        "privacy_classes": ["public", "internal", "confidential", "restricted"],
        "aliases": {"chat": {"targets": [f"e{n}/{e.model}" for n, e in enumerate(engines)]}},
        "backends": {
            f"e{number}": {
                "kind": "self_hosted",
                "wire": "openai_http",
                "base_url": engine.url + "/v1",
                "cleared_for": "restricted",
                "health_path": "/health",
                "continuous_usage": engine.kind == "vllm",
                "models": {
                    engine.model: {
                        "context_tokens": 1024,
                        "endpoints": ["chat/completions", "completions"],
                        "capabilities": ["json_mode", "logprobs", "multiple_choices"],
                    }
                },
            }
            for number, engine in enumerate(engines)
        },
    }


@contextmanager
def before(*engines: Engine) -> Iterator[GatewayProcess]:
    with gateway(catalog(*engines)) as running:
        yield running


def ask(running: GatewayProcess, prompt: str, **fields: Any) -> httpx.Response:
    return httpx.post(
        running.url + "/v1/chat/completions",
        headers=running.auth,
        json={
            "model": "chat",
            "max_tokens": 8,
            "temperature": 0,
            "messages": [{"role": "user", "content": prompt}],
            **fields,
        },
        timeout=60,
    )


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_the_official_sdk_streams_and_the_ledger_agrees(engine: Engine) -> None:
    """Text, finish and usage arrive; the row has the same tokens, a TTFT and the backend."""
    with before(engine) as running:
        done = subprocess.run(
            [str(python_env("openai")), "-c", SDK],
            input=json.dumps(
                {"url": running.url, "key": running.key, "prompt": "What is a scale?", "tokens": 24}
            ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        heard = json.loads(done.stdout)
        (row,) = running.rows(count=1)
    assert heard["text"].strip()
    assert heard["finish"] in {"stop", "length"}
    assert heard["models"] == ["chat"]
    assert row["outcome"] == "ok"
    assert row["output_tokens"] == heard["usage"]["completion_tokens"]
    assert row["uncached_tokens"] + row["cached_tokens"] == heard["usage"]["prompt_tokens"]
    assert row["usage_source"] == "reported"
    assert 0 < row["ttft_us"] < row["duration_us"]
    assert row["cost_nano_usd"] is None  # no price is known: it is not 0
    print(f"{engine.kind}: {heard['chunks']} chunks, TTFT {row['ttft_us'] / 1000:.0f} ms")


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_streamed_and_whole_answers_say_the_same(engine: Engine) -> None:
    with before(engine) as running:
        whole = ask(running, "Name a colour.").json()
        with httpx.stream(
            "POST",
            running.url + "/v1/chat/completions",
            headers=running.auth,
            json={
                "model": "chat",
                "max_tokens": 8,
                "temperature": 0,
                "stream": True,
                "messages": [{"role": "user", "content": "Name a colour."}],
            },
            timeout=60,
        ) as response:
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    # Usage was asked for upstream, and nobody here asked to see it.
    assert not any(e.get("usage") for e in events)


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_a_follow_up_is_served_from_the_kv_cache(engine: Engine) -> None:
    """The second turn comes to the same backend, whose cached tokens the ledger books apart."""
    first = {"role": "user", "content": WORDS * 12}
    with before(engine) as running:
        for turns in ([first], [first, {"role": "assistant", "content": "ok"}, first]):
            answer = ask(running, "", messages=turns, max_tokens=2)
            assert answer.status_code == 200, answer.text
        rows = sorted(running.rows(count=2), key=lambda r: r["started_at_us"])
    assert rows[0]["session"] == rows[1]["session"]
    assert rows[1]["cached_tokens"] > rows[0]["cached_tokens"]


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_too_long_a_prompt_is_refused_before_the_engine_sees_it(engine: Engine) -> None:
    with before(engine) as running:
        answer = ask(running, "word " * 5000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("engine", REAL, indirect=True)
def test_a_client_that_leaves_stops_the_engine(engine: Engine) -> None:
    """Generation ends: the engine's own count of running requests returns to none."""
    gauge = {
        "vllm": "vllm:num_requests_running",
        "llamacpp": "llamacpp:requests_processing",
    }[engine.kind]

    def running_now() -> float:
        page = httpx.get(engine.url + "/metrics", timeout=10).text
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(gauge)
        )

    with before(engine) as running:
        with httpx.stream(
            "POST",
            running.url + "/v1/chat/completions",
            headers=running.auth,
            json={
                "model": "chat",
                "stream": True,
                "max_tokens": 700,
                "messages": [{"role": "user", "content": "Count."}],
            },
            timeout=60,
        ) as response:
            next(response.iter_lines())
        left = time.monotonic()
        while running_now() and time.monotonic() < left + 5:
            time.sleep(0.05)
        assert running_now() == 0
        (row,) = running.rows(count=1)
    assert row["outcome"] == "client_cancelled"
    assert 0 < row["output_tokens"] < 700


def test_one_engine_dies_and_the_other_takes_over(llamacpp: Engine, tmp_path: Path) -> None:
    """A dead replica costs nothing but an attempt: the answer comes from the living one."""
    dead = Engine(
        url="http://127.0.0.1:9", model=llamacpp.model, kind="llamacpp", version="", pid=0
    )
    spec = catalog(dead, llamacpp)
    del spec["backends"]["e0"]["health_path"]  # not probed: the request has to find out
    with gateway(spec) as running:
        answer = ask(running, "What is the capital of France?")
        (row,) = running.rows(count=1)
    assert answer.status_code == 200
    assert answer.headers["x-weighbridge-backend"] == "e1"
    assert [a["outcome"] for a in row["attempts"]] == ["failed", "ok"]
