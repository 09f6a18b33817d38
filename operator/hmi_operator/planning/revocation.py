"""Revocation: how serving ends for a TaskAdapter that lost access to another namespace's Domain."""

from collections.abc import Iterable
from dataclasses import dataclass

from hmi_api.internal.catalog import AdapterView, Revocation
from hmi_api.resources.common import format_time
from hmi_api.resources.domain import Domain
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning.actions import Action, Restore, Revoke
from hmi_operator.planning.deletion import is_foreign
from hmi_operator.planning.observed import Dependent, Environment, ObservedAdapter
from hmi_operator.planning.validation import Rejection

LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """The rejection and the actions of a TaskAdapter whose serving ends."""

    rejection: Rejection
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None


def describe_dependent(dependent: Dependent, environment: Environment) -> str:
    """Return a dependent's name, and until when it is served if that ends."""
    view = dependent.view
    if not isinstance(view, AdapterView) or view.revoked_at is None or view.current is None:
        return str(dependent)
    return f"{dependent} (served until {format_time(view.revoked_at + environment.revocation_grace)})"


def describe_still_served(dependents: Iterable[Dependent], environment: Environment) -> str:
    """Return a message about TaskAdapters that are served though the Domain is not shared any more."""
    served = [
        describe_dependent(one, environment)
        for one in dependents
        if isinstance(one.view, AdapterView) and one.view.current is not None
    ]
    return f"Not shared any more, and served for a grace time: {', '.join(served)}." if served else ""


def ending_of(adapter: TaskAdapter, observed: ObservedAdapter) -> Ending | None:
    """Return how the serving of a TaskAdapter ends; None if it has access to its Domain or is not served.

    The catalog knows when the grace period began; the status does not count, as its tenant may write it.
    """
    domain, view = observed.domain.domain, observed.view
    cause = _cause(domain, adapter) if domain is not None else None
    if cause is None or view is None or (view.current is None and not view.withdrawn):
        return None
    reason, why = cause
    if view.withdrawn:
        return Ending((reason, f"{why} Its versions were withdrawn when the grace time was over."))
    revocation = Revocation(reason=reason, message=why)
    if view.revoked_at is None:
        minutes = observed.environment.revocation_grace.total_seconds() / 60
        message = f"{why} It is served for {minutes:g} minutes more."
        return Ending((reason, message), (Revoke(revocation, why="it lost access to its Domain"),), 0.0)
    until = view.revoked_at + observed.environment.revocation_grace
    left = (until - observed.now).total_seconds()
    if left > 0:
        message = f"{why} It is served until {format_time(until)}."
        return Ending((reason, message), requeue_after=min(left, LONGEST_WAIT_SECONDS))
    withdraw = Revoke(revocation.model_copy(update={"withdraw": True}), why="the grace period is over")
    return Ending((reason, f"{why} Its versions are withdrawn."), (withdraw,), 0.0)


def restoration(view: AdapterView | None) -> tuple[Action, ...]:
    """Return the action that takes back a revocation, if the catalog has one."""
    if view is None or (view.revoked_at is None and not view.withdrawn):
        return ()
    return (Restore(why="it has access to its Domain again"),)


def _cause(domain: Domain, adapter: TaskAdapter) -> Rejection | None:
    if not is_foreign(domain, adapter):
        return None
    namespace = adapter.metadata.namespace
    if not domain.is_shared_with(namespace):
        return Reason.NOT_SHARED, (
            f"Domain {domain.key} is not shared with namespace {namespace} any more. "
            f"Its owner can add {namespace} to its spec.sharing.namespaces."
        )
    if domain.metadata.deletion_timestamp is not None:
        return Reason.DOMAIN_TERMINATING, f"Domain {domain.key} is being deleted by its owner."
    return None
