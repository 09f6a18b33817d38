"""Domains, TaskAdapters, their versions, the artifacts of these, and the cluster that declares them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, and_
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.catalog.tables.columns import Base, Json, NullableJson, RowId


class DomainRow(Base):
    """A Domain as it was last declared."""

    __tablename__ = "domains"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        Index(None, "tenant", "key"),
        Index(None, "parent"),
    )

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
    change: Mapped[dict[str, Any] | None] = mapped_column(NullableJson)
    """The refresh or rollback that made this version, as ``TableChange``; None for a trained version."""
    created_at: Mapped[datetime]


class DomainVersionTable(Base):
    """One table of a version's chain: position 0 is its own, then its ancestors', nearest first."""

    __tablename__ = "domain_version_tables"

    domain_version_id: Mapped[int] = mapped_column(
        ForeignKey("domain_versions.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    artifact_digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), index=True)


class AdapterRow(Base):
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
    """Replicas of the current version that are not placed yet; 0 while there is no version."""
    revoked_at: Mapped[datetime | None]
    """Since when it may not use its Domain any more."""
    withdrawn: Mapped[dict[str, str] | None] = mapped_column(NullableJson)
    """Reason and message of the answer to requests, once its versions were deleted for that."""
    created_at: Mapped[datetime]


class AdapterVersion(Base):
    """A version of a TaskAdapter; one that failed its gate is kept as a record and never answers requests."""

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


IS_CURRENT = and_(
    AdapterVersion.adapter_id == AdapterRow.id, AdapterVersion.version == AdapterRow.current_version
)
"""The condition that joins a TaskAdapter to its current version."""


class Artifact(Base):
    """One published artifact; ``refcount`` counts the versions that name it, kept in their transactions."""

    __tablename__ = "artifacts"

    digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    uri: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    refcount: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime]
    orphaned_at: Mapped[datetime | None] = mapped_column(index=True)
    """When its files may be deleted: the time at which the last version that needed it was deleted, or, while
    no version needs it yet, the time until which its run may still complete."""


class Cluster(Base):
    """The cluster whose operator uses this catalog; there is at most one row."""

    __tablename__ = "clusters"

    uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    """uid of its namespace ``kube-system``; on one machine that of the resource store."""
    first_seen_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    inherited: Mapped[bool]
    """Whether there were Domains or TaskAdapters before it was first seen."""
