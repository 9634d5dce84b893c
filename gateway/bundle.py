"""A set of policy files, loaded and checked together: what is in force is always one of these.

Owns which files belong together and the digest that names them. A bundle is made of texts, from a
folder or from the database, and is the same bundle wherever the same texts are. Reads folders;
knows no database (`ledger.versions` keeps bundles) and makes no decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway.domain.catalog import Catalog
from gateway.domain.limit import Limit
from gateway.ledger.prices import PriceBook, load_prices
from gateway.policy.budgets import refusal, uncounted
from gateway.policy.catalog import load_catalog
from gateway.policy.language import Policy, load_policy
from gateway.policy.limits import load_limits
from gateway.policy.source import ConfigErrors, Problem, dotted, nearest, plain

CATALOG, LIMITS, PRICES, ROUTING = "catalog.yaml", "limits.yaml", "prices/", "routing/"
TESTS = ".tests.yaml"  # beside a routing policy: what it is expected to decide (`policy.cases`)

Files = Mapping[str, str]  # path below the policy folder -> text; exactly one routing policy
Marks = Mapping[str, tuple[int, int, int]]  # path -> time, size and inode


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Catalog, prices, limits and one routing policy. `digest` is 64 hexadecimal characters."""

    files: Files
    digest: str
    catalog: Catalog
    policy: Policy
    prices: PriceBook
    limits: tuple[Limit, ...]

    @property
    def label(self) -> str:
        """For people and answer headers: `name@digest`, the digest shortened."""
        return f"{self.policy.name}@{self.digest[:12]}"


def read_folder(folder: Path, policy: str, *, routing: Path | None = None) -> Files:
    """The files of `folder` with the routing policy `policy`, or the one in the file `routing`.

    Raises ConfigErrors where a file is missing or is not text.
    """
    files = {CATALOG: _text(folder / CATALOG)}
    if (folder / LIMITS).is_file():
        files[LIMITS] = _text(folder / LIMITS)
    for path in sorted((folder / PRICES).glob("*.yaml")):
        files[PRICES + path.name] = _text(path)
    path = routing or folder / ROUTING / f"{policy}.yaml"
    if not path.is_file():
        there = [p.stem for p in routing_files(folder)]
        raise _problem(
            path, f"there is no policy {path.stem!r}", nearest(path.stem, there) or ", ".join(there)
        )
    files[ROUTING + path.name] = _text(path)
    return files


def policy_path(files: Files) -> str:
    """Which of the paths is the routing policy."""
    (path,) = (path for path in files if path.startswith(ROUTING))
    return path


def marks(folder: Path, policy: str) -> Marks:
    """What tells that a file below `folder` was changed, without reading it; `policy` is a path."""
    found = {}
    for path in _paths(folder, policy):
        with suppress(OSError):
            state = (folder / path).stat()
            found[path] = (state.st_mtime_ns, state.st_size, state.st_ino)
    return found


def texts(folder: Path, policy: str) -> Files:
    """The files of `folder`, with the routing policy at the path `policy` if it is there.

    Raises ConfigErrors where one is not text, or there is no catalog.
    """
    return {path: _text(folder / path) for path in _paths(folder, policy)}


def _paths(folder: Path, policy: str) -> list[str]:
    prices = sorted(PRICES + path.name for path in (folder / PRICES).glob("*.yaml"))
    return [CATALOG, *(p for p in (LIMITS, *prices, policy) if (folder / p).is_file())]


def routing_files(folder: Path) -> list[Path]:
    """The routing policies of a policy folder, without the tests beside them."""
    found = sorted((folder / ROUTING).glob("*.yaml"))
    return [path for path in found if not path.name.endswith(TESTS)]


def digest(files: Files) -> str:
    """The name of a set of texts: SHA-256 over paths and texts, in the order of the paths."""
    return hashlib.sha256(orjson.dumps(sorted(files.items()))).hexdigest()


def load(
    files: Files, *, secret_present: Callable[[str], bool], folder: Path | None = None
) -> Bundle:
    """Check the texts and what they say of one another. Raises ConfigErrors with all mistakes.

    `folder` is where they came from, for the messages.
    """

    def source(path: str) -> str:
        return str(folder / path) if folder is not None else path

    problems: list[Problem] = []
    catalog = policy = prices = None
    limits: tuple[Limit, ...] = ()
    routing = policy_path(files)
    try:
        catalog = load_catalog(
            files[CATALOG], source=source(CATALOG), secret_present=secret_present
        )
    except ConfigErrors as errors:
        problems += errors.problems
    try:
        prices = load_prices(
            [(source(path), text) for path, text in files.items() if path.startswith(PRICES)],
            {} if catalog is None else {n: b.data.region for n, b in catalog.backends.items()},
        )
    except ConfigErrors as errors:
        problems += errors.problems
    if catalog is not None:
        try:
            if LIMITS in files:
                limits = load_limits(files[LIMITS], source=source(LIMITS), catalog=catalog)
            policy = load_policy(
                files[routing],
                source=source(routing),
                catalog=catalog,
                limits=frozenset(limit.name for limit in limits),
            )
        except ConfigErrors as errors:
            problems += errors.problems
    if LIMITS in files and catalog is not None and prices is not None:
        problems += _unpayable(limits, catalog, prices, files[LIMITS], source(LIMITS))
    if problems or catalog is None or policy is None or prices is None:
        raise ConfigErrors(problems)
    return Bundle(
        files=files,
        digest=digest(files),
        catalog=catalog,
        policy=policy,
        prices=prices,
        limits=limits,
    )


def _unpayable(
    limits: tuple[Limit, ...], catalog: Catalog, prices: PriceBook, text: str, source: str
) -> Iterator[Problem]:
    """Hard budgets over aliases that no price was ever known of, whatever the day."""
    priced = {t for t, rows in prices.rows.items() if any(row.base.by_token for row in rows)}
    found = [one for one in uncounted(limits, catalog, priced) if one.hard and one.nobody]
    for one in found:
        _, places = plain(text, source)
        line, column = places.position(("limits", one.index, "usd"))
        message, hint = refusal(one)
        yield Problem(
            source=source,
            line=line,
            column=column,
            path=dotted(("limits", one.index, "usd")),
            message=message,
            hint=hint,
        )


def _text(path: Path) -> str:
    try:
        # What is not UTF-8 is a mistake at its place, told by the reader of the file.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _problem(
            path, f"{error.strerror}", "`weighbridge init DIR` writes starter policies"
        ) from error
    except UnicodeDecodeError as error:
        raise _problem(path, f"not UTF-8 text at byte {error.start}") from error
    return text


def _problem(path: Path, message: str, hint: str = "") -> ConfigErrors:
    return ConfigErrors(
        [Problem(source=str(path), line=1, column=1, path="", message=message, hint=hint)]
    )
