"""Windows that are in no table: a cache of computed ones, and a bounded count of misses."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_runtime.tables.index import HashIndex, home_bucket

# Salts that make the rows' hashes differ: multiples of 2**64 / golden ratio, as signed integers.
_ROW_STEP = -0x61C8864680B583EB


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


class MissSketch:
    """Counts missed keys in fixed memory. Not thread-safe: its owner locks.

    A count-min sketch (Cormode and Muthukrishnan, 2005) with conservative update (Estan and Varghese, 2002):
    ``depth`` rows of ``width`` counters. A key's estimate is the least of its counters, and only counters
    below the new estimate are raised. Estimates are never too low, and with probability 1 - exp(-depth) for
    any one key too high by at most e / width of the total. A sketch cannot list keys, so the most frequent
    ones are kept separately as candidates.
    """

    def __init__(self, width: int = 1 << 16, depth: int = 4, candidates: int = 1 << 14) -> None:
        """Reserve ``depth`` x ``width`` counters and room for the ``candidates`` most frequent keys."""
        self._counters = np.zeros((depth, width), dtype=np.int64)
        steps = [(row * _ROW_STEP) & (2**64 - 1) for row in range(depth)]
        self._salts = np.array(steps, dtype=np.uint64).view(np.int64)
        self._candidates = candidates
        self._frequent: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._fresh: list[NDArray[np.int64]] = []
        self._fresh_keys = 0
        self.total = 0

    def add(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Count unique ``keys`` (N,) int64, each ``counts`` (N,) int64 times."""
        if not len(keys):
            return
        places = self._places(keys)
        raised = self._least(places) + counts
        for counters, place in zip(self._counters, places, strict=True):
            np.maximum.at(counters, place, raised)
        self.total += int(counts.sum())
        self._fresh.append(keys)
        self._fresh_keys += len(keys)
        if self._fresh_keys >= self._candidates:
            self._merge_candidates()

    def estimate(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the estimated count of each of ``keys`` (N,), never too low."""
        return self._least(self._places(keys))

    def frequent(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return up to ``most`` keys with the highest estimates, and the estimates, highest first."""
        self._merge_candidates()
        estimates = self.estimate(self._frequent)
        order = np.lexsort((self._frequent, -estimates))[:most]
        return self._frequent[order], estimates[order]

    def _merge_candidates(self) -> None:
        """Merge the keys added since the last call into the candidates and keep the most frequent."""
        kept = np.unique(np.concatenate([self._frequent, *self._fresh]))
        self._fresh, self._fresh_keys = [], 0
        if len(kept) > self._candidates:
            order = np.lexsort((kept, -self.estimate(kept)))
            kept = kept[order[: self._candidates]]
        self._frequent = kept

    def _places(self, keys: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [home_bucket(keys ^ salt, self._counters.shape[1]) for salt in self._salts]

    def _least(self, places: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        rows = [counters[place] for counters, place in zip(self._counters, places, strict=True)]
        least: NDArray[np.int64] = np.stack(rows).min(axis=0)
        return least
