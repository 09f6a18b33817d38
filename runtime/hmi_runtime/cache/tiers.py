"""Bookkeeping that the cache's tiers share: budgets, least-recently-used order, slot assignment, events.

An entry that is pinned or in use is never evicted. Keys and sizes only; the tiers own the bytes. The
indexes are not thread-safe: a tier holds its own lock.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar


class Tier(StrEnum):
    """Where bytes rest, nearest to compute first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    STORE = "store"


class CacheEvents(Protocol):
    """Receives what happens in the tiers; called from any thread, so it must be quick and thread-safe."""

    def loaded(self, tier: Tier, seconds: float, *, failed: bool) -> None:
        """An adapter was brought to ``tier``, or could not be."""

    def hit(self, tier: Tier) -> None:
        """An adapter was asked for and found in ``tier``."""

    def evicted(self, source: Tier, target: Tier) -> None:
        """An adapter had to leave ``source`` and now rests in ``target``."""


class Unobserved:
    """Counts nothing: for programs that use a cache without metrics."""

    def loaded(self, tier: Tier, seconds: float, *, failed: bool) -> None:
        """Ignore a load."""

    def hit(self, tier: Tier) -> None:
        """Ignore a hit."""

    def evicted(self, source: Tier, target: Tier) -> None:
        """Ignore an eviction."""


class OverBudget(ValueError):
    """More was taken than the budget allows; whoever took it did not ask ``fits`` first."""


@dataclass
class Budget:
    """``limit`` units (bytes, or slots) of which ``used`` are taken; ``0 <= used <= limit`` always."""

    limit: int
    used: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"a budget cannot be negative: {self.limit}")

    @property
    def free(self) -> int:
        """Units that are still to be had."""
        return self.limit - self.used

    def fits(self, amount: int) -> bool:
        """Return whether ``amount`` more can be taken."""
        return amount <= self.free

    def take(self, amount: int) -> None:
        """Take ``amount``; ``OverBudget`` when it does not fit."""
        if not self.fits(amount):
            raise OverBudget(f"{amount} wanted, {self.free} of {self.limit} free")
        self.used += amount

    def give_back(self, amount: int) -> None:
        """Return ``amount`` that was taken before."""
        if amount > self.used:
            raise OverBudget(f"{amount} given back, but only {self.used} were taken")
        self.used -= amount


Key = TypeVar("Key", bound=Hashable)


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

    ``pin_limit`` bounds what pins may hold, so that they cannot starve everything else.
    """

    def __init__(self, limit: int, *, pin_limit: int | None = None) -> None:
        self._budget = Budget(limit)
        self._pins = Budget(limit if pin_limit is None else pin_limit)
        self._idle = 0
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()  # oldest first

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Key]:
        """Yield keys, least recently used first."""
        return iter(self._entries)

    @property
    def limit(self) -> int:
        """Size of the budget."""
        return self._budget.limit

    @property
    def used(self) -> int:
        """Sum of the sizes held."""
        return self._budget.used

    def size(self, key: Key) -> int:
        """Return the size of an entry; ``KeyError`` when it is not here."""
        return self._entries[key].size

    def uses(self, key: Key) -> int:
        """Return how many hold an entry; ``KeyError`` when it is not here."""
        return self._entries[key].uses

    def pinned(self, key: Key) -> bool:
        """Return whether an entry is pinned; ``KeyError`` when it is not here."""
        return self._entries[key].pinned

    def touch(self, key: Key) -> None:
        """Make an entry the most recently used."""
        self._entries.move_to_end(key)

    def has_room(self, size: int) -> bool:
        """Return whether ``size`` fits once idle entries are evicted."""
        return size <= self._budget.free + self._idle

    def ever_fits(self, size: int) -> bool:
        """Return whether ``size`` would fit if nothing were in use (pins stay)."""
        return size <= self._budget.limit - self._pins.used

    def evict_for(self, size: int) -> list[Key]:
        """Evict the least recently used idle entries until ``size`` fits; return them, oldest first.

        ``OverBudget`` (from ``add``) follows when ``has_room`` was False: ask it first.
        """
        evicted = []
        if not self._budget.fits(size) and self.has_room(size):
            for key, entry in self._entries.items():
                if entry.idle:
                    evicted.append(key)
                    size -= entry.size
                    if self._budget.fits(size):
                        break
        for key in evicted:
            self.remove(key)
        return evicted

    def add(self, key: Key, size: int) -> list[Key]:
        """Put in a new entry as the most recently used and return what had to go for it.

        Raises ``KeyError`` when it is here already and ``OverBudget`` when ``has_room`` is False.
        """
        if key in self._entries:
            raise KeyError(f"{key!r} is already held")
        evicted = self.evict_for(size)
        self._budget.take(size)
        self._entries[key] = _Entry(size)
        self._idle += size
        return evicted

    def remove(self, key: Key) -> None:
        """Take an idle or pinned entry out; ``ValueError`` when it is in use, ``KeyError`` when absent."""
        entry = self._entries[key]
        if entry.uses:
            raise ValueError(f"{key!r} is in use")
        self.unpin(key)
        self._idle -= entry.size
        self._budget.give_back(entry.size)
        del self._entries[key]

    def hold(self, key: Key) -> None:
        """Count one more use, which keeps the entry from eviction, and touch it."""
        entry = self._entries[key]
        if entry.idle:
            self._idle -= entry.size
        entry.uses += 1
        self.touch(key)

    def release(self, key: Key) -> None:
        """Count one use less; ``ValueError`` when nobody holds it."""
        entry = self._entries[key]
        if entry.uses == 0:
            raise ValueError(f"{key!r} is not in use")
        entry.uses -= 1
        if entry.idle:
            self._idle += entry.size

    def pin(self, key: Key) -> bool:
        """Keep an entry from eviction until it is unpinned; False when pins already hold their share."""
        entry = self._entries[key]
        if not entry.pinned and self._pins.fits(entry.size):
            self._pins.take(entry.size)
            if entry.idle:
                self._idle -= entry.size
            entry.pinned = True
        return entry.pinned

    def unpin(self, key: Key) -> None:
        """Make a pinned entry an ordinary one; nothing happens to one that is not pinned."""
        entry = self._entries[key]
        if entry.pinned:
            self._pins.give_back(entry.size)
            entry.pinned = False
            if entry.idle:
                self._idle += entry.size


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
