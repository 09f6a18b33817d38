"""This runtime's computation for a batch: lookup, bridge, upper layers with an adapter a row, heads.

Weights are random and have BERT-base's shape, since their values do not change the time. Adapters are of the
default kind: LoRA on all six matrices of every upper layer, with biases and norms of their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hmi_api.resources.domain import OnMiss
from hmi_api.resources.task_adapter import TaskType
from hmi_bench.runtime_setup import make_table
from hmi_bench.serving.systems import CPU, Batch
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.frozen import Precision
from hmi_runtime.adapters.heads import run_heads
from hmi_runtime.adapters.kernels import default_kernel
from hmi_runtime.adapters.native.windows import pack_windows
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights, Head, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES, NORMS, EncoderConfig
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.packing import pad_tokens, window_keys
from hmi_runtime.models.windows import trigrams
from hmi_runtime.tables.lookup import TreeLookup

BERT_BASE = EncoderConfig(
    family="bert", layers=12, width=768, heads=12, ffn_width=3072, vocab_size=30522, positions=512,
    segments=2, norm_eps=1e-12, activation="gelu", pad_id=0, cls_id=101, sep_id=102,
)  # fmt: skip

_OTHER_ENTRIES = 50_000  # random windows, so that lookups search a table of realistic size
_LAYERS_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Shared:
    """The base model and the Domain that all variants share."""

    encoder: Encoder
    layers: DomainLayers
    upper: UpperLayers

    @classmethod
    def make(cls, config: EncoderConfig = BERT_BASE, *, device: torch.device = CPU) -> "Shared":
        """Make a random base model, split in the middle, and a Domain's layers with the default bridge."""
        torch.manual_seed(0)
        encoder = Encoder(config).requires_grad_(False).eval().to(device)
        split = config.layers // 2
        layers = DomainLayers.from_encoder(encoder, split, bridge_heads=4, bridge_head_size=24)
        layers = layers.requires_grad_(False).eval().to(device)
        pack_windows(layers)
        return cls(encoder, layers, UpperLayers(encoder, split))


def system_name(precision: Precision, rank: int | None, found: float = 1.0) -> str:
    """Return the name of a variant in tables; see ``HierarchicalRuntime``."""
    adapters = f"LoRA {rank} a row" if rank else "no adapters (the limit)"
    missing = "" if found == 1.0 else f", {1 - found:.0%} of windows computed"
    return f"HMI {precision}, {adapters}{missing}"


class HierarchicalRuntime:
    """The runtime's computation for one batch. ``rank`` None is the limit: the same without adapters.

    ``found`` is the share of windows in the table; the others are computed each time.
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
        self.name = system_name(precision, rank, found)
        self._shared = shared
        self._found = found
        self._device = shared.encoder.word.weight.device
        kernel = default_kernel(precision, self._device, shared.upper)
        limits = SlotLimits(max_rank=rank or 8, dense_heads=False, dtype=kernel.slot_dtype)
        pool = SlotPool(shared.upper, rows, limits, self._device)
        weights = [
            random_adapter(shared.upper, rank or 8, 2 + row % 14, seed=row).as_stored() for row in range(rows)
        ]
        for slot, adapter in enumerate(weights):
            pool.write(slot, adapter)
        self.bytes_a_tenant = weights[0].nbytes if rank else 0
        self._rank = rank
        self._executor = UpperExecutor(shared.upper, pool, kernel)

    def prepare(self, batch: Batch) -> None:
        """Build a table that contains ``found`` of the batch's windows among many others."""
        layers = self._shared.layers
        random = torch.Generator().manual_seed(1)
        windows = torch.unique(trigrams(batch.ids, batch.mask)[batch.mask], dim=0)  # (W, 3)
        kept = torch.rand(len(windows), generator=random) < self._found  # (W,)
        outputs = torch.randn(int(kept.sum()), 3, layers.config.encoder.width, generator=random) * 0.3
        table = make_table(
            windows[kept],
            outputs,
            layers,
            _LAYERS_DIGEST,
            other_entries=_OTHER_ENTRIES,
            absent=windows[~kept],
        )
        self._lookup = TreeLookup(
            [table], layers, layers_digest=_LAYERS_DIGEST, on_miss=OnMiss.COMPUTE, recent_bytes=0
        )

    def serve(self, batch: Batch) -> list[Tensor]:
        """Return each row's logits."""
        layers, lengths = self._shared.layers, batch.mask.sum(1).tolist()
        keys = window_keys(batch.ids[batch.mask].numpy(), lengths, layers.config.encoder.vocab_size + 1)
        outputs = self._lookup.lookup(keys).outputs.to(self._device)  # (N, 3, D)
        tokens = layers.combine_tokens(outputs, lengths, self._executor.kernel.dtype)  # (N, D)
        hidden, mask = pad_tokens(tokens, lengths, batch.mask.shape[1])  # (B, T, D), (B, T)
        slots = list(range(len(batch)))
        run_slots = slots if self._rank else [BARE] * len(batch)
        hidden = self._executor.run(hidden, mask, run_slots)  # (B, T, D)
        return [row.cpu() for row in run_heads(self._executor.pool, hidden, mask, slots)]


def random_adapter(upper: UpperLayers, rank: int, labels: int, *, seed: int) -> AdapterWeights:
    """Return a random adapter with biases and norms of its own."""
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
            bias={n: normal(out) for n, (out, _) in shapes.items()},
            norms={n: (1 + normal(config.width), normal(config.width)) for n in NORMS},
        )
    head = Head("first_and_mean", normal(labels, 2 * config.width), normal(labels))
    names = tuple(f"label-{number}" for number in range(labels))
    return AdapterWeights(TaskType.SEQUENCE_CLASSIFICATION, names, changes, head, "sha256:base")
