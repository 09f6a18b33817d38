"""Refreshing a table from traffic: frequent windows come in, rare ones leave, the others are copied.

The score of a window is ``prior * P / (P + N) + lookups``. ``prior`` is its count in the present table: how
often the corpus had it, less what earlier refreshes took off. P is the sum of these counts, and N the number
of lookups since the present table was published. So the corpus counts half after as many lookups as it has
windows, however often the table was refreshed meanwhile. ``lookups`` is how often traffic looked the window
up in the time for which counts are kept.

The next table stores the reduced priors, rounded, but not to 0: a window of the corpus leaves only when
others need the room. A window that only traffic knows has the prior 0, and leaves when traffic forgot it.

Lookups of children with the same layers count as a Domain's own, except that they do not reduce its priors.
So a window that several children look up moves to their parent, and their next refreshes leave it out. One
that a single child looks up leaves the parent for that child.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmi_api.resources.domain import OnMiss, TableDtype
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.windows import ABSENT, pack, unpack
from hmi_runtime.tables.build import BIGRAM_SHARE, FILL_AT_ONCE, UNIGRAM_SHARE, Keys
from hmi_runtime.tables.table import PlotTable, TableWriter, encode

_COPY_AT_ONCE = 16_384  # rows; 75 MB at a width of 768 in float16


@dataclass(frozen=True)
class Traffic:
    """What traffic looked up: unique keys (N,) int64 of whole windows, and their counts (N,) int64."""

    keys: Keys
    counts: Keys
    lookups_since: int
    """Lookups of any window, in the table's own Domain, since the present table was published."""
    belongs_to_child: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    """Keys (M,) int64 of windows that one child Domain alone looked up, and stores itself."""


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh changed."""

    entries: int
    windows_in: int
    windows_out: int
    coverage_before: float
    """Share, 0 to 1, of the counted lookups whose windows are in the present table or its ancestors'."""
    coverage: float
    """The same of the next table."""


def refresh_table(
    folder: Path,
    present: PlotTable,
    traffic: Traffic,
    layers: DomainLayers,
    *,
    max_entries: int,
    min_frequency: int,
    dtype: TableDtype = TableDtype.FLOAT16,
    on_miss: OnMiss = OnMiss.COMPUTE,
    ancestors: Sequence[PlotTable] = (),
    progress: Callable[[int, int], None] | None = None,
) -> RefreshReport:
    """Write the table that follows ``present`` into ``folder``; ``PlotTable.load`` maps it.

    ``layers`` are those that made ``present``; only windows that come in are computed. The same arguments
    give the same file, byte for byte. A window comes in if traffic looked it up at least ``min_frequency``
    times. It leaves if its score is 0, or if ``max_entries`` others have a higher one (of equal ones, those
    in the table stay). Under ``Compute``, windows of ancestors with the same layers are left out, and those
    that belong to a child; under ``Backoff`` each looked-up window counts for its bigrams and its unigram,
    too, and these keep their shares of the table. ``progress`` is called with (rows written, total rows).
    """
    vocab_size = present.vocab_size
    exact = on_miss is OnMiss.COMPUTE
    relatives = [one for one in ancestors if not exact or one.layers_digest == present.layers_digest]
    looked_up = traffic if exact else _with_shorter(traffic, vocab_size)
    elsewhere = traffic.belongs_to_child if exact else np.empty(0, np.int64)
    candidates = _Candidates.of(present, looked_up, min_frequency, relatives if exact else (), elsewhere)
    chosen = candidates.choose(max_entries, vocab_size, shares=not exact)
    keys, priors = candidates.keys[chosen], candidates.priors[chosen]
    writer = TableWriter(
        folder,
        torch.from_numpy(keys),
        torch.from_numpy(priors),
        width=present.width,
        dtype=dtype,
        vocab_size=vocab_size,
        layers_digest=present.layers_digest,
    )
    rows = present.find(torch.from_numpy(keys))  # (E,), -1 for a window that comes in
    reusable = (present.scales is not None) == (dtype is TableDtype.INT8)
    kept = (rows >= 0).nonzero()[:, 0] if reusable else rows.new_empty(0)
    _copy(writer, present, rows, kept)
    fresh = (rows < 0).nonzero()[:, 0] if reusable else torch.arange(len(rows))
    _compute(writer, torch.from_numpy(keys), fresh, layers, dtype, progress)
    writer.close()
    stays = int((rows >= 0).sum())
    return RefreshReport(
        entries=len(keys),
        windows_in=len(keys) - stays,
        windows_out=present.entries - stays,
        coverage_before=_coverage(traffic, [present, *relatives]),
        coverage=_coverage(traffic, [PlotTable.load(folder), *relatives]),
    )


@dataclass(frozen=True)
class _Candidates:
    """Windows that the next table may have: keys, reduced priors and scores (C,) int64, sorted by key."""

    keys: Keys
    priors: Keys
    scores: Keys
    present: "np.typing.NDArray[np.bool_]"

    @classmethod
    def of(
        cls,
        present: PlotTable,
        traffic: Traffic,
        min_frequency: int,
        ancestors: Sequence[PlotTable],
        belongs_to_child: Keys,
    ) -> "_Candidates":
        own, counts = present.keys.numpy(), present.counts.numpy()
        total = int(counts.sum())
        weight = total / (total + traffic.lookups_since) if total else 0.0
        comes_in = traffic.counts >= min_frequency
        comes_in |= present.find(torch.from_numpy(traffic.keys)).numpy() >= 0
        keys, places = np.unique(np.concatenate([own, traffic.keys[comes_in]]), return_inverse=True)
        priors, lookups = np.zeros_like(keys), np.zeros_like(keys)
        reduced = np.rint(counts * weight).astype(np.int64)
        priors[places[: len(own)]] = np.maximum(reduced, np.minimum(counts, 1))
        lookups[places[len(own) :]] = traffic.counts[comes_in]
        in_present = np.zeros(len(keys), dtype=np.bool_)
        in_present[places[: len(own)]] = True
        wanted = priors + lookups > 0
        wanted &= ~np.isin(keys, belongs_to_child, assume_unique=True)
        for table in ancestors:
            wanted &= table.find(torch.from_numpy(keys)).numpy() < 0
        return cls(keys[wanted], priors[wanted], (priors + lookups)[wanted], in_present[wanted])

    def choose(self, most: int, vocab_size: int, *, shares: bool) -> "np.typing.NDArray[np.intp]":
        """Return the indices of the chosen candidates, those with the highest score first.

        With ``shares``, unigrams come first, then bigrams, as ``build_table`` shares the budget.
        """
        order = np.lexsort((self.keys, ~self.present, -self.scores))
        if not shares:
            return order[:most]
        absent = (unpack(torch.from_numpy(self.keys[order]), vocab_size) == ABSENT).sum(dim=1).numpy()
        chosen = np.zeros(len(order), dtype=np.bool_)
        for form, share in ((2, UNIGRAM_SHARE), (1, UNIGRAM_SHARE + BIGRAM_SHARE), (0, 1.0)):
            room = max(0, int(most * share) - int(chosen.sum()))
            chosen[np.flatnonzero(absent == form)[:room]] = True
        return order[chosen]


def _with_shorter(traffic: Traffic, vocab_size: int) -> Traffic:
    """Return the traffic with the bigrams and the unigram of every window, as a corpus is counted."""
    windows = unpack(torch.from_numpy(traffic.keys), vocab_size)  # (N, 3)
    parts, counts = [traffic.keys], [traffic.counts]
    for columns in ([2], [0], [0, 2]):
        shorter = windows.clone()
        shorter[:, columns] = ABSENT
        keys = pack(shorter, vocab_size).numpy()
        # A window at a text's edge equals its own bigram, which is counted already.
        changed = keys != traffic.keys
        parts.append(keys[changed])
        counts.append(traffic.counts[changed])
    keys, places = np.unique(np.concatenate(parts), return_inverse=True)
    summed = np.zeros_like(keys)
    np.add.at(summed, places, np.concatenate(counts))
    return Traffic(keys, summed, traffic.lookups_since)


def _coverage(traffic: Traffic, tables: Sequence[PlotTable]) -> float:
    keys = torch.from_numpy(traffic.keys)
    found = torch.zeros(len(keys), dtype=torch.bool)
    for table in tables:
        if table.entries:
            found |= table.find(keys) >= 0
    total = int(traffic.counts.sum())
    return int(traffic.counts[found.numpy()].sum()) / total if total else 0.0


def _copy(writer: TableWriter, present: PlotTable, rows: Tensor, kept: Tensor) -> None:
    """Copy the rows of ``present`` to ``kept`` (K,), in its own order, so that its file is read once."""
    in_file_order = kept[torch.argsort(rows[kept])]
    for places in torch.split(in_file_order, _COPY_AT_ONCE):
        source = rows[places]
        scales = None if present.scales is None else present.scales[source]
        writer.put_encoded(places, present.values[source], scales)


@torch.no_grad()
def _compute(
    writer: TableWriter,
    keys: Tensor,
    fresh: Tensor,
    layers: DomainLayers,
    dtype: TableDtype,
    progress: Callable[[int, int], None] | None,
) -> None:
    device = layers.word.device
    done = len(keys) - len(fresh)
    for places in torch.split(fresh, FILL_AT_ONCE):
        windows = unpack(keys[places], layers.config.encoder.vocab_size).to(device)
        writer.put_encoded(places, *encode(layers.window_outputs(windows).float(), dtype))
        done += len(places)
        if progress is not None:
            progress(done, len(keys))
