"""The desired state of a runtime: all of it, or the changes since a revision that the runtime has read."""

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.orm import Session

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.runtimes import AdapterServing, DesiredState, DomainServing
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.catalog import placement
from hmi_control_plane.catalog.domains import build_version_views
from hmi_control_plane.catalog.tables import (
    IS_CURRENT,
    AdapterRow,
    AdapterVersion,
    Artifact,
    DomainPlacement,
    DomainRow,
    DomainVersion,
    Placement,
    Runtime,
    Tenant,
)
from hmi_control_plane.http.errors import NotFound


def has_changed(session: Session, runtime_id: str, since: int) -> bool:
    """Return whether the desired state changed after ``since``; reads one row by its key, for polling.

    Raises NotFound (UnknownRuntime).
    """
    revision = session.scalar(select(Runtime.desired_revision).where(Runtime.id == runtime_id))
    if revision is None:
        raise _unknown(runtime_id)
    return since != revision


def load_desired_state(session: Session, runtime_id: str, since: int) -> DesiredState:
    """Return what changed after revision ``since``, or everything (``full``).

    It is everything when ``since`` is 0, older than the removals that are kept, or from before the runtime
    was deleted and registered again. Raises NotFound (UnknownRuntime).
    """
    runtime = session.get(Runtime, runtime_id)
    if runtime is None:
        raise _unknown(runtime_id)
    # Read before the rows: a concurrent change may then be read twice, but is never missed.
    revision = runtime.desired_revision
    full = not runtime.forgotten_revision <= since <= revision
    after = 0 if full else since
    removed = [] if full else _removed(session, runtime_id, after)
    # Domains after adapters: a concurrent placement may then yield a Domain without its adapter, never the
    # reverse.
    adapters = _adapters(session, runtime_id, after)
    return DesiredState(
        revision=revision,
        full=full,
        domains=_domains(session, runtime_id, after),
        adapters=adapters,
        removed_adapters=removed,
    )


def delete_acknowledged_removals(session: Session, runtime_id: str, since: int) -> None:
    """Delete the rows of removals up to ``since``, which the runtime has read."""
    placement.lock(session)
    if has_acknowledged_removals(session, runtime_id, since):
        session.execute(delete(Placement).where(*_acknowledged(runtime_id, since)))
        runtime = session.get_one(Runtime, runtime_id)
        runtime.forgotten_revision = max(runtime.forgotten_revision, since)


def has_acknowledged_removals(session: Session, runtime_id: str, since: int) -> bool:
    """Return whether there are removals up to ``since``; reads an index, without a lock."""
    return bool(session.scalar(select(exists().where(*_acknowledged(runtime_id, since)))))


def _acknowledged(runtime_id: str, since: int) -> tuple[ColumnElement[bool], ...]:
    return (
        Placement.runtime_id == runtime_id,
        Placement.revision <= since,
        Placement.adapter_id.is_(None),
    )


def _removed(session: Session, runtime_id: str, after: int) -> list[str]:
    keys = session.scalars(
        select(Placement.adapter_key)
        .where(
            Placement.runtime_id == runtime_id,
            Placement.revision > after,
            Placement.adapter_id.is_(None),
        )
        .order_by(Placement.revision, Placement.adapter_key)
    )
    return list(keys)


def _domains(session: Session, runtime_id: str, after: int) -> list[DomainServing]:
    rows = session.execute(
        select(DomainRow.key, DomainVersion)
        .join(DomainVersion, DomainVersion.domain_id == DomainRow.id)
        .join(DomainPlacement, DomainPlacement.domain_version_id == DomainVersion.id)
        .where(DomainPlacement.runtime_id == runtime_id, DomainPlacement.revision > after)
        .order_by(DomainRow.key, DomainVersion.version)
    ).all()
    views = build_version_views(session, [version for _, version in rows])
    return [DomainServing(key=key, version=views[version.id]) for key, version in rows]


def _adapters(session: Session, runtime_id: str, after: int) -> list[AdapterServing]:
    rows = session.execute(
        select(
            Placement.adapter_key,
            AdapterRow,
            Tenant.id,
            AdapterVersion.version,
            AdapterVersion.labels,
            Artifact,
            DomainVersion.version,
        )
        .join(AdapterRow, AdapterRow.id == Placement.adapter_id)
        .join(Tenant, Tenant.name == AdapterRow.tenant)
        .join(AdapterVersion, IS_CURRENT)
        .join(Artifact, Artifact.digest == AdapterVersion.artifact_digest)
        .join(DomainVersion, DomainVersion.id == Placement.domain_version_id)
        .where(Placement.runtime_id == runtime_id, Placement.revision > after)
        .order_by(Placement.revision, Placement.adapter_key)
    )
    return [
        AdapterServing(
            key=key,
            tenant_id=tenant_id,
            version=version,
            task_type=TaskType(adapter.task_type),
            labels=labels,
            artifact=ArtifactRef.model_validate(artifact),
            domain=adapter.domain,
            domain_version=domain_version,
            pinned=adapter.pinned,
        )
        for key, adapter, tenant_id, version, labels, artifact, domain_version in rows
    ]


def _unknown(runtime_id: str) -> NotFound:
    return NotFound("UnknownRuntime", f"Runtime {runtime_id} is not registered; register first.")
