"""What a task adapter stands on: a base model and one version of a Domain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hmi_api.internal.catalog import DomainVersionView
from hmi_api.resources.domain import OnMiss
from hmi_runtime.artifacts import Store
from hmi_runtime.models import BaseModel, DomainLayers, Encoder, UpperLayers, load_base
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import PlotTable
from hmi_runtime.training.features import FeatureFile, Representation, looked_up

_RECENT_BYTES = 256 << 20  # computed windows kept while the rows of one file are represented


@dataclass(frozen=True)
class Foundation:
    """A base model, its split, and how a Domain represents text there."""

    base: BaseModel
    encoder: Encoder
    split: int
    new_representation: Callable[[], Representation]
    """Makes one that has looked nothing up yet, so that what it gives depends on no earlier use."""
    layers_digest: str | None

    @classmethod
    def of_layers(cls, base: BaseModel, layers: DomainLayers, layers_digest: str | None) -> "Foundation":
        """Stand on layers in memory, with no table: every window is computed."""
        return cls(base, base.encoder(), layers.config.split, _representations([], layers), layers_digest)

    @classmethod
    def of_unsplit(cls, base: BaseModel, split: int) -> "Foundation":
        """Stand on the base model's own lower layers, unsplit: what hierarchical models are held against."""
        encoder = base.encoder()

        def represent(ids: Tensor, mask: Tensor) -> Tensor:
            return encoder.hidden_states(ids, mask)[split]

        return cls(base, encoder, split, lambda: represent, None)

    @classmethod
    def of_version(cls, domain: DomainVersionView, store: Store, cache: Path) -> "Foundation":
        """Stand on a published Domain version, represented as a runtime would serve it.

        Raises what loading the base (``Damaged`` BaseModelChanged when its weights are others now) and
        fetching artifacts raise.
        """
        base = load_base(domain.base.uri, domain.base.revision, expected_digest=domain.base_digest)
        encoder = base.encoder()
        layers = DomainLayers.load(store.fetch(domain.layers, cache), encoder)
        tables = [PlotTable.load(store.fetch(ref, cache)) for ref in domain.tables]
        representations = _representations(tables, layers, domain.layers.digest, domain.on_miss)
        return cls(base, encoder, domain.split, representations, domain.layers.digest)

    def features(self, ids: Sequence[NDArray[np.int64]], path: Path) -> FeatureFile:
        """Represent rows of token ids, R of (T,), into ``path``, or find them there."""
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part, config = path.with_suffix(".part"), self.base.config
            FeatureFile.write(part, ids, self.new_representation(), width=config.width, pad_id=config.pad_id)
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
) -> Callable[[], Representation]:
    def new_representation() -> Representation:
        lookup = TreeLookup(
            tables, layers, layers_digest=layers_digest, on_miss=on_miss, recent_bytes=_RECENT_BYTES
        )
        return looked_up(layers, lookup)

    return new_representation
