"""A table in tiers: rows that are looked up often are in memory, the others are read from the local disk.

Rows on disk are in the order of the corpus's frequency, so the first rows are the first to be in memory.
After that a row that was read replaces one in memory that was looked up less often lately. Every tier has the
same bytes, so results do not depend on where a row was found; ``PlotTable.gather`` is the reference, and
``tests/runtime/tables/test_table_tiers.py`` compares the two.
"""

import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmi_runtime.cache.tiers import Tier
from hmi_runtime.tables.index import HashIndex
from hmi_runtime.tables.row_storage import MAP_BYTES, RowCounts, RowFile, Rows, RowTier
from hmi_runtime.tables.table import TABLE_FILE, PlotTable, decode

_AGE_AFTER = 10  # times the rows in memory: TinyLFU's sample size


class TableEvents:
    """Callbacks of tables, from which the server makes metrics; these do nothing.

    Called once for each gather, from any thread: be quick and thread-safe.
    """

    def rows_found(self, tier: Tier, rows: int) -> None:
        """``rows`` windows were found in ``tier``, repeats included."""

    def bytes_read(self, count: int) -> None:
        """``count`` bytes of rows were read from the local disk, or from the page cache in front of it."""

    def rows_admitted(self, tier: Tier, rows: int) -> None:
        """``rows`` rows were copied to ``tier`` because they are looked up often."""


class TieredTable:
    """A table that is in memory as far as its share of the budget goes. Thread-safe.

    A table whose share is all of it is the memory-mapped file, as ``PlotTable`` is. The index is always in
    memory. A GPU has a tier of its own above host memory, and ``gather`` returns tensors there.
    """

    def __init__(
        self, folder: Path, *, most_bytes: int, device: torch.device, events: TableEvents | None = None
    ) -> None:
        """Open the table in ``folder``, with none of its rows in memory.

        Its shares of host and device memory will each be at most ``most_bytes``. Raises ``Damaged``
        TableInvalid.
        """
        mapped = PlotTable.load(folder)
        index = HashIndex(mapped.index.slots.clone(), mapped.index.rows.clone(), mapped.index.probes)
        self.whole = mapped
        self.pins = 0
        """How many adapters that are pinned use this table; its owner locks."""
        self.share = (0, 0)
        """Bytes of host and device memory that ``set_share`` set last."""
        self._index = index
        self._scales = None if mapped.scales is None else mapped.scales.clone()  # (E, 3)
        self._device = device
        self._events = events or TableEvents()
        self._file = RowFile(folder / TABLE_FILE, 3 * mapped.width * mapped.values.itemsize)
        self._most = max(0, min(mapped.entries, most_bytes // (self._file.row_bytes + MAP_BYTES)))
        self._on_host: RowTier | None = None  # None: the whole table is mapped
        self._on_device: RowTier | None = None
        self._counts: RowCounts | None = None
        self._lookups = 0
        self._lock = threading.Lock()
        self._sizing = threading.Lock()

    # --- what a lookup uses -------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """Number of windows."""
        return self.whole.entries

    @property
    def layers_digest(self) -> str:
        """Digest of the layers that made it."""
        return self.whole.layers_digest

    def find(self, keys: Tensor) -> Tensor:
        """Return the row (N,) int64 of each key (N,) int64, -1 for a miss."""
        return self._index.find(keys)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the outputs (N, 3, D) float32 of ``rows`` (N,) int64; of row -1 arbitrary ones.

        May wait for the disk: call it while a batch is staged, not while it computes.
        """
        wanted = rows.numpy()
        with self._lock:
            found = int((wanted >= 0).sum())
            self._lookups += found
            on_host, on_device, counts = self._on_host, self._on_device, self._counts
            if counts is not None:
                counts.add(*np.unique(wanted[wanted >= 0], return_counts=True))
        if counts is None and self._device.type == "cpu":
            self._events.rows_found(Tier.HOST, found)
            return self.whole.gather(rows)
        if on_device is None or counts is None:
            values = self._from_host(wanted, on_host, counts).to(self._device, non_blocking=True)
        else:
            values = self._from_device(wanted, on_device, on_host, counts)
        return decode(values, self._scales, rows)

    def _from_device(self, wanted: Rows, device: RowTier, host: RowTier | None, counts: RowCounts) -> Tensor:
        """Return values (N, 3, D) as stored, on the device; rows that it lacks are copied from the host."""
        with self._lock:
            slots = device.slots(wanted)
            values = device.take(slots)
        rest = np.flatnonzero((slots < 0) & (wanted >= 0))
        self._events.rows_found(Tier.DEVICE, len(wanted) - len(rest) - int((wanted < 0).sum()))
        if not len(rest):
            return values
        copied = self._from_host(wanted[rest], host, counts).to(self._device, non_blocking=True)
        values.index_copy_(0, torch.from_numpy(rest).to(self._device), copied)
        distinct, places = np.unique(wanted[rest], return_index=True)
        self._admit(Tier.DEVICE, device, distinct, copied, places, counts)
        return values

    def _from_host(self, wanted: Rows, tier: RowTier | None, counts: RowCounts | None) -> Tensor:
        """Return values (N, 3, D) as stored, in host memory; rows that are not there are read from disk."""
        real = wanted >= 0
        if tier is None or counts is None:
            self._events.rows_found(Tier.HOST, int(real.sum()))
            return self._pinned(self.whole.values.index_select(0, torch.from_numpy(np.maximum(wanted, 0))))
        with self._lock:
            slots = tier.slots(wanted)
            values = tier.take(slots)
        missing = np.flatnonzero((slots < 0) & real)
        self._events.rows_found(Tier.HOST, int(real.sum()) - len(missing))
        if len(missing):
            self._events.rows_found(Tier.DISK, len(missing))
            absent, inverse = np.unique(wanted[missing], return_inverse=True)
            read = torch.from_numpy(self._file.read(absent)).view(values.dtype).view(-1, *values.shape[1:])
            self._events.bytes_read(read.nbytes)
            values.index_copy_(0, torch.from_numpy(missing), read.index_select(0, torch.from_numpy(inverse)))
            self._admit(Tier.HOST, tier, absent, read, np.arange(len(absent)), counts)
        return self._pinned(values)

    def _admit(
        self, name: Tier, tier: RowTier, rows: Rows, values: Tensor, places: Rows, counts: RowCounts
    ) -> None:
        """Offer ``rows`` (N,), which are ``values`` at ``places`` (N,), to a tier."""
        with self._lock:
            new = tier.slots(rows) < 0  # another thread may have admitted some meanwhile
            if not new.all():
                rows, places = rows[new], places[new]
            chosen = values.index_select(0, torch.from_numpy(places).to(values.device))
            admitted = tier.admit(rows, chosen, counts.of_row)
        if admitted:
            self._events.rows_admitted(name, admitted)

    def _pinned(self, values: Tensor) -> Tensor:
        """Return ``values`` in page-locked memory if a GPU is to copy them."""
        return values.pin_memory() if self._device.type == "cuda" else values

    # --- memory -------------------------------------------------------------------------------------

    @property
    def fixed_bytes(self) -> int:
        """Host memory that the table needs whatever its share: index, scales, a counter and a slot a row."""
        index = self._index.slots.nbytes + self._index.rows.nbytes
        scales = 0 if self._scales is None else self._scales.nbytes
        return index + scales + self.entries * 5

    @property
    def row_bytes(self) -> int:
        """Memory that one more row takes."""
        return self._file.row_bytes + MAP_BYTES

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Memory of rows on the host and on the device, in bytes; a mapped table counts as a whole."""
        with self._lock:
            host = self.entries if self._on_host is None else self._on_host.used
            device = 0 if self._on_device is None else self._on_device.used
        return host * self.row_bytes, device * self.row_bytes

    def take_lookups(self) -> int:
        """Return the number of rows found since the last call."""
        with self._lock:
            lookups, self._lookups = self._lookups, 0
        return lookups

    def set_share(self, host_bytes: int, device_bytes: int = 0) -> None:
        """Keep rows in at most ``host_bytes`` of host memory and ``device_bytes`` of the device's.

        Lookups continue meanwhile. The first share of a part reads its rows from the file.
        """
        with self._sizing:
            self.share = (host_bytes, device_bytes)
            host_rows = min(host_bytes // self.row_bytes, self.entries)
            device_rows = min(device_bytes // self.row_bytes, self._most)
            if host_rows == self.entries and not device_rows:
                with self._lock:
                    self._on_host = self._on_device = self._counts = None
                return
            sample = _AGE_AFTER * max(host_rows, device_rows, 1000)
            counts = self._counts or RowCounts(self.whole.counts, sample)
            host = None if host_rows == self.entries else self._resized(self._on_host, host_rows, counts)
            device = (
                self._resized(self._on_device, device_rows, counts, self._device) if device_rows else None
            )
            with self._lock:
                counts.sample = sample
                self._on_host, self._on_device, self._counts = host, device, counts

    def _resized(
        self, tier: RowTier | None, rows: int, counts: RowCounts, device: torch.device | None = None
    ) -> RowTier:
        """Return ``tier``, or a new one with the first rows, with room for ``rows``."""
        if tier is None:
            whole = self.whole
            device = device or torch.device("cpu")
            tier = RowTier(self.entries, self._most, whole.width, whole.values.dtype, device)
            tier.resize(rows, counts.of_row)
            tier.fill(self._file)
        else:
            with self._lock:
                tier.resize(rows, counts.of_row)
        return tier
