"""The plan of a resource that is being deleted: the same for both kinds."""

from datetime import datetime
from typing import TypeVar

from hmi_api.errors import HmiError
from hmi_api.internal.runs import RunFailure, RunView
from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import DomainCondition, Phase
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus
from hmi_operator.planning.actions import Action, Erase, Plan, RemoveFinalizer, StopRun
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.planning.training import is_active

_SHOWN_DEPENDENTS = 5
StatusT = TypeVar("StatusT", DomainStatus, TaskAdapterStatus)


def plan_deletion(
    resource: Domain | TaskAdapter,
    status: StatusT,
    run: RunView | None,
    now: datetime,
    *,
    dependents: tuple[str, ...] = (),
    before: tuple[Action, ...] = (),
) -> Plan[StatusT]:
    """Return the actions that erase a resource; while others stand on it, only why it stays.

    ``before`` is done before the resource's own are erased.
    """
    if FINALIZER not in resource.metadata.finalizers:
        return Plan(status)
    writer = ConditionWriter(status.conditions, generation=resource.metadata.generation, now=now)
    if dependents:
        shown = ", ".join(dependents[:_SHOWN_DEPENDENTS])
        more = (
            f" and {len(dependents) - _SHOWN_DEPENDENTS} more" if len(dependents) > _SHOWN_DEPENDENTS else ""
        )
        message = f"It is deleted once nothing stands on it; still there: {shown}{more}."
        return Plan(_terminating(resource, status, writer, Reason.IN_USE, message))
    actions: list[Action] = []
    if run is not None and is_active(run):
        failure = RunFailure(reason=Reason.TERMINATING.value, message="The resource was deleted.")
        actions.append(StopRun(run.id, failure, "the resource is deleted"))
    actions += before
    actions.append(Erase("the resource is deleted"))
    actions.append(RemoveFinalizer("everything that belonged to it is erased"))
    message = "What belongs to it is being erased."
    return Plan(_terminating(resource, status, writer, Reason.TERMINATING, message), tuple(actions))


def deletion_delayed(
    resource: Domain | TaskAdapter, status: StatusT, error: HmiError, now: datetime
) -> StatusT:
    """Return the status of a resource that cannot be erased now: it says why."""
    writer = ConditionWriter(status.conditions, generation=resource.metadata.generation, now=now)
    message = f"It is deleted, and cannot be erased yet: {error.message} This is tried again by itself."
    return _terminating(resource, status, writer, error.reason, message)


def _terminating(
    resource: Domain | TaskAdapter, status: StatusT, writer: ConditionWriter, reason: str, message: str
) -> StatusT:
    writer.false(DomainCondition.READY, reason, message)
    writer.reconciling(reason, message)
    return status.model_copy(
        update={
            "conditions": writer.written,
            "phase": Phase.TERMINATING.value,
            "observed_generation": resource.metadata.generation,
        }
    )
