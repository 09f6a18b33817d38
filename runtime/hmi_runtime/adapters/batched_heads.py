"""Heads of many adapters over one batch: other poolings, other numbers of labels, one product.

Weights lie in the pool over [first, mean] side by side, with zeros where a head does not look, and padded
with zeros to ``max_labels``; a batch multiplies up to its own largest number and each row is cut to its own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.reference import pool as pooled
from hmi_runtime.adapters.slots import BARE, SlotPool

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
}


@torch.inference_mode()
def run_heads(pool: SlotPool, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> list[Tensor]:
    """Return each row's logits: (n,), or (T, n) for a token head; n is that row's number of labels.

    ``hidden`` (B, T, D) float32 are the last hidden states, ``mask`` (B, T) bool is False on padding.
    Raises ``InvalidInput`` AdapterMissing for a row without an adapter: the bare layers have no head.
    """
    if BARE in slots:
        raise InvalidInput("AdapterMissing", "A row names no adapter, so it has no head; name one.")
    poolings = [pool.traits[slot].pooling for slot in slots]
    token_rows = [row for row, pooling in enumerate(poolings) if pooling == "token"]
    pooled_rows = [row for row, pooling in enumerate(poolings) if pooling != "token"]
    logits: dict[int, Tensor] = {}
    if pooled_rows:
        index = torch.tensor(pooled_rows, device=hidden.device)
        inputs = pooled("first_and_mean", hidden[index], mask[index])[:, None]  # (n, 1, 2D)
        scores = _scores(pool, inputs, [slots[row] for row in pooled_rows])  # (n, 1, most labels)
        logits.update(zip(pooled_rows, scores[:, 0], strict=True))
    if token_rows:
        index = torch.tensor(token_rows, device=hidden.device)
        scores = _scores(pool, hidden[index], [slots[row] for row in token_rows])  # (n, T, most labels)
        logits.update(zip(token_rows, scores, strict=True))
    return [logits[row][..., : pool.traits[slot].labels] for row, slot in enumerate(slots)]


def _scores(pool: SlotPool, inputs: Tensor, slots: Sequence[int]) -> Tensor:
    """Return (n, T, most labels) for ``inputs`` (n, T, D or 2D), row i by the head of ``slots[i]``."""
    inputs = _dense(pool, inputs, slots)
    places = torch.tensor(slots, device=inputs.device)
    labels = max(pool.traits[slot].labels for slot in slots)
    weight = pool.tensor("head.weight")[0, :, :labels, : inputs.shape[-1]].index_select(0, places)
    bias = pool.tensor("head.bias")[0, :, :labels].index_select(0, places)
    return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2))


def _dense(pool: SlotPool, inputs: Tensor, slots: Sequence[int]) -> Tensor:
    """Return ``inputs`` with the dense layer run where a head has one; its output stands in the first D."""
    width = pool.config.width
    kinds = [(pool.traits[slot].dense_activation, pool.traits[slot].pooling) for slot in slots]
    for activation, pooling in sorted({(a, p) for a, p in kinds if a is not None}):
        rows = [row for row, kind in enumerate(kinds) if kind == (activation, pooling)]
        index = torch.tensor(rows, device=inputs.device)
        places = torch.tensor([slots[row] for row in rows], device=inputs.device)
        start = width if pooling == "mean" else 0
        read = inputs[index, :, start : start + width]  # (n, T, D)
        weight = pool.tensor("head.dense.weight")[0].index_select(0, places)  # (n, D, D)
        bias = pool.tensor("head.dense.bias")[0].index_select(0, places)  # (n, D)
        before = torch.baddbmm(bias[:, None], read, weight.transpose(1, 2))  # (n, T, D)
        before.masked_fill_(~before.isfinite(), torch.nan)  # tanh and ReLU would make numbers of infinity
        dense = _ACTIVATIONS[activation](before)
        inputs = inputs.clone()  # the caller's hidden states may be seen through this
        inputs[index, :, :width] = dense
    return inputs
