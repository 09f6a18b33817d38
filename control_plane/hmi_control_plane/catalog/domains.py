"""Domains: declared, read and erased."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import DomainRecord, DomainView
from hmi_api.names import domain_key
from hmi_control_plane.catalog import artifacts, runs
from hmi_control_plane.catalog.cursors import TEXT_CURSOR, decode_cursor
from hmi_control_plane.catalog.paging import Page, page_of
from hmi_control_plane.catalog.tables import AdapterRow, DomainRow, DomainVersion, DomainVersionTable
from hmi_control_plane.catalog.tenants import get_tenant, tenant_changed
from hmi_control_plane.catalog.times import now
from hmi_control_plane.catalog.views import domain_record, domain_version_views
from hmi_control_plane.http.errors import Conflict, NotFound

_NAMED = 5


def declare_domain(session: Session, namespace: str, name: str, record: DomainRecord) -> None:
    """Note what is wanted of a Domain; the same record again changes nothing.

    A record with another uid is of another object, and the deletion of the one before it was not seen: it
    adopts what there is, which serves on. Where its tenant or base model is another, what the old one left is
    erased first. Raises NotFound (UnknownTenant), Conflict (TenantChanged, DomainInUse).
    """
    get_tenant(session, record.tenant)
    row = find_domain(session, domain_key(namespace, name))
    if row is not None and row.uid != record.uid:
        if (row.tenant, row.base_uri) == (record.tenant, record.base_uri):
            runs.adopt_runs(session, row.uid, record.uid)
            row.uid = record.uid
        else:
            erase_domain(session, namespace, name)
            row = None
    if row is None:
        row = DomainRow(
            namespace=namespace,
            name=name,
            key=domain_key(namespace, name),
            uid=record.uid,
            tenant=record.tenant,
            created_at=now(),
        )
        session.add(row)
    if row.tenant != record.tenant:
        raise Conflict(
            "TenantChanged", tenant_changed(f"Domain {row.key}", namespace, row.tenant, record.tenant)
        )
    row.generation = record.generation
    row.spec_digest = record.spec_digest
    row.base_uri = record.base_uri
    row.parent = record.parent
    session.flush()


def domain_view(session: Session, namespace: str, name: str) -> DomainView:
    """Return a Domain and its current version; raises NotFound (UnknownDomain)."""
    return to_view(session, get_domain(session, namespace, name))


def to_view(session: Session, row: DomainRow) -> DomainView:
    """Return a Domain's row with its current version."""
    version = current_version(session, row)
    views = domain_version_views(session, [version]) if version is not None else {}
    return DomainView(record=domain_record(row), current=views[version.id] if version is not None else None)


def get_domain(session: Session, namespace: str, name: str) -> DomainRow:
    """Return the Domain declared as ``namespace/name``; raises NotFound (UnknownDomain)."""
    row = find_domain(session, domain_key(namespace, name))
    if row is None:
        raise NotFound("UnknownDomain", f"There is no Domain {namespace}/{name}.")
    return row


def find_domain(session: Session, key: str) -> DomainRow | None:
    """Return the Domain called ``namespace/name``, or None."""
    return session.scalar(select(DomainRow).where(DomainRow.key == key))


def current_version(session: Session, row: DomainRow) -> DomainVersion | None:
    """Return the version that new adapters train on, or None."""
    return session.scalar(
        select(DomainVersion).where(
            DomainVersion.domain_id == row.id, DomainVersion.version == row.current_version
        )
    )


def erase_domain(session: Session, namespace: str, name: str, *, uid: str | None = None) -> None:
    """Remove a Domain, its versions and their artifacts as far as nothing else needs them; idempotent.

    With ``uid``, only what was declared for that object. Raises Conflict (DomainInUse) while TaskAdapters
    stand on it, those that were withdrawn not among them. Child Domains keep the tables they inherit.
    """
    row = find_domain(session, domain_key(namespace, name))
    if row is None or uid not in (None, row.uid):
        return
    above = session.scalars(
        select(AdapterRow)
        .where(AdapterRow.domain == row.key, AdapterRow.withdrawn.is_(None))
        .limit(_NAMED + 1)
    ).all()
    if above:
        raise Conflict("DomainInUse", _in_use(row, above))
    layers = session.scalars(select(DomainVersion.layers_digest).where(DomainVersion.domain_id == row.id))
    tables = session.scalars(
        select(DomainVersionTable.artifact_digest)
        .join(DomainVersion, DomainVersion.id == DomainVersionTable.domain_version_id)
        .where(DomainVersion.domain_id == row.id)
    )
    digests = [*layers, *tables]
    runs.erase_runs(session, row.uid)
    session.delete(row)
    session.flush()
    artifacts.release(session, digests)


def _in_use(row: DomainRow, above: Sequence[AdapterRow]) -> str:
    names = ", ".join(f"{adapter.namespace}/{adapter.name}" for adapter in above[:_NAMED])
    more = " and others" if len(above) > _NAMED else ""
    return (
        f"Delete the TaskAdapters on Domain {row.key} first: {names}{more}. The operator erases those that "
        "were deleted while it was away after a grace time; an administrator does at once: "
        "DELETE /admin/v1/adapters/NAMESPACE/NAME."
    )


def list_domains(session: Session, *, tenant: str | None, limit: int, cursor: str | None) -> Page[DomainRow]:
    """Return Domains by key, one tenant's or all."""
    query = select(DomainRow).order_by(DomainRow.key).limit(limit + 1)
    if tenant is not None:
        query = query.where(DomainRow.tenant == tenant)
    after = decode_cursor(cursor, TEXT_CURSOR)
    if after is not None:
        query = query.where(DomainRow.key > after)
    return page_of(session.scalars(query).all(), limit, lambda row: row.key)
