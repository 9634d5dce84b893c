"""What the product promises, and the figure that the last test run measured for each.

A test that proves a promise calls `promise(id, figure)`. `tests/run.py` collects the figures and
writes the table into the README, so that the claim and its proof are the same text. A promise
without a figure in a full run fails that run: no claim stands unproven.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FIGURES = "WEIGHBRIDGE_TEST_FIGURES"  # the file that tests append to, set by tests/run.py
BEGIN, END = "<!-- promises: begin -->", "<!-- promises: end -->"

# id -> (what is promised, the gate, the test that proves it)
PROMISES: dict[str, tuple[str, str, str]] = {
    "I-1": (
        "kill -9 of a worker under load loses no answered request and counts none twice",
        "0 missing, 0 duplicate",
        "tests/chaos/test_kill.py",
    ),
    "I-2": (
        "every attempt has its row and its cost, the hedge's loser and the killed one too",
        "sums equal to the nano-USD",
        "tests/chaos/test_kill.py",
    ),
    "I-3": (
        "Postgres away: traffic goes on, every row arrives afterwards",
        "0 failed, 0 missing",
        "tests/chaos/test_database_away.py",
    ),
    "I-3b": (
        "rows that waited for a database killed under load catch up",
        "at least 2,000 rows/s",
        "tests/chaos/test_journal_kill.py",
    ),
    "I-4": (
        "a budget holds whatever the concurrency, and gives back what nobody settles",
        "0 over at N=200, at least 98 % used",
        "tests/chaos/test_limits.py",
    ),
    "I-5": (
        "usage beyond the hold is counted, told, and stops the next request",
        "at most 1 beyond at N=1",
        "tests/chaos/test_limits.py",
    ),
    "I-6": (
        "Redis away or slow: requests are served all the same",
        "0 failed, at most 3 slow",
        "tests/chaos/test_redis_away.py",
    ),
    "I-6b": (
        "limits while Redis is away: soft ones go on with an allowance, hard ones refuse, all is counted after",
        "0 soft refused, exact after",
        "tests/chaos/test_limits.py",
    ),
    "I-7": (
        "restricted data never reaches a backend not cleared for it, in any fault or fallback",
        "0 canary hits",
        "tests/chaos/test_privacy.py",
    ),
    "I-8": (
        "what cannot be classified (error, time-out, too large) counts as the strictest class",
        "all fail closed, in about the 50 ms allowed",
        "tests/unit/test_classify.py",
    ),
    "I-8b": (
        "detectors find identifiers and secrets of every kind they know, and do not cry wolf",
        "recall at least 99 %, false alarms at most 1 %",
        "tests/unit/policy/test_detect.py",
    ),
    "I-7p": (
        "the same over random policies, backends, faults, hedges, copies and reloads at once",
        "0 uncleared attempts of 10,000 requests",
        "tests/unit/test_privacy_storm.py",
    ),
    "I-9": (
        "after the first content a failure is an error the SDK raises, never a silent switch",
        "1 attempt each",
        "tests/chaos/test_midstream.py",
    ),
    "I-10": (
        "a client that leaves ends the upstream call, in every phase",
        "p99 at most 100 ms",
        "tests/chaos/test_disconnect.py",
    ),
    "I-11": (
        "who leaves early is billed what was said until then, by the vendor's own count if it came",
        "exact, or flagged estimated",
        "tests/unit/test_left_early.py",
    ),
    "I-12": (
        "a policy that does not load never goes live, one that does is in force in every worker",
        "0 failed, within 5 s",
        "tests/chaos/test_reload.py",
    ),
    "I-13": (
        "a price that is not known makes a row unpriced, never free; rating again prices it",
        "0 rows with cost 0",
        "tests/chaos/test_prices.py",
    ),
    "I-14": (
        "steps of the clock, up to 30 days while a request runs, corrupt no row",
        "0 laws broken",
        "tests/unit/test_clock_steps.py",
    ),
    "I-15": (
        "slow and oversized requests are refused and their connections closed",
        "all gone in time",
        "tests/chaos/test_bad_clients.py",
    ),
    "I-16": (
        "a stream is read the same wherever its bytes are cut",
        "all splits equal",
        "tests/unit/backends/test_sse.py",
    ),
    "I-17": (
        "a stalled stream is cut at its deadline with an error event",
        "within 0.5 s",
        "tests/chaos/test_midstream.py",
    ),
    "I-19": (
        "a 429 of one backend cools it for the workers of all nodes, others take over",
        "within 200 ms, at most 1 call meanwhile, at most 1.1 calls a request",
        "tests/chaos/test_cooling.py",
    ),
    "I-20": (
        "a total outage is not made worse by repeating: calls upstream per request",
        "at most 1.1 after the first burst",
        "tests/chaos/test_retry.py",
    ),
    "I-23": (
        "shutdown drains: streams end, nothing is refused that was accepted, rows are flushed",
        "0 cut, 0 lost",
        "tests/chaos/test_drain.py",
    ),
    "I-28": (
        "every answer, refusals too, has exactly one ledger row",
        "answers = rows",
        "tests/chaos/test_kill.py",
    ),
    "plan": (
        "what a gateway has recorded, a plan decides again exactly as it was",
        "every request",
        "tests/chaos/test_plan.py",
    ),
}


def promise(number: str, figure: str) -> None:
    """Record what was measured for a promise; printed too, for whoever runs one test."""
    assert number in PROMISES, number
    print(f"{number}: {figure} / {PROMISES[number][1]}")
    path = os.environ.get(FIGURES)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps([number, figure]) + "\n")


def table(figures: dict[str, str]) -> str:
    """The README's table."""
    lines = ["| | Promise | Gate | Last run | Proof |", "|---|---|---|---|---|"]
    for number, (what, gate, proof) in PROMISES.items():
        measured = figures.get(number, "not measured")
        lines.append(f"| {number} | {what} | {gate} | {measured} | `{proof}` |")
    return "\n".join(lines)
