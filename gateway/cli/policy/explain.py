"""`weighbridge policy explain`: one decision taken apart, of a request that was or might be.

A request is decided again from its record, by the files and the prices of its time: what is shown
is what was decided, or else it says where the two differ.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.policy.options import AsJson, Folder, in_force, usage

if TYPE_CHECKING:
    from gateway.bundle import Bundle
    from gateway.domain.catalog import Catalog
    from gateway.domain.decision import Facts, Snapshot
    from gateway.domain.outcome import RequestRecord
    from gateway.ledger.prices import PriceBook
    from gateway.policy.explain import Explanation

_LATE_US = 5_000_000  # a worker routes by changed prices within so long


def explain(
    what: Annotated[
        str, typer.Argument(metavar="REQUEST_ID|FACTS.yaml", help="See x-request-id; or a file.")
    ],
    folder: Folder = None,
    policy: Annotated[
        str, typer.Option(help="Decide FACTS.yaml by this policy; default: the one in force.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Why a request went where it went: route, candidates, exclusions, attempts.

    FACTS.yaml is the `given` part of a policy's test: the facts of a request that nobody sent.
    Exit status 1 where there is no such request, or deciding it again gives something else.

    Example: weighbridge policy explain req_01k9z4m5q2t8w6x0y7n3b1c5d9
    """
    file = Path(what)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        if not file.is_file():
            usage(f"no such file: {file}")
        _explain_file(file, folder or in_force(), policy, as_json=as_json)
    else:
        if policy:
            usage("--policy is for FACTS.yaml; a request is explained by the files of its time")
        _explain_request(what, folder or in_force(), as_json=as_json)


# --- a request that nobody sent ---------------------------------------------------------------


def _explain_file(file: Path, folder: Path, policy: str, *, as_json: bool) -> None:
    from gateway.bundle import load, read_folder
    from gateway.policy.cases import load_given
    from gateway.policy.engine import Router
    from gateway.policy.explain import explain as take_apart
    from gateway.settings import Settings

    bundle = load(
        read_folder(folder, policy or Settings.load().policy),
        secret_present=lambda _: True,
        folder=folder,
    )
    given = load_given(
        file.read_text(encoding="utf-8-sig", errors="surrogateescape"),
        source=str(file),
        catalog=bundle.catalog,
        at=dt.datetime.now(dt.UTC),
        limits=frozenset(limit.name for limit in bundle.limits),
    )
    catalog, rates = given.catalog(bundle.catalog), bundle.prices.in_force(given.facts.at_us)
    decision = Router.build(bundle.policy, catalog, rates).decide(given.facts, given.snapshot)
    told = take_apart(bundle.policy, catalog, rates, given.facts, given.snapshot, decision)
    privacy = bundle.catalog.privacy_classes[given.facts.privacy]
    if as_json:
        typer.echo(json.dumps({"policy": bundle.label, "decision": told.as_dict()}, indent=2))
        return
    from gateway.cli.policy.tables import print_explanation

    typer.echo(f"policy {bundle.label}, prices of {given.day}")
    print_explanation(given.facts, privacy, told)


# --- a request of the ledger ------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Again:
    """What became of deciding again. `told` is of the recorded decision where that failed."""

    told: Explanation
    facts: Facts | None = None
    identical: bool | None = None
    why_not: str = ""
    differences: list[str] = field(default_factory=list)


def _explain_request(request_id: str, folder: Path, *, as_json: bool) -> None:
    row, files = _fetch(request_id)
    if row is None:
        typer.echo(
            f"weighbridge: no request {request_id} in the ledger. Rows get there about a second "
            "after the answer; the id is in the answer's x-request-id.",
            err=True,
        )
        raise typer.Exit(1)
    decided = row.decision is not None and _limit(row) is None
    again = _decide_again(row, files, folder) if decided else None
    if as_json:
        typer.echo(json.dumps(_as_dict(row, again), indent=2))
    else:
        _print(row, again)
    raise typer.Exit(1 if again is not None and again.identical is False else 0)


def _limit(row: RequestRecord) -> Mapping[str, Any] | None:
    """What is kept of the limit that refused it, before anything was decided."""
    return row.decision if row.decision is not None and "limit" in row.decision else None


def _fetch(request_id: str) -> tuple[RequestRecord | None, Mapping[str, str] | None]:
    """The row with its attempts, and the files it was decided by, None where nobody kept them."""
    import asyncio

    from gateway.domain.errors import NotFound
    from gateway.ledger.store import Store
    from gateway.ledger.versions import Versions
    from gateway.settings import Settings

    settings = Settings.load()

    async def read() -> tuple[RequestRecord | None, Mapping[str, str] | None]:
        store = await Store.connect(settings.ledger_url, auto_migrate=settings.auto_migrate)
        try:
            row = await store.request(request_id)
            if row is None or row.policy_digest is None:
                return row, None
            try:
                return row, await Versions(store).files(row.policy_digest)
            except NotFound:
                return row, None
        finally:
            await store.close()

    return asyncio.run(read())


def _decide_again(row: RequestRecord, files: Mapping[str, str] | None, folder: Path) -> _Again:
    from gateway.domain.decision import recalled
    from gateway.policy.explain import Explanation, as_it_was, from_record, lines
    from gateway.policy.source import ConfigErrors

    assert row.decision is not None
    was = from_record(row.decision, policy=row.policy or "", digest=row.policy_digest or "")
    recorded = Explanation(
        route=was.route, objective="", matched=(), passed=(), lines=lines(was, was.order)
    )
    try:
        facts, snapshot = recalled(row.decision)
    except KeyError:
        return _Again(told=recorded, why_not="the row is of a version that kept no facts")
    try:
        bundle = _bundle(row, files, folder)
    except ConfigErrors as errors:
        why = f"the files of then do not load today: {errors}"
        return _Again(told=recorded, facts=facts, why_not=why)
    if bundle is None:
        why = f"the files of then ({row.policy}@{(row.policy_digest or '')[:12]}) are not kept"
        return _Again(told=recorded, facts=facts, why_not=f"{why}, nor are they in {folder}")
    catalog = as_it_was(bundle.catalog, was)
    return _compare(row, bundle, catalog, facts, snapshot)


def _bundle(row: RequestRecord, files: Mapping[str, str] | None, folder: Path) -> Bundle | None:
    """The files of then: from the database, else the folder's if they are the same."""
    from gateway.bundle import digest, load, read_folder
    from gateway.policy.source import ConfigErrors

    if files is None:
        try:
            files = read_folder(folder, row.policy or "")
        except ConfigErrors:
            return None
        if digest(files) != row.policy_digest:
            return None
    return load(files, secret_present=lambda _: True)


def _compare(
    row: RequestRecord,
    bundle: Bundle,
    catalog: Catalog,
    facts: Facts,
    snapshot: Snapshot,
) -> _Again:
    from gateway.domain.decision import record
    from gateway.policy.engine import Router
    from gateway.policy.explain import explain as take_apart

    best: _Again | None = None
    for at_us in _moments(row.started_at_us, bundle.prices):
        rates = bundle.prices.in_force(at_us)
        decision = Router.build(bundle.policy, catalog, rates).decide(facts, snapshot)
        found = _differences(row.decision or {}, record(decision, facts, snapshot))
        if best is None or not found:
            told = take_apart(bundle.policy, catalog, rates, facts, snapshot, decision)
            best = _Again(told=told, facts=facts, identical=not found, differences=found)
        if not found:
            break
    assert best is not None
    return best


def _moments(at_us: int, prices: PriceBook) -> list[int]:
    """When it arrived; just after prices changed a worker may still have routed by those before."""
    before = at_us - _LATE_US
    changed = prices.changes_after(before)
    return [at_us] if changed is None or changed > at_us else [at_us, before]


def _differences(was: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Where two records are not the same, as JSON compares; nothing where they are."""
    now: dict[str, Any] = json.loads(json.dumps(again))
    return [
        f"{key}: recorded {json.dumps(was.get(key))}, decided again {json.dumps(now.get(key))}"
        for key in ("route", "order", "excluded", "cut")
        if was.get(key) != now.get(key)
    ]


# --- telling ----------------------------------------------------------------------------------

_ROW = (
    *("id", "alias", "outcome", "http_status", "error_code", "privacy_class", "policy"),
    *("policy_digest", "route", "backend", "model", "cost_nano_usd", "shadow_of"),
)


def _as_dict(row: RequestRecord, again: _Again | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "request": {name: getattr(row, name) for name in _ROW},
        "limit": _limit(row),
        "decision": None if again is None else again.told.as_dict(),
        "identical": None if again is None else again.identical,
        "why_not_decided_again": "" if again is None else again.why_not,
        "differences": [] if again is None else again.differences,
        "attempts": [asdict(attempt) for attempt in row.attempts],
    }


def _print(row: RequestRecord, again: _Again | None) -> None:
    from gateway.cli.policy.tables import print_attempts, print_explanation

    at = dt.datetime.fromtimestamp(row.started_at_us / 1e6, dt.UTC)
    ended = row.outcome + (f" ({row.error_code})" if row.error_code else "")
    typer.echo(f"request {row.id}, {at:%Y-%m-%d %H:%M:%S} UTC: {ended}")
    typer.echo(f"policy {row.policy}@{(row.policy_digest or '')[:12]}")
    if row.shadow_of is not None:
        typer.echo(
            f"a copy of {row.shadow_of}, sent for comparison: its answer was thrown away and "
            "nobody is billed for it"
        )
    elif (limit := _limit(row)) is not None:
        from gateway.limits.answers import refusal_told

        typer.echo(refusal_told(limit))
        typer.echo("no decision was made: limits come before it")
    elif again is None:
        typer.echo("no decision was made: it ended before there was one")
    else:
        print_explanation(again.facts, row.privacy_class or "", again.told)
        typer.echo("")
        if again.identical:
            typer.echo("decided again from its record: identical, bit for bit")
        elif again.identical is None:
            typer.echo(f"not decided again: {again.why_not}")
        else:
            typer.echo("decided again from its record: NOT the same")
            for difference in again.differences:
                typer.echo(f"  {difference}")
    if row.attempts:
        typer.echo("")
        print_attempts(row.attempts)
