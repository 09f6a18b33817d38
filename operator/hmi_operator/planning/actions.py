"""Steps: what a plan asks the engine to do, in order, each with its reason."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from hmi_api.internal.catalog import AdapterRecord, DomainRecord, Revocation
from hmi_api.internal.runs import RunCreate, RunFailure
from hmi_api.resources.domain import DomainStatus
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus

StatusT = TypeVar("StatusT", DomainStatus, TaskAdapterStatus)


@dataclass(frozen=True)
class AddFinalizer:
    """Hold the resource until it has been erased; alone in its plan, before anything is made."""

    why: str


@dataclass(frozen=True)
class DeclareDomain:
    """Tell the catalog of the Domain."""

    record: DomainRecord
    why: str


@dataclass(frozen=True)
class DeclareAdapter:
    """Tell the catalog of the TaskAdapter."""

    record: AdapterRecord
    why: str


@dataclass(frozen=True)
class StartRun:
    """Create a training run and start its process; the same request makes the same run."""

    request: RunCreate
    why: str


@dataclass(frozen=True)
class PublishAgainOrStartRun:
    """Publish the version again that was made from this spec before; where none is left, start the run."""

    request: RunCreate
    why: str


@dataclass(frozen=True)
class ResumeRun:
    """Start the process of a run that has none; it goes on from its checkpoint."""

    run_id: str
    why: str


@dataclass(frozen=True)
class StopRun:
    """End the process of a run and record the failure, so that nobody takes it up again."""

    run_id: str
    failure: RunFailure
    why: str


@dataclass(frozen=True)
class Erase:
    """Erase versions, artifacts, placements and work files of the resource."""

    why: str


@dataclass(frozen=True)
class Withdraw:
    """Erase what the catalog and training have of another resource, which itself stays as it is declared."""

    adapter: TaskAdapter
    why: str


@dataclass(frozen=True)
class Revoke:
    """Tell the catalog that the TaskAdapter may not stand on its Domain, or that its grace time is over."""

    revocation: Revocation
    why: str


@dataclass(frozen=True)
class Restore:
    """Tell the catalog that the TaskAdapter may stand on its Domain again."""

    why: str


@dataclass(frozen=True)
class RemoveFinalizer:
    """Let the resource go."""

    why: str


Action = (
    AddFinalizer
    | DeclareDomain
    | DeclareAdapter
    | StartRun
    | PublishAgainOrStartRun
    | ResumeRun
    | StopRun
    | Erase
    | Withdraw
    | Revoke
    | Restore
    | RemoveFinalizer
)


@dataclass(frozen=True)
class Plan(Generic[StatusT]):
    """A new status, the actions to take, and when to look again though nothing was heard."""

    status: StatusT
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds; None to wait for an event."""
