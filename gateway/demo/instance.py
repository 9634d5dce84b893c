"""The demo's own gateway: its folder, its key, and the real worker process.

The folder is an ordinary instance: `weighbridge serve --home FOLDER --policy demo` takes it, and
every command reads it with WEIGHBRIDGE_HOME=FOLDER. Only the demo's own files in it are rewritten;
the ledger, and prices once declared, stay.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from gateway.bundle import TESTS
from gateway.demo import children
from gateway.demo.backends import DemoBackend, Row
from gateway.demo.workload import LARGE, PRIVATE, RESTRICTED, SMALL
from gateway.domain.catalog import Kind
from gateway.domain.keys import Scopes
from gateway.settings import PREFIX, Settings, bundled
from gateway.supervisor import listen, self_command

if TYPE_CHECKING:
    from gateway.ledger.store import Store

HOST, PORT = "127.0.0.1", 4000
POLICY = "demo"
KEY_GOOD_FOR = dt.timedelta(days=7)
_READY_S_MAX = 30.0
_CATALOG_HEAD = """\
# Written by `weighbridge demo` at each start: three backends, and the aliases over them.
"""
_PRICES_HEAD = """\
# Written by `weighbridge demo`: a row is added where one is missing, none is changed.
"""


def settings(home: Path) -> Settings:
    """The demo's own settings, whatever WEIGHBRIDGE_* says: it must not touch a real instance."""
    return Settings.load({}, home=home.absolute(), policy=POLICY, host=HOST)


# --- files ----------------------------------------------------------------------------------------


def known_prices(home: Path) -> list[Row]:
    """The price rows of earlier demos in this folder."""
    path = _prices_file(home)
    rows: list[Row] = (
        yaml.safe_load(path.read_text(encoding="utf-8")).get("prices", []) if path.exists() else []
    )
    return rows


def write_policies(home: Path, backends: Sequence[DemoBackend]) -> None:
    """Catalog, prices and routing policies of this demo."""
    folder = home / "policies"
    for name in ("routing", "prices", "schema"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for shipped in (bundled("policies") / name).iterdir():
            # The shipped policies' tests are of the shipped catalog.
            if name != "prices" and not shipped.name.endswith(TESTS):
                (folder / name / shipped.name).write_bytes(shipped.read_bytes())
    _write(folder / "catalog.yaml", _CATALOG_HEAD, _catalog(backends))
    routing = Path(__file__).with_name("routing.yaml")
    (folder / "routing" / f"{POLICY}.yaml").write_bytes(routing.read_bytes())
    rows = known_prices(home)
    there = {(row["backend"], row["model"], row["from"]) for row in rows}
    new = [r for b in backends for r in b.prices]
    rows += [r for r in new if (r["backend"], r["model"], r["from"]) not in there]
    _write(_prices_file(home), _PRICES_HEAD, {"version": 1, "prices": rows})


def _prices_file(home: Path) -> Path:
    return home / "policies" / "prices" / "demo.yaml"


class _Plain(yaml.SafeDumper):
    """Writes each value out: policy files know no anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _write(path: Path, head: str, document: Mapping[str, Any]) -> None:
    text = yaml.dump(document, Dumper=_Plain, sort_keys=False, width=100, allow_unicode=True)
    path.write_text(head + text, encoding="utf-8")


def _catalog(backends: Sequence[DemoBackend]) -> dict[str, Any]:
    def targets(alias: str, *kinds: Kind) -> list[str]:
        wanted = [b for kind in kinds for b in backends if b.kind is kind]
        return [f"{b.name}/{b.models.get(alias, b.models[SMALL])}" for b in wanted]

    return {
        "version": 1,
        "privacy_classes": ["public", "internal", "confidential", "restricted"],
        "aliases": {
            SMALL: {
                "description": "Quick and cheap.",
                "targets": targets(SMALL, Kind.SELF_HOSTED, Kind.MANAGED, Kind.CLOSED_API),
            },
            LARGE: {
                "description": "For work that needs a strong model; hosted ones only.",
                "targets": targets(LARGE, Kind.CLOSED_API, Kind.MANAGED),
            },
            PRIVATE: {
                "description": "Only machines of our own, whatever the policy says.",
                "privacy_floor": RESTRICTED,
                "targets": targets(SMALL, Kind.SELF_HOSTED),
            },
        },
        "backends": {b.name: b.entry for b in backends},
    }


# --- ledger and key -------------------------------------------------------------------------------


async def make_key(store: Store, home: Path) -> str:
    """A new key for the demo's own requests and for whoever tries the gateway afterwards."""
    from gateway.ledger.keys import KeyStore

    end = dt.datetime.now(dt.UTC) + KEY_GOOD_FOR
    made = await KeyStore(store, pepper="", home=home).create(
        Scopes(name="demo"), environment="demo", expires_at_us=int(end.timestamp() * 1e6)
    )
    assert made is not None
    return made[1]


# --- the process ----------------------------------------------------------------------------------


def open_socket(port: int | None) -> socket.socket:
    """The listening socket: `port`, else 4000, else any free one. Raises OSError for `port`."""
    if port is not None:
        return listen(HOST, port)
    try:
        return listen(HOST, PORT)
    except OSError:
        return listen(HOST, 0)


def start_gateway(home: Path, sock: socket.socket) -> children.Child:
    """Start a worker as the supervisor does: it inherits the socket and ends with its parent."""
    for stale in (home / "metrics").glob("*.json"):
        stale.unlink(missing_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    own = ("--worker", "0", "--fd", str(sock.fileno()), "--parent", str(os.getpid()))
    return children.start(
        "the gateway",
        [*self_command(), "serve", *own],
        home / "gateway.log",
        environment={
            **clean,
            f"{PREFIX}HOME": str(home.absolute()),
            f"{PREFIX}POLICY": POLICY,
            f"{PREFIX}DRAIN_LAG_S": "0",
            f"{PREFIX}DRAIN_S_MAX": "5",
        },
        hand_over=[sock.fileno()],
    )


def wait_until_ready(gateway: children.Child, url: str) -> None:
    """Raises ChildError."""

    def ready() -> bool:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    children.wait_until(gateway, ready, _READY_S_MAX)
