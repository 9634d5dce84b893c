"""Where things are and how much of them: the environment, read once into a frozen value.

Settings are addresses, sizes and secrets of this process; what traffic may do is policy and lives
in YAML. The two never overlap. An unknown `WEIGHBRIDGE_*` name is refused with the nearest right
one: a mistyped setting that silently keeps its default is how limits get lost.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

PREFIX = "WEIGHBRIDGE_"


class SettingsError(Exception):
    """A setting is unknown or malformed. The message says which and what is right."""


def _setting(default: Any, about: str, *, minimum: int | None = None) -> Any:
    return field(default=default, metadata={"about": about, "minimum": minimum})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting with its default; `about` is what `--help` and the documentation print."""

    home: Path = _setting(
        Path(".weighbridge"), "folder of this instance: ledger, journal, policies"
    )
    policies: Path | None = _setting(
        None, "policy folder; default: HOME/policies, else the starter"
    )
    policy: str = _setting("balanced", "routing policy in force: a name in POLICIES/routing")
    policy_watch: bool = _setting(True, "make a version of files that change; SIGHUP always does")
    database_url: str = _setting("", "Postgres or SQLite; default: SQLite at HOME/ledger.db")
    redis_url: str = _setting("", "Redis or Valkey; default: in-process state")
    key_pepper: str = _setting("", "secret that keys are hashed with; default: HOME/pepper")
    alert_webhook: str = _setting(
        "", "who is told of budgets: references to secrets (env:NAME, file:/path) with an address"
    )
    alert_secret: str = _setting(
        "", "reference to the whsec_ secret that alerts are signed with; default: not signed"
    )
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(4000, "port for apps", minimum=0)
    workers: int = _setting(1, "worker processes", minimum=1)
    upstream_client: str = _setting("fast", "HTTP client to backends: fast or aiohttp")
    auto_migrate: bool = _setting(False, "upgrade the schema of a non-empty Postgres at start")

    head_bytes_max: int = _setting(32 * 1024, "request head", minimum=1024)
    head_s_max: int = _setting(10, "time for a request head, and between requests idle", minimum=1)
    keepalive_s_max: int = _setting(75, "idle time of a client connection", minimum=1)
    body_bytes_max: int = _setting(10 * 1024 * 1024, "request body", minimum=1024)
    body_s_max: int = _setting(60, "time for a request body", minimum=1)
    json_depth_max: int = _setting(64, "nesting of a request body", minimum=4)
    messages_max: int = _setting(2048, "messages in one request", minimum=1)
    choices_max: int = _setting(16, "n", minimum=1)
    in_flight_max: int = _setting(2000, "requests at a time per worker", minimum=1)
    # Proxies in front of us commonly give up at 30 or 60 s of silence.
    first_status_s_max: int = _setting(
        25, "silence before a stream's head goes out without content", minimum=1
    )
    stream_keepalive_s: int = _setting(
        10, "silence before a comment is sent to a stream", minimum=1
    )
    drain_lag_s: int = _setting(2, "between unready and closing the listener", minimum=0)
    drain_s_max: int = _setting(30, "time for running requests to end at shutdown", minimum=0)
    journal_bytes_max: int = _setting(
        1024 * 1024 * 1024, "unsent journal before new work is refused", minimum=1024 * 1024
    )
    keep_rows_months: int = _setting(
        0, "complete months of requests that `db prune` leaves; 0: all of them", minimum=0
    )
    keep_decisions_days: int = _setting(
        0, "days whose decision records `db prune` leaves; 0: all of them", minimum=0
    )
    redis_ms_max: int = _setting(250, "patience with Redis per round trip", minimum=1)
    log_level: str = _setting("info", "debug, info, warning or error")

    @property
    def policies_dir(self) -> Path:
        """The policy folder in force: the setting, else HOME/policies, else the shipped starter."""
        if self.policies is not None:
            return self.policies
        own = self.home / "policies"
        return own if own.is_dir() else bundled("policies")

    @property
    def ledger_url(self) -> str:
        """The database in force, as given or the default SQLite file."""
        return self.database_url or f"sqlite+aiosqlite:///{(self.home / 'ledger.db').absolute()}"

    @property
    def journal_dir(self) -> Path:
        return self.home / "journal"

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read `WEIGHBRIDGE_*`; `overrides` (command-line options) that are not None win.

        Raises SettingsError naming the variable, what is wrong and the nearest right name.
        """
        env = os.environ if environ is None else environ
        known = {PREFIX + f.name.upper(): f for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in env.items():
            if not name.startswith(PREFIX) or name.startswith(PREFIX + "TEST_"):
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise SettingsError(f"{name}: unknown setting{hint}")
            if text != "":
                values[known[name].name] = _convert(name, known[name], text)
        values.update({k: v for k, v in overrides.items() if v is not None})
        loaded = cls(**values)
        if loaded.upstream_client not in {"fast", "aiohttp"}:
            raise SettingsError(
                f"{PREFIX}UPSTREAM_CLIENT: must be fast or aiohttp, not {loaded.upstream_client!r}"
            )
        return loaded


def _convert(name: str, spec: Field[Any], text: str) -> Any:
    kind = spec.type
    if kind == "bool":
        if text.lower() in {"1", "true", "yes", "on"}:
            return True
        if text.lower() in {"0", "false", "no", "off"}:
            return False
        raise SettingsError(f"{name}: must be true or false, not {text!r}")
    if kind == "int":
        try:
            number = int(text)
        except ValueError:
            raise SettingsError(f"{name}: must be a whole number, not {text!r}") from None
        minimum = spec.metadata["minimum"]
        if minimum is not None and number < minimum:
            raise SettingsError(f"{name}: must be at least {minimum}, not {number}")
        return number
    return Path(text) if "Path" in str(kind) else text


def bundled(what: str) -> Path:
    """`policies` or `migrations` as shipped: inside an installed wheel, or beside a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_bundled" / what
    return installed if installed.is_dir() else package.parent / what


class SecretMissing(Exception):
    """A secret reference does not resolve."""


def secret(reference: str) -> str:
    """Resolve `env:NAME` or `file:/path`. Raises SecretMissing; the value is never logged."""
    scheme, _, place = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(place, "")
    elif scheme == "file":
        try:
            value = Path(place).read_text(encoding="utf-8").strip()
        except OSError:
            value = ""
    else:
        raise SecretMissing(f"{scheme}: not a secret reference; use env:NAME or file:/path")
    if not value:
        raise SecretMissing(f"{reference} is empty or absent")
    return value
