"""The waiting room in front of an engine: items go in from any thread, batches come out to one."""

import threading
import time
from collections.abc import Callable
from typing import Generic

from hmi_runtime.pipeline.batches import BatchLimits, BatchQueue, I


class Batcher(Generic[I]):
    """Continuous micro-batching with a latency bound.

    A batch is formed as soon as its taker is free and either ``max_rows`` are waiting or the first of those
    waiting has waited ``max_wait`` seconds; what arrives meanwhile rides in the next one.
    """

    def __init__(
        self, limits: BatchLimits, max_wait: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._max_wait = max_wait
        self._clock = clock
        self._queue: BatchQueue[I] = BatchQueue(limits)
        self._waiting_since: float | None = None
        self._closed = False
        self._changed = threading.Condition()

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return self._queue.rows

    def put(self, item: I) -> None:
        """Queue an item."""
        with self._changed:
            if self._waiting_since is None:
                self._waiting_since = self._clock()
            self._queue.push(item)
            self._changed.notify()

    def take(self) -> list[I] | None:
        """Return the next batch, waiting for it; None once closed and empty."""
        with self._changed:
            while not self._due():
                if self._closed and self._queue.rows == 0:
                    return None
                self._changed.wait(self._patience())
            batch = self._queue.form()
            # What is left was there when this batch was formed: it has waited, and goes next without more.
            self._waiting_since = self._waiting_since if self._queue.rows else None
            return batch

    def close(self) -> None:
        """Hand out what is queued, then None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _due(self) -> bool:
        if self._queue.rows == 0:
            return False
        return self._closed or self._queue.rows >= self._limits.max_rows or self._patience() == 0

    def _patience(self) -> float | None:
        """Seconds until what waits must go; None when nothing waits."""
        if self._waiting_since is None:
            return None
        return max(0.0, self._waiting_since + self._max_wait - self._clock())
