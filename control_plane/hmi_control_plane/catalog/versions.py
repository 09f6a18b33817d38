"""Versions: publish the result of a run as a new version, or an earlier version again.

A version that is published again gets the next number, as a rollback of a Deployment creates a new revision.
So numbers only grow, for runtimes and for readers of answers.
"""

from dataclasses import dataclass

from sqlalchemy import exists, select
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
from hmi_control_plane.catalog import artifacts, placement
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.publishing import (
    add_tables,
    artifact_digests,
    columns_of_run,
    make_current,
    publish_copy,
)
from hmi_control_plane.catalog.refreshes import publish_refresh
from hmi_control_plane.catalog.resources import (
    ResourceRow,
    Version,
    current_version,
    find_resource,
    versions_of,
)
from hmi_control_plane.catalog.runs import FINAL, RESOURCE_DELETED, fail_run, get_run, to_json
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    DomainRow,
    DomainVersion,
    Tenant,
    TrainingRun,
)
from hmi_control_plane.metering.records import record_training

_ANOTHER_VERSION = RunFailure(
    reason="Superseded", message="Another version of the Domain was published while its table was refreshed."
)


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
        return RunView.model_validate(row)
    artifacts.record(session, result.artifacts)
    if RunState(row.state) in FINAL:
        artifacts.discard(session, [ref.digest for ref in result.artifacts])
        return RunView.model_validate(row)
    spec = RunView.model_validate(row).spec
    kind: type[ResourceRow] = DomainRow if isinstance(spec, DomainRunSpec) else AdapterRow
    resource = find_resource(session, kind, spec.namespace, spec.name)
    if resource is None or resource.uid != row.uid:
        artifacts.discard(session, [ref.digest for ref in result.artifacts])
        gone = RunFailure(
            reason=RESOURCE_DELETED, message="The resource was deleted or replaced while this run worked."
        )
        return fail_run(session, run_id, gone)
    if isinstance(resource, AdapterRow) and resource.withdrawn is not None:
        artifacts.discard(session, [ref.digest for ref in result.artifacts])
        return fail_run(session, run_id, RunFailure.model_validate(resource.withdrawn))
    if isinstance(resource, DomainRow) and isinstance(spec, DomainRunSpec) and spec.refresh is not None:
        if not publish_refresh(session, resource, row, spec, spec.refresh, result):
            artifacts.discard(session, [ref.digest for ref in result.artifacts])
            return fail_run(session, run_id, _ANOTHER_VERSION)
    elif isinstance(resource, DomainRow) and isinstance(spec, DomainRunSpec):
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
    view = RunView.model_validate(row)
    if result.training_seconds > 0:
        record_training(session, view, session.get_one(Tenant, row.tenant), row.finished_at)
    return view


@dataclass(frozen=True)
class PublishableVersion:
    """A version that can be published again, and the artifacts that it needs."""

    version: int
    artifacts: list[ArtifactRef]


def find_earlier_version(
    session: Session, kind: type[ResourceRow], namespace: str, name: str, wanted: PublishAgain
) -> PublishableVersion | None:
    """Return the newest version that was made from the wanted spec and passed its gate, or None."""
    found = _version_of_spec(session, find_resource(session, kind, namespace, name), wanted)
    if found is None:
        return None
    refs = artifacts.load_refs(session, artifact_digests(session, found))
    return PublishableVersion(found.version, list(refs.values()))


def publish_again(
    session: Session, kind: type[ResourceRow], namespace: str, name: str, wanted: PublishAgain, version: int
) -> int | None:
    """Publish ``version`` again; return its new number, or None if its spec is not the declared one any more.

    If it is the current version already, nothing changes, so that the call is idempotent.
    """
    placement.lock(session)
    row = find_resource(session, kind, namespace, name)
    old = _version_of_spec(session, row, wanted)
    if row is None or old is None or old.version < version:
        return None
    if old.version == row.current_version:
        return old.version
    return publish_copy(session, row, old).version


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
        **columns_of_run(session, domain, run, result),
        base_uri=spec.spec.base_model.uri,
        base_revision=spec.spec.base_model.revision,
        base_digest=result.base_digest,
        split=split,
        layers_digest=layers.digest,
        on_miss=spec.spec.plot.on_miss.value,
        entries=result.entries or 0,
        coverage=result.coverage or 0.0,
    )
    session.add(version)
    session.flush()
    digests = [layers.digest, *(ref.digest for ref in chain)]
    add_tables(session, version, digests[1:])
    artifacts.retain(session, digests)
    before = current_version(session, domain)
    if not _is_superseded(run, domain.spec_digest, before):
        make_current(session, domain, version)


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
        **columns_of_run(session, adapter, run, result),
        artifact_digest=artifact.digest if artifact else None,
        layers_digest=layers_digest,
        labels=result.labels,
        gate_passed=result.gate_passed,
        gate_message=result.gate_message,
    )
    session.add(version)
    if artifact is not None:
        artifacts.retain(session, [artifact.digest])
    before = current_version(session, adapter)
    if result.gate_passed and not _is_superseded(run, adapter.spec_digest, before):
        make_current(session, adapter, version)


def _is_superseded(run: TrainingRun, declared: str, current: Version | None) -> bool:
    """Return whether the current version has the declared spec digest, and this run has an older one."""
    return current is not None and current.spec_digest == declared and run.spec_digest != declared


def _first_of_kind(refs: list[ArtifactRef], kind: ArtifactKind) -> ArtifactRef | None:
    return next((ref for ref in refs if ref.kind is kind), None)


def _require_recorded(session: Session, refs: list[ArtifactRef]) -> None:
    known = artifacts.load_refs(session, [ref.digest for ref in refs])
    missing = [ref.digest for ref in refs if ref.digest not in known]
    if missing:
        raise InvalidInput(
            "UnknownLayers", f"The parent's artifact {missing[0]} was deleted; train this Domain again."
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


def _version_of_spec(session: Session, row: ResourceRow | None, wanted: PublishAgain) -> Version | None:
    """Return the newest version that has the wanted spec digest, if that is what the resource declares."""
    if row is None or (row.uid, row.spec_digest) != (wanted.uid, wanted.spec_digest):
        return None
    if isinstance(row, AdapterRow):
        # The Domain may have been trained again since, without these layers.
        has_layers = exists().where(
            DomainRow.key == row.domain,
            DomainVersion.domain_id == DomainRow.id,
            DomainVersion.layers_digest == AdapterVersion.layers_digest,
        )
        adapters = versions_of(row).where(
            AdapterVersion.gate_passed, AdapterVersion.artifact_digest.is_not(None), has_layers
        )
        of_spec = AdapterVersion.spec_digest == wanted.spec_digest
        return session.scalar(adapters.where(of_spec).order_by(AdapterVersion.version.desc()).limit(1))
    of_spec = DomainVersion.spec_digest == wanted.spec_digest
    return session.scalar(versions_of(row).where(of_spec).order_by(DomainVersion.version.desc()).limit(1))
