"""The frozen backbone of an adapter: a base model with a Domain's lower layers, and cached features of rows.

Features are the hidden states at the split. The lower layers are frozen while a task is trained, so features
are the same in every epoch and are computed once, into a float16 file of 2 x D bytes a token: the precision
of a table's own values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.internal.catalog import DomainVersionView
from hmi_api.resources.domain import OnMiss
from hmi_runtime.artifacts.store import Store
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.source import BaseModel, load_base
from hmi_runtime.models.windows import trigrams
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import PlotTable
from hmi_runtime.training.token_dataset import pad_rows

_ROWS_AT_ONCE = 64
_HALF_LIMIT = torch.finfo(torch.float16).max


def to_float16(values: Tensor) -> NDArray[np.float16]:
    """Return ``values`` as float16, clamped to its range instead of overflowing to infinity."""
    halves: NDArray[np.float16] = values.clamp(-_HALF_LIMIT, _HALF_LIMIT).to(torch.float16).numpy()
    return halves


class FeatureExtractor(Protocol):
    """Computes features (B, T, D) of ``ids`` (B, T) int64 with ``mask`` (B, T) bool."""

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor: ...


def lookup_extractor(layers: DomainLayers, lookup: TreeLookup) -> FeatureExtractor:
    """Return an extractor that computes what a runtime serves with this lookup.

    It is several times faster than the layers where tables have most windows.
    """

    def represent(ids: Tensor, mask: Tensor) -> Tensor:
        found = lookup.lookup(trigrams(ids, mask)[mask]).outputs  # (N, 3, D)
        parts = found.new_zeros((*ids.shape, *found.shape[1:]))  # (B, T, 3, D)
        parts[mask] = found
        return layers.combine_windows(parts, mask)

    return represent


@dataclass(frozen=True)
class FeatureFile:
    """Features of numbered rows, on disk."""

    values: NDArray[np.float16]  # (N, D), all rows' tokens one after another
    offsets: NDArray[np.int64]  # (R + 1,)

    @classmethod
    def write(
        cls,
        path: Path,
        ids: Sequence[NDArray[np.int64]],
        represent: FeatureExtractor,
        *,
        width: int,
        pad_id: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "FeatureFile":
        """Compute the features of ``ids``, R rows of (T,), into ``path``."""
        lengths = np.array([len(row) for row in ids], np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = np.memmap(path, np.float16, "w+", shape=(int(offsets[-1]), width))
        order = np.argsort(lengths, kind="stable")
        with torch.no_grad():
            for start in range(0, len(order), _ROWS_AT_ONCE):
                numbers = order[start : start + _ROWS_AT_ONCE]
                batch, mask = pad_rows([ids[number] for number in numbers], pad_id)
                halves = to_float16(represent(batch, mask))  # (B, T, D)
                for place, number in enumerate(numbers):
                    values[offsets[number] : offsets[number + 1]] = halves[place, : lengths[number]]
                progress(min(start + _ROWS_AT_ONCE, len(order)), len(order))
        values.flush()
        return cls(values, offsets)

    @classmethod
    def open(cls, path: Path, ids: Sequence[NDArray[np.int64]], width: int) -> "FeatureFile":
        """Memory-map a file that ``write`` made for the same rows."""
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


_RECENT_BYTES = 256 << 20  # cache of computed windows, for one file of features


@dataclass(frozen=True)
class Backbone:
    """A base model, its split, and a Domain's features there."""

    base: BaseModel
    encoder: Encoder
    split: int
    new_extractor: Callable[[], FeatureExtractor]
    """Makes an extractor with an empty cache, so that results do not depend on earlier use."""
    layers_digest: str | None

    @classmethod
    def from_layers(cls, base: BaseModel, layers: DomainLayers, layers_digest: str | None) -> "Backbone":
        """Use layers in memory without a table: every window is computed."""
        return cls(base, base.encoder(), layers.config.split, _representations([], layers), layers_digest)

    @classmethod
    def from_unsplit_base(cls, base: BaseModel, split: int) -> "Backbone":
        """Use the base model's own lower layers, not window-local: the reference for comparisons."""
        encoder = base.encoder()

        def represent(ids: Tensor, mask: Tensor) -> Tensor:
            return encoder.hidden_states(ids, mask)[split]

        return cls(base, encoder, split, lambda: represent, None)

    @classmethod
    def from_version(cls, domain: DomainVersionView, store: Store, cache: Path) -> "Backbone":
        """Use a published Domain version, with features as a runtime serves them.

        Raises what loading the base (``Damaged`` BaseModelChanged if its weights changed) and
        fetching artifacts raise.
        """
        base = load_base(domain.base.uri, domain.base.revision, expected_digest=domain.base_digest)
        encoder = base.encoder()
        layers = DomainLayers.load(store.fetch(domain.layers, cache), encoder)
        tables = [PlotTable.load(store.fetch(ref, cache)) for ref in domain.tables]
        representations = _representations(tables, layers, domain.layers.digest, domain.on_miss)
        return cls(base, encoder, domain.split, representations, domain.layers.digest)

    def features(self, ids: Sequence[NDArray[np.int64]], path: Path) -> FeatureFile:
        """Return features of rows of token ids, R of (T,); computed into ``path`` unless they are there."""
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part, config = path.with_suffix(".part"), self.base.config
            FeatureFile.write(part, ids, self.new_extractor(), width=config.width, pad_id=config.pad_id)
            part.replace(path)
        return FeatureFile.open(path, ids, self.base.config.width)

    def upper(self) -> UpperLayers:
        """Return a fresh, frozen copy of the upper layers."""
        return UpperLayers(self.encoder, self.split).requires_grad_(False).eval()


def _representations(
    tables: Sequence[PlotTable],
    layers: DomainLayers,
    layers_digest: str = "",
    on_miss: OnMiss = OnMiss.COMPUTE,
) -> Callable[[], FeatureExtractor]:
    def new_extractor() -> FeatureExtractor:
        lookup = TreeLookup(
            tables, layers, layers_digest=layers_digest, on_miss=on_miss, recent_bytes=_RECENT_BYTES
        )
        return lookup_extractor(layers, lookup)

    return new_extractor
