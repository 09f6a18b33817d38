"""A cache of computed windows, which are in no table."""

import threading

import torch
from torch import Tensor

from hmi_runtime.tables.index import HashIndex


class RecentWindows:
    """A bounded cache of computed windows: keys to outputs, float32. Thread-safe.

    Two generations approximate least-recently-used order: a hit moves an entry to the young generation, and
    when that is full the old one is cleared as a whole. Everything is an array operation; no window is an
    object.
    """

    def __init__(self, capacity_bytes: int, width: int, device: torch.device) -> None:
        """Reserve at most ``capacity_bytes`` for outputs of ``width`` D on ``device``."""
        self._width = width
        self._device = device
        self._lock = threading.RLock()
        self._reserve(capacity_bytes)

    def _reserve(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._room = capacity_bytes // self._pair_bytes  # rows of one generation
        self._indexes = [HashIndex.with_room(self._room) for _ in range(2)]
        self._values = torch.empty(2, self._room, 3, self._width, device=self._device)
        self._used = 0  # rows of the young generation
        self._young = 0

    @property
    def _pair_bytes(self) -> int:
        """Bytes of the outputs of one row of each generation."""
        return 2 * 3 * self._width * 4

    @property
    def capacity_bytes(self) -> int:
        """Bytes of outputs that it may hold."""
        return self._capacity_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes that are reserved, its indexes included."""
        return self.bytes_of(self._capacity_bytes)

    def bytes_of(self, capacity_bytes: int) -> int:
        """Return the bytes that a capacity takes, the indexes included."""
        room = capacity_bytes // self._pair_bytes
        return room * self._pair_bytes + 2 * HashIndex.bytes_with_room(room)

    def resize(self, capacity_bytes: int) -> None:
        """Reserve another number of bytes; windows in the cache are dropped."""
        with self._lock:
            self._reserve(capacity_bytes)

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of the unique ``keys`` (N,) int64 are hits, (N,) bool, and their outputs (F, 3, D)."""
        with self._lock:
            return self._find(keys)

    def _find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        young_rows = self._indexes[self._young].find(keys)
        old_rows = self._indexes[1 - self._young].find(keys)
        rows = torch.where(
            young_rows >= 0, young_rows + self._young * self._room, old_rows + (1 - self._young) * self._room
        )
        found = (young_rows >= 0) | (old_rows >= 0)
        outputs = self._values.flatten(0, 1).index_select(0, rows[found].to(self._values.device))
        moves = (young_rows < 0)[found]
        if moves.any():
            self._add(keys[found][moves], outputs[moves.to(outputs.device)])
        return found, outputs

    def add(self, keys: Tensor, outputs: Tensor) -> None:
        """Add ``outputs`` (N, 3, D) for unique ``keys`` (N,), as many as fit into one generation.

        A key that two threads compute at once is added twice; the same value then takes two rows.
        """
        with self._lock:
            self._add(keys, outputs)

    def _add(self, keys: Tensor, outputs: Tensor) -> None:
        keys, outputs = keys[: self._room], outputs[: self._room]
        if self._used + len(keys) > self._room:
            self._young = 1 - self._young
            self._indexes[self._young].clear()
            self._used = 0
        start, end = self._used, self._used + len(keys)
        self._values[self._young, start:end] = outputs
        self._indexes[self._young].insert(keys, torch.arange(start, end, dtype=torch.int32))
        self._used = end
