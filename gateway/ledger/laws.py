"""What must hold of every request in the ledger, as a table of laws. Pure.

A law looks at one request with its attempts, and at the bundle it was decided by where the texts
of that are known; what needs other rows (orphans, duplicates, journals) is `ledger.audit`'s. Rows
are mappings with the names of `RequestRecord` and `AttemptRecord`: those of the database, or
`asdict` of a record.

INVARIANTS
- A law that lacks what it needs (a bundle that cannot be read) does not apply, and is not counted.
- One mistake in a row breaks the law about it and, where it can be helped, no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from gateway.domain.catalog import Target
from gateway.domain.money import Meter, Rates, Unpriced, rate
from gateway.domain.outcome import Outcome
from gateway.domain.rating import charge, quantities
from gateway.domain.request import Usage
from gateway.ledger.prices import PriceBook

Row = Mapping[str, Any]

ROUNDED_US = 3  # a start, a duration and their sum are each rounded to whole microseconds
FIRST_DAY_US = 1_577_836_800_000_000  # 2020-01-01: who started before had no clock
FREE = "free:"  # how the identifier of rates that are declared free begins
_TOKENS = ("uncached_tokens", "cached_tokens", "output_tokens")
_USAGE = (*_TOKENS, "reasoning_tokens", "other_meters", "usage_source")
_NO_USAGE = dict.fromkeys(_USAGE) | {"usage_source": "none"}
_TIMES = ("ttft_us", "tpot_us", "tps", "duration_us", "overhead_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What a bundle says that rows can be held against. Ranks ascend with strictness."""

    ranks: Mapping[str, int]  # privacy class -> rank
    clearance: Mapping[str, int]  # backend -> the highest rank it may receive
    prices: PriceBook

    def rates(self, target: Target, rates_id: str) -> Rates | None:
        """The rates of that identifier, whatever their day."""
        return self.prices.by_id(target, rates_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request as it is to be judged.

    `book` is None where its bundle is not kept or cannot be read. `in_versions`: its policy digest
    was in force at some time. `original` is the request that a copy is of, None where there is
    none; `waiting` where it may still come.
    """

    row: Row
    attempts: Sequence[Row]
    book: Book | None = None
    in_versions: bool = True
    original: Row | None = None
    waiting: bool = False

    @property
    def interrupted(self) -> bool:
        return bool(self.row["outcome"] == Outcome.INTERRUPTED.value)

    @property
    def answering(self) -> Row | None:
        """The attempt whose tokens are the request's: the one that answered, else the last that
        was weighed."""
        if self.row["http_status"] == 200:
            for attempt in self.attempts:
                if attempt["outcome"] == self.row["outcome"]:
                    return attempt
        weighed = [a for a in self.attempts if a["usage_source"] != "none"]
        return weighed[-1] if weighed else None


# --- rows of a request and their sums ----------------------------------------------------------


def _numbered(case: Case) -> str | None:
    numbers = [attempt["number"] for attempt in case.attempts]
    if numbers != list(range(1, len(numbers) + 1)):
        return f"attempts are numbered {numbers}"
    if case.row["attempt_count"] != len(numbers):
        return f"attempt_count {case.row['attempt_count']}, but {len(numbers)} attempts"
    return None


def _summed(case: Case) -> str | None:
    costs = [a["cost_nano_usd"] for a in case.attempts if a["cost_nano_usd"] is not None]
    due, booked = sum(costs) if costs else None, case.row["cost_nano_usd"]
    return None if due == booked else f"cost {booked}, the attempts cost {due} nano-USD"


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


def _usage(case: Case) -> str | None:
    for what, row in _named(case):
        source, tokens = row["usage_source"], [row[name] for name in _TOKENS]
        reasoning = row["reasoning_tokens"]
        if source == "none":
            if any(count is not None for count in (*tokens, reasoning)):
                return f"{what}: tokens without a usage_source"
        elif source not in {"reported", "estimated"}:
            return f"{what}: usage_source {source!r}"
        elif None in tokens:
            return f"{what}: usage {source}, but tokens are missing"
        elif min(*tokens, reasoning or 0) < 0:
            return f"{what}: negative tokens"
        elif (reasoning or 0) > row["output_tokens"]:
            return f"{what}: {reasoning} reasoning tokens of {row['output_tokens']}"
    return None


# --- money -------------------------------------------------------------------------------------


def _priced(case: Case) -> str | None:
    for attempt in case.attempts:
        if (attempt["cost_nano_usd"] is None) != (attempt["rates_id"] is None):
            return f"attempt {attempt['number']}: cost and rates_id must come together"
    weighed = [a for a in case.attempts if a["usage_source"] != "none"]
    due = bool(weighed) and all(a["cost_nano_usd"] is not None for a in weighed)
    if bool(case.row["priced"]) != due:
        return f"priced is {bool(case.row['priced'])}, its attempts say {due}"
    return None


def _never_zero(case: Case) -> str | None:
    free = [(attempt["rates_id"] or "").startswith(FREE) for attempt in case.attempts]
    for attempt, is_free in zip(case.attempts, free, strict=True):
        if attempt["cost_nano_usd"] == 0 and _said(attempt) and not is_free:
            return f"attempt {attempt['number']}: cost 0 with tokens"
    row = case.row
    if row["cost_nano_usd"] == 0 and _said(row) and not any(free):
        return "cost 0 with tokens"
    declared = any((a["rates_id"] or "").startswith(FREE) for a in case.attempts)
    if bool(row.get("declared_free", declared)) != declared:
        return f"declared_free is {not declared}, its attempts say {declared}"
    return None


def _known(case: Case) -> str | None:
    assert case.book is not None
    for attempt in case.attempts:
        found = attempt["rates_id"]
        if found is not None and case.book.rates(_target(attempt), found) is None:
            return f"attempt {attempt['number']}: no rates {found!r} of {_target(attempt)}"
    return None


def _dated(case: Case) -> str | None:
    for attempt in case.attempts:
        if attempt["rates_id"] is None or attempt["usage_source"] == "none":
            continue
        due = _due(case, attempt)
        if due != attempt["rates_id"]:
            return f"attempt {attempt['number']}: {attempt['rates_id']}, in force was {due}"
    return None


def _rated(case: Case) -> str | None:
    for attempt in case.attempts:
        if attempt["usage_source"] == "none":
            continue
        rates, booked = _rates(case, attempt), attempt["cost_nano_usd"]
        if booked is None:
            if attempt["rates_id"] is None and _due(case, attempt) is not None:
                return f"attempt {attempt['number']}: no cost, but there was a price"
        elif rates is not None and min(attempt[name] or 0 for name in _TOKENS) >= 0:
            # What its id names, and nothing else: whether it was in force is another law's.
            plain = rates if rates.marginal else replace(rates, tiers=())
            due = rate(plain, quantities(_used(attempt))).nano
            if due != booked:
                return f"attempt {attempt['number']}: {booked} nano-USD, {rates.id} makes it {due}"
    return None


# --- times -------------------------------------------------------------------------------------


def _times(case: Case) -> str | None:
    for what, row in _named(case):
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
    for what, row in _named(case):
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
    if str(_target(first)) != target or first["why"] not in {why, None}:
        return f"the first attempt went to {_target(first)} ({first['why']}), not {target} ({why})"
    candidates = iter(target for target, _ in order)
    for attempt in case.attempts:
        if str(_target(attempt)) not in candidates:  # reads on: in the order they were decided
            return f"attempt {attempt['number']}: {_target(attempt)} was not next in the decision"
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


class Law(NamedTuple):
    """`says` is the law in one sentence, `fix` what to do where it is broken."""

    name: str
    says: str
    fix: str
    applies: Callable[[Case], bool]
    broken: Callable[[Case], str | None]


def _always(_: Case) -> bool:
    return True


def _sent(case: Case) -> bool:
    return bool(case.attempts)


def _with_book(case: Case) -> bool:
    return bool(case.attempts) and case.book is not None


def _routed(case: Case) -> bool:
    """A row that was closed after a crash has lost its decision; a limit refuses before it."""
    decision = case.row["decision"]
    return (_has_owner(case) and not case.interrupted) or (
        decision is not None and "limit" not in decision
    )


def _is_copy(case: Case) -> bool:
    return case.row["shadow_of"] is not None


def _has_owner(case: Case) -> bool:
    return bool(case.attempts) and case.row["shadow_of"] is None


_CHANGED = "Somebody changed the row: restore it from a backup, then look at who may write there."
_RATED = "Rate the rows again from the bundle's prices, and tell finance the difference."
_BUG = "Keep the row and report it: the gateway must not write such a row."

LAWS: Final = (
    Law("attempts_numbered", "Attempts are numbered 1 to attempt_count.", _CHANGED, _always, _numbered),  # noqa: E501
    Law("cost_sum", "A request costs what its attempts cost.", _CHANGED, _always, _summed),
    Law("answer", "Tokens, backend and model are those of the attempt that answered.", _CHANGED, _always, _answer),  # noqa: E501
    Law("usage", "Tokens are whole, not negative, and say who counted them.", _BUG, _always, _usage),  # noqa: E501
    Law("priced", "A row is priced where every attempt with usage has a cost and its rates.", _CHANGED, _always, _priced),  # noqa: E501
    Law("never_zero", "Nothing with tokens costs 0, unless its rates are declared free.", _RATED, _always, _never_zero),  # noqa: E501
    Law("rates_known", "Every rates_id is in the price book of the row's bundle.", _CHANGED, _with_book, _known),  # noqa: E501
    Law("rates_in_force", "Rates are those in force when the request arrived.", _RATED, _with_book, _dated),  # noqa: E501
    Law("cost_rated", "Tokens at those rates make the cost, to the nano-USD.", _RATED, _with_book, _rated),  # noqa: E501
    Law("times", "Times are there, not negative, and the parts fit into the whole.", _BUG, _always, _times),  # noqa: E501
    Law("attempt_span", "An attempt lies inside its request, after the one before.", _BUG, _sent, _inside),  # noqa: E501
    Law("outcome", "Outcome, status, error code and attempts fit together.", _BUG, _always, _ended),
    Law("one_answer", "At most one attempt answers, and the request is ok if one did.", _BUG, _always, _one_answer),  # noqa: E501
    Law("privacy", "No attempt went to a backend not cleared for the row's class.", "Treat it as a disclosure: tell security, with the request ids.", _with_book, _private),  # noqa: E501
    Law("policy_known", "The policy digest of every row was in force.", _CHANGED, _always, _versioned),  # noqa: E501
    Law("decision", "The decision record explains where the attempts went, in its order.", _BUG, _routed, _decided),  # noqa: E501
    Law("key", "What was sent on has a key; copies have none.", _BUG, _has_owner, _owned),
    Law("copies", "A copy has no key, and the request it copies is there.", _BUG, _is_copy, _copied),  # noqa: E501
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


# --- small words -------------------------------------------------------------------------------


def _named(case: Case) -> list[tuple[str, Row]]:
    return [("", case.row), *((f"attempt {a['number']}", a) for a in case.attempts)]


def _said(row: Row) -> bool:
    return any(row[name] for name in _TOKENS)


def _target(attempt: Row) -> Target:
    return Target(attempt["backend"], attempt["model"])


def _rates(case: Case, attempt: Row) -> Rates | None:
    if case.book is None or attempt["rates_id"] is None:
        return None
    return case.book.rates(_target(attempt), attempt["rates_id"])


def _due(case: Case, attempt: Row) -> str | None:
    """The id of the rates in force for it when the request arrived; None where it had no price."""
    assert case.book is not None
    rates = case.book.prices.rates(_target(attempt), case.row["started_at_us"])
    try:
        return None if rates is None else charge(rates, _used(attempt))[0]
    except Unpriced:
        return None


def _used(attempt: Row) -> Usage:
    uncached, cached, output = (attempt[name] or 0 for name in _TOKENS)
    return Usage(
        uncached,
        cached,
        output,
        attempt["reasoning_tokens"] or 0,
        others={Meter(name): n for name, n in (attempt.get("other_meters") or {}).items()},
        service_tier=attempt.get("service_tier"),
    )
