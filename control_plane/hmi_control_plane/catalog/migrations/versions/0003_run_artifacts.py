"""Which run published which artifact through the control plane.

Revision: 0003. Follows: 0002.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "run_artifacts",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["training_runs.id"],
            name=op.f("fk_run_artifacts_run_id_training_runs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "digest", name=op.f("pk_run_artifacts")),
    )
    op.create_index(op.f("ix_run_artifacts_digest"), "run_artifacts", ["digest"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_index(op.f("ix_run_artifacts_digest"), table_name="run_artifacts")
    op.drop_table("run_artifacts")
