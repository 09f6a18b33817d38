"""Artifacts: published folders in the artifact store, and how many versions need each."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.storage.base import Base


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
    """When its bytes are to be erased: when the last version that needed it went, or, where none needed it
    yet, when whoever published it has had time enough."""


class RunArtifact(Base):
    """An artifact that a training run published through the control plane."""

    __tablename__ = "run_artifacts"

    run_id: Mapped[str] = mapped_column(ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80), primary_key=True, index=True)
