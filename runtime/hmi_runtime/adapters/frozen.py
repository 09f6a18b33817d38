"""The frozen matrices of a layer in float32 and bfloat16; ``quantization`` has them in int8.

A ``FrozenLayer`` multiplies activations by a matrix and adds the base's bias and, if given, a residual. What
belongs to a row (LoRA and biases) is added by the caller. ``PlainSteps`` of the layer is the reference:
``tests/runtime/adapters/test_frozen_layers.py`` compares.

On CPUs, torch's own float32 product calls MKL, which takes slow code on processors that are not Intel's.
oneDNN's, on weights in its own layout, is as exact; it also adds bias and residual without a pass of its own.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.models.architecture import MATRICES
from hmi_runtime.models.encoder import EncoderLayer

Precision = Literal["float32", "bfloat16", "int8"]
FUSED = ("query", "key", "value")
"""Matrices with the same input, multiplied as one."""
PRODUCTS: Mapping[str, tuple[str, ...]] = {
    "qkv": FUSED,
    **{name: (name,) for name in MATRICES if name not in FUSED},
}
"""The products of a layer, and the matrices of each, one below the other."""
_TYPICAL_TOKENS = 1024
"""For which number of tokens oneDNN chooses the layout of weights; others work, too."""


class FrozenLayer(Protocol):
    """The products of one layer."""

    dtype: torch.dtype
    """Of activations: what goes into a product and comes out of it."""
    rounds_inputs: bool
    """Whether inputs are rounded to integers, so that NaN and infinities disappear in a product."""

    def prepare(self, product: str, x: Tensor) -> Any:
        """Return ``x`` (N, d_in), contiguous, as an operand of ``multiply`` for one of ``PRODUCTS``."""
        ...

    def multiply(self, product: str, x: Any, residual: Tensor | None = None) -> Tensor:
        """Return ``x @ weight.T + bias + residual`` (N, d_out) for a prepared ``x``; it is a new tensor.

        ``residual`` is (N, d_out) or None.
        """
        ...


def stacked_weight(layer: EncoderLayer, product: str) -> Tensor:
    """Return the weight (d_out, d_in) of one of ``PRODUCTS``."""
    return torch.cat([layer.get_parameter(f"{name}.weight").detach() for name in PRODUCTS[product]])


def stacked_bias(layer: EncoderLayer, product: str) -> Tensor:
    """Return the bias (d_out,) of one of ``PRODUCTS``."""
    return torch.cat([layer.get_parameter(f"{name}.bias").detach() for name in PRODUCTS[product]])


class TorchLayer:
    """The products by torch's own kernels, on any device."""

    rounds_inputs = False

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._weights = {name: stacked_weight(layer, name).to(dtype) for name in PRODUCTS}
        self._biases = {name: stacked_bias(layer, name).to(dtype) for name in PRODUCTS}

    def prepare(self, product: str, x: Tensor) -> Tensor:
        """Return ``x`` itself."""
        return x

    def multiply(self, product: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``x @ weight.T + bias + residual``."""
        y = functional.linear(x, self._weights[product], self._biases[product])
        return y if residual is None else y.add_(residual)


class OneDnnLayer:
    """The products by oneDNN on packed weights, on CPUs."""

    rounds_inputs = False

    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._biases = {name: stacked_bias(layer, name).to(dtype) for name in PRODUCTS}
        self._packed = {
            name: torch.ops.mkldnn._reorder_linear_weight(
                stacked_weight(layer, name).to(dtype), _TYPICAL_TOKENS
            )
            for name in PRODUCTS
        }

    def prepare(self, product: str, x: Tensor) -> Tensor:
        """Return ``x`` itself."""
        return x

    def multiply(self, product: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``x @ weight.T + bias + residual``."""
        weight, bias = self._packed[product], self._biases[product]
        y: Tensor
        if residual is None:
            y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        else:
            y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
        return y
