"""The reference for the batched executor: one row, one adapter, every formula written out."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.weights import AdapterWeights, Bottleneck, LayerAdapter
from hmi_runtime.models.architecture import ACTIVATIONS, Sublayer
from hmi_runtime.models.encoder import EncoderLayer, PlainSteps, UpperLayers

_BARE = LayerAdapter()


def run_row(upper: UpperLayers, adapter: AdapterWeights | None, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states (T, D) of one row.

    ``hidden`` (T, D) is what enters the first upper layer, ``mask`` (T,) bool is False on padding; without
    an adapter the frozen layers run as they are.
    """
    return run_layers(upper, adapter.layers if adapter is not None else {}, hidden[None], mask[None])[0]


def run_layers(upper: UpperLayers, changes: Mapping[int, LayerAdapter], x: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states (B, T, D) of rows that all have the same adapter.

    ``changes`` are by absolute layer index; ``x`` (B, T, D), ``mask`` (B, T) bool.
    """
    contexts = upper.architecture.contexts(mask, x.dtype)[upper.split :]
    for index, (layer, context) in enumerate(zip(upper.layers, contexts, strict=True), start=upper.split):
        steps = _Steps(cast(EncoderLayer, layer), changes.get(index, _BARE))
        x = upper.architecture.layer(steps, x, context)
    return upper.apply_final_norm(x)


class _Steps(PlainSteps):
    """A layer's steps with one adapter's changes."""

    def __init__(self, layer: EncoderLayer, changes: LayerAdapter) -> None:
        super().__init__(layer)
        self._changes = changes

    def matrix(self, name: str, x: Tensor) -> Tensor:
        """Return a matrix of ``x`` (B, T, d_in) with its LoRA and its own bias, (B, T, d_out)."""
        linear = self.layer.get_submodule(name)
        bias = self._changes.bias.get(name, linear.bias)
        y = functional.linear(x, linear.weight, bias)  # type: ignore[arg-type]
        lora = self._changes.lora.get(name)
        return y if lora is None else y + functional.linear(functional.linear(x, lora.a), lora.b)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Return ``x`` (B, T, D) after a norm, or the adapter's own in its place."""
        norm = self.layer.get_submodule(name)
        weight, bias = self._changes.norms.get(name, (norm.weight, norm.bias))
        return functional.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)  # type: ignore[arg-type]

    def with_bottleneck(self, sublayer: Sublayer, read: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` (B, T, D) with the sublayer's bottleneck, if there is one."""
        found = self._changes.bottlenecks.get(sublayer)
        return output if found is None else output + _bottleneck(found, read, output)


def _bottleneck(bottleneck: Bottleneck, read: Tensor, output: Tensor) -> Tensor:
    x = read if bottleneck.placement == "parallel" else output
    narrow = ACTIVATIONS[bottleneck.activation](functional.linear(x, bottleneck.down, bottleneck.down_bias))
    return functional.linear(narrow, bottleneck.up, bottleneck.up_bias)
