"""The SSE reader: the same events wherever the bytes are cut, and bounded memory."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.backends.sse import EventStream, EventTooLarge
from tests.promises import promise

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
PAYLOAD = st.one_of(
    st.builds(lambda t: json.dumps({"t": t}, ensure_ascii=False), TEXT), st.just("[DONE]")
)
END = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """Payloads, and one way to write them: comments, ids, gaps, line ends, split data lines."""
    end = draw(END)
    out, payloads = "", []
    for _ in range(draw(st.integers(0, 8))):
        payload = draw(PAYLOAD)
        if draw(st.booleans()):
            out += f": keepalive{end}"
        if draw(st.booleans()):
            out += f"id: 7{end}event: x{end}retry: 1{end}"
        gap = draw(st.sampled_from(["", " "]))
        out += f"data:{gap}{payload}{end}{end}" + end * draw(st.integers(0, 1))
        payloads.append(payload)
    bom = draw(st.sampled_from(["", "\ufeff"]))
    return payloads, (bom + out).encode()


def read(blocks: list[bytes]) -> list[str]:
    stream = EventStream()
    found = [payload for block in blocks for payload in stream.feed(block)]
    return [payload.decode() for payload in found + stream.end()]


@settings(max_examples=1000, deadline=None)
@given(streams(), st.lists(st.integers(0, 400), max_size=12))
def test_any_cut_gives_the_same_events(stream: tuple[list[str], bytes], cuts: list[int]) -> None:
    payloads, data = stream
    at = sorted({min(c, len(data)) for c in cuts})
    blocks = [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True)]
    assert read(blocks) == read([data]) == payloads


def test_every_byte_split_of_a_hard_stream() -> None:
    data = (
        '\ufeff: ping\r\n\r\nid: 1\r\ndata: {"t": "é😀"}\r\n\r\n'
        "data: a\r\ndata: b\r\n\r\ndata:[DONE]\r\n\r\n"
    ).encode()
    whole = read([data])
    assert whole == ['{"t": "é😀"}', "a\nb", "[DONE]"]
    splits = 0
    for i in range(len(data) + 1):
        for j in range(i, len(data) + 1):
            assert read([data[:i], data[i:j], data[j:]]) == whole
            splits += 1
    promise("I-16", f"{splits:,} splits and 1,000 generated streams equal")


def test_an_event_without_its_last_blank_line_is_not_lost() -> None:
    assert read([b"data: a\n\ndata: b"]) == ["a", "b"]


def test_other_fields_alone_are_no_event() -> None:
    assert read([b"event: ping\n\n: x\n\nid: 1\n\n"]) == []


def test_an_event_larger_than_the_bound_is_refused_before_it_is_whole() -> None:
    stream = EventStream(event_bytes_max=1000)
    with pytest.raises(EventTooLarge):
        for _ in range(30):
            stream.feed(b"x" * 100)
