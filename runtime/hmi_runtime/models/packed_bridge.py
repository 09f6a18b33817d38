"""The bridge of a frozen Domain over texts without padding, for serving on a CPU."""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.kernels import has_native
from hmi_runtime.adapters.native import library
from hmi_runtime.models.packing import padded_places, shape_size, starts_of

if TYPE_CHECKING:
    from hmi_runtime.models.domain_layers import BridgeAttention

_TYPICAL_TOKENS = 1024
"""For which number of tokens oneDNN chooses the layout of weights; others work, too."""
_MOST_PADDED = 1.25
"""Texts up to so many times as long as others are padded together for attention."""
_SCORES_AT_ONCE = 2**20
"""Attention scores computed at a time: few enough to stay in the CPU's cache."""
_VECTOR = 16
"""The C++ kernel takes heads of a multiple of so many dimensions."""
_LARGEST = 1e17
"""Queries, keys and values below this have finite products; the C++ kernel would hide others."""


class PackedBridge:
    """A frozen bridge for serving on a CPU: tokens without padding, weights in oneDNN's layout.

    On processors that are not Intel's these products take half as long as torch's own, which are MKL's. In
    bfloat16 they take half of that; the norm, the softmax and what the bridge is added to stay in float32.
    ``BridgeAttention`` is the reference; ``tests/runtime/models/test_domain_layers.py`` compares the two.
    """

    def __init__(self, bridge: "BridgeAttention", dtype: torch.dtype) -> None:
        self._bridge = bridge
        self._dtype = dtype
        self._heads = bridge.heads
        self._size = bridge.out.weight.shape[1] // bridge.heads
        qkv, qkv_bias = bridge.qkv.weight.detach(), bridge.qkv.bias.detach()
        out, self._out_bias = bridge.out.weight.detach(), bridge.out.bias.detach().to(dtype)
        self._is_native = has_native() and _largest_value(bridge) < _LARGEST
        if self._is_native:  # heads fill vectors; the kernel divides by the square root of their size
            size = -(-self._size // _VECTOR) * _VECTOR
            scale = torch.tensor([(size / self._size) ** 0.5, 1.0, 1.0])[:, None]
            qkv, qkv_bias = (
                self._widened(qkv, size, scale),
                self._widened(qkv_bias[:, None], size, scale)[:, 0],
            )
            out = self._widened(out.t(), size, torch.ones(1, 1)).t()
            self._size = size
        self._qkv, self._out = (
            torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _TYPICAL_TOKENS)
            for weight in (qkv, out)
        )
        self._qkv_bias = qkv_bias.to(dtype)

    def _widened(self, weight: Tensor, size: int, scale: Tensor) -> Tensor:
        """Return ``weight`` (p*H*S, d) with rows of zeros after those of each head, (p*H*size, d).

        ``scale`` (p, 1) multiplies each of the p parts.
        """
        parts = len(scale)
        wide = weight.new_zeros(parts, self._heads, size, weight.shape[1])
        wide[:, :, : self._size] = (
            weight.reshape(parts, self._heads, self._size, -1) * scale[:, :, None, None]
        )
        return wide.flatten(0, 2)

    def __call__(self, x: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
        """Add the bridge's output to ``x`` (N, D) float32, in place, and return it.

        ``positions`` (N,) int64 are those of the tokens in their texts, whose ``lengths`` are given.
        """
        tokens, bridge = len(x), self._bridge
        normed = x.new_zeros(shape_size(tokens), x.shape[1], dtype=self._dtype)  # (N', D)
        torch.add(bridge.norm(x), bridge.position.index_select(0, positions), out=normed[:tokens])
        mixed = torch.ops.mkldnn._linear_pointwise(normed, self._qkv, self._qkv_bias, "none", [], "")
        heads = self._attend_natively(mixed, lengths) if self._is_native else self._attend(mixed, lengths)
        out = torch.ops.mkldnn._linear_pointwise(heads, self._out, self._out_bias, "none", [], "")
        return x.add_(out[:tokens])

    def _attend_natively(self, mixed: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the same as ``_attend`` by the C++ kernel."""
        width = mixed.shape[1] // 3
        out = mixed.new_zeros(len(mixed), width)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        batch = library.Batch(len(lengths), offsets.ctypes.data)
        library.load().hmi_attention(
            *(ctypes.byref(batch), self._dtype is torch.float32, mixed.data_ptr(), width),
            *(self._heads, out.data_ptr()),
        )
        return out

    def _attend(self, mixed: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the heads' outputs (N', H*S) of queries, keys and values ``mixed`` (N', 3*H*S)."""
        out = mixed.new_zeros(len(mixed), mixed.shape[1] // 3)
        first = place = 0
        while first < len(lengths):
            stop = _end_of_similar(lengths, first, _SCORES_AT_ONCE // self._heads)
            tokens = sum(lengths[first:stop])
            out[place : place + tokens] = self._attend_padded(
                mixed[place : place + tokens], lengths[first:stop]
            )
            first, place = stop, place + tokens
        return out

    def _attend_padded(self, mixed: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the heads' outputs (n, H*S) of a few texts, ``mixed`` (n, 3*H*S). In float32.

        Batched products take half of the time of torch's attention for short texts.
        """
        rows, longest, heads, size = len(lengths), max(lengths), self._heads, self._size
        padded = min(lengths) < longest
        if padded:
            mask = np.arange(longest) < np.asarray(lengths)[:, None]  # (B, T)
            places = torch.from_numpy(padded_places(starts_of(lengths), lengths, longest).reshape(-1))
            mixed = mixed.index_select(0, places)
        parts = torch.empty(3, rows, heads, longest, size)
        parts.copy_(mixed.view(rows, longest, 3, heads, size).permute(2, 0, 3, 1, 4))
        query, key, value = parts.view(3, rows * heads, longest, size).unbind(0)  # (B*H, T, S)
        if rows * heads * longest**2 > _SCORES_AT_ONCE:  # one long text
            mixed_values = functional.scaled_dot_product_attention(query, key, value)  # (H, T, S)
            return mixed_values.transpose(0, 1).flatten(1)
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(size**-0.5)  # (B*H, T, T)
        if padded:
            hidden = torch.from_numpy(~mask)[:, None, None]  # (B, 1, 1, T)
            scores.view(rows, heads, longest, longest).masked_fill_(hidden, torch.finfo(scores.dtype).min)
        mixed_values = torch.bmm(torch.softmax(scores, -1), value)  # (B*H, T, S)
        joined = mixed_values.view(rows, heads, longest, size).transpose(1, 2).reshape(rows * longest, -1)
        return joined.index_select(0, torch.from_numpy(np.flatnonzero(mask))) if padded else joined


def _end_of_similar(lengths: Sequence[int], first: int, scores: int) -> int:
    """Return the end of the texts from ``first`` on that are padded to one length without much waste.

    They have at most ``scores`` pairs of tokens, unless one text alone has more.
    """
    shortest = longest = lengths[first]
    for place in range(first + 1, len(lengths)):
        shortest, longest = min(shortest, lengths[place]), max(longest, lengths[place])
        if longest > _MOST_PADDED * shortest or (place + 1 - first) * longest**2 > scores:
            return place
    return len(lengths)


def _largest_value(bridge: "BridgeAttention") -> float:
    """Return a bound of all queries, keys and values, whatever the input is: it is normalised first."""
    width = bridge.norm.weight.shape[0]
    normed = bridge.norm.weight.abs().max() * width**0.5 + bridge.norm.bias.norm()
    normed = normed + bridge.position.norm(dim=1).max()
    return float((bridge.qkv.weight.norm(dim=1) * normed + bridge.qkv.bias.abs()).max())
