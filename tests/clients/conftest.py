"""One scripted vendor, one gateway before it, and each SDK's program, shared by the folder's tests.

Every row of the table, for each client and each form, has a backend of its own: a row is about one
request, and a breaker or a cool-down opened by another would answer in its place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.clients.client import SDKS, Client, chat_job, client
from tests.clients.environments import CLIENTS as FOLDER
from tests.clients.environments import BuildError, node_env, python_env
from tests.clients.scenes import EVERYTHING, SCENES, SLOW, models
from tests.clients.variants import CLIENTS, VARIANTS, alias_of
from tests.gateway_process import GatewayProcess, gateway
from tests.vendor import VendorProcess, vendor_process

# Silence is a row of the table; waiting for it is not.
IMPATIENT = {"connect_ms_max": 2_000, "first_chunk_ms_max": 800, "idle_ms_max": 600}


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> None:
    """All environments, built where they are missing; says so, for that takes a while."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    try:
        for name in sorted({name for name, _ in SDKS.values()}):
            if not (FOLDER / name / "weighbridge-environment.txt").exists():
                with capture.global_and_fixture_disabled():
                    print(f"\nclients: installing {name} into .clients/ ...", file=sys.stderr)
            node_env() if name == "node" else python_env(name)
    except BuildError as error:
        failure = str(error)
    else:
        return
    pytest.fail(f"An environment of the client tests is missing: {failure}", pytrace=False)


@pytest.fixture(scope="session")
def vendor() -> Iterator[VendorProcess]:
    scripts = {name: variant.script for name, variant in VARIANTS.items()}
    for alias, scene in SCENES.items():
        scripts |= dict(zip(models(alias), scene.scripts, strict=True))
    with vendor_process(scripts) as running:
        yield running


@pytest.fixture(scope="session")
def served(vendor: VendorProcess) -> Iterator[GatewayProcess]:
    """A gateway with one alias for each row, client and form, and one for each scene."""
    patience = {"WEIGHBRIDGE_STREAM_KEEPALIVE_S": "1", "WEIGHBRIDGE_FIRST_STATUS_S_MAX": "3"}
    with gateway(_catalog(vendor.url), environment=patience) as g:
        yield g


def _catalog(url: str) -> dict[str, Any]:
    backends: dict[str, Any] = {}
    aliases: dict[str, Any] = {}
    for variant in VARIANTS:
        silent = variant.startswith(("stall", "hang", "silent"))
        for sdk in CLIENTS:
            for form in ("stream", "whole"):
                name = alias_of(variant, sdk, form)
                backends[name] = _backend(url, variant, limits=dict(IMPATIENT) if silent else {})
                aliases[name] = {"targets": [f"{name}/{variant}"]}
    for alias, scene in SCENES.items():
        targets = []
        for number, model in enumerate(models(alias)):
            name = alias.replace("/", ".") + f"-{number}"
            backends[name] = _backend(url, model, scene.capabilities, **scene.backend)
            targets.append(f"{name}/{model}")
        aliases[alias] = {"targets": targets}
    classes = ["public", "internal", "confidential", "restricted"]
    return {"version": 1, "privacy_classes": classes, "aliases": aliases, "backends": backends}


def _backend(
    url: str, model: str, capabilities: Sequence[str] = EVERYTHING, **more: Any
) -> dict[str, Any]:
    endpoints = ["chat/completions", "completions", "embeddings"]
    return {
        "kind": "closed_api",
        "wire": "openai_http",
        "base_url": url + "/v1",
        "models": {model: {"endpoints": endpoints, "capabilities": list(capabilities)}},
        **more,
    }


@pytest.fixture(scope="session")
def clients(environments: None, served: GatewayProcess) -> Iterator[Callable[[str], Client]]:
    """`clients(sdk)`: its program, started when first asked for."""
    running: dict[str, Client] = {}
    with ExitStack() as stack:

        def get(sdk: str) -> Client:
            if sdk not in running:
                url = served.url if sdk == "anthropic" else served.url + "/v1"
                running[sdk] = stack.enter_context(client(sdk, url, served.key))
            return running[sdk]

        yield get


@pytest.fixture(scope="session", autouse=True)
def waiting(
    request: pytest.FixtureRequest, clients: Callable[[str], Client]
) -> Callable[[str, str], dict[str, Any]]:
    """`waiting(sdk, alias)`: what it saw of a scene that takes half a minute.

    Begun with the first test of the folder, so that the wait costs no time of its own; not at all
    where the tests that read it are not in the run.
    """
    if not any(item.path.name == "test_waiting.py" for item in request.session.items):
        return lambda sdk, alias: pytest.fail("this test is to live in test_waiting.py")
    started = {
        (sdk, alias): clients(sdk).start(**chat_job(sdk, alias, "stream"))
        for sdk in CLIENTS
        for alias in SLOW
    }
    return lambda sdk, alias: clients(sdk).answer(started[sdk, alias], 60.0)
