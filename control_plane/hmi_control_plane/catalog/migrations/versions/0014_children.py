"""Domains by parent: a refresh reads what children looked up.

Revision: 0014. Follows: 0013.
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index(op.f("ix_domains_parent"), "domains", ["parent"])


def downgrade() -> None:
    """Remove the index."""
    op.drop_index(op.f("ix_domains_parent"), "domains")
