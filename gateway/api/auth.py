"""From a header to a Caller, and from a Caller to what it may do.

Auth hangs on the credential and on the endpoint object that serves the request, never on a string
the client can shape (host, path). Messages never say whether a key exists.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Protocol

from gateway.domain.caller import Caller
from gateway.domain.catalog import Catalog
from gateway.domain.errors import Forbidden, Unauthenticated, UnknownAlias
from gateway.domain.request import Endpoint

TOKEN_BYTES_MAX = 256


class KeyStore(Protocol):
    """`ledger.keys`: what was verified lately, and how to verify the rest."""

    def cached(self, token: str) -> Caller | None: ...

    async def verify(self, token: str) -> Caller: ...


class Keys:
    """The credential of a request, whichever of the two headers the SDK uses."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    @staticmethod
    def token(headers: Mapping[bytes, bytes]) -> str:
        """The bearer token (OpenAI) or `x-api-key` (Anthropic). Raises Unauthenticated."""
        value = headers.get(b"authorization")
        if value is not None and value[:7].lower() == b"bearer ":
            value = value[7:].strip()
        elif value is None:
            value = headers.get(b"x-api-key")
        else:
            value = None
        if not value:
            raise Unauthenticated(
                "No API key. Send it as `Authorization: Bearer <key>`; "
                "`weighbridge keys create` makes one."
            )
        if len(value) > TOKEN_BYTES_MAX or not value.isascii():
            raise Unauthenticated("The API key is not valid.")
        return value.decode("ascii")

    def known(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """The caller, if its key was verified lately; no I/O."""
        return self._store.cached(self.token(headers))

    async def verify(self, headers: Mapping[bytes, bytes]) -> Caller:
        """The caller, from the store. Raises Unauthenticated or StoreUnavailable."""
        return await self._store.verify(self.token(headers))


def check_scopes(caller: Caller, alias: str, endpoint: Endpoint, catalog: Catalog) -> None:
    """Raises Forbidden for an endpoint out of scope, UnknownAlias for an alias that is not there.

    An alias out of scope is reported as unknown, and never suggested: a key learns nothing of
    what it may not use.
    """
    if caller.endpoints is not None and endpoint not in caller.endpoints:
        raise Forbidden(f"This key may not call /v1/{endpoint.value}.")
    if alias not in catalog.aliases or (caller.aliases is not None and alias not in caller.aliases):
        visible = visible_aliases(caller, catalog)
        near = difflib.get_close_matches(alias, visible, n=3, cutoff=0.5)
        names = ", ".join(repr(name) for name in near)
        hint = f" Did you mean {names}?" if near else " GET /v1/models lists what there is."
        raise UnknownAlias(f"The model {alias!r} does not exist.{hint}", param="model")


def visible_aliases(caller: Caller, catalog: Catalog) -> frozenset[str]:
    """The aliases a key may use, of those there are."""
    everything = catalog.aliases.keys()
    return frozenset(everything if caller.aliases is None else everything & caller.aliases)
