"""Building a table: count the corpus's windows, admit the frequent ones, compute their parts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hmi_api.resources.domain import OnMiss, TableDtype
from hmi_runtime.model.domain_layers import DomainLayers
from hmi_runtime.plot.counting import Batch, KeyCounter, WindowCounter
from hmi_runtime.plot.keys import unpack
from hmi_runtime.plot.table import PlotTable, TableWriter

Keys = NDArray[np.int64]

# Backoff's shares of the budget. Unigrams come first: they are the last resort, and without one a window
# has to be computed after all. What a share does not use goes to the next.
_UNIGRAM_SHARE = 0.2
_BIGRAM_SHARE = 0.3

_FILL_AT_ONCE = 2048  # windows; bounds the activations
_COUNT_LIMIT = 20_000_000  # different windows of a corpus held at once, 16 bytes each


@dataclass(frozen=True)
class BuildReport:
    """What a build admitted, and how exact its counts were."""

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

    The same batches and layers give the same file, byte for byte. ``progress`` is told (rows filled, rows
    in all) now and then. Memory is bounded by ``count_limit``; values go straight to the file.

    A window that an ancestor made by the same layers holds is left out under ``Compute``, since the tree
    gives it exactly. Under ``Backoff`` it is admitted, since the own bigrams are asked before the parent.
    """
    vocab_size = layers.config.encoder.vocab_size
    counter = WindowCounter(vocab_size, count_limit, shorter=on_miss is OnMiss.BACKOFF)
    counter.add(batches)
    held_above = (
        [table for table in ancestors if table.layers_digest == layers_digest]
        if on_miss is OnMiss.COMPUTE
        else []
    )
    admitted = _Admitted(max_entries, min_frequency, held_above)
    unigrams = admitted.take(counter.unigrams, _UNIGRAM_SHARE)
    bigrams = admitted.take(counter.bigrams, _UNIGRAM_SHARE + _BIGRAM_SHARE)
    trigrams = admitted.take(counter.trigrams, 1.0)
    keys, counts = admitted.by_frequency()
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
        trigrams=trigrams,
        bigrams=bigrams,
        unigrams=unigrams,
        windows_seen=counter.trigrams.total,
        undercount=counter.trigrams.undercount,
    )


class _Admitted:
    """The windows let into a table so far, under its budget."""

    def __init__(self, max_entries: int, min_frequency: int, held_above: Sequence[PlotTable]) -> None:
        self._max_entries = max_entries
        self._min_frequency = min_frequency
        self._held_above = held_above
        self._keys: Keys = np.empty(0, dtype=np.int64)
        self._counts: Keys = np.empty(0, dtype=np.int64)

    def take(self, counter: KeyCounter | None, share: float) -> int:
        """Admit the most frequent until ``share`` of the budget is used in all; return how many."""
        if counter is None:
            return 0
        keys, counts = counter.counts()
        wanted = (counts >= self._min_frequency) & ~np.isin(keys, self._keys)
        for table in self._held_above:
            wanted &= table.find(torch.from_numpy(keys)).numpy() < 0
        room = max(0, int(self._max_entries * share) - len(self._keys))
        chosen = np.flatnonzero(wanted)[:room]
        self._keys = np.concatenate([self._keys, keys[chosen]])
        self._counts = np.concatenate([self._counts, counts[chosen]])
        return len(chosen)

    def by_frequency(self) -> tuple[Keys, Keys]:
        """Return all keys and counts, most frequent first: the rows of the hot windows share pages."""
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
    for start in range(0, len(keys), _FILL_AT_ONCE):
        piece = torch.from_numpy(keys[start : start + _FILL_AT_ONCE])
        writer.write(start, layers.window_parts(unpack(piece, vocab_size).to(device)).float())
        if progress is not None:
            progress(min(start + _FILL_AT_ONCE, len(keys)), len(keys))
