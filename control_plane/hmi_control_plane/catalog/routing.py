"""Where a tenant's request can be answered: what the gateway asks for each model it has not seen lately."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from hmi_api.task_adapter import TaskType
from hmi_control_plane.storage import Adapter, AdapterVersion, Placement, Residency, ResidencyState, Runtime


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A living runtime that says it can serve an adapter now."""

    runtime_id: str
    url: str
    queue_depth: int


@dataclass(frozen=True, slots=True)
class Route:
    """One adapter of a tenant; no endpoints means that it is not loaded anywhere yet."""

    name: str
    task_type: TaskType
    version: int | None
    labels: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]


def routes(session: Session, tenant: str, names: Sequence[str]) -> dict[str, Route]:
    """Return the tenant's adapters of these names, by name; unknown ones, and other tenants', are absent.

    An endpoint may still hold the version before the current one: what serves goes on until the new one
    is loaded. Endpoints stand in the order of preference: not draining first, then the shortest queue.
    """
    adapters = session.execute(
        select(Adapter, AdapterVersion.labels)
        .outerjoin(
            AdapterVersion,
            and_(AdapterVersion.adapter_id == Adapter.id, AdapterVersion.version == Adapter.current_version),
        )
        .where(Adapter.tenant == tenant, Adapter.name.in_(names))
    ).all()
    endpoints = _endpoints(session, [adapter.id for adapter, _ in adapters])
    return {
        adapter.name: Route(
            name=adapter.name,
            task_type=TaskType(adapter.task_type),
            version=adapter.current_version,
            labels=tuple(labels or ()),
            endpoints=tuple(endpoints.get(adapter.id, ())),
        )
        for adapter, labels in adapters
    }


def _endpoints(session: Session, adapter_ids: Sequence[int]) -> dict[int, list[Endpoint]]:
    rows = session.execute(
        select(Residency.adapter_id, Runtime.id, Runtime.url, Runtime.queue_depth)
        .join(Runtime, Runtime.id == Placement.runtime_id)
        .join(
            Residency,
            and_(Residency.runtime_id == Placement.runtime_id, Residency.adapter_id == Placement.adapter_id),
        )
        .where(
            Placement.adapter_id.in_(adapter_ids),
            ~Runtime.lost,
            Residency.state == ResidencyState.READY,
        )
        .group_by(Residency.adapter_id, Runtime.id)
        .order_by(Runtime.draining, func.max(Residency.version).desc(), Runtime.queue_depth, Runtime.id)
    )
    found: dict[int, list[Endpoint]] = {}
    for adapter_id, runtime_id, url, queue_depth in rows:
        found.setdefault(adapter_id, []).append(Endpoint(runtime_id, url, queue_depth))
    return found
