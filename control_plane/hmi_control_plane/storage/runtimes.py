"""Runtimes and what they say they hold."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.storage.base import Base
from hmi_control_plane.storage.types import Json


class Runtime(Base):
    """A runtime process, as it registered and last reported."""

    __tablename__ = "runtimes"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    device: Mapped[str] = mapped_column(String(200))
    capacity_bytes: Mapped[int] = mapped_column(BigInteger)
    incarnation: Mapped[str] = mapped_column(String(64))
    registered_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime] = mapped_column(index=True)
    free_bytes: Mapped[int] = mapped_column(BigInteger)
    queue_depth: Mapped[int] = mapped_column(default=0)
    resident: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)
    draining: Mapped[bool] = mapped_column(default=False)
    lost: Mapped[bool] = mapped_column(default=False)
    placed_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of everything placed here: adapters, and each domain's layers and tables once."""
    desired_revision: Mapped[int] = mapped_column(BigInteger)
    """Raised by every change of what this runtime should serve; the row's lock keeps commits in its order."""
    forgotten_revision: Mapped[int] = mapped_column(BigInteger)
    """Removals up to here are no longer remembered: whoever is behind must read everything."""


class ResidencyState(StrEnum):
    """What a runtime says of one adapter version."""

    READY = "Ready"
    FAILED = "Failed"


class Residency(Base):
    """One adapter version at one runtime, as that runtime's present incarnation reported it."""

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
