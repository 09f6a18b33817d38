"""Tenants, present and deleted, and API keys."""

import secrets
from datetime import date, datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.catalog.tables.columns import Base


def new_tenant_id() -> str:
    """Return a new tenant id. It contains an underscore, which no tenant name does."""
    return f"tenant_{secrets.token_hex(8)}"


class Tenant(Base):
    """Who is metered and billed.

    ``name`` can be used again after the tenant is deleted, ``id`` never: keys, usage and invoices refer to
    it.
    """

    __tablename__ = "tenants"
    __table_args__ = (Index(None, "id", unique=True),)

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    id: Mapped[str] = mapped_column(String(32), default=new_tenant_id)
    display_name: Mapped[str] = mapped_column(String(200), default="")
    created_at: Mapped[datetime]


class DeletedTenant(Base):
    """A tenant that was deleted. Its usage and invoices remain, for administrators."""

    __tablename__ = "deleted_tenants"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), index=True)
    display_name: Mapped[str] = mapped_column(String(200), default="")
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime]


class ApiKey(Base):
    """A tenant's key: its public id, and the SHA-256 of a secret that is shown once and never stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name", ondelete="CASCADE"), index=True)
    tenant_id: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200), default="")
    secret_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    last_used_on: Mapped[date | None]
