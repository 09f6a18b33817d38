"""Rows of the catalog as the wire types that others read."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import AdapterRecord, AdapterVersionView, DomainRecord, DomainVersionView
from hmi_api.internal.runs import RunView
from hmi_api.resources.domain import BaseModelRef, OnMiss
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.catalog.artifacts import load_refs
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
    TrainingRun,
)


def domain_record(row: DomainRow) -> DomainRecord:
    """Return a Domain as it was declared."""
    return DomainRecord(
        uid=row.uid,
        tenant=row.tenant,
        generation=row.generation,
        spec_digest=row.spec_digest,
        base_uri=row.base_uri,
        parent=row.parent,
    )


def adapter_record(row: AdapterRow) -> AdapterRecord:
    """Return a TaskAdapter as it was declared."""
    return AdapterRecord(
        uid=row.uid,
        tenant=row.tenant,
        generation=row.generation,
        spec_digest=row.spec_digest,
        domain=row.domain,
        task_type=TaskType(row.task_type),
        replicas=row.replicas,
        pinned=row.pinned,
    )


def domain_version_views(session: Session, rows: Sequence[DomainVersion]) -> dict[int, DomainVersionView]:
    """Return versions by row id, each with its chain of tables; two statements, however many they are."""
    chains: dict[int, list[str]] = {row.id: [] for row in rows}
    links = session.scalars(
        select(DomainVersionTable)
        .where(DomainVersionTable.domain_version_id.in_(chains))
        .order_by(DomainVersionTable.domain_version_id, DomainVersionTable.position)
    )
    for link in links:
        chains[link.domain_version_id].append(link.artifact_digest)
    digests = {row.layers_digest for row in rows} | {d for chain in chains.values() for d in chain}
    refs = load_refs(session, digests)
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


def adapter_version_view(session: Session, row: AdapterVersion) -> AdapterVersionView | None:
    """Return a version, or None when it published nothing."""
    if row.artifact_digest is None:
        return None
    return AdapterVersionView(
        version=row.version,
        spec_digest=row.spec_digest,
        artifact=load_refs(session, [row.artifact_digest])[row.artifact_digest],
        layers_digest=row.layers_digest,
        labels=row.labels,
        metrics=row.metrics,
        data=row.data_read or [],
        gate_passed=row.gate_passed,
    )


def run_view(row: TrainingRun) -> RunView:
    """Return a run as its creator and its program read it."""
    return RunView.model_validate(
        {
            "id": row.id,
            "uid": row.uid,
            "specDigest": row.spec_digest,
            "attempt": row.attempt,
            "state": row.state,
            "spec": row.spec,
            "progress": row.progress,
            "result": row.result,
            "failure": row.failure,
        }
    )
