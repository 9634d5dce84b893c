"""Classifying: plugins that fail, hang and lie, and that all of it is the strictest class (I-8)."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from gateway.classify import GROUP, ON_LOOP_CHARS_MAX, Classifier, PluginMissing, Pool
from gateway.domain.caller import Caller
from gateway.domain.catalog import Catalog, DetectorPlugin
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.policy.detect import NOTHING, Finding
from tests.promises import promise
from tests.unit.policy.corpus import CARD

CLASSES = ("public", "internal", "confidential", "restricted")
STRICTEST = 3
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
ANYONE = Caller(key_id="k", name="n")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets go whoever hangs, at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def classifier(
    *plugins: tuple[Callable[[Sequence[str]], object], int, int],
    detectors: dict[str, int] | None = None,
    pool: Pool | None = None,
    **changes: Any,
) -> Classifier:
    """Plugins as (what it does, rank, milliseconds)."""
    found = {f"p{at}": run for at, (run, _, _) in enumerate(plugins)}
    catalog = Catalog(
        privacy_classes=CLASSES,
        backends={},
        aliases={},
        digest="",
        detectors=detectors or {},
        detector_plugins=tuple(
            DetectorPlugin(name=f"p{at}", rank=rank, timeout_ms=ms)
            for at, (_, rank, ms) in enumerate(plugins)
        ),
        **changes,
    )
    return Classifier.build(catalog, pool or Pool(), find=found.__getitem__)


def raises(error: BaseException) -> Callable[[Sequence[str]], bool]:
    def plugin(_: Sequence[str]) -> bool:
        raise error

    return plugin


async def test_nothing_is_asked_for_and_nothing_is_done() -> None:
    assert await classifier().look(HELLO) is NOTHING


async def test_plugins_see_all_text_and_raise_to_their_class() -> None:
    seen: list[str] = []

    def plugin(texts: Sequence[str]) -> bool:
        seen.extend(texts)
        return any("secret project" in text for text in texts)

    built = classifier((plugin, 2, 5_000))
    assert await built.look(HELLO) == NOTHING
    document = {"messages": [{"role": "user", "content": "the Secret Project"}], "user": "u"}
    assert await built.look(document) == NOTHING
    document["tools"] = [{"function": {"description": "our secret project"}}]
    assert await built.look(document) == Finding(2, ("p0",))
    assert {"hello", "the Secret Project", "u", "our secret project"} <= set(seen)


async def test_the_strictest_of_detectors_and_plugins_counts() -> None:
    yes, no = (lambda _: True), (lambda _: False)
    document = {"prompt": "a@firma.de"}
    built = classifier((yes, 2, 5_000), (no, 3, 5_000), detectors={"email": 1})
    assert await built.look(document) == Finding(2, ("email", "p0"))
    built = classifier((no, 2, 5_000), detectors={"email": 1})
    assert await built.look(document) == Finding(1, ("email",))


async def test_where_nothing_can_be_stricter_no_plugin_is_asked() -> None:
    asked: list[object] = []
    built = classifier(
        (lambda texts: bool(asked.append(texts)), 1, 5_000), detectors={"card_number": STRICTEST}
    )
    assert await built.look({"prompt": CARD}) == Finding(STRICTEST, ("card_number",))
    rank, names = await built.classify(ANYONE, floor=STRICTEST, asked=None, document=HELLO)
    assert (rank, names) == (STRICTEST, ())
    assert asked == []


FAILURES: dict[str, Callable[[Sequence[str]], object]] = {
    "an exception": raises(ValueError(CARD)),
    "an exit": raises(SystemExit(1)),
    "an exception of our own kind": raises(TimeoutError(CARD)),
    "a cancellation of its own": raises(CancelledError()),
    "an end of something": raises(StopIteration()),
    "None": lambda _: None,
    "a number": lambda _: 0,
    "text": lambda _: "False",
    "too few arguments": lambda: True,  # type: ignore[dict-item, misc]
}


@pytest.mark.parametrize("how", FAILURES)
async def test_a_plugin_that_fails_makes_it_the_strictest(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    built = classifier((FAILURES[how], 1, 5_000))
    found = await built.look({"prompt": CARD})
    assert found.rank == STRICTEST
    assert found.names in (("p0:failed",), ("p0:timeout",))
    assert CARD not in caplog.text + repr(found)
    assert "detector plugin p0" in caplog.text


async def test_detectors_that_fail_make_it_the_strictest(caplog: pytest.LogCaptureFixture) -> None:
    deep: list[Any] = []
    for _ in range(100_000):  # the edge lets nothing so deep in
        deep = [deep]
    found = await classifier(detectors={"email": 1}).look({"x": deep, "y": CARD})
    assert found == Finding(STRICTEST, ("detectors:failed",))
    assert CARD not in caplog.text


async def test_a_large_text_is_looked_at_beside_the_loop() -> None:
    built = classifier(detectors={"card_number": 2})
    large = "word " * ON_LOOP_CHARS_MAX
    assert await built.look({"prompt": large}) == NOTHING
    assert await built.look({"prompt": large + CARD}) == Finding(2, ("card_number",))


async def test_unclassifiable_is_the_strictest_and_in_time(release: threading.Event) -> None:
    """I-8: exceptions, stalls beyond every bound, and text beyond the bound, many at once."""
    waits: list[float] = []
    closed = 0

    def stall(_: Sequence[str]) -> bool:
        release.wait(60)
        return False

    async def ask(built: Classifier, document: dict[str, Any]) -> None:
        nonlocal closed
        start = time.perf_counter()
        rank, names = await built.classify(ANYONE, floor=0, asked="public", document=document)
        waits.append((time.perf_counter() - start) * 1000)
        assert (rank, len(names)) == (STRICTEST, 1), names
        closed += 1

    for _ in range(50):
        await ask(classifier((raises(OSError()), 1, 50)), HELLO)
    large = {"prompt": "x" * 5_000}
    for _ in range(50):
        await ask(classifier(detectors={"email": 1}, scan_bytes_max=4096), large)
    stalled = classifier((stall, 1, 50), pool=Pool(threads=4, waiting_max=16))
    await asyncio.gather(*(ask(stalled, HELLO) for _ in range(100)))  # most find the pool full
    for _ in range(20):  # no thread is left
        await ask(stalled, HELLO)
    promise(
        "I-8",
        f"{closed} of {closed} fail closed, after {max(waits):.0f} ms at most",
    )


async def test_a_stalled_pool_recovers_once_its_threads_come_back() -> None:
    gate = threading.Event()
    inside = threading.Semaphore(0)

    def plugin(texts: Sequence[str]) -> bool:
        if "stall" in texts:
            inside.release()
            gate.wait(60)
        return False

    patient = classifier((plugin, 1, 10_000), pool=Pool(threads=2, waiting_max=2))
    impatient = classifier((plugin, 1, 50), pool=patient.pool)
    stalled = [asyncio.ensure_future(patient.look({"prompt": "stall"})) for _ in range(2)]
    for _ in stalled:
        assert await asyncio.to_thread(inside.acquire, timeout=30)
    assert await impatient.look(HELLO) == Finding(STRICTEST, ("p0:timeout",))
    gate.set()
    assert await asyncio.gather(*stalled) == [NOTHING, NOTHING]
    assert await patient.look(HELLO) == NOTHING


async def test_who_leaves_ends_the_waiting(release: threading.Event) -> None:
    built = classifier((lambda _: release.wait(60), 1, 10_000))
    task = asyncio.ensure_future(built.look(HELLO))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_classify_takes_the_strictest_and_names_what_was_found() -> None:
    built = classifier(detectors={"email": 1, "iban": 2})
    document = {"prompt": "DE89 3704 0044 0532 0130 00"}

    async def ask(**more: Any) -> tuple[int, tuple[str, ...]]:
        given: dict[str, Any] = {"floor": 0, "asked": None, "document": document}
        return await built.classify(more.pop("caller", ANYONE), **given | more)

    assert await ask() == (2, ("iban",))
    assert await ask(asked="public") == (2, ("iban",))
    assert await ask(floor=3) == (3, ())
    assert await ask(document=HELLO) == (0, ())
    with pytest.raises(Forbidden, match="found: iban"):
        await ask(caller=Caller(key_id="k", name="n", privacy_ceiling="internal"))
    with pytest.raises(InvalidRequest):
        await ask(asked="secretest")


# --- how plugins are found ----------------------------------------------------------------------


def install(folder: Path, entries: str) -> None:
    (folder / "my_detectors.py").write_text(
        "def names(texts):\n    return any('Ada' in t for t in texts)\nnumber = 5\n"
    )
    info = folder / "my_detectors-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-detectors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")


def plugged(name: str) -> Catalog:
    plugin = DetectorPlugin(name=name, rank=2, timeout_ms=5_000)
    return Catalog(
        privacy_classes=CLASSES, backends={}, aliases={}, digest="", detector_plugins=(plugin,)
    )


async def test_a_plugin_comes_from_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path,
        "names = my_detectors:names\nnumber = my_detectors:number\ngone = my_detectors:gone",
    )
    monkeypatch.syspath_prepend(tmp_path)
    built = Classifier.build(plugged("names"), Pool())
    assert await built.look({"prompt": "Ada Lovelace"}) == Finding(2, ("names",))
    assert await built.look({"prompt": "nobody"}) == NOTHING
    for name, why in {
        "nmaes": "catalog.yaml:1:1: detector_plugins.nmaes: no such entry point in the group "
        "weighbridge.detectors is installed; did you mean 'names'?",
        "number": "catalog.yaml:1:1: detector_plugins.number: my_detectors:number cannot be called",
        "gone": "catalog.yaml:1:1: detector_plugins.gone: does not load: "
        "AttributeError(\"module 'my_detectors' has no attribute 'gone'\")",
    }.items():
        with pytest.raises(PluginMissing) as caught:
            Classifier.build(plugged(name), Pool())
        assert str(caught.value) == why
    del sys.modules["my_detectors"]
