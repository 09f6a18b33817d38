"""A run's result becomes a version: with its artifacts, its placements and its bill, in one transaction."""

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
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
from hmi_control_plane import metering, placement
from hmi_control_plane.catalog import artifacts
from hmi_control_plane.catalog.adapters import find_adapter
from hmi_control_plane.catalog.domains import current_version, find_domain
from hmi_control_plane.catalog.runs import FINAL, RESOURCE_DELETED, fail_run, get_run, to_json
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
    Tenant,
    TrainingRun,
)
from hmi_control_plane.catalog.times import now
from hmi_control_plane.catalog.views import run_view


def complete_run(session: Session, run_id: str, result: RunResult) -> RunView:
    """End a run with its result. The same call again changes nothing and gives the same answer.

    The version becomes the current one unless it failed its gate, or the spec has changed since and a
    version of the new spec is already there. A run that was over before, or whose resource is gone, makes
    no version, and what it published is erased. Raises NotFound (UnknownRun), InvalidInput
    (IncompleteResult, UnknownLayers) when the result does not fit the run.
    """
    placement.lock(session)
    row = get_run(session, run_id, for_update=True)
    if row.state == RunState.SUCCEEDED:
        return run_view(row)
    artifacts.record(session, result.artifacts)
    if RunState(row.state) in FINAL:
        artifacts.abandon(session, [ref.digest for ref in result.artifacts])
        return run_view(row)
    spec = run_view(row).spec
    resource = _resource(session, spec)
    if resource is None or resource.uid != row.uid:
        artifacts.abandon(session, [ref.digest for ref in result.artifacts])
        gone = RunFailure(
            reason=RESOURCE_DELETED, message="The resource was deleted or replaced while this run worked."
        )
        return fail_run(session, run_id, gone)
    if isinstance(resource, AdapterRow) and resource.withdrawn is not None:
        artifacts.abandon(session, [ref.digest for ref in result.artifacts])
        return fail_run(session, run_id, RunFailure.model_validate(resource.withdrawn))
    if isinstance(resource, DomainRow) and isinstance(spec, DomainRunSpec):
        _publish_domain(session, resource, row, spec, result)
    elif isinstance(resource, AdapterRow) and isinstance(spec, AdapterRunSpec):
        _publish_adapter(session, resource, row, spec, result)
    row.state = RunState.SUCCEEDED.value
    row.result = to_json(result)
    row.finished_at = now()
    if row.progress is not None:
        last = RunProgress.model_validate(row.progress)
        row.progress = to_json(last.model_copy(update={"step": last.total}))
    session.flush()
    view = run_view(row)
    if result.training_seconds > 0:
        tenant = session.get_one(Tenant, row.tenant)
        event = metering.training_event(view, tenant.name, tenant.id, row.finished_at)
        metering.record(session, [event], row.finished_at)
    return view


def _resource(session: Session, spec: DomainRunSpec | AdapterRunSpec) -> DomainRow | AdapterRow | None:
    if isinstance(spec, DomainRunSpec):
        return find_domain(session, domain_key(spec.namespace, spec.name))
    return find_adapter(session, spec.namespace, spec.name)


def _publish_domain(
    session: Session, domain: DomainRow, run: TrainingRun, spec: DomainRunSpec, result: RunResult
) -> None:
    layers = _first(result.artifacts, ArtifactKind.LAYERS) or (spec.parent.layers if spec.parent else None)
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
        version=next_version(session, DomainVersion.version, DomainVersion.domain_id == domain.id),
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
        created_at=now(),
    )
    session.add(version)
    session.flush()
    session.add_all(
        DomainVersionTable(domain_version_id=version.id, position=position, artifact_digest=ref.digest)
        for position, ref in enumerate(chain)
    )
    artifacts.retain(session, [layers.digest, *(ref.digest for ref in chain)])
    before = current_version(session, domain)
    if not _is_superseded(run, domain.spec_digest, before.spec_digest if before else None):
        domain.current_version = version.version
        placement.replace_domain_version(session, version)


def _publish_adapter(
    session: Session, adapter: AdapterRow, run: TrainingRun, spec: AdapterRunSpec, result: RunResult
) -> None:
    artifact = _first(result.artifacts, ArtifactKind.ADAPTER)
    layers_digest = result.layers_digest or spec.domain.layers.digest
    if result.gate_passed:
        if artifact is None:
            raise InvalidInput(
                "IncompleteResult", "An adapter run that passed its gate must publish an adapter."
            )
        _require_layers(session, adapter.domain, layers_digest)
    version = AdapterVersion(
        adapter_id=adapter.id,
        version=next_version(session, AdapterVersion.version, AdapterVersion.adapter_id == adapter.id),
        spec_digest=run.spec_digest,
        artifact_digest=artifact.digest if artifact else None,
        layers_digest=layers_digest,
        labels=result.labels,
        metrics=result.metrics,
        data_read=[read.model_dump(mode="json", by_alias=True) for read in result.data],
        gate_passed=result.gate_passed,
        gate_message=result.gate_message,
        run_id=run.id,
        created_at=now(),
    )
    session.add(version)
    if artifact is not None:
        artifacts.retain(session, [artifact.digest])
    serving = session.scalar(
        select(AdapterVersion.spec_digest).where(
            AdapterVersion.adapter_id == adapter.id, AdapterVersion.version == adapter.current_version
        )
    )
    if result.gate_passed and not _is_superseded(run, adapter.spec_digest, serving):
        adapter.current_version = version.version
        placement.settle(session, [adapter])


def _is_superseded(run: TrainingRun, wanted: str, serving: str | None) -> bool:
    """Say whether what serves is of the spec that is wanted now, and this run is of an older one."""
    return serving is not None and serving == wanted and run.spec_digest != wanted


def _first(refs: list[ArtifactRef], kind: ArtifactKind) -> ArtifactRef | None:
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


def next_version(session: Session, column: InstrumentedAttribute[int], owner: ColumnElement[bool]) -> int:
    """Return the number of the version that is to be made; ``owner`` says whose versions are counted."""
    return (session.scalar(select(func.max(column)).where(owner)) or 0) + 1
