"""Settling: after a cut, what is left of a difference learns to say what the tuned model said.

The cut (``adapters.compress``) is the best of its rank for each matrix by itself and to second order. A few
steps down the divergence KL(tuned || cut) on the rows that the task was learnt on fit all factors, biases and
norms together, and win back most of the predictions that the cut had turned.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hmi_runtime.adapters.lora import attach_adapter, export_adapter
from hmi_runtime.adapters.weights import LayerAdapter
from hmi_runtime.models import UpperLayers
from hmi_runtime.training.descent import Progress, descend, set_learning_rate
from hmi_runtime.training.schedule import BatchOrder, learning_rate_factor
from hmi_runtime.training.tuning import Lessons, TaskModel

STEPS = 50
BATCH_SIZE = 32
LEARNING_RATE = 3e-4
WARMUP_STEPS = 5


def settle(
    upper: UpperLayers,
    layers: Mapping[int, LayerAdapter],
    tuned: TaskModel[UpperLayers],
    rows: Lessons,
    *,
    seed: int = 0,
    progress: Progress = lambda step, steps, metrics: None,
) -> dict[int, LayerAdapter]:
    """Return ``layers``, cut from ``tuned``, after a few steps towards what it says of ``rows``.

    ``upper`` is a fresh copy of the base's upper layers and is used up. Deterministic for a seed, and short:
    nothing is checkpointed.
    """
    learning = attach_adapter(upper, layers)
    optimizer = torch.optim.AdamW(
        [{"params": learning, "lr": LEARNING_RATE, "peak": LEARNING_RATE}], weight_decay=0.0, fused=True
    )
    order = BatchOrder(np.arange(len(rows.lengths)), rows.lengths, BATCH_SIZE, seed)
    tuned.eval()
    for step in range(STEPS):
        set_learning_rate(optimizer, learning_rate_factor(step, STEPS, WARMUP_STEPS))
        states, mask = rows.batch(order.rows_of(step))  # (B, T, D), (B, T)
        with torch.no_grad():
            said = tuned(states, mask)
        loss = divergence(tuned.head(upper(states, mask), mask), said, mask)
        descend(loss, upper, optimizer)
        progress(step + 1, STEPS, {"loss": loss.item()})
    return export_adapter(upper)


def divergence(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return KL(theirs || ours) of logits (B, n), or (B, T, n) where ``mask`` (B, T) is True; a mean."""
    per_row = functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)  # (B,) or (B, T)
    return per_row[mask].mean() if per_row.ndim == 2 else per_row.mean()
