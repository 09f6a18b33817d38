"""The plan of a resource that is being deleted, and which dependents block the deletion of a Domain.

Anybody can name a Domain, so only dependents with access to it may block its deletion.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import TypeGuard

from hmi_api.errors import HmiError
from hmi_api.internal.catalog import AdapterView, DomainView
from hmi_api.internal.runs import RunFailure, RunView
from hmi_api.names import FINALIZER, DomainKey
from hmi_api.resources.conditions import DomainCondition, Phase
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning.actions import (
    Action,
    DeleteContents,
    Plan,
    RemoveFinalizer,
    StatusT,
    StopRun,
    Withdraw,
)
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.planning.observed import Dependent
from hmi_operator.planning.training import is_active

_SHOWN_DEPENDENTS = 5


def plan_deletion(
    resource: Resource,
    status: StatusT,
    run: RunView | None,
    now: datetime,
    *,
    dependents: tuple[str, ...] = (),
    before: tuple[Action, ...] = (),
) -> Plan[StatusT]:
    """Return the actions that delete a resource; while ``dependents`` block it, only a status that says so.

    ``before`` are actions to take before the resource's own contents are deleted.
    """
    if FINALIZER not in resource.metadata.finalizers:
        return Plan(status)
    if dependents:
        shown = ", ".join(dependents[:_SHOWN_DEPENDENTS])
        more = len(dependents) - _SHOWN_DEPENDENTS
        others = f" and {more} more" if more > 0 else ""
        message = f"It is deleted once nothing depends on it; still there: {shown}{others}."
        return Plan(_terminating(resource, status, Reason.IN_USE, message, now))
    actions: list[Action] = []
    if run is not None and is_active(run):
        failure = RunFailure(reason=Reason.TERMINATING.value, message="The resource was deleted.")
        actions.append(StopRun(run.id, failure, why="the resource is deleted"))
    actions += before
    actions.append(DeleteContents(why="the resource is deleted"))
    actions.append(RemoveFinalizer(why="all that belonged to it is deleted"))
    message = "What belongs to it is being deleted."
    return Plan(_terminating(resource, status, Reason.TERMINATING, message, now), tuple(actions))


def delayed_status(resource: Resource, status: StatusT, error: HmiError, now: datetime) -> StatusT:
    """Return the status of a resource that cannot be deleted now because of ``error``."""
    message = f"It cannot be deleted yet: {error.message} The deletion is retried."
    return _terminating(resource, status, error.reason, message, now)


def _terminating(resource: Resource, status: StatusT, reason: str, message: str, now: datetime) -> StatusT:
    writer = ConditionWriter.of(resource, now)
    writer.false(DomainCondition.READY, reason, message)
    writer.reconciling(reason, message)
    return status.model_copy(
        update={
            "conditions": writer.written,
            "phase": Phase.TERMINATING.value,
            "observed_generation": resource.metadata.generation,
        }
    )


# --- dependents ---------------------------------------------------------------------------------------------


def is_foreign(domain: Domain, resource: Resource) -> bool:
    """Return whether a resource is in another namespace than a Domain."""
    return resource.metadata.namespace != domain.metadata.namespace


def may_depend_on(domain: Domain, resource: Resource, lineage: Iterable[DomainKey]) -> bool:
    """Return whether a resource that names a Domain has access to it; ``lineage`` is the Domain's."""
    return domain.is_shared_with(resource.metadata.namespace) and not _is_ancestor(resource, lineage)


def blocks_deletion(domain: Domain, dependent: Dependent, lineage: Iterable[DomainKey]) -> bool:
    """Return whether the deletion of a Domain waits for a dependent.

    It waits for dependents in its own namespace, and for TaskAdapters of other namespaces while they are
    served, which ends with their grace period. Child Domains of other namespaces keep what they inherited.
    Domains that are each other's ancestors and are all deleted do not wait: none could be the first.
    """
    resource, view = dependent.resource, dependent.view
    published = _is_declared_on(view, domain) and view.current is not None
    if is_foreign(domain, resource):
        return isinstance(resource, TaskAdapter) and (published or not dependent.view_read)
    if may_depend_on(domain, resource, lineage):
        return not dependent.view_read or _is_declared_on(view, domain)
    if _is_ancestor(resource, lineage) and resource.metadata.deletion_timestamp is not None:
        return False
    return published


def withdrawals(domain: Domain, dependents: Iterable[Dependent]) -> tuple[Action, ...]:
    """Return the actions that withdraw TaskAdapters so that their Domain can be deleted.

    A TaskAdapter that was declared before the Domain existed, or while it was shared, depends on the Domain
    in the catalog, which does not delete a Domain in use.
    """
    return tuple(
        Withdraw(one.resource, why=f"it has no access to Domain {domain.key}, which is deleted")
        for one in dependents
        if isinstance(one.resource, TaskAdapter)
        and isinstance(one.view, AdapterView)
        and one.view.record.domain == domain.key
        and not one.view.withdrawn
    )


def _is_declared_on(
    view: DomainView | AdapterView | None, domain: Domain
) -> TypeGuard[DomainView | AdapterView]:
    if view is None:
        return False
    depends_on = view.record.parent if isinstance(view, DomainView) else view.record.domain
    return depends_on == domain.key


def _is_ancestor(resource: Resource, lineage: Iterable[DomainKey]) -> bool:
    return isinstance(resource, Domain) and resource.key in lineage
