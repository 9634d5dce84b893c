"""Narrow rows: facts and dimensions, partitions by month, roll-ups by hour.

Rows of before are moved over in pages by the writer's own code, so they are exactly what they would
be had they come today, roll-ups included. That code writes the newest schema: a database with rows
must come from 0003 to the version that is newest by one start or `weighbridge db upgrade` of a
program whose newest schema still has these tables.

Revision ID: 0004
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
NO_TOKENS = (
    "coalesce(uncached_tokens, 0) + coalesce(cached_tokens, 0) + coalesce(output_tokens, 0) = 0"
)
PAGE_ROWS = 2_000

TEXT, LONG, WHOLE, FLAG, REAL = sa.Text, sa.BigInteger, sa.Integer, sa.Boolean, sa.Double
TOKENS = ("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
BUCKETS = tuple(f"ttft_{n:02}" for n in range(40))
SUMS = (
    *("rows", "cost_nano_usd", "costed", "unpriced", "weighed", "estimated", *TOKENS),
    *("costed_tokens", "speed_tokens", "speed_us", "fp0", "fp1", "fp2", "fp3"),
)

# name -> type; an exclamation mark: never NULL
REQUEST_DIMENSIONS = {
    "endpoint!": TEXT, "alias": TEXT, "key_id": TEXT, "tags!": JSON, "privacy_class": TEXT,
    "stream!": FLAG, "backend": TEXT, "model": TEXT, "policy": TEXT, "policy_digest": TEXT,
    "route": TEXT, "shadow!": FLAG, "outcome!": TEXT, "http_status!": WHOLE, "error_code": TEXT,
    "usage_source!": TEXT, "priced!": FLAG, "attempt_count!": WHOLE,
}  # fmt: skip
ATTEMPT_DIMENSIONS = {
    "backend!": TEXT, "model!": TEXT, "why": TEXT, "outcome!": TEXT, "http_status!": WHOLE,
    "error_code": TEXT, "usage_source!": TEXT, "rates_id": TEXT, "service_tier": TEXT,
}  # fmt: skip
REQUEST_FACTS = {
    "started_at_us!": LONG, "dimension!": LONG, "worker!": LONG, **dict.fromkeys(TOKENS, LONG),
    "cost_nano_usd": LONG, "ttft_us": LONG, "tpot_us": REAL, "tps": REAL, "duration_us": LONG,
    "overhead_us": LONG, "priced!": FLAG, "declared_free!": FLAG, "id!": TEXT, "session": TEXT,
    "shadow_of": TEXT, "other_meters": JSON, "decision": sa.LargeBinary,
}  # fmt: skip
ATTEMPT_FACTS = {
    "request_started_at_us!": LONG, "dimension!": LONG, "started_at_us!": LONG,
    **dict.fromkeys(TOKENS, LONG), "cost_nano_usd": LONG, "ttft_us": LONG, "duration_us": LONG,
    "number!": WHOLE, "declared_free!": FLAG, "request_id!": TEXT, "other_meters": JSON,
}  # fmt: skip

# What is read of rows: f is the fact, d its dimension, w the worker.
REQUESTS = """
    SELECT f.id, f.started_at_us, d.endpoint, d.alias, d.key_id, d.tags, d.privacy_class, f.session,
        d.stream, d.backend, d.model, d.policy, d.policy_digest, d.route, f.shadow_of, f.decision,
        d.outcome, d.http_status, d.error_code, f.uncached_tokens, f.cached_tokens, f.output_tokens,
        f.reasoning_tokens, f.other_meters, d.usage_source, f.cost_nano_usd, f.priced, f.ttft_us,
        f.tpot_us, f.tps, f.duration_us, f.overhead_us, d.attempt_count, w.name AS worker,
        f.declared_free
    FROM request_facts f {join} request_dimensions d {on_d} {join} workers w {on_w} {where_dw}
"""
ATTEMPTS = """
    SELECT f.request_id, f.request_started_at_us, f.number, d.backend, d.model, f.started_at_us,
        d.why, d.outcome, d.http_status, d.error_code, f.uncached_tokens, f.cached_tokens,
        f.output_tokens, f.reasoning_tokens, f.other_meters, d.service_tier, d.usage_source,
        f.cost_nano_usd, d.rates_id, f.ttft_us, f.duration_us
    FROM attempt_facts f {join} attempt_dimensions d {on_d} {where_d}
"""
# Postgres leaves out an outer join nobody reads of. SQLite makes no detour over a view that is a
# plain join, and with CROSS JOIN it starts from the facts.
JOINS = {
    "postgresql": {
        "join": "LEFT JOIN", "on_d": "ON d.id = f.dimension", "on_w": "ON w.id = f.worker",
        "where_d": "", "where_dw": "",
    },
    "sqlite": {
        "join": "CROSS JOIN", "on_d": "", "on_w": "", "where_d": "WHERE d.id = f.dimension",
        "where_dw": "WHERE d.id = f.dimension AND w.id = f.worker",
    },
}  # fmt: skip


def upgrade() -> None:
    connection = op.get_bind()
    dialect = connection.dialect.name
    op.rename_table("requests", "requests_0003")
    op.rename_table("attempts", "attempts_0003")
    for name, columns in (
        ("request_dimensions", REQUEST_DIMENSIONS),
        ("attempt_dimensions", ATTEMPT_DIMENSIONS),
        ("workers", {"name": TEXT}),
    ):
        key = sa.Column("id", LONG, nullable=False, autoincrement=False)
        primary = sa.PrimaryKeyConstraint("id", name=f"pk_{name}")
        op.create_table(name, key, *_columns(columns), primary)
    _facts()
    _rollups()
    for view, text in (("requests", REQUESTS), ("attempts", ATTEMPTS)):
        op.execute(f"CREATE VIEW {view} AS {text.format(**JOINS[dialect])}")
    _move(connection)
    op.drop_table("attempts_0003")
    op.drop_table("requests_0003")


def _columns(columns: dict) -> list[sa.Column]:
    return [
        sa.Column(name.rstrip("!"), kind, nullable=not name.endswith("!"))
        for name, kind in columns.items()
    ]


def _facts() -> None:
    never_zero = f"declared_free OR cost_nano_usd IS NULL OR cost_nano_usd > 0 OR {NO_TOKENS}"
    op.create_table(
        "request_facts",
        *_columns(REQUEST_FACTS),
        sa.PrimaryKeyConstraint("id", "started_at_us", name="pk_request_facts"),
        sa.CheckConstraint(
            "NOT priced OR cost_nano_usd IS NOT NULL", name=op.f("ck_request_facts_priced_has_cost")
        ),
        sa.CheckConstraint("cost_nano_usd >= 0", name=op.f("ck_request_facts_cost_not_negative")),
        sa.CheckConstraint(never_zero, name=op.f("ck_request_facts_never_cost_zero")),
        postgresql_partition_by="RANGE (started_at_us)",
    )
    op.create_index("ix_request_facts_started_at_us", "request_facts", ["started_at_us"])
    op.create_table(
        "attempt_facts",
        *_columns(ATTEMPT_FACTS),
        sa.PrimaryKeyConstraint(
            "request_id", "number", "request_started_at_us", name="pk_attempt_facts"
        ),
        sa.CheckConstraint("cost_nano_usd >= 0", name=op.f("ck_attempt_facts_cost_not_negative")),
        sa.CheckConstraint(never_zero, name=op.f("ck_attempt_facts_never_cost_zero")),
        postgresql_partition_by="RANGE (request_started_at_us)",
    )
    op.create_index("ix_attempt_facts_started_at_us", "attempt_facts", ["started_at_us"])
    if op.get_bind().dialect.name == "postgresql":
        for table in ("request_facts", "attempt_facts"):
            op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")


def _rollups() -> None:
    one, two = ["hour_us", "dimension"], ["hour_us", "request_dimension", "attempt_dimension"]
    sums = {f"{name}!": LONG for name in SUMS} | dict.fromkeys(BUCKETS, LONG)
    for table, key, added in (
        ("request_hours", one, sums),
        ("attempt_hours", two, sums),
        ("other_meter_hours", two, {"meter!": TEXT, "quantity!": LONG}),
    ):
        merged = sa.Column("merged", FLAG, nullable=False, server_default=sa.false())
        columns = {f"{name}!": LONG for name in key} | added
        op.create_table(table, *_columns(columns), merged)
        op.create_index(f"ix_{table}_hour_us", table, ["hour_us"])
        unmerged = sa.text("NOT merged")
        op.create_index(
            f"ix_{table}_unmerged",
            table,
            ["hour_us"],
            postgresql_where=unmerged,
            sqlite_where=unmerged,
        )
    op.create_table(
        "prunings",
        sa.Column("made_at_us", LONG, nullable=False, autoincrement=False),
        *_columns({"rows_before_us": LONG, "decisions_before_us": LONG}),
        *_columns({"requests!": LONG, "decisions!": LONG}),
        sa.PrimaryKeyConstraint("made_at_us", name="pk_prunings"),
    )


def _move(connection: sa.Connection) -> None:
    """In pages by start and identifier: the index on the start finds each page's place."""
    import orjson

    from gateway.ledger.writer import Batch, Writer

    writer = Writer()
    names = ("requests_0003", "attempts_0003")
    requests, attempts = (sa.Table(n, sa.MetaData(), autoload_with=connection) for n in names)
    r = requests.c
    after = None
    while True:
        query = sa.select(requests).order_by(r.started_at_us, r.id).limit(PAGE_ROWS)
        if after is not None:
            beyond = sa.tuple_(r.started_at_us, r.id) > sa.tuple_(*map(sa.literal, after))
            query = query.where(r.started_at_us >= after[0], beyond)
        page = [_named(row) for row in connection.execute(query).mappings()]
        if not page:
            return
        of = {row["id"]: row for row in page}
        for row in page:
            row["attempts"] = []
            del row["declared_free"]  # drawn from the attempts again
        tried = sa.select(attempts).where(attempts.c.request_id.in_(list(of)))
        for found in connection.execute(tried.order_by(attempts.c.number)).mappings():
            attempt = _named(found)
            of[attempt.pop("request_id")]["attempts"].append(attempt)
        batch = Batch()
        writer.take(batch, [orjson.dumps(row) for row in page])
        if months := writer.missing(batch):
            writer.ensure(connection, months)
        writer.write(connection, batch, checked=True)
        writer.committed(batch)
        after = page[-1]["started_at_us"], page[-1]["id"]


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def downgrade() -> None:
    raise NotImplementedError(
        "0004 cannot be taken back: rows are stored otherwise. Restore the backup made before it."
    )
