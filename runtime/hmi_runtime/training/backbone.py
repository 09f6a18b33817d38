"""The frozen backbone of an adapter: a base model with a Domain's lower layers, and cached features of rows.

Features are the hidden states at the split. The lower layers are frozen while a task is trained, so features
are the same in every epoch. They are computed once, into a float16 file of 2 x D bytes a token. Tables store
their values in float16 too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.internal.catalog import DomainVersionView
from hmi_api.resources.domain import OnMiss
from hmi_runtime.adapters.native.windows import pack_windows
from hmi_runtime.artifacts.store import Store
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.source import BaseModel, load_base
from hmi_runtime.models.windows import pack, trigrams
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import PlotTable
from hmi_runtime.training.token_dataset import RowIndices, TokenRows, pad_rows

_ROWS_AT_ONCE = 64
_RECENT_BYTES = 256 << 20  # cache of computed windows, for one file of features
_HALF_LIMIT = torch.finfo(torch.float16).max


def to_float16(values: Tensor) -> NDArray[np.float16]:
    """Return ``values`` as float16, clamped to its range instead of overflowing to infinity."""
    halves: NDArray[np.float16] = values.clamp(-_HALF_LIMIT, _HALF_LIMIT).to(torch.float16).numpy()
    return halves


BatchFunction = Callable[[Tensor, Tensor], Tensor]
"""From token ids (B, T) int64, or features (B, T, D), and mask (B, T) bool to features or logits."""


@dataclass(frozen=True)
class RowFile:
    """Float16 vectors of numbered rows, on disk: features of tokens, or logits of tokens or of rows."""

    values: NDArray[np.float16]  # (N, W), all rows' vectors one after another
    offsets: NDArray[np.int64]  # (R + 1,)

    @classmethod
    def write(
        cls, path: Path, ids: TokenRows, compute: BatchFunction, *, width: int, pad_id: int, per_token: bool
    ) -> "RowFile":
        """Compute the vectors of ``ids`` and open them; ``path`` exists once all are written.

        ``compute`` returns (B, T, W), or (B, W) unless ``per_token``.
        """
        offsets = _offsets(ids, per_token=per_token)
        part = path.with_suffix(".part")
        values = np.memmap(part, np.float16, "w+", shape=(int(offsets[-1]), width))
        order = np.argsort([len(row) for row in ids], kind="stable")
        with torch.no_grad():
            for start in range(0, len(order), _ROWS_AT_ONCE):
                numbers = order[start : start + _ROWS_AT_ONCE]
                computed = to_float16(compute(*pad_rows([ids[number] for number in numbers], pad_id)))
                for vectors, number in zip(computed, numbers, strict=True):
                    begin, end = offsets[number], offsets[number + 1]
                    values[begin:end] = vectors[: end - begin] if per_token else vectors
        values.flush()
        part.replace(path)
        return cls.open(path, ids, width, per_token=per_token)

    @classmethod
    def open(cls, path: Path, ids: TokenRows, width: int, *, per_token: bool) -> "RowFile":
        """Memory-map the file that ``write`` made for the same rows."""
        offsets = _offsets(ids, per_token=per_token)
        return cls(np.memmap(path, np.float16, "r", shape=(int(offsets[-1]), width)), offsets)

    def batch(self, numbers: RowIndices) -> tuple[Tensor, Tensor]:
        """Return float32 vectors (B, T, W), zero on padding, and mask (B, T) bool; T is 1 if one a row."""
        spans = [(int(self.offsets[n]), int(self.offsets[n + 1])) for n in numbers]
        longest = max(end - start for start, end in spans)
        vectors = np.zeros((len(spans), longest, self.values.shape[1]), np.float32)
        mask = torch.zeros(len(spans), longest, dtype=torch.bool)
        for place, (start, end) in enumerate(spans):
            vectors[place, : end - start] = self.values[start:end]
            mask[place, : end - start] = True
        return torch.from_numpy(vectors), mask


def _offsets(ids: TokenRows, *, per_token: bool) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(row) if per_token else 1 for row in ids])]).astype(np.int64)


@dataclass(frozen=True)
class Backbone:
    """A base model, its split, and a Domain's features there."""

    base: BaseModel
    encoder: Encoder
    split: int
    new_extractor: Callable[[], BatchFunction]
    """Makes an extractor with an empty cache, so that results do not depend on earlier use."""
    layers_digest: str | None

    @classmethod
    def from_layers(cls, base: BaseModel, layers: DomainLayers, layers_digest: str | None) -> "Backbone":
        """Use layers in memory without a table: every window is computed."""
        return cls(base, base.encoder(), layers.config.split, _extractors([], layers), layers_digest)

    @classmethod
    def from_unsplit_base(cls, base: BaseModel, split: int) -> "Backbone":
        """Use the base model's own lower layers, not window-local: the reference for comparisons."""
        encoder = base.encoder()

        def extract(ids: Tensor, mask: Tensor) -> Tensor:
            return encoder.hidden_states(ids, mask)[split]

        return cls(base, encoder, split, lambda: extract, None)

    @classmethod
    def from_version(cls, domain: DomainVersionView, store: Store, cache: Path) -> "Backbone":
        """Use a published Domain version, with features as a runtime serves them.

        Raises what loading the base (``Damaged`` BaseModelChanged if its weights changed) and
        fetching artifacts raise.
        """
        base = load_base(domain.base.uri, domain.base.revision, expected_digest=domain.base_digest)
        encoder = base.encoder()
        layers = DomainLayers.load(store.fetch(domain.layers, cache), encoder)
        pack_windows(layers)
        tables = [PlotTable.load(store.fetch(ref, cache)) for ref in domain.tables]
        extractors = _extractors(tables, layers, domain.layers.digest, domain.on_miss)
        return cls(base, encoder, domain.split, extractors, domain.layers.digest)

    def features(self, ids: TokenRows, path: Path) -> RowFile:
        """Return features of rows of token ids; computed into ``path`` unless they are there."""
        config = self.base.config
        if path.is_file():
            return RowFile.open(path, ids, config.width, per_token=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return RowFile.write(
            path, ids, self.new_extractor(), width=config.width, pad_id=config.pad_id, per_token=True
        )

    def upper(self) -> UpperLayers:
        """Return a fresh, frozen copy of the upper layers."""
        return UpperLayers(self.encoder, self.split).requires_grad_(False).eval()


def _extractors(
    tables: Sequence[PlotTable],
    layers: DomainLayers,
    layers_digest: str = "",
    on_miss: OnMiss = OnMiss.COMPUTE,
) -> Callable[[], BatchFunction]:
    """Return a maker of extractors that compute what a runtime serves with these tables.

    They are several times faster than the layers where tables have most windows.
    """

    def new_extractor() -> BatchFunction:
        lookup = TreeLookup(
            tables, layers, layers_digest=layers_digest, on_miss=on_miss, recent_bytes=_RECENT_BYTES
        )

        def extract(ids: Tensor, mask: Tensor) -> Tensor:
            keys = pack(trigrams(ids, mask)[mask], layers.config.encoder.vocab_size)
            found = lookup.lookup(keys.numpy()).outputs  # (N, 3, D)
            parts = found.new_zeros((*ids.shape, *found.shape[1:]))  # (B, T, 3, D)
            parts[mask] = found
            return layers.combine_windows(parts, mask)

        return extract

    return new_extractor
