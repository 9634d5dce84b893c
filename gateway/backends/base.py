"""What a wire promises to dispatch. A wire speaks one protocol; it decides nothing.

INVARIANTS, held by the contract suite in `tests/contract/test_wires.py` for every wire:

- `open` sends nothing, and connects to nothing, unless the catalog's entry of the very backend it
  would connect to is cleared for the request (`require_clearance`): the second privacy check, which
  shares no line with the one in the decision. Retries, hedges and copies all come through here.
- `open` returns only after the backend answered with success and sent its first byte of body;
  before that every failure is raised as an `UpstreamError` with a true status.
- What was connected for one address, secret or header serves no other (`place`): after a reload a
  backend's name may mean another place.
- A wire raises `UpstreamError`s and, at `open`, ClearanceViolated. It never retries, never follows
  a redirect, never sends a secret to another origin than the backend's own.
- Pieces carry bytes in the client's shape (OpenAI's wire), ready to send: whole SSE events when
  `streamed`, the whole JSON body in one piece when not. The model's name in them is the alias.
  The closing `data: [DONE]` is never in them: it may go out only after the ledger has the row, so
  the api layer writes it.
- Usage is always asked for; it comes as `Piece.usage`, each token in one meter (`usage`), and is
  stripped from the bytes when the client did not ask.
- `close` may be called at any time, in any state, more than once, without awaiting; it ends the
  upstream call at once. After the last piece it costs nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.catalog import Backend, Model
from gateway.domain.errors import ClearanceViolated
from gateway.domain.request import ModelRequest, Usage

log = logging.getLogger("weighbridge")


UNSTATED = 1 << 30  # a rank that no backend is cleared for


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One attempt, as a wire needs to know it. Times in seconds, for this attempt only.

    `session` is an opaque id of the conversation, forwarded to self-hosted routers. `privacy` is
    the request's class as a rank; who forgets it is not sent anywhere.
    """

    request_id: str
    request: ModelRequest
    backend: Backend
    model: Model
    connect_s_max: float
    first_chunk_s_max: float
    idle_s_max: float
    session: str | None = None
    privacy: int = UNSTATED


def require_clearance(call: Call) -> None:
    """Raises ClearanceViolated unless the catalog lets this backend receive this request."""
    allowed = call.backend.clearance
    if 0 <= call.privacy <= allowed:
        return
    log.critical(
        "clearance violated: %s of privacy rank %d was to be sent to %s, cleared up to rank %d; "
        "nothing was sent",
        call.request_id,
        call.privacy,
        call.backend.name,
        allowed,
    )
    raise ClearanceViolated(
        "The gateway stopped this request before it left: its data may not go where it was routed.",
        detail=f"{call.backend.name}: rank {call.privacy} over {allowed}",
    )


def place(backend: Backend) -> tuple[object, ...]:
    """All that a connection to a backend depends on; only equal places may share connections."""
    return (
        backend.name,
        backend.base_url,
        backend.secret,
        backend.kind,
        backend.auth_header,
        backend.headers,
        backend.query,
        backend.vendor,
        backend.limits.concurrency_max,
    )


@dataclass(slots=True)
class Piece:
    """Bytes for the client, and what they mean.

    `content`: holds something the model said (text, tool call, refusal, reasoning), so the
    request is committed to this backend. `content_chunks`/`content_chars`: how many content
    events and characters, for TPOT and for a flagged estimate when usage never comes.
    `finished`: a finish_reason was seen (or the body was whole). `usage`: all that was reported so
    far; before the end it is a part, marked `reported=False`, unless the backend vouches for it.
    """

    data: bytes
    content: bool = False
    content_chunks: int = 0
    content_chars: int = 0
    finished: bool = False
    usage: Usage | None = None


class Reply(Protocol):
    """An answer on its way."""

    streamed: bool

    async def next(self) -> Piece | None:
        """The next piece (several events that came together are one), None after the last.

        Raises UpstreamTimeout when the backend is silent for `Call.idle_s_max` (comments and
        keep-alives do not count as speech), UpstreamBroken on garbage, an error event or an end
        without `[DONE]` or finish_reason.
        """
        ...

    def close(self) -> None:
        """End the upstream call now, if it still runs; a waiting `next` raises UpstreamError."""
        ...


class Wire(Protocol):
    """One protocol, over all backends that speak it."""

    async def open(self, call: Call) -> Reply:
        """Send the request; return when the first body byte of a success is there."""
        ...

    async def probe(self, backend: Backend) -> None:
        """A free health check (never a paid call). Raises UpstreamError when it fails."""
        ...

    async def warm(self) -> None:
        """Load what is slow to load, so that no request waits for it."""
        ...

    async def renew(self) -> None:
        """Connect anew from here on: an address, a bound or a secret may have changed.

        Calls under way end where they are.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
