"""Training Jobs in memory, for tests of the reconciler."""

from dataclasses import dataclass, field

from hmi_api.errors import NotReady
from hmi_api.internal.runs import RunPod, RunView
from hmi_operator.planning import JobView, PodProblem


@dataclass
class Jobs:
    """Processes that start and never end, unless ``refused`` says why they cannot be started."""

    started: set[str] = field(default_factory=set)
    deleted: list[str] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    refused: PodProblem | None = None
    pods: tuple[RunPod, ...] = ()

    async def start(self, run: RunView) -> None:
        if self.refused is None:
            self.started.add(run.id)

    async def observe(self, run: RunView) -> JobView | None:
        if self.refused is not None:
            return JobView(False, problem=self.refused)
        return JobView(True, pods=self.pods) if run.id in self.started else None

    async def stop(self, run_id: str, namespace: str) -> None:
        self.started.discard(run_id)

    async def delete_all(self, uid: str, namespace: str) -> None:
        if namespace in self.closed:
            raise NotReady("Forbidden", "There are no rights in that namespace.")
        self.deleted.append(uid)
