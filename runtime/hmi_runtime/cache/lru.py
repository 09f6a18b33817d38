"""Which entries a tier holds and which go first: least recently used, but never one that is pinned or in use.

Pure bookkeeping over keys and sizes; the tiers own the bytes. Not thread-safe: a tier holds its lock.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from hmi_runtime.cache.budget import Budget

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
