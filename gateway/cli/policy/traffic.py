"""Recorded traffic for `policy plan` and `policy backtest`: what is in force, and the replay.

Owns the way from options to a finished replay. Reads the database and the folder, writes nothing.
A backend counts as configured where its secret is set here, or where the newest recorded decisions
took it for configured: plans are made on machines that hold no vendor's key.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from gateway.cli.policy.options import usage
from gateway.cli.progress import progress

if TYPE_CHECKING:
    from gateway.bundle import Bundle, Files
    from gateway.ledger.recorded import Counts
    from gateway.ledger.store import Store
    from gateway.ledger.versions import Version
    from gateway.policy.comparison import Comparison, Period
    from gateway.policy.replay import Recorded, Replay, Side
    from gateway.settings import Settings

REQUESTS_MAX = 100_000

Since = Annotated[
    str, typer.Option("--since", metavar="7d|DATE", help="From then on: 90m, 24h, 7d, 2w, a date.")
]
Until = Annotated[
    str, typer.Option("--until", metavar="1d|DATE", help="Up to then (UTC); default: now.")
]
RequestsMax = Annotated[
    int,
    typer.Option("--requests-max", min=1, max=5_000_000, help="Of more a sample is drawn."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the sample, the draws, the interval.")]

_AGO = re.compile(r"(\d{1,5})([mhdw])")
_UNIT_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Bounds(NamedTuple):
    """A period in microseconds since the Unix epoch; the end is not part of it."""

    since_us: int
    until_us: int

    def __str__(self) -> str:
        return f"{moment(self.since_us)} to {moment(self.until_us)} UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What is in force. `label` says from where."""

    files: Files
    label: str
    folder: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished replay: the first side is what the others are compared with.

    `unreadable` are rows of a version that kept no facts.
    """

    period: Period
    replay: Replay
    comparisons: Sequence[Comparison]
    unreadable: int
    seed: int


def bounds(since: str, until: str, now: dt.datetime) -> Bounds:
    """The period asked for. Ends with status 2 where it is none, or not yet."""
    now_us = _us(now)
    end = min(now_us, instant(until, "--until", now)) if until else now_us
    start = instant(since, "--since", now)
    if start >= now_us:
        usage(f"--since {since}: nothing is recorded of the future")
    if start >= end:
        usage(f"--since {since} is not before --until {until}")
    return Bounds(start, end)


def instant(text: str, option: str, now: dt.datetime) -> int:
    """The moment an option names, in microseconds since the epoch. Ends with 2 where it is none."""
    if ago := _AGO.fullmatch(text):
        return _us(now) - int(ago[1]) * _UNIT_S[ago[2]] * 1_000_000
    try:
        given = dt.datetime.fromisoformat(text)
    except ValueError:
        usage(f"{option} {text}: neither a time ago (90m, 24h, 7d, 2w) nor a date (2026-11-23)")
    return _us(given if given.tzinfo else given.replace(tzinfo=dt.UTC))


def _us(moment: dt.datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def moment(us: int) -> str:
    """A time for people, UTC, to the minute."""
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).strftime("%Y-%m-%d %H:%M")


async def current(store: Store, settings: Settings, folder: Path | None) -> Current:
    """The newest version in the database, else the folder with the policy of the settings.

    Raises ConfigErrors.
    """
    from gateway.bundle import read_folder
    from gateway.ledger.versions import Versions

    versions = Versions(store)
    newest: Version | None = await versions.newest()
    if newest is not None:
        return Current(files=await versions.files(newest.digest), label=newest.label, folder=None)
    folder = folder or settings.policies_dir
    files = read_folder(folder, settings.policy)
    return Current(files=files, label=f"{settings.policy} of {folder}", folder=folder)


def proposed(file: Path, now: Current, folder: Path | None) -> Files:
    """The files with the routing policy in `file`: the rest from `folder`, else as in force.

    Raises ConfigErrors.
    """
    from gateway.bundle import ROUTING, policy_path, read_folder

    if folder is not None:
        return read_folder(folder, file.stem, routing=file)
    files = {path: text for path, text in now.files.items() if path != policy_path(now.files)}
    files[ROUTING + file.name] = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return files


async def loader(
    store: Store, now: Current, period: Bounds
) -> Callable[[Files, Path | None], Bundle]:
    """How files become a bundle here: see above for which secrets count as set."""
    from gateway.bundle import load
    from gateway.ledger.recorded import configured
    from gateway.settings import SecretMissing, secret

    seen = await configured(store, *period)
    backends = load(now.files, secret_present=lambda _: True, folder=now.folder).catalog.backends
    known = {backend.secret for backend in backends.values() if backend.name in seen}

    def present(reference: str) -> bool:
        try:
            secret(reference)
        except SecretMissing:
            return reference in known
        return True

    return lambda files, folder: load(files, secret_present=present, folder=folder)


def side(name: str, bundle: Bundle) -> Side:
    """A bundle made ready to decide."""
    from gateway.policy.replay import Side

    return Side(name, bundle.digest, bundle.policy, bundle.catalog, bundle.prices)


async def replayed(
    store: Store,
    sides: Sequence[Side],
    load: Callable[[Files, Path | None], Bundle],
    period: Bounds,
    *,
    requests_max: int,
    seed: int,
) -> Outcome | None:
    """Replay the period on all sides; None where it holds no request that was decided."""
    from gateway.ledger import recorded
    from gateway.policy.comparison import Period, compare
    from gateway.policy.replay import Replay

    counts = await recorded.counts(store, *period)
    if not counts.decided:
        return None
    replay = Replay(sides)
    by: dict[str, Side | None] = {known.digest: known for known in sides}
    unreadable = 0
    with progress("replaying", min(counts.decided, requests_max)) as advance:
        async for page in _pages(store, period, counts, requests_max, seed):
            for past in page:
                if "facts" not in past.decision:
                    unreadable += 1
                    continue
                digest = past.digest or ""
                if digest not in by:
                    by[digest] = await _side_of(store, digest, load)
                replay.add(past, by[digest])
            advance(len(page))
    sample = len(replay.columns)
    if not sample:
        return None
    assert counts.first_us is not None
    return Outcome(
        period=Period(
            from_us=max(period.since_us, counts.first_us),
            until_us=period.until_us,
            decided=counts.decided,
            sample=sample,
            undecided=counts.undecided,
            copies=counts.copies,
        ),
        replay=replay,
        comparisons=compare(replay, seed=seed),
        unreadable=unreadable,
        seed=seed,
    )


def _pages(
    store: Store, period: Bounds, counts: Counts, requests_max: int, seed: int
) -> AsyncIterator[list[Recorded]]:
    from gateway.ledger import recorded

    if counts.decided <= requests_max:
        return recorded.pages(store, *period)
    return recorded.sample(store, *period, total=counts.decided, wanted=requests_max, seed=seed)


async def _side_of(
    store: Store, digest: str, load: Callable[[Files, Path | None], Bundle]
) -> Side | None:
    """What decided then, if its files are still kept and still load."""
    from gateway.domain.errors import NotFound
    from gateway.ledger.versions import Versions
    from gateway.policy.source import ConfigErrors

    try:
        return side(digest, load(await Versions(store).files(digest), None))
    except (NotFound, ConfigErrors):
        return None
