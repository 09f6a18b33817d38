"""A queue that is fair between tenants: whoever has been served the fewest tokens goes next.

Start-time fair queueing (Goyal et al., SIGCOMM 1996) over tenants, with every tenant's items kept by length
bucket so that a batch can be filled with items of like length. Pure and not thread-safe.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    """One tenant's items by bucket, each with its number in order of arrival and its cost."""

    served: float
    buckets: dict[int, deque[tuple[int, float, T]]] = field(default_factory=dict)

    def turn(self) -> tuple[float, int]:
        """Order in which lanes are served: fewest tokens first, then whose oldest item came first."""
        return self.served, min(items[0][0] for items in self.buckets.values())

    def oldest_bucket(self) -> int:
        """Return the bucket of the oldest item."""
        return min(self.buckets, key=lambda bucket: self.buckets[bucket][0][0])


class FairQueue(Generic[T]):
    """Items of many tenants; no tenant's flood keeps another's item from its turn."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane[T]] = {}
        self._tenants: dict[int, set[str]] = {}  # who has items in a bucket
        self._clock = 0.0
        self._arrivals = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, tenant: str, bucket: int, cost: float, item: T) -> None:
        """Queue an item; ``cost`` is what its tenant is charged when it is taken."""
        lane = self._lanes.get(tenant)
        if lane is None:  # a newcomer starts level with whoever is served now: no credit for idleness
            lane = self._lanes[tenant] = _Lane(self._clock)
        lane.buckets.setdefault(bucket, deque()).append((self._arrivals, cost, item))
        self._tenants.setdefault(bucket, set()).add(tenant)
        self._arrivals += 1
        self._length += 1

    def lead(self) -> int | None:
        """Return the bucket of the item whose turn it is: the least served tenant's oldest."""
        if not self._lanes:
            return None
        return min(self._lanes.values(), key=_Lane.turn).oldest_bucket()

    def buckets(self) -> list[int]:
        """Return the buckets that hold items."""
        return list(self._tenants)

    def take(self, bucket: int, accept: Callable[[T], bool]) -> list[T]:
        """Take items of ``bucket`` in fair order for as long as ``accept`` says yes to the next one."""
        taken: list[T] = []
        turns = [(*self._lanes[tenant].turn(), tenant) for tenant in self._tenants.get(bucket, ())]
        heapify(turns)
        while turns:
            _, _, tenant = heappop(turns)
            lane = self._lanes[tenant]
            _, cost, item = lane.buckets[bucket][0]
            if not accept(item):
                break
            lane.buckets[bucket].popleft()
            self._clock = max(self._clock, lane.served)
            lane.served += cost
            taken.append(item)
            if lane.buckets[bucket]:
                heappush(turns, (*lane.turn(), tenant))
            else:
                self._leave(tenant, bucket)
        self._length -= len(taken)
        return taken

    def _leave(self, tenant: str, bucket: int) -> None:
        """Forget that a tenant has items in a bucket, and the tenant when it has none at all."""
        lane = self._lanes[tenant]
        del lane.buckets[bucket]
        self._tenants[bucket].remove(tenant)
        if not self._tenants[bucket]:
            del self._tenants[bucket]
        if not lane.buckets:
            del self._lanes[tenant]
