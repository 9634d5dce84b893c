"""An address that takes events by POST: where it is, how they are signed, one try of sending one.

Signed as the Standard Webhooks specification 1.0 has it, for which libraries exist in many
languages: HMAC-SHA256 over `id.timestamp.body`. Owns the two settings that name addresses and key.
Knows nothing of what is sent, nor of trying again (`alerts`).

INVARIANT: an address is a secret: it is known by its host in every message.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from gateway.settings import SecretMissing, SettingsError, secret

if TYPE_CHECKING:
    import httpx

TRY_S_MAX = 10.0
ANSWER_BYTES_MAX = 500  # of what an address says
WEBHOOK, SECRET = "WEIGHBRIDGE_ALERT_WEBHOOK", "WEIGHBRIDGE_ALERT_SECRET"


class Webhook(NamedTuple):
    """An address that takes events. Only `host` may be shown."""

    url: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def here(self) -> bool:
        """On this machine: no proxy in between, and no need of TLS."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Addresses(NamedTuple):
    """Who is told, and the key that events are signed with; None: they are not."""

    webhooks: tuple[Webhook, ...] = ()
    key: bytes | None = None


def addresses(references: str, secret_reference: str) -> Addresses:
    """Resolve the two settings. Raises SettingsError."""
    found = []
    for reference in references.replace(",", " ").split():
        webhook = Webhook(_resolved(WEBHOOK, reference))
        try:
            scheme = urlsplit(webhook.url).scheme
            fine = bool(webhook.host) and (scheme == "https" or (scheme == "http" and webhook.here))
        except ValueError:
            fine = False
        if not fine:
            raise SettingsError(
                f"{WEBHOOK}: {reference}: must hold an https:// address, or http:// on this machine"
            )
        found.append(webhook)
    return Addresses(tuple(found), _key(secret_reference) if secret_reference else None)


def _key(reference: str) -> bytes:
    try:
        key = base64.b64decode(_resolved(SECRET, reference).removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not 24 <= len(key) <= 64:
        raise SettingsError(
            f"{SECRET}: {reference}: must hold whsec_ and 24 to 64 bytes in base64; "
            'one is made by: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


def _resolved(setting: str, reference: str) -> str:
    try:
        return secret(reference)
    except SecretMissing as error:
        raise SettingsError(f"{setting}: {error}") from error


def signature(key: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: version 1, HMAC-SHA256 in base64."""
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class Answer(NamedTuple):
    """What an address said. `status` 0: nothing, and `text` is why."""

    status: int
    text: str
    seconds: float
    retry_after_s: float = 0.0

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def may_pass(self) -> bool:
        """Worth another try."""
        return self.status in {0, 408, 429} or self.status >= 500


def client_to(webhook: Webhook) -> httpx.AsyncClient:
    """A client for `post`. Takes a tenth of a second (imports, certificates): in a thread."""
    import httpx

    return httpx.AsyncClient(timeout=TRY_S_MAX, trust_env=not webhook.here)


async def post(
    client: httpx.AsyncClient,
    webhook: Webhook,
    key: bytes | None,
    found: dict[str, Any],
    at_s: float,
) -> Answer:
    """One try. `at_s` is when, for the signature: a try is signed anew. Never raises."""
    import httpx

    body = orjson.dumps(found)
    headers = {
        "content-type": "application/json",
        "user-agent": "weighbridge",
        "webhook-id": found["id"],
        "webhook-timestamp": str(int(at_s)),
    }
    if key is not None:
        headers["webhook-signature"] = signature(key, found["id"], int(at_s), body)
    started = time.monotonic()
    status, text, wait_s = 0, "", 0.0
    try:
        async with (
            asyncio.timeout(TRY_S_MAX),
            client.stream("POST", webhook.url, content=body, headers=headers) as reply,
        ):
            status = reply.status_code
            after = reply.headers.get("retry-after", "")
            wait_s = float(after) if after.isdecimal() and after.isascii() else 0.0
            said = b""
            async for piece in reply.aiter_bytes(ANSWER_BYTES_MAX):
                said += piece
                if len(said) >= ANSWER_BYTES_MAX:
                    break
            text = said[:ANSWER_BYTES_MAX].decode("utf-8", "replace").strip()
    except TimeoutError:
        text = text or f"no answer within {TRY_S_MAX:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        if not status:  # else what matters was said
            text = f"{type(error).__name__}: {error}".replace(webhook.url, webhook.host)
    return Answer(status, text, time.monotonic() - started, wait_s)
