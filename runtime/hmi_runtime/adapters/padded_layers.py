"""The upper layers over padded batches, by torch's operations and a ``FrozenLayer`` for the products.

The frozen matrices are multiplied once for all rows. What belongs to a row (LoRA, bottleneck, biases,
norms) is gathered from the slots and added by batched products, in place.

Activations have the kernel's type; norms are computed in float32. No sum over a row depends on which other
rows are in the batch or on padding, so a row's states are the same in every batch, up to the last bits.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.batch_plan import BatchPlan, LoraShape, RowRange, plan_batch
from hmi_runtime.adapters.frozen import PRODUCTS
from hmi_runtime.adapters.kernels import Kernel, freeze_layers
from hmi_runtime.adapters.slot_pool import BottleneckTraits, SlotPool
from hmi_runtime.models.architecture import SUBLAYER_OUTPUT, Sublayer, merge_heads, mix_tokens
from hmi_runtime.models.encoder import EncoderLayer, UpperLayers

_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_.default,
    "gelu_new": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "gelu_pytorch_tanh": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "relu": torch.relu_,
    "silu": partial(functional.silu, inplace=True),
}
_SCORES_AT_ONCE = 2**20
"""Attention scores computed at a time: few enough to stay in the CPU's cache."""


class Workspace:
    """Named flat buffers that are reused from batch to batch, each as large as its largest use.

    Not thread-safe.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def buffer(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return a tensor of ``shape``, not initialised; valid until the next call for ``name``."""
        size = math.prod(shape)
        found = self._buffers.get((name, dtype))
        if found is None or found.numel() < size:
            found = torch.empty(size, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = found
        return found[:size].view(shape)

    def gather(self, name: str, source: Tensor, index: Tensor) -> Tensor:
        """Return ``source[index]`` along the first dimension, in that name's buffer."""
        out = self.buffer(name, source.dtype, index.shape[0], *source.shape[1:])
        return torch.index_select(source, 0, index, out=out)


class PaddedLayers:
    """Runs the upper layers of one model; see ``UpperExecutor``, which checks the arguments."""

    def __init__(
        self, upper: UpperLayers, pool: SlotPool, kernel: Kernel, sample: Tensor | None = None
    ) -> None:
        self.pool = pool
        self.kernel = kernel
        self._upper = upper
        self._layers = [layer for layer in upper.layers if isinstance(layer, EncoderLayer)]
        self._frozen = freeze_layers(self._layers, kernel, sample)
        self._workspace = Workspace(pool.device)

    def for_another_thread(self) -> "PaddedLayers":
        """Return the same over the same weights and slots, with working buffers of its own."""
        other = copy.copy(self)
        other._workspace = Workspace(self.pool.device)
        return other

    def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (B, T, D) float32; see ``UpperExecutor.run``."""
        plan = plan_batch([self.pool.index(slot) for slot in slots], self.pool.traits)
        order = torch.tensor(plan.order, device=hidden.device)
        x = hidden.to(self.kernel.dtype)
        x = x.contiguous() if plan.in_order else x.index_select(0, order)
        kept = mask if plan.in_order else mask.index_select(0, order)
        contexts = self._upper.architecture.contexts(kept, x.dtype)[self.pool.split :]
        places = torch.tensor(plan.places, device=hidden.device)
        magnitude = torch.zeros(len(x), device=hidden.device)  # (B,)
        for index, context in enumerate(contexts):
            steps = _Steps(self, index, plan, places, magnitude)
            x = self._upper.architecture.layer(steps, x, context)
        x = x.float()
        _add_norms(magnitude, x)
        x = self._upper.apply_final_norm(x)
        x.masked_fill_(~torch.isfinite(magnitude)[:, None, None], torch.nan)
        if plan.in_order:
            return x
        return torch.empty_like(x).index_copy_(0, order, x)


def _add_norms(magnitude: Tensor, x: Tensor) -> None:
    """Add the Euclidean norm of every row of ``x`` (B, ...) to ``magnitude`` (B,), in place.

    If it is finite, so are the values, products of two such rows and their variances. It takes one pass over
    ``x``; testing each value would take several.
    """
    magnitude += torch.linalg.vector_norm(x.flatten(1), dim=1)


class _Steps:
    """``LayerSteps`` of one layer over one batch."""

    def __init__(
        self, layers: PaddedLayers, index: int, plan: BatchPlan, places: Tensor, magnitude: Tensor
    ) -> None:
        self._layer = layers._layers[index]
        self.config = layers.pool.config
        self._frozen = layers._frozen[index]
        self._workspace = layers._workspace
        self._pool = layers.pool
        self._index = index
        self._plan = plan
        self._places = places  # (B,) int64, in the plan's order
        self._magnitude = magnitude  # (B,), in the plan's order; not finite once a row has overflowed

    def attention_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (B, T, D), of ``x`` (B, T, D)."""
        out = self._multiply("qkv", x)  # (B, T, 3D)
        query, key, value = out.chunk(3, dim=-1)
        _add_norms(self._magnitude, out)  # a key of -inf would only hide its token
        return query, key, value

    def mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Return the heads' attention, (B, T, D), of queries, keys and values (B, H, T, D/H).

        On CPUs by batched products, which for short texts take a third of the time of torch's attention.
        """
        if bias is None or query.device.type != "cpu":
            return mix_tokens(query, key, value, bias)
        batch, heads, length, _ = query.shape
        rows = max(1, _SCORES_AT_ONCE // (heads * length * length))
        parts = [
            _mix_rows(*(part[start : start + rows] for part in (query, key, value, bias)))
            for start in range(0, batch, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def ffn_up(self, x: Tensor) -> Tensor:
        """Return ``ffn_up`` of ``x`` (B, T, D) with every row's bias and LoRA, (B, T, F or 2F)."""
        return self._multiply("ffn_up", x)

    def activate(self, x: Tensor) -> Tensor:
        """Activate ``x`` in place."""
        if self.config.activation == "relu":  # which turns -inf into zero
            _add_norms(self._magnitude, x)
        return _IN_PLACE[self.config.activation](x)

    def add_residual(self, sublayer: Sublayer, residual: Tensor, read: Tensor, inner: Tensor) -> Tensor:
        """Return residual + matrix(inner) + bottleneck, (B, T, D)."""
        matrix = SUBLAYER_OUTPUT[sublayer]
        sequential = [r for r in self._plan.bottlenecks if (sublayer, "sequential") in r.kind.placements]
        out = self._multiply(matrix, inner, residual, alone=sequential)
        for rows in self._plan.bottlenecks:
            if any(sublayer == at for at, _ in rows.kind.placements):
                self._bottleneck(rows, sublayer, out if rows in sequential else read, out)
        for rows in sequential:
            out[rows.start : rows.stop] += residual[rows.start : rows.stop]
        return out

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return ``x`` (B, T, D) after a norm, with each row's own parameters."""
        _add_norms(self._magnitude, x)
        eps = self._layer.get_submodule(name).eps
        y = functional.layer_norm(x, x.shape[-1:], eps=eps)  # type: ignore[arg-type]  # statistics in float32
        rows = self._pool.tensor(name)[self._index]  # (slots + 1, 2, D)
        # The base's own come from the bare slot, so that other rows' norms do not change a row's rounding.
        rows = rows.index_select(0, self._places) if self._plan.own_norms else rows[-1:]
        return torch.addcmul(rows[:, 1:], y, rows[:, :1], out=y)

    def _multiply(
        self,
        product: str,
        x: Tensor,
        residual: Tensor | None = None,
        alone: Sequence[RowRange[BottleneckTraits]] = (),
    ) -> Tensor:
        """Return a product of ``x`` (B, T, d_in) with every row's bias and LoRA, (B, T, d_out).

        ``residual`` (B, T, d_out) is added to all rows but those in ``alone``.
        """
        batch, length, _ = x.shape
        operand = self._frozen.prepare(product, x.reshape(batch * length, -1))
        added = None if residual is None else residual.reshape(batch * length, -1)
        out = self._frozen.multiply(product, operand, added).view(batch, length, -1)
        for span in alone:
            part = self._frozen.prepare(product, x[span.start : span.stop].reshape(-1, x.shape[-1]))
            out[span.start : span.stop] = self._frozen.multiply(product, part).view(-1, length, out.shape[-1])
        if self._frozen.rounds_inputs and self._plan.without_lora:
            _add_norms(self._magnitude[: self._plan.without_lora], x[: self._plan.without_lora])
        for rows in self._plan.lora:
            self._add_lora(rows, product, x, out)
        return out

    def _add_lora(self, rows: RowRange[LoraShape], product: str, x: Tensor, out: Tensor) -> None:
        """Add LoRA and the biases of a range of rows to ``out`` (B, T, d_out), a product of ``x``."""
        span, taken = slice(rows.start, rows.stop), rows.kind.rows
        matrices = PRODUCTS[product]
        a = self._gather("a", f"{product}.lora_a", rows, taken).flatten(1, -2)  # (n, m * r, d_in)
        low = torch.bmm(x[span], a.transpose(1, 2))  # (n, T, m * r)
        low = low.view(*low.shape[:2], len(matrices), -1)  # (n, T, m, r)
        if self._frozen.rounds_inputs:  # a value that is not finite is in every sum, whatever ``a`` is
            _add_norms(self._magnitude[span], low)
        if rows.kind.own_bias:
            low[..., 0] = 1
        parts = out[span].chunk(len(matrices), -1)  # (n, T, d_out) each
        for place, matrix in enumerate(matrices):
            parts[place].baddbmm_(low[:, :, place], self._gather("b", f"{matrix}.lora_b", rows, taken))

    def _bottleneck(
        self, rows: RowRange[BottleneckTraits], place: Sublayer, read: Tensor, out: Tensor
    ) -> None:
        """Add the bottlenecks of a range of rows to ``out``."""
        span, width = slice(rows.start, rows.stop), slice(rows.kind.width)
        down = self._gather("down", f"{place}.down", rows, width)  # (n, w, D)
        down_bias = self._gather("down_bias", f"{place}.down_bias", rows)[:, width]  # (n, w)
        up = self._gather("up", f"{place}.up", rows, width)  # (n, w, D)
        narrow = torch.baddbmm(down_bias[:, None], read[span], down.transpose(1, 2))  # (n, T, w)
        _add_norms(self._magnitude[span], narrow)
        _IN_PLACE[rows.kind.activation](narrow)
        out[span].baddbmm_(narrow, up)
        out[span].add_(self._gather("up_bias", f"{place}.up_bias", rows)[:, None])

    def _gather(self, name: str, tensor: str, rows: RowRange[Any], taken: slice | None = None) -> Tensor:
        """Return a pool tensor's values for a range of rows, (n, ...), of those only ``taken`` of axis -2."""
        source = self._pool.tensor(tensor)[self._index]
        if taken is not None:
            source = source[..., taken, :]
        return self._workspace.gather(name, source, self._places[rows.start : rows.stop])


def _mix_rows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return attention (n, T, D) of queries, keys and values (n, H, T, D/H), ``bias`` (n, 1, 1 or T, T)."""
    count, heads, length, width = query.shape
    q, k, v = (part.reshape(-1, length, width) for part in (query, key, value))  # (n * H, T, D/H)
    hidden = bias.expand(count, heads, -1, -1).flatten(0, 1)  # (n * H, 1 or T, T)
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=width**-0.5)  # (n * H, T, T)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    return merge_heads(torch.bmm(weights, v).view(count, heads, length, width))
