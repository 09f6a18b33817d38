"""What is read of Jobs, pods and warnings: a few fields each, so that thousands fit in little memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hmi_api.names import API_VERSION, KindName
from hmi_operator.kubernetes.jobs.naming import CRASHES_ANNOTATION, KIND_LABEL, NAME_LABEL, RUN_LABEL
from hmi_operator.ports import ResourceRef

Body = Mapping[str, Any]
_KINDS: dict[str, KindName] = {"Domain": "Domain", "TaskAdapter": "TaskAdapter"}


@dataclass(frozen=True)
class JobFacts:
    """A training Job."""

    run_id: str
    namespace: str
    name: str
    uid: str
    created_at: datetime | None
    terminating: bool
    active: int
    """Pods that are there and not finished."""
    ready: int
    """Those of them in which the program runs."""
    crashes: int
    """Pods of this Job, and of Jobs before it for the same run, that died: one that succeeded is among
    them, since this is only asked of a run that has no result."""
    finished_at: datetime | None
    succeeded: bool
    failure: str
    """Why the Job failed for good, such as ``BackoffLimitExceeded``; empty when it did not."""
    deadline_seconds: int
    memory_limit: str

    @classmethod
    def of(cls, body: Body) -> "JobFacts | None":
        """Read a Job; None when it is none of a training run."""
        metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
        run_id = (metadata.get("labels") or {}).get(RUN_LABEL)
        if not run_id:
            return None
        ends = {
            condition["type"]: condition
            for condition in status.get("conditions") or []
            if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed")
        }
        end = ends.get("Failed") or ends.get("Complete")
        carried = (metadata.get("annotations") or {}).get(CRASHES_ANNOTATION, "0")
        containers = spec.get("template", {}).get("spec", {}).get("containers") or [{}]
        limits = (containers[0].get("resources") or {}).get("limits") or {}
        return cls(
            run_id=run_id,
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            created_at=_moment(metadata.get("creationTimestamp")),
            terminating=metadata.get("deletionTimestamp") is not None,
            active=int(status.get("active") or 0),
            ready=int(status.get("ready") or 0),
            crashes=(int(carried) if carried.isdecimal() else 0) + _deaths(status, ends),
            finished_at=_moment(end.get("lastTransitionTime")) if end else None,
            succeeded="Complete" in ends,
            failure=str(ends["Failed"].get("reason") or "Failed") if "Failed" in ends else "",
            deadline_seconds=int(spec.get("activeDeadlineSeconds") or 0),
            memory_limit=str(limits.get("memory", "")),
        )

    @property
    def finished(self) -> bool:
        """Whether it will start no pod any more."""
        return self.succeeded or bool(self.failure)

    @property
    def untouched(self) -> bool:
        """Whether nothing has become of it yet, as right after it was made."""
        began = self.active or self.ready or self.crashes
        return not (began or self.finished or self.terminating)


@dataclass(frozen=True)
class PodFacts:
    """A pod of a training Job."""

    name: str
    uid: str
    created_at: datetime | None
    phase: str
    unschedulable: str
    """The scheduler's words when no node takes it; else empty."""
    scheduled: bool
    waiting_reason: str
    waiting_message: str
    ended_reason: str
    """Why the container or the pod ended, such as ``OOMKilled``, ``Evicted`` or ``Error``."""
    ended_message: str
    exit_code: int | None

    @classmethod
    def of(cls, body: Body) -> "PodFacts":
        """Read a pod."""
        metadata, status = body["metadata"], body.get("status") or {}
        scheduled: Body = next(
            (entry for entry in status.get("conditions") or [] if entry.get("type") == "PodScheduled"), {}
        )
        refused = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
        state = ((status.get("containerStatuses") or [{}])[0]).get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        return cls(
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            created_at=_moment(metadata.get("creationTimestamp")),
            phase=status.get("phase", "Pending"),
            unschedulable=str(scheduled.get("message", "")) if refused else "",
            scheduled=scheduled.get("status") == "True",
            waiting_reason=str(waiting.get("reason", "")),
            waiting_message=str(waiting.get("message", "")),
            # The pod's own reason (Evicted) says more than that of the container it took down.
            ended_reason=str(status.get("reason") or ended.get("reason") or ""),
            ended_message=str(status.get("message") or ended.get("message") or ""),
            exit_code=ended.get("exitCode"),
        )


def _deaths(status: Body, ends: Mapping[str, Body]) -> int:
    """Count what died in one Job: its failed pods, and one that succeeded; at least one when it is over."""
    failed = int(status.get("failed") or 0)
    if "Complete" in ends:
        return failed + 1
    return max(failed, 1) if ends else failed


def resource_of_labels(body: Body) -> ResourceRef | None:
    """Return the resource that an object was made for, by its labels."""
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    kind, name = _KINDS.get(labels.get(KIND_LABEL, "")), labels.get(NAME_LABEL)
    return ResourceRef(kind, metadata["namespace"], name) if kind and name else None


def is_owned(body: Body) -> bool:
    """Say whether a resource of ours controls an object; labels alone anyone can write."""
    owners = (body["metadata"].get("ownerReferences")) or []
    return any(owner.get("controller") and owner.get("apiVersion") == API_VERSION for owner in owners)


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
