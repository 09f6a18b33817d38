"""The windows that traffic looks up, by Domain, tenant and day, and the reports of runtimes about them.

Revision: 0010. Follows: 0009.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "window_counts",
        sa.Column("domain_id", _ROW_ID, nullable=False),
        sa.Column("layers_digest", sa.String(length=80), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("windows", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["domains.id"], name=op.f("fk_window_counts_domain_id_domains"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_window_counts_tenant_id_tenants"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(
            "domain_id", "layers_digest", "tenant_id", "day", name=op.f("pk_window_counts")
        ),
    )
    op.create_index(op.f("ix_window_counts_tenant_id"), "window_counts", ["tenant_id"])
    op.create_index(op.f("ix_window_counts_day"), "window_counts", ["day"])
    op.create_table(
        "domain_lookups",
        sa.Column("domain_version_id", _ROW_ID, nullable=False),
        sa.Column("lookups", sa.BigInteger(), nullable=False),
        sa.Column("hits", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_version_id"],
            ["domain_versions.id"],
            name=op.f("fk_domain_lookups_domain_version_id_domain_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("domain_version_id", name=op.f("pk_domain_lookups")),
    )
    op.create_table(
        "pending_window_reports",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pending_window_reports")),
    )
    op.create_table(
        "window_reporters",
        sa.Column("incarnation", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("incarnation", name=op.f("pk_window_reporters")),
    )
    op.create_index(op.f("ix_window_reporters_reported_at"), "window_reporters", ["reported_at"])


def downgrade() -> None:
    """Remove the tables."""
    for table in ("window_reporters", "pending_window_reports", "domain_lookups", "window_counts"):
        op.drop_table(table)
