"""The spine: the way of one request, readable from top to bottom.

    arrive -> answer: classify, recall the session, decide, attempt until the first content,
    then hand over piece by piece -> settle, exactly once, whatever happens.

INVARIANTS

- Retry and fallback happen here and nowhere else, and only before the first content chunk. After
  it the request is committed: it goes on or it says that it broke, it never switches.
- Every trip is settled once. Settling is synchronous (journal, tallies, fleet), so that neither a
  cancelled task nor a client that left can skip it.
- The journal holds the open line before an attempt starts and the final line before the last byte
  goes out: what was answered was written down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway.backends.base import Call, Piece, Reply, Wire
from gateway.domain.caller import Caller
from gateway.domain.catalog import Backend, Catalog, Model, Target
from gateway.domain.decision import Candidate, Decision, Facts, Rule, Snapshot
from gateway.domain.decision import record as decision_record
from gateway.domain.errors import (
    AllAttemptsFailed,
    ContextTooLong,
    Forbidden,
    GatewayError,
    InternalError,
    InvalidRequest,
    NoEligibleBackend,
    Overloaded,
    RequestError,
    UnknownAlias,
    UnsupportedParameter,
    UpstreamBusy,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.domain.money import Rates, cost
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.request import CHARS_PER_TOKEN, ModelRequest, Usage
from gateway.fleet.observed import Fleet
from gateway.policy.language import Policy
from gateway.runtime import Clock
from gateway.sessions import Sessions
from gateway.telemetry import Telemetry

log = logging.getLogger("weighbridge")

EXPECTED_OUTPUT_TOKENS = 256  # where the caller sets no cap and no history is kept yet


class Router(Protocol):
    """A compiled policy (`policy.engine`)."""

    def decide(self, facts: Facts, snapshot: Snapshot) -> Decision: ...


class Book(Protocol):
    """Where requests are written down (`ledger.journal`)."""

    @property
    def full(self) -> bool: ...

    def open(self, record: RequestRecord) -> None:
        """The last of `record.attempts` is about to be made. Raises StoreUnavailable."""
        ...

    def close(self, record: RequestRecord) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything a decision is made by, swapped as one. A request keeps what it arrived under."""

    catalog: Catalog
    router: Router
    rates: Mapping[Target, Rates]
    policy: Policy
    digest: str  # of the bundle
    label: str  # policy@digest, for the answer header


@dataclass(slots=True)
class Trip:
    """One request on its way. `record` is what will be known of it."""

    record: RequestRecord
    rules: Rules
    started: float
    received: float = 0.0
    caller: Caller | None = None
    request: ModelRequest | None = None
    session: str | None = None
    pinned: Target | None = None
    settled: bool = False


@dataclass(slots=True)
class _Progress:
    """What was heard of one attempt so far."""

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


@dataclass(slots=True)
class Answer:
    """A committed answer: the first piece is here, the rest comes by `next`.

    The owner reads to the end, or calls `abandon`; both settle the trip.
    """

    trip: Trip
    candidate: Candidate
    backend: Backend
    first: bytes
    streamed: bool
    _dispatch: Dispatch
    _reply: Reply
    _attempt: AttemptRecord
    _progress: _Progress
    _attempt_started: float
    _total_until: float

    @property
    def upstream_s(self) -> float:
        """Seconds from asking the backend to its first content."""
        return (self._progress.first or self._dispatch.now()) - self._attempt_started

    async def next(self) -> bytes | None:
        """The next bytes for the client; None at the end, when the ledger has the row.

        Raises UpstreamError when the stream breaks; the trip is settled then too.
        """
        try:
            piece = await self._reply.next()
            now = self._dispatch.now()
            if piece is not None and now > self._total_until:
                raise UpstreamTimeout("The backend took too long in all.")
        except UpstreamError as error:
            self._end(Outcome.FAILED_MIDSTREAM, error)
            raise
        if piece is None:
            self._end(Outcome.OK)
            return None
        self._progress.note(piece, now)
        return piece.data

    def abandon(self, error: GatewayError | None = None) -> None:
        """The client left (no `error`), or we must stop: end upstream at once and settle."""
        self._end(Outcome.CANCELLED if error is None else Outcome.FAILED_MIDSTREAM, error)

    def _end(self, outcome: Outcome, error: GatewayError | None = None) -> None:
        if not self.trip.settled:
            self._reply.close()
            self._dispatch.settle_attempt(self, outcome, error)


@dataclass(slots=True)
class RetryBudget:
    """At most a tenth of the requests may be repeated, plus one a second: no retry storm.

    (Finagle's budget: 20 % and 10/s there; ours is smaller because a call costs money.)
    """

    _tokens: float = 10.0
    _at: float = 0.0

    def arrived(self) -> None:
        self._tokens = min(self._tokens + 0.1, 100.0)

    def spend(self, now: float) -> bool:
        if self._at:
            self._tokens = min(self._tokens + (now - self._at), 100.0)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(slots=True)
class Dispatch:
    """The one shell around the pure rooms. One per worker."""

    rules: Rules
    wires: Mapping[str, Wire]
    fleet: Fleet
    sessions: Sessions
    book: Book
    telemetry: Telemetry
    clock: Clock
    new_id: Callable[[], str]
    worker: str
    in_flight_max: int
    in_flight: int = 0
    _budget: RetryBudget = field(default_factory=RetryBudget)

    def now(self) -> float:
        return self.clock.monotonic()

    # --- the way of a request -----------------------------------------------------------------

    def arrive(self, endpoint: str) -> Trip:
        """A request is here; whatever follows, it will be settled."""
        self.in_flight += 1
        rules = self.rules
        record = RequestRecord(
            id=self.new_id(),
            started_at_us=_us(self.clock.wall()),
            endpoint=endpoint,
            policy=rules.policy.name,
            policy_digest=rules.digest,
            worker=self.worker,
        )
        return Trip(record, rules, self.now())

    def check_room(self) -> None:
        """Raises Overloaded when this worker takes no more work."""
        if self.in_flight > self.in_flight_max:
            raise Overloaded("This gateway is at its limit of concurrent requests.")
        if self.book.full:
            raise Overloaded("The ledger is not accepting rows; new work is refused.")

    async def answer(
        self,
        trip: Trip,
        caller: Caller,
        request: ModelRequest,
        *,
        privacy: str | None,
        session: str | None,
    ) -> Answer:
        """Decide, then attempt until one backend has said something.

        `privacy` is the class the caller asked for, `session` the key of its conversation.
        Raises GatewayError when there will be no answer; the caller of this settles by `refuse`.
        """
        self._budget.arrived()
        rules, record = trip.rules, trip.record
        trip.caller, trip.request = caller, request
        alias = rules.catalog.aliases.get(request.alias)
        if alias is None:
            raise UnknownAlias(f"The model {request.alias!r} does not exist.", param="model")
        record.alias, record.stream = alias.name, request.stream
        rank = classify(rules.catalog, caller, alias.privacy_floor, privacy)
        record.privacy_class = rules.catalog.privacy_classes[rank]
        affinity = rules.policy.behaviour.affinity
        if session is not None and affinity is not None and len(alias.targets) > 1:
            trip.session = record.session = session
            trip.pinned = await self.sessions.recall(session, affinity.idle_s)
        snapshot = self.fleet.snapshot((t.backend for t in alias.targets), self.now())
        facts = Facts(
            alias=alias.name,
            endpoint=request.endpoint,
            privacy=rank,
            needs=request.needs,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens_max or EXPECTED_OUTPUT_TOKENS,
            stream=request.stream,
            pinned=trip.pinned,
            tie_break=int.from_bytes(record.id[-4:].encode(), "big"),
        )
        decision = rules.router.decide(facts, snapshot)
        record.decision = decision_record(decision, facts, snapshot)
        if not decision.order:
            raise no_route(decision, snapshot, request, caller, record.privacy_class)
        return await self._attempt_in_turn(trip, decision)

    async def _attempt_in_turn(self, trip: Trip, decision: Decision) -> Answer:
        failures: list[UpstreamError] = []
        for candidate in decision.order:
            if failures and not self._budget.spend(self.now()):
                # No retry of ours any more, so none of the SDK's either: it would go on for us.
                raise AllAttemptsFailed(failures[-1].message, failures=tuple(failures))
            try:
                return await self._attempt(trip, candidate)
            except UpstreamError as error:
                failures.append(error)
                if not error.retryable:
                    raise
        if len(failures) == 1:
            raise failures[0]
        raise AllAttemptsFailed(
            f"All {len(failures)} backends that were tried failed; the last said: "
            f"{failures[-1].message}",
            failures=tuple(failures),
        )

    async def _attempt(self, trip: Trip, candidate: Candidate) -> Answer:
        """One dispatch to one backend, up to its first content."""
        rules, record, request = trip.rules, trip.record, trip.request
        assert request is not None
        target = candidate.target
        backend = rules.catalog.backends[target.backend]
        started = self.now()
        attempt = AttemptRecord(
            number=len(record.attempts) + 1,
            backend=target.backend,
            model=target.model,
            started_at_us=record.started_at_us + _us(started - trip.started),
        )
        record.attempts.append(attempt)
        record.attempt_count = attempt.number
        record.backend, record.model = target.backend, target.model
        if attempt.number == 1:
            record.overhead_us = _us(started - (trip.received or trip.started))
        self.book.open(record)
        call = _call(trip, backend, backend.models[target.model])
        self.fleet.sending(target.backend, started, call.first_chunk_s_max)
        reply: Reply | None = None
        progress = _Progress()
        held: list[bytes] = []
        try:
            reply = await self.wires[backend.wire].open(call)
            while (piece := await reply.next()) is not None:
                progress.note(piece, self.now())
                held.append(piece.data)
                if piece.content or piece.finished:
                    break
        except UpstreamError as error:
            self._attempt_failed(attempt, started, error)
            raise
        except BaseException as error:
            if reply is not None:
                reply.close()
            self.fleet.abandoned(target.backend)
            self._end_attempt(attempt, started, Outcome.CANCELLED)
            # What was sent may be billed there: the prompt counts, flagged as our estimate.
            self._weigh(trip, attempt, estimate(request, progress), target)
            if isinstance(error, Exception):  # a wire broke its promise: ours to answer for
                log.exception("wire %s failed", backend.wire)
                attempt.outcome = Outcome.INTERNAL.value
                raise InternalError("The gateway failed inside.", detail=repr(error)) from error
            raise
        answer = Answer(
            trip,
            candidate,
            backend,
            held[0] if len(held) == 1 else b"".join(held),
            reply.streamed,
            self,
            reply,
            attempt,
            progress,
            started,
            started + backend.limits.total_ms_max / 1000,
        )
        if not reply.streamed:
            self.settle_attempt(answer, Outcome.OK)
        return answer

    @staticmethod
    def _weigh(trip: Trip, attempt: AttemptRecord, usage: Usage, target: Target) -> None:
        """Put usage and its cost on attempt and request. No known rates: no cost, never 0."""
        record, rates = trip.record, trip.rules.rates.get(target)
        attempt.uncached_tokens = record.uncached_tokens = usage.uncached
        attempt.cached_tokens = record.cached_tokens = usage.cached
        attempt.output_tokens = record.output_tokens = usage.output
        attempt.reasoning_tokens = record.reasoning_tokens = usage.reasoning
        attempt.usage_source = record.usage_source = "reported" if usage.reported else "estimated"
        if rates is not None:
            attempt.rates_id, record.priced = rates.id, True
            attempt.cost_nano_usd = record.cost_nano_usd = cost(
                rates, uncached=usage.uncached, cached=usage.cached, output=usage.output
            )

    # --- endings --------------------------------------------------------------------------------

    def _end_attempt(self, attempt: AttemptRecord, started: float, outcome: Outcome) -> None:
        self.fleet.ended(attempt.backend)
        attempt.outcome = outcome.value
        attempt.duration_us = _us(self.now() - started)

    def _attempt_failed(self, attempt: AttemptRecord, started: float, error: UpstreamError) -> None:
        self._end_attempt(
            attempt,
            started,
            Outcome.REJECTED if isinstance(error, UpstreamRejected) else Outcome.FAILED,
        )
        attempt.http_status, attempt.error_code = error.status, error.code
        now = self.now()
        if isinstance(error, UpstreamRejected):
            # It answered: the request was at fault, the backend is well.
            self.fleet.succeeded(attempt.backend, now, ttft_ms=None, tpot_ms=None)
        else:
            self.fleet.failed(
                attempt.backend,
                now,
                busy=isinstance(error, UpstreamBusy),
                retry_after_s=error.retry_after_s,
            )
        if error.detail:
            log.warning("%s: %s (%s)", attempt.backend, error.message, error.detail)

    def settle_attempt(
        self, answer: Answer, outcome: Outcome, error: GatewayError | None = None
    ) -> None:
        """The committed attempt has ended: weigh it, and settle the trip with it."""
        trip, attempt, progress = answer.trip, answer._attempt, answer._progress  # noqa: SLF001
        record, request = trip.record, trip.request
        assert request is not None
        now = self.now()
        attempt_started = answer._attempt_started  # noqa: SLF001
        self._end_attempt(attempt, attempt_started, outcome)
        usage = progress.usage or estimate(request, progress)
        self._weigh(trip, attempt, usage, answer.candidate.target)
        tpot_ms = None
        if progress.first and answer.streamed:  # a whole answer's first byte says nothing of TTFT
            record.ttft_us = _us(progress.first - trip.started)
            attempt.ttft_us = _us(progress.first - attempt_started)
            if usage.output > 1 and progress.last > progress.first:
                record.tpot_us = round(
                    (progress.last - progress.first) * 1e6 / (usage.output - 1), 3
                )
                tpot_ms = record.tpot_us / 1000
        whole_s = now - attempt_started
        if usage.output and whole_s > 0:
            record.tps = round(usage.output / whole_s, 3)
        if outcome is Outcome.OK:
            attempt.http_status = 200
            self.fleet.succeeded(
                attempt.backend,
                now,
                ttft_ms=attempt.ttft_us / 1000 if attempt.ttft_us is not None else None,
                tpot_ms=tpot_ms,
            )
            if trip.session is not None and answer.candidate.target != trip.pinned:
                affinity = trip.rules.policy.behaviour.affinity
                assert affinity is not None
                self.sessions.remember(trip.session, answer.candidate.target, affinity.idle_s)
        elif outcome is Outcome.CANCELLED:
            self.fleet.abandoned(attempt.backend)
        else:
            attempt.error_code = error.code if error is not None else None
            self.fleet.failed(attempt.backend, now)
        self._settle(trip, outcome, 200, error)

    def refuse(self, trip: Trip, error: GatewayError, http_status: int) -> None:
        """The trip ends without an answer: refused by us, or every attempt failed."""
        record = trip.record
        if isinstance(error, RequestError):
            outcome = Outcome.REFUSED
        elif isinstance(error, NoEligibleBackend | Overloaded):
            outcome = Outcome.NO_ROUTE
        elif isinstance(error, UpstreamRejected):
            outcome = Outcome.REJECTED
        elif isinstance(error, UpstreamError | AllAttemptsFailed):
            outcome = Outcome.FAILED
        else:
            outcome = Outcome.INTERNAL
        if not record.attempts:
            record.backend = record.model = None
        self._settle(trip, outcome, http_status, error)

    def leave(self, trip: Trip) -> None:
        """The client left before there was an answer."""
        self._settle(trip, Outcome.CANCELLED, 0, None)

    def _settle(
        self, trip: Trip, outcome: Outcome, http_status: int, error: GatewayError | None
    ) -> None:
        if trip.settled:
            return
        trip.settled = True
        self.in_flight -= 1
        record = trip.record
        record.outcome, record.http_status = outcome.value, http_status
        record.error_code = error.code if error is not None else None
        record.duration_us = _us(self.now() - trip.started)
        if trip.caller is not None:
            record.key_id = trip.caller.key_id
            record.tags = dict(trip.caller.tags)
        self.book.close(record)
        self.telemetry.record(record)


# --- pure steps ---------------------------------------------------------------------------------


def classify(catalog: Catalog, caller: Caller, floor: int, asked: str | None) -> int:
    """The privacy class of a request as a rank: the strictest of key, alias and what was asked.

    Raises InvalidRequest for a class that does not exist, Forbidden above the key's ceiling.
    """
    classes = catalog.privacy_classes
    rank = floor
    if caller.privacy_floor is not None:
        rank = max(rank, _rank(classes, caller.privacy_floor, unknown=len(classes) - 1))
    if asked is not None:
        if asked not in classes:
            raise InvalidRequest(
                f"Unknown privacy class {asked!r}; known are {', '.join(classes)}.",
                param="x-weighbridge-privacy",
            )
        rank = max(rank, classes.index(asked))
    # A ceiling that the catalog no longer knows permits nothing but the lowest class.
    if caller.privacy_ceiling is not None and rank > _rank(
        classes, caller.privacy_ceiling, unknown=0
    ):
        raise Forbidden(
            f"This key may not send {classes[rank]} data.", param="x-weighbridge-privacy"
        )
    return rank


def _rank(classes: tuple[str, ...], name: str, *, unknown: int) -> int:
    return classes.index(name) if name in classes else unknown


def _call(trip: Trip, backend: Backend, model: Model) -> Call:
    """What the wire needs to know. A long prompt stretches the wait for the first chunk."""
    request, limits = trip.request, backend.limits
    assert request is not None
    stretch = limits.first_chunk_ms_per_1k_prompt_tokens * request.prompt_tokens / 1000
    return Call(
        request_id=trip.record.id,
        request=request,
        backend=backend,
        model=model,
        connect_s_max=limits.connect_ms_max / 1000,
        first_chunk_s_max=(limits.first_chunk_ms_max + stretch) / 1000,
        idle_s_max=limits.idle_ms_max / 1000,
        session=trip.session,
    )


def no_route(
    decision: Decision, snapshot: Snapshot, request: ModelRequest, caller: Caller, privacy: str
) -> GatewayError:
    """Why nobody may serve this: the caller's doing where it is, else ours, with the exclusions.

    Names of backends are for keys of scope debug; others learn the rules only.
    """
    rules = {e.rule for e in decision.excluded}
    if rules and rules <= {Rule.CAPABILITY, Rule.ENDPOINT}:
        needs = ", ".join(sorted(n.value for n in request.needs)) or request.endpoint.value
        return UnsupportedParameter(
            f"No model behind {request.alias!r} supports what this request needs: {needs}."
        )
    if rules and rules <= {Rule.CONTEXT, Rule.CAPABILITY, Rule.ENDPOINT}:
        return ContextTooLong(
            f"About {request.prompt_tokens} prompt tokens plus the output asked for exceed the "
            f"context of every model behind {request.alias!r}.",
            param="messages",
        )
    # Waiting helps where a backend cools or its circuit is open, and nowhere else.
    waits = [
        wait
        for e in decision.excluded
        if e.rule in {Rule.COOLING, Rule.CIRCUIT_OPEN}
        and (wait := snapshot[e.target.backend].retry_after_s) is not None
    ]
    return NoEligibleBackend(
        f"No backend is eligible for {request.alias!r} with {privacy} data: "
        + (
            "; ".join(f"{e.target} {e.rule.value}" for e in decision.excluded) + "."
            if caller.debug
            else ", ".join(sorted(rule.value for rule in rules)) + "."
        ),
        exclusions=tuple((str(e.target), e.rule.value, e.detail) for e in decision.excluded),
        retry_after_s=min(waits) if waits else None,
    )


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def estimate(request: ModelRequest, progress: _Progress) -> Usage:
    """Tokens counted by us where the backend reported none: flagged, never 0 for something said.

    A stream brings about one token a chunk; where chunks are plainly larger (over two tokens'
    worth of characters each), and for a whole answer, the characters count.
    """
    by_chars = -(-progress.chars // CHARS_PER_TOKEN)
    output = progress.chunks if by_chars <= 2 * progress.chunks else by_chars
    return Usage(request.prompt_tokens, 0, output, reported=False)
