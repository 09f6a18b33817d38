"""The upper layers over a batch in which every row has its own adapter.

The frozen matrices are multiplied once for all rows; what is a row's own (LoRA, bottleneck, biases,
norms) is gathered from the slots and added by batched products, in place. ``reference`` says the same
row by row and slowly; the two agree to rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.frozen import FloatLayer, FrozenLayer
from hmi_runtime.adapters.plan import BatchPlan, BottleneckRange, LoraRange, plan_batch
from hmi_runtime.adapters.quantized import quantise_layers
from hmi_runtime.adapters.slots import SlotPool
from hmi_runtime.adapters.weights import Place
from hmi_runtime.adapters.workspace import Workspace
from hmi_runtime.base import EncoderLayer, attention_bias
from hmi_runtime.base.architecture import merge_heads, split_heads
from hmi_runtime.model import UpperLayers

Precision = Literal["float32", "int8"]

_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_.default,
    "gelu_new": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "gelu_pytorch_tanh": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "relu": torch.relu_,
    "silu": partial(functional.silu, inplace=True),
}


class UpperExecutor:
    """Runs the upper layers for mixed batches.

    Holds working buffers: use one executor from one thread at a time. The slots of a batch must not be
    written while it runs.
    """

    def __init__(
        self,
        upper: UpperLayers,
        pool: SlotPool,
        precision: Precision = "float32",
        *,
        sample: Tensor | None = None,
    ) -> None:
        """Prepare ``upper``, which lies on the pool's device.

        ``int8`` quantises the frozen matrices, on CPUs only; ``sample`` (B, T, D), unpadded hidden states as
        they enter the upper layers, makes that more accurate (see ``quantise_layers``).
        """
        self.pool = pool
        self._layers: list[EncoderLayer] = [
            layer for layer in upper.layers if isinstance(layer, EncoderLayer)
        ]
        self._frozen: Sequence[FrozenLayer] = (
            quantise_layers(self._layers, sample)
            if precision == "int8"
            else [FloatLayer(layer) for layer in self._layers]
        )
        self._workspace = Workspace(pool.device)

    @torch.inference_mode()
    def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (B, T, D).

        ``hidden`` (B, T, D) float32 is what enters the first upper layer, ``mask`` (B, T) bool is False on
        padding, ``slots[i]`` is row i's slot (``BARE``: no adapter). States at padding are undefined.
        """
        plan = plan_batch([self.pool.index(slot) for slot in slots], self.pool.traits)
        order = torch.tensor(plan.order, device=hidden.device)
        x = hidden.contiguous() if plan.in_order else hidden.index_select(0, order)
        kept = mask if plan.in_order else mask.index_select(0, order)
        # On an accelerator the question whether any row is padded would wait for the device.
        unpadded = mask.device.type == "cpu" and bool(mask.all())
        bias = None if unpadded else attention_bias(kept, x.dtype)
        places = torch.tensor(plan.places, device=hidden.device)
        for index in range(len(self._layers)):
            x = _LayerRun(self, index, plan, places).run(x, bias)
        if plan.in_order:
            return x
        return torch.empty_like(x).index_copy_(0, order, x)


class _LayerRun:
    """One layer over one batch: the executor's parts and the batch's plan, bound together."""

    def __init__(self, executor: UpperExecutor, index: int, plan: BatchPlan, places: Tensor) -> None:
        self._layer = executor._layers[index]
        self._frozen = executor._frozen[index]
        self._workspace = executor._workspace
        self._pool = executor.pool
        self._index = index
        self._plan = plan
        self._places = places  # (B,) int64, in the plan's order

    def run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output (B, T, D) for ``x`` (B, T, D) under an additive ``bias`` (B, 1, 1, T)."""
        attended = self._attend(x, bias)
        x = self._close(x, attended, "attention", "attention_output", "attention_norm")
        widened = self._linear(
            "ffn_up", x, self._take("widened", x, self._pool.config.ffn_width)
        )  # (B, T, F)
        _IN_PLACE[self._layer.activation](widened)
        return self._close(x, widened, "ffn", "ffn_down", "ffn_norm")

    def _attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = (self._take(name, x, x.shape[-1]) for name in ("query", "key", "value"))
        outputs = {"query": query, "key": key, "value": value}
        operand = self._frozen.prepare("query", x)
        for name, out in outputs.items():
            out.copy_(self._bias(name))
            self._frozen.add_product(name, operand, out.flatten(0, 1))
        for rows in self._plan.lora:
            low = self._low(rows, "qkv", x)  # (n, T, 3r)
            for name, part in zip(outputs, torch.split(low, rows.rank, dim=-1), strict=True):
                self._raise(rows, name, part, outputs[name])
        heads = self._layer.heads
        mixed = functional.scaled_dot_product_attention(
            split_heads(query, heads), split_heads(key, heads), split_heads(value, heads), attn_mask=bias
        )  # (B, H, T, D/H)
        return merge_heads(mixed)

    def _linear(self, matrix: str, x: Tensor, out: Tensor) -> Tensor:
        """Write a matrix's output with its biases and LoRA to ``out`` (B, T, d_out)."""
        out.copy_(self._bias(matrix))
        self._add(matrix, x, out)
        return out

    def _close(self, residual: Tensor, x: Tensor, place: Place, matrix: str, norm: str) -> Tensor:
        """Return norm(residual + matrix(x) + bottleneck), (B, T, D); ``residual`` is the sublayer's input."""
        out = self._take("closed", residual, residual.shape[-1])
        bias = self._bias(matrix)
        torch.add(residual, bias, out=out)
        sequential = [r for r in self._plan.bottlenecks if (place, "sequential") in r.traits.placements]
        for rows in sequential:  # these read the sublayer's output alone, so their residual comes last
            out[rows.start : rows.stop] = bias[rows.start : rows.stop] if bias.dim() == 3 else bias
        self._add(matrix, x, out)
        for rows in self._plan.bottlenecks:
            read = out if rows in sequential else residual
            if any(place == at for at, _ in rows.traits.placements):
                self._bottleneck(rows, place, read, out)
        for rows in sequential:
            out[rows.start : rows.stop] += residual[rows.start : rows.stop]
        return self._norm(norm, out)

    def _add(self, matrix: str, x: Tensor, out: Tensor) -> None:
        """Add the frozen product and every row's LoRA to ``out``."""
        operand = self._frozen.prepare(matrix, x)
        self._frozen.add_product(matrix, operand, out.flatten(0, 1))
        for rows in self._plan.lora:
            self._raise(rows, matrix, self._low(rows, matrix, x), out)

    def _low(self, rows: LoraRange, name: str, x: Tensor) -> Tensor:
        """Return ``x @ a.T`` of a range of rows, (n, T, r), or (n, T, 3r) for ``qkv``."""
        pool = self._pool.tensor(f"{name}.lora_a")[self._index].narrow(-2, 0, rows.rank)
        a = self._gather("lora", pool, rows).flatten(1, -2)  # (n, r, d_in)
        low = self._workspace.take("low", a.shape[0], x.shape[1], a.shape[1])
        return torch.bmm(x[rows.start : rows.stop], a.transpose(1, 2), out=low)

    def _raise(self, rows: LoraRange, matrix: str, low: Tensor, out: Tensor) -> None:
        """Add ``low @ b.T`` to a range of rows of ``out``."""
        pool = self._pool.tensor(f"{matrix}.lora_b")[self._index].narrow(-2, 0, rows.rank)
        out[rows.start : rows.stop].baddbmm_(low, self._gather("lora", pool, rows))

    def _bottleneck(self, rows: BottleneckRange, place: Place, read: Tensor, out: Tensor) -> None:
        """Add the bottlenecks of a range of rows to ``out``."""
        span, width = slice(rows.start, rows.stop), rows.traits.width
        down, down_bias, up = (
            self._gather(part, self._pool.tensor(f"{place}.{part}")[self._index].narrow(1, 0, width), rows)
            for part in ("down", "down_bias", "up")
        )  # (n, w, D), (n, w), (n, w, D)
        narrow = torch.baddbmm(down_bias[:, None], read[span], down.transpose(1, 2))  # (n, T, w)
        _IN_PLACE[rows.traits.activation](narrow)
        out[span].baddbmm_(narrow, up)
        up_bias = self._gather("up_bias", self._pool.tensor(f"{place}.up_bias")[self._index], rows)
        out[span].add_(up_bias[:, None])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        norm = self._layer.get_submodule(name)
        if not self._plan.own_norms:
            return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]
        rows = self._pool.tensor(name)[self._index].index_select(0, self._places)  # (B, 2, D)
        y = functional.layer_norm(x, x.shape[-1:], eps=norm.eps)  # type: ignore[arg-type]
        return torch.addcmul(rows[:, 1:], y, rows[:, :1], out=y)

    def _bias(self, matrix: str) -> Tensor:
        """Return the biases as they broadcast over (B, T, d_out): the base's, or (B, 1, d_out)."""
        if not self._plan.own_bias:
            return self._layer.get_parameter(f"{matrix}.bias")
        return self._pool.tensor(f"{matrix}.bias")[self._index].index_select(0, self._places)[:, None]

    def _gather(self, name: str, source: Tensor, rows: LoraRange | BottleneckRange) -> Tensor:
        return self._workspace.gather(name, source, self._places[rows.start : rows.stop])

    def _take(self, name: str, like: Tensor, width: int) -> Tensor:
        return self._workspace.take(name, like.shape[0], like.shape[1], width)
