"""Which windows traffic asks for and no table holds: a bounded count of misses.

A count-min sketch (Cormode and Muthukrishnan, 2005) with conservative update (Estan and Varghese, 2002):
``depth`` rows of ``width`` counters; a key's estimate is the least of its counters, and only counters below
the new estimate are raised. Estimates are never too low, and with probability 1 - exp(-depth) for any one
key too high by at most e / width of everything counted. A bounded list of candidates beside it knows the
frequent keys themselves, which a sketch alone cannot name.
"""

import math

import numpy as np
from numpy.typing import NDArray

from hmi_runtime.plot.index import home_bucket

# Odd constants that make the rows' hashes differ: multiples of 2**64 / golden ratio, as signed integers.
_ROW_STEP = -0x61C8864680B583EB


class MissSketch:
    """Counts keys in fixed memory. Not safe for threads: its owner locks."""

    def __init__(self, width: int = 1 << 16, depth: int = 4, candidates: int = 1 << 14) -> None:
        """Reserve ``depth`` x ``width`` counters and room for the ``candidates`` most frequent keys."""
        self._counters = np.zeros((depth, width), dtype=np.int64)
        steps = [(row * _ROW_STEP) & (2**64 - 1) for row in range(depth)]
        self._salts = np.array(steps, dtype=np.uint64).view(np.int64)
        self._candidates = candidates
        self._kept: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._fresh: list[NDArray[np.int64]] = []
        self._fresh_keys = 0
        self.total = 0

    @property
    def error_bound(self) -> float:
        """How much too high an estimate is at most, but with probability exp(-depth)."""
        return math.e / self._counters.shape[1] * self.total

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
            self._settle()

    def estimate(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how often each of ``keys`` (N,) was counted, or a little more."""
        return self._least(self._places(keys))

    def frequent(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return up to ``most`` keys with the highest estimates, and the estimates, highest first."""
        self._settle()
        estimates = self.estimate(self._kept)
        order = np.lexsort((self._kept, -estimates))[:most]
        return self._kept[order], estimates[order]

    def _settle(self) -> None:
        """Merge the keys seen since the last time into the candidates and keep the most frequent."""
        kept = np.unique(np.concatenate([self._kept, *self._fresh]))
        self._fresh, self._fresh_keys = [], 0
        if len(kept) > self._candidates:
            order = np.lexsort((kept, -self.estimate(kept)))
            kept = kept[order[: self._candidates]]
        self._kept = kept

    def _places(self, keys: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [home_bucket(keys ^ salt, self._counters.shape[1]) for salt in self._salts]

    def _least(self, places: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        rows = [counters[place] for counters, place in zip(self._counters, places, strict=True)]
        least: NDArray[np.int64] = np.stack(rows).min(axis=0)
        return least
