"""An inference engine as the gateway understands it: its phases, its room, what a request needs.

The words that `fleet` fills from observation and `policy` judges by. Pure. Tokens of KV cache are
the currency: a request that runs holds its prompt and what it has written so far, and an engine
that runs out of them throws somebody's work away (preemption) and computes it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Phase(StrEnum):
    """Where a replica is in its life. Values are stored and shown."""

    COLD = "cold"  # nothing runs, nothing is on its way
    STARTING = "starting"  # on its way: weights load, the engine warms up
    WARM = "warm"  # serves
    DRAINING = "draining"  # finishes what it has, takes nothing new
    ASLEEP = "asleep"  # runs without its weights in memory; can be woken
    FAILED = "failed"  # was there, died or hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at an engine's `/metrics`. None: it does not say.

    `at` in monotonic seconds. `waiting` are requests the engine has queued, `running` its batch;
    `kv_used` the share (0..1) of the KV cache that running requests hold. `kv_tokens` and
    `running_max` are its capacity. Counters are since its start; what ends in `_per_s`, and the
    means in milliseconds, are since the reading before.
    """

    at: float
    running: int | None = None
    waiting: int | None = None
    kv_used: float | None = None
    kv_tokens: int | None = None
    block_tokens: int | None = None
    running_max: int | None = None
    preemptions: int | None = None
    prompt_tokens_per_s: float | None = None
    output_tokens_per_s: float | None = None
    prefix_hit_share: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    asleep: bool = False


class Room(NamedTuple):
    """What one replica can still take, as of a snapshot; part of the view a decision is made on.

    `name` is what it is observed as (`Backend.seen_as`). `open`: healthy, its
    circuit closed, not cooling. `ramp` (0..1) is the share of its usual traffic a replica that has
    just come back may take. `in_flight` is our own count, exact; `in_flight_max` what it takes at
    once, learnt or stated. `kv_free` is what is left of `kv_tokens` once all that we have sent, and
    all that the engine reported, is taken off. `prefill_tokens` are prompt tokens of ours that
    wait there for their first token, `prefill_tps` how many it computes a second, `first_ms` what a
    first token takes beside that. `waiting` is the engine's own queue. `read_ms` is the age of its
    last reading. `answer_s` is how long an answer keeps its room, `next_s` when the oldest should
    end. `queued` are the tokens of those who wait here for the backend, by priority, the first to
    be served first; nobody: empty. None: not known.
    """

    name: str
    phase: Phase = Phase.WARM
    open: bool = True
    ready_in_s: float | None = None
    ramp: float = 1.0
    in_flight: int = 0
    in_flight_max: int | None = None
    kv_tokens: int | None = None
    kv_free: int | None = None
    waiting: int | None = None
    prefill_tokens: int = 0
    prefill_tps: float | None = None
    tpot_ms: float | None = None
    read_ms: int | None = None
    first_ms: float | None = None
    answer_s: float | None = None
    next_s: float | None = None
    queued: tuple[int, ...] = ()


class Need(NamedTuple):
    """What a request will take of an engine, in tokens: its prompt and its expected output."""

    prompt_tokens: int
    output_tokens: int

    @property
    def kv_tokens(self) -> int:
        """At its end, when it holds most."""
        return self.prompt_tokens + self.output_tokens
