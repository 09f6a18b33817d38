"""Where a tiered table's rows are: on the local disk and in memory, and how often each was looked up."""

import mmap
import os
import weakref
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.errors import Damaged
from hmi_runtime.tables.table import TABLE_FILE, values_offset

Rows = NDArray[np.int64]
_ANNOUNCED = 256  # reads the disk is told of at once; few enough to stay in memory until they are read
_READ_AT_ONCE = 8 << 20  # bytes, when a tier is filled
_COUNT_LIMIT = 255
_SLOTS_COMPARED = 4  # for each row that asks for a slot
MAP_BYTES = 8  # of a row that is in memory: its slot and the slot's row, int32 each


class RowFile:
    """The values of a table's file, by explicit reads in the order of the file. Thread-safe.

    A read is announced to the kernel before it is made, so that the disk works on many at once. Of the ways
    that docs/benchmarks.md compares it is the fastest, and takes the least processor time.
    """

    def __init__(self, path: Path, row_bytes: int) -> None:
        """Open ``path``, a table's file whose rows of values have ``row_bytes`` bytes."""
        self.row_bytes = row_bytes
        self._start = values_offset(path)
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """Return the bytes (N, row bytes) of different ``rows`` (N,), which are in rising order."""
        out = np.empty((len(rows), self.row_bytes), dtype=np.uint8)
        target = memoryview(out.reshape(-1).data)
        first = np.flatnonzero(
            np.diff(rows, prepend=-2) != 1
        )  # index of the first row of each run of neighbours
        lengths = np.diff(first, append=len(rows)) * self.row_bytes
        offsets = self._start + rows[first] * self.row_bytes
        place = 0
        for begin in range(0, len(first), _ANNOUNCED):
            runs = slice(begin, begin + _ANNOUNCED)
            spans = list(zip(offsets[runs].tolist(), lengths[runs].tolist(), strict=True))
            for offset, length in spans:
                os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)
            for offset, length in spans:
                self._read_into(target[place : place + length], offset)
                place += length
        return out

    def _read_into(self, target: memoryview, offset: int) -> None:
        done = 0
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], offset + done)
            if not count:
                raise Damaged(
                    "TableInvalid", f"{TABLE_FILE} has become shorter; build the Domain's table again."
                )
            done += count


class RowCounts:
    """How often each row was looked up lately: a byte a row, all halved from time to time.

    That is TinyLFU's aging (Einziger, Friedman and Manes, 2017). Rows are dense integers, so each has its own
    counter and no sketch is needed. Not thread-safe: its owner locks.
    """

    def __init__(self, corpus: Tensor, sample: int) -> None:
        """Start as if ``corpus`` (E,) int64 counts were half of ``sample`` lookups; age after ``sample``."""
        total = max(1, int(corpus.sum()))
        scaled = corpus.numpy() * (sample / 2 / total)
        self.of_row: NDArray[np.uint8] = np.minimum(scaled, _COUNT_LIMIT).astype(np.uint8)  # (E,)
        self.sample = sample
        self._added = sample // 2

    def add(self, rows: Rows, times: NDArray[np.int64]) -> None:
        """Count different ``rows`` (N,), each ``times`` (N,) times."""
        self.of_row[rows] = np.minimum(self.of_row[rows] + times, _COUNT_LIMIT).astype(np.uint8)
        self._added += int(times.sum())
        if self._added >= self.sample:
            self.of_row >>= 1
            self._added //= 2


class RowTier:
    """Rows of one table in the memory of one device, each in a slot. Not thread-safe: its owner locks."""

    def __init__(self, entries: int, most: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make an empty tier for a table of ``entries`` rows (3, ``width``), of at most ``most`` rows.

        Host memory is reserved in address space only, and taken page by page as slots are filled.
        """
        self.capacity = 0
        self.used = 0
        self._slot_of_row = np.full(entries, -1, dtype=np.int32)
        self._row_of_slot = np.empty(most, dtype=np.int32)
        self._shape = (3, width)
        self._device = device
        self._hand = 0
        self._map: mmap.mmap | None = None
        if device.type == "cpu":
            size = max(1, most) * 3 * width * dtype.itemsize
            self._map = mmap.mmap(-1, size)
            raw = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))
            self._values = raw.view(dtype).view(-1, *self._shape)
        else:
            self._values = torch.zeros(1, *self._shape, dtype=dtype, device=device)

    @property
    def row_bytes(self) -> int:
        """Bytes of the values of one row."""
        return self._values[0].numel() * self._values.itemsize

    def slots(self, rows: Rows) -> Rows:
        """Return the slot (N,) of each of ``rows`` (N,), -1 if it has none or is -1."""
        return np.where(rows >= 0, self._slot_of_row[rows], -1).astype(np.int64)

    def take(self, slots: Rows) -> Tensor:
        """Return the values (N, 3, D) in ``slots`` (N,), as stored; of slot -1 arbitrary ones."""
        return self._values.index_select(0, torch.from_numpy(np.maximum(slots, 0)).to(self._device))

    def admit(self, rows: Rows, values: Tensor, counts: NDArray[np.uint8]) -> int:
        """Put those of ``rows`` (N,) into slots that are free or whose rows have lower ``counts`` (E,).

        The rows are different and have no slot; ``values`` (N, 3, D) are theirs. The most counted of them
        are compared with the least counted in the next 4 x N slots after those of the last call. Return how
        many got a slot; ``admit_reference`` does the same row by row.
        """
        order = np.argsort(-counts[rows].astype(np.int16), kind="stable")
        free = min(self.capacity - self.used, len(rows))
        self._put(rows, values, order[:free], np.arange(self.used, self.used + free))
        self.used += free
        rest = order[free:]
        compared = min(self.used, _SLOTS_COMPARED * len(rest))
        if not compared:
            return free
        slots = (self._hand + np.arange(compared)) % self.used
        self._hand = int(slots[-1] + 1) % self.used
        held = counts[self._row_of_slot[slots]]
        least = np.argsort(held, kind="stable")[: len(rest)]
        rest = rest[: len(least)]
        better = counts[rows[rest]] > held[least]
        victims = slots[least[better]]
        self._slot_of_row[self._row_of_slot[victims]] = -1
        self._put(rows, values, rest[better], victims)
        return free + len(victims)

    def resize(self, capacity: int, counts: NDArray[np.uint8]) -> None:
        """Set the capacity; if it is less than before, keep the rows with high ``counts`` (E,)."""
        capacity = min(capacity, len(self._row_of_slot))
        if self._map is None:
            moved = self._values.new_zeros(max(1, capacity), *self._shape)
            kept = min(self.used, capacity)
            moved[:kept] = self._values[:kept]
        if self.used > capacity:
            tail = self._row_of_slot[capacity : self.used].astype(np.int64)
            values = self._values[capacity : self.used]
            self._slot_of_row[tail] = -1
            self.used = self.capacity = capacity
            if self._map is None:
                self._values = moved
            self.admit(tail, values, counts)
            self._free_memory(capacity)
        elif self._map is None:
            self._values = moved
        self.capacity = capacity
        self._hand = 0

    def fill(self, file: RowFile) -> None:
        """Read the first rows of ``file`` into an empty tier's slots, as many as there are."""
        count = min(self.capacity, len(self._slot_of_row))
        step = max(1, _READ_AT_ONCE // file.row_bytes)
        for start in range(0, count, step):
            rows = np.arange(start, min(start + step, count))
            read = torch.from_numpy(file.read(rows)).view(self._values.dtype).view(-1, *self._shape)
            self._values[start : start + len(rows)] = read.to(self._device)
        self._row_of_slot[:count] = self._slot_of_row[:count] = np.arange(count)
        self.used = count

    def _put(self, rows: Rows, values: Tensor, places: Rows, slots: Rows) -> None:
        if len(places):
            self._slot_of_row[rows[places]] = slots
            self._row_of_slot[slots] = rows[places]
            chosen = values.index_select(0, torch.from_numpy(places).to(values.device))
            self._values.index_copy_(0, torch.from_numpy(slots).to(self._device), chosen.to(self._device))

    def _free_memory(self, capacity: int) -> None:
        if self._map is not None:
            start = -(-max(1, capacity) * self.row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            if start < len(self._map):
                self._map.madvise(mmap.MADV_DONTNEED, start, len(self._map) - start)
