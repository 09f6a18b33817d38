"""The engine of one base model at one split: Domain bridges, upper layers, adapters and heads of a batch."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hmi_api.errors import Damaged
from hmi_api.internal.inference import RowResult
from hmi_api.internal.precision import EngineReport
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.heads import batch_logits
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache.adapter_cache import SlotTier
from hmi_runtime.models.architecture import attention_bias, merge_heads, split_heads
from hmi_runtime.models.domain_layers import BridgeAttention, DomainLayers
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.packing import pad_tokens, padded_places, shape_size, starts_of
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import compose
from hmi_runtime.serving.loaded import EngineKey
from hmi_runtime.serving.requests import label_words, row_error
from hmi_runtime.serving.staging import BatchRow, Representations, StagedBatch, look_up, share_texts


def bridge_tokens(shared: Representations, dtype: torch.dtype) -> Tensor:
    """Return the hidden states (N, D) float32 of the tokens of a batch, one Domain after the other.

    Products are computed in ``dtype``. Faster on a CPU than ``bridge_batched``, where gathering weights for
    each row costs more than it saves.
    """
    if len(shared.domains) == 1:
        return shared.domains[0].layers.combine_tokens(shared.outputs, shared.lengths, dtype)
    parts, text, token = [], 0, 0
    for domain, count in zip(shared.domains, shared.texts, strict=True):
        lengths = shared.lengths[text : text + count]
        tokens = sum(lengths)
        parts.append(domain.layers.combine_tokens(shared.outputs[token : token + tokens], lengths, dtype))
        text, token = text + count, token + tokens
    return torch.cat(parts)


def bridge_on_gpu(shared: Representations, device: torch.device) -> Tensor:
    """Return the same as ``bridge_tokens`` in batched products over padded texts."""
    outputs, mask = pad_tokens(shared.outputs.to(device), shared.lengths, max(shared.lengths))
    layers = [domain.layers for domain in shared.domains]
    domain_of = torch.from_numpy(np.repeat(np.arange(len(layers)), shared.texts)).to(device)
    return bridge_batched(layers, domain_of, outputs, mask)[mask]


class BridgeStack:
    """Positions and bridges of several Domains, stacked so that a batch gathers them by row.

    Either all bridges have the same ``bridge_shape`` or no Domain has a bridge.
    """

    def __init__(self, layers: Sequence[DomainLayers], length: int) -> None:
        """Stack the weights for texts of up to ``length`` tokens."""
        self._position = torch.stack([domain.position[:length] for domain in layers])  # (S, T, D)
        bridges = [domain.bridge for domain in layers if domain.bridge is not None]
        self._heads = bridges[0].heads if bridges else 0
        if bridges:
            self._stack(bridges, length)

    def _stack(self, bridges: Sequence[BridgeAttention], length: int) -> None:
        self._eps = bridges[0].norm.eps
        self._norm_weight = torch.stack([b.norm.weight for b in bridges])[:, None]  # (S, 1, D)
        self._norm_bias = torch.stack([b.norm.bias for b in bridges])[:, None]  # (S, 1, D)
        self._bridge_position = torch.stack([b.position[:length] for b in bridges])  # (S, T, D)
        self._qkv = torch.stack([b.qkv.weight.T for b in bridges])  # (S, D, 3*H*S')
        self._qkv_bias = torch.stack([b.qkv.bias for b in bridges])[:, None]  # (S, 1, 3*H*S')
        self._out = torch.stack([b.out.weight.T for b in bridges])  # (S, H*S', D)
        self._out_bias = torch.stack([b.out.bias for b in bridges])[:, None]  # (S, 1, D)

    def run(self, domain_of: Tensor, outputs: Tensor, mask: Tensor) -> Tensor:
        """Return hidden states (B, T, D); arguments as in ``bridge_batched``."""
        x = compose(outputs) + self._position[domain_of]  # (B, T, D)
        if not self._heads:
            return x
        normed = functional.layer_norm(x, x.shape[-1:], eps=self._eps)  # (B, T, D)
        normed = torch.addcmul(self._norm_bias[domain_of], normed, self._norm_weight[domain_of])
        normed += self._bridge_position[domain_of]
        mixed = torch.baddbmm(self._qkv_bias[domain_of], normed, self._qkv[domain_of])  # (B, T, 3*H*S')
        query, key, value = (split_heads(part, self._heads) for part in mixed.chunk(3, dim=2))
        bias = attention_bias(mask, x.dtype)
        heads = merge_heads(functional.scaled_dot_product_attention(query, key, value, attn_mask=bias))
        return x.baddbmm_(heads, self._out[domain_of]).add_(self._out_bias[domain_of])


def bridge_shape(layers: DomainLayers) -> tuple[int, int]:
    """Return (heads, head size) of a Domain's bridge, which Domains in one ``BridgeStack`` share."""
    return (layers.config.bridge_heads, layers.config.bridge_head_size if layers.config.bridge_heads else 0)


def bridge_batched(
    layers: Sequence[DomainLayers], domain_of: Tensor, outputs: Tensor, mask: Tensor
) -> Tensor:
    """Return hidden states (B, T, D) of rows of several Domains, in batched products.

    ``domain_of`` (B,) int64 indexes ``layers``; ``outputs`` (B, T, 3, D), zero at padding; ``mask`` (B, T)
    bool. Bridges of different shapes cannot be stacked: the rows of each shape are one batched product.
    """
    if len(layers) == 1:
        return layers[0].combine_windows(outputs, mask)
    shapes = sorted({bridge_shape(domain) for domain in layers})
    if len(shapes) == 1:
        return BridgeStack(layers, outputs.shape[1]).run(domain_of, outputs, mask)
    out = outputs.new_empty((outputs.shape[0], outputs.shape[1], outputs.shape[3]))  # (B, T, D)
    for shape in shapes:
        members = [number for number, domain in enumerate(layers) if bridge_shape(domain) == shape]
        local = torch.full((len(layers),), -1, device=domain_of.device)
        local[members] = torch.arange(len(members), device=domain_of.device)
        rows = (local[domain_of] >= 0).nonzero()[:, 0]
        some = [layers[number] for number in members]
        out[rows] = bridge_batched(some, local[domain_of[rows]], outputs[rows], mask[rows])
    return out


@dataclass(frozen=True, eq=False)
class Engine:
    """Base model, upper layers and slot pool that run batches on one device.

    Thread-safe: several threads ``stage`` and ``compute`` batches at once.
    """

    key: EngineKey
    base: BaseModel
    encoder: Encoder  # its word embeddings are shared by all Domains
    executor: UpperExecutor
    precision: EngineReport  # what the executor computes in, and why
    slots: SlotTier[AdapterWeights]
    slot_bytes: int
    device: torch.device
    _idle: list[UpperExecutor] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._idle.append(self.executor)

    @property
    def computes_padding(self) -> bool:
        """Whether padding takes time, so that texts of one batch should be of similar length."""
        return self.executor.kernel.library != "native"

    def stage(self, rows: Sequence[BatchRow]) -> StagedBatch:
        """Acquire slots, look up windows and pad.

        The caller must have acquired the adapters of all rows in host memory, and call ``release`` later.
        """
        started = time.monotonic()
        acquired = self.slots.acquire(list(dict.fromkeys(row.adapter.id for row in rows)))
        try:
            placed = [row for row in rows if row.adapter.id in acquired.slots]
            pairs, places = share_texts(placed)
            return StagedBatch(
                rows=placed,
                representations=look_up(pairs) if pairs else None,
                representation_of=places,
                slots=[acquired.slots[row.adapter.id] for row in placed],
                acquired=acquired,
                failed=[
                    (row, acquired.failed[row.adapter.id])
                    for row in rows
                    if row.adapter.id in acquired.failed
                ],
                staging_seconds=time.monotonic() - started,
                computes_padding=self.computes_padding,
            )
        except BaseException:
            self.slots.release(acquired)
            raise

    def compute(self, batch: StagedBatch) -> list[RowResult]:
        """Return one result for each of ``batch.rows``, in order."""
        shared = batch.representations
        if shared is None:
            return []
        if self.device.type == "cpu":
            states = bridge_tokens(shared, self.executor.kernel.dtype)  # (N, D)
        else:
            states = bridge_on_gpu(shared, self.device)
        rows, places = len(batch.rows), np.asarray(batch.representation_of)
        # Of the last row, to have one of few shapes.
        repeats = shape_size(rows) - rows if self.executor.compiles_shapes else 0
        chosen = np.append(places, np.repeat(places[-1:], repeats))  # (B + R,)
        lengths = np.asarray(shared.lengths)[chosen]
        tokens = padded_places(starts_of(shared.lengths)[chosen], lengths, batch.longest)  # (B + R, T)
        hidden = states.index_select(0, torch.from_numpy(tokens.reshape(-1)).to(self.device))
        hidden = hidden.view(*tokens.shape, -1)  # (B + R, T, D)
        mask = torch.from_numpy(np.arange(batch.longest) < lengths[:, None]).to(self.device)  # (B + R, T)
        slots = [*batch.slots, *[batch.slots[-1]] * repeats]
        with self._idle_executor() as executor:
            hidden = executor.run(hidden, mask, slots)[:rows]  # (B, T, D)
            found = batch_logits(executor.pool, hidden, mask[:rows], batch.slots)
        hits = [shared.hits[place] for place in batch.representation_of]
        results: dict[int, RowResult] = {}
        for group in found:
            chosen_rows = [batch.rows[row] for row in group.rows]
            made = row_results(chosen_rows, group.logits.cpu().numpy(), [hits[row] for row in group.rows])
            results.update(zip(group.rows, made, strict=True))
        return [results[row] for row in range(rows)]

    def release(self, batch: StagedBatch) -> None:
        """Release the slots that the batch acquired."""
        self.slots.release(batch.acquired)

    @contextmanager
    def _idle_executor(self) -> Iterator[UpperExecutor]:
        """Take an executor that no other thread uses: the last one used, with buffers in the CPU's cache.

        There are as many as batches have computed at once.
        """
        try:
            executor = self._idle.pop()
        except IndexError:
            executor = self.executor.for_another_thread()
        try:
            yield executor
        finally:
            self._idle.append(executor)


def row_results(
    rows: Sequence[BatchRow], logits: NDArray[np.float32], hits: Sequence[int]
) -> list[RowResult]:
    """Return the results of ``rows`` from their ``logits`` (n, most labels) or (n, T, most labels).

    Logits that are not finite become the error AdapterOutputInvalid. They are checked before the softmax,
    which would turn some of them into valid probabilities.
    """
    counts = np.array([len(row.adapter.labels) for row in rows])
    own = np.arange(logits.shape[-1]) < counts[:, None]  # (n, most labels): the others are padding
    if logits.ndim == 3:
        own = own[:, None]
    finite: NDArray[np.bool_] = np.isfinite(logits) | ~own
    valid = [bool(row.all()) for row in finite]
    with np.errstate(invalid="ignore", over="ignore"):  # in rows that are not valid
        weights = np.where(own, np.exp(logits - logits.max(-1, where=own, initial=-np.inf, keepdims=True)), 0)
        probabilities = weights / weights.sum(-1, keepdims=True)
    if logits.ndim == 2:
        answers = zip(rows, probabilities.tolist(), valid, hits, strict=True)
        return [_row_result(row, count, is_valid, scores=scores) for row, scores, is_valid, count in answers]
    return [
        _row_result(row, count, is_valid, tokens=values)
        for row, values, is_valid, count in zip(rows, probabilities, valid, hits, strict=True)
    ]


def _row_result(
    row: BatchRow,
    hits: int,
    is_valid: bool,
    *,
    scores: Sequence[float] = (),
    tokens: NDArray[np.float32] | None = None,
) -> RowResult:
    """Return a row's result from the probabilities of its labels, or those of each token (T, most labels)."""
    adapter = row.adapter
    if not is_valid:
        error = Damaged(
            "AdapterOutputInvalid", f"{adapter.id} outputs values that are not finite; retrain it."
        )
        return RowResult(error=row_error(error))
    length = row.text.length
    return RowResult(
        version=adapter.id.version,
        labels=adapter.labels,
        scores=scores[: len(adapter.labels)],
        tokens=[] if tokens is None else label_words(row.text, tokens, adapter.labels),
        tag_scheme=adapter.tag_scheme,
        prompt_tokens=length,
        table_hits=hits,
        table_lookups=length,
    )
