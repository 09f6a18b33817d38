"""Training runs, their pods and the artifacts that they published."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.catalog.tables.columns import Base, Json


class RunPodRow(Base):
    """A pod of a training run's Job, and when its container ran, as the kubelet reported."""

    __tablename__ = "run_pods"

    run_id: Mapped[str] = mapped_column(ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True)
    pod_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class TrainingRun(Base):
    """One attempt to train what a spec declares, unique by uid, spec digest and attempt."""

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


class RunArtifact(Base):
    """An artifact that a training run published through the control plane."""

    __tablename__ = "run_artifacts"

    run_id: Mapped[str] = mapped_column(ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80), primary_key=True, index=True)
