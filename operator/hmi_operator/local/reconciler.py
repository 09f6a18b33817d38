"""The local reconciler: watches the store and runs the engine on what changed."""

import asyncio
import logging

from hmi_api.domain import Domain
from hmi_api.errors import HmiError
from hmi_api.wire import RunView
from hmi_operator.engine import Engine
from hmi_operator.local.jobs import SubprocessJobs
from hmi_operator.local.store import FileResourceStore
from hmi_operator.local.wake_queue import WakeQueue
from hmi_operator.local.watch import Event, EventType
from hmi_operator.ports import ControlPlane, KindName, ResourceRef

logger = logging.getLogger(__name__)

SHORTEST_RESYNC_SECONDS = 15.0
RECONCILES_PER_SECOND = 20.0
LONGEST_PAUSE_SECONDS = 60.0


class LocalReconciler:
    """Reconciles every resource of a store until it is stopped.

    A resource is reconciled when it changes, when something it stands on changes, when its training
    process ends, when its plan asked for it, and now and then besides: once in 15 s. Where there are so many
    that asking again and resyncing would be over 20 a second each, both come more rarely. One resource is
    never in two hands at once.
    """

    def __init__(
        self,
        store: FileResourceStore,
        control_plane: ControlPlane,
        jobs: SubprocessJobs,
        *,
        workers: int = 4,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._engine = Engine(store, control_plane, jobs)
        self._workers = workers
        self._queue = WakeQueue()
        self._failures: dict[ResourceRef, int] = {}
        self._polled: set[ResourceRef] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set; then finish what is in hand and end the training processes."""
        self._jobs.on_exit = self._on_exit
        with self._store.watchers.listening(self._on_event):
            for resource in await self._store.resources():
                self._queue.wake(ResourceRef.of(resource))
            workers = [asyncio.create_task(self._work()) for _ in range(self._workers)]
            try:
                await stop.wait()
            finally:
                self._queue.close()
                await asyncio.gather(*workers)
                self._jobs.on_exit = None
                await self._jobs.close()

    def _on_event(self, event: Event) -> None:
        if not event.spec_changed:
            return
        ref = ResourceRef.of(event.resource)
        if event.type is EventType.DELETED:
            self._failures.pop(ref, None)
        else:
            self._queue.wake(ref)
        if isinstance(event.resource, Domain):
            for dependent in self._store.standing_on(event.resource.key):
                self._queue.wake(dependent)

    def _on_exit(self, run: RunView) -> None:
        kind: KindName = "Domain" if run.spec.kind == "domain" else "TaskAdapter"
        self._queue.wake(ResourceRef(kind, run.spec.namespace, run.spec.name))

    async def _work(self) -> None:
        while (ref := await self._queue.take()) is not None:
            again = await self._reconcile(ref)
            self._queue.done(ref, again)

    async def _reconcile(self, ref: ResourceRef) -> float | None:
        """Reconcile one resource; return in how many seconds it should come again, None if it is gone."""
        try:
            outcome = await self._engine.reconcile(ref)
        except HmiError as error:
            logger.warning("%s: %s", ref, error)
            return self._after_failure(ref)
        except Exception:
            # One resource's fault must not stop the others.
            logger.exception("%s could not be reconciled", ref)
            return self._after_failure(ref)
        self._failures.pop(ref, None)
        for other in outcome.wake:
            self._queue.wake(other)
        return await self._pause(ref, outcome.requeue_after)

    async def _pause(self, ref: ResourceRef, wanted: float | None) -> float | None:
        """Return when a reconciled resource comes again: as its plan wants, but no more than all can."""
        if await self._store.get(ref) is None:
            self._polled.discard(ref)
            return None
        if wanted == 0:
            return 0.0
        resync = max(SHORTEST_RESYNC_SECONDS, await self._store.count() / RECONCILES_PER_SECOND)
        if wanted is None:
            self._polled.discard(ref)
            return resync
        self._polled.add(ref)
        return min(max(wanted, len(self._polled) / RECONCILES_PER_SECOND), resync)

    def _after_failure(self, ref: ResourceRef) -> float:
        self._failures[ref] = self._failures.get(ref, 0) + 1
        return float(min(2 ** min(self._failures[ref] - 1, 10), LONGEST_PAUSE_SECONDS))
