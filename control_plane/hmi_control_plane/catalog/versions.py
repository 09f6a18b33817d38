"""Versions: publish the result of a run as a new version, or an earlier version again.

A version that is published again gets the next number, as a rollback of a Deployment creates a new revision.
So numbers only grow, for runtimes and for readers of answers.
"""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_api.internal.catalog import PublishAgain
from hmi_api.internal.runs import (
    AdapterRunSpec,
    DomainRunSpec,
    RunFailure,
    RunProgress,
    RunResult,
    RunState,
    RunView,
)
from hmi_api.names import domain_key
from hmi_control_plane import metering
from hmi_control_plane.catalog import artifacts, placement
from hmi_control_plane.catalog.adapters import find_adapter
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.domains import current_version, find_domain
from hmi_control_plane.catalog.runs import FINAL, RESOURCE_DELETED, fail_run, get_run, run_view, to_json
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
    Tenant,
    TrainingRun,
)

ResourceRow = DomainRow | AdapterRow
Version = DomainVersion | AdapterVersion


def complete_run(session: Session, run_id: str, result: RunResult) -> RunView:
    """End a run with its result, publish the version and meter the training; idempotent.

    The version becomes the current one unless it failed its gate, or the spec has changed since and the
    current version was made from the new spec. If the run was over before, or its resource is gone, no
    version is made and the run's artifacts are discarded. Raises NotFound (UnknownRun), InvalidInput
    (IncompleteResult, UnknownLayers) when the result does not fit the run.
    """
    placement.lock(session)
    row = get_run(session, run_id, for_update=True)
    if row.state == RunState.SUCCEEDED:
        return run_view(row)
    artifacts.record(session, result.artifacts)
    if RunState(row.state) in FINAL:
        artifacts.discard(session, [ref.digest for ref in result.artifacts])
        return run_view(row)
    spec = run_view(row).spec
    resource = _find_resource(
        session, DomainRow if isinstance(spec, DomainRunSpec) else AdapterRow, spec.namespace, spec.name
    )
    if resource is None or resource.uid != row.uid:
        artifacts.discard(session, [ref.digest for ref in result.artifacts])
        gone = RunFailure(
            reason=RESOURCE_DELETED, message="The resource was deleted or replaced while this run worked."
        )
        return fail_run(session, run_id, gone)
    if isinstance(resource, AdapterRow) and resource.withdrawn is not None:
        artifacts.discard(session, [ref.digest for ref in result.artifacts])
        return fail_run(session, run_id, RunFailure.model_validate(resource.withdrawn))
    if isinstance(resource, DomainRow) and isinstance(spec, DomainRunSpec):
        _publish_domain(session, resource, row, spec, result)
    elif isinstance(resource, AdapterRow) and isinstance(spec, AdapterRunSpec):
        _publish_adapter(session, resource, row, spec, result)
    row.state = RunState.SUCCEEDED.value
    row.result = to_json(result)
    row.finished_at = utc_now()
    if row.progress is not None:
        last = RunProgress.model_validate(row.progress)
        row.progress = to_json(last.model_copy(update={"step": last.total}))
    session.flush()
    view = run_view(row)
    if result.training_seconds > 0:
        tenant = session.get_one(Tenant, row.tenant)
        event = metering.training_event(view, tenant.name, tenant.id, row.finished_at)
        metering.record_events(session, [event], row.finished_at)
    return view


@dataclass(frozen=True)
class EarlierVersion:
    """A version that can be published again, and the artifacts that it needs."""

    version: int
    artifacts: list[ArtifactRef]


def find_earlier_version(
    session: Session, kind: type[ResourceRow], namespace: str, name: str, wanted: PublishAgain
) -> EarlierVersion | None:
    """Return the newest version that was made from the wanted spec and passed its gate, or None."""
    found = _version_of_spec(session, _find_resource(session, kind, namespace, name), wanted)
    if found is None:
        return None
    refs = artifacts.load_refs(session, _artifact_digests(session, found))
    return EarlierVersion(found.version, list(refs.values()))


def publish_again(
    session: Session, kind: type[ResourceRow], namespace: str, name: str, wanted: PublishAgain, version: int
) -> int | None:
    """Publish ``version`` again; return its new number, or None if it is not what is wanted any more.

    If it is the current version already, nothing changes, so that the call is idempotent.
    """
    placement.lock(session)
    row = _find_resource(session, kind, namespace, name)
    old = _version_of_spec(session, row, wanted)
    if row is None or old is None or old.version < version:
        return None
    if old.version == row.current_version:
        return old.version
    columns = {column.key for column in type(old).__table__.columns} - {"id"}
    copied = {column: getattr(old, column) for column in columns}
    new = type(old)(**copied | {"version": _next_version(session, row), "created_at": utc_now()})
    digests = _artifact_digests(session, old)
    session.add(new)
    session.flush()
    if isinstance(new, DomainVersion):
        _add_tables(session, new, digests[1:])
    artifacts.retain(session, digests)
    _make_current(session, row, new)
    return new.version


def _find_resource(
    session: Session, kind: type[ResourceRow], namespace: str, name: str
) -> ResourceRow | None:
    if kind is DomainRow:
        return find_domain(session, domain_key(namespace, name))
    return find_adapter(session, namespace, name)


def _publish_domain(
    session: Session, domain: DomainRow, run: TrainingRun, spec: DomainRunSpec, result: RunResult
) -> None:
    layers = _first_of_kind(result.artifacts, ArtifactKind.LAYERS) or (
        spec.parent.layers if spec.parent else None
    )
    split = result.split or spec.spec.split or (spec.parent.split if spec.parent else None)
    if layers is None or split is None:
        raise InvalidInput(
            "IncompleteResult", "A domain run without a parent must publish layers and a split."
        )
    own = [ref for ref in result.artifacts if ref.kind is ArtifactKind.TABLE]
    chain = [*own, *(spec.parent.tables if spec.parent else [])]
    _require_recorded(session, [layers, *chain])
    version = DomainVersion(
        domain_id=domain.id,
        version=_next_version(session, domain),
        spec_digest=run.spec_digest,
        base_uri=spec.spec.base_model.uri,
        base_revision=spec.spec.base_model.revision,
        base_digest=result.base_digest,
        split=split,
        layers_digest=layers.digest,
        on_miss=spec.spec.plot.on_miss.value,
        entries=result.entries or 0,
        coverage=result.coverage or 0.0,
        metrics=result.metrics,
        data_read=[read.model_dump(mode="json", by_alias=True) for read in result.data],
        run_id=run.id,
        created_at=utc_now(),
    )
    session.add(version)
    session.flush()
    digests = [layers.digest, *(ref.digest for ref in chain)]
    _add_tables(session, version, digests[1:])
    artifacts.retain(session, digests)
    before = current_version(session, domain)
    if not _is_superseded(run, domain.spec_digest, before.spec_digest if before else None):
        _make_current(session, domain, version)


def _publish_adapter(
    session: Session, adapter: AdapterRow, run: TrainingRun, spec: AdapterRunSpec, result: RunResult
) -> None:
    artifact = _first_of_kind(result.artifacts, ArtifactKind.ADAPTER)
    layers_digest = result.layers_digest or spec.domain.layers.digest
    if result.gate_passed:
        if artifact is None:
            raise InvalidInput(
                "IncompleteResult", "An adapter run that passed its gate must publish an adapter."
            )
        _require_layers(session, adapter.domain, layers_digest)
    version = AdapterVersion(
        adapter_id=adapter.id,
        version=_next_version(session, adapter),
        spec_digest=run.spec_digest,
        artifact_digest=artifact.digest if artifact else None,
        layers_digest=layers_digest,
        labels=result.labels,
        metrics=result.metrics,
        data_read=[read.model_dump(mode="json", by_alias=True) for read in result.data],
        gate_passed=result.gate_passed,
        gate_message=result.gate_message,
        run_id=run.id,
        created_at=utc_now(),
    )
    session.add(version)
    if artifact is not None:
        artifacts.retain(session, [artifact.digest])
    before = session.scalar(
        select(AdapterVersion.spec_digest).where(
            AdapterVersion.adapter_id == adapter.id, AdapterVersion.version == adapter.current_version
        )
    )
    if result.gate_passed and not _is_superseded(run, adapter.spec_digest, before):
        _make_current(session, adapter, version)


def _make_current(session: Session, row: ResourceRow, version: Version) -> None:
    row.current_version = version.version
    if isinstance(version, DomainVersion):
        placement.move_to_domain_version(session, version)
    elif isinstance(row, AdapterRow):
        placement.update_placements(session, [row])


def _is_superseded(run: TrainingRun, declared: str, current: str | None) -> bool:
    """Return whether the current version has the declared spec digest, and this run has an older one."""
    return current is not None and current == declared and run.spec_digest != declared


def _first_of_kind(refs: list[ArtifactRef], kind: ArtifactKind) -> ArtifactRef | None:
    return next((ref for ref in refs if ref.kind is kind), None)


def _require_recorded(session: Session, refs: list[ArtifactRef]) -> None:
    known = artifacts.load_refs(session, [ref.digest for ref in refs])
    missing = [ref.digest for ref in refs if ref.digest not in known]
    if missing:
        raise InvalidInput(
            "UnknownLayers", f"The parent's artifact {missing[0]} is gone; train this Domain again."
        )


def _require_layers(session: Session, domain: str, layers_digest: str) -> None:
    found = session.scalar(
        select(DomainVersion.id)
        .join(DomainRow, DomainRow.id == DomainVersion.domain_id)
        .where(DomainRow.key == domain, DomainVersion.layers_digest == layers_digest)
        .limit(1)
    )
    if found is None:
        raise InvalidInput(
            "UnknownLayers",
            f"Domain {domain} has no version with layers {layers_digest}; train the adapter again.",
        )


def _next_version(session: Session, row: ResourceRow) -> int:
    """Return the number of the next version of a resource."""
    if isinstance(row, DomainRow):
        query = select(func.max(DomainVersion.version)).where(DomainVersion.domain_id == row.id)
    else:
        query = select(func.max(AdapterVersion.version)).where(AdapterVersion.adapter_id == row.id)
    return (session.scalar(query) or 0) + 1


def _version_of_spec(session: Session, row: ResourceRow | None, wanted: PublishAgain) -> Version | None:
    """Return the newest version that has the wanted spec digest, if that is what the resource declares."""
    if row is None or (row.uid, row.spec_digest) != (wanted.uid, wanted.spec_digest):
        return None
    if isinstance(row, DomainRow):
        return session.scalar(
            select(DomainVersion)
            .where(DomainVersion.domain_id == row.id, DomainVersion.spec_digest == wanted.spec_digest)
            .order_by(DomainVersion.version.desc())
            .limit(1)
        )
    return session.scalar(
        select(AdapterVersion)
        # The Domain may have been trained again since, without these layers.
        .join(DomainVersion, DomainVersion.layers_digest == AdapterVersion.layers_digest)
        .join(DomainRow, DomainRow.id == DomainVersion.domain_id)
        .where(
            AdapterVersion.adapter_id == row.id,
            AdapterVersion.spec_digest == wanted.spec_digest,
            AdapterVersion.gate_passed,
            AdapterVersion.artifact_digest.is_not(None),
            DomainRow.key == row.domain,
        )
        .order_by(AdapterVersion.version.desc())
        .limit(1)
    )


def _artifact_digests(session: Session, version: Version) -> list[str]:
    """Return the digests of a version's artifacts; a Domain's layers first, then its chain of tables."""
    if isinstance(version, AdapterVersion):
        return [version.artifact_digest] if version.artifact_digest is not None else []
    tables = session.scalars(
        select(DomainVersionTable.artifact_digest)
        .where(DomainVersionTable.domain_version_id == version.id)
        .order_by(DomainVersionTable.position)
    )
    return [version.layers_digest, *tables]


def _add_tables(session: Session, version: DomainVersion, digests: list[str]) -> None:
    session.add_all(
        DomainVersionTable(domain_version_id=version.id, position=position, artifact_digest=digest)
        for position, digest in enumerate(digests)
    )
