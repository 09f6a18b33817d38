"""Actions: what a plan asks the reconciler to do, in order. ``why`` completes "..., because"."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from hmi_api.internal.catalog import AdapterRecord, DomainRecord, Revocation
from hmi_api.internal.runs import RunCreate, RunFailure
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.domain import DomainStatus
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus

Status = DomainStatus | TaskAdapterStatus
StatusT = TypeVar("StatusT", bound=CommonStatus)
StatusT_co = TypeVar("StatusT_co", bound=CommonStatus, covariant=True)


@dataclass(frozen=True)
class AddFinalizer:
    """Add the finalizer; the only action of its plan, before anything is created for the resource."""

    why: str


@dataclass(frozen=True)
class RemoveFinalizer:
    """Remove the finalizer, so that the object can disappear."""

    why: str


@dataclass(frozen=True)
class DeclareDomain:
    """Create or update the Domain in the catalog."""

    record: DomainRecord
    why: str


@dataclass(frozen=True)
class DeclareAdapter:
    """Create or update the TaskAdapter in the catalog."""

    record: AdapterRecord
    why: str


@dataclass(frozen=True)
class StartRun:
    """Create a training run and start its Job; the same request gives the same run."""

    request: RunCreate
    why: str


@dataclass(frozen=True)
class PublishAgainOrStartRun:
    """Publish the earlier version of the same spec again; if none is left, start the run."""

    request: RunCreate
    why: str


@dataclass(frozen=True)
class ResumeRun:
    """Start a Job for a run that has none; it resumes from the run's checkpoint."""

    run_id: str
    why: str


@dataclass(frozen=True)
class StopRun:
    """Stop a run's Job and record the failure, so that the run is not resumed."""

    run_id: str
    failure: RunFailure
    why: str


@dataclass(frozen=True)
class DeleteContents:
    """Delete the resource's Jobs, work files, versions, artifacts and placements."""

    why: str


@dataclass(frozen=True)
class Withdraw:
    """Delete the Jobs and versions of another resource, whose object stays."""

    adapter: TaskAdapter
    why: str


@dataclass(frozen=True)
class Revoke:
    """Revoke the TaskAdapter's use of its Domain, or withdraw its versions after the grace period."""

    revocation: Revocation
    why: str


@dataclass(frozen=True)
class Restore:
    """Take back a revocation."""

    why: str


Action = (
    AddFinalizer
    | RemoveFinalizer
    | DeclareDomain
    | DeclareAdapter
    | StartRun
    | PublishAgainOrStartRun
    | ResumeRun
    | StopRun
    | DeleteContents
    | Withdraw
    | Revoke
    | Restore
)


@dataclass(frozen=True)
class Plan(Generic[StatusT_co]):
    """The next status and the actions for one resource."""

    status: StatusT_co
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds until the resource is reconciled again without an event; None to wait for one."""
