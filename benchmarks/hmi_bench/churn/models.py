"""Domains and adapters whose answers can be told apart, with the answers of the reference.

All Domains are on one small base model, with lower layers of their own. The biases of a head are digits of
the generation's number, so that no other generation gives the same probabilities; LoRA, norms and the head's
weight are random and large enough that another text or another Domain's states give other ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from torch import Tensor

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runtimes import DomainServing
from hmi_api.resources.domain import BaseModelRef, OnMiss
from hmi_bench.churn.history import Generation
from hmi_bench.runtime_setup import PublishedDomain, distinct_windows, make_table
from hmi_bench.serving.hmi import random_adapter
from hmi_runtime.adapters.heads import run_head
from hmi_runtime.adapters.reference import run_layers
from hmi_runtime.adapters.weights import AdapterWeights, LayerAdapter, LoraMatrix
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.models.source import BaseModel

LABELS = 12
RANK = 4
_STEP = 0.8
"""Difference of a logit between two values of a digit."""
_DIGIT_VALUES = 4
_SPREAD = 10.0  # of LoRA and the head's weight, over those of ``random_adapter``
_OTHER_ENTRIES = 200


class _Saved(Protocol):
    def save(self, folder: Path) -> None: ...


@dataclass
class ChurnDomain:
    """A Domain: layers that stay, and a table that every refresh replaces."""

    key: str
    base: BaseModel
    upper: UpperLayers  # of the base, for the reference
    store: ArtifactStore
    layers: DomainLayers
    layers_ref: ArtifactRef
    states: Tensor  # (texts, T, D): the reference's states at the split
    mask: Tensor  # (texts, T) bool
    windows: Tensor  # (W, 3) of all texts
    published: PublishedDomain = field(init=False)

    def __post_init__(self) -> None:
        self.published = self._publish(1)

    @property
    def serving(self) -> DomainServing:
        """The current version, as a desired state announces it."""
        return self.published.serving

    def refresh(self) -> None:
        """Publish the next version: the same layers, a table with other windows."""
        self.published = self._publish(self.serving.version.version + 1)

    @torch.inference_mode()
    def answers(self, weights: AdapterWeights) -> Tensor:
        """Return the reference's answers to every text, logarithms of probabilities (texts, labels)."""
        whole = weights.as_stored().as_float32()
        last = run_layers(self.upper, whole.layers, self.states, self.mask)
        logits = [run_head(whole.head, row, seen) for row, seen in zip(last, self.mask, strict=True)]
        return torch.stack(logits).log_softmax(-1)

    def _publish(self, version: int) -> PublishedDomain:
        """Publish a table of a random half of the windows and others; the runtime computes the rest."""
        random = torch.Generator().manual_seed(version)
        kept = torch.rand(len(self.windows), generator=random) < 0.5
        with torch.inference_mode():
            outputs = self.layers.window_outputs(self.windows[kept])
        table = make_table(
            self.windows[kept],
            outputs,
            self.layers,
            self.layers_ref.digest,
            other_entries=_OTHER_ENTRIES,
            absent=self.windows[~kept],
        )
        view = DomainVersionView(
            version=version,
            spec_digest="sha256:churn",
            base=BaseModelRef(uri=self.base.uri),
            base_digest=self.base.digest,
            split=self.base.config.layers // 2,
            layers=self.layers_ref,
            tables=[_publish(self.store, ArtifactKind.TABLE, table, self.base, self.layers_ref.digest)],
            on_miss=OnMiss.COMPUTE,
            entries=table.entries,
            coverage=0.5,
        )
        return PublishedDomain(self.base, self.store, DomainServing(key=self.key, version=view))


def make_domain(number: int, base: BaseModel, store: ArtifactStore, texts: Sequence[str]) -> ChurnDomain:
    """Publish Domain ``number``: random layers, the same base model and split as the others'."""
    encoder, split = base.encoder(), base.config.layers // 2
    layers = DomainLayers.from_encoder(encoder, split, bridge_heads=2, bridge_head_size=8)
    random = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    layers.requires_grad_(False).eval()
    encodings = base.tokenizer.encode(texts, base.config.positions)
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = torch.full((len(texts), longest), base.config.pad_id)
    for row, encoding in zip(ids, encodings, strict=True):
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
    mask = torch.arange(longest) < lengths[:, None]
    with torch.inference_mode():
        states = layers.represent(ids, mask)
    return ChurnDomain(
        key=f"churn/domain-{number}",
        base=base,
        upper=UpperLayers(encoder, split),
        store=store,
        layers=layers,
        layers_ref=_publish(store, ArtifactKind.LAYERS, layers, base),
        states=states,
        mask=mask,
        windows=distinct_windows(base, texts),
    )


class AdapterMaker:
    """Makes generations of adapters; every one has a number of its own."""

    def __init__(self) -> None:
        self.made: list[Generation] = []

    def make(self, key: str, version: int, domain: ChurnDomain) -> Generation:
        """Make and publish the next generation, for the layers of ``domain``."""
        weights = self.weights(len(self.made), domain)
        serving = domain.published.publish(key, weights, version)
        generation = Generation(len(self.made), serving, domain.answers(weights))
        self.made.append(generation)
        return generation

    def weights(self, number: int, domain: ChurnDomain) -> AdapterWeights:
        """Return the weights of generation ``number``."""
        made = random_adapter(domain.upper, RANK, LABELS, seed=number)
        layers = {index: _enlarged(layer) for index, layer in made.layers.items()}
        head = replace(made.head, weight=made.head.weight * _SPREAD, bias=_digits(number) * _STEP)
        return replace(
            made,
            layers=layers,
            head=head,
            base_digest=domain.base.digest,
            layers_digest=domain.layers_ref.digest,
        )


def _enlarged(layer: LayerAdapter) -> LayerAdapter:
    lora = {name: LoraMatrix(m.a * _SPREAD, m.b * _SPREAD) for name, m in layer.lora.items()}
    return replace(layer, lora=lora)


def _digits(number: int) -> Tensor:
    """Return the digits of ``number`` (LABELS,), the last one 0: a constant in all logits changes nothing."""
    digits = []
    for _ in range(LABELS - 1):
        number, digit = divmod(number, _DIGIT_VALUES)
        digits.append(float(digit))
    if number:
        raise ValueError("more generations than the labels' digits can number")
    return torch.tensor([*digits, 0.0])


def _publish(
    store: ArtifactStore, kind: ArtifactKind, saved: _Saved, base: BaseModel, layers_digest: str | None = None
) -> ArtifactRef:
    with TemporaryDirectory() as folder:
        saved.save(Path(folder))
        return store.publish(kind, Path(folder), base_digest=base.digest, layers_digest=layers_digest)
