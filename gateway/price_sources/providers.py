"""Whose prices hold at a backend: our backends to the names that sources have for vendors. Pure.

A backend is known by the host of its address, or by litellm's name for its vendor. What is not in
the table is said, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from gateway.domain.catalog import Backend


class Names(NamedTuple):
    """A vendor as genai-prices and as litellm call it; None where one does not know it."""

    genai: str | None
    litellm: str | None


_HOSTS: Final[Mapping[str, Names]] = {
    "anthropic.com": Names("anthropic", "anthropic"),
    "api.cerebras.ai": Names("cerebras", "cerebras"),
    "api.cohere.ai": Names("cohere", "cohere_chat"),
    "api.cohere.com": Names("cohere", "cohere_chat"),
    "api.deepinfra.com": Names(None, "deepinfra"),
    "api.deepseek.com": Names("deepseek", "deepseek"),
    "api.fireworks.ai": Names("fireworks", "fireworks_ai"),
    "api.groq.com": Names("groq", "groq"),
    "api.minimax.io": Names("minimax", "minimax"),
    "api.mistral.ai": Names("mistral", "mistral"),
    "api.moonshot.ai": Names("moonshotai", "moonshot"),
    "api.novita.ai": Names("novita", "novita"),
    "api.openai.com": Names("openai", "openai"),
    "api.perplexity.ai": Names("perplexity", "perplexity"),
    "api.together.ai": Names("together", "together_ai"),
    "api.together.xyz": Names("together", "together_ai"),
    "api.voyageai.com": Names("voyageai", "voyage"),
    "api.x.ai": Names("x-ai", "xai"),
    "api.z.ai": Names("zai", "zai"),
    "baseten.co": Names("baseten", "baseten"),
    "openai.azure.com": Names("azure", "azure"),
    "openrouter.ai": Names("openrouter", None),
    "services.ai.azure.com": Names("azure", "azure_ai"),
}
# As the catalog's `vendor` says it, which is litellm's name.
_VENDORS: Final[Mapping[str, Names]] = {
    **{names.litellm: names for names in _HOSTS.values() if names.litellm is not None},
    "bedrock": Names("aws", "bedrock"),
    "bedrock_converse": Names("aws", "bedrock"),
    "cohere": Names("cohere", "cohere_chat"),
    "gemini": Names("google", "gemini"),
    "vertex_ai": Names("google", "vertex_ai"),
}


def names(backend: Backend, override: Mapping[str, str]) -> Names:
    """What sources call the vendor of a backend; `override` is by the backend's name."""
    if backend.name in override:
        return Names(override[backend.name], override[backend.name])
    if backend.vendor:
        return _VENDORS.get(backend.vendor, Names(None, backend.vendor))
    host = urlsplit(backend.base_url).hostname or ""
    for known, found in _HOSTS.items():
        if host == known or host.endswith(f".{known}"):
            return found
    return Names(None, None)
