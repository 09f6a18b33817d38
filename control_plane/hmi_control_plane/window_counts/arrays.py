"""Windows and their counts as arrays: merged, cut to the most frequent, and compressed for the database."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hmi_api.errors import InvalidInput
from hmi_api.internal.window_counts import WindowArray

Int64s = NDArray[np.int64]

_WIRE = np.dtype("<i8")
_LARGEST_COUNT = 1 << 40
"""A count is cut to this, so that no sum of counts overflows."""
_FAST = 1
"""The zlib level: higher ones save a few percent and take several times as long."""


@dataclass(frozen=True, eq=False)
class KeyCounts:
    """Keys of windows (N,) int64, ascending and unique, and their counts (N,) int64, at least 1."""

    keys: Int64s
    counts: Int64s

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, windows: WindowArray) -> Self:
        """Return the windows of a message. Raises InvalidInput (WindowsInvalid)."""
        keys = np.frombuffer(windows.keys, _WIRE).astype(np.int64)
        counts = np.frombuffer(windows.counts, _WIRE).astype(np.int64)
        if len(keys) and (keys.min() < 0 or counts.min() < 1):
            raise InvalidInput("WindowsInvalid", "A window has a key below 0 or a count below 1.")
        return cls.merge([cls(keys, np.minimum(counts, _LARGEST_COUNT))])

    @classmethod
    def merge(cls, parts: Iterable["KeyCounts"]) -> Self:
        """Return all windows of ``parts`` with the sums of their counts. Keys may be in any order."""
        found = list(parts)
        if not found:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        keys, starts, order = _grouped(np.concatenate([part.keys for part in found]))
        counts = np.concatenate([part.counts for part in found])[order]
        return cls(keys, np.minimum(_sums(counts, starts), _LARGEST_COUNT))

    def most_frequent(self, most: int) -> "KeyCounts":
        """Return the ``most`` windows with the highest counts; of equal counts the lower keys."""
        if len(self) <= most:
            return self
        chosen = np.sort(self.by_frequency()[:most])
        return KeyCounts(self.keys[chosen], self.counts[chosen])

    def by_frequency(self) -> NDArray[np.intp]:
        """Return the indices (N,) of the windows, highest counts first, of equal counts lower keys first."""
        return np.argsort(-self.counts, kind="stable")

    def to_bytes(self) -> bytes:
        """Return the windows compressed: a few bytes for each."""
        steps = np.diff(self.keys, prepend=0)
        return zlib.compress(_planes(steps) + _planes(self.counts), _FAST)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the windows that ``to_bytes`` compressed."""
        steps, counts = np.frombuffer(zlib.decompress(data), np.uint8).reshape(2, 8, -1)
        return cls(np.cumsum(_from_planes(steps)), _from_planes(counts))


def windows_by_number_of_parts(parts: Sequence[KeyCounts], least: int) -> KeyCounts:
    """Return the windows that at least ``least`` of ``parts`` have, with the sums of all their counts."""
    if not parts:
        return KeyCounts.merge([])
    keys, starts, order = _grouped(np.concatenate([part.keys for part in parts]))
    counts = np.concatenate([part.counts for part in parts])[order]
    frequent = np.diff(starts, append=len(order)) >= least
    return KeyCounts(keys[frequent], _sums(counts, starts)[frequent])


def fair_limit(sizes: Iterable[int], room: int) -> int:
    """Return the largest L such that lists of ``sizes``, each cut to L entries, have ``room`` together.

    Short lists stay whole. If all of them fit, L is that of the longest.
    """
    ordered = sorted(sizes)
    taken = 0
    for number, (before, size) in enumerate(pairwise([0, *ordered])):
        left = len(ordered) - number
        if taken + (size - before) * left > room:
            return before + (room - taken) // left
        taken += (size - before) * left
    return ordered[-1] if ordered else 0


def _grouped(keys: Int64s) -> tuple[Int64s, NDArray[np.intp], NDArray[np.intp]]:
    """Return the unique ``keys``, where each begins in the ascending order, and this order."""
    order = np.argsort(keys, kind="stable")
    ascending = keys[order]
    starts = np.flatnonzero(np.diff(ascending, prepend=-1))
    return ascending[starts], starts, order


def _sums(counts: Int64s, starts: NDArray[np.intp]) -> Int64s:
    return np.add.reduceat(counts, starts) if len(starts) else counts


def _planes(numbers: Int64s) -> bytes:
    """Return the lowest bytes of all ``numbers`` (N,), then the next ones, most of which are zero."""
    return np.ascontiguousarray(numbers.astype(_WIRE).view(np.uint8).reshape(-1, 8).T).tobytes()


def _from_planes(planes: NDArray[np.uint8]) -> Int64s:
    """Return the numbers (N,) of ``planes`` (8, N)."""
    return np.ascontiguousarray(planes.T).view(_WIRE)[:, 0].astype(np.int64)
