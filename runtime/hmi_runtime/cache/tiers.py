"""Bookkeeping that the cache's tiers share: budgets, least-recently-used order, slot assignment, events.

An entry that is pinned or in use is never evicted. Keys and sizes only; the tiers own the bytes. The
indexes are not thread-safe: each tier has its own lock.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Tier(StrEnum):
    """A level of the cache, nearest to compute first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STORE = "store"


class CacheEvents:
    """Callbacks of the tiers, from which the server makes metrics; these do nothing.

    Called from any thread: be quick and thread-safe.
    """

    def loaded(self, tier: Tier, seconds: float, *, failed: bool) -> None:
        """An adapter was loaded into ``tier``, or the load failed."""

    def hit(self, tier: Tier) -> None:
        """An adapter was acquired and already in ``tier``."""

    def evicted(self, source: Tier, target: Tier) -> None:
        """An adapter was evicted from ``source`` and is now in ``target``."""


class OverBudget(ValueError):
    """More was reserved than is free, or released than was reserved."""


@dataclass
class Budget:
    """``limit`` units (bytes, or slots) of which ``used`` are reserved; ``0 <= used <= limit`` always."""

    limit: int
    used: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"a budget cannot be negative: {self.limit}")

    @property
    def free(self) -> int:
        """Units that are not reserved."""
        return self.limit - self.used

    def fits(self, amount: int) -> bool:
        """Return whether ``amount`` more can be reserved."""
        return amount <= self.free

    def reserve(self, amount: int) -> None:
        """Reserve ``amount``; raise ``OverBudget`` when it does not fit."""
        if not self.fits(amount):
            raise OverBudget(f"{amount} requested, {self.free} of {self.limit} free")
        self.used += amount

    def release(self, amount: int) -> None:
        """Release ``amount`` that was reserved before."""
        if amount > self.used:
            raise OverBudget(f"{amount} released, but only {self.used} were reserved")
        self.used -= amount


@dataclass(slots=True)
class _Entry:
    size: int
    uses: int = 0
    pinned: bool = False

    @property
    def idle(self) -> bool:
        return self.uses == 0 and not self.pinned


class LruIndex(Generic[Key]):
    """Keys with sizes under a budget, in order of last use.

    ``pin_limit`` bounds the total size of pinned entries, so that they cannot starve the others.
    """

    def __init__(self, limit: int, *, pin_limit: int | None = None) -> None:
        self._budget = Budget(limit)
        self._pins = Budget(limit if pin_limit is None else pin_limit)
        self._idle = 0
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # oldest first

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        """Yield keys, least recently used first."""
        return iter(self._entries)

    @property
    def limit(self) -> int:
        """Size of the budget."""
        return self._budget.limit

    @property
    def used(self) -> int:
        """Sum of the entries' sizes."""
        return self._budget.used

    def size(self, key: Key) -> int:
        """Return the size of an entry; ``KeyError`` if there is none."""
        return self._entries[key].size

    def uses(self, key: Key) -> int:
        """Return an entry's number of uses; ``KeyError`` if there is none."""
        return self._entries[key].uses

    def has_room(self, size: int) -> bool:
        """Return whether ``size`` fits once idle entries are evicted."""
        return size <= self._budget.free + self._idle

    def ever_fits(self, size: int) -> bool:
        """Return whether ``size`` would fit if nothing were in use (pins stay)."""
        return size <= self._budget.limit - self._pins.used

    def add(self, key: Key, size: int) -> list[Key]:
        """Add an entry as the most recently used.

        Evict the least recently used idle entries until it fits, and return their keys, oldest first. Raises
        ``KeyError`` if the key is already in the index, and ``OverBudget`` if ``has_room`` is False.
        """
        if key in self._entries:
            raise KeyError(f"{key!r} is already in the index")
        evicted: list[Key] = []
        if self.has_room(size):
            missing = size - self._budget.free
            idle = ((other, entry.size) for other, entry in self._entries.items() if entry.idle)
            while missing > 0:
                other, freed = next(idle)
                evicted.append(other)
                missing -= freed
        for other in evicted:
            self.remove(other)
        self._budget.reserve(size)
        self._entries[key] = _Entry(size)
        self._idle += size
        return evicted

    def remove(self, key: Key) -> None:
        """Remove an idle or pinned entry; ``ValueError`` when it is in use, ``KeyError`` when absent."""
        entry = self._entries[key]
        if entry.uses:
            raise ValueError(f"{key!r} is in use")
        self.unpin(key)
        self._idle -= entry.size
        self._budget.release(entry.size)
        del self._entries[key]

    def acquire(self, key: Key) -> None:
        """Count one more use, which protects the entry from eviction, and make it the most recently used."""
        entry = self._entries[key]
        if entry.idle:
            self._idle -= entry.size
        entry.uses += 1
        self._entries.move_to_end(key)

    def release(self, key: Key) -> None:
        """Count one use less; ``ValueError`` when it is not in use."""
        entry = self._entries[key]
        if entry.uses == 0:
            raise ValueError(f"{key!r} is not in use")
        entry.uses -= 1
        if entry.idle:
            self._idle += entry.size

    def pin(self, key: Key) -> bool:
        """Protect an entry from eviction until it is unpinned; False when ``pin_limit`` leaves no room."""
        entry = self._entries[key]
        if not entry.pinned and self._pins.fits(entry.size):
            self._pins.reserve(entry.size)
            if entry.idle:
                self._idle -= entry.size
            entry.pinned = True
        return entry.pinned

    def unpin(self, key: Key) -> None:
        """Make a pinned entry evictable again; no effect on one that is not pinned."""
        entry = self._entries[key]
        if entry.pinned:
            self._pins.release(entry.size)
            entry.pinned = False
            if entry.idle:
                self._idle += entry.size


@dataclass(frozen=True, slots=True)
class SlotAssignment(Generic[Key]):
    """The slot of a key. ``is_new``: the slot must be written first. ``evicted``: the key that had it."""

    slot: int
    is_new: bool
    evicted: Key | None = None


class SlotIndex(Generic[Key]):
    """A fixed number of slots with least-recently-used eviction; pinned keys use at most half of them."""

    def __init__(self, slots: int) -> None:
        self._lru: LruIndex[Key] = LruIndex(slots, pin_limit=slots // 2)
        self._slot: dict[Key, int] = {}
        self._free = list(range(slots - 1, -1, -1))

    def __contains__(self, key: Key) -> bool:
        return key in self._slot

    def __iter__(self) -> Iterator[Key]:
        return iter(self._slot)

    @property
    def limit(self) -> int:
        """Number of slots."""
        return self._lru.limit

    @property
    def max_at_once(self) -> int:
        """Number of different keys that can always have slots at once, whatever is pinned."""
        return max(1, self._lru.limit - self._lru.limit // 2)

    def assign(self, key: Key, *, pinned: bool = False) -> SlotAssignment[Key] | None:
        """Assign a slot to ``key`` and count one use of it; None while every slot is in use."""
        if key in self._slot:
            self._lru.acquire(key)
            return SlotAssignment(self._slot[key], is_new=False)
        if not self._lru.has_room(1):
            return None
        evicted = self._lru.add(key, 1)
        for gone in evicted:
            self._free.append(self._slot.pop(gone))
        slot = self._free.pop()
        self._slot[key] = slot
        self._lru.acquire(key)
        if pinned:
            self._lru.pin(key)
        return SlotAssignment(slot, is_new=True, evicted=evicted[0] if evicted else None)

    def release(self, key: Key) -> None:
        """Count one use less; the key keeps its slot until another needs it."""
        self._lru.release(key)

    def free(self, key: Key) -> None:
        """Free a key's slot; ``ValueError`` while it is in use, ``KeyError`` when it has none."""
        self._lru.remove(key)
        self._free.append(self._slot.pop(key))
