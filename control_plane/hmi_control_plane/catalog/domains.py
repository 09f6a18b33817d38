"""Domains: declare, read, list and delete them."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import DomainRecord, DomainVersionView, DomainView
from hmi_api.internal.window_counts import DomainLookups
from hmi_api.names import domain_key
from hmi_api.resources.domain import BaseModelRef, OnMiss
from hmi_control_plane.catalog import artifacts, runs
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.resources import current_version, find_resource, take_over, update_row
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    DomainLookupsRow,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
)
from hmi_control_plane.catalog.tenants import get_tenant, require_same_tenant
from hmi_control_plane.http.errors import Conflict

_MAX_NAMED_ADAPTERS = 5


def declare_domain(session: Session, namespace: str, name: str, record: DomainRecord) -> None:
    """Record a Domain as declared; idempotent.

    A new object takes over the row (see ``resources.take_over``) unless tenant or base model differ. Raises
    NotFound (UnknownTenant), Conflict (TenantChanged, DomainInUse).
    """
    get_tenant(session, record.tenant)
    row = find_resource(session, DomainRow, namespace, name)
    if row is not None and not take_over(session, row, record, ("tenant", "base_uri")):
        delete_domain(session, namespace, name)
        row = None
    if row is None:
        row = DomainRow(
            namespace=namespace,
            name=name,
            key=domain_key(namespace, name),
            uid=record.uid,
            tenant=record.tenant,
            created_at=utc_now(),
        )
        session.add(row)
    require_same_tenant(f"Domain {row.key}", namespace, row.tenant, record.tenant)
    update_row(row, record)
    session.flush()


def build_view(session: Session, row: DomainRow, *, lookups: bool = False) -> DomainView:
    """Return the view of a row with its current version; with ``lookups`` also what traffic looked up."""
    version = current_version(session, row)
    views = build_version_views(session, [version]) if version is not None else {}
    return DomainView(
        record=DomainRecord.model_validate(row),
        current=views[version.id] if version is not None else None,
        lookups=load_lookups(session, version) if lookups and version is not None else None,
    )


def load_lookups(session: Session, version: DomainVersion) -> DomainLookups:
    """Return how many windows were looked up in a version since it was published."""
    row = session.get(DomainLookupsRow, version.id)
    return DomainLookups.of(row.lookups, row.hits) if row is not None else DomainLookups.of(0, 0)


def build_version_views(session: Session, rows: Sequence[DomainVersion]) -> dict[int, DomainVersionView]:
    """Return the views of versions by row id, each with its chain of tables, in two statements."""
    chains: dict[int, list[str]] = {row.id: [] for row in rows}
    links = session.scalars(
        select(DomainVersionTable)
        .where(DomainVersionTable.domain_version_id.in_(chains))
        .order_by(DomainVersionTable.domain_version_id, DomainVersionTable.position)
    )
    for link in links:
        chains[link.domain_version_id].append(link.artifact_digest)
    digests = {row.layers_digest for row in rows} | {d for chain in chains.values() for d in chain}
    refs = artifacts.load_refs(session, digests)
    return {
        row.id: DomainVersionView(
            version=row.version,
            spec_digest=row.spec_digest,
            base=BaseModelRef(uri=row.base_uri, revision=row.base_revision),
            base_digest=row.base_digest,
            split=row.split,
            layers=refs[row.layers_digest],
            tables=[refs[digest] for digest in chains[row.id]],
            on_miss=OnMiss(row.on_miss),
            entries=row.entries,
            coverage=row.coverage,
            metrics=row.metrics,
            data=row.data_read or [],
        )
        for row in rows
    }


def delete_domain(session: Session, namespace: str, name: str, *, uid: str | None = None) -> None:
    """Delete a Domain, its versions, and their artifacts unless something else needs them; idempotent.

    With ``uid``, delete it only if it was declared for that object. Raises Conflict (DomainInUse) while
    TaskAdapters that are not withdrawn use it. Child Domains keep the tables that they inherit.
    """
    row = find_resource(session, DomainRow, namespace, name)
    if row is None or uid not in (None, row.uid):
        return
    users = session.scalars(
        select(AdapterRow)
        .where(AdapterRow.domain == row.key, AdapterRow.withdrawn.is_(None))
        .limit(_MAX_NAMED_ADAPTERS + 1)
    ).all()
    if users:
        raise Conflict("DomainInUse", _in_use_message(row, users))
    layers = session.scalars(select(DomainVersion.layers_digest).where(DomainVersion.domain_id == row.id))
    tables = session.scalars(
        select(DomainVersionTable.artifact_digest)
        .join(DomainVersion, DomainVersion.id == DomainVersionTable.domain_version_id)
        .where(DomainVersion.domain_id == row.id)
    )
    digests = [*layers, *tables]
    runs.delete_runs(session, row.uid)
    session.delete(row)
    session.flush()
    artifacts.release(session, digests)


def _in_use_message(row: DomainRow, users: Sequence[AdapterRow]) -> str:
    names = ", ".join(f"{adapter.namespace}/{adapter.name}" for adapter in users[:_MAX_NAMED_ADAPTERS])
    more = " and others" if len(users) > _MAX_NAMED_ADAPTERS else ""
    return (
        f"Delete the TaskAdapters on Domain {row.key} first: {names}{more}. If they were deleted while the "
        "operator was not running, it removes them after a grace time; an administrator can do so now: "
        "DELETE /admin/v1/adapters/NAMESPACE/NAME."
    )
