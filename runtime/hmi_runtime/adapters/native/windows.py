"""Windows of a Domain by the C++ kernels: its lower layers on windows of three tokens, in float32.

They are as exact as torch's products, and on processors that are not Intel's take less than half of the time,
since torch's float32 products are MKL's.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hmi_runtime.adapters.kernels import Kernel, available_kernels
from hmi_runtime.adapters.native.layers import NativeLayers
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool
from hmi_runtime.models.architecture import MATRICES, Architecture, EncoderConfig
from hmi_runtime.models.domain_layers import DomainLayers

_KERNEL = Kernel("float32", "native")


@dataclass(frozen=True)
class _LowerLayers:
    """Lower layers, with what ``SlotPool`` and ``NativeLayers`` read of ``UpperLayers``."""

    config: EncoderConfig
    split: int  # how many layers of the encoder are not among ``layers``
    layers: nn.ModuleList
    architecture: Architecture


def pack_windows(layers: DomainLayers) -> None:
    """Let ``layers`` compute windows by the C++ kernels, where these run them; else change nothing.

    Frees the matrices of ``layers``, which can then be neither saved nor trained.
    """
    config = layers.config.encoder
    lower = _LowerLayers(config, config.layers - layers.config.split, layers.layers, layers.architecture)
    if _KERNEL not in available_kernels(layers.word.device, lower):
        return
    limits = SlotLimits(max_rank=1, max_labels=1, dense_heads=False, dtype=_KERNEL.slot_dtype)
    native = NativeLayers(lower, SlotPool(lower, 0, limits), _KERNEL.precision)
    layers.compute_windows_by(partial(_run, native))
    for layer in layers.layers:
        for name in MATRICES:
            layer.get_parameter(f"{name}.weight").data = torch.empty(0)


def _run(native: NativeLayers, x: Tensor, present: Tensor) -> Tensor:
    """Return the last states (W, 3, D) of windows ``x`` (W, 3, D); ``present`` (W, 3) bool are not absent."""
    lengths = present.sum(1).tolist()
    out = torch.zeros_like(x)
    out[present] = native.run_rows(x[present], lengths, [BARE] * len(lengths))
    return out
