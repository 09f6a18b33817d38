"""The controller: workers that reconcile the resources of a work queue, on Kubernetes and on one machine."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hmi_api.errors import HmiError
from hmi_operator.ports import ResourceRef, ResourceStore
from hmi_operator.reconciler import ReconcileResult
from hmi_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

ReconcileListener = Callable[[ResourceRef, float, bool], None]
"""Called after each reconciliation with the resource, its duration in seconds and whether it succeeded."""


@dataclass(frozen=True)
class Pace:
    """How often resources are reconciled without an event.

    With so many resources that the polls would exceed ``per_second``, or the resyncs ``resyncs_per_second``,
    both become rarer: the load is bounded whatever the number of resources.
    """

    resync_seconds: float = 15.0
    resyncs_per_second: float = 5.0
    per_second: float = 20.0
    shortest_poll_seconds: float = 0.0
    longest_pause_seconds: float = 60.0
    """After failures; the pause doubles from one second."""


@dataclass(eq=False)
class Controller:
    """Reconciles each resource when it is enqueued, after the time that its plan gives, and periodically.

    Never reconciles one resource twice at the same time.
    """

    reconcile: Callable[[ResourceRef], Awaitable[ReconcileResult]]
    """Brings one resource a step nearer to its spec. Raises ``HmiError``."""
    store: ResourceStore
    workers: int = 4
    pace: Pace = Pace()
    on_reconciled: ReconcileListener = lambda ref, seconds, succeeded: None

    def __post_init__(self) -> None:
        self._queue = WorkQueue()
        self._failures: dict[ResourceRef, int] = {}
        self._polled: set[ResourceRef] = set()

    def enqueue(self, ref: ResourceRef) -> None:
        """Reconcile a resource soon; it may be gone."""
        self._queue.add(ref)

    @property
    def queue_length(self) -> int:
        """How many resources are queued."""
        return len(self._queue)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then finish what is in progress; if cancelled, drop it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self.workers):
                    tasks.create_task(self._work())
                await stop.wait()
                self._queue.shut_down()
        finally:
            self._queue.shut_down()

    async def _work(self) -> None:
        while (ref := await self._queue.get()) is not None:
            started = time.perf_counter()
            failures = self._failures.get(ref, 0)
            requeue_after = await self._reconcile(ref)
            succeeded = self._failures.get(ref, 0) <= failures
            self.on_reconciled(ref, time.perf_counter() - started, succeeded)
            self._queue.done(ref, requeue_after)

    async def _reconcile(self, ref: ResourceRef) -> float | None:
        """Reconcile one resource; return after how many seconds to requeue it, None if it is gone."""
        try:
            result = await self.reconcile(ref)
        except HmiError as error:
            logger.warning("%s: %s", ref, error)
            return self._backoff(ref)
        except Exception:
            # A fault in one resource must not stop the others.
            logger.exception("%s could not be reconciled", ref)
            return self._backoff(ref)
        self._failures.pop(ref, None)
        for other in result.enqueue:
            self._queue.add(other)
        return self._pause(ref, result.requeue_after, self.store.count())

    def _pause(self, ref: ResourceRef, wanted: float | None, count: int) -> float | None:
        """Return when to requeue a reconciled resource: as its plan says, within the pace."""
        if self.store.get(ref) is None:
            self._polled.discard(ref)
            return None
        if wanted == 0:
            return 0.0
        pace = self.pace
        resync = max(pace.resync_seconds, count / pace.resyncs_per_second)
        if wanted is None:
            self._polled.discard(ref)
            return resync
        self._polled.add(ref)
        return min(max(wanted, pace.shortest_poll_seconds, len(self._polled) / pace.per_second), resync)

    def _backoff(self, ref: ResourceRef) -> float:
        self._failures[ref] = self._failures.get(ref, 0) + 1
        return float(min(2 ** min(self._failures[ref] - 1, 10), self.pace.longest_pause_seconds))
