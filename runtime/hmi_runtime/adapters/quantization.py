"""The frozen matrices of a layer in int8, on CPUs with oneDNN.

Weights are symmetric per output channel. No step depends on other rows. What a norm puts out has a fixed step
for every matrix, measured on a calibration sample, so that a product's epilogue does the scaling; values
outside of the sample's range are clamped. Other inputs, which adapters can make much larger than the base
does, have one step per token. A few channels of
BERT's hidden states are many times larger than the rest; where a matrix reads hidden states, each channel's
scale is divided out of the states and multiplied into the weights (SmoothQuant, Xiao et al., 2023).
``tests/runtime/adapters/test_executor_int8.py`` compares int8 with float32.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Self

import torch
from torch import Tensor

from hmi_runtime.adapters.frozen import PRODUCTS, stacked_bias, stacked_weight
from hmi_runtime.models.encoder import Encoder, EncoderLayer, PlainSteps

_TOP = 255
"""Largest quantised activation (uint8)."""
_OF_NORMS = ("qkv", "ffn_up")
"""Products that read hidden states after a norm: their channels are scaled, and their step is fixed."""
_WHOLE_NUMBERS = 2.0**23
_TINY = torch.finfo(torch.float32).tiny
_ROWS, _LENGTH = 16, 32


class _Packed(NamedTuple):
    weight: Tensor  # (d_in, d_out) int8, in oneDNN's own layout
    scales: Tensor  # (d_out,)
    zeros: Tensor  # (d_out,) int64


@dataclass(frozen=True)
class _Input:
    """How a product's input becomes bytes: ``x / channels ~ step * (byte - zero)``."""

    step: float
    zero: int
    channels: Tensor | None = None  # (d_in,) scale of each channel
    shrink: Tensor | None = None  # (d_in,) their reciprocals

    @classmethod
    def from_sample(cls, states: Tensor, weight: Tensor | None = None) -> Self:
        """Measure sample ``states`` (B, T, d_in); with a ``weight`` (d_out, d_in), scale the channels."""
        channels = _channel_scales(states, weight) if weight is not None else None
        shrink = channels.reciprocal() if channels is not None else None
        scaled = states if shrink is None else states * shrink
        above, below = max(float(scaled.max()), _TINY), max(float(-scaled.min()), 0.0)
        zero = max(1, min(_TOP - 1, round(_TOP * below / (above + below))))
        return cls(max(above / (_TOP - zero), below / zero), zero, channels, shrink)

    def scale_weight(self, weight: Tensor) -> Tensor:
        """Return ``weight`` (d_out, d_in) multiplied by the channel scales that inputs are divided by."""
        return weight if self.channels is None else weight * self.channels

    def to_bytes(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, d_in) as uint8, clamped and rounded to the nearest; NaN becomes any byte."""
        scaled = x.float() if self.shrink is None else x.float() * self.shrink
        quantised = torch.quantize_per_tensor(scaled, self.step, self.zero, torch.quint8)
        # The bytes themselves; int_repr() would copy them.
        return torch.empty(0, dtype=torch.uint8).set_(quantised.untyped_storage(), 0, x.shape, x.stride())

    def to_bytes_by_token(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x`` (N, d_in) as uint8 and the step (N, 1) float32 of each token."""
        x = x.float()
        above = x.amax(dim=1, keepdim=True).div_(_TOP - self.zero)  # (N, 1)
        below = x.amin(dim=1, keepdim=True).div_(-self.zero)  # (N, 1)
        step = torch.maximum(above, below).clamp_min_(_TINY)
        # Above 2**23 float32 has integers only, so this sum rounds, and the last byte of its bits is the
        # level: several times faster than rounding and converting. (A whole row is added because a broadcast
        # scalar is not vectorised.)
        offset = x.new_full((x.shape[1],), _WHOLE_NUMBERS + self.zero)
        return torch.addcmul(offset, x, step.reciprocal()).view(torch.int32).to(torch.uint8), step


class Int8Layer:
    """The products of one layer in int8."""

    rounds_inputs = True

    def __init__(self, layer: EncoderLayer, read: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Quantise ``layer``; ``read`` are sample inputs (B, T, d_in) by product, without padding.

        Activations between products have ``dtype``, float32 or bfloat16.
        """
        self.dtype = dtype
        self._biases = {name: stacked_bias(layer, name).float() for name in PRODUCTS}
        self._inputs: dict[str, _Input] = {}
        self._packed: dict[str, _Packed] = {}
        for name in PRODUCTS:
            weight = stacked_weight(layer, name)
            self._inputs[name] = _Input.from_sample(read[name], weight if name in _OF_NORMS else None)
            self._packed[name] = _pack(self._inputs[name].scale_weight(weight))

    def prepare(self, product: str, x: Tensor) -> "Operand":
        """Return ``x`` (N, d_in) as bytes."""
        if product in _OF_NORMS:
            return Operand(self._inputs[product].to_bytes(x))
        return Operand(*self._inputs[product].to_bytes_by_token(x))

    def multiply(self, product: str, x: "Operand", residual: Tensor | None = None) -> Tensor:
        """Return ``x @ weight.T + bias + residual``."""
        seen, packed, bias = self._inputs[product], self._packed[product], self._biases[product]
        if x.steps is None:
            return _product(x.levels, seen.step, seen.zero, packed, bias, residual, self.dtype)
        y = _product(x.levels, 1.0, seen.zero, packed)  # (N, d_out) float32
        y = torch.addcmul(bias, y, x.steps, out=y)
        return (y if residual is None else y.add_(residual)).to(self.dtype)


@dataclass(frozen=True)
class Operand:
    """Activations as bytes."""

    levels: Tensor  # (N, d_in) uint8
    steps: Tensor | None = None  # (N, 1) float32 where each token has its own

    def __getitem__(self, rows: slice) -> "Operand":
        """Return the operand of some rows."""
        return Operand(self.levels[rows], None if self.steps is None else self.steps[rows])


@torch.no_grad()
def quantise_layers(
    layers: Sequence[EncoderLayer], sample: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> list[Int8Layer]:
    """Quantise the upper layers. Requires ``supports_int8``.

    ``sample`` (B, T, D) are typical inputs of the first, unpadded; without it, random states after that
    layer's norm are used, which costs a little accuracy. Activations between products have ``dtype``.
    """
    first = layers[0]
    states = _random_states(first) if sample is None else sample.float()
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    contexts = first.architecture.contexts(mask, unpadded=True)
    quantised = []
    for layer in layers:
        steps = _Recorder(layer)
        states = layer.architecture.layer(steps, states, contexts[layer.index])
        read = {name: steps.read[matrices[0]] for name, matrices in PRODUCTS.items()}
        quantised.append(Int8Layer(layer, read, dtype))
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


def _product(
    levels: Tensor,
    step: float,
    zero: int,
    packed: _Packed,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return ``step * (levels - zero) @ weight.T + bias + residual`` as (N, d_out) of ``dtype``."""
    product: Tensor
    if residual is None:
        product = torch.ops.onednn.qlinear_pointwise(
            *(levels, step, zero, *packed, bias, 1.0, 0, dtype),
            *("none", [], ""),  # no operation after the product
        )
    else:
        product = torch.ops.onednn.qlinear_pointwise.binary(
            *(levels, step, zero, *packed, residual, bias, 1.0, 0, dtype),
            *(1.0, 0, "add", 1.0, "none", [], ""),
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
        with warnings.catch_warnings():
            # torch warns once that its quantised tensors will go; only the bytes of one are used here.
            warnings.simplefilter("ignore")
            torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
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
    found = _product(torch.full((size, size), _TOP, dtype=torch.uint8), 1.0, 0, weight)
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
        states = encoder.embed(ids)
        contexts = encoder.architecture.contexts(torch.ones_like(ids, dtype=torch.bool), states.dtype)
        for layer, context in zip(list(encoder.layers)[:split], contexts[:split], strict=True):
            states = layer(states, context)
        return states
