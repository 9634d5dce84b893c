"""One attempt: one dispatch to one backend, heard, weighed and ended exactly once.

Owns what is known of an attempt while it runs, and the row it becomes. Knows no policy: who is
attempted, and what a failure means for the request, is `dispatch`'s.

INVARIANTS
- An attempt ends once, and synchronously: neither a cancelled task nor a client that left can
  skip it, and whoever ends it second changes nothing.
- What was sent is weighed: by the backend's own usage if it came, else by what we counted,
  flagged as an estimate: all zero beside an answer is no usage. No known rates: no cost, never 0.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace

from gateway.backends.base import Call, Piece, Reply
from gateway.domain.catalog import Backend, Target
from gateway.domain.decision import Candidate
from gateway.domain.money import Rates, Unpriced
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.rating import charge
from gateway.domain.request import CHARS_PER_TOKEN, ModelRequest, Usage
from gateway.fleet.entrance import Ticket
from gateway.policy.language import Timeouts

log = logging.getLogger("weighbridge")


@dataclass(slots=True)
class Progress:
    """What was heard so far. `first` and `last` content in monotonic seconds, 0 before any."""

    usage: Usage | None = None
    chunks: int = 0
    chars: int = 0
    first: float = 0.0
    last: float = 0.0

    def note(self, piece: Piece, now: float) -> None:
        if piece.usage is not None:
            self.usage = piece.usage
        if piece.content:
            if not self.first:
                self.first = now
            self.last = now
            self.chunks += piece.content_chunks
            self.chars += piece.content_chars


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt under way. `started` and `total_until` in monotonic seconds.

    `backend` is the very replica it goes to, with the `ticket` that lets it in.
    """

    candidate: Candidate
    backend: Backend
    request: ModelRequest
    record: AttemptRecord
    started: float
    total_until: float = 0.0
    reply: Reply | None = None
    ticket: Ticket | None = None
    progress: Progress = field(default_factory=Progress)
    ended: bool = False

    @property
    def target(self) -> Target:
        return self.candidate.target

    def opened(self, reply: Reply) -> None:
        """The backend answers. Raises CancelledError where this attempt was ended meanwhile."""
        self.reply = reply
        if self.ended:
            self._close()
            raise asyncio.CancelledError

    def end(self, now: float, outcome: Outcome) -> bool:
        """Close upstream and note how it ended; False where it had ended before."""
        if self.ended:
            return False
        self.ended = True
        self._close()
        if self.ticket is not None:
            self.ticket.leave()
        self.record.outcome = outcome.value
        self.record.duration_us = us(now - self.started)
        return True

    def _close(self) -> None:
        """A wire that fails at it must not keep the rest from being settled."""
        try:
            if self.reply is not None:
                self.reply.close()
        except Exception:
            log.exception("wire %s failed to close", self.backend.wire)

    def weigh(self, rates: Rates | None) -> Usage:
        """Put usage and its cost on the record, at the rates that held when the request came."""
        usage = self.progress.usage
        chars = self.progress.chars
        if usage is not None and usage.reported and chars and usage.empty:
            said = f"nothing used, {chars} characters said"
            usage = replace(usage, reported=False, contradiction=usage.contradiction or said)
            self.progress.usage = usage
        if usage is None or not usage.reported:
            usage = estimate(self.request, self.progress)
        if usage.contradiction is not None:
            log.warning("%s: usage does not add up: %s", self.backend.name, usage.contradiction)
        record = self.record
        record.uncached_tokens, record.cached_tokens = usage.uncached, usage.cached
        record.output_tokens, record.reasoning_tokens = usage.output, usage.reasoning
        record.other_meters = {m.value: n for m, n in usage.others.items()} or None
        record.service_tier = usage.service_tier
        record.usage_source = "reported" if usage.reported else "estimated"
        if rates is not None:
            try:
                record.rates_id, record.cost_nano_usd = charge(rates, usage)
            except Unpriced as error:
                log.warning("request unpriced: %s", error)
        return usage


def add_up(record: RequestRecord, answered: AttemptRecord | None) -> None:
    """The request's figures from its attempts: tokens of the answer, cost of all of them.

    With no answer the tokens are those of the last attempt that was weighed. `priced` only where
    every weighed attempt is; a cost that is not whole is never 0.
    """
    weighed = [a for a in record.attempts if a.usage_source != "none"]
    if not weighed:
        return
    answered = answered or weighed[-1]
    record.uncached_tokens, record.cached_tokens = answered.uncached_tokens, answered.cached_tokens
    record.output_tokens = answered.output_tokens
    record.reasoning_tokens = answered.reasoning_tokens
    record.other_meters = answered.other_meters
    record.usage_source = answered.usage_source
    costs = [a.cost_nano_usd for a in weighed if a.cost_nano_usd is not None]
    record.priced = len(costs) == len(weighed)
    record.cost_nano_usd = sum(costs) if record.priced else sum(costs) or None


def call(
    attempt: Attempt, *, request_id: str, privacy: int, session: str | None, timeouts: Timeouts
) -> Call:
    """What the wire needs to know. The tighter of the backend's and the route's bounds counts.

    A long prompt stretches the wait for the first chunk. No wait is longer than the whole may take.
    """
    backend, request = attempt.backend, attempt.request
    limits = backend.limits
    thousands = request.prompt_tokens / 1000
    first_ms = limits.first_chunk_ms_max + limits.first_chunk_ms_per_1k_prompt_tokens * thousands
    if timeouts.first_token_ms is not None:
        stretch = timeouts.first_token_ms_per_1k_prompt_tokens or 0
        first_ms = min(first_ms, timeouts.first_token_ms + stretch * thousands)
    total_s = total_s_max(backend, timeouts)
    return Call(
        request_id=request_id,
        request=request,
        backend=backend,
        model=backend.models[attempt.target.model],
        privacy=privacy,
        connect_s_max=min(total_s, _tighter(limits.connect_ms_max, timeouts.connect_ms)),
        first_chunk_s_max=min(total_s, first_ms / 1000),
        idle_s_max=min(total_s, _tighter(limits.idle_ms_max, timeouts.idle_ms)),
        session=session,
    )


def total_s_max(backend: Backend, timeouts: Timeouts) -> float:
    """How long the whole attempt may take, in seconds."""
    return _tighter(backend.limits.total_ms_max, timeouts.total_ms)


def _tighter(backend_ms: int, route_ms: int | None) -> float:
    return (backend_ms if route_ms is None else min(backend_ms, route_ms)) / 1000


def estimate(request: ModelRequest, progress: Progress) -> Usage:
    """Tokens counted by us where the backend reported none: flagged, never 0 for something said.

    What it reported before it was cut off counts as reported, its prompt above all.

    A stream brings about one token a chunk; where chunks are plainly larger (over two tokens'
    worth of characters each), and for a whole answer, the characters count.
    """
    by_chars = -(-progress.chars // CHARS_PER_TOKEN)
    output = progress.chunks if by_chars <= 2 * progress.chunks else by_chars
    known = progress.usage
    if known is None:
        return Usage(request.prompt_tokens, 0, output, reported=False)
    if not known.prompt:
        known = replace(known, uncached=request.prompt_tokens)
    return replace(known, output=max(known.output, output), reported=False)


def us(seconds: float) -> int:
    """Whole microseconds."""
    return round(seconds * 1e6)
