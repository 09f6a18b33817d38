"""One replica of the operator: it watches always, and reconciles while it has the lease."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import kopf

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.controller import Controller, Pace
from hmi_operator.etag_poller import EtagPoller
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.events import EventRecorder
from hmi_operator.kubernetes.job_watch import watch_jobs
from hmi_operator.kubernetes.jobs import TrainingCache
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.metrics import OperatorMetrics
from hmi_operator.kubernetes.orphan_events import tell_of_orphan
from hmi_operator.kubernetes.store import KubeResourceStore
from hmi_operator.kubernetes.unreadable import ReadableOrTold
from hmi_operator.kubernetes.watch import handlers, list_all, watch_settings
from hmi_operator.orphans import Orphan, OrphanCollector, OrphanGrace
from hmi_operator.planning import CLUSTER, Environment
from hmi_operator.ports import ControlPlane, ResourceRef, TrainingJobs
from hmi_operator.reconciler import Reconciler

logger = logging.getLogger(__name__)

RELIST_SECONDS = 600.0
"""How often the cache is held against complete lists: a watch that was away tells of no deletions."""
_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class Parts:
    """What a replica works with."""

    api: KubeApi
    control_plane: ControlPlane
    jobs: TrainingJobs
    lease: Lease
    training: TrainingCache = field(default_factory=TrainingCache)
    metrics: OperatorMetrics = field(default_factory=OperatorMetrics)
    events: EventRecorder | None = None
    """Tells of conditions that turn; nobody does when absent."""
    orphan_grace: OrphanGrace = field(default_factory=OrphanGrace)
    """How long the catalog keeps what has no object in the cluster."""
    namespace: str = "hmi-system"
    """The operator's own."""
    instance: str = "hmi-operator"
    """The operator's pod."""


class Operator:
    """A replica; ``run`` it once.

    Its watches fill the cache whether it leads or not, so that taking over costs one list. Nothing is
    planned before that list is complete: a cache half filled would miss Domains that are there.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        namespaces: Sequence[str] = (),
        workers: int = 8,
        pace: Pace | None = None,
        grace_seconds: float = 10.0,
        environment: Environment = CLUSTER,
    ) -> None:
        self._parts = parts
        self._namespaces = tuple(namespaces)
        self._workers = workers
        self._pace = pace
        self._grace = grace_seconds
        self._environment = environment
        self._cache = ResourceCache()
        self._store = KubeResourceStore(parts.api, self._cache, self._namespaces)
        self._controller: Controller | None = None
        self._watching = asyncio.Event()
        self._telling: set[asyncio.Task[None]] = set()
        parts.metrics.show(
            leader=lambda: parts.lease.held,
            queue=lambda: self._controller.queue_length if self._controller is not None else 0,
            resources=lambda: len(self._cache),
        )

    @property
    def cache(self) -> ResourceCache:
        """What is known of the cluster."""
        return self._cache

    @property
    def leads(self) -> bool:
        """Say whether this replica does the work now."""
        return self._controller is not None and self._parts.lease.held

    def trouble(self) -> str | None:
        """Return why this replica could not take over now, or None."""
        if not self._watching.is_set():
            return "the API server's resources are not listed yet"
        return self._parts.lease.trouble()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then give the lease back. Raises when the watches have failed."""
        await _until(stop, self._list_until_done())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(stop), name="watch")
            for namespace in self._namespaces or (None,):
                watching = watch_jobs(self._parts.api, namespace, self._hear_of_job)
                tasks.create_task(_until(stop, watching), name=f"watch Jobs of {namespace or 'all'}")
            tasks.create_task(self._take_turns(stop), name="lead")

    # --- watching ---------------------------------------------------------------------------------

    async def _watch(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            return
        settings = watch_settings()
        registry = handlers(self._cache)
        try:
            await kopf.operator(
                registry=registry,
                settings=settings,
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                ready_flag=self._watching,
                stop_flag=stop,
            )
        finally:
            self._watching.clear()
            stop.set()

    def _hear_of_job(self, type_: str, manifest: Manifest) -> None:
        ref = self._parts.training.on_job(type_, manifest)
        if ref is not None:
            self._wake(ref)

    def _wake(self, ref: ResourceRef) -> None:
        if self._controller is not None:
            self._controller.enqueue(ref)

    async def _list_until_done(self) -> None:
        while True:
            try:
                await list_all(self._parts.api, self._cache, self._namespaces)
                return
            except HmiError as error:
                logger.warning("the API server's resources could not be listed: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)

    # --- leading ----------------------------------------------------------------------------------

    async def _take_turns(self, stop: asyncio.Event) -> None:
        lease = self._parts.lease
        try:
            while not stop.is_set():
                await _until(stop, lease.acquire())
                if lease.held:
                    await self._lead(stop)
        finally:
            await lease.release()

    async def _lead(self, stop: asyncio.Event) -> None:
        """Reconcile until told to stop, or at once no more when the lease is lost."""
        lease = self._parts.lease
        work = asyncio.create_task(self._reconcile(stop), name="reconcile")
        kept = asyncio.create_task(lease.keep(), name="lease")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({work, kept, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not kept.done():  # what is in hand may be finished
                await asyncio.wait({work, kept}, return_when=asyncio.FIRST_COMPLETED, timeout=self._grace)
        finally:
            await _end(work, kept, stopping)
        if work.done() and not work.cancelled():
            work.result()

    async def _reconcile(self, stop: asyncio.Event) -> None:
        parts = self._parts
        keeper = OrphanCollector(
            self._store,
            parts.control_plane,
            parts.jobs,
            grace=parts.orphan_grace,
            require_leadership=parts.lease.must_hold,
            on_deleted=self._tell_of_orphan,
        )
        await _until(stop, keeper.claim_until_taken())
        if stop.is_set():
            return
        poller = EtagPoller(parts.control_plane, self._wake)
        reconciler = Reconciler(
            self._store,
            parts.control_plane,
            parts.jobs,
            require_leadership=parts.lease.must_hold,
            environment=self._environment,
            on_status_change=parts.events.record if parts.events is not None else _tell_nobody,
            on_adapter_view=poller.record,
        )
        controller = Controller(
            ReadableOrTold(
                reconciler,
                self._cache,
                parts.api,
                parts.control_plane,
                parts.jobs,
                permit=parts.lease.must_hold,
            ),
            self._store,
            workers=self._workers,
            pace=self._pace,
            observer=parts.metrics.reconciled,
        )
        await _until(stop, self._list_until_done())
        self._controller = controller
        self._cache.on_change = controller.enqueue
        for ref in self._cache.refs():
            controller.enqueue(ref)
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = [
                    tasks.create_task(self._relist(), name="relist"),
                    tasks.create_task(poller.run(), name="poller"),
                    tasks.create_task(keeper.run(), name="catalog"),
                ]
                if parts.events is not None:
                    beside.append(tasks.create_task(parts.events.run(), name="events"))
                await controller.run(stop)
                for task in beside:
                    task.cancel()
        except* InvalidInput as lost:  # the catalog belongs to another cluster now; it is claimed again
            logger.error("nothing is reconciled any more: %s", lost.exceptions[0])
        finally:
            self._controller = None
            self._cache.on_change = _nobody

    def _tell_of_orphan(self, orphan: Orphan) -> None:
        telling = asyncio.create_task(
            tell_of_orphan(self._parts.api, orphan, self._parts.namespace, self._parts.instance)
        )
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _relist(self) -> None:
        while True:
            await asyncio.sleep(RELIST_SECONDS)
            await self._list_until_done()


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Wait for the work, or until ``stop`` is set and the work is dropped."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(working, stopping)
    if not working.cancelled():
        working.result()


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _nobody(_: ResourceRef) -> None:
    """Another replica has the work."""


def _tell_nobody(resource: Domain | TaskAdapter, old: CommonStatus, new: CommonStatus) -> None:
    """Nobody records Events here."""
