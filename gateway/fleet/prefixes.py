"""Which replica has which beginning of a prompt in its KV cache, as far as we can know.

An engine keeps the KV cache of prompts it has computed, in blocks, and skips what a new prompt
begins with. So the beginning is cut into blocks too, each hashed with all before it, and each
replica remembers the blocks of what it was sent, at the moment it is sent, so that the siblings of
a burst go where the first one went. What a replica then reports as cached corrects it.

No text is kept. Hashes are Python's own, keyed anew in every process: they cannot be compared with
those of another, nor turned back. So each worker learns by itself; that a conversation stays where
it was, for all workers, is the session's pin (`gateway.sessions`).

Approximate on purpose: characters for tokens, an LRU for the engine's eviction. A wrong guess costs
a prompt computed twice, never a wrong answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

BLOCK_CHARS = 256  # about 64 tokens; vLLM's own blocks have 16 on GPUs
FINE_BLOCKS = 64
COARSE_CHARS = 2048  # beyond the first 16 KiB: a longer prompt needs no finer answer
BLOCKS_MAX = 512
TOKENS_A_BLOCK = 64
REMEMBERED_MAX = 31_250  # blocks of a replica whose size is not known: two million tokens


class Chain(NamedTuple):
    """The whole blocks of a prompt's beginning, each hashed with all before it.

    `chars` is the length of the whole prompt, so that a match can be told as a share of it.
    """

    blocks: tuple[int, ...]
    chars: int

    def tokens(self, matched: int, prompt_tokens: int) -> int:
        """How many of `prompt_tokens` the first `matched` blocks are."""
        if not matched:
            return 0
        chars = min(matched, FINE_BLOCKS) * BLOCK_CHARS
        chars += max(matched - FINE_BLOCKS, 0) * COARSE_CHARS
        return prompt_tokens * chars // self.chars


NO_CHAIN = Chain((), 0)


def chain_of(document: Mapping[str, Any], alias: str, salt: str = "") -> Chain:
    """The chain of a prompt for `alias`. Who must not share a cache has another `salt`."""
    text = "\0".join(_parts(document))
    blocks: list[int] = []
    above = hash((alias, salt))
    for start, end in _cuts(len(text)):
        above = hash((above, text[start:end]))
        blocks.append(above)
    return Chain(tuple(blocks), len(text))


def _cuts(chars: int) -> Iterator[tuple[int, int]]:
    fine = min(chars, FINE_BLOCKS * BLOCK_CHARS)
    for start in range(0, fine - BLOCK_CHARS + 1, BLOCK_CHARS):
        yield start, start + BLOCK_CHARS
    last = FINE_BLOCKS * BLOCK_CHARS + (BLOCKS_MAX - FINE_BLOCKS) * COARSE_CHARS
    for start in range(fine, min(chars, last) - COARSE_CHARS + 1, COARSE_CHARS):
        yield start, start + COARSE_CHARS


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    """What a chat template makes the prompt of, in its order: tools first, then the messages."""
    if tools := document.get("tools"):
        yield orjson.dumps(tools).decode()
    messages = document.get("messages")
    if not isinstance(messages, list):
        prompt = document.get("prompt")
        yield prompt if isinstance(prompt, str) else orjson.dumps(prompt).decode()
        return
    for message in messages:
        if isinstance(message, dict):
            yield str(message.get("role"))
            content = message.get("content")
            yield content if isinstance(content, str) else orjson.dumps(content).decode()
            if calls := message.get("tool_calls"):
                yield orjson.dumps(calls).decode()


class Prefixes:
    """The blocks one replica is believed to hold, the least recently used forgotten first."""

    __slots__ = ("_blocks", "_blocks_max", "_heard", "size")

    def __init__(self, size: int = REMEMBERED_MAX) -> None:
        self.size = size
        self._blocks_max = float(size)
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._heard = False

    def match(self, chain: Chain) -> int:
        """How many blocks from the start it holds."""
        known = self._blocks
        for index, block in enumerate(chain.blocks):
            if block not in known:
                return index
        return len(chain.blocks)

    def add(self, chain: Chain) -> None:
        """It was sent this. The start is the last to be forgotten: more prompts share it."""
        known = self._blocks
        for block in reversed(chain.blocks):
            known[block] = None
            known.move_to_end(block)
        while len(known) > min(self._blocks_max, self.size):
            known.popitem(last=False)

    def heard(self, *, as_expected: bool) -> None:
        """Whether a prefix we believed in was there. Each that was not makes our memory shorter
        by a tenth, each that was a little longer again: what runs there takes room as well."""
        self._heard = self._heard or as_expected
        if as_expected:
            self._blocks_max = min(self._blocks_max * 1.01, self.size)
        elif self._heard:  # an engine that never tells says nothing by it
            self._blocks_max = max(self._blocks_max * 0.9, FINE_BLOCKS)

    def clear(self) -> None:
        """Its cache is gone: it was started anew, or slept."""
        self._blocks.clear()
