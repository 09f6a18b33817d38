"""How a version of a Domain came from the one before it: by a refresh or a rollback.

Revision: 0011. Follows: 0010.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    op.add_column("domain_versions", sa.Column("change", json, nullable=True))


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("domain_versions", "change")
