"""Budgets of runtimes for adapters and for tables, and what is placed against the latter.

Revision: 0013. Follows: 0012.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_PLACED = """
UPDATE runtimes SET placed_table_bytes = (
    SELECT COALESCE(SUM(bytes), 0) FROM domain_placements WHERE runtime_id = runtimes.id
)
"""


def upgrade() -> None:
    """Add the columns; count the tables that are placed.

    The default stays, so that a control plane of the version before can still register runtimes.
    """
    op.add_column("runtimes", sa.Column("host_capacity_bytes", sa.BigInteger(), nullable=True))
    op.add_column("runtimes", sa.Column("table_capacity_bytes", sa.BigInteger(), nullable=True))
    op.add_column(
        "runtimes", sa.Column("placed_table_bytes", sa.BigInteger(), nullable=False, server_default="0")
    )
    op.execute(_PLACED)


def downgrade() -> None:
    """Remove the columns."""
    for column in ("placed_table_bytes", "table_capacity_bytes", "host_capacity_bytes"):
        op.drop_column("runtimes", column)
