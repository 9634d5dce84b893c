"""What must hold of every request in the ledger, as a table of laws. Pure.

A law looks at one request with its attempts, and at the bundle it was decided by where the texts
of that are known; what needs other rows (orphans, duplicates, journals) is `ledger.audit`'s. What
is said of usage and money stands in `laws_of_money`.

INVARIANTS
- A law that lacks what it needs (a bundle that cannot be read) does not apply, and is not counted.
- One mistake in a row breaks the law about it and, where it can be helped, no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from gateway.domain.outcome import Outcome
from gateway.ledger import laws_of_money
from gateway.ledger.case import (
    BUG,
    CHANGED,
    TOKENS,
    Book,
    Case,
    Law,
    Row,
    always,
    went_to,
    with_book,
)

__all__ = ["LAWS", "Book", "Case", "Law", "Row", "broken", "check"]

ROUNDED_US = 3  # a start, a duration and their sum are each rounded to whole microseconds
FIRST_DAY_US = 1_577_836_800_000_000  # 2020-01-01: who started before had no clock
_USAGE = (*TOKENS, "reasoning_tokens", "other_meters", "usage_source")
_NO_USAGE = dict.fromkeys(_USAGE) | {"usage_source": "none"}
_TIMES = ("ttft_us", "tpot_us", "tps", "duration_us", "overhead_us")

# --- rows of a request and their sums ----------------------------------------------------------


def _numbered(case: Case) -> str | None:
    numbers = [attempt["number"] for attempt in case.attempts]
    if numbers != list(range(1, len(numbers) + 1)):
        return f"attempts are numbered {numbers}"
    if case.row["attempt_count"] != len(numbers):
        return f"attempt_count {case.row['attempt_count']}, but {len(numbers)} attempts"
    return None


def _answer(case: Case) -> str | None:
    row, answering = case.row, case.answering
    for name in _USAGE:
        due = _NO_USAGE[name] if answering is None else answering[name]
        if row[name] != due:
            return f"{name} {row[name]}, the attempt that counts has {due}"
    if case.interrupted:
        return None
    served = case.attempts[-1] if case.attempts else None
    if answering is not None and row["http_status"] == 200:
        served = answering
    for name in ("backend", "model"):
        due = None if served is None else served[name]
        if row[name] != due:
            return f"{name} {row[name]}, the attempt went to {due}"
    return None


# --- times -------------------------------------------------------------------------------------


def _times(case: Case) -> str | None:
    for what, row in case.named():
        ended = row["outcome"] != Outcome.INTERRUPTED.value
        times = {name: row[name] for name in _TIMES if row.get(name) is not None}
        if row["started_at_us"] < FIRST_DAY_US:
            return f"{what}: started before 2020"
        for name, value in times.items():
            if value < 0:
                return f"{what}: {name} {value}"
        whole = times.get("duration_us")
        if whole is None:
            if ended:
                return f"{what}: it ended, but has no duration"
            continue
        for name in ("ttft_us", "overhead_us"):
            if times.get(name, 0) > whole:
                return f"{what}: {name} {times[name]} of {whole} in all"
    return _speed(case)


def _speed(case: Case) -> str | None:
    """What was worked out from the times, again."""
    row, answering = case.row, case.answering
    output, whole, first = row["output_tokens"], row["duration_us"], row["ttft_us"] or 0
    if row["tpot_us"] is not None and None not in (output, whole):
        after_first = row["tpot_us"] * (output - 1)
        if first + after_first > whole + ROUNDED_US + output / 1000:
            return f"tpot_us {row['tpot_us']} of {output} tokens is longer than the whole"
    took = None if answering is None else answering["duration_us"]
    if row["tps"] is not None and answering is not None and took is not None:
        count = (answering["output_tokens"] or 0) * 1e6
        low, high = count / (took + 1), count / max(took - 1, 0.5)
        if not low - 0.001 <= row["tps"] <= high + 0.001:
            return f"tps {row['tps']}, tokens and duration make {count / max(took, 1):.3f}"
    return None


def _inside(case: Case) -> str | None:
    start, whole = case.row["started_at_us"], case.row["duration_us"]
    before = start
    for attempt in case.attempts:
        at, took = attempt["started_at_us"], attempt["duration_us"]
        if at < before:
            return f"attempt {attempt['number']} started {before - at} us too early"
        if None not in (whole, took) and at + took > start + whole + ROUNDED_US:
            over = at + took - start - whole
            return f"attempt {attempt['number']} ended {over} us after its request"
        before = at
    return None


# --- endings -----------------------------------------------------------------------------------


class Ending(NamedTuple):
    """What goes with an outcome. `error`: it has a code, it has none, or either (None);
    `attempts` likewise."""

    statuses: frozenset[int]
    error: bool | None
    attempts: bool | None = None


_CLIENT = frozenset(range(400, 500))
_FAILED = frozenset({429, *range(500, 600)})
_ANY = frozenset({0, *range(100, 600)})

ENDINGS: Final[Mapping[str, Ending]] = {
    Outcome.OK.value: Ending(frozenset({200}), error=False, attempts=True),
    Outcome.REFUSED.value: Ending(_CLIENT, error=True, attempts=False),
    Outcome.NO_ROUTE.value: Ending(frozenset({429, 503}), error=True),
    Outcome.REJECTED.value: Ending(_CLIENT, error=True, attempts=True),
    Outcome.FAILED.value: Ending(_FAILED, error=True, attempts=True),
    Outcome.FAILED_MIDSTREAM.value: Ending(frozenset({200}), error=True, attempts=True),
    Outcome.CANCELLED.value: Ending(frozenset({0, 200}), error=False),
    Outcome.INTERRUPTED.value: Ending(frozenset({0}), error=False, attempts=True),
    Outcome.INTERNAL.value: Ending(frozenset({500, 503}), error=True),
}
ATTEMPT_ENDINGS: Final[Mapping[str, Ending]] = {
    Outcome.OK.value: Ending(frozenset({200}), error=False),
    Outcome.REJECTED.value: Ending(_ANY, error=True),
    Outcome.FAILED.value: Ending(_ANY, error=True),
    Outcome.FAILED_MIDSTREAM.value: Ending(frozenset({0}), error=None),
    Outcome.CANCELLED.value: Ending(frozenset({0}), error=False),
    Outcome.INTERRUPTED.value: Ending(frozenset({0}), error=False),
    Outcome.HEDGE_LOST.value: Ending(frozenset({0}), error=False),
    Outcome.INTERNAL.value: Ending(frozenset({0}), error=None),
}


def _ended(case: Case) -> str | None:
    for what, row in case.named():
        ending = (ATTEMPT_ENDINGS if what else ENDINGS).get(row["outcome"])
        status, code = row["http_status"], row["error_code"]
        if ending is None:
            return f"{what}: no outcome is called {row['outcome']!r}"
        # Nobody is told how a copy ended.
        if status not in ending.statuses and not (status == 0 and case.row["shadow_of"]):
            return f"{what}: {row['outcome']} with status {status}"
        if ending.error is not None and (code is not None) != ending.error:
            return f"{what}: {row['outcome']} with error_code {code}"
        if row["outcome"] == Outcome.INTERRUPTED.value and not case.interrupted:
            return f"{what}: interrupted, in a request that ended"
    tried = ENDINGS[case.row["outcome"]].attempts
    if tried is not None and tried != bool(case.attempts):
        return f"{case.row['outcome']} with {len(case.attempts)} attempts"
    return None


def _one_answer(case: Case) -> str | None:
    outcomes = [attempt["outcome"] for attempt in case.attempts]
    answers = outcomes.count(Outcome.OK.value)
    if answers != (case.row["outcome"] == Outcome.OK.value):
        return f"{case.row['outcome']}, but {answers} attempts are ok"
    if outcomes and set(outcomes) == {Outcome.HEDGE_LOST.value}:
        return "a hedge was lost, but nobody won"
    return None


# --- why it went where it went -----------------------------------------------------------------


def _private(case: Case) -> str | None:
    book, name = case.book, case.row["privacy_class"]
    assert book is not None
    rank = book.ranks.get(name)
    if rank is None:
        return f"privacy class {name!r} is not in its catalog"
    for attempt in case.attempts:
        clearance = book.clearance.get(attempt["backend"])
        if clearance is None or clearance < rank:
            return f"attempt {attempt['number']}: {attempt['backend']} is not cleared for {name}"
    return None


def _versioned(case: Case) -> str | None:
    digest = str(case.row["policy_digest"])[:12]
    return None if case.in_versions else f"policy digest {digest} was never in force"


def _decided(case: Case) -> str | None:
    decision, row = case.row["decision"], case.row
    if decision is None:
        return "it was sent on, but there is no decision"
    try:
        order = [(entry[0], entry[1]) for entry in decision["order"]]
        route = decision["route"]
    except (TypeError, KeyError, IndexError):
        return "the decision cannot be read"
    if route != row["route"]:
        return f"route {row['route']}, decided was {route}"
    if not case.attempts:
        return None
    first = case.attempts[0]
    target, why = order[0] if order else ("nobody", None)
    if str(went_to(first)) != target or first["why"] not in {why, None}:
        return f"the first attempt went to {went_to(first)} ({first['why']}), not {target} ({why})"
    candidates = iter(target for target, _ in order)
    for attempt in case.attempts:
        if str(went_to(attempt)) not in candidates:  # reads on: in the order they were decided
            return f"attempt {attempt['number']}: {went_to(attempt)} was not next in the decision"
    return None


def _copied(case: Case) -> str | None:
    row, original = case.row, case.original
    if row["key_id"] is not None or row["tags"]:
        return "a copy has a key or tags: somebody would be billed for it"
    if original is None:
        return None if case.waiting else f"there is no request {row['shadow_of']}"
    if original["shadow_of"] is not None:
        return f"{row['shadow_of']} is a copy itself"
    if original["privacy_class"] != row["privacy_class"]:
        return f"class {row['privacy_class']}, of the original {original['privacy_class']}"
    return None


def _owned(case: Case) -> str | None:
    return "it was sent on, but has no key" if case.row["key_id"] is None else None


# --- the table ---------------------------------------------------------------------------------


def _sent(case: Case) -> bool:
    return bool(case.attempts)


def _routed(case: Case) -> bool:
    """A row that was closed after a crash has lost its decision; a limit refuses before it; old
    ones are deleted where somebody said so."""
    decision = case.row["decision"]
    if decision is None and case.pruned:
        return False
    return (_has_owner(case) and not case.interrupted) or (
        decision is not None and "limit" not in decision
    )


def _is_copy(case: Case) -> bool:
    return case.row["shadow_of"] is not None


def _has_owner(case: Case) -> bool:
    return bool(case.attempts) and case.row["shadow_of"] is None


LAWS: Final = (
    Law("attempts_numbered", "Attempts are numbered 1 to attempt_count.", CHANGED, always, _numbered),  # noqa: E501
    *laws_of_money.LAWS,
    Law("answer", "Tokens, backend and model are those of the attempt that answered.", CHANGED, always, _answer),  # noqa: E501
    Law("times", "Times are there, not negative, and the parts fit into the whole.", BUG, always, _times),  # noqa: E501
    Law("attempt_span", "An attempt lies inside its request, after the one before.", BUG, _sent, _inside),  # noqa: E501
    Law("outcome", "Outcome, status, error code and attempts fit together.", BUG, always, _ended),
    Law("one_answer", "At most one attempt answers, and the request is ok if one did.", BUG, always, _one_answer),  # noqa: E501
    Law("privacy", "No attempt went to a backend not cleared for the row's class.", "Treat it as a disclosure: tell security, with the request ids.", with_book, _private),  # noqa: E501
    Law("policy_known", "The policy digest of every row was in force.", CHANGED, always, _versioned),  # noqa: E501
    Law("decision", "The decision record explains where the attempts went, in its order.", BUG, _routed, _decided),  # noqa: E501
    Law("key", "What was sent on has a key; copies have none.", BUG, _has_owner, _owned),
    Law("copies", "A copy has no key, and the request it copies is there.", BUG, _is_copy, _copied),
)  # fmt: skip


def broken(case: Case) -> list[tuple[Law, str]]:
    """The laws that the request breaks, and how."""
    applying = (law for law in LAWS if law.applies(case))
    return [(law, what) for law in applying if (what := check(law, case)) is not None]


def check(law: Law, case: Case) -> str | None:
    """How the request breaks a law that applies to it, None where it keeps it."""
    try:
        what = law.broken(case)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        return f"the row cannot be read: {error}"
    return None if what is None else what.removeprefix(": ")
