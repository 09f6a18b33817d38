"""Actions: what the reconciler does for a plan, in order."""

from dataclasses import dataclass, field
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
class Action:
    """One thing to do. ``why`` completes "..., because"."""

    why: str = field(kw_only=True)


class AddFinalizer(Action):
    """Add the finalizer; the only action of its plan, before anything is created for the resource."""


class RemoveFinalizer(Action):
    """Remove the finalizer, so that the object can disappear."""


@dataclass(frozen=True)
class Declare(Action):
    """Create or update the resource in the catalog."""

    record: DomainRecord | AdapterRecord


@dataclass(frozen=True)
class StartRun(Action):
    """Create a training run and start its Job; the same request gives the same run."""

    request: RunCreate


@dataclass(frozen=True)
class PublishAgainOrStartRun(Action):
    """Publish the earlier version of the same spec again; if none is left, start the run."""

    request: RunCreate


@dataclass(frozen=True)
class RestoreTable(Action):
    """Publish the table of a kept version of the Domain again."""

    version: int


@dataclass(frozen=True)
class ResumeRun(Action):
    """Start a Job for a run that has none; it resumes from the run's checkpoint."""

    run_id: str


@dataclass(frozen=True)
class StopRun(Action):
    """Stop a run's Job and record the failure, so that the run is not resumed."""

    run_id: str
    failure: RunFailure


class DeleteContents(Action):
    """Delete the resource's Jobs, work files, versions, artifacts and placements."""


@dataclass(frozen=True)
class Withdraw(Action):
    """Delete the Jobs and versions of another resource, whose object stays."""

    adapter: TaskAdapter


@dataclass(frozen=True)
class Revoke(Action):
    """Revoke the TaskAdapter's use of its Domain, or withdraw its versions after the grace period."""

    revocation: Revocation


class Restore(Action):
    """Take back a revocation."""


@dataclass(frozen=True)
class Plan(Generic[StatusT_co]):
    """The next status and the actions for one resource."""

    status: StatusT_co
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds until the resource is reconciled again without an event; None to wait for one."""
