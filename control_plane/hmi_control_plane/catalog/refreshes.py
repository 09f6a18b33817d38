"""Refreshes and rollbacks of a Domain's table: versions with the same layers and spec, and another table.

Both publish a version with the next number, like every publication. The newest of these versions are kept for
rollbacks; older ones are deleted with their artifacts.
"""

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_api.internal.refreshes import (
    Refreshes,
    RefreshRun,
    RefreshSpec,
    RestoreTable,
    TableChange,
    TableVersion,
)
from hmi_api.internal.runs import DomainRunSpec, RunResult, RunView
from hmi_api.resources.domain import DEFAULT_HISTORY
from hmi_control_plane.catalog import artifacts, placement
from hmi_control_plane.catalog.publishing import (
    add_tables,
    artifact_digests,
    columns_of_run,
    make_current,
    publish_copy,
)
from hmi_control_plane.catalog.resources import current_version, find_resource, versions_of
from hmi_control_plane.catalog.runs import refresh_runs, to_json
from hmi_control_plane.catalog.tables import DomainPlacement, DomainRow, DomainVersion, TrainingRun

_MOST_LISTED = 100


def publish_refresh(
    session: Session,
    domain: DomainRow,
    run: TrainingRun,
    spec: DomainRunSpec,
    refresh: RefreshSpec,
    result: RunResult,
) -> bool:
    """Publish the table of a refresh run; return False if the refreshed version is not current any more.

    A run that changed nothing publishes nothing. Raises InvalidInput (IncompleteResult).
    """
    current = current_version(session, domain)
    if current is None or current.version != refresh.current.version:
        return False
    table = next((ref for ref in result.artifacts if ref.kind is ArtifactKind.TABLE), None)
    if table is None:
        return True
    if result.layers_digest != current.layers_digest or result.refresh is None:
        raise InvalidInput("IncompleteResult", "A refresh must name the current layers and what it changed.")
    change = TableChange(
        cause=refresh.cause,
        windows_in=result.refresh.windows_in,
        windows_out=result.refresh.windows_out,
        hit_rate_before=refresh.hit_rate,
    )
    kept = artifact_digests(session, current)
    ancestors = [ref.digest for ref in spec.parent.tables] if spec.parent is not None else kept[2:]
    _require_recorded(session, ancestors)
    made = columns_of_run(session, domain, run, result) | {
        "spec_digest": current.spec_digest,
        "metrics": current.metrics,
        "data_read": current.data_read,
    }
    version = DomainVersion(
        domain_id=domain.id,
        **made,
        base_uri=current.base_uri,
        base_revision=current.base_revision,
        base_digest=current.base_digest,
        split=current.split,
        layers_digest=current.layers_digest,
        on_miss=current.on_miss,
        entries=result.entries or 0,
        coverage=result.coverage or 0.0,
        change=to_json(change),
    )
    session.add(version)
    session.flush()
    add_tables(session, version, [table.digest, *ancestors])
    artifacts.retain(session, [current.layers_digest, table.digest, *ancestors])
    make_current(session, domain, version)
    session.flush()
    limit = spec.spec.plot.refresh.history_limit if spec.spec.plot.refresh else DEFAULT_HISTORY
    delete_older(session, domain, version, limit)
    return True


def list_refreshes(session: Session, row: DomainRow) -> Refreshes:
    """Return the versions that have the current layers and spec, newest first, and the last refresh run."""
    current = current_version(session, row)
    versions = (
        session.scalars(_same_layers(row, current).limit(_MOST_LISTED)).all() if current is not None else []
    )
    return Refreshes(
        tables=[_table_version(session, version) for version in versions],
        last_run=_last_run(session, row.uid),
    )


def restorable_artifacts(session: Session, row: DomainRow, wanted: RestoreTable) -> list[ArtifactRef] | None:
    """Return the artifacts of a version that a rollback can publish again; None if it is not kept."""
    old = _restorable(session, row, wanted)
    if old is None:
        return None
    return list(artifacts.load_refs(session, artifact_digests(session, old)).values())


def restore_table(session: Session, namespace: str, name: str, wanted: RestoreTable) -> int | None:
    """Publish the table of a kept version again; return the version that has it now, None if it is not kept.

    If the current version has that table, nothing changes, so that the call is idempotent.
    """
    placement.lock(session)
    row = find_resource(session, DomainRow, namespace, name)
    old = _restorable(session, row, wanted) if row is not None else None
    current = current_version(session, row) if row is not None else None
    if row is None or old is None or current is None:
        return None
    if artifact_digests(session, old) == artifact_digests(session, current):
        return current.version
    return publish_copy(session, row, old, change=to_json(TableChange(restored=old.version))).version


def _restorable(session: Session, row: DomainRow, wanted: RestoreTable) -> DomainVersion | None:
    current = current_version(session, row)
    if current is None or row.uid != wanted.uid:
        return None
    return session.scalar(_same_layers(row, current).where(DomainVersion.version == wanted.version))


def _same_layers(row: DomainRow, current: DomainVersion) -> Select[DomainVersion]:
    return (
        versions_of(row)
        .where(
            DomainVersion.layers_digest == current.layers_digest,
            DomainVersion.spec_digest == current.spec_digest,
        )
        .order_by(DomainVersion.version.desc())
    )


def delete_older(session: Session, row: DomainRow, current: DomainVersion, keep: int) -> None:
    """Delete all but the newest ``keep`` versions with these layers, and artifacts that only they need.

    The Domain is locked first, as merging window counts locks it, so that none are being merged meanwhile.
    """
    old = session.scalars(_same_layers(row, current).offset(keep)).all()
    if old:
        session.execute(select(DomainRow.id).where(DomainRow.id == row.id).with_for_update())
    in_use = set(
        session.scalars(
            select(DomainPlacement.domain_version_id).where(
                DomainPlacement.domain_version_id.in_([version.id for version in old])
            )
        )
    )
    for version in old:
        if version.id not in in_use:
            digests = artifact_digests(session, version)
            session.execute(delete(DomainVersion).where(DomainVersion.id == version.id))
            artifacts.release(session, digests)


def _table_version(session: Session, version: DomainVersion) -> TableVersion:
    digests = artifact_digests(session, version)
    return TableVersion(
        version=version.version,
        table=digests[1] if len(digests) > 1 else "",
        entries=version.entries,
        created_at=version.created_at,
        change=TableChange.model_validate(version.change) if version.change else None,
    )


def _last_run(session: Session, uid: str) -> RefreshRun | None:
    run = session.scalars(refresh_runs(uid).limit(1)).first()
    if run is None:
        return None
    spec = RunView.model_validate(run).spec
    if not isinstance(spec, DomainRunSpec) or spec.refresh is None:
        return None
    return RefreshRun(
        run_id=run.id,
        version=spec.refresh.current.version,
        attempt=run.attempt,
        state=run.state,
        request=spec.refresh.request,
        created_at=run.created_at,
    )


def _require_recorded(session: Session, digests: list[str]) -> None:
    known = artifacts.load_refs(session, digests)
    if any(digest not in known for digest in digests):
        raise InvalidInput("UnknownLayers", "A table of the Domain's parent was deleted; refresh again.")
