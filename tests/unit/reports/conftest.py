"""An empty ledger on each database, for all tests of reports."""

from __future__ import annotations

import pytest

from gateway.ledger.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    made = await Store.connect(url)
    yield made
    await made.close()
