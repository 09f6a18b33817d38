"""A reconciler with its ports, and training Jobs in memory, for tests of the reconciler."""

from dataclasses import dataclass, field
from typing import Any

from fake_catalog import FakeCatalog
from fake_control_plane import FakeControlPlane

from hmi_api.errors import NotReady
from hmi_api.internal.runs import RunPod, RunView
from hmi_operator.embedded import FileResourceStore
from hmi_operator.planning import JobView, PodProblem
from hmi_operator.ports import ResourceRef
from hmi_operator.reconciler import Reconciler, ReconcileResult

DOMAIN = ResourceRef("Domain", "shop", "hotel")
TOPIC, TONE = (ResourceRef("TaskAdapter", "shop", name) for name in ("topic", "tone"))
ROW = "/adapters/shop/topic"


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


@dataclass
class Here:
    """A reconciler with its ports."""

    store: FileResourceStore
    plane: FakeControlPlane
    jobs: Jobs
    engine: Reconciler
    written: list[str]

    @property
    def catalog(self) -> FakeCatalog:
        return self.plane.catalog

    @property
    def calls(self) -> list[str]:
        """The requests to the control plane since the last reconciliation began."""
        return self.plane.calls()

    def publish(self, ref: ResourceRef) -> None:
        """Complete the run of a resource."""
        (run,) = [
            run
            for run in self.catalog.runs.values()
            if (run.spec.namespace, run.spec.name) == (ref.namespace, ref.name) and run.result is None
        ]
        self.catalog.finish_run(run.id)

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        """Reconcile a resource; only the requests and writes of this time are kept."""
        self.plane.requests.clear()
        self.written.clear()
        return await self.engine.reconcile(ref)

    async def reconcile_status(self, ref: ResourceRef) -> Any:
        """Reconcile a resource; return its status."""
        await self.reconcile(ref)
        return await self.status(ref)

    async def status(self, ref: ResourceRef) -> Any:
        found = self.store.get(ref)
        assert found is not None
        return found.status
