"""Resources, and observations of them, for tests of planning; built without the planner."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import (
    AdapterRecord,
    AdapterVersionView,
    AdapterView,
    DomainRecord,
    DomainVersionView,
    DomainView,
    LoadError,
)
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunState, RunView
from hmi_api.names import FINALIZER, DomainKey, Tenant
from hmi_api.resources.common import ObjectMeta, ObjectRef
from hmi_api.resources.conditions import Condition, ConditionStatus, find_condition
from hmi_api.resources.domain import BaseModelRef, Domain, DomainSpec, OnMiss
from hmi_api.resources.spec_changes import adapter_run_digest, domain_run_digest
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterSpec, TaskType
from hmi_operator.planning import DomainDependency, ObservedAdapter, ObservedDomain

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TENANT = Tenant("acme")


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Return whether the condition of that type is there and True."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.status == ConditionStatus.TRUE


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


def observed_domain(wanted: Domain, **changes: Any) -> ObservedDomain:
    """A Domain that is declared in the catalog; nothing else has happened."""
    parent = changes.get("parent")
    layers = parent.current.layers.digest if parent and parent.current else None
    record = DomainRecord(
        uid=wanted.metadata.uid,
        tenant=TENANT,
        generation=wanted.metadata.generation,
        spec_digest=domain_run_digest(wanted, layers),
        base_uri=wanted.spec.base_model.uri,
        parent=wanted.parent_key,
    )
    view = DomainView(record=record, current=changes.pop("current", None))
    observed = ObservedDomain(now=NOW, tenant=TENANT, lineage=(wanted.key,), view=view)
    return replace(observed, **changes)


def observed_adapter(wanted: TaskAdapter, **changes: Any) -> ObservedAdapter:
    """A TaskAdapter that is declared in the catalog, on a published Domain."""
    dependency = changes.pop(
        "domain", DomainDependency(DomainKey("shop/hotel"), domain(), domain_version("d"))
    )
    version = dependency.current
    record = AdapterRecord(
        uid=wanted.metadata.uid,
        tenant=TENANT,
        generation=wanted.metadata.generation,
        spec_digest=adapter_run_digest(
            wanted, version.layers.digest if version else None, version.on_miss if version else None
        ),
        domain=wanted.domain_key,
        task_type=wanted.spec.task.type,
        replicas=wanted.spec.serving.replicas,
        pinned=wanted.spec.serving.pinned,
    )
    loaded = changes.pop("loaded_on", [])
    view = AdapterView(
        record=record,
        current=changes.pop("current", None),
        loaded_on=loaded,
        scheduled_on=changes.pop("scheduled_on", loaded),
        load_error=_load_error(changes.pop("load_error", None)),
        earlier=changes.pop("earlier", []),
    )
    return replace(ObservedAdapter(now=NOW, tenant=TENANT, domain=dependency, view=view), **changes)


def _load_error(text: str | None) -> LoadError | None:
    """Parse ``Reason: message``."""
    reason, _, message = (text or "").partition(": ")
    return LoadError(reason=reason, message=message) if text else None


def kinds(actions: tuple[Any, ...]) -> list[type]:
    return [type(action) for action in actions]


def reason(conditions: list[Condition], type_: str) -> tuple[str, str]:
    found = find_condition(conditions, type_)
    assert found is not None
    return found.status.value, found.reason


DIGEST = domain_run_digest(domain(), None)
ADAPTER_DIGEST = adapter_run_digest(adapter(), "sha256:l1", OnMiss.COMPUTE)
