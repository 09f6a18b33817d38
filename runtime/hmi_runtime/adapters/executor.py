"""The batched executor: upper layers over a batch in which every row has its own adapter.

The frozen matrices are multiplied once for all rows. What belongs to a row (LoRA, bottleneck, biases,
norms) is gathered from the slots and added by batched products, in place. ``reference`` computes the same
row by row; ``tests/runtime/adapters/test_executor.py`` compares the two.

Rows are sorted so that adapters of equal shape are adjacent. Every product then runs on a contiguous range
of the batch, in place and without copies, and costs nothing for rows outside it. There are as many ranges
as shapes in the batch (rank buckets, bottleneck shapes), not as many as rows.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.kernels import FLOAT32, Kernel, check_available
from hmi_runtime.adapters.quantization import FloatLayer, FrozenLayer, quantise_layers
from hmi_runtime.adapters.slot_pool import BottleneckTraits, SlotLimits, SlotPool, SlotTraits
from hmi_runtime.models.architecture import SUBLAYER_OUTPUT, Sublayer
from hmi_runtime.models.encoder import EncoderLayer, UpperLayers

Kind = TypeVar("Kind", bound=int | BottleneckTraits)
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_.default,
    "gelu_new": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "gelu_pytorch_tanh": partial(torch.ops.aten.gelu_.default, approximate="tanh"),
    "relu": torch.relu_,
    "silu": partial(functional.silu, inplace=True),
}


class Workspace:
    """Named flat buffers that are reused from batch to batch, each as large as its largest use.

    Not thread-safe.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Return a float32 tensor of ``shape``, not initialised; valid until the next call for ``name``."""
        size = math.prod(shape)
        found = self._buffers.get(name)
        if found is None or found.numel() < size:
            found = torch.empty(size, device=self._device)
            self._buffers[name] = found
        return found[:size].view(shape)

    def gather(self, name: str, source: Tensor, index: Tensor) -> Tensor:
        """Return ``source[index]`` along the first dimension, in that name's buffer."""
        out = self.buffer(name, index.shape[0], *source.shape[1:])
        return torch.index_select(source, 0, index, out=out)


@dataclass(frozen=True)
class RowRange(Generic[Kind]):
    """Rows start..stop of a batch, which have one kind of LoRA or bottlenecks."""

    start: int
    stop: int
    kind: Kind


@dataclass(frozen=True)
class BatchPlan:
    """``order[i]`` is the caller's row that runs as row i; ``places[i]`` is its slot's index in the pool."""

    order: tuple[int, ...]
    places: tuple[int, ...]
    lora: tuple[RowRange[int], ...]  # by rank bucket
    bottlenecks: tuple[RowRange[BottleneckTraits], ...]
    own_bias: bool
    own_norms: bool

    @property
    def in_order(self) -> bool:
        """Whether the caller's rows are already in this order."""
        return self.order == tuple(range(len(self.order)))


def plan_batch(places: Sequence[int], traits: Sequence[SlotTraits]) -> BatchPlan:
    """Return the plan for a batch whose row i has its adapter at index ``places[i]`` of the pool.

    ``traits[p]`` describes the adapter at index p. Reads no tensors; O(rows), whatever the number of slots.
    """
    order = sorted(range(len(places)), key=lambda row: (_kind(traits[places[row]]), row))
    kinds = [traits[places[row]] for row in order]
    return BatchPlan(
        order=tuple(order),
        places=tuple(places[row] for row in order),
        lora=_ranges([kind.rank for kind in kinds]),
        bottlenecks=_ranges([kind.bottleneck for kind in kinds]),
        own_bias=any(kind.own_bias for kind in kinds),
        own_norms=any(kind.own_norms for kind in kinds),
    )


def _kind(traits: SlotTraits) -> tuple[int, int, str, tuple[tuple[str, str], ...]]:
    """Return the sort key of rows: by rank, then by bottleneck."""
    if traits.bottleneck is None:
        return traits.rank, 0, "", ()
    return traits.rank, traits.bottleneck.width, traits.bottleneck.activation, traits.bottleneck.placements


def _ranges(kinds: Sequence[Kind | None]) -> tuple[RowRange[Kind], ...]:
    """Return the runs of equal neighbours; rows of kind 0 or None are in no range."""
    ranges, start = [], 0
    for kind, members in groupby(kinds):
        stop = start + len(list(members))
        if kind:
            ranges.append(RowRange(start, stop, kind))
        start = stop
    return tuple(ranges)


class UpperExecutor:
    """Runs the upper layers for mixed batches.

    Has working buffers: use it from one thread at a time. The slots of a batch must not be written while it
    runs.
    """

    def __init__(
        self,
        upper: UpperLayers,
        pool: SlotPool,
        kernel: Kernel = FLOAT32,
        *,
        sample: Tensor | None = None,
    ) -> None:
        """Prepare ``upper``, which is on the pool's device.

        ``kernel`` multiplies the frozen matrices. ``sample`` (B, T, D), unpadded inputs of the upper layers,
        makes int8 more accurate (see ``quantise_layers``). Raises ``InvalidInput`` PrecisionUnsupported
        unless the kernel is one of the device's ``available_kernels``.
        """
        check_available(kernel, pool.device)
        self.pool = pool
        self.kernel = kernel
        self._upper = upper
        self._layers = [layer for layer in upper.layers if isinstance(layer, EncoderLayer)]
        self._frozen: Sequence[FrozenLayer] = (
            quantise_layers(self._layers, sample)
            if kernel.precision == "int8"
            else [FloatLayer(layer) for layer in self._layers]
        )
        self._workspace = Workspace(pool.device)

    def for_another_thread(self) -> "UpperExecutor":
        """Return an executor over the same weights and slots, with working buffers of its own."""
        other = copy.copy(self)
        other._workspace = Workspace(self.pool.device)
        return other

    @torch.inference_mode()
    def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (B, T, D).

        ``hidden`` (B, T, D) float32 is what enters the first upper layer, ``mask`` (B, T) bool is False on
        padding, ``slots[i]`` is row i's slot (``BARE``: no adapter). States at padding are undefined.

        A row becomes NaN throughout when the sum of squares of its queries, keys, norm inputs or ReLU inputs
        is not finite. The kernels do not ensure that: on AVX-512, attention without a mask turns NaN queries
        into zeros.
        """
        plan = plan_batch([self.pool.index(slot) for slot in slots], self.pool.traits)
        order = torch.tensor(plan.order, device=hidden.device)
        x = hidden.contiguous() if plan.in_order else hidden.index_select(0, order)
        kept = mask if plan.in_order else mask.index_select(0, order)
        # On an accelerator this test would synchronise with the device.
        unpadded = mask.device.type == "cpu" and bool(mask.all())
        contexts = self._upper.architecture.contexts(kept, x.dtype, unpadded=unpadded)[self.pool.split :]
        places = torch.tensor(plan.places, device=hidden.device)
        magnitude = x.new_zeros(len(x))  # (B,)
        for index, context in enumerate(contexts):
            steps = _Steps(self, index, plan, places, magnitude)
            x = self._upper.architecture.layer(steps, x, context)
        _add_norms(magnitude, x)
        x = self._upper.apply_final_norm(x)
        x.masked_fill_(~torch.isfinite(magnitude)[:, None, None], torch.nan)
        if plan.in_order:
            return x
        return torch.empty_like(x).index_copy_(0, order, x)


def trial_executor(upper: UpperLayers, kernel: Kernel, sample: Tensor | None = None) -> UpperExecutor:
    """Return an executor for rows without an adapter, to time ``kernel`` and to compare its states.

    ``sample`` (B, T, D) is as in ``UpperExecutor``.
    """
    device = next(upper.parameters()).device
    pool = SlotPool(upper, 0, SlotLimits(max_rank=1, max_labels=1, dense_heads=False), device)
    return UpperExecutor(upper, pool, kernel, sample=sample)


def _add_norms(magnitude: Tensor, x: Tensor) -> None:
    """Add the Euclidean norm of every row of ``x`` (B, T, D) to ``magnitude`` (B,), in place.

    If it is finite, so are the values, products of two such rows and their variances. It takes one pass over
    ``x``; testing each value would take several.
    """
    magnitude += torch.linalg.vector_norm(x.flatten(1), dim=1)


class _Steps:
    """``LayerSteps`` of one layer over one batch.

    ``add_residual`` returns a buffer of its sublayer, valid until the next layer's sublayer of that kind; a
    norm returns a new tensor.
    """

    def __init__(
        self, executor: UpperExecutor, index: int, plan: BatchPlan, places: Tensor, magnitude: Tensor
    ) -> None:
        self._layer = executor._layers[index]
        self.config = executor.pool.config
        self._frozen = executor._frozen[index]
        self._workspace = executor._workspace
        self._pool = executor.pool
        self._index = index
        self._plan = plan
        self._places = places  # (B,) int64, in the plan's order
        self._magnitude = magnitude  # (B,), in the plan's order; not finite once a row has overflowed

    def attention_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (B, T, D), of ``x`` (B, T, D)."""
        query, key, value = (self._buffer(name, x, x.shape[-1]) for name in ("query", "key", "value"))
        outputs = {"query": query, "key": key, "value": value}
        operand = self._frozen.prepare("query", x)
        for name, out in outputs.items():
            out.copy_(self._bias(name))
            self._frozen.add_product(name, operand, out.flatten(0, 1))
        for rows in self._plan.lora:
            low = self._lora_a(rows, "qkv", x)  # (n, T, 3r)
            for name, part in zip(outputs, torch.split(low, rows.kind, dim=-1), strict=True):
                self._add_lora_b(rows, name, part, outputs[name])
        for out in (query, key):  # attention propagates NaN from values, but not from these
            _add_norms(self._magnitude, out)
        return query, key, value

    def ffn_up(self, x: Tensor) -> Tensor:
        """Return ``ffn_up`` of ``x`` (B, T, D) with every row's bias and LoRA, (B, T, F or 2F)."""
        out = self._buffer("widened", x, self.config.matrix_shape("ffn_up")[0])
        out.copy_(self._bias("ffn_up"))
        self._add_matrix("ffn_up", x, out)
        return out

    def activate(self, x: Tensor) -> Tensor:
        """Activate ``x`` in place."""
        if self.config.activation == "relu":  # which turns -inf into zero
            _add_norms(self._magnitude, x)
        return _IN_PLACE[self.config.activation](x)

    def add_residual(self, sublayer: Sublayer, residual: Tensor, read: Tensor, inner: Tensor) -> Tensor:
        """Return residual + matrix(inner) + bottleneck, (B, T, D)."""
        matrix = SUBLAYER_OUTPUT[sublayer]
        out = self._buffer(sublayer, residual, residual.shape[-1])
        bias = self._bias(matrix)
        torch.add(residual, bias, out=out)
        sequential = [r for r in self._plan.bottlenecks if (sublayer, "sequential") in r.kind.placements]
        for rows in sequential:  # these read the sublayer's output without the residual, which is added last
            out[rows.start : rows.stop] = bias[rows.start : rows.stop] if bias.dim() == 3 else bias
        self._add_matrix(matrix, inner, out)
        for rows in self._plan.bottlenecks:
            if any(sublayer == at for at, _ in rows.kind.placements):
                self._bottleneck(rows, sublayer, out if rows in sequential else read, out)
        for rows in sequential:
            out[rows.start : rows.stop] += residual[rows.start : rows.stop]
        return out

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return ``x`` (B, T, D) after a norm, with each row's own parameters."""
        _add_norms(self._magnitude, x)
        norm = self._layer.get_submodule(name)
        if not self._plan.own_norms:
            return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]
        rows = self._pool.tensor(name)[self._index].index_select(0, self._places)  # (B, 2, D)
        y = functional.layer_norm(x, x.shape[-1:], eps=norm.eps)  # type: ignore[arg-type]
        return torch.addcmul(rows[:, 1:], y, rows[:, :1], out=y)

    def _add_matrix(self, matrix: str, x: Tensor, out: Tensor) -> None:
        """Add the frozen product and every row's LoRA to ``out``."""
        operand = self._frozen.prepare(matrix, x)
        self._frozen.add_product(matrix, operand, out.flatten(0, 1))
        for rows in self._plan.lora:
            self._add_lora_b(rows, matrix, self._lora_a(rows, matrix, x), out)

    def _lora_a(self, rows: RowRange[int], name: str, x: Tensor) -> Tensor:
        """Return ``x @ a.T`` of a range of rows, (n, T, r), or (n, T, 3r) for ``qkv``."""
        pool = self._pool.tensor(f"{name}.lora_a")[self._index].narrow(-2, 0, rows.kind)
        a = self._gather("lora", pool, rows).flatten(1, -2)  # (n, r, d_in)
        low = self._workspace.buffer("low", a.shape[0], x.shape[1], a.shape[1])
        return torch.bmm(x[rows.start : rows.stop], a.transpose(1, 2), out=low)

    def _add_lora_b(self, rows: RowRange[int], matrix: str, low: Tensor, out: Tensor) -> None:
        """Add ``low @ b.T`` to a range of rows of ``out``."""
        pool = self._pool.tensor(f"{matrix}.lora_b")[self._index].narrow(-2, 0, rows.kind)
        out[rows.start : rows.stop].baddbmm_(low, self._gather("lora", pool, rows))

    def _bottleneck(
        self, rows: RowRange[BottleneckTraits], place: Sublayer, read: Tensor, out: Tensor
    ) -> None:
        """Add the bottlenecks of a range of rows to ``out``."""
        span, width = slice(rows.start, rows.stop), rows.kind.width
        down, down_bias, up = (
            self._gather(part, self._pool.tensor(f"{place}.{part}")[self._index].narrow(1, 0, width), rows)
            for part in ("down", "down_bias", "up")
        )  # (n, w, D), (n, w), (n, w, D)
        narrow = torch.baddbmm(down_bias[:, None], read[span], down.transpose(1, 2))  # (n, T, w)
        _add_norms(self._magnitude[span], narrow)
        _IN_PLACE[rows.kind.activation](narrow)
        out[span].baddbmm_(narrow, up)
        up_bias = self._gather("up_bias", self._pool.tensor(f"{place}.up_bias")[self._index], rows)
        out[span].add_(up_bias[:, None])

    def _bias(self, matrix: str) -> Tensor:
        """Return biases to broadcast over (B, T, d_out): the base's (d_out,), or rows' (B, 1, d_out)."""
        if not self._plan.own_bias:
            return self._layer.get_parameter(f"{matrix}.bias")
        return self._pool.tensor(f"{matrix}.bias")[self._index].index_select(0, self._places)[:, None]

    def _gather(self, name: str, source: Tensor, rows: RowRange[Any]) -> Tensor:
        return self._workspace.gather(name, source, self._places[rows.start : rows.stop])

    def _buffer(self, name: str, like: Tensor, width: int) -> Tensor:
        return self._workspace.buffer(name, like.shape[0], like.shape[1], width)
