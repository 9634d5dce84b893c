"""The tables of the database, and the views that the rest of the program reads.

WHAT IS STORED is a star: narrow facts (`request_facts`, `attempt_facts`) that point at dimensions,
so that what thousands of rows have in common is there once. A dimension's identifier is a digest of
its content: whoever writes it needs no look-up, and the same content has it everywhere.

WHAT IS READ are the views `requests` and `attempts`, whose columns are the fields of
`RequestRecord` and `AttemptRecord`. The roll-ups (`request_hours`, `attempt_hours`,
`other_meter_hours`) are appended with the rows they sum up; several rows of one hour and dimension
are to be added. On Postgres both facts are partitioned by month of the request's start
(`partitions`).

How a view is made of facts stands in the migration that makes it; a test holds it to this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from gateway.ledger.hours import ATTEMPT_KEY, FIRST_SUMS, METER_KEY, REQUEST_KEY, SUMS
from gateway.ledger.packed import pack, unpack

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
_Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
NO_TOKENS: Final = (
    "coalesce(uncached_tokens, 0) + coalesce(cached_tokens, 0) + coalesce(output_tokens, 0) = 0"
)


class Packed(sa.types.UserDefinedType[Any]):
    """A decision record: a JSON object here, `packed` in the database."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "BLOB"

    def bind_processor(self, _: sa.Dialect) -> Callable[[Any], bytes | None]:
        return lambda record: None if record is None else pack(orjson.dumps(record))

    def result_processor(self, _: sa.Dialect, __: object) -> Callable[[Any], Any]:
        return lambda stored: None if stored is None else unpack(stored)


def _column(name: str, kind: Any, *, required: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=not required)


# --- dimensions -----------------------------------------------------------------------------------

request_dimensions = sa.Table(
    "request_dimensions",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    _column("endpoint", sa.Text, required=True),
    _column("alias", sa.Text),
    _column("key_id", sa.Text),
    _column("tags", _Json, required=True),
    _column("privacy_class", sa.Text),
    _column("stream", sa.Boolean, required=True),
    _column("backend", sa.Text),
    _column("model", sa.Text),
    _column("policy", sa.Text),
    _column("policy_digest", sa.Text),
    _column("route", sa.Text),
    _column("shadow", sa.Boolean, required=True),  # whether `shadow_of` is there
    _column("outcome", sa.Text, required=True),
    _column("http_status", sa.Integer, required=True),
    _column("error_code", sa.Text),
    _column("usage_source", sa.Text, required=True),
    _column("priced", sa.Boolean, required=True),
    _column("attempt_count", sa.Integer, required=True),
)

attempt_dimensions = sa.Table(
    "attempt_dimensions",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    _column("backend", sa.Text, required=True),
    _column("model", sa.Text, required=True),
    _column("why", sa.Text),
    _column("outcome", sa.Text, required=True),
    _column("http_status", sa.Integer, required=True),
    _column("error_code", sa.Text),
    _column("usage_source", sa.Text, required=True),
    _column("rates_id", sa.Text),
    _column("service_tier", sa.Text),
)

# Of their own: in `request_dimensions` each worker would multiply the roll-ups.
workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    _column("name", sa.Text),
)

# --- facts ----------------------------------------------------------------------------------------

# Widest first: Postgres aligns each value, and what is narrow would leave holes between.
_TOKENS: Final = ("uncached_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")

request_facts = sa.Table(
    "request_facts",
    metadata,
    sa.Column("started_at_us", sa.BigInteger, primary_key=True, autoincrement=False, index=True),
    _column("dimension", sa.BigInteger, required=True),
    _column("worker", sa.BigInteger, required=True),
    *(_column(name, sa.BigInteger) for name in _TOKENS),
    _column("cost_nano_usd", sa.BigInteger),
    _column("ttft_us", sa.BigInteger),
    _column("tpot_us", sa.Double),
    _column("tps", sa.Double),
    _column("duration_us", sa.BigInteger),
    _column("overhead_us", sa.BigInteger),
    _column("priced", sa.Boolean, required=True),  # again, for the database to hold the cost to it
    # Not of the record but drawn from its attempts: one of them ran at rates declared free.
    _column("declared_free", sa.Boolean, required=True),
    sa.Column("id", sa.Text, primary_key=True),
    _column("session", sa.Text),
    _column("shadow_of", sa.Text),
    _column("other_meters", _Json),
    _column("decision", sa.LargeBinary),
    sa.PrimaryKeyConstraint("id", "started_at_us"),
    sa.CheckConstraint("NOT priced OR cost_nano_usd IS NOT NULL", name="priced_has_cost"),
    sa.CheckConstraint("cost_nano_usd >= 0", name="cost_not_negative"),
    sa.CheckConstraint(
        f"declared_free OR cost_nano_usd IS NULL OR cost_nano_usd > 0 OR {NO_TOKENS}",
        name="never_cost_zero",
    ),
    postgresql_partition_by="RANGE (started_at_us)",
)

# No foreign key: one transaction writes both tables, and the check would cost a look-up per row.
attempt_facts = sa.Table(
    "attempt_facts",
    metadata,
    sa.Column("request_started_at_us", sa.BigInteger, primary_key=True, autoincrement=False),
    _column("dimension", sa.BigInteger, required=True),
    sa.Column("started_at_us", sa.BigInteger, nullable=False, index=True),
    *(_column(name, sa.BigInteger) for name in _TOKENS),
    _column("cost_nano_usd", sa.BigInteger),
    _column("ttft_us", sa.BigInteger),
    _column("duration_us", sa.BigInteger),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    _column("declared_free", sa.Boolean, required=True),  # its `rates_id` starts with `free:`
    sa.Column("request_id", sa.Text, primary_key=True),
    _column("other_meters", _Json),
    sa.PrimaryKeyConstraint("request_id", "number", "request_started_at_us"),
    sa.CheckConstraint("cost_nano_usd >= 0", name="cost_not_negative"),
    sa.CheckConstraint(
        f"declared_free OR cost_nano_usd IS NULL OR cost_nano_usd > 0 OR {NO_TOKENS}",
        name="never_cost_zero",
    ),
    postgresql_partition_by="RANGE (request_started_at_us)",
)

# --- roll-ups -------------------------------------------------------------------------------------


def _rollup(name: str, key: tuple[str, ...], sums: tuple[str, ...]) -> sa.Table:
    """No key: a row is what one batch added, until `rollups` has merged those of its hour."""
    kinds = {"meter": sa.Text}
    unmerged = sa.text("NOT merged")
    return sa.Table(
        name,
        metadata,
        *(_column(column, kinds.get(column, sa.BigInteger), required=True) for column in key),
        *(_column(one, sa.BigInteger, required=one in {*FIRST_SUMS, "quantity"}) for one in sums),
        sa.Column("merged", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Index(None, "hour_us"),
        sa.Index(
            f"ix_{name}_unmerged", "hour_us", postgresql_where=unmerged, sqlite_where=unmerged
        ),
    )


request_hours = _rollup("request_hours", REQUEST_KEY, SUMS)
attempt_hours = _rollup("attempt_hours", ATTEMPT_KEY, SUMS)
other_meter_hours = _rollup("other_meter_hours", METER_KEY, ("quantity",))

# What was deleted by policy: rows of requests that started before the one instant, and what was
# decided of those before the other. Appended only; sums over hours before it have no rows any more.
prunings = sa.Table(
    "prunings",
    metadata,
    sa.Column("made_at_us", sa.BigInteger, primary_key=True, autoincrement=False),
    _column("rows_before_us", sa.BigInteger),
    _column("decisions_before_us", sa.BigInteger),
    _column("requests", sa.BigInteger, required=True),  # deleted
    _column("decisions", sa.BigInteger, required=True),  # emptied
)

# --- what is read ---------------------------------------------------------------------------------

views = sa.MetaData()

# The columns are the fields of RequestRecord, by the same names; a test holds them together.
requests = sa.Table(
    "requests",
    views,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("started_at_us", sa.BigInteger, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("alias", sa.Text),
    sa.Column("key_id", sa.Text),
    sa.Column("tags", _Json, nullable=False),
    sa.Column("privacy_class", sa.Text),
    sa.Column("session", sa.Text),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("backend", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("policy", sa.Text),
    sa.Column("policy_digest", sa.Text),
    sa.Column("route", sa.Text),
    sa.Column("shadow_of", sa.Text),
    sa.Column("decision", Packed),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("http_status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("uncached_tokens", sa.BigInteger),
    sa.Column("cached_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.Column("other_meters", _Json),
    sa.Column("usage_source", sa.Text, nullable=False),
    sa.Column("cost_nano_usd", sa.BigInteger),
    sa.Column("priced", sa.Boolean, nullable=False),
    sa.Column("ttft_us", sa.BigInteger),
    sa.Column("tpot_us", sa.Double),
    sa.Column("tps", sa.Double),
    sa.Column("duration_us", sa.BigInteger),
    sa.Column("overhead_us", sa.BigInteger),
    sa.Column("attempt_count", sa.Integer, nullable=False),
    sa.Column("worker", sa.Text),
    sa.Column("declared_free", sa.Boolean, nullable=False),
)

attempts = sa.Table(
    "attempts",
    views,
    sa.Column("request_id", sa.Text, primary_key=True),
    # With it in a join, a period looks into its own months only.
    sa.Column("request_started_at_us", sa.BigInteger, nullable=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("started_at_us", sa.BigInteger, nullable=False),
    sa.Column("why", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("http_status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("uncached_tokens", sa.BigInteger),
    sa.Column("cached_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.Column("other_meters", _Json),
    sa.Column("service_tier", sa.Text),
    sa.Column("usage_source", sa.Text, nullable=False),
    sa.Column("cost_nano_usd", sa.BigInteger),
    sa.Column("rates_id", sa.Text),
    sa.Column("ttft_us", sa.BigInteger),
    sa.Column("duration_us", sa.BigInteger),
)


def recorded(table: sa.Table) -> list[sa.Column[Any]]:
    """The columns of a view that are fields of its record; the others are drawn from elsewhere."""
    return [column for column in table.columns if column.name not in _DRAWN]


_DRAWN: Final = {"request_id", "request_started_at_us", "declared_free"}

# --- everything else ------------------------------------------------------------------------------

# No secret: `digest` is an HMAC under a pepper that is not in this database (`pepper` names it).
keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("pepper", sa.Text, nullable=False),
    sa.Column("aliases", _Json),
    sa.Column("endpoints", _Json),
    sa.Column("privacy_floor", sa.Text),
    sa.Column("privacy_ceiling", sa.Text),
    sa.Column("tags", _Json, nullable=False),
    sa.Column("admin", sa.Boolean, nullable=False),
    sa.Column("debug", sa.Boolean, nullable=False),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Column("expires_at_us", sa.BigInteger),
    sa.Column("revoked_at_us", sa.BigInteger),
    sa.Column("replaced_by", sa.Text),
)

# Every set of policy files that was ever in force: the texts as they were, keyed by their digest.
bundles = sa.Table(
    "policy_bundles",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("files", _Json, nullable=False),  # path below the policy folder -> text
)

# Which was in force from when. Appended only: the highest number is in force. The number is the
# compare-and-swap: whoever inserts the one after what it has seen wins.
versions = sa.Table(
    "policy_versions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),  # start | file | apply | rollback
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("applied_at_us", sa.BigInteger, nullable=False),
)

# What was known of prices, and since when: valid time and recorded time. Appended only. What is
# known at a time is the last statement of each target and first instant made up to then; one
# without `terms` takes back what was stated before.
price_statements = sa.Table(
    "price_statements",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("recorded_at_us", sa.BigInteger, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("valid_from_us", sa.BigInteger, nullable=False),
    sa.Column("valid_until_us", sa.BigInteger),
    sa.Column("rates_id", sa.Text, nullable=False),
    sa.Column("terms", _Json),  # the row of the price file as read
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),  # of the bundle that brought it
)

# Rating again is a run of its own; rows of the ledger are never changed.
rating_runs = sa.Table(
    "rating_runs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at_us", sa.BigInteger, nullable=False),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Column("filters", _Json, nullable=False),
    sa.Column("book_at_us", sa.BigInteger, nullable=False),  # prices as recorded up to then
    sa.Column("attempts_rated", sa.BigInteger, nullable=False),
    sa.Column("attempts_corrected", sa.BigInteger, nullable=False),
    sa.Column("delta_nano_usd", sa.BigInteger, nullable=False),
)

# What a run found to be otherwise. `delta` is against what stood before this run: the cost of an
# attempt as corrected is its booked cost (0 where none) plus all its deltas.
corrections = sa.Table(
    "corrections",
    metadata,
    sa.Column("run", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("request_started_at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("rates_id", sa.Text, nullable=False),
    sa.Column("cost_nano_usd", sa.BigInteger, nullable=False),
    sa.Column("delta_nano_usd", sa.BigInteger, nullable=False),
)

# What happened to our engines: see `fleet.events`. Appended only.
fleet_events = sa.Table(
    "fleet_events",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),  # a backend or backend#replica
    sa.Column("source", sa.Text, nullable=False),  # the worker that says so
    sa.Column("figures", _Json, nullable=False),
)
