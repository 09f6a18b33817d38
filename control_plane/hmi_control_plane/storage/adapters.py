"""Task adapters and their versions."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.storage.base import Base
from hmi_control_plane.storage.types import Json, NullableJson, RowId


class Adapter(Base):
    """A TaskAdapter as it was last declared.

    Requests name an adapter by tenant and name, so the pair is unique; the namespace it was declared in is
    kept, because several namespaces may belong to one tenant.
    """

    __tablename__ = "adapters"
    __table_args__ = (
        UniqueConstraint("tenant", "name"),
        UniqueConstraint("namespace", "name"),
        Index(None, "tenant", "id"),
        Index(None, "missing_replicas", "id"),
        Index(None, "domain", "id"),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    namespace: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    uid: Mapped[str] = mapped_column(String(64))
    generation: Mapped[int] = mapped_column(BigInteger)
    spec_digest: Mapped[str] = mapped_column(String(80))
    domain: Mapped[str] = mapped_column(String(127))
    """``namespace/name``; no foreign key, since a TaskAdapter may be declared before its Domain."""
    task_type: Mapped[str] = mapped_column(String(32))
    replicas: Mapped[int]
    pinned: Mapped[bool]
    current_version: Mapped[int | None]
    missing_replicas: Mapped[int] = mapped_column(default=0)
    """Replicas wanted by the current version and placed nowhere yet; 0 while there is no version."""
    revoked_at: Mapped[datetime | None]
    """Since when it may not stand on its Domain any more."""
    withdrawn: Mapped[dict[str, str] | None] = mapped_column(NullableJson)
    """Reason and message that requests are answered with since its versions were erased for that."""
    created_at: Mapped[datetime]


class AdapterVersion(Base):
    """A version of a TaskAdapter; one that failed its gate is kept as a record and never serves."""

    __tablename__ = "adapter_versions"
    __table_args__ = (UniqueConstraint("adapter_id", "version"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id", ondelete="CASCADE"))
    version: Mapped[int]
    spec_digest: Mapped[str] = mapped_column(String(80))
    artifact_digest: Mapped[str | None] = mapped_column(ForeignKey("artifacts.digest"), index=True)
    layers_digest: Mapped[str] = mapped_column(String(80))
    labels: Mapped[list[str]] = mapped_column(Json)
    metrics: Mapped[dict[str, Any]] = mapped_column(Json)
    data_read: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    """What training read, as ``DataRead``; None of versions from before it was kept."""
    gate_passed: Mapped[bool]
    gate_message: Mapped[str] = mapped_column(Text, default="")
    run_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime]
