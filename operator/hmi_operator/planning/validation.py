"""Validation: whether a spec can be accepted, and the conditions of a resource that is rejected."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime

from hmi_api.errors import InvalidInput
from hmi_api.names import DomainKey, Tenant
from hmi_api.resources.common import check_tenant
from hmi_api.resources.conditions import SUMMARIES, DomainCondition, Phase, find_condition
from hmi_api.resources.data_addresses import CLUSTER_KINDS, addresses_of, check_address, scheme_of
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import TaskAdapter, TaskType, check_gate_fits
from hmi_operator.planning.actions import StatusT
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.planning.observed import DomainDependency, Environment, ObservedAdapter, ObservedDomain

Rejection = tuple[str, str]
"""A condition's reason and message."""
_RESOLVED_LATER = frozenset({Reason.PARENT_NOT_FOUND, Reason.DOMAIN_TERMINATING})
"""Rejections that the application of further resources resolves; all others need a change of the spec."""
ALL_TRAFFIC = 100
MAX_DEPTH = 64
"""The longest lineage that is followed."""
_SHOWN_LABELS = 5


def validate_domain(domain: Domain, observed: ObservedDomain) -> Rejection | None:
    """Return why a Domain's spec is rejected; None if it is accepted."""
    return (
        _excluded(domain, observed.environment)
        or _invalid_tenant(observed.tenant, domain)
        or _changed_domain(domain, observed)
        or _unreachable_address(domain, observed.environment)
        or _cycle(observed.lineage)
        or _invalid_parent(domain, observed.parent)
        or _terminating(observed.parent, observed.view.record.parent if observed.view else None)
    )


def validate_adapter(adapter: TaskAdapter, observed: ObservedAdapter) -> Rejection | None:
    """Return why a TaskAdapter's spec is rejected; None if it is accepted."""
    spec, limits = adapter.spec, observed.environment.limits
    return (
        _excluded(adapter, observed.environment)
        or _unsupported(adapter)
        or _invalid_tenant(observed.tenant, adapter)
        or _changed_adapter(adapter, observed)
        or _unreachable_address(adapter, observed.environment)
        or _failed(lambda: check_gate_fits(spec.gate, spec.task.type, has_data=spec.data is not None))
        or _repeated_labels(adapter)
        or (_failed(lambda: limits.check_spec(spec)) if limits is not None else None)
        or _unshared_domain(adapter, observed.domain.domain)
        or _terminating(observed.domain, observed.view.record.domain if observed.view else None)
    )


def write_rejection(writer: ConditionWriter, rejection: Rejection) -> None:
    """Write Accepted, Reconciling and Stalled of a rejected resource."""
    writer.false(DomainCondition.ACCEPTED, *rejection)
    if rejection[0] in _RESOLVED_LATER:
        writer.reconciling(*rejection)
    else:
        writer.stalled(*rejection)


def _excluded(resource: Resource, environment: Environment) -> Rejection | None:
    namespace = resource.metadata.namespace
    if namespace not in environment.excluded:
        return None
    return Reason.NAMESPACE_EXCLUDED, (
        f"HMI creates nothing in namespace {namespace}, which is the cluster's or the installation's own. "
        "Apply it in a tenant's namespace."
    )


def _unsupported(adapter: TaskAdapter) -> Rejection | None:
    if adapter.spec.task.type is TaskType.TEXT_GENERATION:
        return Reason.TASK_TYPE_UNSUPPORTED, (
            "TextGeneration is not served by this release; use SequenceClassification or TokenClassification."
        )
    if adapter.spec.serving.canary_percent != ALL_TRAFFIC:
        return Reason.CANARY_UNSUPPORTED, (
            "This release moves all traffic to a new version at once; leave spec.serving.canaryPercent out."
        )
    return None


def _changed_adapter(adapter: TaskAdapter, observed: ObservedAdapter) -> Rejection | None:
    record = observed.view.record if observed.view else None
    if record is not None and record.domain != adapter.domain_key:
        return _immutable("spec.domainRef", record.domain)
    if record is not None and record.task_type is not adapter.spec.task.type:
        return _immutable("spec.task.type", record.task_type.value)
    return None


def _unshared_domain(adapter: TaskAdapter, domain: Domain | None) -> Rejection | None:
    if domain is not None and not domain.is_shared_with(adapter.metadata.namespace):
        return _not_shared(domain.key, adapter.metadata.namespace)
    return None


def _terminating(dependency: DomainDependency | None, depends_on: str | None) -> Rejection | None:
    """Reject a new dependent of a Domain that is being deleted; present dependents stay."""
    domain = dependency.domain if dependency is not None else None
    if domain is None or domain.metadata.deletion_timestamp is None or depends_on == domain.key:
        return None
    return Reason.DOMAIN_TERMINATING, (
        f"Domain {domain.key} is being deleted, and nothing new is put on it. "
        "Wait until it is gone and apply it again, or name another Domain."
    )


def _unreachable_address(resource: Resource, environment: Environment) -> Rejection | None:
    """Reject an address that a trainer could not read."""
    if environment.schemes is None:
        return None
    for address in addresses_of(resource):
        if scheme_of(address.uri) not in environment.schemes:
            return Reason.ADDRESS_UNREACHABLE, (
                f"{address.field} is {address.uri}, which a training Job cannot reach. "
                f"Give it as {CLUSTER_KINDS}."
            )
        try:
            check_address(address)
            if scheme_of(address.uri) in ("http", "https"):
                environment.addresses.check_url(address.uri)
        except InvalidInput as error:
            return error.reason, f"{address.field}: {error.message}"
    return None


def _invalid_tenant(tenant: Tenant, resource: Resource) -> Rejection | None:
    return _failed(lambda: check_tenant(tenant, resource.metadata.namespace))


def _failed(check: Callable[[], None]) -> Rejection | None:
    """Return the reason and message of the ``InvalidInput`` that a check raises, if any."""
    try:
        check()
    except InvalidInput as error:
        return error.reason, error.message
    return None


def _repeated_labels(adapter: TaskAdapter) -> Rejection | None:
    # No CEL rule of the CRD: comparing all pairs of labels exceeds the cost limit of the API server.
    repeated = [label for label, times in Counter(adapter.spec.task.labels).items() if times > 1]
    if not repeated:
        return None
    named = ", ".join(repr(label) for label in repeated[:_SHOWN_LABELS])
    return Reason.LABELS_REPEATED, f"spec.task.labels names {named} more than once; name each label once."


def rejected_status(resource: Resource, status: StatusT, error: InvalidInput, now: datetime) -> StatusT:
    """Return the planned ``status`` with the control plane's rejection instead of the planned conditions.

    Transition times continue the resource's present conditions: a lasting rejection keeps its time.
    """
    restored = [
        (find_condition(resource.status.conditions, planned.type) or planned)
        if planned.type == DomainCondition.ACCEPTED or planned.type in SUMMARIES
        else planned
        for planned in status.conditions
    ]
    writer = ConditionWriter(restored, generation=resource.metadata.generation, now=now)
    write_rejection(writer, (error.reason, error.message))
    serves = status.version is not None
    if not serves:
        writer.false(DomainCondition.READY, error.reason, error.message)
    phase = Phase.DEGRADED.value if serves else Phase.FAILED.value
    return status.model_copy(update={"conditions": writer.written, "phase": phase})


def _changed_domain(domain: Domain, observed: ObservedDomain) -> Rejection | None:
    if observed.view is None:
        return None
    declared = observed.view.record.base_uri
    if declared != domain.spec.base_model.uri:
        return _immutable("spec.baseModel", declared)
    current, split = observed.view.current, domain.spec.split
    if current is not None and split is not None and split != current.split:
        return _immutable("spec.split", str(current.split))
    return None


def lineage_of(domain: Domain, find: Callable[[DomainKey], Domain | None]) -> tuple[DomainKey, ...]:
    """Return the keys of a Domain and its parents, to the root, a missing one or the first that repeats."""
    lineage = [domain.key]
    above: Domain | None = domain
    while above is not None and above.parent_key is not None and len(lineage) <= MAX_DEPTH:
        key = above.parent_key
        repeated = key in lineage
        lineage.append(key)
        above = None if repeated else find(key)
    return tuple(lineage)


def _cycle(lineage: tuple[DomainKey, ...]) -> Rejection | None:
    if len(lineage) < 2 or lineage[-1] not in lineage[:-1]:
        return None
    loop = " -> ".join(lineage[lineage.index(lineage[-1]) :])
    return Reason.PARENT_CYCLE, f"Domains are their own ancestors: {loop}. Remove parentRef from one of them."


def _invalid_parent(domain: Domain, parent: DomainDependency | None) -> Rejection | None:
    if parent is None:
        return None
    if parent.domain is None:
        return Reason.PARENT_NOT_FOUND, (
            f"There is no Domain {parent.key}. Apply it, or correct spec.parentRef."
        )
    if not parent.domain.is_shared_with(domain.metadata.namespace):
        return _not_shared(parent.key, domain.metadata.namespace)
    mine, theirs = domain.spec.base_model, parent.domain.spec.base_model
    if mine != theirs:
        return Reason.PARENT_BASE_DIFFERS, (
            f"This Domain's base model is {mine.uri} and that of its parent {parent.key} is {theirs.uri}. "
            "Declare both on the same base model and revision."
        )
    split = parent.current.split if parent.current else parent.domain.spec.split
    if domain.spec.split is not None and split is not None and domain.spec.split != split:
        return Reason.PARENT_SPLIT_DIFFERS, (
            f"This Domain is split at {domain.spec.split} and its parent {parent.key} at {split}. "
            "Give both the same split, or leave the child's out."
        )
    return None


def _immutable(path: str, before: str) -> Rejection:
    return Reason.IMMUTABLE_FIELD, (
        f"{path} cannot change; it was {before}. Set it back, or delete the resource and apply it again."
    )


def _not_shared(key: str, namespace: str) -> Rejection:
    return Reason.NOT_SHARED, (
        f"Domain {key} is not shared with namespace {namespace}. "
        f"Its owner can add {namespace} to its spec.sharing.namespaces."
    )
