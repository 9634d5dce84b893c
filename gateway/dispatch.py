"""The spine: the way of one request, readable from top to bottom.

    arrive -> answer: classify, recall the session and hold the limits (one round trip), decide,
    attempt until the first content, then hand over piece by piece -> settle, exactly once,
    whatever happens.

INVARIANTS

- Retry, hedge and fallback happen here and nowhere else, and only before the first content chunk.
  After it the request is committed: it goes on or it says that it broke, it never switches.
- Every trip is settled once, and its hold with it. Settling is synchronous (journal, tallies,
  fleet, limits), so that neither a cancelled task nor a client that left can skip it.
- The journal holds the open line before an attempt starts and the final line before the last byte
  goes out: what was answered was written down.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.attempt import Attempt, add_up, call, total_s_max, us
from gateway.backends.base import Wire
from gateway.classify import Classifier
from gateway.domain.caller import Caller
from gateway.domain.catalog import Alias, Backend, Catalog, Target
from gateway.domain.decision import Candidate, Decision, Facts, Rule, Snapshot
from gateway.domain.decision import record as decision_record
from gateway.domain.engine import Need, Phase
from gateway.domain.errors import (
    AllAttemptsFailed,
    BudgetSpent,
    ClearanceViolated,
    GatewayError,
    InternalError,
    NoEligibleBackend,
    Overloaded,
    RateLimited,
    RequestError,
    StoreUnavailable,
    UnknownAlias,
    UpstreamBusy,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.domain.money import Rates
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.request import ModelRequest
from gateway.fleet.canary import Canaries
from gateway.fleet.entrance import Entrance, Ticket
from gateway.fleet.history import OutputHistory
from gateway.fleet.observed import Fleet
from gateway.fleet.prefixes import NO_CHAIN, Chain, chain_of
from gateway.ledger.prices import PriceBook
from gateway.limits import (
    NOTHING,
    Admission,
    Gate,
    LimitIndex,
    Unlimited,
    Used,
    refusal,
    refusal_record,
)
from gateway.policy.language import PRIORITY_SHARES, Hedge, Policy, Route
from gateway.policy.refusal import no_route
from gateway.runtime import Clock, TaskOwner
from gateway.sessions import Sessions
from gateway.telemetry import Telemetry

log = logging.getLogger("weighbridge")

SHADOWS_MAX = 32  # copies under way in one worker; more are not sent
_PINNED = 0.5  # of a conversation's prompt, taken to be cached where nothing was measured yet
SHARE_OF = 10_000  # shares are decided in this many parts


class Router(Protocol):
    """A compiled policy (`policy.engine`)."""

    def decide(self, facts: Facts, snapshot: Snapshot) -> Decision: ...

    def route(self, name: str) -> Route: ...


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
    prices: PriceBook
    limits: LimitIndex
    classifier: Classifier
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
    privacy: int = 0
    session: str | None = None
    pinned: Target | None = None
    pinned_to: Target | None = None  # the same, but for the replica
    admission: Admission = NOTHING
    route: Route | None = None
    need: Need = Need(0, 0)
    chain: Chain = NO_CHAIN
    hits: Mapping[str, int] = field(default_factory=dict)
    sent: list[tuple[int, str, int, int]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    settled: bool = False

    def rates(self, target: Target) -> Rates | None:
        """What it costs there: rated by its arrival, however long it takes."""
        return self.rules.prices.rates(target, self.record.started_at_us)


@dataclass(slots=True)
class Answer:
    """A committed answer: the first piece is here, the rest comes by `next`.

    The owner reads to the end, or calls `abandon`; both settle the trip.
    """

    trip: Trip
    attempt: Attempt
    first: bytes
    streamed: bool
    _dispatch: Dispatch

    @property
    def candidate(self) -> Candidate:
        return self.attempt.candidate

    @property
    def backend(self) -> Backend:
        return self.attempt.backend

    @property
    def upstream_s(self) -> float:
        """Seconds from asking the backend to its first content."""
        return (self.attempt.progress.first or self._dispatch.now()) - self.attempt.started

    async def next(self) -> bytes | None:
        """The next bytes for the client; None at the end, when the ledger has the row.

        Raises UpstreamError when the stream breaks; the trip is settled then too.
        """
        attempt = self.attempt
        assert attempt.reply is not None
        try:
            piece = await attempt.reply.next()
            now = self._dispatch.now()
            if piece is not None and now > attempt.total_until:
                raise UpstreamTimeout("The backend took too long in all.")
        except UpstreamError as error:
            self._end(Outcome.FAILED_MIDSTREAM, error)
            raise
        if piece is None:
            self._end(Outcome.OK)
            return None
        attempt.progress.note(piece, now)
        return piece.data

    def abandon(self, error: GatewayError | None = None) -> None:
        """The client left (no `error`), or we must stop: end upstream at once and settle."""
        self._end(Outcome.CANCELLED if error is None else Outcome.FAILED_MIDSTREAM, error)

    def _end(self, outcome: Outcome, error: GatewayError | None = None) -> None:
        if not self.trip.settled:
            self._dispatch.settle_answer(self, outcome, error)


@dataclass(slots=True)
class Budget:
    """So many extra calls as a share of the requests, plus `per_s`: no storm of repeats.

    (Finagle's budget: 20 % and 10/s there; ours is smaller because a call costs money.)
    """

    share: float = 0.1
    per_s: float = 1.0
    left: float = 10.0
    _at: float = 0.0

    def arrived(self) -> None:
        self.left = min(self.left + self.share, 100.0)

    def spend(self, now: float) -> bool:
        if self._at:
            self.left = min(self.left + (now - self._at) * self.per_s, 100.0)
        self._at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


@dataclass(slots=True)
class _Budgets:
    """What the requests of one route may repeat and hedge."""

    retries: Budget
    hedges: Budget

    @classmethod
    def of(cls, route: Route) -> _Budgets:
        retries, hedge = route.behaviour.retries, route.behaviour.hedge
        return cls(
            Budget(retries.share, retries.per_s, 100 * retries.share),
            Budget(0.0 if hedge is None else hedge.share_max, 0.0, 1.0),
        )


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
    gate: Gate = field(default_factory=Unlimited)
    canaries: Canaries = field(default_factory=Canaries)
    outputs: OutputHistory = field(default_factory=OutputHistory)
    entrance: Entrance = field(init=False)
    in_flight: int = 0
    _tasks: TaskOwner = field(default_factory=lambda: TaskOwner("dispatch"))
    _shadows: int = 0
    _budgets: dict[tuple[str, str], _Budgets] = field(default_factory=dict)
    _budgets_for: str = ""
    _incumbents: dict[str, Target] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entrance = Entrance(self.fleet, self.clock)

    def now(self) -> float:
        return self.clock.monotonic()

    # --- the way of a request -----------------------------------------------------------------

    def arrive(self, endpoint: str) -> Trip:
        """A request is here; whatever follows, it will be settled."""
        self.in_flight += 1
        rules = self.rules
        record = RequestRecord(
            id=self.new_id(),
            started_at_us=us(self.clock.wall()),
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
        rules, record = trip.rules, trip.record
        trip.caller, trip.request = caller, request
        record.key_id, record.tags = caller.key_id, dict(caller.tags)
        alias = rules.catalog.aliases.get(request.alias)
        if alias is None:
            raise UnknownAlias(f"The model {request.alias!r} does not exist.", param="model")
        record.alias, record.stream = alias.name, request.stream
        trip.privacy, found = await rules.classifier.classify(
            caller, floor=alias.privacy_floor, asked=privacy, document=request.document
        )
        record.privacy_class = rules.catalog.privacy_classes[trip.privacy]
        only = rules.catalog.backends[alias.targets[0].backend] if len(alias.targets) == 1 else None
        fixed = only is not None and len(only.places) == 1  # nowhere else it could go
        await self._recall_and_hold(trip, session, fixed=fixed)
        now = self.now()
        snapshot = self.fleet.snapshot((t.backend for t in alias.targets), now)
        snapshot = self.entrance.rooms.into(snapshot, now)
        self._expect_hits(trip, alias, snapshot)
        facts = self._facts(trip, snapshot)
        trip.need = Need(facts.prompt_tokens, facts.output_tokens)
        decision = rules.router.decide(facts, snapshot)
        if not decision.order and (spare := self.fleet.last_resort(snapshot)) is not None:
            snapshot, decision = spare, rules.router.decide(facts, spare)
        record.decision = decision_record(decision, facts, snapshot)
        if found:
            record.decision["detected"] = list(found)
        record.route = decision.route
        if not decision.order:
            raise no_route(decision, snapshot, request, caller, record.privacy_class)
        trip.route = route = rules.router.route(decision.route)
        self._check_priority(route)
        self._incumbents[alias.name] = decision.order[0].target
        answer = await self._attempt_in_turn(trip, decision, route)
        if not answer.streamed:
            self.settle_answer(answer, Outcome.OK)
        if route.shadow is not None:
            self._copy(trip, decision, route, snapshot)
        return answer

    async def _recall_and_hold(self, trip: Trip, session: str | None, *, fixed: bool) -> None:
        """Where the session was, and room in every limit: both are asked in one round trip.

        `fixed`: there is one place, so nothing to remember. Raises RateLimited, BudgetSpent.
        """
        caller, request, rules = trip.caller, trip.request, trip.rules
        assert caller is not None
        assert request is not None
        asks = rules.limits.asks_for(caller, request)
        waiting = self.gate.begin(trip.record.id, asks) if asks else None
        affinity = rules.policy.behaviour.affinity
        try:
            if session is not None and affinity is not None and not fixed:
                trip.session = trip.record.session = session
                trip.pinned_to = trip.pinned = await self.sessions.recall(session, affinity.idle_s)
                if trip.pinned is not None and "#" in trip.pinned.backend:
                    trip.pinned = Target(trip.pinned.backend.partition("#")[0], trip.pinned.model)
            if waiting is not None:
                trip.admission = await waiting
        except BaseException:
            if waiting is not None:
                self.gate.abandon(trip.record.id)
            raise
        if trip.admission.refused is not None:
            trip.record.decision = refusal_record(trip.admission)
            raise refusal(trip.admission, self.clock.wall())

    def _expect_hits(self, trip: Trip, alias: Alias, snapshot: Snapshot) -> None:
        """What of the prompt is in the KV cache of which of our engines."""
        rooms, request, catalog = self.entrance.rooms, trip.request, trip.rules.catalog
        engines = [target.backend for target in alias.targets if target.backend in rooms]
        if not engines or request is None or trip.caller is None:
            return
        salted = any((e := catalog.backends[n].engine) and e.cache_salt for n in engines)
        salt = trip.caller.key_id if salted else ""
        trip.chain = chain_of(request.document, alias.name, salt)
        hits = rooms.hits(engines, trip.chain, request.prompt_tokens)
        pinned = trip.pinned_to
        if pinned is not None and pinned.backend in rooms.places and pinned.backend not in hits:
            # Another worker sent it there; how much is left of it, what was seen of others tells.
            assert trip.pinned is not None
            share = snapshot[trip.pinned.backend].cached_share
            hits[pinned.backend] = int(
                request.prompt_tokens * (_PINNED if share is None else share)
            )
        trip.hits = hits

    def _facts(self, trip: Trip, snapshot: Snapshot) -> Facts:
        request, caller, record = trip.request, trip.caller, trip.record
        assert request is not None
        assert caller is not None
        pinned, cached = trip.pinned, 0
        if pinned is not None and (view := snapshot.get(pinned.backend)) is not None:
            cached = int(request.prompt_tokens * (view.cached_share or 0.0))
        tie_break = _number(record.id[-4:])
        return Facts(
            alias=request.alias,
            endpoint=request.endpoint,
            privacy=trip.privacy,
            needs=request.needs,
            prompt_tokens=request.prompt_tokens,
            output_tokens=self.outputs.expect(
                request.alias, caller.key_id, request.output_tokens_max
            ),
            output_tokens_max=request.output_tokens_max,
            cached_tokens=cached,
            stream=request.stream,
            key_id=caller.key_id,
            tags=caller.tags,
            at_us=record.started_at_us,
            spent=trip.admission.spent,
            priced_only=trip.admission.priced_only,
            reverted=self.canaries.reverted(),
            pinned=pinned,
            incumbent=self._incumbents.get(request.alias),
            bucket=hash_of(_number(trip.session) if trip.session else tie_break) % SHARE_OF,
            tie_break=tie_break,
            service_tier=request.service_tier,
            hits=trip.hits,
        )

    def _check_priority(self, route: Route) -> None:
        """Who can wait goes first when this worker fills up. Raises Overloaded."""
        if self.in_flight > self.in_flight_max * PRIORITY_SHARES[route.priority]:
            raise Overloaded(f"This gateway is busy; {route.priority.value} requests wait.")

    # --- attempts -------------------------------------------------------------------------------

    async def _attempt_in_turn(self, trip: Trip, decision: Decision, route: Route) -> Answer:
        budgets = self._budgets_of(trip.rules, route)
        budgets.retries.arrived()
        budgets.hedges.arrived()
        hedge = route.behaviour.hedge
        failures: list[UpstreamError] = []
        failed: Sequence[BaseException]
        waiting = deque(decision.order)
        while (candidate := self._next(waiting, known=not failures)) is not None:
            if failures and trip.attempts and not budgets.retries.spend(self.now()):
                # No retry of ours any more, so none of the SDK's either: it would go on for us.
                raise AllAttemptsFailed(failures[-1].message, failures=tuple(failures))
            try:
                if hedge is None or failures or not waiting:
                    return await self._attempt(trip, candidate, candidate.why)
                return await self._race(trip, candidate, waiting, hedge, budgets.hedges)
            except _RaceLost as lost:
                failed = lost.failures
            except UpstreamError as error:
                failed = [error]
            for failure in failed:
                if not (isinstance(failure, UpstreamError) and failure.retryable):
                    raise failure
                failures.append(failure)
            if self._has_another(trip, candidate, route):
                waiting.appendleft(candidate)
        if len(failures) == 1:
            raise failures[0]
        raise AllAttemptsFailed(
            f"All {len(failures)} backends that were tried failed; the last said: "
            f"{failures[-1].message}",
            failures=tuple(failures),
        )

    def _next(self, waiting: deque[Candidate], *, known: bool = False) -> Candidate | None:
        """The next to be asked, but for those that broke, or are probed, since the decision."""
        while waiting:
            candidate = waiting.popleft()
            if known or self.fleet.may_send(candidate.target.backend, self.now()):
                return candidate
        return None

    def _has_another(self, trip: Trip, candidate: Candidate, route: Route) -> bool:
        """Whether the backend that failed has an engine that is up and was not asked."""
        tried = self._tried(trip, candidate.target.backend)
        if not tried or len(trip.attempts) >= route.behaviour.attempts_max:
            return False
        rooms = self.entrance.rooms.of(candidate.target.backend, self.now())
        return any(r.open and r.phase is Phase.WARM and r.name not in tried for r in rooms)

    @staticmethod
    def _tried(trip: Trip, backend: str) -> frozenset[str]:
        return frozenset(a.backend.seen_as for a in trip.attempts if a.backend.name == backend)

    async def _enter(self, trip: Trip, candidate: Candidate) -> Ticket | None:
        """Room in an engine of the backend; None where it has none. Raises NoRoom."""
        name = candidate.target.backend
        if name not in self.entrance.rooms:
            return None
        backend, tried = trip.rules.catalog.backends[name], self._tried(trip, name)
        ticket = await self.entrance.enter(
            backend,
            trip.need,
            trip.hits,
            patience_s=candidate.patience_ms / 1000,
            avoid=tried if len(tried) < len(backend.places) else frozenset(),
        )
        ticket.sent(trip.chain)
        return ticket

    def _budgets_of(self, rules: Rules, route: Route) -> _Budgets:
        """Per route, for as long as the same policy is in force."""
        if self.rules.digest != self._budgets_for:
            self._budgets_for = self.rules.digest
            self._budgets.clear()
        name = (rules.digest, route.name)  # a request may be under way by older ones
        budgets = self._budgets.get(name)
        if budgets is None:
            budgets = self._budgets[name] = _Budgets.of(route)
        return budgets

    async def _race(
        self,
        trip: Trip,
        candidate: Candidate,
        waiting: deque[Candidate],
        hedge: Hedge,
        budget: Budget,
    ) -> Answer:
        """Ask a second backend too when the first stays silent; the first content wins.

        A failure of one, of whatever kind, leaves the other its chance: hedging harms nobody.
        Raises _RaceLost when all that were asked failed. Whoever loses is ended at once and its
        cost is booked.
        """
        loop = asyncio.get_running_loop()
        racing = {loop.create_task(self._attempt(trip, candidate, candidate.why), name="attempt")}
        failures: list[BaseException] = []
        winner: Answer | None = None
        try:
            silent = not (await asyncio.wait(racing, timeout=hedge.after_ms / 1000))[0]
            second = self._next(waiting) if silent else None
            if second is not None and budget.spend(self.now()):
                racing.add(loop.create_task(self._attempt(trip, second, "hedge"), name="hedge"))
            elif second is not None:
                waiting.appendleft(second)
            while racing and winner is None:
                done, racing = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (error := task.exception()) is not None:
                        failures.append(error)
                    else:
                        winner = winner or task.result()
            if winner is None:
                raise _RaceLost(failures)
            return winner
        finally:
            outcome = Outcome.HEDGE_LOST if winner is not None else Outcome.CANCELLED
            for attempt in trip.attempts:
                if winner is None or attempt is not winner.attempt:
                    self._drop(trip, attempt, outcome)
            for task in racing:
                task.add_done_callback(_heard)
                task.cancel()

    async def _attempt(self, trip: Trip, candidate: Candidate, why: str) -> Answer:
        """One dispatch to one backend, up to its first content."""
        request, route = trip.request, trip.route
        assert request is not None
        assert route is not None
        ticket = await self._enter(trip, candidate)
        attempt = self._open(trip, candidate, request, route, why, ticket)
        timeouts = route.behaviour.timeouts
        what = call(
            attempt,
            request_id=trip.record.id,
            privacy=trip.privacy,
            session=trip.session,
            timeouts=timeouts,
        )
        seen_as = attempt.backend.seen_as
        self.fleet.sending(seen_as, attempt.started, what.first_chunk_s_max)
        held: list[bytes] = []
        try:
            reply = await self.wires[attempt.backend.wire].open(what)
            attempt.opened(reply)
            while (piece := await reply.next()) is not None:
                attempt.progress.note(piece, self.now())
                held.append(piece.data)
                if piece.content or piece.finished:
                    self.fleet.answering(seen_as)
                    if ticket is not None:
                        ticket.answered()
                    break
        except UpstreamError as error:
            self._failed(trip, attempt, error)
            raise
        except BaseException as error:
            ours = isinstance(error, Exception)  # a wire broke its promise: ours to answer for
            self._drop(
                trip,
                attempt,
                Outcome.INTERNAL if ours else Outcome.CANCELLED,
                sent=not isinstance(error, ClearanceViolated),
            )
            if isinstance(error, GatewayError) or not ours:
                raise
            log.exception("wire %s failed", attempt.backend.wire)
            raise InternalError("The gateway failed inside.", detail=repr(error)) from error
        first = held[0] if len(held) == 1 else b"".join(held)
        return Answer(trip, attempt, first, reply.streamed, self)

    def _open(
        self,
        trip: Trip,
        candidate: Candidate,
        request: ModelRequest,
        route: Route,
        why: str,
        ticket: Ticket | None,
    ) -> Attempt:
        """Write down that it is about to be made, before it is."""
        record, target = trip.record, candidate.target
        started = self.now()
        backend = trip.rules.catalog.backends[target.backend] if ticket is None else ticket.place
        row = AttemptRecord(
            number=len(record.attempts) + 1,
            backend=target.backend,
            model=target.model,
            started_at_us=record.started_at_us + us(started - trip.started),
            why=why,
        )
        record.attempts.append(row)
        try:
            self.book.open(record)
        except BaseException:
            record.attempts.pop()  # it will not be made
            if ticket is not None:
                ticket.leave()
            raise
        record.attempt_count = row.number
        record.backend, record.model = target.backend, target.model
        if row.number == 1:
            waited_s = 0.0 if ticket is None else ticket.waited_s  # for room: not our work
            record.overhead_us = us(started - (trip.received or trip.started) - waited_s)
        attempt = Attempt(candidate, backend, request, row, started, ticket=ticket)
        if ticket is not None and record.decision is not None:
            trip.sent.append((row.number, backend.replica, us(ticket.waited_s), ticket.hit_tokens))
            record.decision["sent"] = trip.sent
        attempt.total_until = started + total_s_max(backend, route.behaviour.timeouts)
        trip.attempts.append(attempt)
        return attempt

    def _drop(self, trip: Trip, attempt: Attempt, outcome: Outcome, *, sent: bool = True) -> None:
        """End an attempt that will not be the answer, without a verdict on its backend.

        What was `sent` may be billed there: the prompt counts, flagged as our estimate.
        """
        if attempt.end(self.now(), outcome):
            self.fleet.ended(attempt.backend.seen_as)
            self.fleet.abandoned(attempt.backend.seen_as)
            if sent:
                attempt.weigh(trip.rates(attempt.target))

    def _failed(self, trip: Trip, attempt: Attempt, error: UpstreamError) -> None:
        """The backend failed before content: note it, on the row and against the backend."""
        rejected = isinstance(error, UpstreamRejected)
        now, name = self.now(), attempt.backend.seen_as
        if not attempt.end(now, Outcome.REJECTED if rejected else Outcome.FAILED):
            return
        self.fleet.ended(name)
        attempt.record.http_status, attempt.record.error_code = error.status, error.code
        usage = attempt.progress.usage
        if usage is not None and (usage.output or usage.reported):
            attempt.weigh(trip.rates(attempt.target))  # it said what it metered: it may bill that
        if rejected:
            # It answered: the request was at fault, the backend is well.
            self.fleet.succeeded(name, now, ttft_ms=None, tpot_ms=None)
        else:
            busy = isinstance(error, UpstreamBusy)
            self.fleet.failed(name, now, busy=busy, retry_after_s=error.retry_after_s)
        if rejected:  # it may quote the request, and content is not for the log
            log.warning("%s rejected a request (%s)", name, error.upstream_code)
        elif error.detail:
            log.warning("%s: %s (%s)", name, error.message, error.detail)

    # --- copies for comparison ------------------------------------------------------------------

    def _copy(self, trip: Trip, decision: Decision, route: Route, snapshot: Snapshot) -> None:
        """Send a share of the requests to the shadow backend too, where the decision allows it."""
        shadow, request = route.shadow, trip.request
        assert shadow is not None
        assert request is not None
        in_share = hash_of(_number(trip.record.id[-4:]), 1) % SHARE_OF
        if in_share >= shadow.share * SHARE_OF or self._shadows >= SHADOWS_MAX:
            return
        candidate = shadow_of(decision, shadow.backend)
        view = snapshot.get(shadow.backend)
        if candidate is None or view is None or view.circuit != "closed" or view.cooling:
            return
        record = RequestRecord(
            id=self.new_id(),
            started_at_us=us(self.clock.wall()),
            endpoint=trip.record.endpoint,
            alias=trip.record.alias,
            privacy_class=trip.record.privacy_class,
            stream=request.stream,
            policy=trip.record.policy,
            policy_digest=trip.record.policy_digest,
            route=trip.record.route,
            shadow_of=trip.record.id,
            worker=self.worker,
        )
        copy = Trip(
            record, trip.rules, self.now(), request=request, privacy=trip.privacy, route=route
        )
        self._shadows += 1
        self._tasks.start(self._read_shadow(copy, candidate), "shadow")

    async def _read_shadow(self, trip: Trip, candidate: Candidate) -> None:
        """To its end, or until the backend's total time is over; nobody waits for it."""
        try:
            answer = await self._attempt(trip, candidate, "shadow")
            if not answer.streamed:
                self.settle_answer(answer, Outcome.OK)
            while not trip.settled:
                await answer.next()
        except GatewayError as error:
            self.refuse(trip, error, 0)
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            for attempt in trip.attempts:
                self._drop(trip, attempt, Outcome.CANCELLED if cancelled else Outcome.INTERNAL)
            if cancelled:
                self.leave(trip)
            else:
                self.refuse(trip, InternalError("The gateway failed inside."), 0)
            raise

    async def drain(self) -> None:
        """End the copies that are under way: nobody waits for them."""
        await self._tasks.drain(0.0)

    # --- endings --------------------------------------------------------------------------------

    def settle_answer(
        self, answer: Answer, outcome: Outcome, error: GatewayError | None = None
    ) -> None:
        """The committed attempt has ended: weigh it, and settle the trip with it."""
        trip, attempt, progress = answer.trip, answer.attempt, answer.attempt.progress
        record, row = trip.record, attempt.record
        now, name = self.now(), attempt.backend.seen_as
        if attempt.end(now, outcome):
            self.fleet.ended(name)
        record.backend, record.model = attempt.target.backend, attempt.target.model
        usage = attempt.weigh(trip.rates(attempt.target))
        if attempt.ticket is not None and usage.reported:
            attempt.ticket.cached(usage.cached)
        tpot_ms = None
        if progress.first and answer.streamed:  # a whole answer's first byte says nothing of TTFT
            record.ttft_us = us(progress.first - trip.started)
            row.ttft_us = us(progress.first - attempt.started)
            if usage.output > 1 and progress.last > progress.first:
                record.tpot_us = round(
                    (progress.last - progress.first) * 1e6 / (usage.output - 1), 3
                )
                tpot_ms = record.tpot_us / 1000
        whole_s = now - attempt.started
        if usage.output and whole_s > 0:
            record.tps = round(usage.output / whole_s, 3)
        if outcome is Outcome.OK:
            row.http_status = 200
            self.fleet.succeeded(
                name,
                now,
                ttft_ms=row.ttft_us / 1000 if row.ttft_us is not None else None,
                tpot_ms=tpot_ms,
                prompt_tokens=usage.prompt,
                cached_tokens=usage.cached if usage.reported else None,
                pinned=attempt.target == trip.pinned,
            )
            if trip.caller is not None and record.alias is not None:
                self.outputs.learn(record.alias, trip.caller.key_id, usage.output)
            at = Target(name, attempt.target.model)
            if trip.session is not None and at != trip.pinned_to:
                affinity = trip.rules.policy.behaviour.affinity
                assert affinity is not None
                self.sessions.remember(trip.session, at, affinity.idle_s)
        elif outcome is Outcome.CANCELLED:
            self.fleet.abandoned(name)
        else:
            row.error_code = error.code if error is not None else None
            self.fleet.failed(name, now)
        self._settle(trip, outcome, 200, error, answered=row)

    def refuse(self, trip: Trip, error: GatewayError, http_status: int) -> None:
        """The trip ends without an answer: refused by us, or every attempt failed."""
        record = trip.record
        if isinstance(error, RequestError | RateLimited | BudgetSpent):
            outcome = Outcome.REFUSED
        elif isinstance(error, NoEligibleBackend | Overloaded | StoreUnavailable) or (
            not record.attempts and isinstance(error, UpstreamError | AllAttemptsFailed)
        ):  # of an engine that was full nothing was asked
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
        self,
        trip: Trip,
        outcome: Outcome,
        http_status: int,
        error: GatewayError | None,
        answered: AttemptRecord | None = None,
    ) -> None:
        if trip.settled:
            return
        trip.settled = True
        record = trip.record
        record.outcome, record.http_status = outcome.value, http_status
        record.error_code = error.code if error is not None else None
        record.duration_us = us(self.now() - trip.started)
        add_up(record, answered)
        if trip.caller is not None and record.key_id is None:
            record.key_id = trip.caller.key_id
            record.tags = dict(trip.caller.tags)
        self.book.close(record)
        for attempt in trip.attempts:
            if attempt.progress.usage is not None and attempt.progress.usage.contradiction:
                self.telemetry.usage_contradiction(attempt.target.backend)
        if record.shadow_of is not None:  # a copy is nobody's request
            self._shadows -= 1
            self.telemetry.shadow(record)
            return
        self.in_flight -= 1
        self._settle_hold(trip)
        self._judge_canary(trip, outcome)
        self.telemetry.record(record)

    def _settle_hold(self, trip: Trip) -> None:
        """Turn what was held into what was used; nothing sent, nothing used."""
        admission = trip.admission
        if admission.hold is None:
            return
        if not trip.attempts:
            self.gate.release(admission)
            return
        self.gate.settle(admission, used_by(trip.record))

    def _judge_canary(self, trip: Trip, outcome: Outcome) -> None:
        route, record = trip.route, trip.record
        if route is None or route.canary is None or outcome is Outcome.CANCELLED:
            return
        asked = [a for a in record.attempts if a.backend in route.canary.backends]
        self.canaries.ended(
            route.name,
            trip.rules.digest,
            canary=bool(asked),
            failed=any(a.outcome in _FAILURES for a in asked or record.attempts),
            cost_nano_usd=record.cost_nano_usd if record.priced else None,
        )


def _heard(task: asyncio.Task[Answer]) -> None:
    """What a loser still says is nobody's concern: it was settled when it lost."""
    if not task.cancelled():
        task.exception()


_FAILURES = {Outcome.FAILED.value, Outcome.FAILED_MIDSTREAM.value, Outcome.INTERNAL.value}


class _RaceLost(Exception):
    """All that were asked in a race failed."""

    def __init__(self, failures: Sequence[BaseException]) -> None:
        super().__init__()
        self.failures = failures


# --- pure steps ---------------------------------------------------------------------------------


def used_by(record: RequestRecord) -> Used:
    """What a request that ended counts against its limits.

    What failed before it said anything nobody bills; without a price at least the hold counts.
    """
    nano_usd = record.cost_nano_usd if record.priced else None
    return Used(
        tokens=sum([attempt.tokens for attempt in record.attempts]),
        nano_usd=nano_usd if record.usage_source != "none" else 0,
        nano_known=record.cost_nano_usd or 0,
    )


def shadow_of(decision: Decision, backend: str) -> Candidate | None:
    """The target at `backend`, if the request may go there: eligible, or left out by policy alone.

    Policy is the rule after all that protect the request, so privacy, terms and fit have passed.
    """
    for candidate in decision.order:
        if candidate.target.backend == backend:
            return candidate
    by_policy = (e.target for e in decision.excluded if e.rule is Rule.POLICY)
    for target in (*decision.cut, *by_policy):
        if target.backend == backend:
            return Candidate(
                target=target, why="shadow", tier=0, cost_nano_usd=None, latency_ms=None
            )
    return None


def hash_of(number: int, salt: int = 0) -> int:
    """Spread a number evenly (Fibonacci hashing), the same in every process."""
    return ((number + salt) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 32


def _number(text: str) -> int:
    return int.from_bytes(text[:8].encode(), "big")
