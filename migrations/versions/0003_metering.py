"""All meters, the price book as it was known, and ratings made again.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("requests", sa.Column("other_meters", JSON))
    op.add_column("attempts", sa.Column("other_meters", JSON))
    op.add_column("attempts", sa.Column("service_tier", sa.Text))
    op.create_table(
        "price_statements",
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("recorded_at_us", sa.BigInteger, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("valid_from_us", sa.BigInteger, nullable=False),
        sa.Column("valid_until_us", sa.BigInteger),
        sa.Column("rates_id", sa.Text, nullable=False),
        sa.Column("terms", JSON),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_price_statements"),
    )
    op.create_table(
        "rating_runs",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("made_at_us", sa.BigInteger, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("filters", JSON, nullable=False),
        sa.Column("book_at_us", sa.BigInteger, nullable=False),
        sa.Column("attempts_rated", sa.BigInteger, nullable=False),
        sa.Column("attempts_corrected", sa.BigInteger, nullable=False),
        sa.Column("delta_nano_usd", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_rating_runs"),
    )
    op.create_table(
        "corrections",
        sa.Column("run", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("request_started_at_us", sa.BigInteger, nullable=False),
        sa.Column("rates_id", sa.Text, nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger, nullable=False),
        sa.Column("delta_nano_usd", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", "request_id", "attempt", name="pk_corrections"),
    )
    op.create_index(
        "ix_corrections_request_started_at_us", "corrections", ["request_started_at_us"]
    )


def downgrade() -> None:
    op.drop_table("corrections")
    op.drop_table("rating_runs")
    op.drop_table("price_statements")
    op.drop_column("attempts", "service_tier")
    op.drop_column("attempts", "other_meters")
    op.drop_column("requests", "other_meters")
