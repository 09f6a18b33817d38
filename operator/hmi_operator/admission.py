"""What is said of a resource before it is kept, by the webhook and by the local resource API. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from hmi_api.names import DomainKey, tenant_of
from hmi_api.resources.domain import Domain
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import changed_immutables
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.plan import AdapterWorld, DomainWorld, Standing, Surroundings
from hmi_operator.plan.refusal import lineage_of, refuse_adapter, refuse_domain
from hmi_operator.ports import ResourceRef

Resource = Domain | TaskAdapter
Declared = Callable[[ResourceRef], Resource | None]
"""Returns what is declared under a name."""

_NO_MOMENT = datetime.min.replace(tzinfo=UTC)  # whether something is refused does not depend on when
_COMES_LATER = {Reason.PARENT_NOT_FOUND}


@dataclass(frozen=True)
class Verdict:
    """Why a resource is refused, if it is, and what its owner should know else."""

    refusal: str | None = None
    warnings: tuple[str, ...] = ()


def judge(new: Resource, old: Resource | None, declared: Declared, surroundings: Surroundings) -> Verdict:
    """Return what is said of ``new``, which takes the place of ``old`` or is created.

    What stands on something that is not there yet is only warned of: a folder is applied in any order. A
    resource whose spec does not change, or that is being deleted, is let through whatever it says.
    """
    if new.metadata.deletion_timestamp is not None or (old is not None and old.spec == new.spec):
        return Verdict()
    if old is not None and (changed := changed_immutables(old, new)):
        return Verdict(f"{', '.join(changed)} cannot change; delete the resource and apply it anew.")
    refusal = (
        refuse_domain(new, _domain_world(new, declared, surroundings))
        if isinstance(new, Domain)
        else refuse_adapter(new, _adapter_world(new, declared, surroundings))
    )
    if refusal is None:
        return Verdict(warnings=_missing_domain(new, declared))
    reason, message = refusal
    if reason == Reason.DOMAIN_TERMINATING and old is not None:
        return Verdict()  # it was there before the Domain was deleted
    return Verdict(warnings=(message,)) if reason in _COMES_LATER else Verdict(message)


def _domain_world(domain: Domain, declared: Declared, surroundings: Surroundings) -> DomainWorld:
    def after(key: DomainKey) -> Domain | None:
        return domain if key == domain.key else _domain(key, declared)

    return DomainWorld(
        now=_NO_MOMENT,
        tenant=tenant_of(domain.metadata.namespace),
        parent=_standing(domain.parent_key, declared) if domain.parent_key else None,
        lineage=lineage_of(domain, after),
        surroundings=surroundings,
    )


def _adapter_world(adapter: TaskAdapter, declared: Declared, surroundings: Surroundings) -> AdapterWorld:
    return AdapterWorld(
        now=_NO_MOMENT,
        tenant=tenant_of(adapter.metadata.namespace),
        domain=_standing(adapter.domain_key, declared),
        surroundings=surroundings,
    )


def _missing_domain(resource: Resource, declared: Declared) -> tuple[str, ...]:
    """Return a warning where a TaskAdapter's Domain is not there yet."""
    if isinstance(resource, Domain) or _domain(resource.domain_key, declared) is not None:
        return ()
    waiting = f"{resource.metadata.namespace}/{resource.metadata.name}"
    return (f"There is no Domain {resource.domain_key} yet; TaskAdapter {waiting} waits for it.",)


def _standing(key: DomainKey, declared: Declared) -> Standing:
    return Standing(key, _domain(key, declared))


def _domain(key: DomainKey, declared: Declared) -> Domain | None:
    namespace, _, name = key.partition("/")
    found = declared(ResourceRef("Domain", namespace, name))
    return found if isinstance(found, Domain) else None
