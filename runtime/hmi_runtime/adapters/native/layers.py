"""The upper layers over rows without padding, by the C++ kernels.

Frozen matrices are in int8 with a step for every token, bfloat16 or float32. What is between products, LoRA
and attention is in bfloat16, or in float32 where the matrices are; sums and norms are computed in float32. A
row's states depend on nothing outside of the row.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from hmi_runtime.adapters.frozen import FUSED, PRODUCTS, Precision, stacked_bias, stacked_weight
from hmi_runtime.adapters.native import library
from hmi_runtime.adapters.quantization import ScaledWeights, scaled_weights
from hmi_runtime.adapters.slot_pool import BottleneckTraits, SlotPool
from hmi_runtime.models.architecture import ACTIVATIONS, NORMS, Sublayer
from hmi_runtime.models.encoder import EncoderLayer, UpperLayers

_ACTIVATIONS = {"gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3, "silu": 4}
"""``hmi::Activation`` of vector.h."""
_WEIGHTS: dict[Precision, int] = {"int8": 0, "bfloat16": 1, "float32": 2}
"""``hmi::Weights`` of batch.h."""
_UNIT_BYTES = 4
_LEVELS = 127
_LARGEST = 1e17
"""``kLargest`` of vector.h."""
_TINY = torch.finfo(torch.float32).tiny


class NativeLayers:
    """Runs the upper layers of one model that ``kernels.runs_model`` admits; see ``UpperExecutor``.

    Uses as many threads as torch does in the calling thread, each for some of the rows.
    """

    def __init__(
        self, upper: UpperLayers, pool: SlotPool, precision: Precision, sample: Tensor | None = None
    ) -> None:
        layers = [layer for layer in upper.layers if isinstance(layer, EncoderLayer)]
        weights = scaled_weights(layers, sample) if precision == "int8" else [_weights(one) for one in layers]
        self._pool = pool
        self._dtype = pool.limits.dtype
        self._layers = [
            _Layer(layer, index, pool, precision, weights[index]) for index, layer in enumerate(layers)
        ]

    def for_another_thread(self) -> "NativeLayers":
        """Return itself: every call has buffers of its own."""
        return self

    def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (B, T, D) float32; see ``UpperExecutor.run``."""
        lengths = mask.sum(1).tolist()
        rows = [_Row(index, self._pool.index(slot), lengths[index]) for index, slot in enumerate(slots)]
        shares = _shares(rows, self._pool)
        out = torch.empty_like(hidden)
        work = [lambda share=share: self._run_share(share, hidden, mask, out) for share in shares]
        _call_all(work)
        return out

    def _run_share(self, rows: Sequence["_Row"], hidden: Tensor, mask: Tensor, out: Tensor) -> None:
        """Write the last states of ``rows`` into ``out`` (B, T, D)."""
        index = torch.tensor([row.index for row in rows])
        kept = mask[index]  # (n, T)
        x = hidden[index][kept].to(self._dtype)  # (N, D)
        batch = _Batch(rows, self._pool)
        for layer in self._layers:
            x = layer.run(batch, x)
        states = out.new_zeros(len(rows), *hidden.shape[1:])  # (n, T, D)
        states[kept] = x.float()
        states[batch.broken.bool()] = torch.nan
        out[index] = states


def _weights(layer: EncoderLayer) -> ScaledWeights:
    """Return a layer's weights by product, as they are."""
    return {name: (stacked_weight(layer, name), None) for name in PRODUCTS}


@dataclass(frozen=True)
class _Row:
    index: int  # in the caller's batch
    place: int  # of its slot, in the pool
    length: int


def _shares(rows: Sequence[_Row], pool: SlotPool) -> list[list[_Row]]:
    """Return the rows in shares of about as many tokens, one a thread; rows with bottlenecks apart."""
    plain = [row for row in rows if pool.traits[row.place].bottleneck is None]
    others = [row for row in rows if pool.traits[row.place].bottleneck is not None]
    tokens = sum(row.length for row in plain)
    count = max(1, min(torch.get_num_threads(), len(plain)))
    shares: list[list[_Row]] = [[] for _ in range(count)]
    before = 0
    for row in plain:
        shares[min(count - 1, before * count // max(1, tokens))].append(row)
        before += row.length
    return [share for share in (*shares, others) if share]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="layers")


def _call_all(work: Sequence[Callable[[], None]]) -> None:
    """Call all at once: the first in this thread."""
    others = [_threads().submit(torch.inference_mode()(one)) for one in work[1:]]
    work[0]()
    for other in others:
        other.result()


class _Batch:
    """Rows one behind the other, as the kernels take them."""

    def __init__(self, rows: Sequence[_Row], pool: SlotPool) -> None:
        traits = [pool.traits[row.place] for row in rows]
        self.lengths = torch.tensor([row.length for row in rows])
        offsets = [0]
        for row in rows:
            offsets.append(offsets[-1] + row.length)
        self.spans = list(pairwise(offsets))
        self.places = [row.place for row in rows]
        self.bottlenecks = [one.bottleneck for one in traits]
        self.broken = torch.zeros(len(rows), dtype=torch.uint8)
        self._tensors = (
            torch.tensor(offsets, dtype=torch.int32),
            torch.tensor(self.places, dtype=torch.int32),
            torch.tensor([one.rank for one in traits], dtype=torch.int32),
            torch.tensor([one.own_bias for one in traits], dtype=torch.uint8),
            self.broken,
        )
        pointers = (tensor.data_ptr() for tensor in self._tensors)
        self.argument = ctypes.byref(library.Batch(len(rows), *pointers))


class _Layer:
    """The steps of one layer."""

    def __init__(
        self,
        layer: EncoderLayer,
        index: int,
        pool: SlotPool,
        precision: Precision,
        weights: ScaledWeights,
    ) -> None:
        self._config = layer.config
        self._pool = pool
        self._index = index
        self._library = library.load()
        self._floats = int(pool.limits.dtype == torch.float32)
        self._products = {
            name: _Product(layer, name, index, pool, precision, *weights[name]) for name in PRODUCTS
        }
        self._norms = {
            name: (pool.tensor(name)[index].data_ptr(), layer.get_submodule(name).eps) for name in NORMS
        }

    def run(self, batch: _Batch, x: Tensor) -> Tensor:
        """Return the layer's output (N, D) for ``x`` (N, D), which is not changed."""
        attended = self._attention(batch, self._products["qkv"](batch, x))
        x = self._norm(batch, "attention_norm", self._add_residual(batch, "attention", x, attended))
        inner = self._products["ffn_up"](batch, x, activation=_ACTIVATIONS[self._config.activation])
        return self._norm(batch, "ffn_norm", self._add_residual(batch, "ffn", x, inner))

    def _attention(self, batch: _Batch, qkv: Tensor) -> Tensor:
        """Return the heads' outputs (N, D) of queries, keys and values side by side (N, 3D)."""
        width = self._config.width
        out = qkv.new_empty(len(qkv), width)
        self._library.hmi_attention(
            batch.argument, self._floats, qkv.data_ptr(), width, self._config.heads, out.data_ptr()
        )
        return out

    def _norm(self, batch: _Batch, name: str, x: Tensor) -> Tensor:
        """Return ``x`` (N, D) after a norm with each row's parameters, in place."""
        norms, eps = self._norms[name]
        self._library.hmi_norm(
            batch.argument, self._floats, norms, x.data_ptr(), x.shape[1], eps, x.data_ptr()
        )
        return x

    def _add_residual(self, batch: _Batch, sublayer: Sublayer, x: Tensor, inner: Tensor) -> Tensor:
        """Return ``x`` + matrix(inner) + bottleneck, (N, D); ``x`` (N, D) is the sublayer's input."""
        product = self._products["attention_output" if sublayer == "attention" else "ffn_down"]
        if batch.bottlenecks[0] is None:  # then no row of the share has one
            return product(batch, inner, residual=x)
        out = product(batch, inner)
        for row, (traits, (start, stop)) in enumerate(zip(batch.bottlenecks, batch.spans, strict=True)):
            placements = dict(traits.placements) if traits is not None else {}
            if traits is not None and sublayer in placements:
                read = out if placements[sublayer] == "sequential" else x
                narrow, added = self._bottleneck(traits, sublayer, batch.places[row], read[start:stop])
                out[start:stop] += added
                if not narrow.abs().max() < _LARGEST:  # ReLU would turn -inf into zero
                    batch.broken[row] = 1
        return out.add_(x)

    def _bottleneck(
        self, traits: BottleneckTraits, sublayer: Sublayer, place: int, read: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the inner values (n, w) and the output (n, D) of a row's bottleneck; ``read`` is (n, D)."""
        down, down_bias, up, up_bias = (
            self._pool.tensor(f"{sublayer}.{name}")[self._index, place]
            for name in ("down", "down_bias", "up", "up_bias")
        )
        width = traits.width
        narrow = torch.addmm(down_bias[:width], read, down[:width].t())  # (n, w)
        return narrow, torch.addmm(up_bias, ACTIVATIONS[traits.activation](narrow), up[:width])


class _Product:
    """One of ``PRODUCTS`` of a layer: its weights and its slots."""

    def __init__(
        self,
        layer: EncoderLayer,
        name: str,
        index: int,
        pool: SlotPool,
        precision: Precision,
        weight: Tensor,
        shrink: Tensor | None = None,
    ) -> None:
        """``weight`` (d_out, d_in) is multiplied by what ``shrink`` (d_in,) takes out of int8's inputs."""
        self._library = library.load()
        self._out, width = weight.shape
        scales = sums = None
        if precision == "int8":
            scales = weight.abs().amax(dim=1).clamp_min(_TINY) / _LEVELS  # (d_out,)
            stored = (weight / scales[:, None]).round().to(torch.int8)  # (d_out, d_in)
            sums = stored.sum(1).float()  # (d_out,)
        else:
            stored = weight.to(pool.limits.dtype)
        stored = stored.contiguous()
        packed = torch.empty_like(stored)
        units = stored.nbytes // self._out // _UNIT_BYTES
        self._library.hmi_pack_weight(stored.data_ptr(), self._out, units, packed.data_ptr())
        self._tensors = (packed, scales, sums, stacked_bias(layer, name).float(), shrink)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in self._tensors]
        self._matrix = ctypes.byref(library.Matrix(_WEIGHTS[precision], *pointers, width, self._out))
        lora_b = [pool.tensor(f"{matrix}.lora_b")[index].data_ptr() for matrix in PRODUCTS[name]]
        self._lora = ctypes.byref(
            library.Lora(
                len(PRODUCTS[name]),
                pool.limits.max_rank + 1,
                pool.tensor(f"{name}.lora_a")[index].data_ptr(),
                (ctypes.c_void_p * len(FUSED))(*lora_b),
            )
        )

    def __call__(
        self, batch: _Batch, x: Tensor, *, residual: Tensor | None = None, activation: int = 0
    ) -> Tensor:
        """Return activation(x @ weight.T + bias + LoRA + residual), (N, d_out), of ``x`` (N, d_in)."""
        out = x.new_empty(len(x), self._out)
        self._library.hmi_product(
            batch.argument,
            self._matrix,
            self._lora,
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            activation,
            out.data_ptr(),
        )
        return out
