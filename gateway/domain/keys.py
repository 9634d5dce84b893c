"""Keys of callers: their form and what a stored one allows. No secret is kept in here.

    wb_<environment>_<public id, 12>_<secret, 43>_<checksum, 6>      wb_live_0h3k...

`public id` finds the row, `secret` is 256 random bits, `checksum` lets a typing error or a scanner
be told offline from a key. The store holds `digest(pepper, secret)`: without the pepper, which is
not in the database, a dump of it verifies nothing. HMAC and no slow hash: the secret is random, so
there is nothing to guess, and a slow hash would be a lever for overload.

Randomness, pepper and time are arguments.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.domain.caller import Caller
from gateway.domain.request import Endpoint

TOKEN_CHARS_MAX = 80
ID_BYTES = 8
SECRET_BYTES = 32

_TOKEN = re.compile(
    r"wb_(?P<environment>[a-z]{2,8})_(?P<id>[0-9a-hjkmnp-tv-z]{12})"
    r"_(?P<secret>[A-Za-z0-9_-]{43})_(?P<checksum>[0-9A-Za-z]{6})"
)
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Token:
    """A key as the caller sends it, taken apart. `repr` does not show the secret."""

    environment: str
    id: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        body = f"wb_{self.environment}_{self.id}_{self.secret}"
        return f"{body}_{_checksum(body)}"


def parse(text: str) -> Token | None:
    """The parts of a well-formed key with a right checksum, else None. Bounded, no I/O."""
    if len(text) > TOKEN_CHARS_MAX or not text.isascii():
        return None
    found = _TOKEN.fullmatch(text)
    if found is None or _checksum(text[:-7]) != found["checksum"]:
        return None
    return Token(found["environment"], found["id"], found["secret"])


def mint(environment: str, *, id_entropy: bytes, secret_entropy: bytes) -> Token:
    """A new key out of `ID_BYTES` and `SECRET_BYTES` of randomness.

    Raises ValueError for another amount of it or an environment that is not 2-8 lower-case letters.
    """
    if len(id_entropy) != ID_BYTES or len(secret_entropy) != SECRET_BYTES:
        raise ValueError("wrong amount of randomness")
    number = int.from_bytes(id_entropy, "big")
    public = "".join(_BASE32[number >> shift & 31] for shift in range(0, 60, 5))
    secret = urlsafe_b64encode(secret_entropy).decode().rstrip("=")
    token = Token(environment, public, secret)
    if parse(str(token)) != token:
        raise ValueError(f"{environment!r} is not an environment: 2 to 8 lower-case letters")
    return token


def digest(pepper: bytes, secret: str) -> bytes:
    """What is stored in place of the secret."""
    return hmac.digest(pepper, secret.encode("ascii"), hashlib.sha256)


def matches(pepper: bytes, secret: str, stored: bytes) -> bool:
    """Whether this is the secret of that digest, in time that tells nothing."""
    return hmac.compare_digest(digest(pepper, secret), stored)


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode("ascii"))
    out = []
    for _ in range(6):
        number, rest = divmod(number, 62)
        out.append(_BASE62[rest])
    return "".join(reversed(out))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scopes:
    """What a key may do; None means no bound. The meaning of each is `Caller`'s."""

    name: str
    aliases: frozenset[str] | None = None
    endpoints: frozenset[Endpoint] | None = None
    privacy_floor: str | None = None
    privacy_ceiling: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    admin: bool = False
    debug: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A stored key without its digest. Times in microseconds since the epoch."""

    id: str
    environment: str
    scopes: Scopes
    created_at_us: int
    expires_at_us: int | None = None
    revoked_at_us: int | None = None
    replaced_by: str | None = None

    def alive(self, now_us: int) -> bool:
        """Neither revoked nor past its end."""
        return self.revoked_at_us is None and (
            self.expires_at_us is None or now_us < self.expires_at_us
        )

    def caller(self) -> Caller:
        """Who a request with this key comes from."""
        scopes = self.scopes
        return Caller(
            key_id=self.id,
            name=scopes.name,
            tags=scopes.tags,
            aliases=scopes.aliases,
            endpoints=scopes.endpoints,
            privacy_floor=scopes.privacy_floor,
            privacy_ceiling=scopes.privacy_ceiling,
            admin=scopes.admin,
            debug=scopes.debug,
        )
