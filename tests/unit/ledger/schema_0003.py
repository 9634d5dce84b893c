"""A ledger as it was before migration 0004: its schema, and how its rows were written.

For the migration's test, and for the benchmark that compares that way of writing with today's. The
statement is frozen; its columns are those that journal lines had then.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger.connect import _engine
from gateway.settings import bundled

REQUEST = {
    "id": "text", "started_at_us": "bigint", "endpoint": "text", "alias": "text", "key_id": "text",
    "tags": "jsonb", "privacy_class": "text", "session": "text", "stream": "boolean",
    "backend": "text", "model": "text", "policy": "text", "policy_digest": "text", "route": "text",
    "shadow_of": "text", "decision": "jsonb", "outcome": "text", "http_status": "integer",
    "error_code": "text", "uncached_tokens": "bigint", "cached_tokens": "bigint",
    "output_tokens": "bigint", "reasoning_tokens": "bigint", "other_meters": "jsonb",
    "usage_source": "text", "cost_nano_usd": "bigint", "priced": "boolean", "ttft_us": "bigint",
    "tpot_us": "double precision", "tps": "double precision", "duration_us": "bigint",
    "overhead_us": "bigint", "attempt_count": "integer", "worker": "text",
}  # fmt: skip
ATTEMPT = {
    "number": "integer", "backend": "text", "model": "text", "started_at_us": "bigint",
    "why": "text", "outcome": "text", "http_status": "integer", "error_code": "text",
    "uncached_tokens": "bigint", "cached_tokens": "bigint", "output_tokens": "bigint",
    "reasoning_tokens": "bigint", "other_meters": "jsonb", "service_tier": "text",
    "usage_source": "text", "cost_nano_usd": "bigint", "rates_id": "text", "ttft_us": "bigint",
    "duration_us": "bigint",
}  # fmt: skip


def _names(columns: Sequence[str], prefix: str = "") -> str:
    return ", ".join(prefix + name for name in columns)


def _typed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())


POSTGRES = sa.text(
    f"""
    WITH new AS (
        INSERT INTO requests ({_names([*REQUEST])}, declared_free)
        SELECT {_names([*REQUEST], "r.")},
               jsonb_path_exists(r.attempts, '$[*].rates_id ? (@ starts with "free:")')
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r({_typed(REQUEST)}, attempts jsonb)
        ON CONFLICT (id) DO NOTHING
    )
    INSERT INTO attempts (request_id, {_names([*ATTEMPT])})
    SELECT r.id, {_names([*ATTEMPT], "a.")}
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(id text, attempts jsonb),
         jsonb_to_recordset(r.attempts) AS a({_typed(ATTEMPT)})
    ON CONFLICT (request_id, number) DO NOTHING
    """
)


async def create(url: str) -> AsyncEngine:
    """An engine over an empty database, brought to 0003. Dispose of it."""

    def upgrade(connection: Connection) -> None:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(bundled("migrations")))
        command.upgrade(config, "0003")

    engine = _engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
    return engine


async def append(engine: AsyncEngine, lines: Sequence[bytes]) -> None:
    """Journal lines as rows."""
    if engine.dialect.name == "postgresql":
        async with engine.begin() as connection:
            await connection.execute(POSTGRES, {"rows": (b"[" + b",".join(lines) + b"]").decode()})
        return
    requests, attempts = [], []
    for line in orjson.loads(b"[" + b",".join(lines) + b"]"):
        tried = line.pop("attempts")
        free = any((one["rates_id"] or "").startswith("free:") for one in tried)
        requests.append(line | {"declared_free": free})
        attempts += [one | {"request_id": line["id"]} for one in tried]
    async with engine.begin() as connection:
        for table, rows in (("requests", requests), ("attempts", attempts)):
            names = list(rows[0])
            marks = ", ".join("?" * len(names))
            values = [tuple(_sqlite(row[name]) for name in names) for row in rows]
            statement = f"INSERT INTO {table} ({_names(names)}) VALUES ({marks})"
            await connection.exec_driver_sql(statement, values)


def _sqlite(value: object) -> object:
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else value
