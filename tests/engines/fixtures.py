"""Fixtures of real engines, each started once per test run and shared.

`llamacpp` and `katan` belong to every run; `vllm` and `vllm_tp2` to `make test-engines`. A test
that uses one is marked here: all such tests share the xdist group `engines`, so that with `--dist
loadgroup` one worker has them all and each engine runs once; those that use a vLLM carry the marker
`engines`. An engine that cannot be had is a failure with its reason, never a skip.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.engines import processes
from tests.engines.processes import Engine, EngineError

VLLM = {"vllm", "vllm_tp2"}
ALL = {"llamacpp", "katan", *VLLM}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        if "engine" in used and item.path.parent.name == "engines":
            used.add(item.callspec.params["engine"])  # type: ignore[attr-defined]
        if used & ALL:
            item.add_marker(pytest.mark.xdist_group("engines"))
        if used & VLLM:
            item.add_marker(pytest.mark.engines)


@pytest.fixture(params=sorted(ALL))
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def llamacpp() -> Iterator[Engine]:
    with _or_fail(processes.llamacpp()) as running:
        yield running


@pytest.fixture(scope="session")
def katan(engine_logs: Path) -> Iterator[Engine]:
    with _or_fail(processes.katan(engine_logs / "katan.log")) as running:
        yield running


@pytest.fixture(scope="session")
def vllm(engine_logs: Path, vllm_installed: None) -> Iterator[Engine]:
    with _or_fail(processes.vllm(engine_logs / "vllm.log")) as running:
        yield running


@pytest.fixture(scope="session")
def vllm_tp2(engine_logs: Path, vllm_installed: None) -> Iterator[Engine]:
    """Tensor-parallel over two ranks, one core each."""
    with _or_fail(processes.vllm(engine_logs / "vllm-tp2.log", ranks=2)) as running:
        yield running


@pytest.fixture(scope="session")
def engine_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engines write; a failed start shows the end of its log."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def vllm_installed(request: pytest.FixtureRequest) -> None:
    """The first time takes minutes, so its output is shown, past pytest's capture."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            processes.install_vllm(say)
        except EngineError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None


@contextmanager
def _or_fail(starting: AbstractContextManager[Engine]) -> Iterator[Engine]:
    """Turn an engine that does not start into a failure that is only its reason."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(starting)
        except EngineError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        yield running
