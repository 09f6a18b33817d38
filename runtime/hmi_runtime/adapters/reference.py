"""The slow truth: one row, one adapter, every formula written out. The batched path is held to this."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.weights import AdapterWeights, Bottleneck, Head, LayerAdapter
from hmi_runtime.base import EncoderLayer, attention_bias
from hmi_runtime.base.architecture import activate, merge_heads, split_heads

_BARE = LayerAdapter()


def run_row(
    layers: Sequence[EncoderLayer],
    split: int,
    adapter: AdapterWeights | None,
    hidden: Tensor,
    mask: Tensor,
) -> Tensor:
    """Return the last hidden states (T, D) of one row.

    ``layers`` are the base's from index ``split`` on; ``hidden`` (T, D) is what enters the first of them,
    ``mask`` (T,) bool is False on padding; without an adapter the frozen layers run as they are.
    """
    x, bias = hidden[None], attention_bias(mask[None], hidden.dtype)  # (1, T, D), (1, 1, 1, T)
    for index, layer in enumerate(layers, start=split):
        changes = adapter.layers.get(index, _BARE) if adapter is not None else _BARE
        x = run_layer(layer, changes, x, bias)
    return x[0]


def run_layer(layer: EncoderLayer, changes: LayerAdapter, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return one layer's output (B, T, D) with the same ``changes`` for every row of ``x`` (B, T, D)."""
    query, key, value = (
        split_heads(_matrix(layer, changes, name, x), layer.heads) for name in ("query", "key", "value")
    )  # each (B, H, T, D/H)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    attended = _matrix(layer, changes, "attention_output", merge_heads(mixed))
    x = _norm(
        layer, changes, "attention_norm", x + _bottleneck(changes.bottlenecks.get("attention"), x, attended)
    )
    widened = activate(layer.activation, _matrix(layer, changes, "ffn_up", x))  # (B, T, F)
    narrowed = _matrix(layer, changes, "ffn_down", widened)
    return _norm(layer, changes, "ffn_norm", x + _bottleneck(changes.bottlenecks.get("ffn"), x, narrowed))


def _matrix(layer: EncoderLayer, changes: LayerAdapter, name: str, x: Tensor) -> Tensor:
    linear = layer.get_submodule(name)
    bias = changes.bias.get(name, linear.bias)
    y = functional.linear(x, linear.weight, bias)  # type: ignore[arg-type]
    lora = changes.lora.get(name)
    return y if lora is None else y + functional.linear(functional.linear(x, lora.a), lora.b)


def _norm(layer: EncoderLayer, changes: LayerAdapter, name: str, x: Tensor) -> Tensor:
    norm = layer.get_submodule(name)
    weight, bias = changes.norms.get(name, (norm.weight, norm.bias))
    return functional.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)  # type: ignore[arg-type]


def _bottleneck(bottleneck: Bottleneck | None, sublayer_input: Tensor, output: Tensor) -> Tensor:
    if bottleneck is None:
        return output
    read = sublayer_input if bottleneck.placement == "parallel" else output
    narrow = activate(bottleneck.activation, functional.linear(read, bottleneck.down, bottleneck.down_bias))
    return output + functional.linear(narrow, bottleneck.up, bottleneck.up_bias)


def pool(pooling: str, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return what a head reads of ``hidden`` (B, T, D): (B, D), (B, 2D), or (B, T, D) for ``token``.

    ``mask`` (B, T) bool is False on padding; the mean is over True positions.
    """
    if pooling == "token":
        return hidden
    first = hidden[:, 0]  # (B, D)
    if pooling == "first":
        return first
    kept = mask.to(hidden.dtype)[:, :, None]  # (B, T, 1)
    mean = (hidden * kept).sum(1) / kept.sum(1).clamp_min(1)  # (B, D)
    return mean if pooling == "mean" else torch.cat((first, mean), dim=-1)


def run_head(head: Head, hidden: Tensor, mask: Tensor) -> Tensor:
    """Return one row's logits: (n,), or (T, n) for a token head. ``hidden`` is (T, D), ``mask`` (T,) bool."""
    x = pool(head.pooling, hidden[None], mask[None])[0]
    if head.dense is not None:
        dense = functional.linear(x, head.dense.weight, head.dense.bias)
        x = torch.tanh(dense) if head.dense.activation == "tanh" else activate(head.dense.activation, dense)
    return functional.linear(x, head.weight, head.bias)
