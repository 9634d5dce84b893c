"""Which failures are ours to explain: an exception to one sentence for a person."""

from __future__ import annotations

import sys

CANNOT_START = 2


def sentence(error: Exception) -> str | None:
    """What to print for `error`; None where it is a bug and deserves its traceback.

    Looked up by name in what is loaded, so that explaining an error imports nothing.
    """
    explained = (
        ("gateway.settings", "SettingsError"),
        ("gateway.settings", "SecretMissing"),
        ("gateway.app", "StartupError"),
        ("gateway.policy.source", "ConfigErrors"),
        ("gateway.ledger.store", "StoreUnreachable"),
        ("gateway.domain.errors", "StoreUnavailable"),
        ("gateway.demo.llama_server", "EngineUnavailable"),
    )
    for module, name in explained:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return str(error)
    return None
