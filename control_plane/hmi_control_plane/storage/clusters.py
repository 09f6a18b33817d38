"""The cluster that a catalog belongs to."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.storage.base import Base


class Cluster(Base):
    """The cluster whose operator declares what is in this catalog; there is one row at most."""

    __tablename__ = "clusters"

    uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    """uid of its namespace ``kube-system``; on one machine that of the resource store."""
    first_seen_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    inherited: Mapped[bool]
    """Whether there were Domains or TaskAdapters before it was first seen."""
