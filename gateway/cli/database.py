"""The database of this instance, for commands that read the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.ledger.store import Store
    from gateway.settings import Settings


@asynccontextmanager
async def ledger(settings: Settings) -> AsyncIterator[Store]:
    """The database of this instance. Raises StoreUnreachable."""
    from gateway.ledger.store import Store

    settings.home.mkdir(parents=True, exist_ok=True)
    store = await Store.connect(settings.ledger_url)
    try:
        yield store
    finally:
        await store.close()
