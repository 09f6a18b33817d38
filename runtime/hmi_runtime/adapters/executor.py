"""The batched executor: upper layers over a batch in which every row has its own adapter.

``reference`` computes the same row by row; ``tests/runtime/adapters/test_executor.py`` compares the two.
"""

import copy
from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from hmi_runtime.adapters.kernels import FLOAT32, Kernel, check_available
from hmi_runtime.adapters.native.layers import NativeLayers
from hmi_runtime.adapters.padded_layers import PaddedLayers
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.models.encoder import UpperLayers


class BatchLayers(Protocol):
    """One way to run the upper layers over a batch; ``UpperExecutor`` describes the arguments."""

    def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (B, T, D) float32."""
        ...

    def for_another_thread(self) -> Self:
        """Return the same over the same weights and slots, to be used at the same time."""
        ...


class UpperExecutor:
    """Runs the upper layers for mixed batches.

    Has working buffers: use it from one thread at a time. The slots of a batch must not be written while it
    runs.
    """

    def __init__(
        self,
        upper: UpperLayers,
        pool: SlotPool,
        kernel: Kernel = FLOAT32,
        *,
        sample: Tensor | None = None,
    ) -> None:
        """Prepare ``upper``, which is on the pool's device.

        ``kernel`` multiplies the frozen matrices; the pool's slots must have its ``slot_dtype``. ``sample``
        (B, T, D), unpadded inputs of the upper layers, fits int8 to them (see ``quantise_layers``).
        Raises ``InvalidInput`` PrecisionUnsupported unless the kernel is one of the ``available_kernels`` of
        the device and the model.
        """
        check_available(kernel, pool.device, upper)
        if pool.limits.dtype != kernel.slot_dtype:
            raise ValueError(f"{kernel.name} needs slots of {kernel.slot_dtype}, not {pool.limits.dtype}")
        self.pool = pool
        self.kernel = kernel
        self._layers: BatchLayers = (
            NativeLayers(upper, pool, kernel.precision, sample)
            if kernel.library == "native"
            else PaddedLayers(upper, pool, kernel, sample)
        )

    @property
    def compiles_shapes(self) -> bool:
        """Whether the kernel compiles code for every shape of a batch, so that few shapes are faster."""
        return self.kernel.library == "onednn"

    def for_another_thread(self) -> "UpperExecutor":
        """Return an executor over the same weights and slots, with working buffers of its own."""
        other = copy.copy(self)
        other._layers = self._layers.for_another_thread()
        return other

    @torch.inference_mode()
    def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the last hidden states (B, T, D) float32.

        ``hidden`` (B, T, D) float32 is what enters the first upper layer, ``mask`` (B, T) bool is False on
        padding, ``slots[i]`` is row i's slot (``BARE``: no adapter). States at padding are undefined.

        A row becomes NaN throughout when its queries, keys, values, norm inputs or ReLU inputs are not
        finite or so large that their squares are not, or with a kernel that rounds inputs to integers, when
        an input is.
        """
        return self._layers.run(hidden, mask, slots)


def trial_executor(upper: UpperLayers, kernel: Kernel, sample: Tensor | None = None) -> UpperExecutor:
    """Return an executor for rows without an adapter, to time ``kernel`` and to compare its states.

    ``sample`` (B, T, D) is as in ``UpperExecutor``.
    """
    device = next(upper.parameters()).device
    limits = SlotLimits(max_rank=1, max_labels=1, dense_heads=False, dtype=kernel.slot_dtype)
    return UpperExecutor(upper, SlotPool(upper, 0, limits, device), kernel, sample=sample)
