"""Domains, their published versions, and each version's chain of tables."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.storage.base import Base
from hmi_control_plane.storage.types import Json, RowId


class Domain(Base):
    """A Domain as it was last declared."""

    __tablename__ = "domains"
    __table_args__ = (UniqueConstraint("namespace", "name"), Index(None, "tenant", "key"))

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    namespace: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    key: Mapped[str] = mapped_column(String(127), unique=True)
    """``namespace/name``, the form in which adapters and children name it, so that they join by an index."""
    uid: Mapped[str] = mapped_column(String(64))
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    generation: Mapped[int] = mapped_column(BigInteger)
    spec_digest: Mapped[str] = mapped_column(String(80))
    base_uri: Mapped[str] = mapped_column(Text)
    parent: Mapped[str | None] = mapped_column(String(127))
    current_version: Mapped[int | None]
    created_at: Mapped[datetime]


class DomainVersion(Base):
    """A published version of a Domain; versions count from 1 within their Domain."""

    __tablename__ = "domain_versions"
    __table_args__ = (
        UniqueConstraint("domain_id", "version"),
        Index(None, "domain_id", "layers_digest", "version"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    domain_id: Mapped[int] = mapped_column(ForeignKey("domains.id", ondelete="CASCADE"))
    version: Mapped[int]
    spec_digest: Mapped[str] = mapped_column(String(80))
    base_uri: Mapped[str] = mapped_column(Text)
    base_revision: Mapped[str | None] = mapped_column(Text)
    base_digest: Mapped[str] = mapped_column(String(80))
    split: Mapped[int]
    layers_digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), index=True)
    on_miss: Mapped[str] = mapped_column(String(16))
    entries: Mapped[int] = mapped_column(BigInteger)
    coverage: Mapped[float]
    metrics: Mapped[dict[str, Any]] = mapped_column(Json)
    data_read: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    """What training read, as ``DataRead``; None of versions from before it was kept."""
    run_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime]


class DomainVersionTable(Base):
    """One table of a version's chain: position 0 is its own, then its ancestors', nearest first."""

    __tablename__ = "domain_version_tables"

    domain_version_id: Mapped[int] = mapped_column(
        ForeignKey("domain_versions.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    artifact_digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), index=True)
