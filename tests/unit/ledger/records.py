"""Records as dispatch would make them."""

from __future__ import annotations

from gateway.domain.outcome import AttemptRecord, Outcome, RequestRecord

STARTED_US = 1_790_000_000_000_000


def attempt(number: int = 1, **fields) -> AttemptRecord:
    values = {
        "number": number,
        "backend": "openai",
        "model": "gpt-4.1-mini",
        "started_at_us": STARTED_US + number,
        "outcome": Outcome.OK.value,
        "http_status": 200,
        "uncached_tokens": 100,
        "cached_tokens": 20,
        "output_tokens": 50,
        "reasoning_tokens": 5,
        "usage_source": "reported",
        "cost_nano_usd": 120_000,
        "rates_id": "openai/gpt-4.1-mini@2026-01-01",
        "ttft_us": 200_000,
        "duration_us": 900_000,
    }
    return AttemptRecord(**(values | fields))


def request(request_id: str, **fields) -> RequestRecord:
    """A priced, served request with one attempt."""
    attempts = fields.pop("attempts", None)
    values = {
        "id": request_id,
        "started_at_us": STARTED_US,
        "endpoint": "chat/completions",
        "alias": "fast",
        "key_id": "0123456789ab",
        "tags": {"team": "search", "größe": "XL"},
        "privacy_class": "internal",
        "session": "s-1",
        "stream": True,
        "backend": "openai",
        "model": "gpt-4.1-mini",
        "policy": "balanced",
        "policy_digest": "abc",
        "route": "r",
        "decision": {"route": "r", "order": [["openai/x", "cheapest", 0, 12, 1.5]], "excluded": []},
        "outcome": Outcome.OK.value,
        "http_status": 200,
        "uncached_tokens": 100,
        "cached_tokens": 20,
        "output_tokens": 50,
        "reasoning_tokens": 5,
        "usage_source": "reported",
        "cost_nano_usd": 120_000,
        "priced": True,
        "ttft_us": 200_000,
        "tpot_us": 14285.7,
        "tps": 70.0,
        "duration_us": 900_000,
        "overhead_us": 400,
        "worker": "0",
    }
    attempts = [attempt()] if attempts is None else attempts
    return RequestRecord(**(values | fields), attempts=attempts, attempt_count=len(attempts))


def opened(request_id: str, **fields) -> RequestRecord:
    """A request as it is when its first attempt starts."""
    starting = AttemptRecord(
        number=1, backend="openai", model="gpt-4.1-mini", started_at_us=STARTED_US + 1
    )
    values = {
        "id": request_id,
        "started_at_us": STARTED_US,
        "endpoint": "chat/completions",
        "alias": "fast",
        "attempts": [starting],
    }
    return RequestRecord(**(values | fields))
