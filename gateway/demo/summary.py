"""What came of it: the client's stopwatch and the ledger's rows put together. Pure.

Every figure is one of theirs; nothing is reckoned here but sums and medians. Costs are nano-USD,
None where a price is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from gateway.demo.backends import DemoBackend
from gateway.demo.traffic import Heard
from gateway.demo.workload import RESTRICTED
from gateway.domain.catalog import Kind
from gateway.domain.money import NANO_PER_USD, UNIT, Rates, rate, usd
from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord
from gateway.domain.rating import metered, quantities


@dataclass(frozen=True, slots=True)
class Served:
    """One request: as the client heard it, and as the ledger has it."""

    heard: Heard
    row: RequestRecord

    @property
    def reason(self) -> tuple[str, str]:
        return reason(self.row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One backend. `tokens_in` includes the `cached` ones; times are medians at the client.

    `unpriced` counts attempts with tokens whose price is not known; then `cost_nano_usd` is the
    sum of the others, None if there are none.
    """

    backend: str
    kind: str
    simulated: bool
    requests: int
    failed_attempts: int
    tokens_in: int
    cached: int
    tokens_out: int
    ttft_s: float | None
    tps: float | None
    cost_nano_usd: int | None
    unpriced: int


@dataclass(frozen=True, slots=True)
class Reason:
    """Where to, the word the gateway gave for it, what it meant here, and how often."""

    backend: str | None
    word: str
    because: str
    count: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A promise and whether it was kept in this run; `otherwise` says what went wrong."""

    text: str
    held: bool
    otherwise: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The whole. `explained` is the request with most to tell, `sample` an answer of a real model.

    `overhead_ms` is the median of what the gateway itself took of a request.
    """

    lines: tuple[Line, ...]
    reasons: tuple[Reason, ...]
    claims: tuple[Claim, ...]
    served: tuple[Served, ...]
    explained: Served
    sample: Served | None
    overhead_ms: float | None
    seconds: float

    @property
    def cost_nano_usd(self) -> int:
        return sum(line.cost_nano_usd or 0 for line in self.lines)

    @property
    def simulated_nano_usd(self) -> int:
        """What of the cost nobody charged."""
        return sum(line.cost_nano_usd or 0 for line in self.lines if line.simulated)

    @property
    def unpriced(self) -> int:
        return sum(line.unpriced for line in self.lines)

    @property
    def held(self) -> bool:
        return all(claim.held for claim in self.claims)


def summarise(
    served: Sequence[Served], backends: Sequence[DemoBackend], *, sent: int, seconds: float
) -> Summary:
    """`sent` is the number of requests that went out."""
    real = {b.name for b in backends if not b.simulated}
    said = (s for s in served if s.row.backend in real and s.heard.work.kind == "batch")
    overheads = [s.row.overhead_us for s in served if s.row.overhead_us is not None]
    return Summary(
        lines=tuple(_line(backend, served) for backend in backends),
        reasons=_reasons(served, [b.name for b in backends]),
        claims=_claims(served, backends, sent),
        served=tuple(served),
        sample=next(said, None),
        explained=max(served, key=_telling),
        overhead_ms=round(median(overheads) / 1000, 3) if overheads else None,
        seconds=seconds,
    )


def _telling(one: Served) -> tuple[int, int, int]:
    """How much there is to explain: attempts, then exclusions, then candidates; all answered."""
    decision = decided(one.row)
    return (
        one.row.attempt_count,
        len(decision["excluded"]) if decision["order"] else 0,
        len(decision["order"]),
    )


def decided(row: RequestRecord) -> Mapping[str, Any]:
    """The decision as stored; empty where it was refused before there was one."""
    return row.decision or {"route": "", "order": [], "excluded": [], "cut": []}


def _line(backend: DemoBackend, served: Sequence[Served]) -> Line:
    own = [s for s in served if s.row.backend == backend.name and s.row.outcome == Outcome.OK]
    attempts = [a for s in served for a in s.row.attempts if a.backend == backend.name]
    costs = [a.cost_nano_usd for a in attempts if a.cost_nano_usd is not None]
    ttfts = [s.heard.ttft_s for s in own if s.heard.ttft_s is not None]
    speeds = [s.heard.tps for s in own if s.heard.tps is not None]
    return Line(
        backend=backend.name,
        kind=backend.kind.value,
        simulated=backend.simulated,
        requests=len(own),
        failed_attempts=sum(a.outcome != Outcome.OK for a in attempts),
        tokens_in=sum(metered(asdict(a)).prompt for a in attempts),
        cached=sum(a.cached_tokens or 0 for a in attempts),
        tokens_out=sum(a.output_tokens or 0 for a in attempts),
        ttft_s=median(ttfts) if ttfts else None,
        tps=median(speeds) if speeds else None,
        cost_nano_usd=sum(costs) if costs else None,
        unpriced=sum(a.cost_nano_usd is None and bool(a.output_tokens) for a in attempts),
    )


# --- why ------------------------------------------------------------------------------------------

_BECAUSE = {
    "affinity": "the session's KV cache is there",
    "cheapest": "the cheapest of the kind that the policy prefers",
    "preferred": "first in the policy's order",
    "fastest": "the fastest of the kind that the policy prefers",
}
_OUT = {
    "capacity": "the preferred backend had no room",
    "context": "too long for the preferred backend's context",
    "privacy": "the preferred backend is not cleared for the data",
    "unhealthy": "the preferred backend is not healthy",
    "circuit_open": "the preferred backend keeps failing",
    "cooling": "the preferred backend asked us to wait",
}


def reason(row: RequestRecord) -> tuple[str, str]:
    """The word for why a request went where it went, and what it meant in this case."""
    decision = decided(row)
    rules = {rule for _, rule, _ in decision["excluded"]}
    if row.outcome != Outcome.OK:
        if not row.attempts:
            return "refused", "nobody is eligible: " + ", ".join(sorted(rules))
        return row.outcome, f"{row.attempt_count} attempts, {row.error_code}"
    target = f"{row.backend}/{row.model}"
    word = next(why for name, why, *_ in decision["order"] if name == target)
    if row.attempt_count > 1:
        return word, f"the first choice failed ({row.attempts[0].http_status})"
    if word == "fallback":
        return word, "; ".join(_OUT[r] for r in sorted(rules & _OUT.keys())) or "next in order"
    if word != "affinity" and len(decision["order"]) == 1:
        if rules == {"privacy"}:
            return word, f"the only one cleared for {row.privacy_class} data"
        if not rules:
            return word, f"the only one behind {row.alias}"
    return word, _BECAUSE[word]


def _reasons(served: Iterable[Served], order: Sequence[str]) -> tuple[Reason, ...]:
    """By backend in this order, then the most frequent first."""
    counts = Counter((one.row.backend, *one.reason) for one in served)
    most = [Reason(*what, n) for what, n in counts.most_common()]
    return tuple(sorted(most, key=lambda r: (*order, None).index(r.backend)))


# --- promises -------------------------------------------------------------------------------------


def _claims(
    served: Sequence[Served], backends: Sequence[DemoBackend], sent: int
) -> tuple[Claim, ...]:
    own = {b.name for b in backends if b.kind is Kind.SELF_HOSTED}
    refusals = [s for s in served if s.heard.work.refusal]
    restricted = [s for s in served if s.row.privacy_class == RESTRICTED and s not in refusals]
    others = [s for s in served if s not in refusals]
    answered = [s for s in others if s.heard.status == 200 and s.heard.error is None]
    kept = [s for s in restricted if {a.backend for a in s.row.attempts} <= own]
    return (
        Claim(
            f"{len(answered)} of {len(others)} requests answered",
            answered == others,
            tuple(
                f"{s.heard.work.kind}: {s.heard.status} {s.heard.error}"
                for s in others
                if s not in answered
            ),
        ),
        Claim(
            f"{len(kept)} of {len(restricted)} restricted requests tried on the self-hosted "
            "backend and nowhere else",
            kept == restricted,
        ),
        Claim(
            f"{len(refusals)} restricted for a hosted model: refused, nothing was sent anywhere",
            bool(refusals) and all(s.heard.status == 503 and not s.row.attempts for s in refusals),
        ),
        Claim(f"{len(served)} of {sent} requests are in the ledger", len(served) == sent),
        Claim(
            "the costs of all attempts add up to the costs of their requests",
            all(_sum(s.row.attempts) == s.row.cost_nano_usd for s in served),
        ),
    )


def _sum(attempts: Iterable[AttemptRecord]) -> int | None:
    costs = [a.cost_nano_usd for a in attempts if a.cost_nano_usd is not None]
    return sum(costs) if costs else None


# --- as JSON --------------------------------------------------------------------------------------


def as_document(
    summary: Summary, backends: Sequence[DemoBackend], rates: Mapping[str, Rates]
) -> dict[str, Any]:
    """The summary for programs; money in USD as exact decimal strings."""
    by_name = {b.name: b for b in backends}
    return {
        "requests": len(summary.served),
        "seconds": round(summary.seconds, 3),
        "cost_usd": usd(summary.cost_nano_usd),
        "simulated_cost_usd": usd(summary.simulated_nano_usd),
        "unpriced": summary.unpriced,
        "gateway_overhead_ms": summary.overhead_ms,
        "backends": [
            {
                "backend": line.backend,
                "kind": line.kind,
                "simulated": line.simulated,
                "about": by_name[line.backend].about,
                "priced": by_name[line.backend].priced,
                "requests": line.requests,
                "failed_attempts": line.failed_attempts,
                "tokens_in": line.tokens_in,
                "cached_tokens": line.cached,
                "tokens_out": line.tokens_out,
                "ttft_s_p50": _rounded(line.ttft_s),
                "tps_p50": _rounded(line.tps),
                "cost_usd": _usd(line.cost_nano_usd),
                "unpriced": line.unpriced,
            }
            for line in summary.lines
        ],
        "reasons": [
            {"backend": r.backend, "reason": r.word, "because": r.because, "requests": r.count}
            for r in summary.reasons
        ],
        "promises": [
            {"promise": c.text, "kept": c.held, "otherwise": list(c.otherwise)}
            for c in summary.claims
        ],
        "explained": explained(summary.explained, rates),
        "each": [_each(one) for one in summary.served],
    }


def _each(one: Served) -> dict[str, Any]:
    heard, row = one.heard, one.row
    word, because = one.reason
    return {
        "id": row.id,
        "kind": heard.work.kind,
        "session": heard.work.session,
        "turn": heard.turn,
        "alias": row.alias,
        "privacy": row.privacy_class,
        "status": heard.status,
        "outcome": row.outcome,
        "backend": row.backend,
        "reason": word,
        "because": because,
        "attempts": [
            {
                "backend": a.backend,
                "outcome": a.outcome,
                "status": a.http_status,
                "cost_usd": _usd(a.cost_nano_usd),
            }
            for a in row.attempts
        ],
        "uncached_tokens": row.uncached_tokens,
        "cached_tokens": row.cached_tokens,
        "output_tokens": row.output_tokens,
        "usage_source": row.usage_source,
        "cost_usd": _usd(row.cost_nano_usd),
        "client_ttft_s": _rounded(heard.ttft_s),
        "client_tps": _rounded(heard.tps),
        "gateway_ttft_s": None if row.ttft_us is None else round(row.ttft_us / 1e6, 4),
        "gateway_overhead_ms": None if row.overhead_us is None else row.overhead_us / 1000,
    }


def explained(one: Served, rates: Mapping[str, Rates]) -> dict[str, Any]:
    """One decision in full, from its ledger row alone; `rates` by the id of their price row."""
    row, decision = one.row, decided(one.row)
    return {
        "id": row.id,
        "alias": row.alias,
        "privacy": row.privacy_class,
        "policy": row.policy,
        "route": decision["route"],
        "candidates": [
            {
                "target": name,
                "why": why,
                "tier": tier,
                "predicted_cost_usd": _usd(cost),
                "predicted_s": None if ms is None else round(ms / 1000, 3),
            }
            for name, why, tier, cost, ms in decision["order"]
        ],
        "excluded": [
            {"target": name, "rule": rule, "detail": detail}
            for name, rule, detail in decision["excluded"]
        ],
        "attempts": [
            {
                "target": f"{a.backend}/{a.model}",
                "outcome": a.outcome,
                "status": a.http_status,
                "error": a.error_code,
                "ttft_s": None if a.ttft_us is None else round(a.ttft_us / 1e6, 3),
                "seconds": None if a.duration_us is None else round(a.duration_us / 1e6, 3),
                "uncached_tokens": a.uncached_tokens,
                "cached_tokens": a.cached_tokens,
                "output_tokens": a.output_tokens,
                "usage_source": a.usage_source,
                "cost_usd": _usd(a.cost_nano_usd),
                "price": _price(a, rates.get(a.rates_id or "")),
            }
            for a in row.attempts
        ],
        "outcome": row.outcome,
        "cost_usd": _usd(row.cost_nano_usd),
    }


def _price(attempt: AttemptRecord, rates: Rates | None) -> dict[str, Any] | None:
    """What each meter cost: a price is for so much as `per` says. `rates` are the very ones that
    held, of a service tier too."""
    if rates is None:
        return None
    usage = replace(metered(asdict(attempt)), service_tier=None)
    return {
        "id": rates.id,
        "lines": [
            {
                "meter": line.meter.value,
                "quantity": line.quantity,
                "price_usd": str(line.price),
                "per": UNIT[line.meter],
            }
            for line in rate(rates, quantities(usage)).lines
        ],
        "basis": rates.basis,
        "source": rates.source,
    }


def _usd(nano: int | None) -> str | None:
    return None if nano is None else usd(nano)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def dollars(nano: int | None) -> str:
    """Micro-dollars are enough to read; what is less is not hidden, what is unknown is said."""
    if nano is None:
        return "unpriced"
    return f"${nano / NANO_PER_USD:.6f}" if nano >= 1000 or nano == 0 else f"${usd(nano)}"
