"""Decision records as they are stored: JSON, deflated with a dictionary of what all of them say.

Owns the format and nothing else; pure. The first byte names the dictionary, so a better one can
come without touching what is stored: `{` is a record as plain JSON, 1 is raw deflate (RFC 1951)
with `_WORDS_1`. A dictionary that was ever written with is never changed.

Measured with `python -m tests.bench.store` over records of the shipped policies: 1,118 bytes of
JSON become 376, for 18 microseconds (docs/decisions/0014-store.md).
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import orjson

# Deflate looks backwards for what it knows, and near is cheaper than far: the most frequent last.
_WORDS_1: Final = (
    b'"at_us":17,"the request is restricted, the backend is cleared for ","azure/gpt-",'
    b'"google/gemini-","bedrock/global.anthropic.claude-","together/","baseten/zai-org/GLM-",'
    b'"fireworks/accounts/fireworks/models/","openai/gpt-","anthropic/claude-",'
    b'"vllm/openai/gpt-oss-120b",views":{"vllm":[,"fireworks":[,"baseten":[,"together":[,'
    b'"openai":[,"azure":[,"anthropic":[,"google":[,"bedrock":[,'
    b'"openai_http","privacy","the request is internal, the backend is cleared for public"],'
    b'"not_configured","switched off in the catalog (enabled: false)","capability","context",'
    b'"price_unknown","budget","unhealthy","capacity","completions","embeddings","responses",'
    b'"messages","stream":true,"needs":["tools"],"privacy":1,"output_tokens_max":"team":"public",'
    b'"internal","restricted",{"route":"default","order":[["","cheapest",0,"fallback",1,'
    b'"preferred",0,]],"excluded":[],"cut":[],"facts":{"alias":"","endpoint":"chat/completions",'
    b'"prompt_tokens":,"output_tokens":,"at_us":17,"bucket":,"tie_break":,"key_id":"",'
    b'"tags":{"team":""},"views":{'
)
_LEVEL, _WINDOW, _MEMORY = 3, -12, 5  # more of each costs time and saves two bytes in a hundred


def pack(record: bytes) -> bytes:
    """The stored form of a decision record, of its JSON."""
    deflate = zlib.compressobj(
        _LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, zlib.Z_DEFAULT_STRATEGY, _WORDS_1
    )
    return b"\x01" + deflate.compress(record) + deflate.flush()


def unpack(stored: bytes | str) -> Any:
    """The record again. Raises ValueError for a dictionary that this version does not know."""
    if isinstance(stored, str) or stored[:1] == b"{":
        return orjson.loads(stored)
    if stored[:1] != b"\x01":
        raise ValueError(f"a decision record of format {stored[0]}: a newer version wrote it")
    inflate = zlib.decompressobj(_WINDOW, _WORDS_1)
    return orjson.loads(inflate.decompress(stored[1:]) + inflate.flush())
