"""The run of a resource and its process, as far as they can be believed."""

import re
from collections import OrderedDict

from hmi_api.internal.runs import RunPod, RunView
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning import JobView
from hmi_operator.planning.training import is_run_of
from hmi_operator.ports import ControlPlane, TrainingJobs

_REMEMBERED = 10_000
"""Runs of which is remembered what was told of their pods."""
_RUN_ID = re.compile(r"[0-9A-Za-z-]{1,63}")


class RunObserver:
    """Reads runs from the catalog, and their processes from where they run."""

    def __init__(self, control_plane: ControlPlane, jobs: TrainingJobs) -> None:
        self._control_plane = control_plane
        self._jobs = jobs
        self._told: OrderedDict[str, tuple[RunPod, ...]] = OrderedDict()

    async def of(self, resource: Domain | TaskAdapter) -> RunView | None:
        """Return the run that a resource's status names, where it is this very object's.

        A status is no proof: whoever may write it could name another tenant's run. Where it is lost or false,
        asking for the run anew gives the one that there is. Raises ``NotReady``.
        """
        run_id = resource.status.run_ref
        if run_id is None or not _RUN_ID.fullmatch(run_id):
            return None
        run = await self._control_plane.run(run_id)
        return run if run is not None and is_run_of(run, resource) else None

    async def job(self, run: RunView | None) -> JobView | None:
        """Return what is known of a run's process; None when there is no run, or it never had one here.

        The control plane is told of the process's pods, which alone may report on the run.
        """
        job = await self._jobs.observe(run) if run is not None else None
        if run is not None and job is not None and job.pods and self._told.get(run.id) != job.pods:
            await self._control_plane.note_pods(run.id, job.pods)
            self._told[run.id] = job.pods
            if len(self._told) > _REMEMBERED:
                self._told.popitem(last=False)
        return job
