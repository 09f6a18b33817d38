"""Batch formation: fair between tenants, and with texts of similar length in one batch.

``FairQueue`` chooses the next tenant and ``BatchQueue`` fills a batch within its limits; neither is
thread-safe. ``Batcher`` adds threads and the longest wait.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

from hmi_runtime.models.packing import shape_size

_SMALL_BATCH_TOKENS = 256
"""Up to this many padded tokens a batch's time is its fixed overhead: padding costs nothing."""

T = TypeVar("T")


@dataclass(slots=True)
class _TenantQueue(Generic[T]):
    """One tenant's items by bucket, each with its arrival number and its cost."""

    served: float
    buckets: dict[int, deque[tuple[int, float, T]]] = field(default_factory=dict)

    def priority(self) -> tuple[float, int]:
        """Order between tenants: fewest tokens served, then oldest item."""
        return self.served, min(items[0][0] for items in self.buckets.values())

    def oldest_bucket(self) -> int:
        """Return the bucket of the oldest item."""
        return min(self.buckets, key=lambda bucket: self.buckets[bucket][0][0])


class FairQueue(Generic[T]):
    """A queue that serves the tenant with the fewest tokens so far, so that no tenant starves another.

    Start-time fair queueing (Goyal et al., SIGCOMM 1996) over tenants. Each tenant's items are kept by length
    bucket, so that a batch can be filled with items of similar length.
    """

    def __init__(self) -> None:
        self._queues: dict[str, _TenantQueue[T]] = {}
        self._tenants: dict[int, set[str]] = {}  # bucket -> tenants with items in it
        self._clock = 0.0
        self._arrivals = 0

    def push(self, tenant: str, bucket: int, cost: float, item: T) -> None:
        """Queue an item; its tenant is charged ``cost`` when it is taken."""
        queue = self._queues.get(tenant)
        if queue is None:  # starts with the current clock: idle time earns no credit
            queue = self._queues[tenant] = _TenantQueue(self._clock)
        queue.buckets.setdefault(bucket, deque()).append((self._arrivals, cost, item))
        self._tenants.setdefault(bucket, set()).add(tenant)
        self._arrivals += 1

    def next_bucket(self) -> int | None:
        """Return the bucket of the next item: the oldest one of the tenant that was served least."""
        if not self._queues:
            return None
        return min(self._queues.values(), key=_TenantQueue.priority).oldest_bucket()

    def buckets(self) -> list[int]:
        """Return the buckets that have items."""
        return list(self._tenants)

    def take(self, bucket: int, accept: Callable[[T], bool]) -> list[T]:
        """Remove and return items of ``bucket`` in fair order until ``accept`` returns False for the next."""
        taken: list[T] = []
        turns = [(*self._queues[tenant].priority(), tenant) for tenant in self._tenants.get(bucket, ())]
        heapify(turns)
        while turns:
            _, _, tenant = heappop(turns)
            queue = self._queues[tenant]
            _, cost, item = queue.buckets[bucket][0]
            if not accept(item):
                break
            queue.buckets[bucket].popleft()
            self._clock = max(self._clock, queue.served)
            queue.served += cost
            taken.append(item)
            if queue.buckets[bucket]:
                heappush(turns, (*queue.priority(), tenant))
            else:
                self._remove_bucket(tenant, bucket)
        return taken

    def _remove_bucket(self, tenant: str, bucket: int) -> None:
        queue = self._queues[tenant]
        del queue.buckets[bucket]
        self._tenants[bucket].remove(tenant)
        if not self._tenants[bucket]:
            del self._tenants[bucket]
        if not queue.buckets:
            del self._queues[tenant]


def bucket_of(length: int) -> int:
    """Return the length bucket of a text of ``length`` tokens; each doubling of the length has eight."""
    octave = max(length, 1).bit_length() - 1
    return 8 * octave + (8 * length >> octave) - 8


class Item(Protocol):
    """Rows of one text in the queue."""

    @property
    def tenant(self) -> str:
        """The tenant that is charged."""

    @property
    def length(self) -> int:
        """Tokens of the text."""

    @property
    def size(self) -> int:
        """Rows."""


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of one batch.

    ``max_tokens`` counts padded tokens: rows times the longest text, as they are computed (``shape_size``).
    ``max_padding`` is the largest share of them that may be padding.
    """

    max_rows: int = 32
    max_tokens: int = 8192
    max_padding: float = 0.15

    def have_room(self, rows: int, longest: int) -> bool:
        """Return whether a batch may have ``rows`` rows, the longest of ``longest`` tokens."""
        return rows <= self.max_rows and shape_size(rows) * shape_size(longest) <= self.max_tokens

    def most_rows(self, length: int) -> int:
        """Return how many rows of ``length`` tokens a batch may have, at least one."""
        rows = max(1, min(self.max_rows, self.max_tokens // shape_size(length)))
        while rows > 1 and not self.have_room(rows, length):
            rows -= 1
        return rows


@dataclass
class _BatchSize:
    """Size of a batch while it is filled."""

    limits: BatchLimits
    rows: int = 0
    tokens: int = 0
    longest: int = 0

    def add_if_fits(self, item: Item) -> bool:
        """Count ``item`` if it fits. The first item always fits, or it would wait forever."""
        rows = self.rows + item.size
        tokens = self.tokens + item.size * item.length
        longest = max(self.longest, item.length)
        padded = rows * longest
        if self.rows:
            if not self.limits.have_room(rows, longest):
                return False
            wasteful = padded - tokens > self.limits.max_padding * padded
            if wasteful and padded > _SMALL_BATCH_TOKENS:
                return False
        self.rows, self.tokens, self.longest = rows, tokens, longest
        return True


class BatchQueue(Generic[I]):
    """Queued items; ``take_batch`` removes the next batch."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._queue: FairQueue[I] = FairQueue()
        self._rows = 0

    @property
    def rows(self) -> int:
        """Rows that are queued."""
        return self._rows

    def push(self, item: I) -> None:
        """Queue an item."""
        self._queue.push(item.tenant, bucket_of(item.length), item.size * item.length, item)
        self._rows += item.size

    def take_batch(self) -> list[I]:
        """Remove and return the next batch: the next item's bucket first, then buckets of similar length."""
        first = self._queue.next_bucket()
        if first is None:
            return []
        size = _BatchSize(self._limits)
        batch: list[I] = []
        for bucket in sorted(self._queue.buckets(), key=lambda other: abs(other - first)):
            batch += self._queue.take(bucket, size.add_if_fits)
            if size.rows >= self._limits.max_rows:
                break
        self._rows -= sum(item.size for item in batch)
        return batch


class Batcher(Generic[I]):
    """The queue of an engine. Thread-safe: any thread puts items in, several take batches out.

    Continuous micro-batching with a latency bound. A batch is formed as soon as a thread is free and either
    ``max_rows`` are queued or the oldest item has waited ``max_wait`` seconds; later items go into the next
    batch.
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

    def put(self, item: I) -> None:
        """Queue an item."""
        with self._changed:
            if self._waiting_since is None:
                self._waiting_since = self._clock()
            self._queue.push(item)
            self._changed.notify()

    def take(self) -> list[I] | None:
        """Wait for the next batch and return it; None once closed and empty."""
        with self._changed:
            while not self._is_due():
                if self._closed and self._queue.rows == 0:
                    return None
                self._changed.wait(self._seconds_left())
            batch = self._queue.take_batch()
            # Items that are left have waited since before this batch, so the next one goes without a wait.
            self._waiting_since = self._waiting_since if self._queue.rows else None
            if self._queue.rows:
                self._changed.notify()
            return batch

    def close(self) -> None:
        """Let ``take`` return what is queued, then None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_due(self) -> bool:
        if self._queue.rows == 0:
            return False
        return self._closed or self._queue.rows >= self._limits.max_rows or self._seconds_left() == 0

    def _seconds_left(self) -> float | None:
        """Return the seconds until a batch is due; None when nothing is queued."""
        if self._waiting_since is None:
            return None
        return max(0.0, self._waiting_since + self._max_wait - self._clock())
