"""The other way to serve several tasks: one whole model each, its adapter merged into its weights."""

from dataclasses import replace

import torch
from torch import Tensor

from hmi_runtime.adapters.heads import run_head
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.models import BaseModel, Encoder


class MergedModel:
    """A whole encoder with one adapter merged in, and the adapter's head: plain torch, no table."""

    def __init__(self, base: BaseModel, adapter: AdapterWeights, device: torch.device) -> None:
        self._base = base
        self.encoder = merge(base.encoder(), adapter).to(device)
        head = adapter.head
        self._head = replace(head, weight=head.weight.to(device), bias=head.bias.to(device))
        self._device = device

    def answer(self, text: str) -> Tensor:
        """Tokenise, run the whole model, and return probabilities: (labels,), or (T, labels) by token."""
        (encoding,) = self._base.tokenizer.encode([text], self._base.config.positions)
        ids = torch.tensor([encoding.ids], device=self._device)  # (1, T)
        mask = torch.ones_like(ids, dtype=torch.bool)
        hidden = self.encoder(ids, mask)[0]  # (T, D)
        return run_head(self._head, hidden, mask[0]).softmax(-1).cpu()


def merge(encoder: Encoder, adapter: AdapterWeights) -> Encoder:
    """Change ``encoder`` in place into what it is with ``adapter``, and return it.

    Raises ``ValueError`` for bottlenecks, which are layers of their own and cannot be merged.
    """
    with torch.no_grad():
        for index, changes in adapter.layers.items():
            if changes.bottlenecks:
                raise ValueError("a bottleneck cannot be merged into a matrix")
            layer = encoder.layers[index]
            for name, lora in changes.lora.items():
                layer.get_parameter(f"{name}.weight").add_(lora.b @ lora.a)
            for name, bias in changes.bias.items():
                layer.get_parameter(f"{name}.bias").copy_(bias)
            for name, (weight, bias) in changes.norms.items():
                layer.get_parameter(f"{name}.weight").copy_(weight)
                layer.get_parameter(f"{name}.bias").copy_(bias)
    return encoder
