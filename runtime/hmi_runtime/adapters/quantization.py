"""The frozen matrices of a layer in int8, on CPUs with oneDNN.

Weights are symmetric per output channel. Activations have a fixed step for every product, so that the
product's epilogue scales, adds bias and residual and rounds to bfloat16. The step fits every token of a
calibration sample. A token that needs a larger one is multiplied again, with a step of its own: adapters can
make values much larger than the base does, and clamping them would change answers. No step depends on other
rows.

A few channels of BERT's hidden states are many times larger than the rest; where a matrix reads hidden
states, each channel's scale is divided out of the states and multiplied into the weights (SmoothQuant, Xiao
et al., 2023). ``tests/runtime/adapters/test_executor_int8.py`` compares int8 with float32.
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

ScaledWeights = dict[str, tuple[Tensor, Tensor | None]]
"""By product: its weights (d_out, d_in), and what its inputs are multiplied by (d_in,), if anything."""
_TOP = 255
"""Largest quantised activation (uint8)."""
_OF_NORMS = ("qkv", "ffn_up")
"""Products that read hidden states after a norm, whose channels are scaled."""
_WHOLE_NUMBERS = 2.0**23
_TINY = torch.finfo(torch.float32).tiny
_ROWS, _LENGTH = 16, 32


class _Packed(NamedTuple):
    weight: Tensor  # (d_in, d_out) int8, in oneDNN's own layout
    scales: Tensor  # (d_out,)
    zeros: Tensor  # (d_out,) int64


@dataclass(frozen=True)
class Operand:
    """Activations as bytes: ``x / channels ~ step * (byte - zero)``, with the product's fixed step."""

    levels: Tensor  # (N, d_in) uint8
    large: Tensor  # (L,) int64: tokens that the fixed step does not fit; the last may be repeated
    large_levels: Tensor  # (L, d_in) uint8
    large_steps: Tensor  # (L, 1) float32: the step of each


@dataclass(frozen=True)
class _Input:
    """How a product's input becomes bytes."""

    step: float
    zero: int
    channels: Tensor | None = None  # (d_in,) scale of each channel
    shrink: Tensor | None = None  # (d_in,) their reciprocals

    @classmethod
    def from_sample(cls, states: Tensor, weight: Tensor | None = None) -> Self:
        """Measure sample ``states`` (B, T, d_in); with a ``weight`` (d_out, d_in), scale the channels."""
        channels = _channel_scales(states, weight) if weight is not None else None
        shrink = channels.reciprocal() if channels is not None else None
        scaled = (states if shrink is None else states * shrink).flatten(0, 1)  # (N, d_in)
        above, below = scaled.amax(dim=1).clamp_min(_TINY), (-scaled.amin(dim=1)).clamp_min(0)  # (N,)
        zero = max(1, min(_TOP - 1, round(_TOP * float((below / (above + below)).mean()))))
        return cls(float(_steps(scaled, zero).max()), zero, channels, shrink)

    def scale_weight(self, weight: Tensor) -> Tensor:
        """Return ``weight`` (d_out, d_in) multiplied by the channel scales that inputs are divided by."""
        return weight if self.channels is None else weight * self.channels

    def to_bytes(self, x: Tensor) -> Operand:
        """Return ``x`` (N, d_in), rounded to the nearest levels; NaN becomes any byte."""
        scaled = x.float() if self.shrink is None else x.float() * self.shrink
        steps = _steps(scaled, self.zero)  # (N, 1)
        large = _repeat_last((steps[:, 0] > self.step).nonzero()[:, 0], len(x))
        quantised = torch.quantize_per_tensor(scaled, self.step, self.zero, torch.quint8)
        # The bytes themselves; int_repr() would copy them.
        levels = torch.empty(0, dtype=torch.uint8).set_(
            quantised.untyped_storage(), 0, x.shape, scaled.stride()
        )
        large_steps = steps[large]
        return Operand(levels, large, _round(scaled[large] / large_steps, self.zero), large_steps)


def _repeat_last(tokens: Tensor, most: int) -> Tensor:
    """Return ``tokens`` (n,) with the last one repeated up to a power of two of them, or up to ``most``.

    oneDNN compiles code for every number of rows that it multiplies.
    """
    count = len(tokens)
    if not count:
        return tokens
    repeats = min(1 << (count - 1).bit_length(), most) - count
    return torch.cat((tokens, tokens[-1:].expand(repeats))) if repeats else tokens


def _steps(x: Tensor, zero: int) -> Tensor:
    """Return the least step (N, 1) with which each token of ``x`` (N, d_in) float32 fits into bytes."""
    above = x.amax(dim=1, keepdim=True).div_(_TOP - zero)
    below = x.amin(dim=1, keepdim=True).div_(-zero)
    return torch.maximum(above, below).clamp_min_(_TINY)


def _round(x: Tensor, zero: int) -> Tensor:
    """Return ``x`` rounded to the nearest integers, plus ``zero``, as uint8; it must fit."""
    # Above 2**23 float32 has integers only, so this sum rounds, and the last byte of its bits is the level.
    # NaN, which a conversion of the value itself would leave undefined, becomes some byte.
    return (x + (_WHOLE_NUMBERS + zero)).view(torch.int32).to(torch.uint8)


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

    def prepare(self, product: str, x: Tensor) -> Operand:
        """Return ``x`` (N, d_in) as bytes."""
        return self._inputs[product].to_bytes(x)

    def multiply(self, product: str, x: Operand, residual: Tensor | None = None) -> Tensor:
        """Return ``x @ weight.T + bias + residual``."""
        seen, packed, bias = self._inputs[product], self._packed[product], self._biases[product]
        y = _product(x.levels, seen.step, seen.zero, packed, bias, residual, self.dtype)  # (N, d_out)
        if len(x.large):
            large = _product(x.large_levels, 1.0, seen.zero, packed)  # (L, d_out) float32
            large = large.mul_(x.large_steps).add_(bias)
            if residual is not None:
                large += residual[x.large]
            y.index_copy_(0, x.large, large.to(self.dtype))
        return y


@torch.no_grad()
def quantise_layers(
    layers: Sequence[EncoderLayer], sample: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> list[Int8Layer]:
    """Quantise the upper layers. Requires ``supports_int8``.

    ``sample`` (B, T, D) are typical inputs of the first, unpadded; without it, random states after that
    layer's norm are used, which fit fewer tokens of real texts. Activations between products have ``dtype``.
    """
    return [
        Int8Layer(layer, read, dtype)
        for layer, read in zip(layers, _sample_inputs(layers, sample), strict=True)
    ]


@torch.no_grad()
def scaled_weights(layers: Sequence[EncoderLayer], sample: Tensor | None = None) -> list[ScaledWeights]:
    """Return each layer's weights with scaled channels; ``sample`` is as in ``quantise_layers``."""
    scaled = []
    for layer, read in zip(layers, _sample_inputs(layers, sample), strict=True):
        weights: ScaledWeights = {}
        for name in PRODUCTS:
            weight = stacked_weight(layer, name).float()
            if name in _OF_NORMS:
                channels = _channel_scales(read[name], weight)
                weights[name] = weight * channels, channels.reciprocal()
            else:
                weights[name] = weight, None
        scaled.append(weights)
    return scaled


def _sample_inputs(layers: Sequence[EncoderLayer], sample: Tensor | None) -> list[dict[str, Tensor]]:
    """Return the inputs (B, T, d_in) of every layer's products for a sample, by product."""
    first = layers[0]
    states = _random_states(first) if sample is None else sample.float()
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    contexts = first.architecture.contexts(mask, unpadded=True)
    inputs = []
    for layer in layers:
        steps = _Recorder(layer)
        states = layer.architecture.layer(steps, states, contexts[layer.index])
        inputs.append({name: steps.read[matrices[0]] for name, matrices in PRODUCTS.items()})
    return inputs


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
