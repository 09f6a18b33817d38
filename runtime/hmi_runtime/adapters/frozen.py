"""The frozen matrices of a layer, as the executor multiplies by them.

One interface, two precisions: ``FloatLayer`` here, ``quantized.Int8Layer`` beside it. Both add into an
output that the caller has filled, so that a bias or a residual costs no pass of its own, and both
prepare an input once for all matrices that read it.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from hmi_runtime.base import MATRICES, EncoderLayer


class FrozenLayer(Protocol):
    """The six matrices of one layer."""

    def prepare(self, matrix: str, x: Tensor) -> Any:
        """Return ``x`` (B, T, d_in) in the form in which ``add_product`` takes it.

        For ``matrix`` and all others that read the same input, as query, key and value do.
        """
        ...

    def add_product(self, matrix: str, x: Any, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out`` (B * T, d_out), contiguous float32, for a prepared ``x``."""
        ...


class FloatLayer:
    """The matrices as they are, in the model's own precision."""

    def __init__(self, layer: EncoderLayer) -> None:
        self._weights = {name: layer.get_parameter(f"{name}.weight").detach().t() for name in MATRICES}

    def prepare(self, matrix: str, x: Tensor) -> Tensor:
        """Return ``x`` as (B * T, d_in)."""
        return x.flatten(0, -2)

    def add_product(self, matrix: str, x: Tensor, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out`` in place."""
        torch.addmm(out, x, self._weights[matrix], out=out)
