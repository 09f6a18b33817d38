"""One replica of the operator: it always watches, and reconciles while it is the leader."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import kopf
from kubernetes.aio.client import V1Job

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.controller import Controller, Pace
from hmi_operator.etag_poller import EtagPoller
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.client import KubernetesClient
from hmi_operator.kubernetes.events import EventRecorder
from hmi_operator.kubernetes.handlers import build_registry, build_settings, list_all
from hmi_operator.kubernetes.invalid_objects import InvalidObjectReconciler
from hmi_operator.kubernetes.jobs import JobCache, watch_jobs
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.observability import OperatorMetrics
from hmi_operator.kubernetes.store import KubeResourceStore
from hmi_operator.kubernetes.webhook import AdmissionReviewer, WebhookAddress, webhook_server
from hmi_operator.orphans import Orphan, OrphanCollector, OrphanGrace
from hmi_operator.planning import CLUSTER, Environment
from hmi_operator.ports import ControlPlane, ResourceRef, TrainingJobs
from hmi_operator.reconciler import Reconciler

logger = logging.getLogger(__name__)

RELIST_SECONDS = 600.0
"""How often the cache is compared with complete lists: an interrupted watch misses deletions."""
_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class Parts:
    """What a replica consists of."""

    client: KubernetesClient
    control_plane: ControlPlane
    jobs: TrainingJobs
    lease: Lease
    training: JobCache = field(default_factory=JobCache)
    metrics: OperatorMetrics = field(default_factory=OperatorMetrics)
    events: EventRecorder | None = None
    """Creates Events; there are none when absent."""
    orphan_grace: OrphanGrace = field(default_factory=OrphanGrace)
    """How long the catalog keeps orphans."""
    webhook: WebhookAddress | None = None
    """Where admission reviews are answered; nowhere when absent."""


class Operator:
    """A replica; ``run`` it once.

    Watches fill the cache of a standby too, so that taking over costs one list. Nothing is planned before
    that list is complete, because an incomplete cache lacks Domains that exist.
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
        self._store = KubeResourceStore(parts.client, self._cache, self._namespaces)
        self._controller: Controller | None = None
        self._watching = asyncio.Event()
        parts.metrics.set_gauges(
            leader=lambda: parts.lease.held,
            queue=lambda: self._controller.queue_length if self._controller is not None else 0,
            resources=lambda: len(self._cache),
        )

    @property
    def cache(self) -> ResourceCache:
        """The cached objects of the cluster."""
        return self._cache

    @property
    def leads(self) -> bool:
        """Whether this replica is the leader and reconciles."""
        return self._controller is not None and self._parts.lease.held

    def problem(self) -> str | None:
        """Return why this replica is not ready to become the leader, or None."""
        if not self._watching.is_set():
            return "the API server's resources are not listed yet"
        return self._parts.lease.problem()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set, then give the lease back. Raises when kopf's watches fail."""
        await _run_until(stop, self._list_all())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(stop), name="watch")
            for namespace in self._namespaces or (None,):
                watching = watch_jobs(self._parts.client, namespace, self._handle_job)
                tasks.create_task(_run_until(stop, watching), name=f"watch Jobs of {namespace or 'all'}")
            tasks.create_task(self._lead_or_wait(stop), name="lead")

    # --- watching ---------------------------------------------------------------------------------

    async def _watch(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            return
        webhook = self._parts.webhook
        reviewer = AdmissionReviewer(self._cache.get, self.problem, self._environment) if webhook else None
        registry = build_registry(self._cache, reviewer)
        settings = build_settings(webhook_server(webhook) if webhook else None)
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

    def _handle_job(self, type_: str, job: V1Job) -> None:
        ref = self._parts.training.on_job(type_, job)
        if ref is not None:
            self._enqueue(ref)

    def _enqueue(self, ref: ResourceRef) -> None:
        if self._controller is not None:
            self._controller.enqueue(ref)

    async def _list_all(self) -> None:
        while True:
            try:
                await list_all(self._parts.client, self._cache, self._namespaces)
                return
            except HmiError as error:
                logger.warning("the API server's resources could not be listed: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)

    # --- leading ----------------------------------------------------------------------------------

    async def _lead_or_wait(self, stop: asyncio.Event) -> None:
        lease = self._parts.lease
        try:
            while not stop.is_set():
                await _run_until(stop, lease.acquire())
                if lease.held:
                    await self._lead(stop)
        finally:
            await lease.release()

    async def _lead(self, stop: asyncio.Event) -> None:
        """Reconcile until ``stop`` is set; end at once when the lease is lost."""
        lease = self._parts.lease
        work = asyncio.create_task(self._reconcile(stop), name="reconcile")
        kept = asyncio.create_task(lease.keep(), name="lease")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({work, kept, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not kept.done():  # finish what is being reconciled
                await asyncio.wait({work, kept}, return_when=asyncio.FIRST_COMPLETED, timeout=self._grace)
        finally:
            await _cancel(work, kept, stopping)
        if work.done() and not work.cancelled():
            work.result()

    async def _reconcile(self, stop: asyncio.Event) -> None:
        parts = self._parts
        orphans = OrphanCollector(
            self._store,
            parts.control_plane,
            parts.jobs,
            grace=parts.orphan_grace,
            require_leadership=parts.lease.require_held,
            on_deleted=parts.events.record_orphan if parts.events is not None else _ignore_orphan,
        )
        await _run_until(stop, orphans.claim_until_taken())
        if stop.is_set():
            return
        poller = EtagPoller(parts.control_plane, self._enqueue)
        reconciler = Reconciler(
            self._store,
            parts.control_plane,
            parts.jobs,
            require_leadership=parts.lease.require_held,
            environment=self._environment,
            on_status_change=parts.events.record if parts.events is not None else _ignore_status,
            on_adapter_view=poller.record,
        )
        controller = Controller(
            InvalidObjectReconciler(
                reconciler,
                self._cache,
                parts.client,
                parts.control_plane,
                parts.jobs,
                require_leadership=parts.lease.require_held,
            ),
            self._store,
            workers=self._workers,
            pace=self._pace,
            on_reconciled=parts.metrics.record_reconciliation,
        )
        await _run_until(stop, self._list_all())
        self._controller = controller
        self._cache.on_change = controller.enqueue
        for ref in self._cache.refs():
            controller.enqueue(ref)
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = [
                    tasks.create_task(self._relist(), name="relist"),
                    tasks.create_task(poller.run(), name="ETags"),
                    tasks.create_task(orphans.run(), name="catalog"),
                ]
                if parts.events is not None:
                    beside.append(tasks.create_task(parts.events.run(), name="events"))
                await controller.run(stop)
                for task in beside:
                    task.cancel()
        except* InvalidInput as lost:  # the catalog belongs to another cluster now; claim it again
            logger.error("reconciliation has ended: %s", lost.exceptions[0])
        finally:
            self._controller = None
            self._cache.on_change = _ignore_change

    async def _relist(self) -> None:
        while True:
            await asyncio.sleep(RELIST_SECONDS)
            await self._list_all()


async def _run_until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Wait for the work; cancel it when ``stop`` is set."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(working, stopping)
    if not working.cancelled():
        working.result()


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _ignore_change(_: ResourceRef) -> None:
    """This replica is not the leader."""


def _ignore_status(resource: Domain | TaskAdapter, old: CommonStatus, new: CommonStatus) -> None:
    """There is no recorder of Events."""


def _ignore_orphan(_: Orphan) -> None:
    """There is no recorder of Events."""
