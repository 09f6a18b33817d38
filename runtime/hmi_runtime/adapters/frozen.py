"""The frozen matrices of a layer, as the executor multiplies by them.

One interface, two precisions: ``FloatLayer`` here, ``quantized.Int8Layer`` beside it. Both add into an
output that the caller has filled, so that a bias or a residual costs no pass of its own.
"""

from typing import Protocol

import torch
from torch import Tensor

from hmi_runtime.base import MATRICES, EncoderLayer


class FrozenLayer(Protocol):
    """The six matrices of one layer."""

    def add_product(self, matrix: str, x: Tensor, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out``: ``x`` (N, d_in), ``out`` (N, d_out), contiguous float32."""
        ...


class FloatLayer:
    """The matrices as they are, in the model's own precision."""

    def __init__(self, layer: EncoderLayer) -> None:
        self._weights = {name: layer.get_submodule(name).weight.detach().t() for name in MATRICES}  # type: ignore[operator]

    def add_product(self, matrix: str, x: Tensor, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out`` in place."""
        torch.addmm(out, x, self._weights[matrix], out=out)
