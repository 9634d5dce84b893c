"""Backends to the names that sources have for their vendors."""

from __future__ import annotations

import pytest

from gateway.domain.catalog import Backend, Kind
from gateway.price_sources import providers
from gateway.price_sources.genai import GenaiPrices
from gateway.price_sources.litellm_map import LitellmMap
from gateway.price_sources.providers import Names, names


def backend(base_url: str = "", vendor: str | None = None) -> Backend:
    return Backend(
        name="b",
        kind=Kind.MANAGED,
        wire="openai_http",
        base_url=base_url,
        models={},
        clearance=0,
        vendor=vendor,
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (backend("https://api.openai.com/v1"), Names("openai", "openai")),
        (backend("https://mine.openai.azure.com/openai/v1"), Names("azure", "azure")),
        (backend("https://API.Together.ai:443/v1"), Names("together", "together_ai")),
        (backend("https://notopenrouter.ai/api"), Names(None, None)),
        (backend(vendor="bedrock"), Names("aws", "bedrock")),
        (backend(vendor="gemini"), Names("google", "gemini")),
        (backend(vendor="a_new_one"), Names(None, "a_new_one")),
        (backend("http://127.0.0.1:8000/v1"), Names(None, None)),
    ],
)
def test_a_vendor_is_known_by_host_or_by_name(made, expected):
    assert names(made, {}) == expected


def test_what_is_said_by_hand_wins():
    assert names(backend("https://api.openai.com/v1"), {"b": "zai"}) == Names("zai", "zai")


def test_the_packages_know_every_name_in_the_table():
    known = {*providers._HOSTS.values(), *providers._VENDORS.values()}
    genai, litellm = GenaiPrices(), LitellmMap()
    assert {one.genai for one in known} - {None} <= set(genai.providers)
    assert {one.litellm for one in known} - {None} <= litellm.providers
