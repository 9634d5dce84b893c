"""Policy versions: which bundle was in force from when, who put it there, and what it said.

Bundles are kept as the texts they were, by digest; versions are appended and never edited. The
highest number is in force. Whoever wants a change says which number it looked at: the primary key
lets one of several win, and the others learn from `Conflict` who did what meanwhile.

Owns the rules of that list. Does not read files or judge what they say; `in_force` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.domain.errors import NotFound
from gateway.ledger import known_prices
from gateway.ledger.prices import PriceBook
from gateway.ledger.store import Store


class Origin(StrEnum):
    """What made a version."""

    START = "start"  # the files, as they were when a gateway started
    FILE = "file"  # the files, changed while it ran
    APPLY = "apply"
    ROLLBACK = "rollback"

    @property
    def by_command(self) -> bool:
        """Somebody decided it, whatever the files of some node say."""
        return self in {Origin.APPLY, Origin.ROLLBACK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One entry of the list. `applied_at_us`: microseconds of the epoch, database clock."""

    number: int
    digest: str
    policy: str
    origin: Origin
    author: str
    note: str
    applied_at_us: int

    @property
    def label(self) -> str:
        """For people: `version 7 (balanced@0123456789ab)`."""
        return f"version {self.number} ({self.policy}@{self.digest[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to come into force. `files` is None where the bundle is known to be kept.

    `prices` is its price book, stated with it; None states nothing.
    """

    digest: str
    policy: str
    origin: Origin
    author: str
    note: str = ""
    files: Mapping[str, str] | None = None
    prices: PriceBook | None = None


class Conflict(Exception):
    """Somebody was faster. `newest` is what is in force now, None where nothing is."""

    def __init__(self, expected: int, newest: Version | None) -> None:
        self.newest = newest
        now = "there is none" if newest is None else f"{newest.label} is"
        by = "" if newest is None else f" ({newest.origin.value}, {newest.author})"
        was = f"version {expected} was" if expected else "no version was"
        super().__init__(f"{was} expected in force, but {now}{by}; look at it and try again")


class Versions:
    """The list over a store. Every method raises StoreUnavailable where the database is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def newest(self) -> Version | None:
        """What is in force, None where there never was anything."""
        return _version(await self._store.newest_version())

    async def history(self, *, limit: int = 100) -> list[Version]:
        """The newest first."""
        return [_made(row) for row in await self._store.versions(limit=limit)]

    async def get(self, number: int) -> Version:
        """Raises NotFound."""
        found = _version(await self._store.version(number))
        if found is None:
            raise NotFound(f"There is no policy version {number}.")
        return found

    async def files(self, digest: str) -> dict[str, str]:
        """The texts of a bundle. Raises NotFound."""
        found = await self._store.bundle(digest)
        if found is None:
            raise NotFound(f"There is no policy bundle {digest[:12]}.")
        return found

    async def since(self, digest: str, *, after: int) -> Version | None:
        """The newest version with this bundle above number `after`."""
        return _version(await self._store.version_of(digest, after=after))

    async def state_prices(self, version: Version, prices: PriceBook) -> None:
        """State the book of a version that came in force before there were statements."""
        await known_prices.make_sure(
            self._store, prices, author=version.author, digest=version.digest
        )

    async def put(self, change: Change, *, expected: int) -> Version:
        """Bring a change into force after version `expected` (0: after none).

        What is in force already, whoever put it there, is not put again: its version is returned.
        Raises Conflict.
        """
        newest = await self.newest()
        if newest is not None and newest.digest == change.digest:
            return newest
        if (newest.number if newest else 0) != expected:
            raise Conflict(expected, newest)
        row = {
            "number": expected + 1,
            "digest": change.digest,
            "policy": change.policy,
            "origin": change.origin.value,
            "author": change.author,
            "note": change.note,
        }
        state = None
        if change.prices is not None:
            state = known_prices.recorder(change.prices, author=change.author, digest=change.digest)
        made = await self._store.add_version(row, change.files, state)
        return await self.put(change, expected=expected) if made is None else _made(made)


async def start(versions: Versions, change: Change) -> Version:
    """What is in force once a gateway with these files has started.

    Files become a version of their own where none is, or where the newest came from files too;
    what was put by command stays, whatever the files say. Several starts settle on one.
    """
    while True:
        newest = await versions.newest()
        if newest is not None and (newest.digest == change.digest or newest.origin.by_command):
            return newest
        try:
            return await versions.put(change, expected=newest.number if newest else 0)
        except Conflict:
            continue  # another start: look again at what it has made


def _made(row: Mapping[str, Any]) -> Version:
    return Version(**{**row, "origin": Origin(row["origin"])})


def _version(row: Mapping[str, Any] | None) -> Version | None:
    return None if row is None else _made(row)
