"""Usage events, each recorded exactly once."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.catalog.tables.columns import Base, RowId

_UNBILLED = text("invoice_id IS NULL")
_BILLED = text("invoice_id IS NOT NULL")


class Meter(StrEnum):
    """What is metered. Every quantity is a whole number of the unit in the name."""

    REQUESTS = "requests"
    ROWS = "rows"
    PROMPT_TOKENS = "prompt_tokens"
    TRAINING_SECONDS = "training_seconds"
    RESIDENT_BYTE_HOURS = "resident_byte_hours"


class UsageEventRow(Base):
    """A quantity of one meter. ``(source, event_id)`` is the event's identity, as in CloudEvents.

    Tenant, ``tenant_id`` and adapter have no foreign keys: events outlive the tenants and adapters they name.
    A tenant's name may belong to another tenant later; ``tenant_id`` says whose usage this is.
    """

    __tablename__ = "usage_events"
    __table_args__ = (
        UniqueConstraint("source", "event_id"),
        Index(None, "tenant_id", "time"),
        # Most events of the past are billed and most of the present are not: an index for each side.
        Index(
            "ix_usage_events_unbilled",
            "tenant_id",
            "time",
            sqlite_where=_UNBILLED,
            postgresql_where=_UNBILLED,
        ),
        Index("ix_usage_events_billed", "invoice_id", sqlite_where=_BILLED, postgresql_where=_BILLED),
        Index(None, "time"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    source: Mapped[str] = mapped_column(String(100))
    event_id: Mapped[str] = mapped_column(String(200))
    tenant: Mapped[str] = mapped_column(String(63))
    tenant_id: Mapped[str] = mapped_column(String(32))
    adapter: Mapped[str | None] = mapped_column(String(63))
    version: Mapped[int | None]
    meter: Mapped[str] = mapped_column(String(32))
    quantity: Mapped[int] = mapped_column(BigInteger)
    time: Mapped[datetime]
    request_id: Mapped[str | None] = mapped_column(String(128))
    recorded_at: Mapped[datetime]
    invoice_id: Mapped[str | None] = mapped_column(String(32))
    """The final invoice that bills it; None while none does."""
