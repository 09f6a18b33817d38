"""The frozen matrices of a layer in float32 and, on CPUs, in int8. Adapters always stay float32.

``FloatLayer`` and ``Int8Layer`` have one interface. Both add to an output that the caller has initialised,
so that adding a bias or a residual takes no extra pass, and both prepare an input once for all matrices that
read it.

In int8, weights are symmetric per output channel. Activations are quantised on the fly with one step *per
token*, so that large values in one row do not reduce the precision of others. A row depends on the other rows
by rounding alone: float32 sums differ in their last bits with a batch's shape, and a value between two levels
may then round to the other one. A few channels of BERT's hidden states are many times larger than the rest;
where a matrix reads hidden states, each channel's scale is divided out of the states and multiplied into
the weights (SmoothQuant, Xiao et al., 2023), by ranges seen on a calibration sample.
``tests/runtime/adapters/test_executor_int8.py`` compares int8 with float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from hmi_runtime.models.architecture import MATRICES
from hmi_runtime.models.encoder import Encoder, EncoderLayer, PlainSteps

_TOP = 255
"""Largest quantised activation (uint8)."""
_WHOLE_NUMBERS = 2.0**23
_TINY = torch.finfo(torch.float32).tiny
_ROWS, _LENGTH = 16, 32


class FrozenLayer(Protocol):
    """The six matrices of one layer."""

    def prepare(self, matrix: str, x: Tensor) -> Any:
        """Return ``x`` (B, T, d_in) as an operand of ``add_product``.

        Valid for ``matrix`` and all others with the same input (query, key and value).
        """
        ...

    def add_product(self, matrix: str, x: Any, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out`` (B * T, d_out), contiguous float32, for a prepared ``x``."""
        ...


class FloatLayer:
    """The six matrices in the model's own precision. The reference for ``Int8Layer``."""

    def __init__(self, layer: EncoderLayer) -> None:
        self._weights = {name: layer.get_parameter(f"{name}.weight").detach().t() for name in MATRICES}

    def prepare(self, matrix: str, x: Tensor) -> Tensor:
        """Return ``x`` as (B * T, d_in)."""
        return x.flatten(0, -2)

    def add_product(self, matrix: str, x: Tensor, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out`` in place."""
        torch.addmm(out, x, self._weights[matrix], out=out)


class Operand(NamedTuple):
    """Quantised activations: ``x ~ step * (levels - zero)``, with scaled channels."""

    levels: Tensor  # (N, d_in) uint8
    step: Tensor  # (N, 1) float32
    zero: int


class _Packed(NamedTuple):
    weight: Tensor  # (d_in, d_out) int8, in oneDNN's own layout
    scales: Tensor  # (d_out,)
    zeros: Tensor  # (d_out,) int64


@dataclass(frozen=True)
class _Input:
    """Quantisation parameters of a matrix's input, from the calibration sample."""

    zero: int  # zero point: low where values are mostly positive, as after GELU
    scales: Tensor | None = None  # (d_in,) of each channel
    shrink: Tensor | None = None  # (d_in,) their reciprocals

    @classmethod
    def from_sample(cls, states: Tensor, weight: Tensor | None = None) -> Self:
        """Measure sample ``states`` (B, T, d_in); with a ``weight`` (d_out, d_in), scale the channels."""
        scales = _channel_scales(states, weight) if weight is not None else None
        shrink = scales.reciprocal() if scales is not None else None
        scaled = states if shrink is None else states * shrink
        above, below = scaled.amax(dim=-1).clamp_min(_TINY), (-scaled.amin(dim=-1)).clamp_min(0)  # (B, T)
        share = float((below / (above + below)).mean())
        return cls(max(1, min(_TOP - 1, round(share * _TOP))), scales, shrink)

    def scale_weight(self, weight: Tensor) -> Tensor:
        """Return ``weight`` (d_out, d_in) multiplied by the channel scales that inputs are divided by."""
        return weight if self.scales is None else weight * self.scales


class Int8Layer:
    """The six matrices of one layer in int8."""

    def __init__(self, layer: EncoderLayer, read: Mapping[str, Tensor]) -> None:
        """Quantise ``layer``; ``read`` are sample inputs (B, T, d_in) of every matrix, without padding."""
        weights = {name: layer.get_parameter(f"{name}.weight").detach() for name in MATRICES}
        attention = torch.cat([weights[name] for name in ("query", "key", "value")])  # (3D, D)
        hidden = _Input.from_sample(read["query"], attention)
        self._inputs = {
            "query": hidden,
            "key": hidden,
            "value": hidden,
            "attention_output": _Input.from_sample(read["attention_output"]),
            "ffn_up": _Input.from_sample(read["ffn_up"], weights["ffn_up"]),
            "ffn_down": _Input.from_sample(read["ffn_down"]),
        }
        self._packed = {
            name: _pack(self._inputs[name].scale_weight(weight)) for name, weight in weights.items()
        }

    def prepare(self, matrix: str, x: Tensor) -> Operand:
        """Quantise ``x`` (B, T, d_in) for ``matrix`` and those with the same input."""
        seen = self._inputs[matrix]
        flat = x.flatten(0, -2)  # (N, d_in)
        if seen.shrink is not None:
            flat = flat * seen.shrink
        above = flat.amax(dim=1, keepdim=True).div_(_TOP - seen.zero)  # (N, 1)
        below = flat.amin(dim=1, keepdim=True).div_(-seen.zero)  # (N, 1)
        step = torch.maximum(above, below).clamp_min_(_TINY)
        # Above 2**23 float32 has integers only, so this sum rounds, and the last byte of its bits is the
        # level: several times faster than rounding and converting. (A whole row is added because a broadcast
        # scalar is not vectorised.)
        offset = flat.new_full((flat.shape[1],), _WHOLE_NUMBERS + seen.zero)
        levels = torch.addcmul(offset, flat, step.reciprocal()).view(torch.int32).to(torch.uint8)
        return Operand(levels, step, seen.zero)

    def add_product(self, matrix: str, x: Operand, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out`` (N, d_out) in place, the product in int8."""
        out.addcmul_(_product(x.levels, x.zero, self._packed[matrix]), x.step)


@torch.no_grad()
def quantise_layers(layers: Sequence[EncoderLayer], sample: Tensor | None = None) -> list[Int8Layer]:
    """Quantise the upper layers.

    ``sample`` (B, T, D) are typical inputs of the first, unpadded; without it, random states after that
    layer's norm are used, which costs a little accuracy. Requires ``supports_int8``.
    """
    first = layers[0]
    states = _random_states(first) if sample is None else sample.float()
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    contexts = first.architecture.contexts(mask, unpadded=True)
    quantised = []
    for layer in layers:
        steps = _Recorder(layer)
        states = layer.architecture.layer(steps, states, contexts[layer.index])
        quantised.append(Int8Layer(layer, steps.read))
    return quantised


class _Recorder(PlainSteps):
    """A layer's own steps that record the input of each matrix."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__(layer)
        self.read: dict[str, Tensor] = {}  # by matrix, (B, T, d_in)

    def matrix(self, name: str, x: Tensor) -> Tensor:
        """Return a matrix of ``x`` (B, T, d_in)."""
        self.read[name] = x
        return super().matrix(name, x)


def supports_int8(device: torch.device) -> bool:
    """Return whether int8 layers run on ``device``: a CPU where torch has oneDNN with exact products."""
    return device.type == "cpu" and _exact_weight_levels() is not None


def _random_states(layer: EncoderLayer) -> Tensor:
    noise = torch.randn(32, 32, layer.config.width, generator=torch.Generator().manual_seed(0))
    states: Tensor = layer.ffn_norm(noise)  # (32, 32, D)
    return states


def _channel_scales(states: Tensor, weight: Tensor) -> Tensor:
    """Return each channel's scale (D,): the geometric mean of states' range and 1 / weights' range."""
    largest = states.flatten(0, -2).abs().amax(dim=0).clamp_min(1e-5)  # (D,)
    return (largest / weight.abs().amax(dim=0).clamp_min(1e-5)).sqrt()


def _pack(weight: Tensor) -> _Packed:
    levels = _exact_weight_levels()
    if levels is None:
        raise RuntimeError("this CPU has no exact int8 products: call supports_int8 first")
    scales = weight.abs().amax(dim=1).clamp_min(_TINY) / levels  # (d_out,)
    quantised = (weight / scales[:, None]).round().to(torch.int8)  # (d_out, d_in)
    packed = torch.ops.onednn.qlinear_prepack(quantised, None)
    return _Packed(packed, scales, torch.zeros(len(scales), dtype=torch.int64))


def _product(levels: Tensor, zero: int, packed: _Packed) -> Tensor:
    """Return ``(levels - zero) @ weight.T`` as (N, d_out) float32."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(levels, 1.0, zero),
        *(packed.weight, packed.scales, packed.zeros, None),  # no bias: the output already has it
        *(1.0, 0, torch.float32),
        *("none", [], ""),  # no operation after the product
    )
    return product


@cache
def _exact_weight_levels() -> int | None:
    """Return the largest quantised weight for which this CPU's kernels are exact, 127 or 63; None: no int8.

    Without VNNI instructions, two products of 8-bit numbers are added in 16 bits and can saturate; with 7-bit
    weights they always fit (2 * 255 * 63 < 2**15). One test product shows it.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        return next((levels for levels in (127, 63) if _is_exact(levels)), None)
    except (RuntimeError, AttributeError):  # oneDNN has no such product for this kind of CPU
        return None


def _is_exact(level: int) -> bool:
    size = 64
    weight = _Packed(
        torch.ops.onednn.qlinear_prepack(torch.full((size, size), level, dtype=torch.int8), None),
        torch.ones(size),
        torch.zeros(size, dtype=torch.int64),
    )
    found = _product(torch.full((size, size), _TOP, dtype=torch.uint8), 0, weight)
    return bool((found == _TOP * level * size).all())


def calibration_sample(encoder: Encoder, split: int, seed: int = 0) -> Tensor:
    """Return the base model's hidden states (16, 32, D) at the split, for random words of the vocabulary.

    Large channels are large for nearly every word, so no text is needed, least of all a tenant's.
    """
    config = encoder.config
    random = torch.Generator().manual_seed(seed)
    length = min(_LENGTH, config.positions)
    ids = torch.randint(config.vocab_size, (_ROWS, length), generator=random)  # (B, T)
    ids[:, 0], ids[:, -1] = config.cls_id, config.sep_id
    ids = ids.to(encoder.word.weight.device)
    with torch.inference_mode():
        return encoder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[split]
