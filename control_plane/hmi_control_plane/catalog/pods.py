"""The pods that work on training runs: who may speak for a run, and how long it took."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.errors import NotReady
from hmi_api.internal.runs import RunPod, RunResult, RunState, seconds_of
from hmi_api.security.internal_auth import Caller, Role
from hmi_control_plane import metering
from hmi_control_plane.catalog.database import insert_missing
from hmi_control_plane.catalog.runs import get_run, to_json
from hmi_control_plane.catalog.tables import RunPodRow, Tenant, TrainingRun
from hmi_control_plane.catalog.times import now
from hmi_control_plane.catalog.views import run_view
from hmi_control_plane.http.errors import Forbidden


def note_pods(session: Session, run_id: str, pods: list[RunPod]) -> None:
    """Note which pods a run's Job has, and their times; one that is gone without an end has ended now.

    A run that was completed before the start of its pod was known is metered here. Raises NotFound
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
            row.finished_at = now()
    session.flush()
    _meter_late(session, run)


def require_pod(session: Session, run: TrainingRun, caller: Caller) -> None:
    """Raise unless a trainer speaks from a pod of the run's Job; others than trainers are let through.

    Raises Forbidden (TokenWithoutPod) for a token that is bound to no pod, and NotReady (PodUnknown) for a
    pod that is not known as the run's: the operator may be about to report it.
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
    """Return a trainer's result with the seconds of the run's pods in place of its own word.

    0 where the start of a pod at work is not known yet: ``note_pods`` meters such a run.
    """
    return result.model_copy(update={"training_seconds": _seconds(session, run)})


def _seconds(session: Session, run: TrainingRun) -> float:
    rows = session.scalars(select(RunPodRow).where(RunPodRow.run_id == run.id)).all()
    if any(row.started_at is None and row.finished_at is None for row in rows):
        return 0.0
    until = run.finished_at or now()
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
    event = metering.training_event(run_view(run), tenant.name, tenant.id, run.finished_at)
    metering.record(session, [event], run.finished_at)
