"""Building a table: count the windows of a corpus, select the frequent ones, compute their values.

The corpus may be larger than memory; counting is exact up to a limit and lossy beyond it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.resources.domain import OnMiss, TableDtype
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.windows import ABSENT, pack, trigrams, unpack
from hmi_runtime.tables.table import PlotTable, TableWriter

Batch = tuple[Tensor, Tensor]
"""Padded token ids (B, T) int64, special tokens included, with their mask (B, T) bool."""
Keys = NDArray[np.int64]
_MERGE_AT = 1 << 20  # keys collected before they are merged into the counts
# Backoff's shares of the budget. Unigrams are added first: a window without one must be computed. What a
# share does not use is left for the next.
UNIGRAM_SHARE = 0.2
BIGRAM_SHARE = 0.3
FILL_AT_ONCE = 2048  # windows; bounds the activations
_COUNT_LIMIT = 20_000_000  # different windows of a corpus in memory at once, 16 bytes each


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
        self._keys: Keys = np.empty(0, dtype=np.int64)  # sorted
        self._counts: Keys = np.empty(0, dtype=np.int64)
        self._fresh: list[Keys] = []
        self._fresh_keys = 0

    def add(self, keys: Keys) -> None:
        """Count each of ``keys`` (N,) once."""
        self.total += len(keys)
        self._fresh.append(keys)
        self._fresh_keys += len(keys)
        if self._fresh_keys >= min(_MERGE_AT, self._limit):
            self._merge()

    def counts(self) -> tuple[Keys, Keys]:
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
        """Drop the rarest keys so that at most half of the limit is left."""
        dropped = len(self._counts) - self._limit // 2
        threshold = int(np.partition(self._counts, dropped - 1)[dropped - 1])
        keep = self._counts > threshold
        self._keys, self._counts = self._keys[keep], self._counts[keep]
        self.undercount += threshold


class WindowCounter:
    """Counts a corpus's trigrams and, for Backoff, its bigrams and unigrams."""

    def __init__(self, vocab_size: int, limit: int, *, shorter: bool) -> None:
        """Count up to ``limit`` different keys of each length; ``shorter``: bigrams and unigrams too."""
        self._vocab_size = vocab_size
        self._shorter = shorter
        self.trigrams, self.bigrams, self.unigrams = (KeyCounter(limit) for _ in range(3))

    def add(self, batches: Iterable[Batch]) -> None:
        """Count the windows of every batch."""
        for ids, mask in batches:
            windows = trigrams(ids, mask)[mask]  # (N, 3), of the real tokens
            self.trigrams.add(self._keys(windows))
            if self._shorter:
                left, right = windows.clone(), windows.clone()
                left[:, 2] = ABSENT
                right[:, 0] = ABSENT
                # At a text's edge a bigram on that side would be the token alone, counted below.
                self.bigrams.add(self._keys(left[left[:, 0] != ABSENT]))
                self.bigrams.add(self._keys(right[right[:, 2] != ABSENT]))
                left[:, 0] = ABSENT
                self.unigrams.add(self._keys(left))

    def _keys(self, windows: Tensor) -> Keys:
        return pack(windows, self._vocab_size).numpy()


@dataclass(frozen=True)
class BuildReport:
    """Number of entries of a table, and the accuracy of the counts."""

    entries: int
    trigrams: int
    bigrams: int
    unigrams: int
    windows_seen: int  # in the corpus, repeats included
    undercount: int  # a count is too low by at most this; 0 unless the corpus exceeded the count limit


def build_table(
    folder: Path,
    batches: Iterable[Batch],
    layers: DomainLayers,
    *,
    layers_digest: str,
    max_entries: int,
    min_frequency: int,
    dtype: TableDtype = TableDtype.FLOAT16,
    on_miss: OnMiss = OnMiss.COMPUTE,
    ancestors: Sequence[PlotTable] = (),
    count_limit: int = _COUNT_LIMIT,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Write the table of a corpus into ``folder``; ``PlotTable.load`` maps it.

    The same batches and layers give the same file, byte for byte. ``progress`` is called with (rows filled,
    total rows). Memory is bounded by ``count_limit``; values are written directly to the file.

    Under ``Compute``, a window in the table of an ancestor with the same layers is left out, since the tree
    returns it exactly. Under ``Backoff`` it is included, since the Domain's own bigrams are looked up before
    the parent.
    """
    vocab_size = layers.config.encoder.vocab_size
    counter = WindowCounter(vocab_size, count_limit, shorter=on_miss is OnMiss.BACKOFF)
    counter.add(batches)
    exact = on_miss is OnMiss.COMPUTE
    same_layers = [table for table in ancestors if exact and table.layers_digest == layers_digest]
    selection = _Selection(max_entries, min_frequency, same_layers)
    unigrams = selection.add(counter.unigrams, UNIGRAM_SHARE)
    bigrams = selection.add(counter.bigrams, UNIGRAM_SHARE + BIGRAM_SHARE)
    trigram_entries = selection.add(counter.trigrams, 1.0)
    keys, counts = selection.by_frequency()
    writer = TableWriter(
        folder,
        torch.from_numpy(keys),
        torch.from_numpy(counts),
        width=layers.config.encoder.width,
        dtype=dtype,
        vocab_size=vocab_size,
        layers_digest=layers_digest,
    )
    _fill(writer, keys, layers, vocab_size, progress)
    writer.close()
    return BuildReport(
        entries=len(keys),
        trigrams=trigram_entries,
        bigrams=bigrams,
        unigrams=unigrams,
        windows_seen=counter.trigrams.total,
        undercount=counter.trigrams.undercount,
    )


class _Selection:
    """The windows selected for a table so far, within its budget."""

    def __init__(self, max_entries: int, min_frequency: int, ancestors: Sequence[PlotTable]) -> None:
        self._max_entries = max_entries
        self._min_frequency = min_frequency
        self._ancestors = ancestors
        self._keys: Keys = np.empty(0, dtype=np.int64)
        self._counts: Keys = np.empty(0, dtype=np.int64)

    def add(self, counter: KeyCounter, share: float) -> int:
        """Add the most frequent keys until ``share`` of the budget is used in total; return their number."""
        keys, counts = counter.counts()
        wanted = (counts >= self._min_frequency) & ~np.isin(keys, self._keys)
        for table in self._ancestors:
            wanted &= table.find(torch.from_numpy(keys)).numpy() < 0
        room = max(0, int(self._max_entries * share) - len(self._keys))
        chosen = np.flatnonzero(wanted)[:room]
        self._keys = np.concatenate([self._keys, keys[chosen]])
        self._counts = np.concatenate([self._counts, counts[chosen]])
        return len(chosen)

    def by_frequency(self) -> tuple[Keys, Keys]:
        """Return all keys and counts, most frequent first, so that rows of frequent windows share pages."""
        order = np.lexsort((self._keys, -self._counts))
        return self._keys[order], self._counts[order]


@torch.no_grad()
def _fill(
    writer: TableWriter,
    keys: Keys,
    layers: DomainLayers,
    vocab_size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    device = layers.word.device
    for start in range(0, len(keys), FILL_AT_ONCE):
        piece = torch.from_numpy(keys[start : start + FILL_AT_ONCE])
        writer.write(start, layers.window_outputs(unpack(piece, vocab_size).to(device)).float())
        if progress is not None:
            progress(min(start + FILL_AT_ONCE, len(keys)), len(keys))
