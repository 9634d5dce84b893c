"""Who is behind a backend, as an invoice would name them: a table of addresses. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from gateway.domain.catalog import Backend, Kind

# What a host ends in -> the company's name.
_HOSTS: Final = {
    "openai.com": "OpenAI",
    "openai.azure.com": "Microsoft",
    "azure.com": "Microsoft",
    "anthropic.com": "Anthropic",
    "googleapis.com": "Google",
    "amazonaws.com": "Amazon Web Services",
    "fireworks.ai": "Fireworks AI",
    "baseten.co": "Baseten",
    "together.ai": "Together AI",
    "together.xyz": "Together AI",
    "simplismart.live": "Simplismart",
    "mistral.ai": "Mistral AI",
    "deepseek.com": "DeepSeek",
    "deepinfra.com": "DeepInfra",
    "groq.com": "Groq",
    "cohere.com": "Cohere",
    "x.ai": "xAI",
    "nebius.com": "Nebius",
    "openrouter.ai": "OpenRouter",
}
# As litellm calls them, where the address is the vendor's own.
_VENDORS: Final = {
    "openai": "OpenAI",
    "azure": "Microsoft",
    "anthropic": "Anthropic",
    "gemini": "Google",
    "vertex_ai": "Google",
    "bedrock": "Amazon Web Services",
    "mistral": "Mistral AI",
    "deepseek": "DeepSeek",
    "fireworks_ai": "Fireworks AI",
    "together_ai": "Together AI",
    "baseten": "Baseten",
    "groq": "Groq",
    "cohere": "Cohere",
    "xai": "xAI",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`name` sells and bills it; `kind` is None where no catalog kept knows the backend."""

    name: str
    kind: Kind | None
    region: str | None = None
    simulated: bool = False


def provider(name: str, backend: Backend | None, *, organization: str) -> Provider:
    """Who is behind a backend; `organization` is us, who run what is self-hosted."""
    if backend is None:
        return Provider(name=_VENDORS.get(name, name), kind=None)
    return Provider(
        name=_company(backend, organization),
        kind=backend.kind,
        region=backend.data.region,
        simulated=backend.simulated,
    )


def _company(backend: Backend, organization: str) -> str:
    if backend.simulated:
        return f"{backend.name} (simulated)"
    if backend.kind is Kind.SELF_HOSTED:
        return organization
    host = urlsplit(backend.base_url).hostname or ""
    parts = host.split(".")
    for start in range(len(parts)):
        if (found := _HOSTS.get(".".join(parts[start:]))) is not None:
            return found
    return _VENDORS.get(backend.vendor or backend.name, backend.name)
