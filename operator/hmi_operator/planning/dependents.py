"""What keeps a Domain from being deleted: anybody can name it, and only what stands on it may hold it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

from hmi_api.internal.catalog import AdapterView, DomainView
from hmi_api.names import DomainKey
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning.actions import Action, Withdraw


@dataclass(frozen=True)
class Dependent:
    """A resource that names a Domain."""

    resource: Domain | TaskAdapter
    view: DomainView | AdapterView | None = None
    """It as the catalog has it."""
    asked: bool = True
    """Whether the catalog was asked for it: not where something else is known to hold the Domain."""

    def __str__(self) -> str:
        metadata = self.resource.metadata
        return f"{self.resource.kind} {metadata.namespace}/{metadata.name}"


def is_foreign(domain: Domain, resource: Domain | TaskAdapter) -> bool:
    """Say whether a resource is of another namespace than a Domain."""
    return resource.metadata.namespace != domain.metadata.namespace


def may_depend_on(domain: Domain, resource: Domain | TaskAdapter, lineage: Iterable[DomainKey]) -> bool:
    """Say whether a resource that names a Domain may stand on it; ``lineage`` is the Domain's, upwards."""
    return domain.is_shared_with(resource.metadata.namespace) and not _is_above(resource, lineage)


def holds(domain: Domain, dependent: Dependent, lineage: Iterable[DomainKey]) -> bool:
    """Say whether a Domain that is being deleted waits for what names it.

    It waits for what stands on it in its own namespace, and for TaskAdapters of others that are served on it,
    which ends with their grace time. Child Domains of others keep what they inherited. Domains that are one
    another's ancestors and are all deleted do not wait: none of them could ever be the first.
    """
    resource = dependent.resource
    if is_foreign(domain, resource):
        view = dependent.view
        serves = _is_declared_on(view, domain) and view.current is not None
        return isinstance(resource, TaskAdapter) and (serves or not dependent.asked)
    if may_depend_on(domain, resource, lineage):
        return not dependent.asked or _is_declared_on(dependent.view, domain)
    if _is_above(resource, lineage) and resource.metadata.deletion_timestamp is not None:
        return False
    view = dependent.view
    return _is_declared_on(view, domain) and view.current is not None


def withdrawals(domain: Domain, dependents: Iterable[Dependent]) -> tuple[Action, ...]:
    """Return what is withdrawn so that a Domain nothing stands on can be erased.

    A TaskAdapter that was declared before the Domain was there, or while it was shared, is in the catalog as
    dependency on it, and the catalog erases no Domain before that.
    """
    return tuple(
        Withdraw(one.resource, f"it may not stand on Domain {domain.key}, which is deleted")
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
    stands_on = view.record.parent if isinstance(view, DomainView) else view.record.domain
    return stands_on == domain.key


def _is_above(resource: Domain | TaskAdapter, lineage: Iterable[DomainKey]) -> bool:
    return isinstance(resource, Domain) and resource.key in lineage
