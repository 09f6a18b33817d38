"""Lookup of windows through a Domain's tree of tables; windows that no table holds are computed.

``Compute`` searches the Domain's own table, and those of ancestors that were made by the same layers, for
the whole window: these hits are exact, and misses are computed. ``Backoff`` searches the own table for the
whole window, the bigram with the left neighbour, the one with the right, and the token alone, then every
ancestor in the same order. ``reference.lookup_reference`` is the slow version;
``tests/runtime/tables/test_table_lookup.py`` compares the two.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

import numpy as np
import torch
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_api.resources.domain import OnMiss
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.windows import ABSENT, check_vocabulary, pack, unpack
from hmi_runtime.tables.misses import MissSketch, RecentWindows
from hmi_runtime.tables.table import PlotTable


class Form(Enum):
    """How much of a window is asked for, as the columns that are left out."""

    TRIGRAM = ()
    LEFT_BIGRAM = (2,)
    RIGHT_BIGRAM = (0,)
    UNIGRAM = (0, 2)

    def of(self, windows: Tensor) -> Tensor:
        """Return ``windows`` (N, 3) int64 with what this form leaves out made ABSENT."""
        if self is Form.TRIGRAM:
            return windows
        reduced = windows.clone()
        reduced[:, list(self.value)] = ABSENT
        return reduced


class Level(IntEnum):
    """Where a window's parts came from; the values are what ``LookupResult.levels`` holds."""

    PADDING = -1
    OWN_TRIGRAM = 0
    OWN_BIGRAM = 1
    OWN_UNIGRAM = 2
    ANCESTOR_TRIGRAM = 3
    ANCESTOR_BIGRAM = 4
    ANCESTOR_UNIGRAM = 5
    RECENT = 6  # computed for an earlier request and kept
    COMPUTED = 7


@dataclass(frozen=True)
class Step:
    """Ask one table for one form of the windows that are still missing."""

    level: Level
    table: PlotTable
    form: Form


_OWN = {
    Form.TRIGRAM: Level.OWN_TRIGRAM,
    Form.LEFT_BIGRAM: Level.OWN_BIGRAM,
    Form.RIGHT_BIGRAM: Level.OWN_BIGRAM,
    Form.UNIGRAM: Level.OWN_UNIGRAM,
}
_ANCESTOR = {
    Form.TRIGRAM: Level.ANCESTOR_TRIGRAM,
    Form.LEFT_BIGRAM: Level.ANCESTOR_BIGRAM,
    Form.RIGHT_BIGRAM: Level.ANCESTOR_BIGRAM,
    Form.UNIGRAM: Level.ANCESTOR_UNIGRAM,
}


def plan_steps(tables: Sequence[PlotTable], layers_digest: str, on_miss: OnMiss) -> list[Step]:
    """Return the steps for ``tables``, the Domain's own first and then its ancestors', nearest first.

    Raises ``InvalidInput`` TableOfOtherLayers when the own table was not made by ``layers_digest``.
    """
    if tables and tables[0].layers_digest != layers_digest:
        raise InvalidInput(
            "TableOfOtherLayers",
            f"The Domain's table was made by layers {tables[0].layers_digest}, not {layers_digest}; "
            "build its table again.",
        )
    names = [_OWN if position == 0 else _ANCESTOR for position in range(len(tables))]
    if on_miss is OnMiss.COMPUTE:
        return [
            Step(level[Form.TRIGRAM], table, Form.TRIGRAM)
            for table, level in zip(tables, names, strict=True)
            if table.layers_digest == layers_digest and table.entries
        ]
    return [
        Step(level[form], table, form)
        for table, level in zip(tables, names, strict=True)
        if table.entries
        for form in Form
    ]


_COMPUTE_AT_ONCE = 4096  # windows; bounds the activations of a batch that misses everything
_DEFAULT_RECENT_BYTES = 32 << 20


def count_levels(levels: Tensor) -> dict[Level, int]:
    """Return how many of ``levels`` (any shape, int8) are each level, those that occur only, no padding."""
    counts = torch.bincount(levels.flatten().long() + 1, minlength=len(Level)).tolist()
    return {level: counts[level + 1] for level in Level if level >= 0 and counts[level + 1]}


@dataclass(frozen=True)
class LookupResult:
    """Windows' parts and where each came from."""

    parts: Tensor  # (N, 3, D) float32
    levels: Tensor  # (N,) int8, values of Level

    @property
    def lookups(self) -> int:
        """Windows asked for, without padding."""
        return int((self.levels != Level.PADDING).sum())

    @property
    def hits(self) -> int:
        """Windows that a table held, in whatever form, or that were computed earlier and kept."""
        return int(((self.levels != Level.PADDING) & (self.levels < Level.COMPUTED)).sum())

    def level_counts(self) -> dict[Level, int]:
        """Return how many windows came from each level."""
        return count_levels(self.levels)


@dataclass(frozen=True)
class BatchLookup:
    """The same for a padded batch; padding's parts are zero and its level is ``Level.PADDING``."""

    parts: Tensor  # (B, T, 3, D) float32
    levels: Tensor  # (B, T) int8

    def row_lookups(self) -> Tensor:
        """Return each row's windows (B,) int64."""
        return (self.levels != Level.PADDING).sum(dim=1)

    def row_hits(self) -> Tensor:
        """Return how many of each row's windows (B,) int64 were not computed."""
        return ((self.levels != Level.PADDING) & (self.levels < Level.COMPUTED)).sum(dim=1)

    def level_counts(self) -> dict[Level, int]:
        """Return how many windows came from each level."""
        return count_levels(self.levels)


class TreeLookup:
    """One Domain version's look-up: its own table, its ancestors', then its own lower layers.

    With ``Compute`` what is given back equals ``DomainLayers.window_parts`` to the rounding of the tables'
    type, whatever the tables hold. Threads may share it: tables are read only, and what changes (recently
    computed windows, counts of misses) is locked.
    """

    def __init__(
        self,
        tables: Sequence[PlotTable],
        layers: DomainLayers,
        *,
        layers_digest: str,
        on_miss: OnMiss,
        recent_bytes: int = _DEFAULT_RECENT_BYTES,
        misses: MissSketch | None = None,
    ) -> None:
        """Look in ``tables``, own first, then ancestors, nearest first; compute with ``layers``.

        ``recent_bytes`` bounds what is kept of computed windows. ``misses``, when given, counts the whole
        windows that the tables held in no exact form. Raises ``InvalidInput`` TableOfOtherLayers,
        VocabularyTooLarge.
        """
        check_vocabulary(layers.config.encoder.vocab_size)
        self.tables = list(tables)
        self.layers = layers
        self.layers_digest = layers_digest
        self.on_miss = on_miss
        self.misses = misses
        self._vocab_size = layers.config.encoder.vocab_size
        self._width = layers.config.encoder.width
        self._device = layers.word.device
        self._steps = plan_steps(self.tables, layers_digest, on_miss)
        self._last_form = Form.TRIGRAM if on_miss is OnMiss.COMPUTE else Form.UNIGRAM
        self._recent = RecentWindows(recent_bytes, self._width, self._device)
        self._lock = threading.Lock()

    @property
    def width(self) -> int:
        """D, the width of one part."""
        return self._width

    def lookup(self, windows: Tensor, mask: Tensor | None = None) -> LookupResult:
        """Return the parts of ``windows`` (N, 3) int64, given on the host.

        ``mask`` (N,) bool, when given, is False on padding, whose parts are zero.
        """
        parts, levels, pending = self._first_step(windows, mask)
        for step in self._steps[1:]:
            if not len(pending):
                break
            rows = step.table.find(self._keys(windows[pending], step.form))
            hit = rows >= 0
            if hit.any():
                found = pending[hit]
                _put(parts, found, step.table.gather(rows[hit]))
                levels[found] = step.level
            pending = pending[~hit]
        if len(pending):
            self._resolve(windows[pending], pending, parts, levels)
        if self.misses is not None:
            self._count_misses(self.misses, windows, levels)
        return LookupResult(parts, levels)

    def coverage(self, batches: Iterable[Tensor]) -> float:
        """Return the share, 0 to 1, of ``batches`` of windows (N, 3) that a table holds whole."""
        held = seen = 0
        for windows in batches:
            keys = self._keys(windows, Form.TRIGRAM)
            found = torch.zeros(len(keys), dtype=torch.bool)
            for step in self._steps:
                if step.form is Form.TRIGRAM:
                    found |= step.table.find(keys) >= 0
            held += int(found.sum())
            seen += len(keys)
        return held / seen if seen else 0.0

    def _first_step(self, windows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Ask the first table for all windows at once, and return parts, levels and what is missing.

        Nearly everything is found here, so its rows are gathered straight into the result, padding
        included; a missing window gets some row, and is overwritten later.
        """
        levels = torch.full((len(windows),), Level.COMPUTED, dtype=torch.int8)
        if self._steps:
            step = self._steps[0]
            rows = step.table.find(self._keys(windows, step.form))
            parts = step.table.gather(rows.clamp_min(0))
            levels.masked_fill_(rows >= 0, step.level)
        else:
            parts = torch.empty(len(windows), 3, self._width, device=self._device)
        if mask is not None:
            levels.masked_fill_(~mask, Level.PADDING)
            parts.index_fill_(0, (~mask).nonzero()[:, 0].to(parts.device), 0.0)
        return parts, levels, (levels == Level.COMPUTED).nonzero()[:, 0]

    def _keys(self, windows: Tensor, form: Form) -> Tensor:
        return pack(form.of(windows), self._vocab_size)

    def _resolve(self, windows: Tensor, places: Tensor, parts: Tensor, levels: Tensor) -> None:
        """Fill ``parts`` and ``levels`` at ``places`` from recent windows and the layers."""
        unique, inverse = torch.unique(self._keys(windows, self._last_form), return_inverse=True)
        values = torch.empty(len(unique), 3, self._width, device=self._device)
        with self._lock:
            held, kept = self._recent.find(unique)
        _put(values, held.nonzero()[:, 0], kept)
        fresh = unique[~held]
        if len(fresh):
            computed = self._compute(unpack(fresh, self._vocab_size))
            _put(values, (~held).nonzero()[:, 0], computed)
            with self._lock:
                self._recent.add(fresh, computed)
        _put(parts, places, values.index_select(0, inverse.to(values.device)))
        levels[places] = torch.where(held, int(Level.RECENT), int(Level.COMPUTED)).to(torch.int8)[inverse]

    @torch.no_grad()
    def _compute(self, windows: Tensor) -> Tensor:
        pieces = torch.split(windows.to(self._device), _COMPUTE_AT_ONCE)
        return torch.cat([self.layers.window_parts(piece) for piece in pieces]).float()

    def _count_misses(self, misses: MissSketch, windows: Tensor, levels: Tensor) -> None:
        held = (levels == Level.OWN_TRIGRAM) | (levels == Level.ANCESTOR_TRIGRAM)
        missed = ~held & (levels != Level.PADDING)
        if missed.any():
            keys = self._keys(windows[missed], Form.TRIGRAM).numpy()
            with self._lock:
                misses.add(*np.unique(keys, return_counts=True))


def _put(target: Tensor, places: Tensor, values: Tensor) -> None:
    """Write ``values`` (M, ...) to ``target`` (N, ...) at ``places`` (M,), moving both to its device."""
    target.index_copy_(0, places.to(target.device), values.to(target.device))


def lookup_many(
    lookups: Sequence[TreeLookup], domain_of_row: Tensor, windows: Tensor, mask: Tensor
) -> BatchLookup:
    """Look a mixed batch up: row b's windows through ``lookups[domain_of_row[b]]``.

    ``domain_of_row`` (B,) int64, ``windows`` (B, T, 3) int64, ``mask`` (B, T) bool, False on padding. All
    lookups must be of one width. One look-up a Domain, however many of the rows are its own.
    """
    rows, length = mask.shape
    levels = torch.empty(rows, length, dtype=torch.int8)
    parts: Tensor | None = None  # (B, T, 3, D)
    for domain in sorted(set(domain_of_row.tolist())):
        own = (domain_of_row == domain).nonzero()[:, 0]  # (b,)
        found = lookups[domain].lookup(windows[own].flatten(0, 1), mask[own].flatten())
        found_parts = found.parts.view(len(own), length, *found.parts.shape[1:])
        if len(own) == rows:  # one Domain: nothing to scatter
            return BatchLookup(found_parts, found.levels.view(rows, length))
        if parts is None:
            parts = found_parts.new_empty(rows, *found_parts.shape[1:])
        _put(parts, own, found_parts)
        levels[own] = found.levels.view(len(own), length)
    if parts is None:
        raise ValueError("a batch has at least one row")
    return BatchLookup(parts, levels)
