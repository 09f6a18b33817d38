"""A cache of computed windows, which are in no table."""

import torch
from torch import Tensor

from hmi_runtime.tables.index import HashIndex


class RecentWindows:
    """A bounded cache of computed windows: keys to outputs, float32. Not thread-safe: its owner locks.

    Two generations approximate least-recently-used order: a hit moves an entry to the young generation, and
    when that is full the old one is cleared as a whole. Everything is an array operation; no window is an
    object.
    """

    def __init__(self, capacity_bytes: int, width: int, device: torch.device) -> None:
        """Reserve at most ``capacity_bytes`` for outputs of ``width`` D on ``device``."""
        self._room = capacity_bytes // (2 * 3 * width * 4)  # rows of one generation
        self._indexes = [HashIndex.with_room(self._room) for _ in range(2)]
        self._values = torch.empty(2, self._room, 3, width, device=device)
        self._used = 0  # rows of the young generation
        self._young = 0

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of the unique ``keys`` (N,) int64 are hits, (N,) bool, and their outputs (F, 3, D)."""
        young_rows = self._indexes[self._young].find(keys)
        old_rows = self._indexes[1 - self._young].find(keys)
        rows = torch.where(
            young_rows >= 0, young_rows + self._young * self._room, old_rows + (1 - self._young) * self._room
        )
        found = (young_rows >= 0) | (old_rows >= 0)
        outputs = self._values.flatten(0, 1).index_select(0, rows[found].to(self._values.device))
        moves = (young_rows < 0)[found]
        if moves.any():
            self.add(keys[found][moves], outputs[moves.to(outputs.device)])
        return found, outputs

    def add(self, keys: Tensor, outputs: Tensor) -> None:
        """Add ``outputs`` (N, 3, D) for unique ``keys`` (N,), as many as fit into one generation.

        A key that two threads compute at once is added twice; the same value then takes two rows.
        """
        keys, outputs = keys[: self._room], outputs[: self._room]
        if self._used + len(keys) > self._room:
            self._young = 1 - self._young
            self._indexes[self._young].clear()
            self._used = 0
        start, end = self._used, self._used + len(keys)
        self._values[self._young, start:end] = outputs
        self._indexes[self._young].insert(keys, torch.arange(start, end, dtype=torch.int32))
        self._used = end
