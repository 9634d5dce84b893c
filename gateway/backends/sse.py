"""Server-sent events, incrementally: bytes in, in any split, whole events out.

Follows the WHATWG event-stream format as far as OpenAI's wire uses it: `data` fields are kept,
comments and other fields are dropped, a BOM at the start is skipped, lines may end in LF, CRLF or
CR. Knows no JSON. Memory is bounded: an event larger than `event_bytes_max` is an error.

INVARIANT: the events are the same wherever the bytes are cut (property test).
"""

from __future__ import annotations

EVENT_BYTES_MAX = 4 * 1024 * 1024


class EventTooLarge(Exception):
    """One event is larger than we are ready to hold."""


class EventStream:
    """One stream. Feed blocks; take payloads."""

    __slots__ = ("_bytes_max", "_crlf", "_start", "_tail")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._tail = b""
        self._start = True
        self._crlf = False
        self._bytes_max = event_bytes_max

    def feed(self, block: bytes) -> list[bytes]:
        """The data payloads of the events that `block` completes.

        Raises EventTooLarge.
        """
        if self._start:
            block = self._tail + block
            self._tail = b""
            if len(block) < 3 and b"\xef\xbb\xbf".startswith(block):
                self._tail = block
                return []
            self._start = False
            block = block.removeprefix(b"\xef\xbb\xbf")
        if self._crlf or b"\r" in block:
            block = self._with_line_feeds(block)
        if self._tail:
            block = self._tail + block
        events = block.split(b"\n\n")
        self._tail = events.pop()
        if len(self._tail) > self._bytes_max:
            raise EventTooLarge(f"an event of more than {self._bytes_max} bytes")
        if not events:
            return []
        payloads = []
        for event in events:
            # The shape nearly every event has: one line, one field.
            if event.startswith(b"data: ") and b"\n" not in event:
                payloads.append(event[6:])
            elif (payload := _data(event)) is not None:
                payloads.append(payload)
        return payloads

    def end(self) -> list[bytes]:
        """What is left when the stream ends without its last blank line (some servers do)."""
        tail, self._tail = self._tail, b""
        payload = _data(tail)
        return [] if payload is None else [payload]

    def _with_line_feeds(self, block: bytes) -> bytes:
        # A CR at the end may be half of a CRLF: hold it back until the next block shows.
        if self._crlf:
            block = b"\r" + block
        self._crlf = block.endswith(b"\r")
        if self._crlf:
            block = block[:-1]
        return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes | None:
    """The data of one event: its `data` lines joined by LF; None where it has none."""
    lines = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None
