"""A real gateway as a process, for tests: its own folder, its own port, its own key.

    with gateway(catalog, policies...) as g:
        httpx.post(g.url + "/v1/chat/completions", headers=g.auth, json=...)
        g.rows()            # the ledger, after everything was flushed

Nothing of the product is replaced; only the catalog points at scripted vendors.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

if TYPE_CHECKING:
    from gateway.ledger.audit import Report

ROUTING = """\
version: 1
name: plain
description: The alias's targets in their order; for tests.
behaviour:
  attempts_max: 3
  backends_max: 3
  affinity: {idle_s: 600}
default:
  by: order
"""


@dataclass
class GatewayProcess:
    """A running gateway. `key` is an ordinary key, `admin` the one printed at first start."""

    home: Path
    url: str
    process: subprocess.Popen[str]
    environment: dict[str, str]
    command: list[str]
    output: list[str] = field(default_factory=list)
    admin: str = ""
    key: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def new_key(self, *options: str) -> str:
        """A key with the scopes given as `keys create` options."""
        done = subprocess.run(
            [*CLI, "keys", "create", "--name", "test", "--json", *options],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        key: str = json.loads(done.stdout)["key"]
        return key

    def rows(self, *, count: int | None = None, timeout_s: float = 15.0) -> list[dict[str, Any]]:
        """All request rows with their attempts, waiting until there are `count` of them."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = asyncio.run(_rows(self.environment))
            if count is None or len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    async def ledger(
        self, count: int | None = None, timeout_s: float = 15.0
    ) -> list[dict[str, Any]]:
        """`rows`, for a test whose event loop must go on meanwhile."""
        return await asyncio.to_thread(self.rows, count=count, timeout_s=timeout_s)

    def children(self) -> list[int]:
        """Process ids of the workers where there are several, else of the one process."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        return [int(pid) for pid in listed] or [self.process.pid]

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def restart(self) -> None:
        """Start again on the same port and folder (after a kill)."""
        self.process.wait(10)
        self.process, self.output = _spawn(self.command, self.environment)
        _await_ready(self)


CLI = [sys.executable, "-m", "gateway.cli"]


async def _rows(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    import sqlalchemy as sa

    from gateway.ledger.store import Store, attempts
    from gateway.settings import Settings

    store = await Store.connect(Settings.load(environment).ledger_url)
    try:
        rows = {record.id: asdict(record) for record in await store.requests(limit=100_000)}
        # One query, not one a request: chaos tests read thousands.
        for found in await store.select(sa.select(attempts).order_by(attempts.c.number)):
            if found["request_id"] in rows:  # else it came between the two queries
                rows[found["request_id"]]["attempts"].append(found)
        return list(rows.values())
    finally:
        await store.close()


def _spawn(
    command: list[str], environment: dict[str, str]
) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []

    def drain() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)

    threading.Thread(target=drain, daemon=True).start()
    return process, lines


def _await_ready(running: GatewayProcess, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            time.sleep(0.1)
            raise AssertionError("the gateway ended:\n" + "".join(running.output))
        found = re.search(r"(?:serving|workers) on (http://\S+)", "".join(running.output))
        if found:
            running.url = found.group(1)
            try:
                if httpx.get(running.url + "/readyz", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
        time.sleep(0.02)
    raise AssertionError("the gateway did not get ready:\n" + "".join(running.output))


class _Plain(yaml.SafeDumper):
    """Writes one value used twice out twice: our strict reader refuses anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(dict(document), Dumper=_Plain, sort_keys=False)


@contextmanager
def gateway(
    catalog: Mapping[str, Any],
    *,
    prices: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    routing: str = ROUTING,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
    unaudited: str = "",
) -> Iterator[GatewayProcess]:
    """Start a gateway on this catalog, yield it ready with a key, stop it, audit what it left.

    `unaudited` says why a test leaves a ledger that cannot be audited, or is looked at otherwise.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = home or Path(scratch) / "home"
        policies = folder / "policies"
        (policies / "routing").mkdir(parents=True, exist_ok=True)
        (policies / "prices").mkdir(exist_ok=True)
        (policies / "catalog.yaml").write_text(_yaml(catalog))
        (policies / "routing" / "plain.yaml").write_text(routing)
        if prices is not None:
            (policies / "prices" / "test.yaml").write_text(_yaml(prices))
        if limits is not None:
            (policies / "limits.yaml").write_text(_yaml(limits))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHBRIDGE_")}
        env = {
            **clean,
            "WEIGHBRIDGE_HOME": str(folder),
            "WEIGHBRIDGE_POLICY": "plain",
            "WEIGHBRIDGE_DRAIN_LAG_S": "0",
            **(environment or {}),
        }
        command = [*CLI, "serve", "--port", "0", "--workers", str(workers)]
        process, output = _spawn(command, env)
        running = GatewayProcess(folder, "", process, env, command, output)
        try:
            _await_ready(running)
            running.command = [
                *CLI,
                "serve",
                "--port",
                str(running.port),
                "--workers",
                str(workers),
            ]
            shown = re.search(r"^\s+(wb_\S+)$", "".join(output), re.MULTILINE)
            running.admin = shown.group(1) if shown else ""
            running.key = running.new_key()
            yield running
        finally:
            running.stop()
        if not unaudited:  # where the test failed, that is what is to be told
            check_ledger(running)


def check_ledger(running: GatewayProcess) -> None:
    """The product's own audit of the ledger, the journals and the holds: no law is broken."""
    from gateway.cli.audit import audited
    from gateway.settings import Settings

    async def run() -> Report:
        return await audited(Settings.load(running.environment), 0)

    with ThreadPoolExecutor(1) as thread:  # a test may run in an event loop of its own
        report = thread.submit(asyncio.run, run()).result()
    broken = {
        check.name: check.first
        for check in report.checks.values()
        if check.broken and check.weight == "violation"
    }
    assert not broken, broken


@asynccontextmanager
async def gateway_beside(
    catalog: Mapping[str, Any], **options: Any
) -> AsyncIterator[GatewayProcess]:
    """`gateway` for a test whose event loop must go on meanwhile: it runs what the gateway needs."""
    started = gateway(catalog, **options)
    running = await asyncio.to_thread(started.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(started.__exit__, None, None, None)


def vendor_catalog(
    backends: Mapping[str, str],
    *,
    aliases: Mapping[str, list[str]] | None = None,
    **options: Mapping[str, Any],
) -> dict[str, Any]:
    """A catalog of scripted vendors: `{backend: base URL}`; each serves model `m` unless told.

    `options` gives more fields of a backend by its name. Alias `chat` goes to all of them.
    """
    capabilities = ["tools", "json_mode", "images", "logprobs", "multiple_choices"]
    return {
        "version": 1,
        "privacy_classes": ["public", "internal", "confidential", "restricted"],
        "aliases": {
            name: {"targets": targets}
            for name, targets in (aliases or {"chat": [f"{b}/m" for b in backends]}).items()
        },
        "backends": {
            name: {
                "kind": "closed_api",
                "wire": "openai_http",
                "base_url": url,
                "models": {
                    "m": {
                        "endpoints": ["chat/completions", "completions", "embeddings"],
                        "capabilities": [*capabilities],
                    }
                },
                **options.get(name, {}),
            }
            for name, url in backends.items()
        },
    }
