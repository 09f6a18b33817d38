"""TaskAdapters: declare, read, list, revoke and delete them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import (
    AdapterRecord,
    AdapterVersionView,
    AdapterView,
    EarlierVersion,
    LoadError,
    Revocation,
)
from hmi_api.names import adapter_key
from hmi_control_plane.catalog import artifacts, placement, runs
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.resources import (
    current_version,
    find_resource,
    get_resource,
    take_over,
    update_row,
)
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    LoadReport,
    LoadState,
    Placement,
    Runtime,
)
from hmi_control_plane.catalog.tenants import get_tenant, require_same_tenant
from hmi_control_plane.http.errors import Conflict

_ETAG_LENGTH = 16


class _Report(NamedTuple):
    """What an ETag covers of a LoadReport."""

    runtime_id: str
    version: int
    state: str
    reason: str
    message: str


def declare_adapter(session: Session, namespace: str, name: str, record: AdapterRecord) -> None:
    """Record a TaskAdapter as declared; idempotent.

    A new object takes over the row (see ``resources.take_over``) unless tenant, Domain or task type differ.
    Raises NotFound (UnknownTenant), Conflict (NameTaken, TenantChanged).
    """
    get_tenant(session, record.tenant)
    placement.lock(session)
    row = find_resource(session, AdapterRow, namespace, name)
    if row is not None and not take_over(session, row, record, ("tenant", "domain", "task_type")):
        delete_adapter(session, namespace, name)
        row = None
    if row is None:
        _require_free_name(session, namespace, name, record.tenant)
        row = AdapterRow(
            namespace=namespace,
            name=name,
            uid=record.uid,
            tenant=record.tenant,
            missing_replicas=0,
            created_at=utc_now(),
        )
        session.add(row)
    require_same_tenant(f"TaskAdapter {namespace}/{name}", namespace, row.tenant, record.tenant)
    placement_changed = (row.replicas, row.pinned) != (record.replicas, record.pinned)
    update_row(row, record)
    session.flush()
    if placement_changed and row.current_version is not None:
        placement.update_placements(session, [row])


def build_view(session: Session, row: AdapterRow) -> AdapterView:
    """Return the view of a row: its current version, and where it is scheduled and loaded."""
    version = current_version(session, row)
    scheduled_by_id, reports_by_id = _scheduled_and_loaded(session, [row.id])
    scheduled, reports = scheduled_by_id[row.id], reports_by_id[row.id]
    of_current = [report for report in reports if report.version == row.current_version]
    loaded_on = sorted(report.runtime_id for report in of_current if report.state == LoadState.READY)
    failures = [report for report in of_current if report.reason or report.state == LoadState.FAILED]
    failures.sort(key=lambda report: report.state == LoadState.FAILED)  # of these, the last one is shown
    return AdapterView(
        record=AdapterRecord.model_validate(row),
        current=_version_view(session, version) if version is not None else None,
        scheduled_on=scheduled,
        loaded_on=loaded_on,
        earlier=_earlier_versions(reports, loaded_on),
        load_error=LoadError(reason=failures[-1].reason, message=failures[-1].message) if failures else None,
        runtimes=_count_runtimes(session) if version is not None and not scheduled else None,
        revoked_at=row.revoked_at,
        withdrawn=row.withdrawn is not None,
        etag=_etag(row.uid, row.current_version, scheduled, reports),
    )


def list_etags(session: Session, keys: Iterable[str]) -> dict[str, str]:
    """Return the ETags of TaskAdapters by ``namespace/name``, in three statements; unknown keys are left out.

    The operator compares the ETags of thousands of TaskAdapters to see which of them to read again.
    """
    names = [tuple(key.split("/", 1)) for key in keys if "/" in key]
    columns = (
        AdapterRow.id,
        AdapterRow.namespace,
        AdapterRow.name,
        AdapterRow.uid,
        AdapterRow.current_version,
    )
    rows = session.execute(
        select(*columns).where(tuple_(AdapterRow.namespace, AdapterRow.name).in_(names))
    ).all()
    scheduled, reports = _scheduled_and_loaded(session, [row.id for row in rows])
    return {
        f"{row.namespace}/{row.name}": _etag(row.uid, row.current_version, scheduled[row.id], reports[row.id])
        for row in rows
    }


def _scheduled_and_loaded(
    session: Session, adapter_ids: Sequence[int]
) -> tuple[dict[int, list[str]], dict[int, list[_Report]]]:
    """Return by adapter id the runtimes that it is placed on, and the reports of any version, oldest first.

    Lost runtimes are left out.
    """
    scheduled: dict[int, list[str]] = defaultdict(list)
    for adapter_id, runtime_id in session.execute(
        select(AdapterRow.id, Placement.runtime_id)
        .join(Placement, Placement.adapter_id == AdapterRow.id)
        .join(Runtime, Runtime.id == Placement.runtime_id)
        .where(AdapterRow.id.in_(adapter_ids), ~Runtime.lost)
        .order_by(Placement.runtime_id)
    ):
        scheduled[adapter_id].append(runtime_id)
    reports: dict[int, list[_Report]] = defaultdict(list)
    for adapter_id, runtime_id, version, state, reason, message in session.execute(
        select(
            LoadReport.adapter_id,
            LoadReport.runtime_id,
            LoadReport.version,
            LoadReport.state,
            LoadReport.reason,
            LoadReport.message,
        )
        .join(Runtime, Runtime.id == LoadReport.runtime_id)
        .where(LoadReport.adapter_id.in_(adapter_ids), ~Runtime.lost)
        .order_by(LoadReport.updated_at, LoadReport.runtime_id)
    ):
        reports[adapter_id].append(_Report(runtime_id, version, state, reason, message))
    return scheduled, reports


def delete_adapter(session: Session, namespace: str, name: str, *, uid: str | None = None) -> None:
    """Delete a TaskAdapter, its versions, placements, runs and artifacts; idempotent.

    With ``uid``, delete it only if it was declared for that object. Runtimes learn of the removal from their
    next desired state; nothing here waits for them.
    """
    placement.lock(session)
    row = find_resource(session, AdapterRow, namespace, name)
    if row is None or uid not in (None, row.uid):
        return
    digests = _take_out_of_service(session, row)
    runs.delete_runs(session, row.uid)
    session.delete(row)
    session.flush()
    artifacts.release(session, digests)


def record_revocation(session: Session, namespace: str, name: str, revocation: Revocation) -> None:
    """Record that a TaskAdapter may not use its Domain any more; delete its versions if ``withdraw`` is set.

    ``revoked_at`` keeps the time of the first call. Raises NotFound (UnknownAdapter).
    """
    placement.lock(session)
    row = get_resource(session, AdapterRow, namespace, name)
    row.revoked_at = row.revoked_at or utc_now()
    if not revocation.withdraw:
        return
    row.withdrawn = {"reason": revocation.reason, "message": revocation.message}
    digests = _take_out_of_service(session, row)
    session.execute(delete(AdapterVersion).where(AdapterVersion.adapter_id == row.id))
    session.flush()
    artifacts.release(session, digests)


def delete_revocation(session: Session, namespace: str, name: str) -> None:
    """Record that a TaskAdapter may use its Domain again. Raises NotFound (UnknownAdapter)."""
    row = get_resource(session, AdapterRow, namespace, name)
    row.revoked_at = None
    row.withdrawn = None


def _take_out_of_service(session: Session, row: AdapterRow) -> list[str]:
    """Remove all placements; return the digests of the artifacts of all versions."""
    digests = session.scalars(
        select(AdapterVersion.artifact_digest).where(
            AdapterVersion.adapter_id == row.id, AdapterVersion.artifact_digest.is_not(None)
        )
    ).all()
    row.current_version = None
    placement.update_placements(session, [row])
    return [digest for digest in digests if digest is not None]


def _require_free_name(session: Session, namespace: str, name: str, tenant: str) -> None:
    other = session.scalar(select(AdapterRow).where(AdapterRow.tenant == tenant, AdapterRow.name == name))
    if other is not None:
        raise Conflict(
            "NameTaken",
            f"{adapter_key(tenant, name)} is declared in namespace {other.namespace}, which belongs to the "
            f"same tenant; rename the TaskAdapter in {namespace} or delete the other.",
        )


def _count_runtimes(session: Session) -> int:
    """Return the number of runtimes that take placements."""
    query = select(func.count()).select_from(Runtime).where(~Runtime.lost, ~Runtime.draining)
    return session.scalar(query) or 0


def _earlier_versions(reports: Sequence[_Report], loaded_on: Sequence[str]) -> list[EarlierVersion]:
    """Return the newest version that each runtime without the current one has loaded, by runtime.

    ``loaded_on`` lists the runtimes that have the current version: they are about to drop any other.
    """
    newest: dict[str, int] = {}
    for report in reports:
        if report.state == LoadState.READY and report.runtime_id not in loaded_on:
            newest[report.runtime_id] = max(report.version, newest.get(report.runtime_id, 0))
    return [EarlierVersion(runtime=name, version=version) for name, version in sorted(newest.items())]


def _etag(uid: str, current_version: int | None, scheduled: list[str], reports: Sequence[_Report]) -> str:
    content = json.dumps([uid, current_version, scheduled, reports])
    return hashlib.sha256(content.encode()).hexdigest()[:_ETAG_LENGTH]


def _version_view(session: Session, row: AdapterVersion) -> AdapterVersionView | None:
    """Return the view of a version, or None when it published nothing."""
    if row.artifact_digest is None:
        return None
    return AdapterVersionView(
        version=row.version,
        spec_digest=row.spec_digest,
        artifact=artifacts.load_refs(session, [row.artifact_digest])[row.artifact_digest],
        layers_digest=row.layers_digest,
        labels=row.labels,
        metrics=row.metrics,
        data=row.data_read or [],
        gate_passed=row.gate_passed,
    )
