"""Detectors: what is found, what is not, which text is looked at, and what counts as the strictest."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.catalog import Catalog, DetectorPlugin
from gateway.policy.detect import CONTENT, NOTHING, Detectors, Finding, read
from gateway.policy.detectors import DETECTORS
from tests.promises import promise
from tests.unit.policy.corpus import CARD, FOUND, MAKERS, MISSED, clean, findable

pytestmark = pytest.mark.xdist_group("detectors")  # the corpus is searched once

CLASSES = ("public", "internal", "confidential", "restricted")
PER_DETECTOR = 400
CLEAN = 4_000
CHUNKS = 4_000
RECALL_MIN, FALSE_ALARMS_MAX = 0.99, 0.01


def detectors(**ranks: int) -> Detectors:
    return Detectors.build(catalog(ranks))


def catalog(ranks: dict[str, int], **changes: Any) -> Catalog:
    return Catalog(
        privacy_classes=CLASSES,
        backends={},
        aliases={},
        digest="",
        **{"detectors": ranks, **changes},
    )


EVERY = dict.fromkeys(DETECTORS, 2)
ALL = detectors(**EVERY)


def names(content: object, **more: object) -> tuple[str, ...]:
    return ALL.scan({"messages": [{"role": "user", "content": content}], **more}).names


# --- how well -----------------------------------------------------------------------------------


PAGE = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text()


def test_every_detector_has_its_corpus_and_its_line_in_the_documentation() -> None:
    assert set(MAKERS) == set(DETECTORS)
    assert [name for name in (*DETECTORS, *CONTENT) if f"| `{name}` |" not in PAGE] == []


@pytest.fixture(scope="module")
def recall() -> dict[str, float]:
    return {
        name: sum(name in names(text) for text in findable(name, PER_DETECTOR)) / PER_DETECTOR
        for name in DETECTORS
    }


@pytest.mark.parametrize("name", DETECTORS)
def test_what_it_must_find_it_finds(recall: dict[str, float], name: str) -> None:
    missed = [text for text in findable(name, 100) if name not in names(text)]
    assert recall[name] >= RECALL_MIN, missed[:5]


def test_it_does_not_cry_wolf(recall: dict[str, float]) -> None:
    alarms = [(text, found) for text in clean(CLEAN) if (found := names(text))]
    assert len(alarms) <= FALSE_ALARMS_MAX * CLEAN, alarms[:10]
    # The standard library is code with true e-mail and IP addresses in it, and little else.
    others = Detectors.build(catalog({n: 2 for n in EVERY if n not in ("email", "ip_address")}))
    looked = hit = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for at in range(0, len(text), 2000):
            looked += 1
            hit += others.scan({"prompt": text[at : at + 2000]}) is not NOTHING
    assert looked > 1_000
    assert hit <= FALSE_ALARMS_MAX * looked
    worst = min(recall, key=lambda name: recall[name])
    promise(
        "I-8b",
        f"recall at least {recall[worst]:.1%} ({worst}); false alarms {len(alarms) / CLEAN:.2%} of "
        f"{CLEAN} texts, {hit / looked:.2%} of {looked} pieces of code; "
        f"{len(FOUND)} disguises seen through, {len(MISSED)} not",
    )


@pytest.mark.parametrize("way", FOUND)
def test_a_disguise_that_is_seen_through(way: str) -> None:
    assert "card_number" in names(FOUND[way])


@pytest.mark.parametrize("way", MISSED)
def test_what_slips_through_is_what_the_documentation_says(way: str) -> None:
    """When one of these is found after all: move it to FOUND, and take it out of docs/privacy.md."""
    assert "card_number" not in names(MISSED[way])
    assert way in PAGE


# --- which text ---------------------------------------------------------------------------------

CALL = {"id": "c", "type": "function", "function": {"name": "pay", "arguments": ""}}
WHERE: dict[str, dict[str, Any]] = {
    "a message": {"messages": [{"role": "user", "content": CARD}]},
    "the system message": {"messages": [{"role": "system", "content": f"Remember {CARD}."}]},
    "a tool's result": {"messages": [{"role": "tool", "tool_call_id": "c", "content": CARD}]},
    "a part": {"messages": [{"role": "user", "content": [{"type": "text", "text": CARD}]}]},
    "a part of an unknown kind": {
        "messages": [{"role": "user", "content": [{"type": "new", "deep": [{"er": CARD}]}]}]
    },
    "beside a picture": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    {"type": "text", "text": CARD},
                ],
            }
        ]
    },
    "the address of a picture": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": f"https://x.de/{CARD}"}}],
            }
        ]
    },
    "the arguments of a tool call": {
        "messages": [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {**CALL, "function": {"name": "pay", "arguments": json.dumps({"n": CARD})}}
                ],
            }
        ]
    },
    "the name of a caller": {"messages": [{"role": "user", "name": CARD, "content": "hi"}]},
    "two messages": {
        "messages": [
            {"role": "user", "content": f"my card {CARD[:9]}"},
            {"role": "user", "content": f"{CARD[10:]} goes on"},
        ]
    },
    "a digit a message": {"messages": [{"role": "user", "content": c} for c in CARD]},
    "a tool's description": {
        "tools": [{"type": "function", "function": {"name": "f", "description": CARD}}]
    },
    "the schema of an answer": {"response_format": {"json_schema": {"schema": {"enum": [CARD]}}}},
    "a key": {"metadata": {CARD: True}},
    "a number": {"metadata": {"card": int(CARD.replace(" ", ""))}},
    "a field nobody knows": {"guided": {"x": ["a", {"y": CARD}]}},
    "a prompt": {"prompt": CARD},
    "one of several prompts": {"prompt": ["hello", CARD]},
    "an input": {"input": [CARD, "b"]},
    "the suffix": {"prompt": "x", "suffix": CARD},
    "the user": {"user": CARD},
}


@pytest.mark.parametrize("place", WHERE)
def test_all_text_is_looked_at(place: str) -> None:
    assert ALL.scan(WHERE[place]) == Finding(2, ("card_number",))


def test_bytes_of_media_and_our_own_words_are_not_text() -> None:
    long = "A" * 2_000_000
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{long}"}},
        {"type": "input_audio", "input_audio": {"data": long, "format": "wav"}},
        {"type": "file", "file": {"file_data": long, "filename": "a.pdf"}},
    ]
    document = {"model": CARD, "messages": [{"role": "user", "content": content}]}
    assert ALL.scan(document) == NOTHING
    # What pretends to be media where a model reads it as text is text.
    assert names(f"data:text/plain;base64, {CARD}") == ("card_number",)
    assert names([{"type": "text", "text": f"data:x;base64,{CARD}"}]) == ("card_number",)


def test_media_may_be_classed() -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    document = {"messages": [{"role": "user", "content": content}]}
    assert detectors(email=1, media=2).scan(document) == Finding(2, ("media",))
    assert detectors(media=2).scan(document) == Finding(2, ("media",))
    assert detectors(email=1).scan(document) == NOTHING


@pytest.mark.parametrize("field", ["prompt", "input"])
@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]], ["a", 5], [[], [7]]])
def test_token_ids_cannot_be_read(field: str, tokens: object) -> None:
    assert detectors(email=1).scan({field: tokens}) == Finding(3, ("token_ids",))
    assert detectors(email=1, token_ids=1).scan({field: tokens}) == Finding(1, ("token_ids",))
    assert detectors(email=1, token_ids=0).scan({field: tokens}) == NOTHING
    assert Detectors.build(catalog({})).scan({field: tokens}) == NOTHING


def test_a_plugin_alone_makes_what_cannot_be_read_the_strictest() -> None:
    plugin = DetectorPlugin(name="p", rank=1)
    built = Detectors.build(catalog({}, detector_plugins=(plugin,)))
    assert built.scan({"input": [1, 2]}) == Finding(3, ("token_ids",))


def test_more_text_than_the_bound_is_the_strictest() -> None:
    built = Detectors.build(catalog({"email": 1}, scan_bytes_max=1000))
    assert built.scan({"prompt": "x" * 900}) == NOTHING
    assert built.scan({"prompt": "x" * 1000}) == Finding(3, ("scan_bytes_max",))
    assert built.scan({"prompt": "ü" * 600}) == Finding(3, ("scan_bytes_max",))
    assert built.scan({"metadata": {"k": ["x" * 500, "y" * 500]}}).rank == 3
    assert Detectors.build(catalog({}, scan_bytes_max=1000)).scan({"prompt": "x" * 2000}) == NOTHING


def test_the_strictest_of_what_is_found_counts_and_all_is_named() -> None:
    built = detectors(email=1, card_number=3, iban=2)
    found = built.scan({"prompt": f"a@firma.de {CARD}"})
    assert found == Finding(3, ("card_number", "email"))
    assert Finding(1, ("a",)) | Finding(0) | Finding(2, ("b", "a")) == Finding(2, ("a", "b"))


def test_a_detector_that_is_off_finds_nothing() -> None:
    assert detectors(email=1).scan({"prompt": CARD}) == NOTHING
    assert set(CONTENT).isdisjoint(DETECTORS)


# --- laws ---------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
FIELDS = st.sampled_from(["messages", "prompt", "input", "tools", "user", "x"])


@settings(max_examples=300)
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_document_is_read_and_none_is_changed(document: dict[str, Any]) -> None:
    before = repr(document)
    found = ALL.scan(document)
    assert repr(document) == before
    assert ALL.scan(document) == found
    assert 0 <= found.rank <= 3


@settings(max_examples=200)
@given(st.lists(st.text(max_size=30), max_size=6), st.integers(0, 200))
def test_a_string_is_found_whatever_stands_around_it(around: list[str], at: int) -> None:
    """What is found alone is found among other strings: nothing a caller adds lowers a class."""
    messages = [{"role": "user", "content": text} for text in around]
    messages.insert(at % (len(messages) + 1), {"role": "user", "content": f"is {CARD} mine?"})
    assert "card_number" in ALL.scan({"messages": messages}).names


def test_re2_is_imported_only_for_a_catalog_that_needs_it() -> None:
    code = (
        "import sys\n"
        "from gateway.policy.catalog import load_catalog\n"
        "from gateway.policy.detect import Detectors\n"
        "from gateway.domain.catalog import Catalog\n"
        "c = Catalog(privacy_classes=('a',), backends={}, aliases={}, digest='')\n"
        "assert Detectors.build(c).scan({'prompt': 'x'}).rank == 0\n"
        "assert 're2' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_finding_never_holds_what_was_found() -> None:
    assert CARD not in repr(ALL.scan({"prompt": CARD}))
    assert read({"prompt": CARD}).speech == [CARD]
