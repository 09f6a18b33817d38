"""Composing and bridging a batch whose rows are of several Domains.

``finish_by_slot`` does it in batched products over stacked bridges, as a GPU likes it; ``finish_each`` goes
domain after domain. Both equal ``DomainLayers.finish`` row by row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.base.architecture import attention_bias, merge_heads, split_heads
from hmi_runtime.model import Bridge, DomainLayers, compose


def finish_each(layers: Sequence[DomainLayers], slots: Tensor, parts: Tensor, mask: Tensor) -> Tensor:
    """Return (B, T, D): every domain's rows through its own ``finish``.

    ``slots`` (B,) int64 indexes ``layers``; ``parts`` (B, T, 3, D), zero at padding; ``mask`` (B, T) bool.
    """
    if len(layers) == 1:
        return layers[0].finish(parts, mask)
    out = parts.new_empty((parts.shape[0], parts.shape[1], parts.shape[3]))  # (B, T, D)
    for slot, domain in enumerate(layers):
        rows = (slots == slot).nonzero()[:, 0]
        if len(rows):
            out[rows] = domain.finish(parts[rows], mask[rows])
    return out


class BridgeStack:
    """The positions and bridges of several Domains, stacked so that a batch can gather them by row.

    All bridges must have one shape (or all domains none): see ``bridge_shape``.
    """

    def __init__(self, layers: Sequence[DomainLayers], length: int) -> None:
        """Stack what texts of up to ``length`` tokens need."""
        self._position = torch.stack([domain.position[:length] for domain in layers])  # (S, T, D)
        bridges = [domain.bridge for domain in layers if domain.bridge is not None]
        self._heads = bridges[0].heads if bridges else 0
        if bridges:
            self._stack(bridges, length)

    def _stack(self, bridges: Sequence[Bridge], length: int) -> None:
        self._eps = bridges[0].norm.eps
        self._norm_weight = torch.stack([b.norm.weight for b in bridges])[:, None]  # (S, 1, D)
        self._norm_bias = torch.stack([b.norm.bias for b in bridges])[:, None]  # (S, 1, D)
        self._bridge_position = torch.stack([b.position[:length] for b in bridges])  # (S, T, D)
        self._qkv = torch.stack([b.qkv.weight.T for b in bridges])  # (S, D, 3*H*S')
        self._qkv_bias = torch.stack([b.qkv.bias for b in bridges])[:, None]  # (S, 1, 3*H*S')
        self._out = torch.stack([b.out.weight.T for b in bridges])  # (S, H*S', D)
        self._out_bias = torch.stack([b.out.bias for b in bridges])[:, None]  # (S, 1, D)

    def finish(self, slots: Tensor, parts: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, D); arguments as in ``finish_each``."""
        x = compose(parts) + self._position[slots]  # (B, T, D)
        if not self._heads:
            return x
        normed = functional.layer_norm(x, x.shape[-1:], eps=self._eps)  # (B, T, D)
        normed = torch.addcmul(self._norm_bias[slots], normed, self._norm_weight[slots])
        normed += self._bridge_position[slots]
        mixed = torch.baddbmm(self._qkv_bias[slots], normed, self._qkv[slots])  # (B, T, 3*H*S')
        query, key, value = (split_heads(part, self._heads) for part in mixed.chunk(3, dim=2))
        bias = attention_bias(mask, x.dtype)
        heads = merge_heads(functional.scaled_dot_product_attention(query, key, value, attn_mask=bias))
        return x.baddbmm_(heads, self._out[slots]).add_(self._out_bias[slots])


def bridge_shape(layers: DomainLayers) -> tuple[int, int]:
    """Return what must agree for domains to share a stack: the bridge's heads and their size."""
    return (layers.config.bridge_heads, layers.config.bridge_head_size if layers.config.bridge_heads else 0)


def finish_by_slot(layers: Sequence[DomainLayers], slots: Tensor, parts: Tensor, mask: Tensor) -> Tensor:
    """Return (B, T, D) for rows of any of ``layers``; arguments as in ``finish_each``.

    One domain goes straight through; several with bridges of one shape go in batched products; where shapes
    differ, every shape's rows go by themselves.
    """
    if len(layers) == 1:
        return layers[0].finish(parts, mask)
    shapes = sorted({bridge_shape(domain) for domain in layers})
    if len(shapes) == 1:
        return BridgeStack(layers, parts.shape[1]).finish(slots, parts, mask)
    out = parts.new_empty((parts.shape[0], parts.shape[1], parts.shape[3]))  # (B, T, D)
    for shape in shapes:
        members = [slot for slot, domain in enumerate(layers) if bridge_shape(domain) == shape]
        local = torch.full((len(layers),), -1, device=slots.device)
        local[members] = torch.arange(len(members), device=slots.device)
        rows = (local[slots] >= 0).nonzero()[:, 0]
        some = [layers[slot] for slot in members]
        out[rows] = finish_by_slot(some, local[slots[rows]], parts[rows], mask[rows])
    return out
