"""What training read, beside each version.

Revision: 0007. Follows: 0006.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TABLES = ("domain_versions", "adapter_versions")


def upgrade() -> None:
    """Add the columns; versions that are there keep no record."""
    for table in _TABLES:
        op.add_column(table, sa.Column("data_read", _JSON, nullable=True))


def downgrade() -> None:
    """Remove them."""
    for table in _TABLES:
        op.drop_column(table, "data_read")
