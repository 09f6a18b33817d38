"""The upper layers over rows without padding, by the C++ kernels.

Frozen matrices are in int8 with a step for every token, bfloat16 or float32. What is between products, LoRA
and attention is in bfloat16, or in float32 where the matrices are; sums and norms are computed in float32. A
row's states depend on nothing outside of the row.
"""

import ctypes
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from hmi_runtime.adapters.frozen import FUSED, PRODUCTS, Precision, stacked_bias, stacked_weight
from hmi_runtime.adapters.native import library
from hmi_runtime.adapters.quantization import ScaledWeights, scaled_weights
from hmi_runtime.adapters.slot_pool import SlotPool
from hmi_runtime.models.architecture import NORMS, SUBLAYERS
from hmi_runtime.models.encoder import EncoderLayer, LayerStack

_ACTIVATIONS = {"gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3, "silu": 4}
"""``hmi::Activation`` of vector.h."""
_WEIGHTS: dict[Precision, int] = {"int8": 0, "bfloat16": 1, "float32": 2}
"""``hmi::Weights`` of batch.h."""
_PLACEMENTS = {None: 0, "parallel": 1, "sequential": 2}
"""``hmi::Placement`` of batch.h."""
_UNIT_BYTES = 4
_LEVELS = 127
_TINY = torch.finfo(torch.float32).tiny


class NativeLayers:
    """Runs the upper layers of one model that ``kernels.runs_model`` admits; see ``UpperExecutor``.

    Uses as many threads as torch does in the calling thread, each for some of the rows.
    """

    def __init__(
        self, upper: LayerStack, pool: SlotPool, precision: Precision, sample: Tensor | None = None
    ) -> None:
        layers = [layer for layer in upper.layers if isinstance(layer, EncoderLayer)]
        weights = scaled_weights(layers, sample) if precision == "int8" else [_weights(one) for one in layers]
        self._library = library.load()
        self._pool = pool
        self._dtype = pool.limits.dtype
        self._products = [
            [Product(layer, name, index, pool, precision, *weights[index][name]) for name in PRODUCTS]
            for index, layer in enumerate(layers)
        ]
        self._layers = (library.Layer * len(layers))(
            *(_layer(layer, index, pool, self._products[index]) for index, layer in enumerate(layers))
        )

    def for_another_thread(self) -> "NativeLayers":
        """Return itself: every call has buffers of its own."""
        return self

    def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (B, T, D) float32; see ``UpperExecutor.run``."""
        out = torch.zeros_like(hidden)
        out[mask] = self.run_rows(hidden[mask], mask.sum(1).tolist(), slots)
        out[out[:, 0, 0].isnan()] = torch.nan  # at padding, too
        return out

    def run_rows(self, hidden: Tensor, lengths: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (N, D) float32 of rows without padding, one behind the other.

        ``hidden`` (N, D) float32 is not changed; ``slots`` are as in ``UpperExecutor.run``. A row that
        becomes NaN there does here.
        """
        places = [self._pool.index(slot) for slot in slots]
        x = hidden.to(self._dtype, copy=True)  # (N, D)
        offsets = [0, *accumulate(lengths)]
        plain = [row for row, place in enumerate(places) if self._pool.traits[place].bottleneck is None]
        if len(plain) == len(places):
            shares = _shares(offsets)
            _call_all([partial(self._run_share, x, offsets, places, share) for share in shares])
            return x.float()
        # Rows with bottlenecks have roundings of their own, so they are a batch of their own.
        others = [row for row, place in enumerate(places) if self._pool.traits[place].bottleneck is not None]
        for rows in filter(None, (plain, others)):
            tokens = torch.cat([torch.arange(offsets[row], offsets[row + 1]) for row in rows])
            part, ends = x[tokens], [0, *accumulate(lengths[row] for row in rows)]
            self._run_share(part, ends, [places[row] for row in rows], range(len(rows)))
            x[tokens] = part
        return x.float()

    def _run_share(self, x: Tensor, offsets: Sequence[int], places: Sequence[int], rows: range) -> None:
        """Replace the states of ``rows`` in ``x`` (N, D) by their last ones."""
        start, stop = offsets[rows.start], offsets[rows.stop]
        part = x[start:stop]
        ends = [offset - start for offset in offsets[rows.start : rows.stop + 1]]
        batch = Batch(ends, places[rows.start : rows.stop], self._pool)
        floats = int(self._dtype == torch.float32)
        self._library.hmi_layers(batch.argument, self._layers, len(self._layers), floats, part.data_ptr())
        for row in batch.broken.nonzero()[:, 0].tolist():
            part[ends[row] : ends[row + 1]] = torch.nan


def _weights(layer: EncoderLayer) -> ScaledWeights:
    """Return a layer's weights by product, as they are."""
    return {name: (stacked_weight(layer, name), None) for name in PRODUCTS}


def _shares(offsets: Sequence[int]) -> list[range]:
    """Return the rows in shares of about as many tokens, as many as torch has threads here."""
    rows = len(offsets) - 1
    count = max(1, min(torch.get_num_threads(), rows))
    ends = [bisect_left(offsets, offsets[-1] * number // count) for number in range(1, count)]
    bounds = [0, *ends, rows]
    return [range(start, stop) for start, stop in pairwise(bounds) if start < stop]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="layers")


def _call_all(work: Sequence[Callable[[], None]]) -> None:
    """Call all at once: the first in this thread."""
    others = [_threads().submit(torch.inference_mode()(one)) for one in work[1:]]
    for one in work[:1]:
        one()
    for other in others:
        other.result()


class Batch:
    """Rows one behind the other, as the kernels take them. Either all have bottlenecks or none has."""

    def __init__(self, offsets: Sequence[int], places: Sequence[int], pool: SlotPool) -> None:
        """``offsets`` (B + 1) say where rows begin, ``places`` (B) are their slots' indices in the pool."""
        traits = [pool.traits[place] for place in places]
        bottlenecks = [one.bottleneck for one in traits]
        placements = [dict(one.placements) if one else {} for one in bottlenecks]
        self.broken = torch.zeros(len(places), dtype=torch.uint8)
        self._tensors = [
            torch.tensor(offsets, dtype=torch.int32),
            torch.tensor(places, dtype=torch.int32),
            torch.tensor([one.rank for one in traits], dtype=torch.int32),
            torch.tensor([one.own_bias for one in traits], dtype=torch.uint8),
            torch.tensor([one.width if one else 0 for one in bottlenecks], dtype=torch.int32),
            torch.tensor(
                [_ACTIVATIONS[one.activation] if one else 0 for one in bottlenecks], dtype=torch.uint8
            ),
            *(
                torch.tensor([_PLACEMENTS[one.get(place)] for one in placements], dtype=torch.uint8)
                for place in SUBLAYERS
            ),
        ]
        *pointers, attention, ffn = (tensor.data_ptr() for tensor in self._tensors)
        both = (ctypes.c_void_p * 2)(attention, ffn)
        self.argument = ctypes.byref(library.Batch(len(places), *pointers, both, self.broken.data_ptr()))


def _layer(layer: EncoderLayer, index: int, pool: SlotPool, products: Sequence["Product"]) -> library.Layer:
    """Return a layer as the kernels take it."""
    bottlenecks = [
        library.Bottlenecks(
            pool.limits.max_bottleneck,
            *(
                pool.tensor(f"{place}.{name}")[index].data_ptr()
                for name in ("down", "down_bias", "up", "up_bias")
            ),
        )
        if pool.limits.max_bottleneck
        else library.Bottlenecks()
        for place in SUBLAYERS
    ]
    return library.Layer(
        (library.Matrix * 4)(*(one.matrix for one in products)),
        (library.Lora * 4)(*(one.lora for one in products)),
        (library.Norms * 2)(
            *(
                library.Norms(pool.tensor(name)[index].data_ptr(), layer.get_submodule(name).eps)
                for name in NORMS
            )
        ),
        (library.Bottlenecks * 2)(*bottlenecks),
        layer.config.heads,
        _ACTIVATIONS[layer.config.activation],
    )


class Product:
    """One of ``PRODUCTS`` of a layer, as the kernels take it: its weights and its slots."""

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
        outputs, width = weight.shape
        scales = sums = None
        if precision == "int8":
            scales = weight.abs().amax(dim=1).clamp_min(_TINY) / _LEVELS  # (d_out,)
            stored = (weight / scales[:, None]).round().to(torch.int8)  # (d_out, d_in)
            sums = stored.sum(1).float()  # (d_out,)
        else:
            stored = weight.to(pool.limits.dtype)
        stored = stored.contiguous()
        packed = torch.empty_like(stored)
        units = stored.nbytes // outputs // _UNIT_BYTES
        library.load().hmi_pack_weight(stored.data_ptr(), outputs, units, packed.data_ptr())
        self._tensors = (packed, scales, sums, stacked_bias(layer, name).float(), shrink)
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in self._tensors]
        self.matrix = library.Matrix(_WEIGHTS[precision], *pointers, width, outputs)
        lora_b = [pool.tensor(f"{matrix}.lora_b")[index].data_ptr() for matrix in PRODUCTS[name]]
        self.lora = library.Lora(
            len(PRODUCTS[name]),
            pool.limits.max_rank + 1,
            pool.tensor(f"{name}.lora_a")[index].data_ptr(),
            (ctypes.c_void_p * len(FUSED))(*lora_b),
        )
