"""A TaskAdapter on another namespace's Domain that has lost its right to it: how its serving ends."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from hmi_api.internal.catalog import AdapterView, Revocation
from hmi_api.resources.domain import Domain
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning.actions import Action, Restore, Revoke
from hmi_operator.planning.dependents import Dependent, is_foreign
from hmi_operator.planning.observed import Environment, ObservedAdapter
from hmi_operator.planning.validation import Rejection

LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """What is said of a TaskAdapter whose serving ends, and done about it."""

    rejection: Rejection
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None


def describe(dependent: Dependent, environment: Environment) -> str:
    """Return the name of what names a Domain, and until when it is served where that ends."""
    view = dependent.view
    if not isinstance(view, AdapterView) or view.revoked_at is None or view.current is None:
        return str(dependent)
    return f"{dependent} (served until {_written(view.revoked_at + environment.revocation_grace)})"


def still_served(dependents: Iterable[Dependent], environment: Environment) -> str:
    """Return what a Domain's owner is told of what is served though the Domain is not shared with it."""
    served = [
        describe(one, environment)
        for one in dependents
        if isinstance(one.view, AdapterView) and one.view.current is not None
    ]
    return f"Not shared any more, and served for a grace time: {', '.join(served)}." if served else ""


def ending_of(adapter: TaskAdapter, observed: ObservedAdapter) -> Ending | None:
    """Return how the serving of a TaskAdapter ends; None where it may stand on its Domain, or serves nothing.

    The moment from which the grace counts is the catalog's: a status could be written by its own tenant.
    """
    domain, view = observed.domain.domain, observed.view
    cause = _cause(domain, adapter) if domain is not None else None
    if cause is None or view is None or (view.current is None and not view.withdrawn):
        return None
    reason, why = cause
    if view.withdrawn:
        return Ending((reason, f"{why} Its versions were withdrawn when the grace time was over."))
    told = Revocation(reason=reason, message=why)
    if view.revoked_at is None:
        minutes = observed.environment.revocation_grace.total_seconds() / 60
        message = f"{why} It is served for {minutes:g} minutes more."
        return Ending((reason, message), (Revoke(told, "it may not stand on its Domain any more"),), 0.0)
    until = view.revoked_at + observed.environment.revocation_grace
    left = (until - observed.now).total_seconds()
    if left > 0:
        message = f"{why} It is served until {_written(until)}."
        return Ending((reason, message), requeue_after=min(left, LONGEST_WAIT_SECONDS))
    withdraw = Revoke(told.model_copy(update={"withdraw": True}), "the grace time is over")
    return Ending((reason, f"{why} Its versions are withdrawn."), (withdraw,), 0.0)


def restoration(view: AdapterView | None) -> tuple[Action, ...]:
    """Return the action that gives a TaskAdapter its right back, where the catalog has it as revoked."""
    if view is None or (view.revoked_at is None and not view.withdrawn):
        return ()
    return (Restore("it may stand on its Domain again"),)


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


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
