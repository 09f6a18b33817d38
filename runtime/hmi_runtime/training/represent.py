"""Windows of a batch of texts through a Domain's layers, each distinct one once, with gradients."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmi_runtime.models import ABSENT, DomainLayers


def represent_windows(layers: DomainLayers, windows: Tensor, mask: Tensor) -> Tensor:
    """Return the representation at the split (B, T, D) of ``windows`` (B, T, 3) int64, ``mask`` (B, T).

    What ``DomainLayers.represent`` computes for a text's own trigrams, but for any windows.
    """
    return layers.combine_windows(parts_of_windows(layers, windows, mask), mask)


def parts_of_windows(layers: DomainLayers, windows: Tensor, mask: Tensor) -> Tensor:
    """Return the gated parts (B, T, 3, D) of ``windows`` (B, T, 3) int64, zero where ``mask`` is False."""
    real = windows[mask]  # (N, 3)
    base = layers.config.encoder.vocab_size + 1
    left, centre, right = (real - ABSENT).unbind(1)
    keys = (left * base + centre) * base + right  # (N,), one number a window: quicker to sort than rows
    unique, place = torch.unique(keys, return_inverse=True)  # (W,), (N,)
    distinct = (
        torch.stack([unique // base**2, unique // base % base, unique % base], dim=1) + ABSENT
    )  # (W, 3)
    # Over three tokens the plain products are quicker than a fused kernel's per-head set-up.
    with sdpa_kernel(SDPBackend.MATH):
        computed = layers.window_outputs(distinct)  # (W, 3, D)
    # Plain indexing would add up gradients of repeated windows in whatever order threads come.
    values = computed.index_select(0, place)  # (N, 3, D)
    parts = values.new_zeros((*mask.shape, *values.shape[1:]))  # (B, T, 3, D)
    parts[mask] = values
    return parts
