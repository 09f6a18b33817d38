"""One replica of the operator: it always watches, and reconciles while it is the leader."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import kopf
from kubernetes.aio.client import V1Job

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.client import ControlPlaneClient
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
from hmi_operator.orphans import OrphanCollector, OrphanGrace
from hmi_operator.planning import CLUSTER, Environment
from hmi_operator.ports import Ports, ResourceRef, TrainingJobs
from hmi_operator.reconciler import Reconciler

logger = logging.getLogger(__name__)

RELIST_SECONDS = 600.0
"""How often the cache is compared with complete lists: an interrupted watch misses deletions."""
_RETRY_SECONDS = 2.0
_LAST_EVENTS_SECONDS = 2.0
"""How long a replica that stops goes on creating the Events of what it did."""


@dataclass(kw_only=True, eq=False)
class Operator:
    """A replica; ``run`` it once.

    Watches fill the cache of a standby too, so that taking over costs one list. Nothing is planned before
    that list is complete, because an incomplete cache lacks Domains that exist.
    """

    client: KubernetesClient
    control_plane: ControlPlaneClient
    jobs: TrainingJobs
    lease: Lease
    events: EventRecorder
    job_cache: JobCache = field(default_factory=JobCache)
    metrics: OperatorMetrics = field(default_factory=OperatorMetrics)
    orphan_grace: OrphanGrace = field(default_factory=OrphanGrace)
    """How long the catalog keeps orphans."""
    webhook: WebhookAddress | None = None
    """Where the validating webhook listens; None for no webhook."""
    namespaces: Sequence[str] = ()
    """The namespaces to watch; empty for all."""
    workers: int = 8
    pace: Pace = field(default_factory=Pace)
    grace_seconds: float = 10.0
    """How long reconciliations in progress may take after ``stop`` is set."""
    environment: Environment = CLUSTER

    def __post_init__(self) -> None:
        self._cache = ResourceCache(self._enqueue)
        self._ports = Ports(
            KubeResourceStore(self.client, self._cache, self.namespaces),
            self.control_plane,
            self.jobs,
            self.lease.require_held,
        )
        self._controller: Controller | None = None
        self._watching = asyncio.Event()
        self.metrics.set_gauges(
            leader=lambda: self.lease.held,
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
        return self._controller is not None and self.lease.held

    def problem(self) -> str | None:
        """Return why this replica is not ready to become the leader, or None."""
        if not self._watching.is_set():
            return "the API server's resources are not listed yet"
        return self.lease.problem()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until ``stop`` is set, then give the lease back. Raises when kopf's watches fail."""
        await _run_until(stop, self._list_all())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(stop), name="watch")
            for namespace in self.namespaces or (None,):
                watching = watch_jobs(self.client, namespace, self._handle_job)
                tasks.create_task(_run_until(stop, watching), name=f"watch Jobs of {namespace or 'all'}")
            tasks.create_task(self._lead_or_wait(stop), name="lead")

    # --- watching ---------------------------------------------------------------------------------

    async def _watch(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            return
        webhook = self.webhook
        reviewer = AdmissionReviewer(self._cache.get, self.problem, self.environment) if webhook else None
        registry = build_registry(self._cache, reviewer)
        settings = build_settings(webhook_server(webhook) if webhook else None)
        try:
            await kopf.operator(
                registry=registry,
                settings=settings,
                standalone=True,
                clusterwide=not self.namespaces,
                namespaces=self.namespaces,
                ready_flag=self._watching,
                stop_flag=stop,
            )
        finally:
            self._watching.clear()
            stop.set()

    def _handle_job(self, type_: str, job: V1Job) -> None:
        ref = self.job_cache.on_job(type_, job)
        if ref is not None:
            self._enqueue(ref)

    def _enqueue(self, ref: ResourceRef) -> None:
        """Enqueue a resource; do nothing if this replica is not the leader."""
        if self._controller is not None:
            self._controller.enqueue(ref)

    async def _list_all(self) -> None:
        while True:
            try:
                await list_all(self.client, self._cache, self.namespaces)
                return
            except HmiError as error:
                logger.warning("the API server's resources could not be listed: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)

    # --- leading ----------------------------------------------------------------------------------

    async def _lead_or_wait(self, stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                await _run_until(stop, self.lease.acquire())
                if self.lease.held:
                    await self._lead(stop)
        finally:
            await self.lease.release()

    async def _lead(self, stop: asyncio.Event) -> None:
        """Reconcile until ``stop`` is set; end at once when the lease is lost."""
        work = asyncio.create_task(self._reconcile(stop), name="reconcile")
        kept = asyncio.create_task(self.lease.keep(), name="lease")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({work, kept, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not kept.done():  # finish what is being reconciled
                await asyncio.wait(
                    {work, kept}, return_when=asyncio.FIRST_COMPLETED, timeout=self.grace_seconds
                )
        finally:
            await _cancel(work, kept, stopping)
        if work.done() and not work.cancelled():
            work.result()

    async def _reconcile(self, stop: asyncio.Event) -> None:
        orphans = OrphanCollector(self._ports, grace=self.orphan_grace, on_deleted=self.events.record_orphan)
        await _run_until(stop, orphans.register_until_accepted())
        if stop.is_set():
            return
        poller = EtagPoller(self.control_plane, self._enqueue)
        reconciler = Reconciler(
            self._ports,
            environment=self.environment,
            on_status_change=self.events.record,
            on_adapter_view=poller.record,
        )
        controller = Controller(
            InvalidObjectReconciler(reconciler, self._ports, self._cache, self.client).reconcile,
            self._ports.store,
            workers=self.workers,
            pace=self.pace,
            on_reconciled=self.metrics.record_reconciliation,
        )
        await _run_until(stop, self._list_all())
        self._controller = controller
        for ref in self._cache.refs():
            controller.enqueue(ref)
            resource = self._cache.get(ref) if ref.kind == "Domain" else None
            if resource is not None:
                self.events.record_again(resource)
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = [
                    tasks.create_task(self._relist(), name="relist"),
                    tasks.create_task(poller.run(), name="ETags"),
                    tasks.create_task(orphans.run(), name="catalog"),
                    tasks.create_task(self.events.run(), name="events"),
                ]
                await controller.run(stop)
                await self.events.flush(_LAST_EVENTS_SECONDS)
                for task in beside:
                    task.cancel()
        except* InvalidInput as lost:  # the catalog belongs to another cluster now
            logger.error("reconciliation has ended: %s", lost.exceptions[0])
        finally:
            self._controller = None

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
