"""Texts of a batch one after another without padding, and the padding of those steps that need it.

N tokens of B texts; ``lengths`` has the number of tokens of each text, at least one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Int64s = NDArray[np.int64]


def shape_size(size: int) -> int:
    """Return ``size``, a number of rows or tokens, rounded up to one of eight values an octave.

    Batches are padded to these. oneDNN compiles code for every new shape of a product, which takes about as
    long as a small batch does, and keeps it for the last 1,024 only.
    """
    step = max(1, 1 << (size - 1).bit_length() >> 4) if size > 0 else 1
    return -(-size // step) * step


def starts_of(lengths: Sequence[int] | Int64s) -> Int64s:
    """Return the place of each text's first token (B,)."""
    ends: Int64s = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def positions_of(lengths: Sequence[int]) -> Int64s:
    """Return the position of every token in its text (N,)."""
    starts = starts_of(lengths)
    return np.arange(sum(lengths)) - np.repeat(starts, lengths)


def padded_places(starts: Int64s, lengths: Sequence[int] | Int64s, longest: int) -> Int64s:
    """Return which token (B, ``longest``) is at each position of padded texts: the text's last at padding."""
    last = np.asarray(lengths, dtype=np.int64)[:, None] - 1
    return starts[:, None] + np.minimum(np.arange(longest), last)


def pad_tokens(tokens: Tensor, lengths: Sequence[int], longest: int) -> tuple[Tensor, Tensor]:
    """Return ``tokens`` (N, ...) as (B, ``longest``, ...), zero at padding, and the mask (B, ``longest``)."""
    mask = torch.from_numpy(np.arange(longest) < np.asarray(lengths)[:, None]).to(tokens.device)
    padded = tokens.new_zeros(len(lengths), longest, *tokens.shape[1:])
    padded[mask] = tokens
    return padded, mask


def window_keys(ids: Int64s, lengths: Sequence[int] | Int64s, bases: int | Int64s) -> Int64s:
    """Return the keys (N,) of the windows around all tokens ``ids`` (N,).

    ``bases`` is one more than the vocabulary's size, of all tokens or (N,). The same as
    ``pack(trigrams(...))`` of ``windows``, which needs padding.
    """
    ends: Int64s = np.cumsum(lengths, dtype=np.int64)
    left, right = np.empty_like(ids), np.empty_like(ids)
    left[1:], right[:-1] = ids[:-1] + 1, ids[1:] + 1
    left[ends - lengths], right[ends - 1] = 0, 0  # ABSENT + 1
    keys: Int64s = (left * bases + ids + 1) * bases + right
    return keys
