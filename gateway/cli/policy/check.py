"""`weighbridge policy check`: everything that is wrong with the files people write.

Every routing policy is loaded with the catalog, prices and limits beside it, as the gateway would,
then linted, then put through its tests. A file that does not load says so with all its mistakes.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.options import AsJson, Folder, in_force, usage

if TYPE_CHECKING:
    from gateway.bundle import Bundle
    from gateway.policy.cases import Suite, Verdict
    from gateway.policy.lint import Sheet
    from gateway.policy.source import Problem


def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Left out: everything in the folder."),
    ] = None,
    folder: Folder = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too.")] = False,
    day: Annotated[
        dt.datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Prices as of this day (UTC); default: today."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load the files, lint them, run the policies' tests; print what is wrong with them, or ok.

    Exit status 1 for errors and failed tests, with --strict for warnings too.

    Example: weighbridge policy check policies/routing/mine.yaml
    """
    folder = folder or in_force()
    wanted = files or _all(folder)
    _require(wanted or [folder / "catalog.yaml"])
    report = look(wanted, folder, (day or dt.datetime.now(dt.UTC)).date())
    failed = report.counts()["error"] + (report.counts()["warning"] if strict else 0)
    if as_json:
        typer.echo(json.dumps(_as_dict(report, wanted, ok=not failed), indent=2))
    else:
        from gateway.cli.policy.tables import print_report

        print_report(report.problems, report.verdicts)
        typer.echo(_summary(report) if failed else "ok")
    raise typer.Exit(1 if failed else 0)


@dataclass(slots=True, kw_only=True)
class _Set:
    """Which files belong together: those that were named, and the folder's for the rest."""

    catalog: Path
    limits: Path | None
    prices: list[Path]
    routing: list[Path]

    def files(self, routing: Path) -> dict[str, Path]:
        """What a bundle of one routing policy is made of, by its place in a policy folder."""
        from gateway.bundle import CATALOG, LIMITS, PRICES, ROUTING

        return {
            CATALOG: self.catalog,
            **({LIMITS: self.limits} if self.limits else {}),
            **{PRICES + path.name: path for path in self.prices},
            ROUTING + routing.name: routing,
        }


@dataclass(slots=True)
class Report:
    """What was found. Failed tests are among the problems, as errors."""

    problems: list[Problem] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        return Counter(problem.severity for problem in self.problems)

    def add(self, problems: Iterable[Problem]) -> None:
        """Each once: what several policies share is found with each of them."""
        self.problems = list(dict.fromkeys((*self.problems, *problems)))


def look(wanted: list[Path], folder: Path, today: dt.date) -> Report:
    """Load, lint and test the files, with the rest of `folder`; nothing wanted: all of it."""
    from gateway.policy.lint import Sheet
    from gateway.policy.source import ConfigErrors

    report, files = Report(), _sort(wanted, folder)
    sheets: dict[Path, Sheet] = {}
    for routing in files.routing:
        try:
            bundle = _load(files, routing)
        except ConfigErrors as errors:
            report.add(errors.problems)
            continue
        for path in files.files(routing).values():
            if path not in sheets:
                sheets[path] = Sheet(str(path), _read(path))
        suite = None
        try:
            suite = _suite(routing, bundle)
        except ConfigErrors as errors:
            report.add(errors.problems)
        report.add(_lint(files, routing, bundle, suite, sheets, today))
        if suite is not None:
            _run(suite, bundle, report)
    report.problems.sort(key=lambda p: (p.source, p.line, p.column, p.message))
    return report


def _load(files: _Set, routing: Path) -> Bundle:
    """Raises ConfigErrors that name the files as they were given."""
    from gateway.bundle import load
    from gateway.policy.source import ConfigErrors

    parts = files.files(routing)
    try:
        # Whether a secret is set here says nothing about the files.
        return load(
            {name: _read(path) for name, path in parts.items()}, secret_present=lambda _: True
        )
    except ConfigErrors as errors:
        names = {name: str(path) for name, path in parts.items()}
        raise ConfigErrors(replace(p, source=names[p.source]) for p in errors.problems) from None


def _suite(routing: Path, bundle: Bundle) -> Suite | None:
    from gateway.bundle import TESTS
    from gateway.policy.cases import load_cases

    path = routing.with_name(routing.stem + TESTS)
    if not path.is_file():
        return None
    limits = frozenset(limit.name for limit in bundle.limits)
    return load_cases(
        _read(path),
        source=str(path),
        catalog=bundle.catalog,
        policy=bundle.policy,
        limits=limits,
    )


def _lint(
    files: _Set,
    routing: Path,
    bundle: Bundle,
    suite: Suite | None,
    sheets: dict[Path, Sheet],
    today: dt.date,
) -> list[Problem]:
    from gateway.ledger.price_file import instant
    from gateway.policy.lint import Subject, lint
    from gateway.settings import Settings, SettingsError

    try:
        settings = Settings.load()
    except SettingsError:
        settings = Settings()
    return lint(
        Subject(
            catalog=bundle.catalog,
            policy=bundle.policy,
            rates=bundle.prices.in_force(instant(today)),
            today=today,
            catalog_file=sheets[files.catalog],
            policy_file=sheets[routing],
            price_files=tuple(sheets[path] for path in files.prices),
            limits=bundle.limits,
            limits_file=sheets[files.limits] if files.limits else None,
            refusals=suite.refusals() if suite else frozenset(),
            workers=settings.workers,
            shared_store=bool(settings.redis_url),
        )
    )


def _run(suite: Suite, bundle: Bundle, report: Report) -> None:
    from gateway.policy.cases import run

    for verdict in run(suite, bundle.policy, bundle.catalog, bundle.prices.in_force):
        report.verdicts.append(verdict)
        report.add(verdict.problems)


# --- which files ------------------------------------------------------------------------------


def _sort(wanted: list[Path], folder: Path) -> _Set:
    """The named files by kind. A routing policy is checked with the folder's other files; another
    file is checked with every routing policy of the folder."""
    from gateway.bundle import CATALOG, LIMITS, PRICES, TESTS, routing_files

    kinds: dict[str, list[Path]] = {}
    for file in wanted:
        kinds.setdefault(_kind(file), []).append(file)
    routing = kinds.get("routing", [])
    for tests in kinds.get("tests", []):
        policy = tests.with_name(tests.name.removesuffix(TESTS) + ".yaml")
        routing += [policy] if policy not in routing else []
    there = sorted((folder / PRICES).glob("*.yaml"))
    limits = kinds.get("limits") or [path for path in (folder / LIMITS,) if path.is_file()]
    files = _Set(
        catalog=kinds.get("catalog", [folder / CATALOG])[0],
        limits=limits[0] if limits else None,
        # A price file of the folder's is in its place, another one is one more.
        prices=list({path.name: path for path in (*there, *kinds.get("prices", ()))}.values()),
        routing=routing or routing_files(folder),
    )
    if not files.routing:
        usage(f"no routing policy to check: none in {folder / 'routing'}")
    _require([files.catalog, *files.routing])
    return files


def _kind(file: Path) -> str:
    """By what the file holds: a routing policy may be checked under any name."""
    from gateway.bundle import CATALOG, LIMITS, TESTS
    from gateway.policy.source import keys

    top = keys(_read(file))
    if file.name.endswith(TESTS) or "tests" in top:
        return "tests"
    if file.name == CATALOG or "backends" in top:
        return "catalog"
    if file.name == LIMITS or "limits" in top:
        return "limits"
    return "prices" if "prices" in top or file.parent.name == "prices" else "routing"


def _all(folder: Path) -> list[Path]:
    names = ("catalog.yaml", "limits.yaml")
    found = [folder / name for name in names if (folder / name).is_file()]
    return [*found, *sorted(folder.glob("prices/*.yaml")), *sorted(folder.glob("routing/*.yaml"))]


def _read(file: Path) -> str:
    # What is not UTF-8 becomes a lone surrogate here, and a finding with a position in the reader.
    return file.read_text(encoding="utf-8-sig", errors="surrogateescape")


def _require(files: list[Path]) -> None:
    for file in files:
        if not file.is_file():
            usage(f"no such file: {file}")


# --- telling ----------------------------------------------------------------------------------


def _summary(report: Report) -> str:
    counts = report.counts()
    told = [
        f"{count} {name}{'s' if count > 1 else ''}"
        for name in ("error", "warning")
        if (count := counts[name])
    ]
    bad = len({p.source for p in report.problems if p.severity != "note"})
    return f"{' and '.join(told)} in {bad} file{'s' if bad > 1 else ''}"


def _as_dict(report: Report, files: list[Path], *, ok: bool) -> dict[str, Any]:
    fields = ("severity", "source", "line", "column", "path", "message", "hint")
    return {
        "ok": ok,
        "files": [str(file) for file in files],
        "problems": [{name: getattr(p, name) for name in fields} for p in report.problems],
        "tests": [
            {
                "name": verdict.case.name,
                "policy": verdict.decision.policy,
                "passed": not verdict.problems,
                "order": [str(candidate.target) for candidate in verdict.decision.order],
            }
            for verdict in report.verdicts
        ],
    }
