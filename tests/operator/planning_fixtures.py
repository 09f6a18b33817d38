"""Resources and worlds for tests of the plan."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import AdapterVersionView, AdapterView, DomainVersionView, DomainView, LoadError
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunState, RunView
from hmi_api.names import FINALIZER, DomainKey, Tenant
from hmi_api.resources.common import ObjectMeta, ObjectRef
from hmi_api.resources.conditions import Condition, find_condition
from hmi_api.resources.domain import BaseModelRef, Domain, DomainSpec, OnMiss
from hmi_api.resources.spec_changes import adapter_run_digest, domain_run_digest
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterSpec, TaskType
from hmi_operator.planning import DomainDependency, ObservedAdapter, ObservedDomain, plan_adapter, plan_domain
from hmi_operator.planning.actions import DeclareAdapter, DeclareDomain

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TENANT = Tenant("acme")


def metadata(name: str, **changes: Any) -> ObjectMeta:
    defaults = {"namespace": "shop", "uid": f"uid-{name}", "finalizers": [FINALIZER]}
    return ObjectMeta(name=name, **(defaults | changes))


def domain(name: str = "hotel", **spec: Any) -> Domain:
    wanted = {"base_model": BaseModelRef(uri="wheel://m"), "split": 3, "corpus": [{"uri": "/c"}]} | spec
    return Domain(metadata=metadata(name), spec=DomainSpec.model_validate(wanted))


def adapter(**spec: Any) -> TaskAdapter:
    wanted = {
        "domain_ref": ObjectRef(name="hotel"),
        "task": {"type": TaskType.SEQUENCE_CLASSIFICATION},
        "data": {"train": {"uri": "/t"}},
    }
    return TaskAdapter(metadata=metadata("topic"), spec=TaskAdapterSpec.model_validate(wanted | spec))


def artifact(kind: ArtifactKind, digest: str = "sha256:l1") -> ArtifactRef:
    return ArtifactRef(kind=kind, uri=f"a/{digest}", digest=digest, bytes=10)


def domain_version(digest: str, *, version: int = 1, layers: str = "sha256:l1") -> DomainVersionView:
    return DomainVersionView(
        version=version,
        spec_digest=digest,
        base=BaseModelRef(uri="wheel://m"),
        base_digest="sha256:b",
        split=3,
        layers=artifact(ArtifactKind.LAYERS, layers),
        tables=[artifact(ArtifactKind.TABLE, "sha256:t1")],
        on_miss=OnMiss.COMPUTE,
        entries=7,
        coverage=0.5,
    )


def adapter_version(digest: str, *, version: int = 1, layers: str = "sha256:l1") -> AdapterVersionView:
    return AdapterVersionView(
        version=version,
        spec_digest=digest,
        artifact=artifact(ArtifactKind.ADAPTER, "sha256:a1"),
        layers_digest=layers,
        labels=["a", "b"],
        metrics={"accuracy": 0.9},
    )


def run_of(resource: Domain | TaskAdapter, digest: str, state: RunState, **changes: Any) -> RunView:
    names = {"namespace": "shop", "name": resource.metadata.name}
    spec: DomainRunSpec | AdapterRunSpec = (
        DomainRunSpec(spec=resource.spec, **names)
        if isinstance(resource, Domain)
        else AdapterRunSpec(spec=resource.spec, domain=domain_version("d"), **names)
    )
    made: dict[str, Any] = {"id": "run-1", "uid": resource.metadata.uid, "attempt": 0}
    return RunView(**(made | {"spec_digest": digest, "state": state, "spec": spec} | changes))


def declared_domain(wanted: Domain, observed: ObservedDomain) -> DomainView:
    """The catalog's entry once the plan's declaration was taken."""
    action = next(
        action for action in plan_domain(wanted, observed).actions if isinstance(action, DeclareDomain)
    )
    return DomainView(record=action.record)


def declared_adapter(wanted: TaskAdapter, observed: ObservedAdapter) -> AdapterView:
    action = next(
        action for action in plan_adapter(wanted, observed).actions if isinstance(action, DeclareAdapter)
    )
    return AdapterView(record=action.record)


def observed_domain(wanted: Domain, **changes: Any) -> ObservedDomain:
    """A observed in which the Domain is declared and nothing else has happened."""
    observed = ObservedDomain(now=NOW, tenant=TENANT, lineage=(wanted.key,))
    if "parent" in changes:
        observed = replace(observed, parent=changes.pop("parent"))
    try:
        view = declared_domain(wanted, observed)
    except StopIteration:
        view = None
    current = changes.pop("current", None)
    if view is not None:
        observed = replace(observed, view=view.model_copy(update={"current": current}))
    return replace(observed, **changes)


def observed_adapter(wanted: TaskAdapter, **changes: Any) -> ObservedAdapter:
    """A observed in which the Domain is published and the TaskAdapter declared."""
    dependency = changes.pop(
        "domain", DomainDependency(DomainKey("shop/hotel"), domain(), domain_version("d"))
    )
    observed = ObservedAdapter(now=NOW, tenant=TENANT, domain=dependency)
    current, loaded = changes.pop("current", None), changes.pop("loaded_on", [])
    update = {"current": current, "loaded_on": loaded, "scheduled_on": changes.pop("scheduled_on", loaded)}
    update |= {"load_error": load_error(changes.pop("load_error", "")), "earlier": changes.pop("earlier", [])}
    with suppress(StopIteration):  # a refused TaskAdapter is not declared
        observed = replace(observed, view=declared_adapter(wanted, observed).model_copy(update=update))
    return replace(observed, **changes)


def load_error(text: str) -> LoadError | None:
    """Return the error that is written as ``Reason: message``; None for no text."""
    reason, _, message = text.partition(": ")
    return LoadError(reason=reason, message=message) if text else None


def kinds(actions: tuple[Any, ...]) -> list[type]:
    return [type(action) for action in actions]


def reason(conditions: list[Condition], type_: str) -> tuple[str, str]:
    found = find_condition(conditions, type_)
    assert found is not None
    return found.status.value, found.reason


DIGEST = domain_run_digest(domain(), None)
ADAPTER_DIGEST = adapter_run_digest(adapter(), "sha256:l1", OnMiss.COMPUTE)
