"""`weighbridge keys`: make, list, rotate and revoke the keys apps call with.

Speaks to the database directly, so it works while the gateway is down. A token is printed once,
by the command that made it, and is stored nowhere.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from gateway.domain.keys import Key, Scopes
    from gateway.ledger.keys import KeyStore

app = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys.")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_T = TypeVar("_T")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Who it is for.")],
    alias: Annotated[
        list[str] | None, typer.Option(help="Alias it may ask for; repeat; none given: all.")
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="chat/completions, completions or embeddings; repeat; none given: all."),
    ] = None,
    privacy_floor: Annotated[
        str | None, typer.Option(help="No request of this key is classed lower.")
    ] = None,
    privacy_ceiling: Annotated[
        str | None, typer.Option(help="No request of this key may be classed higher.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="key=value on every row of this key; repeat.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Time it is good for: 12h, 30d, 8w.")] = None,
    env: Annotated[str, typer.Option(help="Environment in the key's text: live or test.")] = "live",
    admin: Annotated[bool, typer.Option(help="May change the gateway.")] = False,
    debug: Annotated[bool, typer.Option(help="Answers name the backend that served them.")] = True,
    as_json: _Json = False,
) -> None:
    """Make a key and print it, once.

    Example: weighbridge keys create --name search --alias fast --tag team=search --expires 90d
    """
    scopes = _scopes(name, alias, endpoint, privacy_floor, privacy_ceiling, tag, admin, debug)
    if env not in {"live", "test"}:
        raise typer.BadParameter("must be live or test", param_hint="--env")
    ends = None if expires is None else _now_us() + seconds(expires, "--expires") * 1_000_000

    async def work(keys: KeyStore) -> tuple[Key, str]:
        made = await keys.create(scopes, environment=env, expires_at_us=ends)
        assert made is not None
        return made

    _print_made(*_run(work), as_json=as_json)


@app.command("list")
def list_keys(as_json: _Json = False) -> None:
    """List all keys, never their secrets.

    Example: weighbridge keys list --json
    """
    rows = [_shown(key) for key in _run(lambda keys: keys.list_all())]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for column in ("id", "env", "name", "state", "aliases", "privacy", "tags", "expires"):
        table.add_column(column, overflow="fold", no_wrap=column in {"id", "env", "expires"})
    for row in rows:
        privacy = "..".join(row[end] or "" for end in ("privacy_floor", "privacy_ceiling"))
        table.add_row(
            row["id"],
            row["environment"],
            row["name"] + (" (admin)" if row["admin"] else ""),
            row["state"],
            "all" if row["aliases"] is None else ", ".join(row["aliases"]),
            "" if privacy == ".." else privacy,
            ", ".join(f"{k}={v}" for k, v in row["tags"].items()),
            (row["expires_at"] or "never").partition("T")[0],
            style=None if row["state"] == "active" else "dim",
        )
    Console().print(table)


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="12 characters, see `keys list`.")],
    grace: Annotated[str, typer.Option(help="Time the old key stays good for.")] = "24h",
    as_json: _Json = False,
) -> None:
    """Make a key with the same scopes; the old one ends after a grace period.

    Example: weighbridge keys rotate 0h3kq7m2x9ab --grace 24h
    """
    grace_s = seconds(grace, "--grace")
    _print_made(*_run(lambda keys: keys.rotate(key_id, grace_s=grace_s)), as_json=as_json)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="12 characters, see `keys list`.")],
    as_json: _Json = False,
) -> None:
    """End a key. Every worker refuses it within 30 seconds.

    Example: weighbridge keys revoke 0h3kq7m2x9ab
    """
    key = _run(lambda keys: keys.revoke(key_id))
    if as_json:
        typer.echo(json.dumps(_shown(key), indent=2))
    else:
        typer.echo(f"{key.id} ({key.scopes.name}) is revoked; workers know within 30 seconds")


def seconds(text: str, option: str) -> int:
    """`90s`, `15m`, `12h`, `30d` or `8w` in seconds; a usage error for anything else."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text, re.ASCII)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not like 12h, 30d or 8w", param_hint=option)
    return int(found[1]) * _SECONDS[found[2]]


def _scopes(
    name: str,
    aliases: list[str] | None,
    endpoints: list[str] | None,
    floor: str | None,
    ceiling: str | None,
    tags: list[str] | None,
    admin: bool,
    debug: bool,
) -> Scopes:
    from gateway.domain.keys import Scopes
    from gateway.domain.request import Endpoint

    try:
        wanted = frozenset(Endpoint(e) for e in endpoints) if endpoints else None
    except ValueError:
        known = ", ".join(e.value for e in Endpoint)
        raise typer.BadParameter(f"must be one of {known}", param_hint="--endpoint") from None
    pairs = [tag.partition("=") for tag in tags or []]
    if any(not key or not sign for key, sign, _ in pairs):
        raise typer.BadParameter("must look like team=search", param_hint="--tag")
    return Scopes(
        name=name,
        aliases=frozenset(aliases) if aliases else None,
        endpoints=wanted,
        privacy_floor=floor,
        privacy_ceiling=ceiling,
        tags={key: value for key, _, value in pairs},
        admin=admin,
        debug=debug,
    )


def _run(work: Callable[[KeyStore], Awaitable[_T]]) -> _T:
    """Do `work` with the keys of this instance; a key that is not there ends with status 1."""
    import asyncio

    from gateway.domain.errors import NotFound
    from gateway.ledger.keys import KeyStore
    from gateway.ledger.store import Store
    from gateway.settings import Settings

    settings = Settings.load()

    async def connected() -> _T:
        store = await Store.connect(settings.ledger_url, auto_migrate=settings.auto_migrate)
        try:
            return await work(KeyStore(store, pepper=settings.key_pepper, home=settings.home))
        finally:
            await store.close()

    try:
        return asyncio.run(connected())
    except NotFound as error:
        typer.echo(f"weighbridge: {error.message}", err=True)
        raise typer.Exit(1) from None


def _print_made(key: Key, token: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**_shown(key), "key": token}, indent=2))
        return
    typer.echo(token)
    typer.echo(f"Key {key.id} for {key.scopes.name}. It is shown this once.", err=True)


def _shown(key: Key) -> dict[str, Any]:
    scopes, now = key.scopes, _now_us()
    if key.revoked_at_us is not None:
        state = "revoked"
    elif not key.alive(now):
        state = "expired"
    else:
        state = "active" if key.replaced_by is None else f"replaced by {key.replaced_by}"
    return {
        "id": key.id,
        "environment": key.environment,
        "name": scopes.name,
        "state": state,
        "aliases": None if scopes.aliases is None else sorted(scopes.aliases),
        "endpoints": None if scopes.endpoints is None else sorted(scopes.endpoints),
        "privacy_floor": scopes.privacy_floor,
        "privacy_ceiling": scopes.privacy_ceiling,
        "tags": dict(scopes.tags),
        "admin": scopes.admin,
        "debug": scopes.debug,
        "created_at": _date(key.created_at_us),
        "expires_at": _date(key.expires_at_us),
        "revoked_at": _date(key.revoked_at_us),
        "replaced_by": key.replaced_by,
    }


def _now_us() -> int:
    return int(dt.datetime.now(dt.UTC).timestamp() * 1e6)


def _date(at_us: int | None) -> str | None:
    if at_us is None:
        return None
    return dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
