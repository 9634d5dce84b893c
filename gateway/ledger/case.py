"""One request before the audit: its rows, and what they are held against. Pure.

Rows are mappings with the names of `RequestRecord` and `AttemptRecord`: those of the database, or
`asdict` of a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gateway.domain.catalog import Target
from gateway.domain.money import Rates
from gateway.domain.outcome import Outcome
from gateway.ledger.prices import PriceBook

Row = Mapping[str, Any]

TOKENS: Final = ("uncached_tokens", "cached_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What a bundle says that rows can be held against. Ranks ascend with strictness."""

    ranks: Mapping[str, int]  # privacy class -> rank
    clearance: Mapping[str, int]  # backend -> the highest rank it may receive
    prices: PriceBook

    def rates(self, target: Target, rates_id: str) -> Rates | None:
        """The rates of that identifier, whatever their time."""
        return self.prices.by_id(target, rates_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request as it is to be judged.

    `book` is None where its bundle is not kept or cannot be read. `in_versions`: its policy digest
    was in force at some time. `original` is the request that a copy is of, None where there is
    none; `waiting` where it may still come. `pruned`: what was decided may have been deleted.
    """

    row: Row
    attempts: Sequence[Row]
    book: Book | None = None
    in_versions: bool = True
    original: Row | None = None
    waiting: bool = False
    pruned: bool = False

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

    def named(self) -> Iterator[tuple[str, Row]]:
        """The request and its attempts, with what to call each."""
        yield "", self.row
        for attempt in self.attempts:
            yield f"attempt {attempt['number']}", attempt


class Law(NamedTuple):
    """`says` is the law in one sentence, `fix` what to do where it is broken."""

    name: str
    says: str
    fix: str
    applies: Callable[[Case], bool]
    broken: Callable[[Case], str | None]


def always(_: Case) -> bool:
    return True


def with_book(case: Case) -> bool:
    return bool(case.attempts) and case.book is not None


def went_to(attempt: Row) -> Target:
    """Where an attempt went."""
    return Target(attempt["backend"], attempt["model"])


CHANGED: Final = (
    "Somebody changed the row: restore it from a backup, then look at who may write there."
)
RATED: Final = "`weighbridge prices rerate` of that time corrects it; tell finance the difference."
BUG: Final = "Keep the row and report it: the gateway must not write such a row."
