"""Which adapter stands in which device slot. Pure bookkeeping: the pool's tensors are written elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

from hmi_runtime.cache.lru import Key, LruIndex


@dataclass(frozen=True, slots=True)
class Placement(Generic[Key]):
    """Where a key stands. ``fresh``: the slot still has to be written. ``evicted``: who stood there."""

    slot: int
    fresh: bool
    evicted: Key | None = None


class SlotIndex(Generic[Key]):
    """A fixed number of slots, least recently used first to go; pins take at most half of them."""

    def __init__(self, slots: int) -> None:
        self._lru: LruIndex[Key] = LruIndex(slots, pin_limit=slots // 2)
        self._slot: dict[Key, int] = {}
        self._free = list(range(slots - 1, -1, -1))

    def __contains__(self, key: Key) -> bool:
        return key in self._slot

    def __len__(self) -> int:
        return len(self._slot)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._slot)

    @property
    def limit(self) -> int:
        """Slots there are."""
        return self._lru.limit

    @property
    def most_at_once(self) -> int:
        """Different keys that can always stand side by side, whatever is pinned."""
        return max(1, self._lru.limit - self._lru.limit // 2)

    def slot(self, key: Key) -> int:
        """Return a key's slot; ``KeyError`` when it has none."""
        return self._slot[key]

    def hold(self, key: Key, *, pinned: bool = False) -> Placement[Key] | None:
        """Give ``key`` a slot, count a use of it, and say where; None while every slot is in use."""
        if key in self._slot:
            self._lru.hold(key)
            return Placement(self._slot[key], fresh=False)
        if not self._lru.has_room(1):
            return None
        evicted = self._lru.add(key, 1)
        for gone in evicted:
            self._free.append(self._slot.pop(gone))
        slot = self._free.pop()
        self._slot[key] = slot
        self._lru.hold(key)
        if pinned:
            self._lru.pin(key)
        return Placement(slot, fresh=True, evicted=evicted[0] if evicted else None)

    def release(self, key: Key) -> None:
        """Count one use less; the key keeps its slot until another needs it."""
        self._lru.release(key)

    def drop(self, key: Key) -> None:
        """Free a key's slot; ``ValueError`` while it is in use, ``KeyError`` when it has none."""
        self._lru.remove(key)
        self._free.append(self._slot.pop(key))
