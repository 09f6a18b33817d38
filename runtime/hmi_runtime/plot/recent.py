"""Recently computed windows, so that a window missed twice is computed once.

Two generations stand in for a least-recently-used order: what is asked for moves to the young one, and
when that is full the old one, in which nobody asked for anything lately, is forgotten whole. All of it is
array operations; no window has an object of its own.
"""

import torch
from torch import Tensor

from hmi_runtime.plot.index import HashIndex


class RecentWindows:
    """A bounded map from keys to parts, float32. Not safe for threads: its owner locks."""

    def __init__(self, capacity_bytes: int, width: int, device: torch.device) -> None:
        """Reserve at most ``capacity_bytes`` for parts of ``width`` D on ``device``."""
        self._room = capacity_bytes // (2 * 3 * width * 4)  # rows of one generation
        self._indexes = [HashIndex.with_room(self._room) for _ in range(2)]
        self._values = torch.empty(2, self._room, 3, width, device=device)
        self._used = 0  # rows of the young generation
        self._young = 0

    @property
    def capacity(self) -> int:
        """Most windows held at once."""
        return 2 * self._room

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of the unique ``keys`` (N,) int64 are held, (N,) bool, and their parts (F, 3, D)."""
        young, old = self._indexes[self._young], self._indexes[1 - self._young]
        young_rows, old_rows = young.find(keys), old.find(keys)
        rows = torch.where(
            young_rows >= 0, young_rows + self._young * self._room, old_rows + (1 - self._young) * self._room
        )
        held = (young_rows >= 0) | (old_rows >= 0)
        parts = self._values.flatten(0, 1).index_select(0, rows[held].to(self._values.device))
        moves = (young_rows < 0)[held]
        if moves.any():
            self.add(keys[held][moves], parts[moves.to(parts.device)])
        return held, parts

    def add(self, keys: Tensor, parts: Tensor) -> None:
        """Hold ``parts`` (N, 3, D) for unique ``keys`` (N,); as many as fit one generation.

        A key that two threads computed at once may come twice; the same value then takes two rows.
        """
        keys, parts = keys[: self._room], parts[: self._room]
        if self._used + len(keys) > self._room:
            self._young = 1 - self._young
            self._indexes[self._young].clear()
            self._used = 0
        start, end = self._used, self._used + len(keys)
        self._values[self._young, start:end] = parts
        self._indexes[self._young].insert(keys, torch.arange(start, end, dtype=torch.int32))
        self._used = end
