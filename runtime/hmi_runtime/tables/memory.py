"""The memory that a runtime's tables share: each gets a part of the budget by how much it is looked up."""

import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hmi_api.errors import NotReady
from hmi_runtime.tables.misses import RecentWindows
from hmi_runtime.tables.tiers import TableEvents, TieredTable

_LEAST_PART = 4
"""A table that nobody looks up keeps a fourth of what it would have if all got the same."""
_RECENT_PART = 8
"""The caches of computed windows may have an eighth of the budget together."""
_LARGEST_RECENT = 32 << 20  # bytes of one of them
_LEAST_GROWTH = 4
"""A cache is emptied when it is made larger, so one grows only if it may have this many times as much."""
_LOOKUPS_BETWEEN = 100_000
_LEAST_CHANGE = 0.05  # of the budget; smaller changes of shares are not worth moving rows


@dataclass(frozen=True, slots=True)
class Demand:
    """What one table could use: bytes for all its rows, how much it is looked up, whether it is pinned."""

    wanted: int
    lookups: float
    pinned: bool = False


def share_budget(demands: Sequence[Demand], available: int) -> list[int]:
    """Return the bytes of each table: together at most ``available``, each at most what it wants.

    Every table gets a least part first, then pinned tables all that they want, in their order. What is left
    is divided in proportion to lookups; what a table does not need of its part is divided again.
    """
    available = max(0, available)
    least = available // (_LEAST_PART * max(1, len(demands)))
    shares = [min(demand.wanted, least) for demand in demands]
    left = available - sum(shares)
    for number, demand in enumerate(demands):
        if demand.pinned:
            more = min(demand.wanted - shares[number], left)
            shares[number] += more
            left -= more
    needy = [number for number, demand in enumerate(demands) if shares[number] < demand.wanted]
    while needy and left >= len(needy):
        total = sum(demands[number].lookups + 1 for number in needy)
        parts = {number: int(left * (demands[number].lookups + 1) / total) for number in needy}
        full = [number for number in needy if shares[number] + parts[number] >= demands[number].wanted]
        for number in full or needy:
            more = min(demands[number].wanted - shares[number], parts[number], left)
            shares[number] += more
            left -= more
        if not full:
            break
        needy = [number for number in needy if number not in full]
    return shares


class TableMemory:
    """The budgets for tables and layers of one runtime. Thread-safe.

    Layers and the indexes of tables are in memory as a whole and must fit. Caches of computed windows get a
    small part of the rest, the same for each; rows take what is left, and those that do not fit stay on the
    local disk. Tables and caches are held weakly: one that nobody uses frees its part at the next
    ``rebalance``.
    """

    def __init__(
        self,
        budget: int,
        *,
        device: torch.device | None = None,
        device_budget: int = 0,
        events: TableEvents | None = None,
    ) -> None:
        """Share ``budget`` bytes of host memory, and ``device_budget`` of ``device`` if that is a GPU."""
        self._budget = budget
        self._device = device or torch.device("cpu")
        self._device_budget = device_budget if self._device.type == "cuda" else 0
        self._events = events
        self._reserved: Counter[str] = Counter()
        self._tables: list[weakref.ref[TieredTable]] = []
        self._recent: weakref.WeakSet[RecentWindows] = weakref.WeakSet()
        self._lookups: weakref.WeakKeyDictionary[TieredTable, float] = weakref.WeakKeyDictionary()
        self._shared_among: set[int] = set()
        self._pins_changed = False
        # Re-entrant, because a finalizer may call release on a thread that holds this lock. No table's lock
        # is taken while it is held.
        self._guard = threading.RLock()
        self._sharing = threading.Lock()

    @property
    def budget(self) -> int:
        """Bytes of host memory for tables and layers."""
        return self._budget

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory in use."""
        with self._guard:
            fixed = self._fixed_bytes() + sum(one.held_bytes for one in self._recent)
        return fixed + sum(table.held_bytes[0] for table in self._live())

    @property
    def device_bytes(self) -> int:
        """Bytes of rows in the device's memory."""
        return sum(table.held_bytes[1] for table in self._live())

    def reserve(self, key: str, size: int) -> None:
        """Take ``size`` bytes for what is in memory as a whole; raise ``NotReady`` TableBudgetFull."""
        with self._guard:
            self._check_room(size, key)
            self._reserved[key] += size
        try:
            self.rebalance(changed=True)
        except BaseException:
            self.release(key, size)
            raise

    def release(self, key: str, size: int) -> None:
        """Give back what ``reserve`` took, for the next ``rebalance``; a finalizer may call it.

        Layers may be loaded again before the finalizer of unloaded ones has run: each gives back its own.
        """
        with self._guard:
            self._reserved[key] -= size
            if self._reserved[key] <= 0:
                del self._reserved[key]

    def open(self, folder: Path) -> TieredTable:
        """Open the table in ``folder`` and give it a share.

        Raises ``Damaged`` TableInvalid, and ``NotReady`` TableBudgetFull if not even its index fits.
        """
        most = max(self._budget, self._device_budget)
        table = TieredTable(folder, most_bytes=most, device=self._device, events=self._events)
        with self._guard:
            self._check_room(table.fixed_bytes, "the table's index")
            self._tables.append(weakref.ref(table))
            self._lookups[table] = 0.0
        self.rebalance(changed=True)
        return table

    def share_with(self, recent: RecentWindows) -> None:
        """Give a cache of computed windows its part, and change it when others come or go."""
        with self._guard:
            self._recent.add(recent)
        self.rebalance(changed=True)

    def pin(self, tables: Sequence[TieredTable], by: int) -> None:
        """Count ``by`` more (or fewer) users that want ``tables`` in memory, for the next ``rebalance``."""
        with self._guard:
            for table in tables:
                table.pins += by
            self._pins_changed |= bool(tables)

    def rebalance(self, *, changed: bool = False) -> None:
        """Divide the budget again if tables came or went, or were looked up often enough since the last time.

        May read and copy many rows; lookups continue meanwhile. Call it now and then, on a thread that may
        wait.
        """
        with self._sharing:
            tables = self._live()
            counted = [table.take_lookups() for table in tables]
            changed = changed or {id(table) for table in tables} != self._shared_among
            growing, recent_size, recent_bytes = self._shrink_recent()
            changed |= bool(growing)
            with self._guard:
                changed |= self._pins_changed
                self._pins_changed = False
                for table, lookups in zip(tables, counted, strict=True):
                    self._lookups[table] = self._lookups.get(table, 0.0) + lookups
                seen = [self._lookups[table] for table in tables]
                if not changed and sum(seen) < _LOOKUPS_BETWEEN:
                    return
                available = self._budget - self._fixed_bytes() - recent_bytes
            demands = [
                Demand(table.entries * table.row_bytes, lookups, table.pins > 0)
                for table, lookups in zip(tables, seen, strict=True)
            ]
            host = share_budget(demands, available)
            held = [table.share for table in tables]
            least = _LEAST_CHANGE * self._budget
            if changed or any(abs(new - old) > least for new, (old, _) in zip(host, held, strict=True)):
                device = share_budget(demands, self._device_budget)
                self._set_shares(tables, host, device)
            for recent in growing:
                recent.resize(recent_size)
            with self._guard:
                for table, weight in zip(tables, seen, strict=True):
                    self._lookups[table] = weight / 2  # so that what was long ago counts less
            self._shared_among = {id(table) for table in tables}

    def _shrink_recent(self) -> tuple[list[RecentWindows], int, int]:
        """Make caches smaller that have too much.

        Return those that may have much more, how many bytes each may have, and the bytes of all then.
        """
        with self._guard:
            caches = list(self._recent)
            room = max(0, min(self._budget // _RECENT_PART, self._budget - self._fixed_bytes()))
        size = min(_LARGEST_RECENT, room // max(1, len(caches)))
        size = 1 << (size.bit_length() - 1) if size else 0  # so that one more seldom changes all
        for one in caches:
            if one.capacity_bytes > size:
                one.resize(size)
        growing = [one for one in caches if size >= max(1, _LEAST_GROWTH * one.capacity_bytes)]
        more = sum(one.bytes_of(size) - one.held_bytes for one in growing)
        return growing, size, more + sum(one.held_bytes for one in caches)

    @staticmethod
    def _set_shares(tables: Sequence[TieredTable], host: Sequence[int], device: Sequence[int]) -> None:
        """Set all shares; what becomes smaller first, so that both budgets are kept meanwhile."""
        wanted = list(zip(tables, host, device, strict=True))
        ready = set()
        for number, (table, on_host, on_device) in enumerate(wanted):
            smaller = min(on_host, table.share[0]), min(on_device, table.share[1])
            if smaller != table.share:
                table.set_share(*smaller)
                if smaller == (on_host, on_device):
                    ready.add(number)
        for number, (table, on_host, on_device) in enumerate(wanted):
            if number not in ready:
                table.set_share(on_host, on_device)

    def _live(self) -> list[TieredTable]:
        with self._guard:
            found = [table for reference in self._tables if (table := reference()) is not None]
            self._tables = [weakref.ref(table) for table in found]
            return found

    def _fixed_bytes(self) -> int:
        return sum(self._reserved.values()) + sum(table.fixed_bytes for table in self._live())

    def _check_room(self, size: int, what: str) -> None:
        used = self._fixed_bytes()
        if used + size > self._budget:
            raise NotReady(
                "TableBudgetFull",
                f"{what} takes {size} bytes; layers and indexes have {used} of {self._budget} already. Raise "
                "HMI_TABLE_BUDGET, or place the Domain on another runtime.",
            )
