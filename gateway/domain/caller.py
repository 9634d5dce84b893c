"""Who is calling: what a verified key may do. No secret in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.domain.request import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The scopes of one key.

    `aliases`/`endpoints` of None mean all. `privacy_floor`: no request of this key is classed
    lower; `privacy_ceiling`: none may be classed higher (ranks of the catalog's classes; a ceiling
    of None means no bound). `debug` lets backend names out in answer headers.
    """

    key_id: str
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: frozenset[str] | None = None
    endpoints: frozenset[Endpoint] | None = None
    privacy_floor: str | None = None
    privacy_ceiling: str | None = None
    admin: bool = False
    debug: bool = True
