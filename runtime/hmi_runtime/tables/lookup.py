"""Lookup of windows through a Domain's tree of tables; windows that are in no table are computed.

``Compute`` searches the Domain's own table, and those of ancestors that were made by the same layers, for
the whole window: these hits are exact, and misses are computed. ``Backoff`` searches the own table for the
whole window, the bigram with the left neighbour, the one with the right, and the token alone, then every
ancestor in the same order. ``reference.lookup_reference`` is the slow version;
``tests/runtime/tables/test_table_lookup.py`` compares the two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.resources.domain import OnMiss
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.windows import ABSENT, check_vocabulary, pack, unpack
from hmi_runtime.tables.misses import RecentWindows
from hmi_runtime.tables.table import LookupTable

Int64s = NDArray[np.int64]
_COMPUTE_AT_ONCE = 4096  # windows; bounds the activations of a batch that misses everything
_DEFAULT_RECENT_BYTES = 32 << 20


class WindowForm(Enum):
    """How much of a window is looked up; values are the columns that are left out."""

    TRIGRAM = ()
    LEFT_BIGRAM = (2,)
    RIGHT_BIGRAM = (0,)
    UNIGRAM = (0, 2)

    def of(self, windows: Tensor) -> Tensor:
        """Return ``windows`` (N, 3) int64 with the left-out columns set to ABSENT."""
        if self is WindowForm.TRIGRAM:
            return windows
        reduced = windows.clone()
        reduced[:, list(self.value)] = ABSENT
        return reduced


class LookupSource(IntEnum):
    """Where a window's outputs came from."""

    OWN_TRIGRAM = 0
    OWN_BIGRAM = 1
    OWN_UNIGRAM = 2
    ANCESTOR_TRIGRAM = 3
    ANCESTOR_BIGRAM = 4
    ANCESTOR_UNIGRAM = 5
    RECENT = 6  # computed for an earlier request
    COMPUTED = 7


@dataclass(frozen=True)
class LookupStep:
    """Look up one form of the windows that are still missing in one table."""

    source: LookupSource
    table: LookupTable
    form: WindowForm


_SOURCES = {  # of the Domain's own table, of an ancestor's
    WindowForm.TRIGRAM: (LookupSource.OWN_TRIGRAM, LookupSource.ANCESTOR_TRIGRAM),
    WindowForm.LEFT_BIGRAM: (LookupSource.OWN_BIGRAM, LookupSource.ANCESTOR_BIGRAM),
    WindowForm.RIGHT_BIGRAM: (LookupSource.OWN_BIGRAM, LookupSource.ANCESTOR_BIGRAM),
    WindowForm.UNIGRAM: (LookupSource.OWN_UNIGRAM, LookupSource.ANCESTOR_UNIGRAM),
}


def plan_steps(tables: Sequence[LookupTable], layers_digest: str, on_miss: OnMiss) -> list[LookupStep]:
    """Return the lookup steps for ``tables``, the Domain's own first, then its ancestors', nearest first.

    Raises ``InvalidInput`` TableOfOtherLayers when the own table was not made by ``layers_digest``.
    """
    if tables and tables[0].layers_digest != layers_digest:
        raise InvalidInput(
            "TableOfOtherLayers",
            f"The Domain's table was made by layers {tables[0].layers_digest}, not {layers_digest}; "
            "build its table again.",
        )
    exact = on_miss is OnMiss.COMPUTE
    return [
        LookupStep(_SOURCES[form][min(position, 1)], table, form)
        for position, table in enumerate(tables)
        if table.entries and (table.layers_digest == layers_digest or not exact)
        for form in ([WindowForm.TRIGRAM] if exact else WindowForm)
    ]


@dataclass(frozen=True)
class LookupResult:
    """Window outputs and their sources."""

    outputs: Tensor  # (N, 3, D) float32
    sources: NDArray[np.int8]  # (N,), values of LookupSource


class TreeLookup:
    """Lookup for one Domain version: its own table, its ancestors' tables, then its own lower layers.

    With ``Compute``, outputs equal ``DomainLayers.window_outputs`` to the rounding of the tables' type,
    whatever the tables contain. Thread-safe: tables are read-only.
    """

    def __init__(
        self,
        tables: Sequence[LookupTable],
        layers: DomainLayers,
        *,
        layers_digest: str,
        on_miss: OnMiss,
        recent_bytes: int = _DEFAULT_RECENT_BYTES,
    ) -> None:
        """``tables``: the own one first, then ancestors', nearest first. ``layers`` compute misses.

        ``recent_bytes`` bounds the cache of computed windows. Raises ``InvalidInput`` TableOfOtherLayers,
        VocabularyTooLarge.
        """
        check_vocabulary(layers.config.encoder.vocab_size)
        self.tables = list(tables)
        self.layers = layers
        self.layers_digest = layers_digest
        self.on_miss = on_miss
        self._vocab_size = layers.config.encoder.vocab_size
        self._width = layers.config.encoder.width
        self._device = layers.word.device
        self._steps = plan_steps(self.tables, layers_digest, on_miss)
        self._last_form = WindowForm.TRIGRAM if on_miss is OnMiss.COMPUTE else WindowForm.UNIGRAM
        self.recent = RecentWindows(recent_bytes, self._width, self._device)

    def lookup(self, keys: Int64s) -> LookupResult:
        """Return the outputs of the windows with ``keys`` (N,)."""
        sources = np.full(len(keys), LookupSource.COMPUTED, dtype=np.int8)
        outputs, pending = self._first_step(keys, sources)
        for step in self._steps[1:]:
            if not len(pending):
                break
            rows = step.table.find(self._reduced(keys[pending], step.form)).numpy()
            hit = rows >= 0
            if hit.any():
                found = pending[hit]
                _put(outputs, found, step.table.gather(torch.from_numpy(rows[hit])))
                sources[found] = step.source
            pending = pending[~hit]
        if len(pending):
            self._compute_misses(keys[pending], pending, outputs, sources)
        return LookupResult(outputs, sources)

    def coverage(self, batches: Iterable[Tensor]) -> float:
        """Return the share, 0 to 1, of ``batches`` of windows (N, 3) that are in a table as trigrams."""
        hits = seen = 0
        for windows in batches:
            keys = self._keys(windows, WindowForm.TRIGRAM)
            found = torch.zeros(len(keys), dtype=torch.bool)
            for step in self._steps:
                if step.form is WindowForm.TRIGRAM:
                    found |= step.table.find(keys) >= 0
            hits += int(found.sum())
            seen += len(keys)
        return hits / seen if seen else 0.0

    def _first_step(self, keys: Int64s, sources: NDArray[np.int8]) -> tuple[Tensor, Int64s]:
        """Look up all windows in the first table; return outputs and the places of misses.

        Most windows hit here, so rows are gathered directly into the result; a miss gets an arbitrary row,
        which is overwritten later.
        """
        if not self._steps:
            return torch.empty(len(keys), 3, self._width, device=self._device), np.arange(len(keys))
        step = self._steps[0]
        rows = step.table.find(self._reduced(keys, step.form))
        hit = rows.numpy() >= 0
        sources[hit] = step.source
        return step.table.gather(rows), np.flatnonzero(~hit)

    def _keys(self, windows: Tensor, form: WindowForm) -> Tensor:
        return pack(form.of(windows), self._vocab_size)

    def _reduced(self, keys: Int64s, form: WindowForm) -> Tensor:
        """Return the keys (N,) of one form of the windows with ``keys`` (N,)."""
        whole = torch.from_numpy(keys)
        return whole if form is WindowForm.TRIGRAM else self._keys(unpack(whole, self._vocab_size), form)

    def _compute_misses(
        self, keys: Int64s, places: Int64s, outputs: Tensor, sources: NDArray[np.int8]
    ) -> None:
        """Fill ``outputs`` and ``sources`` at ``places`` from recently computed windows and the layers."""
        unique, inverse = torch.unique(self._reduced(keys, self._last_form), return_inverse=True)
        values = torch.empty(len(unique), 3, self._width, device=self._device)
        known, recent = self.recent.find(unique)
        _put(values, known.nonzero()[:, 0].numpy(), recent)
        fresh = unique[~known]
        if len(fresh):
            computed = self._compute(unpack(fresh, self._vocab_size))
            _put(values, (~known).nonzero()[:, 0].numpy(), computed)
            self.recent.add(fresh, computed)
        _put(outputs, places, values.index_select(0, inverse.to(values.device)))
        sources[places] = np.where(known.numpy(), LookupSource.RECENT, LookupSource.COMPUTED)[inverse.numpy()]

    @torch.no_grad()
    def _compute(self, windows: Tensor) -> Tensor:
        pieces = torch.split(windows.to(self._device), _COMPUTE_AT_ONCE)
        return torch.cat([self.layers.window_outputs(piece) for piece in pieces]).float()


def _put(target: Tensor, places: Int64s, values: Tensor) -> None:
    """Write ``values`` (M, ...) to ``target`` (N, ...) at ``places`` (M,), moving both to its device."""
    target.index_copy_(0, torch.from_numpy(places).to(target.device), values.to(target.device))


def lookup_many(lookups: Sequence[tuple[TreeLookup, int]], keys: Int64s) -> LookupResult:
    """Look up a mixed batch: of ``keys`` (N,) the first n through the first of ``lookups``, and so on.

    All lookups must be of one width.
    """
    if len(lookups) == 1:
        return lookups[0][0].lookup(keys)
    ends = np.cumsum([count for _, count in lookups])
    found = [
        lookup.lookup(keys[end - count : end]) for (lookup, count), end in zip(lookups, ends, strict=True)
    ]
    return LookupResult(
        torch.cat([one.outputs for one in found]), np.concatenate([one.sources for one in found])
    )
