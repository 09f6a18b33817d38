"""Task adapters: declared, read and erased."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import AdapterRecord, AdapterView, EarlierVersion
from hmi_api.names import adapter_key
from hmi_control_plane import placement
from hmi_control_plane.catalog import artifacts, runs
from hmi_control_plane.catalog.cursors import NUMBER_CURSOR, decode_cursor
from hmi_control_plane.catalog.paging import Page, page_of
from hmi_control_plane.catalog.stamps import stamp_of
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    LoadReport,
    LoadState,
    Placement,
    Runtime,
)
from hmi_control_plane.catalog.tenants import get_tenant, tenant_changed
from hmi_control_plane.catalog.times import now
from hmi_control_plane.catalog.views import adapter_record, adapter_version_view
from hmi_control_plane.http.errors import Conflict, NotFound


def declare_adapter(session: Session, namespace: str, name: str, record: AdapterRecord) -> None:
    """Note what is wanted of a TaskAdapter; the same record again changes nothing.

    A record with another uid is of another object, and the deletion of the one before it was not seen: it
    adopts what there is, which serves on. Where its tenant, Domain or type of task is another, what the old
    one left is erased first. Raises NotFound (UnknownTenant), Conflict (NameTaken, TenantChanged).
    """
    get_tenant(session, record.tenant)
    placement.lock(session)
    row = find_adapter(session, namespace, name)
    if row is not None and row.uid != record.uid:
        wanted = (record.tenant, record.domain, record.task_type.value)
        if (row.tenant, row.domain, row.task_type) == wanted:
            runs.adopt_runs(session, row.uid, record.uid)
            row.uid = record.uid
        else:
            erase_adapter(session, namespace, name)
            row = None
    if row is None:
        _refuse_taken_name(session, namespace, name, record.tenant)
        row = AdapterRow(
            namespace=namespace,
            name=name,
            uid=record.uid,
            tenant=record.tenant,
            missing_replicas=0,
            created_at=now(),
        )
        session.add(row)
    elif row.tenant != record.tenant:
        raise Conflict(
            "TenantChanged",
            tenant_changed(f"TaskAdapter {namespace}/{name}", namespace, row.tenant, record.tenant),
        )
    moved = (row.replicas, row.pinned) != (record.replicas, record.pinned)
    row.generation = record.generation
    row.spec_digest = record.spec_digest
    row.domain = record.domain
    row.task_type = record.task_type.value
    row.replicas = record.replicas
    row.pinned = record.pinned
    session.flush()
    if moved and row.current_version is not None:
        placement.settle(session, [row])


def adapter_view(session: Session, namespace: str, name: str) -> AdapterView:
    """Return a TaskAdapter, its current version and where it is; raises NotFound (UnknownAdapter)."""
    return to_view(session, get_adapter(session, namespace, name))


def to_view(session: Session, row: AdapterRow) -> AdapterView:
    """Return an adapter's row with its current version and where it is scheduled and loaded."""
    version = session.scalar(
        select(AdapterVersion).where(
            AdapterVersion.adapter_id == row.id, AdapterVersion.version == row.current_version
        )
    )
    scheduled = session.scalars(
        select(Placement.runtime_id)
        .join(Runtime, Runtime.id == Placement.runtime_id)
        .where(Placement.adapter_id == row.id, ~Runtime.lost)
        .order_by(Placement.runtime_id)
    ).all()
    reports = _reports(session, row)
    of_current = [report for report in reports if report.version == row.current_version]
    loaded_on = sorted(report.runtime_id for report in of_current if report.state == LoadState.READY)
    failures = [report for report in of_current if report.state == LoadState.FAILED]
    return AdapterView(
        record=adapter_record(row),
        current=adapter_version_view(session, version) if version is not None else None,
        scheduled_on=list(scheduled),
        loaded_on=loaded_on,
        earlier=_earlier(reports, loaded_on),
        load_error=f"{failures[-1].reason}: {failures[-1].message}" if failures else None,
        runtimes=_running(session) if version is not None and not scheduled else None,
        revoked_at=row.revoked_at,
        withdrawn=row.withdrawn is not None,
        stamp=stamp_of(row.uid, row.current_version, scheduled, reports),
    )


def get_adapter(session: Session, namespace: str, name: str) -> AdapterRow:
    """Return the TaskAdapter declared as ``namespace/name``; raises NotFound (UnknownAdapter)."""
    row = find_adapter(session, namespace, name)
    if row is None:
        raise NotFound("UnknownAdapter", f"There is no TaskAdapter {namespace}/{name}.")
    return row


def find_adapter(session: Session, namespace: str, name: str) -> AdapterRow | None:
    """Return the TaskAdapter declared as ``namespace/name``, or None."""
    return session.scalar(
        select(AdapterRow).where(AdapterRow.namespace == namespace, AdapterRow.name == name)
    )


def erase_adapter(session: Session, namespace: str, name: str, *, uid: str | None = None) -> None:
    """Remove a TaskAdapter, its versions, placements and artifacts; idempotent.

    With ``uid``, only what was declared for that object. Runtimes read of the removal with their next
    desired state; nothing here waits for them.
    """
    placement.lock(session)
    row = find_adapter(session, namespace, name)
    if row is None or uid not in (None, row.uid):
        return
    digests = session.scalars(
        select(AdapterVersion.artifact_digest).where(
            AdapterVersion.adapter_id == row.id, AdapterVersion.artifact_digest.is_not(None)
        )
    ).all()
    row.current_version = None
    placement.settle(session, [row])
    runs.erase_runs(session, row.uid)
    session.delete(row)
    session.flush()
    artifacts.release(session, [digest for digest in digests if digest is not None])


def list_adapters(
    session: Session, *, limit: int, cursor: str | None, tenant: str | None = None, domain: str | None = None
) -> Page[AdapterRow]:
    """Return adapters in the order of their declaration: all, one tenant's, or those on one Domain."""
    query = select(AdapterRow).order_by(AdapterRow.id).limit(limit + 1)
    if tenant is not None:
        query = query.where(AdapterRow.tenant == tenant)
    if domain is not None:
        query = query.where(AdapterRow.domain == domain)
    after = decode_cursor(cursor, NUMBER_CURSOR)
    if after is not None:
        query = query.where(AdapterRow.id > after)
    return page_of(session.scalars(query).all(), limit, lambda row: row.id)


def _refuse_taken_name(session: Session, namespace: str, name: str, tenant: str) -> None:
    other = session.scalar(select(AdapterRow).where(AdapterRow.tenant == tenant, AdapterRow.name == name))
    if other is not None:
        raise Conflict(
            "NameTaken",
            f"{adapter_key(tenant, name)} is declared in namespace {other.namespace}, which belongs to the "
            f"same tenant; rename the TaskAdapter in {namespace} or delete the other.",
        )


def _reports(session: Session, row: AdapterRow) -> Sequence[LoadReport]:
    """Return what living runtimes say of any version, the oldest report first."""
    return session.scalars(
        select(LoadReport)
        .join(Runtime, Runtime.id == LoadReport.runtime_id)
        .where(LoadReport.adapter_id == row.id, ~Runtime.lost)
        .order_by(LoadReport.updated_at, LoadReport.runtime_id)
    ).all()


def _running(session: Session) -> int:
    """Return how many runtimes could take an adapter now, had they room."""
    able = select(func.count()).select_from(Runtime).where(~Runtime.lost, ~Runtime.draining)
    return session.scalar(able) or 0


def _earlier(reports: Sequence[LoadReport], loaded_on: Sequence[str]) -> list[EarlierVersion]:
    """Return the newest version that each runtime without the current one serves, by runtime.

    ``loaded_on`` holds the runtimes that have the current version: what else they hold is on its way out.
    """
    newest: dict[str, int] = {}
    for report in reports:
        if report.state == LoadState.READY and report.runtime_id not in loaded_on:
            newest[report.runtime_id] = max(report.version, newest.get(report.runtime_id, 0))
    return [EarlierVersion(runtime=name, version=version) for name, version in sorted(newest.items())]
