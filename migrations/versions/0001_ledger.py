"""The ledger and its keys.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
NO_TOKENS = (
    "coalesce(uncached_tokens, 0) + coalesce(cached_tokens, 0) + coalesce(output_tokens, 0) = 0"
)


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("alias", sa.Text),
        sa.Column("key_id", sa.Text),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("privacy_class", sa.Text),
        sa.Column("session", sa.Text),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("backend", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("policy", sa.Text),
        sa.Column("policy_digest", sa.Text),
        sa.Column("decision", JSON),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("http_status", sa.Integer, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("uncached_tokens", sa.BigInteger),
        sa.Column("cached_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
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
        sa.PrimaryKeyConstraint("id", name="pk_requests"),
        sa.CheckConstraint(
            "NOT priced OR cost_nano_usd IS NOT NULL", name=op.f("ck_requests_priced_has_cost")
        ),
        sa.CheckConstraint("cost_nano_usd >= 0", name=op.f("ck_requests_cost_not_negative")),
        sa.CheckConstraint(
            f"declared_free OR cost_nano_usd IS NULL OR cost_nano_usd > 0 OR {NO_TOKENS}",
            name=op.f("ck_requests_never_cost_zero"),
        ),
    )
    op.create_index("ix_requests_started_at_us", "requests", ["started_at_us"])
    op.create_index("ix_requests_key_id", "requests", ["key_id", "started_at_us"])
    op.create_table(
        "attempts",
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("http_status", sa.Integer, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("uncached_tokens", sa.BigInteger),
        sa.Column("cached_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
        sa.Column("usage_source", sa.Text, nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger),
        sa.Column("rates_id", sa.Text),
        sa.Column("ttft_us", sa.BigInteger),
        sa.Column("duration_us", sa.BigInteger),
        sa.PrimaryKeyConstraint("request_id", "number", name="pk_attempts"),
        sa.CheckConstraint("cost_nano_usd >= 0", name=op.f("ck_attempts_cost_not_negative")),
        sa.CheckConstraint(
            f"cost_nano_usd IS NULL OR cost_nano_usd > 0 OR {NO_TOKENS}"
            " OR (rates_id IS NOT NULL AND substr(rates_id, 1, 5) = 'free:')",
            name=op.f("ck_attempts_never_cost_zero"),
        ),
    )
    op.create_index("ix_attempts_started_at_us", "attempts", ["started_at_us"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("pepper", sa.Text, nullable=False),
        sa.Column("aliases", JSON),
        sa.Column("endpoints", JSON),
        sa.Column("privacy_floor", sa.Text),
        sa.Column("privacy_ceiling", sa.Text),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("admin", sa.Boolean, nullable=False),
        sa.Column("debug", sa.Boolean, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("expires_at_us", sa.BigInteger),
        sa.Column("revoked_at_us", sa.BigInteger),
        sa.Column("replaced_by", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )


def downgrade() -> None:
    op.drop_table("keys")
    op.drop_table("attempts")
    op.drop_table("requests")
