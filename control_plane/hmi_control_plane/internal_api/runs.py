"""Training runs, as the reconciler asks for them and the training programs report on them."""

from fastapi import APIRouter

from hmi_api.wire import RunCreate, RunFailure, RunProgress, RunResult, RunView
from hmi_control_plane.catalog import completion, runs
from hmi_control_plane.catalog.views import run_view
from hmi_control_plane.internal_api.changes import Changes
from hmi_control_plane.parameters import RunId
from hmi_control_plane.storage import Database


def build(database: Database, changes: Changes) -> APIRouter:
    """Return the routes under ``/runs``."""
    router = APIRouter(prefix="/runs")

    @router.post("")
    def create_run(wanted: RunCreate) -> RunView:
        """Make a run; the same uid, spec digest and attempt give the same run."""
        with database.write() as session:
            return runs.create_run(session, wanted)

    @router.get("/{run_id}")
    def read_run(run_id: RunId) -> RunView:
        """Read a run."""
        with database.read() as session:
            return run_view(runs.get_run(session, run_id))

    @router.post("/{run_id}/progress")
    def report_progress(run_id: RunId, progress: RunProgress) -> RunView:
        """Say how far a run is; a final state in the answer tells the program to stop."""
        with database.write() as session:
            return runs.report_progress(session, run_id, progress)

    @router.post("/{run_id}/complete")
    def complete_run(run_id: RunId, result: RunResult) -> RunView:
        """End a run with its result, which becomes a version; idempotent."""
        with database.write() as session:
            view = completion.complete_run(session, run_id, result)
        changes.notify()
        return view

    @router.post("/{run_id}/fail")
    def fail_run(run_id: RunId, failure: RunFailure) -> RunView:
        """End a run without a result; idempotent, 409 when it has succeeded."""
        with database.write() as session:
            return runs.fail_run(session, run_id, failure)

    return router
