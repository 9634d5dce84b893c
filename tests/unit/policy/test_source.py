"""Strict YAML: what is refused, and the exact words and place it is refused with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from gateway.policy.source import (
    BYTES_MAX,
    ConfigErrors,
    Findings,
    Problem,
    Strict,
    digest,
    dotted,
    keys,
    nearest,
    read,
)


class Item(Strict):
    size: int = Field(ge=1)
    label: str = Field(default="", pattern="^[a-z]*$")
    ratio: float = 1.0
    on_: bool = Field(default=False, alias="live")


class Sample(Strict):
    version: int
    items: dict[str, Item] = {}
    names: list[str] = []
    secret: str = ""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        read(Sample, text, "f.yaml")[1].raise_if_any()
    return str(caught.value).splitlines()


def test_a_good_file_is_read():
    text = 'version: 1\nitems: {a: {size: 3, label: "no", live: true}}\nnames: [x, "010"]\n'
    sample, findings = read(Sample, text, "f.yaml")
    findings.raise_if_any()
    assert sample.items["a"].label == "no"
    assert sample.items["a"].on_ is True
    assert sample.names == ["x", "010"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "f.yaml:1:1: the file is empty"),
        ("[1]", "f.yaml:1:1: expected a mapping, not a list"),
        (
            "version: 1\nitems: {a: {size: 1, label: No1}}\n",
            "f.yaml:2:29: items.a.label: must look like ^[a-z]*$, a regular expression",
        ),
        ("version: 1\n---\nversion: 1\n", "f.yaml:2:1: a second document; one file, one document"),
        (
            "version: [1\n",
            "f.yaml:2:1: not YAML: did not find expected ',' or ']' while parsing a flow sequence",
        ),
        (
            "version: 1\nnames: a: b\n",
            "f.yaml:2:9: not YAML: mapping values are not allowed in this context",
        ),
        ("version: 1\nn\0", "f.yaml:2:2: not text: control characters are not allowed"),
        ("version: 1\n\udcff", "f.yaml:2:1: not text: surrogates not allowed"),
        (
            "version: 1\nversion: 2\n",
            "f.yaml:2:1: version: duplicate key 'version'; first given at 1:1",
        ),
        (
            "version: 1\nversoin: 2\n",
            "f.yaml:2:1: versoin: unknown key 'versoin'; did you mean 'version'?",
        ),
        ("names: []\n", "f.yaml:1:1: version: missing key 'version'"),
        (
            "version: &v 1\n",
            "f.yaml:1:10: version: an anchor (&v) is not allowed here; write the value out",
        ),
        (
            "version: !!int 1\n",
            "f.yaml:1:10: version: a tag (tag:yaml.org,2002:int) is not allowed here; leave it out",
        ),
        ("version: true\n", "f.yaml:1:10: version: expected a whole number, not true"),
        ("version: 1.5\n", "f.yaml:1:10: version: expected a whole number, not the number 1.5"),
        ("version: one\n", "f.yaml:1:10: version: expected a whole number, not 'one'"),
        ("version:\n", "f.yaml:1:9: version: expected a whole number, not nothing"),
        ("version: 1\nnames: x\n", "f.yaml:2:8: names: expected a list, not 'x'"),
        (
            "version: 1\nnames: [a, 5]\n",
            "f.yaml:2:12: names[1]: expected text, not the number 5; quote it",
        ),
        ("version: 1\nitems: [a]\n", "f.yaml:2:8: items: expected a mapping, not a list"),
        ("version: 1\nitems: {a: {size: 0}}\n", "f.yaml:2:19: items.a.size: must be at least 1"),
        ("version: 1\nitems:\n  a: {}\n", "f.yaml:3:3: items.a.size: missing key 'size'"),
        (
            "version: 1\nitems: {a: {size: 1, life: true}}\n",
            "f.yaml:2:22: items.a.life: unknown key 'life'; did you mean 'live'?",
        ),
        ("version: 1\n7: x\n", "f.yaml:2:1: 7: the key 7 is not text; quote it"),
        ("version: 1\n? [a]\n: b\n", "f.yaml:2:3: a key must be plain text"),
    ],
)
def test_one_mistake_is_told_once_with_its_place(text, told):
    assert problems(text) == [told]


WORD = "is not text to all readers; write true, false or null, or quote it if it is text"
NUMBER = "is not the same number to all readers; write it plainly, or quote it if it is text"


@pytest.mark.parametrize("word", ["no", "Yes", "ON", "off", "y", "N", "True", "FALSE", "Null"])
def test_words_that_readers_disagree_about_are_refused(word):
    assert problems(f"version: 1\nnames: [{word}]\n") == [
        f"f.yaml:2:9: names[0]: unquoted {word} {WORD}"
    ]


@pytest.mark.parametrize(
    "number",
    [
        "12:30",
        "1:20:30.5",
        "010",
        "0x1F",
        "0o17",
        "1_000",
        "+5",
        "1e3",
        ".5",
        "5.",
        ".inf",
        ".NaN",
        "9999999999999999999",
    ],
)
def test_numbers_that_readers_disagree_about_are_refused(number):
    assert problems(f"version: 1\nnames: [{number}]\n") == [
        f"f.yaml:2:9: names[0]: unquoted {number} {NUMBER}"
    ]


@pytest.mark.parametrize(
    "text", ["2026-01-01", "gemma3:270m", "gpt-5.4", "8b", "1.2.3", "127.0.0.1", "none", "o"]
)
def test_text_that_merely_looks_odd_is_text(text):
    sample, findings = read(Sample, f"version: 1\nnames: [{text}]\n", "f.yaml")
    findings.raise_if_any()
    assert sample.names == [text]


def test_an_ambiguous_key_is_refused():
    assert problems("version: 1\nitems: {no: {size: 1}}\n") == [
        f"f.yaml:2:9: items.no: unquoted no {WORD}"
    ]


def test_everything_is_told_in_one_go_and_consequences_are_not():
    text = """\
version: 1
items:
  a: &x {size: 0, lable: q}
  a: {size: 2}
  b: *x
names: [ok, no, 3]
"""
    assert problems(text) == [
        "f.yaml:3:6: items.a: an anchor (&x) is not allowed here; write the value out",
        "f.yaml:3:16: items.a.size: must be at least 1",
        "f.yaml:3:19: items.a.lable: unknown key 'lable'; did you mean 'label'?",
        "f.yaml:4:3: items.a: duplicate key 'a'; first given at 3:3",
        "f.yaml:5:6: items.b: an alias (*x) is not allowed here; write the value out",
        f"f.yaml:6:13: names[1]: unquoted no {WORD}",
        "f.yaml:6:17: names[2]: expected text, not the number 3; quote it",
    ]


def test_a_caller_can_add_findings_to_what_could_be_mended():
    sample, findings = read(Sample, "version: 1\nnmes: []\nnames: [bad]\n", "f.yaml")
    findings.problem(("names", 0), "no such thing", "try harder")
    with pytest.raises(ConfigErrors) as caught:
        findings.raise_if_any()
    assert sample.names == ["bad"]
    assert [str(p) for p in caught.value.problems] == [
        "f.yaml:2:1: nmes: unknown key 'nmes'; did you mean 'names'?",
        "f.yaml:3:9: names[0]: no such thing; try harder",
    ]


@pytest.mark.parametrize("value", ["[sk-hush]", "{sk-hush: 1}", "0x5ec4e7", "5309"])
def test_a_secret_is_never_repeated(value):
    told = problems(f"version: 1\nsecret: {value}\n")
    assert len(told) == 1
    assert "hush" not in told[0]
    assert "5ec4e7" not in told[0]
    assert "5309" not in told[0]


def test_size_and_depth_are_bounded():
    assert problems("#" * (BYTES_MAX + 1)) == [f"f.yaml:1:1: larger than {BYTES_MAX} bytes"]
    deep = "version: 1\nnames: " + "[" * 21 + "]" * 21
    assert problems(deep)[0].endswith("nested deeper than 20 levels")
    with pytest.raises(ConfigErrors):
        read(Sample, "[" * 100_000, "f.yaml")


def found(text: str) -> tuple[Problem, ...]:
    try:
        read(Sample, text, "f.yaml")[1].raise_if_any()
    except ConfigErrors as errors:
        return errors.problems or pytest.fail("refused without a reason")
    return ()


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_with_a_place_in_it(text):
    for problem in found(text):
        assert 1 <= problem.line <= len(text) + 1
        assert problem.column >= 1


YAMLISH = st.lists(
    st.sampled_from([*"abn0:1-[]{}&*!|>'\"#%,? \n\n  ", "version: 1\n", "names: ", "- "]),
    max_size=60,
).map("".join)


@given(YAMLISH)
def test_anything_like_yaml_is_read_or_refused(text):
    assert all(str(problem).startswith("f.yaml:") for problem in found(text))


def test_the_digest_is_of_the_content():
    one, _ = read(Sample, "version: 1\nnames: [a, b]\n", "x")
    same, _ = read(Sample, "# a comment\nnames:\n  - a\n  - 'b'\nversion: 1\n", "y")
    other, _ = read(Sample, "version: 1\nnames: [b, a]\n", "x")
    assert digest(one) == digest(same) != digest(other)


def test_small_things():
    assert dotted(("a", "b", 2, "c")) == "a.b[2].c"
    assert nearest("closedapi", ["closed_api", "managed"]) == "did you mean 'closed_api'?"
    assert nearest("zzz", ["one", "two"]) == "one of: one, two"
    assert nearest("zzz", [f"name{n}" for n in range(9)]) == ""
    assert keys("a: 1\nb: 2\n") == {"a", "b"}
    assert keys("a: [") == keys("[]") == frozenset()
    assert str(Problem(source="f", line=1, column=2, path="", message="m")) == "f:1:2: m"
    assert Findings("f").position(("nowhere",)) == (1, 1)
