"""Training runs."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.storage.base import Base
from hmi_control_plane.storage.types import Json


class RunPod(Base):
    """A pod of a training run's Job, and when its program ran, as the kubelet reported."""

    __tablename__ = "run_pods"

    run_id: Mapped[str] = mapped_column(ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True)
    pod_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TrainingRun(Base):
    """One attempt at training what a spec says; uid, spec digest and attempt name it for its creator."""

    __tablename__ = "training_runs"
    __table_args__ = (
        UniqueConstraint("uid", "spec_digest", "attempt"),
        Index(None, "tenant", "id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    uid: Mapped[str] = mapped_column(String(64))
    spec_digest: Mapped[str] = mapped_column(String(80))
    attempt: Mapped[int]
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    kind: Mapped[str] = mapped_column(String(16))
    namespace: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    failure: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
