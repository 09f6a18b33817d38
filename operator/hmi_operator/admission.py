"""Admission of a resource, for the validating webhook and for the embedded API. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from hmi_api.names import DomainKey, tenant_of
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import changed_immutables
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning import DomainDependency, Environment, ObservedAdapter, ObservedDomain
from hmi_operator.planning.validation import lineage_of, validate_adapter, validate_domain
from hmi_operator.ports import ResourceRef

Find = Callable[[ResourceRef], Resource | None]
"""Returns a declared resource, or None."""

_ANY_TIME = datetime.min.replace(tzinfo=UTC)  # validation does not depend on the time


@dataclass(frozen=True)
class AdmissionDecision:
    """Why a resource is rejected, if it is, and warnings for its owner."""

    rejection: str | None = None
    warnings: tuple[str, ...] = ()


def decide_admission(
    new: Resource, old: Resource | None, find: Find, environment: Environment
) -> AdmissionDecision:
    """Return whether ``new``, which replaces ``old`` or is created, is admitted.

    A missing Domain is only a warning, since a folder is applied in any order. A resource whose spec does not
    change, or that is being deleted, is always admitted.
    """
    if new.metadata.deletion_timestamp is not None or (old is not None and old.spec == new.spec):
        return AdmissionDecision()
    if old is not None and (changed := changed_immutables(old, new)):
        return AdmissionDecision(
            f"{', '.join(changed)} cannot change; delete the resource and apply it again."
        )
    rejection = (
        validate_domain(new, _observed_domain(new, find, environment))
        if isinstance(new, Domain)
        else validate_adapter(new, _observed_adapter(new, find, environment))
    )
    if rejection is None:
        return AdmissionDecision(warnings=_missing_domain(new, find))
    reason, message = rejection
    if reason == Reason.DOMAIN_TERMINATING and old is not None:
        return AdmissionDecision()  # it depended on the Domain before the deletion
    if reason == Reason.PARENT_NOT_FOUND:
        return AdmissionDecision(warnings=(message,))
    return AdmissionDecision(message)


def _observed_domain(domain: Domain, find: Find, environment: Environment) -> ObservedDomain:
    def find_domain(key: DomainKey) -> Domain | None:
        return domain if key == domain.key else _find_domain(key, find)

    return ObservedDomain(
        now=_ANY_TIME,
        tenant=tenant_of(domain.metadata.namespace),
        parent=_dependency(domain.parent_key, find) if domain.parent_key else None,
        lineage=lineage_of(domain, find_domain),
        environment=environment,
    )


def _observed_adapter(adapter: TaskAdapter, find: Find, environment: Environment) -> ObservedAdapter:
    return ObservedAdapter(
        now=_ANY_TIME,
        tenant=tenant_of(adapter.metadata.namespace),
        domain=_dependency(adapter.domain_key, find),
        environment=environment,
    )


def _missing_domain(resource: Resource, find: Find) -> tuple[str, ...]:
    """Return a warning if a TaskAdapter's Domain is missing."""
    if isinstance(resource, Domain) or _find_domain(resource.domain_key, find) is not None:
        return ()
    waiting = f"{resource.metadata.namespace}/{resource.metadata.name}"
    return (f"There is no Domain {resource.domain_key} yet; TaskAdapter {waiting} waits for it.",)


def _dependency(key: DomainKey, find: Find) -> DomainDependency:
    return DomainDependency(key, _find_domain(key, find))


def _find_domain(key: DomainKey, find: Find) -> Domain | None:
    found = find(ResourceRef.from_key("Domain", key))
    return found if isinstance(found, Domain) else None
