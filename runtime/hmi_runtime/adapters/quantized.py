"""The frozen matrices in int8, for CPUs: quantised once, shared by every tenant; adapters stay float.

Weights are symmetric per output channel, ``w ~ scale * q`` with q in -127..127; activations are quantised
on the fly. The kernels are torch's own (FBGEMM or oneDNN, whichever this build prefers).
"""

import warnings

import torch
from torch import Tensor

from hmi_runtime.base import MATRICES, EncoderLayer

_LARGEST = 127


class Int8Layer:
    """The six matrices of one layer in int8."""

    def __init__(self, layer: EncoderLayer) -> None:
        self._packed = {name: _pack(layer.get_parameter(f"{name}.weight").detach()) for name in MATRICES}

    def add_product(self, matrix: str, x: Tensor, out: Tensor) -> None:
        """Add ``x @ weight.T`` to ``out`` in place, the product in int8."""
        # reduce_range keeps activations to 7 bits: without VNNI, sums of two 8-bit products can saturate.
        out.add_(torch.ops.quantized.linear_dynamic(x, self._packed[matrix], reduce_range=True))


def _pack(weight: Tensor) -> torch.ScriptObject:
    scales = (
        weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny).double() / _LARGEST
    )  # (d_out,)
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    with warnings.catch_warnings():
        # The kernels take their weights as torch's quantised tensors, whose making warns that the type
        # will move to another package; the kernels themselves stay.
        warnings.simplefilter("ignore", UserWarning)
        quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(quantised, None)
    return packed
