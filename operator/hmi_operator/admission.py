"""What is said of a resource before it is kept, by the webhook and by the local resource API. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from hmi_api.names import DomainKey, tenant_of
from hmi_api.resources.domain import Domain
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import changed_immutables
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning import DomainDependency, Environment, ObservedAdapter, ObservedDomain
from hmi_operator.planning.validation import lineage_of, validate_adapter, validate_domain
from hmi_operator.ports import ResourceRef

Resource = Domain | TaskAdapter
Declared = Callable[[ResourceRef], Resource | None]
"""Returns what is declared under a name."""

_NO_MOMENT = datetime.min.replace(tzinfo=UTC)  # whether something is refused does not depend on when
_COMES_LATER = {Reason.PARENT_NOT_FOUND}


@dataclass(frozen=True)
class AdmissionDecision:
    """Why a resource is refused, if it is, and what its owner should know else."""

    rejection: str | None = None
    warnings: tuple[str, ...] = ()


def decide_admission(
    new: Resource, old: Resource | None, declared: Declared, environment: Environment
) -> AdmissionDecision:
    """Return what is said of ``new``, which takes the place of ``old`` or is created.

    What stands on something that is not there yet is only warned of: a folder is applied in any order. A
    resource whose spec does not change, or that is being deleted, is let through whatever it says.
    """
    if new.metadata.deletion_timestamp is not None or (old is not None and old.spec == new.spec):
        return AdmissionDecision()
    if old is not None and (changed := changed_immutables(old, new)):
        return AdmissionDecision(
            f"{', '.join(changed)} cannot change; delete the resource and apply it anew."
        )
    rejection = (
        validate_domain(new, _observe_domain(new, declared, environment))
        if isinstance(new, Domain)
        else validate_adapter(new, _observe_adapter(new, declared, environment))
    )
    if rejection is None:
        return AdmissionDecision(warnings=_missing_domain(new, declared))
    reason, message = rejection
    if reason == Reason.DOMAIN_TERMINATING and old is not None:
        return AdmissionDecision()  # it was there before the Domain was deleted
    return AdmissionDecision(warnings=(message,)) if reason in _COMES_LATER else AdmissionDecision(message)


def _observe_domain(domain: Domain, declared: Declared, environment: Environment) -> ObservedDomain:
    def after(key: DomainKey) -> Domain | None:
        return domain if key == domain.key else _domain(key, declared)

    return ObservedDomain(
        now=_NO_MOMENT,
        tenant=tenant_of(domain.metadata.namespace),
        parent=_dependency(domain.parent_key, declared) if domain.parent_key else None,
        lineage=lineage_of(domain, after),
        environment=environment,
    )


def _observe_adapter(adapter: TaskAdapter, declared: Declared, environment: Environment) -> ObservedAdapter:
    return ObservedAdapter(
        now=_NO_MOMENT,
        tenant=tenant_of(adapter.metadata.namespace),
        domain=_dependency(adapter.domain_key, declared),
        environment=environment,
    )


def _missing_domain(resource: Resource, declared: Declared) -> tuple[str, ...]:
    """Return a warning where a TaskAdapter's Domain is not there yet."""
    if isinstance(resource, Domain) or _domain(resource.domain_key, declared) is not None:
        return ()
    waiting = f"{resource.metadata.namespace}/{resource.metadata.name}"
    return (f"There is no Domain {resource.domain_key} yet; TaskAdapter {waiting} waits for it.",)


def _dependency(key: DomainKey, declared: Declared) -> DomainDependency:
    return DomainDependency(key, _domain(key, declared))


def _domain(key: DomainKey, declared: Declared) -> Domain | None:
    namespace, _, name = key.partition("/")
    found = declared(ResourceRef("Domain", namespace, name))
    return found if isinstance(found, Domain) else None
