"""`weighbridge policy apply|history|rollback`: what is in force, who put it there, and what before.

They speak to the database; every worker of every node follows it within a second. A change is
checked before, compared with what is in force, and made only after the version it was compared
with: who was faster is told. Looser privacy is refused until it is said to be meant.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from gateway.cli.policy.options import AsJson, Folder, usage

if TYPE_CHECKING:
    from gateway.bundle import Bundle, Files
    from gateway.ledger.versions import Change, Conflict, Version, Versions

_T = TypeVar("_T")
Expect = Annotated[
    int | None,
    typer.Option(min=0, help="Only if this version is in force; 0: if none ever was."),
]
Note = Annotated[str, typer.Option(help="Why, for the history.")]
Author = Annotated[str | None, typer.Option(help="Who, for the history [user@host].")]
Loosen = Annotated[
    bool, typer.Option("--allow-loosen-privacy", help="What gets looser is meant to be.")
]


def apply(
    file: Annotated[
        str | None,
        typer.Argument(
            help="A routing policy: a file, or a name in DIR/routing; default: the one in force."
        ),
    ] = None,
    folder: Folder = None,
    expect: Expect = None,
    note: Note = "",
    author: Author = None,
    allow_loosen_privacy: Loosen = False,
    as_json: AsJson = False,
) -> None:
    """Check the files of the policy folder and put them in force in all workers of all nodes.

    Exit status 1 where it is refused: a file is wrong, somebody was faster, privacy gets looser.

    Example: weighbridge policy apply cheapest --note "weekend: batch only"
    """

    async def work(versions: Versions) -> None:
        newest = await versions.newest()
        before = None if newest is None else await versions.files(newest.digest)
        files = _proposed(file, folder, before, as_json=as_json)
        after = _loaded(files, as_json=as_json)
        change = _change("apply", after, note=note, author=author)
        loosened = _loosened(before, after)
        await _put(
            versions, newest, change, expect, loosened, allow=allow_loosen_privacy, as_json=as_json
        )

    _run(work)


def rollback(
    number: Annotated[
        int | None,
        typer.Argument(min=1, help="The version; default: the last one that was different."),
    ] = None,
    expect: Expect = None,
    note: Note = "",
    author: Author = None,
    allow_loosen_privacy: Loosen = False,
    as_json: AsJson = False,
) -> None:
    """Put an earlier version in force again, as a new version: files and texts as they were then.

    Exit status 1 where it is refused: somebody was faster, privacy gets looser, it does not load.

    Example: weighbridge policy rollback 41 --note "errors since 42"
    """

    async def work(versions: Versions) -> None:
        newest = await versions.newest()
        if newest is None:
            _refuse("there is no version to roll back to", as_json=as_json)
        target = await _earlier(versions, newest, number, as_json=as_json)
        before, files = await versions.files(newest.digest), await versions.files(target.digest)
        after = _loaded(files, as_json=as_json)
        why = f"to version {target.number}" + (f": {note}" if note else "")
        change = _change("rollback", after, note=why, author=author)
        loosened = _loosened(before, after)
        await _put(
            versions, newest, change, expect, loosened, allow=allow_loosen_privacy, as_json=as_json
        )

    _run(work)


def history(
    limit: Annotated[int, typer.Option(min=1, help="So many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the versions: which is in force, who put it there, when and why.

    Example: weighbridge policy history --limit 5
    """

    async def work(versions: Versions) -> list[Version]:
        return await versions.history(limit=limit)

    found = _run(work)
    if as_json:
        shown = [{**_shown(v), "in_force": at == 0} for at, v in enumerate(found)]
        typer.echo(json.dumps(shown, indent=2))
        return
    if not found:
        typer.echo("no version yet: a gateway's first start or `policy apply` makes one")
        return
    from gateway.cli.policy.tables import print_table, table_of

    table = table_of("number", "", "policy", "digest", "origin", "author", "time", "note")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for at, version in enumerate(found):
        row = _shown(version)
        table.add_row(
            str(version.number),
            "in force" if at == 0 else "",
            version.policy,
            version.digest[:12],
            version.origin.value,
            version.author,
            row["applied_at"],
            version.note,
            style=None if at == 0 else "dim",
        )
    print_table(table)


# --- what is proposed -------------------------------------------------------------------------


def _proposed(
    file: str | None, folder: Path | None, before: Files | None, *, as_json: bool
) -> Files:
    """The texts of the folder with the routing policy that is meant, checked. Ends with 1 or 2."""
    from gateway.bundle import ROUTING, policy_path, read_folder, routing_files
    from gateway.cli.policy.check import look
    from gateway.policy.source import nearest
    from gateway.settings import Settings

    settings = Settings.load()
    folder = folder or settings.policies_dir
    routing = folder / ROUTING / f"{file or settings.policy}.yaml"
    if file is not None and ("/" in file or file.endswith((".yaml", ".yml"))):
        routing = Path(file)
    elif file is None and before is not None and (folder / policy_path(before)).is_file():
        routing = folder / policy_path(before)
    if not routing.is_file():
        there = nearest(routing.stem, (path.stem for path in routing_files(folder)))
        usage(f"no such file: {routing}" + (f"; {there}" if there else ""))
    found = look([routing], folder, dt.datetime.now(dt.UTC).date()).problems
    problems = [problem for problem in found if problem.severity != "note"]
    if any(problem.severity == "error" for problem in problems):
        lines = [str(problem) for problem in problems]
        _refuse("\n".join(["it does not pass", *lines]), as_json=as_json, problems=lines)
    if not as_json:
        for problem in problems:
            typer.echo(str(problem))
    return read_folder(folder, "", routing=routing)


def _loaded(files: Files, *, as_json: bool) -> Bundle:
    """As a worker would load it, whatever secrets are set here. Ends with 1."""
    from gateway.bundle import load
    from gateway.policy.source import ConfigErrors

    try:
        return load(files, secret_present=lambda _: True)
    except ConfigErrors as errors:
        _refuse(f"it does not load:\n{errors}", as_json=as_json)


def _loosened(before: Files | None, after: Bundle) -> list[str]:
    from gateway.bundle import load
    from gateway.policy.loosened import loosened
    from gateway.policy.source import ConfigErrors

    if before is None:
        return []
    try:
        old = load(before, secret_present=lambda _: True)
    except ConfigErrors:
        return ["what is in force does not load in this program, so nobody can say what it kept"]
    return loosened((old.policy, old.catalog), (after.policy, after.catalog))


async def _earlier(
    versions: Versions, newest: Version, number: int | None, *, as_json: bool
) -> Version:
    if number is not None:
        return await versions.get(number)
    others = (v for v in await versions.history(limit=1000) if v.digest != newest.digest)
    found = next(others, None)
    if found is None:
        _refuse("there is no other version to roll back to", as_json=as_json)
    return found


# --- putting it in force ------------------------------------------------------------------------


def _change(origin: str, bundle: Bundle, *, note: str, author: str | None) -> Change:
    from gateway.in_force import whoami
    from gateway.ledger.versions import Change, Origin

    return Change(
        digest=bundle.digest,
        policy=bundle.policy.name,
        origin=Origin(origin),
        author=author or whoami(),
        note=note,
        files=bundle.files,
        prices=bundle.prices,
    )


async def _put(
    versions: Versions,
    newest: Version | None,
    change: Change,
    expect: int | None,
    loosened: list[str],
    *,
    allow: bool,
    as_json: bool,
) -> None:
    """Make the version and say so; ends with 1 where it is refused."""
    from gateway.ledger.versions import Conflict

    number = newest.number if newest else 0
    if expect is not None and expect != number:
        _conflict(Conflict(expect, newest), as_json=as_json)
    if loosened and not allow:
        _refuse(
            "privacy gets looser:\n"
            + "\n".join(f"  {line}" for line in loosened)
            + "\nIf that is meant: --allow-loosen-privacy",
            as_json=as_json,
            loosened=loosened,
        )
    try:
        made = await versions.put(change, expected=number)
    except Conflict as conflict:
        _conflict(conflict, as_json=as_json)
    if as_json:
        body = {
            "ok": True,
            "applied": made != newest,
            "from": None if newest is None else _shown(newest),
            "version": _shown(made),
            "loosened": loosened,
        }
        typer.echo(json.dumps(body, indent=2))
    elif made == newest:
        typer.echo(f"{made.label} is in force already")
    else:
        for line in loosened:
            typer.echo(f"looser: {line}")
        typer.echo(f"{newest.label if newest else 'nothing'} -> {made.label}, {made.author}")
        typer.echo("Workers switch within a second; /readyz tells the version of each.")


def _conflict(conflict: Conflict, *, as_json: bool) -> NoReturn:
    now = None if conflict.newest is None else _shown(conflict.newest)
    _refuse(str(conflict), as_json=as_json, in_force=now)


def _refuse(message: str, *, as_json: bool, **more: object) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"ok": False, "applied": False, "error": message, **more}, indent=2))
    else:
        typer.echo(f"weighbridge: {message}", err=True)
    raise typer.Exit(1)


def _shown(version: Version) -> dict[str, Any]:
    at = dt.datetime.fromtimestamp(version.applied_at_us / 1e6, dt.UTC)
    return {
        "number": version.number,
        "policy": version.policy,
        "digest": version.digest,
        "origin": version.origin.value,
        "author": version.author,
        "note": version.note,
        "applied_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _run(work: Callable[[Versions], Awaitable[_T]]) -> _T:
    """Do `work` with the versions of this instance; one that is not there ends with status 1."""
    import asyncio

    from gateway.domain.errors import NotFound
    from gateway.ledger.store import Store
    from gateway.ledger.versions import Versions
    from gateway.settings import Settings

    settings = Settings.load()

    async def connected() -> _T:
        store = await Store.connect(settings.ledger_url, auto_migrate=settings.auto_migrate)
        try:
            return await work(Versions(store))
        finally:
            await store.close()

    try:
        return asyncio.run(connected())
    except NotFound as error:
        typer.echo(f"weighbridge: {error.message}", err=True)
        raise typer.Exit(1) from None
