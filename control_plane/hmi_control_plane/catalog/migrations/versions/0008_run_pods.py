"""Which pods work on a training run, and when they did.

Revision: 0008. Follows: 0007.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "run_pods",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("pod_uid", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["training_runs.id"],
            name=op.f("fk_run_pods_run_id_training_runs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "pod_uid", name=op.f("pk_run_pods")),
    )


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("run_pods")
