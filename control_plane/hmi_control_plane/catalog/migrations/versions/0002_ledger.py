"""The ledger: usage events, prices and invoices.

Revision: 0002. Follows: 0001.
"""

import sqlalchemy as sa
from alembic import op

_TIME = sa.DateTime(timezone=True)
_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MONEY = sa.Numeric(28, 12).with_variant(sa.String(30), "sqlite")  # SQLite would make NUMERIC a float

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "invoices",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("period_start", _TIME, nullable=False),
        sa.Column("period_end", _TIME, nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("total", _MONEY, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("finalized_at", _TIME, nullable=True),
        sa.Column("voided_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
    )
    op.create_index(op.f("ix_invoices_tenant"), "invoices", ["tenant"])
    op.create_index(
        "uq_invoices_live_period",
        "invoices",
        ["tenant", "currency", "period_start", "period_end"],
        unique=True,
        sqlite_where=sa.text("state <> 'void'"),
        postgresql_where=sa.text("state <> 'void'"),
    )
    op.create_table(
        "prices",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("meter", sa.String(length=32), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("unit_price", _MONEY, nullable=False),
        sa.Column("effective_from", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
        sa.UniqueConstraint(
            "meter", "currency", "effective_from", name=op.f("uq_prices_meter_currency_effective_from")
        ),
    )
    op.create_table(
        "usage_events",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("source", sa.String(length=100), nullable=False),
        sa.Column("event_id", sa.String(length=200), nullable=False),
        sa.Column("tenant", sa.String(length=63), nullable=False),
        sa.Column("adapter", sa.String(length=63), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("meter", sa.String(length=32), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("recorded_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_events")),
        sa.UniqueConstraint("source", "event_id", name=op.f("uq_usage_events_source_event_id")),
    )
    op.create_index(op.f("ix_usage_events_tenant_time"), "usage_events", ["tenant", "time"])
    op.create_index(op.f("ix_usage_events_time"), "usage_events", ["time"])
    op.create_table(
        "invoice_lines",
        sa.Column("invoice_id", sa.String(length=32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("meter", sa.String(length=32), nullable=False),
        sa.Column("adapter", sa.String(length=63), nullable=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("usage_start", _TIME, nullable=False),
        sa.Column("usage_end", _TIME, nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price", _MONEY, nullable=False),
        sa.Column("amount", _MONEY, nullable=False),
        sa.ForeignKeyConstraint(
            ["invoice_id"],
            ["invoices.id"],
            name=op.f("fk_invoice_lines_invoice_id_invoices"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("invoice_id", "position", name=op.f("pk_invoice_lines")),
    )


def downgrade() -> None:
    """Drop the tables, and their indexes with them."""
    op.drop_table("invoice_lines")
    op.drop_table("usage_events")
    op.drop_table("prices")
    op.drop_table("invoices")
