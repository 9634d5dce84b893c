"""Session affinity: where the KV cache of a conversation is.

A pin is a preference, not a right: `decide` may choose the pinned target only among those that
are eligible anyway, so a pin never revives an excluded backend. It is written after success,
refreshed on use and forgotten when idle. If the store is down, affinity is lost and requests are
served all the same (counted in `misses`).

The key binds the tenant: the same session id under another key is another session, and no text
of the conversation is kept, only a keyed hash. Order of sources, most explicit first:

1. `x-weighbridge-session`, then `x-session-id`, `x-session-token` and what coding agents send;
2. `prompt_cache_key` of the body;
3. the first system and first user message: the prefix that a KV cache is about.

A per-request id is never used: it would defeat stickiness and grow the store without bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Protocol

import orjson

from gateway.domain.catalog import Target
from gateway.redis_link import RedisDown, RedisLink, RedisReplyError
from gateway.runtime import Clock

SESSION_HEADERS = (
    b"x-weighbridge-session",
    b"x-session-id",
    b"x-session-affinity",
    b"x-claude-code-session-id",
    b"session_id",
    b"x-opencode-session",
)


def session_key(
    tenant: str, alias: str, headers: Mapping[bytes, bytes], document: Mapping[str, Any]
) -> tuple[str, str] | None:
    """`(key, source)` of the conversation this request belongs to, or None where it has none.

    The key is 22 hexadecimal characters of a hash keyed by tenant and alias.
    """
    for name in SESSION_HEADERS:
        value = headers.get(name)
        if value:
            return _hash(tenant, alias, b"h" + value), "header"
    cache_key = document.get("prompt_cache_key")
    if isinstance(cache_key, str) and cache_key:
        return _hash(tenant, alias, b"k" + cache_key.encode()), "prompt_cache_key"
    messages = document.get("messages")
    if not isinstance(messages, list):
        return None
    head: list[bytes] = []
    for message in messages[:4]:
        if not isinstance(message, dict):
            return None
        role, content = message.get("role"), message.get("content")
        if role in {"system", "developer", "user"}:
            head.append(content.encode() if isinstance(content, str) else orjson.dumps(content))
        if role == "user":
            return _hash(tenant, alias, b"p" + b"\0".join(head)), "prefix"
    return None


def _hash(tenant: str, alias: str, value: bytes) -> str:
    key = f"{tenant}\0{alias}".encode()
    if len(key) > 64:
        key = blake2b(key, digest_size=32).digest()
    return blake2b(value, digest_size=11, key=key).hexdigest()


class Sessions(Protocol):
    """Both stores below keep this contract (`tests/contract/test_sessions.py`)."""

    async def recall(self, key: str, idle_s: int) -> Target | None:
        """The pinned target, its idle time restarted; None where there is none or no store."""
        ...

    def remember(self, key: str, target: Target, idle_s: int) -> None:
        """Pin, without waiting."""
        ...


class LocalSessions:
    """Pins of this process, bounded: the least recently used go first."""

    def __init__(self, clock: Clock, pins_max: int = 100_000) -> None:
        self._clock = clock
        self._pins_max = pins_max
        self._pins: OrderedDict[str, tuple[Target, float]] = OrderedDict()

    async def recall(self, key: str, idle_s: int) -> Target | None:
        found = self._pins.get(key)
        if found is None:
            return None
        now = self._clock.monotonic()
        if found[1] < now:
            del self._pins[key]
            return None
        self._pins[key] = (found[0], now + idle_s)
        self._pins.move_to_end(key)
        return found[0]

    def remember(self, key: str, target: Target, idle_s: int) -> None:
        self._pins[key] = (target, self._clock.monotonic() + idle_s)
        self._pins.move_to_end(key)
        while len(self._pins) > self._pins_max:
            self._pins.popitem(last=False)


class RedisSessions:
    """Pins that every worker of every node sees. `GETEX` reads and refreshes in one command."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self.misses = 0

    async def recall(self, key: str, idle_s: int) -> Target | None:
        try:
            value = await self._link.command("GETEX", "wb:pin:" + key, "EX", idle_s)
        except (RedisDown, RedisReplyError):
            self.misses += 1
            return None
        if not isinstance(value, bytes):
            return None
        backend, _, model = value.decode().partition("/")
        return Target(backend, model)

    def remember(self, key: str, target: Target, idle_s: int) -> None:
        self._link.send("SET", "wb:pin:" + key, str(target), "EX", idle_s)
