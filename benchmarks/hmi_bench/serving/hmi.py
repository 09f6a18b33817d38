"""This runtime's own path of a batch: look up, compose, bridge, upper layers with an adapter a row, heads.

Weights are random, of BERT-base's shape: their values do not change the time. Adapters are what the
default fit serves: LoRA on all six matrices of every upper layer, with whole biases and norms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hmi_api.resources.domain import OnMiss
from hmi_api.resources.task_adapter import TaskType
from hmi_bench.serving.systems import Batch
from hmi_runtime.adapters.executor import Precision, UpperExecutor
from hmi_runtime.adapters.heads import run_heads
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights, Head, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES, NORMS, EncoderConfig
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.windows import pack, trigrams
from hmi_runtime.tables.lookup import TreeLookup, lookup_many
from hmi_runtime.tables.table import PlotTable

BERT_BASE = EncoderConfig(
    family="bert", layers=12, width=768, heads=12, ffn_width=3072, vocab_size=30522, positions=512,
    segments=2, norm_eps=1e-12, activation="gelu", pad_id=0, cls_id=101, sep_id=102,
)  # fmt: skip

_OTHER_ENTRIES = 50_000  # windows of other texts, so that a look-up searches a table of real size
_LAYERS_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Shared:
    """What all variants of this runtime have in common: one base model and one Domain."""

    encoder: Encoder
    layers: DomainLayers
    upper: UpperLayers

    @classmethod
    def make(cls, config: EncoderConfig = BERT_BASE) -> "Shared":
        """Make a random base model split at half, and a Domain's layers with the default bridge."""
        torch.manual_seed(0)
        encoder = Encoder(config).requires_grad_(False).eval()
        split = config.layers // 2
        layers = DomainLayers.from_encoder(encoder, split, bridge_heads=4, bridge_head_size=24)
        return cls(encoder, layers.requires_grad_(False).eval(), UpperLayers(encoder, split))


class HierarchicalRuntime:
    """The runtime's computation for one batch; ``rank`` None is the limit: the same with no adapters.

    ``found`` is the share of windows that the table holds; the rest is computed on the spot, each time.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        rank: int | None,
        rows: int,
        precision: Precision = "float32",
        found: float = 1.0,
    ) -> None:
        adapters = f"LoRA {rank} a row" if rank else "no adapters (the limit)"
        missing = "" if found == 1.0 else f", {1 - found:.0%} of windows computed"
        self.name = f"HMI {precision}, {adapters}{missing}"
        self._shared = shared
        self._found = found
        pool = SlotPool(shared.upper, rows, SlotLimits(max_rank=rank or 8, dense_heads=False))
        weights = [random_adapter(shared.upper, rank or 8, 2 + row % 14, seed=row) for row in range(rows)]
        for slot, adapter in enumerate(weights):
            pool.write(slot, adapter)
        self.bytes_a_tenant = weights[0].nbytes if rank else 0
        self._rank = rank
        self._executor = UpperExecutor(shared.upper, pool, precision)

    def prepare(self, batch: Batch) -> None:
        """Build a table that holds ``found`` of the batch's windows among many others."""
        layers = self._shared.layers
        config = layers.config.encoder
        random = torch.Generator().manual_seed(1)
        windows = torch.unique(trigrams(batch.ids, batch.mask)[batch.mask], dim=0)  # (W, 3)
        kept = windows[torch.rand(len(windows), generator=random) < self._found]
        others = torch.randint(1, config.vocab_size, (_OTHER_ENTRIES, 3), generator=random)
        keys = torch.unique(pack(torch.cat([kept, others]), config.vocab_size))
        # Of the texts' own windows no more than asked for may be in the table, by chance or otherwise.
        own = pack(windows, config.vocab_size)
        missing = own[~torch.isin(own, pack(kept, config.vocab_size))]
        keys = keys[~torch.isin(keys, missing)]
        parts = torch.randn(len(keys), 3, config.width, generator=random) * 0.3
        table = PlotTable.from_outputs(
            keys, parts, vocab_size=config.vocab_size, layers_digest=_LAYERS_DIGEST
        )
        self._lookup = TreeLookup(
            [table], layers, layers_digest=_LAYERS_DIGEST, on_miss=OnMiss.COMPUTE, recent_bytes=0
        )

    def serve(self, batch: Batch) -> list[Tensor]:
        """Return each row's logits."""
        domains = torch.zeros(len(batch), dtype=torch.int64)
        windows = trigrams(batch.ids, batch.mask)  # (B, T, 3)
        parts = lookup_many([self._lookup], domains, windows, batch.mask).outputs  # (B, T, 3, D)
        hidden = self._shared.layers.combine_windows(parts, batch.mask)  # (B, T, D)
        slots = list(range(len(batch)))
        run_slots = slots if self._rank else [BARE] * len(batch)
        hidden = self._executor.run(hidden, batch.mask, run_slots)  # (B, T, D)
        return run_heads(self._executor.pool, hidden, batch.mask, slots)


def random_adapter(
    upper: UpperLayers, rank: int, labels: int, *, seed: int, whole_vectors: bool = True
) -> AdapterWeights:
    """Return a random adapter of the served kind; ``whole_vectors``: with its own biases and norms."""
    random = torch.Generator().manual_seed(seed)
    config = upper.config

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) * 0.02

    changes = {}
    for index in range(upper.split, config.layers):
        shapes = {name: config.matrix_shape(name) for name in MATRICES}
        changes[index] = LayerAdapter(
            lora={
                n: LoraMatrix(normal(rank, inner), normal(out, rank)) for n, (out, inner) in shapes.items()
            },
            bias={n: normal(out) for n, (out, _) in shapes.items()} if whole_vectors else {},
            norms={n: (1 + normal(config.width), normal(config.width)) for n in NORMS}
            if whole_vectors
            else {},
        )
    head = Head("first_and_mean", normal(labels, 2 * config.width), normal(labels))
    names = tuple(f"label-{number}" for number in range(labels))
    return AdapterWeights(TaskType.SEQUENCE_CLASSIFICATION, names, changes, head, "sha256:base")
