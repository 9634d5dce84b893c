"""Callers' keys: made, listed, rotated, revoked, and verified at the door.

Verifying is one look-up by the whole key's hash for a key that was seen lately, else one by its
public id in the store. Owns the pepper and the cache; the form of a key is `domain.keys`.

INVARIANTS

- The cache is keyed by the SHA-256 of the whole key, never by a part of it.
- A revocation is seen by every worker within `FRESH_S`: no answer is older, unless the store is
  down. Then a key verified at most `stale_s_max` ago goes on, an unknown one is StoreUnavailable.
- Every refusal says the same, whatever its cause; the cause is in `detail`, for the log.
- Secrets exist in the answer of `create` and `rotate` and nowhere else. The pepper is not in the
  database.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import tempfile
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gateway.domain.caller import Caller
from gateway.domain.errors import NotFound, StoreUnavailable, Unauthenticated
from gateway.domain.keys import (
    ID_BYTES,
    SECRET_BYTES,
    TOKEN_CHARS_MAX,
    Key,
    Scopes,
    Token,
    digest,
    matches,
    mint,
    parse,
)
from gateway.domain.request import Endpoint
from gateway.ledger.store import Store
from gateway.runtime import Clock, SystemClock
from gateway.settings import SecretMissing, secret

FRESH_S = 30.0
REFRESH_S = 5.0  # before `FRESH_S` is over, one request asks again while the others go on
REFUSED_S = 5.0
STALE_S_MAX = 600.0
ENTRIES_MAX = 10_000
VERIFY_S_MAX = 3.0
PEPPER_CHARS_MIN = 32

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Pepper:
    """A pepper and the name it has in the database: a fingerprint, so that no one numbers them."""

    value: bytes
    id: str

    @classmethod
    def of(cls, text: str) -> Pepper:
        """Raises SecretMissing where it is too short to be random."""
        if len(text) < PEPPER_CHARS_MIN:
            raise SecretMissing(
                f"the key pepper has {len(text)} characters, at least {PEPPER_CHARS_MIN} are needed"
            )
        value = text.encode()
        return cls(value, hmac.digest(value, b"weighbridge pepper", hashlib.sha256)[:6].hex())


def load_peppers(setting: str, home: Path) -> tuple[Pepper, ...]:
    """The pepper in force and, after a comma, earlier ones whose keys still count.

    Each is `env:NAME`, `file:/path` or the secret itself. With no setting: HOME/pepper, made at
    first use, readable by its owner only. Raises SecretMissing.
    """
    if not setting:
        return (Pepper.of(_own_pepper(home / "pepper")),)
    parts = [part.strip() for part in setting.split(",") if part.strip()]
    return tuple(Pepper.of(secret(p) if p.startswith(("env:", "file:")) else p) for p in parts)


def _own_pepper(path: Path) -> str:
    """Read it; the first of several starts makes it, whole before it has its name."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix=".pepper-")  # made 0600
        with os.fdopen(fd, "w") as file:
            file.write(urlsafe_b64encode(os.urandom(SECRET_BYTES)).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            Path(draft).unlink()
    if path.stat().st_mode & 0o077:
        raise SecretMissing(f"{path} is readable by others: chmod 600 {path}")
    return path.read_text(encoding="ascii").strip()


@dataclass(slots=True)
class _Verified:
    caller: Caller
    verified_at: float
    refresh_at: float
    fresh_until: float
    ends_at_us: int | None


class KeyStore:
    """Keys over a store. `cached` on the way of every request, the rest seldom."""

    def __init__(
        self,
        store: Store,
        *,
        pepper: str,
        home: Path,
        clock: Clock | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        stale_s_max: float = STALE_S_MAX,
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        self._store = store
        self._peppers = load_peppers(pepper, home)
        self._clock = clock or SystemClock()
        self._entropy = entropy
        self._stale_s_max = stale_s_max
        self._entries_max = entries_max
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    # --- at the door ------------------------------------------------------------------------

    def cached(self, token: str) -> Caller | None:
        """The caller if this key was verified lately, else None: then `verify` it. No I/O."""
        name = _name(token)
        entry = None if name is None else self._verified.get(name)
        if name is None or entry is None:
            return None
        now = self._clock.monotonic()
        if now >= entry.fresh_until or self._over(entry):
            return None
        if now >= entry.refresh_at:
            entry.refresh_at = now + REFRESH_S  # this request asks, the others need not wait
            return None
        self._verified.move_to_end(name)
        return entry.caller

    async def verify(self, token: str) -> Caller:
        """The caller behind this key. Raises Unauthenticated or StoreUnavailable."""
        name, parts = _name(token), parse(token)
        if name is None or parts is None:
            raise _unauthenticated("malformed")
        if self._clock.monotonic() < self._refused.get(name, 0.0):
            raise _unauthenticated("refused lately")
        try:
            async with asyncio.timeout(VERIFY_S_MAX):
                row = await self._store.key(parts.id)
        except (StoreUnavailable, TimeoutError) as error:
            return self._without_store(name, error)
        key, why = self._check(parts, row)
        if key is None:
            self._verified.pop(name, None)
            _put(self._refused, name, self._clock.monotonic() + REFUSED_S, self._entries_max)
            raise _unauthenticated(f"{parts.id}: {why}")
        now = self._clock.monotonic()
        entry = _Verified(
            key.caller(), now, now + FRESH_S - REFRESH_S, now + FRESH_S, key.expires_at_us
        )
        _put(self._verified, name, entry, self._entries_max)
        await self._season(parts, row)
        return entry.caller

    def _check(self, token: Token, row: Mapping[str, Any] | None) -> tuple[Key | None, str]:
        stored, pepper_id = (row["digest"], row["pepper"]) if row else (b"", "")
        pepper = next((p for p in self._peppers if p.id == pepper_id), None)
        right = matches((pepper or self._peppers[0]).value, token.secret, stored)
        if row is None:
            return None, "unknown"
        if pepper is None:
            return None, "its pepper is not here"
        if not right or row["environment"] != token.environment:
            return None, "wrong secret"
        key = _key(row)
        if not key.alive(self._now_us()):
            return None, "revoked" if key.revoked_at_us is not None else "expired"
        return key, ""

    def _without_store(self, name: bytes, error: Exception) -> Caller:
        """The store is down: who was verified not too long ago goes on."""
        entry = self._verified.get(name)
        now = self._clock.monotonic()
        until = entry.verified_at + self._stale_s_max if entry else 0.0
        if entry is None or now >= until or self._over(entry):
            detail = getattr(error, "detail", "") or repr(error)
            raise StoreUnavailable("API keys cannot be checked now.", detail=detail) from error
        entry.refresh_at = now + REFRESH_S
        entry.fresh_until = min(now + 2 * REFRESH_S, until)
        return entry.caller

    def _over(self, entry: _Verified) -> bool:
        return entry.ends_at_us is not None and self._now_us() >= entry.ends_at_us

    async def _season(self, token: Token, row: Mapping[str, Any] | None) -> None:
        """Move a key under the pepper in force, now that its secret is at hand."""
        pepper = self._peppers[0]
        if row is None or row["pepper"] == pepper.id:
            return
        fresh = digest(pepper.value, token.secret)
        with contextlib.suppress(StoreUnavailable):  # else next time
            await self._store.change_key(token.id, digest=fresh, pepper=pepper.id)

    def _now_us(self) -> int:
        return int(self._clock.wall() * 1e6)

    # --- for operators ------------------------------------------------------------------------

    async def create(
        self,
        scopes: Scopes,
        *,
        environment: str = "live",
        expires_at_us: int | None = None,
        only_the_first: bool = False,
    ) -> tuple[Key, str] | None:
        """A new key and, once, its token. None if `only_the_first` and there is one already.

        Raises ValueError for a bad environment, StoreUnavailable.
        """
        token = mint(
            environment,
            id_entropy=self._entropy(ID_BYTES),
            secret_entropy=self._entropy(SECRET_BYTES),
        )
        key = Key(
            id=token.id,
            environment=environment,
            scopes=scopes,
            created_at_us=self._now_us(),
            expires_at_us=expires_at_us,
        )
        pepper = self._peppers[0]
        row = {
            **_row(key),
            "digest": digest(pepper.value, token.secret),
            "pepper": pepper.id,
        }
        added = await self._store.add_key(row, only_the_first=only_the_first)
        return (key, str(token)) if added else None

    async def list_all(self) -> list[Key]:
        """All keys, the newest first."""
        return [_key(row) for row in await self._store.keys()]

    async def rotate(self, key_id: str, *, grace_s: float) -> tuple[Key, str]:
        """A new key with the scopes of an old one, which ends after `grace_s`.

        Raises NotFound where there is no such key, or none that still counts.
        """
        row = await self._store.key(key_id)
        old = _key(row) if row else None
        now = self._now_us()
        if old is None or not old.alive(now) or old.replaced_by is not None:
            raise NotFound(f"There is no key {key_id} to rotate.")
        made = await self.create(
            old.scopes, environment=old.environment, expires_at_us=old.expires_at_us
        )
        assert made is not None
        end = now + int(grace_s * 1e6)
        if old.expires_at_us is not None:
            end = min(end, old.expires_at_us)
        await self._store.change_key(key_id, expires_at_us=end, replaced_by=made[0].id)
        return made

    async def revoke(self, key_id: str) -> Key:
        """End a key. This worker knows at once, the others within `FRESH_S`.

        Raises NotFound. Revoking twice keeps the first date.
        """
        row = await self._store.key(key_id)
        if row is None:
            raise NotFound(f"There is no key {key_id}.")
        key = _key(row)
        if key.revoked_at_us is None:
            key = replace(key, revoked_at_us=self._now_us())
            await self._store.change_key(key_id, revoked_at_us=key.revoked_at_us)
        for name in [n for n, e in self._verified.items() if e.caller.key_id == key_id]:
            del self._verified[name]
        return key


async def ensure_first_admin(keys: KeyStore) -> str | None:
    """The token of a new admin key if there is no key at all, else None. One start wins."""
    made = await keys.create(Scopes(name="first admin", admin=True), only_the_first=True)
    return None if made is None else made[1]


def _unauthenticated(cause: str) -> Unauthenticated:
    return Unauthenticated("The API key is not valid.", detail=cause)


def _name(token: str) -> bytes | None:
    """What the cache knows a key by; None for what cannot be one."""
    if len(token) > TOKEN_CHARS_MAX or not token.isascii():
        return None
    return hashlib.sha256(token.encode("ascii")).digest()


def _put(cache: OrderedDict[bytes, _V], name: bytes, value: _V, entries_max: int) -> None:
    cache[name] = value
    cache.move_to_end(name)
    while len(cache) > entries_max:
        cache.popitem(last=False)


def _sorted(names: frozenset[Any] | None) -> list[str] | None:
    return None if names is None else sorted(str(n) for n in names)


def _row(key: Key) -> dict[str, Any]:
    scopes = key.scopes
    return {
        "id": key.id,
        "environment": key.environment,
        "name": scopes.name,
        "aliases": _sorted(scopes.aliases),
        "endpoints": _sorted(scopes.endpoints),
        "privacy_floor": scopes.privacy_floor,
        "privacy_ceiling": scopes.privacy_ceiling,
        "tags": dict(scopes.tags),
        "admin": scopes.admin,
        "debug": scopes.debug,
        "created_at_us": key.created_at_us,
        "expires_at_us": key.expires_at_us,
    }


def _key(row: Mapping[str, Any]) -> Key:
    return Key(
        id=row["id"],
        environment=row["environment"],
        scopes=Scopes(
            name=row["name"],
            aliases=None if row["aliases"] is None else frozenset(row["aliases"]),
            endpoints=None
            if row["endpoints"] is None
            else frozenset(Endpoint(e) for e in row["endpoints"]),
            privacy_floor=row["privacy_floor"],
            privacy_ceiling=row["privacy_ceiling"],
            tags=row["tags"],
            admin=row["admin"],
            debug=row["debug"],
        ),
        created_at_us=row["created_at_us"],
        expires_at_us=row["expires_at_us"],
        revoked_at_us=row["revoked_at_us"],
        replaced_by=row["replaced_by"],
    )
