"""Prices by effective date, and invoices."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from hmi_control_plane.catalog.tables.columns import Base, NullableJson, RowId


class Price(Base):
    """What one unit of a meter costs from ``effective_from`` until the next price in the same currency."""

    __tablename__ = "prices"
    __table_args__ = (UniqueConstraint("meter", "currency", "effective_from"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    meter: Mapped[str] = mapped_column(String(32))
    currency: Mapped[str] = mapped_column(String(3))
    unit_price: Mapped[Decimal]
    effective_from: Mapped[datetime]
    created_at: Mapped[datetime]


class InvoiceState(StrEnum):
    """A draft may be recomputed; a final invoice never changes, except to become void."""

    DRAFT = "draft"
    FINAL = "final"
    VOID = "void"


_NOT_VOID = text("state <> 'void'")


class Invoice(Base):
    """A tenant's bill for ``[period_start, period_end)``; at most one that is not void for each."""

    __tablename__ = "invoices"
    __table_args__ = (
        Index(
            "uq_invoices_live_period",
            "tenant_id",
            "currency",
            "period_start",
            "period_end",
            unique=True,
            sqlite_where=_NOT_VOID,
            postgresql_where=_NOT_VOID,
        ),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(63))
    tenant_id: Mapped[str] = mapped_column(String(32), index=True)
    currency: Mapped[str] = mapped_column(String(3))
    period_start: Mapped[datetime]
    period_end: Mapped[datetime]
    state: Mapped[str] = mapped_column(String(8), default=InvoiceState.DRAFT)
    total: Mapped[Decimal]
    created_at: Mapped[datetime]
    finalized_at: Mapped[datetime | None]
    voided_at: Mapped[datetime | None]
    double_billed: Mapped[bool] = mapped_column(default=False)
    """Made before events were marked as billed, and bills usage that an earlier final invoice bills, too."""
    lines: Mapped[list["InvoiceLine"]] = relationship(
        order_by="InvoiceLine.position", cascade="all, delete-orphan", passive_deletes=True
    )


class InvoiceLine(Base):
    """Usage of one meter at one price in ``[usage_start, usage_end)``, with the parts of the adapters.

    Late usage lies before the invoice's period: it was recorded after that period had been invoiced. Lines
    written by earlier versions of HMI have one adapter each and no ``parts``.
    """

    __tablename__ = "invoice_lines"

    invoice_id: Mapped[str] = mapped_column(ForeignKey("invoices.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    meter: Mapped[str] = mapped_column(String(32))
    adapter: Mapped[str | None] = mapped_column(String(63))
    description: Mapped[str] = mapped_column(Text, default="")
    usage_start: Mapped[datetime]
    usage_end: Mapped[datetime]
    quantity: Mapped[int] = mapped_column(BigInteger)
    parts: Mapped[list[dict[str, Any]] | None] = mapped_column(NullableJson)
    unit_price: Mapped[Decimal]
    amount: Mapped[Decimal]
