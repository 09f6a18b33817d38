"""Since when a TaskAdapter may not use its Domain, and the error that requests get once it is withdrawn.

Revision: 0009. Follows: 0008.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("adapters", sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True))
    json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    op.add_column("adapters", sa.Column("withdrawn", json, nullable=True))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("adapters", "withdrawn")
    op.drop_column("adapters", "revoked_at")
