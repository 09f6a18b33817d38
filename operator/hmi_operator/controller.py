"""The reconciler: runs the reconciler on what was woken, the same on Kubernetes and on one machine."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hmi_api.errors import HmiError
from hmi_operator.ports import ResourceRef, ResourceStore
from hmi_operator.reconciler import ReconcileResult
from hmi_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

Observer = Callable[[ResourceRef, float, bool], None]
"""Told of each reconciliation: of what, how many seconds it took, and whether it went well."""


class ResourceReconciler(Protocol):
    """The reconciler, or what stands around it."""

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        """Bring one resource a step nearer to what is declared. Raises ``HmiError``."""
        ...


@dataclass(frozen=True)
class Pace:
    """How often resources are looked at though nothing was heard of them.

    Where there are so many that more than ``per_second`` would be asked again, or ``resyncs_per_second``
    looked at without a cause, both come more rarely: the load is bounded whatever their number.
    """

    resync_seconds: float = 15.0
    resyncs_per_second: float = 5.0
    per_second: float = 20.0
    shortest_poll_seconds: float = 0.0
    longest_pause_seconds: float = 60.0
    """After failures, doubling from one second."""


class Controller:
    """Reconciles each resource when it is enqueued, when its plan asks for it, and periodically.

    Never reconciles one resource twice at the same time.
    """

    def __init__(
        self,
        reconciler: ResourceReconciler,
        store: ResourceStore,
        *,
        workers: int = 4,
        pace: Pace | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._reconciler = reconciler
        self._store = store
        self._workers = workers
        self._pace = pace or Pace()
        self._observer = observer
        self._queue = WorkQueue()
        self._failures: dict[ResourceRef, int] = {}
        self._polled: set[ResourceRef] = set()

    def enqueue(self, ref: ResourceRef) -> None:
        """Reconcile a resource soon; one that is gone is no trouble."""
        self._queue.add(ref)

    @property
    def queue_length(self) -> int:
        """How many resources stand in line."""
        return self._queue.length

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then finish what is in hand; cancelled, drop it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._workers):
                    tasks.create_task(self._work())
                await stop.wait()
                self._queue.shut_down()
        finally:
            self._queue.shut_down()

    async def _work(self) -> None:
        while (ref := await self._queue.get()) is not None:
            started = time.perf_counter()
            failures = self._failures.get(ref, 0)
            again = await self._reconcile(ref)
            if self._observer is not None:
                went_well = self._failures.get(ref, 0) <= failures
                self._observer(ref, time.perf_counter() - started, went_well)
            self._queue.done(ref, again)

    async def _reconcile(self, ref: ResourceRef) -> float | None:
        """Reconcile one resource; return in how many seconds it should come again, None if it is gone."""
        try:
            result = await self._reconciler.reconcile(ref)
        except HmiError as error:
            logger.warning("%s: %s", ref, error)
            return self._after_failure(ref)
        except Exception:
            # One resource's fault must not stop the others.
            logger.exception("%s could not be reconciled", ref)
            return self._after_failure(ref)
        self._failures.pop(ref, None)
        for other in result.enqueue:
            self._queue.add(other)
        return await self._pause(ref, result.requeue_after)

    async def _pause(self, ref: ResourceRef, wanted: float | None) -> float | None:
        """Return when a reconciled resource comes again: as its plan wants, but no more than all can."""
        if await self._store.get(ref) is None:
            self._polled.discard(ref)
            return None
        if wanted == 0:
            return 0.0
        pace = self._pace
        resync = max(pace.resync_seconds, await self._store.count() / pace.resyncs_per_second)
        if wanted is None:
            self._polled.discard(ref)
            return resync
        self._polled.add(ref)
        return min(max(wanted, pace.shortest_poll_seconds, len(self._polled) / pace.per_second), resync)

    def _after_failure(self, ref: ResourceRef) -> float:
        self._failures[ref] = self._failures.get(ref, 0) + 1
        return float(min(2 ** min(self._failures[ref] - 1, 10), self._pace.longest_pause_seconds))
