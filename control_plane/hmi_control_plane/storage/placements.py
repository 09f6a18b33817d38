"""Placements: which runtime should serve which adapter, and so which domains."""

from sqlalchemy import BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.storage.base import Base

_REMOVED = text("adapter_id IS NULL")


class Placement(Base):
    """One adapter on one runtime.

    ``revision`` is the runtime's desired revision at the last change, by which a runtime reads only what
    changed. A removal stays as a row without an adapter until the runtime has read it.
    """

    __tablename__ = "placements"
    __table_args__ = (
        Index(None, "runtime_id", "revision"),
        # Removals are few and asked for at every read, so they have an index of their own.
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
    """The domain version it is served on: the newest with the layers the adapter was trained on."""
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
