"""Policy versions, and what a routing decision needs to be explained.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("requests", sa.Column("route", sa.Text))
    op.add_column("requests", sa.Column("shadow_of", sa.Text))
    op.add_column("attempts", sa.Column("why", sa.Text))
    op.create_table(
        "policy_bundles",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("files", JSON, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_policy_bundles"),
    )
    op.create_table(
        "policy_versions",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("applied_at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_policy_versions"),
    )


def downgrade() -> None:
    op.drop_table("policy_versions")
    op.drop_table("policy_bundles")
    op.drop_column("attempts", "why")
    op.drop_column("requests", "shadow_of")
    op.drop_column("requests", "route")
