"""Which backends the demo runs on: found, started, or stood in for; as catalog entries and prices.

Owns: the search for an engine on this machine and for vendors' keys, the stand-ins and their
timing. Must not know: the workload, the gateway's process.

INVARIANTS
- A stand-in is called `simulated-...` and marked `simulated` in the catalog. Its price is the row
  of a real model, which it names; its timing is a script's and nobody's measurement.
- A real engine on this machine has a declared price that says how it was reckoned, or none at all.
- A real vendor is used only with its own key, and never with one of this gateway.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson
import yaml

from gateway.demo import children, llama_server
from gateway.demo.workload import LARGE, SMALL
from gateway.domain.catalog import Kind
from gateway.policy.catalog import target
from gateway.settings import bundled

Entry = dict[str, Any]  # as under `backends` of catalog.yaml
Row = dict[str, Any]  # as in prices/*.yaml

CONCURRENCY_MAX = 4  # of the engine on this machine: the batch is meant to overflow it
OWN_KEY = "wb_"
# What an hour of one core is reckoned at: our own statement, in the range of a rented vCPU.
CORE_HOUR_USD = Decimal("0.04")
_SEARCH_S_MAX = 1.0
_FIRST_ANSWER_S_MAX = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoBackend:
    """One of the three. `models` maps the alias to the model that serves it here.

    `about` says what it is and `priced` where its price is from, for people. `window_tokens` is
    the model's context where it is known. `control` is the address at which a stand-in takes
    orders.
    """

    name: str
    kind: Kind
    models: Mapping[str, str]
    entry: Entry
    prices: tuple[Row, ...]
    about: str
    priced: str
    window_tokens: int | None = None
    control: str | None = None

    @property
    def simulated(self) -> bool:
        return bool(self.entry.get("simulated"))


class Unavailable(Exception):
    """The engine that was asked for cannot be had; the message says why."""


# --- what is shipped ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shipped:
    """The starter policies as written."""

    catalog: Mapping[str, Any]
    prices: tuple[Row, ...]

    @classmethod
    def load(cls) -> Shipped:
        folder = bundled("policies")
        files = sorted((folder / "prices").glob("*.yaml"))
        return cls(
            _yaml(folder / "catalog.yaml"),
            tuple(row for file in files for row in _yaml(file).get("prices", ())),
        )

    def entry(self, backend: str) -> Entry:
        return dict(self.catalog["backends"][backend])

    def models(self, alias: str, kind: Kind) -> list[tuple[str, str]]:
        """`(backend, model)` of the alias's targets of this kind, in their order."""
        targets = map(target, self.catalog["aliases"][alias]["targets"])
        return [(t.backend, t.model) for t in targets if self.entry(t.backend)["kind"] == kind]

    def price(self, backend: str, model: str, day: dt.date) -> Row | None:
        """The row in force on `day`."""
        rows = [r for r in self.prices if (r["backend"], r["model"]) == (backend, model)]
        return max((r for r in rows if r["from"] <= day), key=lambda r: r["from"], default=None)


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# --- hosted: real with a key, else a stand-in -----------------------------------------------------


def real_vendor(kind: Kind, shipped: Shipped, environment: Mapping[str, str]) -> DemoBackend | None:
    """The first backend of this kind behind `chat-small` whose key is set; None if none is."""
    large = dict(shipped.models(LARGE, kind))
    for backend, small in shipped.models(SMALL, kind):
        entry = shipped.entry(backend)
        variable = entry.get("secret", "").removeprefix("env:")
        key = environment.get(variable, "")
        if not key or key.startswith(OWN_KEY) or not _speakable(entry["wire"]):
            continue
        models = {SMALL: small, LARGE: large.get(backend, small)}
        prices = tuple(
            r for r in shipped.prices if r["backend"] == backend and r["model"] in models.values()
        )
        return DemoBackend(
            name=backend,
            kind=kind,
            models=models,
            entry={**entry, "models": {m: entry["models"][m] or {} for m in models.values()}},
            prices=prices,
            about=f"{small}, as {variable} is set",
            priced=f"list price, {prices[0]['source']}" if prices else "unpriced",
        )
    return None


def _speakable(wire: str) -> bool:
    return wire == "openai_http" or find_spec("litellm") is not None


def keys_wanted(kind: Kind, shipped: Shipped) -> list[str]:
    """The variables any of which makes a backend of this kind real."""
    entries = [shipped.entry(backend) for backend, _ in shipped.models(SMALL, kind)]
    secrets = [e["secret"] for e in entries if "secret" in e and _speakable(e["wire"])]
    return list(dict.fromkeys(s.removeprefix("env:") for s in secrets))


class Pace(NamedTuple):
    """How a stand-in's script is timed; seconds."""

    ttft_s: float
    ttft_per_1k_s: float
    itl_s: float


PACES = {
    Kind.MANAGED: Pace(0.18, 0.06, 0.007),
    Kind.CLOSED_API: Pace(0.35, 0.04, 0.012),
    Kind.SELF_HOSTED: Pace(0.25, 0.90, 0.030),
}
_STAND_INS = {
    Kind.MANAGED: "simulated-host",
    Kind.CLOSED_API: "simulated-api",
    Kind.SELF_HOSTED: "simulated-engine",
}
_SCRIPTED = {SMALL: "scripted-small", LARGE: "scripted-large"}


def stand_in(kind: Kind, child: children.Child, shipped: Shipped, day: dt.date) -> DemoBackend:
    """A started scripted vendor as a backend. Raises ChildError."""
    url = children.address(child)
    name, pace = _STAND_INS[kind], PACES[kind]
    about = (
        f"scripted words, {pace.ttft_s * 1000:.0f} ms to the first token, "
        f"{1 / pace.itl_s:.0f} tokens/s"
    )
    backend = DemoBackend(
        name=name,
        kind=kind,
        models=_SCRIPTED,
        entry={
            "kind": kind.value,
            "wire": "openai_http",
            "base_url": f"{url}/v1",
            "health_path": "/v1/models",
            "cleared_for": "internal",
            "simulated": True,
            "data": {
                "region": "this machine",
                "trains_on_data": False,
                "source": "a scripted stand-in of the demo",
            },
            "limits": {"concurrency_max": 64},
            "models": {m: {"context_tokens": 128_000} for m in _SCRIPTED.values()},
        },
        prices=(),
        about=about,
        priced="unpriced",
        control=f"{url}/__control",
    )
    if kind is Kind.SELF_HOSTED:
        window = _window()
        entry = _small(backend.entry) | {
            "cleared_for": "restricted",
            "models": {m: {"context_tokens": window} for m in _SCRIPTED.values()},
        }
        return replace(backend, entry=entry, window_tokens=window)
    donors = {alias: _donor(kind, alias, shipped, day) for alias in _SCRIPTED}
    prices = tuple(
        _borrowed(row, name, _SCRIPTED[alias]) for alias, row in donors.items() if row is not None
    )
    first = donors[SMALL]
    return replace(
        backend,
        prices=prices,
        priced=f"priced as {first['backend']}/{first['model']}" if first else "unpriced",
    )


def _donor(kind: Kind, alias: str, shipped: Shipped, day: dt.date) -> Row | None:
    """The price row of the first real model of this kind behind the alias."""
    rows = (shipped.price(b, m, day) for b, m in shipped.models(alias, kind))
    return next((row for row in rows if row is not None), None)


def _borrowed(row: Row, backend: str, model: str) -> Row:
    origin = f"{row['backend']}/{row['model']}"
    source = f"copied from {origin} for a scripted stand-in; there: {row['source']}"
    return {**row, "backend": backend, "model": model, "source": source[:500]}


def scripted_command(kind: Kind) -> list[str]:
    """How to start the stand-in for a backend of this kind."""
    script = {
        **PACES[kind]._asdict(),
        "jitter": 0.2,
        "tokens": 64,  # the request's own limit is lower
    }
    command = [sys.executable, "-m", "gateway.demo.scripted_vendor", "--name", _STAND_INS[kind]]
    for model in _SCRIPTED.values():
        command += ["--model", model]
    return [*command, "--script", orjson.dumps(script).decode()]


def set_failing(backend: DemoBackend, *, failing: bool) -> None:
    """Let a stand-in answer 503 to everything, or work again."""
    assert backend.control is not None, "only a stand-in takes orders"
    state = httpx.get(backend.control, trust_env=False).raise_for_status().json()
    status = 503 if failing else 200
    scripts = {name: {**script, "status": status} for name, script in state["scripts"].items()}
    httpx.post(backend.control, json={"scripts": scripts}, trust_env=False).raise_for_status()


# --- self-hosted: found, else started -------------------------------------------------------------


def found_engine(which: str, shipped: Shipped) -> DemoBackend:
    """A vLLM or an Ollama that runs on this machine and answers a chat. Raises Unavailable."""
    entry = shipped.entry(which)
    base = entry["base_url"]
    try:
        model, window = _SEARCHES[which](base)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
        }
        answer = httpx.post(
            f"{base}/chat/completions", json=body, timeout=_FIRST_ANSWER_S_MAX, trust_env=False
        )
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"no {which} answers at {base}") from error
    if answer.status_code != 200:
        raise Unavailable(f"the {which} at {base} answers a chat with {answer.status_code}")
    models = {model: {} if window is None else {"context_tokens": window}}
    return DemoBackend(
        name=which,
        kind=Kind.SELF_HOSTED,
        models={SMALL: model},
        entry={**_small(entry), "models": models},
        prices=(),
        about=f"{model} on the {which} found at {base}",
        priced="unpriced: nobody declared what its tokens cost",
        window_tokens=window,
    )


def _small(entry: Entry) -> Entry:
    """An engine's entry with room for a few requests, so that the batch overflows it."""
    return {**entry, "limits": {**entry.get("limits", {}), "concurrency_max": CONCURRENCY_MAX}}


def _vllm(base: str) -> tuple[str, int | None]:
    """The first model and its context. Anything may listen on port 8000, so it must say vllm."""
    cards = [c for c in _get(f"{base}/models")["data"] if c["owned_by"] == "vllm"]
    if not cards:
        raise ValueError("something else listens there")
    return str(cards[0]["id"]), cards[0].get("max_model_len")


def _ollama(base: str) -> tuple[str, int | None]:
    """The smallest chat model that is already there."""
    models = _get(f"{base.removesuffix('/v1')}/api/tags")["models"]
    chat = [m for m in models if "bert" not in str(m.get("details", {}).get("family", ""))]
    return str(min(chat, key=lambda m: m["size"])["name"]), None


_SEARCHES: Mapping[str, Callable[[str], tuple[str, int | None]]] = {
    "vllm": _vllm,
    "ollama": _ollama,
}


def _get(url: str) -> Any:
    return httpx.get(url, timeout=_SEARCH_S_MAX, trust_env=False).raise_for_status().json()


def _engine_settings() -> llama_server.Settings:
    """All cores but one: that one is for the gateway and the stand-ins."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return llama_server.Settings(parallel=CONCURRENCY_MAX, threads=max(1, min(8, cores - 1)))


def _window() -> int:
    settings = _engine_settings()
    return settings.context_tokens // settings.parallel


def start_llama() -> llama_server.LlamaServer:
    """Start the small model. Raises NotInstalledError or StartError."""
    return llama_server.start(_engine_settings())


def llama_backend(
    server: llama_server.LlamaServer, shipped: Shipped, day: dt.date, known: Iterable[Row]
) -> DemoBackend:
    """The running small model as a backend; its price is one of `known`, else measured now."""
    entry = shipped.entry("llamacpp")
    window = _window()
    model = {**entry["models"][server.model], "context_tokens": window}
    row = next((r for r in known if (r["backend"], r["model"]) == ("llamacpp", server.model)), None)
    row = row or _declared(server, day)
    return DemoBackend(
        name="llamacpp",
        kind=Kind.SELF_HOSTED,
        models={SMALL: server.model},
        entry={
            **_small(entry),
            "base_url": f"{server.url}/v1",
            "models": {server.model: model},
        },
        prices=(row,),
        about="Gemma 3 270M, 4-bit, on llama.cpp on this machine's CPU",
        priced=row["source"],
        window_tokens=window,
    )


def _declared(server: llama_server.LlamaServer, day: dt.date) -> Row:
    """What a token costs here: core-hours over the speed that was just measured."""
    prompt_tps, output_tps = _speed(server)
    cores = _engine_settings().threads
    hour = CORE_HOUR_USD * cores
    return {
        "backend": "llamacpp",
        "model": server.model,
        "from": day,
        "input_usd_per_mtok": _per_mtok(hour, prompt_tps),
        "output_usd_per_mtok": _per_mtok(hour, output_tps),
        "basis": "declared",
        "source": f"declared: {cores} core{'s' * (cores > 1)} at ${CORE_HOUR_USD}/h each, measured "
        f"{prompt_tps:.0f} tokens/s in and {output_tps:.0f} out on {day}",
        "read_on": day,
    }


def _per_mtok(hour_usd: Decimal, tps: float) -> str:
    return f"{hour_usd / Decimal(tps) / 3600 * 1_000_000:.4f}"


def _speed(server: llama_server.LlamaServer) -> tuple[float, float]:
    """Prompt and output tokens per second of one request alone, by the engine's own clock."""
    for text in (
        "Hello.",
        "Explain in a few words what a bridge is for, and who pays for it. " * 4,
    ):
        body = {
            "model": server.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 12,
        }
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json=body,
            timeout=_FIRST_ANSWER_S_MAX,
            trust_env=False,
        )
    timings = answer.raise_for_status().json()["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]
