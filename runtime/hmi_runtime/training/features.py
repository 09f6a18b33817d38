"""Representations at the split, computed once for all epochs.

While a task is learnt its Domain's layers stand still, so what enters the upper layers is the same in
every epoch. It is kept in a float16 file, 2 x D bytes a token: as exact as a table's own values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_runtime.models import DomainLayers, trigrams
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.training.spool import pad_rows

_ROWS_AT_ONCE = 64
_HALF_LIMIT = torch.finfo(torch.float16).max


def to_half(values: Tensor) -> NDArray[np.float16]:
    """Return ``values`` as float16, those beyond its range cut to its ends and not made infinite."""
    halves: NDArray[np.float16] = values.clamp(-_HALF_LIMIT, _HALF_LIMIT).to(torch.float16).numpy()
    return halves


class Representation(Protocol):
    """Gives the representation at the split (B, T, D) of ``ids`` (B, T) int64, ``mask`` (B, T) bool."""

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor: ...


def looked_up(layers: DomainLayers, lookup: TreeLookup) -> Representation:
    """Return what a runtime computes with this look-up: what is learnt on is what is served.

    Where tables hold most windows this is also several times quicker than running the layers.
    """

    def represent(ids: Tensor, mask: Tensor) -> Tensor:
        found = lookup.lookup(trigrams(ids, mask)[mask]).outputs  # (N, 3, D)
        parts = found.new_zeros((*ids.shape, *found.shape[1:]))  # (B, T, 3, D)
        parts[mask] = found
        return layers.combine_windows(parts, mask)

    return represent


@dataclass(frozen=True)
class FeatureFile:
    """The representations of numbered rows, on disk."""

    values: NDArray[np.float16]  # (N, D), all rows' tokens one after another
    offsets: NDArray[np.int64]  # (R + 1,)

    @classmethod
    def write(
        cls,
        path: Path,
        ids: Sequence[NDArray[np.int64]],
        represent: Representation,
        *,
        width: int,
        pad_id: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "FeatureFile":
        """Compute the representations of ``ids``, R rows of (T,), into ``path``."""
        lengths = np.array([len(row) for row in ids], np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = np.memmap(path, np.float16, "w+", shape=(int(offsets[-1]), width))
        order = np.argsort(lengths, kind="stable")
        with torch.no_grad():
            for start in range(0, len(order), _ROWS_AT_ONCE):
                numbers = order[start : start + _ROWS_AT_ONCE]
                batch, mask = pad_rows([ids[number] for number in numbers], pad_id)
                halves = to_half(represent(batch, mask))  # (B, T, D)
                for place, number in enumerate(numbers):
                    values[offsets[number] : offsets[number + 1]] = halves[place, : lengths[number]]
                progress(min(start + _ROWS_AT_ONCE, len(order)), len(order))
        values.flush()
        return cls(values, offsets)

    @classmethod
    def open(cls, path: Path, ids: Sequence[NDArray[np.int64]], width: int) -> "FeatureFile":
        """Map a file that ``write`` finished for the same rows."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
        return cls(np.memmap(path, np.float16, "r", shape=(int(offsets[-1]), width)), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, numbers: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return float32 states (B, T, D), zero on padding, and mask (B, T) bool."""
        spans = [(int(self.offsets[n]), int(self.offsets[n + 1])) for n in numbers]
        longest = max(end - start for start, end in spans)
        states = np.zeros((len(spans), longest, self.values.shape[1]), np.float32)
        mask = torch.zeros(len(spans), longest, dtype=torch.bool)
        for place, (start, end) in enumerate(spans):
            states[place, : end - start] = self.values[start:end]
            mask[place, : end - start] = True
        return torch.from_numpy(states), mask
