"""Windows: the trigram around every token, how positions are composed from windows, and int64 window keys.

The composition follows SkipBERT (Wang et al., ACL 2022): a position is the sum of contributions from the
three windows that cover it.
"""

import torch
from torch import Tensor

from hmi_api.errors import InvalidInput

ABSENT = -1
"""The id in a window of a token before the first or after the last."""


MAX_VOCABULARY = 2_097_150
"""Largest vocabulary whose window keys fit into int64: (V + 1) ** 3 < 2 ** 63."""


def trigrams(ids: Tensor, mask: Tensor) -> Tensor:
    """Return each token's window (B, T, 3) int64: its left neighbour, itself, its right neighbour.

    ``ids`` (B, T) int64; ``mask`` (B, T) bool, False on padding. A neighbour past an edge or on
    padding is ``ABSENT``, so a row's windows do not depend on how far it was padded.
    """
    real = ids.masked_fill(~mask, ABSENT)  # (B, T)
    edge = real.new_full((ids.shape[0], 1), ABSENT)  # (B, 1)
    left = torch.cat([edge, real[:, :-1]], dim=1)  # (B, T)
    right = torch.cat([real[:, 1:], edge], dim=1)  # (B, T)
    windows = torch.stack([left, ids, right], dim=2)  # (B, T, 3)
    # All windows of padding are equal, whatever their neighbours.
    windows[:, :, 0].masked_fill_(~mask, ABSENT)
    return windows


def compose(outputs: Tensor) -> Tensor:
    """Return positions (B, T, D) from the gated outputs (B, T, 3, D) of their windows.

    Position i is the sum of its own window's centre output, the left output of its right neighbour's window,
    and the right output of its left neighbour's window. Gates are already applied.
    """
    composed = outputs[:, :, 1].clone()  # (B, T, D)
    composed[:, :-1] += outputs[:, 1:, 0]
    composed[:, 1:] += outputs[:, :-1, 2]
    return composed


def contributions(outputs: Tensor) -> Tensor:
    """Return the three summands of each position (B, T, 3, D), which ``compose`` adds up.

    In the order of the gates: the left output of the right neighbour's window, the centre output of the own
    window, the right output of the left neighbour's window.
    """
    summands = torch.zeros_like(outputs)
    summands[:, :-1, 0] = outputs[:, 1:, 0]
    summands[:, :, 1] = outputs[:, :, 1]
    summands[:, 1:, 2] = outputs[:, :-1, 2]
    return summands


def check_vocabulary(vocab_size: int) -> None:
    """Raise ``InvalidInput`` VocabularyTooLarge when window keys of this vocabulary do not fit into int64."""
    if not 1 <= vocab_size <= MAX_VOCABULARY:
        raise InvalidInput(
            "VocabularyTooLarge",
            f"Windows of a vocabulary of {vocab_size} do not fit into 64-bit keys; "
            f"use a base model with 1 to {MAX_VOCABULARY:,} tokens.",
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
