"""Windows: the trigram around every token, how positions are composed from windows, and int64 window keys.

The composition follows SkipBERT (Wang et al., ACL 2022): a position is the sum of contributions from the
three windows that cover it.
"""

import torch
from torch import Tensor

from hmi_api.errors import InvalidInput

ABSENT = -1
"""Stands in a window for a token that is not there: before the first, after the last."""


def trigrams(ids: Tensor, mask: Tensor) -> Tensor:
    """Return each token's window (B, T, 3) int64: its left neighbour, itself, its right neighbour.

    ``ids`` (B, T) int64; ``mask`` (B, T) bool, False on padding. A neighbour that is past an edge or is
    padding is ``ABSENT``, so a row's windows do not depend on how far it was padded.
    """
    real = ids.masked_fill(~mask, ABSENT)  # (B, T)
    edge = real.new_full((ids.shape[0], 1), ABSENT)  # (B, 1)
    left = torch.cat([edge, real[:, :-1]], dim=1)  # (B, T)
    right = torch.cat([real[:, 1:], edge], dim=1)  # (B, T)
    windows = torch.stack([left, ids, right], dim=2)  # (B, T, 3)
    # Padding's own windows are all alike, whatever stands beside them.
    windows[:, :, 0].masked_fill_(~mask, ABSENT)
    return windows


def compose(parts: Tensor) -> Tensor:
    """Return positions (B, T, D) from the gated parts (B, T, 3, D) of their windows.

    Position i is its own window's centre, plus what its right neighbour's window says of its left token,
    plus what its left neighbour's window says of its right token. Gates are already in the parts.
    """
    composed = parts[:, :, 1].clone()  # (B, T, D)
    composed[:, :-1] += parts[:, 1:, 0]
    composed[:, 1:] += parts[:, :-1, 2]
    return composed


def contributions(parts: Tensor) -> Tensor:
    """Return what each position is composed of (B, T, 3, D), from the parts (B, T, 3, D) of their windows.

    In the order of the gates: from the right neighbour's window its left part, from the own window its
    centre, from the left neighbour's its right part. Their sum is what ``compose`` returns.
    """
    given = torch.zeros_like(parts)
    given[:, :-1, 0] = parts[:, 1:, 0]
    given[:, :, 1] = parts[:, :, 1]
    given[:, 1:, 2] = parts[:, :-1, 2]
    return given


MAX_VOCABULARY = 2_097_150
"""Largest vocabulary whose windows fit an int64: (V + 1) cubed stays below 2 to the 63rd."""


def check_vocabulary(vocab_size: int) -> None:
    """Raise ``InvalidInput`` VocabularyTooLarge when windows of this vocabulary fit no int64."""
    if not 1 <= vocab_size <= MAX_VOCABULARY:
        raise InvalidInput(
            "VocabularyTooLarge",
            f"A vocabulary of {vocab_size} has no window keys; use a base model with 1 to "
            f"{MAX_VOCABULARY:,} tokens.",
        )


def pack(windows: Tensor, vocab_size: int) -> Tensor:
    """Return the keys (N,) int64 of ``windows`` (N, 3) int64, whose tokens are -1 (``ABSENT``) to V - 1.

    A bijection onto 0 .. (V + 1) ** 3 - 1: the window read as three digits in base V + 1, ABSENT being 0.
    """
    base = vocab_size + 1
    digits = windows + 1  # (N, 3)
    return (digits[:, 0] * base + digits[:, 1]) * base + digits[:, 2]


def unpack(keys: Tensor, vocab_size: int) -> Tensor:
    """Return the windows (N, 3) int64 of ``keys`` (N,) int64; the inverse of ``pack``."""
    base = vocab_size + 1
    left = torch.div(keys, base * base, rounding_mode="floor")
    centre = torch.div(keys, base, rounding_mode="floor") % base
    return torch.stack([left, centre, keys % base], dim=1) - 1
