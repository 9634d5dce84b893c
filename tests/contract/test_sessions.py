"""Session stores: in-process and Redis keep one contract; keys bind the tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.catalog import Target
from gateway.redis_link import RedisDown, RedisLink
from gateway.runtime import ManualClock, SystemClock
from gateway.sessions import LocalSessions, RedisSessions, Sessions, session_key

A, B = Target("openai", "gpt"), Target("vllm", "meta/llama-3")
HELLO = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]}


@pytest.fixture(params=["local", "redis"])
async def sessions(request: pytest.FixtureRequest) -> AsyncIterator[Sessions]:
    if request.param == "local":
        yield LocalSessions(SystemClock())
        return
    link = RedisLink(request.getfixturevalue("redis_url"), timeout_s=1.0)
    await link.connect()
    yield RedisSessions(link)
    await link.aclose()


async def test_a_pin_is_recalled_and_replaced(sessions: Sessions) -> None:
    assert await sessions.recall("k1-replaced", 60) is None
    sessions.remember("k1-replaced", A, 60)
    assert await sessions.recall("k1-replaced", 60) == A
    sessions.remember("k1-replaced", B, 60)
    assert await sessions.recall("k1-replaced", 60) == B


async def test_use_keeps_a_pin_and_idleness_ends_it(sessions: Sessions) -> None:
    sessions.remember("k2-idle", A, 1)
    for _ in range(3):
        await asyncio.sleep(0.5)
        assert await sessions.recall("k2-idle", 1) == A
    await asyncio.sleep(1.3)
    assert await sessions.recall("k2-idle", 1) is None


async def test_local_pins_are_bounded_least_recent_first() -> None:
    sessions = LocalSessions(ManualClock(), pins_max=3)
    for name in "abcd":
        sessions.remember(name, A, 60)
    assert await sessions.recall("a", 60) is None
    assert await sessions.recall("b", 60) == A


async def test_without_redis_there_is_no_pin_and_no_wait() -> None:
    link = RedisLink("redis://127.0.0.1:1/0", timeout_s=0.1)
    with pytest.raises(RedisDown, match="127.0.0.1:1"):
        await link.connect()
    sessions = RedisSessions(link)
    sessions.remember("x", A, 60)
    assert await sessions.recall("x", 60) is None
    assert sessions.misses == 1
    await link.aclose()


def test_explicit_sources_come_before_the_prefix() -> None:
    explicit = session_key("t", "chat", {b"x-session-id": b"s1"}, HELLO)
    cache_key = session_key("t", "chat", {}, {**HELLO, "prompt_cache_key": "c"})
    prefix = session_key("t", "chat", {}, HELLO)
    assert explicit is not None
    assert cache_key is not None
    assert prefix is not None
    assert [explicit[1], cache_key[1], prefix[1]] == ["header", "prompt_cache_key", "prefix"]
    assert len({explicit[0], cache_key[0], prefix[0]}) == 3


def test_a_longer_conversation_with_the_same_start_is_the_same_session() -> None:
    more = [
        *HELLO["messages"],
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "x"},
    ]
    assert session_key("t", "chat", {}, HELLO) == session_key("t", "chat", {}, {"messages": more})


@given(st.text(max_size=80), st.text(max_size=80), st.binary(min_size=1, max_size=40))
def test_two_tenants_never_share_a_session(one: str, other: str, session: bytes) -> None:
    headers = {b"x-weighbridge-session": session}
    same = session_key(one, "chat", headers, {}) == session_key(other, "chat", headers, {})
    assert same == (one == other)


def test_what_has_no_messages_has_no_session() -> None:
    assert session_key("t", "embed", {}, {"input": "x"}) is None
    assert session_key("t", "chat", {}, {"messages": [7]}) is None
