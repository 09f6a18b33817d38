"""Counting the windows of a corpus that does not fit in memory."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_runtime.model.windows import ABSENT, trigrams
from hmi_runtime.plot.keys import pack

Batch = tuple[Tensor, Tensor] | Sequence[Sequence[int]]
"""Token ids with special tokens: padded ids (B, T) int64 with mask (B, T) bool, or a list a row."""

_MERGE_AT = 1 << 20  # keys gathered before they are sorted into the counts


def windows_of(batch: Batch) -> Tensor:
    """Return the windows (N, 3) int64 of a batch's real tokens."""
    ids, mask = batch if isinstance(batch, tuple) else _pad(batch)
    return trigrams(ids, mask)[mask]


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    length = max((len(row) for row in rows), default=1)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = True
    return ids, mask


class KeyCounter:
    """Counts int64 keys, exactly while at most ``limit`` different ones occur.

    Beyond that the rarest are dropped until half of the limit is left, as lossy counting does (Manku and
    Motwani, 2002). A dropped key had at most the highest dropped count, and ``undercount`` is the sum of
    those over all prunings: true - undercount <= counted <= true, for every key.
    """

    def __init__(self, limit: int) -> None:
        self.undercount = 0
        self.total = 0
        self._limit = limit
        self._keys: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # sorted
        self._counts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._fresh: list[NDArray[np.int64]] = []
        self._fresh_keys = 0

    def add(self, keys: NDArray[np.int64]) -> None:
        """Count each of ``keys`` (N,) once more."""
        self.total += len(keys)
        self._fresh.append(keys)
        self._fresh_keys += len(keys)
        if self._fresh_keys >= min(_MERGE_AT, self._limit):
            self._merge()

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the keys and their counts, most frequent first, equal counts by key."""
        self._merge()
        order = np.lexsort((self._keys, -self._counts))
        return self._keys[order], self._counts[order]

    def _merge(self) -> None:
        if self._fresh:
            fresh, counts = np.unique(np.concatenate(self._fresh), return_counts=True)
            self._fresh, self._fresh_keys = [], 0
            self._keys, inverse = np.unique(np.concatenate([self._keys, fresh]), return_inverse=True)
            both = np.concatenate([self._counts, counts])
            self._counts = np.bincount(inverse, weights=both).astype(np.int64)  # exact below 2**53
        if len(self._keys) > self._limit:
            self._prune()

    def _prune(self) -> None:
        """Drop every count up to the one at the middle of the limit, so that at most half of it is left."""
        dropped = len(self._counts) - self._limit // 2
        threshold = int(np.partition(self._counts, dropped - 1)[dropped - 1])
        keep = self._counts > threshold
        self._keys, self._counts = self._keys[keep], self._counts[keep]
        self.undercount += threshold


class WindowCounter:
    """Counts a corpus's trigrams and, for Backoff, its bigrams and unigrams."""

    def __init__(self, vocab_size: int, limit: int, *, shorter: bool) -> None:
        """Hold up to ``limit`` different keys of each length; ``shorter``: bigrams and unigrams too."""
        self._vocab_size = vocab_size
        self.trigrams = KeyCounter(limit)
        self.bigrams = KeyCounter(limit) if shorter else None
        self.unigrams = KeyCounter(limit) if shorter else None

    def add(self, batches: Iterable[Batch]) -> None:
        """Count the windows of every batch."""
        for batch in batches:
            windows = windows_of(batch)
            self.trigrams.add(self._keys(windows))
            if self.bigrams is not None and self.unigrams is not None:
                left, right = windows.clone(), windows.clone()
                left[:, 2] = ABSENT
                right[:, 0] = ABSENT
                # At a text's edge a bigram on that side would be the token alone, counted below.
                self.bigrams.add(self._keys(left[left[:, 0] != ABSENT]))
                self.bigrams.add(self._keys(right[right[:, 2] != ABSENT]))
                left[:, 0] = ABSENT
                self.unigrams.add(self._keys(left))

    def _keys(self, windows: Tensor) -> NDArray[np.int64]:
        return pack(windows, self._vocab_size).numpy()
