"""What the ledger's rows name and no row holds: the rates of an id, and who a backend is.

Rates come from what was stated of prices, else from the price files of the policy versions, the
newest first; backends from the newest version that has them. Texts are read when something in them
is asked for and only then: a long history costs nothing where statements suffice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from gateway.domain.catalog import Backend, Target
from gateway.domain.errors import NotFound
from gateway.domain.money import Rates
from gateway.ledger import known_prices
from gateway.ledger.prices import PriceBook, load_prices
from gateway.ledger.store import Store
from gateway.ledger.versions import Versions
from gateway.policy.catalog import load_catalog
from gateway.policy.source import ConfigErrors

VERSIONS_MAX = 500
_CATALOG, _PRICES = "catalog.yaml", "prices/"  # as `bundle` lays them out


class Kept:
    """One report's look into the past. `files` are texts to go by where no version is kept."""

    def __init__(self, store: Store, files: Mapping[str, str] | None = None) -> None:
        self._store = store
        self._files = files or {}
        self._rates: dict[tuple[Target, str], Rates] = {}
        self._backends: dict[str, Backend] = {}
        self._missing: set[str | tuple[Target, str]] = set()
        self._stated = False
        self._digests: list[str] | None = None

    async def rates(self, target: Target, rates_id: str) -> Rates | None:
        """The rates of that id, None where nothing kept names them. Raises StoreUnavailable."""
        key = target, rates_id
        if not self._stated:
            self._stated = True
            for one in await known_prices.statements(self._store):
                if one.terms is not None:
                    self._learn(_book(one.terms))
        while key not in self._rates and key not in self._missing:
            if not await self._older():
                self._missing.add(key)
        return self._rates.get(key)

    async def backend(self, name: str) -> Backend | None:
        """The backend as it was last known, None where no version has it."""
        while name not in self._backends and name not in self._missing:
            if not await self._older():
                self._missing.add(name)
        return self._backends.get(name)

    def _learn(self, book: PriceBook) -> None:
        for target, rows in book.rows.items():
            for row in rows:
                for rates in row.every():
                    self._rates.setdefault((target, rates.id), rates)

    async def _older(self) -> bool:
        """Read one more version's texts, at last those we were given; False where none is left."""
        versions = Versions(self._store)
        if self._digests is None:
            history = await versions.history(limit=VERSIONS_MAX)
            self._digests = list(dict.fromkeys(version.digest for version in history))[::-1]
        if self._digests:
            with contextlib.suppress(NotFound):
                self._read(await versions.files(self._digests.pop()))
            return True
        files, self._files = self._files, {}
        self._read(files)
        return bool(files)

    def _read(self, files: Mapping[str, str]) -> None:
        """What today's program can no longer read is passed over."""
        with contextlib.suppress(ConfigErrors):
            self._learn(load_prices([f for f in files.items() if f[0].startswith(_PRICES)]))
        with contextlib.suppress(ConfigErrors, KeyError):
            text = files[_CATALOG]
            catalog = load_catalog(text, source=_CATALOG, secret_present=lambda _: True)
            for name, backend in catalog.backends.items():
                self._backends.setdefault(name, backend)


def _book(terms: Mapping[str, object]) -> PriceBook:
    try:
        return PriceBook.of([terms])
    except ValueError:  # of a version that today's program no longer reads
        return PriceBook({})
