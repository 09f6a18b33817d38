"""Training runs, as the operator creates them and trainers report on them."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from hmi_api.internal.runs import RunCreate, RunFailure, RunPods, RunProgress, RunResult, RunView
from hmi_api.internal.window_counts import DEFAULT_WINDOWS_READ, MAX_WINDOWS_READ, WindowCounts
from hmi_api.security.internal_auth import Caller, Role
from hmi_control_plane.api import NO_CONTENT
from hmi_control_plane.api.internal.runtimes import ChangeSignal
from hmi_control_plane.auth.guards import AdmittedCaller, RoleGuard
from hmi_control_plane.catalog import runs, versions
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import TrainingRun
from hmi_control_plane.http.errors import Forbidden
from hmi_control_plane.http.parameters import RunId
from hmi_control_plane.window_counts.merging import WindowCountMerger
from hmi_control_plane.window_counts.read_limit import ReadLimit, ReleasingResponse
from hmi_control_plane.window_counts.reading import read_window_counts

Most = Annotated[
    int,
    Query(ge=1, le=MAX_WINDOWS_READ, description="How many windows to return; the most frequent come first."),
]


def run_of(session: Session, run_id: str, caller: Caller) -> TrainingRun:
    """Return a run that ``caller`` may access; a trainer only the run of its pod.

    Raises NotFound (UnknownRun), Forbidden (OtherNamespace, TokenWithoutPod), NotReady (PodUnknown).
    """
    run = runs.get_run(session, run_id)
    if not caller.may_work_in(run.namespace):
        raise Forbidden("OtherNamespace", f"Run {run_id} belongs to another namespace than the caller's.")
    runs.require_pod(session, run, caller)
    return run


def build(
    database: Database, guard: RoleGuard, changes: ChangeSignal, windows: WindowCountMerger
) -> APIRouter:
    """Return the routes under ``/runs``."""
    router = APIRouter()
    router.include_router(_operator_routes(database, guard))
    router.include_router(_trainer_routes(database, guard, changes))
    router.include_router(_window_routes(database, guard, windows))
    return router


def _window_routes(database: Database, guard: RoleGuard, windows: WindowCountMerger) -> APIRouter:
    router = APIRouter(prefix="/runs", route_class=guard.only(Role.OPERATOR, Role.TRAINER))

    limit = ReadLimit()

    @router.get("/{run_id}/window-counts", response_model=WindowCounts)
    def read_windows(
        run_id: RunId,
        caller: AdmittedCaller,
        most: Most = DEFAULT_WINDOWS_READ,
        children: Annotated[bool, Query(description="Include children with the same layers.")] = False,
    ) -> ReleasingResponse:
        """Read the windows that traffic of the run's Domain looked up, as far as the run may know them."""

        def compute() -> bytes:
            windows.merge()  # so that the run sees what has been reported until now
            with database.read() as session:
                run = run_of(session, run_id, caller)
                found = read_window_counts(session, run, windows.settings, most, children=children)
            # Defaults are left out: a trainer of an older version refuses fields that it does not know.
            return found.model_dump_json(by_alias=True, exclude_defaults=True).encode()

        with database.read() as session:
            tenant = run_of(session, run_id, caller).tenant
        return limit.respond(tenant, compute)

    return router


def _operator_routes(database: Database, guard: RoleGuard) -> APIRouter:
    router = APIRouter(prefix="/runs", route_class=guard.only(Role.OPERATOR))

    @router.post("")
    def create_run(wanted: RunCreate) -> RunView:
        """Create a run; the same uid, spec digest and attempt return the same run."""
        with database.write() as session:
            return runs.create_run(session, wanted)

    @router.put("/{run_id}/pods", **NO_CONTENT)
    def note_pods(run_id: RunId, reported: RunPods) -> None:
        """Record the pods of a run's Job; only these may report on the run."""
        with database.write() as session:
            runs.record_pods(session, run_id, reported.pods)

    return router


def _trainer_routes(database: Database, guard: RoleGuard, changes: ChangeSignal) -> APIRouter:
    router = APIRouter(prefix="/runs", route_class=guard.only(Role.OPERATOR, Role.TRAINER))

    @router.get("/{run_id}")
    def read_run(run_id: RunId, caller: AdmittedCaller) -> RunView:
        """Read a run."""
        with database.read() as session:
            return RunView.model_validate(run_of(session, run_id, caller))

    @router.post("/{run_id}/progress")
    def report_progress(run_id: RunId, progress: RunProgress, caller: AdmittedCaller) -> RunView:
        """Record progress; a final state in the response tells the trainer to stop."""
        with database.write() as session:
            run_of(session, run_id, caller)
            return runs.report_progress(session, run_id, progress)

    @router.post("/{run_id}/complete")
    def complete_run(run_id: RunId, result: RunResult, caller: AdmittedCaller) -> RunView:
        """End a run with its result, which becomes a version; idempotent."""
        with database.write() as session:
            run = run_of(session, run_id, caller)
            if caller.role is Role.TRAINER:
                runs.require_published(session, run, result.artifacts)
                result = runs.with_measured_seconds(session, run, result)
            view = versions.complete_run(session, run_id, result)
        changes.notify()
        return view

    @router.post("/{run_id}/fail")
    def fail_run(run_id: RunId, failure: RunFailure, caller: AdmittedCaller) -> RunView:
        """End a run without a result; idempotent, 409 when it has succeeded."""
        with database.write() as session:
            run_of(session, run_id, caller)
            return runs.fail_run(session, run_id, failure)

    return router
