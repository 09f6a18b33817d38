"""A queue that is fair between tenants: whoever has been served the fewest tokens goes next.

Start-time fair queueing (Goyal et al., SIGCOMM 1996) over tenants, with every tenant's items kept by length
bucket so that a batch can be filled with items of like length. Pure and not thread-safe.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    """One tenant's items by bucket, each with its number in order of arrival and its cost."""

    served: float
    buckets: dict[int, deque[tuple[int, float, T]]] = field(default_factory=dict)

    def oldest_bucket(self) -> int:
        return min(self.buckets, key=lambda bucket: self.buckets[bucket][0][0])


class FairQueue(Generic[T]):
    """Items of many tenants; no tenant's flood keeps another's item from its turn."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane[T]] = {}
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
        self._arrivals += 1
        self._length += 1

    def lead(self) -> int | None:
        """Return the bucket of the item whose turn it is: the least served tenant's oldest."""
        if not self._lanes:
            return None
        return min(self._lanes.values(), key=lambda lane: lane.served).oldest_bucket()

    def take(self, bucket: int, accept: Callable[[T], bool]) -> list[T]:
        """Take items of ``bucket`` in fair order for as long as ``accept`` says yes to the next one."""
        taken: list[T] = []
        lanes = {tenant: lane for tenant, lane in self._lanes.items() if bucket in lane.buckets}
        while lanes:
            tenant = min(lanes, key=lambda name: lanes[name].served)
            lane = lanes[tenant]
            queue = lane.buckets[bucket]
            _, cost, item = queue[0]
            if not accept(item):
                break
            queue.popleft()
            self._length -= 1
            self._clock = max(self._clock, lane.served)
            lane.served += cost
            taken.append(item)
            if not queue:
                del lane.buckets[bucket], lanes[tenant]
            if not lane.buckets:
                del self._lanes[tenant]
        return taken
