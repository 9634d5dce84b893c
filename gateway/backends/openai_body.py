"""What the JSON of the OpenAI wire means: speech, the model's name. For every wire.

Source: OpenAI's API reference (chat completion object and chunk, legacy completions), and the
fields that vLLM, llama.cpp and reasoning vendors add (`reasoning_content`, `reasoning`).
"""

from __future__ import annotations

from typing import Any

import orjson


class Renamer:
    """Puts the alias where the vendor wrote its model's name, in the bytes, without a second dump.

    A key cannot appear unescaped inside a JSON string, so the fragment `"model":"…"` is either
    the field itself or a field of that name deeper down; the first one is replaced, and only if
    the parsed document says that the name at the top is the one in the fragment.
    """

    __slots__ = ("_alias", "_new", "_old", "_seen")

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._seen: object = None
        self._old = b""
        self._new = b""

    def __call__(self, raw: bytes, document: dict[str, Any]) -> bytes:
        name = document.get("model")
        if name == self._alias or not isinstance(name, str):
            return raw
        if name != self._seen or self._old not in raw:
            self._learn(raw, name)
        if not self._old:  # written in a way we did not expect: say it again in full
            document["model"] = self._alias
            return orjson.dumps(document)
        return raw.replace(self._old, self._new, 1)

    def _learn(self, raw: bytes, name: str) -> None:
        self._seen, self._old = name, b""
        for gap in (b"", b" "):
            fragment = b'"model":' + gap + orjson.dumps(name)
            if fragment in raw:
                self._old = fragment
                self._new = b'"model":' + orjson.dumps(self._alias)
                return


_SPEECH = (
    "content",
    "tool_calls",
    "reasoning_content",
    "reasoning",
    "refusal",
    "function_call",
    "audio",
)


def said(delta: dict[str, Any]) -> int:
    """How many characters a delta says; 1 for what has no length of its own."""
    content = delta.get("content")
    if type(content) is str and content:
        return len(content)
    for name in _SPEECH:
        value = delta.get(name)
        if value:
            return len(value) if type(value) is str else 1
    return 0


def whole_chars(document: dict[str, Any]) -> int:
    """Characters said, for a flagged estimate where usage is missing."""
    total = 0
    for choice in document.get("choices") or ():
        if type(choice) is dict:
            message = choice.get("message")
            total += said(message) if type(message) is dict else len(choice.get("text") or "")
    return total
