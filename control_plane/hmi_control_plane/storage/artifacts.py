"""Artifacts: published folders in the artifact store, and how many versions need each."""

from datetime import datetime

from sqlalchemy import BigInteger, String, Text
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
    """When the last version that needed it went; its bytes are then erased from the store."""
