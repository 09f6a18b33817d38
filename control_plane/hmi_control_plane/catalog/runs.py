"""Training runs: their states, the pods that may report on them, and the artifacts that they may publish."""

import secrets
import time
from typing import Any

from sqlalchemy import Select, delete, exists, select, update
from sqlalchemy.orm import Session

from hmi_api.artifacts import ArtifactRef
from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.runs import (
    AdapterRunSpec,
    DomainRunSpec,
    RunCreate,
    RunFailure,
    RunPod,
    RunProgress,
    RunResult,
    RunState,
    RunView,
    seconds_of,
)
from hmi_api.internal.storable import WireModel
from hmi_api.security.internal_auth import Caller, Role
from hmi_control_plane.catalog.artifacts import load_refs
from hmi_control_plane.catalog.database import insert_missing, utc_now
from hmi_control_plane.catalog.tables import (
    RunArtifact,
    RunPodRow,
    Tenant,
    TrainingRun,
)
from hmi_control_plane.catalog.tenants import get_tenant
from hmi_control_plane.http.errors import Conflict, Forbidden, NotFound
from hmi_control_plane.metering.records import record_training

FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED})
RESOURCE_DELETED = "ResourceDeleted"
REFRESH_KIND = "refresh"
_KEPT_REFRESH_RUNS = 20
"""``TrainingRun.kind`` of refresh runs; other runs have the kind of their specification."""


def create_run(session: Session, wanted: RunCreate) -> RunView:
    """Return the run for ``(uid, spec_digest, attempt)``; create it if it is new.

    Of a Domain's refresh runs the last few are kept: a schedule, or who sets the annotation, may start one a
    minute.

    Raises NotFound (UnknownTenant).
    """
    get_tenant(session, wanted.tenant)
    row = {
        "id": _new_id(),
        "uid": wanted.uid,
        "spec_digest": wanted.spec_digest,
        "attempt": wanted.attempt,
        "tenant": wanted.tenant,
        "kind": REFRESH_KIND if _refreshes(wanted.spec) else wanted.spec.kind,
        "namespace": wanted.spec.namespace,
        "name": wanted.spec.name,
        "state": RunState.PENDING.value,
        "spec": to_json(wanted.spec),
        "created_at": utc_now(),
    }
    insert_missing(session, TrainingRun, [row], keys=["uid", "spec_digest", "attempt"])
    made = session.scalars(
        select(TrainingRun).where(
            TrainingRun.uid == wanted.uid,
            TrainingRun.spec_digest == wanted.spec_digest,
            TrainingRun.attempt == wanted.attempt,
        )
    ).one()
    if made.kind == REFRESH_KIND:
        for run in session.scalars(refresh_runs(wanted.uid).offset(_KEPT_REFRESH_RUNS)):
            if run.state in FINAL:
                session.delete(run)
    return RunView.model_validate(made)


def refresh_runs(uid: str) -> Select[TrainingRun]:
    """Return the refresh runs of a Domain, newest first: ids sort by time of creation."""
    of_domain = (TrainingRun.uid == uid, TrainingRun.kind == REFRESH_KIND)
    return select(TrainingRun).where(*of_domain).order_by(TrainingRun.id.desc())


def get_run(session: Session, run_id: str, *, for_update: bool = False) -> TrainingRun:
    """Return the run; raises NotFound (UnknownRun).

    ``for_update`` locks the row and reads it again, even if this session has read it before.
    """
    query = select(TrainingRun).where(TrainingRun.id == run_id)
    if for_update:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise NotFound("UnknownRun", f"There is no run {run_id}; its resource may have been deleted.")
    return row


def report_progress(session: Session, run_id: str, progress: RunProgress) -> RunView:
    """Record the progress of a run that is not over yet. Raises NotFound (UnknownRun)."""
    row = get_run(session, run_id, for_update=True)
    if RunState(row.state) not in FINAL:
        row.state = RunState.RUNNING.value
        row.started_at = row.started_at or utc_now()
        row.progress = to_json(progress)
    return RunView.model_validate(row)


def fail_run(session: Session, run_id: str, failure: RunFailure) -> RunView:
    """End a run without a result; a run that failed before keeps its first reason.

    Raises NotFound (UnknownRun), Conflict (RunFinished) when it has succeeded.
    """
    row = get_run(session, run_id, for_update=True)
    if row.state == RunState.SUCCEEDED:
        raise Conflict("RunFinished", f"Run {run_id} has succeeded and cannot fail any more.")
    if row.state != RunState.FAILED:
        _fail(row, failure)
    return RunView.model_validate(row)


def delete_runs(session: Session, uid: str) -> None:
    """Delete a resource's runs. A run that is not over fails and stays, so that its trainer stops."""
    finals = [state.value for state in FINAL]
    session.execute(delete(TrainingRun).where(TrainingRun.uid == uid, TrainingRun.state.in_(finals)))
    failure = RunFailure(reason=RESOURCE_DELETED, message="The resource was deleted while this run worked.")
    session.execute(
        update(TrainingRun)
        .where(TrainingRun.uid == uid)
        .values(state=RunState.FAILED.value, failure=to_json(failure), finished_at=utc_now())
    )


def adopt_runs(session: Session, old_uid: str, new_uid: str) -> None:
    """Give the runs of an object to the object that takes over its row, so that none is repeated."""
    session.execute(update(TrainingRun).where(TrainingRun.uid == old_uid).values(uid=new_uid))


def to_json(model: WireModel) -> dict[str, Any]:
    """Return the JSON in which a type of the internal API is stored, as in a request body."""
    return model.model_dump(mode="json", by_alias=True)


def _refreshes(spec: DomainRunSpec | AdapterRunSpec) -> bool:
    return isinstance(spec, DomainRunSpec) and spec.refresh is not None


def _fail(row: TrainingRun, failure: RunFailure) -> None:
    row.state = RunState.FAILED.value
    row.failure = to_json(failure)
    row.finished_at = utc_now()


def _new_id() -> str:
    """Return a new run id; ids sort by their time of creation."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def record_pods(session: Session, run_id: str, pods: list[RunPod]) -> None:
    """Record the pods of a run's Job and their times; a pod that disappeared without an end has ended now.

    A run that completed before the start of its pod was known is metered here. Raises NotFound
    (UnknownRun).
    """
    run = get_run(session, run_id, for_update=True)
    insert_missing(session, RunPodRow, [{"run_id": run_id, "pod_uid": pod.uid} for pod in pods])
    reported = {pod.uid: pod for pod in pods}
    for row in session.scalars(select(RunPodRow).where(RunPodRow.run_id == run_id)):
        pod = reported.get(row.pod_uid)
        if pod is not None:
            row.started_at = pod.started_at or row.started_at
            row.finished_at = pod.finished_at or row.finished_at
        elif row.finished_at is None:
            row.finished_at = utc_now()
    session.flush()
    _meter_late(session, run)


def require_pod(session: Session, run: TrainingRun, caller: Caller) -> None:
    """Require that a trainer calls from a pod of the run's Job; other callers always pass.

    Raises Forbidden (TokenWithoutPod) for a token that is bound to no pod, and NotReady (PodUnknown) for a
    pod that the operator has not reported for this run yet.
    """
    if caller.role is not Role.TRAINER:
        return
    if caller.pod_uid is None:
        raise Forbidden(
            "TokenWithoutPod",
            "The token is bound to no pod; a training run is reported by the pod of its Job alone.",
        )
    row = session.get(RunPodRow, (run.id, caller.pod_uid))
    if row is None or row.finished_at is not None:
        raise NotReady(
            "PodUnknown",
            f"Pod {caller.pod_uid} is not known to work on run {run.id}; the operator reports a Job's pods "
            "within seconds.",
        )


def with_measured_seconds(session: Session, run: TrainingRun, result: RunResult) -> RunResult:
    """Return a trainer's result with ``training_seconds`` measured from the run's pods.

    They are 0 while the start of a running pod is not known; ``record_pods`` meters such a run later.
    """
    return result.model_copy(update={"training_seconds": _seconds(session, run)})


def _seconds(session: Session, run: TrainingRun) -> float:
    rows = session.scalars(select(RunPodRow).where(RunPodRow.run_id == run.id)).all()
    if any(row.started_at is None and row.finished_at is None for row in rows):
        return 0.0
    until = run.finished_at or utc_now()
    return sum(seconds_of(row.started_at, row.finished_at, until) for row in rows)


def _meter_late(session: Session, run: TrainingRun) -> None:
    if run.state != RunState.SUCCEEDED or run.result is None or run.finished_at is None:
        return
    result = RunResult.model_validate(run.result)
    if result.training_seconds > 0 or (seconds := _seconds(session, run)) <= 0:
        return
    run.result = to_json(result.model_copy(update={"training_seconds": seconds}))
    session.flush()
    tenant = session.get_one(Tenant, run.tenant)
    record_training(session, RunView.model_validate(run), tenant, run.finished_at)


def require_open(run: TrainingRun) -> None:
    """Raise Conflict (RunFinished) when a run is over and may not publish."""
    if RunState(run.state) in FINAL:
        raise Conflict("RunFinished", f"Run {run.id} is over and publishes nothing more.")


def open_runs(session: Session, run_ids: set[str]) -> set[str]:
    """Return those of ``run_ids`` whose runs may still publish."""
    finals = [state.value for state in FINAL]
    query = select(TrainingRun.id).where(TrainingRun.id.in_(run_ids), TrainingRun.state.not_in(finals))
    return set(session.scalars(query))


def record_published(session: Session, run: TrainingRun, digest: str) -> None:
    """Record that a run published an artifact."""
    insert_missing(session, RunArtifact, [{"run_id": run.id, "digest": digest}])


def was_published_in(session: Session, namespace: str, digest: str) -> bool:
    """Return whether a run of ``namespace`` published an artifact; other namespaces must upload its files."""
    query = exists().where(
        RunArtifact.digest == digest,
        TrainingRun.id == RunArtifact.run_id,
        TrainingRun.namespace == namespace,
    )
    return bool(session.scalar(select(query)))


def get_readable_artifact(session: Session, run: TrainingRun, digest: str) -> ArtifactRef:
    """Return an artifact that a run uses or has published; raises NotFound (ArtifactNotNamed)."""
    ref = next((ref for ref in _used_artifacts(run) if ref.digest == digest), None)
    if ref is None and session.get(RunArtifact, (run.id, digest)) is not None:
        ref = load_refs(session, [digest]).get(digest)
    if ref is None:
        raise NotFound("ArtifactNotNamed", f"Run {run.id} names no artifact {digest}.")
    return ref


def require_published(session: Session, run: TrainingRun, refs: list[ArtifactRef]) -> None:
    """Raise InvalidInput (ArtifactNotPublished) unless the run published or uses all of ``refs``.

    Otherwise a run could claim another tenant's artifact by naming its digest. A Domain that keeps its
    parent's layers names those.
    """
    published = set(session.scalars(select(RunArtifact.digest).where(RunArtifact.run_id == run.id)))
    published |= {ref.digest for ref in _used_artifacts(run)}
    known = load_refs(session, [ref.digest for ref in refs])
    for ref in refs:
        if ref.digest not in published or known.get(ref.digest) != ref:
            raise InvalidInput(
                "ArtifactNotPublished",
                f"Run {run.id} did not publish {ref.digest}; publish it, then complete the run.",
            )


def _used_artifacts(run: TrainingRun) -> list[ArtifactRef]:
    spec = RunView.model_validate(run).spec
    if isinstance(spec, DomainRunSpec):
        used = [spec.parent, spec.refresh.current if spec.refresh is not None else None]
    else:
        used = [spec.domain]
    return [ref for version in used if version is not None for ref in (version.layers, *version.tables)]
