"""What the demo sends: a small mixed workload, as data. Pure.

Chat sessions, long documents, a batch of short extractions, restricted data, one request that must
be refused, and one whose first backend fails. All people and figures in the texts are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.domain.request import CHARS_PER_TOKEN

SMALL, LARGE, PRIVATE = "chat-small", "chat-large", "private-chat"
RESTRICTED = "restricted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One request, or the turns of one session, which go one after the other.

    `kind` is what the tables call it; `refusal` is set where the gateway must not serve it.
    """

    kind: str
    alias: str
    turns: tuple[str, ...]
    system: str = ""
    output_tokens_max: int = 20
    stream: bool = True
    privacy: str | None = None
    session: str | None = None
    refusal: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """Work that is sent side by side, `at_once` pieces of it at a time.

    `fault` names a backend that answers 503 while the stage runs.
    """

    title: str
    works: tuple[Work, ...]
    at_once: int = 1
    fault: str | None = None

    @property
    def requests(self) -> int:
        return sum(len(work.turns) for work in self.works)


def workload(*, quick: bool, window_tokens: int | None, faulty: Faulty | None) -> list[Stage]:
    """All stages. `window_tokens` is the self-hosted model's context, None if not known.

    `faulty` says which stand-ins can be told to fail; None: nobody can, so nothing is shown of it.
    """
    documents = _documents(1 if quick else 4, window_tokens)
    sentences = SENTENCES[: 6 if quick else len(SENTENCES)]
    stages = [
        Stage("chat sessions and long documents", (*_sessions(quick), *documents), at_once=5),
        Stage("a batch, 8 at a time", tuple(map(_extraction, sentences)), at_once=8),
        Stage("restricted data", _restricted(1 if quick else 3)),
        Stage("restricted data for a hosted model", (_refused(),)),
    ]
    fault = _fault(window_tokens, faulty)
    return [*stages, fault] if fault is not None else stages


@dataclass(frozen=True, slots=True)
class Faulty:
    """The stand-ins by name; None where the backend is real and is left alone."""

    managed: str | None
    closed_api: str | None


def _sessions(quick: bool) -> tuple[Work, ...]:
    turns = 2 if quick else 4
    brief = "Answer in one short sentence."
    return (
        Work(kind="chat", alias=SMALL, session="travel", system=brief, turns=TRAVEL[:turns]),
        Work(
            kind="chat, restricted",
            alias=SMALL,
            session="patient",
            system=brief,
            turns=PATIENT[:turns],
            privacy=RESTRICTED,
        ),
        Work(kind="chat, large model", alias=LARGE, session="design", turns=DESIGN[:turns]),
    )


def _documents(count: int, window_tokens: int | None) -> tuple[Work, ...]:
    return tuple(
        Work(
            kind="long document",
            alias=SMALL,
            turns=(document(number, _long(window_tokens)),),
            output_tokens_max=24,
        )
        for number in range(1, count + 1)
    )


def _long(window_tokens: int | None) -> int:
    """Characters of a document: past a small window, moderate where the window is large."""
    tokens = 2600 if window_tokens is None else int(window_tokens * 1.25)
    return min(tokens, 3000) * CHARS_PER_TOKEN


def _extraction(sentence: str) -> Work:
    return Work(
        kind="batch",
        alias=SMALL,
        turns=(f"Which city is named here? {sentence}",),
        output_tokens_max=8,
        stream=False,
    )


def _restricted(count: int) -> tuple[Work, ...]:
    """One says so by its header, one asks for an alias that is never less than restricted."""
    works = (
        Work(kind="restricted", alias=SMALL, turns=(SALARY,), privacy=RESTRICTED),
        Work(kind="restricted", alias=PRIVATE, turns=(ACCOUNT,)),
        Work(kind="restricted", alias=SMALL, turns=(DIAGNOSIS,), privacy=RESTRICTED),
    )
    return works[:count]


def _refused() -> Work:
    return Work(
        kind="to be refused", alias=LARGE, turns=(SALARY,), privacy=RESTRICTED, refusal=True
    )


def _fault(window_tokens: int | None, faulty: Faulty | None) -> Stage | None:
    """A request whose preferred backend is down just then."""
    if faulty is None:
        return None
    kind = "first choice fails"
    too_long = window_tokens is not None and _long(window_tokens) > window_tokens * CHARS_PER_TOKEN
    if too_long and faulty.managed is not None:
        text = document(99, _long(window_tokens))
        work = Work(kind=kind, alias=SMALL, turns=(text,), output_tokens_max=24)
        return Stage(f"{faulty.managed} answers 503", (work,), fault=faulty.managed)
    if faulty.closed_api is not None:
        work = Work(kind=kind, alias=LARGE, turns=("What is a circuit breaker in software?",))
        return Stage(f"{faulty.closed_api} answers 503", (work,), fault=faulty.closed_api)
    return None


# --- texts ----------------------------------------------------------------------------------------

TRAVEL = (
    "What is the capital of Portugal?",
    "Which river does it lie on?",
    "Which dish should I try there?",
    "Is it warm in October?",
)
PATIENT = (
    "Patient Jo Lindqvist, born 1958, has a cough for three weeks. What may it be?",
    "She also has a fever. What should the nurse measure?",
    "Her pulse is 96. Is that high?",
    "When should she come back?",
)
DESIGN = (
    "Name one reason to put a gateway before several model vendors.",
    "What goes wrong without one?",
    "How would you roll it out?",
    "What would you measure first?",
)
SALARY = "Employee 4471, Kim Aalto, earns 61,200 a year. Is that above 5,000 a month?"
ACCOUNT = "Account DE00 1234 belongs to Mr Moreau. Whose account is it?"
DIAGNOSIS = "Ms Okafor was diagnosed with asthma in 2019. In which year was it?"
SENTENCES = (
    "The invoice was sent to our office in Lyon.",
    "Two pallets are waiting at the port of Rotterdam.",
    "The meeting moves from Friday to Monday, in Oslo.",
    "Our supplier in Osaka raised the price of glass.",
    "The train from Vienna was forty minutes late.",
    "Please return the samples to the laboratory in Zurich.",
    "A customer in Toronto asks for a refund.",
    "The new warehouse opens in Gdansk next spring.",
    "She signed the lease for the shop in Porto.",
    "The auditors arrive in Dublin on the ninth.",
    "Cables for the site in Nairobi are out of stock.",
    "The conference in Santiago has 900 guests.",
    "His flight to Helsinki was cancelled twice.",
    "The museum in Cairo ordered twelve scanners.",
)
_CLAUSES = (
    "The supplier delivers lot {n} within {d} days after the order was confirmed in writing.",
    "If lot {n} is late by more than {d} days, the buyer may withdraw from that lot alone.",
    "Goods of lot {n} are inspected on arrival; defects are reported within {d} working days.",
    "The price of lot {n} is fixed for {d} months and excludes freight and duties.",
    "Liability for lot {n} ends {d} months after the hand-over unless intent is shown.",
)


def document(number: int, characters: int) -> str:
    """A made-up contract of about so many characters, its question at the end."""
    clauses: list[str] = []
    size = 0
    while size < characters:
        n = len(clauses)
        text = _CLAUSES[n % len(_CLAUSES)].format(n=100 * number + n // 5, d=7 + (n * number) % 83)
        clauses.append(f"{n + 1}. {text}")
        size += len(clauses[-1]) + 1
    return "\n".join((f"Framework contract {number}.", *clauses, "Summarise it in one sentence."))


def request_count(stages: Sequence[Stage]) -> int:
    return sum(stage.requests for stage in stages)
