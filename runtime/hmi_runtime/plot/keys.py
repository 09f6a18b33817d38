"""Window keys: a trigram of token ids as one integer."""

import torch
from torch import Tensor

from hmi_api.errors import InvalidInput

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
