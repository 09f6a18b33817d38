"""Usage events name the final invoice that bills them; lines of invoices get parts by adapter.

Final invoices stay as they are. Their lines are matched with the events that they counted: the oldest final
invoice first, and of a line's events those that reached the ledger first, up to the line's quantity. An event
that a line counted in part is split in two, so that sums stay as they are. An invoice with a line that finds
fewer events than it counted bills some of them a second time, as earlier versions could after a void or in
another currency: it is marked as ``double_billed``.

Revision: 0006. Follows: 0005.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

_TIME = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_UNBILLED = sa.text("invoice_id IS NULL")
_BILLED = sa.text("invoice_id IS NOT NULL")

_TENANTS = sa.table("tenants", sa.column("id", sa.String), sa.column("name", sa.String))
_DELETED_TENANTS = sa.table("deleted_tenants", sa.column("id", sa.String), sa.column("name", sa.String))
_INVOICES = sa.table(
    "invoices",
    sa.column("id", sa.String),
    sa.column("tenant", sa.String),
    sa.column("state", sa.String),
    sa.column("finalized_at", _TIME),
    sa.column("double_billed", sa.Boolean),
)
_LINES = sa.table(
    "invoice_lines",
    sa.column("invoice_id", sa.String),
    sa.column("position", sa.Integer),
    sa.column("adapter", sa.String),
    sa.column("meter", sa.String),
    sa.column("usage_start", _TIME),
    sa.column("usage_end", _TIME),
    sa.column("quantity", sa.BigInteger),
)
_COPIED = ("source", "tenant", "tenant_id", "adapter", "version", "meter", "request_id")
_EVENTS = sa.table(
    "usage_events",
    sa.column("id", sa.BigInteger),
    sa.column("event_id", sa.String),
    *(sa.column(name) for name in _COPIED),
    sa.column("quantity", sa.BigInteger),
    sa.column("time", _TIME),
    sa.column("recorded_at", _TIME),
    sa.column("invoice_id", sa.String),
)

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and mark what final invoices bill."""
    op.add_column("usage_events", sa.Column("invoice_id", sa.String(length=32), nullable=True))
    op.create_index(
        "ix_usage_events_unbilled",
        "usage_events",
        ["tenant_id", "time"],
        sqlite_where=_UNBILLED,
        postgresql_where=_UNBILLED,
    )
    op.create_index(
        "ix_usage_events_billed",
        "usage_events",
        ["invoice_id"],
        sqlite_where=_BILLED,
        postgresql_where=_BILLED,
    )
    op.add_column("invoice_lines", sa.Column("parts", _JSON, nullable=True))
    op.add_column(
        "invoices", sa.Column("double_billed", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    connection = op.get_bind()
    final = sa.select(_INVOICES).where(_INVOICES.c.state == "final")
    for invoice in connection.execute(final.order_by(_INVOICES.c.finalized_at, _INVOICES.c.id)).all():
        lines = sa.select(_LINES).where(_LINES.c.invoice_id == invoice.id).order_by(_LINES.c.position)
        missing = sum(_mark(invoice, line) for line in connection.execute(lines).all())
        if missing:
            connection.execute(
                sa.update(_INVOICES).where(_INVOICES.c.id == invoice.id).values(double_billed=True)
            )
    if connection.dialect.name != "sqlite":  # where a column without a default cannot be added
        op.alter_column("invoices", "double_billed", server_default=None)


def downgrade() -> None:
    """Forget what bills which event."""
    op.drop_column("invoices", "double_billed")
    op.drop_column("invoice_lines", "parts")
    op.drop_index("ix_usage_events_billed", table_name="usage_events")
    op.drop_index("ix_usage_events_unbilled", table_name="usage_events")
    op.drop_column("usage_events", "invoice_id")


def _mark(invoice: sa.Row[Any], line: sa.Row[Any]) -> int:
    """Mark the events that a line counted; return the quantity for which there are none."""
    connection, event = op.get_bind(), _EVENTS.c
    owners = sa.union_all(
        sa.select(_TENANTS.c.id).where(_TENANTS.c.name == invoice.tenant),
        sa.select(_DELETED_TENANTS.c.id).where(_DELETED_TENANTS.c.name == invoice.tenant),
    )
    counted = sa.and_(
        event.tenant_id.in_(owners),
        event.adapter.is_not_distinct_from(line.adapter),
        event.meter == line.meter,
        event.time >= line.usage_start,
        event.time < line.usage_end,
        event.invoice_id.is_(None),
    )
    running = sa.func.sum(event.quantity).over(order_by=(event.recorded_at, event.id)).label("running")
    first = sa.select(event.id, event.quantity, running).where(counted).subquery()
    whole = sa.select(first.c.id).where(first.c.running <= line.quantity)
    found = connection.scalar(
        sa.select(sa.func.sum(first.c.quantity)).where(first.c.running <= line.quantity)
    )
    connection.execute(sa.update(_EVENTS).where(event.id.in_(whole)).values(invoice_id=invoice.id))
    missing = int(line.quantity) - int(found or 0)
    if missing > 0:
        next_one = sa.select(_EVENTS).where(counted).order_by(event.recorded_at, event.id).limit(1)
        partly = connection.execute(next_one).one_or_none()
        if partly is not None:
            _split(partly, missing, invoice.id)
            return 0
    return missing


def _split(partly: sa.Row[Any], billed: int, invoice_id: str) -> None:
    """Let an event have the quantity that the invoice bills, and another one the rest."""
    connection = op.get_bind()
    connection.execute(
        sa.update(_EVENTS).where(_EVENTS.c.id == partly.id).values(quantity=billed, invoice_id=invoice_id)
    )
    copied = {name: getattr(partly, name) for name in (*_COPIED, "time", "recorded_at")}
    connection.execute(
        sa.insert(_EVENTS).values(
            **copied, event_id=f"{partly.event_id}/rest", quantity=partly.quantity - billed
        )
    )
