"""The local reconciler: wakes what changed in the store of files, and ends the training processes."""

import asyncio

from hmi_api.internal.runs import RunView
from hmi_api.names import KindName
from hmi_api.resources.domain import Domain
from hmi_operator.controller import Controller
from hmi_operator.embedded.jobs import SubprocessJobs
from hmi_operator.embedded.store import FileResourceStore
from hmi_operator.embedded.watch import Event, EventType
from hmi_operator.orphans import OrphanCollector
from hmi_operator.planning import Environment
from hmi_operator.ports import ControlPlane, ResourceRef
from hmi_operator.reconciler import Reconciler


class EmbeddedController:
    """Reconciles every resource of a store until it is stopped.

    A resource is reconciled when it changes, when something it stands on changes, when its training
    process ends, when its plan asked for it, and now and then besides: once in 15 s where they are few.
    """

    def __init__(
        self,
        store: FileResourceStore,
        control_plane: ControlPlane,
        jobs: SubprocessJobs,
        *,
        workers: int = 4,
        environment: Environment | None = None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        reconciler = Reconciler(store, control_plane, jobs, environment=environment)
        self._controller = Controller(reconciler, store, workers=workers)
        self._keeper = OrphanCollector(store, control_plane, jobs)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; then finish what is in hand and end the training processes.

        Raises ``InvalidInput`` OtherCluster when another store's resources are in the same catalog.
        """
        await self._keeper.claim()
        self._jobs.on_exit = self._on_exit
        with self._store.watchers.listening(self._on_event):
            for resource in await self._store.resources():
                self._controller.enqueue(ResourceRef.of(resource))
            tidying = asyncio.create_task(self._jobs.keep_tidy(), name="tidy runs")
            try:
                await self._work(stop)
            finally:
                tidying.cancel()
                await asyncio.wait({tidying})
                self._jobs.on_exit = None
                await self._jobs.close()

    async def _work(self, stop: asyncio.Event) -> None:
        """Reconcile, and keep the catalog, until ``stop`` is set or the catalog is another store's."""
        working = asyncio.create_task(self._controller.run(stop), name="reconcile")
        keeping = asyncio.create_task(self._keeper.run(), name="catalog")
        try:
            await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (working, keeping):
                if task.done():
                    task.result()
        finally:
            working.cancel()
            keeping.cancel()
            await asyncio.wait({working, keeping})

    def _on_event(self, event: Event) -> None:
        if not event.spec_changed:
            return
        if event.type is not EventType.DELETED:
            self._controller.enqueue(ResourceRef.of(event.resource))
        if isinstance(event.resource, Domain):
            for dependent in self._store.standing_on(event.resource.key):
                self._controller.enqueue(dependent)

    def _on_exit(self, run: RunView) -> None:
        kind: KindName = "Domain" if run.spec.kind == "domain" else "TaskAdapter"
        self._controller.enqueue(ResourceRef(kind, run.spec.namespace, run.spec.name))
