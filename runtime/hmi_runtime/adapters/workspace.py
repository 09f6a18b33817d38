"""Buffers that are used again from batch to batch, so that large activations are not allocated anew."""

import math

import torch
from torch import Tensor


class Workspace:
    """Named flat buffers, each grown to the largest size asked of it. Not for use by two threads at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a contiguous float32 tensor of ``shape``, not cleared; valid until ``name`` is taken."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, device=self._device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)

    def gather(self, name: str, source: Tensor, index: Tensor) -> Tensor:
        """Return ``source[index]`` along the first dimension, in that name's buffer."""
        out = self.take(name, index.shape[0], *source.shape[1:])
        return torch.index_select(source, 0, index, out=out)
