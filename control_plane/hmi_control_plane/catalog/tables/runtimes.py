"""Runtimes, what is placed on them, and what they report as loaded."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.catalog.tables.columns import Base, Json, RowId


class Runtime(Base):
    """A runtime process, as it registered and last reported."""

    __tablename__ = "runtimes"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    device: Mapped[str] = mapped_column(String(200))
    capacity_bytes: Mapped[int] = mapped_column(BigInteger)
    host_capacity_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes for adapters; None if the runtime gave one capacity for adapters and tables."""
    table_capacity_bytes: Mapped[int | None] = mapped_column(BigInteger)
    incarnation: Mapped[str] = mapped_column(String(64))
    registered_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime] = mapped_column(index=True)
    free_bytes: Mapped[int] = mapped_column(BigInteger)
    queue_depth: Mapped[int] = mapped_column(default=0)
    resident: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)
    pool: Mapped[str] = mapped_column(String(63), default="", server_default="")
    processor: Mapped[str] = mapped_column(Text, default="", server_default="")
    engines: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list, server_default="[]")
    """The precision of each base model's layers, as last reported (``EngineReport``)."""
    draining: Mapped[bool] = mapped_column(default=False)
    lost: Mapped[bool] = mapped_column(default=False)
    placed_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of everything placed here: adapters, and each domain's layers and tables once."""
    placed_table_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of layers and tables; part of ``placed_bytes``."""
    desired_revision: Mapped[int] = mapped_column(BigInteger)
    """Incremented by every change of the desired state. The lock on this row keeps commits in that order."""
    forgotten_revision: Mapped[int] = mapped_column(BigInteger)
    """Removals up to this revision are deleted: a runtime that is behind it must read everything."""


class RecordedChoice(Base):
    """The precision and kernel that the runtimes of a pool use for a base model on one kind of processor."""

    __tablename__ = "precision_choices"
    __table_args__ = (UniqueConstraint("pool", "requested", "base_digest", "split", "processor"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    pool: Mapped[str] = mapped_column(String(63))
    requested: Mapped[str] = mapped_column(String(100))
    base_digest: Mapped[str] = mapped_column(String(80))
    split: Mapped[int]
    processor: Mapped[str] = mapped_column(String(400))
    choice: Mapped[dict[str, Any]] = mapped_column(Json)
    runtime_id: Mapped[str] = mapped_column(String(128))
    """The runtime that measured; it may be gone."""
    chosen_at: Mapped[datetime]


class LoadState(StrEnum):
    """What a runtime reports of one adapter version."""

    READY = "Ready"
    FAILED = "Failed"


class LoadReport(Base):
    """A runtime's report that it loaded an adapter version, or failed to; of its current incarnation only.

    A version that is Ready and has a reason serves with an earlier table of its Domain.
    """

    __tablename__ = "residency"

    runtime_id: Mapped[str] = mapped_column(ForeignKey("runtimes.id", ondelete="CASCADE"), primary_key=True)
    adapter_id: Mapped[int] = mapped_column(
        ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    version: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(100), default="")
    message: Mapped[str] = mapped_column(Text, default="")
    updated_at: Mapped[datetime]


_REMOVED = text("adapter_id IS NULL")


class Placement(Base):
    """One adapter on one runtime.

    ``revision`` is the runtime's desired revision at the last change, by which a runtime reads only what
    changed. A removal stays as a row without an adapter until the runtime has read it.
    """

    __tablename__ = "placements"
    __table_args__ = (
        Index(None, "runtime_id", "revision"),
        # Removals are few and every read needs them, so they have an index of their own.
        Index(
            "ix_placements_removed",
            "runtime_id",
            "revision",
            sqlite_where=_REMOVED,
            postgresql_where=_REMOVED,
        ),
    )

    runtime_id: Mapped[str] = mapped_column(ForeignKey("runtimes.id", ondelete="CASCADE"), primary_key=True)
    adapter_key: Mapped[str] = mapped_column(String(127), primary_key=True)
    adapter_id: Mapped[int | None] = mapped_column(ForeignKey("adapters.id", ondelete="SET NULL"), index=True)
    domain_version_id: Mapped[int | None] = mapped_column(
        ForeignKey("domain_versions.id", ondelete="SET NULL"), index=True
    )
    """The domain version that the adapter runs on: the newest with the layers it was trained on."""
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    revision: Mapped[int] = mapped_column(BigInteger)


class DomainPlacement(Base):
    """One domain version on one runtime, with the number of adapters there that need it."""

    __tablename__ = "domain_placements"
    __table_args__ = (Index(None, "runtime_id", "revision"),)

    runtime_id: Mapped[str] = mapped_column(ForeignKey("runtimes.id", ondelete="CASCADE"), primary_key=True)
    domain_version_id: Mapped[int] = mapped_column(
        ForeignKey("domain_versions.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    adapters: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    revision: Mapped[int] = mapped_column(BigInteger)
