"""The controller of the embedded system: enqueues what changed in the store; stops training at the end."""

import asyncio

from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.runs import RunView
from hmi_api.resources.domain import Domain
from hmi_operator.controller import Controller
from hmi_operator.embedded.processes import SubprocessJobs
from hmi_operator.embedded.store import Event, EventType, FileResourceStore
from hmi_operator.orphans import OrphanCollector
from hmi_operator.planning import Environment
from hmi_operator.ports import Ports, ResourceRef
from hmi_operator.reconciler import Reconciler


class EmbeddedController:
    """Reconciles the resources of a store until it is stopped.

    A resource is reconciled when it changes, when its Domain changes, when its training process ends, when
    the time of its plan is over, and periodically: every 15 s if there are few.
    """

    def __init__(
        self,
        store: FileResourceStore,
        control_plane: ControlPlaneClient,
        jobs: SubprocessJobs,
        *,
        workers: int = 4,
        environment: Environment | None = None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        ports = Ports(store, control_plane, jobs)
        self._controller = Controller(
            Reconciler(ports, environment=environment).reconcile, store, workers=workers
        )
        self._orphans = OrphanCollector(ports)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; then finish reconciliations in progress and stop training.

        Raises ``InvalidInput`` OtherCluster if the catalog belongs to another store.
        """
        await self._orphans.register()
        self._jobs.on_exit = self._on_exit
        with self._store.watchers.listening(self._on_event):
            for resource in await self._store.resources():
                self._controller.enqueue(ResourceRef.of(resource))
            cleaning = asyncio.create_task(self._jobs.clean_up(), name="clean up runs")
            try:
                await self._work(stop)
            finally:
                cleaning.cancel()
                await asyncio.wait({cleaning})
                self._jobs.on_exit = None
                await self._jobs.close()

    async def _work(self, stop: asyncio.Event) -> None:
        """Reconcile and collect orphans until ``stop`` is set or the catalog belongs to another store."""
        working = asyncio.create_task(self._controller.run(stop), name="reconcile")
        collecting = asyncio.create_task(self._orphans.run(), name="catalog")
        try:
            await asyncio.wait({working, collecting}, return_when=asyncio.FIRST_COMPLETED)
            for task in (working, collecting):
                if task.done():
                    task.result()
        finally:
            working.cancel()
            collecting.cancel()
            await asyncio.wait({working, collecting})

    def _on_event(self, event: Event) -> None:
        if not event.spec_changed:
            return
        if event.type is not EventType.DELETED:
            self._controller.enqueue(ResourceRef.of(event.resource))
        if isinstance(event.resource, Domain):
            for dependent in self._store.dependents(event.resource.key):
                self._controller.enqueue(dependent)

    def _on_exit(self, run: RunView) -> None:
        self._controller.enqueue(ResourceRef.of_run(run))
